use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};

use super::answer::{is_encoded, is_html};
use super::asking::{Answer, Ask};
use super::credentials::Account;
use super::endpoint::Endpoint;
use super::login::Logins;
use super::metrics::Tally;
use super::placing::whole_length;
use super::proxy::Proxies;
use super::transfer::{Content, Transfer};
use super::wire::Wire;
use super::{Document, Error, Found, Next, UpstreamMetrics, body, tls};
use crate::config::{self, UpstreamId};
use crate::lifecycle::Lifecycle;
use crate::oci::{Digest, Kind, MANIFEST_ACCEPT, Reference, RegistryHost, RepositoryName};
use crate::scheduler::Lease;

/// Speaks to one upstream: to its endpoints in order, until one has what is wanted.
///
/// Every call takes a lease (I2). None of them retries what was answered: whether to ask again is the
/// caller's business, except that a transfer under way is resumed.
pub struct Client {
    id: UpstreamId,
    registry: RegistryHost,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) wire: Arc<Wire>,
    pub(super) logins: Logins,
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
        metrics: UpstreamMetrics,
        life: &Lifecycle,
    ) -> Result<Client, BadSetup> {
        let (index, registry) = (id.index(), config.registry.clone());
        let tls = tls::client_config(config).map_err(|fault| BadSetup::Ca {
            index,
            registry: registry.clone(),
            fault,
        })?;
        let proxies = Proxies::new(&config.proxy).map_err(|fault| BadSetup::Proxy {
            index,
            registry: registry.clone(),
            fault: fault.to_string(),
        })?;
        let origin = config.endpoints.len().checked_sub(1);
        let origin = origin.ok_or_else(|| BadSetup::NoEndpoint { index, registry: registry.clone() })?;
        let endpoints = config.endpoints.iter().enumerate();
        let endpoints = endpoints.map(|(place, base)| Endpoint::new(base, place == origin)).collect();
        let wire = Arc::new(Wire::new(config, tls, proxies, Tally::new(metrics, config)));
        let accounts = config.accounts.iter().map(|account| Account::new(account, &registry)).collect();
        let logins = Logins::new(Arc::clone(&wire), accounts, &config.token_hosts, life);
        Ok(Client { id, registry, endpoints, wire, logins })
    }

    /// The upstream's name.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// What the upstream says of a manifest, by HEAD: free at registries that count pulls.
    ///
    /// # Errors
    /// Of the last endpoint that was asked.
    pub async fn head_manifest(
        &self,
        lease: &Lease,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Found, Error> {
        let ask = self.about_manifest(lease, Method::HEAD, repository, reference);
        self.first(|endpoint| Box::pin(self.found(endpoint, &ask))).await
    }

    /// A manifest by GET: one counted request for each endpoint that is tried.
    ///
    /// # Errors
    /// Of the last endpoint that was asked; [`Error::BadAnswer`] for more than 8 MiB, and for HTML.
    pub async fn manifest(
        &self,
        lease: &Lease,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Document, Error> {
        let ask = self.about_manifest(lease, Method::GET, repository, reference);
        self.first(|endpoint| Box::pin(self.document(endpoint, &ask))).await
    }

    /// What the upstream says of a blob, by HEAD.
    ///
    /// # Errors
    /// Of the last endpoint that was asked.
    pub async fn head_blob(
        &self,
        lease: &Lease,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Found, Error> {
        let ask = Ask::about(Kind::Blob, Method::HEAD, repository, &format!("blobs/{digest}"));
        let ask = ask.paid_by(self.account(lease));
        self.first(|endpoint| Box::pin(self.found_blob(endpoint, &ask))).await
    }

    /// Begins to fetch a blob at byte `from`; `total` is its size where that is known. Returns when the first
    /// headers are in.
    ///
    /// # Errors
    /// Of the last endpoint that was asked; [`Error::BadAnswer`] when the blob is not `total` bytes long.
    pub async fn blob(
        self: &Arc<Self>,
        lease: Lease,
        repository: &RepositoryName,
        digest: &Digest,
        from: u64,
        total: Option<u64>,
    ) -> Result<Transfer, Error> {
        let ask = Ask::about(Kind::Blob, Method::GET, repository, &format!("blobs/{digest}"));
        let ask = ask.paid_by(self.account(&lease));
        Transfer::begin(Arc::clone(self), lease, Content { ask, total }, from).await
    }

    /// Asks the endpoints in order, until one is content or the origin has spoken.
    pub(super) async fn first<'a, T>(
        &'a self,
        attempt: impl Fn(&'a Endpoint) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match attempt(endpoint).await {
                Err(error) if error.next(endpoint.is_origin) == Next::OtherEndpoint => {
                    tracing::debug!(registry = %self.registry, %error, "trying the next endpoint");
                    last = Some(error);
                }
                outcome => return outcome,
            }
        }
        Err(last.expect("there is an endpoint, and after the last one's error there is no next"))
    }

    /// Which account a lease has pay. A lease for another upstream is a mistake in the program.
    pub(super) fn account(&self, lease: &Lease) -> Option<usize> {
        debug_assert_eq!(lease.upstream(), self.id, "a lease is for the upstream that it was given for");
        lease.account()
    }

    fn about_manifest(
        &self,
        lease: &Lease,
        method: Method,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Ask {
        let ask = Ask::about(Kind::Manifest, method, repository, &format!("manifests/{reference}"));
        ask.accepting(MANIFEST_ACCEPT).paid_by(self.account(lease))
    }

    async fn found(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Found, Error> {
        let answer = self.ask(endpoint, ask).await?.success().await?;
        check_document(&answer)?;
        Ok(Found::of(answer.response.headers()))
    }

    /// By HEAD; by a GET of the first byte where the endpoint sends us to a URL that is signed for GET alone.
    async fn found_blob(&self, endpoint: &Endpoint, head: &Ask) -> Result<Found, Error> {
        let answer = self.ask_and_follow(endpoint, head).await?;
        if !answer.refuses_head() {
            let answer = answer.success().await?;
            let found = Found::of(answer.response.headers());
            // A captive portal has a page for any blob.
            let is_page = is_html(answer.response.headers()) && found.digest.is_none();
            return if is_page { Err(answer.bad("a web page in place of an answer")) } else { Ok(found) };
        }
        body::scrap(answer.response).await;
        let get = Ask { method: Method::GET, range: Some("bytes=0-0".to_owned()), ..head.clone() };
        let answer = self.ask(endpoint, &get).await?;
        let (status, headers) = (answer.response.status(), answer.response.headers());
        match status {
            StatusCode::OK => Ok(Found::of(headers)),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(Found { size: whole_length(headers), ..Found::of(headers) })
            }
            _ => Err(answer.refusal().await),
        }
    }

    async fn document(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Document, Error> {
        let answer = self.ask(endpoint, ask).await?.success().await?;
        check_document(&answer)?;
        let Found { digest, media_type, .. } = Found::of(answer.response.headers());
        let bytes = self.read(answer, LARGEST_MANIFEST).await?;
        Ok(Document { bytes, media_type, digest })
    }

    /// A whole body, counted.
    pub(super) async fn read(&self, answer: Answer, most: usize) -> Result<Bytes, Error> {
        let bytes = body::whole(answer.response, &answer.host, most, self.wire.idle_timeout).await?;
        self.wire.tally.fetched(bytes.len());
        Ok(bytes)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// What no document may come as.
pub(super) fn check_document(answer: &Answer) -> Result<(), Error> {
    let headers = answer.response.headers();
    if is_html(headers) {
        return Err(answer.bad("a web page in place of an answer"));
    }
    if is_encoded(headers) { Err(answer.bad("a document that is compressed")) } else { Ok(()) }
}
