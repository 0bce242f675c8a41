//! `tidelock scrub`: hash anew what the running mirror keeps.

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use url::form_urlencoded;

use super::ask::{AdminArgs, Door};
use super::report::Report;
use super::words::{bar, size};
use crate::admin::Scrubbing;
use crate::config::{ByteSize, Config};

/// What `scrub` takes.
#[derive(Debug, Args)]
pub(super) struct ScrubArgs {
    /// How many bytes a second are hashed, for this time; by default as the configuration has it
    #[arg(long, value_name = "SIZE")]
    rate: Option<String>,
    /// Begin, and do not wait for the end
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// How often it is asked how far it is.
const EVERY: Duration = Duration::from_millis(500);

/// Has the running mirror hash everything that it keeps, and waits until it has. One that is under way is joined.
pub(super) fn scrub(arguments: &ScrubArgs, config: &Config) -> Report {
    let door = match arguments.admin.door(config) {
        Ok(door) => door,
        Err(report) => return report,
    };
    let path = match arguments.rate.as_deref().map(|rate| (rate, rate.parse::<ByteSize>())) {
        None => "/api/v1/scrub".to_owned(),
        Some((_, Ok(rate))) if rate.0 > 0 => {
            let rate: String = form_urlencoded::byte_serialize(rate.to_string().as_bytes()).collect();
            format!("/api/v1/scrub?rate={rate}")
        }
        Some((rate, _)) => {
            return Report::misused(&format!("--rate {rate:?} must be a size above 0, such as 20MiB"));
        }
    };
    let answer = follow(&door, &path, arguments.no_wait);
    arguments.admin.report(answer, |scrubbing| format!("{}\n", in_words(scrubbing)))
}

fn follow(door: &Door, path: &str, only_begin: bool) -> anyhow::Result<(Scrubbing, String)> {
    let mut answer = door.post::<Scrubbing>(path)?;
    // For people, on standard error and only where that is a terminal: what a script reads is printed at the end.
    let bar = ProgressBar::new(answer.0.all_bytes).with_style(bar());
    while answer.0.running && !only_begin {
        bar.set_length(answer.0.all_bytes);
        bar.set_position(answer.0.bytes);
        bar.set_message(in_words(&answer.0));
        #[expect(clippy::disallowed_methods)] // nobody else lives on this thread
        std::thread::sleep(EVERY);
        answer = door.get("/api/v1/scrub")?;
    }
    bar.finish_and_clear();
    Ok(answer)
}

fn in_words(scrubbing: &Scrubbing) -> String {
    let Scrubbing { running, blobs, all_blobs, bytes, all_bytes, damaged, .. } = scrubbing;
    let far = if *running {
        format!("{blobs} of {all_blobs} blobs, {} of {}", size(*bytes), size(*all_bytes))
    } else {
        format!("{blobs} blobs, {}, hashed anew", size(*bytes))
    };
    match damaged {
        0 if *running => format!("{far}: all right so far"),
        0 => format!("{far}: all of it is right"),
        damaged => {
            format!("{far}: {damaged} damaged, now in quarantine; they are fetched anew at the next pull")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_and_how_it_went() {
        let mut scrubbing = Scrubbing {
            running: true,
            started: Some(1),
            finished: None,
            blobs: 2,
            all_blobs: 3,
            bytes: 1_500_000,
            all_bytes: 5 << 30,
            damaged: 0,
        };
        assert_eq!(in_words(&scrubbing), "2 of 3 blobs, 1.4 MiB of 5.0 GiB: all right so far");
        scrubbing.running = false;
        assert_eq!(in_words(&scrubbing), "2 blobs, 1.4 MiB, hashed anew: all of it is right");
        scrubbing.damaged = 1;
        assert!(in_words(&scrubbing).contains("1 damaged, now in quarantine"));
    }
}
