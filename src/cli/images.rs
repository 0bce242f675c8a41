//! The images that a command is about.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueHint};

use super::references;

/// What every command takes that is about several images.
#[derive(Debug, Args)]
pub(super) struct ImagesArgs {
    /// The images, as they stand in a pull: nginx, ghcr.io/org/app:1, nginx@sha256:…
    #[arg(required_unless_present = "from", value_name = "IMAGE")]
    images: Vec<String>,
    /// And all that this file names: a list with one a line, as `tidelock missing` writes it, a compose file, manifests of
    /// Kubernetes, what `helm template` writes, or a Dockerfile
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    from: Vec<PathBuf>,
}

impl ImagesArgs {
    /// All of them, each once, in the order in which they are named.
    ///
    /// # Errors
    /// A file that cannot be read, or names none.
    pub(super) fn all(&self) -> anyhow::Result<Vec<String>> {
        let mut all: Vec<String> = Vec::new();
        let mut name = |image: &str| {
            if !all.iter().any(|known| known == image) {
                all.push(image.to_owned());
            }
        };
        self.images.iter().for_each(|image| name(image));
        for file in &self.from {
            let text = std::fs::read_to_string(file).with_context(|| format!("--from {}", file.display()))?;
            let named =
                references::images(file, &text).with_context(|| format!("--from {}", file.display()))?;
            if named.is_empty() {
                bail!("--from {}: it names no image", file.display());
            }
            named.iter().for_each(|image| name(image));
        }
        Ok(all)
    }
}
