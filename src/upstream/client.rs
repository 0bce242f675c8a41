use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use super::answer::{is_encoded, is_html};
use super::asking::{Answer, Ask};
use super::credentials::Account;
use super::endpoint::Endpoint;
use super::login::Logins;
use super::metrics::Tally;
use super::placing::whole_length;
use super::proxy::Proxies;
use super::suspects::Suspects;
use super::transfer::{Content, Transfer};
use super::tries::Tries;
use super::wire::Wire;
use super::{Document, Error, Found, UpstreamMetrics, body, tls};
use crate::config::{self, UpstreamId};
use crate::lifecycle::Lifecycle;
use crate::oci::{Digest, Kind, MANIFEST_ACCEPT, Reference, RegistryHost, RepositoryName};
use crate::scheduler::{Errand, Lease, Pull, Scheduler, Told, Want};

/// Speaks to one upstream: to its endpoints in order, until one has what is wanted.
///
/// Every request goes out under a lease of the scheduler, a manifest by GET under a pull (I2). What was
/// answered is not asked again, except on another account, at another endpoint, or after a pause that the
/// upstream asked for; a transfer under way is resumed.
pub struct Client {
    id: UpstreamId,
    pub(super) scheduler: Scheduler,
    registry: RegistryHost,
    pub(super) endpoints: Arc<[Endpoint]>,
    /// What the wire was made from.
    way: Way,
    pub(super) wire: Arc<Wire>,
    pub(super) logins: Logins,
    pub(super) suspects: Arc<Suspects>,
    metrics: UpstreamMetrics,
    life: Lifecycle,
}

/// What of an upstream's configuration goes into its connections.
#[derive(Debug, Clone, PartialEq)]
struct Way {
    max_connections: usize,
    connect_timeout: Duration,
    response_timeout: Duration,
    idle_timeout: Duration,
    ca: Option<PathBuf>,
    insecure: bool,
    proxy: config::Proxy,
}

/// Leave to fetch a blob.
pub struct Boarding<'a> {
    tries: Tries<'a>,
    lease: Lease,
}

/// A setting that is well-formed and yet cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSetup {
    /// The file with certificate authorities is missing, unreadable or holds none.
    #[error(
        "upstream[{index}].ca ({registry}): {fault}; give a PEM file with the certificates that sign this upstream's, or remove the key to believe the system's"
    )]
    Ca {
        /// Which upstream in the list.
        index: usize,
        /// Its name.
        registry: RegistryHost,
        /// File and fault.
        fault: String,
    },
    /// The proxy's URL is of a kind that cannot be used.
    #[error("upstream[{index}].proxy ({registry}): {fault}")]
    Proxy {
        /// Which upstream in the list.
        index: usize,
        /// Its name.
        registry: RegistryHost,
        /// What is allowed.
        fault: String,
    },
    /// There is nobody to ask.
    #[error("upstream[{index}].endpoints ({registry}): is empty; name at least the registry's own URL")]
    NoEndpoint {
        /// Which upstream in the list.
        index: usize,
        /// Its name.
        registry: RegistryHost,
    },
}

/// No manifest in use is larger; registries take 4 MiB.
const LARGEST_MANIFEST: usize = 8 << 20;

impl Client {
    /// Gets ready to speak to `config`, which is upstream `id`. Contacts nobody (I9).
    ///
    /// # Errors
    /// [`BadSetup`] when a file that the configuration names is of no use.
    pub fn new(
        id: UpstreamId,
        config: &config::Upstream,
        scheduler: &Scheduler,
        metrics: UpstreamMetrics,
        life: &Lifecycle,
    ) -> Result<Client, BadSetup> {
        let (index, registry) = (id.index(), config.registry.clone());
        let wire = Arc::new(wire(index, config, &metrics)?);
        let origin = config.endpoints.len().checked_sub(1);
        let origin = origin.ok_or_else(|| BadSetup::NoEndpoint { index, registry: registry.clone() })?;
        let endpoints = config.endpoints.iter().enumerate();
        let endpoint = |(place, base)| Endpoint::new(&registry, base, place, place == origin);
        let endpoints = endpoints.map(endpoint).collect();
        Ok(Client {
            id,
            scheduler: scheduler.clone(),
            registry,
            endpoints,
            way: Way::of(config),
            logins: logins(&wire, config, life),
            wire,
            suspects: Arc::default(),
            metrics,
            life: life.clone(),
        })
    }

    /// The same upstream by another configuration with the same endpoints and accounts, which stands at `index` in its
    /// file: what is known of the endpoints goes along, and so do connections that are as good as before. Logins do not:
    /// each account logs in anew, as its password may be another one. What this client has begun goes on as it was.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn anew(&self, config: &config::Upstream, index: usize) -> Result<Client, BadSetup> {
        let way = Way::of(config);
        // What is in the CA's file may have changed although the path has not.
        let wire = if way == self.way && way.ca.is_none() {
            Arc::clone(&self.wire)
        } else {
            Arc::new(wire(index, config, &self.metrics)?)
        };
        Ok(Client {
            id: self.id,
            scheduler: self.scheduler.clone(),
            registry: self.registry.clone(),
            endpoints: Arc::clone(&self.endpoints),
            way,
            logins: logins(&wire, config, &self.life),
            wire,
            suspects: Arc::clone(&self.suspects),
            metrics: self.metrics.clone(),
            life: self.life.clone(),
        })
    }

    /// The upstream's name.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// What the upstream says of a manifest, by HEAD: free at registries that count pulls.
    ///
    /// # Errors
    /// Of the last endpoint that was asked, or why there is no leave to ask.
    pub async fn head_manifest(
        &self,
        errand: &Errand,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Found, Error> {
        let ask = about_manifest(repository, reference);
        let mut tries = self.tries(errand, Want::question(repository));
        loop {
            let lease = tries.lease().await?;
            let outcome = self.found(&lease, &ask).await;
            if let Some(found) = tries.judge(&lease, outcome)? {
                return Ok(found);
            }
        }
    }

    /// A manifest by GET: one counted request, and another for each endpoint that is tried besides.
    ///
    /// # Errors
    /// Of the last endpoint that was asked; [`Error::BadAnswer`] for more than 8 MiB, and for HTML;
    /// [`Error::Refused`] when no account has a pull left.
    pub async fn manifest(
        &self,
        errand: &Errand,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Document, Error> {
        let head = about_manifest(repository, reference);
        let mut tries = self.tries(errand, Want::question(repository));
        loop {
            let pull = tries.pull(reference).await?;
            let outcome = self.document(&pull, &head).await;
            let outcome = outcome.and_then(|document| self.believe(pull.as_ref(), reference, document));
            if let Some(document) = tries.judge(pull.as_ref(), outcome)? {
                return Ok(document);
            }
        }
    }

    /// What the upstream says of a blob, by HEAD.
    ///
    /// # Errors
    /// As [`Client::head_manifest`].
    pub async fn head_blob(
        &self,
        errand: &Errand,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Found, Error> {
        let ask = Ask::about(Kind::Blob, Method::HEAD, repository, &format!("blobs/{digest}"));
        let mut tries = self.tries(errand, Want::question(repository));
        loop {
            let lease = tries.lease().await?;
            let outcome = self.found_blob(&lease, &ask).await;
            if let Some(found) = tries.judge(&lease, outcome)? {
                return Ok(found);
            }
        }
    }

    /// Waits for leave to fetch a blob: room for it is taken only then, so that what waits in the queue takes none.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn board<'a>(
        &'a self,
        errand: &'a Errand,
        repository: &RepositoryName,
    ) -> Result<Boarding<'a>, Error> {
        let mut tries = self.tries(errand, Want::transfer(repository));
        let lease = tries.lease().await?;
        Ok(Boarding { tries, lease })
    }

    /// Begins to fetch a blob at byte `from`; `total` is its size where that is known. Returns when the first
    /// headers are in. What is kept of the blob already may be all of it; then nobody is asked.
    ///
    /// # Errors
    /// As [`Client::head_manifest`]; [`Error::BadAnswer`] when the blob is not `total` bytes long.
    pub async fn blob(
        self: &Arc<Self>,
        boarding: Boarding<'_>,
        repository: &RepositoryName,
        digest: &Digest,
        from: u64,
        total: Option<u64>,
    ) -> Result<Transfer, Error> {
        let ask = Ask::about(Kind::Blob, Method::GET, repository, &format!("blobs/{digest}"));
        let content = Content { ask, digest: *digest, total, end: total };
        self.begin(boarding, content, from).await
    }

    /// Begins to fetch a part of a blob of `total` bytes, beside others that fetch the same one: over a connection of
    /// its own, and not from whoever sends anything else than the part.
    ///
    /// # Errors
    /// As [`Client::blob`]; [`Error::NoParts`].
    pub async fn part(
        self: &Arc<Self>,
        boarding: Boarding<'_>,
        repository: &RepositoryName,
        digest: &Digest,
        part: Range<u64>,
        total: u64,
    ) -> Result<Transfer, Error> {
        let ask = Ask::about(Kind::Blob, Method::GET, repository, &format!("blobs/{digest}"));
        let ask = Ask { apart: true, ..ask };
        let content = Content { ask, digest: *digest, total: Some(total), end: Some(part.end) };
        self.begin(boarding, content, part.start).await
    }

    async fn begin(
        self: &Arc<Self>,
        boarding: Boarding<'_>,
        content: Content,
        from: u64,
    ) -> Result<Transfer, Error> {
        let digest = &content.digest;
        let Boarding { mut tries, mut lease } = boarding;
        loop {
            let opened = match self.endpoint(&lease) {
                suspect if !suspect.is_origin && self.suspects.has(digest, suspect.place) => {
                    let reason = "wrong bytes of this blob a short while ago".to_owned();
                    Err(Error::BadAnswer { endpoint: suspect.host.clone(), reason })
                }
                endpoint => Transfer::open_at(self, &lease, &content, from, endpoint.place).await,
            };
            if let Some(opened) = tries.judge(&lease, opened)? {
                return Ok(Transfer::new(Arc::clone(self), lease, content, from, opened));
            }
            drop(lease);
            lease = tries.lease().await?;
        }
    }

    /// Bytes of `digest` that came from the endpoints at these places turned out to be wrong: the next time others are
    /// asked first.
    pub fn distrust(&self, digest: Digest, places: impl IntoIterator<Item = usize>) {
        places.into_iter().for_each(|place| self.suspects.add(digest, place));
    }

    pub(super) fn tries<'a>(&'a self, errand: &'a Errand, want: Want) -> Tries<'a> {
        Tries::new(self, errand, want)
    }

    /// The endpoint that a lease is for. A lease for another upstream is a mistake in the program.
    pub(super) fn endpoint(&self, lease: &Lease) -> &Endpoint {
        debug_assert_eq!(lease.upstream(), self.id, "a lease is for the upstream that it was given for");
        &self.endpoints[lease.endpoint()]
    }

    pub(super) fn id(&self) -> UpstreamId {
        self.id
    }

    /// A free question about a manifest; its answer tells what is left of the quota.
    pub(super) async fn found(&self, lease: &Lease, ask: &Ask) -> Result<Found, Error> {
        self.found_and_told(lease, ask).await.map(|(found, _)| found)
    }

    /// The same, with what the answer told.
    pub(super) async fn found_and_told(
        &self,
        lease: &Lease,
        ask: &Ask,
    ) -> Result<(Found, Option<Told>), Error> {
        let sent = lease.send();
        let answer = self.ask(lease, ask).await?;
        let (told, is_found) = (self.told(lease, &answer), answer.response.status() == StatusCode::OK);
        // What a failure tells counts too; what it does not tell means nothing.
        if is_found || told.is_some() {
            lease.answered(sent, told.as_ref());
        }
        let answer = answer.success().await?;
        check_document(&answer)?;
        Ok((Found::of(answer.response.headers()), told))
    }

    /// By HEAD; by a GET of the first byte where the endpoint sends us to a URL that is signed for GET alone.
    async fn found_blob(&self, lease: &Lease, head: &Ask) -> Result<Found, Error> {
        let answer = self.ask_once(lease, head).await?;
        if !answer.refuses_head() {
            let answer = answer.success().await?;
            let found = Found::of(answer.response.headers());
            // A captive portal has a page for any blob.
            let is_page = is_html(answer.response.headers()) && found.digest.is_none();
            return if is_page { Err(answer.bad("a web page in place of an answer")) } else { Ok(found) };
        }
        body::scrap(answer.response).await;
        let get = Ask { method: Method::GET, range: Some("bytes=0-0".to_owned()), ..head.clone() };
        let answer = self.ask(lease, &get).await?;
        let (status, headers) = (answer.response.status(), answer.response.headers());
        match status {
            StatusCode::OK => Ok(Found::of(headers)),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(Found { size: whole_length(headers), ..Found::of(headers) })
            }
            _ => Err(answer.refusal().await),
        }
    }

    /// The counted request: the only place where a question about a manifest becomes a GET, and a pull is spent (I2).
    async fn document(&self, pull: &Pull, head: &Ask) -> Result<Document, Error> {
        let get = Ask { method: Method::GET, ..head.clone() };
        let sent = pull.send();
        let answer = match self.ask(pull.as_ref(), &get).await {
            Ok(answer) => answer.success().await,
            Err(error) => Err(error),
        };
        let answer = answer.inspect_err(|error| {
            if error.was_not_counted() {
                pull.in_vain();
            }
        })?;
        pull.answered(sent, self.told(pull.as_ref(), &answer).as_ref());
        check_document(&answer)?;
        let Found { digest, media_type, .. } = Found::of(answer.response.headers());
        let bytes = self.read(answer, pull.as_ref(), LARGEST_MANIFEST).await?;
        Ok(Document { bytes, media_type, digest })
    }

    /// A mirror's manifest that is not what was asked for, or not what it says of itself, is no answer: the next endpoint
    /// is asked. The origin's is for the caller to judge.
    fn believe(&self, lease: &Lease, reference: &Reference, document: Document) -> Result<Document, Error> {
        let endpoint = self.endpoint(lease);
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => document.digest,
        };
        let is_right =
            expected.is_none_or(|digest| Digest::of(digest.algorithm(), &document.bytes) == digest);
        if is_right || endpoint.is_origin {
            return Ok(document);
        }
        tracing::warn!(registry = %self.registry, endpoint = endpoint.host, %reference, "a mirror sent a wrong manifest");
        let reason = "bytes that do not match the digest".to_owned();
        Err(Error::BadAnswer { endpoint: endpoint.host.clone(), reason })
    }

    /// What an answer says of the quota. Where the endpoint sent us elsewhere, it says nothing itself.
    fn told(&self, lease: &Lease, answer: &Answer) -> Option<Told> {
        if answer.is_redirected() {
            return None;
        }
        self.endpoint(lease).told(answer.response.headers())
    }

    /// A whole body, counted.
    pub(super) async fn read(&self, answer: Answer, lease: &Lease, most: usize) -> Result<Bytes, Error> {
        let bytes = body::whole(answer.response, &answer.host, most, self.wire.idle_timeout).await?;
        self.wire.tally.fetched(bytes.len());
        lease.note(bytes.len() as u64);
        Ok(bytes)
    }
}

impl Way {
    fn of(config: &config::Upstream) -> Way {
        Way {
            max_connections: config.max_connections,
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            idle_timeout: config.idle_timeout,
            ca: config.ca.clone(),
            insecure: config.insecure,
            proxy: config.proxy.clone(),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("registry", &self.registry).finish_non_exhaustive()
    }
}

fn wire(index: usize, config: &config::Upstream, metrics: &UpstreamMetrics) -> Result<Wire, BadSetup> {
    let registry = || config.registry.clone();
    let tls = tls::client_config(config);
    let tls = tls.map_err(|fault| BadSetup::Ca { index, registry: registry(), fault })?;
    let proxies = Proxies::new(&config.proxy).map_err(|fault| BadSetup::Proxy {
        index,
        registry: registry(),
        fault: fault.to_string(),
    })?;
    Ok(Wire::new(config, tls, proxies, Tally::new(metrics.clone(), config)))
}

fn logins(wire: &Arc<Wire>, config: &config::Upstream, life: &Lifecycle) -> Logins {
    let accounts = config.accounts.iter().map(|account| Account::new(account, &config.registry)).collect();
    Logins::new(Arc::clone(wire), accounts, &config.token_hosts, life)
}

/// The free question about a manifest.
pub(super) fn about_manifest(repository: &RepositoryName, reference: &Reference) -> Ask {
    Ask::about(Kind::Manifest, Method::HEAD, repository, &format!("manifests/{reference}"))
        .accepting(MANIFEST_ACCEPT)
}

/// What no document may come as.
pub(super) fn check_document(answer: &Answer) -> Result<(), Error> {
    let headers = answer.response.headers();
    if is_html(headers) {
        return Err(answer.bad("a web page in place of an answer"));
    }
    if is_encoded(headers) { Err(answer.bad("a document that is compressed")) } else { Ok(()) }
}
