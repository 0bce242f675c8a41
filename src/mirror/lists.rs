//! Lists of tags and of referrers: put together from the upstream's pages, kept whole, judged like tags.

use std::sync::Arc;

use bytes::Bytes;

use super::check::{Named, stamp};
use super::{Error, Inner, ListAnswer, Mirror};
use crate::oci::{Algorithm, Digest, OCI_INDEX, Referrers, TagList, fallback_tag};
use crate::routing::Target;
use crate::scheduler::Errand;
use crate::store::{Name, Stamp};
use crate::upstream;

impl Mirror {
    /// All tags of the repository, sorted, as a [`TagList`] document.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn tags(&self, target: &Target, errand: &Errand) -> Result<ListAnswer, Error> {
        self.0.list(target, &Name::Tags, errand).await
    }

    /// Everything that refers to `digest`, as an OCI index. What the upstream knows only under a fallback tag
    /// is in it too.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn referrers(
        &self,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<ListAnswer, Error> {
        self.0.list(target, &Name::Referrers(*digest), errand).await
    }
}

impl Inner {
    pub(super) async fn list(
        self: &Arc<Self>,
        target: &Target,
        name: &Name,
        errand: &Errand,
    ) -> Result<ListAnswer, Error> {
        let Named { stamp, served, age } = self.resolve(target, name, errand).await?;
        if let Some(document) = self.store.document(&stamp.digest).await {
            return Ok(ListAnswer { document, served, age });
        }
        // Evicted, or it could not be kept: the name alone is of no use, unless it was given to another list meanwhile.
        if self.store.name(&target.repository, name).is_some_and(|now| now.digest == stamp.digest) {
            let removed = self.store.remove_name(&target.repository, name).await;
            removed.map_err(|error| Error::Internal(error.to_string()))?;
        }
        let Named { stamp, served, age } = self.resolve(target, name, errand).await?;
        let document = self.store.document(&stamp.digest).await.ok_or_else(super::given_up)?;
        Ok(ListAnswer { document, served, age })
    }

    pub(super) async fn ask_for_tags(&self, target: &Target, errand: &Errand) -> Result<Stamp, Error> {
        let list = self.upstream(target).client.tags(errand, &target.repository.name).await?;
        let mut tags = list.tags;
        tags.sort_unstable();
        tags.dedup();
        let list = TagList { name: target.repository.name.to_string(), tags };
        let document = serde_json::to_vec(&list).map_err(|error| Error::Internal(error.to_string()))?;
        self.keep_list(document, "application/json").await
    }

    /// The referrers API, else the fallback tag, else nothing refers to the digest.
    pub(super) async fn ask_for_referrers(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<Stamp, Error> {
        let asked = self.upstream(target).client.referrers(errand, &target.repository.name, digest).await;
        let referrers = match asked {
            Ok(referrers) => referrers,
            Err(upstream::Error::NotFound { .. }) => self.referrers_by_tag(target, digest, errand).await?,
            Err(error) => return Err(error.into()),
        };
        self.keep_list(referrers.to_json().into_bytes(), OCI_INDEX).await
    }

    async fn referrers_by_tag(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        errand: &Errand,
    ) -> Result<Referrers, Error> {
        let tag = fallback_tag(digest).parse().map_err(|_| super::given_up())?;
        // Boxed, since resolving a tag and resolving a list of referrers are the same function.
        let named = Box::pin(self.resolve(target, &Name::Tag(tag), errand)).await;
        match named {
            Ok(Named { stamp, .. }) => {
                let answer = self.by_digest(target, &stamp.digest, errand).await?;
                Ok(Referrers::parse(&answer.bytes.unwrap_or_default()).unwrap_or_default())
            }
            Err(error) if error.is_absence() => Ok(Referrers::default()),
            Err(error) => Err(error),
        }
    }

    /// A list is kept like any document, but without a link: nobody can ask for it by its digest.
    async fn keep_list(&self, document: Vec<u8>, media_type: &str) -> Result<Stamp, Error> {
        let digest = Digest::of(Algorithm::Sha256, &document);
        let size = document.len() as u64;
        let kept = self.store.put_document(digest, Bytes::from(document)).await;
        kept.map_err(|error| Error::Internal(error.to_string()))?;
        Ok(stamp(digest, size, media_type.to_owned()))
    }
}
