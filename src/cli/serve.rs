use anyhow::Context;

use super::options::Options;
use super::report::Report;
use crate::app;
use crate::config::Faults;

/// Runs the mirror until it is told to stop.
///
/// # Errors
/// Everything that is wrong with the configuration.
pub(super) fn serve(options: &Options) -> Result<Report, Faults> {
    // Before the file is read, so that whoever changes it and sends SIGHUP at that moment does not end the mirror.
    let survived = app::survive_hangups().context("listening to signals");
    let config = options.load()?;
    let outcome = survived.and_then(|()| app::serve(config, options.reread()));
    Ok(outcome.map_or_else(|error| Report::failed(&error), |()| Report::default()))
}
