//! The servers of a test: Debian's docker-registry as the upstream or as a mirror, and Tidelock.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{Daemon, client, daemon, stdout};
use crate::fakes::port::free_port;

/// docker-registry, and the log of what it was asked.
pub(crate) struct Upstream {
    pub(crate) port: u16,
    daemon: Daemon,
    log: PathBuf,
}

impl Upstream {
    /// Serves `storage`; its own files go to `dir`.
    pub(crate) fn start(dir: &Path, storage: &Path, read_only: bool) -> Self {
        let port = free_port();
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\n\
             log: {{ level: warn, accesslog: {{ disabled: false }} }}\n\
             http: {{ addr: '127.0.0.1:{port}', draintimeout: 5s }}\n\
             storage:\n\
             \x20 filesystem: {{ rootdirectory: '{}' }}\n\
             \x20 maintenance: {{ uploadpurging: {{ enabled: false }}, readonly: {{ enabled: {read_only} }} }}\n",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let log = dir.join("registry.log");
        let mut command = daemon("/usr/bin/docker-registry", dir);
        let daemon =
            Daemon::start(command.arg("serve").arg(config), &log, || status(port, "/v2/") == Some(200));
        Self { port, daemon, log }
    }

    /// Stops it; gives what it was asked, one `METHOD /path STATUS` a line.
    pub(crate) fn stop(self) -> Vec<String> {
        self.daemon.stop();
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines().filter_map(request_of).collect()
    }
}

/// docker-registry as a mirror.
pub(crate) struct DockerProxy {
    pub(crate) mirror: Mirror,
    daemon: Daemon,
}

impl DockerProxy {
    /// A mirror of the registry at `upstream`, configured as Debian ships it but without its login.
    pub(crate) fn start(dir: &Path, upstream: &str) -> Self {
        let port = free_port();
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\n\
             log: {{ level: warn, accesslog: {{ disabled: true }} }}\n\
             http: {{ addr: '127.0.0.1:{port}', headers: {{ X-Content-Type-Options: [nosniff] }} }}\n\
             storage:\n\
             \x20 cache: {{ blobdescriptor: inmemory }}\n\
             \x20 filesystem: {{ rootdirectory: '{}' }}\n\
             \x20 delete: {{ enabled: true }}\n\
             health: {{ storagedriver: {{ enabled: true, interval: 10s, threshold: 3 }} }}\n\
             proxy: {{ remoteurl: '{upstream}' }}\n",
            dir.join("storage").display()
        );
        fs::write(&config, text).unwrap();
        let mut command = daemon("/usr/bin/docker-registry", dir);
        let ready = || status(port, "/v2/") == Some(200);
        let daemon = Daemon::start(command.arg("serve").arg(config), &dir.join("registry.log"), ready);
        Self { mirror: Mirror { port }, daemon }
    }

    pub(crate) fn stop(self) {
        self.daemon.stop();
    }
}

/// `GET /v2/… 200` from a line of the combined log format.
fn request_of(line: &str) -> Option<String> {
    let mut quoted = line.split('"');
    let request = quoted.nth(1)?.strip_suffix(" HTTP/1.1")?;
    let status = quoted.next()?.split_whitespace().next()?;
    Some(format!("{request} {status}"))
}

/// The mirror as a client sees it.
#[derive(Clone, Copy)]
pub(crate) struct Mirror {
    pub(crate) port: u16,
}

impl Mirror {
    /// `127.0.0.1:…`
    pub(crate) fn address(self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `http://127.0.0.1:…`
    pub(crate) fn url(self) -> String {
        format!("http://{}", self.address())
    }
}

/// The program under test.
pub(crate) struct Tidelock {
    pub(crate) mirror: Mirror,
    admin: u16,
    daemon: Daemon,
}

impl Tidelock {
    /// A mirror of one upstream for docker.io, its cache and log below `dir`.
    pub(crate) fn start(dir: &Path, upstream: u16, freshness: &str) -> Self {
        Self::start_with(dir, upstream, freshness, false)
    }

    /// One that asks nobody.
    pub(crate) fn start_offline(dir: &Path) -> Self {
        Self::start_with(dir, 1, "", true)
    }

    fn start_with(dir: &Path, upstream: u16, freshness: &str, offline: bool) -> Self {
        let (port, admin) = (free_port(), free_port());
        let config = dir.join("tidelock.toml");
        let cache = dir.join("cache");
        let text = format!(
            r#"
            offline = {offline}
            [server]
            listen = ["127.0.0.1:{port}"]
            admin_listen = "127.0.0.1:{admin}"
            [cache]
            dir = "{}"
            max_size = "4GiB"
            [freshness]
            {freshness}
            [[upstream]]
            registry = "docker.io"
            default = true
            endpoints = ["http://127.0.0.1:{upstream}"]
            "#,
            cache.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = daemon(env!("CARGO_BIN_EXE_tidelock"), dir);
        command.env_remove("HTTP_PROXY").env_remove("HTTPS_PROXY").args(["serve", "--config"]).arg(config);
        let ready = || status(admin, "/readyz") == Some(200);
        let daemon = Daemon::start(&mut command, &dir.join("tidelock.log"), ready);
        Self { mirror: Mirror { port }, admin, daemon }
    }

    /// What the program says as a command to this mirror, in `dir`.
    pub(crate) fn command(&self, dir: &Path, arguments: &[&str]) -> String {
        let admin = format!("127.0.0.1:{}", self.admin);
        let mut command = client(env!("CARGO_BIN_EXE_tidelock"), dir);
        stdout(command.args(arguments).args(["--admin", &admin]))
    }

    /// Asks it to stop: it must go in peace.
    pub(crate) fn stop(self) {
        let status = self.daemon.stop();
        assert!(status.success(), "tidelock ended with {status} after SIGTERM");
    }
}

/// The status of a GET, if anybody answers.
fn status(port: u16, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(&head[9..]).ok()?.parse().ok()
}
