//! Who is asking, and may they.
//!
//! The mirror is open to whoever reaches its listener (client certificates are the listener's affair); what
//! is judged here is whether a repository may be pulled through it at all. Whether a repository may see a
//! cached digest (I5) needs the store and is `mirror`'s.

use crate::config::Upstream;
use crate::oci::RepositoryName;

/// The operator does not allow this repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A pattern of `deny` matches.
    #[error("{0} may not be pulled through this mirror: `deny` holds {1}")]
    Listed(RepositoryName, String),
    /// No pattern of `allow` matches.
    #[error("{0} may not be pulled through this mirror: no pattern of `allow` matches it")]
    NotListed(RepositoryName),
}

/// Whether `repository` may be pulled from `upstream`. `deny` wins over `allow`.
///
/// # Errors
/// [`Denied`] names the rule.
pub fn permit(upstream: &Upstream, repository: &RepositoryName) -> Result<(), Denied> {
    if let Some(rule) = upstream.deny.iter().find(|rule| rule.matches(repository.as_str())) {
        return Err(Denied::Listed(repository.clone(), rule.to_string()));
    }
    if upstream.allow.iter().any(|rule| rule.matches(repository.as_str())) {
        Ok(())
    } else {
        Err(Denied::NotListed(repository.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Glob};

    #[test]
    fn deny_wins_over_allow() {
        let globs =
            |list: &[&str]| list.iter().map(|text| text.parse().expect("a pattern")).collect::<Vec<Glob>>();
        let mut hub = Config::default().upstreams.remove(0);
        let may = |hub: &Upstream, name: &str| permit(hub, &name.parse().expect("a name")).is_ok();
        assert!(may(&hub, "library/nginx"));
        hub.deny = globs(&["library/ng*"]);
        assert!(!may(&hub, "library/nginx") && may(&hub, "library/redis"));
        hub.allow = globs(&["org/**"]);
        assert!(!may(&hub, "library/redis") && may(&hub, "org/a/b"));
    }
}
