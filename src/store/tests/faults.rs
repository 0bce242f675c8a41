//! What a test does to the disk: the process dies just before the nth step, or steps fail.
//!
//! The plan is the process's own, so only children have one (`crash.rs`). Each step goes into a journal first, so that
//! the parent knows what was not on disk yet when the child died.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use super::super::disk::Step;

/// `kill:7`, or `fail:7:2:28`: two steps from the seventh on fail with error 28.
pub(super) const PLAN: &str = "TIDELOCK_TEST_STEPS";
/// A folder beside the cache: `journal`, and in `removed/` what was removed.
pub(super) const BESIDE: &str = "TIDELOCK_TEST_BESIDE";

#[derive(Debug, Clone, Copy)]
enum Plan {
    Kill(usize),
    Fail { from: usize, count: usize, error: i32 },
}

struct Director {
    plan: Plan,
    steps: AtomicUsize,
    beside: PathBuf,
    journal: File,
}

/// Indexes whose commits fail, by inode.
static FAILING: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// Whether commits of the index in this file fail from now on.
pub(in crate::store) fn fail_commits(file: &File, whether: bool) {
    let inode = file.metadata().unwrap().ino();
    let mut failing = FAILING.lock().unwrap();
    if whether {
        failing.insert(inode)
    } else {
        failing.remove(&inode)
    };
}

pub(in crate::store) fn reach(step: Step<'_>) -> io::Result<()> {
    if let Step::Commit(file) = step
        && FAILING.lock().unwrap().contains(&file.metadata()?.ino())
    {
        return Err(rustix::io::Errno::ROFS.into());
    }
    static DIRECTOR: OnceLock<Option<Director>> = OnceLock::new();
    DIRECTOR.get_or_init(Director::from_env).as_ref().map_or(Ok(()), |director| director.reach(step))
}

/// Writes a line of the test's own into the journal.
pub(super) fn tell(line: &str) {
    let path = PathBuf::from(std::env::var_os(BESIDE).unwrap()).join("journal");
    let mut journal = OpenOptions::new().append(true).create(true).open(path).unwrap();
    journal.write_all(format!("{line}\n").as_bytes()).unwrap();
}

impl Director {
    fn from_env() -> Option<Director> {
        let plan = std::env::var(PLAN).ok()?;
        let parts: Vec<&str> = plan.split(':').collect();
        let number = |at: usize| parts[at].parse().unwrap();
        let plan = match parts[0] {
            "kill" => Plan::Kill(number(1)),
            _ => Plan::Fail { from: number(1), count: number(2), error: parts[3].parse().unwrap() },
        };
        let beside = PathBuf::from(std::env::var_os(BESIDE).unwrap());
        fs::create_dir_all(beside.join("removed")).unwrap();
        let journal = OpenOptions::new().append(true).create(true).open(beside.join("journal")).unwrap();
        Some(Director { plan, steps: AtomicUsize::new(0), beside, journal })
    }

    fn reach(&self, step: Step<'_>) -> io::Result<()> {
        let number = self.steps.fetch_add(1, Ordering::SeqCst);
        match self.plan {
            Plan::Kill(at) if number == at => {
                let own = rustix::process::getpid();
                rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
                std::thread::park();
            }
            Plan::Fail { from, count, error } if (from..from + count).contains(&number) => {
                tell("failed");
                return Err(io::Error::from_raw_os_error(error));
            }
            _ => {}
        }
        if let Step::Remove(path) = step {
            let _ = fs::hard_link(path, self.beside.join("removed").join(number.to_string()));
        }
        // At once: two threads may come to a step, and half a line of each would be a step that nobody took.
        (&self.journal).write_all(format!("{number}\t{step}\n").as_bytes())
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Open(path) => write!(f, "open\t{}", path.display()),
            Step::Resize(file) => write!(f, "write\t{}", path_of(file).display()),
            Step::Write(file) => write!(f, "write\t{}", path_of(file).display()),
            Step::Sync(file) => write!(f, "sync\t{}", path_of(file).display()),
            Step::Rename(from, to) => write!(f, "rename\t{}\t{}", from.display(), to.display()),
            Step::SyncFolder(folder) => write!(f, "sync_folder\t{}", folder.display()),
            Step::Remove(path) => write!(f, "remove\t{}", path.display()),
            Step::Commit(file) => write!(f, "commit\t{}", path_of(file).display()),
        }
    }
}

fn path_of(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    fs::read_link(Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())).unwrap()
}
