//! What is in `deploy/` for Grafana and Prometheus, tried on a real Prometheus (Debian's) that scrapes a mirror under load:
//! an expression that finds nothing is a dashboard that shows nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidelock::config::{ByteSize, SizeLimit};

use crate::fakes::behaviour::RateLimit;
use crate::fakes::client::Client;
use crate::fakes::eventually::{eventually, patience};
use crate::fakes::faults::{Fault, Match, Times};
use crate::fakes::house::House;
use crate::fakes::images::Image;
use crate::fakes::port::free_port;
use crate::fakes::registry::FakeRegistry;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn dashboards() -> Vec<(String, Value)> {
    let files = std::fs::read_dir(deploy().join("grafana")).unwrap();
    let read = files.map(|file| {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), serde_json::from_str(&text).unwrap())
    });
    read.collect()
}

/// Each expression of each panel, with where it stands, as Grafana asks for it.
fn panels() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (file, board) in dashboards() {
        for panel in board["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let asked = target["expr"].as_str().unwrap();
                let asked = asked.replace("$__rate_interval", "10s").replace("$__range", "30s");
                let asked = asked.replace("$job", ".+").replace("$instance", ".+");
                assert!(!asked.contains('$'), "{asked}");
                found.push((format!("{file}, {}", panel["title"]), asked));
            }
        }
    }
    assert!(found.len() > 40);
    found
}

/// The lines of a block or the rest of the line, for each rule's `expr`, with the alert's name.
fn alerts() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(deploy().join("prometheus/alerts.yml")).unwrap();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if let Some(name) = line.trim().strip_prefix("- alert: ") {
            found.push((name.to_owned(), String::new()));
        } else if let Some(rest) = line.trim().strip_prefix("expr: ") {
            in_block = rest == "|";
            if !in_block {
                found.last_mut().unwrap().1 = rest.to_owned();
            }
        } else if in_block && line.starts_with("          ") {
            let expression = &mut found.last_mut().unwrap().1;
            *expression = format!("{expression} {}", line.trim());
        } else {
            in_block = false;
        }
    }
    assert!(found.len() > 10 && found.iter().all(|(_, expression)| !expression.is_empty()));
    found
}

/// The series that an expression looks at, each with its labels.
fn selectors(expression: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = BTreeSet::new();
    let mut rest = expression;
    while let Some(at) = rest.find(['t', 'p', 'u']) {
        let from = &rest[at..];
        let before = rest[..at].chars().next_back();
        let name: String = from.chars().take_while(|c| is_name(*c)).collect();
        let is_metric = (name.starts_with("tidelock_") || name.starts_with("process_") || name == "up")
            && !before.is_some_and(is_name);
        if !is_metric {
            rest = &from[1..];
            continue;
        }
        let behind = &from[name.len()..];
        let labels = if behind.starts_with('{') { &behind[..=behind.find('}').unwrap()] } else { "" };
        found.insert(format!("{name}{labels}"));
        rest = &from[name.len()..];
    }
    found
}

#[test]
fn what_an_expression_looks_at_is_found() {
    let found =
        selectors(r#"sum by (upstream) (rate(tidelock_a_total{x="1"}[5m])) / up{job="t"} > process_max_fds"#);
    assert_eq!(
        found,
        BTreeSet::from(
            [r#"tidelock_a_total{x="1"}"#, r#"up{job="t"}"#, "process_max_fds"].map(str::to_owned)
        )
    );
}

#[test]
fn rules_are_rules_and_fire_when_they_should() {
    let folder = deploy().join("prometheus");
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let output = Command::new("/usr/bin/promtool").args(arguments).current_dir(&folder).output();
        let output = output.expect("promtool, of Debian's package prometheus");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}\n{}", String::from_utf8_lossy(&said));
    }
    let tests = std::fs::read_to_string(folder.join("alerts_test.yml")).unwrap();
    for (alert, _) in alerts() {
        for case in ["fires", "is quiet"] {
            assert!(tests.contains(&format!("- name: {alert} {case}\n")), "{alert} {case}");
        }
    }
}

#[test]
fn boards_are_of_one_kind_and_no_two_panels_share_a_place() {
    let mut ids = BTreeSet::new();
    for (file, board) in dashboards() {
        assert!(ids.insert(board["uid"].as_str().unwrap().to_owned()), "{file}");
        let panels = board["panels"].as_array().unwrap();
        let mut taken = BTreeSet::new();
        for panel in panels {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
            assert!(x + w <= 24, "{file}: {}", panel["title"]);
            for cell in (y..y + h).flat_map(|row| (x..x + w).map(move |column| (row, column))) {
                assert!(taken.insert(cell), "{file}: {} lies over another", panel["title"]);
            }
            let is_row = panel["type"] == "row";
            assert!(
                is_row || !panel["description"].as_str().unwrap().is_empty(),
                "{file}: {}",
                panel["title"]
            );
        }
    }
}

/// A Prometheus with the project's own alerts, and one target; ends with the test.
struct Prometheus {
    client: Client,
    _child: tokio::process::Child,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    async fn start(target: &str) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let own = std::fs::read_to_string(deploy().join("prometheus/prometheus.yml")).unwrap();
        let config = own.replace("15s", "1s").replace("127.0.0.1:5001", target);
        assert_ne!(config, own);
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        std::fs::copy(deploy().join("prometheus/alerts.yml"), folder.path().join("alerts.yml")).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = tokio::process::Command::new("/usr/bin/prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("Debian's prometheus");
        let client = Client::new(&format!("http://{address}"));
        let is_ready = || async { client.try_get("/-/ready").await.is_ok_and(|answer| answer.status == 200) };
        eventually(is_ready).await;
        Prometheus { client, _child: child, _folder: folder }
    }

    /// How many series an expression gives.
    async fn series(&self, expression: &str) -> usize {
        let query: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let answer = self.client.get(&format!("/api/v1/query?query={query}")).await;
        assert_eq!(answer.status, 200, "{expression}\n{}", answer.text());
        answer.json()["data"]["result"].as_array().unwrap().len()
    }
}

/// Hits, misses, errors, evictions, a limit and a pin: something of everything.
async fn load(house: &House, fake: &FakeRegistry) {
    for n in 0..12 {
        house.client().pull("library/app", &format!("v{}", n % 6)).await.unwrap();
    }
    house.settled().await;
    house.admin().request(http::Method::POST, "/api/v1/pin?image=app:v5", &[]).await;
    fake.fault(Match::manifests(), Times::Once, Fault::status(500));
    house.client().get("/v2/library/app/manifests/none").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_panel_and_alert_finds_something() {
    let fake = FakeRegistry::start().await;
    (0..6).for_each(|n| fake.push("library/app", &format!("v{n}"), &Image::layers(n, &[300_000])));
    fake.set(|behaviour| behaviour.rate_limit = Some(RateLimit::new(1_000).remaining(900)));
    let house = House::with(&fake, |config| {
        config.cache.max_size = SizeLimit::Bytes(ByteSize(1_000_000));
        config.schedule.max_wait = Duration::from_millis(100);
    })
    .await;
    load(&house, &fake).await;
    let prometheus = Prometheus::start(house.admin_url().strip_prefix("http://").unwrap()).await;
    // Rates need two samples of each.
    for _ in 0..2 {
        let scrapes = "count_over_time(up{job=\"tidelock\"}[1m]) > 3";
        eventually(|| async { prometheus.series(scrapes).await > 0 }).await;
        load(&house, &fake).await;
    }
    eventually(|| async { prometheus.series("count_over_time(up{job=\"tidelock\"}[1m]) > 5").await > 0 })
        .await;
    let mut empty: Vec<(String, String)> = panels();
    for (alert, expression) in alerts() {
        prometheus.series(&expression).await;
        empty.extend(selectors(&expression).into_iter().map(|selector| (alert.clone(), selector)));
    }
    // A scrape that comes late leaves every series without a value until the next one.
    let deadline = Instant::now() + patience(Duration::from_secs(10));
    loop {
        let mut still = Vec::new();
        for (place, expression) in empty {
            if prometheus.series(&expression).await == 0 {
                still.push((place, expression));
            }
        }
        empty = still;
        if empty.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{empty:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
