//! How many instructions the program takes for a request and for a megabyte: counts, which are the same on a busy
//! machine and an idle one, and are compared with those that are written down.
//!
//! `cargo bench --bench instructions`, with `-- --write` to write down what it counts. See "Benchmarks" in
//! `tests/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::disallowed_methods)] // it starts threads of its own

// What the other benchmark uses of them is more.
#[allow(dead_code)]
#[path = "beside/content.rs"]
mod content;
#[allow(dead_code)]
#[path = "beside/load.rs"]
mod load;
#[path = "../it/support/port.rs"]
mod port;
#[allow(dead_code)]
#[path = "beside/rivals.rs"]
mod rivals;
#[allow(dead_code)]
#[path = "beside/upstream.rs"]
mod upstream;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use content::Image;
use load::{Client, Wire};
use upstream::{Slowness, Upstream};

/// Something that the program does so many times.
struct Work {
    name: &'static str,
    /// So often, and so often less, so that what a start costs is no part of it.
    times: [u64; 2],
    /// Megabytes for each time, where it goes by those.
    megabytes: Option<f64>,
    /// What is written down may be off by this share.
    tolerance: f64,
    run: fn(port: u16, upstream: &Upstream, times: u64),
}

const LAYER: u64 = 4 << 20;
const MEGABYTES: Option<f64> = Some(LAYER as f64 / 1e6);

/// What is decided by the program alone.
const STEADY: f64 = 0.1;
/// What depends on how changes of the index come together, or on how often a socket is full and its task woken.
const UNSTEADY: f64 = 0.4;

const WORKS: [Work; 5] = [
    Work { name: "manifest-hit", times: [200, 1200], megabytes: None, tolerance: STEADY, run: manifest_hits },
    Work { name: "blob-hit", times: [4, 44], megabytes: MEGABYTES, tolerance: UNSTEADY, run: blob_hits },
    Work {
        name: "manifest-miss",
        times: [5, 45],
        megabytes: None,
        tolerance: UNSTEADY,
        run: manifest_misses,
    },
    Work { name: "blob-miss", times: [1, 9], megabytes: MEGABYTES, tolerance: UNSTEADY, run: blob_misses },
    Work { name: "blob-joined", times: [1, 9], megabytes: MEGABYTES, tolerance: UNSTEADY, run: joined },
];

/// Where the machine is busy, less comes together: the least of so many counts is the program's own.
const MOST_COUNTS: usize = 3;

const VALGRIND: &str = "/usr/bin/valgrind";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [what, port] = &arguments[..]
        && what == upstream::CHILD
    {
        upstream::serve(port.parse().expect("a port"));
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        eprintln!("this is a benchmark, for a minute: cargo bench --bench instructions");
        return ExitCode::SUCCESS;
    }
    if !Path::new(VALGRIND).exists() {
        eprintln!("{VALGRIND} is not there: apt-get install valgrind");
        return ExitCode::FAILURE;
    }
    if arguments.iter().any(|argument| argument == "--write") {
        let lines = WORKS.iter().map(|work| format!("{} = {:.0}\n", work.name, work.least(|_| true)));
        std::fs::write(written(), lines.collect::<String>()).unwrap();
        return ExitCode::SUCCESS;
    }
    let known: BTreeMap<String, f64> = toml::from_str(&std::fs::read_to_string(written()).unwrap()).unwrap();
    let mut is_well = true;
    println!("| work | instructions | written down | ratio | |\n|---|---:|---:|---:|---|");
    for work in &WORKS {
        let known = known[work.name];
        let is_off = |count: f64| (count / known - 1.0).abs() > work.tolerance;
        let count = work.least(is_off);
        let (ratio, is_off) = (count / known, is_off(count));
        is_well &= !is_off;
        let each = if work.megabytes.is_some() { "for each MB" } else { "for each request" };
        let verdict = if is_off { "OFF" } else { "" };
        println!("| {}, {each} | {count:.0} | {known:.0} | {ratio:.2} × | {verdict} |", work.name);
    }
    if is_well {
        return ExitCode::SUCCESS;
    }
    println!(
        "OFF by more than it may be. Where that is meant, or is better: cargo bench --bench instructions -- --write, \
         and commit {} with the reason.",
        written().display()
    );
    ExitCode::FAILURE
}

impl Work {
    /// The least of a few counts, as long as it `goes_on`.
    fn least(&self, goes_on: impl Fn(f64) -> bool) -> f64 {
        let mut count = self.each();
        for _ in 1..MOST_COUNTS {
            if goes_on(count) {
                count = self.each().min(count);
            }
        }
        count
    }

    /// For one request, or one megabyte.
    fn each(&self) -> f64 {
        let [few, many] = self.times.map(|times| self.count(times));
        let [less, more] = self.times;
        (many - few) as f64 / (more - less) as f64 / self.megabytes.unwrap_or(1.0)
    }

    /// All that the program executes to do it so many times, its start and its end included.
    fn count(&self, times: u64) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let (cache, out) = (folder.path().join("cache"), folder.path().join("callgrind.out"));
        std::fs::create_dir(&cache).unwrap();
        let upstream = Upstream::start();
        let mut command = Command::new(VALGRIND);
        command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", out.display()));
        command.arg(env!("CARGO_BIN_EXE_tidelock")).env("TOKIO_WORKER_THREADS", "1");
        let running = rivals::tidelock_by(command, &cache, upstream.port, "", "read_ahead = false\n");
        (self.run)(running.port, &upstream, times);
        drop(running);
        let output =
            Command::new("/usr/bin/callgrind_annotate").arg("--threshold=100").arg(&out).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let count =
            |line: &str| line.split_whitespace().next().unwrap().replace(',', "").parse::<u64>().unwrap();
        let total = text.lines().find(|line| line.ends_with("PROGRAM TOTALS")).expect("it ended in order");
        // valgrind has no processor with instructions for SHA-256. Without them hashing is all but everything, and nothing
        // else would show.
        let hashing = text.lines().filter(|line| line.contains(":sha2::")).map(count).sum::<u64>();
        count(total) - hashing
    }
}

fn written() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/instructions.toml")
}

/// An image that nobody has pulled yet.
fn image(upstream: &Upstream, seed: u64, layer: u64) -> Image {
    let image = Image::new(seed, 1, layer);
    upstream.hold(&image);
    image
}

fn manifest_hits(port: u16, upstream: &Upstream, times: u64) {
    let path = image(upstream, 1, LAYER).path();
    let mut client = Client::new(port, &Wire::Clear);
    for _ in 0..times {
        client.get(&path);
    }
}

fn blob_hits(port: u16, upstream: &Upstream, times: u64) {
    let image = image(upstream, 1, LAYER);
    let path = image.path_of(&image.layers[0]);
    let mut client = Client::new(port, &Wire::Clear);
    (0..times).for_each(|_| assert_eq!(client.get(&path), LAYER));
}

fn manifest_misses(port: u16, upstream: &Upstream, times: u64) {
    let mut client = Client::new(port, &Wire::Clear);
    for seed in 0..times {
        client.get(&image(upstream, seed, 1000).path());
    }
}

fn blob_misses(port: u16, upstream: &Upstream, times: u64) {
    let mut client = Client::new(port, &Wire::Clear);
    for seed in 0..times {
        let image = image(upstream, seed, LAYER);
        assert_eq!(client.get(&image.path_of(&image.layers[0])), LAYER);
    }
}

/// So many who all want a blob that takes a second to come in.
fn joined(port: u16, upstream: &Upstream, times: u64) {
    let image = image(upstream, 1, LAYER);
    upstream.slow(Slowness { connection: LAYER / 2, line: 0 });
    let path = image.path_of(&image.layers[0]);
    let (_, bytes) = load::read_all(port, &Wire::Clear, &vec![path; times as usize], 1);
    assert_eq!(bytes, times * LAYER);
    assert_eq!(upstream.counts().bytes, LAYER, "it was fetched once");
}
