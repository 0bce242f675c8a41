//! `tidelock show`: what an image consists of, and what of that is here.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use http::Method;

use super::ask::ImageArgs;
use super::report::Report;
use super::words::{here, size, time};
use crate::admin::{BlobPart, Shown};
use crate::config::Config;

/// Asks the running mirror; nothing is asked of any upstream.
pub(super) fn show(arguments: &ImageArgs, config: &Config) -> Report {
    arguments.ask(Method::GET, "image", config, in_words)
}

fn in_words(shown: &Shown) -> String {
    let mut text = format!("{}\n", shown.image);
    let mut line = |name: &str, value: &str| {
        writeln!(text, "  {name:<10} {value}").expect("a String takes every text");
    };
    line("digest", &shown.digest);
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
