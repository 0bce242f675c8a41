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

/// What became of a request; the `outcome` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It got content.
    Served(Served),
    /// The answer was a remembered "no such thing".
    Negative,
    /// The operator does not allow it.
    Denied,
    /// Anything else that brought no content.
    Error,
}

/// The `upstream` of a request that means none.
pub(super) const NOBODY: &str = "none";

impl Outcome {
    fn all() -> impl Iterator<Item = Outcome> {
        Served::ALL.into_iter().map(Outcome::Served).chain([
            Outcome::Negative,
            Outcome::Denied,
            Outcome::Error,
        ])
    }

    /// The label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Outcome::Served(served) => served.as_str(),
            Outcome::Negative => "negative",
            Outcome::Denied => "denied",
            Outcome::Error => "error",
        }
    }
}

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
        let upstreams = || config.upstreams.iter().map(|upstream| upstream.registry.as_str());
        for kind in Kind::ALL.map(Kind::as_str) {
            for outcome in Outcome::all().map(Outcome::as_str) {
                for upstream in upstreams() {
                    self.requests.with_label_values(&[upstream, kind, outcome]);
                }
                self.duration.with_label_values(&[kind, outcome]);
                self.first_byte.with_label_values(&[kind, outcome]);
            }
            self.requests.with_label_values(&[NOBODY, kind, Outcome::Denied.as_str()]);
        }
        for upstream in upstreams() {
            for served in Served::ALL {
                self.sent.with_label_values(&[upstream, served.as_str()]);
            }
        }
    }
}
