//! Hashes of what lies on disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::fakes::images::Algorithm;

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

/// The digest that a file's name and content give, where the name is that of a blob, and they agree.
///
/// # Panics
/// Where they do not.
fn digest_of(path: &Path) -> Option<String> {
    // dir: layouts call the manifests of an index <hex>.manifest.json.
    let name = path.file_name().unwrap().to_str().unwrap();
    let hex = name.strip_suffix(".manifest.json").unwrap_or(name);
    let algorithm = match hex.len() {
        64 => Algorithm::Sha256,
        128 => Algorithm::Sha512,
        _ => return None,
    };
    let digest = algorithm.digest(&fs::read(path).unwrap());
    assert_eq!(digest.split_once(':').unwrap().1, hex, "{}", path.display());
    Some(digest)
}

/// Hashes each file of `dir` that is named by a hash; gives digest and size of all that hold what they say.
pub(crate) fn verify_blobs(dir: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.filter_map(|entry| Some((digest_of(&entry.path())?, entry.metadata().unwrap().len()))).collect()
}
