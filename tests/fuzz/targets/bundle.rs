//! What was carried here as files: bundles, OCI layouts and archives of `docker save`, by whoever made them.
//!
//! The input is a tar, or, where it begins with `=`, what is put into one: `=name`, a line break and the content of each
//! file, up to the next line that begins so. `=name -> target` is a link.
#![no_main]

use std::io::Read;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use tidelock::bundle::Bundle;
use tidelock::oci::Digest;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.path().join("bundle.tar");
    let bytes = if data.starts_with(b"=") { packed(data) } else { data.to_vec() };
    std::fs::write(&path, &bytes).expect("a file");
    let name = "library/app:v1".parse().expect("an image");
    let Ok(bundle) = Bundle::open(&path, None, Some(&name)) else { return };
    for carried in bundle.images() {
        let Ok(needs) = bundle.needs(carried) else { continue };
        assert_eq!(needs.first(), Some(&carried.digest), "its own manifest comes first");
        assert!(is_whole(&bundle, &carried.digest), "it was proven");
        for digest in &needs {
            is_whole(&bundle, digest);
        }
    }
    for digest in bundle.unnamed() {
        is_whole(&bundle, digest);
    }
});

/// Reads all of it. Whether it is what its digest says.
fn is_whole(bundle: &Bundle, digest: &Digest) -> bool {
    let (Ok(size), Ok(content)) = (bundle.size(digest), bundle.read(digest)) else { return false };
    let mut bytes = Vec::new();
    content.take(1 << 20).read_to_end(&mut bytes).expect("it lies within the file");
    assert_eq!(size, Some(bytes.len() as u64));
    Digest::of(digest.algorithm(), &bytes) == *digest
}

/// The tar that an input describes.
fn packed(data: &[u8]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for file in parts(data) {
        let end = file.iter().position(|byte| *byte == b'\n').unwrap_or(file.len());
        let (name, content) = (&file[..end], file.get(end + 1..).unwrap_or_default());
        let (name, target) = match name.windows(4).position(|window| window == b" -> ") {
            Some(at) => (&name[..at], Some(&name[at + 4..])),
            None => (name, None),
        };
        let mut header = Header::new_gnu();
        // Not by the setters, which refuse names that lead elsewhere.
        let fields = header.as_gnu_mut().expect("it was made so");
        fill(&mut fields.name, name);
        fill(&mut fields.linkname, target.unwrap_or_default());
        header.set_entry_type(if target.is_some() { EntryType::Symlink } else { EntryType::Regular });
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).expect("memory takes it");
    }
    tar.into_inner().expect("memory takes it")
}

/// What is between lines that begin with `=`, the names first.
fn parts(data: &[u8]) -> Vec<&[u8]> {
    let begins: Vec<usize> = (0..data.len())
        .filter(|at| data[*at] == b'=' && (*at == 0 || data[*at - 1] == b'\n'))
        .chain([data.len() + 1])
        .collect();
    begins.windows(2).map(|pair| &data[pair[0] + 1..pair[1] - 1]).collect()
}

fn fill(field: &mut [u8], with: &[u8]) {
    let length = field.len().min(with.len());
    field[..length].copy_from_slice(&with[..length]);
}
