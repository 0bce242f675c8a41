use prometheus::{HistogramVec, IntCounterVec};

use crate::config::Config;
use crate::mirror::Served;
use crate::oci::Kind;
use crate::telemetry::Metrics;

/// What the clients' door counts.
#[derive(Debug, Clone)]
pub(super) struct RegistryMetrics {
    pub(super) requests: IntCounterVec,
    pub(super) duration: HistogramVec,
    pub(super) first_byte: HistogramVec,
    pub(super) sent: IntCounterVec,
}

/// The answer was a remembered "no such thing".
pub(super) const NEGATIVE: &str = "negative";
/// The operator does not allow it.
pub(super) const DENIED: &str = "denied";
/// Anything else that brought no content.
pub(super) const ERROR: &str = "error";

impl RegistryMetrics {
    pub(super) fn new(metrics: &Metrics, config: &Config) -> Self {
        let counts = RegistryMetrics {
            requests: metrics.counters(
                "requests_total",
                "Requests of clients by what they were for and how the answer came about.",
                &["upstream", "kind", "outcome"],
            ),
            duration: metrics.seconds(
                "request_duration_seconds",
                "From a request's head to the last byte of its answer.",
                &["kind", "outcome"],
            ),
            first_byte: metrics.seconds(
                "time_to_first_byte_seconds",
                "From a request's head to the first byte of its answer's body.",
                &["kind", "outcome"],
            ),
            sent: metrics.counters(
                "sent_bytes_total",
                "Bytes of content sent to clients.",
                &["upstream", "outcome"],
            ),
        };
        counts.begin_at_zero(config);
        counts
    }

    fn begin_at_zero(&self, config: &Config) {
        let outcomes = || Served::ALL.iter().map(|served| served.as_str());
        for kind in Kind::ALL {
            for outcome in outcomes().chain([NEGATIVE, DENIED, ERROR]) {
                for upstream in &config.upstreams {
                    self.requests.with_label_values(&[upstream.registry.as_str(), kind.as_str(), outcome]);
                }
            }
            for outcome in outcomes() {
                self.duration.with_label_values(&[kind.as_str(), outcome]);
                self.first_byte.with_label_values(&[kind.as_str(), outcome]);
            }
        }
        for upstream in &config.upstreams {
            for outcome in outcomes() {
                self.sent.with_label_values(&[upstream.registry.as_str(), outcome]);
            }
        }
    }
}
