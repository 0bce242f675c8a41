//! The scenario every client goes through: pull all images cold, then again without the upstream.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::image::{IMAGES, Image, Platform};
use super::process::client;
use super::servers::{Mirror, Tidelock, Upstream};

/// For `[freshness]`: every pull asks the upstream about its tag, and falls back on the cache only when that fails.
pub(crate) const ALWAYS_ASK: &str = "tag_ttl = \"0s\"\nstale_while_revalidate = \"0s\"\n";

/// For `[freshness]`: a pull soon after another asks nobody.
pub(crate) const AS_SHIPPED: &str = "";

/// A client's part of the scenario: pull every image, compare every digest.
pub(crate) type Pull = fn(&Visit<'_>);

/// What a client needs for one round of pulls: where the mirror is and an empty directory of its own.
pub(crate) struct Visit<'a> {
    pub(crate) mirror: Mirror,
    pub(crate) dir: PathBuf,
    pub(crate) images: &'a [Image],
    overlay: bool,
}

impl Visit<'_> {
    /// The name of the storage driver to use: `overlay`, or `copying` where no overlay can be mounted.
    pub(crate) fn storage<'n>(&self, overlay: &'n str, copying: &'n str) -> &'n str {
        if self.overlay { overlay } else { copying }
    }
}

/// An upstream, a mirror with an empty cache before it, and the directory of both.
struct Site {
    tidelock: Tidelock,
    upstream: Upstream,
    dir: TempDir,
}

impl Site {
    fn open(freshness: &str) -> Self {
        let images = &*IMAGES;
        // Below /tmp, not the target directory: the path of a Unix socket may have 107 bytes.
        let dir = tempfile::Builder::new().prefix("tidelock-").tempdir().unwrap();
        let upstream = Upstream::start(dir.path(), &images.storage, true);
        let tidelock = Tidelock::start(dir.path(), upstream.port, freshness);
        Self { tidelock, upstream, dir }
    }
}

/// Runs `pull` twice, each time with an empty directory: cold, then with the upstream gone.
///
/// `freshness` is the body of that table in the mirror's configuration.
pub(crate) fn cold_then_cached(freshness: &str, pull: Pull) {
    let Site { tidelock, upstream, dir } = Site::open(freshness);
    round(dir.path(), "cold", tidelock.mirror, &IMAGES.all, pull);
    assert_fetched_once(&upstream.stop());
    round(dir.path(), "cached", tidelock.mirror, &IMAGES.all, pull);
    tidelock.stop();
}

/// Has `carry` take all images from a mirror, before the upstream is gone.
pub(crate) fn from_a_mirror(carry: impl FnOnce(&Tidelock, &Path, &[Image])) {
    let Site { tidelock, upstream, dir } = Site::open(AS_SHIPPED);
    carry(&tidelock, dir.path(), &IMAGES.all);
    assert_fetched_once(&upstream.stop());
    tidelock.stop();
}

/// Runs all of `pulls` at once against a mirror that asks nobody, once `bring` has filled it with `images`.
pub(crate) fn offline(bring: impl FnOnce(&Tidelock, &Path), images: &[Image], pulls: &[(&str, Pull)]) {
    let dir = tempfile::Builder::new().prefix("tidelock-").tempdir().unwrap();
    let tidelock = Tidelock::start_offline(dir.path());
    bring(&tidelock, dir.path());
    at_once(dir.path(), tidelock.mirror, images, pulls);
    tidelock.stop();
}

/// Runs all of `pulls` at once against one cold mirror.
pub(crate) fn cold(pulls: &[(&str, Pull)]) {
    let Site { tidelock, upstream, dir } = Site::open(AS_SHIPPED);
    at_once(dir.path(), tidelock.mirror, &IMAGES.all, pulls);
    assert_fetched_once(&upstream.stop());
    tidelock.stop();
}

fn at_once(dir: &Path, mirror: Mirror, images: &[Image], pulls: &[(&str, Pull)]) {
    std::thread::scope(|scope| {
        for (name, pull) in pulls {
            scope.spawn(move || round(dir, name, mirror, images, *pull));
        }
    });
}

/// One round in an empty directory, which is gone afterwards.
fn round(parent: &Path, name: &str, mirror: Mirror, images: &[Image], pull: Pull) {
    let dir = parent.join(name);
    fs::create_dir(&dir).unwrap();
    let overlay = overlay_works(&dir);
    pull(&Visit { mirror, dir: dir.clone(), images, overlay });
    fs::remove_dir_all(&dir).unwrap();
}

/// Whether an overlay can be mounted below `dir`: not where that lies on an overlay itself, as in a container.
fn overlay_works(dir: &Path) -> bool {
    let script = "mkdir -p probe/l probe/u probe/w probe/m && cd probe && \
                  mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m";
    client("/bin/sh", dir).args(["-c", script]).output().is_ok_and(|tried| tried.status.success())
}

/// Nothing was asked for twice, and what a client on this machine needs did come from the upstream.
fn assert_fetched_once(asked: &[String]) {
    for image in &IMAGES.all {
        let prefix = format!("GET /v2/{}/", image.repository);
        let gets: Vec<_> = asked.iter().filter_map(|request| request.strip_prefix(&prefix)).collect();
        let listing = || format!("{}:\n{}", image.repository, gets.join("\n"));
        for blob in image.platforms.iter().flat_map(Platform::blobs) {
            // Where the machine is so busy that a connection is slow, a fetch has others take parts ahead of it: those are
            // its own, and `parallel` holds that each byte comes once.
            let of_blob = || gets.iter().filter(|get| get.contains(blob));
            let (times, parts) = (of_blob().filter(|get| !get.ends_with(" 206")).count(), of_blob().count());
            assert!(times <= 1, "{blob} was fetched {times} times from {}", listing());
            assert!(parts == 0 || times == 1, "parts of {blob} and nothing else came from {}", listing());
            let needed = image.native().blobs().any(|native| native == blob);
            assert!(times == 1 || !needed, "{blob} was never fetched from {}", listing());
        }
        // A manifest GET, by tag or by digest, is what Docker Hub counts.
        let counted = gets.iter().filter(|get| get.starts_with("manifests/")).count();
        assert!(counted <= image.manifests().len(), "{counted} counted requests to {}", listing());
    }
}
