use std::io::stderr;
use std::sync::OnceLock;

use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Log, LogFormat};

/// What writes the lines, in either format.
type Lines<S> = Box<dyn Layer<S> + Send + Sync>;
type Filtered = Layered<reload::Layer<Targets, Registry>, Registry>;

/// By which the process's logger is changed while it runs.
struct Handles {
    filter: reload::Handle<Targets, Registry>,
    lines: reload::Handle<Lines<Filtered>, Filtered>,
}

static HANDLES: OnceLock<Handles> = OnceLock::new();

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
    let (filter, filter_handle) = reload::Layer::new(check_filter(&log.level)?);
    let (lines, lines_handle) = reload::Layer::new(lines(log.format));
    let outcome = tracing_subscriber::registry().with(filter).with(lines).try_init();
    // An error can only mean that a logger is set already.
    if outcome.is_ok() {
        let _ = HANDLES.set(Handles { filter: filter_handle, lines: lines_handle });
    }
    Ok(())
}

/// Logs as `log` says from now on, where [`init_logging`] was what set the logger.
///
/// # Errors
/// When `log.level` is malformed; nothing changes then.
pub fn set_logging(log: &Log) -> Result<(), BadFilter> {
    let filter = check_filter(&log.level)?;
    let Some(handles) = HANDLES.get() else { return Ok(()) };
    // An error means that the logger is gone, which a process's own never is.
    let _ = handles.filter.reload(filter);
    let _ = handles.lines.reload(lines(log.format));
    log::set_max_level(most_verbose());
    Ok(())
}

fn lines<S>(format: LogFormat) -> Lines<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(stderr);
    match format {
        // No colours: merely having them at hand costs each line a third of its time, also where none is shown.
        LogFormat::Text => Box::new(layer.with_ansi(false).with_target(false)),
        LogFormat::Json => {
            Box::new(layer.json().flatten_event(true).with_current_span(false).with_span_list(false))
        }
    }
}

/// What libraries that log by `log` need not even offer.
fn most_verbose() -> log::LevelFilter {
    match LevelFilter::current() {
        LevelFilter::OFF => log::LevelFilter::Off,
        LevelFilter::ERROR => log::LevelFilter::Error,
        LevelFilter::WARN => log::LevelFilter::Warn,
        LevelFilter::INFO => log::LevelFilter::Info,
        LevelFilter::DEBUG => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    }
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
