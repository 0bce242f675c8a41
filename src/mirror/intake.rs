//! What is carried in by hand: content first, each proven by itself, and names last.
//!
//! Nothing that is taken in can be asked for until it is adopted: it has no proof for any repository (I5). The proof is then
//! the operator's word, who says that this is what the repository contains. A kill at any instant leaves blobs that nobody
//! sees, and the next try finds them here.

use std::collections::{HashSet, VecDeque};
use std::io;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};

use super::check::stamp;
use super::{Inner, Mirror, Subject};
use crate::oci::{Algorithm, Digest, Manifest, OCI_INDEX, Reference, Referrers, is_index};
use crate::routing::Target;
use crate::store::{self, Link, Name};

/// Why something was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// What sent it broke off; what came stays for the next try.
    #[error("it broke off after {received} of {size} bytes; what came stays for the next try")]
    BrokenOff {
        /// Bytes that came.
        received: u64,
        /// Of so many.
        size: u64,
    },
    /// The store's: it does not hash to its digest, there is no room, the disk fails.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Why an image got no name.
#[derive(Debug, thiserror::Error)]
pub enum NotAdopted {
    /// Some of it is not here.
    #[error("{} of its manifests and blobs are not here, {} for one", .0.len(), .0[0])]
    Lacking(Vec<Digest>),
    /// Something that stands for a manifest is none.
    #[error("{0} is no manifest")]
    NoManifest(Digest),
    /// The index's.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// An image that is carried in, and what its tag was remembered to mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// `None` where it was not known.
    pub before: Option<Digest>,
}

/// What an image that is here consists of, and what it says it refers to.
#[derive(Default)]
struct Found {
    links: Vec<(Digest, Link)>,
    referring: Vec<(Digest, Value)>,
}

impl Mirror {
    /// Keeps the `size` bytes that come, if they hash to `digest`. Whether they were not here before; then none of them are
    /// read.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub async fn take_in(
        &self,
        digest: Digest,
        size: u64,
        mut pieces: impl Stream<Item = io::Result<Bytes>> + Unpin,
    ) -> Result<bool, NotTaken> {
        let store = &self.0.store;
        if store.size(&digest).await.is_some() {
            return Ok(false);
        }
        let mut partial = store.partial(digest, Some(size)).await?;
        // Whoever wrote it meanwhile may have finished it.
        if store.size(&digest).await.is_some() {
            partial.discard();
            return Ok(false);
        }
        partial.expect(size).await?;
        let (mut received, kept) = (0, partial.kept());
        while let Some(Ok(mut piece)) = pieces.next().await {
            let known = kept.saturating_sub(received).min(piece.len() as u64);
            received += piece.len() as u64;
            // Lossless: it is at most the length of a slice.
            let piece = piece.split_off(known as usize);
            if !piece.is_empty() && received <= size {
                partial.write(received - piece.len() as u64, piece).await?;
            }
        }
        if received != size {
            return Err(NotTaken::BrokenOff { received, size });
        }
        partial.prove().await?;
        partial.promote(size).await?;
        Ok(true)
    }

    /// Those of `digests` that are not here. The others are the last to be evicted from now on: not for what is brought to
    /// be put beside them.
    pub async fn lacking(&self, digests: &[Digest]) -> Vec<Digest> {
        let mut lacking = Vec::new();
        for digest in digests {
            match self.0.store.size(digest).await {
                Some(_) => self.0.store.touch(digest),
                None => lacking.push(*digest),
            }
        }
        lacking
    }

    /// How many bytes of `digests` are here and may be evicted.
    pub fn evictable(&self, digests: &[Digest]) -> u64 {
        let kept = digests.iter().filter_map(|digest| self.0.store.kept(digest));
        kept.filter(|kept| !kept.is_pinned).map(|kept| kept.size).sum()
    }

    /// Serves the manifest `digest` as the target's `reference` from now on, if all of `needs` is here, and all that those of
    /// its manifests name that are among `needs`: others are of platforms that nobody brought.
    ///
    /// # Errors
    /// [`NotAdopted`]; nothing has a name then, and nobody is served a manifest without what it names.
    pub async fn adopt(
        &self,
        target: &Target,
        reference: &Reference,
        digest: &Digest,
        needs: &[Digest],
    ) -> Result<Adopted, NotAdopted> {
        let inner = &self.0;
        let _by_hand = inner.by_hand.lock().await;
        let lacking = self.lacking(needs).await;
        if !lacking.is_empty() {
            return Err(NotAdopted::Lacking(lacking));
        }
        let Found { links, referring } = inner.find(digest, &needs.iter().copied().collect()).await?;
        let top = links.first().map(|(_, link)| link.clone());
        let manifests: HashSet<Digest> =
            links.iter().filter(|(_, link)| link.is_manifest).map(|(digest, _)| *digest).collect();
        // What names others comes last: a kill in between leaves no half of an image to be asked for by digest.
        for (digest, link) in links.into_iter().rev() {
            inner.store.add_link(&target.repository, digest, link).await?;
        }
        inner.follow_pins(target, |pin| pin.digests.iter().any(|held| manifests.contains(held))).await;
        for (subject, descriptor) in referring {
            inner.refer(target, &subject, &descriptor).await?;
        }
        let found = || {
            inner.missing.found(target, reference);
            manifests.iter().for_each(|digest| inner.missing.found(target, &Reference::Digest(*digest)));
        };
        let Reference::Tag(tag) = reference else {
            found();
            return Ok(Adopted { before: None });
        };
        let name = Name::Tag(tag.clone());
        let before = inner.store.name(&target.repository, &name).map(|stamp| stamp.digest);
        let Link { size, media_type, .. } = top.ok_or(NotAdopted::NoManifest(*digest))?;
        inner.store.set_name(&target.repository, &name, stamp(*digest, size, media_type)).await?;
        inner.pin_follows(target, &name, digest).await;
        inner.absent.invalidate(&(target.repository.clone(), Subject::Name(name))).await;
        // Now that it is served: whoever asked before may just have noted it again.
        found();
        Ok(Adopted { before })
    }

    /// Up to `most` digests of what is here, in order, behind `after`.
    pub fn inventory(&self, after: Option<&Digest>, most: usize) -> Vec<Digest> {
        self.0.store.digests(after, most)
    }
}

impl Inner {
    async fn find(&self, digest: &Digest, needs: &HashSet<Digest>) -> Result<Found, NotAdopted> {
        let (mut found, mut lacking) = (Found::default(), Vec::new());
        let (mut next, mut seen) = (VecDeque::from([*digest]), HashSet::from([*digest]));
        while let Some(digest) = next.pop_front() {
            let Some(bytes) = self.store.peek(&digest).await else {
                lacking.push(digest);
                continue;
            };
            let manifest = Manifest::parse(&bytes).map_err(|_| NotAdopted::NoManifest(digest))?;
            let is_idle = manifest.manifests.is_empty() && manifest.blobs.is_empty();
            if is_idle && !manifest.media_type.as_deref().is_some_and(is_index) {
                return Err(NotAdopted::NoManifest(digest));
            }
            let media_type = manifest.stated_type().to_owned();
            let link = Link { size: bytes.len() as u64, is_manifest: true, media_type };
            if let Some(subject) = &manifest.subject {
                let own = descriptor(&digest, &link, &bytes);
                found.referring.push((subject.digest, own));
            }
            found.links.push((digest, link));
            let children = || manifest.manifests.iter().map(|child| child.digest);
            let wanted: Vec<Digest> = children().filter(|child| needs.contains(child)).collect();
            if wanted.is_empty() {
                lacking.extend(children());
            }
            next.extend(wanted.into_iter().filter(|child| seen.insert(*child)));
            for blob in manifest.blobs {
                match self.store.size(&blob.digest).await {
                    Some(size) => {
                        let link = Link { size, is_manifest: false, media_type: String::new() };
                        found.links.push((blob.digest, link));
                    }
                    None => lacking.push(blob.digest),
                }
            }
        }
        if lacking.is_empty() { Ok(found) } else { Err(NotAdopted::Lacking(lacking)) }
    }

    /// The list of what refers to `subject` has this in it from now on.
    async fn refer(&self, target: &Target, subject: &Digest, descriptor: &Value) -> Result<(), store::Error> {
        let name = Name::Referrers(*subject);
        let mut list = Referrers::default();
        if let Some(stamp) = self.store.name(&target.repository, &name)
            && let Some(document) = self.store.peek(&stamp.digest).await
        {
            list = Referrers::parse(&document).unwrap_or_default();
        }
        let own =
            Referrers::parse(json!({ "manifests": [descriptor] }).to_string().as_bytes()).unwrap_or_default();
        if own.digests().iter().all(|own| list.digests().contains(own)) {
            return Ok(());
        }
        list.extend(own);
        let document = Bytes::from(list.to_json());
        let (digest, size) = (Digest::of(Algorithm::Sha256, &document), document.len() as u64);
        self.store.put_document(digest, document).await?;
        let stamp = stamp(digest, size, OCI_INDEX.to_owned());
        self.store.set_name(&target.repository, &name, stamp).await?;
        self.pin_follows(target, &name, &digest).await;
        Ok(())
    }
}

/// A manifest as a list of referrers has it (distribution-spec, "Listing Referrers"): the artifact's type is its own, else that
/// of its config.
fn descriptor(digest: &Digest, link: &Link, bytes: &[u8]) -> Value {
    let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let mut descriptor =
        json!({ "mediaType": link.media_type, "digest": digest.to_string(), "size": link.size });
    let own = document.get("artifactType").or_else(|| document.pointer("/config/mediaType"));
    for (key, value) in [("artifactType", own), ("annotations", document.get("annotations"))] {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            descriptor[key] = value.clone();
        }
    }
    descriptor
}
