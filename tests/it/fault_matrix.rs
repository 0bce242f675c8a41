//! Every fault at every stage of a pull: the client gets the exact bytes or a clean error in bounded time, and the
//! store keeps the exact blob or none (I1).
//!
//! A cell is a fault at a stage. Each is run three times: it strikes for a moment, it is there to stay, and it is there
//! to stay at the first of two endpoints. Body faults strike at the start, in the middle and at the end of the blob
//! itself; all others strike the request that the blob needs there: its first one, or the one that goes on from where
//! the first one broke.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::support::behaviour::{Auth, Redirect};
use crate::support::cdn::FakeCdn;
use crate::support::client::{PullError, Reply};
use crate::support::eventually::{eventually_eq, patience};
use crate::support::faults::{Fault as Wire, Gate, Match, Times};
use crate::support::house::{House, files, upstream};
use crate::support::images::{Blob, Image, is_digest_of};
use crate::support::registry::FakeRegistry;
use crate::support::site::Site;

const FAULTS: [Fault; 17] = [
    Fault::SlowFirstByte,
    Fault::Silence,
    Fault::Stall,
    Fault::Reset,
    Fault::Cut,
    Fault::Truncation,
    Fault::ExtraBytes,
    Fault::WrongBytes,
    Fault::WrongLength,
    Fault::Status(500),
    Fault::Status(502),
    Fault::Status(503),
    Fault::Unauthorized,
    Fault::ExpiredLink,
    Fault::Astray(Astray::Dns),
    Fault::Astray(Astray::Refused),
    Fault::Astray(Astray::Tls),
];

const LOOP: Fault = Fault::RedirectLoop;

const STAGES: [Stage; 6] =
    [Stage::Token, Stage::Head, Stage::Manifest, Stage::BlobStart, Stage::BlobMiddle, Stage::BlobEnd];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The head of the answer comes just after the time limit.
    SlowFirstByte,
    /// It never comes.
    Silence,
    /// The body stops.
    Stall,
    Reset,
    /// Closed before all that was announced has come.
    Cut,
    /// The body ends properly, too early.
    Truncation,
    ExtraBytes,
    WrongBytes,
    /// More is announced than there is.
    WrongLength,
    /// A burst of them.
    Status(u16),
    /// 401 where a good login was shown.
    Unauthorized,
    /// 403 from the CDN that it is sent to.
    ExpiredLink,
    /// It is sent to where nothing can be had.
    Astray(Astray),
    RedirectLoop,
}

/// What awaits it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Astray {
    /// A name that does not exist.
    Dns,
    /// A port where nobody listens.
    Refused,
    /// A certificate that nobody vouches for.
    Tls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Token,
    Head,
    Manifest,
    BlobStart,
    BlobMiddle,
    BlobEnd,
}

#[derive(Clone, Copy)]
struct Cell {
    fault: Fault,
    stage: Stage,
}

/// A registry with a CDN and one image, and where faults lead astray.
struct Scene {
    fake: FakeRegistry,
    cdn: FakeCdn,
    untrusted: Option<FakeRegistry>,
    refusing: TcpSocket,
    image: Image,
    layer: Blob,
}

/// A house, and where its cache is.
struct Mirror {
    house: House,
    memory: TempDir,
}

const LAYER: usize = 200_000;
/// Long enough for a healthy endpoint on a busy machine: only a fault shall be slower.
const LIMIT: Duration = Duration::from_millis(2500);
/// All attempts of a transfer, each to its time limit, and the waits in between.
const BOUND: Duration = Duration::from_secs(40);
const AT_ONCE: usize = 32;
/// More than are ever needed: the longest burst, and a tag, a manifest and a blob that meet it one after the other.
const MOST_PULLS: usize = 8;

/// Why a fault cannot be at a stage; `None` where it can.
fn is_excluded(Cell { fault, stage }: Cell) -> Option<&'static str> {
    use Fault::{Cut, ExpiredLink, ExtraBytes, Reset, Stall, Truncation, WrongBytes};
    match (stage, fault) {
        (Stage::Head, Stall | Reset | Cut | Truncation | ExtraBytes | WrongBytes) => {
            Some("the answer to a HEAD has no body: without its head it is silence")
        }
        (Stage::Token, ExpiredLink) => Some("a token service signs no links"),
        (Stage::BlobStart, ExtraBytes) => Some("what is too much comes after the last byte: the blob's end"),
        _ => None,
    }
}

fn cells() -> impl Iterator<Item = Cell> {
    let faults = FAULTS.into_iter().chain([LOOP]);
    let all = faults.flat_map(|fault| STAGES.map(|stage| Cell { fault, stage }));
    all.filter(|cell| is_excluded(*cell).is_none())
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.fault, self.stage)
    }
}

impl Cell {
    /// Where in the blob.
    fn offset(self) -> usize {
        match self.stage {
            Stage::BlobMiddle => LAYER / 2,
            Stage::BlobEnd => LAYER - 10,
            Stage::Token | Stage::Head | Stage::Manifest | Stage::BlobStart => 0,
        }
    }

    fn is_about_a_body(self) -> bool {
        use Fault::{Cut, ExtraBytes, Reset, Stall, Truncation, WrongBytes};
        matches!(self.fault, Stall | Reset | Cut | Truncation | ExtraBytes | WrongBytes)
    }

    /// Whether it strikes the request by which a blob is gone on with.
    fn is_about_the_rest(self) -> bool {
        match self.stage {
            Stage::BlobMiddle => !self.is_about_a_body() || self.fault == Fault::ExtraBytes,
            Stage::BlobEnd => !self.is_about_a_body(),
            Stage::Token | Stage::Head | Stage::Manifest | Stage::BlobStart => false,
        }
    }

    fn wire(self, scene: &Scene) -> Wire {
        let at = match self.stage {
            Stage::Token if self.fault == Fault::WrongBytes => 0,
            Stage::Token | Stage::Manifest => 20,
            _ => self.offset(),
        };
        match self.fault {
            Fault::SlowFirstByte => Wire::Latency(LIMIT + LIMIT / 4),
            Fault::Silence => Wire::hold_head(&Gate::new()),
            Fault::Stall => Wire::StallAfter(at),
            Fault::Reset => Wire::ResetAfter(at),
            Fault::Cut => Wire::CutAfter(at),
            Fault::Truncation => Wire::Truncate(at),
            Fault::ExtraBytes => Wire::Extra(7),
            Fault::WrongBytes => Wire::WrongBytesAt(at),
            Fault::WrongLength if self.stage == Stage::Head => Wire::header("content-length", "12345"),
            Fault::WrongLength => Wire::WrongLength,
            Fault::Status(status) => Wire::status(status),
            Fault::Unauthorized => Wire::status(401),
            Fault::ExpiredLink => Wire::status(403),
            Fault::Astray(astray) if self.stage == Stage::Token => {
                let realm =
                    format!("Bearer realm=\"{}/token\",service=\"registry.fake\"", scene.astray(astray));
                Wire::Status(401, String::new(), vec![("www-authenticate".to_owned(), realm)])
            }
            Fault::Astray(astray) => moved(&format!("{}/elsewhere", scene.astray(astray))),
            Fault::RedirectLoop => moved(""),
        }
    }

    /// Lets it strike at a scene, so often.
    fn strike(self, scene: &Scene, times: Times) {
        let Scene { fake, cdn, layer, .. } = scene;
        let blob = Match::blob(&layer.digest);
        let shown = Match::any().authorized(true);
        let (site, which): (&Site, Match) = match self.stage {
            Stage::Token if matches!(self.fault, Fault::Astray(_)) => {
                (fake, Match::path("/v2/").authorized(false))
            }
            Stage::Token => (fake.tokens(), Match::any()),
            Stage::Head => (fake, shown.and_path("/manifests/").method("HEAD")),
            Stage::Manifest => (fake, shown.and_path("/manifests/").method("GET")),
            Stage::BlobStart | Stage::BlobMiddle | Stage::BlobEnd if self.is_about_the_rest() => {
                (fake, blob.authorized(true).ranged(true))
            }
            Stage::BlobStart | Stage::BlobMiddle | Stage::BlobEnd => {
                (fake, blob.authorized(true).ranged(false))
            }
        };
        let site: &Site = if self.fault == Fault::ExpiredLink {
            fake.set(|behaviour| behaviour.redirect = Some(Redirect::cdn(cdn).with_manifests()));
            cdn
        } else {
            site
        };
        let which = if self.fault == Fault::ExpiredLink { self.at_the_cdn(layer) } else { which };
        if self.is_about_the_rest() {
            let first = Match::blob(&layer.digest).ranged(false);
            let first = if self.fault == Fault::ExpiredLink { first } else { first.authorized(true) };
            site.fault(first, times, Wire::CutAfter(self.offset()));
        }
        site.fault(which, times, self.wire(scene));
    }

    /// The CDN sees neither repositories nor logins.
    fn at_the_cdn(self, layer: &Blob) -> Match {
        match self.stage {
            Stage::Head => Match::path("/manifests/").method("HEAD"),
            Stage::Token | Stage::Manifest => Match::path("/manifests/").method("GET"),
            Stage::BlobStart => Match::path(&layer.digest).method("GET"),
            Stage::BlobMiddle | Stage::BlobEnd => Match::path(&layer.digest).method("GET").ranged(true),
        }
    }

    /// For a moment.
    fn moment(self) -> Times {
        if matches!(self.fault, Fault::Status(_)) { Times::N(3) } else { Times::Once }
    }

    /// Whether a client may be told this: an error that is true, or a body that is seen to be cut short.
    fn is_clean(self, error: &PullError) -> bool {
        match error {
            PullError::Status { reply, .. } => self.is_honest(reply),
            PullError::Truncated { .. } => true,
            // Cut before the head had gone out.
            PullError::Wire { error, .. } => error.0.contains("IncompleteMessage"),
            PullError::WrongDigest { .. } => false,
        }
    }

    fn is_honest(self, reply: &Reply) -> bool {
        // Who keeps everybody out is taken at his word: it may not be there.
        let is_hidden = matches!(self.fault, Fault::Unauthorized | Fault::ExpiredLink);
        let is_trouble = [502, 503, 504].contains(&reply.status) && reply.error_code() == "UNAVAILABLE";
        is_trouble || (is_hidden && reply.status == 404 && reply.error_code().ends_with("_UNKNOWN"))
    }
}

/// A redirect; to the same place where there is none.
fn moved(to: &str) -> Wire {
    Wire::Status(307, String::new(), vec![("location".to_owned(), to.to_owned())])
}

impl Scene {
    async fn new(cell: Cell) -> Scene {
        let (fake, image) = (FakeRegistry::start().await, Image::layers(3, &[LAYER]));
        fake.set(|behaviour| behaviour.auth = Auth::bearer());
        fake.push("library/app", "v1", &image);
        let untrusted = match cell.fault {
            Fault::Astray(Astray::Tls) => Some(FakeRegistry::start_tls().await),
            _ => None,
        };
        let refusing = TcpSocket::new_v4().unwrap();
        refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Scene {
            cdn: fake.start_cdn().await,
            fake,
            untrusted,
            refusing,
            layer: image.layer_blobs()[0].clone(),
            image,
        }
    }

    fn astray(&self, astray: Astray) -> String {
        match astray {
            // A label of more than 63 letters is no name to any resolver, so nobody else is asked.
            Astray::Dns => format!("http://{}.invalid", "x".repeat(64)),
            Astray::Refused => format!("http://{}", self.refusing.local_addr().unwrap()),
            Astray::Tls => self.untrusted.as_ref().unwrap().url(),
        }
    }
}

async fn mirror(endpoints: &[&Scene]) -> Mirror {
    mirror_of(endpoints.iter().map(|scene| scene.fake.url()).collect()).await
}

async fn mirror_of(urls: Vec<String>) -> Mirror {
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    // How long a disk takes to sync is no part of it.
    let memory = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let house = House::start(vec![upstream("docker.io", &urls)], |config| {
        config.cache.dir = memory.path().to_owned();
        config.upstreams[0].connect_timeout = LIMIT;
        config.upstreams[0].response_timeout = LIMIT;
        config.upstreams[0].idle_timeout = LIMIT;
    })
    .await;
    Mirror { house, memory }
}

impl Mirror {
    fn files(&self, folder: &str) -> Vec<(String, u64)> {
        files(&self.memory.path().join(folder))
    }

    async fn stop(self) {
        self.house.stop().await;
    }
}

/// One pull, in bounded time, with an error that a client may be told.
async fn pull(cell: Cell, mirror: &Mirror, image: &Image) -> Result<(), PullError> {
    let begun = Instant::now();
    let outcome = mirror.house.client().patient(BOUND).pull("library/app", "v1").await;
    assert!(begun.elapsed() < patience(BOUND), "{cell}: {:?}", begun.elapsed());
    let pulled = outcome.inspect_err(|error| assert!(cell.is_clean(error), "{cell}: {error}"))?;
    assert!(pulled.is(image), "{cell}: another image");
    Ok(())
}

/// No flight is left, what is counted is there, and every file is what its name says.
async fn is_sound(cell: Cell, mirror: &Mirror) {
    let Mirror { house, memory } = mirror;
    eventually_eq(0.0, || house.metric("tidelock_flights")).await;
    let sum = |files: Vec<(String, u64)>| files.iter().map(|(_, size)| size).sum::<u64>() as f64;
    let there = async || {
        sum(mirror.files("blobs")) + sum(mirror.files("ingest")) - house.metric("tidelock_cache_bytes").await
    };
    eventually_eq((cell.to_string(), 0.0), || async { (cell.to_string(), there().await) }).await;
    let folder = memory.path().join("blobs/sha256");
    for (name, _) in files(&folder) {
        let bytes = std::fs::read(path_of(&folder, &name)).unwrap();
        assert!(is_digest_of(&format!("sha256:{name}"), &bytes), "{cell}: {name} is not what it is called");
    }
}

fn path_of(folder: &Path, name: &str) -> std::path::PathBuf {
    folder.join(&name[..2]).join(name)
}

/// Runs all of them, and names those that fail.
async fn for_each_cell(check: impl AsyncFn(Cell)) {
    let outcomes = stream::iter(cells()).map(|cell| {
        let checked = AssertUnwindSafe(check(cell)).catch_unwind();
        async move { checked.await.err().map(|_| cell.to_string()) }
    });
    let failed: Vec<String> =
        outcomes.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
    assert!(failed.is_empty(), "{} cells failed: {failed:#?}", failed.len());
}

#[test]
fn every_fault_is_at_every_stage_or_it_is_said_why_not() {
    let (all, run) = ((FAULTS.len() + 1) * STAGES.len(), cells().count());
    assert_eq!((all, run), (108, 100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_strikes_for_a_moment() {
    for_each_cell(async |cell| {
        let scene = Scene::new(cell).await;
        cell.strike(&scene, cell.moment());
        let mirror = mirror(&[&scene]).await;
        let mut pulls = 1;
        while let Err(error) = pull(cell, &mirror, &scene.image).await {
            is_sound(cell, &mirror).await;
            assert!(pulls < MOST_PULLS, "{cell}: {error}");
            pulls += 1;
        }
        is_sound(cell, &mirror).await;
        assert_eq!(mirror.files("ingest"), [], "{cell}");
        assert_eq!(mirror.files("blobs").len(), 3, "{cell}: a manifest, its config and its layer");
        mirror.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_there_to_stay() {
    for_each_cell(async |cell| {
        let scene = Scene::new(cell).await;
        cell.strike(&scene, Times::Always);
        let mirror = mirror(&[&scene]).await;
        let outcome = pull(cell, &mirror, &scene.image).await;
        assert_eq!(outcome.is_ok(), cell.does_no_harm(), "{cell}");
        is_sound(cell, &mirror).await;
        mirror.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_endpoint_has_it() {
    for_each_cell(async |cell| {
        let (scene, well) = (Scene::new(cell).await, Scene::new(cell).await);
        cell.strike(&scene, Times::Always);
        let mirror = mirror(&[&scene, &well]).await;
        let mut outcome = pull(cell, &mirror, &scene.image).await;
        if cell.shows_too_late() {
            assert!(outcome.is_err(), "{cell}");
            is_sound(cell, &mirror).await;
            outcome = pull(cell, &mirror, &scene.image).await;
        }
        outcome.unwrap_or_else(|error| panic!("{cell}: {error}"));
        is_sound(cell, &mirror).await;
        mirror.stop().await;
    })
    .await;
}

/// The endpoint itself is where nothing can be had; then with a second one behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_itself_is_nowhere() {
    for astray in [Astray::Dns, Astray::Refused, Astray::Tls] {
        let cell = Cell { fault: Fault::Astray(astray), stage: Stage::Head };
        let scene = Scene::new(cell).await;
        let alone = mirror_of(vec![scene.astray(astray)]).await;
        pull(cell, &alone, &scene.image).await.expect_err(&cell.to_string());
        is_sound(cell, &alone).await;
        let both = mirror_of(vec![scene.astray(astray), scene.fake.url()]).await;
        pull(cell, &both, &scene.image).await.unwrap_or_else(|error| panic!("{cell}: {error}"));
        is_sound(cell, &both).await;
    }
}

impl Cell {
    /// A pull succeeds though it is there to stay.
    fn does_no_harm(self) -> bool {
        use Fault::{Cut, Reset, Stall, Truncation};
        match (self.stage, self.fault) {
            // Each try brings more of the blob, down to its end.
            (Stage::BlobMiddle | Stage::BlobEnd, Stall | Reset | Cut | Truncation) => true,
            // All that there is has come, whatever was announced of the rest.
            (Stage::BlobMiddle | Stage::BlobEnd, Fault::WrongLength) => true,
            // Sizes are believed when the bytes are in.
            (Stage::Head, Fault::WrongLength) => true,
            _ => false,
        }
    }

    /// By the time that anybody can know, wrong bytes are on their way to the client: whoever comes next is served.
    fn shows_too_late(self) -> bool {
        let is_blob = matches!(self.stage, Stage::BlobStart | Stage::BlobMiddle | Stage::BlobEnd);
        is_blob && matches!(self.fault, Fault::WrongBytes | Fault::ExtraBytes)
    }
}
