//! Where an answer may send us on to. Plain judgement, no I/O; who follows is `asking`.

use http::StatusCode;
use url::Url;

use super::trust::is_same_origin;

/// So many redirects are followed for one request; registries use one, registry.k8s.io two.
pub(super) const MOST_HOPS: usize = 10;

/// A chain of redirects under way.
#[derive(Debug)]
pub(super) struct Trail {
    visited: Vec<Url>,
    // Once a foreign place has had a say in the URL, the login is not sent any more, not even back home.
    at_home: bool,
}

impl Trail {
    /// Starts at the endpoint.
    pub(super) fn new(start: &Url) -> Trail {
        Trail { visited: vec![start.clone()], at_home: true }
    }

    /// Where we are.
    pub(super) fn here(&self) -> &Url {
        self.visited.last().expect("a trail starts with a URL and only grows")
    }

    /// Whether nothing but scheme, host and port of the start were visited: the login may come along.
    pub(super) fn is_at_home(&self) -> bool {
        self.at_home
    }

    /// Goes where `location` points, absolute or relative.
    ///
    /// # Errors
    /// Which rule it breaks. Nothing of the URL is in it, as signed URLs are as good as passwords.
    pub(super) fn go(&mut self, location: &str) -> Result<(), &'static str> {
        if self.visited.len() > MOST_HOPS {
            return Err("more than 10 redirects");
        }
        let mut next = self.here().join(location).map_err(|_| "a redirect to a malformed URL")?;
        next.set_fragment(None);
        match (self.here().scheme(), next.scheme()) {
            (_, "https") | ("http", "http") => {}
            ("https", "http") => return Err("a redirect from https to http"),
            _ => return Err("a redirect to something other than http or https"),
        }
        if !next.username().is_empty() || next.password().is_some() {
            return Err("a redirect with a user name in it");
        }
        if self.visited.contains(&next) {
            return Err("a redirect loop");
        }
        self.at_home &= is_same_origin(self.here(), &next);
        self.visited.push(next);
        Ok(())
    }
}

/// Whether `status` sends us on. 300 and 304 do not.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trail(start: &str) -> Trail {
        Trail::new(&start.parse().unwrap())
    }

    #[test]
    fn relative_and_absolute() {
        let mut trail = trail("https://r.example/v2/a/blobs/x");
        trail.go("../y?sig=1").unwrap();
        assert_eq!(trail.here().as_str(), "https://r.example/v2/a/y?sig=1");
        assert!(trail.is_at_home());
        trail.go("//cdn.example/z#part").unwrap();
        assert_eq!(trail.here().as_str(), "https://cdn.example/z");
        assert!(!trail.is_at_home());
        trail.go("https://r.example/w").unwrap();
        assert!(!trail.is_at_home(), "the way home was shown by a stranger");
    }

    #[test]
    fn another_port_or_scheme_is_not_home() {
        for to in ["http://r.example:81/x", "https://r.example/x"] {
            let mut trail = trail("http://r.example/");
            trail.go(to).unwrap();
            assert!(!trail.is_at_home(), "{to}");
        }
    }

    #[test]
    fn refused() {
        for (to, why) in [
            ("http://r.example/x", "a redirect from https to http"),
            ("file:///etc/passwd", "a redirect to something other than http or https"),
            ("ftp://r.example/", "a redirect to something other than http or https"),
            ("https://u:p@r.example/", "a redirect with a user name in it"),
            ("https://", "a redirect to a malformed URL"),
            ("/", "a redirect loop"),
        ] {
            assert_eq!(trail("https://r.example/").go(to), Err(why), "{to}");
        }
    }

    #[test]
    fn ends() {
        let mut trail = trail("https://r.example/0");
        for hop in 1..=MOST_HOPS {
            trail.go(&format!("/{hop}")).unwrap();
        }
        assert_eq!(trail.go("/again"), Err("more than 10 redirects"));
    }

    proptest! {
        #[test]
        fn never_panics_and_never_leaves_the_web(location in "(https?:|//|/|\\.\\.|[a-z@:?#]|\\PC){0,12}") {
            let mut trail = trail("https://r.example/v2/");
            let gone = trail.go(&location);
            prop_assert_eq!(trail.here().scheme(), "https");
            prop_assert!(gone.is_ok() || trail.here().as_str() == "https://r.example/v2/");
            let home = trail.here().host_str() == Some("r.example") && trail.here().port().is_none();
            prop_assert_eq!(trail.is_at_home(), home);
        }
    }
}
