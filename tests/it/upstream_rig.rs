//! A [`Client`] of Tidelock's own, pointed at fakes, without the rest of the house.
#![allow(unreachable_pub)] // `pub` here means "for the tests", which are all one crate

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidelock::config::{Account, Anonymous, Config, Credentials, Proxy, Schedule, Upstream, UpstreamId};
use tidelock::lifecycle::Lifecycle;
use tidelock::oci::{Reference, RepositoryName};
use tidelock::scheduler::{Errand, Refused, Scheduler};
use tidelock::secret::Secret;
use tidelock::telemetry::Metrics;
use tidelock::upstream::{Client, Document, Error, Found, Transfer, UpstreamMetrics};

use crate::support::eventually::within;
use crate::support::images::Blob;
use crate::support::log::Record;
use crate::support::registry::FakeRegistry;

/// The only upstream of every rig.
const ID: UpstreamId = UpstreamId::new(0);

/// A client with what it needs around it.
pub struct Rig {
    pub client: Arc<Client>,
    pub errand: Errand,
    metrics: Metrics,
    // Holds the files that the configuration names.
    _dir: tempfile::TempDir,
}

/// A configuration in the making.
pub struct Plan {
    pub upstream: Upstream,
    pub schedule: Schedule,
    dir: tempfile::TempDir,
}

impl Plan {
    /// For `registry`, at these URLs, straight there, with time limits that a test can wait for.
    pub fn new(registry: &str, endpoints: &[&str]) -> Plan {
        let endpoints = endpoints.iter().map(|url| url.parse().unwrap()).collect();
        let upstream = Upstream {
            proxy: Proxy::None,
            requests_per_second: 1000,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(5),
            ..Upstream::at(registry.parse().unwrap(), endpoints)
        };
        // What is refused for a limit is not waited for: that is tested with the scheduler.
        let schedule = Schedule { max_wait: Duration::from_millis(100), ..Schedule::default() };
        Plan { upstream, schedule, dir: tempfile::tempdir().unwrap() }
    }

    /// For a fake by its own address.
    pub fn at(fake: &FakeRegistry) -> Plan {
        Plan::new(&fake.host(), &[&fake.url()])
    }

    /// For a registry under its real name, for which `fake` (with TLS) stands in as a proxy.
    pub fn through(fake: &FakeRegistry, registry: &str, endpoint: &str) -> Plan {
        let mut plan = Plan::new(registry, &[endpoint]);
        plan.upstream.proxy = Proxy::Through(Secret::new(fake.proxy_url()));
        plan.upstream.ca = Some(plan.file("ca.pem", &fake.ca_pem()));
        plan
    }

    /// Writes a file that the configuration may name.
    pub fn file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let file = self.dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    }

    /// With an account that has a password.
    pub fn account(mut self, username: &str, password: &str) -> Plan {
        let file = self.file("password", password);
        let credentials = Credentials::PasswordFile { username: username.to_owned(), file };
        // What comes of going without an account is tested by itself.
        self.upstream.anonymous = Anonymous::Never;
        self.upstream.accounts = vec![Account::new("ci", credentials)];
        self
    }

    /// With whatever else.
    pub fn with(mut self, adjust: impl FnOnce(&mut Upstream)) -> Plan {
        adjust(&mut self.upstream);
        self
    }

    /// The client.
    pub fn rig(self) -> Rig {
        let config = Config { upstreams: vec![self.upstream], ..Config::default() };
        let metrics = Metrics::default();
        let counted = UpstreamMetrics::new(&metrics, &config);
        let life = Lifecycle::default();
        let config = Config { schedule: self.schedule, ..config };
        let scheduler = Scheduler::new(&config, None, &life, &metrics);
        let client = Client::new(ID, &config.upstreams[0], &scheduler, counted, &life).unwrap();
        Rig { client: Arc::new(client), errand: Errand::background(), metrics, _dir: self.dir }
    }
}

impl Rig {
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<Document, Error> {
        let (repository, reference) = (name(repository), reference.parse::<Reference>().unwrap());
        within("a manifest", self.client.manifest(&self.errand, &repository, &reference)).await
    }

    pub async fn head(&self, repository: &str, reference: &str) -> Result<Found, Error> {
        let (repository, reference) = (name(repository), reference.parse::<Reference>().unwrap());
        within("a HEAD", self.client.head_manifest(&self.errand, &repository, &reference)).await
    }

    pub async fn head_blob(&self, repository: &str, blob: &Blob) -> Result<Found, Error> {
        let digest = blob.digest.parse().unwrap();
        within("a HEAD", self.client.head_blob(&self.errand, &name(repository), &digest)).await
    }

    /// Begins to fetch a blob.
    pub async fn transfer(
        &self,
        repository: &str,
        blob: &Blob,
        from: u64,
        total: Option<u64>,
    ) -> Result<Transfer, Error> {
        let digest = blob.digest.parse().unwrap();
        let repository = name(repository);
        let begin = async {
            let boarding = self.client.board(&self.errand, &repository).await?;
            self.client.blob(boarding, &repository, &digest, from, total).await
        };
        within("a blob", begin).await
    }

    /// Begins to fetch a part of one.
    pub async fn part(&self, repository: &str, blob: &Blob, part: Range<u64>) -> Result<Transfer, Error> {
        let digest = blob.digest.parse().unwrap();
        let (repository, total) = (name(repository), blob.len() as u64);
        let begin = async {
            let boarding = self.client.board(&self.errand, &repository).await?;
            self.client.part(boarding, &repository, &digest, part, total).await
        };
        within("a part of a blob", begin).await
    }

    /// Fetches a whole blob.
    pub async fn blob(&self, repository: &str, blob: &Blob) -> Result<Bytes, Error> {
        rest(&mut self.transfer(repository, blob, 0, None).await?).await
    }

    /// A series of the metrics, by what its line begins with; 0 when there is none.
    pub fn metric(&self, series: &str) -> u64 {
        let text = self.metrics.render();
        let line = text.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }
}

/// Everything that is still to come; its place is checked piece by piece.
pub async fn rest(transfer: &mut Transfer) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    let start = transfer.offset();
    while let Some(piece) = within("a piece", transfer.next()).await? {
        bytes.extend_from_slice(&piece);
        assert_eq!(transfer.offset(), start + bytes.len() as u64);
    }
    Ok(bytes.freeze())
}

pub fn name(repository: &str) -> RepositoryName {
    repository.parse().unwrap()
}

/// The Authorization headers that a host saw, in order, empty ones for requests without.
pub fn shown(requests: &[Record], host: &str) -> Vec<String> {
    let to_host = requests.iter().filter(|request| request.host == host);
    to_host.map(|request| request.header("authorization").to_owned()).collect()
}

/// Whether there was no leave to ask: the upstream said 429, and that is remembered.
pub fn is_held<T>(outcome: Result<T, Error>) -> bool {
    match outcome {
        Err(Error::Refused(Refused::Spent { .. } | Refused::Paused { .. })) => true,
        Err(other) => panic!("{other}"),
        Ok(_) => false,
    }
}

/// The reason of a [`Error::BadAnswer`].
#[track_caller]
pub fn bad_answer<T>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::BadAnswer { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("an answer where none was to be had"),
    }
}
