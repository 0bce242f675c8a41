//! What systemd, or another manager that speaks its protocol (sd_notify(3), sd_listen_fds(3)), is told and gives.
//! Without one nothing here does anything.

use std::future::{Future, pending};
use std::time::Duration;

use anyhow::{Context, bail};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::server;

/// The name (`FileDescriptorName=`) of the socket for the operator.
const ADMIN: &str = "admin";

/// Sockets that listen already.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    clients: Vec<std::net::TcpListener>,
    admin: Option<std::net::TcpListener>,
}

impl Sockets {
    /// Those that the manager hands over, once: the one called `admin` is the operator's, all others are for clients. To be
    /// called before there are threads, since it takes them out of the environment.
    ///
    /// # Errors
    /// When one is no TCP socket, or there are two for the operator.
    pub(super) fn handed_over() -> anyhow::Result<Sockets> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let (mut handed, mut sockets) = (ListenFd::from_env(), Sockets::default());
        for at in 0..handed.len() {
            let name = names.next().unwrap_or_default();
            let socket = handed.take_tcp_listener(at);
            let socket = socket.with_context(|| {
                format!("socket {at} ({name:?}) that was handed over is no TCP socket that listens; correct ListenStream=")
            })?;
            let Some(socket) = socket else { continue };
            match name {
                ADMIN if sockets.admin.is_some() => {
                    bail!("two sockets called {ADMIN:?} were handed over; name one of them otherwise")
                }
                ADMIN => sockets.admin = Some(socket),
                _ => sockets.clients.push(socket),
            }
        }
        Ok(sockets)
    }

    /// The clients' listeners and the operator's: what was handed over, else as `config` has it.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) async fn open(self, config: &Config) -> anyhow::Result<(Vec<TcpListener>, TcpListener)> {
        let mut listeners = Vec::new();
        for socket in self.clients {
            listeners.push(taken_over(socket)?);
        }
        if listeners.is_empty() {
            for address in &config.server.listen {
                listeners.push(server::bind(*address).await?);
            }
        }
        let admin = match self.admin {
            Some(socket) => taken_over(socket)?,
            None => server::bind(config.server.admin_listen).await?,
        };
        Ok((listeners, admin))
    }
}

fn taken_over(socket: std::net::TcpListener) -> anyhow::Result<TcpListener> {
    socket.set_nonblocking(true).context("taking over a socket")?;
    TcpListener::from_std(socket).context("taking over a socket")
}

/// Pulls are served.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// A stop has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("running transfers may finish")]);
}

/// Does `work`, and tells the manager meanwhile that this runtime still gets to its tasks: where it does not, the manager
/// starts the program anew (`WatchdogSec=`).
pub(super) async fn watched<T>(work: impl Future<Output = T>) -> T {
    let watchdog = async {
        let Some(patience) = sd_notify::watchdog_enabled() else { return pending::<()>().await };
        // As sd_watchdog_enabled(3) has it.
        let mut ticks = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
        loop {
            ticks.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    };
    tokio::select! {
        done = work => done,
        () = watchdog => unreachable!("it has no end"),
    }
}

/// A manager that does not listen is its own affair.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
