//! Ten thousand clients that do nothing.

use futures_util::future::join_all;
use tokio::net::TcpStream;

use super::{Scene, connect, get, head, rest, send};
use crate::support::program::{Running, allow_open_files, start_with_open_files};

const CROWD: usize = 10_000;
/// Beside the crowd: for those who are served meanwhile.
const SPARE: usize = 20;
/// The most memory for a connection over which nothing came, and for one that rests. Measured, in the dev profile:
/// 6 KiB and 29 KiB, more than half of the latter hyper's two buffers.
const SILENT: u64 = 12 << 10;
const RESTING: u64 = 36 << 10;

/// So many connections, each after `greet`.
async fn crowd<F>(running: &Running, greet: impl Fn(TcpStream) -> F) -> Vec<TcpStream>
where
    F: Future<Output = TcpStream>,
{
    let mut all = Vec::with_capacity(CROWD);
    while all.len() < CROWD {
        let some = (0..100).map(|_| async { greet(connect(running.address).await).await });
        all.extend(join_all(some).await);
    }
    all
}

/// Has one small answer over the connection, which then rests.
async fn greeted(mut stream: TcpStream) -> TcpStream {
    // Gone with a reset when dropped, so that no port is held for a minute.
    stream.set_zero_linger().unwrap();
    send(&mut stream, get("/v2/")).await;
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200"));
    stream
}

/// The growth of memory since `before`, by each of the crowd.
fn growth(running: &Running, before: u64) -> u64 {
    let each = running.memory().saturating_sub(before) / CROWD as u64;
    eprintln!("{each} bytes of memory for each of {CROWD} connections");
    each
}

/// One after the other, since both together take more open files than many systems allow a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_that_never_say_a_word_and_ten_thousand_that_rest() {
    allow_open_files(CROWD as u64 + 2_000);
    let slots = CROWD + SPARE;
    let scene = Scene::with(&format!("server.max_connections = {slots}\nlog.level = \"warn\"")).await;
    let before = scene.running.memory();

    let mut silent = crowd(&scene.running, std::future::ready).await;
    scene.connections_become(CROWD).await;
    let each = growth(&scene.running, before);
    assert!(each < SILENT, "{each} bytes for each connection that is silent");
    scene.others_are_served().await;
    // By the time limit of a head.
    scene.connections_become(0).await;
    for stream in silent.iter_mut().step_by(500) {
        assert_eq!(rest(stream).await, b"");
    }
    drop(silent);

    let mut resting = crowd(&scene.running, greeted).await;
    scene.connections_become(CROWD).await;
    let each = growth(&scene.running, before);
    assert!(each < RESTING, "{each} bytes for each connection that rests");
    scene.others_are_served().await;
    for stream in resting.iter_mut().step_by(1_000) {
        send(stream, get("/v2/")).await;
        head(stream).await;
    }
    // Beyond the limit they wait for their turn, and have it when others leave.
    let spare = join_all((0..SPARE).map(|_| async { greeted(scene.connect().await).await })).await;
    scene.connections_become(slots).await;
    let mut waiting = join_all((0..SPARE).map(|_| scene.connect())).await;
    for stream in &mut waiting {
        send(stream, get("/v2/").replace("Host", "Connection: close\r\nHost")).await;
    }
    scene.running.log.has("every connection slot is taken").await;
    assert_eq!(scene.running.metric("tidelock_connections").await, slots as f64);
    drop(spare);
    for stream in &mut waiting {
        assert!(rest(stream).await.starts_with(b"HTTP/1.1 200"));
    }
    drop(resting);
    scene.others_are_served().await;
    scene.nothing_is_left().await;
}

/// Whoever starts it from a shell has leave for 1,024 open files, and may have many more for the asking.
#[tokio::test]
async fn it_asks_for_as_many_open_files_as_its_connections_need() {
    let cases = [
        (2_000, 5_000, 1_000, "", "3456"),
        (1_024, 5_000, 3_000, "enough open files for all connections, not for a file", "5000"),
        (500, 1_000, 5_000, "fewer open files than the connections need", "1000"),
    ];
    for (soft, hard, max_connections, told, becomes) in cases {
        let folder = tempfile::tempdir().unwrap();
        let more = format!("server.max_connections = {max_connections}");
        let config = crate::support::program::configured(folder.path(), "http://127.0.0.1:1", &more);
        let running = start_with_open_files(soft, hard, &["serve", "--config", &config]).await;
        assert_eq!(running.metric("process_max_fds").await.to_string(), becomes);
        let log = running.stop().await;
        let lines = log.with("open files");
        match told {
            "" => assert!(lines.is_empty(), "{lines:#?}"),
            told => {
                let [line] = &lines[..] else { panic!("{lines:#?}") };
                assert!(line.contains(told) && line.contains(&format!("limit={hard}")), "{line}");
                let needed = format!("needed={}", 3 * max_connections + 2 * 100 + 256);
                assert!(line.contains(&needed), "{line}");
            }
        }
    }
}
