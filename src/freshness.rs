//! Whether a remembered tag may be served, must be checked, or may be served though stale.
//!
//! ```text
//!  age 0        tag_ttl        + stale_while_revalidate           + stale_if_error (from tag_ttl)
//!   ├── Serve ────┼── ServeAndCheck ────────┼── Check ── and if the upstream is in trouble: ──┼── error
//! ```
//!
//! The words are those of RFC 5861. The same judgement serves lists of tags and referrers, which are
//! remembered in the same way. A definite "no such tag" is never overridden.

use std::time::Duration;

use crate::config::Freshness;

/// What to do with a request for a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answer from what is remembered, without any upstream call (I4).
    Serve,
    /// Answer from what is remembered, and check behind the client's back.
    ServeAndCheck,
    /// Ask the upstream first.
    Check,
    /// Nothing is remembered and nobody may be asked.
    Absent,
}

/// What is known when a request for a tag comes in.
#[derive(Debug, Clone, Copy)]
pub struct Remembered<'a> {
    /// The tag; `None` for a list, which no pattern of `immutable_tags` can match.
    pub tag: Option<&'a str>,
    /// How long ago the upstream last confirmed what is remembered; `None` when nothing is.
    pub age: Option<Duration>,
}

/// Judges a request. `offline` means that no upstream may be asked.
pub fn judge(policy: &Freshness, offline: bool, known: Remembered<'_>) -> Verdict {
    let Some(age) = known.age else {
        return if offline { Verdict::Absent } else { Verdict::Check };
    };
    let is_immutable =
        known.tag.is_some_and(|tag| policy.immutable_tags.iter().any(|glob| glob.matches(tag)));
    if offline || is_immutable || age < policy.tag_ttl {
        Verdict::Serve
    } else if age < policy.tag_ttl.saturating_add(policy.stale_while_revalidate) {
        Verdict::ServeAndCheck
    } else {
        Verdict::Check
    }
}

/// Whether something remembered `age` ago may be served after the upstream could not be asked: it was down,
/// throttled, refused the login or timed out. Not for a definite "no such thing".
pub fn may_serve_stale(policy: &Freshness, age: Duration) -> bool {
    age < policy.tag_ttl.saturating_add(policy.stale_if_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Freshness {
        Freshness {
            tag_ttl: Duration::from_secs(300),
            stale_while_revalidate: Duration::from_secs(3600),
            stale_if_error: Duration::from_secs(86_400),
            negative_ttl: Duration::from_secs(10),
            immutable_tags: vec!["v*.*.*".parse().expect("a pattern")],
        }
    }

    #[test]
    fn by_the_table() {
        let table = [
            // tag, age in seconds, offline, verdict
            ("latest", None, false, Verdict::Check),
            ("latest", None, true, Verdict::Absent),
            ("latest", Some(0), false, Verdict::Serve),
            ("latest", Some(299), false, Verdict::Serve),
            ("latest", Some(300), false, Verdict::ServeAndCheck),
            ("latest", Some(3899), false, Verdict::ServeAndCheck),
            ("latest", Some(3900), false, Verdict::Check),
            ("latest", Some(1 << 40), true, Verdict::Serve),
            ("v1.2.3", Some(1 << 40), false, Verdict::Serve),
            ("v1.2.3", None, false, Verdict::Check),
            ("v1", Some(1 << 40), false, Verdict::Check),
        ];
        for (tag, age, offline, expected) in table {
            let known = Remembered { tag: Some(tag), age: age.map(Duration::from_secs) };
            assert_eq!(judge(&policy(), offline, known), expected, "{tag} {age:?} offline={offline}");
        }
    }

    #[test]
    fn nothing_is_fresh_with_a_ttl_of_zero() {
        let strict =
            Freshness { tag_ttl: Duration::ZERO, stale_while_revalidate: Duration::ZERO, ..policy() };
        let known = Remembered { tag: Some("latest"), age: Some(Duration::ZERO) };
        assert_eq!(judge(&strict, false, known), Verdict::Check);
    }

    #[test]
    fn stale_for_a_while() {
        assert!(may_serve_stale(&policy(), Duration::from_secs(86_699)));
        assert!(!may_serve_stale(&policy(), Duration::from_secs(86_700)));
        let never = Freshness { tag_ttl: Duration::ZERO, stale_if_error: Duration::ZERO, ..policy() };
        assert!(!may_serve_stale(&never, Duration::ZERO));
    }
}
