//! podman: finds the mirror in registries.conf, names the registry in the path.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{AS_SHIPPED, Image, Visit, client, cold_then_cached, run, stdout};

/// Pulls every image, compares what podman knows of it, and reads a file of it.
pub(crate) fn pull(visit: &Visit<'_>) {
    let registries = format!(
        "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\
         [[registry.mirror]]\nlocation = \"{}/docker.io\"\ninsecure = true\n",
        visit.mirror.address()
    );
    fs::write(visit.dir.join("registries.conf"), registries).unwrap();
    // By default the lock is in /dev/shm and the networks in /etc/cni, shared with any other podman here.
    let engine = format!(
        "[engine]\nlock_type = \"file\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
         [network]\nnetwork_config_dir = \"{}/networks\"\n",
        visit.dir.display()
    );
    fs::write(visit.dir.join("containers.conf"), engine).unwrap();
    for image in visit.images.iter().filter(|image| image.is_for("podman")) {
        pull_one(visit, image, &image.reference());
        pull_one(visit, image, &image.exact_reference());
    }
}

fn pull_one(visit: &Visit<'_>, image: &Image, reference: &str) {
    let flags = flags(visit);
    run(podman("/usr/bin/podman", visit).args(flags).args(["pull", "--quiet", reference]));
    let inspected =
        stdout(podman("/usr/bin/podman", visit).args(flags).args(["image", "inspect", reference]));
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let native = image.native();
    assert_eq!(format!("sha256:{}", inspected[0]["Id"].as_str().unwrap()), native.id);
    let digests = inspected[0]["RepoDigests"].to_string();
    assert!(digests.contains(&image.digest), "{reference} is not {}: {digests}", image.digest);
    assert_eq!(inspected[0]["RootFS"]["Layers"], serde_json::json!(native.diff_ids()));

    // Mounted and read in one process: the mount lives in its namespace only.
    let script =
        r#"image=$1 file=$2; shift 2; root=$(podman "$@" image mount "$image") && sha256sum < "$root/$file""#;
    let witness = &native.witness;
    let read =
        stdout(podman("/bin/sh", visit).args(["-c", script, "sh", reference, &witness.path]).args(flags));
    assert_eq!(format!("sha256:{}", &read[..64]), witness.sha256, "{reference}: {}", witness.path);
}

/// Takes an image out of a bundle as podman does.
pub(crate) fn load(dir: &Path, bundle: &Path, image: &Image) {
    let source = format!("oci-archive:{}:{}", bundle.display(), image.reference());
    let flags =
        ["--root", "load/root", "--runroot", "load/run", "--tmpdir", "load/tmp", "--storage-driver", "vfs"];
    let id = stdout(client("/usr/bin/podman", dir).args(flags).args(["pull", "--quiet", &source]));
    assert_eq!(format!("sha256:{id}"), image.native().id, "{source}");
}

/// Paths are relative to the home of the command.
fn flags<'a>(visit: &Visit<'_>) -> [&'a str; 8] {
    let driver = visit.storage("overlay", "vfs");
    ["--root", "root", "--runroot", "run", "--tmpdir", "tmp", "--storage-driver", driver]
}

fn podman(program: &str, visit: &Visit<'_>) -> Command {
    let mut command = client(program, &visit.dir);
    command.env("CONTAINERS_REGISTRIES_CONF", visit.dir.join("registries.conf"));
    command.env("CONTAINERS_CONF", visit.dir.join("containers.conf"));
    command
}

#[test]
fn pulls_cold_and_from_the_cache() {
    cold_then_cached(AS_SHIPPED, pull);
}
