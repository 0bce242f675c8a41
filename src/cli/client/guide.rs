//! One function per client: its files, how they take effect, and what to know.

use std::fmt::Display;

use super::mirror::Mirror;
use crate::config::{Config, Upstream};

const READ_AT_PULL: &str = "nothing: hosts.toml is read at the next pull";

/// How to point one client at the mirror.
#[derive(Debug, Default)]
pub(super) struct Guide {
    /// What to write.
    pub(super) files: Vec<File>,
    /// What to run then.
    pub(super) then: Vec<String>,
    /// What else to know.
    pub(super) notes: Vec<String>,
}

/// A file of a client.
#[derive(Debug)]
pub(super) struct File {
    /// Where it goes.
    pub(super) path: String,
    /// What is in it.
    pub(super) body: String,
}

impl Guide {
    fn file(&mut self, path: impl Into<String>, body: impl Into<String>) {
        self.files.push(File { path: path.into(), body: body.into() });
    }

    fn then(&mut self, step: impl Into<String>) {
        self.then.push(step.into());
    }

    /// Adds something to know.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Where the client looks for the authority that signed the mirror's certificate, when it is a private
    /// one.
    fn note_authority(&mut self, mirror: &Mirror, place: impl Display) {
        if mirror.is_https() {
            self.note(format!("if a private authority signed the mirror's certificate: {place}"));
        }
    }
}

/// Docker's `registry-mirrors` serves docker.io only and, with the classic store, does not say which registry
/// is meant: it is right only where docker.io is the default. Other registries need the containerd store.
pub(super) fn docker(mirror: &Mirror, config: &Config) -> Guide {
    let mut guide = Guide::default();
    let is_hub = |upstream: &Upstream| upstream.default && upstream.registry.as_str() == "docker.io";
    let others: Vec<&Upstream> = config.upstreams.iter().filter(|upstream| !is_hub(upstream)).collect();
    if others.len() < config.upstreams.len() {
        let daemon = serde_json::json!({ "registry-mirrors": [mirror.to_string()] });
        guide.file("/etc/docker/daemon.json", format!("{daemon:#}\n"));
        guide.then("systemctl reload docker");
        guide.note("where daemon.json exists already, add the key to it");
    } else {
        guide.then(READ_AT_PULL);
        guide.note(
            "docker.io is not the mirror's default upstream, so Docker's registry-mirrors cannot be used",
        );
    }
    if let Some(other) = others.first() {
        hosts_files(&mut guide, "/etc/docker/certs.d", mirror, &others);
        guide.note(format!(
            "Docker reads hosts.toml only with the containerd image store (the default of fresh installations \
             since 29.0), at the next pull; with the classic store pull {}/{}/NAME instead",
            mirror.authority(),
            other.registry
        ));
    }
    let place = format!("put its certificate into /etc/docker/certs.d/{}/ca.crt", mirror.authority());
    guide.note_authority(mirror, place);
    guide
}

pub(super) fn containerd(mirror: &Mirror, config: &Config) -> Guide {
    let mut guide = certs_d(mirror, config);
    guide.note(
        "the CRI plugin (Kubernetes) reads these files when /etc/containerd/config.toml has config_path = \
         \"/etc/containerd/certs.d\" under [plugins.\"io.containerd.cri.v1.images\".registry] (containerd 2) or \
         [plugins.\"io.containerd.grpc.v1.cri\".registry] (containerd 1); after a change there: systemctl restart \
         containerd",
    );
    guide.note("ctr reads them with: ctr images pull --hosts-dir /etc/containerd/certs.d IMAGE");
    guide
}

pub(super) fn nerdctl(mirror: &Mirror, config: &Config) -> Guide {
    let mut guide = certs_d(mirror, config);
    guide.note("rootless, the files go under ~/.config/containerd/certs.d");
    guide
}

pub(super) fn podman(mirror: &Mirror, config: &Config) -> Guide {
    let mut guide = registries_conf(mirror, config);
    guide.then("nothing: podman, buildah and skopeo read it at every start");
    guide.note("without root, the file goes under ~/.config/containers/registries.conf.d");
    guide
}

pub(super) fn crio(mirror: &Mirror, config: &Config) -> Guide {
    let mut guide = registries_conf(mirror, config);
    guide.then("systemctl reload crio");
    guide
}

pub(super) fn buildkit(mirror: &Mirror, config: &Config) -> Guide {
    let mut guide = Guide::default();
    let mut body = String::new();
    for upstream in &config.upstreams {
        body.push_str(&format!("[registry.{}]\n", quoted(&upstream.registry)));
        body.push_str(&format!("  mirrors = [{}]\n\n", quoted(mirror.authority())));
    }
    if !mirror.is_https() {
        // How the mirror itself is spoken to stands under its own name.
        body.push_str(&format!("[registry.{}]\n  http = true\n", quoted(mirror.authority())));
    }
    guide.file("/etc/buildkit/buildkitd.toml", body.trim_end().to_owned() + "\n");
    guide.then("systemctl restart buildkit");
    guide.note(
        "with Docker: docker buildx create --use --driver docker-container --buildkitd-config \
         /etc/buildkit/buildkitd.toml",
    );
    guide.note(
        "a builder in a container has its own 127.0.0.1: give a --mirror that it can reach, or create it with \
         --driver-opt network=host",
    );
    let place = format!("add ca = [\"FILE\"] under [registry.{}]", quoted(mirror.authority()));
    guide.note_authority(mirror, place);
    guide
}

/// k3s writes containerd's hosts.toml from this file, and containerd says itself which registry is meant:
/// no rewrite is needed.
pub(super) fn k3s(mirror: &Mirror, config: &Config) -> Guide {
    let mut guide = Guide::default();
    let mut body = "mirrors:\n".to_owned();
    for upstream in &config.upstreams {
        body.push_str(&format!("  {}:\n    endpoint:\n", quoted(&upstream.registry)));
        body.push_str(&format!("      - {}\n", quoted(mirror)));
    }
    guide.file("/etc/rancher/k3s/registries.yaml", body);
    guide.then("systemctl restart k3s");
    guide.note("on every node; where only the agent runs: systemctl restart k3s-agent");
    guide.note("RKE2 takes the same file at /etc/rancher/rke2/registries.yaml");
    let place = format!("add configs: {{ {}: {{ tls: {{ ca_file: FILE }} }} }}", quoted(mirror.authority()));
    guide.note_authority(mirror, place);
    guide
}

/// The files of containerd, for all that use its resolver.
fn certs_d(mirror: &Mirror, config: &Config) -> Guide {
    let mut guide = Guide::default();
    let upstreams: Vec<&Upstream> = config.upstreams.iter().collect();
    hosts_files(&mut guide, "/etc/containerd/certs.d", mirror, &upstreams);
    guide.then(READ_AT_PULL);
    guide.note_authority(mirror, format!("add ca = \"FILE\" under [host.{}]", quoted(mirror)));
    guide
}

/// A hosts.toml per registry. `capabilities` keeps pushes away from the mirror; a dead mirror costs
/// `dial_timeout` per blob, 30 s if it were not set.
fn hosts_files(guide: &mut Guide, folder: &str, mirror: &Mirror, upstreams: &[&Upstream]) {
    for upstream in upstreams {
        let mut body = String::new();
        // The origin, which is asked when the mirror does not answer, is the last endpoint.
        if let Some(origin) = upstream.endpoints.last() {
            body.push_str(&format!("server = {}\n\n", quoted(origin.as_str().trim_end_matches('/'))));
        }
        body.push_str(&format!("[host.{}]\n", quoted(mirror)));
        body.push_str("  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"2s\"\n");
        guide.file(format!("{folder}/{}/hosts.toml", upstream.registry), body);
    }
}

/// The podman family never says which registry is meant, so the registry is the first part of the path.
fn registries_conf(mirror: &Mirror, config: &Config) -> Guide {
    let mut guide = Guide::default();
    let tables = config.upstreams.iter().map(|upstream| {
        let registry = &upstream.registry;
        let mut table = format!("[[registry]]\nprefix = {0}\nlocation = {0}\n\n", quoted(registry));
        let location = quoted(format!("{}/{registry}", mirror.authority()));
        table.push_str(&format!("[[registry.mirror]]\nlocation = {location}\n"));
        if !mirror.is_https() {
            table.push_str("insecure = true\n");
        }
        table
    });
    let body = tables.collect::<Vec<_>>().join("\n");
    guide.file("/etc/containers/registries.conf.d/50-tidelock.conf", body);
    let place = format!("put its certificate into /etc/containers/certs.d/{}/ca.crt", mirror.authority());
    guide.note_authority(mirror, place);
    guide
}

/// A string as TOML, JSON and YAML all write it. Hosts and URLs hold nothing that would need escaping.
fn quoted(text: impl Display) -> String {
    format!("\"{text}\"")
}
