//! `tidelock refresh`: check a tag now.

use http::Method;

use super::ask::ImageArgs;
use super::report::Report;
use crate::admin::Refreshed;
use crate::config::Config;

/// Has the running mirror ask the upstream.
pub(super) fn refresh(arguments: &ImageArgs, config: &Config) -> Report {
    arguments.ask(Method::POST, "refresh", config, in_words)
}

fn in_words(refreshed: &Refreshed) -> String {
    let Refreshed { image, digest, before } = refreshed;
    match before {
        Some(before) if before == digest => format!("{image} still means {digest}\n"),
        Some(before) => format!("{image} means {digest} now; it meant {before}\n"),
        None => format!("{image} means {digest}; it was not known here\n"),
    }
}
