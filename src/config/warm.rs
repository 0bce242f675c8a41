//! `[[warm]]`: what is fetched ahead, again and again.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::reader::Section;
use super::{Bandwidth, Glob, Hours, kinds};
use crate::oci::{ImageReference, Platform};

/// One `[[warm]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Warm {
    /// Its name in logs, metrics and reports.
    pub name: String,
    /// What is to be here.
    pub images: Vec<Wish>,
    /// Of the tags that a pattern matches so many, the newest versions.
    pub newest: Option<usize>,
    /// For these platforms only; all of them where none is named.
    pub platforms: Vec<Platform>,
    /// What refers to the images too: signatures, SBOMs, attestations.
    pub referrers: bool,
    /// Kept from eviction, as long as it is wished for.
    pub pin: bool,
    /// From the beginning of one round to that of the next.
    pub every: Duration,
    /// Only then; always where there are none.
    pub hours: Option<Hours>,
    /// The most that comes for it, as long as nobody waits.
    pub bandwidth: Bandwidth,
}

/// An image, or those of its tags that a pattern matches: `postgres:16`, `postgres:16*`.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// The image; its tag is of no account beside a pattern.
    pub image: ImageReference,
    /// The pattern.
    pub tags: Option<Glob>,
}

/// The registries of the world change seldom, and each round asks them once for each tag.
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// More often is a busy loop, less often nobody remembers.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// Tags that a pattern may stand for.
pub const MOST_TAGS: usize = 1_000;

const IMAGE: &str =
    "an image such as docker.io/library/postgres:16, or with a pattern for its tag, postgres:16*";

pub(super) fn read(section: &mut Section<'_, '_>) -> Warm {
    let name = section.required("name", "what logs and metrics call it", kinds::account_name);
    section.require("images", "what is to be here, such as [\"postgres:16*\"]");
    Warm {
        name: name.unwrap_or_default(),
        images: section.list("images", Vec::new(), kinds::wish),
        newest: section.optional("newest", kinds::count(1..=MOST_TAGS)),
        platforms: section.list("platforms", Vec::new(), kinds::platform),
        referrers: section.value("referrers", true, kinds::boolean),
        pin: section.value("pin", false, kinds::boolean),
        every: section.value("every", EVERY, kinds::duration_within(SHORTEST..=LONGEST)),
        hours: section.optional("hours", kinds::hours),
        bandwidth: section.value("bandwidth", Bandwidth::default(), kinds::bandwidth),
    }
}

impl FromStr for Wish {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_pattern = |tag: &str| !tag.contains('/') && tag.contains(['*', '?']);
        let (image, tags) = match text.rsplit_once(':').filter(|(_, tag)| is_pattern(tag)) {
            Some((name, pattern)) => (name, Some(pattern.parse().map_err(|_| IMAGE)?)),
            None => (text, None),
        };
        Ok(Wish { image: image.parse().map_err(|_| IMAGE)?, tags })
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tags {
            Some(tags) => write!(f, "{}/{}:{tags}", self.image.registry, self.image.repository),
            None => self.image.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_patterns() {
        for (text, shown) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("postgres:16*", "docker.io/library/postgres:16*"),
            ("ghcr.io/org/app:v?.1", "ghcr.io/org/app:v?.1"),
            ("r.example:5000/app", "r.example:5000/app:latest"),
        ] {
            let wish: Wish = text.parse().unwrap();
            assert_eq!(wish.to_string(), shown);
            assert_eq!(shown.parse::<Wish>(), Ok(wish));
        }
        for text in ["", "nginx:", "UPPER:1*", "*", "a b:1*", "nginx*:1"] {
            assert!(text.parse::<Wish>().is_err(), "{text}");
        }
    }
}
