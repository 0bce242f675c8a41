//! skopeo: names the mirror as the registry, takes every platform.

use std::fs;

use crate::support::{ALWAYS_ASK, Visit, client, cold_then_cached, run, sha256, verify_blobs};

/// Copies every image with all its platforms to disk and compares all digests.
pub(crate) fn pull(visit: &Visit<'_>) {
    for (n, image) in visit.images.iter().enumerate() {
        let out = visit.dir.join(n.to_string());
        fs::create_dir(&out).unwrap();
        run(client("/usr/bin/skopeo", &visit.dir)
            .args(["--insecure-policy", "copy", "--all", "--preserve-digests", "--src-tls-verify=false"])
            .arg(format!("docker://{}/{}:1", visit.mirror.address(), image.repository))
            .arg(format!("dir:{}", out.display())));
        assert_eq!(sha256(&out.join("manifest.json")), image.digest, "{}", image.repository);
        let got = verify_blobs(&out);
        for platform in &image.platforms {
            // An image without an index has its only manifest in manifest.json.
            assert!(platform.manifest == image.digest || got.contains_key(&platform.manifest));
            assert!(got.contains_key(&platform.config));
            for layer in &platform.layers {
                assert_eq!(got.get(&layer.digest), Some(&layer.size), "{}", image.repository);
            }
        }
    }
}

#[test]
fn pulls_cold_and_from_the_cache() {
    cold_then_cached(ALWAYS_ASK, pull);
}
