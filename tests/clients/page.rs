//! The status page in a real browser: Debian's Chromium, driven by playwright-core through `page/drive.mjs`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt;
use tidelock::config::{Bandwidth, Warm};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::fakes::behaviour::RateLimit;
use crate::fakes::eventually::eventually_eq;
use crate::fakes::faults::{Fault, Match, Times};
use crate::fakes::house::House;
use crate::fakes::images::Image;
use crate::fakes::registry::FakeRegistry;

const PLAYWRIGHT: &str = "playwright-core@1.58.2";

/// What a browser takes at most, with all that a scene waits for.
const PATIENCE: Duration = Duration::from_secs(120);

const TOKEN: &str = "correct-horse-battery-staple";

/// Where pictures of the page are left, for people to look at.
fn pictures() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The folder with playwright-core, fetched once. It brings no browser along.
fn playwright() -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PLAYWRIGHT);
    if !folder.join("node_modules/playwright-core/package.json").exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let options =
            ["install", "--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"];
        let output = Command::new("npm").args(options).arg("--prefix").arg(&folder).arg(PLAYWRIGHT).output();
        let output = output.expect("npm, which comes with Node.js");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    folder
}

fn driver(scene: &str, house: &House) -> tokio::process::Command {
    assert!(Path::new("/usr/bin/chromium").exists(), "Debian's package chromium is not installed");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/page/drive.mjs");
    let mut command = tokio::process::Command::new("node");
    command.args([script, scene]).env("ADMIN", house.admin_url()).env("MIRROR", house.url());
    command.env("SHOTS", pictures()).env("TOKEN", TOKEN).env("PLAYWRIGHT", playwright());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn drive(scene: &str, house: &House) {
    let output = tokio::time::timeout(PATIENCE, driver(scene, house).output()).await.expect(scene).unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    eprintln!("{out}");
    assert!(output.status.success(), "{out}\n{err}");
}

async fn scene() -> FakeRegistry {
    let fake = FakeRegistry::start().await;
    for (n, tag) in ["v1", "v2"].into_iter().enumerate() {
        fake.push("library/app", tag, &Image::layers(n as u64, &[200_000, 50_000]));
    }
    fake
}

async fn pulled(house: &House) {
    for tag in ["v1", "v2"] {
        house.client().pull("library/app", tag).await.unwrap();
    }
    house.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nothing_in_it() {
    let fake = scene().await;
    let house = House::over(&fake).await;
    drive("empty", &house).await;
    assert_eq!(fake.total(), 0, "to look asks nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_something_goes_on() {
    let fake = scene().await;
    let slow = Image::layers(9, &[2_000_000]);
    fake.push("library/slow", "v1", &slow);
    let every = Duration::from_millis(50);
    let layer = Match::blob(&slow.layer_blobs()[0].digest);
    fake.fault(layer, Times::Always, Fault::Slow { chunk: 10_000, every });
    let house = House::over(&fake).await;
    pulled(&house).await;
    drive("busy", &house).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_images_kept_warm_where_nobody_can_be_asked() {
    let fake = scene().await;
    let house = House::with(&fake, |config| {
        config.warm = vec![Warm {
            name: "nightly".to_owned(),
            images: ["app:v*", "gone:v1"].map(|image| image.parse().unwrap()).into(),
            newest: None,
            platforms: Vec::new(),
            referrers: false,
            pin: false,
            every: Duration::from_secs(86_400),
            hours: None,
            bandwidth: Bandwidth::default(),
        }];
    });
    let house = house.await;
    let ended = "tidelock_warm_rounds_total{outcome=\"incomplete\",warm=\"nightly\"}";
    eventually_eq(1.0, || house.metric(ended)).await;
    let house = house.restart(|config| config.offline = true).await;
    drive("kept", &house).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nothing_left_to_pull() {
    let fake = scene().await;
    fake.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(100).remaining(0)));
    let house = House::with(&fake, |config| config.schedule.max_wait = Duration::from_millis(100)).await;
    drive("throttled", &house).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_keyboard_and_with_a_token() {
    let fake = scene().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let house = House::with(&fake, |config| config.admin.token_file = Some(file)).await;
    pulled(&house).await;
    fake.clear();
    drive("keyboard", &house).await;
    assert_eq!(fake.total(), 1, "the one HEAD of refresh");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_ten_thousand_images() {
    let fake = FakeRegistry::start().await;
    let image = Image::layers(1, &[1000]);
    fake.push("library/app", "v0", &image);
    let house = House::with(&fake, |config| config.upstreams[0].requests_per_second = 100_000).await;
    house.client().pull("library/app", "v0").await.unwrap();
    let tags = (1..10_000).map(|n| format!("v{n}"));
    tags.clone().for_each(|tag| fake.tag("library/app", &tag, image.digest()));
    let client = house.client();
    let heads = futures_util::stream::iter(tags).map(|tag| {
        let client = client.clone();
        async move { client.head(&format!("/v2/library/app/manifests/{tag}")).await.status }
    });
    assert!(heads.buffer_unordered(16).all(async |status| status == 200).await);
    drive("many", &house).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_mirror_goes_away() {
    let fake = scene().await;
    let house = House::over(&fake).await;
    let mut driver = driver("gone", &house).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("the page").unwrap();
    assert_eq!(line.as_deref(), Some("open"));
    house.stop().await;
    let status = tokio::time::timeout(PATIENCE, driver.wait()).await.expect("its end").unwrap();
    assert!(status.success());
}
