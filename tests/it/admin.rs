//! The operator's door over a real socket.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};

use tempfile::TempDir;
use tidelock::admin::{self, Admin, AdminHandle};
use tidelock::config::{ByteSize, Config};
use tidelock::lifecycle::{Lifecycle, Phase};
use tidelock::mirror::{Mirror, Rounds};
use tidelock::store::Store;
use tidelock::telemetry::{Journal, Metrics};
use tokio::runtime::Runtime;

struct Door {
    addr: SocketAddr,
    house: Lifecycle,
    metrics: Metrics,
    handle: AdminHandle,
    // The mirror behind the door lives in it.
    runtime: Runtime,
    _folder: TempDir,
}

/// Each door has a loopback address of its own: on a shared one, a port that it closed may be another
/// test's the next moment.
fn open() -> Door {
    static DOORS: AtomicU8 = AtomicU8::new(1);
    let own = Ipv4Addr::new(127, 0, 5, DOORS.fetch_add(1, Ordering::Relaxed));
    let listener = TcpListener::bind((own, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let (house, metrics) = (Lifecycle::default(), Metrics::default());
    let (runtime, folder) = (Runtime::new().unwrap(), TempDir::new().unwrap());
    let mut config = Config::default();
    config.cache.dir = folder.path().to_owned();
    config.cache.min_free = ByteSize(0);
    let admin = runtime.block_on(async {
        let store = Store::open(&config.cache, &house, &metrics).unwrap();
        let mirror = Mirror::new(&config, &store, &house, &metrics).unwrap();
        let rounds = Rounds::new(&config, &mirror, &house, &metrics);
        Admin::new(&config, mirror, rounds, metrics.clone(), Journal::default(), house.clone())
    });
    let handle = admin::spawn(listener, admin).unwrap();
    Door { addr, house, metrics, handle, runtime, _folder: folder }
}

impl Door {
    /// Blocks its thread, and with it a test's whole runtime: the door has its own.
    fn ask(&self, request_line: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        write!(stream, "{request_line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn ask_as_browser(&self, path: &str, host: &str) -> String {
        self.ask(
            &format!("GET {path}"),
            &format!("{host}\r\nAccept: text/html,application/xhtml+xml,*/*;q=0.8"),
        )
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path}"), &self.addr.to_string())
    }
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap()
}

#[test]
fn metrics_are_for_prometheus() {
    let door = open();
    door.metrics.counter("things_total", "Things.").inc_by(7);
    let answer = door.get("/metrics");
    assert_eq!(status(&answer), "200");
    assert!(answer.contains("content-type: text/plain; version=0.0.4\r\n"), "{answer}");
    for line in [
        "tidelock_things_total 7",
        concat!("tidelock_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(answer.contains(line), "{line} in {answer}");
    }
    for name in
        ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds", "threads"]
    {
        let line = answer.lines().find_map(|line| line.strip_prefix(&format!("process_{name} ")));
        let value: f64 = line.unwrap_or_else(|| panic!("no process_{name}")).parse().unwrap();
        assert!(value > 0.0 || name == "cpu_seconds_total", "process_{name} {value}");
    }
    assert!(!answer.contains("tidelock_connections"), "the operator is no client");
}

#[test]
fn readiness_follows_the_phase_to_the_end() {
    let door = open();
    let asked = |phase: &str, code: &str| {
        let answer = door.get("/readyz");
        assert!(status(&answer) == code && answer.ends_with(&format!("\r\n\r\n{phase}\n")), "{answer}");
        assert_eq!(status(&door.get("/healthz")), "200");
    };
    asked("starting", "503");
    door.house.enter(Phase::Ready);
    asked("ready", "200");
    door.house.stop();
    asked("draining", "503");
    door.house.enter(Phase::Stopped);
    asked("stopped", "503");
}

#[test]
fn stops_last_and_then_for_good() {
    let door = open();
    let resting = TcpStream::connect(door.addr).unwrap();
    assert_eq!(status(&door.get("/healthz")), "200");
    let Door { addr, handle, runtime, .. } = door;
    let stopping =
        async { tokio::time::timeout(std::time::Duration::from_secs(20), handle.stop()).await.unwrap() };
    runtime.block_on(stopping);
    assert!(TcpStream::connect(addr).is_err());
    drop(resting);
}

#[test]
fn dropping_the_handle_closes_the_door() {
    let Door { addr, handle, .. } = open();
    drop(handle);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while TcpStream::connect(addr).is_ok() {
        assert!(std::time::Instant::now() < deadline, "still open");
    }
}

#[test]
fn other_paths_and_methods_are_told_so() {
    let door = open();
    let index = door.get("/");
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert!(index.contains(path), "{index}");
    }
    let missing = door.get("/metrics/x");
    assert_eq!(status(&missing), "404");
    let body = missing.split_once("\r\n\r\n").unwrap().1;
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"]["code"], "not_found");
    for method in ["POST", "DELETE", "PUT", "OPTIONS"] {
        let answer = door.ask(&format!("{method} /metrics"), "localhost");
        assert!(status(&answer) == "405" && answer.contains("allow: GET, HEAD\r\n"), "{answer}");
    }
    let head = door.ask("HEAD /healthz", "localhost");
    assert!(status(&head) == "200" && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn a_foreign_host_is_refused_on_loopback() {
    let door = open();
    let answer = door.ask("GET /metrics", "rebound.example");
    assert!(status(&answer) == "403" && !answer.contains("tidelock_"), "{answer}");
    assert_eq!(status(&door.ask("GET /metrics", "localhost:1234")), "200");
}

#[test]
fn a_browser_gets_a_page_that_asks_nobody_else() {
    let door = open();
    let host = door.addr.to_string();
    let page = door.ask_as_browser("/", &host);
    assert_eq!(status(&page), "200");
    assert!(
        page.contains("content-type: text/html; charset=utf-8\r\n") && page.contains("vary: accept\r\n"),
        "{page}"
    );
    assert!(
        page.contains("content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'"),
        "{page}"
    );
    // All that it names is here, and nothing is written into it.
    let named: Vec<&str> = page.split('"').filter(|text| text.starts_with("/ui/")).collect();
    assert!(named.len() > 3);
    for path in named {
        assert_eq!(status(&door.get(path)), "200", "{path}");
        assert_eq!(status(&door.ask(&format!("POST {path}"), &host)), "404", "{path}");
    }
    for inline in ["<style", " style=", " onclick", "<script>", "http://", "https://"] {
        assert!(!page.contains(inline), "{inline}");
    }
    let list = door.get("/");
    assert!(list.contains("content-type: text/plain") && list.contains("/api/v1/status"), "{list}");
    assert_eq!(status(&door.get("/ui/none.js")), "404");
}
