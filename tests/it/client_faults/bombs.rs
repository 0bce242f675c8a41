//! Requests that ask for much with little: headers, ranges, bodies.

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Scene, get, head, send};
use crate::support::eventually::within;

/// The most memory that all the bombs of one kind together may take.
const TOGETHER: u64 = 64 << 20;

/// How many throw the same bomb at once.
const THROWERS: usize = 50;

/// Sends `bomb`, in part or whole as far as the mirror takes it, and gives the status line that comes back: empty when
/// the connection is cut.
async fn thrown(scene: &Scene, bomb: &[u8]) -> String {
    let mut stream = scene.connect().await;
    let (mut read, mut write) = stream.split();
    // The mirror need not read to the end what it has refused.
    let sending = async { drop(write.write_all(bomb).await) };
    let answer = async {
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    };
    within("the answer to a bomb", futures_util::future::join(sending, answer)).await.1
}

/// Many throw it at once, and it harms nobody.
async fn harmless(scene: &Scene, what: &str, bomb: &[u8], statuses: &[&str]) {
    let watched = scene.running.watch_memory();
    let answers = join_all((0..THROWERS).map(|_| thrown(scene, bomb))).await;
    for answer in answers {
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(statuses.contains(&status), "{what}: {answer:?}");
    }
    let grown = watched.most();
    eprintln!("{what}: {} KiB of memory for {THROWERS}", grown >> 10);
    assert!(grown < TOGETHER, "{what}: {grown} bytes");
    scene.others_are_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let huge = "x".repeat(10 << 20);
    let many: String = (0..10_000).map(|n| format!("X-Header-{n}: {n}\r\n")).collect();
    let some: String = (0..1_000).map(|n| format!("X: {n}\r\n")).collect();
    let begin = "GET /v2/ HTTP/1.1\r\nHost: mirror\r\n";
    for (what, bomb) in [
        ("10,000 headers", format!("{begin}{many}\r\n")),
        ("1,000 headers, which are small together", format!("{begin}{some}\r\n")),
        ("a header of 10 MB", format!("{begin}X: {huge}\r\n\r\n")),
        ("a header's name of 10 MB", format!("{begin}{huge}: x\r\n\r\n")),
        ("a header without end", format!("{begin}X: {huge}")),
        ("a request line of 10 MB", format!("GET /v2/{huge} HTTP/1.1\r\nHost: mirror\r\n\r\n")),
        ("a query of 10 MB", format!("GET /v2/_catalog?last={huge} HTTP/1.1\r\nHost: mirror\r\n\r\n")),
        ("a method of 10 MB", format!("{huge} /v2/ HTTP/1.1\r\nHost: mirror\r\n\r\n")),
        ("10 MB of nothing", "\r\n".repeat(5 << 20)),
    ] {
        harmless(&scene, what, bomb.as_bytes(), &["431", "414", "400", ""]).await;
    }
    scene.nothing_is_left().await;
}

/// A body means nothing to a mirror: it is not waited for, however long it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let huge = "x".repeat(10 << 20);
    let chunks = "8000\r\n".to_owned() + &"x".repeat(0x8000) + "\r\n";
    let close = "Host: mirror\r\nConnection: close\r\n";
    for (what, bomb, statuses) in [
        (
            "a GET with 10 MB",
            format!("GET /v2/ HTTP/1.1\r\n{close}Content-Length: 10485760\r\n\r\n{huge}"),
            &["200"][..],
        ),
        (
            "a GET that promises more",
            format!("GET /v2/ HTTP/1.1\r\n{close}Content-Length: {}\r\n\r\nx", 1_u64 << 60),
            &["200"],
        ),
        (
            "a push of 10 MB",
            format!("POST /v2/app/blobs/uploads/ HTTP/1.1\r\n{close}Content-Length: 10485760\r\n\r\n{huge}"),
            &["405"],
        ),
        (
            "chunks without end",
            format!(
                "PUT /v2/app/manifests/v1 HTTP/1.1\r\n{close}Transfer-Encoding: chunked\r\n\r\n{}",
                chunks.repeat(300)
            ),
            &["405"],
        ),
        (
            "chunks that are none",
            format!("GET /v2/ HTTP/1.1\r\n{close}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n{huge}"),
            &["200", "400"],
        ),
        (
            "a chunk's size of 10 MB",
            format!("GET /v2/ HTTP/1.1\r\n{close}Transfer-Encoding: chunked\r\n\r\n{}", "0".repeat(10 << 20)),
            &["200", "400"],
        ),
        (
            "two lengths",
            format!("GET /v2/ HTTP/1.1\r\n{close}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
            &["400"],
        ),
        (
            "a length that is none",
            format!("GET /v2/ HTTP/1.1\r\n{close}Content-Length: -1\r\n\r\n"),
            &["400"],
        ),
        (
            "leave is asked for a body",
            format!(
                "POST /v2/app/blobs/uploads/ HTTP/1.1\r\n{close}Expect: 100-continue\r\nContent-Length: 10485760\r\n\r\n"
            ),
            &["405"],
        ),
    ] {
        harmless(&scene, what, bomb.as_bytes(), statuses).await;
    }
    scene.nothing_is_left().await;
}

/// Whoever asks without reading is answered as far as it reads, and asks no further than the mirror answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_end_before_the_first_answer_is_read() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let watched = scene.running.watch_memory();
    let many = get("/v2/").repeat(1_000);
    let throwers = join_all((0..THROWERS).map(|_| async {
        let mut stream = scene.connect().await;
        stream.set_zero_linger().unwrap();
        // Until the mirror takes no more for what seems a while.
        let flood = async { while stream.write_all(many.as_bytes()).await.is_ok() {} };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), flood).await;
        stream
    }))
    .await;
    let grown = watched.most();
    eprintln!("{} KiB of memory for {THROWERS} that ask on and on", grown >> 10);
    assert!(grown < TOGETHER, "{grown} bytes");
    scene.others_are_served().await;
    drop(throwers);
    scene.nothing_is_left().await;
    // In order, and each has its answer.
    let mut stream = scene.connect().await;
    let paths = ["/v2/", "/v2/nothing/here", "/v2/_catalog"];
    send(&mut stream, paths.map(get).concat()).await;
    for status in ["200", "404", "200"] {
        let head = head(&mut stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        let length = head.to_ascii_lowercase().split_once("content-length: ").unwrap().1.to_owned();
        let length = length.split_once("\r\n").unwrap().0.parse().unwrap();
        within("a body", stream.read_exact(&mut vec![0; length])).await.unwrap();
    }
}
