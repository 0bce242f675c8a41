//! Small requests for many ranges: what they may draw has a bound, in bytes and in memory.

use futures_util::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::{Scene, connect_small, get, head, send};
use crate::support::eventually::within;
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;

const LARGE: usize = 8 << 20;
const THROWERS: usize = 100;
/// The most memory for each of them. A thousand parts made all at once would take three times as much.
const EACH: u64 = 256 << 10;

fn asking(path: &str, ranges: impl IntoIterator<Item = String>) -> String {
    let ranges: Vec<String> = ranges.into_iter().collect();
    get(path).replace("\r\n\r\n", &format!("\r\nRange: bytes={}\r\n\r\n", ranges.join(",")))
}

/// 1,024 single bytes all over the blob.
fn single_bytes(path: &str) -> String {
    asking(path, (0..1_024).map(|n| n * (LARGE / 1_024)).map(|at| format!("{at}-{at}")))
}

fn length(head: &str) -> usize {
    let line = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    line.unwrap_or_else(|| panic!("no length: {head}")).parse().unwrap()
}

async fn ask(scene: &Scene, request: &str) -> TcpStream {
    let mut stream = connect_small(scene.running.address).await;
    send(&mut stream, request).await;
    stream
}

/// What was sent to clients so far, in bytes.
async fn sent(scene: &Scene) -> f64 {
    let mut sum = 0.0;
    for outcome in ["hit", "miss", "joined"] {
        let series = format!("tidelock_sent_bytes_total{{outcome=\"{outcome}\",upstream=\"docker.io\"}}");
        sum += scene.running.metric(&series).await;
    }
    sum
}

/// A 400, at which clients ask for less, whether the blob is cached or on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_to_many_times_the_blob_is_refused() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let (blob, path) = scene.blob(1, LARGE);
    let before = sent(&scene).await;
    let bombs = [
        asking(&path, (0..1_024).map(|n| format!("{n}-"))),
        asking(&path, vec!["0-".to_owned(); 1_024]),
        asking(&path, (0..1_025).map(|n| format!("{n}-{n}"))),
        asking(&path, vec!["-8388608".to_owned(); 3]),
        asking(&path, vec!["0-".to_owned(); 15_000]),
    ];
    let watched = scene.running.watch_memory();
    for state in ["on its way", "cached"] {
        for bomb in &bombs {
            let answers = join_all((0..THROWERS).map(|_| async {
                let mut stream = ask(&scene, bomb).await;
                let head = head(&mut stream).await;
                (head.clone(), length(&head))
            }))
            .await;
            for (head, length) in answers {
                assert!(head.starts_with("HTTP/1.1 400"), "{state}: {head}");
                assert!(length < 1_000, "{state}: {length}");
            }
        }
        scene.becomes("tidelock_flights", 0).await;
    }
    assert_eq!(sent(&scene).await, before, "nothing of the blob went out");
    let grown = watched.most();
    eprintln!("{} KiB of memory while they came", grown >> 10);
    // What one fetch takes is in it.
    assert!(grown < THROWERS as u64 * EACH + (16 << 20), "{grown}");
    assert_eq!(scene.fake.blob_gets(&blob.digest), 1);
    // Twice the blob is the most.
    let mut stream = ask(&scene, &asking(&path, ["0-".to_owned(), "-8388608".to_owned()])).await;
    let head = head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 206") && length(&head) < 2 * LARGE + 1_000, "{head}");
    drop(stream);
    scene.others_are_served().await;
    scene.nothing_is_left().await;
}

/// Each of them asks for a thousand parts and reads none: what is not read is not made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parts_for_each_of_many_who_do_not_read() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let (blob, path) = scene.blob(2, LARGE);
    let gate = Gate::new();
    scene.fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&gate, 100_000));
    for state in ["on its way", "cached"] {
        let before = scene.running.memory();
        let mut streams = join_all((0..THROWERS).map(|_| async {
            let mut stream = ask(&scene, &single_bytes(&path)).await;
            let head = head(&mut stream).await;
            assert!(head.starts_with("HTTP/1.1 206"), "{head}");
            (stream, length(&head))
        }))
        .await;
        let each = scene.running.memory().saturating_sub(before) / THROWERS as u64;
        eprintln!("{state}: {each} bytes of memory for each of {THROWERS}");
        assert!(each < EACH, "{state}: {each} bytes for each");
        scene.others_are_served().await;
        gate.open();
        for (stream, length) in &mut streams {
            let mut parts = vec![0; *length];
            within("the parts", stream.read_exact(&mut parts)).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&parts).matches("Content-Range: bytes ").count(), 1_024);
        }
        drop(streams);
        scene.nothing_is_left().await;
    }
    assert_eq!(scene.fake.blob_gets(&blob.digest), 1);
}
