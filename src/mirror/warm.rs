//! Fetches images ahead, whole: for a time when nobody can be asked, or nobody wants to wait.
//!
//! An image is more than its manifest says: what *refers* to it (signatures, SBOMs, attestations) points at it and not the
//! other way round. It is found by the list of referrers, and under the tags that cosign derives from a digest.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;

use super::check::Checked;
use super::inventory::Part;
use super::{Content, Error, Inner, Mirror};
use crate::config::Glob;
use crate::oci::{
    Algorithm, Descriptor, Digest, Manifest, Platform, Reference, Referrers, Tag, TagList, fallback_tag,
};
use crate::routing::Target;
use crate::scheduler::{Errand, Refused, Terms};
use crate::store::Name;
use crate::upstream;

/// What of an image is to be here.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Of an index, the manifests for these platforms; all of them where none is named.
    pub platforms: Vec<Platform>,
    /// What refers to it too, and what refers to that.
    pub has_referrers: bool,
    /// The upstream is asked what a tag means now, however fresh what is remembered may be.
    pub is_latest: bool,
    /// When and how fast it is fetched, where that is limited.
    pub terms: Option<Arc<Terms>>,
}

impl Wanted {
    /// For nobody in particular, on its terms.
    pub fn errand(&self) -> Errand {
        Errand::background().on(self.terms.clone())
    }
}

/// A manifest that nothing else leads to: the image itself, or what refers to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// By what it is asked for.
    pub reference: Reference,
    /// What that means.
    pub digest: Digest,
}

/// An image that is here, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warmed {
    /// What was remembered of its tag, if anything was.
    pub before: Option<Digest>,
    /// The image first.
    pub roots: Vec<Root>,
    /// All that these consist of, each once.
    pub parts: Vec<Part>,
    /// Bytes of blobs that came for it.
    pub fetched: u64,
    /// Why it is not known whether more refers to it.
    pub doubt: Option<String>,
}

/// How far that is. Parts are found as manifests come in, so there may be more of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warming {
    /// Parts that are known of.
    pub parts: usize,
    /// Those of them that are here.
    pub here: usize,
    /// The bytes of all that are known of.
    pub bytes: u64,
    /// And of those that are here.
    pub bytes_here: u64,
    /// Why nothing goes on at the moment, where there is no leave to ask.
    pub waits: Option<String>,
}

/// One image being fetched.
struct Walk<'a> {
    inner: &'a Arc<Inner>,
    target: &'a Target,
    wanted: &'a Wanted,
    progress: &'a watch::Sender<Warming>,
    seen: HashSet<Digest>,
    parts: Vec<Part>,
    fetched: u64,
    doubt: Option<String>,
}

/// Blobs that are fetched at once.
const AT_ONCE: usize = 4;
/// Where cosign keeps signatures, attestations and SBOMs of a digest: its fallback tag and one of these.
const COSIGN: [&str; 3] = [".sig", ".att", ".sbom"];
/// More refers to no image; a repository that says so has something else in mind.
const MOST_ROOTS: usize = 1_000;
/// Likewise for what images consist of.
const MOST_PARTS: usize = 20_000;
/// How long it waits at least, and at most, before it asks again for what there was no leave to ask.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl Mirror {
    /// Has all of an image here, at background priority: what is missing is fetched, what is here is not asked for. A
    /// spent budget is waited for. Dropping this ends it; what came stays.
    ///
    /// # Errors
    /// [`Error`]; [`Error::NotKept`] where the cache cannot hold all of it.
    pub async fn warm(
        &self,
        target: &Target,
        reference: &Reference,
        wanted: &Wanted,
        progress: &watch::Sender<Warming>,
    ) -> Result<Warmed, Error> {
        let inner = &self.0;
        let (seen, parts) = (HashSet::new(), Vec::new());
        let mut walk = Walk { inner, target, wanted, progress, seen, parts, fetched: 0, doubt: None };
        let before = match reference {
            Reference::Tag(tag) => match inner.held(target, tag)? {
                Some(held) => Some(held),
                None => inner.store.name(&target.repository, &Name::Tag(tag.clone())),
            },
            Reference::Digest(_) => None,
        };
        let digest = walk.meaning(reference).await?;
        let roots = walk.follow(Root { reference: reference.clone(), digest }).await?;
        let Walk { mut parts, fetched, doubt, .. } = walk;
        for part in &mut parts {
            part.kept = inner.kept(target, &part.descriptor.digest, part.is_manifest);
        }
        // What came first may have been evicted for what came last.
        if parts.iter().any(|part| part.kept.is_none()) {
            return Err(Error::NotKept);
        }
        Ok(Warmed { before: before.map(|stamp| stamp.digest), roots, parts, fetched, doubt })
    }
}

impl Mirror {
    /// The tags of a repository that `pattern` matches, the newest version first, at most `most`. Offline those that are
    /// remembered. The tags that signatures and the like are kept under are none of them.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn matching(
        &self,
        target: &Target,
        pattern: &Glob,
        most: usize,
        errand: &Errand,
    ) -> Result<Vec<Tag>, Error> {
        let listed: Vec<Tag> = match self.tags(target, errand).await {
            Err(Error::Offline) => {
                self.0.store.tags_of(&target.repository).into_iter().map(|(tag, _)| tag).collect()
            }
            list => {
                let list = TagList::parse(&list?.document);
                let list = list.map_err(|error| Error::Internal(error.to_string()))?;
                list.tags.iter().filter_map(|tag| tag.parse().ok()).collect()
            }
        };
        let is_meant = |tag: &Tag| pattern.matches(tag.as_str()) && !is_companion(tag.as_str());
        let mut tags: Vec<Tag> = listed.into_iter().filter(is_meant).collect();
        tags.sort_by(|one, other| other.by_version(one));
        tags.truncate(most);
        Ok(tags)
    }
}

/// A tag by which what refers to a digest is found (distribution-spec, "Referrers Tag Schema"; cosign's signatures).
pub(super) fn is_companion(tag: &str) -> bool {
    Algorithm::ALL.iter().any(|own| tag.starts_with(&format!("{}-", own.as_str())))
}

impl Walk<'_> {
    async fn meaning(&self, reference: &Reference) -> Result<Digest, Error> {
        let name = match reference {
            Reference::Digest(digest) => return Ok(*digest),
            Reference::Tag(tag) => Name::Tag(tag.clone()),
        };
        let (inner, target) = (self.inner, self.target);
        let is_held =
            matches!(reference, Reference::Tag(tag) if !matches!(inner.held(target, tag), Ok(None)));
        if !self.wanted.is_latest || is_held || inner.is_offline() {
            return self.resolved(&name).await;
        }
        let check = || async {
            match inner.check(target, &name, &self.wanted.errand()).await {
                Checked::Confirmed(stamp) => Ok(stamp.digest),
                Checked::Failed(error) => Err(error),
            }
        };
        self.patiently(check).await
    }

    async fn resolved(&self, name: &Name) -> Result<Digest, Error> {
        let (inner, target) = (self.inner, self.target);
        let resolve = || async { inner.resolve(target, name, &self.wanted.errand()).await };
        Ok(self.patiently(resolve).await?.stamp.digest)
    }

    /// The image, what refers to it, what refers to that, and so on.
    async fn follow(&mut self, image: Root) -> Result<Vec<Root>, Error> {
        let (mut roots, mut next) = (Vec::new(), VecDeque::from([image]));
        let mut known = HashSet::new();
        while let Some(root) = next.pop_front() {
            if roots.len() == MOST_ROOTS {
                return Err(too_much(self.target));
            }
            let manifests = self.fetch(&root.digest, roots.is_empty()).await?;
            let is_image = roots.is_empty();
            roots.push(root);
            if !self.wanted.has_referrers {
                continue;
            }
            for manifest in manifests {
                let mut found = self.referrers(&manifest).await?;
                if is_image {
                    found.extend(self.companions(&manifest).await?);
                }
                next.extend(found.into_iter().filter(|root| known.insert(root.reference.clone())));
            }
        }
        Ok(roots)
    }

    /// All that a manifest consists of. The platforms that are wanted are those of the image; what refers to one of them has
    /// none. The manifests that it led to.
    async fn fetch(&mut self, root: &Digest, is_image: bool) -> Result<Vec<Digest>, Error> {
        let top = Descriptor { media_type: String::new(), digest: *root, size: 0, platform: None };
        let (mut manifests, mut next) = (Vec::new(), VecDeque::from([top]));
        while let Some(descriptor) = next.pop_front() {
            if !self.seen.insert(descriptor.digest) {
                continue;
            }
            let digest = descriptor.digest;
            manifests.push(digest);
            let named = self.manifest(descriptor).await?;
            let children = match is_image {
                true => self.chosen(named.manifests)?,
                false => named.manifests,
            };
            next.extend(children);
            self.blobs(named.blobs).await?;
            if self.parts.len() > MOST_PARTS {
                return Err(too_much(self.target));
            }
        }
        Ok(manifests)
    }

    async fn manifest(&mut self, descriptor: Descriptor) -> Result<Manifest, Error> {
        let (inner, target, digest) = (self.inner, self.target, descriptor.digest);
        let ask = || async { inner.by_digest(target, &digest, &self.wanted.errand()).await };
        let answer = self.patiently(ask).await?;
        inner.has_arrived(target, &digest).await;
        let bytes = answer.bytes.unwrap_or_default();
        let size = bytes.len() as u64;
        self.progress.send_modify(|progress| {
            progress.found(size);
            progress.came(size);
        });
        let descriptor = Descriptor { media_type: answer.media_type, size, ..descriptor };
        self.parts.push(Part { descriptor, is_manifest: true, kept: None });
        Ok(Manifest::parse(&bytes).unwrap_or_default())
    }

    /// The manifests of an index that are for a wanted platform. Those for none are attestations of the others.
    fn chosen(&self, manifests: Vec<Descriptor>) -> Result<Vec<Descriptor>, Error> {
        if self.wanted.platforms.is_empty() || manifests.is_empty() {
            return Ok(manifests);
        }
        let offered: Vec<Platform> =
            manifests.iter().filter_map(|manifest| manifest.platform.clone()).collect();
        let is_wanted =
            |platform: &Platform| self.wanted.platforms.iter().any(|wanted| platform.is_a(wanted));
        if !offered.is_empty() && !offered.iter().any(is_wanted) {
            let list = |platforms: &[Platform]| {
                platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
            };
            let (wanted, offered) = (list(&self.wanted.platforms), list(&offered));
            return Err(Error::NoPlatform { wanted, offered });
        }
        let has_referrers = self.wanted.has_referrers;
        let chosen = |manifest: &Descriptor| {
            manifest.platform.as_ref().map_or(has_referrers || offered.is_empty(), is_wanted)
        };
        Ok(manifests.into_iter().filter(chosen).collect())
    }

    async fn blobs(&mut self, blobs: Vec<Descriptor>) -> Result<(), Error> {
        let new: Vec<Descriptor> = blobs.into_iter().filter(|blob| self.seen.insert(blob.digest)).collect();
        self.progress.send_modify(|progress| new.iter().for_each(|blob| progress.found(blob.size)));
        let walk = &*self;
        // Owned: over borrowed ones the compiler cannot show that this may be sent to another thread.
        let fetches = stream::iter(new.clone()).map(|blob| walk.blob(blob));
        let fetched: Vec<u64> = fetches.buffer_unordered(AT_ONCE).try_collect().await?;
        self.fetched += fetched.iter().sum::<u64>();
        let parts = new.into_iter().map(|descriptor| Part { descriptor, is_manifest: false, kept: None });
        self.parts.extend(parts);
        Ok(())
    }

    /// How many bytes came.
    async fn blob(&self, blob: Descriptor) -> Result<u64, Error> {
        let (inner, target) = (self.inner, self.target);
        let ask = || async {
            let answer = inner.blob(target, &blob.digest, &self.wanted.errand()).await?;
            match answer.content {
                Some(Content::Growing(mut follower)) => {
                    follower.landed().await?;
                    Ok(answer.size)
                }
                Some(Content::Passing(_)) => Err(Error::NotKept),
                Some(Content::Cached(_)) | None => Ok(0),
            }
        };
        let fetched = self.patiently(ask).await?;
        self.progress.send_modify(|progress| progress.came(blob.size));
        Ok(fetched)
    }

    /// What the upstream lists as referring to a manifest; by the fallback tag too, where that is how it keeps the list.
    async fn referrers(&mut self, subject: &Digest) -> Result<Vec<Root>, Error> {
        let (inner, target, name) = (self.inner, self.target, Name::Referrers(*subject));
        let ask = || async { inner.list(target, &name, &self.wanted.errand()).await };
        let list = match self.patiently(ask).await {
            Err(error) if self.makes_do_with(&error) => return Ok(Vec::new()),
            list => list?,
        };
        let referrers = Referrers::parse(&list.document).unwrap_or_default();
        let by_digest = |digest| Root { reference: Reference::Digest(digest), digest };
        let mut roots: Vec<Root> = referrers.digests().into_iter().map(by_digest).collect();
        if let Ok(tag) = fallback_tag(subject).parse::<Tag>()
            && let Some(stamp) = inner.store.name(&target.repository, &Name::Tag(tag.clone()))
        {
            roots.push(Root { reference: Reference::Tag(tag), digest: stamp.digest });
        }
        Ok(roots)
    }

    /// What cosign keeps under tags of its own.
    async fn companions(&mut self, subject: &Digest) -> Result<Vec<Root>, Error> {
        let mut roots = Vec::new();
        for suffix in COSIGN {
            let Ok(tag) = format!("{}{suffix}", fallback_tag(subject)).parse() else { continue };
            let name = Name::Tag(tag);
            match self.resolved(&name).await {
                Ok(digest) => {
                    let Name::Tag(tag) = name else { continue };
                    roots.push(Root { reference: Reference::Tag(tag), digest });
                }
                Err(error) if self.makes_do_with(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(roots)
    }

    /// Whether nothing is taken to refer to something, after an error. Where only what is here is wanted, what an upstream in
    /// trouble may have beside that is in doubt, which is noted.
    fn makes_do_with(&mut self, error: &Error) -> bool {
        let is_known = error.is_absence() || matches!(error, Error::Offline);
        if !is_known && !self.wanted.is_latest {
            self.doubt.get_or_insert_with(|| error.to_string());
        }
        is_known || !self.wanted.is_latest
    }

    /// Asks again when there may be leave to ask.
    async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        loop {
            let asked = ask().await;
            let wait = asked.as_ref().err().and_then(pause);
            let why = asked.as_ref().err().filter(|_| wait.is_some()).map(ToString::to_string);
            self.progress.send_if_modified(|progress| std::mem::replace(&mut progress.waits, why).is_some());
            let Some(wait) = wait else { return asked };
            tokio::time::sleep(wait).await;
        }
    }
}

impl Warming {
    fn found(&mut self, bytes: u64) {
        self.parts += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn came(&mut self, bytes: u64) {
        self.here += 1;
        self.bytes_here = self.bytes_here.saturating_add(bytes);
    }
}

/// How long it is until there may be leave to ask; `None` where that is not what is missing.
fn pause(error: &Error) -> Option<Duration> {
    let wait = match error {
        // Nobody answers there, or nobody may ask: that is not over by waiting.
        Error::Upstream(upstream::Error::Refused(
            Refused::Down(_) | Refused::Aside { .. } | Refused::Nobody { .. },
        )) => return None,
        Error::Upstream(upstream::Error::Refused(refused)) => refused.retry_after(),
        Error::Upstream(upstream::Error::Throttled { retry_after, .. }) => *retry_after,
        _ => return None,
    };
    Some(wait.unwrap_or(SHORTEST_WAIT).clamp(SHORTEST_WAIT, LONGEST_WAIT))
}

fn too_much(target: &Target) -> Error {
    Error::Internal(format!("{} names more than any image consists of", target.repository))
}
