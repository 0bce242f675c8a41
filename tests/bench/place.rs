//! Where the blobs lie while they are measured.

use std::fs;
use std::path::{Path, PathBuf};

use super::cache::blob;

/// A folder that holds the caches, one at a time.
pub(crate) struct Place {
    folder: PathBuf,
    /// Blobs in the largest cache.
    pub(crate) most: u64,
}

/// A block of the file system for the blob, and its part of inodes, folders and index.
const FOR_EACH: u64 = 4_096 + 1_024;

/// For whatever else there is.
const BESIDES: u64 = 1 << 30;

impl Place {
    /// As the environment says.
    ///
    /// # Errors
    /// What is lacking, in words.
    pub(crate) fn new() -> Result<Place, String> {
        let folder = std::env::var_os("TIDELOCK_BENCH_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let most = std::env::var("TIDELOCK_BENCH_BLOBS").unwrap_or_else(|_| "1000000".to_owned());
        let most = most.parse().ok().filter(|most| *most >= crate::FEWEST).ok_or_else(|| {
            format!("TIDELOCK_BENCH_BLOBS = {most:?} must be a number, at least {}", crate::FEWEST)
        })?;
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let place = Place { folder, most };
        place.look_for_room()?;
        Ok(place)
    }

    fn look_for_room(&self) -> Result<(), String> {
        let stat = rustix::fs::statvfs(&self.folder).map_err(|error| error.to_string())?;
        let (free, needed) = (stat.f_bavail * stat.f_frsize, self.most * FOR_EACH + BESIDES);
        let lacks = |what: String| {
            let folder = self.folder.display();
            Err(format!(
                "{} blobs need {what} in {folder}: set TIDELOCK_BENCH_DIR to a folder that has them, or \
                 TIDELOCK_BENCH_BLOBS to a smaller number",
                self.most
            ))
        };
        if free < needed {
            return lacks(format!("{} MiB, and there are {} MiB", needed >> 20, free >> 20));
        }
        // Some file systems have as many inodes as they need, and say 0.
        if stat.f_files > 0 && stat.f_favail < self.most {
            return lacks(format!("as many inodes, and there are {}", stat.f_favail));
        }
        Ok(())
    }

    /// A cache of so many blobs that has no index; gone on drop.
    pub(crate) fn populate(&self, count: u64) -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix("million-").tempdir_in(&self.folder).unwrap();
        let blobs = folder.path().join("blobs/sha256");
        for byte in 0..=255u8 {
            fs::create_dir_all(blobs.join(format!("{byte:02x}"))).unwrap();
        }
        (0..count).for_each(|number| write(&blobs, number));
        folder
    }
}

fn write(blobs: &Path, number: u64) {
    let (digest, bytes) = blob(number);
    fs::write(blobs.join(&digest.hex()[..2]).join(digest.hex()), bytes).unwrap();
}
