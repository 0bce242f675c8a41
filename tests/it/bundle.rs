//! Images carried out of one mirror and into another.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::faults::{Fault, Match, Times};
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;

const SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// Images of several shapes, one of them signed.
struct Scene {
    fake: FakeRegistry,
    images: Vec<Image>,
    signature: Image,
    near: House,
    media: tempfile::TempDir,
}

async fn scene() -> Scene {
    let fake = FakeRegistry::start().await;
    let images = vec![
        Image::layers(1, &[1000, 70_000, 0]),
        Image::multi_platform(2, &[5000]),
        Image::docker(3, &[2000]),
        Image::layers_sha512(4, &[3000]),
        Image::docker_list(vec![Image::docker(5, &[100]), Image::docker(6, &[100])]),
    ];
    for (number, image) in images.iter().enumerate() {
        fake.push(&format!("library/app{number}"), "v1", image);
    }
    let signature = Image::artifact(&images[1].top, SIGNATURE);
    signature.blobs.iter().for_each(|blob| fake.put_blob("library/app1", blob));
    fake.put_manifest("library/app1", &signature.top);
    let near = House::over(&fake).await;
    Scene { fake, images, signature, near, media: tempfile::tempdir().unwrap() }
}

/// A mirror at a site that reaches nobody.
async fn site() -> House {
    House::start(vec![upstream("docker.io", &["http://127.0.0.1:1"])], |config| config.offline = true).await
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.media.path().join(name)
    }

    /// Exports all images, and what else is given.
    async fn export(&self, file: &Path, more: &[&str]) -> Output {
        let names: Vec<String> = (0..self.images.len()).map(|number| format!("app{number}:v1")).collect();
        let mut arguments = vec!["export", "-o", file.to_str().unwrap()];
        arguments.extend(names.iter().map(String::as_str));
        arguments.extend(more);
        self.near.command(&arguments).await
    }

    /// All of it is served, byte for byte.
    async fn is_all_at(&self, site: &House) {
        for (number, image) in self.images.iter().enumerate() {
            let repository = format!("library/app{number}");
            for reference in ["v1", image.digest()] {
                let pulled = site.client().pull(&repository, reference).await;
                assert!(pulled.as_ref().is_ok_and(|pulled| pulled.is(image)), "{repository} {reference}");
            }
        }
        let path = format!("/v2/library/app1/referrers/{}", self.images[1].digest());
        let list = site.client().get(&path).await.json();
        assert_eq!(list["manifests"][0]["digest"], self.signature.digest(), "{list}");
        assert_eq!(list["manifests"][0]["artifactType"], SIGNATURE);
        assert!(
            site.client().pull("library/app1", self.signature.digest()).await.unwrap().is(&self.signature)
        );
    }
}

fn succeeded(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    out.into_owned()
}

fn failed(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{}{err}", String::from_utf8_lossy(&output.stdout));
    err
}

async fn import(site: &House, file: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["import", file.to_str().unwrap()];
    arguments.extend(more);
    site.command(&arguments).await
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_carried_over_is_served_where_nobody_can_be_asked() {
    let scene = scene().await;
    let (tar, folder) = (scene.path("site.tar"), scene.path("folder/"));
    succeeded(&scene.export(&tar, &[]).await);
    // From the cache alone, by now.
    scene.fake.stop().await;
    succeeded(&scene.export(&folder, &[]).await);
    let parts = scene.path("parts.tar");
    assert!(succeeded(&scene.export(&parts, &["--part-size", "1MiB"]).await).contains("parts.tar.001"));
    let again = scene.path("again.tar");
    succeeded(&scene.export(&again, &[]).await);
    assert_eq!(fs::read(&tar).unwrap(), fs::read(&again).unwrap(), "the same images make the same bundle");
    for bundle in [tar, folder, scene.path("parts.tar.001")] {
        let site = site().await;
        let told = succeeded(&import(&site, &bundle, &[]).await);
        assert!(told.contains("docker.io/library/app0:v1 is ") && told.contains("(new)"), "{told}");
        scene.is_all_at(&site).await;
        let site = site.restart(|_| {}).await;
        scene.is_all_at(&site).await;
        let told = succeeded(&import(&site, &bundle, &[]).await);
        assert!(told.contains("(unchanged)") && told.contains(" 0 blobs came"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_carries_what_is_new() {
    let scene = scene().await;
    let (base, delta, other) = (scene.path("base.tar"), scene.path("delta.tar"), scene.path("other.tar"));
    succeeded(&scene.export(&base, &[]).await);
    let mut sizes = vec![1000, 70_000, 0];
    sizes.push(33_000);
    let moved = Image::layers(1, &sizes);
    scene.fake.push("library/app0", "v1", &moved);
    succeeded(&scene.near.command(&["refresh", "app0:v1"]).await);
    let scene = Scene { images: [vec![moved], scene.images[1..].to_vec()].concat(), ..scene };
    let told = succeeded(&scene.export(&delta, &["--since", base.to_str().unwrap(), "--json"]).await);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(told["bytes"].as_u64().unwrap() < 45_000, "the layer and manifests: {told}");

    let site = site().await;
    let lacks = failed(&import(&site, &delta, &[]).await);
    assert!(
        lacks.contains("neither here nor in the bundle") && lacks.contains("app0:v1: sha256:"),
        "{lacks}"
    );
    assert_eq!(site.client().get("/v2/library/app0/manifests/v1").await.status, 404, "half of it is nothing");
    succeeded(&import(&site, &base, &[]).await);
    let told = succeeded(&import(&site, &delta, &[]).await);
    assert!(told.contains("app0:v1 is ") && told.contains("(was sha256:"), "{told}");
    scene.is_all_at(&site).await;

    // By what the site itself says.
    let inventory = scene.path("inventory");
    fs::write(&inventory, succeeded(&site.command(&["inventory"]).await)).unwrap();
    let told = succeeded(&scene.export(&other, &["--have", inventory.to_str().unwrap(), "--json"]).await);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(told["bytes"].as_u64().unwrap() < 12_000, "manifests alone: {told}");
    succeeded(&import(&site, &other, &[]).await);
    scene.is_all_at(&site).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_found_and_named() {
    let scene = scene().await;
    let folder = scene.path("folder/");
    succeeded(&scene.export(&folder, &[]).await);
    let victims = [&scene.images[0].layer_blobs()[1].digest, &scene.images[0].top.digest];
    for (number, victim) in victims.into_iter().enumerate() {
        let damaged = scene.path(&format!("damaged{number}"));
        copy(&folder, &damaged);
        let file = damaged.join("blobs").join(victim.replace(':', "/"));
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
        let site = site().await;
        let said = failed(&import(&site, &damaged, &[]).await);
        assert!(said.contains(victim.as_str()) && said.contains("app0:v1"), "{said}");
        assert_eq!(site.client().get("/v2/library/app0/manifests/v1").await.status, 404);
        let by_digest = format!("/v2/library/app0/manifests/{}", scene.images[0].digest());
        assert_eq!(site.client().get(&by_digest).await.status, 404, "nothing of it is visible");
        assert!(site.client().pull("library/app1", "v1").await.unwrap().is(&scene.images[1]), "others are");
        // And the bundle as it was brings the rest.
        succeeded(&import(&site, &folder, &[]).await);
        scene.is_all_at(&site).await;
    }
    let index = folder.join("index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("app0:v1", "app0:v2")).unwrap();
    assert!(failed(&import(&site().await, &folder, &[]).await).contains("index.json is damaged"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signed_with_the_key_that_is_trusted_or_not_at_all() {
    let scene = scene().await;
    let (own, other) = (keys(&scene, "own"), keys(&scene, "other"));
    let (signed, bare) = (scene.path("signed.tar"), scene.path("bare.tar"));
    succeeded(&scene.export(&signed, &["--sign", own.0.to_str().unwrap()]).await);
    succeeded(&scene.export(&bare, &[]).await);
    let site = site().await;
    for (bundle, key, why) in
        [(&signed, &other.1, "the signature is wrong"), (&bare, &own.1, "is not signed")]
    {
        let said = failed(&import(&site, bundle, &["--key", key.to_str().unwrap()]).await);
        assert!(said.contains(why), "{said}");
        assert!(site.blobs().is_empty(), "nothing was taken in");
    }
    // What is signed is a list; what does not stand in it is nobody's word.
    let (layout, forged) = (scene.path("signed/"), scene.path("forged/"));
    succeeded(&scene.export(&layout, &["--sign", own.0.to_str().unwrap()]).await);
    fs::create_dir(&forged).unwrap();
    for name in ["CHECKSUMS", "CHECKSUMS.minisig"] {
        fs::copy(layout.join(name), forged.join(name)).unwrap();
    }
    let row = r#"[{"Config":"c.json","RepoTags":["app0:v1"],"Layers":[]}]"#;
    fs::write(forged.join("manifest.json"), row).unwrap();
    fs::write(forged.join("c.json"), r#"{"rootfs":{"diff_ids":[]}}"#).unwrap();
    let said = failed(&import(&site, &forged, &["--key", own.1.to_str().unwrap()]).await);
    assert!(said.contains("nothing else can be signed"), "{said}");
    assert!(site.blobs().is_empty(), "nothing was taken in");
    succeeded(&import(&site, &signed, &["--key", own.1.to_str().unwrap()]).await);
    scene.is_all_at(&site).await;
    let no_key = failed(&import(&site, &signed, &["--key", signed.to_str().unwrap()]).await);
    assert!(no_key.contains("signed.tar"), "{no_key}");
}

/// A secret key and its public one, as `minisign -G -W` writes them.
fn keys(scene: &Scene, name: &str) -> (PathBuf, PathBuf) {
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let (secret, public) = (scene.path(&format!("{name}.key")), scene.path(&format!("{name}.pub")));
    fs::write(&secret, pair.sk.to_box(None).unwrap().into_string()).unwrap();
    fs::write(&public, pair.pk.to_box().unwrap().into_string()).unwrap();
    (secret, public)
}

/// Names and contents of files.
type Files<'a> = Vec<(&'a str, Option<&'a [u8]>)>;

/// A tar of these files; where there is no content, of links.
fn tar(path: &Path, files: &[(&str, Option<&[u8]>)]) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.map_or(0, <[u8]>::len) as u64);
        // As no library writes it.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        if content.is_none() {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        tar.append(&header, content.unwrap_or_default()).unwrap();
    }
    tar.finish().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_bundle_is_said_and_nothing_is_taken_in() {
    let scene = scene().await;
    let whole = scene.path("whole.tar");
    succeeded(&scene.export(&whole, &[]).await);
    let bytes = fs::read(&whole).unwrap();
    let cut = scene.path("cut.tar");
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let short = scene.path("short.tar");
    fs::write(&short, &bytes[..100]).unwrap();
    let (empty, text) = (scene.path("empty.tar"), scene.path("text.tar"));
    fs::write(&empty, b"").unwrap();
    fs::write(&text, vec![b'x'; 4096]).unwrap();
    let layout = ("oci-layout", Some(&b"{\"imageLayoutVersion\":\"1.0.0\"}"[..]));
    let index = ("index.json", Some(&b"{\"manifests\":[]}"[..]));
    let lost = br#"{"manifests":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                  "annotations":{"io.containerd.image.name":"docker.io/library/x:1"}}]}"#;
    let table: [(&str, Files<'_>, &str); 9] = [
        ("up", vec![layout, ("blobs/../../up", Some(b"x")), index], "leads out of it"),
        ("absolute", vec![layout, ("/etc/absolute", Some(b"x")), index], "leads out of it"),
        ("link", vec![layout, ("blobs/sha256/aa", None), index], "is a link"),
        ("twice", vec![layout, index, index], "index.json twice"),
        ("no layout", vec![index], "has no oci-layout"),
        ("no index", vec![layout], "has no index.json"),
        ("nothing", vec![layout, index], "names no image"),
        ("unlisted", vec![layout, index, ("CHECKSUMS", Some(b""))], "does not stand in CHECKSUMS"),
        ("lost", vec![layout, ("index.json", Some(lost))], "is missing"),
    ];
    let mut cases = vec![(cut, "is cut off in the midst of"), (short, "cannot be read as a tar")];
    cases.extend([
        (empty, "holds nothing"),
        (text, "cannot be read as a tar"),
        (scene.path("none.tar"), "No such file"),
    ]);
    for (name, files, why) in &table {
        let path = scene.path(&format!("{name}.tar"));
        tar(&path, files);
        cases.push((path, why));
    }
    let site = site().await;
    for (path, why) in cases {
        let said = failed(&import(&site, &path, &[]).await);
        assert!(said.contains(why) && said.lines().count() == 1, "{}: {said}", path.display());
        assert!(site.blobs().is_empty(), "{}", path.display());
    }
    let linked = scene.path("linked/");
    succeeded(&scene.export(&linked, &[]).await);
    let blob = linked.join("blobs").join(scene.images[0].layer_blobs()[1].digest.replace(':', "/"));
    fs::rename(&blob, scene.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(scene.path("elsewhere"), &blob).unwrap();
    assert!(failed(&import(&site, &linked, &[]).await).contains("links are not followed"));
    assert!(site.blobs().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_for_in_vain_is_the_next_bundles_list() {
    let scene = scene().await;
    let site = site().await;
    for path in
        ["/v2/library/app0/manifests/v1", "/v2/library/app2/manifests/v1", "/v2/library/app0/manifests/v1"]
    {
        let answer = site.client().get(path).await;
        assert_eq!(answer.status, 404);
        assert!(answer.text().contains("`tidelock import` here"), "{}", answer.text());
    }
    let site = site.restart(|_| {}).await;
    let list = scene.path("missing");
    let told = succeeded(&site.command(&["missing"]).await);
    assert!(
        told.starts_with("docker.io/library/app0:v1  # asked for 2 times") && told.lines().count() == 2,
        "{told}"
    );
    fs::write(&list, told).unwrap();
    let bundle = scene.path("next.tar");
    let (out, from) = (bundle.to_str().unwrap(), list.to_str().unwrap());
    succeeded(&scene.near.command(&["export", "--from", from, "-o", out]).await);
    succeeded(&import(&site, &bundle, &[]).await);
    assert!(site.client().pull("library/app2", "v1").await.unwrap().is(&scene.images[2]));
    assert_eq!(succeeded(&site.command(&["missing"]).await), "", "it is here now");
    site.client().get("/v2/library/app1/manifests/v1").await;
    assert_eq!(succeeded(&site.command(&["missing", "--clear"]).await).lines().count(), 1);
    assert_eq!(succeeded(&site.command(&["missing"]).await), "");
    fs::write(&list, "# nothing\n").unwrap();
    assert!(failed(&scene.near.command(&["warm", "--from", from]).await).contains("names no image"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_not_begun_with() {
    use tidelock::config::{ByteSize, SizeLimit};
    let scene = scene().await;
    let bundle = scene.path("site.tar");
    succeeded(&scene.export(&bundle, &[]).await);
    let site = House::start(vec![upstream("docker.io", &["http://127.0.0.1:1"])], |config| {
        (config.offline, config.cache.max_size) = (true, SizeLimit::Bytes(ByteSize(50_000)));
    });
    let site = site.await;
    let said = failed(&import(&site, &bundle, &[]).await);
    assert!(said.contains("raise cache.max_size"), "{said}");
    assert!(site.blobs().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_had_is_not_exported() {
    let scene = scene().await;
    scene.fake.fault(
        Match::blob(&scene.images[2].layer_blobs()[0].digest),
        Times::Always,
        Fault::status(404),
    );
    let bundle = scene.path("site.tar");
    let said = failed(&scene.export(&bundle, &[]).await);
    assert!(said.contains("docker.io/library/app2:v1: "), "{said}");
    assert!(fs::read_dir(scene.media.path()).unwrap().next().is_none(), "nor is half of it left");
    let odd = scene.near.command(&["export", "app0:v1", "-o", "x.tar", "--part-size", "7"]).await;
    assert_eq!(odd.status.code(), Some(2));
    let none = scene.near.command(&["export", "-o", "x.tar"]).await;
    assert_eq!(none.status.code(), Some(2), "an empty bundle is nobody's wish: {none:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_missing_from_a_bundle_is_said() {
    let scene = scene().await;
    // It was pulled, and nobody has asked what refers to it.
    assert!(scene.near.client().pull("library/app2", "v1").await.unwrap().is(&scene.images[2]));
    scene.near.settled().await;
    scene.fake.fault(Match::path("/referrers/"), Times::Always, Fault::status(500));
    let bundle = scene.path("site.tar");
    let output = scene.near.command(&["export", "app2:v1", "-o", bundle.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("app2:v1: more may refer to it"), "{said}");
    let bare = ["export", "app2:v1", "--no-referrers", "-o", bundle.to_str().unwrap()];
    assert_eq!(String::from_utf8_lossy(&scene.near.command(&bare).await.stderr), "");
}

/// As `docker save` wrote it before it knew OCI layouts, and podman still does. A layer that was there already is a link.
fn docker_save(path: &Path, config: &[u8], layers: &[Blob], link: &str) {
    let hex = |blob: &Blob| blob.digest["sha256:".len()..].to_owned();
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    };
    layers.iter().for_each(|layer| add(&format!("{}/layer.tar", hex(layer)), &layer.bytes));
    add("config.json", config);
    let first = format!("{}/layer.tar", hex(&layers[0]));
    let names: Vec<String> = layers.iter().map(|layer| format!("{}/layer.tar", hex(layer))).collect();
    let again = [vec!["again/layer.tar".to_owned()], names[1..].to_vec()].concat();
    let rows = serde_json::json!([
        { "Config": "config.json", "RepoTags": ["app:1", "docker.io/org/app:one"], "Layers": names },
        { "Config": "config.json", "RepoTags": ["app:2"], "Layers": again },
    ]);
    add("manifest.json", rows.to_string().as_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    let target = if link.is_empty() { format!("../{first}") } else { link.to_owned() };
    tar.append_link(&mut header, "again/layer.tar", target).unwrap();
    tar.finish().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_docker_save_wrote_is_taken_too() {
    let scene = scene().await;
    let layers = [Blob::random(71, 3000), Blob::random(72, 70_000)];
    let ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    let config = serde_json::json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = config.to_string().into_bytes();
    let (good, out, cut, flipped) =
        (scene.path("good.tar"), scene.path("out.tar"), scene.path("less.tar"), scene.path("flipped.tar"));
    docker_save(&good, &config, &layers, "");
    docker_save(&out, &config, &layers, "../../etc/passwd");
    docker_save(&cut, &config, &layers, "../gone/layer.tar");
    let mut bytes = fs::read(&good).unwrap();
    // Within the first layer, behind its header.
    bytes[1000] ^= 1;
    fs::write(&flipped, bytes).unwrap();

    let site = site().await;
    for (path, why) in [(&out, "leads out of it"), (&cut, "again/layer.tar is missing")] {
        assert!(failed(&import(&site, path, &[]).await).contains(why), "{}", path.display());
        assert!(site.blobs().is_empty());
    }
    let said = failed(&import(&site, &flipped, &[]).await);
    assert!(said.contains(&layers[0].digest), "{said}");
    for repository in ["library/app", "org/app"] {
        assert_eq!(site.client().get(&format!("/v2/{repository}/manifests/1")).await.status, 404);
    }
    let told = succeeded(&import(&site, &good, &[]).await);
    assert!(told.contains("docker.io/library/app:1 is sha256:") && told.contains("3 images"), "{told}");
    for (repository, tag) in [("library/app", "1"), ("library/app", "2"), ("org/app", "one")] {
        let client = site.client();
        let pulled = client.pull(repository, tag).await.unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&pulled.manifests[0].bytes).unwrap();
        assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
        for layer in &layers {
            assert_eq!(client.blob(repository, &layer.digest).await.unwrap(), layer.bytes);
        }
    }
}

/// One bit at a time, all over it. What is no content, the zeroes that fill a tar's blocks, may be anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_flipped_anywhere_is_found() {
    let fake = FakeRegistry::start().await;
    let image = Image::index(vec![Image::layers(91, &[900, 0]), Image::layers_sha512(92, &[700])]);
    fake.push("library/app", "v1", &image);
    let near = House::over(&fake).await;
    let media = tempfile::tempdir().unwrap();
    let whole = media.path().join("whole.tar");
    succeeded(&near.command(&["export", "app:v1", "-o", whole.to_str().unwrap()]).await);
    let bytes = fs::read(&whole).unwrap();
    let is_padding = |at: usize| bytes[at] == 0;
    let mut found = 0;
    for at in (0..bytes.len()).step_by(157).filter(|at| !is_padding(*at)) {
        let flipped = media.path().join("flipped.tar");
        let mut wrong = bytes.clone();
        wrong[at] ^= 1 << (at % 8);
        fs::write(&flipped, wrong).unwrap();
        let site = site().await;
        let said = failed(&import(&site, &flipped, &[]).await);
        assert!(!said.is_empty());
        let answer = site.client().get("/v2/library/app/manifests/v1").await;
        assert_eq!(answer.status, 404, "byte {at}: {said}");
        found += 1;
    }
    assert!(found > 20, "{found}");
}
