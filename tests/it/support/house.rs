//! The real program in this process: every room, sockets on free ports, a cache in a temporary folder.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tidelock::app::{self, Ended};
use tidelock::config::{ByteSize, Config, Proxy, SizeLimit, Upstream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::client::Client;
use super::eventually::{eventually_eq, patience, within};
use super::registry::FakeRegistry;

/// A running mirror. Dropping it lets it go with the test's runtime; [`House::stop`] ends it in order.
pub struct House {
    address: SocketAddr,
    admin: SocketAddr,
    config: Config,
    folder: Arc<TempDir>,
    stop: Arc<Notify>,
    cut: Arc<Notify>,
    running: JoinHandle<Ended>,
}

impl House {
    /// A mirror of `fake` as docker.io, its default upstream, with a configuration that hides nothing: tags
    /// are checked at each request, nothing is read ahead, and an absence is not remembered.
    pub async fn over(fake: &FakeRegistry) -> House {
        House::with(fake, |_| {}).await
    }

    /// The same, with the configuration adjusted.
    pub async fn with(fake: &FakeRegistry, adjust: impl FnOnce(&mut Config)) -> House {
        House::start(vec![upstream("docker.io", &[&fake.url()])], adjust).await
    }

    /// A mirror of these upstreams; the first is the default.
    pub async fn start(mut upstreams: Vec<Upstream>, adjust: impl FnOnce(&mut Config)) -> House {
        upstreams[0].default = true;
        let folder = Arc::new(TempDir::new().unwrap());
        let mut config = Config { upstreams, ..Config::default() };
        config.server.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        config.server.admin_listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.cache.dir = folder.path().to_owned();
        config.cache.max_size = SizeLimit::Bytes(ByteSize(1 << 30));
        config.cache.min_free = ByteSize(0);
        adjust(&mut config);
        House::open(config, folder).await
    }

    async fn open(config: Config, folder: Arc<TempDir>) -> House {
        let house = House::build(&config).await;
        let (address, admin) = (house.addresses()[0], house.admin_address());
        let (stop, cut) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (heard, hurried) = (Arc::clone(&stop), Arc::clone(&cut));
        let running = tokio::spawn(async move { house.run(heard.notified(), hurried.notified()).await });
        House { address, admin, config, folder, stop, cut, running }
    }

    /// After a kill the operator's door, which has a thread of its own, may hold the cache for a moment longer: with
    /// a real process that thread is gone too.
    async fn build(config: &Config) -> app::House {
        let deadline = tokio::time::Instant::now() + patience(Duration::from_secs(10));
        loop {
            match app::House::build(config.clone()).await {
                Ok(house) => return house,
                Err(error) if error.to_string().contains("in use by another") => {
                    assert!(tokio::time::Instant::now() < deadline, "{error}");
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error:#}"),
            }
        }
    }

    /// Base URL for clients.
    pub fn url(&self) -> String {
        let scheme = if self.config.server.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn client(&self) -> Client {
        Client::new(&self.url())
    }

    /// A client of the operator's door.
    pub fn admin(&self) -> Client {
        Client::new(&self.admin_url())
    }

    /// Its base URL.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// What a command prints that speaks to this mirror.
    pub async fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
        command.env_clear().args(arguments).args(["--admin", &self.admin_url()]);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// The cache directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The finished blobs on disk, by their hex names, with their sizes.
    pub fn blobs(&self) -> Vec<(String, u64)> {
        files(&self.folder().join("blobs"))
    }

    /// The unfinished ones.
    pub fn partials(&self) -> Vec<(String, u64)> {
        files(&self.folder().join("ingest"))
    }

    /// The value of one series, `name{label="value",…}` as Prometheus would see it; 0 where there is none.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.admin().get("/metrics").await.text();
        let line =
            text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// Waits until no blob is being fetched any more: what came whole is cached, and known to be its
    /// repository's.
    pub async fn settled(&self) {
        eventually_eq(0.0, || self.metric("tidelock_flights")).await;
    }

    /// Asks it to stop without waiting for the end.
    pub fn begin_stop(&self) {
        self.stop.notify_one();
    }

    /// The second signal.
    pub fn cut_short(&self) {
        self.cut.notify_one();
    }

    /// Waits for the end after [`House::begin_stop`].
    pub async fn ended(self) -> Ended {
        within("the house to stop", self.running).await.unwrap()
    }

    /// Stops in order and waits.
    pub async fn stop(self) -> Ended {
        self.begin_stop();
        self.ended().await
    }

    /// Stops in order and starts again on the same cache, with the configuration adjusted.
    pub async fn restart(self, adjust: impl FnOnce(&mut Config)) -> House {
        let left = self.left();
        self.stop().await;
        left.open(adjust).await
    }

    /// What is there to go on with when it has ended, in whatever way.
    pub fn left(&self) -> Left {
        Left { config: self.config.clone(), folder: Arc::clone(&self.folder) }
    }
}

/// What a house leaves behind: its configuration and its cache.
pub struct Left {
    config: Config,
    folder: Arc<TempDir>,
}

impl Left {
    /// The cache directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts again on the same cache, with the configuration adjusted.
    pub async fn open(mut self, adjust: impl FnOnce(&mut Config)) -> House {
        adjust(&mut self.config);
        House::open(self.config, self.folder).await
    }
}

/// A runtime that a house can be killed with: what ends with the process ends with it.
pub struct Process(tokio::runtime::Runtime);

impl Process {
    pub fn new() -> Process {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Process(builder.worker_threads(2).enable_all().build().unwrap())
    }

    /// A house that lives in it.
    pub async fn house(&self, house: impl Future<Output = House> + Send + 'static) -> House {
        self.0.spawn(house).await.unwrap()
    }

    /// Ends every task where it stands.
    pub async fn kill(self) {
        let killed = tokio::task::spawn_blocking(move || self.0.shutdown_timeout(Duration::from_secs(10)));
        within("the process to end", killed).await.unwrap();
    }
}

/// An upstream at these endpoints with the strict settings of [`House::over`].
pub fn upstream(registry: &str, endpoints: &[&str]) -> Upstream {
    let endpoints = endpoints.iter().map(|url| url.parse().unwrap()).collect();
    let mut upstream = Upstream::at(registry.parse().unwrap(), endpoints);
    upstream.proxy = Proxy::None;
    // So that what is asked of it can be counted, however slow it is.
    upstream.read_ahead = false;
    upstream.parallel_ranges = false;
    upstream.requests_per_second = 10_000;
    upstream.response_timeout = Duration::from_secs(5);
    upstream.idle_timeout = Duration::from_secs(5);
    upstream.freshness.tag_ttl = Duration::ZERO;
    upstream.freshness.stale_while_revalidate = Duration::ZERO;
    upstream.freshness.negative_ttl = Duration::ZERO;
    upstream
}

/// The files under one of the cache's folders (`blobs`, `ingest`) by name, with their sizes, in order.
pub fn files(folder: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(data) if data.is_dir() => found.extend(files(&entry.path())),
            Ok(data) => found.push((entry.file_name().to_string_lossy().into_owned(), data.len())),
            // Gone in the meantime.
            Err(_) => {}
        }
    }
    found.sort();
    found
}
