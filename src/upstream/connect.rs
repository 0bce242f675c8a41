//! From a URL to a connection: name, address, proxy, TLS.
//!
//! ```text
//! Connector (one time limit over everything, knows whether a line was used before)
//!   └ HttpsConnector (TLS, ALPN: HTTP/2 or HTTP/1.1)
//!       └ Dialer (straight, or by CONNECT through a proxy)
//!           └ HttpConnector (TCP) ─ Resolver (names; public addresses only, where told so)
//! ```

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower_service::Service;

use super::address::is_private;
use super::proxy::{Detour, Proxies};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// A public registry sent us to a name that has none but private addresses (I6).
#[derive(Debug, thiserror::Error)]
#[error("it has only private addresses, where a public registry may not send this mirror")]
pub(super) struct PrivateAddress;

/// Makes connections within a time limit.
#[derive(Clone)]
pub(super) struct Connector {
    inner: HttpsConnector<Dialer>,
    patience: Duration,
}

/// A connection that knows whether it has answered before.
pub(super) struct Line {
    stream: Stream,
    used: Used,
}

/// Whether a connection has answered before: only then is its silent end a matter of bad timing (the other
/// side closed it as idle) rather than of a broken upstream.
#[derive(Debug, Clone, Default)]
pub(super) struct Used(Arc<AtomicBool>);

/// Makes the TCP part.
#[derive(Clone)]
struct Dialer {
    straight: HttpConnector<Resolver>,
    // A proxy is the operator's own, so it may have any address.
    to_proxy: HttpConnector<Resolver>,
    proxies: Arc<Proxies>,
}

/// Resolves names by the system's resolver.
#[derive(Clone)]
struct Resolver {
    system: GaiResolver,
    public_only: bool,
}

impl Connector {
    pub(super) fn new(
        tls: ClientConfig,
        proxies: Arc<Proxies>,
        patience: Duration,
        (public_only, http1_only): (bool, bool),
    ) -> Self {
        let dialer = Dialer { straight: tcp(public_only, patience), to_proxy: tcp(false, patience), proxies };
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let inner = match http1_only {
            true => builder.enable_http1().wrap_connector(dialer),
            false => builder.enable_all_versions().wrap_connector(dialer),
        };
        Connector { inner, patience }
    }
}

impl Used {
    pub(super) fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Service<Uri> for Connector {
    type Response = Line;
    type Error = BoxError;
    type Future = Connecting<Line>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (connecting, patience) = (self.inner.call(to), self.patience);
        Box::pin(async move {
            match tokio::time::timeout(patience, connecting).await {
                Ok(stream) => Ok(Line { stream: stream?, used: Used::default() }),
                Err(_) => Err(io::Error::other(format!("no connection within {patience:?}")).into()),
            }
        })
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Connecting<TokioIo<TcpStream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(())) // so are the connectors beneath, always
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match self.proxies.detour(&to) {
            Ok(None) => {
                let connecting = self.straight.call(to);
                Box::pin(async { Ok(connecting.await?) })
            }
            Ok(Some(Detour { proxy, login, to })) => {
                let mut tunnel = Tunnel::new(proxy, self.to_proxy.clone());
                if let Some(login) = login {
                    tunnel = tunnel.with_auth(login);
                }
                let connecting = tunnel.call(to);
                Box::pin(async { Ok(connecting.await?) })
            }
            Err(error) => Box::pin(async { Err(error.into()) }),
        }
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.system.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (resolving, public_only) = (self.system.call(name), self.public_only);
        Box::pin(async move {
            let found = resolving.await?;
            let allowed = |address: &SocketAddr| !(public_only && is_private(address.ip()));
            let addresses: Vec<SocketAddr> = found.filter(allowed).collect();
            if public_only && addresses.is_empty() {
                Err(PrivateAddress.into())
            } else {
                Ok(addresses.into_iter())
            }
        })
    }
}

impl Connection for Line {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.used.clone())
    }
}

impl Read for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// TCP without Nagle's delay. The limit is shared out over a name's addresses, so that a dead first one
/// leaves time for the second.
fn tcp(public_only: bool, patience: Duration) -> HttpConnector<Resolver> {
    let mut tcp = HttpConnector::new_with_resolver(Resolver { system: GaiResolver::new(), public_only });
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    tcp.set_connect_timeout(Some(patience));
    tcp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_with_only_private_addresses() {
        let resolve = async |public_only: bool| {
            let mut resolver = Resolver { system: GaiResolver::new(), public_only };
            resolver.call("localhost".parse().unwrap()).await
        };
        assert!(resolve(false).await.unwrap().all(|address| is_private(address.ip())));
        assert!(resolve(true).await.unwrap_err().is::<PrivateAddress>());
    }
}
