//! `tidelock missing`: what clients asked for in vain, for the next bundle.

use std::fmt::Write;
use std::time::UNIX_EPOCH;

use clap::Args;

use super::ask::AdminArgs;
use super::report::Report;
use super::words::time;
use crate::admin::{Missing, MissingImage};
use crate::config::Config;
use crate::lifecycle::now;

/// What `missing` takes.
#[derive(Debug, Args)]
pub(super) struct MissingArgs {
    /// Forget what is listed
    #[arg(long)]
    clear: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// One image a line, as `tidelock export --from` reads them.
pub(super) fn missing(arguments: &MissingArgs, config: &Config) -> Report {
    let door = match arguments.admin.door(config) {
        Ok(door) => door,
        Err(report) => return report,
    };
    let path = "/api/v1/missing";
    let answer = if arguments.clear { door.post(path) } else { door.get(path) };
    arguments.admin.report(answer, |missing: &Missing| in_words(missing))
}

fn in_words(missing: &Missing) -> String {
    let now = now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    missing.images.iter().fold(String::new(), |mut text, MissingImage { image, times, last }| {
        let ago = time(now.saturating_sub(*last));
        writeln!(text, "{image}  # asked for {times} times, last {ago} ago")
            .expect("a String takes every text");
        text
    })
}
