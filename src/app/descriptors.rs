//! Leave from the kernel for as many open files as the configuration may need.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// The sockets that are listened on, the index, the log, the runtime's own, helpers that are run.
const OWN: u64 = 256;

/// How many file descriptors a configuration may need at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    /// With every connection taken and every fetch under way, but nobody being sent a file.
    least: u64,
    /// With a file being sent over every connection, and for as many further requests of HTTP/2.
    most: u64,
}

impl Needs {
    fn of(config: &Config) -> Needs {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        // Each fetch has a connection and the file that it writes.
        let fetches =
            config.upstreams.iter().map(|upstream| count(upstream.max_connections).saturating_mul(2));
        let connections = count(config.server.max_connections);
        let least = fetches.fold(OWN.saturating_add(connections), u64::saturating_add);
        Needs { least, most: least.saturating_add(connections.saturating_mul(2)) }
    }
}

/// Raises the limit of this process as far as `config` may need, and says where the system does not allow it.
pub(super) fn provide(config: &Config) {
    let needs = Needs::of(config);
    let limit = raise(needs.most).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of open files");
        getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
    });
    let max_connections = config.server.max_connections;
    if limit < needs.least {
        tracing::warn!(
            limit,
            needed = needs.most,
            max_connections,
            "the system allows fewer open files than the connections need: clients will be refused or left waiting \
             before server.max_connections is reached. Raise the hard limit (LimitNOFILE= under systemd, \
             --ulimit nofile= of a container, ulimit -Hn), or lower server.max_connections"
        );
    } else if limit < needs.most {
        tracing::info!(
            limit,
            needed = needs.most,
            max_connections,
            "the system allows enough open files for all connections, not for a file being sent over each of them"
        );
    }
}

/// The limit, now at least `wanted` unless the hard limit is lower. Never more than that: programs that are run by
/// this one inherit it, and some go through every descriptor that they might have.
fn raise(wanted: u64) -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let aim = limit.maximum.map_or(wanted, |hard| wanted.min(hard));
    match limit.current {
        Some(current) if current < aim => {
            setrlimit(Resource::Nofile, Rlimit { current: Some(aim), maximum: limit.maximum })?;
            Ok(aim)
        }
        current => Ok(current.unwrap_or(u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_for_a_connection_and_two_for_a_fetch() {
        let mut config = Config::default();
        config.upstreams.truncate(2);
        config.upstreams[0].max_connections = 30;
        config.upstreams[1].max_connections = 10;
        config.server.max_connections = 1_000;
        assert_eq!(Needs::of(&config), Needs { least: 1_080 + OWN, most: 3_080 + OWN });
        config.server.max_connections = usize::MAX;
        assert_eq!(Needs::of(&config).most, u64::MAX);
    }
}
