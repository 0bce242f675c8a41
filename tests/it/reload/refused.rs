//! A new file that is wrong, gone, or asks for what only a start can give.

use std::fs;

use super::{CHANGED, MANIFEST, REFUSED, STRICT, SUCCESSFUL, Scene, WAITING, file};
use crate::support::program::ended;

const NOTHING: &str = "refused: nothing has changed";

#[tokio::test]
async fn a_bad_file_changes_nothing_and_every_fault_is_told() {
    let scene = Scene::new(STRICT, "").await;
    assert_eq!(scene.status(MANIFEST).await, 200);
    scene.write(
        "freshness.tag_ttl = \"1h\"\nfreshness.tag_tll = \"1h\"\nlog.level = \"loud\"\nschedule.reserve = 20",
        "deny = [\"library/app\"]\nmax_connections = 0\n[[upstream]]\nregistry = \"quay.io\"\nproxy = \"http://user:hunter2@\"",
    );
    scene.hang_up(REFUSED).await;
    scene.running.log.has(NOTHING).await;
    assert_eq!(scene.running.metric(SUCCESSFUL).await, 0.0);
    // In the words of the command that looks it over.
    let config = file(&scene.folder);
    let checked = ended(&["check", "--config", config.to_str().unwrap()]).await;
    let log = &scene.running.log;
    assert_eq!(checked.err.lines().count(), 5, "{}", checked.err);
    for fault in checked.err.lines() {
        assert_eq!(
            log.with(&format!("ERROR configuration: {fault}")).len(),
            1,
            "{fault} in {:#?}",
            log.with("ERROR")
        );
    }
    assert!(log.with("hunter2").is_empty());
    assert_eq!(scene.checks().await, 3, "and nothing of it holds");
    scene.reload("freshness.tag_ttl = \"1h\"", "").await;
    assert_eq!(scene.checks().await, 0);
}

#[tokio::test]
async fn no_toml_and_no_file() {
    let scene = Scene::new(STRICT, "").await;
    assert_eq!(scene.status(MANIFEST).await, 200);
    for (count, spoil) in [(1, false), (2, true)] {
        if spoil {
            fs::remove_file(file(&scene.folder)).unwrap();
        } else {
            fs::write(file(&scene.folder), "[[[").unwrap();
        }
        scene.hang_up(REFUSED).await;
        let log = &scene.running.log;
        log.has(if spoil { "cannot be read" } else { "not TOML" }).await;
        assert_eq!(log.with(NOTHING).len(), count, "{:#?}", log.with(""));
        assert_eq!((scene.running.metric(SUCCESSFUL).await, scene.checks().await), (0.0, 3));
    }
    scene.reload("freshness.tag_ttl = \"1h\"", "").await;
    assert_eq!(scene.checks().await, 0);
}

/// The file is right, but what it names is of no use.
#[tokio::test]
async fn an_authority_that_cannot_be_read() {
    let scene = Scene::new(STRICT, "").await;
    assert_eq!(scene.status(MANIFEST).await, 200);
    scene.write("freshness.tag_ttl = \"1h\"", "deny = [\"**\"]\nca = \"/nowhere/ca.crt\"");
    scene.hang_up(REFUSED).await;
    scene.running.log.has(NOTHING).await;
    let told = scene.told("/nowhere/ca.crt");
    assert!(told.contains("upstream[0].ca (docker.io)"), "{told}");
    assert_eq!((scene.running.metric(SUCCESSFUL).await, scene.checks().await), (0.0, 3));
}

/// The rest takes effect; each key that waits is named.
#[tokio::test]
async fn what_needs_a_restart_is_named_and_the_rest_holds() {
    let scene = Scene::new(STRICT, "").await;
    assert_eq!(scene.status(MANIFEST).await, 200);
    let text = fs::read_to_string(file(&scene.folder)).unwrap();
    let text = text.replace("/cache\"", "/elsewhere\"").replace("127.0.0.1:0\"]", "127.0.0.1:1\"]");
    let text = text.replace(STRICT, "freshness.tag_ttl = \"1h\"");
    let text =
        format!("{text}anonymous = \"never\"\n[[upstream.account]]\nname = \"ci\"\ndocker_config = \"/x\"\n");
    fs::write(file(&scene.folder), format!("{text}[[upstream]]\nregistry = \"ghcr.io\"\n")).unwrap();
    scene.hang_up(super::APPLIED).await;
    scene.running.log.has(WAITING).await;
    assert!(scene.told(CHANGED).contains("freshness.tag_ttl"), "{}", scene.told(CHANGED));
    let told = scene.told(WAITING);
    let keys = "keys=\"server.listen, cache.dir, upstream[1] (ghcr.io is new), upstream[0].anonymous, upstream[0].account\"";
    assert!(told.contains(" WARN ") && told.contains(keys), "{told}");
    assert_eq!(scene.checks().await, 0);
    assert_eq!(scene.status("/v2/ghcr.io/org/app/manifests/v1").await, 404);
    assert!(!scene.folder.path().join("elsewhere").exists());
    // What still waits is told again.
    scene.hang_up(super::APPLIED).await;
    assert_eq!(scene.running.log.with(WAITING).len(), 2);
}
