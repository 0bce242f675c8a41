//! The programs that are compared, each a process of its own whose accounts the kernel keeps.

use std::fs;
use std::io::{Read, Seek};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::port::free_port;

/// A process that serves a port; ended when dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) port: u16,
}

/// More is no start, also where instructions are counted.
const LONGEST_START: Duration = Duration::from_secs(120);

/// More is no end.
const LONGEST_END: Duration = Duration::from_secs(40);

impl Running {
    pub(crate) fn start(command: &mut Command, port: u16) -> Running {
        // To a file, as a pipe that nobody reads could fill up.
        let mut said = tempfile::tempfile().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone().unwrap());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut running = Running { child, port };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = running.child.try_wait().unwrap();
            if ended.is_some() || begun.elapsed() > LONGEST_START {
                let mut text = String::new();
                said.rewind().and_then(|()| said.read_to_string(&mut text)).unwrap();
                panic!("{command:?} does not serve: {ended:?}: {text}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }

    /// It and its children: nginx works through those.
    fn processes(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let children = children.split_whitespace().map(|id| id.parse().unwrap());
        children.chain([own]).collect()
    }

    /// What it has spent of the processors until now.
    pub(crate) fn cpu(&self) -> Duration {
        let ticks: u64 = self.processes().into_iter().map(ticks).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// A field of `/proc/PID/status` that counts memory, in MiB, of all of its processes.
    pub(crate) fn memory(&self, field: &str) -> f64 {
        let of = |id: u32| {
            let text = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
        };
        self.processes().into_iter().map(of).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > LONGEST_END {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// User and system time of all its threads, those that have ended too.
fn ticks(id: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // The name may hold spaces.
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Where a program may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    /// Wherever there is room.
    Any,
    /// On the first core alone; who asks it runs on the second then, so that neither takes the other's time.
    First,
    Second,
}

impl Core {
    pub(crate) fn command(self, program: &str) -> Command {
        let core = match self {
            Core::Any => return Command::new(program),
            Core::First => "0",
            Core::Second => "1",
        };
        let mut command = Command::new("/usr/bin/taskset");
        command.args(["-c", core, program]);
        command
    }
}

/// Two workers, as there are threads of Tidelock on two cores; the rest as its handbook advises for static files.
pub(crate) fn nginx(folder: &Path, root: &Path, tls: Option<(&Path, &Path)>, core: Core) -> Running {
    let port = free_port();
    let tls = tls.map(|(certificate, key)| {
        let (certificate, key) = (certificate.display(), key.display());
        format!("ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;")
    });
    let listen = if tls.is_some() { "ssl reuseport" } else { "reuseport" };
    let (tls, root, here) = (tls.unwrap_or_default(), root.display(), folder.display());
    let config = format!(
        "worker_processes 2; daemon off; user root; pid {here}/nginx.pid; error_log {here}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;\n\
         default_type application/octet-stream;\n\
         server {{ listen 127.0.0.1:{port} {listen}; {tls} root {root}; }} }}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config).unwrap();
    Running::start(core.command("/usr/sbin/nginx").arg("-c").arg(file), port)
}

/// As Debian ships it, without its login.
pub(crate) fn docker_registry(folder: &Path, upstream: u16, core: Core) -> Running {
    let port = free_port();
    let config = format!(
        "version: 0.1\n\
         log: {{ level: error, accesslog: {{ disabled: true }} }}\n\
         http: {{ addr: '127.0.0.1:{port}' }}\n\
         proxy: {{ remoteurl: 'http://127.0.0.1:{upstream}' }}\n\
         storage: {{ filesystem: {{ rootdirectory: '{}' }} }}\n",
        folder.display()
    );
    let file = folder.join("registry.yml");
    fs::write(&file, config).unwrap();
    Running::start(core.command("/usr/bin/docker-registry").arg("serve").arg(file), port)
}

/// As it is built for release, with what `more` says of its upstream and its server. It says nothing of each request, as
/// the others do not.
pub(crate) fn tidelock(cache: &Path, upstream: u16, server: &str, more: &str, core: Core) -> Running {
    let more = format!("{more}\n[log]\nlevel = \"warn\"\n");
    tidelock_by(core.command(env!("CARGO_BIN_EXE_tidelock")), cache, upstream, server, &more)
}

/// The same, started by `command`, and with its log, which only a start that failed shows.
pub(crate) fn tidelock_by(
    mut command: Command,
    cache: &Path,
    upstream: u16,
    server: &str,
    more: &str,
) -> Running {
    let port = free_port();
    let config = format!(
        "[server]\nlisten = [\"127.0.0.1:{port}\"]\nadmin_listen = \"127.0.0.1:{}\"\n{server}\n\
         [cache]\nmax_size = \"1TiB\"\nmin_free = \"0B\"\n\
         [[upstream]]\nregistry = \"docker.io\"\ndefault = true\nproxy = \"none\"\n\
         requests_per_second = 10000\nendpoints = [\"http://127.0.0.1:{upstream}\"]\n{more}\n",
        free_port()
    );
    let file = cache.join("bench.toml");
    fs::write(&file, config).unwrap();
    command.arg("--config").arg(file).arg("--cache-dir").arg(cache);
    Running::start(&mut command, port)
}
