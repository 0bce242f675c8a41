//! What these tests stand on: a server on a free port, raw sockets, and patience with an end.

use std::future::{Future, ready};
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidelock::lifecycle::Lifecycle;
use tidelock::server::{Body, Limits, ServerMetrics, Tls, bind, serve};
use tidelock::telemetry::Metrics;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support;

/// A running server.
pub(super) struct Served {
    pub(super) addr: SocketAddr,
    pub(super) life: Lifecycle,
    pub(super) metrics: Metrics,
    pub(super) ended: JoinHandle<()>,
}

pub(super) async fn start<H, F>(limits: Limits, tls: Option<Tls>, handler: H) -> Served
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    start_on(bind("127.0.0.1:0".parse().unwrap()).await.unwrap(), limits, tls, handler).await
}

pub(super) async fn start_on<H, F>(
    listener: TcpListener,
    limits: Limits,
    tls: Option<Tls>,
    handler: H,
) -> Served
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let addr = listener.local_addr().unwrap();
    let (life, metrics) = (Lifecycle::default(), Metrics::default());
    let counts = ServerMetrics::new(&metrics);
    let ended = tokio::spawn(serve(listener, tls, limits, life.clone(), counts, handler));
    Served { addr, life, metrics, ended }
}

/// Answers every request with its path.
pub(super) async fn echo(request: Request<Incoming>) -> Response<Body> {
    Response::new(Body::full(request.uri().path().to_owned()))
}

pub(super) fn limits() -> Limits {
    Limits::new(1000)
}

impl Served {
    pub(super) async fn connect(&self) -> TcpStream {
        within(TcpStream::connect(self.addr)).await.unwrap()
    }

    /// The value of a metric without labels.
    pub(super) fn metric(&self, name: &str) -> i64 {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }

    pub(super) async fn open_connections_become(&self, count: i64) {
        eventually(|| self.metric("tidelock_connections") == count).await;
    }
}

#[track_caller]
pub(super) fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    support::eventually::within("a step of the test", future)
}

#[track_caller]
pub(super) fn eventually(mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    support::eventually::eventually(move || ready(condition()))
}

pub(super) async fn send(stream: &mut (impl AsyncWrite + Unpin), text: impl AsRef<[u8]>) {
    within(stream.write_all(text.as_ref())).await.unwrap();
}

/// All that still comes, until the other side closes or resets.
pub(super) async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let _ = within(stream.read_to_end(&mut bytes)).await;
    String::from_utf8(bytes).unwrap()
}

/// Reads until `end` has come.
pub(super) async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = within(stream.read_u8()).await;
        text.push(char::from(byte.unwrap_or_else(|error| panic!("{error} after {text:?}"))));
    }
    text
}

/// One request on a connection of its own.
pub(super) async fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = within(TcpStream::connect(addr)).await.unwrap();
    send(&mut stream, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
    rest(&mut stream).await
}

pub(super) fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://x{path}")).body(Empty::new()).unwrap()
}

pub(super) async fn http2<S>(stream: S) -> http2::SendRequest<Empty<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (client, connection) = within(shaken).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(super) async fn http1<S>(stream: S) -> http1::SendRequest<Empty<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = within(http1::handshake(TokioIo::new(stream))).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(super) async fn text(response: Response<Incoming>) -> String {
    let bytes = within(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}
