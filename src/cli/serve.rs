use super::report::Report;
use crate::config::Config;

/// Runs the mirror until it is told to stop.
pub(super) fn serve(config: Config) -> Report {
    match house(config) {
        Ok(()) => Report::default(),
        Err(error) => Report::failed(&error),
    }
}

// APP: becomes `crate::app::serve(config)` once there is an `app`.
fn house(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("this build cannot serve yet; {} upstreams are configured", config.upstreams.len())
}
