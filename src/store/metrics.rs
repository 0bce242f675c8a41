use prometheus::{IntCounter, IntCounterVec, IntGauge};

use crate::telemetry::Metrics;

/// What the store counts.
#[derive(Debug, Clone)]
pub(super) struct StoreMetrics {
    pub(super) bytes: IntGauge,
    pub(super) blobs: IntGauge,
    pub(super) limit: IntGauge,
    pub(super) partial_bytes: IntGauge,
    pub(super) failures: IntCounter,
    evicted: IntCounterVec,
}

/// Why a blob went.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    /// Room was needed.
    Size,
    /// Its file was missing or of the wrong size.
    Damaged,
}

impl StoreMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let evicted =
            metrics.counters("evicted_bytes_total", "Bytes of blobs taken out of the cache.", &["reason"]);
        for reason in [Reason::Size, Reason::Damaged] {
            evicted.with_label_values(&[reason.as_str()]);
        }
        StoreMetrics {
            bytes: metrics.gauge("cache_bytes", "Bytes in the cache, partial downloads included."),
            blobs: metrics.gauge("cache_blobs", "Blobs and manifests in the cache."),
            limit: metrics.gauge("cache_limit_bytes", "The most bytes that the cache may hold."),
            partial_bytes: metrics.gauge(
                "cache_partial_bytes",
                "Bytes reserved for downloads that are under way or were broken off.",
            ),
            failures: metrics.counter(
                "cache_failures_total",
                "Times that something could not be kept: the disk is full, read-only or failing.",
            ),
            evicted,
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
            Reason::Damaged => "damaged",
        }
    }
}
