//! Slow readers: they cost neither the fetch nor the others anything, and little memory.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::{Scene, connect_small, get, head, send};
use crate::support::eventually::within;
use crate::support::images::Blob;

const SLOW: usize = 200;
const LARGE: usize = 64 << 20;
/// The most memory for a slow reader: what is read from the file at once (64 KiB), what waits to be sent (64 KiB), and
/// what any connection takes.
const EACH: u64 = 256 << 10;

/// Asks for `path` and reads the head of the answer.
async fn begin(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = connect_small(address).await;
    send(&mut stream, get(path)).await;
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200"));
    stream
}

/// Half of them take a few bytes now and then, the others none. What those read is right.
async fn crawl(streams: &mut [TcpStream]) {
    loop {
        for stream in streams.iter_mut().step_by(2) {
            let mut few = [0; 64];
            stream.read_exact(&mut few).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Two hundred that hardly read hang on a blob; a client that does read has all of it, several times over.
async fn the_fast_one_is_not_held_up(scene: &Scene, blob: &Blob, path: &str) {
    let before = scene.running.memory();
    let address = scene.running.address;
    let mut slow = join_all((0..SLOW).map(|_| begin(address, path))).await;
    let client = scene.running.client();
    let fast = async {
        for _ in 0..3 {
            assert!(client.get(path).await.whole() == blob.bytes);
        }
        // The fetch is over, though two hundred have not read a tenth of it.
        scene.becomes("tidelock_flights", 0).await;
        scene.others_are_served().await;
    };
    tokio::select! {
        () = fast => {}
        () = crawl(&mut slow) => {}
    }
    let each = scene.running.memory().saturating_sub(before) / SLOW as u64;
    eprintln!("{each} bytes of memory for each of {SLOW} slow readers");
    assert!(each < EACH, "{each} bytes of memory for each slow reader");
    assert!(scene.running.metric("tidelock_connections").await >= SLOW as f64, "none was let go of");
    for stream in slow.iter_mut().skip(1).step_by(40) {
        let mut begins = vec![0; 1 << 20];
        within("reading on", stream.read_exact(&mut begins)).await.unwrap();
        assert!(begins == blob.bytes[..1 << 20]);
    }
    drop(slow);
    scene.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_slow_readers_and_a_fast_one() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let (blob, path) = scene.blob(1, LARGE);
    the_fast_one_is_not_held_up(&scene, &blob, &path).await;
    the_fast_one_is_not_held_up(&scene, &blob, &path).await;
    assert_eq!(scene.fake.blob_gets(&blob.digest), 1, "{:?}", scene.fake.log().summary());
}
