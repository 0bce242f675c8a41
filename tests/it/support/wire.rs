//! The client's connections: one for each request, straight or through a forward proxy, plain or TLS.
//!
//! Time limits are generous and everywhere: a bug should fail a test, not hang it.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use url::Url;

use super::eventually::patience;

/// What went wrong between the client and the server, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WireError(pub String);

/// How to reach a server.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) base: Url,
    pub(super) proxy: Option<Url>,
    pub(super) tls: Option<TlsConnector>,
    /// For each step of a request.
    pub(super) patience: Duration,
}

/// A connection; dropping it closes it.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    pub(super) patience: Duration,
}

/// Either kind of stream.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Route {
    /// Connects, through the proxy if there is one.
    pub(super) async fn connect(&self) -> Result<Connection, WireError> {
        let patience = self.patience;
        let stream = limited(patience, "connecting", self.open()).await?;
        let shaken = limited(patience, "the handshake", handshake(TokioIo::new(stream)));
        let (sender, connection) = shaken.await?;
        let driver = tokio::spawn(async move {
            // How it ended shows in the answer.
            let _ = connection.await;
        });
        Ok(Connection { sender, driver, patience })
    }

    /// Whether requests are sent in absolute form: plain HTTP through a proxy.
    pub(super) fn is_absolute(&self) -> bool {
        self.proxy.is_some() && self.base.scheme() == "http"
    }

    /// `host` or `host:port`, as the Host header has it.
    pub(super) fn authority(&self) -> String {
        self.base.authority().to_owned()
    }

    async fn open(&self) -> Result<Box<dyn Stream>, WireError> {
        let next = self.proxy.as_ref().unwrap_or(&self.base);
        let mut stream = TcpStream::connect(address(next)).await.map_err(wire)?;
        if self.base.scheme() == "http" {
            return Ok(Box::new(stream));
        }
        if self.proxy.is_some() {
            tunnel(&mut stream, &address(&self.base)).await?;
        }
        let tls = self.tls.as_ref().ok_or_else(|| WireError("https needs Client::with_ca".to_owned()))?;
        let host = self.base.host_str().unwrap_or_default().to_owned();
        let name = host.try_into().map_err(wire)?;
        Ok(Box::new(tls.connect(name, stream).await.map_err(wire)?))
    }
}

impl Connection {
    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, WireError> {
        limited(self.patience, "waiting for the answer", self.sender.send_request(request)).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Awaits for at most so long, stretched by the factor for slow machines.
pub(super) async fn limited<T, E: std::fmt::Debug>(
    limit: Duration,
    what: &str,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, WireError> {
    match tokio::time::timeout(patience(limit), future).await {
        Ok(result) => result.map_err(|error| WireError(format!("{what}: {error:?}"))),
        Err(_) => Err(WireError(format!("{what}: took longer than {limit:?}"))),
    }
}

async fn tunnel(stream: &mut TcpStream, authority: &str) -> Result<(), WireError> {
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(wire)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.map_err(wire)?);
    }
    if head.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(WireError(format!("the proxy refused: {}", String::from_utf8_lossy(&head))))
}

fn address(url: &Url) -> String {
    let port = url.port_or_known_default().unwrap_or(80);
    format!("{}:{port}", url.host_str().unwrap_or_default())
}

fn wire(error: impl std::fmt::Display) -> WireError {
    WireError(error.to_string())
}
