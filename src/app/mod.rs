//! Builds the house from the config, runs it, closes it.
//!
//! [`House::build`] is a list of steps without branches, and binds its sockets before anything runs.
//! [`House::run`] is the life of the process:
//!
//! ```text
//! Starting ── sockets bound ──▶ Ready ── signal ──▶ Draining ── all ended, or drain_timeout ──▶ Stopped
//! ```
//!
//! While draining, readiness says no, nothing new is accepted, and running transfers finish. What is still
//! being fetched at the end stays as a partial file, and the next start goes on with it. A second signal ends
//! the draining at once. SIGHUP changes what can change meanwhile: see `reload` and `plan`.

mod banner;
mod descriptors;
mod plan;
mod reload;
mod signals;
mod systemd;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;

use tokio::signal::unix::Signal;

pub use banner::banner;
pub use reload::Reread;
pub use signals::survive_hangups;

use self::reload::{Reloader, Rooms};
use self::signals::Signals;
use self::systemd::Sockets;
use crate::admin::{self, Admin, AdminHandle};
use crate::config::Config;
use crate::lifecycle::{Lifecycle, Phase};
use crate::mirror::{Mirror, Rounds};
use crate::registry::Registry;
use crate::server::{self, Limits, ServerMetrics, Tls};
use crate::store::Store;
use crate::telemetry::{self, Journal, Metrics, Traces};

/// A mirror that is ready to run.
pub struct House {
    life: Lifecycle,
    reloader: Reloader,
    // The admin's door outlives everything else, so that it can tell how the stop is going.
    admin: AdminHandle,
    admin_addr: SocketAddr,
    store: Store,
    registry: Registry,
    listeners: Vec<TcpListener>,
    tls: Option<Tls>,
    limits: Limits,
    server_metrics: ServerMetrics,
    traces: Traces,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything ended by itself.
    Drained,
    /// So many tasks were still running when `drain_timeout` was over, or at a second signal.
    CutShort(usize),
}

/// How often the files of a TLS listener are looked at.
const TLS_POLL: Duration = Duration::from_secs(5);

/// Threads for reads from a cold disk, names to resolve, and the like. Started when needed.
const SHORT_WORK: usize = 512;

/// Runs a mirror in this process until it is told to stop. At SIGHUP it takes its configuration from `reread`, which is
/// `None` where there is no file.
///
/// # Errors
/// When the house cannot be built: a port in use, a cache directory that cannot be written, a bad CA file.
pub fn serve(config: Config, reread: Option<Reread>) -> anyhow::Result<()> {
    telemetry::init_logging(&config.log).context("log.level")?;
    choose_tls_provider();
    let sockets = Sockets::handed_over()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(blocking_threads(&config))
        .build()
        .context("starting threads")?;
    let ended = runtime.block_on(async {
        // One stream of signals each: both hear the first, the second waits for one more.
        let listen = || Signals::listen().context("listening to signals");
        let (mut first, mut second) = (listen()?, listen()?);
        let hangups = signals::hangups().context("listening to signals")?;
        let house = House::build_on(config, sockets).await?;
        let config = house.reloader.running();
        descriptors::provide(&config);
        banner(&config, &house.addresses(), house.admin_addr);
        house.reload_at(hangups, reread);
        let cut = async {
            second.next().await;
            second.next().await;
        };
        Ok::<_, anyhow::Error>(systemd::watched(house.run(first.next(), cut)).await)
    });
    // What still blocks a thread (a read from a dead disk) must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended.map(|_| ())
}

/// Two TLS libraries in one process would each bring a provider; this is the one that is meant.
pub(crate) fn choose_tls_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

impl House {
    /// Opens the store, builds every room and binds the sockets. Nothing is contacted: the house stands with
    /// no network at all (I9).
    ///
    /// # Errors
    /// What is in the way, and what to do about it.
    pub async fn build(config: Config) -> anyhow::Result<House> {
        House::build_on(config, Sockets::default()).await
    }

    /// The same on sockets that listen already.
    async fn build_on(config: Config, sockets: Sockets) -> anyhow::Result<House> {
        let life = Lifecycle::default();
        let metrics = Metrics::default();
        let tls = config.server.tls.as_ref().map(Tls::open).transpose()?;
        let (listeners, admin_listener) = sockets.open(&config).await?;
        let admin_addr = admin_listener.local_addr().context("reading the admin address")?;
        let store = Store::open(&config.cache, &life, &metrics)?;
        let mirror = Mirror::new(&config, &store, &life, &metrics)?;
        let journal = Journal::default();
        let traces = Traces::new(&config.trace).context("trace.endpoint")?;
        let registry = Registry::new(&config, mirror.clone(), &metrics, &journal, &traces);
        let server_metrics = ServerMetrics::new(&metrics);
        let limits = Limits::new(config.server.max_connections);
        limits.slots.keep_count(&life);
        let rounds = Rounds::new(&config, &mirror, &life, &metrics);
        let admin =
            Admin::new(&config, mirror.clone(), rounds.clone(), metrics.clone(), journal, life.clone());
        let rooms = Rooms {
            store: store.clone(),
            mirror,
            rounds,
            registry: registry.clone(),
            admin: admin.clone(),
            slots: limits.slots.clone(),
        };
        let reloader = Reloader::new(&config, rooms, &metrics);
        let admin = admin::spawn(admin_listener.into_std()?, admin).context("starting the admin's door")?;
        Ok(House {
            life,
            reloader,
            admin,
            admin_addr,
            store,
            registry,
            listeners,
            tls,
            limits,
            server_metrics,
            traces,
        })
    }

    /// Reads the configuration again at each of `hangups`.
    fn reload_at(&self, hangups: Signal, reread: Option<Reread>) {
        let following = self.reloader.clone().follow(hangups, reread, self.life.clone());
        self.life.spawn("reload the configuration", following);
    }

    /// Where clients connect.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Where the operator connects.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Serves until `stop` resolves, then drains until everything has ended, `server.drain_timeout` is over,
    /// or `cut` resolves.
    pub async fn run(self, stop: impl Future<Output = ()>, cut: impl Future<Output = ()>) -> Ended {
        let House {
            life,
            reloader,
            admin,
            store,
            registry,
            listeners,
            tls,
            limits,
            server_metrics,
            traces,
            ..
        } = self;
        if let Some(tls) = &tls {
            tls.watch(&life, TLS_POLL);
        }
        for listener in listeners {
            let registry = registry.clone();
            let handler = move |request| registry.clone().handle(request);
            let (tls, limits, metrics) = (tls.clone(), limits.clone(), server_metrics.clone());
            life.spawn("serve clients", server::serve(listener, tls, limits, life.clone(), metrics, handler));
        }
        life.enter(Phase::Ready);
        systemd::ready();
        stop.await;
        systemd::stopping();
        let ended = drain(&life, reloader.running().server.drain_timeout, cut).await;
        store.close().await;
        traces.close().await;
        life.enter(Phase::Stopped);
        admin.stop().await;
        ended
    }
}

/// Each blob that is being fetched has a thread that writes it from its first byte to its last. However many
/// there are, others are left for what ends soon: were there none, a fetch could not even be finished.
fn blocking_threads(config: &Config) -> usize {
    let writers = config.upstreams.iter().map(|upstream| upstream.max_connections);
    writers.fold(SHORT_WORK, usize::saturating_add)
}

async fn drain(life: &Lifecycle, patience: Duration, cut: impl Future<Output = ()>) -> Ended {
    let running = life.running();
    life.stop();
    // Only now: whoever reads it finds it so.
    tracing::info!(?patience, running, "stopping: running transfers may finish");
    let ended = tokio::select! {
        () = life.wait() => Ended::Drained,
        () = tokio::time::sleep(patience) => Ended::CutShort(life.running()),
        () = cut => Ended::CutShort(life.running()),
    };
    match ended {
        Ended::Drained => tracing::info!("stopped"),
        Ended::CutShort(running) => {
            tracing::warn!(
                running,
                "stopped before everything had ended; partial downloads go on at the next start"
            );
        }
    }
    ended
}
