//! What a service manager gives and is told: sd_listen_fds(3), sd_notify(3), by their protocols alone.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::UnixDatagram;

use crate::support::client::Client;
use crate::support::eventually::within;
use crate::support::images::Image;
use crate::support::program::{Running, configured, start_by};
use crate::support::registry::FakeRegistry;

/// Hands standard input over as the first socket.
const HAND_OVER: &str =
    "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec \"$0\" \"$@\"";

async fn handed_over(name: &str, folder: &TempDir, fake: &FakeRegistry) -> (Running, std::net::SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let config = configured(folder.path(), &fake.url(), "");
    let socket = Stdio::from(OwnedFd::from(socket));
    let running = start_by(HAND_OVER, socket, &[("LISTEN_FDNAMES", name)], &["--config", &config]).await;
    (running, address)
}

#[tokio::test]
async fn a_socket_that_listens_already_is_for_clients() {
    let (fake, folder) = (FakeRegistry::start().await, TempDir::new().unwrap());
    let image = Image::layers(1, &[1000]);
    fake.push("library/app", "v1", &image);
    let (running, address) = handed_over("tidelock.socket", &folder, &fake).await;
    let client = Client::new(&format!("http://{address}"));
    assert!(client.pull("library/app", "v1").await.unwrap().is(&image));
    running.stop().await;
}

#[tokio::test]
async fn the_one_called_admin_is_the_operators() {
    let (fake, folder) = (FakeRegistry::start().await, TempDir::new().unwrap());
    let (running, address) = handed_over("admin", &folder, &fake).await;
    assert_eq!(Client::new(&format!("http://{address}")).get("/readyz").await.status, 200);
    assert_eq!(running.client().get("/v2/").await.status, 200);
    running.stop().await;
}

#[tokio::test]
async fn what_is_no_listening_socket_is_refused() {
    let folder = TempDir::new().unwrap();
    let config = configured(folder.path(), "http://127.0.0.1:1", "");
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", HAND_OVER, env!("CARGO_BIN_EXE_tidelock"), "--config", &config])
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no TCP socket that listens; correct ListenStream="), "{said}");
}

#[tokio::test]
async fn it_is_told_of_the_start_the_life_and_the_stop() {
    let (fake, folder) = (FakeRegistry::start().await, TempDir::new().unwrap());
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let config = configured(folder.path(), &fake.url(), "");
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "100000")];
    let mut running = start_by("exec \"$0\" \"$@\"", Stdio::null(), &variables, &["--config", &config]).await;
    let next = async || {
        let mut text = [0; 256];
        let length = within("word of it", manager.recv(&mut text)).await.unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    };
    let mut told = Vec::new();
    while told.iter().filter(|word: &&String| *word == "WATCHDOG=1").count() < 3 {
        told.push(next().await.trim_end().to_owned());
    }
    assert_eq!(told.iter().filter(|word| word.starts_with("READY=1")).count(), 1, "{told:?}");
    running.signal(Signal::TERM);
    while !next().await.starts_with("STOPPING=1") {}
    assert_eq!(running.exit_code().await, Some(0));
}
