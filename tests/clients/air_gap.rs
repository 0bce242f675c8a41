//! A bundle, from a mirror at a line to one at none, and as other programs read it.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::support::{Image, Tidelock, client, from_a_mirror, offline, run, stdout, verify_blobs};
use crate::{containerd, docker, podman, skopeo};

/// Where the half of the test beyond the gap finds what was carried.
const BUNDLE: &str = "TIDELOCK_TEST_BUNDLE";
/// And the key that it trusts.
const KEY: &str = "TIDELOCK_TEST_KEY";

#[test]
fn what_is_carried_is_pulled_by_every_client_where_there_is_no_route() {
    from_a_mirror(|tidelock, dir, images| {
        let references: Vec<String> = images.iter().map(Image::reference).collect();
        run(client("/usr/bin/minisign", dir).args(["-G", "-W", "-p", "own.pub", "-s", "own.key"]));
        let mut arguments = vec!["export", "-o", "site.tar", "--sign", "own.key"];
        arguments.extend(references.iter().map(String::as_str));
        tidelock.command(dir, &arguments);
        let bundle = dir.join("site.tar");
        as_others_read_it(dir, &bundle, images);
        as_docker_saved_it(tidelock, dir, &images[0]);
        // A namespace has only a loopback interface of its own, which is down, and no route.
        let mut beyond = Command::new("/usr/bin/unshare");
        beyond.arg("--net").arg(std::env::current_exe().unwrap());
        beyond.args(["air_gap::beyond_the_gap", "--exact", "--ignored", "--nocapture"]);
        let output = run(beyond.env(BUNDLE, &bundle).env(KEY, dir.join("own.pub")));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    });
}

/// Run by the test above, in a network namespace of its own.
#[test]
#[ignore = "the other half of a test, which runs it"]
fn beyond_the_gap() {
    run(Command::new("/usr/sbin/ip").args(["link", "set", "lo", "up"]));
    let nobody = TcpStream::connect("192.0.2.1:443").unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NetworkUnreachable);
    let bring = |tidelock: &Tidelock, dir: &Path| {
        let (bundle, key) = (std::env::var(BUNDLE).unwrap(), std::env::var(KEY).unwrap());
        tidelock.command(dir, &["import", &bundle, "--key", &key]);
    };
    offline(
        bring,
        &[
            ("skopeo", skopeo::pull),
            ("podman", podman::pull),
            ("containerd", containerd::pull),
            ("docker", docker::pull),
        ],
    );
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
