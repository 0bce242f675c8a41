//! Sockets, TLS, connections, draining; knows no registry word.
//!
//! ```text
//! bind ──▶ serve: accept ──▶ a free slot ──▶ connection task ──▶ handler, once per request
//!                   │                            first byte: TLS or not? ── refused in clear words
//!            stop: accept ends                   handshake ── HTTP/1.1 or HTTP/2
//!                                                patience: every wait has an end (I8)
//! ```
//!
//! Stopping closes the listening socket at once, then idle connections; answers that are under way finish, and
//! [`serve`] returns when the last connection has ended. How long that may take is the caller's affair.
//!
//! Leaves out what a request means, access logs and errors with a body: that is the handler's. The handler
//! finds a [`Peer`] among the request's extensions.

mod body;
mod connection;
mod listener;
mod metrics;
mod outlet;
mod patience;
mod tls;
mod validity;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;

pub use body::{Body, BoxError};
pub use listener::{BindError, bind};
pub use metrics::ServerMetrics;
pub use tls::{Reload, Tls, TlsError};

use crate::lifecycle::Lifecycle;
use connection::Door;
use listener::Acceptor;

/// Who sent a request: an extension of every request that the handler gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where the connection comes from; an IPv4 address is written as such, whatever the socket.
    pub addr: SocketAddr,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// What a connection may take. Clones share the slots, so that several listeners have one limit together.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections served at once, and requests of HTTP/2.
    pub slots: Slots,
    /// For the whole TLS handshake.
    pub handshake_timeout: Duration,
    /// From the first byte of a request, or the start of a connection, to the end of the request's head.
    pub header_read_timeout: Duration,
    /// Between two requests of one connection.
    pub idle_timeout: Duration,
    /// Within a request, without a byte either way.
    pub stall_timeout: Duration,
}

/// Leave for so many connections at once. Clones draw on the same slots.
///
/// A connection of HTTP/2 may ask for many things at once, and memory goes by what is being answered (I7): beyond the
/// first, its requests draw on as many slots again, which are for nothing else. So none waits for a slot while it
/// holds one that another waits for.
#[derive(Debug, Clone)]
pub struct Slots {
    free: Arc<Semaphore>,
    further: Arc<Semaphore>,
    all: watch::Sender<usize>,
    warned: Arc<Mutex<Option<Instant>>>,
}

/// How often the log says that the slots are taken: a mirror at its limit gets there with every connection.
const WARN_EVERY: Duration = Duration::from_secs(60);

impl Limits {
    /// The usual patience, with `max_connections` slots.
    pub fn new(max_connections: usize) -> Limits {
        Limits {
            slots: Slots::new(max_connections),
            handshake_timeout: Duration::from_secs(10),
            header_read_timeout: Duration::from_secs(10),
            // Longer than the 90 s after which Go's clients drop an idle connection themselves, so that they
            // do not send a request into a closing one.
            idle_timeout: Duration::from_secs(120),
            // As patient as the kubelet, which gives up on a pull after five minutes without progress.
            stall_timeout: Duration::from_secs(300),
        }
    }
}

impl Slots {
    /// `all` slots, every one free.
    pub fn new(all: usize) -> Slots {
        let all = all.min(Semaphore::MAX_PERMITS);
        let slots = || Arc::new(Semaphore::new(all));
        Slots { free: slots(), further: slots(), all: watch::Sender::new(all), warned: Arc::default() }
    }

    /// There are `all` of them from now on, provided that [`Slots::keep_count`] runs. Those that are taken stay so.
    pub fn resize(&self, all: usize) {
        self.all.send_replace(all.min(Semaphore::MAX_PERMITS));
    }

    /// Sees to it until `life` stops that there are as many slots as there should be.
    pub fn keep_count(&self, life: &Lifecycle) {
        for slots in [&self.free, &self.further] {
            let count = *self.all.borrow();
            let (counting, stopping) =
                (count_out(Arc::clone(slots), count, self.all.subscribe()), life.stopping());
            life.spawn("count out slots", async {
                tokio::select! {
                    () = counting => {}
                    () = stopping => {}
                }
            });
        }
    }

    /// Takes a slot until dropped, waiting for one if need be. First come, first served.
    async fn take(&self) -> OwnedSemaphorePermit {
        if self.free.available_permits() == 0 {
            self.warn("new connections");
        }
        acquired(&self.free).await
    }

    /// Takes what a request of HTTP/2 needs until dropped: the place of its connection's `first`, or a slot.
    async fn take_for_stream(&self, first: Arc<Semaphore>) -> OwnedSemaphorePermit {
        if first.available_permits() + self.further.available_permits() == 0 {
            self.warn("requests over HTTP/2 beyond a connection's first");
        }
        tokio::select! {
            biased;
            place = acquired(&first) => place,
            slot = acquired(&self.further) => slot,
        }
    }

    fn warn(&self, who: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(
                limit = *self.all.borrow(),
                "every connection slot is taken: {who} wait (server.max_connections)"
            );
        }
    }
}

/// Makes more slots where there are too few; where there are too many, takes away the next ones that come free, before
/// any that came later gets one.
async fn count_out(slots: Arc<Semaphore>, mut count: usize, mut wanted: watch::Receiver<usize>) {
    loop {
        let all = *wanted.borrow_and_update();
        if count < all {
            slots.add_permits(all - count);
            count = all;
        }
        let too_many = u32::try_from(count - all).unwrap_or(u32::MAX);
        tokio::select! {
            taken = slots.acquire_many(too_many), if too_many > 0 => {
                taken.expect("the slots are never closed").forget();
                count -= too_many as usize;
            }
            // An error means that the server is gone.
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

async fn acquired(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(slots).acquire_owned().await.expect("the slots are never closed")
}

/// Accepts connections and has `handler` answer their requests, until `life` is told to stop and every
/// connection has ended. A handler that panics ends its own request and nothing else.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<Tls>,
    limits: Limits,
    life: Lifecycle,
    metrics: ServerMetrics,
    handler: H,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut acceptor = Acceptor::new(listener, metrics.clone());
    let slots = limits.slots.clone();
    let door = Arc::new(Door::new(tls, limits, life.clone(), metrics, handler));
    let connections = TaskTracker::new();
    let mut stopping = pin!(life.stopping());
    loop {
        // The slot comes after the connection: a listener that held one while nobody knocks would keep it
        // from the other listeners. One accepted connection waits here, the rest in the kernel's queue.
        let next = async { (acceptor.accept().await, slots.take().await) };
        let ((stream, addr), slot) = tokio::select! {
            biased;
            () = &mut stopping => break,
            next = next => next,
        };
        let connection = Arc::clone(&door).serve(stream, addr, slot);
        life.spawn("connection", connections.track_future(connection));
    }
    drop(acceptor); // from here on the port refuses
    connections.close();
    connections.wait().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many slots can be taken now.
    async fn free(slots: &Slots) -> usize {
        tokio::time::sleep(Duration::from_secs(1)).await;
        slots.free.available_permits()
    }

    #[tokio::test(start_paused = true)]
    async fn more_slots_and_fewer() {
        let (slots, life) = (Slots::new(2), Lifecycle::default());
        slots.keep_count(&life);
        slots.resize(4);
        assert_eq!(free(&slots).await, 4);
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push(slots.take().await);
        }
        slots.resize(1);
        assert_eq!(free(&slots).await, 0);
        // Whoever waits gets none of those that are to go.
        let own = slots.clone();
        let waiting = Lifecycle::default().spawn("waiting", async move { own.take().await });
        taken.truncate(1);
        assert_eq!(free(&slots).await, 0);
        assert!(!waiting.is_finished());
        taken.clear();
        drop(waiting.await.expect("a slot"));
        assert_eq!(free(&slots).await, 1);
        // Fewer and more again before any has come free.
        let held = slots.take().await;
        for count in [0, 5, 3] {
            slots.resize(count);
        }
        assert_eq!(free(&slots).await, 2);
        drop(held);
        assert_eq!(free(&slots).await, 3);
        assert_eq!(slots.further.available_permits(), 3);
        life.stop();
        life.wait().await;
    }
}
