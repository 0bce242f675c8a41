use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::{HistogramVec, IntCounterVec};

use crate::config::{self, Config};
use crate::oci::Kind;
use crate::scheduler::ANONYMOUS;
use crate::telemetry::Metrics;

/// What is counted of upstream traffic, for all upstreams together. Cheap to clone.
#[derive(Debug, Clone)]
pub struct UpstreamMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    fetched: IntCounterVec,
    resumed: IntCounterVec,
}

/// What a request is about; the `kind` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Something of a repository.
    Content(Kind),
    /// A login: the token service, or a question for the challenge.
    Token,
}

/// The metrics of one upstream.
#[derive(Debug)]
pub(super) struct Tally {
    metrics: UpstreamMetrics,
    upstream: String,
    accounts: Vec<String>,
}

impl UpstreamMetrics {
    /// Registers the metrics, with the series that every upstream will have at 0.
    pub fn new(metrics: &Metrics, config: &Config) -> UpstreamMetrics {
        let metrics = UpstreamMetrics {
            requests: metrics.counters(
                "upstream_requests_total",
                "Requests sent upstream, by the class of the answer's status; error: no answer.",
                &["upstream", "account", "kind", "method", "status"],
            ),
            duration: metrics.seconds(
                "upstream_request_duration_seconds",
                "Time from a request sent upstream to the headers of its answer.",
                &["upstream", "kind"],
            ),
            fetched: metrics.counters(
                "fetched_bytes_total",
                "Bytes of manifests, blobs and lists received from upstream.",
                &["upstream"],
            ),
            resumed: metrics.counters(
                "resumed_total",
                "Transfers from upstream that broke off and were taken up again where they broke.",
                &["upstream"],
            ),
        };
        config.upstreams.iter().for_each(|upstream| metrics.start(upstream));
        metrics
    }

    fn start(&self, upstream: &config::Upstream) {
        let registry = upstream.registry.as_str();
        for account in accounts(upstream) {
            for (purpose, method) in Purpose::USUAL {
                for status in ["2xx", "4xx", "5xx", "error"] {
                    let labels = [registry, account.as_str(), purpose.as_str(), method.as_str(), status];
                    self.requests.with_label_values(&labels);
                }
            }
        }
        for (purpose, _) in Purpose::USUAL {
            self.duration.with_label_values(&[registry, purpose.as_str()]);
        }
        self.fetched.with_label_values(&[registry]);
        self.resumed.with_label_values(&[registry]);
    }
}

impl Purpose {
    /// What is asked of any upstream sooner or later.
    const USUAL: [(Purpose, Method); 7] = [
        (Purpose::Content(Kind::Manifest), Method::HEAD),
        (Purpose::Content(Kind::Manifest), Method::GET),
        (Purpose::Content(Kind::Blob), Method::HEAD),
        (Purpose::Content(Kind::Blob), Method::GET),
        (Purpose::Content(Kind::Tags), Method::GET),
        (Purpose::Content(Kind::Referrers), Method::GET),
        (Purpose::Token, Method::GET),
    ];

    /// The label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Purpose::Content(kind) => kind.as_str(),
            Purpose::Token => "token",
        }
    }
}

impl Tally {
    pub(super) fn new(metrics: UpstreamMetrics, upstream: &config::Upstream) -> Tally {
        let accounts = upstream.accounts.iter().map(|account| account.name.clone()).collect();
        Tally { metrics, upstream: upstream.registry.to_string(), accounts }
    }

    /// Counts one request and how it was answered; `None` for not at all.
    pub(super) fn asked(
        &self,
        account: Option<usize>,
        purpose: Purpose,
        method: &Method,
        status: Option<StatusCode>,
        took: Duration,
    ) {
        let account = account.and_then(|index| self.accounts.get(index)).map_or(ANONYMOUS, String::as_str);
        let labels = [&self.upstream, account, purpose.as_str(), method.as_str(), class(status)];
        self.metrics.requests.with_label_values(&labels).inc();
        if status.is_some() {
            let labels = [self.upstream.as_str(), purpose.as_str()];
            self.metrics.duration.with_label_values(&labels).observe(took.as_secs_f64());
        }
    }

    /// Counts bytes of a body.
    pub(super) fn fetched(&self, bytes: usize) {
        self.metrics.fetched.with_label_values(&[self.upstream.as_str()]).inc_by(bytes as u64);
    }

    /// Counts a transfer taken up again.
    pub(super) fn resumed(&self) {
        self.metrics.resumed.with_label_values(&[self.upstream.as_str()]).inc();
    }
}

/// On whose account requests to `upstream` go: its accounts, or nobody's.
fn accounts(upstream: &config::Upstream) -> Vec<String> {
    let named = upstream.accounts.iter().map(|account| account.name.clone());
    named.chain(upstream.may_go_anonymous().then(|| ANONYMOUS.to_owned())).collect()
}

fn class(status: Option<StatusCode>) -> &'static str {
    match status.map(|status| status.as_u16() / 100) {
        Some(1) => "1xx",
        Some(2) => "2xx",
        Some(3) => "3xx",
        Some(4) => "4xx",
        Some(5) => "5xx",
        Some(_) | None => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_series_stand_at_zero() {
        let metrics = Metrics::default();
        UpstreamMetrics::new(&metrics, &Config::default());
        let text = metrics.render();
        for series in [
            "tidelock_upstream_requests_total{account=\"anonymous\",kind=\"manifest\",method=\"GET\",\
             status=\"2xx\",upstream=\"docker.io\"} 0",
            "tidelock_upstream_request_duration_seconds_count{kind=\"token\",upstream=\"ghcr.io\"} 0",
            "tidelock_fetched_bytes_total{upstream=\"quay.io\"} 0",
            "tidelock_resumed_total{upstream=\"gcr.io\"} 0",
        ] {
            assert!(text.contains(series), "{series} in {text}");
        }
    }

    #[test]
    fn classes_are_a_closed_set() {
        let class = |code| class(StatusCode::from_u16(code).ok());
        assert_eq!([class(206), class(307), class(429), class(503)], ["2xx", "3xx", "4xx", "5xx"]);
        assert_eq!([class(999), super::class(None)], ["error", "error"]);
    }
}
