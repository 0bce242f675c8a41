//! The `/v2/` door: request in, response out, error to status, one log line.
//!
//! [`Registry::answer`] is the whole story of a request: parse, which upstream, may they, what is asked for.
//! `Authorization` is ignored: classic dockerd sends Docker Hub's to every mirror, and a challenge here would
//! only teach clients to do so.

mod error;
mod metrics;
mod patience;
mod ranges;
mod record;
mod response;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_RANGE, HOST, HeaderName, IF_NONE_MATCH, IF_RANGE, RANGE, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode};

use self::error::Error;
use self::metrics::RegistryMetrics;
use self::record::Record;
use self::response::{Answer, etag};
use crate::access;
use crate::config::Config;
use crate::mirror::{self, Mirror};
use crate::oci::{
    Accept, Digest, Kind, OCI_INDEX, OciRequest, Page, Ranges, Reference, Referrers, RegistryHost,
    Repository, RepositoryName, TagList, next_page,
};
use crate::routing::{Router, Target};
use crate::scheduler::{ClientAddr, Errand};
use crate::server::{Body, Peer};
use crate::telemetry::{Journal, Metrics, Traces};

/// The clients' door. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    rules: ArcSwap<Rules>,
    mirror: Mirror,
    metrics: RegistryMetrics,
    journal: Journal,
    traces: Traces,
}

/// What the operator allows, and under which names.
struct Rules {
    config: Config,
    router: Router,
}

/// What of a request's head matters once its path is read.
struct Asked<'a> {
    head: bool,
    path: &'a str,
    headers: &'a HeaderMap,
    ns: Option<RegistryHost>,
    errand: Errand,
}

impl Registry {
    /// A door to `mirror`, for the upstreams of `config`. What happens at it is counted in `metrics`, told to
    /// `journal`, and traced.
    pub fn new(
        config: &Config,
        mirror: Mirror,
        metrics: &Metrics,
        journal: &Journal,
        traces: &Traces,
    ) -> Registry {
        Registry(Arc::new(Inner {
            rules: ArcSwap::from_pointee(Rules::of(config)),
            mirror,
            metrics: RegistryMetrics::new(metrics, config),
            journal: journal.clone(),
            traces: traces.clone(),
        }))
    }

    /// Goes by `config` from the next request on. It has the upstreams that this door was made with.
    pub fn configure(&self, config: &Config) {
        self.0.rules.store(Arc::new(Rules::of(config)));
    }

    /// Answers one request, whatever it is.
    pub async fn handle<B>(self, request: Request<B>) -> Response<Body> {
        let begun = Instant::now();
        let trace = self.0.traces.request(request.headers());
        let mut record = Record::begin(&self.0.metrics, &self.0.journal, &request, trace);
        let (head, body) = request.into_parts();
        // A body is nothing that the pull side asks for; it is not read.
        drop(body);
        let answer = match self.answer(&head, &mut record).await {
            Ok(answer) => answer,
            Err(error) => {
                let told = error.told();
                record.failed(&error, &told);
                if told.status == StatusCode::TOO_MANY_REQUESTS {
                    patience::slow_down(begun).await;
                }
                match error {
                    Error::Range(size) => {
                        response::error(&told).with(CONTENT_RANGE, format!("bytes */{size}"))
                    }
                    _ => response::error(&told),
                }
            }
        };
        let answer = if head.method == Method::HEAD { answer.without_body() } else { answer };
        record.seal(answer)
    }

    async fn answer(&self, head: &http::request::Parts, record: &mut Record) -> Result<Answer, Error> {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(Error::Method(head.method.clone()));
        }
        let path = head.uri.path();
        let (request, ns) = OciRequest::parse(path, head.uri.query())?;
        let asked = Asked {
            head: head.method == Method::HEAD,
            path,
            headers: &head.headers,
            ns,
            errand: errand(head).traced(record.trace().clone()),
        };
        record.errand(&asked.errand);
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or(head.uri.authority().map(|authority| authority.as_str()));
        let answer = match request {
            OciRequest::Ping => Ok(response::ping()),
            OciRequest::Catalog { page } => self.catalog(&page, &asked),
            OciRequest::Manifest { name, reference } => {
                let target = self.admit(Kind::Manifest, &name, host, &asked, record)?;
                self.manifest(&target, &reference, &asked, record).await
            }
            OciRequest::Blob { name, digest } => {
                let target = self.admit(Kind::Blob, &name, host, &asked, record)?;
                // Boxed, so that a manifest's answer does not move about what only these need.
                Box::pin(self.blob(&target, &digest, &asked, record)).await
            }
            OciRequest::Tags { name, page } => {
                let target = self.admit(Kind::Tags, &name, host, &asked, record)?;
                Box::pin(self.tags(&target, &page, &asked, record)).await
            }
            OciRequest::Referrers { name, digest, artifact_type } => {
                let target = self.admit(Kind::Referrers, &name, host, &asked, record)?;
                let referrers = self.referrers(&target, &digest, artifact_type.as_deref(), &asked, record);
                Box::pin(referrers).await
            }
        };
        answer.map(|answer| answer.namespace(asked.ns.as_ref()))
    }

    /// Which upstream, and may they.
    fn admit(
        &self,
        kind: Kind,
        name: &RepositoryName,
        host: Option<&str>,
        asked: &Asked<'_>,
        record: &mut Record,
    ) -> Result<Target, Error> {
        record.kind(kind);
        let rules = self.0.rules.load();
        let target = rules.router.route(asked.ns.as_ref(), host, name)?;
        record.target(&target);
        access::permit(&rules.config.upstreams[target.upstream.index()], &target.repository.name)?;
        Ok(target)
    }

    async fn manifest(
        &self,
        target: &Target,
        reference: &Reference,
        asked: &Asked<'_>,
        record: &mut Record,
    ) -> Result<Answer, Error> {
        let accept = Accept::parse(values(asked.headers, &ACCEPT));
        let how = mirror::Asked { accept: &accept, head: asked.head, errand: &asked.errand };
        let answer = pin!(self.0.mirror.manifest(target, reference, how));
        let answer = self.in_time(target, Kind::Manifest, asked, answer).await;
        let answer = answer.map_err(|source| {
            let separator = if matches!(reference, Reference::Tag(_)) { ':' } else { '@' };
            let what = format!("{}{separator}{reference}", target.repository);
            Error::Mirror { what, kind: Kind::Manifest, source }
        })?;
        record.served(answer.served);
        if let Reference::Tag(tag) = reference {
            self.0.journal.pulled(&target.repository, tag);
        }
        let digest = answer.digest;
        let response = response::manifest(answer, matches!(reference, Reference::Tag(_)));
        Ok(if is_known(asked.headers, &digest) { response.not_modified() } else { response })
    }

    async fn blob(
        &self,
        target: &Target,
        digest: &Digest,
        asked: &Asked<'_>,
        record: &mut Record,
    ) -> Result<Answer, Error> {
        let mirror = &self.0.mirror;
        let answer = if asked.head {
            let answer = pin!(mirror.head_blob(target, digest, &asked.errand));
            self.in_time(target, Kind::Blob, asked, answer).await
        } else {
            let answer = pin!(mirror.blob(target, digest, &asked.errand));
            self.in_time(target, Kind::Blob, asked, answer).await
        };
        let answer = answer.map_err(|source| {
            let what = format!("{}@{digest}", target.repository);
            Error::Mirror { what, kind: Kind::Blob, source }
        })?;
        record.served(answer.served);
        if is_known(asked.headers, digest) {
            return Ok(response::blob(digest, answer.size, answer.served).not_modified());
        }
        ranges::body(answer, digest, asked_ranges(asked.headers, digest))
    }

    async fn tags(
        &self,
        target: &Target,
        page: &Page,
        asked: &Asked<'_>,
        record: &mut Record,
    ) -> Result<Answer, Error> {
        let answer = pin!(self.0.mirror.tags(target, &asked.errand));
        let answer = self.in_time(target, Kind::Tags, asked, answer).await;
        let failed = |source| Error::Mirror { what: target.repository.to_string(), kind: Kind::Tags, source };
        let answer = answer.map_err(failed)?;
        record.served(answer.served);
        if page.n.is_none() && page.last.is_none() {
            return Ok(response::list(&answer, "application/json", answer.document.clone()));
        }
        let all = TagList::parse(&answer.document).map_err(|error| failed(internal(&error)))?;
        let (tags, more) = page.cut(&all.tags);
        let link = more.then(|| asked.next_page(page, tags.last())).flatten();
        let part = TagList { name: all.name.clone(), tags: tags.to_vec() };
        let part = serde_json::to_vec(&part).map_err(|error| failed(internal(&error)))?;
        Ok(response::next_page(response::list(&answer, "application/json", Bytes::from(part)), link))
    }

    async fn referrers(
        &self,
        target: &Target,
        digest: &Digest,
        artifact_type: Option<&str>,
        asked: &Asked<'_>,
        record: &mut Record,
    ) -> Result<Answer, Error> {
        let answer = pin!(self.0.mirror.referrers(target, digest, &asked.errand));
        let answer = self.in_time(target, Kind::Referrers, asked, answer).await;
        let what = || format!("referrers of {}@{digest}", target.repository);
        let failed = |source| Error::Mirror { what: what(), kind: Kind::Referrers, source };
        let answer = answer.map_err(failed)?;
        record.served(answer.served);
        let Some(artifact_type) = artifact_type else {
            return Ok(response::list(&answer, OCI_INDEX, answer.document.clone()));
        };
        let all = Referrers::parse(&answer.document);
        let mut referrers = all.map_err(|error| failed(internal(&error)))?;
        referrers.filter(artifact_type);
        let document = Bytes::from(referrers.to_json());
        Ok(response::filtered(response::list(&answer, OCI_INDEX, document)))
    }

    /// The answer, while the client still waits for one. What it asked for goes on in any case: its next try finds
    /// it. Pinned before, so that kilobytes stay where they are.
    async fn in_time<T>(
        &self,
        target: &Target,
        kind: Kind,
        asked: &Asked<'_>,
        answer: Pin<&mut impl Future<Output = Result<T, mirror::Error>>>,
    ) -> Result<T, mirror::Error> {
        let patience = asked.errand.patience();
        let answer = tokio::time::timeout(patience, answer).await;
        answer.unwrap_or_else(|_| Err(self.0.mirror.out_of_patience(target, kind, patience)))
    }

    fn catalog(&self, page: &Page, asked: &Asked<'_>) -> Result<Answer, Error> {
        let mut repositories = self.0.mirror.repositories();
        let rules = self.0.rules.load();
        repositories.retain(|repository| rules.allow(repository));
        let mut names: Vec<String> =
            repositories.iter().filter_map(|repository| rules.router.public_name(repository)).collect();
        names.sort_unstable();
        let (names, more) = page.cut(&names);
        let link = more.then(|| asked.next_page(page, names.last())).flatten();
        let document = serde_json::json!({ "repositories": names }).to_string();
        Ok(response::next_page(response::catalog(document.into_bytes()), link))
    }
}

impl Rules {
    fn of(config: &Config) -> Rules {
        Rules { router: Router::new(config), config: config.clone() }
    }

    /// What was pulled once may since have been forbidden.
    fn allow(&self, repository: &Repository) -> bool {
        let mut upstreams = self.config.upstreams.iter();
        let upstream = upstreams.find(|upstream| upstream.registry == repository.registry);
        upstream.is_some_and(|upstream| access::permit(upstream, &repository.name).is_ok())
    }
}

impl Asked<'_> {
    /// The `Link` to the page behind `last`, asked for in the same way as this one.
    fn next_page(&self, page: &Page, last: Option<&String>) -> Option<String> {
        let ns = self.ns.as_ref().map(|ns| ("ns", ns.as_str()));
        Some(next_page(self.path, page.n?, last?, ns.as_slice()))
    }
}

fn errand(head: &http::request::Parts) -> Errand {
    let peer = head.extensions.get::<Peer>();
    let client = peer.map_or(ClientAddr::NOBODY, |peer| ClientAddr::of(peer.addr.ip()));
    Errand::of(client).within(patience::of(values(&head.headers, &USER_AGENT).next()))
}

/// All values of a header that are text.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

/// Whether `If-None-Match` names this content (RFC 9110 §13.1.2: weak comparison).
fn is_known(headers: &HeaderMap, digest: &Digest) -> bool {
    if !headers.contains_key(&IF_NONE_MATCH) {
        return false;
    }
    let own = etag(digest);
    let mut tags = values(headers, &IF_NONE_MATCH).flat_map(|line| line.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == own)
}

/// The ranges to honour: none when `If-Range` speaks of other content (§13.1.5: strong comparison only).
fn asked_ranges(headers: &HeaderMap, digest: &Digest) -> Option<Ranges> {
    let own = etag(digest);
    if values(headers, &IF_RANGE).any(|validator| validator != own) {
        return None;
    }
    values(headers, &RANGE).next().and_then(Ranges::parse)
}

/// A document of our own that cannot be read back.
fn internal(error: &serde_json::Error) -> mirror::Error {
    mirror::Error::Internal(error.to_string())
}
