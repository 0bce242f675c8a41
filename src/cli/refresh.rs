//! `tidelock refresh`: check a tag now.

use clap::Args;
use url::form_urlencoded;

use super::ask;
use super::report::Report;
use crate::admin::Refreshed;
use crate::config::Config;

/// What `refresh` takes.
#[derive(Debug, Args)]
pub(super) struct RefreshArgs {
    /// The image, by its tag: nginx, ghcr.io/org/app:1
    image: String,
    /// The admin address of the mirror; by default as the configuration has it
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Has the running mirror ask the upstream.
pub(super) fn refresh(arguments: &RefreshArgs, config: &Config) -> Report {
    let admin = match ask::address(arguments.admin.as_deref(), config) {
        Ok(admin) => admin,
        Err(fault) => return Report::misused(&fault),
    };
    let image: String = form_urlencoded::byte_serialize(arguments.image.as_bytes()).collect();
    match ask::post::<Refreshed>(&admin, &format!("/api/v1/refresh?image={image}")) {
        Ok((_, json)) if arguments.json => Report::done(json),
        Ok((refreshed, _)) => Report::done(in_words(&refreshed)),
        Err(error) => Report::failed(&error),
    }
}

fn in_words(refreshed: &Refreshed) -> String {
    let Refreshed { image, digest, before } = refreshed;
    match before {
        Some(before) if before == digest => format!("{image} still means {digest}\n"),
        Some(before) => format!("{image} means {digest} now; it meant {before}\n"),
        None => format!("{image} means {digest}; it was not known here\n"),
    }
}
