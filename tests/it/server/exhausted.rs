//! File descriptors run out. They belong to the process, so this happens in a process of its own.

use std::fs::File;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

use super::kit::{echo, eventually, get, limits, start};

#[test]
fn accepting_goes_on_when_descriptors_are_back() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server::exhausted::in_a_process_of_its_own", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}{}", String::from_utf8_lossy(&child.stderr));
    assert!(output.contains("1 passed"), "{output}");
}

#[tokio::test]
#[ignore = "limits the whole process; the test above runs it in a child"]
async fn in_a_process_of_its_own() {
    let served = start(limits(), None, echo).await;
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..getrlimit(Resource::Nofile) }).unwrap();
    let spare = File::open("/dev/null").unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = TcpStream::connect(served.addr).await {
        held.push(stream);
    }
    drop(spare);
    // Takes the last descriptor; the server has none for its own end.
    held.push(TcpStream::connect(served.addr).await.unwrap());
    eventually(|| served.metric("tidelock_accept_errors_total") > 0).await;
    drop(held);
    assert!(get(served.addr, "/again").await.ends_with("/again"));
    assert!(!served.ended.is_finished());
}
