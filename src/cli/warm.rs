//! `tidelock warm`: fetch images ahead, whole.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{anyhow, bail};
use clap::Args;
use indicatif::ProgressBar;
use url::form_urlencoded::Serializer;

use super::ask::{AdminArgs, Door};
use super::images::ImagesArgs;
use super::report::Report;
use super::words::{bar, size};
use crate::admin::{Changed, Failed, RoundEnded, RoundReport, Rounds, Warmed, Warming};
use crate::config::Config;

/// What `warm` takes. Without an image it tells what `[[warm]]` came to.
#[derive(Debug, Args)]
pub(super) struct WarmArgs {
    #[command(flatten)]
    images: ImagesArgs,
    /// For this platform only, linux/arm64 for example; may be repeated. By default for all that there are
    #[arg(long = "platform", value_name = "OS/ARCH")]
    platforms: Vec<String>,
    /// Leave out what refers to the images: signatures, SBOMs, attestations
    #[arg(long)]
    no_referrers: bool,
    /// Keep them from eviction, as `tidelock pin` does
    #[arg(long)]
    pin: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Has the running mirror fetch what is missing of each image, one after the other. What cannot be had is told, and the
/// others are fetched all the same.
pub(super) fn warm(arguments: &WarmArgs, config: &Config) -> Report {
    let door = match arguments.admin.door(config) {
        Ok(door) => door,
        Err(report) => return report,
    };
    if arguments.images.is_empty() {
        return arguments.admin.report(door.get("/api/v1/warm"), rounds_in_words);
    }
    let images = match arguments.images.all(&door) {
        Ok(images) => images,
        Err(error) => return Report::failed(&error),
    };
    let mut report = Report::default();
    for image in &images {
        match arguments.fetch(&door, image) {
            Ok(warmed) if arguments.admin.json => {
                report.out += &serde_json::to_string(&warmed).expect("numbers and texts are JSON");
                report.out.push('\n');
            }
            Ok(warmed) => report.out += &in_words(&warmed),
            Err(error) => {
                report.err += &format!("tidelock: {error:#}\n");
                report.code = 1;
            }
        }
    }
    report
}

fn rounds_in_words(rounds: &Rounds) -> String {
    match rounds.warm[..] {
        [] => "The configuration has no [[warm]]. Name images to have them fetched now.\n".to_owned(),
        [..] => rounds.warm.iter().map(round_in_words).collect(),
    }
}

fn round_in_words(report: &RoundReport) -> String {
    let date = |seconds: u64| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
    let RoundReport { name, next, image, waits, last } = report;
    let mut text = match last {
        None => format!("{name}: no round has ended yet\n"),
        Some(RoundEnded { ended, images, fetched, .. }) => {
            format!("{name}: {images} images are here, {} fetched, {}\n", size(*fetched), date(*ended))
        }
    };
    for Changed { image, before, digest } in last.iter().flat_map(|last| &last.changed) {
        let before = before.as_ref().map_or_else(|| "new".to_owned(), |before| format!("was {before}"));
        text += &format!("  {image} is {digest} ({before})\n");
    }
    for Failed { image, message } in last.iter().flat_map(|last| &last.failed) {
        text += &format!("  {image} cannot be had: {message}\n");
    }
    text + &match (image, waits) {
        (Some(image), Some(why)) => format!("  now {image} waits: {why}\n"),
        (Some(image), None) => format!("  now {image} is fetched\n"),
        (None, _) if *next == 0 => "  the next round begins as soon as it may\n".to_owned(),
        (None, _) => format!("  the next round is due {}\n", date(*next)),
    }
}

impl WarmArgs {
    fn fetch(&self, door: &Door, image: &str) -> anyhow::Result<Warmed> {
        let mut query = Serializer::new("/api/v1/warm?".to_owned());
        query.append_pair("image", image).append_pair("latest", "true");
        query.append_pair("referrers", if self.no_referrers { "false" } else { "true" });
        query.append_pair("pin", if self.pin { "true" } else { "false" });
        query.extend_pairs(self.platforms.iter().map(|platform| ("platform", platform)));
        follow(door, &query.finish(), image)
    }
}

/// Shows how far it is, on standard error and only where that is a terminal.
pub(super) fn follow(door: &Door, path: &str, image: &str) -> anyhow::Result<Warmed> {
    let bar = ProgressBar::new(0).with_style(bar()).with_message(image.to_owned());
    let mut last = None;
    door.post_lines(path, |line| match line {
        Warming::Fetching { parts, here, bytes, bytes_here, waits } => {
            bar.set_length(bytes);
            bar.set_position(bytes_here);
            let far = format!("{image}: {here} of {parts} parts, {} of {}", size(bytes_here), size(bytes));
            bar.set_message(waits.map_or(far, |why| format!("{image} waits: {why}")));
        }
        ended => last = Some(ended),
    })?;
    bar.finish_and_clear();
    match last {
        Some(Warming::Done(warmed)) => Ok(warmed),
        Some(Warming::Failed { message }) => bail!("{message}"),
        Some(Warming::Fetching { .. }) | None => {
            Err(anyhow!("{image}: the mirror broke off; run this again, it goes on there"))
        }
    }
}

fn in_words(warmed: &Warmed) -> String {
    let Warmed { image, digest, before, fetched, pinned, roots, parts, .. } = warmed;
    let news = match before {
        None => "new".to_owned(),
        Some(before) if before == digest => "unchanged".to_owned(),
        Some(before) => format!("was {before}"),
    };
    let (bytes, referrers) = (parts.iter().map(|part| part.size).sum(), roots.len().saturating_sub(1));
    let referring = if referrers > 0 { format!(", {referrers} referring to it") } else { String::new() };
    let pinned = if *pinned { ", pinned" } else { "" };
    format!("{image} is {digest} ({news}): {}, {} fetched{referring}{pinned}\n", size(bytes), size(*fetched))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed() {
        let mut warmed = Warmed {
            image: "docker.io/library/app:1".to_owned(),
            digest: "sha256:b".to_owned(),
            before: None,
            fetched: 2048,
            doubt: None,
            pinned: false,
            roots: Vec::new(),
            parts: Vec::new(),
        };
        let start = "docker.io/library/app:1 is sha256:b";
        assert_eq!(in_words(&warmed), format!("{start} (new): 0 B, 2.0 KiB fetched\n"));
        (warmed.before, warmed.pinned) = (Some("sha256:a".to_owned()), true);
        assert_eq!(in_words(&warmed), format!("{start} (was sha256:a): 0 B, 2.0 KiB fetched, pinned\n"));
        warmed.before = Some("sha256:b".to_owned());
        assert!(in_words(&warmed).starts_with(&format!("{start} (unchanged)")));
    }
}
