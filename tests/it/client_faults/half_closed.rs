//! Clients that close half of their connection, and clients that are gone.

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Scene, connect_small, get, head, rest, send};
use crate::support::eventually::within;
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;

const LARGE: usize = 4 << 20;
const MANY: usize = 50;

/// Asks, and says that nothing more will come: as `nc -N`, and whoever pipes a request into it.
async fn ask_and_shut_down(scene: &Scene, path: &str) -> TcpStream {
    let mut stream = scene.connect().await;
    send(&mut stream, get(path)).await;
    within("closing one half", stream.shutdown()).await.unwrap();
    stream
}

/// They have their answers as others have, from memory, from the disk and from upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_closed_its_half_has_its_answer() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let (blob, path) = scene.blob(1, LARGE);
    for path in ["/v2/", path.as_str(), path.as_str(), "/v2/library/other/manifests/v900", "/v2/none/such"] {
        let expected = scene.client.get(path).await;
        let answers = join_all((0..5).map(|_| async {
            let mut stream = ask_and_shut_down(&scene, path).await;
            let head = head(&mut stream).await;
            (head, rest(&mut stream).await)
        }));
        for (head, body) in answers.await {
            assert!(head.starts_with(&format!("HTTP/1.1 {}", expected.status)), "{path}: {head}");
            assert!(body == expected.body, "{path}: {} of {} bytes", body.len(), expected.body.len());
        }
    }
    assert_eq!(scene.fake.blob_gets(&blob.digest), 1);
    scene.nothing_is_left().await;
}

/// Nothing can be sent to them, and so nothing tells whether they are still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_closes_its_half_and_goes_is_let_go_of() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let (blob, path) = scene.blob(2, LARGE);
    let gate = Gate::new();
    scene.fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&gate, 200_000));
    let mut gone = join_all((0..MANY).map(|_| scene.connect())).await;
    for stream in &mut gone {
        send(stream, get(&path)).await;
        head(stream).await;
    }
    scene.becomes("tidelock_flight_followers", MANY).await;
    for stream in &mut gone {
        within("closing one half", stream.shutdown()).await.unwrap();
    }
    drop(gone);
    scene.connections_become(0).await;
    scene.becomes("tidelock_flight_followers", 0).await;
    gate.open();
    scene.nothing_is_left().await;
    assert!(scene.client.get(&path).await.whole() == blob.bytes);
    assert_eq!(scene.fake.blob_gets(&blob.digest), 1);
}

/// Before the answer, in the midst of it while bytes flow, and while none do; on a miss and on a hit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_resets_leaves_nothing_behind() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let (blob, path) = scene.blob(3, LARGE);
    let (head_gate, body_gate) = (Gate::new(), Gate::new());
    let matching = || Match::blob(&blob.digest);
    scene.fake.fault(matching(), Times::Once, Fault::hold_head(&head_gate));
    scene.fake.fault(matching(), Times::Once, Fault::hold_after(&body_gate, 2 << 20));
    let address = scene.running.address;
    let ask = || async {
        let mut stream = connect_small(address).await;
        send(&mut stream, get(&path)).await;
        stream
    };
    let before_the_head = join_all((0..MANY).map(|_| ask())).await;
    head_gate.waiting(1).await;
    scene.connections_become(MANY).await;
    drop(before_the_head);
    scene.connections_become(0).await;
    head_gate.open();
    for state in ["on its way", "cached"] {
        let mut streams = join_all((0..MANY).map(|_| ask())).await;
        for stream in &mut streams {
            assert!(head(stream).await.starts_with("HTTP/1.1 200"), "{state}");
        }
        scene.connections_become(MANY).await;
        scene.others_are_served().await;
        drop(streams);
        scene.connections_become(0).await;
        scene.becomes("tidelock_flight_followers", 0).await;
        body_gate.open();
        scene.nothing_is_left().await;
    }
    assert!(scene.client.get(&path).await.whole() == blob.bytes);
    assert_eq!(scene.fake.blob_gets(&blob.digest), 1);
}

/// It reads slowly besides: what waits to be sent when the answer is made goes out all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_closed_its_half_may_read_slowly() {
    let scene = Scene::with("log.level = \"warn\"").await;
    let (blob, path) = scene.blob(4, LARGE);
    assert!(scene.client.get(&path).await.whole() == blob.bytes);
    let mut stream = connect_small(scene.running.address).await;
    send(&mut stream, get(&path)).await;
    within("closing one half", stream.shutdown()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200"));
    // As long as one is kept to whom there is nothing to send: until one that came later has been let go of.
    let (held, held_path) = scene.blob(5, 1_000);
    let gate = Gate::new();
    scene.fake.fault(Match::blob(&held.digest), Times::Once, Fault::hold_head(&gate));
    assert_eq!(rest(&mut ask_and_shut_down(&scene, &held_path).await).await, b"");
    gate.open();
    assert!(rest(&mut stream).await == blob.bytes);
    scene.nothing_is_left().await;
}
