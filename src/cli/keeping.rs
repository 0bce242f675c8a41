//! `tidelock pin`, `unpin` and `remove`: what is kept from eviction, and what is taken out.

use http::Method;

use super::ask::ImageArgs;
use super::report::Report;
use super::words::{here, size};
use crate::admin::{Pinned, Removed};
use crate::config::Config;

/// Keeps an image from eviction.
pub(super) fn pin(arguments: &ImageArgs, config: &Config) -> Report {
    arguments.ask(Method::POST, "pin", config, |pinned: &Pinned| {
        let here = pinned
            .content
            .as_ref()
            .map(|content| format!("{}; here: {}", size(content.bytes), here(content)));
        format!("{} is not evicted any more ({})\n", pinned.image, here.unwrap_or_default())
    })
}

/// Lets it be evicted.
pub(super) fn unpin(arguments: &ImageArgs, config: &Config) -> Report {
    arguments.ask(Method::POST, "unpin", config, |pinned: &Pinned| {
        format!("{} may be evicted when its turn comes\n", pinned.image)
    })
}

/// Takes it out of the cache.
pub(super) fn remove(arguments: &ImageArgs, config: &Config) -> Report {
    arguments.ask(Method::POST, "remove", config, |removed: &Removed| {
        let Removed { image, digest, bytes } = removed;
        format!("{image} is removed; it meant {digest}, and {} went with it\n", size(*bytes))
    })
}
