//! The real program as a process: for what concerns signals, memory, descriptors, and what is written where.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::client::Client;
use super::eventually::{eventually, within};

/// The program, running.
pub struct Running {
    pub child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub log: Lines,
    reading: JoinHandle<()>,
}

/// What a process has written so far.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

/// A program that ended by itself.
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A program whose memory is being watched.
pub struct Watched<'a> {
    running: &'a Running,
    before: u64,
}

impl Watched<'_> {
    /// The most by which it was larger since, pages of files that are mapped included.
    pub fn most(&self) -> u64 {
        self.running.status("VmHWM:").saturating_sub(self.before)
    }
}

impl Lines {
    /// The second value ends when the stream does.
    fn of(stream: impl AsyncRead + Unpin + Send + 'static) -> (Lines, JoinHandle<()>) {
        let lines = Lines::default();
        let kept = lines.clone();
        let reading = tokio::spawn(async move {
            let mut reader = BufReader::new(stream).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                kept.0.lock().unwrap().push(line);
            }
        });
        (lines, reading)
    }

    pub fn with(&self, word: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|line| line.contains(word)).cloned().collect()
    }

    pub async fn has(&self, word: &str) {
        eventually(|| async { !self.with(word).is_empty() }).await;
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
    command.args(arguments);
    piped(command)
}

fn piped(mut command: Command) -> Command {
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

/// Starts the program and waits until it has said where it listens.
pub async fn start(arguments: &[&str]) -> Running {
    running(command(arguments)).await
}

/// Starts the program and waits for nothing.
pub fn begin(arguments: &[&str]) -> Child {
    command(arguments).spawn().unwrap()
}

/// The same as [`start`], where the system allows it so many open files at first, and so many if it asks.
pub async fn start_with_open_files(soft: u64, hard: u64, arguments: &[&str]) -> Running {
    let mut command = Command::new("/bin/sh");
    let limited = format!("ulimit -S -n {soft} && ulimit -H -n {hard} && exec \"$0\" \"$@\"");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_tidelock")]).args(arguments);
    running(piped(command)).await
}

/// The same as [`start`], by a shell script that ends with `exec "$0" "$@"`, with a standard input and variables.
pub async fn start_by(
    script: &str,
    input: impl Into<Stdio>,
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> Running {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_tidelock")]).args(arguments);
    let mut command = piped(command);
    command.stdin(input.into()).envs(variables.iter().copied());
    running(command).await
}

async fn running(mut command: Command) -> Running {
    let mut child = command.spawn().unwrap();
    let (log, reading) = Lines::of(child.stderr.take().unwrap());
    let (out, _) = Lines::of(child.stdout.take().unwrap());
    eventually(|| {
        assert!(child.try_wait().unwrap().is_none(), "it ended: {:#?}", log.with(""));
        std::future::ready(out.with("registry-mirrors").len() == 1)
    })
    .await;
    let place = |word: &str| {
        let line = out.with(word).remove(0);
        let address = line.split_whitespace().find_map(|word| word.split_once("://"));
        address.and_then(|(_, address)| address.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    };
    Running { address: place("  clients "), admin: place("  admin "), child, log, reading }
}

/// Runs the program to its end.
pub async fn ended(arguments: &[&str]) -> Ended {
    let output = within("the program", command(arguments).output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

impl Running {
    pub fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address))
    }

    /// A client of the operator's door.
    pub fn admin(&self) -> Client {
        Client::new(&format!("http://{}", self.admin))
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        within("the program to end", self.child.wait()).await.unwrap().code()
    }

    pub async fn stop(mut self) -> Lines {
        self.signal(Signal::TERM);
        assert_eq!(self.exit_code().await, Some(0));
        within("the log to end", self.reading).await.unwrap();
        self.log
    }

    /// The value of one series; 0 where there is none.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.admin().get("/metrics").await.text();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// The memory that is the process's own now: no page of a file, no buffer of a socket.
    pub fn memory(&self) -> u64 {
        self.status("RssAnon:")
    }

    /// Begins to watch how far memory grows, though it be given back at once.
    pub fn watch_memory(&self) -> Watched<'_> {
        // "5" takes the highest value that was ever reached back to what it is now.
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id().unwrap()), "5").unwrap();
        Watched { running: self, before: self.status("VmRSS:") }
    }

    fn status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}

/// A configuration over this upstream, whose cache is in the folder. `more` stands before the upstream.
pub fn configured(folder: &Path, endpoint: &str, more: &str) -> String {
    let text = format!(
        "server.listen = [\"127.0.0.1:0\"]\nserver.admin_listen = \"127.0.0.1:0\"\n\
         cache.dir = \"{}\"\ncache.max_size = \"1GiB\"\ncache.min_free = \"0B\"\n{more}\n\
         [[upstream]]\nregistry = \"docker.io\"\ndefault = true\nendpoints = [\"{endpoint}\"]\n\
         read_ahead = false\nparallel_ranges = false\nproxy = \"none\"\nmax_connections = 100\nrequests_per_second = 10000\n",
        folder.join("cache").display()
    );
    let path: PathBuf = folder.join("tidelock.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Lets this process, a test, hold so many open files and sockets.
///
/// # Panics
/// Where the system does not allow it: a test that needs them can show nothing then.
pub fn allow_open_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= count) {
        return;
    }
    assert!(
        limit.maximum.is_none_or(|hard| hard >= count),
        "this test needs {count} open files in a process, and the hard limit here is {:?}: raise it (ulimit -Hn, \
         --ulimit nofile= of a container) and run it again",
        limit.maximum
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum: limit.maximum }).unwrap();
}
