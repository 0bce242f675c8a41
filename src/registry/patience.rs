//! How long clients wait for the head of an answer, and how to keep them from asking again at once.

use std::time::{Duration, Instant};

/// containerd and Docker give up after 30 s without a head.
const USUAL: Duration = Duration::from_secs(25);
/// SOCI's lazy puller gives up after 3 s, nydus after 5 s. They name themselves.
const HASTY: Duration = Duration::from_millis(2500);
const HASTY_AGENTS: [&str; 2] = ["soci", "nydus"];

/// containerd repeats a 429 five times without a pause, whatever `Retry-After` says.
const AT_LEAST: Duration = Duration::from_millis(1500);

/// The patience of the client that calls itself `agent`.
pub(super) fn of(agent: Option<&str>) -> Duration {
    let agent = agent.unwrap_or_default();
    let begins_with =
        |name: &&str| agent.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    if HASTY_AGENTS.iter().any(begins_with) { HASTY } else { USUAL }
}

/// Holds a 429 back until the request has taken a moment.
pub(super) async fn slow_down(begun: Instant) {
    tokio::time::sleep(AT_LEAST.saturating_sub(begun.elapsed())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_the_name_of_the_client() {
        assert_eq!(of(Some("soci-snapshotter/0.9.0")), HASTY);
        assert_eq!(of(Some("Nydusd/2.3")), HASTY);
        assert_eq!(of(Some("containerd/2.1.0")), USUAL);
        assert_eq!(of(None), USUAL);
    }
}
