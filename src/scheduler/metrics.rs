use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, HistogramVec, IntCounterVec};
use tokio::time::Instant;

use super::budget::ANONYMOUS;
use super::lane::Lane;
use super::{AccountOutlook, Priority, Standing};
use crate::config;
use crate::telemetry::Metrics;

/// What the schedulers of all upstreams count.
#[derive(Debug, Clone)]
pub(super) struct SchedulerMetrics {
    wait: HistogramVec,
    throttled: IntCounterVec,
}

/// The same for one upstream.
#[derive(Debug, Clone)]
pub(super) struct LaneMetrics {
    counts: SchedulerMetrics,
    registry: String,
}

/// Why a request was not sent, or was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// All connections in use, or the pace full.
    Busy,
    /// The queue is full.
    Crowded,
    /// No account has a pull left: not sent.
    Spent,
    /// The upstream's abuse limit is waited for: not sent.
    Paused,
    /// No endpoint answers: not sent.
    Down,
    /// The account cannot log in.
    Login,
    /// The upstream said that the pull quota is spent.
    Quota,
    /// The upstream said that there are too many requests.
    Abuse,
}

/// The `account` of what is nobody's fault in particular.
const ANY_ACCOUNT: &str = "any";

impl SchedulerMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        SchedulerMetrics {
            wait: metrics.seconds(
                "schedule_wait_seconds",
                "Time that a request waited for leave to go upstream.",
                &["upstream", "priority"],
            ),
            throttled: metrics.counters(
                "throttled_total",
                "Requests that were not sent upstream, or were refused there: for a limit, a login, or since nobody answers.",
                &["upstream", "account", "reason"],
            ),
        }
    }
}

impl LaneMetrics {
    /// The series of one upstream, at 0.
    pub(super) fn new(counts: &SchedulerMetrics, upstream: &config::Upstream) -> Self {
        let registry = upstream.registry.to_string();
        for priority in Priority::ALL.map(Priority::as_str) {
            counts.wait.with_label_values(&[registry.as_str(), priority]);
        }
        for reason in [Reason::Busy, Reason::Crowded, Reason::Paused, Reason::Down, Reason::Login] {
            counts.throttled.with_label_values(&[registry.as_str(), ANY_ACCOUNT, reason.as_str()]);
        }
        let named = upstream.accounts.iter().map(|account| account.name.as_str());
        for account in named.clone().chain(upstream.may_go_anonymous().then_some(ANONYMOUS)) {
            for reason in [Reason::Spent, Reason::Quota, Reason::Abuse] {
                counts.throttled.with_label_values(&[registry.as_str(), account, reason.as_str()]);
            }
        }
        for account in named {
            counts.throttled.with_label_values(&[registry.as_str(), account, Reason::Login.as_str()]);
        }
        LaneMetrics { counts: counts.clone(), registry }
    }

    pub(super) fn waited(&self, priority: Priority, wait: Duration) {
        let labels = [self.registry.as_str(), priority.as_str()];
        self.counts.wait.with_label_values(&labels).observe(wait.as_secs_f64());
    }

    pub(super) fn throttled(&self, reason: Reason, account: Option<&str>) {
        let labels = [self.registry.as_str(), account.unwrap_or(ANY_ACCOUNT), reason.as_str()];
        self.counts.throttled.with_label_values(&labels).inc();
    }
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Reason::Busy => "busy",
            Reason::Crowded => "crowded",
            Reason::Spent => "spent",
            Reason::Paused => "paused",
            Reason::Down => "down",
            Reason::Login => "login",
            Reason::Quota => "quota",
            Reason::Abuse => "abuse",
        }
    }
}

/// How things stand, found out when scraped: what is left of each account changes with the time alone. Where there
/// is no limit, or none is known, limit and remaining are `+Inf` and the window is 0; an account that will not be
/// exhausted has `+Inf` seconds until then.
pub(super) struct OutlookCollector {
    lanes: Vec<Weak<Lane>>,
    queue: GaugeVec,
    down: GaugeVec,
    aside: GaugeVec,
    limit: GaugeVec,
    remaining: GaugeVec,
    window: GaugeVec,
    exhaustion: GaugeVec,
}

impl OutlookCollector {
    pub(super) fn new(lanes: &[Arc<Lane>]) -> OutlookCollector {
        let gauge = |name, help| Metrics::unregistered_gauges(name, help, &["upstream", "account"]);
        OutlookCollector {
            lanes: lanes.iter().map(Arc::downgrade).collect(),
            queue: Metrics::unregistered_gauges(
                "schedule_queue",
                "Requests that wait for leave to go upstream.",
                &["upstream", "priority"],
            ),
            down: Metrics::unregistered_gauges(
                "endpoint_down",
                "1 while an endpoint, by its place in the configuration, does not answer and is left alone.",
                &["upstream", "endpoint"],
            ),
            aside: gauge("account_aside", "1 while an account is set aside because it cannot log in."),
            limit: gauge(
                "ratelimit_limit",
                "Pulls that an account may make in a window; +Inf: no limit known.",
            ),
            remaining: gauge("ratelimit_remaining", "Pulls that an account has left; +Inf: no limit known."),
            window: gauge("ratelimit_window_seconds", "The window of an account's limit; 0: no limit known."),
            exhaustion: gauge(
                "ratelimit_exhaustion_seconds",
                "Until an account has no pulls left, if they go on as in the last hour; +Inf: never.",
            ),
        }
    }

    fn all(&self) -> [&GaugeVec; 7] {
        [&self.queue, &self.down, &self.aside, &self.limit, &self.remaining, &self.window, &self.exhaustion]
    }

    fn look(&self) {
        for lane in self.lanes.iter().filter_map(Weak::upgrade) {
            let outlook = lane.outlook(Instant::now());
            for priority in Priority::ALL {
                let queue = self.queue.with_label_values(&[outlook.registry.as_str(), priority.as_str()]);
                queue.set(outlook.waiting[priority as usize] as f64);
            }
            let are_down = lane.state().budget.are_down();
            for (place, is_down) in (1..).zip(are_down) {
                let down = self.down.with_label_values(&[outlook.registry.clone(), format!("{place}")]);
                down.set(f64::from(u8::from(is_down)));
            }
            let mut accounts: BTreeMap<&str, Vec<&AccountOutlook>> = BTreeMap::new();
            for account in &outlook.accounts {
                accounts.entry(&account.account).or_default().push(account);
            }
            for (account, doors) in accounts {
                self.show(&[outlook.registry.as_str(), account], &doors);
            }
        }
    }

    /// One account; where several endpoints limit it, what it may pull is the sum.
    fn show(&self, labels: &[&str; 2], doors: &[&AccountOutlook]) {
        let is_aside = doors.iter().any(|door| door.standing == Standing::Aside);
        self.aside.with_label_values(labels).set(f64::from(u8::from(is_aside)));
        let limited: Vec<_> = doors.iter().filter(|door| door.limit.is_some()).collect();
        let sum = |of: fn(&AccountOutlook) -> Option<u64>| match limited[..] {
            [] => f64::INFINITY,
            _ => limited.iter().filter_map(|door| of(door)).sum::<u64>() as f64,
        };
        self.limit.with_label_values(labels).set(sum(|door| door.limit));
        self.remaining.with_label_values(labels).set(sum(|door| door.remaining));
        let window = limited.iter().filter_map(|door| door.window).max().unwrap_or_default();
        self.window.with_label_values(labels).set(window.as_secs_f64());
        let exhaustion = limited.iter().filter_map(|door| door.exhaustion).min();
        let exhaustion = exhaustion.map_or(f64::INFINITY, |left| left.as_secs_f64());
        self.exhaustion.with_label_values(labels).set(exhaustion);
    }
}

impl Collector for OutlookCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.look();
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}
