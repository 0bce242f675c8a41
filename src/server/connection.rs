//! One connection from its first byte to its end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::outlet::{Outbox, Outlet};
use super::patience::{Busy, Doing, Patience, WatchedIo};
use super::{Body, BoxError, Limits, Peer, ServerMetrics, Tls};
use crate::lifecycle::Lifecycle;

/// The largest head of a request. Lazy pullers ask for 1,024 ranges at once, which is 20 KB.
const HEAD_LIMIT: usize = 64 << 10;
/// The most of an answer that waits in memory for one connection, or for one stream of HTTP/2 (I7). hyper's
/// 400 KiB make 900 KiB of memory a stalled client (measured); this a tenth.
const WRITE_LIMIT: usize = 64 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// How often a silent HTTP/2 client is asked whether it is still there, and how long it has to answer.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// When the kernel asks the same of any client: after a minute, every 15 s, four times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);
/// How long a client that is refused has to take note.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);
/// The first byte of every TLS connection: a handshake record. No HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

const NOT_TLS: &str = "This port speaks plain HTTP, and the client began with TLS. Use http://, or configure \
                       server.tls in the mirror.\n";
const NOT_PLAIN: &str = "This port speaks HTTPS, and the client began without TLS. Use https://.\n";

/// What all connections of one listener share.
pub(super) struct Door<H> {
    http: auto::Builder<Tasks>,
    tls: Option<Tls>,
    limits: Arc<Limits>,
    life: Lifecycle,
    metrics: ServerMetrics,
    handler: H,
}

/// Where hyper runs the streams of HTTP/2.
#[derive(Debug, Clone)]
struct Tasks(Lifecycle);

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    Tls,
    Plain,
    Gone,
}

/// Why a connection did not end in peace.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("out of patience: {}", .0.as_str())]
    Patience(Doing),
    #[error("TLS handshake: {0}")]
    Handshake(#[source] io::Error),
    #[error("{0}")]
    Http(#[source] BoxError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl<H, F> Door<H>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    pub(super) fn new(
        tls: Option<Tls>,
        limits: Limits,
        life: Lifecycle,
        metrics: ServerMetrics,
        handler: H,
    ) -> Door<H> {
        Door { http: http_builder(life.clone()), tls, limits: Arc::new(limits), life, metrics, handler }
    }

    /// One connection from its first byte to its end; nothing that happens here reaches beyond it.
    pub(super) async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        addr: SocketAddr,
        _slot: OwnedSemaphorePermit,
    ) {
        let _open = self.metrics.opened();
        let peer = Peer { addr: canonical(addr), tls: self.tls.is_some() };
        match AssertUnwindSafe(self.converse(stream, peer)).catch_unwind().await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(peer = %peer.addr, %error, "connection ended"),
            Err(_) => tracing::error!(peer = %peer.addr, "an answer panicked: its connection is cut"),
        }
    }

    async fn converse(&self, stream: TcpStream, peer: Peer) -> Result<(), Ended> {
        tune(&stream)?;
        let looking = timeout(self.limits.header_read_timeout, look(&stream));
        let Some(opening) = self.unless_stopping(looking).await else { return Ok(()) };
        match (opening.map_err(|_| Ended::Patience(Doing::Opening))??, &self.tls) {
            (Opening::Gone, _) => Ok(()),
            (Opening::Plain, None) => {
                let outbox = Outbox::default();
                let outlet = Outlet::new(stream, outbox.clone(), self.metrics.clone());
                self.speak_http(outlet, peer, Some(outbox)).await
            }
            (Opening::Tls, None) => Ok(refuse(stream, NOT_TLS).await?),
            (Opening::Plain, Some(_)) => {
                self.metrics.handshake_failed();
                Ok(refuse(stream, NOT_PLAIN).await?)
            }
            (Opening::Tls, Some(tls)) => match self.shake_hands(tls, stream).await? {
                Some(stream) => self.speak_http(stream, peer, None).await,
                None => Ok(()),
            },
        }
    }

    /// None when the house stops meanwhile.
    async fn shake_hands(&self, tls: &Tls, stream: TcpStream) -> Result<Option<TlsStream<TcpStream>>, Ended> {
        let shaking = timeout(self.limits.handshake_timeout, tls.accept(stream));
        let Some(shaken) = self.unless_stopping(shaking).await else { return Ok(None) };
        shaken.map_err(io::Error::from).flatten().map(Some).map_err(|error| {
            self.metrics.handshake_failed();
            Ended::Handshake(error)
        })
    }

    async fn unless_stopping<T: Future>(&self, step: T) -> Option<T::Output> {
        tokio::select! {
            output = step => Some(output),
            () = self.life.stopping() => None,
        }
    }

    /// What is in files goes out by `outbox`, where `io` takes it from there.
    async fn speak_http<I>(&self, io: I, peer: Peer, outbox: Option<Outbox>) -> Result<(), Ended>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let patience = Patience::new(Arc::clone(&self.limits));
        let io = TokioIo::new(WatchedIo::new(io, patience.clone()));
        let first = Arc::new(Semaphore::new(1));
        let service = service_fn(|request| {
            let multiplexed = request.version() == Version::HTTP_2;
            let busy = patience.begin(multiplexed);
            let (limits, first) = (Arc::clone(&self.limits), Arc::clone(&first));
            let turn = multiplexed.then_some(async move { limits.slots.take_for_stream(first).await });
            // The streams of HTTP/2 go out in turns, and in frames.
            let outbox = outbox.clone().filter(|_| !multiplexed);
            let answer = answer(self.handler.clone(), request, peer, busy, turn);
            answer.map(|(answer, busy)| Ok::<_, Infallible>(answer.map(|body| busy.watch(body, outbox))))
        });
        let mut connection = pin!(self.http.serve_connection(io, service));
        let mut stopping = pin!(self.life.stopping());
        let mut patience_end = pin!(patience.end());
        let mut draining = false;
        loop {
            tokio::select! {
                biased; // the connection first: what it does now may be what patience is waiting for
                outcome = &mut connection => return outcome.map_err(Ended::Http),
                () = &mut stopping, if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                doing = &mut patience_end => return Err(Ended::Patience(doing)),
            }
        }
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("stream", future);
    }
}

fn http_builder(life: Lifecycle) -> auto::Builder<Tasks> {
    let mut builder = auto::Builder::new(Tasks(life));
    // One limit for both directions is all there is; they happen to be the same. The byte more lets a head of
    // exactly the limit pass. Time limits are in `patience`.
    builder.http1().max_buf_size(HEAD_LIMIT.max(WRITE_LIMIT) + 1).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_LIMIT as u32)
        .max_send_buf_size(WRITE_LIMIT)
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    builder
}

async fn answer<H, F>(
    handler: H,
    mut request: Request<Incoming>,
    peer: Peer,
    mut busy: Busy,
    turn: Option<impl Future<Output = OwnedSemaphorePermit>>,
) -> (Response<Body>, Busy)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    if let Some(turn) = turn {
        busy.holds(turn.await);
    }
    request.extensions_mut().insert(peer);
    let (version, is_head) = (request.version(), request.method() == Method::HEAD);
    // Boxed, since hyper keeps room for what this function holds as long as the connection lives: 16 KiB less for each
    // that rests, and for each stream that waits for its turn (measured).
    let answer = AssertUnwindSafe(async move { Box::pin(handler(request)).await }).catch_unwind().await;
    let answer = answer.unwrap_or_else(|_| broken(version));
    let answer = if is_head { without_body(answer) } else { answer };
    (answer, busy)
}

/// What HEAD gets of an answer. hyper sees to it on HTTP/1 only.
fn without_body(answer: Response<Body>) -> Response<Body> {
    let (mut head, body) = answer.into_parts();
    if let Some(len @ 1..) = body.missing() {
        head.headers.entry(header::CONTENT_LENGTH).or_insert(len.into());
    }
    Response::from_parts(head, Body::empty())
}

/// What a client gets when its handler panicked; the panic itself is on standard error.
fn broken(version: Version) -> Response<Body> {
    tracing::error!("a request's handler panicked");
    let mut response = Response::new(Body::full("The mirror failed on this request; its log says more.\n"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    if version != Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    // A small answer must not wait for the acknowledgement of the one before.
    stream.set_nodelay(true)?;
    let (time, interval, retries) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Looks at the first byte without taking it.
async fn look(stream: &TcpStream) -> io::Result<Opening> {
    let mut first = [0];
    Ok(match stream.peek(&mut first).await? {
        0 => Opening::Gone,
        _ if first[0] == TLS_HANDSHAKE => Opening::Tls,
        _ => Opening::Plain,
    })
}

/// Says in plain HTTP why this does not work. Clients that try TLS first know by the `HTTP/` that they read in
/// place of a TLS record that they may fall back to plain HTTP.
async fn refuse(mut stream: TcpStream, why: &str) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{why}",
        why.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing while something is unread would make the kernel reset the connection and the answer be lost.
    let mut waste = [0; 4096];
    let drain = async { while matches!(stream.read(&mut waste).await, Ok(1..)) {} };
    let _ = timeout(FAREWELL_LIMIT, drain).await;
    Ok(())
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
