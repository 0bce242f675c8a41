use super::report::Report;
use crate::app;
use crate::config::Config;

/// Runs the mirror until it is told to stop.
pub(super) fn serve(config: Config) -> Report {
    match app::serve(config) {
        Ok(()) => Report::default(),
        Err(error) => Report::failed(&error),
    }
}
