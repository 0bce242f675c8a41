use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Malformed;

/// A repository's name without its registry, `library/nginx` (distribution-spec, "Pulling manifests").
///
/// Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

/// A registry as it stands in an image reference: `docker.io`, `ghcr.io`, `registry.example:5000`.
///
/// Lower-cased at parsing, since host names are compared without regard to case. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryHost(Arc<str>);

/// A repository and the registry that it is in, `docker.io/library/nginx`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The registry.
    pub registry: RegistryHost,
    /// The name within it.
    pub name: RepositoryName,
}

/// Clients cap host, slash and name at 255 characters together; a longer name can belong to nobody.
const LONGEST_NAME: usize = 255;

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path components, first to last; there is always one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The name that follows its first component, `None` where that is another or the only one.
    pub fn within(&self, first: &str) -> Option<RepositoryName> {
        let rest = self.0.strip_prefix(first)?.strip_prefix('/')?;
        Some(RepositoryName(rest.into()))
    }

    /// This name within `library/` when it has a single component, as Docker Hub's official images have. One
    /// that would then be too long for a name stays as it is: no image has it.
    pub fn in_library(self) -> RepositoryName {
        if self.0.contains('/') {
            return self;
        }
        format!("library/{self}").parse().unwrap_or(self)
    }
}

impl RegistryHost {
    /// The host, and the port where one was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let fits = text.len() <= LONGEST_NAME && text.split('/').all(is_component);
        fits.then(|| RepositoryName(text.into())).ok_or_else(|| {
            Malformed::new(
                text,
                "a repository name: at most 255 characters in components of lower-case letters and digits, \
                 parted by '/', within a component by '.', '_', '__' or dashes",
            )
        })
    }
}

impl FromStr for RegistryHost {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let text = text.to_ascii_lowercase();
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') => (host, Some(port)),
            _ => (text.as_str(), None),
        };
        let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
        if port_fits && (is_domain(host) || is_bracketed_v6(host)) {
            Ok(RegistryHost(text.as_str().into()))
        } else {
            Err(Malformed::new(&text, "a registry host such as docker.io or registry.example:5000"))
        }
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Repository {
    type Err = Malformed;

    /// Reads what [`Repository`] prints: the first component is the registry.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let missing =
            || Malformed::new(text, "a repository with its registry, such as docker.io/library/nginx");
        let (registry, name) = text.split_once('/').ok_or_else(missing)?;
        Ok(Repository { registry: registry.parse()?, name: name.parse()? })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

/// One path component: runs of `[a-z0-9]` joined by `.`, `_`, `__` or any number of `-`. Read byte by byte, as there is a
/// name in each request.
fn is_component(text: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let is_between_words = bytes.first().is_some_and(is_word) && bytes.last().is_some_and(is_word);
    let mut separators = bytes.split(is_word);
    let is_separator = |separator: &[u8]| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    };
    is_between_words && separators.all(is_separator)
}

fn is_domain(host: &str) -> bool {
    let is_label = |label: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !label.is_empty() && label.chars().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(is_label)
}

fn is_bracketed_v6(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn names_by_the_grammar() {
        for good in ["nginx", "library/nginx", "a/b/c", "a.b", "a_b", "a__b", "a---b", "0/1", "a-b.c_d/e"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in
            ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a-", "_a", "a._b", "a b", "../a", &long]
        {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts() {
        for good in ["docker.io", "LOCALHOST", "127.0.0.1:5000", "registry", "[::1]:5000", "[::1]", "a-b.c:1"]
        {
            assert!(good.parse::<RegistryHost>().is_ok(), "{good}");
        }
        for bad in ["", ":5000", "a:", "a:0", "a:70000", "a..b", "-a.b", "a/b", "[::1", "::1", "a b", "a:1:2"]
        {
            assert!(bad.parse::<RegistryHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_library_takes_only_single_names() {
        let name = |text: &str| text.parse::<RepositoryName>().expect("a name");
        assert_eq!(name("nginx").in_library().as_str(), "library/nginx");
        assert_eq!(name("org/app").in_library().as_str(), "org/app");
        for length in [LONGEST_NAME - 8, LONGEST_NAME - 7, LONGEST_NAME] {
            let within = name(&"a".repeat(length)).in_library();
            assert_eq!(within.as_str().parse(), Ok(within), "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_prints_as_it_was(text in "[a-z0-9._/A-Z-]{0,40}") {
            if let Ok(name) = text.parse::<RepositoryName>() {
                prop_assert_eq!(name.as_str(), text.as_str());
                prop_assert!(name.components().all(|part| !part.is_empty()));
            }
        }

        #[test]
        fn generated_names_are_accepted(text in "[a-z0-9]{1,5}([._]|__|-{1,3})[a-z0-9]{1,5}(/[a-z0-9]{1,8}){0,3}") {
            prop_assert!(text.parse::<RepositoryName>().is_ok());
        }
    }
}
