//! Hashes of what lies on disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

/// `sha256:…` of a file.
pub(crate) fn sha256(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    digest(&hasher.finalize())
}

/// `sha256:…` of bytes in memory.
pub(crate) fn sha256_of(bytes: &[u8]) -> String {
    digest(&Sha256::digest(bytes))
}

fn digest(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Hashes each file of `dir` that is named by a sha256; gives digest and size of all that hold what they say.
pub(crate) fn verify_blobs(dir: &Path) -> BTreeMap<String, u64> {
    let mut blobs = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        // dir: layouts call the manifests of an index <hex>.manifest.json.
        let name = entry.file_name().into_string().unwrap();
        let hex = name.strip_suffix(".manifest.json").unwrap_or(&name);
        if hex.len() == 64 {
            assert_eq!(sha256(&entry.path()), format!("sha256:{hex}"), "{}", entry.path().display());
            blobs.insert(format!("sha256:{hex}"), entry.metadata().unwrap().len());
        }
    }
    blobs
}
