use prometheus::{IntCounter, IntGauge};

use crate::telemetry::Metrics;

/// What the server counts. Clones count together, so that several listeners share one.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    open: IntGauge,
    accepted: IntCounter,
    handshake_failures: IntCounter,
    accept_errors: IntCounter,
    sent_from_files: IntCounter,
    disk_waits: IntCounter,
}

/// One open connection, until dropped.
pub(super) struct Open(IntGauge);

impl ServerMetrics {
    /// Registers the server's metrics.
    pub fn new(metrics: &Metrics) -> ServerMetrics {
        ServerMetrics {
            open: metrics.gauge("connections", "Client connections that are open."),
            accepted: metrics.counter("connections_total", "Client connections served since the start."),
            handshake_failures: metrics.counter(
                "tls_handshake_failures_total",
                "Client connections that did not get through the TLS handshake.",
            ),
            accept_errors: metrics.counter(
                "accept_errors_total",
                "Failures to accept a connection, for want of file descriptors above all.",
            ),
            sent_from_files: metrics.counter(
                "sendfile_bytes_total",
                "Bytes that the kernel sent from files without their passing through the mirror's memory.",
            ),
            disk_waits: metrics.counter(
                "sendfile_disk_waits_total",
                "Times that what was to be sent from a file had to be read from the disk first.",
            ),
        }
    }

    pub(super) fn opened(&self) -> Open {
        self.accepted.inc();
        self.open.inc();
        Open(self.open.clone())
    }

    pub(super) fn handshake_failed(&self) {
        self.handshake_failures.inc();
    }

    pub(super) fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    pub(super) fn sent_from_file(&self, bytes: usize) {
        self.sent_from_files.inc_by(bytes as u64);
    }

    pub(super) fn waited_for_disk(&self) {
        self.disk_waits.inc();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
