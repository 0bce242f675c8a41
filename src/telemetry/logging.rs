use std::io::{IsTerminal, stderr};

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
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
    let parts: Vec<&str> = level.split(',').map(str::trim).collect();
    // `Targets` would take a word that is no level for a target of which everything is to be logged.
    let means_something =
        |part: &&str| part.contains('=') || (!part.is_empty() && part.parse::<LevelFilter>().is_ok());
    if parts.iter().all(means_something) {
        parts.join(",").parse().map_err(|_| BadFilter)
    } else {
        Err(BadFilter)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_a_list_of_targets() {
        for level in ["error", "WARN", "info", "debug", "trace", "off", "info,tidelock::upstream=debug"] {
            assert!(check_filter(level).is_ok(), "{level}");
        }
        let spaced = check_filter("info, tidelock::flight = trace , hyper=off");
        assert_eq!(spaced, check_filter("info,tidelock::flight = trace,hyper=off"));
        for level in ["", "verbose", "tidelock", "info,verbose", "info,", ",", "tidelock=verbose", "a=b=c"] {
            assert_eq!(check_filter(level), Err(BadFilter), "{level}");
        }
    }
}
