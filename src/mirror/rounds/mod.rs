//! `[[warm]]`: goes its rounds, so that images are here before anybody asks for them.
//!
//! Each `[[warm]]` has a task of its own, which waits until the next round is due and its hours have come, and then fetches
//! what is missing. What a round came to is noted in the store, so that a restart repeats none; one that was broken off
//! begins anew, and fetches only what is not here.

mod pins;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{IntCounterVec, IntGaugeVec};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Mirror, Wanted, Warmed, Warming};
use crate::access;
use crate::config::{Config, MOST_TAGS, Warm, Wish};
use crate::lifecycle::{Lifecycle, now, time_of_day};
use crate::oci::{ImageReference, Platform, Reference};
use crate::routing::{Router, Target};
use crate::scheduler::Terms;
use crate::telemetry::Metrics;

/// Everything that `[[warm]]` asks for. Cheap to clone.
#[derive(Clone)]
pub struct Rounds(Arc<Inner>);

struct Inner {
    mirror: Mirror,
    life: Lifecycle,
    metrics: RoundsMetrics,
    plans: Mutex<Vec<Plan>>,
    noted: Mutex<Noted>,
    /// One note at a time, so that a later one is not overtaken by an earlier one.
    noting: tokio::sync::Mutex<()>,
    /// One at a time says for whose sake something is pinned, and pins it or lets it go.
    pinning: tokio::sync::Mutex<()>,
}

/// One `[[warm]]`, and whoever goes its rounds.
struct Plan {
    warm: Warm,
    under_way: watch::Receiver<Option<UnderWay>>,
    _work: AbortOnDropHandle<()>,
}

/// What is in the note, by the names of `[[warm]]`.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Noted {
    /// The last round of each.
    rounds: BTreeMap<String, Round>,
    /// What is pinned for the sake of each: images and what of them. Written down before it is pinned, since what a kill
    /// left out of it would pass for pinned by hand, and stay so for ever.
    pinned: BTreeMap<String, BTreeSet<Root>>,
}

/// A repository in full, and what of it.
type Root = (String, String);

/// What the operator wishes for and allows.
struct Rules {
    config: Config,
    router: Router,
}

/// A round that has ended; times in seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Round {
    /// When it began.
    pub begun: u64,
    /// When it ended.
    pub ended: u64,
    /// Images that are here, whole.
    pub images: u64,
    /// Bytes of blobs that came.
    pub fetched: u64,
    /// Images that are new, or whose tag has moved: with the digest of before, where there was one, and that of now.
    pub changed: Vec<(String, Option<String>, String)>,
    /// What could not be had, and why.
    pub failed: Vec<(String, String)>,
    /// What was wished for.
    #[serde(default)]
    wishes: Vec<String>,
    /// What is to be pinned.
    #[serde(skip)]
    roots: BTreeSet<Root>,
}

/// A round that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderWay {
    /// The image that is being fetched.
    pub image: String,
    /// How far that is.
    pub progress: Warming,
}

/// How things stand with one `[[warm]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundReport {
    /// Its name.
    pub name: String,
    /// When the next round is due, at once where that is the epoch; hours of the day may put it off.
    pub next: SystemTime,
    /// What goes on.
    pub under_way: Option<UnderWay>,
    /// What the last round came to.
    pub last: Option<Round>,
}

/// Rounds by their outcome, and when everything was last here.
struct RoundsMetrics {
    rounds: IntCounterVec,
    succeeded: IntGaugeVec,
}

/// The note in the store.
const NOTE: &str = "warm";
/// When a round in which something failed is repeated, where the next one is not due before.
const AGAIN: Duration = Duration::from_secs(15 * 60);
/// The longest that it is slept without looking at the clock on the wall, which may be set.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Lines of a report: the note is not to grow with a registry's troubles.
const MOST_TOLD: usize = 500;

impl Rounds {
    /// Goes its rounds as `config` says, from now on.
    pub fn new(config: &Config, mirror: &Mirror, life: &Lifecycle, metrics: &Metrics) -> Rounds {
        let note = mirror.store().note(NOTE).and_then(|note| serde_json::from_slice(&note).ok());
        let rounds = Rounds(Arc::new(Inner {
            mirror: mirror.clone(),
            life: life.clone(),
            metrics: RoundsMetrics::new(metrics),
            plans: Mutex::default(),
            noted: Mutex::new(note.unwrap_or_default()),
            noting: tokio::sync::Mutex::default(),
            pinning: tokio::sync::Mutex::default(),
        }));
        rounds.configure(config);
        rounds
    }

    /// Goes them by `config` from now on. What is under way begins anew, and goes on where it was.
    pub fn configure(&self, config: &Config) {
        let rules = Arc::new(Rules { config: config.clone(), router: Router::new(config) });
        let plan = |warm: &Warm| {
            let (tell, under_way) = watch::channel(None);
            let going = Arc::clone(&self.0).go(warm.clone(), Arc::clone(&rules), tell);
            let work = AbortOnDropHandle::new(self.0.life.spawn("keep images warm", going));
            self.0.metrics.know(&warm.name, self.0.last(&warm.name).as_ref());
            Plan { warm: warm.clone(), under_way, _work: work }
        };
        let plans = config.warm.iter().map(plan).collect();
        *self.0.plans.lock().unwrap_or_else(PoisonError::into_inner) = plans;
        let inner = Arc::clone(&self.0);
        drop(self.0.life.spawn("let go of what is kept warm", async move { inner.tidy().await }));
    }

    /// How things stand with each, in the order of the configuration.
    pub fn report(&self) -> Vec<RoundReport> {
        let plans = self.0.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |plan: &Plan| {
            let (name, last) = (plan.warm.name.clone(), self.0.last(&plan.warm.name));
            let next = due(&plan.warm, last.as_ref());
            RoundReport { name, next, under_way: plan.under_way.borrow().clone(), last }
        };
        plans.iter().map(report).collect()
    }
}

impl Inner {
    async fn go(self: Arc<Self>, warm: Warm, rules: Arc<Rules>, tell: watch::Sender<Option<UnderWay>>) {
        loop {
            let round = async {
                self.wait(&warm).await;
                self.round(&warm, &rules, &tell).await
            };
            let round = tokio::select! {
                round = round => round,
                () = self.life.stopping() => return,
            };
            tell.send_replace(None);
            // Written down whole, also when the house is being stopped: else the round would be gone again.
            self.note(&warm.name, round).await;
            self.tidy().await;
        }
    }

    /// Until a round is due, its hours have come and upstreams may be asked.
    async fn wait(&self, warm: &Warm) {
        loop {
            let due = due(warm, self.last(&warm.name).as_ref()).duration_since(now()).unwrap_or_default();
            let closed = warm.hours.map(|hours| hours.begin_in(time_of_day())).unwrap_or_default();
            let wait = due.max(closed);
            if wait.is_zero() && !self.mirror.is_offline() {
                return;
            }
            let wait = if wait.is_zero() { LOOK_EVERY } else { wait.min(LOOK_EVERY) };
            tokio::time::sleep(wait).await;
        }
    }

    async fn round(&self, warm: &Warm, rules: &Rules, tell: &watch::Sender<Option<UnderWay>>) -> Round {
        let terms = Arc::new(Terms::new(warm.hours, &warm.bandwidth));
        let wanted = Wanted {
            platforms: warm.platforms.clone(),
            has_referrers: warm.referrers,
            is_latest: true,
            terms: Some(terms),
        };
        let mut round = Round { begun: seconds(now()), wishes: wishes(warm), ..Round::default() };
        for wish in &warm.images {
            let (target, images) = match self.images(wish, warm, rules, &wanted).await {
                Ok(found) => found,
                Err(error) => {
                    round.fail(&warm.name, wish, error);
                    continue;
                }
            };
            for image in images {
                let fetching = self.fetch(&target, &image, &wanted, tell);
                match fetching.await {
                    Ok(warmed) => self.take(warm, &target, &image, warmed, &mut round).await,
                    Err(error) => round.fail(&warm.name, &image, error),
                }
            }
        }
        if round.failed.is_empty() {
            self.let_go(&warm.name, &round.roots).await;
        }
        round.ended = seconds(now());
        round
    }

    /// The images that a wish stands for now.
    async fn images(
        &self,
        wish: &Wish,
        warm: &Warm,
        rules: &Rules,
        wanted: &Wanted,
    ) -> Result<(Target, Vec<ImageReference>), String> {
        let target = rules.route(&wish.image)?;
        let Some(pattern) = &wish.tags else { return Ok((target, vec![wish.image.clone()])) };
        let most = warm.newest.unwrap_or(MOST_TAGS);
        let tags = self.mirror.matching(&target, pattern, most, &wanted.errand()).await;
        let tags = tags.map_err(|error| error.to_string())?;
        if tags.is_empty() {
            return Err("it matches no tag".to_owned());
        }
        let image = |tag| ImageReference { reference: Reference::Tag(tag), ..wish.image.clone() };
        Ok((target, tags.into_iter().map(image).collect()))
    }

    async fn fetch(
        &self,
        target: &Target,
        image: &ImageReference,
        wanted: &Wanted,
        tell: &watch::Sender<Option<UnderWay>>,
    ) -> Result<Warmed, String> {
        let (sender, mut progress) = watch::channel(Warming::default());
        let telling = async {
            loop {
                let progress_now = progress.borrow_and_update().clone();
                tell.send_replace(Some(UnderWay { image: image.to_string(), progress: progress_now }));
                if progress.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            warmed = self.mirror.warm(target, &image.reference, wanted, &sender) => {
                warmed.map_err(|error| error.to_string())
            }
            () = telling => unreachable!("it goes on until the other ends"),
        }
    }

    /// An image is here.
    async fn take(
        &self,
        warm: &Warm,
        target: &Target,
        image: &ImageReference,
        warmed: Warmed,
        round: &mut Round,
    ) {
        let Some(top) = warmed.roots.first() else { return };
        round.images += 1;
        round.fetched = round.fetched.saturating_add(warmed.fetched);
        if warmed.before != Some(top.digest) && matches!(image.reference, Reference::Tag(_)) {
            let before = warmed.before.map(|digest| digest.to_string());
            if round.changed.len() < MOST_TOLD {
                round.changed.push((image.to_string(), before, top.digest.to_string()));
            }
        }
        if warm.pin
            && let Err(error) = self.pin(warm, target, image, &warmed, round).await
        {
            let error = format!("all of it is here, and it cannot be pinned: {error}");
            round.fail(&warm.name, image, error);
        }
    }

    async fn note(&self, name: &str, round: Round) {
        let outcome = if round.failed.is_empty() { COMPLETE } else { INCOMPLETE };
        self.metrics.rounds.with_label_values(&[name, outcome]).inc();
        tracing::info!(
            warm = name,
            images = round.images,
            changed = round.changed.len(),
            failed = round.failed.len(),
            fetched = round.fetched,
            "a round of [[warm]] has ended"
        );
        self.noted().rounds.insert(name.to_owned(), round);
        self.metrics.know(name, self.last(name).as_ref());
        self.save().await;
    }

    async fn save(&self) {
        let _one_at_a_time = self.noting.lock().await;
        let note = serde_json::to_vec(&*self.noted()).unwrap_or_default();
        if let Err(error) = self.mirror.store().set_note(NOTE, note).await {
            tracing::debug!(%error, "what the rounds of [[warm]] came to could not be written down");
        }
    }

    /// What the configuration wishes for now.
    fn warms(&self) -> Vec<Warm> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.iter().map(|plan| plan.warm.clone()).collect()
    }

    fn last(&self, name: &str) -> Option<Round> {
        self.noted().rounds.get(name).cloned()
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rules {
    fn route(&self, image: &ImageReference) -> Result<Target, String> {
        let target = self.router.route(Some(&image.registry), None, &image.repository);
        let target = target.map_err(|no_route| no_route.to_string())?;
        let upstream = &self.config.upstreams[target.upstream.index()];
        access::permit(upstream, &target.repository.name).map_err(|denied| denied.to_string())?;
        Ok(target)
    }
}

impl Round {
    fn fail(&mut self, name: &str, image: &impl ToString, error: String) {
        let image = image.to_string();
        tracing::warn!(warm = name, image, error, "an image of [[warm]] cannot be had");
        if self.failed.len() < MOST_TOLD {
            self.failed.push((image, error));
        }
    }
}

/// When the next round is due.
fn due(warm: &Warm, last: Option<&Round>) -> SystemTime {
    // One that has not begun yet was noted while the clock was wrong. What is newly wished for is not kept waiting.
    let last = last.filter(|last| last.begun <= seconds(now()) && last.wishes == wishes(warm));
    let Some(last) = last else { return UNIX_EPOCH };
    let regular = UNIX_EPOCH + Duration::from_secs(last.begun) + warm.every;
    let again = UNIX_EPOCH + Duration::from_secs(last.ended.min(seconds(now()))) + AGAIN;
    if last.failed.is_empty() { regular } else { regular.min(again) }
}

/// All that makes what one round brought something else than another one does.
fn wishes(warm: &Warm) -> Vec<String> {
    let images = warm.images.iter().map(Wish::to_string);
    let newest = warm.newest.map(|newest| format!("newest {newest}"));
    let platforms = warm.platforms.iter().map(Platform::to_string);
    let also = [(warm.referrers, "referrers"), (warm.pin, "pin")].into_iter().filter(|(is_set, _)| *is_set);
    images.chain(newest).chain(platforms).chain(also.map(|(_, what)| what.to_owned())).collect()
}

/// The repository, in full.
fn image_name(image: &ImageReference) -> String {
    format!("{}/{}", image.registry, image.repository)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

const COMPLETE: &str = "complete";
const INCOMPLETE: &str = "incomplete";

impl RoundsMetrics {
    fn new(metrics: &Metrics) -> RoundsMetrics {
        RoundsMetrics {
            rounds: metrics.counters(
                "warm_rounds_total",
                "Rounds of a [[warm]] that have ended, by whether all of it is here.",
                &["warm", "outcome"],
            ),
            succeeded: metrics.gauges(
                "warm_last_complete_timestamp_seconds",
                "When all that a [[warm]] wishes for was last found or brought here; 0: never.",
                &["warm"],
            ),
        }
    }

    fn know(&self, name: &str, last: Option<&Round>) {
        for outcome in [COMPLETE, INCOMPLETE] {
            self.rounds.with_label_values(&[name, outcome]);
        }
        let succeeded = self.succeeded.with_label_values(&[name]);
        if let Some(last) = last.filter(|last| last.failed.is_empty()) {
            succeeded.set(i64::try_from(last.ended).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_round_is_due() {
        let warm = |name: &str| {
            let text = format!("[[warm]]\nname = \"{name}\"\nimages = [\"nginx:1\"]\nevery = \"1d\"");
            Config::from_toml("a test", &text).unwrap().warm.remove(0)
        };
        let (warm, now) = (warm("nightly"), seconds(now()));
        let failed = vec![("nginx:1".to_owned(), "it is gone".to_owned())];
        let day = 86_400;
        for (begun, ended, has_failed, due_at) in [
            (now - day, now - day + 10, false, now),
            (now - 10, now - 5, false, now - 10 + day),
            (now - 10, now - 5, true, now - 5 + AGAIN.as_secs()),
            // The clock was ahead, and was set back.
            (now + 9 * day, now + 9 * day, false, 0),
            (now - 10, now + 9 * day, true, now + AGAIN.as_secs()),
        ] {
            let failed = if has_failed { failed.clone() } else { Vec::new() };
            let round = Round { begun, ended, failed, wishes: wishes(&warm), ..Round::default() };
            let due = seconds(due(&warm, Some(&round)));
            assert!((due_at..=due_at + 5).contains(&due), "{begun} {ended}: {due} for {due_at}");
        }
        assert_eq!(due(&warm, None), UNIX_EPOCH);
        let other = Round { begun: now - 10, ended: now - 5, ..Round::default() };
        assert_eq!(due(&warm, Some(&other)), UNIX_EPOCH, "it was for something else");
    }
}
