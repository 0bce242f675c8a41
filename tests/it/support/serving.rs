//! What the fakes listen with: one port that speaks whatever the client begins with.
//!
//! ```text
//!  first byte 'C'   CONNECT: answer 200, then look at the first byte again
//!  first byte 0x16  a TLS hello: shake hands, then HTTP
//!  anything else    HTTP/1, in origin form or in the absolute form of a forward proxy
//! ```
//!
//! So a test can give the fake as a forward proxy and use real host names. A request goes to the
//! site that was set for its host, else for its path, else to the main one.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::site::{Body, Call, Site};
use super::socket::{Control, Socket};

/// A tunnel that a client asked for with CONNECT.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// `host:port` as asked.
    pub authority: String,
    /// The head of the request as it came, Proxy-Authorization and all.
    pub head: String,
}

/// A port with sites behind it. Dropping it closes the port and every connection.
pub(super) struct Front {
    addr: SocketAddr,
    house: Arc<House>,
    door: Mutex<Door>,
}

enum Door {
    /// Accepting.
    Open(JoinHandle<()>),
    /// Refusing: the port is kept by a socket that does not listen.
    Shut(TcpSocket),
    /// Between the two.
    Moving,
}

/// What the connections share.
struct House {
    routes: Mutex<Routes>,
    tls: Option<TlsAcceptor>,
    connections: Mutex<JoinSet<()>>,
    accepted: AtomicUsize,
    tunnels: Mutex<Vec<Tunnel>>,
}

struct Routes {
    main: Arc<Site>,
    hosts: BTreeMap<String, Arc<Site>>,
    paths: BTreeMap<String, Arc<Site>>,
}

/// How a request came in.
#[derive(Clone)]
struct Via {
    house: Arc<House>,
    control: Arc<Control>,
    connection: usize,
    tls: bool,
    tunnel: Option<String>,
}

impl Front {
    /// Listens on a free port of 127.0.0.1.
    pub(super) async fn start(main: Arc<Site>, tls: Option<TlsAcceptor>) -> Self {
        let listener =
            socket_at("127.0.0.1:0".parse().expect("an address")).listen(1024).expect("a free port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let house = Arc::new(House {
            routes: Mutex::new(Routes { main, hosts: BTreeMap::new(), paths: BTreeMap::new() }),
            tls,
            connections: Mutex::new(JoinSet::new()),
            accepted: AtomicUsize::new(0),
            tunnels: Mutex::new(Vec::new()),
        });
        let door = Door::Open(tokio::spawn(accept(listener, Arc::clone(&house))));
        Self { addr, house, door: Mutex::new(door) }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn url(&self) -> String {
        let scheme = if self.house.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Requests for this host go to that site.
    pub(super) fn route_host(&self, host: &str, site: Arc<Site>) {
        self.house.routes().hosts.insert(host.to_owned(), site);
    }

    /// Requests whose path begins so go to that site, unless their host is routed.
    pub(super) fn route_path(&self, prefix: &str, site: Arc<Site>) {
        self.house.routes().paths.insert(prefix.to_owned(), site);
    }

    /// Refuses connections from now on and kills those there are.
    pub(super) async fn stop(&self) {
        // Taken in a statement of its own: a match would hold the lock to its end.
        let before = std::mem::replace(&mut *self.door(), Door::Moving);
        let Door::Open(accepting) = before else {
            *self.door() = before;
            return;
        };
        // Keep the port, so that nobody else in this machine is given it before the restart: not in the moment between the
        // two either.
        let socket = socket_at(self.addr);
        accepting.abort();
        // The listener is gone only when its task is.
        let _ = accepting.await;
        *self.door() = Door::Shut(socket);
        self.kill_connections().await;
    }

    /// Accepts again, on the same port.
    pub(super) fn resume(&self) {
        let mut door = self.door();
        *door = match std::mem::replace(&mut *door, Door::Moving) {
            Door::Shut(socket) => {
                let listener = socket.listen(1024).expect("a bound socket can listen");
                Door::Open(tokio::spawn(accept(listener, Arc::clone(&self.house))))
            }
            other => other,
        };
    }

    /// Kills every connection; new ones are still accepted.
    pub(super) async fn kill_connections(&self) {
        let mut connections = std::mem::take(&mut *self.house.connections());
        connections.shutdown().await;
    }

    /// How many connections were ever accepted.
    pub(super) fn accepted(&self) -> usize {
        self.house.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub(super) fn open_connections(&self) -> usize {
        let mut connections = self.house.connections();
        while connections.try_join_next().is_some() {}
        connections.len()
    }

    pub(super) fn tunnels(&self) -> Vec<Tunnel> {
        self.house.tunnels.lock().expect("unpoisoned").clone()
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().expect("unpoisoned")
    }
}

/// Bound, beside one of ours that listens there if need be.
fn socket_at(addr: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("reuse of the address");
    socket.set_reuseport(true).expect("reuse of the port");
    socket.bind(addr).expect("a port that is free, or ours");
    socket
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Door::Open(accepting) = &*self.door() {
            accepting.abort();
        }
        self.house.connections().abort_all();
    }
}

impl House {
    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().expect("unpoisoned")
    }

    fn connections(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.connections.lock().expect("unpoisoned")
    }

    fn site(&self, host: &str, path: &str) -> Arc<Site> {
        let routes = self.routes();
        let by_path =
            || routes.paths.iter().find(|(prefix, _)| path.starts_with(*prefix)).map(|(_, site)| site);
        let site = routes.hosts.get(host).or_else(by_path).unwrap_or(&routes.main);
        Arc::clone(site)
    }
}

async fn accept(listener: TcpListener, house: Arc<House>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: leave others the time to close some.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let connection = house.accepted.fetch_add(1, Ordering::SeqCst) + 1;
        let via = Via {
            house: Arc::clone(&house),
            control: Arc::new(Control::default()),
            connection,
            tls: false,
            tunnel: None,
        };
        let mut connections = house.connections();
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            // A broken connection is the client's to notice, not the fake's.
            let _ = converse(stream, via).await;
        });
    }
}

/// Serves one connection to its end.
async fn converse(stream: TcpStream, mut via: Via) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut socket = Socket::new(stream, Arc::clone(&via.control));
    loop {
        match socket.first_byte().await {
            None => return Ok(()),
            Some(0x16) => return converse_tls(socket, via).await,
            Some(b'C') if via.tunnel.is_none() => via.tunnel = Some(open_tunnel(&mut socket, &via).await?),
            Some(_) => return serve_http1(socket, via).await,
        }
    }
}

async fn converse_tls(socket: Socket, mut via: Via) -> io::Result<()> {
    let Some(acceptor) = via.house.tls.clone() else { return Ok(()) };
    let stream = acceptor.accept(socket).await?;
    via.tls = true;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return serve_http1(stream, via).await;
    }
    let service = service_fn(move |request| respond(request, via.clone()));
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

async fn serve_http1<S>(stream: S, via: Via) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| respond(request, via.clone()));
    let builder = hyper::server::conn::http1::Builder::new();
    builder.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

/// Reads the CONNECT request, notes it and agrees to it; returns the authority.
async fn open_tunnel(socket: &mut Socket, via: &Via) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Byte by byte: what follows the head belongs to the tunnel.
        head.push(socket.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let authority = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let tunnel = Tunnel { authority: authority.clone(), head };
    via.house.tunnels.lock().expect("unpoisoned").push(tunnel);
    socket.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    Ok(authority)
}

async fn respond(request: Request<Incoming>, via: Via) -> Result<Response<Body>, hyper::Error> {
    let (head, body) = request.into_parts();
    let host_header = head.headers.get("host").and_then(|value| value.to_str().ok());
    let host = head.uri.authority().map(|authority| authority.as_str()).or(host_header);
    let host = host.or(via.tunnel.as_deref()).unwrap_or_default();
    let host = host.strip_suffix(":443").or(host.strip_suffix(":80")).unwrap_or(host).to_owned();
    let call = Call {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        host,
        headers: head.headers,
        body: body.collect().await?.to_bytes(),
        tls: via.tls,
        connection: via.connection,
    };
    let site = via.house.site(&call.host, &call.path);
    Ok(site.serve(call, via.control).await)
}
