//! containerd: finds the mirror in hosts.toml, says `?ns=docker.io`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{
    ALWAYS_ASK, Daemon, Image, Mirror, Visit, client, cold_then_cached, daemon, run, stdout, verify_blobs,
};

/// A containerd with its own root, state and socket.
pub(crate) struct Containerd {
    dir: PathBuf,
    daemon: Daemon,
}

impl Containerd {
    /// Starts it with everything below `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let config = dir.join("config.toml");
        // CRI wants CNI's directories, and the opt plugin makes /opt/containerd; nobody here needs either.
        let text = format!(
            r#"
            version = 2
            root = "{0}/root"
            state = "{0}/state"
            disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
            [grpc]
            address = "{0}/c.sock"
            "#,
            dir.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = daemon("/usr/bin/containerd", dir);
        let ready = || {
            client("/usr/bin/ctr", dir)
                .arg("--address")
                .arg(socket(dir))
                .arg("version")
                .output()
                .is_ok_and(|asked| asked.status.success())
        };
        let daemon = Daemon::start(command.arg("--config").arg(config), &dir.with_extension("log"), ready);
        Self { dir: dir.to_owned(), daemon }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.dir)
    }

    pub(crate) fn stop(self) {
        self.daemon.stop();
    }

    fn ctr(&self, args: &[&str]) -> std::process::Command {
        let mut command = client("/usr/bin/ctr", &self.dir);
        command.arg("--address").arg(self.socket()).args(args);
        command
    }

    /// Pulls and unpacks the native platform, then reads a file of it.
    fn pull(&self, visit: &Visit<'_>, hosts: &Path, image: &Image, reference: &str) {
        let snapshotter = visit.storage("overlayfs", "native");
        let pull = ["images", "pull", "--snapshotter", snapshotter, "--hosts-dir"];
        run(self.ctr(&pull).arg(hosts).arg(reference));
        let listed = stdout(self.ctr(&["images", "ls"]).arg(format!("name=={reference}")));
        assert!(listed.contains(&image.digest), "{reference} is not {}:\n{listed}", image.digest);

        // Mounted and read in one process: the mount lives in its namespace only.
        let witness = &image.native().witness;
        let script = r#"
            mkdir "$1"
            ctr --address "$2" images mount --snapshotter "$3" "$4" "$1" >&2 && sha256sum < "$1/$5"
        "#;
        let read = stdout(
            client("/bin/sh", &self.dir)
                .args(["-c", script, "sh"])
                .arg(self.dir.join(reference.replace(['/', ':'], "-")))
                .arg(self.socket())
                .args([snapshotter, reference, &witness.path]),
        );
        assert_eq!(format!("sha256:{}", &read[..64]), witness.sha256, "{reference}: {}", witness.path);
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("c.sock")
}

/// Pulls every image for this machine, then the content of all its platforms.
pub(crate) fn pull(visit: &Visit<'_>) {
    let hosts = hosts(&visit.dir, visit.mirror);
    let containerd = Containerd::start(&visit.dir.join("c"));
    let images: Vec<&Image> = visit.images.iter().filter(|image| image.is_for("containerd")).collect();
    for image in &images {
        if image.is_native() {
            containerd.pull(visit, &hosts, image, &image.reference());
            containerd.pull(visit, &hosts, image, &image.exact_reference());
        }
        // Not `images pull --all-platforms`: ctr 1.6 unpacks then what this machine cannot run.
        run(containerd
            .ctr(&["content", "fetch", "--all-platforms", "--hosts-dir"])
            .arg(&hosts)
            .arg(image.reference()));
    }
    let got = verify_blobs(&containerd.dir.join("root/io.containerd.content.v1.content/blobs/sha256"));
    for image in images {
        assert!(got.contains_key(&image.digest));
        for platform in &image.platforms {
            assert!(got.contains_key(&platform.manifest));
            assert!(
                platform.blobs().all(|blob| got.contains_key(blob)),
                "{} is incomplete",
                image.repository
            );
        }
    }
    containerd.stop();
}

/// Reads a bundle as containerd does: each image is there under its name, with all that it consists of.
pub(crate) fn import(dir: &Path, bundle: &Path, images: &[Image]) {
    let containerd = Containerd::start(&dir.join("import"));
    run(containerd.ctr(&["images", "import", "--no-unpack", "--all-platforms"]).arg(bundle));
    for image in images {
        let reference = image.reference();
        let listed = stdout(containerd.ctr(&["images", "ls"]).arg(format!("name=={reference}")));
        assert!(listed.contains(&image.digest), "{reference} is not {}:\n{listed}", image.digest);
    }
    let content = containerd.dir.join("root/io.containerd.content.v1.content/blobs/sha256");
    // It clears away, whenever it likes, what no image of its needs: not while this looks.
    containerd.stop();
    let got = verify_blobs(&content);
    for image in images {
        assert!(image.platforms.iter().all(|platform| platform.blobs().all(|blob| got.contains_key(blob))));
    }
}

/// Writes the hosts directory that sends docker.io to the mirror.
fn hosts(dir: &Path, mirror: Mirror) -> PathBuf {
    let hosts = dir.join("hosts");
    fs::create_dir_all(hosts.join("docker.io")).unwrap();
    // `server` is asked last. It defaults to the real registry, which must never be asked here.
    let url = mirror.url();
    let text = format!("server = \"{url}\"\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
    fs::write(hosts.join("docker.io/hosts.toml"), text).unwrap();
    hosts
}

#[test]
fn pulls_cold_and_from_the_cache() {
    cold_then_cached(ALWAYS_ASK, pull);
}
