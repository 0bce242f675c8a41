//! Sets up logging and hands each module a place for its own metrics.
//!
//! There is no list of all metrics here: each module that counts has a `metrics.rs` with one struct,
//! registered once through [`Metrics`], its known series at 0 from the start.

mod logging;
mod metrics;

pub use logging::{BadFilter, check_filter, init_logging, set_logging};
pub use metrics::Metrics;
