//! Why a pull would hit, wait, be stale or miss. Asks nobody and spends nothing.

use std::time::{Duration, SystemTime};

use super::check::age_of;
use super::history::Meaning;
use super::inventory::Content;
use super::{Inner, Mirror, Subject};
use crate::freshness::{Remembered, Verdict, judge, may_serve_stale};
use crate::lifecycle::now;
use crate::oci::{Digest, Reference, Tag};
use crate::routing::Target;
use crate::scheduler::{Payer, Refused};
use crate::store::{Name, Stamp};

/// What would come of a pull now, and from what that follows.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// What would come of it.
    pub prospect: Prospect,
    /// What is remembered of the tag; `None` for a digest, and for a tag that is not known.
    pub tag: Option<TagFacts>,
    /// What is here of the manifest and of what it names.
    pub content: Option<Content>,
    /// Who would pay for a manifest that is not here, or what is in the way.
    pub payer: Result<Payer, Refused>,
    /// Why the last check failed, while it is not tried again.
    pub trouble: Option<String>,
}

/// What is remembered of a tag.
#[derive(Debug, Clone)]
pub struct TagFacts {
    /// What it means.
    pub digest: Digest,
    /// Since when.
    pub since: SystemTime,
    /// How long ago the upstream confirmed it.
    pub age: Duration,
    /// What is made of that.
    pub verdict: Verdict,
    /// It was rolled back to this.
    pub is_held: bool,
}

/// What would come of a pull of the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prospect {
    /// From the cache, without any upstream call.
    Hit,
    /// From the cache at once; the tag is checked behind the client's back.
    HitThenCheck,
    /// The tag is checked first, by one free HEAD; then from the cache unless it has moved.
    Check,
    /// The tag is due for a check that cannot be made now: from the cache, as it was.
    Stale,
    /// Fetched from the upstream: a counted request.
    Miss,
    /// To be fetched, and there is no leave to: held, and refused in the end.
    Held,
    /// To be fetched, and nobody answers there: refused at once.
    Down,
    /// The upstream said a moment ago that there is no such thing.
    Negative,
    /// Not here, and nobody may be asked.
    Offline,
}

impl Prospect {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Prospect::Hit => "hit",
            Prospect::HitThenCheck => "hit_then_check",
            Prospect::Check => "check",
            Prospect::Stale => "stale",
            Prospect::Miss => "miss",
            Prospect::Held => "held",
            Prospect::Down => "down",
            Prospect::Negative => "negative",
            Prospect::Offline => "offline",
        }
    }
}

impl Mirror {
    /// Explains what a pull of `reference` by a waiting client would come to.
    pub async fn explain(&self, target: &Target, reference: &Reference) -> Explanation {
        self.0.explain(target, reference).await
    }
}

impl Inner {
    async fn explain(&self, target: &Target, reference: &Reference) -> Explanation {
        let payer = self.scheduler.payer(target.upstream, &target.repository.name);
        let mut not_then = None;
        let (tag, subject) = match reference {
            Reference::Tag(tag) => {
                let name = Name::Tag(tag.clone());
                let meaning = self.meaning(target, tag).unwrap_or_else(|error| {
                    not_then = Some(error);
                    None
                });
                let facts = meaning.map(|Meaning { stamp, is_held }| match is_held {
                    true => held(&stamp),
                    false => self.facts(target, tag, &stamp),
                });
                (facts, Subject::Name(name))
            }
            Reference::Digest(digest) => (None, Subject::Manifest(*digest)),
        };
        let digest = match reference {
            Reference::Tag(_) => tag.as_ref().map(|tag| tag.digest),
            Reference::Digest(digest) => Some(*digest),
        };
        let content = match &digest {
            Some(digest) => Some(self.content(target, digest).await),
            None => None,
        };
        let trouble = match &subject {
            Subject::Name(name) => self.trouble(target, name),
            Subject::Manifest(_) | Subject::Blob(_) => None,
        };
        let is_absent = self.absent.get(&(target.repository.clone(), subject)).await.is_some();
        let is_cached = content.as_ref().is_some_and(|content| content.is_cached);
        let is_down = matches!(payer, Err(Refused::Down(_)));
        let prospect = match (&tag, is_cached) {
            (_, false) if is_absent || not_then.is_some() => Prospect::Negative,
            (Some(tag), true) => self.prospect(target, tag, trouble.is_some() || is_down),
            (None, true) => Prospect::Hit,
            (_, false) if self.is_offline() => Prospect::Offline,
            (_, false) if payer.is_ok() => Prospect::Miss,
            (_, false) if is_down => Prospect::Down,
            (_, false) => Prospect::Held,
        };
        let trouble = not_then.or(trouble);
        Explanation { prospect, tag, content, payer, trouble: trouble.map(|error| error.to_string()) }
    }

    fn facts(&self, target: &Target, tag: &Tag, stamp: &Stamp) -> TagFacts {
        let age = age_of(stamp, now());
        let upstream = self.upstream(target);
        let policy = &upstream.config.freshness;
        let verdict =
            judge(policy, self.is_offline(), Remembered { tag: Some(tag.as_str()), age: Some(age) });
        TagFacts { digest: stamp.digest, since: stamp.since, age, verdict, is_held: false }
    }

    /// Of a tag whose manifest is here.
    fn prospect(&self, target: &Target, tag: &TagFacts, is_in_trouble: bool) -> Prospect {
        let upstream = self.upstream(target);
        let policy = &upstream.config.freshness;
        match tag.verdict {
            Verdict::Serve => Prospect::Hit,
            Verdict::ServeAndCheck => Prospect::HitThenCheck,
            Verdict::Check if is_in_trouble && may_serve_stale(policy, tag.age) => Prospect::Stale,
            Verdict::Check => Prospect::Check,
            Verdict::Absent => Prospect::Offline,
        }
    }
}

fn held(stamp: &Stamp) -> TagFacts {
    let (digest, since, age, verdict) = (stamp.digest, stamp.since, Duration::ZERO, Verdict::Serve);
    TagFacts { digest, since, age, verdict, is_held: true }
}
