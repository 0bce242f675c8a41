use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
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

/// What counters and gauges said at one moment.
#[derive(Debug, Clone)]
pub struct Reading(Vec<MetricFamily>);

impl Reading {
    /// The sum of all series of `name` (without the prefix) that have these labels, and perhaps others; 0 where there is
    /// none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |metric: &Metric, (name, value): &(&str, &str)| {
            metric.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
        };
        let found = self.series(name).filter(|metric| labels.iter().all(|label| has(metric, label)));
        found.map(value).sum()
    }

    /// The sums of all series of `name` by what they have for `label`.
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for metric in self.series(name) {
            let labels = metric.get_label().iter().filter(|own| own.name() == label);
            labels.for_each(|own| *sums.entry(own.value().to_owned()).or_default() += value(metric));
        }
        sums
    }

    fn series(&self, name: &str) -> impl Iterator<Item = &Metric> {
        let families =
            self.0.iter().filter(move |family| family.name().strip_prefix("tidelock_") == Some(name));
        families.flat_map(|family| family.get_metric())
    }
}

fn value(metric: &Metric) -> f64 {
    metric.get_counter().get_value() + metric.get_gauge().get_value()
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

    /// What all counters and gauges say at this moment.
    pub fn read(&self) -> Reading {
        Reading(self.registry.gather())
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

    #[test]
    fn reads_sums_by_label() {
        let metrics = Metrics::default();
        let counts = metrics.counters("x_total", "Xs.", &["kind", "outcome"]);
        for (kind, outcome, count) in [("a", "hit", 3), ("a", "miss", 4), ("b", "hit", 5)] {
            counts.with_label_values(&[kind, outcome]).inc_by(count);
        }
        metrics.gauge("y", "Y.").set(7);
        let read = metrics.read();
        assert_eq!((read.sum("x_total", &[]), read.sum("y", &[]), read.sum("z", &[])), (12.0, 7.0, 0.0));
        assert_eq!(read.sum("x_total", &[("outcome", "hit"), ("kind", "b")]), 5.0);
        assert_eq!(
            read.by("x_total", "outcome").into_iter().collect::<Vec<_>>(),
            [("hit".to_owned(), 8.0), ("miss".to_owned(), 4.0)]
        );
    }
}
