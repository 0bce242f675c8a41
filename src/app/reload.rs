//! Reads the configuration again at SIGHUP.
//!
//! ```text
//! SIGHUP ─▶ read, as at the start ─▶ Plan ─▶ prepare ─▶ every room takes what is new
//!             └ faults                         └ unusable CA or proxy ─▶ nothing has changed
//! ```
//!
//! All that can fail comes before the first change. One at a time: signals that come meanwhile make one more.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use prometheus::{IntCounterVec, IntGauge};
use tokio::signal::unix::Signal;

use super::descriptors;
use super::plan::{Plan, most_connections};
use crate::admin::Admin;
use crate::config::{Config, Faults};
use crate::lifecycle::{Lifecycle, now};
use crate::mirror::{Mirror, Rounds};
use crate::registry::Registry;
use crate::server::Slots;
use crate::store::Store;
use crate::telemetry::{self, Metrics};
use crate::upstream::BadSetup;

/// Loads the configuration once more, with the flags and the environment of the start over the file.
pub type Reread = Arc<dyn Fn() -> Result<Config, Faults> + Send + Sync>;

/// The rooms that take something new.
pub(super) struct Rooms {
    pub(super) store: Store,
    pub(super) mirror: Mirror,
    pub(super) rounds: Rounds,
    pub(super) registry: Registry,
    pub(super) admin: Admin,
    pub(super) slots: Slots,
}

/// Has another configuration take effect. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reloader(Arc<Inner>);

struct Inner {
    running: ArcSwap<Config>,
    most_connections: usize,
    rooms: Rooms,
    metrics: ReloadMetrics,
    /// One at a time.
    turn: Mutex<()>,
}

/// Why nothing has changed.
enum Refused {
    Faults(Faults),
    Setup(BadSetup),
}

struct ReloadMetrics {
    reloads: IntCounterVec,
    is_successful: IntGauge,
    succeeded: IntGauge,
}

impl Reloader {
    /// For the house that was built from `config`.
    pub(super) fn new(config: &Config, rooms: Rooms, metrics: &Metrics) -> Reloader {
        Reloader(Arc::new(Inner {
            running: ArcSwap::from_pointee(config.clone()),
            most_connections: most_connections(config),
            rooms,
            metrics: ReloadMetrics::new(metrics),
            turn: Mutex::default(),
        }))
    }

    /// What holds now.
    pub(super) fn running(&self) -> Arc<Config> {
        self.0.running.load_full()
    }

    /// Reads the configuration again at each of `hangups`, until `life` is told to stop. `reread` is `None` where there is
    /// no file.
    pub(super) async fn follow(self, mut hangups: Signal, reread: Option<Reread>, life: Lifecycle) {
        let following = async {
            while hangups.recv().await.is_some() {
                self.at_hangup(reread.clone()).await;
            }
        };
        tokio::select! {
            () = following => {}
            () = life.stopping() => {}
        }
    }

    async fn at_hangup(&self, reread: Option<Reread>) {
        let Some(reread) = reread else {
            self.0.metrics.reloads.with_label_values(&[REFUSED]).inc();
            tracing::warn!(
                "SIGHUP changes nothing: there is no configuration file to read again. Name one at the start, by --config or \
                 TIDELOCK_CONFIG"
            );
            return;
        };
        // The file may lie on a disk that hangs.
        let reloader = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || reloader.0.reload(&reread)).await {
            tracing::error!(%error, "reading the configuration again was given up");
        }
    }
}

impl Inner {
    fn reload(&self, reread: &Reread) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = reread().map_err(Refused::Faults).and_then(|new| self.take(&new));
        self.metrics.note(outcome.is_ok());
        if let Err(refused) = outcome {
            refused.tell();
        }
    }

    /// Has every room take what is new.
    fn take(&self, new: &Config) -> Result<(), Refused> {
        let plan = Plan::of(&self.running.load(), new, self.most_connections);
        let Rooms { store, mirror, rounds, registry, admin, slots } = &self.rooms;
        let prepared = mirror.prepare(&plan.config, &plan.places).map_err(Refused::Setup)?;
        store.configure(&plan.config.cache);
        mirror.configure(prepared);
        rounds.configure(&plan.config);
        registry.configure(&plan.config);
        admin.configure(&plan.config);
        slots.resize(plan.config.server.max_connections);
        descriptors::provide(&plan.config);
        // Told where the log is the more talkative one: it must not hide that it has changed.
        let is_heard = tracing::enabled!(tracing::Level::INFO);
        if is_heard {
            plan.tell();
        }
        if let Err(allowed) = telemetry::set_logging(&plan.config.log) {
            tracing::error!("log.level must be {allowed}: it stays as it was");
        }
        if !is_heard {
            plan.tell();
        }
        self.running.store(Arc::new(plan.config));
        Ok(())
    }
}

impl Plan {
    /// By their keys: values may be secret.
    fn tell(&self) {
        if self.changed.is_empty() {
            tracing::info!(
                "the configuration was read again and takes effect: no key has changed, accounts log in anew"
            );
        } else {
            let changed = self.changed.join(", ");
            tracing::info!(
                changed,
                "the configuration was read again and takes effect; accounts log in anew"
            );
        }
        if !self.waiting.is_empty() {
            let keys = self.waiting.join(", ");
            tracing::warn!(keys, "these keys have changed too, and take effect at the next start");
        }
    }
}

impl Refused {
    fn tell(&self) {
        match self {
            Refused::Faults(faults) => {
                faults.iter().for_each(|fault| tracing::error!("configuration: {fault}"));
            }
            Refused::Setup(error) => tracing::error!("configuration: {error}"),
        }
        tracing::error!("the configuration was read again and is refused: nothing has changed");
    }
}

const APPLIED: &str = "applied";
const REFUSED: &str = "refused";

impl ReloadMetrics {
    fn new(metrics: &Metrics) -> ReloadMetrics {
        let own = ReloadMetrics {
            reloads: metrics.counters(
                "config_reloads_total",
                "Times that the configuration was to be read again, by whether it took effect.",
                &["outcome"],
            ),
            is_successful: metrics.gauge(
                "config_last_reload_successful",
                "Whether what the configuration file said when it was last read took effect: 1 or 0.",
            ),
            succeeded: metrics.gauge(
                "config_last_reload_success_timestamp_seconds",
                "When what the configuration says last took effect, at the start or since.",
            ),
        };
        for outcome in [APPLIED, REFUSED] {
            own.reloads.with_label_values(&[outcome]);
        }
        own.succeed();
        own
    }

    fn note(&self, is_successful: bool) {
        self.reloads.with_label_values(&[if is_successful { APPLIED } else { REFUSED }]).inc();
        if is_successful { self.succeed() } else { self.is_successful.set(0) }
    }

    fn succeed(&self) {
        let since = now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.succeeded.set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        self.is_successful.set(1);
    }
}
