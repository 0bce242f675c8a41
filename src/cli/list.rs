//! `tidelock list`: what the running mirror remembers.

use std::fmt::Write;

use clap::Args;
use url::form_urlencoded;

use super::ask::{AdminArgs, Door};
use super::report::Report;
use super::words::{here, size, time};
use crate::admin::{Image, Images};
use crate::config::{Config, Glob};

/// What `list` takes.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only images that this matches, from the registry to the tag: 'docker.io/library/*', '**/app:v*'
    pattern: Option<Glob>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Asks the running mirror, page by page; nothing is asked of any upstream.
pub(super) fn list(arguments: &ListArgs, config: &Config) -> Report {
    let door = match arguments.admin.door(config) {
        Ok(door) => door,
        Err(report) => return report,
    };
    let mut images = match all(&door) {
        Ok(images) => images,
        Err(error) => return Report::failed(&error),
    };
    images.retain(|image| arguments.pattern.as_ref().is_none_or(|pattern| pattern.matches(&image.image)));
    if arguments.admin.json {
        let json = serde_json::to_string(&images).expect("numbers and texts are JSON");
        return Report::done(format!("{json}\n"));
    }
    Report::done(in_words(&images))
}

fn all(door: &Door) -> anyhow::Result<Vec<Image>> {
    let (mut images, mut path) = (Vec::new(), PAGE.to_owned());
    loop {
        let (page, _) = door.get::<Images>(&path)?;
        images.extend(page.images);
        let Some(next) = page.next else { return Ok(images) };
        let next: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
        path = format!("{PAGE}&after={next}");
    }
}

/// So many at once are answered well within the time that an answer may take.
const PAGE: &str = "/api/v1/images?limit=200";

fn in_words(images: &[Image]) -> String {
    let width = images.iter().map(|image| image.image.len()).max().unwrap_or(0).max("IMAGE".len());
    let mut text =
        format!("{:<width$}  {:<19}  {:>10}  {:<11}  HERE\n", "IMAGE", "DIGEST", "SIZE", "CONFIRMED");
    for image in images {
        let digest: String = image.digest.chars().take(19).collect();
        let confirmed = image.age_seconds.map_or("held".to_owned(), |age| format!("{} ago", time(age)));
        let bytes = size(image.content.bytes);
        let name = &image.image;
        writeln!(
            text,
            "{name:<width$}  {digest}  {bytes:>10}  {confirmed:<11}  {}{}",
            here(&image.content),
            if image.pinned { ", pinned" } else { "" }
        )
        .expect("a String takes every text");
    }
    text
}
