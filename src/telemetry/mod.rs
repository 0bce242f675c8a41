//! Sets up logging, hands each module a place for its own metrics, and keeps in mind what happened lately.
//!
//! There is no list of all metrics here: each module that counts has a `metrics.rs` with one struct,
//! registered once through [`Metrics`], its known series at 0 from the start.

mod journal;
mod logging;
mod metrics;
mod traces;

pub use journal::{Journal, Trouble};
pub use logging::{BadFilter, check_filter, init_logging, set_logging};
pub use metrics::{Metrics, Reading};
pub use traces::{Trace, Traces};
