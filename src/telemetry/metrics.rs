use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Where modules register their metrics. Names get the prefix `tidelock_`. Cheap to clone.
///
/// Registration happens once, while the house is built; a name that stands twice or is malformed is a
/// mistake in the program, caught by the first test that builds a house.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// A counter without labels.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(opts(name, help)))
    }

    /// A counter with labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(opts(name, help), labels))
    }

    /// A gauge of whole numbers without labels.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(opts(name, help)))
    }

    /// A gauge of whole numbers with labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(opts(name, help), labels))
    }

    /// A histogram of seconds, from a millisecond to five minutes.
    pub fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        const BUCKETS: [f64; 15] =
            [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
        let options = HistogramOpts::from(opts(name, help)).buckets(BUCKETS.to_vec());
        self.add(HistogramVec::new(options, labels))
    }

    /// A gauge with labels for a collector that is registered as a whole, see [`Metrics::register`].
    pub fn unregistered_gauges(name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        GaugeVec::new(opts(name, help), labels).expect("a metric's name and labels are well-formed")
    }

    /// Metrics that are found out when asked for, under whatever names they have.
    pub fn register(&self, collector: Box<dyn Collector>) {
        self.registry.register(collector).expect("a metric's name stands only once");
    }

    /// Everything, in the text format that Prometheus scrapes.
    pub fn render(&self) -> String {
        let families = self.registry.gather();
        TextEncoder::new().encode_to_string(&families).expect("every metric of this registry can be printed")
    }

    fn add<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect("a metric's name and labels are well-formed");
        self.registry.register(Box::new(metric.clone())).expect("a metric's name stands only once");
        metric
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("tidelock_{name}"), help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_was_counted() {
        let metrics = Metrics::default();
        metrics.counters("x_total", "Xs.", &["kind"]).with_label_values(&["a"]).inc_by(3);
        metrics.seconds("y_seconds", "Ys.", &[]).with_label_values::<&str>(&[]).observe(0.5);
        let text = metrics.render();
        assert!(text.contains("tidelock_x_total{kind=\"a\"} 3"), "{text}");
        assert!(text.contains("tidelock_y_seconds_bucket{le=\"0.5\"} 1"), "{text}");
    }
}
