//! Layers: real gzipped tars, so that clients can unpack what they pull.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::files::{sha256, sha256_of};
use super::image::hex;
use crate::fakes::images::Algorithm;

/// Above 100 MB even where the files of /usr compress well.
const ROOT_FS_BYTES: u64 = 105_000_000;

/// One layer as a manifest and a configuration name it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) diff_id: String,
}

/// How a tar becomes a layer: what compresses it, and the hash that names the outcome.
pub(crate) struct Packing {
    pub(crate) compressor: &'static [&'static str],
    pub(crate) algorithm: Algorithm,
}

/// What nearly every image uses.
pub(crate) const GZIP: Packing =
    Packing { compressor: &["/bin/gzip", "-1", "--no-name"], algorithm: Algorithm::Sha256 };

/// A file that must be found, with these bytes, in the unpacked image.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Witness {
    pub(crate) path: String,
    pub(crate) sha256: String,
}

/// A layer of small files, written as `<hex>` into `out`; of none, an archive that ends where it begins.
pub(crate) fn of_files(out: &Path, packing: &Packing, files: &[(String, Vec<u8>)]) -> Layer {
    let stage = tempfile::tempdir_in(out).unwrap();
    for (name, bytes) in files {
        let path = stage.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let members: &[PathBuf] = if files.is_empty() { &[] } else { &[".".into()] };
    pack(out, packing, stage.path(), members, true)
}

/// A layer of more than 100 MB: as much of this machine's own /usr as it takes.
pub(crate) fn of_root_fs(out: &Path) -> (Layer, Witness) {
    let files = list(&["usr/bin", "usr/lib", "usr/share"]);
    // Programs shrink to about 40 %. Taken twice should they shrink further.
    let mut wanted = ROOT_FS_BYTES * 5 / 2;
    loop {
        let mut total = 0;
        let members: Vec<_> = files
            .iter()
            .take_while(|(_, size)| {
                total += size;
                total < wanted
            })
            .map(|(path, _)| path.clone())
            .collect();
        let layer = pack(out, &GZIP, Path::new("/"), &members, false);
        if layer.size >= ROOT_FS_BYTES {
            return (layer, witness_of(&files));
        }
        assert!(members.len() < files.len(), "/usr is too small to make a layer over 100 MB of");
        fs::remove_file(out.join(hex(&layer.digest))).unwrap();
        wanted = wanted * ROOT_FS_BYTES / layer.size * 11 / 10;
    }
}

/// The first file that is long enough to span many reads.
fn witness_of(files: &[(PathBuf, u64)]) -> Witness {
    let (path, _) = files.iter().find(|(path, size)| *size > 1 << 20 && is_file(path)).unwrap();
    Witness { path: path.to_str().unwrap().to_owned(), sha256: sha256(&Path::new("/").join(path)) }
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(Path::new("/").join(path)).unwrap().is_file()
}

/// Everything under `roots` (relative to /) with its size, directories before what is in them.
fn list(roots: &[&str]) -> Vec<(PathBuf, u64)> {
    let mut found = vec![("usr".into(), 0)];
    let mut open: Vec<PathBuf> = roots.iter().rev().map(PathBuf::from).collect();
    while let Some(path) = open.pop() {
        let full = Path::new("/").join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        if meta.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&full).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort_unstable_by(|a, b| b.cmp(a));
            open.extend(names.into_iter().map(|name| path.join(name)));
        }
        found.push((path, if meta.is_file() { meta.len() } else { 0 }));
    }
    found
}

/// `members` of `root` as a packed tar in `out`.
fn pack(out: &Path, packing: &Packing, root: &Path, members: &[PathBuf], recurse: bool) -> Layer {
    let tar = tempfile::NamedTempFile::new_in(out).unwrap();
    let names = out.join("members");
    let mut list = File::create(&names).unwrap();
    for member in members {
        list.write_all(member.as_os_str().as_bytes()).unwrap();
        list.write_all(b"\0").unwrap();
    }
    let recursion = if recurse { "--recursion" } else { "--no-recursion" };
    let made = Command::new("/bin/tar")
        .args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
        .arg("--file")
        .arg(tar.path())
        .arg("--directory")
        .arg(root)
        .args([recursion, "--null", "--files-from"])
        .arg(&names)
        .status()
        .unwrap();
    assert!(made.success(), "tar: {made}");
    fs::remove_file(&names).unwrap();
    let diff_id = sha256(tar.path());

    let packed = tempfile::NamedTempFile::new_in(out).unwrap();
    let made = Command::new(packing.compressor[0])
        .args(&packing.compressor[1..])
        .stdin(File::open(tar.path()).unwrap())
        .stdout(Stdio::from(packed.reopen().unwrap()))
        .status()
        .unwrap();
    assert!(made.success(), "{:?}: {made}", packing.compressor);
    let bytes = fs::read(packed.path()).unwrap();
    let digest = packing.algorithm.digest(&bytes);
    packed.persist(out.join(hex(&digest))).unwrap();
    Layer { digest, size: bytes.len() as u64, diff_id }
}

/// Bytes that do not compress, always the same for one `seed`.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

/// The witness to a file given by its bytes.
pub(crate) fn witness(path: &str, bytes: &[u8]) -> Witness {
    Witness { path: path.to_owned(), sha256: sha256_of(bytes) }
}
