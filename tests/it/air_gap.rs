//! Thirty images of all shapes, from a line to where there is none: whatever is killed on the way.

use std::fs;
use std::process::Stdio;

use serde_json::Value;
use tokio::process::{Child, Command};

use crate::support::eventually::{eventually, within};
use crate::support::house::{House, Process, upstream};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

const SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const COUNT: usize = 30;

struct Scene {
    fake: FakeRegistry,
    images: Vec<Image>,
    signature: Image,
    media: tempfile::TempDir,
}

/// Index, OCI, Docker, zstd, sha512, an artifact, empty layers; some share layers.
fn shape(number: usize) -> Image {
    let seed = 100 + number as u64;
    match number % 10 {
        0 => Image::layers(seed, &[4000, 70_000, 0]),
        1 => Image::multi_platform(seed, &[5000, 300]),
        2 => Image::docker(seed, &[2000, 40_000]),
        3 => Image::layers_sha512(seed, &[3000, 10_000]),
        4 => Image::docker_list(vec![Image::docker(seed, &[900]), Image::docker(seed + 500, &[100])]),
        5 => Image::zstd(seed, &[20_000, 800]),
        6 => Image::index(vec![Image::layers(seed, &[700]), Image::docker(seed + 500, &[700])]),
        7 => Image::artifact(&Blob::random(seed, 10), "application/vnd.example.chart"),
        8 => Image::layers(7, &[60_000; 3][..1 + number / 10]),
        _ => Image::layers(seed, &[0, 0]),
    }
}

fn repository(number: usize) -> String {
    format!("library/app{number}")
}

impl Scene {
    async fn new() -> Scene {
        let fake = FakeRegistry::start().await;
        let images: Vec<Image> = (0..COUNT).map(shape).collect();
        for (number, image) in images.iter().enumerate() {
            fake.push(&repository(number), "v1", image);
        }
        let signature = Image::artifact(&images[1].top, SIGNATURE);
        signature.blobs.iter().for_each(|blob| fake.put_blob(&repository(1), blob));
        fake.put_manifest(&repository(1), &signature.top);
        let media = tempfile::tempdir().unwrap();
        let list: String = (0..COUNT).map(|number| format!("app{number}:v1\n")).collect();
        fs::write(media.path().join("list"), list).unwrap();
        Scene { fake, images, signature, media }
    }

    fn path(&self, name: &str) -> String {
        self.media.path().join(name).to_str().unwrap().to_owned()
    }

    /// All of it is served by tag and by digest, byte for byte.
    async fn is_all_at(&self, site: &House) {
        for (number, image) in self.images.iter().enumerate() {
            for reference in ["v1", image.digest()] {
                let pulled = site.client().pull(&repository(number), reference).await;
                assert!(pulled.is_ok_and(|pulled| pulled.is(image)), "app{number} {reference}");
            }
        }
        let signature = site.client().pull(&repository(1), self.signature.digest()).await;
        assert!(signature.unwrap().is(&self.signature));
    }

    /// What is served is whole; how many images that are.
    async fn is_whole_at(&self, site: &House) -> usize {
        let mut served = 0;
        for (number, image) in self.images.iter().enumerate() {
            let repository = repository(number);
            if site.client().get(&format!("/v2/{repository}/manifests/v1")).await.status == 404 {
                continue;
            }
            served += 1;
            let pulled = site.client().pull(&repository, "v1").await;
            assert!(pulled.is_ok_and(|pulled| pulled.is(image)), "half of {repository} is served");
        }
        // Nor by the digests of its manifests.
        for (number, image) in self.images.iter().enumerate() {
            let repository = repository(number);
            let path = format!("/v2/{repository}/manifests/{}", image.digest());
            if site.client().get(&path).await.status == 200 {
                let pulled = site.client().pull(&repository, image.digest()).await;
                assert!(pulled.is_ok_and(|pulled| pulled.is(image)), "half of {path} is served");
            }
        }
        served
    }
}

/// A mirror that reaches nobody.
async fn site() -> House {
    House::start(vec![upstream("docker.io", &["http://127.0.0.1:1"])], |config| config.offline = true).await
}

async fn told(house: &House, arguments: &[&str]) -> Value {
    let output = house.command(&[arguments, &["--json"]].concat()).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

/// The same in the background, to be killed.
fn begin(house: &House, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
    command.env_clear().args(arguments).args(["--admin", &house.admin_url()]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_images_there_and_a_layer_later() {
    let mut scene = Scene::new().await;
    let near = House::over(&scene.fake).await;
    let (list, base, delta) = (scene.path("list"), scene.path("base.tar"), scene.path("delta.tar"));
    told(&near, &["warm", "--from", &list]).await;
    scene.fake.clear();
    told(&near, &["warm", "--from", &list]).await;
    let gets = scene.fake.log().matching(|record| {
        record.method == "GET" && (record.path.contains("/blobs/") || record.path.contains("/manifests/sha"))
    });
    assert!(gets.is_empty(), "what is here is not fetched again: {gets:?}");
    told(&near, &["export", "--from", &list, "-o", &base]).await;

    let far = site().await;
    let came = told(&far, &["import", &base]).await;
    assert_eq!(came["images"].as_array().unwrap().len(), COUNT + 1, "and the signature");
    scene.is_all_at(&far).await;

    // One layer of one image changes.
    let changed = Image::layers(100, &[4000, 70_000, 9_000]);
    let new = changed.layer_blobs().last().unwrap().len() as u64;
    scene.fake.push(&repository(0), "v1", &changed);
    scene.images[0] = changed;
    told(&near, &["warm", "app0:v1"]).await;
    told(&near, &["export", "--from", &list, "-o", &delta, "--since", &base]).await;
    let (whole, part) = (fs::metadata(&base).unwrap().len(), fs::metadata(&delta).unwrap().len());
    assert!(part < whole / 5, "a delta of {part} bytes of a bundle of {whole}");
    let came = told(&far, &["import", &delta]).await;
    let bytes = came["bytes"].as_u64().unwrap();
    assert!((new..new + 2_000).contains(&bytes), "that layer, its config and its manifest: {came}");
    assert_eq!(came["blobs"], 3, "{came}");
    scene.is_all_at(&far).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_goes_on_whatever_was_killed() {
    let scene = Scene::new().await;
    let near = House::over(&scene.fake).await;
    let (list, bundle) = (scene.path("list"), scene.path("all.tar"));
    told(&near, &["export", "--from", &list, "-o", &bundle]).await;
    let mut far = site().await;
    for (round, blobs) in [1, 7, 20, 33, 50, 64].into_iter().enumerate() {
        let left = far.left();
        let process = Process::new();
        assert!(matches!(far.stop().await, tidelock::app::Ended::Drained));
        far = process.house(left.open(|_| {})).await;
        assert!(far.blobs().len() < blobs || round > 0, "{blobs}");
        let mut import = begin(&far, &["import", &bundle]);
        eventually(|| async { far.blobs().len() >= blobs || import.id().is_none() }).await;
        let left = far.left();
        if round % 2 == 0 {
            import.kill().await.unwrap();
            process.kill().await;
        } else {
            process.kill().await;
            within("the import to end", import.wait()).await.unwrap();
        }
        far = left.open(|_| {}).await;
        assert!(far.blobs().len() >= blobs, "what was taken in stays: {} of {blobs}", far.blobs().len());
        scene.is_whole_at(&far).await;
    }
    let here = far.blobs().len() as u64;
    let came = told(&far, &["import", &bundle]).await;
    // Three artifacts and a signature refer to something: the lists that say so are made here.
    let lists = 4;
    assert_eq!(
        came["blobs"].as_u64().unwrap() + here + lists,
        far.blobs().len() as u64,
        "it goes on: {came}"
    );
    assert_eq!(scene.is_whole_at(&far).await, COUNT);
    scene.is_all_at(&far).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warming_goes_on_whatever_was_killed() {
    let scene = Scene::new().await;
    let list = scene.path("list");
    let mut here = House::over(&scene.fake).await;
    let instants = [2, 9, 21, 34, 48, 60];
    for blobs in instants {
        let left = here.left();
        here.stop().await;
        let process = Process::new();
        here = process.house(left.open(|_| {})).await;
        let mut warm = begin(&here, &["warm", "--from", &list]);
        eventually(|| async { here.blobs().len() >= blobs || warm.id().is_none() }).await;
        let left = here.left();
        process.kill().await;
        within("the warming to end", warm.wait()).await.unwrap();
        here = left.open(|_| {}).await;
    }
    told(&here, &["warm", "--from", &list]).await;
    let gets = scene.fake.log().matching(|record| record.method == "GET" && record.path.contains("/blobs/"));
    let blobs: std::collections::HashSet<&str> =
        scene.images.iter().flat_map(|image| &image.blobs).map(|blob| blob.digest.as_str()).collect();
    // Four are fetched at once: so many may be under way at each kill, and not yet under their names.
    let most = blobs.len() + scene.signature.blobs.len() + 4 * 2 * instants.len();
    assert!(gets.len() <= most, "{} of {most}: what is here is not fetched again", gets.len());
    scene.fake.stop().await;
    let here = here.restart(|config| config.offline = true).await;
    scene.is_all_at(&here).await;
}
