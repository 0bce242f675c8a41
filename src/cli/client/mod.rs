//! `tidelock client NAME`: what to write where, so that a client pulls through this mirror.
//!
//! Two ways to tell the mirror which registry is meant exist (design 2.4): containerd and its kin say so
//! themselves (`?ns=`), the podman family is given the registry as the first part of the path. Every client
//! here still falls back to the registry itself when the mirror is away.

mod guide;
mod mirror;

use clap::{Args, ValueEnum};

use self::guide::Guide;
use self::mirror::Mirror;
use super::report::Report;
use crate::config::Config;

/// What `tidelock client` takes.
#[derive(Debug, Args)]
pub(super) struct ClientArgs {
    /// The client
    name: ClientName,

    /// The mirror as the client reaches it; without this, the first address that is listened on
    #[arg(long, value_name = "URL")]
    mirror: Option<Mirror>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The clients that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ClientName {
    Docker,
    Containerd,
    Podman,
    Crio,
    Buildkit,
    K3s,
    Nerdctl,
}

/// Prints how to point the client at the mirror that `config` makes.
pub(super) fn client(arguments: &ClientArgs, config: &Config) -> Report {
    let mirror = arguments.mirror.clone().or_else(|| Mirror::of(config));
    let Some(mirror) = mirror else {
        return Report::misused(
            "server.listen has port 0, which is not known before it serves: give --mirror URL",
        );
    };
    let mut guide = match arguments.name {
        ClientName::Docker => guide::docker(&mirror, config),
        ClientName::Containerd => guide::containerd(&mirror, config),
        ClientName::Podman => guide::podman(&mirror, config),
        ClientName::Crio => guide::crio(&mirror, config),
        ClientName::Buildkit => guide::buildkit(&mirror, config),
        ClientName::K3s => guide::k3s(&mirror, config),
        ClientName::Nerdctl => guide::nerdctl(&mirror, config),
    };
    if arguments.mirror.is_none() {
        guide.note(format!(
            "{mirror} is what this machine listens on; for clients elsewhere give the name that they know: \
             --mirror {}://NAME:PORT",
            mirror.scheme()
        ));
    }
    Report::done(if arguments.json { json(&guide) } else { text(&guide) })
}

fn text(guide: &Guide) -> String {
    let mut text = String::new();
    for file in &guide.files {
        text.push_str(&format!("==> {}\n{}\n", file.path, file.body));
    }
    text.push_str("==> then\n");
    for step in &guide.then {
        text.push_str(&format!("{step}\n"));
    }
    if !guide.notes.is_empty() {
        text.push_str("\n==> note\n");
    }
    for note in &guide.notes {
        text.push_str(&format!("- {note}\n"));
    }
    text
}

fn json(guide: &Guide) -> String {
    let files = guide.files.iter().map(|file| serde_json::json!({ "path": file.path, "body": file.body }));
    let object = serde_json::json!({
        "files": files.collect::<Vec<_>>(),
        "then": guide.then,
        "notes": guide.notes,
    });
    format!("{object}\n")
}
