//! The operator's door: metrics, health, readiness and the API, on an address of its own.
//!
//! It runs on a thread and a runtime of its own, so that it answers while the house is full, and it is told to
//! stop apart from the house, so that `/readyz` can say "draining" to the end.
//!
//! Whoever reaches the address may look: where that is more than this machine, it is for the network to guard. Who may
//! change something, and how a page in the operator's browser is kept out, is told in `guard`.

mod answer;
mod api;
mod audit;
mod guard;
mod history;
mod pages;
mod process;
mod token;
mod types;
mod ui;

use std::io;
use std::net::TcpListener;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use http::Response;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::MissedTickBehavior;

pub use token::{BadToken, read_token};
pub use types::{
    Account, Adopted, Adoption, BlobPart, Budgets, CacheState, Changed, Content, Down, Eviction, Explained,
    Failed, Fetch, History, Image, Images, Lacking, ManifestPart, Matching, Missing, MissingImage, Payment,
    Pinned, Popular, Refreshed, Removed, RolledBack, RoundEnded, RoundReport, Rounds, Scrubbing, Shown,
    Sought, Spender, Status, Tag, TagEpisode, TagHistory, TakenIn, Traffic, Trouble, UpstreamBudget, Victim,
    Waiting, WarmPart, WarmRoot, Warmed, Warming,
};

use crate::config::Config;
use crate::lifecycle::{Lifecycle, now};
use crate::mirror::{self, Mirror};
use crate::routing::Router;
use crate::server::{self, Body, Limits, ServerMetrics};
use crate::telemetry::{Journal, Metrics};
use guard::Guard;
use history::Samples;
use process::ProcessCollector;

/// Connections at once: a scraper, a probe and a few operators.
const CONNECTIONS: usize = 64;
/// Of those, so many may watch for as long as they like.
const WATCHERS: usize = 16;
/// How long a stop waits for answers that are under way.
const DRAIN: Duration = Duration::from_secs(1);

/// What the operator can see.
#[derive(Clone)]
pub struct Admin {
    metrics: Metrics,
    journal: Journal,
    house: Lifecycle,
    mirror: Mirror,
    rounds: mirror::Rounds,
    rules: Arc<ArcSwap<Rules>>,
    samples: Arc<Samples>,
    watchers: Arc<Semaphore>,
    begun: Instant,
    work: Handle,
}

/// What the operator allows, and under which names.
struct Rules {
    config: Config,
    router: Router,
}

/// The running door. Dropping it stops the door without waiting.
#[derive(Debug)]
pub struct AdminHandle {
    life: Lifecycle,
    ended: oneshot::Receiver<()>,
}

impl Admin {
    /// The door of the house that pulls through `mirror`, counts in `metrics`, tells `journal` and lives by `house`. Registers what
    /// is known of the process itself. What asks an upstream does so on the runtime that this is called on.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(
        config: &Config,
        mirror: Mirror,
        rounds: mirror::Rounds,
        metrics: Metrics,
        journal: Journal,
        house: Lifecycle,
    ) -> Admin {
        let version = env!("CARGO_PKG_VERSION");
        let build = metrics.gauges("build_info", "Always 1; the label names the version.", &["version"]);
        build.with_label_values(&[version]).set(1);
        metrics.register(Box::new(ProcessCollector::new()));
        Admin {
            metrics,
            journal,
            house,
            mirror,
            rounds,
            rules: Arc::new(ArcSwap::from_pointee(Rules::of(config))),
            samples: Arc::default(),
            watchers: Arc::new(Semaphore::new(WATCHERS)),
            begun: Instant::now(),
            work: Handle::current(),
        }
    }

    /// Goes by `config` from the next request on. It has the upstreams that this door was made with.
    pub fn configure(&self, config: &Config) {
        self.rules.store(Arc::new(Rules::of(config)));
    }

    /// Does what changes something, even if whoever asked goes away: half of a change would be left, and not written down. A
    /// stop waits for it. And where clients are served: connections to upstreams live on the runtime that they were made on.
    async fn to_its_end(
        self: &Arc<Self>,
        entry: audit::Entry,
        answering: impl Future<Output = Response<Body>> + Send + 'static,
    ) -> Response<Body> {
        let own = Arc::clone(self);
        let changing = async move {
            let answer = AssertUnwindSafe(answering).catch_unwind().await;
            let answer = answer.unwrap_or_else(|_| answer::given_up());
            entry.end(answer.status(), own.rules.load().config.log.audit.as_deref());
            answer
        };
        let changing = {
            let _there = self.work.enter();
            self.house.spawn("do what the operator asks for", changing)
        };
        changing.await.unwrap_or_else(|_| answer::given_up())
    }
}

impl Rules {
    fn of(config: &Config) -> Rules {
        Rules { router: Router::new(config), config: config.clone() }
    }
}

/// Opens the door on `listener`.
///
/// # Errors
/// When the system refuses a thread, or what a runtime needs.
pub fn spawn(listener: TcpListener, admin: Admin) -> io::Result<AdminHandle> {
    let guard = Guard::new(listener.local_addr()?);
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let life = Lifecycle::default();
    let (end, ended) = oneshot::channel();
    let own = life.clone();
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        if let Err(error) = run(&runtime, listener, own, admin, guard) {
            tracing::error!(%error, "the admin address does not answer");
        }
        drop(runtime); // and with it what did not end in time
        // Nobody waits any more when the handle was dropped.
        let _ = end.send(());
    })?;
    Ok(AdminHandle { life, ended })
}

impl AdminHandle {
    /// Stops the door and waits until it has closed. Called last, when the house has drained.
    pub async fn stop(mut self) {
        self.life.stop();
        // An error means that the thread has ended already.
        let _ = (&mut self.ended).await;
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        self.life.stop();
    }
}

/// The thread's whole life.
fn run(
    runtime: &Runtime,
    listener: TcpListener,
    life: Lifecycle,
    admin: Admin,
    guard: Guard,
) -> io::Result<()> {
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        // The operator's connections are not counted among the clients'.
        let uncounted = ServerMetrics::new(&Metrics::default());
        let admin = Arc::new(admin);
        let sampling = sample(Arc::clone(&admin));
        let handler = move |request: http::Request<hyper::body::Incoming>| {
            let admin = Arc::clone(&admin);
            let refused = guard.check(&request, || read_token(&admin.rules.load().config.admin));
            async move {
                let (audited, own) = (audit::Entry::of(&request), Arc::clone(&admin));
                let answering = async move {
                    match refused {
                        Some(refused) => refused,
                        None => pages::answer(&own, request).await,
                    }
                };
                match audited {
                    Some(entry) => admin.to_its_end(entry, answering).await,
                    None => answering.await,
                }
            }
        };
        let serving =
            server::serve(listener, None, Limits::new(CONNECTIONS), life.clone(), uncounted, handler);
        let drained = async {
            life.stopping().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            () = serving => {}
            () = drained => {}
            () = sampling => {}
        }
        Ok(())
    })
}

/// Without end.
async fn sample(admin: Arc<Admin>) {
    let mut ticks = tokio::time::interval(history::EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let at = now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        admin.samples.take(at, &admin.metrics.read());
    }
}
