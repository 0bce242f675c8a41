//! How the sums came to be what they are: samples of the metrics, in memory, for the status page. Whoever wants more
//! than a day of it has Prometheus.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::types::{History, Traffic};
use crate::telemetry::Reading;

/// How often a sample is taken.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// Of those the last hour's are kept,
const FINE: usize = 360;
/// and of a day one in five minutes.
const COARSE: usize = 288;
const COARSE_EVERY: u64 = 30;

/// The samples of the last hour and of the last day.
#[derive(Debug, Default)]
pub(super) struct Samples(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    taken: u64,
    hour: VecDeque<Sample>,
    day: VecDeque<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    at: u64,
    traffic: Traffic,
    cache_bytes: u64,
}

/// How far back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    Hour,
    Day,
}

impl Samples {
    /// Takes one; `at` is in seconds since 1970.
    pub(super) fn take(&self, at: u64, read: &Reading) {
        let sample =
            Sample { at, traffic: Traffic::of(read), cache_bytes: read.sum("cache_bytes", &[]) as u64 };
        let mut kept = self.kept();
        if kept.taken.is_multiple_of(COARSE_EVERY) {
            push(&mut kept.day, sample.clone(), COARSE);
        }
        kept.taken += 1;
        push(&mut kept.hour, sample, FINE);
    }

    /// All of a span, up to the last sample.
    pub(super) fn history(&self, span: Span) -> History {
        let kept = self.kept();
        let (samples, last) = match span {
            Span::Hour => (&kept.hour, None),
            Span::Day => (&kept.day, kept.hour.back()),
        };
        let mut history = History::default();
        let is_newer = |last: &&Sample| samples.back().is_none_or(|back| back.at < last.at);
        for sample in samples.iter().chain(last.filter(is_newer)) {
            history.at.push(sample.at);
            history.sent_bytes.push(sample.traffic.sent_bytes);
            history.fetched_bytes.push(sample.traffic.fetched_bytes);
            history.cache_bytes.push(sample.cache_bytes);
            for (outcome, count) in &sample.traffic.requests {
                history.requests.entry(outcome.clone()).or_default().push(*count);
            }
        }
        history
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each is put in whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push(samples: &mut VecDeque<Sample>, sample: Sample, most: usize) {
    if samples.len() == most {
        samples.pop_front();
    }
    samples.push_back(sample);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn an_hour_and_a_day() {
        let (samples, metrics) = (Samples::default(), Metrics::default());
        let requests = metrics.counters("requests_total", "Requests.", &["outcome"]);
        requests.with_label_values(&["hit"]);
        assert!(samples.history(Span::Day).at.is_empty());
        for at in 0..10_000 {
            samples.take(at * 10, &metrics.read());
            requests.with_label_values(&["hit"]).inc();
        }
        let (hour, day) = (samples.history(Span::Hour), samples.history(Span::Day));
        assert_eq!((hour.at.len(), hour.at[0]), (FINE, 99_990 - 3_590));
        assert_eq!(hour.requests["hit"].last(), Some(&9_999));
        assert_eq!(day.at.len(), COARSE + 1);
        assert_eq!((day.at[0], day.at[COARSE]), (99_900 - 300 * (COARSE as u64 - 1), 99_990));
        assert!(day.requests["hit"].len() == day.at.len() && day.cache_bytes.len() == day.at.len());
    }
}
