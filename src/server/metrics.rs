use prometheus::{IntCounter, IntGauge};

use crate::telemetry::Metrics;

/// What the server counts. Clones count together, so that several listeners share one.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    open: IntGauge,
    accepted: IntCounter,
    handshake_failures: IntCounter,
    accept_errors: IntCounter,
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
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
