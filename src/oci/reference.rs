use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Digest, Malformed, RegistryHost, RepositoryName};

/// A tag: up to 128 characters, the first of them a letter, digit or `_` (distribution-spec). Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// What follows `/manifests/`: a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By a name that may move.
    Tag(Tag),
    /// By content.
    Digest(Digest),
}

/// A whole image reference as people type it: `nginx`, `ghcr.io/org/app:1`, `nginx@sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference {
    /// The registry; `docker.io` where none was written.
    pub registry: RegistryHost,
    /// The repository; within `library/` for Docker Hub's official images.
    pub repository: RepositoryName,
    /// The tag or digest; the tag `latest` where none was written. A digest wins over a tag beside it.
    pub reference: Reference,
}

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let rest = |c: char| first(c) || c == '.' || c == '-';
        if text.len() <= 128 && text.starts_with(first) && text.chars().all(rest) {
            Ok(Tag(text.into()))
        } else {
            Err(Malformed::new(
                text,
                "a tag: 1 to 128 letters, digits, '_', '.' or '-', not starting with '.' or '-'",
            ))
        }
    }
}

impl FromStr for Reference {
    type Err = Malformed;

    /// A colon can only stand in a digest.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.contains(':') {
            text.parse().map(Reference::Digest)
        } else {
            text.parse().map(Reference::Tag)
        }
    }
}

impl FromStr for ImageReference {
    type Err = Malformed;

    /// By the rule that Docker set: the first component is a host only when it has a `.` or `:` or is
    /// `localhost`; else the registry is `docker.io`, and a single component belongs to `library/`.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host.parse()?, rest),
            _ => ("docker.io".parse::<RegistryHost>()?, rest),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, tag.parse::<Tag>()?),
            None => (rest, "latest".parse()?),
        };
        let repository = name.parse::<RepositoryName>()?;
        let hub = registry.as_str() == "docker.io";
        Ok(ImageReference {
            repository: if hub { repository.in_library() } else { repository },
            reference: digest.map_or(Reference::Tag(tag), Reference::Digest),
            registry,
        })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if matches!(self.reference, Reference::Tag(_)) { ':' } else { '@' };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.reference)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn images_as_people_type_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("org/app", "docker.io/org/app:latest".to_owned()),
            ("ghcr.io/org/app:v1", "ghcr.io/org/app:v1".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("host:5000/a/b:t", "host:5000/a/b:t".to_owned()),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx@{digest}")),
        ];
        for (text, expected) in table {
            let image = text.parse::<ImageReference>().expect(text);
            assert_eq!(image.to_string(), expected);
            assert_eq!(expected.parse::<ImageReference>(), Ok(image));
        }
    }

    #[test]
    fn images_refused() {
        for text in ["", ":1", "UPPER", "a:b:c", "nginx@sha256:1", "nginx:", "a//b", "ghcr.io/"] {
            assert!(text.parse::<ImageReference>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn tags_print_as_they_were(text in "\\PC{0,20}") {
            if let Ok(tag) = text.parse::<Tag>() {
                prop_assert_eq!(tag.as_str(), text.as_str());
            }
        }

        #[test]
        fn image_references_survive_print_and_parse(text in "([a-z]{1,4}\\.io/)?[a-z0-9]{1,6}(/[a-z]{1,6})?(:[A-Za-z0-9_.-]{1,9})?") {
            if let Ok(image) = text.parse::<ImageReference>() {
                prop_assert_eq!(image.to_string().parse::<ImageReference>(), Ok(image));
            }
        }
    }
}
