//! Clients that take for ever to say what they want.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{Scene, connect};
use crate::support::eventually::patience;
use crate::support::tls::TestCa;

/// Of each kind.
const DRIPPERS: usize = 50;
/// The mirror's time limit for a head, and for a handshake.
const LIMIT: Duration = Duration::from_secs(10);

/// How a client begins, byte by byte, and the byte that it goes on with for ever; none: it falls silent.
type Drip = (&'static [u8], Option<u8>);

/// Sends a byte now and then until the connection ends, and says how long that took. The answer, if there was one,
/// comes too.
async fn drip(mut stream: TcpStream, (text, then): Drip) -> (Duration, Vec<u8>) {
    let begun = Instant::now();
    let (mut read, mut write) = stream.split();
    let writing = async {
        for byte in text.iter().copied().chain(std::iter::from_fn(move || then)) {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The reading half learns of it as well.
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let reading = async { drop(read.read_to_end(&mut answer).await) };
    let ended = async {
        tokio::select! { () = writing => {}, () = reading => {} }
    };
    let in_time = timeout(patience(4 * LIMIT), ended).await;
    in_time.unwrap_or_else(|_| panic!("still connected after {:?}", begun.elapsed()));
    (begun.elapsed(), answer)
}

async fn all_are_cut(scene: &Scene, kinds: &[Drip]) {
    let address = scene.running.address;
    let drippers = kinds.iter().flat_map(|kind| (0..DRIPPERS).map(move |_| *kind)).map(|kind| async move {
        let (took, answer) = drip(connect(address).await, kind).await;
        (String::from_utf8_lossy(kind.0), took, answer)
    });
    let (ends, ()) = tokio::join!(join_all(drippers), scene.others_are_served());
    for (what, took, answer) in ends {
        assert!(took > LIMIT / 2, "{what:?}: cut after {took:?}, which is no time");
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{what:?}: {answer:?}");
    }
    scene.nothing_is_left().await;
}

/// However steadily they drip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_byte_by_byte() {
    let scene = Scene::with("log.level = \"warn\"").await;
    all_are_cut(
        &scene,
        &[
            (b"G", None),
            (b"G", Some(b'E')),
            (b"GET /v2/", Some(b'x')),
            (b"GET /v2/ HTTP/1.1\r\nX: y\r\nX: y", Some(b'y')),
            (b"\r", Some(b'\n')),
            // The first frame of HTTP/2, of 16,380 bytes.
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\x3f\xfc\x04\0\0\0\0\0", Some(0)),
        ],
    )
    .await;
}

/// Half a handshake, however it is halved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_never_ends() {
    let (ca, folder) = (TestCa::new(), tempfile::tempdir().unwrap());
    let (cert, key) = ca.issue(&["127.0.0.1"]);
    let file = |name: &str, pem: &str| {
        std::fs::write(folder.path().join(name), pem).unwrap();
        folder.path().join(name).display().to_string()
    };
    let tls =
        format!("tls = {{ cert = \"{}\", key = \"{}\" }}", file("cert.pem", &cert), file("key.pem", &key));
    let scene = Scene::with_ca(&format!("server.{tls}\nlog.level = \"warn\""), &ca.pem()).await;
    // A record of 512 bytes is announced, and a ClientHello of 508 in it.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    all_are_cut(&scene, &[(b"\x16", None), (hello, None), (hello, Some(7))]).await;
}
