//! Clients that misbehave, against the real program as a process: its memory stays bounded, nothing leaks, and
//! whoever behaves is served all the while.

mod bombs;
mod crowds;
mod half_closed;
mod multiplexed;
mod ranges;
mod readers;
mod slow_heads;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};

use crate::support::client::Client;
use crate::support::eventually::{patience, within};
use crate::support::images::{Blob, Image};
use crate::support::program::{Running, configured, start};
use crate::support::registry::FakeRegistry;

/// A mirror, its upstream, and what a client that behaves pulls meanwhile.
struct Scene {
    fake: FakeRegistry,
    running: Running,
    /// How those who behave connect.
    client: Client,
    /// The seed of the next image for [`Scene::others_are_served`].
    pulled: AtomicU64,
    _folder: TempDir,
}

impl Scene {
    /// A running mirror with these lines in its configuration.
    async fn with(more: &str) -> Scene {
        Scene::new(more, Running::client).await
    }

    /// The same, where it listens with TLS and a certificate by this authority.
    async fn with_ca(more: &str, ca: &str) -> Scene {
        let client = |running: &Running| Client::new(&format!("https://{}", running.address)).with_ca(ca);
        Scene::new(more, client).await
    }

    async fn new(more: &str, client: impl FnOnce(&Running) -> Client) -> Scene {
        let (fake, folder) = (FakeRegistry::start().await, tempfile::tempdir().unwrap());
        let config = configured(folder.path(), &fake.url(), more);
        let running = start(&["serve", "--config", &config]).await;
        let client = client(&running);
        let scene = Scene { fake, running, client, pulled: AtomicU64::new(900), _folder: folder };
        // What is made at the first use is made.
        scene.others_are_served().await;
        scene
    }

    /// A client that behaves pulls an image that is not cached, and all of it again.
    async fn others_are_served(&self) {
        let seed = self.pulled.fetch_add(1, Ordering::SeqCst);
        let (image, tag) = (Image::layers(seed, &[300_000]), format!("v{seed}"));
        self.fake.push("library/other", &tag, &image);
        for _ in 0..2 {
            assert!(self.client.pull("library/other", &tag).await.unwrap().is(&image));
        }
    }

    /// A blob at the upstream, and the path under which the mirror has it.
    fn blob(&self, seed: u64, len: usize) -> (Blob, String) {
        let blob = Blob::random(seed, len);
        self.fake.put_blob("library/app", &blob);
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        (blob, path)
    }

    async fn connect(&self) -> TcpStream {
        connect(self.running.address).await
    }

    /// Waits until that many client connections are open.
    async fn connections_become(&self, count: usize) {
        self.becomes("tidelock_connections", count).await;
    }

    /// Nobody is connected, reads, or is waited for: what the misbehaved took is given back.
    async fn nothing_is_left(&self) {
        self.connections_become(0).await;
        self.becomes("tidelock_flight_followers", 0).await;
        self.becomes("tidelock_flights", 0).await;
    }

    /// Leaves the mirror's own time limit of 10 s and as long again.
    async fn becomes(&self, series: &str, count: usize) {
        let deadline = Instant::now() + patience(Duration::from_secs(20));
        loop {
            let seen = self.running.metric(series).await;
            if seen == count as f64 {
                return;
            }
            assert!(Instant::now() < deadline, "{series} is {seen} and should become {count}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    within("connecting", TcpStream::connect(address)).await.unwrap()
}

/// A client whose kernel takes little in advance, so that what it leaves unread stays with the mirror.
async fn connect_small(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let stream = within("connecting", socket.connect(address)).await.unwrap();
    stream.set_zero_linger().unwrap();
    stream
}

async fn send(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    within("sending", stream.write_all(bytes.as_ref())).await.unwrap();
}

/// The request for `path`, of a client that stays.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: mirror\r\n\r\n")
}

/// Reads up to the end of an answer's head.
async fn head(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        let byte = within("a head", stream.read_u8()).await;
        text.push(char::from(byte.unwrap_or_else(|error| panic!("{error} after {text:?}"))));
    }
    text
}

/// All that still comes, until the mirror closes or resets.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = within("the end", stream.read_to_end(&mut bytes)).await;
    bytes
}
