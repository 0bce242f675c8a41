//! skopeo: names the mirror as the registry, takes every platform.

use std::fs;

use crate::support::{ALWAYS_ASK, Image, Visit, client, cold_then_cached, run, verify_blobs};

/// Copies every image with all its platforms to disk, by its tag and by its digest, and compares all digests.
pub(crate) fn pull(visit: &Visit<'_>) {
    for image in visit.images {
        let source = format!("docker://{}/{}:1", visit.mirror.address(), image.repository);
        let inspect = ["inspect", "--raw", "--tls-verify=false", &source];
        let manifest = run(client("/usr/bin/skopeo", &visit.dir).args(inspect)).stdout;
        assert_eq!(image.algorithm().digest(&manifest), image.digest, "{source}");
        if !image.is_for("skopeo") {
            continue;
        }
        copy(visit, image, &format!("{}:1", image.repository));
        copy(visit, image, &format!("{}@{}", image.repository, image.digest));
    }
}

/// Copies what has this name, which must be `image`, to disk.
pub(crate) fn copy(visit: &Visit<'_>, image: &Image, name: &str) {
    let out = visit.dir.join(name.replace(['/', ':', '@'], "-"));
    fs::create_dir(&out).unwrap();
    run(client("/usr/bin/skopeo", &visit.dir)
        .args(["--insecure-policy", "copy", "--all", "--preserve-digests", "--src-tls-verify=false"])
        .arg(format!("docker://{}/{name}", visit.mirror.address()))
        .arg(format!("dir:{}", out.display())));
    let manifest = fs::read(out.join("manifest.json")).unwrap();
    assert_eq!(image.algorithm().digest(&manifest), image.digest, "{name}");
    let got = verify_blobs(&out);
    for platform in &image.platforms {
        // An image without an index has its only manifest in manifest.json.
        assert!(platform.manifest == image.digest || got.contains_key(&platform.manifest), "{name}");
        assert!(got.contains_key(&platform.config), "{name}");
        for layer in &platform.layers {
            assert_eq!(got.get(&layer.digest), Some(&layer.size), "{name}");
        }
    }
}

#[test]
fn pulls_cold_and_from_the_cache() {
    cold_then_cached(ALWAYS_ASK, pull);
}
