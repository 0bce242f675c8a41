//! One request, one answer: connections, time limits, counting. Knows no registry word.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tokio::time::Instant;
use url::Url;

use super::address::is_private_host;
use super::connect::{Connector, PrivateAddress, Used};
use super::error::{Error, Sent};
use super::metrics::{Purpose, Tally};
use super::proxy::Proxies;
use super::trust::host_of;
use crate::config;
use crate::oci::Kind;

type Http = legacy::Client<Connector, Full<Bytes>>;

/// The way out to one upstream.
pub(super) struct Wire {
    shared: Lines,
    /// For parts of a blob: over HTTP/2 all of them would share one connection, and what it is held to.
    apart: Lines,
    proxies: Arc<Proxies>,
    /// Until the headers of an answer.
    response_timeout: Duration,
    /// Without a byte of a body.
    pub(super) idle_timeout: Duration,
    pub(super) tally: Tally,
}

/// Connections of one kind.
struct Lines {
    anywhere: Http,
    public_only: Http,
}

/// Where a request may go (I6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The operator named the host, or named an endpoint that is itself private.
    Anywhere,
    /// A public registry named the host.
    PublicOnly,
}

/// A request to be sent.
pub(super) struct Hop<'a> {
    pub(super) purpose: Purpose,
    /// Who is counted.
    pub(super) account: Option<usize>,
    pub(super) reach: Reach,
    /// Over a connection that carries nothing else meanwhile.
    pub(super) apart: bool,
    pub(super) method: Method,
    pub(super) url: &'a Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why there was no answer.
enum Silence {
    TimedOut,
    /// The connection ended before an answer, though it had given some before.
    Stale(legacy::Error),
    Failed(legacy::Error),
}

impl Wire {
    pub(super) fn new(config: &config::Upstream, tls: ClientConfig, proxies: Proxies, tally: Tally) -> Wire {
        let proxies = Arc::new(proxies);
        let http = |public_only, http1_only| {
            let proxies = Arc::clone(&proxies);
            let kind = (public_only, http1_only);
            http(Connector::new(tls.clone(), proxies, config.connect_timeout, kind), config.max_connections)
        };
        let lines =
            |http1_only| Lines { anywhere: http(false, http1_only), public_only: http(true, http1_only) };
        Wire {
            shared: lines(false),
            apart: lines(true),
            proxies,
            response_timeout: config.response_timeout,
            idle_timeout: config.idle_timeout,
            tally,
        }
    }

    /// Whether a proxy resolves the name of `url`.
    pub(super) fn is_proxied(&self, url: &Url) -> bool {
        self.proxies.is_proxied(url)
    }

    /// The outcome of `step` when it comes before an answer would have to.
    pub(super) async fn in_time<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(self.response_timeout, step).await.ok()
    }

    /// Sends, and waits for the headers of the answer. Whatever the status is, it is an answer.
    pub(super) async fn send(&self, hop: Hop<'_>) -> Result<Response<Incoming>, Error> {
        let bad = |reason: &str| Error::BadAnswer { endpoint: host_of(hop.url), reason: reason.to_owned() };
        if hop.reach == Reach::PublicOnly && is_private_host(hop.url) {
            return Err(bad(&PrivateAddress.to_string()));
        }
        let uri: Uri = hop.url.as_str().parse().map_err(|_| bad("a URL that HTTP cannot carry"))?;
        let outcome = match self.once(&hop, &uri).await {
            // What may have been counted needs leave to be sent again (I2).
            Err(Silence::Stale(_)) if !hop.is_counted() => self.once(&hop, &uri).await,
            outcome => outcome,
        };
        outcome.map_err(|silence| match silence {
            Silence::TimedOut => Error::TimedOut { endpoint: host_of(hop.url), after: self.response_timeout },
            Silence::Stale(error) => unanswered(host_of(hop.url), &error, true),
            Silence::Failed(error) => unanswered(host_of(hop.url), &error, false),
        })
    }

    async fn once(&self, hop: &Hop<'_>, uri: &Uri) -> Result<Response<Incoming>, Silence> {
        let lines = if hop.apart { &self.apart } else { &self.shared };
        let http = if hop.reach == Reach::PublicOnly { &lines.public_only } else { &lines.anywhere };
        let begun = Instant::now();
        let answer = tokio::time::timeout(self.response_timeout, http.request(request(hop, uri))).await;
        let status = answer.as_ref().ok().and_then(|answer| answer.as_ref().ok()).map(Response::status);
        self.tally.asked(hop.account, hop.purpose, &hop.method, status, begun.elapsed());
        tracing::debug!(
            host = host_of(hop.url),
            kind = hop.purpose.as_str(),
            method = %hop.method,
            status = status.map(|status| status.as_u16()),
            "asked upstream"
        );
        let answer = answer.map_err(|_| Silence::TimedOut)?.map_err(Silence::of)?;
        answer.extensions().get::<Used>().inspect(|used| used.mark());
        Ok(answer)
    }
}

impl Hop<'_> {
    /// Whether registries count it: a manifest by GET.
    pub(super) fn is_counted(&self) -> bool {
        self.purpose == Purpose::Content(Kind::Manifest) && self.method == Method::GET
    }
}

impl Silence {
    fn of(error: legacy::Error) -> Silence {
        let mut extensions = http::Extensions::new();
        if let Some(connected) = error.connect_info() {
            connected.get_extras(&mut extensions);
        }
        let used = extensions.get::<Used>().is_some_and(Used::get);
        let malformed = find::<hyper::Error>(&error).is_some_and(hyper::Error::is_parse);
        if used && !malformed { Silence::Stale(error) } else { Silence::Failed(error) }
    }
}

/// Connection tasks belong to this client and end with it; they are no tasks of the house that a stop would
/// wait for.
fn http(connector: Connector, most_idle: usize) -> Http {
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(most_idle)
        // Room for signed URLs in `Location`, not for more.
        .http1_max_buf_size(256 << 10)
        .http2_max_header_list_size(64 << 10)
        // One blob fills a line of 1 Gbit/s over 30 ms; all blobs of a connection together hold 16 MiB.
        .http2_initial_stream_window_size(4 << 20)
        .http2_initial_connection_window_size(16 << 20)
        // A connection that died without a word is noticed although other streams wait on it.
        .http2_keep_alive_interval(Duration::from_secs(20))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .build(connector)
}

fn request(hop: &Hop<'_>, uri: &Uri) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(hop.body.clone()));
    *request.method_mut() = hop.method.clone();
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = hop.headers.clone();
    let agent = HeaderValue::from_static(concat!("tidelock/", env!("CARGO_PKG_VERSION")));
    request.headers_mut().insert(USER_AGENT, agent);
    // Bytes are sacred (I10), and some registries compress whenever they may.
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    request
}

/// The error of a request that was never answered.
fn unanswered(endpoint: String, error: &legacy::Error, was_stale: bool) -> Error {
    if let Some(private) = find::<PrivateAddress>(error) {
        return Error::BadAnswer { endpoint, reason: private.to_string() };
    }
    if find::<hyper::Error>(error).is_some_and(hyper::Error::is_parse) {
        return Error::BadAnswer { endpoint, reason: format!("not HTTP: {}", root(error)) };
    }
    let step = if error.is_connect() { "connecting" } else { "the connection broke before an answer" };
    let sent = match (error.is_connect(), was_stale) {
        (true, _) => Sent::No,
        (false, false) => Sent::Perhaps,
        (false, true) => Sent::OnAStaleConnection,
    };
    Error::Unreachable { endpoint, reason: format!("{step}: {}", root(error)), sent }
}

/// The first cause of that type, however deep.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    causes(error).find_map(|error| error.downcast_ref())
}

/// The deepest cause, which is what the operating system or the TLS library said.
pub(super) fn root(error: &(dyn StdError + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// The error and what is beneath it.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}
