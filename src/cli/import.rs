//! `tidelock import`: carry images in, from a bundle, any OCI layout or an archive of `docker save`.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueHint};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use url::form_urlencoded::Serializer;

use super::ask::{AdminArgs, Door};
use super::report::Report;
use super::words::{bar_of_bytes, size};
use crate::admin::{Adopted, Adoption, Lacking, Sought, TakenIn};
use crate::bundle::{Bundle, Carried, Verifier};
use crate::config::Config;
use crate::oci::{Digest, ImageReference};

/// What `import` takes.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The bundle, another OCI layout or an archive of `docker save`: a tar, a folder, or FILE.001 of several parts
    #[arg(value_hint = ValueHint::AnyPath)]
    file: PathBuf,
    /// Take it only if it is signed with this key: a file that `minisign -G` wrote, or the key itself
    #[arg(long, value_name = "KEY", value_hint = ValueHint::FilePath)]
    key: Option<String>,
    /// What the only image of a layout is called that does not say so
    #[arg(long, value_name = "IMAGE")]
    name: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// What became of a bundle.
#[derive(Debug, Default)]
struct Outcome {
    served: Vec<Adopted>,
    failed: Vec<String>,
    /// Blobs that came, and their bytes.
    blobs: u64,
    bytes: u64,
}

/// What an image consists of, as its bundle says.
struct Wanted<'a> {
    carried: &'a Carried,
    needs: Vec<Digest>,
}

/// Has the mirror take in what it lacks, each blob proven, and then serve each image of which all is there.
pub(super) fn import(arguments: &ImportArgs, config: &Config) -> Report {
    let door = match arguments.admin.door(config) {
        Ok(door) => door,
        Err(report) => return report,
    };
    match arguments.take_in(&door) {
        Ok(outcome) => outcome.report(arguments.admin.json),
        Err(error) => Report::failed(&error),
    }
}

impl ImportArgs {
    fn take_in(&self, door: &Door) -> anyhow::Result<Outcome> {
        let name = self.name.as_deref().map(str::parse::<ImageReference>).transpose()?;
        let verifier = self.key.as_deref().map(Verifier::open).transpose()?;
        let bundle = Bundle::open(&self.file, verifier.as_ref(), name.as_ref())?;
        let file = self.file.display();
        if bundle.images().is_empty() {
            bail!("{file} names no image; say by --name what its only one is called");
        }
        let mut outcome = Outcome::default();
        for digest in bundle.unnamed() {
            outcome.failed.push(format!("{digest} has no name in {file}, and was left out"));
        }
        let mut wanted = Vec::new();
        for carried in bundle.images() {
            match bundle.needs(carried) {
                Ok(needs) => wanted.push(Wanted { carried, needs }),
                Err(error) => outcome.failed.push(error.to_string()),
            }
        }
        let missing = lacking(door, &wanted)?;
        check_room(&bundle, &missing)?;
        let lacks = self.upload(door, &bundle, &missing.lacking, &mut outcome)?;
        for Wanted { carried, needs } in wanted {
            outcome.adopt(door, carried, needs, &lacks);
        }
        Ok(outcome)
    }

    /// Sends what the mirror lacks. What it still lacks then, and why.
    fn upload(
        &self,
        door: &Door,
        bundle: &Bundle,
        lacking: &[String],
        outcome: &mut Outcome,
    ) -> anyhow::Result<HashMap<Digest, String>> {
        let mut lacks = HashMap::new();
        let mut carried = Vec::new();
        for digest in lacking {
            let digest: Digest = digest.parse()?;
            match bundle.size(&digest)? {
                Some(size) => carried.push((digest, size)),
                None => {
                    let why =
                        "is neither here nor in the bundle: bring the bundle that this one builds on first";
                    lacks.insert(digest, why.to_owned());
                }
            }
        }
        let bar = ProgressBar::new(carried.iter().map(|(_, size)| size).sum()).with_style(bar_of_bytes());
        for (digest, size) in carried {
            let path = Serializer::new("/api/v1/blob?".to_owned())
                .append_pair("digest", &digest.to_string())
                .finish();
            let content = bar.wrap_read(bundle.read(&digest)?);
            match door.upload::<TakenIn>(&path, size, content) {
                Ok(taken) if taken.new => {
                    (outcome.blobs, outcome.bytes) = (outcome.blobs + 1, outcome.bytes + size)
                }
                Ok(_) => {}
                Err(error) => {
                    lacks.insert(digest, format!("in {} was not taken: {error:#}", self.file.display()));
                }
            }
        }
        bar.finish_and_clear();
        Ok(lacks)
    }
}

impl Outcome {
    /// Serves an image, if nothing of it is missing.
    fn adopt(&mut self, door: &Door, carried: &Carried, needs: Vec<Digest>, lacks: &HashMap<Digest, String>) {
        let image = &carried.image;
        let missing: Vec<&Digest> = needs.iter().filter(|digest| lacks.contains_key(digest)).collect();
        if let Some(first) = missing.first() {
            let more =
                if missing.len() > 1 { format!(" (and {} more)", missing.len() - 1) } else { String::new() };
            self.failed.push(format!("{image}: {first} {}{more}", lacks[first]));
            return;
        }
        let needs = needs.iter().map(Digest::to_string).collect();
        let adoption = Adoption { image: image.to_string(), digest: carried.digest.to_string(), needs };
        match door.tell::<Adopted>("/api/v1/adopt", &adoption) {
            Ok(adopted) => self.served.push(adopted),
            Err(error) => self.failed.push(format!("{error:#}")),
        }
    }

    fn report(&self, as_json: bool) -> Report {
        let code = u8::from(!self.failed.is_empty());
        if as_json {
            let failed: Vec<Value> = self.failed.iter().map(|message| json!(message)).collect();
            let told =
                json!({ "images": self.served, "failed": failed, "blobs": self.blobs, "bytes": self.bytes });
            return Report { out: format!("{told}\n"), code, ..Report::default() };
        }
        let mut out: String = self.served.iter().map(in_words).collect();
        out += &format!("{} images, {} blobs came, {}\n", self.served.len(), self.blobs, size(self.bytes));
        let err = self.failed.iter().map(|message| format!("tidelock: {message}\n")).collect();
        Report { out, err, code }
    }
}

fn in_words(adopted: &Adopted) -> String {
    let Adopted { image, digest, before } = adopted;
    let news = match before {
        None => "new".to_owned(),
        Some(before) if before == digest => "unchanged".to_owned(),
        Some(before) => format!("was {before}"),
    };
    format!("{image} is {digest} ({news})\n")
}

fn lacking(door: &Door, wanted: &[Wanted<'_>]) -> anyhow::Result<Lacking> {
    let digests: BTreeSet<&Digest> = wanted.iter().flat_map(|wanted| &wanted.needs).collect();
    let digests = digests.into_iter().map(Digest::to_string).collect();
    door.tell("/api/v1/lacking", &Sought { digests })
}

/// What does not fit as a whole is not begun with: what came first would go again for what comes last.
fn check_room(bundle: &Bundle, missing: &Lacking) -> anyhow::Result<()> {
    let mut bytes = 0;
    for digest in &missing.lacking {
        bytes += bundle.size(&digest.parse()?)?.unwrap_or(0);
    }
    let room = missing.limit.saturating_sub(missing.pinned).saturating_sub(missing.evictable);
    if bytes > room {
        bail!(
            "the bundle brings {} and the cache has room for {} beside what is pinned and what the bundle builds on; raise \
             cache.max_size or unpin something",
            size(bytes),
            size(room)
        );
    }
    Ok(())
}
