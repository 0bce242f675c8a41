//! Listening, and accepting whatever happens.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::ServerMetrics;
use crate::backoff::Backoff;

/// Connections that the kernel completes while we are busy; it caps this at `net.core.somaxconn` (4096 by
/// default). A CI fleet that wakes at the full hour fits in.
const BACKLOG: i32 = 4096;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has it.
    #[error(
        "cannot listen on {0}: the address is in use. `ss -ltnp 'sport = :{port}'` names the program that \
         has it: stop it, or listen elsewhere",
        port = .0.port()
    )]
    InUse(SocketAddr),
    /// Ports below 1024 are for root.
    #[error(
        "cannot listen on {0}: not permitted. Choose a port above 1023, or grant CAP_NET_BIND_SERVICE \
         (`AmbientCapabilities=` under systemd)"
    )]
    NotPermitted(SocketAddr),
    /// No interface has the address.
    #[error(
        "cannot listen on {0}: this machine has no such address. `ip addr` shows those it has; {wildcard} \
         stands for all of them",
        wildcard = if .0.is_ipv6() { "[::]" } else { "0.0.0.0" }
    )]
    NotHere(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, #[source] io::Error),
}

/// Accepts, whatever happens.
pub(super) struct Acceptor {
    listener: TcpListener,
    metrics: ServerMetrics,
    /// Set while accepting fails.
    trouble: Option<Trouble>,
    /// When that was last told.
    told: Option<Instant>,
}

struct Trouble {
    backoff: Backoff,
    is_told: bool,
}

/// Where every other connection fails, for want of open files, it is not told each time.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Listens on `addr`; port 0 takes any free one. Called before anything runs, so that a port in use is an error
/// before the house stands. `[::]` takes IPv4 as well.
///
/// # Errors
/// [`BindError`] says what is in the way and what to do about it.
#[allow(clippy::unused_async)] // async, so that it cannot be called outside a runtime, which tokio needs here
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, BindError> {
    listen(addr).and_then(TcpListener::from_std).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => BindError::InUse(addr),
        ErrorKind::PermissionDenied => BindError::NotPermitted(addr),
        ErrorKind::AddrNotAvailable => BindError::NotHere(addr),
        _ => BindError::Other(addr, error),
    })
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener, metrics: ServerMetrics) -> Acceptor {
        Acceptor { listener, metrics, trouble: None, told: None }
    }

    /// The next connection. Failures are counted and slept over, never passed on. Cancel-safe.
    pub(super) async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(connection) => {
                    if self.trouble.take().is_some_and(|trouble| trouble.is_told) {
                        tracing::info!("accepting connections again");
                    }
                    return connection;
                }
                Err(error) => self.endure(&error).await,
            }
        }
    }

    async fn endure(&mut self, error: &io::Error) {
        self.metrics.accept_failed();
        if is_the_clients(error) {
            return;
        }
        let trouble = self.trouble.get_or_insert_with(|| Trouble {
            backoff: Backoff::new(Duration::from_millis(10), Duration::from_secs(1)),
            is_told: false,
        });
        if !trouble.is_told && self.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            (trouble.is_told, self.told) = (true, Some(Instant::now()));
            tracing::error!(
                %error,
                "cannot accept connections, trying again. Out of file descriptors? See LimitNOFILE or ulimit -n"
            );
        }
        tokio::time::sleep(trouble.backoff.wait()).await;
    }
}

fn listen(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Without it a restart would wait a minute for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether it concerns the one connection that was not accepted. Linux hands out errors of the new socket here.
fn is_the_clients(error: &io::Error) -> bool {
    use ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted,
        NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkUnreachable
            | TimedOut
    )
}
