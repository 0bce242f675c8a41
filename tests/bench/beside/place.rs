//! Where all of it lies, and what must be installed.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder for everything, which goes when this does.
pub(crate) struct Place {
    folder: TempDir,
}

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 3] = [
    ("/usr/sbin/nginx", "nginx-light"),
    ("/usr/bin/docker-registry", "docker-registry"),
    ("/usr/bin/wrk", "wrk"),
];

/// The blobs in up to three copies, and room for those that come through.
const NEEDED: u64 = 12 << 30;

impl Place {
    /// In `TIDELOCK_BENCH_DIR`, or in the target directory.
    ///
    /// # Errors
    /// What is lacking, in words.
    pub(crate) fn new() -> Result<Place, String> {
        for (program, package) in PROGRAMS {
            if !Path::new(program).exists() {
                return Err(format!("{program} is not there: apt-get install {package}"));
            }
        }
        let folder = std::env::var_os("TIDELOCK_BENCH_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let made = fs::create_dir_all(&folder).and_then(|()| TempDir::with_prefix_in("beside-", &folder));
        let made = made.map_err(|error| format!("{}: {error}", folder.display()))?;
        let stat = rustix::fs::statvfs(made.path()).map_err(|error| error.to_string())?;
        if stat.f_bavail * stat.f_frsize < NEEDED {
            let gib = NEEDED >> 30;
            return Err(format!("{} has less than {gib} GiB free: set TIDELOCK_BENCH_DIR", folder.display()));
        }
        Ok(Place { folder: made })
    }

    /// A folder in it, made where it is not there.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// The same, with nothing in it.
    pub(crate) fn empty(&self, name: &str) -> PathBuf {
        let _ = fs::remove_dir_all(self.folder.path().join(name));
        self.folder(name)
    }

    /// Where the results go.
    pub(crate) fn results(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("beside.json")
    }
}
