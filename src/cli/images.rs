//! The images that a command is about.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueHint};
use url::form_urlencoded::Serializer;

use super::ask::Door;
use super::references;
use crate::admin::Matching;

/// What every command takes that is about several images.
#[derive(Debug, Args)]
pub(super) struct ImagesArgs {
    /// The images, as they stand in a pull: nginx, ghcr.io/org/app:1, nginx@sha256:…; or with a pattern for the tag, postgres:16*
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// And all that this file names: a list with one a line, as `tidelock missing` writes it, a compose file, manifests of
    /// Kubernetes, what `helm template` writes, or a Dockerfile
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    from: Vec<PathBuf>,
    /// Of the tags that a pattern matches (postgres:16*) only so many, the newest versions
    #[arg(long, value_name = "N")]
    newest: Option<usize>,
}

impl ImagesArgs {
    /// Whether none was named.
    pub(super) fn is_empty(&self) -> bool {
        self.images.is_empty() && self.from.is_empty()
    }

    /// All of them, each once, in the order in which they are named; the tags that a pattern matches as the mirror lists
    /// them.
    ///
    /// # Errors
    /// A file that cannot be read, or names none; a pattern that matches nothing.
    pub(super) fn all(&self, door: &Door) -> anyhow::Result<Vec<String>> {
        let mut all: Vec<String> = Vec::new();
        for image in self.named()? {
            if !image.contains(['*', '?']) {
                all.push(image);
                continue;
            }
            let mut query = Serializer::new("/api/v1/matching?".to_owned());
            query.append_pair("image", &image);
            query.extend_pairs(self.newest.map(|newest| ("newest", newest.to_string())));
            let matching = door.post_at_leisure::<Matching>(&query.finish())?.images;
            if matching.is_empty() {
                bail!("{image} matches no tag");
            }
            all.extend(matching);
        }
        let mut seen = HashSet::new();
        all.retain(|image| seen.insert(image.clone()));
        Ok(all)
    }

    fn named(&self) -> anyhow::Result<Vec<String>> {
        let mut all = self.images.clone();
        for file in &self.from {
            let text = std::fs::read_to_string(file).with_context(|| format!("--from {}", file.display()))?;
            let named =
                references::images(file, &text).with_context(|| format!("--from {}", file.display()))?;
            if named.is_empty() {
                bail!("--from {}: it names no image", file.display());
            }
            all.extend(named);
        }
        Ok(all)
    }
}
