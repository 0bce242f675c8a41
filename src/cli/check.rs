//! `tidelock check`: is the configuration right, what does it amount to, and (`--online`) does it work?

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::online::{self, Finding};
use super::report::Report;
use crate::config::{Config, Credentials, Faults, Upstream};

/// What is to be checked besides, and how it is told.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct CheckArgs {
    /// Contact each upstream too: does each account log in, and how many pulls has it left? Costs no pull
    #[arg(long)]
    pub(super) online: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Says what is wrong, or that nothing is, in words or as one JSON object.
pub(super) fn check(loaded: Result<Config, Faults>, CheckArgs { online, json }: CheckArgs) -> Report {
    match loaded {
        Ok(config) => well_formed(&config, online, json).unwrap_or_else(|error| Report::failed(&error)),
        Err(faults) if json => Report { out: faults_json(&faults), code: 2, ..Report::default() },
        Err(faults) => Report::refused(&faults),
    }
}

fn well_formed(config: &Config, online: bool, json: bool) -> anyhow::Result<Report> {
    let mut advice = config.advice();
    advice.extend(unreadable(config));
    let findings = if online { Some(online::ask(config)?) } else { None };
    let has_failed = findings.iter().flatten().any(Finding::is_failure);
    let summary = if json { summary_json } else { summary };
    let out = summary(config, &advice, findings.as_deref());
    Ok(Report { out, code: u8::from(has_failed), ..Report::default() })
}

/// The base URL of each of the clients' listeners.
fn listeners(config: &Config) -> Vec<String> {
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    config.server.listen.iter().map(|address| format!("{scheme}://{address}")).collect()
}

fn summary(config: &Config, advice: &[(String, String)], findings: Option<&[Finding]>) -> String {
    let mut text = "configuration is valid\n".to_owned();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "  {name:<9} {value}").expect("a String takes every text");
    };
    line("clients", &listeners(config).join(", "));
    line("admin", &format!("http://{}", config.server.admin_listen));
    let cache = &config.cache;
    line(
        "cache",
        &format!("{}, at most {}, {} left free", cache.dir.display(), cache.max_size, cache.min_free),
    );
    if config.offline {
        line("offline", "no upstream is contacted");
    }
    for (i, upstream) in config.upstreams.iter().enumerate() {
        line(if i == 0 { "upstreams" } else { "" }, &described(upstream));
    }
    for (key, reason) in advice {
        line("advice", &format!("{key} {reason}"));
    }
    for (i, finding) in online::lines(findings.unwrap_or_default()).iter().enumerate() {
        line(if i == 0 { "online" } else { "" }, finding);
    }
    text
}

fn described(upstream: &Upstream) -> String {
    let mut text = upstream.registry.to_string();
    if upstream.default {
        text.push_str(" (default)");
    }
    let accounts: Vec<&str> = upstream.accounts.iter().map(|account| account.name.as_str()).collect();
    match accounts[..] {
        [] => text.push_str(", anonymous"),
        _ => text.push_str(&format!(", as {}", accounts.join(", "))),
    }
    text
}

fn summary_json(config: &Config, advice: &[(String, String)], findings: Option<&[Finding]>) -> String {
    let upstreams = config.upstreams.iter().map(|upstream| {
        json!({
            "registry": upstream.registry.as_str(),
            "default": upstream.default,
            "endpoints": upstream.endpoints.iter().map(url::Url::as_str).collect::<Vec<_>>(),
            "accounts": upstream.accounts.iter().map(|account| account.name.as_str()).collect::<Vec<_>>(),
        })
    });
    let mut summary = json!({
        "valid": true,
        "listen": listeners(config),
        "admin_listen": format!("http://{}", config.server.admin_listen),
        "offline": config.offline,
        "cache": {
            "dir": config.cache.dir.display().to_string(),
            "max_size": config.cache.max_size.to_string(),
            "min_free": config.cache.min_free.to_string(),
        },
        "upstreams": upstreams.collect::<Vec<_>>(),
        "advice": advice.iter().map(|(key, message)| json!({"key": key, "message": message})).collect::<Vec<_>>(),
    });
    if let Some(findings) = findings {
        summary["online"] = Value::Array(online::json(findings));
    }
    line(&summary)
}

fn faults_json(faults: &Faults) -> String {
    let faults = faults.iter().map(|fault| {
        json!({ "place": fault.place, "key": fault.key, "given": fault.given, "message": fault.message })
    });
    line(&json!({ "valid": false, "faults": faults.collect::<Vec<_>>() }))
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// Files and variables that are named but not there. No fault: the check may run on another machine than the
/// mirror, or under another user.
fn unreadable(config: &Config) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut look = |key: String, path: &Path| {
        if let Err(error) = std::fs::File::open(path) {
            found.push((key, format!("= {} cannot be read here: {error}", path.display())));
        }
    };
    if let Some(tls) = &config.server.tls {
        look("server.tls.cert".into(), &tls.cert);
        look("server.tls.key".into(), &tls.key);
        tls.client_ca.iter().for_each(|path| look("server.tls.client_ca".into(), path));
    }
    let mut unset = Vec::new();
    for (i, upstream) in config.upstreams.iter().enumerate() {
        upstream.ca.iter().for_each(|path| look(format!("upstream[{i}].ca"), path));
        for (j, account) in upstream.accounts.iter().enumerate() {
            let key = |name: &str| format!("upstream[{i}].account[{j}].{name}");
            match &account.credentials {
                Credentials::PasswordFile { file, .. } => look(key("password_file"), file),
                Credentials::DockerConfig { file } => look(key("docker_config"), file),
                Credentials::PasswordEnv { variable, .. } if std::env::var_os(variable).is_none() => {
                    unset.push((key("password_env"), format!("= {variable} is not set here")));
                }
                Credentials::PasswordEnv { .. } | Credentials::Helper { .. } => {}
            }
        }
    }
    found.extend(unset);
    found
}
