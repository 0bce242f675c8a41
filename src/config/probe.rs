use std::fmt;
use std::str::FromStr;

use crate::oci::{RepositoryName, Tag};

/// An image that is asked about by HEAD, which costs no pull, to learn an account's budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Its repository, in full: `library/alpine`.
    pub repository: RepositoryName,
    /// Its tag.
    pub tag: Tag,
}

impl FromStr for Probe {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (repository, tag) = text.split_once(':')?;
            Some(Probe { repository: repository.parse().ok()?, tag: tag.parse().ok()? })
        };
        parse().ok_or("a repository in full and a tag, without the registry, such as library/alpine:latest")
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}
