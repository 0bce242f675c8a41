//! `tidelock inventory`: what a site has, for the next delta.

use std::io::Read;

use clap::Args;
use http::Method;

use super::ask::AdminArgs;
use super::report::Report;
use crate::config::Config;

/// What `inventory` takes.
#[derive(Debug, Args)]
pub(super) struct InventoryArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// The digest of everything that is here, one a line.
pub(super) fn inventory(arguments: &InventoryArgs, config: &Config) -> Report {
    let door = match arguments.admin.door(config) {
        Ok(door) => door,
        Err(report) => return report,
    };
    let mut text = String::new();
    let read = door.download(Method::GET, "/api/v1/inventory");
    match read.and_then(|mut answer| Ok(answer.read_to_string(&mut text)?)) {
        Ok(_) if arguments.admin.json => {
            let digests: Vec<&str> = text.lines().collect();
            Report::done(serde_json::json!({ "digests": digests }).to_string() + "\n")
        }
        Ok(_) => Report::done(text),
        Err(error) => Report::failed(&error),
    }
}
