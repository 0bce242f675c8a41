use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec};

use crate::telemetry::Metrics;

/// What the scheduler counts.
#[derive(Debug)]
pub(super) struct SchedulerMetrics {
    wait: HistogramVec,
    queue: IntGaugeVec,
    throttled: IntCounterVec,
}

/// One waiter in the queue, until dropped.
pub(super) struct Waiting(IntGauge);

/// The one priority of today; the label stands so that dashboards need not change.
const PRIORITY: &str = "foreground";
/// Whoever pays: being busy is nobody's fault in particular.
const ANY_ACCOUNT: &str = "any";
/// All connections in use, or the pace full.
const BUSY: &str = "busy";

impl SchedulerMetrics {
    pub(super) fn new<'a>(metrics: &Metrics, registries: impl Iterator<Item = &'a str>) -> Self {
        let wait = metrics.seconds(
            "schedule_wait_seconds",
            "Time that a request waited for leave to go upstream.",
            &["upstream", "priority"],
        );
        let queue = metrics.gauges(
            "schedule_queue",
            "Requests that wait for leave to go upstream.",
            &["upstream", "priority"],
        );
        let throttled = metrics.counters(
            "throttled_total",
            "Requests that were not sent upstream, or were refused there, for a limit.",
            &["upstream", "account", "reason"],
        );
        for registry in registries {
            wait.with_label_values(&[registry, PRIORITY]);
            queue.with_label_values(&[registry, PRIORITY]);
            throttled.with_label_values(&[registry, ANY_ACCOUNT, BUSY]);
        }
        SchedulerMetrics { wait, queue, throttled }
    }

    pub(super) fn waiting(&self, registry: &str) -> Waiting {
        let gauge = self.queue.with_label_values(&[registry, PRIORITY]);
        gauge.inc();
        Waiting(gauge)
    }

    pub(super) fn waited(&self, registry: &str, wait: Duration) {
        self.wait.with_label_values(&[registry, PRIORITY]).observe(wait.as_secs_f64());
    }

    pub(super) fn refused(&self, registry: &str) {
        self.throttled.with_label_values(&[registry, ANY_ACCOUNT, BUSY]).inc();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}
