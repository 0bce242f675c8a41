use prometheus::{IntCounterVec, IntGauge};

use crate::config::Config;
use crate::oci::RegistryHost;
use crate::telemetry::Metrics;

/// What flights count.
#[derive(Debug, Clone)]
pub(super) struct FlightMetrics {
    flights: IntGauge,
    followers: IntGauge,
    verify_failures: IntCounterVec,
    parts: IntCounterVec,
}

/// One more on a gauge, until dropped.
#[derive(Debug)]
pub(super) struct Counted(IntGauge);

impl FlightMetrics {
    pub(super) fn new(metrics: &Metrics, config: &Config) -> Self {
        let verify_failures = metrics.counters(
            "verify_failures_total",
            "Fetched blobs and manifests that did not match their digest.",
            &["upstream"],
        );
        let parts = metrics.counters(
            "parts_total",
            "Parts of large blobs that were fetched over connections of their own.",
            &["upstream"],
        );
        for upstream in &config.upstreams {
            verify_failures.with_label_values(&[upstream.registry.as_str()]);
            parts.with_label_values(&[upstream.registry.as_str()]);
        }
        FlightMetrics {
            flights: metrics.gauge("flights", "Blobs that are being fetched."),
            followers: metrics
                .gauge("flight_followers", "Clients that read a blob while it is being fetched."),
            verify_failures,
            parts,
        }
    }

    pub(super) fn flight(&self) -> Counted {
        Counted::one(&self.flights)
    }

    pub(super) fn follower(&self) -> Counted {
        Counted::one(&self.followers)
    }

    pub(super) fn part(&self, registry: &RegistryHost) {
        self.parts.with_label_values(&[registry.as_str()]).inc();
    }

    pub(super) fn verify_failed(&self, registry: &str) {
        self.verify_failures.with_label_values(&[registry]).inc();
    }
}

impl Counted {
    fn one(gauge: &IntGauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
