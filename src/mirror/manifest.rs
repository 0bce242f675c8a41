//! The story of a manifest: by tag, by digest, HEAD.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::check::Named;
use super::document::Document;
use super::{Error, Inner, ManifestAnswer, Mirror, Served, Subject};
use crate::flight::{Early, Role};
use crate::oci::{Accept, Digest, Manifest, Reference, Repository, Tag};
use crate::routing::Target;
use crate::scheduler::{Errand, Priority};
use crate::store::Name;

/// What a manifest fetch brought, and through which repository it was made.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    source: Repository,
    outcome: Result<Document, Error>,
}

/// How a manifest is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The types that the client takes.
    pub accept: &'a Accept<'a>,
    /// By HEAD: nothing is fetched that is not needed to know its digest, type and size.
    pub head: bool,
    /// On whose behalf.
    pub errand: &'a Errand,
}

/// Layers of one image that are fetched ahead at once.
const READ_AHEAD: usize = 4;

/// With all who want the digest, then with those of this repository; one more where it was evicted between.
const MOST_TRIES: usize = 3;

impl Mirror {
    /// A manifest by tag or digest.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn manifest(
        &self,
        target: &Target,
        reference: &Reference,
        asked: Asked<'_>,
    ) -> Result<ManifestAnswer, Error> {
        let Asked { head, errand, .. } = asked;
        let answer = match reference {
            Reference::Digest(digest) if head => self.0.head_by_digest(target, digest, errand).await,
            Reference::Digest(digest) => self.0.by_digest(target, digest, errand).await,
            Reference::Tag(tag) => self.0.by_tag(target, tag, asked).await,
        };
        let answer = answer.inspect_err(|error| self.0.missing.note(target, reference, error))?;
        let exact = Reference::Digest(answer.digest);
        let is_missed = [reference, &exact].into_iter().any(|name| self.0.missing.knows(target, name));
        if is_missed && self.0.can_be_had(target, &answer).await {
            [reference, &exact].into_iter().for_each(|name| self.0.missing.found(target, name));
        }
        if let Some(bytes) = &answer.bytes {
            let blobs = || Manifest::parse(bytes).unwrap_or_default().blobs;
            let digests = || blobs().into_iter().map(|blob| blob.digest).collect();
            let is_first = self.0.store.pull_begins(&answer.digest, digests);
            // What was fetched just now is read ahead already. Of what was cached a blob may have been evicted, or never
            // have come.
            if is_first && !matches!(answer.served, Served::Miss | Served::Joined) {
                self.0.read_ahead(target, bytes, errand);
            }
        }
        Ok(answer)
    }
}

impl Inner {
    async fn by_tag(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        asked: Asked<'_>,
    ) -> Result<ManifestAnswer, Error> {
        let Asked { accept, head, errand } = asked;
        let Named { stamp, served, age } = self.resolve(target, &Name::Tag(tag.clone()), errand).await?;
        if !accept.allows(&stamp.media_type) {
            return Err(Error::NotAccepted { media_type: stamp.media_type });
        }
        if head {
            let (digest, size) = (stamp.digest, stamp.size);
            let age = Some(age);
            return Ok(ManifestAnswer {
                digest,
                media_type: stamp.media_type,
                size,
                bytes: None,
                served,
                age,
            });
        }
        let answer = self.by_digest(target, &stamp.digest, errand).await?;
        // What was fetched for this request is a miss, whatever the tag's check said.
        let served = if answer.served == Served::Hit { served } else { answer.served };
        Ok(ManifestAnswer { served, age: Some(age), ..answer })
    }

    async fn head_by_digest(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<ManifestAnswer, Error> {
        let known = self.proof(target, digest).filter(|link| link.is_manifest);
        let known = known.or_else(|| self.arriving(target, digest).map(|document| document.link()));
        let (link, served) = match known {
            Some(link) => (Ok(link), Served::Hit),
            None => (self.prove(target, digest, true, errand).await, Served::Miss),
        };
        let tells_nothing = match &link {
            Ok(link) => link.size == 0 || link.media_type.is_empty(),
            Err(error) => error.refuses_head(),
        };
        if tells_nothing {
            // The upstream's HEAD left out what clients need to know: only the document tells.
            let answer = self.by_digest(target, digest, errand).await?;
            return Ok(ManifestAnswer { bytes: None, ..answer });
        }
        let link = link?;
        let (digest, size) = (*digest, link.size);
        Ok(ManifestAnswer { digest, media_type: link.media_type, size, bytes: None, served, age: None })
    }

    /// From the store with a proof (I4), by one HEAD without (I5), else by one counted GET for all who ask.
    pub(super) async fn by_digest(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<ManifestAnswer, Error> {
        match self.cached_manifest(target, digest, errand).await? {
            Some(answer) => Ok(answer),
            None => Box::pin(self.missing_manifest(target, digest, errand)).await,
        }
    }

    async fn missing_manifest(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<ManifestAnswer, Error> {
        let (mut party, mut refused) = (None, super::given_up());
        for attempt in 0..MOST_TRIES {
            // Others may have left it meanwhile.
            if attempt > 0
                && let Some(answer) = self.cached_manifest(target, digest, errand).await?
            {
                return Ok(answer);
            }
            self.may_ask(target, &Subject::Manifest(*digest)).await?;
            let (inner, own, wanted, on) = (Arc::clone(self), target.clone(), *digest, errand.clone());
            let key = (*digest, party.clone());
            let work = |early| inner.fetch(own, wanted, on, early);
            let fetched = self.manifests.call_early(key.clone(), errand, work);
            let (Fetched { source, outcome }, role) = fetched.await.ok_or_else(super::given_up)?;
            // Whoever began it may have been held less, or for longer by now.
            let is_not_ours = role == Role::Follow && outcome.as_ref().is_err_and(Error::is_refusal);
            if source == target.repository && !is_not_ours {
                let served = if role == Role::Lead { Served::Miss } else { Served::Joined };
                let document = self.note_absence(target, Subject::Manifest(*digest), outcome).await?;
                return Ok(answer(*digest, document, served));
            }
            // Fetched, or not, through another repository, or refused to somebody else: that says nothing about this
            // request.
            if source != target.repository {
                // Once it is kept, a proof is all that is missing.
                self.manifests.ended(&key).await;
                party = Some(target.repository.clone());
            }
            refused = outcome.err().filter(Error::is_refusal).unwrap_or(refused);
        }
        Err(refused)
    }

    async fn cached_manifest(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<Option<ManifestAnswer>, Error> {
        if let Some((link, bytes)) = self.store.manifest(&target.repository, digest).await {
            return Ok(Some(answer(*digest, Document::of(bytes, Some(&link.media_type)), Served::Hit)));
        }
        if let Some(document) = self.arriving(target, digest) {
            return Ok(Some(answer(*digest, document, Served::Hit)));
        }
        if self.store.size(digest).await.is_none() {
            return Ok(None);
        }
        // Boxed: what a hit does not need would make each of them move kilobytes about.
        let link = match Box::pin(self.prove(target, digest, true, errand)).await {
            // A GET is the proof then.
            Err(error) if error.refuses_head() => return Ok(None),
            proven => proven?,
        };
        // Only now: the digest of a layer may be asked for as a manifest, and nobody reads that into memory (I7).
        let Some(bytes) = self.store.document(digest).await else { return Ok(None) };
        Ok(Some(answer(*digest, Document::of(bytes, Some(&link.media_type)), Served::Revalidated)))
    }

    /// Whether a pull of it will come to its end: somebody has just been asked, or all that its manifests name is here.
    async fn can_be_had(&self, target: &Target, answer: &ManifestAnswer) -> bool {
        matches!(answer.served, Served::Miss | Served::Joined | Served::Revalidated)
            || self
                .parts(target, &answer.digest)
                .await
                .iter()
                .all(|part| part.is_manifest || part.kept.is_some())
    }

    /// Everybody who waits has the document as soon as it is proven; that it reaches the disk is awaited by nobody but a
    /// stop of the house. A kill in between costs its being cached.
    async fn fetch(
        self: Arc<Self>,
        target: Target,
        digest: Digest,
        errand: Errand,
        early: Early<Fetched>,
    ) -> Fetched {
        let fetched = |outcome: &Result<Document, Error>| Fetched {
            source: target.repository.clone(),
            outcome: outcome.clone(),
        };
        // Whoever began this may have looked before an earlier fetch had left its document.
        if let Some((link, bytes)) = self.store.manifest(&target.repository, &digest).await {
            return fetched(&Ok(Document::of(bytes, Some(&link.media_type))));
        }
        let outcome = self.fetch_document(&target, &digest, &errand).await;
        if let Ok(document) = &outcome {
            self.read_ahead(&target, &document.bytes, &errand);
            self.remember_sizes(&target, document);
            early.tell(fetched(&outcome));
            self.keep(&target, &digest, document).await;
        }
        fetched(&outcome)
    }

    async fn fetch_document(
        &self,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<Document, Error> {
        let client = Arc::clone(&self.upstream(target).client);
        let reference = Reference::Digest(*digest);
        let document = client.manifest(errand, &target.repository.name, &reference).await?;
        if Digest::of(digest.algorithm(), &document.bytes) != *digest {
            return Err(self.wrong_manifest(target, digest));
        }
        Ok(Document::of(document.bytes, document.media_type.as_deref()))
    }

    /// What was fetched through the target's repository a moment ago and has not reached the index yet.
    fn arriving(&self, target: &Target, digest: &Digest) -> Option<Document> {
        let parties = [None, Some(target.repository.clone())];
        let told = parties.into_iter().filter_map(|party| self.manifests.told(&(*digest, party)));
        told.filter(|fetched| fetched.source == target.repository).find_map(|fetched| fetched.outcome.ok())
    }

    /// Waits until it has reached the index, if it ever will.
    pub(super) async fn has_arrived(&self, target: &Target, digest: &Digest) {
        for party in [None, Some(target.repository.clone())] {
            self.manifests.ended(&(*digest, party)).await;
        }
    }

    pub(super) fn wrong_manifest(&self, target: &Target, digest: &Digest) -> Error {
        let registry = target.repository.registry.to_string();
        self.flights.verify_failed(&registry);
        tracing::warn!(%digest, repository = %target.repository, "the upstream sent a wrong manifest");
        Error::Mismatch { registry }
    }

    /// How large its blobs should be.
    pub(super) fn remember_sizes(&self, target: &Target, document: &Document) {
        let blobs = Manifest::parse(&document.bytes).unwrap_or_default().blobs;
        // Schema 1 states no sizes.
        for child in blobs.into_iter().filter(|child| child.size > 0) {
            self.sizes.insert((target.repository.clone(), child.digest), child.size);
        }
    }

    /// Keeps a proven manifest, and that this repository contains it. When that fails the client is served all the
    /// same.
    pub(super) async fn keep(&self, target: &Target, digest: &Digest, document: &Document) {
        let link = document.link();
        // The link first, as for blobs.
        let linked = self.store.add_link(&target.repository, *digest, link);
        let put = self.store.put_document(*digest, document.bytes.clone());
        let (linked, put) = tokio::join!(biased; linked, put);
        let kept = linked.and(put);
        if let Err(error) = kept {
            tracing::debug!(%digest, repository = %target.repository, %error, "a manifest could not be kept");
        }
        self.follow_pins(target, |pin| pin.digests.contains(digest)).await;
    }

    /// Clients fetch three layers at a time; the rest need not wait for that. A few at a time here too, so
    /// that what clients ask for by themselves finds a free connection.
    fn read_ahead(self: &Arc<Self>, target: &Target, bytes: &Bytes, errand: &Errand) {
        if !self.upstream(target).config.read_ahead {
            return;
        }
        let (inner, target, errand) = (Arc::clone(self), target.clone(), errand.clone());
        let blobs = Manifest::parse(bytes).unwrap_or_default().blobs;
        self.life.spawn("read ahead", async move {
            let fetches = stream::iter(blobs).map(|blob| inner.fetch_ahead(&target, blob.digest, &errand));
            let mut fetches = fetches.buffer_unordered(READ_AHEAD);
            while !inner.life.is_stopping() && fetches.next().await.is_some() {}
        });
    }

    /// Whether it came is the concern of whoever asks for it.
    async fn fetch_ahead(&self, target: &Target, digest: Digest, errand: &Errand) {
        let is_missing = self.store.size(&digest).await.is_none();
        if is_missing && self.may_ask(target, &Subject::Blob(digest)).await.is_ok() {
            let errand = errand.at(Priority::Background);
            let (mut follower, _, _) = self.flights.join(self.order(target, &digest, &errand));
            let _ = follower.proven().await;
        }
    }
}

fn answer(digest: Digest, document: Document, served: Served) -> ManifestAnswer {
    let size = document.size();
    let Document { bytes, media_type } = document;
    ManifestAnswer { digest, media_type, size, bytes: Some(bytes), served, age: None }
}
