use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::health::Cause;
use crate::telemetry::Metrics;

/// What the store counts.
#[derive(Debug, Clone)]
pub(super) struct StoreMetrics {
    pub(super) bytes: IntGauge,
    pub(super) blobs: IntGauge,
    pub(super) limit: IntGauge,
    pub(super) pinned_bytes: IntGauge,
    pub(super) partial_bytes: IntGauge,
    pub(super) failures: IntCounter,
    pub(super) quarantined: IntCounter,
    pub(super) scrubbed: IntCounter,
    pub(super) scrubbed_at: IntGauge,
    evicted: IntCounterVec,
    failing: IntGaugeVec,
}

/// Why a blob went.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    /// Room was needed.
    Size,
    /// The operator had it removed.
    Removed,
    /// Its file was missing, or not what it should be.
    Damaged,
}

impl StoreMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let evicted =
            metrics.counters("evicted_bytes_total", "Bytes of blobs taken out of the cache.", &["reason"]);
        for reason in [Reason::Size, Reason::Removed, Reason::Damaged] {
            evicted.with_label_values(&[reason.as_str()]);
        }
        let failing = metrics.gauges(
            "cache_failing",
            "1 while nothing can be kept, and pulls go on uncached, for this reason.",
            &["reason"],
        );
        for cause in Cause::ALL {
            failing.with_label_values(&[cause.as_str()]);
        }
        StoreMetrics {
            bytes: metrics.gauge("cache_bytes", "Bytes in the cache, partial downloads included."),
            blobs: metrics.gauge("cache_blobs", "Blobs and manifests in the cache."),
            limit: metrics.gauge("cache_limit_bytes", "The most bytes that the cache may hold."),
            pinned_bytes: metrics
                .gauge("cache_pinned_bytes", "Bytes in the cache that a pin keeps from eviction."),
            partial_bytes: metrics.gauge(
                "cache_partial_bytes",
                "Bytes reserved for downloads that are under way or were broken off.",
            ),
            failures: metrics.counter(
                "cache_failures_total",
                "Times that something could not be kept: the disk is full, read-only or failing.",
            ),
            quarantined: metrics.counter(
                "quarantined_total",
                "Blobs in the cache that turned out to be damaged, and were put into quarantine.",
            ),
            scrubbed: metrics
                .counter("scrubbed_bytes_total", "Bytes in the cache that were hashed anew by a scrub."),
            scrubbed_at: metrics.gauge(
                "scrub_finished_timestamp_seconds",
                "When a scrub last came to its end, in seconds since 1970; 0 before the first one.",
            ),
            evicted,
            failing,
        }
    }

    /// Why nothing can be kept, or that it can.
    pub(super) fn failing(&self, why: Option<Cause>) {
        for cause in Cause::ALL {
            self.failing.with_label_values(&[cause.as_str()]).set(i64::from(why == Some(cause)));
        }
    }

    pub(super) fn evicted(&self, reason: Reason, bytes: u64) {
        self.evicted.with_label_values(&[reason.as_str()]).inc_by(bytes);
    }
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Reason::Size => "size",
            Reason::Removed => "removed",
            Reason::Damaged => "damaged",
        }
    }
}
