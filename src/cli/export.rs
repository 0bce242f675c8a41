//! `tidelock export`: carry images out, as a bundle.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueHint};
use http::Method;
use indicatif::ProgressBar;
use serde_json::json;
use url::form_urlencoded::Serializer;

use super::ask::{AdminArgs, Door};
use super::images::ImagesArgs;
use super::report::Report;
use super::warm;
use super::words::{bar_of_bytes, size};
use crate::admin::Warmed;
use crate::bundle::{Bundle, Carried, Output, Plan, Signer, read_inventory};
use crate::config::{ByteSize, Config};
use crate::oci::{Digest, ImageReference};
use crate::secret::Secret;

/// What `export` takes.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    images: ImagesArgs,
    /// The bundle: a tar, or a folder where it ends in / or is one
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    output: PathBuf,
    /// For this platform only, linux/arm64 for example; may be repeated. By default for all that there are
    #[arg(long = "platform", value_name = "OS/ARCH")]
    platforms: Vec<String>,
    /// Leave out what refers to the images: signatures, SBOMs, attestations
    #[arg(long)]
    no_referrers: bool,
    /// Leave out what this bundle carried, and what was left out of that; may be repeated
    #[arg(long, value_name = "BUNDLE", value_hint = ValueHint::AnyPath)]
    since: Vec<PathBuf>,
    /// Leave out what this inventory of the other side lists (see `tidelock inventory`); may be repeated
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    have: Vec<PathBuf>,
    /// Write parts of this size, FILE.001 and so on, for media that hold no more
    #[arg(long, value_name = "SIZE")]
    part_size: Option<String>,
    /// Sign it with this key, made by `minisign -G` [its password: env TIDELOCK_KEY_PASSWORD]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    sign: Option<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// A bundle.
struct Written {
    plan: Plan,
    files: Vec<PathBuf>,
    /// What may be missing from it.
    doubts: Vec<String>,
}

const PASSWORD_VARIABLE: &str = "TIDELOCK_KEY_PASSWORD";

/// Writes a bundle of the images. Where one of them cannot be had, nothing is written.
pub(super) fn export(arguments: &ExportArgs, config: &Config) -> Report {
    if arguments.images.is_empty() {
        return Report::misused("name the images to carry out, or a file that names them by --from");
    }
    let door = match arguments.admin.door(config) {
        Ok(door) => door,
        Err(report) => return report,
    };
    let part_size = match arguments.part_size.as_deref().map(|text| (text, text.parse::<ByteSize>())) {
        None => None,
        Some((_, Ok(ByteSize(bytes)))) if bytes >= 1 << 20 => Some(bytes),
        Some((text, _)) => {
            return Report::misused(&format!(
                "--part-size {text:?} must be a size of at least 1MiB, such as 4GiB"
            ));
        }
    };
    match arguments.write(&door, part_size) {
        Ok(Written { plan, files, doubts }) => {
            let err = doubts.iter().map(|doubt| format!("tidelock: {doubt}\n")).collect();
            Report { err, ..Report::done(arguments.told(&plan, &files)) }
        }
        Err(error) => Report::failed(&error),
    }
}

impl ExportArgs {
    fn write(&self, door: &Door, part_size: Option<u64>) -> anyhow::Result<Written> {
        // All that can be wrong with what was given comes before the first request.
        let (images, have) = (self.images.all(door)?, self.have()?);
        let password = std::env::var(PASSWORD_VARIABLE).ok().map(Secret::new);
        let signer = self.sign.as_deref().map(|file| Signer::open(file, password.as_ref())).transpose()?;
        let mut output = self.open(part_size)?;
        let (mut plan, mut homes, mut doubts) = (Plan::default(), HashMap::new(), Vec::new());
        for image in &images {
            let warmed = self.fetch(door, image)?;
            take_up(&mut plan, &mut homes, &warmed, &have)?;
            doubts.extend(warmed.doubt.map(|why| {
                format!("{}: more may refer to it than is carried, signatures for one: {why}", warmed.image)
            }));
        }
        plan.begin(&mut output, signer.as_ref())?;
        let all = plan.carried().map(|(_, size)| size).sum();
        let bar = ProgressBar::new(all).with_style(bar_of_bytes());
        for (digest, length) in plan.carried() {
            if output.has(&digest, length)? {
                bar.inc(length);
                continue;
            }
            let path = Serializer::new("/api/v1/content?".to_owned())
                .append_pair("image", &homes[&digest])
                .append_pair("digest", &digest.to_string())
                .finish();
            let content = door.download(Method::POST, &path)?;
            output
                .blob(&digest, length, bar.wrap_read(content))
                .with_context(|| format!("carrying {digest}"))?;
        }
        bar.finish_and_clear();
        Ok(Written { plan, files: output.finish()?, doubts })
    }

    fn have(&self) -> anyhow::Result<HashSet<Digest>> {
        let mut have = HashSet::new();
        for file in &self.have {
            have.extend(read_inventory(file)?);
        }
        for file in &self.since {
            let bundle = Bundle::open(file, None, None)?;
            let inventory = bundle.inventory().ok_or_else(|| {
                anyhow!("{} does not say what it carried: --since takes what export wrote", file.display())
            })?;
            have.extend(inventory);
        }
        Ok(have)
    }

    fn open(&self, part_size: Option<u64>) -> anyhow::Result<Output> {
        let is_folder = self.output.is_dir() || self.output.to_string_lossy().ends_with('/');
        if is_folder && part_size.is_some() {
            bail!("--part-size goes with a tar, and {} is a folder", self.output.display());
        }
        Ok(if is_folder { Output::folder(&self.output)? } else { Output::tar(&self.output, part_size)? })
    }

    fn fetch(&self, door: &Door, image: &str) -> anyhow::Result<Warmed> {
        let mut query = Serializer::new("/api/v1/warm?".to_owned());
        query.append_pair("image", image);
        query.append_pair("referrers", if self.no_referrers { "false" } else { "true" });
        query.extend_pairs(self.platforms.iter().map(|platform| ("platform", platform)));
        warm::follow(door, &query.finish(), image)
    }

    fn told(&self, plan: &Plan, files: &[PathBuf]) -> String {
        let (blobs, bytes) =
            plan.carried().fold((0u64, 0), |(count, sum), (_, size)| (count + 1, sum + size));
        let (left_out, saved) = plan.left_out();
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        if self.admin.json {
            let images: Vec<String> = plan.images().iter().map(|carried| carried.image.to_string()).collect();
            let told = json!({ "files": files, "images": images, "blobs": blobs, "bytes": bytes,
                               "left_out": left_out, "left_out_bytes": saved });
            return format!("{told}\n");
        }
        let saved = match left_out {
            0 => String::new(),
            _ => format!("; left out, since the other side has it: {left_out} blobs, {}", size(saved)),
        };
        let images = plan.images().len();
        format!(
            "{}: {images} images and what refers to them, {blobs} blobs, {}{saved}\n",
            files.join(", "),
            size(bytes)
        )
    }
}

/// An image and all of its parts, each with an image by which it can be asked for.
fn take_up(
    plan: &mut Plan,
    homes: &mut HashMap<Digest, String>,
    warmed: &Warmed,
    have: &HashSet<Digest>,
) -> anyhow::Result<()> {
    let foreign = "the mirror does not answer as one of this version does";
    for part in &warmed.parts {
        let digest: Digest = part.digest.parse().context(foreign)?;
        plan.part(digest, part.size, part.manifest, have);
        homes.entry(digest).or_insert_with(|| warmed.image.clone());
    }
    for root in &warmed.roots {
        let top = warmed.parts.iter().find(|part| part.digest == root.digest).context(foreign)?;
        plan.image(Carried {
            image: root.image.parse::<ImageReference>().context(foreign)?,
            digest: root.digest.parse().context(foreign)?,
            media_type: top.media_type.clone(),
            size: top.size,
        });
    }
    Ok(())
}
