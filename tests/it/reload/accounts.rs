//! What accounts log in with, and whom upstreams are believed to be, after a signal.

use std::fs;

use super::{APPLIED, CHANGED, MANIFEST, STRICT, Scene};
use crate::support::behaviour::Auth;
use crate::support::registry::FakeRegistry;
use crate::support::tls::TestCa;

/// The credentials of one account, whose password is in this file of the scene's.
fn account(folder: &std::path::Path, user: &str, name: &str) -> String {
    format!(
        "anonymous = \"never\"\n[[upstream.account]]\nname = \"ci\"\nusername = \"{user}\"\npassword_file = \"{}\"",
        folder.join(name).display()
    )
}

/// An account that was refused is set aside for ten seconds and more; not beyond a signal.
#[tokio::test]
async fn a_password_that_was_corrected_is_tried_at_once() {
    for auth in [Auth::basic("ci", "hunter2"), Auth::bearer_with_account()] {
        let (fake, folder) = (FakeRegistry::start().await, tempfile::tempdir().unwrap());
        fake.set(|behaviour| behaviour.auth = auth);
        fake.tokens().add_account("ci", "hunter2");
        fs::write(folder.path().join("password"), "wrong").unwrap();
        let upstream = account(folder.path(), "ci", "password");
        let scene = Scene::at(folder, fake, STRICT, &upstream, &[]).await;
        assert_eq!(scene.status(MANIFEST).await, 502);
        let aside = "tidelock_account_aside{account=\"ci\",upstream=\"docker.io\"}";
        assert_eq!(
            scene.running.metric(aside).await,
            1.0,
            "{}",
            scene.running.admin().get("/metrics").await.text()
        );

        fs::write(scene.folder.path().join("password"), "hunter2").unwrap();
        scene.hang_up(APPLIED).await;
        assert_eq!(scene.running.metric(aside).await, 0.0);
        assert_eq!(scene.status(MANIFEST).await, 200);
        assert!(scene.told(CHANGED).contains("accounts log in anew"));

        // Another user and another file, by the file: what was got with the first is not shown any more.
        scene.fake.set(|behaviour| {
            if matches!(behaviour.auth, Auth::Basic { .. }) {
                behaviour.auth = Auth::basic("robot", "hunter3");
            }
        });
        scene.fake.tokens().add_account("robot", "hunter3");
        fs::write(scene.folder.path().join("token"), "hunter3").unwrap();
        scene.fake.clear();
        scene.reload(STRICT, &account(scene.folder.path(), "robot", "token")).await;
        assert_eq!(scene.status(MANIFEST).await, 200);
        let told = scene.told(CHANGED);
        for key in ["upstream[0].account[0].username", "upstream[0].account[0].password_file"] {
            assert!(told.contains(key), "{told}");
        }
        let accounts: Vec<_> =
            scene.fake.requests().into_iter().filter_map(|request| request.account).collect();
        assert!(!accounts.is_empty() && accounts.iter().all(|account| account == "robot"), "{accounts:?}");
        for secret in ["hunter2", "hunter3", "wrong"] {
            assert!(scene.running.log.with(secret).is_empty(), "{:#?}", scene.running.log.with(secret));
        }
    }
}

/// The path is the same, and what is in the file is not.
#[tokio::test]
async fn an_authority_is_read_again() {
    let fake = FakeRegistry::start_tls().await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    fs::write(&ca, TestCa::new().pem()).unwrap();
    let upstream = format!("ca = \"{}\"\nconnect_timeout = \"2s\"", ca.display());
    let scene = Scene::at(folder, fake, STRICT, &upstream, &[]).await;
    assert_eq!(scene.status(MANIFEST).await, 502);
    fs::write(&ca, scene.fake.ca_pem()).unwrap();
    scene.hang_up(APPLIED).await;
    assert_eq!(scene.status(MANIFEST).await, 200);
}
