//! The life of a name: remembered, served, checked, moved, gone.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;

use super::document::{Document, bare_type};
use super::{Error, Inner, Mirror, Served, Subject};
use crate::freshness::{Remembered, Verdict, judge, may_serve_stale};
use crate::lifecycle::now;
use crate::oci::{Algorithm, Digest, Reference, Referrers, Tag};
use crate::routing::Target;
use crate::scheduler::{Errand, Priority};
use crate::store::{Link, Name, Pin, Stamp};
use crate::upstream::{self, Found};

/// What a name means, and how that was found out.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) stamp: Stamp,
    pub(super) served: Served,
    /// Since the upstream last confirmed it.
    pub(super) age: Duration,
}

/// A check that failed a moment ago.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    error: Error,
    since: SystemTime,
    ttl: Duration,
}

/// What came of asking the upstream.
#[derive(Debug, Clone)]
pub(super) enum Checked {
    /// It means this now.
    Confirmed(Stamp),
    /// It could not be found out, or there is no such thing.
    Failed(Error),
}

/// How long a check may hold up a request that could be served stale, and at most this share of what its client
/// waits.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_SHARE: f64 = 0.6;
/// The longest that a check which failed keeps others from trying.
const LONGEST_TROUBLE: Duration = Duration::from_secs(300);

/// What came of asking about a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refreshed {
    /// What it was remembered to mean, if it was.
    pub before: Option<Digest>,
    /// What it means.
    pub now: Digest,
}

impl Mirror {
    /// Asks the upstream what `tag` means now, however fresh what is remembered may be: one free HEAD, and the manifest
    /// where the tag has moved.
    ///
    /// # Errors
    /// [`Error`]. Where that is no definite "no such thing", what was remembered stays.
    pub async fn refresh(&self, target: &Target, tag: &Tag, errand: &Errand) -> Result<Refreshed, Error> {
        let inner = &self.0;
        if inner.is_offline() {
            return Err(Error::Offline);
        }
        let name = Name::Tag(tag.clone());
        let before = inner.store.name(&target.repository, &name).map(|stamp| stamp.digest);
        match inner.check(target, &name, errand).await {
            Checked::Failed(error) => Err(error),
            Checked::Confirmed(stamp) => {
                // It may have been absent a moment ago.
                inner.absent.invalidate(&(target.repository.clone(), Subject::Name(name))).await;
                Ok(Refreshed { before, now: stamp.digest })
            }
        }
    }
}

impl Inner {
    /// What `name` means, from memory or by asking, as the upstream's freshness has it.
    pub(super) async fn resolve(
        self: &Arc<Self>,
        target: &Target,
        name: &Name,
        errand: &Errand,
    ) -> Result<Named, Error> {
        if let Name::Tag(tag) = name
            && let Some(stamp) = self.held(target, tag)?
        {
            return Ok(hit(stamp));
        }
        let remembered = self.store.name(&target.repository, name);
        let age = remembered.as_ref().map(|stamp| age_of(stamp, now()));
        let tag = match name {
            Name::Tag(tag) => Some(tag.as_str()),
            Name::Tags | Name::Referrers(_) => None,
        };
        let upstream = self.upstream(target);
        let policy = &upstream.config.freshness;
        let verdict = judge(policy, self.is_offline(), Remembered { tag, age });
        match (verdict, remembered) {
            (Verdict::Serve, Some(stamp)) => Ok(hit(stamp)),
            (Verdict::ServeAndCheck, Some(stamp)) => {
                self.begin_check(target, name, errand);
                Ok(hit(stamp))
            }
            (Verdict::Absent, _) => Err(Error::Offline),
            (_, remembered) => Box::pin(self.ask(target, name, remembered, errand)).await,
        }
    }

    /// Asks, with all others who ask now; falls back to what is remembered when the upstream is in trouble.
    async fn ask(
        self: &Arc<Self>,
        target: &Target,
        name: &Name,
        remembered: Option<Stamp>,
        errand: &Errand,
    ) -> Result<Named, Error> {
        let upstream = self.upstream(target);
        let policy = &upstream.config.freshness;
        let has_spare = remembered.as_ref().is_some_and(|old| may_serve_stale(policy, age_of(old, now())));
        let checked = match self.may_ask(target, &Subject::Name(name.clone())).await {
            Ok(()) if has_spare => match self.trouble(target, name) {
                Some(error) => Checked::Failed(error),
                None => self.check_patiently(target, name, &errand.clone().or_else()).await,
            },
            Ok(()) => self.check(target, name, errand).await,
            Err(error) => Checked::Failed(error),
        };
        match (checked, remembered) {
            (Checked::Confirmed(stamp), Some(old)) if old.digest == stamp.digest => {
                Ok(Named { stamp, served: Served::Revalidated, age: Duration::ZERO })
            }
            (Checked::Confirmed(stamp), _) => Ok(Named { stamp, served: Served::Miss, age: Duration::ZERO }),
            (Checked::Failed(error), Some(old)) => self.fall_back(target, name, old, error),
            (Checked::Failed(error), None) => Err(error),
        }
    }

    fn fall_back(&self, target: &Target, name: &Name, old: Stamp, error: Error) -> Result<Named, Error> {
        let upstream = self.upstream(target);
        let policy = &upstream.config.freshness;
        let age = age_of(&old, now());
        if error.is_definite() || !may_serve_stale(policy, age) {
            return Err(error);
        }
        tracing::warn!(repository = %target.repository, %name, age = age.as_secs(), %error, "served stale");
        Ok(Named { stamp: old, served: Served::Stale, age })
    }

    pub(super) async fn check(self: &Arc<Self>, target: &Target, name: &Name, errand: &Errand) -> Checked {
        let key = (target.repository.clone(), name.clone());
        let is_refused = |checked: &Checked| matches!(checked, Checked::Failed(error) if error.is_refusal());
        let checked =
            self.checks.insist(key, errand, || self.check_now(target, name, errand), is_refused).await;
        checked.unwrap_or_else(|| Checked::Failed(super::given_up()))
    }

    /// With something to fall back on, an upstream that hangs is not waited for to the end of its time limits:
    /// the client's own are often shorter. The check goes on, and the next request has its answer.
    async fn check_patiently(self: &Arc<Self>, target: &Target, name: &Name, errand: &Errand) -> Checked {
        let after = PATIENCE.min(errand.patience().mul_f64(PATIENCE_SHARE));
        let checked = tokio::time::timeout(after, self.check(target, name, errand)).await;
        checked.unwrap_or_else(|_| {
            let endpoint = target.repository.registry.to_string();
            Checked::Failed(Error::Upstream(upstream::Error::TimedOut { endpoint, after }))
        })
    }

    /// Asks behind the client's back, unless that has just failed.
    fn begin_check(self: &Arc<Self>, target: &Target, name: &Name, errand: &Errand) {
        if self.trouble(target, name).is_none() {
            let (key, errand) =
                ((target.repository.clone(), name.clone()), errand.at(Priority::Revalidation).or_else());
            self.checks.begin(key, &errand, || self.check_now(target, name, &errand));
        }
    }

    /// Boxed, since a list of referrers may need a tag, and its check is this very function.
    fn check_now(
        self: &Arc<Self>,
        target: &Target,
        name: &Name,
        errand: &Errand,
    ) -> BoxFuture<'static, Checked> {
        let (inner, target, name, errand) = (Arc::clone(self), target.clone(), name.clone(), errand.clone());
        let asked = now();
        Box::pin(async move {
            match inner.store.name(&target.repository, &name) {
                // A check that ended since the client asked answers its question.
                Some(stamp) if (asked..=now()).contains(&stamp.confirmed) => Checked::Confirmed(stamp),
                _ => inner.check_and_remember(&target, &name, &errand).await,
            }
        })
    }

    async fn check_and_remember(self: &Arc<Self>, target: &Target, name: &Name, errand: &Errand) -> Checked {
        let asked = match name {
            Name::Tag(tag) => self.ask_for_tag(target, tag, errand).await,
            Name::Tags => self.ask_for_tags(target, errand).await,
            Name::Referrers(digest) => self.ask_for_referrers(target, digest, errand).await,
        };
        let asked = self.note_absence(target, Subject::Name(name.clone()), asked).await;
        match asked {
            // Nothing is known of the subject: a client may have made it up, and rows would add up.
            Ok(stamp) if self.is_idle_list(target, name, &stamp) => Checked::Confirmed(stamp),
            Ok(stamp) => match self.store.set_name(&target.repository, name, stamp.clone()).await {
                Ok(stamp) => {
                    self.pin_follows(target, name, &stamp.digest).await;
                    Checked::Confirmed(stamp)
                }
                Err(error) => {
                    tracing::debug!(repository = %target.repository, %name, %error, "a name could not be kept");
                    Checked::Confirmed(stamp)
                }
            },
            Err(error) => {
                if error.is_definite() {
                    let _ = self.store.remove_name(&target.repository, name).await;
                } else {
                    self.note_trouble(target, name, &error, errand);
                }
                Checked::Failed(error)
            }
        }
    }

    /// A pin of a tag that has moved, or of something that more refers to.
    pub(super) async fn pin_follows(&self, target: &Target, name: &Name, digest: &Digest) {
        match name {
            Name::Tag(tag) => {
                let reference = Reference::Tag(tag.clone());
                let has_moved = |pin: &Pin| pin.reference == reference && pin.digests.first() != Some(digest);
                self.follow_pins(target, has_moved).await;
            }
            Name::Referrers(subject) => {
                let has_grown = |pin: &Pin| pin.digests.contains(subject) && !pin.digests.contains(digest);
                self.follow_pins(target, has_grown).await;
            }
            Name::Tags => {}
        }
    }

    /// Why the last check failed, while it is not to be tried again: what there is to fall back on is served as
    /// long as a tag is served unasked, and a fleet asks an upstream in trouble once in that time.
    pub(super) fn trouble(&self, target: &Target, name: &Name) -> Option<Error> {
        let trouble = self.troubles.get(&(target.repository.clone(), name.clone()))?;
        let is_recent = now().duration_since(trouble.since).is_ok_and(|age| age < trouble.ttl);
        is_recent.then_some(trouble.error)
    }

    fn note_trouble(&self, target: &Target, name: &Name, error: &Error, errand: &Errand) {
        // What is kept for those who wait is no trouble of theirs.
        let is_held_back = errand.urgency().get() == Priority::Background && error.is_holding_back();
        if error.is_crowding() || is_held_back {
            return;
        }
        let ttl = self.upstream(target).config.freshness.tag_ttl.min(LONGEST_TROUBLE);
        // What is over sooner is tried again sooner.
        let ttl = error.retry_after().map_or(ttl, |wait| wait.min(ttl));
        let trouble = Trouble { error: error.clone(), since: now(), ttl };
        self.troubles.insert((target.repository.clone(), name.clone()), trouble);
    }

    /// Whether it is a list of no referrers to something that this repository was never seen to contain.
    fn is_idle_list(&self, target: &Target, name: &Name, stamp: &Stamp) -> bool {
        let Name::Referrers(subject) = name else { return false };
        let nothing = Referrers::default().to_json();
        stamp.size == nothing.len() as u64 && self.proof(target, subject).is_none()
    }

    /// By HEAD, which costs no pull. Where the tag moved away from something that is cached, the new manifest
    /// is fetched before the name follows: were it not to be had, the old one could still be served.
    async fn ask_for_tag(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        errand: &Errand,
    ) -> Result<Stamp, Error> {
        let client = Arc::clone(&self.upstream(target).client);
        let found = client.head_manifest(errand, &target.repository.name, &Reference::Tag(tag.clone())).await;
        let found = match found {
            Err(error) if error.refuses_head() => Found::default(),
            found => found?,
        };
        let Some(digest) = found.digest else { return self.fetch_by_tag(target, tag, errand).await };
        let old = self.store.name(&target.repository, &Name::Tag(tag.clone()));
        let has_moved = old.is_some_and(|old| old.digest != digest);
        match (found.size, found.media_type) {
            (Some(size), Some(media_type)) if !has_moved => {
                let media_type = bare_type(&media_type).to_owned();
                let link = Link { size, is_manifest: true, media_type: media_type.clone() };
                self.remember_link(target, &digest, link).await;
                Ok(stamp(digest, size, media_type))
            }
            _ => {
                let fetched = self.by_digest(target, &digest, errand).await;
                let fetched =
                    fetched.map_err(|error| if error.is_absence() { no_manifest(target) } else { error })?;
                // Were the name there first, a kill in between would leave neither the new manifest nor the old one.
                self.has_arrived(target, &digest).await;
                Ok(stamp(digest, fetched.size, fetched.media_type))
            }
        }
    }

    /// For upstreams that know no HEAD, or whose HEAD does not tell the digest: a counted GET, and the digest
    /// is computed here.
    async fn fetch_by_tag(&self, target: &Target, tag: &Tag, errand: &Errand) -> Result<Stamp, Error> {
        let client = Arc::clone(&self.upstream(target).client);
        let document = client.manifest(errand, &target.repository.name, &Reference::Tag(tag.clone())).await?;
        // What the answer says of itself must hold; where it says nothing there is nothing to hold it to.
        let algorithm = document.digest.map_or(Algorithm::Sha256, |told| told.algorithm());
        let digest = Digest::of(algorithm, &document.bytes);
        if document.digest.is_some_and(|told| told != digest) {
            return Err(self.wrong_manifest(target, &digest));
        }
        let document = Document::of(document.bytes, document.media_type.as_deref());
        self.remember_sizes(target, &document);
        self.keep(target, &digest, &document).await;
        Ok(stamp(digest, document.size(), document.media_type))
    }
}

/// A tag that means what is not there: some mirror of the upstream is behind. The tag itself is not gone.
fn no_manifest(target: &Target) -> Error {
    let endpoint = target.repository.registry.to_string();
    Error::Upstream(upstream::Error::BadAnswer {
        endpoint,
        reason: "a tag whose manifest is not there".to_owned(),
    })
}

/// Confirmed just now. An older "since" is kept by the store.
pub(super) fn stamp(digest: Digest, size: u64, media_type: String) -> Stamp {
    let now = now();
    Stamp { digest, size, media_type, since: now, confirmed: now }
}

fn hit(stamp: Stamp) -> Named {
    let age = age_of(&stamp, now());
    Named { stamp, served: Served::Hit, age }
}

/// A stamp from the future was made before the clock was set back. How long ago that was cannot be known; by as
/// much as it is ahead it is taken to be old, so that it is not believed until the clock has caught up.
pub(super) fn age_of(stamp: &Stamp, now: SystemTime) -> Duration {
    now.duration_since(stamp.confirmed).unwrap_or_else(|ahead| ahead.duration())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_from_the_future_is_not_fresh() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let digest = Digest::of(Algorithm::Sha256, b"");
        let stamp = Stamp { confirmed: at(1000), ..stamp(digest, 0, String::new()) };
        for (now, age) in [(1000, 0), (1300, 300), (0, 1000)] {
            assert_eq!(age_of(&stamp, at(now)), Duration::from_secs(age));
        }
    }
}
