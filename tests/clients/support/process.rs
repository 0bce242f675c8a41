//! Programs outside the test: run to the end within a deadline, or kept running until dropped.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than any pull takes on a slow machine, short enough to fail before the whole run is given up.
const CLIENT_DEADLINE: &str = "180";
const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// A command that must end by itself: the client under test, or a tool.
pub(crate) fn client(program: &str, home: &Path) -> Command {
    isolated(
        &["/usr/bin/timeout", "--kill-after=5", CLIENT_DEADLINE, "/usr/bin/unshare", "--mount"],
        program,
        home,
    )
}

/// A command for [`Daemon::start`].
pub(crate) fn daemon(program: &str, home: &Path) -> Command {
    isolated(&["/usr/bin/unshare", "--mount"], program, home)
}

/// `program` with nothing of the caller's environment, in a mount namespace of its own.
///
/// - setpriv: the process is told to stop when the test's thread ends, even when that is by SIGKILL.
/// - unshare: overlay and bind mounts vanish with the process, so the directory can be removed.
/// - The proxy at port 1: Go ignores a proxy for loopback, so a client that gives up on the mirror
///   fails here instead of asking Docker Hub.
fn isolated(wrapper: &[&str], program: &str, home: &Path) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig", "TERM"]).args(wrapper).arg("--").arg(program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
    command.env("HOME", home).env("TMPDIR", home).env("XDG_RUNTIME_DIR", home);
    command.env("HTTP_PROXY", "http://127.0.0.1:1").env("HTTPS_PROXY", "http://127.0.0.1:1");
    command.stdin(Stdio::null()).current_dir(home);
    command
}

/// Runs to the end; anything but success fails the test with what the program said.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {} (124 is the deadline)\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

/// Like [`run`]; gives what was printed, without the last line break.
pub(crate) fn stdout(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).unwrap().trim_end().to_owned()
}

/// A process that runs until it is stopped or dropped, a panic included.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` and waits until `ready`. All it prints goes to the file `log`.
    pub(crate) fn start(command: &mut Command, log: &Path, ready: impl Fn() -> bool) -> Self {
        let output = File::create(log).unwrap();
        // A group of its own, so that helpers which it leaves behind can be ended by its id.
        command.process_group(0).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let mut started = Self { child, log: log.to_owned() };
        let up = wait_until(START_DEADLINE, || started.ended().is_some() || ready());
        // The log follows when `started` is dropped.
        assert!(up && started.ended().is_none(), "did not get ready: {command:?}");
        started
    }

    /// Asks the process to stop and waits for it.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal("TERM", self.child.id().to_string());
        let stopped = wait_until(STOP_DEADLINE, || self.ended().is_some());
        assert!(stopped, "still running {STOP_DEADLINE:?} after SIGTERM");
        self.ended().unwrap()
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// By the shell, as sending a signal from Rust is unsafe code or one more library.
    fn signal(&self, signal: &str, target: String) {
        let sent =
            Command::new("/bin/sh").args(["-c", "kill -s \"$1\" -- \"$2\"", "sh", signal, &target]).output();
        assert!(sent.is_ok(), "no shell to send a signal with");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), tail(&self.log));
        }
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal("TERM", self.child.id().to_string());
            wait_until(STOP_DEADLINE, || self.child.try_wait().is_ok_and(|ended| ended.is_some()));
            self.signal("KILL", format!("-{}", self.child.id()));
            let _ = self.child.wait();
        }
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Whether `condition` came true in time.
#[expect(clippy::disallowed_methods, reason = "the one place that waits between two looks at a condition")]
fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    while Instant::now() < end {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    condition()
}
