//! A bundle, from a mirror at a line to one at none, and as other programs read it.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fakes::registry::FakeRegistry;
use crate::support::{
    AS_SHIPPED, IMAGES, Image, Pull, Tidelock, client, from_a_mirror, offline, run, stdout, verify_blobs,
};
use crate::{containerd, docker, podman, skopeo};

/// Where the half of the test beyond the gap finds what was carried.
const BUNDLE: &str = "TIDELOCK_TEST_BUNDLE";
/// And the key that it trusts.
const KEY: &str = "TIDELOCK_TEST_KEY";

#[test]
fn what_is_carried_is_pulled_by_every_client_where_there_is_no_route() {
    from_a_mirror(|tidelock, dir, images| {
        let bundle = carry(tidelock, dir, images);
        as_others_read_it(dir, &bundle, images);
        as_docker_saved_it(tidelock, dir, &images[0]);
        beyond(dir, "beyond_the_gap");
    });
}

/// Run by the test above, in a network namespace of its own.
#[test]
#[ignore = "the other half of a test, which runs it"]
fn beyond_the_gap() {
    there(&IMAGES.all, &PULLS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_images_of_all_shapes_are_pulled_by_every_client_where_there_is_no_route() {
    let dir = tempfile::Builder::new().prefix("tidelock-").tempdir().unwrap();
    let hub = FakeRegistry::start().await;
    IMAGES.push_shapes(&hub);
    let tidelock = Tidelock::start(dir.path(), hub.addr().port(), AS_SHIPPED);
    tokio::task::block_in_place(|| {
        let references = IMAGES.shapes.images.iter().map(Image::reference);
        let warm: Vec<String> = ["warm".to_owned()].into_iter().chain(references).collect();
        tidelock.command(dir.path(), &warm.iter().map(String::as_str).collect::<Vec<_>>());
    });
    // What is exported is what the warming fetched.
    hub.stop().await;
    tokio::task::block_in_place(|| {
        carry(&tidelock, dir.path(), &IMAGES.shapes.images);
        beyond(dir.path(), "all_shapes_beyond_the_gap");
        tidelock.stop();
    });
}

/// Run by the test above, in a network namespace of its own.
#[test]
#[ignore = "the other half of a test, which runs it"]
fn all_shapes_beyond_the_gap() {
    let signature: (&str, Pull) = ("signature", |visit| {
        let signature = &IMAGES.shapes.signature;
        skopeo::copy(visit, signature, &format!("{}@{}", signature.repository, signature.digest));
    });
    there(&IMAGES.shapes.images, &[&PULLS[..], &[signature]].concat());
}

const PULLS: [(&str, Pull); 4] = [
    ("skopeo", skopeo::pull),
    ("podman", podman::pull),
    ("containerd", containerd::pull),
    ("docker", docker::pull),
];

/// Exports images into a bundle with a signature.
fn carry(tidelock: &Tidelock, dir: &Path, images: &[Image]) -> PathBuf {
    run(client("/usr/bin/minisign", dir).args(["-G", "-W", "-p", "own.pub", "-s", "own.key"]));
    let references: Vec<String> = images.iter().map(Image::reference).collect();
    let mut arguments = vec!["export", "-o", "site.tar", "--sign", "own.key"];
    arguments.extend(references.iter().map(String::as_str));
    tidelock.command(dir, &arguments);
    dir.join("site.tar")
}

/// Runs the other half of a test with what [`carry`] left in `dir`, in a namespace that has only a loopback interface of
/// its own, which is down, and no route.
fn beyond(dir: &Path, half: &str) {
    let mut command = Command::new("/usr/bin/unshare");
    command.arg("--net").arg(std::env::current_exe().unwrap());
    command.args([&format!("air_gap::{half}"), "--exact", "--ignored", "--nocapture"]);
    let output = run(command.env(BUNDLE, dir.join("site.tar")).env(KEY, dir.join("own.pub")));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
}

/// What that half does.
fn there(images: &[Image], pulls: &[(&str, Pull)]) {
    run(Command::new("/usr/sbin/ip").args(["link", "set", "lo", "up"]));
    let nobody = TcpStream::connect("192.0.2.1:443").unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NetworkUnreachable);
    let bring = |tidelock: &Tidelock, dir: &Path| {
        let (bundle, key) = (std::env::var(BUNDLE).unwrap(), std::env::var(KEY).unwrap());
        tidelock.command(dir, &["import", &bundle, "--key", &key]);
    };
    offline(bring, images, pulls);
}

/// A bundle is an OCI layout like any other.
fn as_others_read_it(dir: &Path, bundle: &Path, images: &[Image]) {
    let unpacked = dir.join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    run(client("/usr/bin/tar", &unpacked).arg("xf").arg(bundle));
    run(client("/usr/bin/cksum", &unpacked).args(["--check", "--quiet", "CHECKSUMS"]));
    let key = dir.join("own.pub");
    run(client("/usr/bin/minisign", &unpacked).args(["-V", "-m", "CHECKSUMS", "-p"]).arg(key));
    containerd::import(dir, bundle, images);
    // What these look up by name in a layout is of OCI's types alone, in the versions of Debian 12.
    let is_of_oci = |image: &&Image| {
        let manifest = unpacked.join("blobs").join(image.digest.replace(':', "/"));
        std::fs::read_to_string(manifest).unwrap().contains("application/vnd.oci.image")
    };
    let images: Vec<&Image> = images.iter().filter(is_of_oci).collect();
    assert!(images.len() > 1);
    for image in images {
        podman::load(dir, bundle, image);
        let source = format!("oci-archive:{}:{}", bundle.display(), image.reference());
        let manifest = run(client("/usr/bin/skopeo", dir).args(["inspect", "--raw", &source])).stdout;
        assert_eq!(crate::support::sha256_of(&manifest), image.digest);
        let config =
            stdout(client("/usr/bin/skopeo", dir).args(["inspect", "--format", "{{.Layers}}", &source]));
        assert!(image.native().layers.iter().all(|layer| config.contains(&layer.digest)), "{config}");
    }
}

/// An archive as `docker save` and `podman save` write it has no manifest, and its layers are not compressed.
fn as_docker_saved_it(tidelock: &Tidelock, dir: &Path, image: &Image) {
    let source = format!("docker://{}/{}:1", tidelock.mirror.address(), image.repository);
    run(client("/usr/bin/skopeo", dir)
        .args(["--insecure-policy", "copy", "--src-tls-verify=false", &source])
        .arg("docker-archive:saved.tar:docker.io/library/saved:1"));
    let told = tidelock.command(dir, &["import", "saved.tar"]);
    assert!(told.contains("docker.io/library/saved:1 is sha256:"), "{told}");
    let taken = format!("docker://{}/library/saved:1", tidelock.mirror.address());
    run(client("/usr/bin/skopeo", dir).args([
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        &taken,
        "dir:taken",
    ]));
    let got = verify_blobs(&dir.join("taken"));
    assert!(image.native().diff_ids().iter().all(|layer| got.contains_key(layer)), "{got:?}");
}
