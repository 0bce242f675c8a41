use std::io::{IsTerminal, stderr};

use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// `log.level` is not a level nor a list of `target=level`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a level (error, warn, info, debug, trace) or a list such as info,tidelock::upstream=debug")]
pub struct BadFilter;

/// Whether `level` can be used as `log.level`.
///
/// # Errors
/// [`BadFilter`] says what is allowed.
pub fn check_filter(level: &str) -> Result<Targets, BadFilter> {
    level.parse().map_err(|_| BadFilter)
}

/// Logs to standard error from now on, for the whole process. A second call changes nothing, so that tests
/// may start several houses in one process.
///
/// # Errors
/// When `log.level` is malformed.
pub fn init_logging(log: &Log) -> Result<(), BadFilter> {
    let filter = check_filter(&log.level)?;
    let registry = tracing_subscriber::registry();
    let outcome = match log.format {
        LogFormat::Text => {
            let lines =
                tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
            registry.with(lines.with_target(false).with_filter(filter)).try_init()
        }
        LogFormat::Json => {
            let lines = tracing_subscriber::fmt::layer().with_writer(stderr).json().flatten_event(true);
            registry.with(lines.with_current_span(false).with_span_list(false).with_filter(filter)).try_init()
        }
    };
    // The error can only mean that a logger is set already.
    let _ = outcome;
    Ok(())
}
