//! Those who pull: plain readers, readers over TLS, and wrk.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tidelock::oci::Algorithm;

use super::content::{Image, MANIFEST};
use super::rivals::Core;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// The head of a message.
pub(crate) struct Head {
    pub(crate) first: String,
    lines: Vec<(String, String)>,
}

/// Requests a second, and how long each took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) each_second: f64,
    pub(crate) requests: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// How a client speaks.
#[derive(Clone)]
pub(crate) enum Wire {
    Clear,
    Tls(Arc<ClientConfig>),
}

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

impl Head {
    /// `None` where the other side has nothing more to say.
    pub(crate) fn read(from: &mut impl BufRead) -> io::Result<Option<Head>> {
        let mut head = Head { first: String::new(), lines: Vec::new() };
        if from.read_line(&mut head.first)? == 0 {
            return Ok(None);
        }
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => head.lines.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => return Ok(Some(head)),
            }
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.lines.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    fn length(&self) -> u64 {
        self.header("content-length").expect("a length").parse().unwrap()
    }
}

impl Wire {
    /// One that trusts the certificate in this file alone.
    pub(crate) fn tls(certificate: &rcgen::Certificate) -> Wire {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(certificate.der().to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        Wire::Tls(Arc::new(builder.unwrap().with_root_certificates(roots).with_no_client_auth()))
    }

    fn connect(&self, port: u16) -> Box<dyn Stream> {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match self {
            Wire::Clear => Box::new(stream),
            Wire::Tls(config) => {
                let name = ServerName::try_from("localhost").unwrap();
                let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
                Box::new(StreamOwned::new(connection, stream))
            }
        }
    }
}

/// A connection on which one thing is asked after the other.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Stream>>,
}

impl Client {
    pub(crate) fn new(port: u16, wire: &Wire) -> Client {
        Client { stream: BufReader::with_capacity(256 << 10, wire.connect(port)) }
    }

    /// Asks, and reads the head of a success.
    pub(crate) fn ask(&mut self, path: &str) -> Head {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {MANIFEST}\r\nAccept: */*\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let head = Head::read(&mut self.stream).unwrap().expect("an answer");
        assert!(head.first.contains(" 200 "), "{path}: {}", head.first);
        head
    }

    /// Reads a body to its end, handing over what comes.
    pub(crate) fn body(&mut self, head: &Head, mut take: impl FnMut(&[u8])) -> u64 {
        let length = head.length();
        let mut missing = length;
        while missing > 0 {
            let some = self.stream.fill_buf().unwrap();
            assert!(!some.is_empty(), "the body ended {missing} bytes early");
            let count = some.len().min(usize::try_from(missing).unwrap());
            take(&some[..count]);
            self.stream.consume(count);
            missing -= count as u64;
        }
        length
    }

    pub(crate) fn get(&mut self, path: &str) -> u64 {
        let head = self.ask(path);
        self.body(&head, |_| {})
    }
}

/// A short answer.
pub(crate) fn text(port: u16, path: &str) -> String {
    let mut client = Client::new(port, &Wire::Clear);
    let (head, mut all) = (client.ask(path), Vec::new());
    client.body(&head, |some| all.extend_from_slice(some));
    String::from_utf8(all).unwrap()
}

/// Each of these by a reader of its own, all at once; how long that takes in all, and how many bytes it is.
pub(crate) fn read_all(port: u16, wire: &Wire, paths: &[String], times: usize) -> (Duration, u64) {
    let barrier = Barrier::new(paths.len() + 1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = paths
            .iter()
            .map(|path| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut client = Client::new(port, wire);
                    barrier.wait();
                    (0..times).map(|_| client.get(path)).sum::<u64>()
                })
            })
            .collect();
        barrier.wait();
        let begun = Instant::now();
        let bytes = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        (begun.elapsed(), bytes)
    })
}

/// Pulls an image as container engines do: three blobs at a time, each hashed as it comes.
pub(crate) fn pull(port: u16, image: &Image) -> Duration {
    let begun = Instant::now();
    let mut client = Client::new(port, &Wire::Clear);
    assert_eq!(client.get(&image.path()), image.manifest.len() as u64);
    let (blobs, next) = (image.blobs().collect::<Vec<_>>(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = Client::new(port, &Wire::Clear);
                while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let mut hasher = Algorithm::Sha256.hasher();
                    let head = client.ask(&image.path_of(blob));
                    client.body(&head, |some| hasher.update(some));
                    assert_eq!(hasher.finish().to_string(), blob.digest, "wrong bytes");
                }
            });
        }
    });
    begun.elapsed()
}

/// How long the first byte of a body takes, on a connection that is there.
pub(crate) fn first_byte(client: &mut Client, path: &str) -> Duration {
    let begun = Instant::now();
    let head = client.ask(path);
    let mut first = None;
    client.body(&head, |_| {
        first.get_or_insert_with(|| begun.elapsed());
    });
    first.expect("a body")
}

/// wrk, on so many connections that are kept.
pub(crate) fn wrk(port: u16, path: &str, connections: usize, time: Duration, core: Core) -> Rate {
    let mut command = core.command("/usr/bin/wrk");
    command.args(["-t1", "--latency", "-H"]).arg(format!("Accept: {MANIFEST}"));
    command.arg(format!("-c{connections}")).arg(format!("-d{}s", time.as_secs()));
    let output = command.arg(format!("http://127.0.0.1:{port}{path}")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !text.contains("Non-2xx"), "{text}");
    let after = |mark: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(mark));
        line.unwrap_or_else(|| panic!("{mark} in {text}")).split_whitespace().next().unwrap().to_owned()
    };
    let requests =
        text.lines().find_map(|line| line.split_once(" requests in ")).unwrap().0.trim().parse().unwrap();
    Rate {
        each_second: after("Requests/sec:").parse().unwrap(),
        requests,
        p50: time_of(&after("50%")),
        p99: time_of(&after("99%")),
    }
}

/// `1.23ms`, as wrk prints it.
fn time_of(text: &str) -> Duration {
    let unit = text.find(|sign: char| sign.is_ascii_alphabetic()).unwrap();
    let number: f64 = text[..unit].parse().unwrap();
    Duration::from_secs_f64(match &text[unit..] {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        other => panic!("{other} is no unit of time"),
    })
}
