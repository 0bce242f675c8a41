//! HTTP/2 turned against the mirror, frame by frame.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Scene, connect, connect_small, send};
use crate::support::eventually::{patience, within};

const ATTACKERS: usize = 10;
/// The most memory for one connection, whatever its client does.
const EACH: u64 = 4 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header that goes into no table.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        let length = text.len();
        if length < 127 {
            bytes.push(u8::try_from(length).unwrap());
        } else {
            bytes.push(127);
            let mut more = length - 127;
            while more >= 128 {
                bytes.push(u8::try_from(more % 128).unwrap() | 128);
                more /= 128;
            }
            bytes.push(u8::try_from(more).unwrap());
        }
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn asking(path: &str) -> Vec<u8> {
    let headers = [(":method", "GET"), (":scheme", "http"), (":authority", "mirror"), (":path", path)];
    headers.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// A whole request on `stream`.
fn request(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &asking(path))
}

/// A connection that has begun, with these settings of the client.
async fn begun(scene: &Scene, settings: &[(u16, u32)]) -> TcpStream {
    let mut stream = connect_small(scene.running.address).await;
    let payload =
        settings.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    let payload: Vec<u8> = payload.collect();
    send(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    send(&mut stream, frame(SETTINGS, 0, 0, &payload)).await;
    stream
}

/// The client's window for all streams together and for each of them.
const WIDE: u32 = i32::MAX as u32;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// All of them at once, and others are served all the while. What attackers hold is dropped only when memory has been
/// looked at.
async fn bounded(
    scene: &Scene,
    what: &str,
    attacks: impl IntoIterator<Item = impl Future<Output = TcpStream>>,
) {
    let watched = scene.running.watch_memory();
    let attacks = join_all(attacks);
    let (held, ()) = tokio::join!(attacks, scene.others_are_served());
    let each = watched.most() / held.len() as u64;
    eprintln!("{what}: {} KiB of memory for each of {}", each >> 10, held.len());
    assert!(each < EACH, "{what}: {each} bytes for each");
    drop(held);
    scene.nothing_is_left().await;
}

/// How long a flood goes on that the mirror bears, and the most until it has had enough of another.
const A_WHILE: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(20);

/// Whether a client reads what the mirror says.
#[derive(Clone, Copy, Debug)]
enum Ears {
    Open,
    Shut,
}

/// Writes one piece after the other until there is none or the mirror hangs up, for so long, and says whether it did.
async fn flood(
    mut stream: TcpStream,
    ears: Ears,
    limit: Duration,
    mut next: impl FnMut() -> Option<Vec<u8>>,
) -> (TcpStream, bool) {
    let (mut read, mut write) = stream.split();
    let writing = async {
        while let Some(bytes) = next() {
            if write.write_all(&bytes).await.is_err() {
                return true;
            }
        }
        std::future::pending().await
    };
    let reading = async {
        let mut waste = vec![0; 64 << 10];
        while matches!(ears, Ears::Open) && matches!(read.read(&mut waste).await, Ok(1..)) {}
        std::future::pending::<()>().await;
    };
    let both = async {
        tokio::select! { cut = writing => cut, () = reading => false }
    };
    let cut = timeout(limit, both).await.unwrap_or(false);
    (stream, cut)
}

/// What is answered at once has a bound, however many streams there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_never_read() {
    let scene = Scene::with("server.max_connections = 100\nlog.level = \"warn\"").await;
    let (blob, path) = scene.blob(1, 8 << 20);
    assert!(scene.client.get(&path).await.whole() == blob.bytes);
    for (what, window, more) in [
        ("no window at all", 0, 0),
        ("the usual window", 65_535, 0),
        ("a byte for each stream", 1, 0),
        ("windows that never fill", WIDE, WIDE - 65_535),
    ] {
        let attack = async || {
            let mut stream = begun(&scene, &[(INITIAL_WINDOW_SIZE, window)]).await;
            if more > 0 {
                send(&mut stream, frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes())).await;
            }
            let mut all = (1..256).step_by(2).map(|number| request(number, &path));
            flood(stream, Ears::Shut, A_WHILE, || all.next()).await.0
        };
        bounded(&scene, what, (0..ATTACKERS).map(|_| attack())).await;
    }
}

/// Those who wait for a slot that stalled streams hold do get it, and meanwhile each connection has its first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_streams_keep_nobody_from_a_first_request() {
    let scene = Scene::with("server.max_connections = 30\nlog.level = \"warn\"").await;
    let (blob, path) = scene.blob(2, 300_000);
    assert!(scene.client.get(&path).await.whole() == blob.bytes);
    let mut stalled = begun(&scene, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    for number in (1..120).step_by(2) {
        send(&mut stalled, request(number, &path)).await;
    }
    scene.running.log.has("beyond a connection's first wait").await;
    let mut client = http2(connect(scene.running.address).await).await;
    for _ in 0..3 {
        assert!(fetched(&mut client, &path).await == blob.bytes);
    }
    let mut same = client.clone();
    let (one, two) = (fetched(&mut same, &path), fetched(&mut client, &path));
    let (one, two, ()) = tokio::join!(one, two, async { drop(stalled) });
    assert!(one == blob.bytes && two == blob.bytes);
    drop((client, same));
    scene.nothing_is_left().await;
}

async fn fetched(client: &mut SendRequest<Empty<Bytes>>, path: &str) -> Bytes {
    let request = Request::get(format!("http://mirror{path}")).body(Empty::new()).unwrap();
    let response = within("an answer", client.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    within("a body", response.into_body().collect()).await.unwrap().to_bytes()
}

async fn http2(stream: TcpStream) -> SendRequest<Empty<Bytes>> {
    let shaken = handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (client, connection) = within("the handshake", shaken).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A request and at once its end, over and over; of what is in the cache, of what has to be fetched, and of nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset_at_once() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let (blob, path) = scene.blob(3, 1 << 20);
    let attack = async |path: &str, ears| {
        let mut numbers = (1..).step_by(2);
        let reset = || {
            let number = numbers.next()?;
            Some([request(number, path), frame(RST_STREAM, 0, number, &CANCEL)].concat())
        };
        let (stream, cut) = flood(begun(&scene, &[]).await, ears, patience(MOST), reset).await;
        assert!(cut, "{path}, ears {ears:?}: not cut");
        stream
    };
    for path in [path.as_str(), path.as_str(), "/v2/none/such"] {
        let attacks = (0..ATTACKERS).flat_map(|_| [attack(path, Ears::Open), attack(path, Ears::Shut)]);
        bounded(&scene, &format!("reset at once, {path}"), attacks).await;
    }
    assert!(scene.client.get(&path).await.whole() == blob.bytes);
    assert_eq!(scene.fake.blob_gets(&blob.digest), 1);
}

/// Whatever they are, they are not collected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_without_end() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let large = literal("x-large", &"x".repeat(16_000));
    let begun_head = frame(HEADERS, END_STREAM, 1, &asking("/v2/"));
    let table = [0x82, 0x86, 0x84, 0x41, 6].iter().copied().chain(*b"mirror").collect::<Vec<u8>>();
    let indexed = [table, [0xbe].repeat(16_000)].concat();
    let begun_body = frame(HEADERS, END_HEADERS, 1, &asking("/v2/"));
    let floods = [
        ("settings", vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]).repeat(100), false),
        ("pings", vec![], frame(PING, 0, 0, &[7; 8]).repeat(100), false),
        ("continuations", begun_head.clone(), frame(CONTINUATION, 0, 1, &large), true),
        ("empty continuations", begun_head, frame(CONTINUATION, 0, 1, &[]).repeat(1_000), true),
        ("a header over and over", vec![], frame(HEADERS, END_STREAM | END_HEADERS, 1, &indexed), false),
        ("data of no stream", vec![], frame(DATA, 0, 1, &[0; 16_000]), true),
        ("empty data", begun_body, frame(DATA, 0, 1, &[]).repeat(1_000), true),
    ];
    let attack = async |flooded: &(&str, Vec<u8>, Vec<u8>, bool), ears| {
        let (what, first, again, is_cut) = flooded;
        let mut first = Some(first.clone()).filter(|first| !first.is_empty());
        let next = || Some(first.take().unwrap_or_else(|| again.clone()));
        // Whoever does not listen may keep the mirror from saying that this is the end, and so from hanging up.
        let is_cut = *is_cut && matches!(ears, Ears::Open);
        let limit = if is_cut { patience(MOST) } else { A_WHILE };
        let (stream, cut) = flood(begun(&scene, &[]).await, ears, limit, next).await;
        assert!(cut || !is_cut, "{what}: not cut");
        stream
    };
    let all = || floods.iter().flat_map(|flooded| [(flooded, Ears::Open), (flooded, Ears::Shut)]);
    let attacks = (0..3).flat_map(|_| all()).map(|(flooded, ears)| attack(flooded, ears));
    bounded(&scene, "frames", attacks).await;
}
