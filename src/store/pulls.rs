use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Digest;

/// Images that are being pulled at this moment: what they consist of and a client has yet to ask for is not evicted.
///
/// A pull begins when its manifest goes out. It ends when each blob has been asked for as often as the manifest, or
/// when nothing was asked for and nothing goes out for [`PATIENCE`]: clients leave out what they have already.
#[derive(Debug)]
pub(super) struct Pulls {
    under_way: Mutex<UnderWay>,
    /// What manifests consist of, so that hot ones are not read over and over.
    blobs: moka::sync::Cache<Digest, Arc<[Digest]>>,
}

#[derive(Debug, Default)]
struct UnderWay {
    /// By manifest.
    pulls: HashMap<Digest, Pull>,
    /// The manifests of those that a blob belongs to.
    of: HashMap<Digest, HashSet<Digest>>,
}

#[derive(Debug)]
struct Pull {
    blobs: Arc<[Digest]>,
    /// How often the manifest went out: so often each blob is expected to be asked for.
    manifests: usize,
    /// How often each was.
    asked: HashMap<Digest, usize>,
    begun: Instant,
    /// When one of those was last asked for.
    last: Instant,
}

/// Clients ask for the next layer at once, and the slowest of them unpacks one in between.
const PATIENCE: Duration = Duration::from_secs(60);

/// However busy its blobs are: others may pull them too.
const LONGEST: Duration = Duration::from_secs(3600);

/// Pulls that are looked after at once, and blobs of each; what is beyond that may be evicted (I7). Images have at most
/// 127 layers.
const MOST_PULLS: usize = 1000;
const MOST_BLOBS: usize = 256;

impl Default for Pulls {
    fn default() -> Pulls {
        Pulls { under_way: Mutex::default(), blobs: moka::sync::Cache::new(MOST_PULLS as u64) }
    }
}

impl Pulls {
    /// The manifest goes out; `blobs` says what it consists of. Whether that begins a pull: nobody was pulling it, it
    /// consists of something, and there is room to look after it.
    pub(super) fn begin(&self, manifest: &Digest, blobs: impl FnOnce() -> Vec<Digest>) -> bool {
        // A hot manifest goes out a hundred thousand times a second, and its blobs are not looked at each time.
        if self.lock().again(manifest) {
            return false;
        }
        let blobs = self.blobs.get_with(*manifest, || {
            // A layer may stand in a manifest twice, and is asked for once.
            blobs().into_iter().take(MOST_BLOBS).collect::<HashSet<_>>().into_iter().collect()
        });
        let mut under_way = self.lock();
        let has_room = under_way.pulls.len() < MOST_PULLS || under_way.pulls.contains_key(manifest);
        let begins = has_room && !blobs.is_empty();
        if begins {
            under_way.begin(*manifest, blobs);
        }
        begins
    }

    /// A blob goes out.
    pub(super) fn go_on(&self, blob: &Digest) {
        self.lock().go_on(blob);
    }

    /// The manifests of pulls that a blob belongs to.
    pub(super) fn of(&self, blob: &Digest) -> Vec<Digest> {
        self.lock().of.get(blob).into_iter().flatten().copied().collect()
    }

    /// Forgets pulls that have come to nothing; `is_busy` tells whether a blob goes out or comes in.
    pub(super) fn tidy(&self, is_busy: impl Fn(&Digest) -> bool) {
        let (mut under_way, now) = (self.lock(), Instant::now());
        let over = under_way.pulls.iter().filter(|(_, pull)| !pull.goes_on(now, &is_busy));
        let over: Vec<Digest> = over.map(|(manifest, _)| *manifest).collect();
        over.iter().for_each(|manifest| under_way.end(manifest));
    }

    /// Whether a client has yet to ask for this.
    pub(super) fn expect(&self, blob: &Digest, is_busy: impl Fn(&Digest) -> bool) -> bool {
        let (under_way, now) = (self.lock(), Instant::now());
        let pulls = under_way.of.get(blob).into_iter().flatten().filter_map(|it| under_way.pulls.get(it));
        pulls.filter(|pull| pull.expects(blob)).any(|pull| pull.goes_on(now, &is_busy))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, UnderWay> {
        // A count that is off ends with its pull.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    fn begin(&mut self, manifest: Digest, blobs: Arc<[Digest]>) {
        let now = Instant::now();
        for blob in blobs.iter() {
            self.of.entry(*blob).or_default().insert(manifest);
        }
        let new = || Pull { blobs, manifests: 0, asked: HashMap::new(), begun: now, last: now };
        self.pulls.entry(manifest).or_insert_with(new);
        self.again(&manifest);
    }

    /// One more client pulls this; whether there is such a pull.
    fn again(&mut self, manifest: &Digest) -> bool {
        let Some(pull) = self.pulls.get_mut(manifest) else { return false };
        let now = Instant::now();
        (pull.begun, pull.last) = (now, now);
        pull.manifests += 1;
        true
    }

    fn go_on(&mut self, blob: &Digest) {
        let now = Instant::now();
        let manifests: Vec<Digest> = self.of.get(blob).into_iter().flatten().copied().collect();
        for manifest in manifests {
            let Some(pull) = self.pulls.get_mut(&manifest) else { continue };
            pull.ask(blob, now);
            if pull.is_over() {
                self.end(&manifest);
            }
        }
    }

    fn end(&mut self, manifest: &Digest) {
        let Some(pull) = self.pulls.remove(manifest) else { return };
        for blob in pull.blobs.iter() {
            if let Some(manifests) = self.of.get_mut(blob) {
                manifests.remove(manifest);
                if manifests.is_empty() {
                    self.of.remove(blob);
                }
            }
        }
    }
}

impl Pull {
    fn ask(&mut self, blob: &Digest, now: Instant) {
        let count = self.asked.entry(*blob).or_default();
        if *count < self.manifests {
            *count += 1;
            self.last = now;
        }
    }

    fn expects(&self, blob: &Digest) -> bool {
        self.asked.get(blob).copied().unwrap_or_default() < self.manifests
    }

    fn is_over(&self) -> bool {
        !self.blobs.iter().any(|blob| self.expects(blob))
    }

    fn goes_on(&self, now: Instant, is_busy: impl Fn(&Digest) -> bool) -> bool {
        let since = |time| now.saturating_duration_since(time);
        since(self.last) < PATIENCE || (since(self.begun) < LONGEST && self.blobs.iter().any(is_busy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_yet_to_be_asked_for_is_expected() {
        let (pulls, idle) = (Pulls::default(), |_: &Digest| false);
        let expects = |pulls: &Pulls| ["a", "b"].map(|text| pulls.expect(&digest(text), idle));
        pulls.begin(&digest("m"), || vec![digest("a"), digest("b"), digest("a")]);
        // By two clients.
        pulls.begin(&digest("m"), || panic!("it was read already"));
        pulls.begin(&digest("other"), || vec![digest("c")]);
        assert_eq!(expects(&pulls), [true, true]);
        pulls.go_on(&digest("a"));
        assert_eq!(expects(&pulls), [true, true]);
        pulls.go_on(&digest("a"));
        assert_eq!(expects(&pulls), [false, true]);
        pulls.go_on(&digest("b"));
        pulls.go_on(&digest("b"));
        assert_eq!(expects(&pulls), [false, false]);
        assert!(pulls.expect(&digest("c"), idle), "that one has not asked for anything yet");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_begins_once_and_of_something() {
        let pulls = Pulls::default();
        let one = |text: &str| vec![digest(text)];
        assert!(pulls.begin(&digest("m"), || one("a")));
        assert!(!pulls.begin(&digest("m"), || one("a")), "it is under way");
        for _ in 0..2 {
            pulls.go_on(&digest("a"));
        }
        assert!(pulls.begin(&digest("m"), || one("a")), "that one was over");
        for _ in 0..2 {
            assert!(!pulls.begin(&digest("index"), Vec::new), "hot indexes go out as often");
        }
        for number in 1..MOST_PULLS {
            assert!(pulls.begin(&digest(&number.to_string()), || one("b")));
        }
        assert!(!pulls.begin(&digest("one more"), || one("c")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_that_came_to_nothing_ends() {
        let pulls = Pulls::default();
        pulls.begin(&digest("m"), || vec![digest("a"), digest("b")]);
        pulls.go_on(&digest("a"));
        tokio::time::advance(PATIENCE).await;
        let reads_a = |blob: &Digest| *blob == digest("a");
        assert!(pulls.expect(&digest("b"), reads_a), "a is still going out");
        pulls.tidy(reads_a);
        assert!(!pulls.expect(&digest("b"), |_| false));
        tokio::time::advance(LONGEST).await;
        assert!(!pulls.expect(&digest("b"), reads_a), "others go on reading a");
        pulls.tidy(|_| false);
        assert!(pulls.lock().pulls.is_empty() && pulls.lock().of.is_empty());
    }
}
