//! `tidelock rollback` and `release`: a tag as it was, and as it is again.

use clap::Args;
use http::Method;
use url::form_urlencoded::Serializer;

use super::ask::{AdminArgs, ImageArgs};
use super::report::Report;
use crate::admin::RolledBack;
use crate::config::Config;

/// What `rollback` takes.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// The tag, as it stands in a pull: nginx:latest, ghcr.io/org/app:1
    image: String,
    /// What it meant once (`tidelock show IMAGE --history`): a digest, as much of one as is needed, or `previous`
    to: String,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Has it served as what it meant once, whatever the upstream says.
pub(super) fn rollback(arguments: &RollbackArgs, config: &Config) -> Report {
    let door = match arguments.admin.door(config) {
        Ok(door) => door,
        Err(report) => return report,
    };
    let mut query = Serializer::new("/api/v1/rollback?".to_owned());
    query.append_pair("image", &arguments.image).append_pair("to", &arguments.to);
    arguments.admin.report(door.post(&query.finish()), in_words)
}

/// Has it served as the upstream says.
pub(super) fn release(arguments: &ImageArgs, config: &Config) -> Report {
    arguments.ask(Method::POST, "release", config, in_words)
}

fn in_words(rolled_back: &RolledBack) -> String {
    let RolledBack { image, held } = rolled_back;
    match held {
        Some(digest) => format!("{image} is served as {digest} until `tidelock release {image}`\n"),
        None => format!("{image} is served as the upstream has it\n"),
    }
}
