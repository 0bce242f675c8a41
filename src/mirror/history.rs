//! What tags meant before, and the way back to it.
//!
//! The store notes what a tag meant whenever that changes. A tag that is *rolled back* means what it meant once, for every
//! client and without any question to the upstream, until it is released. What the upstream says meanwhile is still noted
//! when it is asked for by hand: nothing of it is lost.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Error, Inner, Mirror};
use crate::lifecycle::now;
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::routing::Target;
use crate::store::{self, Kept, Name, Past, Stamp, Store};

/// What a tag meant for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Episode {
    /// What it meant.
    pub digest: Digest,
    /// Since when.
    pub since: SystemTime,
    /// Until when; `None` for what the upstream said last.
    pub until: Option<SystemTime>,
    /// Its manifest, where that is here.
    pub kept: Option<Kept>,
    /// The tag is held at it.
    pub is_held: bool,
}

/// What a tag is served as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// The content; where the tag is held, as confirmed at this moment.
    pub stamp: Stamp,
    /// It is held at that, whatever the upstream says.
    pub is_held: bool,
}

impl Meaning {
    fn held(stamp: Stamp) -> Meaning {
        Meaning { stamp, is_held: true }
    }
}

/// Why a tag is not rolled back, or not released.
#[derive(Debug, thiserror::Error)]
pub enum NotHeld {
    /// Nothing is known of it.
    #[error("it is not known here; pull it through this mirror first")]
    Unknown,
    /// It never meant that, as far as is known here.
    #[error("it never meant {0} here; `tidelock show IMAGE --history` lists what it meant")]
    NeverMeant(String),
    /// More than one of what it meant begins like that.
    #[error("it meant more than one digest that begins with {0}; give more of it")]
    Ambiguous(String),
    /// It is not held.
    #[error("it is not held")]
    NotHeld,
    /// So many are held already.
    #[error("{MOST_HELD} tags are held already; release some of them")]
    TooMany,
    /// The index's.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Tags that are held, each at a digest. Written down before they hold.
#[derive(Debug, Default)]
pub(super) struct Holds {
    held: Mutex<HashMap<String, Stamp>>,
    /// So that a pull need not look where there are none.
    count: AtomicUsize,
}

/// The note in the store: repository, tag, digest, size and type of each.
const NOTE: &str = "holds";
const MOST_HELD: usize = 1_000;
/// In place of a digest: what it meant before.
const PREVIOUS: &str = "previous";
/// As much of a digest's hexadecimal part is needed at least.
const SHORTEST: usize = 6;

impl Mirror {
    /// What a tag is served as, as far as that is known here; nobody is asked.
    ///
    /// # Errors
    /// [`Error::NotThen`].
    pub fn meaning(&self, target: &Target, tag: &Tag) -> Result<Option<Meaning>, Error> {
        self.0.meaning(target, tag)
    }

    /// The same, where it is `known` already what the upstream said last.
    ///
    /// # Errors
    /// [`Error::NotThen`].
    pub fn meaning_of(&self, target: &Target, tag: &Tag, known: Stamp) -> Result<Meaning, Error> {
        let held = self.0.held(target, tag)?;
        Ok(held.map_or(Meaning { stamp: known, is_held: false }, Meaning::held))
    }

    /// What a tag has meant, as far as is known here, the latest first.
    pub fn history(&self, target: &Target, tag: &Tag) -> Vec<Episode> {
        let (inner, repository) = (&self.0, &target.repository);
        let held = inner.held(target, tag).ok().flatten().map(|stamp| stamp.digest);
        let episode = |digest, since, until| Episode {
            digest,
            since,
            until,
            kept: inner.kept(target, &digest, true),
            is_held: held == Some(digest),
        };
        let current = inner.store.name(repository, &Name::Tag(tag.clone()));
        let current = current.map(|stamp| episode(stamp.digest, stamp.since, None));
        let past = inner.store.history(repository, tag).into_iter();
        current
            .into_iter()
            .chain(past.map(|past| episode(past.digest, past.since, Some(past.until))))
            .collect()
    }

    /// Serves a tag as `to` from now on: a digest that it meant once, as much of one as is needed, or `previous`.
    ///
    /// # Errors
    /// [`NotHeld`].
    pub async fn roll_back(&self, target: &Target, tag: &Tag, to: &str) -> Result<Digest, NotHeld> {
        let (inner, repository) = (&self.0, &target.repository);
        let _by_hand = inner.by_hand.lock().await;
        let current = inner.store.name(repository, &Name::Tag(tag.clone()));
        let known = inner.meanings(repository, tag, current.clone());
        let stamp = as_meant(chosen(&known, current.as_ref(), to)?);
        let digest = stamp.digest;
        let key = key(repository, tag);
        inner
            .holds
            .change(&inner.store, |held| {
                if held.len() >= MOST_HELD && !held.contains_key(&key) {
                    return Err(NotHeld::TooMany);
                }
                held.insert(key, stamp);
                Ok(())
            })
            .await?;
        inner.follow_pins(target, |pin| pin.reference == Reference::Tag(tag.clone())).await;
        tracing::info!(%repository, %tag, %digest, "rolled back by hand");
        Ok(digest)
    }

    /// Serves a tag as the upstream has it again.
    ///
    /// # Errors
    /// [`NotHeld`].
    pub async fn release(&self, target: &Target, tag: &Tag) -> Result<(), NotHeld> {
        let inner = &self.0;
        let _by_hand = inner.by_hand.lock().await;
        let key = key(&target.repository, tag);
        let release = |held: &mut HashMap<String, Stamp>| held.remove(&key).map(drop).ok_or(NotHeld::NotHeld);
        inner.holds.change(&inner.store, release).await?;
        inner.follow_pins(target, |pin| pin.reference == Reference::Tag(tag.clone())).await;
        tracing::info!(repository = %target.repository, %tag, "released by hand");
        Ok(())
    }
}

impl Inner {
    pub(super) fn meaning(&self, target: &Target, tag: &Tag) -> Result<Option<Meaning>, Error> {
        let held = self.held(target, tag)?.map(Meaning::held);
        let known = || self.store.name(&target.repository, &Name::Tag(tag.clone()));
        Ok(held.or_else(|| known().map(|stamp| Meaning { stamp, is_held: false })))
    }

    /// What a tag is held at, where it is: by hand, else as it stood at the date that the configuration names.
    ///
    /// # Errors
    /// [`Error::NotThen`].
    pub(super) fn held(&self, target: &Target, tag: &Tag) -> Result<Option<Stamp>, Error> {
        let by_hand = match self.holds.count.load(Ordering::Acquire) {
            0 => None,
            _ => self.holds.held().get(&key(&target.repository, tag)).cloned(),
        };
        let held = match by_hand {
            Some(stamp) => Some(stamp),
            None => self.held_by_date(target, tag)?,
        };
        // The operator's word, which does not age.
        Ok(held.map(|stamp| Stamp { confirmed: now(), ..stamp }))
    }

    /// The tags of the target's repository that are held, and at what.
    pub(super) fn held_in(&self, target: &Target) -> Vec<(Tag, Digest)> {
        let (repository, mut held) = (&target.repository, Vec::new());
        let known = self.store.tags_of(repository).into_iter().map(|(tag, _)| tag);
        for tag in known.chain(self.holds.tags_of(repository)).collect::<BTreeSet<Tag>>() {
            let stamp = self.held(target, &tag).ok().flatten();
            held.extend(stamp.map(|stamp| (tag, stamp.digest)));
        }
        held
    }

    fn held_by_date(&self, target: &Target, tag: &Tag) -> Result<Option<Stamp>, Error> {
        let upstream = self.upstreams[target.upstream.index()].load();
        let Some(at) = upstream.config.held_at(target.repository.name.as_str(), tag.as_str()) else {
            return Ok(None);
        };
        let current = self.store.name(&target.repository, &Name::Tag(tag.clone()));
        let known = self.meanings(&target.repository, tag, current);
        let then = known.iter().find(|past| past.since <= at);
        let since = known.last().map(|past| past.since);
        then.map(|past| Some(as_meant(past))).ok_or(Error::NotThen { at, since })
    }

    /// All that a tag has meant, as far as is known here, the latest first: what it means now, then what it meant before.
    fn meanings(&self, repository: &Repository, tag: &Tag, current: Option<Stamp>) -> Vec<Past> {
        let current = current.map(|stamp| {
            let Stamp { digest, size, media_type, since, confirmed } = stamp;
            Past { digest, size, media_type, since, until: confirmed }
        });
        current.into_iter().chain(self.store.history(repository, tag)).collect()
    }
}

impl Holds {
    /// What was written down before.
    pub(super) fn open(store: &Store) -> Holds {
        let holds = Holds::default();
        holds.put(written(store).unwrap_or_default());
        holds
    }

    /// Those that are held by hand.
    fn tags_of(&self, repository: &Repository) -> Vec<Tag> {
        let prefix = format!("{repository}:");
        self.held().keys().filter_map(|key| key.strip_prefix(&prefix)?.parse().ok()).collect()
    }

    /// By whoever has `by_hand`, so that what is written last is what holds.
    async fn change(
        &self,
        store: &Store,
        change: impl FnOnce(&mut HashMap<String, Stamp>) -> Result<(), NotHeld>,
    ) -> Result<(), NotHeld> {
        let mut held = self.held().clone();
        change(&mut held)?;
        let rows: Vec<Written> = held.iter().map(|(name, stamp)| Written::of(name, stamp)).collect();
        let note = serde_json::to_vec(&rows).expect("texts and numbers are JSON");
        match store.set_note(NOTE, note).await {
            Ok(()) => self.put(held),
            Err(error) => {
                // It may have been written all the same, and would hold after the next start.
                if let Some(held) = written(store) {
                    self.put(held);
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn put(&self, held: HashMap<String, Stamp>) {
        self.count.store(held.len(), Ordering::Release);
        *self.held() = held;
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Stamp>> {
        // Put in whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A hold as it is written down; times in seconds since 1970.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Written {
    name: String,
    digest: String,
    size: u64,
    media_type: String,
    since: u64,
}

impl Written {
    fn of(name: &str, stamp: &Stamp) -> Written {
        let since = stamp.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (digest, media_type) = (stamp.digest.to_string(), stamp.media_type.clone());
        Written { name: name.to_owned(), digest, size: stamp.size, media_type, since }
    }

    fn read(self) -> Option<(String, Stamp)> {
        let since = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(self.since);
        let (digest, size, media_type) = (self.digest.parse().ok()?, self.size, self.media_type);
        Some((self.name, Stamp { digest, size, media_type, since, confirmed: since }))
    }
}

fn written(store: &Store) -> Option<HashMap<String, Stamp>> {
    let rows: Vec<Written> = serde_json::from_slice(&store.note(NOTE)?).ok()?;
    Some(rows.into_iter().filter_map(Written::read).collect())
}

/// Which of what a tag meant is asked for.
fn chosen<'a>(known: &'a [Past], current: Option<&Stamp>, to: &str) -> Result<&'a Past, NotHeld> {
    if known.is_empty() {
        return Err(NotHeld::Unknown);
    }
    let unknown = || NotHeld::NeverMeant(to.chars().take(140).collect());
    if to == PREVIOUS {
        let now = current.map(|stamp| stamp.digest);
        return known.iter().find(|past| Some(past.digest) != now).ok_or_else(unknown);
    }
    let is_meant = |past: &&Past| {
        let (whole, hex) = (past.digest.to_string(), past.digest.hex());
        let begins = |text: &str| text.len() >= to.len() && text.starts_with(to) && to.len() >= SHORTEST;
        whole == to
            || begins(&hex)
            || (to.contains(':') && to.len() > "sha256:".len() + SHORTEST && whole.starts_with(to))
    };
    let mut found = known.iter().filter(is_meant);
    let first = found.next().ok_or_else(unknown)?;
    if found.any(|other| other.digest != first.digest) {
        return Err(NotHeld::Ambiguous(to.to_owned()));
    }
    Ok(first)
}

/// As it is served.
fn as_meant(past: &Past) -> Stamp {
    let Past { digest, size, ref media_type, since, until } = *past;
    Stamp { digest, size, media_type: media_type.clone(), since, confirmed: until }
}

fn key(repository: &Repository, tag: &Tag) -> String {
    format!("{repository}:{tag}")
}
