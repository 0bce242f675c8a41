//! What is measured. Whoever is compared is measured in turn, several times, within one run.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::content::{Blob, Image};
use super::load::{self, Client, Wire};
use super::place::Place;
use super::rivals::{self, Core, Running};
use super::table::{Goal, Table};
use super::upstream::{Counts, Slowness, Upstream};

/// One of them.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Place, &Scale, &mut Table),
}

/// How much of it.
pub(crate) struct Scale {
    rounds: usize,
    /// Each reader reads its blob so often.
    times: usize,
    /// For wrk.
    time: Duration,
    /// Of a layer of the image that is pulled cold.
    layer: u64,
    /// Of the image that the herd wants.
    herd: u64,
}

pub(crate) const WORKS: [Work; 7] = [
    Work {
        name: "blobs",
        what: "cached blobs, one stream and sixteen",
        run: |place, scale, table| blobs(place, scale, table, false),
    },
    Work {
        name: "tls",
        what: "the same over TLS 1.3",
        run: |place, scale, table| blobs(place, scale, table, true),
    },
    Work { name: "manifests", what: "a cached manifest, 64 connections", run: manifests },
    Work { name: "cold", what: "manifests while blobs come from the disk", run: cold },
    Work { name: "misses", what: "cold pulls and first bytes, beside the upstream itself", run: misses },
    Work { name: "herd", what: "200 clients want one cold image", run: herd },
    Work { name: "memory", what: "idle, and with a thousand stalled clients", run: memory },
];

const MIB: u64 = 1 << 20;
/// A connection to a content delivery network on a good day.
const CAPPED: Slowness = Slowness { connection: 50_000_000, line: 0 };
/// A line of one gigabit a second.
const LINE: Slowness = Slowness { connection: 0, line: 125_000_000 };
const FREE: Slowness = Slowness { connection: 0, line: 0 };
const HERD: usize = 200;
const STALLED: usize = 1000;
/// Small things that are asked for one after the other.
const FIRST_BYTES: u64 = 40;

impl Scale {
    /// Four and a half minutes on two cores.
    pub(crate) fn quick() -> Scale {
        Scale { rounds: 5, times: 2, time: Duration::from_secs(2), layer: 64 * MIB, herd: 100 * MIB }
    }

    pub(crate) fn full() -> Scale {
        Scale { rounds: 7, times: 4, time: Duration::from_secs(4), layer: 256 * MIB, herd: 500 * MIB }
    }
}

/// nginx, Tidelock and docker-registry with the same things cached, and where each has them.
struct Scene {
    _upstream: Upstream,
    large: Image,
    many: Image,
    root: PathBuf,
    nginx: Running,
    ours: Running,
    docker: Option<Running>,
    wire: Wire,
}

/// What a work needs of it.
struct Setting {
    /// Of the one layer of an image.
    large: u64,
    /// Of each of the sixteen layers of another.
    many: u64,
    tls: bool,
    with_docker: bool,
    core: Core,
}

impl Scene {
    fn set(place: &Place, setting: Setting) -> Scene {
        let Setting { large, many, tls, with_docker, core } = setting;
        let (upstream, root) = (Upstream::start(), place.folder("root"));
        let (large, many) = (Image::new(1, 1, large), Image::new(2, 16, many));
        for image in [&large, &many] {
            upstream.hold(image);
            std::fs::write(root.join(&image.digest), &image.manifest).unwrap();
            for blob in image.blobs().filter(|blob| !root.join(&blob.digest).exists()) {
                blob.write(&root.join(&blob.digest));
            }
        }
        let here = place.folder("nginx");
        let (server, tls, wire) = if tls {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            let [certificate, key] = ["cert.pem", "key.pem"].map(|name| here.join(name));
            std::fs::write(&certificate, made.cert.pem()).unwrap();
            std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            let server = format!("tls = {{ cert = {certificate:?}, key = {key:?} }}");
            (server, Some((certificate, key)), Wire::tls(&made.cert))
        } else {
            (String::new(), None, Wire::Clear)
        };
        let files = tls.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        let nginx = rivals::nginx(&here, &root, files, core);
        let ours = rivals::tidelock(&place.folder("cache"), upstream.port, &server, "", core);
        let docker =
            with_docker.then(|| rivals::docker_registry(&place.folder("docker"), upstream.port, core));
        let scene = Scene { _upstream: upstream, large, many, root, nginx, ours, docker, wire };
        scene.warm();
        scene
    }

    /// Has everything pulled, twice: from the second time on it is cached and in memory.
    fn warm(&self) {
        let mirrors = [(&self.ours, &self.wire)]
            .into_iter()
            .chain(self.docker.iter().map(|docker| (docker, &Wire::Clear)));
        for (mirror, wire) in mirrors {
            for image in [&self.large, &self.many] {
                let mut client = Client::new(mirror.port, wire);
                for _ in 0..2 {
                    client.get(&image.tag_path());
                    client.get(&image.path());
                    image.blobs().for_each(|blob| assert_eq!(client.get(&image.path_of(blob)), blob.length));
                }
            }
        }
        let mut client = Client::new(self.nginx.port, &self.wire);
        self.large
            .blobs()
            .chain(self.many.blobs())
            .for_each(|blob| assert_eq!(client.get(&format!("/{}", blob.digest)), blob.length));
    }

    /// GB a second and processor seconds for each GB of one round.
    fn read(&self, who: &Running, wire: &Wire, image: &Image, times: usize) -> (f64, f64) {
        let is_nginx = who.port == self.nginx.port;
        let path = |blob: &Blob| if is_nginx { format!("/{}", blob.digest) } else { image.path_of(blob) };
        let paths: Vec<String> = image.layers.iter().map(path).collect();
        let before = who.cpu();
        let (time, bytes) = load::read_all(who.port, wire, &paths, times);
        let gigabytes = bytes as f64 / 1e9;
        (gigabytes / time.as_secs_f64(), (who.cpu() - before).as_secs_f64() / gigabytes)
    }
}

fn blobs(place: &Place, scale: &Scale, table: &mut Table, tls: bool) {
    let (large, many) = (1024 * MIB, 64 * MIB);
    let scene = Scene::set(place, Setting { large, many, tls, with_docker: !tls, core: Core::Any });
    let over = if tls { " over TLS 1.3" } else { "" };
    let (fast, cheap) = if tls { (1.2, 0.6) } else { (0.95, 1.1) };
    for (image, what) in [(&scene.large, "1 stream of 1 GiB"), (&scene.many, "16 streams of 64 MiB")] {
        let [mut ours, mut nginx, mut docker] = [const { (Vec::new(), Vec::new()) }; 3];
        for round in 0..scale.rounds {
            nginx.extend([scene.read(&scene.nginx, &scene.wire, image, scale.times)]);
            ours.extend([scene.read(&scene.ours, &scene.wire, image, scale.times)]);
            if let Some(rival) = scene.docker.as_ref().filter(|_| round < 2) {
                docker.extend([scene.read(rival, &Wire::Clear, image, 1)]);
            }
        }
        let work = format!("cached blob, {what}{over}");
        table.row(&work, "GB/s", ours.0.clone(), Some(("nginx", nginx.0)), Goal::Times(fast));
        table.row(&work, "CPU s/GB", ours.1.clone(), Some(("nginx", nginx.1)), Goal::Within(cheap));
        if scene.docker.is_some() {
            table.row(&work, "GB/s", ours.0, Some(("docker-registry", docker.0)), Goal::Open);
            table.row(&work, "CPU s/GB", ours.1, Some(("docker-registry", docker.1)), Goal::Open);
        }
    }
}

fn manifests(place: &Place, scale: &Scale, table: &mut Table) {
    let (large, many, core) = (MIB, MIB, Core::First);
    let scene = Scene::set(place, Setting { large, many, tls: false, with_docker: true, core });
    let (image, docker) = (&scene.many, scene.docker.as_ref().unwrap());
    for (path, what) in [(image.path(), "by digest"), (image.tag_path(), "by a fresh tag")] {
        let rivals =
            [(&scene.nginx, format!("/{}", image.digest)), (&scene.ours, path.clone()), (docker, path)];
        let mut rounds: [[Vec<f64>; 4]; 3] = Default::default();
        for round in 0..scale.rounds {
            // Far behind: twice is enough of the last one.
            let taking_part = if round < 2 { rivals.len() } else { rivals.len() - 1 };
            for ((who, path), figures) in rivals.iter().zip(&mut rounds).take(taking_part) {
                let before = who.cpu();
                let rate = load::wrk(who.port, path, 64, scale.time, Core::Second);
                let cpu = (who.cpu() - before).as_secs_f64() * 1000.0 / rate.requests;
                let [p50, p99] = [rate.p50, rate.p99].map(|time| time.as_secs_f64() * 1000.0);
                figures
                    .iter_mut()
                    .zip([rate.each_second, cpu, p50, p99])
                    .for_each(|(all, one)| all.push(one));
            }
        }
        let [nginx, ours, docker] = rounds;
        let work = format!("cached manifest {what}, 64 connections");
        let figures = ["requests/s", "CPU s/1000", "p50 ms", "p99 ms"];
        let goals = [Goal::Times(1.3), Goal::Open, Goal::Open, Goal::Within(1.0)];
        for (((figure, goal), ours), nginx) in figures.into_iter().zip(goals).zip(&ours).zip(nginx) {
            table.row(&work, figure, ours.clone(), Some(("nginx", nginx)), goal);
        }
        let [each_second, ..] = docker;
        table.row(
            &work,
            "requests/s",
            ours[0].clone(),
            Some(("docker-registry", each_second)),
            Goal::Times(50.0),
        );
    }
}

/// Takes what lies in these files out of memory.
fn forget(files: &[PathBuf]) {
    for path in files {
        let file = File::open(path).unwrap();
        rustix::fs::fsync(&file).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

fn cold(place: &Place, scale: &Scale, table: &mut Table) {
    let (large, many, core) = (MIB, 64 * MIB, Core::Any);
    let scene = Scene::set(place, Setting { large, many, tls: false, with_docker: false, core });
    let image = &scene.many;
    let cached = |blob: &Blob| {
        let hex = blob.digest.strip_prefix("sha256:").unwrap();
        place.folder("cache").join("blobs/sha256").join(&hex[..2]).join(hex)
    };
    let rivals: [(&Running, String, Vec<PathBuf>); 2] = [
        (
            &scene.nginx,
            format!("/{}", image.digest),
            image.layers.iter().map(|blob| scene.root.join(&blob.digest)).collect(),
        ),
        (&scene.ours, image.path(), image.layers.iter().map(cached).collect()),
    ];
    let mut slowest: [Vec<f64>; 2] = Default::default();
    let mut speeds: [Vec<f64>; 2] = Default::default();
    for _ in 0..scale.rounds {
        for (place, (who, path, files)) in rivals.iter().enumerate() {
            let stop = std::sync::atomic::AtomicBool::new(false);
            let rate = std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    // From the disk again and again, as long as wrk runs.
                    let mut speeds = Vec::new();
                    while !stop.load(std::sync::atomic::Ordering::Acquire) {
                        forget(files);
                        speeds.push(scene.read(who, &Wire::Clear, image, 1).0);
                    }
                    speeds
                });
                let rate = load::wrk(who.port, path, 8, scale.time, Core::Any);
                stop.store(true, std::sync::atomic::Ordering::Release);
                speeds[place].extend(reader.join().unwrap());
                rate
            });
            slowest[place].push(rate.p99.as_secs_f64() * 1000.0);
        }
    }
    let work = "cached manifest while 16 blobs come from the disk";
    let [[nginx, ours], [slow, fast]] = [slowest, speeds];
    table.row(work, "p99 ms", ours, Some(("nginx", nginx)), Goal::Within(1.0));
    table.row("those blobs", "GB/s", fast, Some(("nginx", slow)), Goal::Open);
}

/// Each byte, but for what is on its way when a connection is given up as others take over what it was to bring.
fn fetched_once(counts: &Counts, wanted: u64) {
    let most = wanted + wanted / 20 + 16 * MIB;
    assert!((wanted..=most).contains(&counts.bytes), "{} bytes of {wanted}", counts.bytes);
}

/// What a pull through an empty mirror takes; each object is asked for once.
fn pull_cold(place: &Place, upstream: &Upstream, image: &Image, more: &str) -> f64 {
    let mirror = rivals::tidelock(&place.empty("cold"), upstream.port, "", more, Core::Any);
    upstream.counts();
    let time = load::pull(mirror.port, image).as_secs_f64();
    let counts = upstream.counts();
    assert_eq!(counts.manifests, 1, "manifests fetched");
    fetched_once(&counts, image.blobs().map(|blob| blob.length).sum());
    time
}

fn misses(place: &Place, scale: &Scale, table: &mut Table) {
    let upstream = Upstream::start();
    let image = Image::new(3, 4, scale.layer);
    upstream.hold(&image);
    let plain = "read_ahead = false\nparallel_ranges = false\n";
    let (faster, no_slower) = (Goal::Within(0.6), Goal::Within(1.05));
    for (slowness, what, goal) in [
        (CAPPED, "each connection at 50 MB/s", faster),
        (LINE, "a line of 1 Gbit/s", no_slower),
        (FREE, "without a limit", no_slower),
    ] {
        upstream.slow(slowness);
        let [mut direct, mut ours, mut without] = [const { Vec::new() }; 3];
        for _ in 0..scale.rounds.min(3) {
            direct.push(load::pull(upstream.port, &image).as_secs_f64());
            ours.push(pull_cold(place, &upstream, &image, ""));
            without.push(pull_cold(place, &upstream, &image, plain));
        }
        let work = format!("cold pull of 4 × {} MiB, {what}", scale.layer / MIB);
        table.row(&work, "s", ours, Some(("direct", direct.clone())), goal);
        table.row(
            format!("{work}; no read-ahead, no ranges"),
            "s",
            without,
            Some(("direct", direct)),
            no_slower,
        );
    }
    upstream.slow(FREE);
    first_bytes(place, &upstream, table);
}

fn first_bytes(place: &Place, upstream: &Upstream, table: &mut Table) {
    let images: Vec<Image> = (0..FIRST_BYTES).map(|number| Image::new(100 + number, 1, 200_000)).collect();
    images.iter().for_each(|image| upstream.hold(image));
    let mirror = rivals::tidelock(&place.empty("cold"), upstream.port, "", "read_ahead = false\n", Core::Any);
    let [mut direct, mut ours] = [upstream.port, mirror.port].map(|port| Client::new(port, &Wire::Clear));
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    for what in ["cold manifest", "cold blob of 200 kB"] {
        let [mut theirs, mut own] = [const { Vec::new() }; 2];
        for image in &images {
            let path = if what == "cold manifest" { image.path() } else { image.path_of(&image.layers[0]) };
            theirs.push(millis(load::first_byte(&mut direct, &path)));
            own.push(millis(load::first_byte(&mut ours, &path)));
        }
        table.row(what, "first byte, ms", own, Some(("direct", theirs)), Goal::Above(2.0));
    }
}

fn herd(place: &Place, scale: &Scale, table: &mut Table) {
    let (upstream, here) = (Upstream::start(), place.folder("nginx"));
    let image = Image::new(4, 1, scale.herd);
    upstream.hold(&image);
    let (blob, root) = (&image.layers[0], place.folder("root"));
    blob.write(&root.join(&blob.digest));
    let nginx = rivals::nginx(&here, &root, None, Core::Any);
    let [mut ours, mut theirs, mut peak] = [const { Vec::new() }; 3];
    for _ in 0..scale.rounds.min(3) {
        theirs.push(
            load::read_all(nginx.port, &Wire::Clear, &vec![format!("/{}", blob.digest); HERD], 1)
                .0
                .as_secs_f64(),
        );
        let mirror = rivals::tidelock(&place.empty("cold"), upstream.port, "", "", Core::Any);
        upstream.counts();
        ours.push(
            load::read_all(mirror.port, &Wire::Clear, &vec![image.path_of(blob); HERD], 1).0.as_secs_f64(),
        );
        fetched_once(&upstream.counts(), blob.length);
        peak.push(mirror.memory("VmHWM:"));
    }
    let work = format!("{HERD} clients want one cold blob of {} MiB", scale.herd / MIB);
    table.row(&work, "s", ours, Some(("nginx, warm", theirs)), Goal::Within(1.2));
    table.row(&work, "peak MiB", peak, None, Goal::AtMost(64.0));
}

/// Clients that ask for a blob, and read no more than the head of the answer.
fn stall(port: u16, path: &str) -> Vec<TcpStream> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let ask = |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_exact(&mut [0; 12]).unwrap();
        stream
    };
    (0..STALLED).map(ask).collect()
}

/// Once it has not grown for a second.
fn settled(who: &Running, field: &str) -> f64 {
    let (mut least, mut since) = (0.0, Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(50));
        let now = who.memory(field);
        if now > least + 0.2 {
            (least, since) = (now, Instant::now());
        }
    }
    least
}

fn memory(place: &Place, _scale: &Scale, table: &mut Table) {
    let upstream = Upstream::start();
    let idle = rivals::tidelock(&place.empty("cold"), upstream.port, "", "", Core::Any);
    table.row("idle", "resident MiB", vec![settled(&idle, "VmRSS:")], None, Goal::AtMost(30.0));
    drop((idle, upstream));
    let (large, many, core) = (1024 * MIB, MIB, Core::Any);
    let scene = Scene::set(place, Setting { large, many, tls: false, with_docker: true, core });
    let blob = &scene.large.layers[0];
    let work = format!("{STALLED} stalled clients of a 1 GiB blob");
    let ours = stall(scene.ours.port, &scene.large.path_of(blob));
    let own = [settled(&scene.ours, "VmRSS:"), settled(&scene.ours, "RssAnon:")];
    drop(ours);
    let docker = scene.docker.as_ref().unwrap();
    let _theirs = stall(docker.port, &scene.large.path_of(blob));
    table.row(
        &work,
        "resident MiB",
        vec![own[0]],
        Some(("docker-registry", vec![settled(docker, "VmRSS:")])),
        Goal::AtMost(64.0),
    );
    table.row(&work, "of its own MiB", vec![own[1]], None, Goal::Open);
}
