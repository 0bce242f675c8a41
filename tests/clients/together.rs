//! Every client at once on a cold mirror: however many ask, each blob comes from the upstream once.

use crate::support::cold;
use crate::{containerd, docker, podman, skopeo};

#[test]
fn all_clients_at_once_fetch_each_blob_once() {
    cold(&[
        ("skopeo", skopeo::pull),
        ("podman", podman::pull),
        ("containerd", containerd::pull),
        ("docker", docker::pull),
    ]);
}
