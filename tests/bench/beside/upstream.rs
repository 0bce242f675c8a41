//! A registry that can be slowed down, as a process of its own: what it spends is not the mirror's.
//!
//! It is told what it holds and how slow it is by requests of its own, and asked what it sent.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::content::{Blob, Image, MANIFEST};
use super::load::{self, Head};
use super::port::free_port;
use super::rivals::Running;

/// What the process is started with, and the port.
pub(crate) const CHILD: &str = "--serve-as-upstream";

/// The running process, seen from outside.
pub(crate) struct Upstream {
    pub(crate) port: u16,
    _process: Running,
}

/// How slow it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Slowness {
    /// Bytes a second on each connection; 0 without a limit.
    pub(crate) connection: u64,
    /// Bytes a second on all of them together; 0 without a limit.
    pub(crate) line: u64,
}

/// What it was asked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Manifests, by GET: at Docker Hub each would have cost a pull.
    pub(crate) manifests: u64,
    /// Bytes of blobs.
    pub(crate) bytes: u64,
}

/// What the process holds.
#[derive(Default)]
struct House {
    manifests: HashMap<String, Vec<u8>>,
    blobs: HashMap<String, Blob>,
    slowness: Slowness,
    counts: Counts,
    /// Until when the line is taken.
    line: Option<Instant>,
}

/// So many pieces a second: a slow line is smooth.
const PIECES: u64 = 200;

impl Upstream {
    pub(crate) fn start() -> Upstream {
        let port = free_port();
        let mut command = Command::new(std::env::current_exe().unwrap());
        Upstream { port, _process: Running::start(command.arg(CHILD).arg(port.to_string()), port) }
    }

    /// It has this image from now on.
    pub(crate) fn hold(&self, image: &Image) {
        let (seed, layers, length) = image.recipe;
        load::text(self.port, &format!("/hold/{seed}/{layers}/{length}"));
    }

    /// It is so slow from now on.
    pub(crate) fn slow(&self, slowness: Slowness) {
        load::text(self.port, &format!("/slow/{}/{}", slowness.connection, slowness.line));
    }

    /// What it was asked since this was last called.
    pub(crate) fn counts(&self) -> Counts {
        let text = load::text(self.port, "/counts");
        let numbers: Vec<u64> = text.split('/').map(|number| number.parse().unwrap()).collect();
        Counts { manifests: numbers[0], bytes: numbers[1] }
    }
}

/// Serves until it is killed.
pub(crate) fn serve(port: u16) -> ! {
    let house = Arc::<Mutex<House>>::default();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    loop {
        let (stream, _) = listener.accept().unwrap();
        let house = Arc::clone(&house);
        std::thread::spawn(move || {
            stream.set_nodelay(true).unwrap();
            let mut requests = BufReader::new(stream.try_clone().unwrap());
            // A client that leaves is no trouble of ours.
            while let Ok(true) = converse(&house, &mut requests, &stream) {}
        });
    }
}

/// Answers one request; false at the end of the connection.
fn converse(
    house: &Mutex<House>,
    requests: &mut BufReader<TcpStream>,
    stream: &TcpStream,
) -> io::Result<bool> {
    let Some(head) = Head::read(requests)? else { return Ok(false) };
    let target = head.first.split_whitespace().nth(1).unwrap_or_default();
    // A mirror names the registry that it means in the query.
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let is_get = head.first.starts_with("GET ");
    let (base, last) = path.rsplit_once('/').unwrap_or_default();
    let answer = |status: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {MANIFEST}\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut stream = stream;
        stream.write_all(&[head.as_bytes(), if is_get { body } else { &[] }].concat())
    };
    if base.ends_with("/manifests") {
        let found = lock(house).manifests.get(&path).cloned();
        lock(house).counts.manifests += u64::from(is_get);
        match found {
            Some(manifest) => answer("200 OK", &manifest)?,
            None => answer("404 Not Found", b"")?,
        }
    } else if base.ends_with("/blobs") {
        let found = lock(house).blobs.get(last).cloned();
        match found {
            Some(blob) => send(house, &blob, &head, is_get, stream)?,
            None => answer("404 Not Found", b"")?,
        }
    } else {
        answer("200 OK", lock(house).told(&path).as_bytes())?;
    }
    Ok(true)
}

impl House {
    /// A word of the harness; whatever else is asked is answered by nothing.
    fn told(&mut self, path: &str) -> String {
        let words: Vec<&str> = path.split('/').skip(1).collect();
        let number = |place: usize| words[place].parse().unwrap();
        match words[0] {
            "hold" => {
                let image = Image::new(number(1), number(2), number(3));
                self.blobs.extend(image.blobs().map(|blob| (blob.digest.clone(), blob.clone())));
                self.manifests.insert(image.tag_path(), image.manifest.clone());
                self.manifests.insert(image.path(), image.manifest);
                String::new()
            }
            "slow" => {
                self.slowness = Slowness { connection: number(1), line: number(2) };
                String::new()
            }
            "counts" => {
                let Counts { manifests, bytes } = std::mem::take(&mut self.counts);
                format!("{manifests}/{bytes}")
            }
            _ => String::new(),
        }
    }

    /// When `bytes` have gone over the line, if it is slow.
    fn over_the_line(&mut self, bytes: u64) -> Option<Instant> {
        let rate = self.slowness.line;
        (rate > 0).then(|| {
            let now = Instant::now();
            let free =
                self.line.unwrap_or(now).max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *self.line.insert(free)
        })
    }
}

/// A blob, or the part that is asked for.
fn send(
    house: &Mutex<House>,
    blob: &Blob,
    head: &Head,
    is_get: bool,
    mut stream: &TcpStream,
) -> io::Result<()> {
    let total = blob.length;
    let range = head.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let (start, end) = match range {
        Some((first, last)) => (first.parse().unwrap(), last.parse().map_or(total, |last: u64| last + 1)),
        None => (0, total),
    };
    let status = match range {
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{total}", end - 1),
        None => "200 OK".to_owned(),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\nDocker-Content-Digest: {}\r\nContent-Length: {}\r\n\r\n",
        blob.digest,
        end - start
    );
    stream.write_all(head.as_bytes())?;
    if !is_get {
        return Ok(());
    }
    let Slowness { connection, line } = lock(house).slowness;
    let slowest = [connection, line].into_iter().filter(|rate| *rate > 0).min();
    let most = slowest.map_or(256 << 10, |rate| rate / PIECES).max(4096);
    let (mut due, mut sent) = (Instant::now(), Ok(()));
    blob.pieces(start, end, most, |piece| {
        let length = piece.len() as u64;
        let over = lock(house).over_the_line(length);
        if connection > 0 {
            due = due.max(Instant::now() - Duration::from_millis(20))
                + Duration::from_secs_f64(length as f64 / connection as f64);
        }
        let wait = over.unwrap_or(due).max(due).saturating_duration_since(Instant::now());
        // The system does not sleep for less.
        if wait > Duration::from_millis(1) {
            std::thread::sleep(wait);
        }
        sent = stream.write_all(piece);
        lock(house).counts.bytes += length;
        sent.is_ok()
    });
    sent
}

fn lock(house: &Mutex<House>) -> MutexGuard<'_, House> {
    house.lock().unwrap()
}
