//! The real program's commands: what they print and how they exit.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Runs the program with nothing else in its environment than `environment`.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
    command.env_clear().args(arguments).envs(environment.iter().copied());
    command.output().unwrap()
}

/// What is printed by a command that works.
pub(crate) fn printed(arguments: &[&str]) -> String {
    printed_with(arguments, &[])
}

fn printed_with(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = run(arguments, environment);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with the file `tidelock.toml` in it.
fn configured(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("tidelock.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path.to_str().unwrap().to_owned())
}

const THREE_MISTAKES: &str = "\
[freshness]
tag_ttl = \"5 parsecs\"
[[upstream]]
registry = \"docker.io\"
max_conections = 8
requests_per_second = 0
";

#[test]
fn check_shows_every_mistake() {
    let (_folder, path) = configured(THREE_MISTAKES);
    for command in [&["check", "--config", &path][..], &["--config", &path, "config"], &["--config", &path]] {
        let output = run(command, &[]);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(output.stdout.is_empty(), "{command:?}");
        let complaint = String::from_utf8(output.stderr).unwrap();
        let expected = [
            format!("{path}:2: freshness.tag_ttl = \"5 parsecs\" must be a duration such as 0s, 500ms, 30s"),
            format!(
                "{path}:5: upstream[0].max_conections is not a key: did you mean upstream[0].max_connections?"
            ),
            format!("{path}:6: upstream[0].requests_per_second = 0 must be a whole number from 1 to 1000000"),
        ];
        assert_eq!(complaint.lines().count(), expected.len(), "{complaint}");
        for (line, expected) in complaint.lines().zip(expected) {
            assert!(line.starts_with(&expected), "{line}\n{expected}");
        }
    }
}

#[test]
fn check_speaks_json() {
    let (_folder, path) = configured(THREE_MISTAKES);
    let output = run(&["check", "--json", "--config", &path], &[]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["valid"], false);
    assert_eq!(report["faults"][2]["key"], "upstream[0].requests_per_second");
    assert_eq!(report["faults"][2]["given"], "0");
    assert_eq!(report["faults"][2]["place"], format!("{path}:6"));
    let report: Value = serde_json::from_str(&printed(&["check", "--json"])).unwrap();
    assert_eq!(report["valid"], true);
    assert_eq!(report["listen"][0], "http://127.0.0.1:5000");
    assert_eq!(report["upstreams"].as_array().unwrap().len(), 7);
}

#[test]
fn check_sums_up_and_advises() {
    let (_folder, path) = configured(
        "schedule.max_wait = \"1m\"\n[[upstream]]\nregistry = \"docker.io\"\n[[upstream.account]]\nname = \"ci\"\n\
         username = \"u\"\npassword_file = \"/nowhere/at/all\"\n",
    );
    let summary = printed(&["check", "--config", &path]);
    assert!(summary.starts_with("configuration is valid\n"), "{summary}");
    for line in [
        "  clients   http://127.0.0.1:5000\n",
        "  upstreams docker.io (default), as ci\n",
        "  advice    schedule.max_wait is longer than containerd and Docker wait for headers (30s)\n",
        "  advice    upstream[0].account[0].password_file = /nowhere/at/all cannot be read here: No such file",
    ] {
        assert!(summary.contains(line), "{summary}\n{line}");
    }
}

#[test]
fn the_log_level_is_checked_with_the_rest() {
    for level in ["a=b=c", "verbose", "info,tidelock", "info,"] {
        let (_folder, path) = configured(&format!("offline = 1\n[log]\nlevel = \"{level}\"\n"));
        let output = run(&["check", "--config", &path], &[]);
        let complaint = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = complaint.lines().collect();
        let expected = format!("{path}:3: log.level = \"{level}\" must be a level (error, warn, info,");
        assert!(lines.len() == 2 && lines[1].starts_with(&expected), "{complaint}");
    }
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &["client"],
        &["client", "rkt"],
        &["client", "docker", "--mirror", "mirror:5000"],
        &["client", "docker", "--listen", "127.0.0.1:0"],
        &["completions", "tcsh"],
        &["--config", "/nowhere/tidelock.toml"],
        &["--listen", "localhost"],
    ] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["help", "client"]] {
        assert!(!printed(arguments).is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_defaults_are_the_example() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.toml");
    assert_eq!(printed(&["config", "--defaults"]), std::fs::read_to_string(example).unwrap());
}

#[test]
fn the_configuration_is_printed_without_passwords() {
    let (_folder, path) = configured(
        "[[upstream]]\nregistry = \"docker.io\"\nproxy = \"http://ci:hunter2@proxy.example:3128\"\n\
         [[upstream.account]]\nname = \"ci\"\nusername = \"ci\"\npassword_env = \"HUB_TOKEN\"\n",
    );
    let printed = printed_with(&["config", "--config", &path], &[("HUB_TOKEN", "hunter2")]);
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("proxy = \"http://***@proxy.example:3128\""), "{printed}");
    assert!(printed.contains("password_env = \"HUB_TOKEN\""), "{printed}");
    tidelock::config::Config::from_toml("printed", &printed).unwrap();
}

#[test]
fn flag_over_environment_over_file() {
    let (_folder, path) = configured("[cache]\nmax_size = \"1GiB\"\nmin_free = \"1GiB\"\ndir = \"/file\"\n");
    let environment =
        [("TIDELOCK_CONFIG", path.as_str()), ("TIDELOCK_MAX_SIZE", "2GiB"), ("TIDELOCK_CACHE_DIR", "/env")];
    let text = printed_with(&["config", "--max-size", "3GiB", "--offline"], &environment);
    let config: toml::Table = text.parse().unwrap();
    assert_eq!(config["cache"]["max_size"].as_str(), Some("3GiB"), "the flag wins");
    assert_eq!(config["cache"]["dir"].as_str(), Some("/env"), "the environment wins over the file");
    assert_eq!(config["cache"]["min_free"].as_str(), Some("1GiB"), "the file wins over the default");
    assert_eq!(config["schedule"]["max_wait"].as_str(), Some("15s"), "the default");
    assert_eq!(config["offline"].as_bool(), Some(true));
    let (_other, other) = configured("offline = false\n");
    let text = printed_with(
        &["config", "--config", &other],
        &[&environment[..], &[("TIDELOCK_OFFLINE", "1")]].concat(),
    );
    let config: toml::Table = text.parse().unwrap();
    assert_eq!(config["offline"].as_bool(), Some(true));
    assert_eq!(config["cache"]["min_free"].as_str(), Some("2GiB"), "--config wins over TIDELOCK_CONFIG");
}

#[test]
fn a_fault_names_its_variable() {
    let output = run(&["check"], &[("TIDELOCK_LISTEN", "127.0.0.1:5000,nonsense")]);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.starts_with("TIDELOCK_LISTEN: server.listen[1] = \"nonsense\" must be"), "{complaint}");
}

/// The files that a client is to have, as pairs of path and text.
pub(crate) fn client(name: &str, more: &[&str]) -> Vec<(String, String)> {
    let arguments = [&["client", name, "--json"][..], more].concat();
    let guide: Value = serde_json::from_str(&printed(&arguments)).unwrap();
    assert!(!guide["then"].as_array().unwrap().is_empty(), "{name} is told how it takes effect");
    let text = |file: &Value, key: &str| file[key].as_str().unwrap().to_owned();
    let files = guide["files"].as_array().unwrap().iter();
    files.map(|file| (text(file, "path"), text(file, "body"))).collect()
}

fn toml_of(text: &str) -> toml::Table {
    text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn docker_is_pointed_here() {
    let files = client("docker", &[]);
    assert_eq!(files[0].0, "/etc/docker/daemon.json");
    let daemon: Value = serde_json::from_str(&files[0].1).unwrap();
    assert_eq!(daemon, serde_json::json!({ "registry-mirrors": ["http://127.0.0.1:5000"] }));
    assert_eq!(files.len(), 7, "the other registries, by hosts.toml");
    assert!(files.iter().all(|(path, _)| !path.contains("docker.io")));
}

#[test]
fn docker_cannot_use_a_mirror_whose_default_is_another() {
    let (_folder, path) = configured(
        "[[upstream]]\nregistry = \"quay.io\"\ndefault = true\n[[upstream]]\nregistry = \"docker.io\"\n",
    );
    let files = client("docker", &["--config", &path]);
    let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/etc/docker/certs.d/quay.io/hosts.toml", "/etc/docker/certs.d/docker.io/hosts.toml"]);
}

#[test]
fn containerd_and_nerdctl_are_pointed_here() {
    for name in ["containerd", "nerdctl"] {
        let files = client(name, &["--mirror", "https://mirror.example"]);
        assert_eq!(files.len(), 7);
        assert_eq!(files[0].0, "/etc/containerd/certs.d/docker.io/hosts.toml");
        let hosts = toml_of(&files[0].1);
        assert_eq!(hosts["server"].as_str(), Some("https://registry-1.docker.io"));
        let host = &hosts["host"]["https://mirror.example"];
        assert_eq!(host["capabilities"], toml::Value::from(vec!["pull", "resolve"]));
        assert_eq!(host["dial_timeout"].as_str(), Some("2s"));
    }
}

#[test]
fn podman_and_crio_are_pointed_here() {
    for name in ["podman", "crio"] {
        let files = client(name, &[]);
        assert_eq!(files[0].0, "/etc/containers/registries.conf.d/50-tidelock.conf");
        let registries = toml_of(&files[0].1);
        let ghcr = &registries["registry"][1];
        assert_eq!(ghcr["prefix"].as_str(), Some("ghcr.io"));
        assert_eq!(ghcr["location"].as_str(), Some("ghcr.io"));
        assert_eq!(ghcr["mirror"][0]["location"].as_str(), Some("127.0.0.1:5000/ghcr.io"));
        assert_eq!(ghcr["mirror"][0]["insecure"].as_bool(), Some(true));
        let registries = toml_of(&client(name, &["--mirror", "https://mirror.example"])[0].1);
        assert_eq!(registries["registry"][0]["mirror"][0].get("insecure"), None, "TLS is verified");
    }
}

#[test]
fn buildkit_is_pointed_here() {
    let files = client("buildkit", &[]);
    assert_eq!(files[0].0, "/etc/buildkit/buildkitd.toml");
    let registries = toml_of(&files[0].1);
    assert_eq!(registries["registry"]["docker.io"]["mirrors"][0].as_str(), Some("127.0.0.1:5000"));
    assert_eq!(registries["registry"]["127.0.0.1:5000"]["http"].as_bool(), Some(true));
    let registries = toml_of(&client("buildkit", &["--mirror", "https://mirror.example"])[0].1);
    assert_eq!(registries["registry"].get("mirror.example"), None);
}

#[test]
fn k3s_is_pointed_here() {
    let (_folder, path) = configured(
        "server.listen = [\"0.0.0.0:80\"]\n[[upstream]]\nregistry = \"r.example:5000\"\nendpoints = [\"https://r.example:5000\"]\n",
    );
    let files = client("k3s", &["--config", &path]);
    assert_eq!(files[0].0, "/etc/rancher/k3s/registries.yaml");
    assert_eq!(
        files[0].1,
        "mirrors:\n  \"r.example:5000\":\n    endpoint:\n      - \"http://127.0.0.1:80\"\n"
    );
}

#[test]
fn every_client_is_told_in_words_too() {
    for name in ["docker", "containerd", "podman", "crio", "buildkit", "k3s", "nerdctl"] {
        let text = printed(&["client", name]);
        let (files, rest) = text.split_once("==> then\n").unwrap();
        assert!(files.starts_with("==> /etc/") && !rest.is_empty(), "{text}");
        assert!(text.contains("--mirror http://NAME:PORT"), "{text}");
    }
}

#[test]
fn shells_complete() {
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("tidelock") && script.contains("cache-dir"), "{shell}");
    }
}

#[test]
fn pages_of_the_manual() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man");
    let written = printed(&["man", "--out", out.to_str().unwrap()]);
    let commands = printed(&["--help"]);
    let (_, commands) = commands.split_once("Commands:\n").unwrap();
    let commands = commands
        .lines()
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next());
    for command in commands.filter(|command| !["help", "serve"].contains(command)).chain(["serve"]) {
        let page = std::fs::read_to_string(out.join(format!("tidelock-{command}.1")));
        assert!(
            page.is_ok_and(|page| page.starts_with(".ie") && page.contains(".TH tidelock")),
            "{command} of\n{written}"
        );
    }
    assert_eq!(printed(&["man"]), std::fs::read_to_string(out.join("tidelock.1")).unwrap());
    let taken = folder.path().join("taken");
    std::fs::write(&taken, "").unwrap();
    let refused = run(&["man", "--out", taken.to_str().unwrap()], &[]);
    assert_eq!(refused.status.code(), Some(1));
}
