//! The real program on a cache, as a process.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::cache::blob;

pub(crate) struct Program {
    child: Child,
    clients: SocketAddr,
    /// From its start until it said so on `/readyz`.
    pub(crate) ready_after: Duration,
}

/// Nobody listens there, and nobody is asked: what is cached is served without.
const CONFIG: &str = "server.listen = [\"127.0.0.1:0\"]\nserver.admin_listen = \"127.0.0.1:0\"\nlog.level = \"warn\"\n\
    cache.max_size = \"1TiB\"\ncache.min_free = \"0B\"\n[[upstream]]\nregistry = \"docker.io\"\ndefault = true\n\
    endpoints = [\"http://127.0.0.1:1\"]\nproxy = \"none\"\n";

/// More is no start.
const LONGEST: Duration = Duration::from_secs(60);

pub(crate) async fn start(folder: &Path) -> Program {
    let config = folder.join("bench.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
    command.arg("--config").arg(&config).arg("--cache-dir").arg(folder);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let begun = Instant::now();
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut clients, mut admin) = (None, None);
    while clients.is_none() || admin.is_none() {
        let line = lines.next_line().await.unwrap().expect("it says where it listens");
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("http://")?.parse().ok());
        match line.split_whitespace().next() {
            Some("clients") => clients = address,
            Some("admin") => admin = address,
            _ => {}
        }
    }
    let mut door = Connection::to(admin.unwrap()).await;
    while door.get("/readyz").await.0 != 200 {
        assert!(begun.elapsed() < LONGEST, "it does not get ready");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ready_after = begun.elapsed();
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Program { child, clients: clients.unwrap(), ready_after }
}

impl Program {
    /// Pulls these blobs one after the other over one connection.
    pub(crate) async fn hits(&mut self, numbers: impl Iterator<Item = u64>) -> Vec<Duration> {
        let mut connection = Connection::to(self.clients).await;
        let mut times = Vec::new();
        for number in numbers {
            let (digest, bytes) = blob(number);
            let path = format!("/v2/library/bench/blobs/{digest}");
            let begun = Instant::now();
            let (status, body) = connection.get(&path).await;
            times.push(begun.elapsed());
            assert_eq!((status, &body[..]), (200, &bytes[..]), "{path}");
        }
        times
    }

    /// A field of its `/proc/PID/status`, in bytes.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        memory(self.child.id().unwrap(), field)
    }

    /// An orderly end.
    pub(crate) async fn stop(mut self) {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(self.child.wait().await.unwrap().success());
    }
}

/// A field of `/proc/PID/status` that counts memory, in bytes.
pub(crate) fn memory(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn to(address: SocketAddr) -> Connection {
        Connection(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    /// Status and body.
    async fn get(&mut self, path: &str) -> (u16, Vec<u8>) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).await.unwrap();
        let (mut head, mut length) = (String::new(), 0);
        while self.0.read_line(&mut head).await.unwrap() > 2 {
            let line = head.lines().last().unwrap().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (head.split_whitespace().nth(1).unwrap().parse().unwrap(), body)
    }
}
