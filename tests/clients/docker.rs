//! The Docker daemon: finds the mirror by `registry-mirrors`, asks it as if it were Docker Hub.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::containerd::Containerd;
use crate::fakes::images::Algorithm;
use crate::support::{
    AS_SHIPPED, Daemon, Image, Visit, client, cold_then_cached, daemon, run, sha256, stdout,
};

/// A dockerd of its own, on a containerd of its own: it would use the machine's if there is one.
struct Docker {
    dir: PathBuf,
    daemon: Daemon,
    containerd: Containerd,
}

impl Docker {
    fn start(visit: &Visit<'_>) -> Self {
        let dir = visit.dir.join("d");
        fs::create_dir(&dir).unwrap();
        let containerd = Containerd::start(&dir.join("c"));
        fs::write(dir.join("empty.json"), "{}").unwrap();
        let mut command = daemon("/usr/sbin/dockerd", &dir);
        // No bridge and no rules: nothing runs, and the machine's network is left alone.
        command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]);
        command.args(["--bridge=none", "--config-file=empty.json"]);
        command.args(["--storage-driver", visit.storage("overlay2", "vfs")]);
        command.arg("--containerd").arg(containerd.socket()).arg("--host").arg(host(&dir));
        for (flag, name) in [("--data-root", "root"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(flag).arg(dir.join(name));
        }
        command.arg("--registry-mirror").arg(visit.mirror.url());
        let ready = || docker(&dir).arg("version").output().is_ok_and(|asked| asked.status.success());
        let daemon = Daemon::start(&mut command, &dir.with_extension("log"), ready);
        Self { dir, daemon, containerd }
    }

    /// Pulls one image, compares what the daemon knows of it, and reads a file of it.
    fn pull(&self, image: &Image, reference: &str) {
        run(docker(&self.dir).args(["pull", "--quiet", reference]));
        let inspected = stdout(docker(&self.dir).args(["image", "inspect", reference]));
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        let native = image.native();
        assert_eq!(inspected[0]["Id"], native.id);
        let digests = inspected[0]["RepoDigests"].to_string();
        // It says no other kind of digest, whatever it asked for.
        let is_said = digests.contains(&image.digest) || image.algorithm() != Algorithm::Sha256;
        assert!(is_said, "{reference} is not {}: {digests}", image.digest);
        assert_eq!(inspected[0]["RootFS"]["Layers"], serde_json::json!(native.diff_ids()));

        // Out of a container that is made and never run.
        let container = stdout(docker(&self.dir).args(["create", "--network=none", reference]));
        let file = self.dir.join(&container);
        let source = format!("{container}:/{}", native.witness.path);
        run(docker(&self.dir).args(["cp", "--follow-link", &source]).arg(&file));
        assert_eq!(sha256(&file), native.witness.sha256, "{reference}: {}", native.witness.path);
    }

    fn stop(self) {
        self.daemon.stop();
        self.containerd.stop();
    }
}

/// The command line of Debian: another one may come first in the caller's PATH.
fn docker(dir: &Path) -> Command {
    let mut command = client("/usr/bin/docker", dir);
    command.arg("--host").arg(host(dir));
    command
}

fn host(dir: &Path) -> String {
    format!("unix://{}/d.sock", dir.display())
}

/// Pulls every image for this machine.
pub(crate) fn pull(visit: &Visit<'_>) {
    let docker = Docker::start(visit);
    for image in visit.images.iter().filter(|image| image.is_for("docker")) {
        docker.pull(image, &image.reference());
        docker.pull(image, &image.exact_reference());
    }
    docker.stop();
}

#[test]
fn pulls_cold_and_from_the_cache() {
    cold_then_cached(AS_SHIPPED, pull);
}
