//! Asks a Docker credential helper: a program that reads a server's name on standard input and writes JSON.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::credentials::Login;
use crate::secret::Secret;

/// Why a helper gave no credentials. What it wrote is not in here, since that may be the credentials.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("cannot be run ({0}); install it, or correct the account's settings")]
    NotRun(io::ErrorKind),
    #[error("did not answer within 10 s; run it by hand to see what it waits for")]
    TooSlow,
    #[error("has no credentials for {server}; store them with it first")]
    NoEntry { server: String },
    #[error("failed ({status}); run it by hand to see why")]
    Failed { status: String },
    #[error("did not answer with a user name and a secret in JSON")]
    Malformed,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Some helpers call a cloud; none takes longer than this without waiting for a person.
const PATIENCE: Duration = Duration::from_secs(10);
/// Far more than any token.
const MOST_BYTES: u64 = 256 << 10;

/// Runs `program get`, without a shell, for the credentials of `server`. Cancel-safe: the program is killed
/// when nobody waits for it any more.
pub(super) async fn get(program: &Path, server: &str) -> Result<Login, Fault> {
    tokio::time::timeout(PATIENCE, run(program, server)).await.unwrap_or(Err(Fault::TooSlow))
}

async fn run(program: &Path, server: &str) -> Result<Login, Fault> {
    let not_run = |error: io::Error| Fault::NotRun(error.kind());
    let mut child = start(program).map_err(not_run)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    if let Some(mut stdin) = stdin {
        // A helper that does not read its input will say so by its status.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
    }
    let mut output = String::new();
    if let Some(stdout) = stdout {
        let mut stdout = stdout.take(MOST_BYTES);
        stdout.read_to_string(&mut output).await.map_err(|_| Fault::Malformed)?;
    }
    let output = Secret::new(output);
    let status = child.wait().await.map_err(not_run)?;
    if status.success() { parse(output.reveal()) } else { Err(failure(output.reveal(), server, status)) }
}

fn start(program: &Path) -> io::Result<Child> {
    Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

pub(super) fn parse(output: &str) -> Result<Login, Fault> {
    let answer: Answer = serde_json::from_str(output).map_err(|_| Fault::Malformed)?;
    Ok(Login::new(answer.username, Secret::new(answer.secret)))
}

/// Helpers write this very sentence when they know nothing of a server.
fn failure(output: &str, server: &str, status: std::process::ExitStatus) -> Fault {
    if output.contains("credentials not found") {
        Fault::NoEntry { server: server.to_owned() }
    } else {
        Fault::Failed { status: status.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn script(dir: &tempfile::TempDir, body: &str) -> PathBuf {
        let file = dir.path().join("docker-credential-test");
        std::fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    /// While another test forks, its child holds the script open for writing, and it cannot be run.
    async fn run_script(program: &Path, server: &str) -> Result<Login, Fault> {
        loop {
            match get(program, server).await {
                Err(Fault::NotRun(io::ErrorKind::ExecutableFileBusy)) => tokio::task::yield_now().await,
                outcome => return outcome,
            }
        }
    }

    #[tokio::test]
    async fn speaks_the_protocol() {
        let dir = tempfile::tempdir().unwrap();
        let body = r#"read server; [ "$1" = get ] && echo "{\"ServerURL\":\"$server\",\"Username\":\"u\",\"Secret\":\"for $server\"}""#;
        let login = run_script(&script(&dir, body), "ghcr.io").await.unwrap();
        let password = Secret::new("for ghcr.io");
        assert_eq!(login, Login::Password { username: "u".to_owned(), password });
    }

    #[tokio::test]
    async fn faults_say_what_to_do_and_keep_secrets() {
        let dir = tempfile::tempdir().unwrap();
        for (body, expected) in [
            (
                "echo credentials not found in native keychain; exit 1",
                Fault::NoEntry { server: "r".to_owned() },
            ),
            ("echo my secret; exit 3", Fault::Failed { status: "exit status: 3".to_owned() }),
            ("echo my secret", Fault::Malformed),
        ] {
            let fault = run_script(&script(&dir, body), "r").await.unwrap_err();
            assert!(!fault.to_string().contains("my secret"), "{fault}");
            assert_eq!(fault, expected, "{body}");
        }
        let missing = get(Path::new("/no/such/docker-credential-x"), "r").await;
        assert_eq!(missing, Err(Fault::NotRun(io::ErrorKind::NotFound)));
    }
}
