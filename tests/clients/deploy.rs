//! What is in `deploy/` for systemd and Kubernetes, looked over by their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn units_are_units() {
    let folder = tempfile::tempdir().unwrap();
    for unit in ["tidelock.service", "tidelock.socket", "tidelock-admin.socket"] {
        let text = fs::read_to_string(deploy("systemd").join(unit)).unwrap();
        let text = text.replace("/usr/local/bin/tidelock", env!("CARGO_BIN_EXE_tidelock"));
        fs::write(folder.path().join(unit), text).unwrap();
    }
    let units = fs::read_dir(folder.path()).unwrap().map(|unit| unit.unwrap().path());
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(units).output();
    let verified = verified.expect("systemd-analyze, of Debian's package systemd");
    let words = said(&verified);
    // Of the machine's own units it may have something to say.
    let about_ours: Vec<&str> = words.lines().filter(|line| line.contains("tidelock")).collect();
    assert!(about_ours.is_empty(), "{words}");
}

#[test]
fn the_unit_is_hardened() {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--threshold=20"])
        .arg(deploy("systemd/tidelock.service"))
        .output()
        .unwrap();
    assert!(output.status.success(), "exposed by more than 2.0 of 10\n{}", said(&output));
}

const VALIDATOR: &str = "kubernetes-validate==1.37.0";

/// A Python with Kubernetes' schemas, fetched once.
fn validator() -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(VALIDATOR);
    let program = folder.join("bin/kubernetes-validate");
    if !program.exists() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&folder).output().unwrap();
        assert!(made.status.success(), "{}", said(&made));
        let pip = folder.join("bin/pip");
        let got =
            Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check", VALIDATOR]).output();
        let got = got.unwrap();
        assert!(got.status.success(), "{}", said(&got));
    }
    program
}

#[test]
fn manifests_are_what_kubernetes_takes() {
    let manifest = deploy("kubernetes/tidelock.yaml");
    let output = Command::new(validator()).arg("--strict").arg(&manifest).output().unwrap();
    let words = said(&output);
    assert!(output.status.success(), "{words}");
    let kinds = ["statefulset", "service", "poddisruptionbudget", "networkpolicy", "configmap", "namespace"];
    for kind in kinds {
        assert!(words.contains(&format!("passed for resource {kind}/")), "{kind} in\n{words}");
    }
    // It does look: a field that there is not is found.
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.yaml");
    fs::write(&wrong, fs::read_to_string(&manifest).unwrap().replace("serviceName:", "serviceNames:"))
        .unwrap();
    let output = Command::new(validator()).arg("--strict").arg(&wrong).output().unwrap();
    assert!(!output.status.success(), "{}", said(&output));
}

/// The chart with these values, as Helm would render it.
fn rendered(folder: &Path, values: &str) -> String {
    static RENDERER: OnceLock<PathBuf> = OnceLock::new();
    let renderer = RENDERER.get_or_init(|| {
        let (to, from) = (
            Path::new(env!("CARGO_TARGET_TMPDIR")),
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/helm"),
        );
        let program = to.join("render");
        // Debian's packages of Go libraries are sources, in a tree of their own.
        let built = Command::new("go")
            .args(["build", "-o"])
            .arg(&program)
            .arg("render.go")
            .current_dir(from)
            .env("GO111MODULE", "off")
            .env("GOPATH", "/usr/share/gocode")
            .env("GOCACHE", to.join("go-cache"))
            .output();
        let built = built.expect("go, of Debian's package golang-go");
        assert!(built.status.success(), "{}", said(&built));
        program
    });
    let file = folder.join("values.yaml");
    fs::write(&file, values).unwrap();
    let output = Command::new(renderer).arg(deploy("helm/tidelock")).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_chart_renders_to_what_kubernetes_takes() {
    const ALL: &str = "
serviceMonitor: { enabled: true, labels: { release: prometheus } }
secrets: [hub]
nodeSelector: { disk: ssd }
tolerations: [{ key: mirror, operator: Exists }]
affinity: { nodeAffinity: {} }
imagePullSecrets: [{ name: own }]
persistence: { storageClass: fast }
service: { type: ClusterIP }
";
    let folder = tempfile::tempdir().unwrap();
    for (values, kinds) in
        [("{}", 6), ("{podDisruptionBudget: {enabled: false}, networkPolicy: {enabled: false}}", 4), (ALL, 7)]
    {
        let text = rendered(folder.path(), values);
        let documents: Vec<&str> = text.split("---\n").filter(|part| part.contains("kind:")).collect();
        assert_eq!(documents.len(), kinds, "{text}");
        // Of the Prometheus operator's kind Kubernetes knows nothing.
        let own: Vec<&str> =
            documents.into_iter().filter(|part| !part.contains("kind: ServiceMonitor")).collect();
        let file = folder.path().join("rendered.yaml");
        fs::write(&file, own.join("---\n")).unwrap();
        let output = Command::new(validator()).arg("--strict").arg(&file).output().unwrap();
        assert!(output.status.success(), "{}\n{text}", said(&output));
        assert!(text.contains("name: site-tidelock\n") && !text.contains("<no value>"), "{text}");
    }
}

/// The configuration that stands in the manifests is one.
#[test]
fn the_configurations_in_them_load() {
    for (file, from) in
        [("kubernetes/tidelock.yaml", "  tidelock.toml: |\n"), ("helm/tidelock/values.yaml", "\nconfig: |\n")]
    {
        let text = fs::read_to_string(deploy(file)).unwrap();
        let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("{file}"));
        let block = rest.lines().take_while(|line| line.starts_with(' ') || line.is_empty());
        let toml: String = block.map(|line| format!("{}\n", line.trim_start())).collect();
        assert!(toml.contains("max_size"));
        tidelock::config::Config::from_toml(file, &toml).unwrap_or_else(|faults| panic!("\n{faults}\n"));
    }
}
