//! A very small OCI client. It knows no retry and no redirect, and checks every digest itself.
//!
//! One connection for each request, as old Docker does. Errors of the wire are values in the
//! `try_…` calls and panics in the others, which most tests use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use url::Url;

use super::images::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use super::tls;
use super::wire::{Connection, Route, limited};

pub use super::pull::{PullError, PulledImage};
pub use super::wire::WireError;

/// A client of one registry. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    route: Route,
    headers: Vec<(String, String)>,
    query: String,
    /// How many children of an index are pulled.
    pub(super) platforms: usize,
    answers: Arc<AtomicUsize>,
}

/// A bug should fail a test, not hang it.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer, as far as it came.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body bytes that arrived.
    pub body: Bytes,
    /// Why the body ended early; none when it came to its announced end.
    pub error: Option<WireError>,
    /// Whether it ended early.
    pub truncated: bool,
}

/// An answer whose body is read piece by piece. Dropping it closes the connection.
pub struct Streaming {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
    spare: Bytes,
    connection: Connection,
}

impl Client {
    /// A client of the registry at this URL; a path in it goes before every `/v2/…`.
    pub fn new(base_url: &str) -> Self {
        let base = Url::parse(base_url).expect("a test gives a valid URL");
        let route = Route { base, proxy: None, tls: None, patience: PATIENCE };
        Self {
            route,
            headers: Vec::new(),
            query: String::new(),
            platforms: usize::MAX,
            answers: Arc::default(),
        }
    }

    /// Pulls the first platform of an index only, as a container engine does.
    pub fn one_platform(mut self) -> Self {
        self.platforms = 1;
        self
    }

    /// Waits so long for each step of a request.
    pub fn patient(mut self, patience: Duration) -> Self {
        self.route.patience = patience;
        self
    }

    /// Trusts this certificate authority.
    pub fn with_ca(mut self, pem: &str) -> Self {
        self.route.tls = Some(tls::connector(pem, "http/1.1"));
        self
    }

    /// Goes through this forward proxy: absolute form for http, CONNECT for https.
    pub fn through(mut self, proxy_url: &str) -> Self {
        self.route.proxy = Some(Url::parse(proxy_url).expect("a test gives a valid URL"));
        self
    }

    /// Sends this header with every request.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends this query (`ns=docker.io`) with every request.
    pub fn with_query(mut self, query: &str) -> Self {
        self.query = query.to_owned();
        self
    }

    /// How many answers came, to its clones too.
    pub fn answers(&self) -> usize {
        self.answers.load(Ordering::SeqCst)
    }

    /// GET.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn get(&self, path: &str) -> Reply {
        self.request(Method::GET, path, &[]).await
    }

    /// HEAD.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn head(&self, path: &str) -> Reply {
        self.request(Method::HEAD, path, &[]).await
    }

    /// GET of a range, `bytes=0-99`.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn get_range(&self, path: &str, range: &str) -> Reply {
        self.request(Method::GET, path, &[("range", range)]).await
    }

    /// Any request without a body.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn request(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
        match self.try_request(method.clone(), path, headers, Bytes::new()).await {
            Ok(reply) => reply,
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    /// GET; an error when no answer comes.
    pub async fn try_get(&self, path: &str) -> Result<Reply, WireError> {
        self.try_request(Method::GET, path, &[], Bytes::new()).await
    }

    /// Any request; an error when no answer comes. A body cut short is in the reply.
    pub async fn try_request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply, WireError> {
        let mut streaming = self.stream(method, path, headers, body).await?;
        let (body, error) = streaming.read_to_end().await;
        let truncated = error.is_some();
        Ok(Reply { status: streaming.status, headers: streaming.headers.clone(), body, error, truncated })
    }

    /// GET; returns when the headers are here.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn get_streaming(&self, path: &str) -> Streaming {
        match self.stream(Method::GET, path, &[], Bytes::new()).await {
            Ok(streaming) => streaming,
            Err(error) => panic!("GET {path}: {error}"),
        }
    }

    /// Any request; returns when the headers are here.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Streaming, WireError> {
        let request = self.build(method, path, headers, body);
        let mut connection = self.route.connect().await?;
        let (head, body) = connection.send(request).await?.into_parts();
        let status = head.status.as_u16();
        self.answers.fetch_add(1, Ordering::SeqCst);
        Ok(Streaming { status, headers: head.headers, body, spare: Bytes::new(), connection })
    }

    fn build(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let origin = if self.route.is_absolute() {
            format!("http://{}", self.route.authority())
        } else {
            String::new()
        };
        let joint = match (self.query.is_empty(), path.contains('?')) {
            (true, _) => "",
            (false, false) => "?",
            (false, true) => "&",
        };
        let prefix = self.route.base.path().trim_end_matches('/');
        let uri = format!("{origin}{prefix}{path}{joint}{}", self.query);
        let mut request = Request::builder().method(method).uri(uri);
        let all =
            || self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).chain(headers.iter().copied());
        let has = |name: &str| all().any(|(given, _)| given.eq_ignore_ascii_case(name));
        if !has("host") {
            request = request.header("host", self.route.authority());
        }
        if !has("accept") && path.contains("/manifests/") {
            let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*"].join(", ");
            request = request.header("accept", accept);
        }
        let request = all().fold(request, |request, (name, value)| request.header(name, value));
        request.body(Full::new(body)).expect("a test builds a valid request")
    }
}

impl Reply {
    /// A header's value, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        text(&self.headers, name)
    }

    /// The body.
    ///
    /// # Panics
    /// When it was cut short.
    pub fn whole(&self) -> Bytes {
        assert!(self.error.is_none(), "cut short after {} bytes: {:?}", self.body.len(), self.error);
        self.body.clone()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// The code of an OCI error body, empty when there is none.
    pub fn error_code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Streaming {
    /// A header's value, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        text(&self.headers, name)
    }

    /// The next piece of the body; none at its end, an error when it is cut short.
    pub async fn next(&mut self) -> Option<Result<Bytes, WireError>> {
        if !self.spare.is_empty() {
            return Some(Ok(std::mem::take(&mut self.spare)));
        }
        loop {
            let frame = async { self.body.frame().await.transpose() };
            match limited(self.connection.patience, "reading the body", frame).await {
                Ok(None) => return None,
                Ok(Some(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Some(Ok(data)),
                    _ => {}
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Exactly the next `len` bytes of the body.
    ///
    /// # Panics
    /// When it ends before.
    pub async fn read(&mut self, len: usize) -> Bytes {
        let mut read = BytesMut::new();
        while read.len() < len {
            match self.next().await {
                Some(Ok(piece)) => read.extend_from_slice(&piece),
                other => panic!("only {} of {len} bytes came: {other:?}", read.len()),
            }
        }
        self.spare = read.split_off(len).freeze();
        read.freeze()
    }

    /// The rest of the body, and why it ended early if it did.
    pub async fn read_to_end(&mut self) -> (Bytes, Option<WireError>) {
        let mut read = BytesMut::new();
        loop {
            match self.next().await {
                Some(Ok(piece)) => read.extend_from_slice(&piece),
                Some(Err(error)) => return (read.freeze(), Some(error)),
                None => return (read.freeze(), None),
            }
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
