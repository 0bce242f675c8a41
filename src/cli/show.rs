//! `tidelock show`: what an image consists of, and what of that is here.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use http::Method;

use super::ask::ImageArgs;
use super::report::Report;
use super::words::{here, size, time};
use crate::admin::{BlobPart, Shown, TagEpisode, TagHistory};
use crate::config::Config;

/// What `show` takes.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// What its tag meant, since when and until when, instead
    #[arg(long)]
    history: bool,
    #[command(flatten)]
    image: ImageArgs,
}

/// Asks the running mirror; nothing is asked of any upstream.
pub(super) fn show(arguments: &ShowArgs, config: &Config) -> Report {
    if arguments.history {
        return arguments.image.ask(Method::GET, "tag-history", config, history);
    }
    arguments.image.ask(Method::GET, "image", config, in_words)
}

fn history(history: &TagHistory) -> String {
    let date = |seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
    history.episodes.iter().fold(format!("{}\n", history.image), |mut text, episode| {
        let TagEpisode { digest, since, until, cached, held } = episode;
        let until = until.map_or_else(|| "now".to_owned(), date);
        let here = if *cached { ", here" } else { "" };
        let held = if *held { ", held" } else { "" };
        writeln!(text, "  {digest}  {} to {until}{here}{held}", date(*since))
            .expect("a String takes every text");
        text
    })
}

fn in_words(shown: &Shown) -> String {
    let mut text = format!("{}\n", shown.image);
    let mut line = |name: &str, value: &str| {
        writeln!(text, "  {name:<10} {value}").expect("a String takes every text");
    };
    line("digest", &format!("{}{}", shown.digest, if shown.held { ", held" } else { "" }));
    if let Some(since) = shown.since {
        line("since", &httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(since)));
    }
    if let Some(age) = shown.age_seconds {
        line("confirmed", &format!("{} ago", time(age)));
    }
    line("here", &format!("{}, {}", here(&shown.content), size(shown.content.bytes)));
    line("pinned", if shown.pinned { "yes" } else { "no" });
    for manifest in &shown.manifests {
        let platform = manifest.platform.as_deref().unwrap_or("-");
        line("manifest", &format!("{}  {platform}", part(&manifest.part)));
    }
    for blob in &shown.blobs {
        line("blob", &format!("{}  {}", part(blob), blob.media_type));
    }
    text
}

fn part(part: &BlobPart) -> String {
    let state = match (part.cached, part.pinned) {
        (true, true) => "pinned",
        (true, false) => "here",
        (false, _) => "-",
    };
    format!("{}  {:>10}  {state:<6}", part.digest, size(part.size))
}
