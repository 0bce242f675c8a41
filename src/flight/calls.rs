use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Role;
use crate::lifecycle::Lifecycle;
use crate::scheduler::{Errand, Urgency};

/// One piece of work per key, however many ask: a tag check, a manifest, a proof.
///
/// The work is a task of its own, so that a client that goes away takes nothing with it (I3), and its outcome
/// goes to all who asked while it ran. Nothing is remembered beyond that. Work begins by looking whether its
/// outcome is there already: the asker may have looked just before an earlier run put it there.
#[derive(Debug)]
pub struct Calls<K, T> {
    under_way: Arc<Mutex<HashMap<K, Work<T>>>>,
    name: &'static str,
    life: Lifecycle,
}

/// Work under way, and the handle by which it is made more urgent.
#[derive(Debug)]
struct Work<T> {
    outcome: Pending<T>,
    urgency: Urgency,
}

/// How often an asker begins again who is not content with what came of others' work.
const MOST_TRIES: usize = 3;

type Pending<T> = watch::Receiver<Option<T>>;

/// By what work tells its outcome before it has ended: what remains to be done is nothing to those who wait.
#[derive(Debug)]
pub struct Early<T>(Arc<watch::Sender<Option<T>>>);

/// Takes the entry out when the work ends, also by a panic.
struct Entry<K: Eq + Hash, T> {
    under_way: Arc<Mutex<HashMap<K, Work<T>>>>,
    key: K,
}

impl<K, T> Calls<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// No work yet; its tasks will be called `name`.
    pub fn new(name: &'static str, life: &Lifecycle) -> Self {
        Calls { under_way: Arc::default(), name, life: life.clone() }
    }

    /// Joins the work for `key`, or begins `work` on this errand. Work that is joined becomes as urgent as whoever
    /// joins it. `None` when the work panicked.
    pub async fn call<F>(&self, key: K, errand: &Errand, work: impl FnOnce() -> F) -> Option<(T, Role)>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.call_early(key, errand, |_| work()).await
    }

    /// The same for work that may tell its outcome before it has ended. Until it has, whoever asks gets that at once.
    pub async fn call_early<F>(
        &self,
        key: K,
        errand: &Errand,
        work: impl FnOnce(Early<T>) -> F,
    ) -> Option<(T, Role)>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (mut outcome, role) = self.join(key, errand, work);
        let outcome = outcome.wait_for(Option::is_some).await.ok()?.clone();
        outcome.map(|outcome| (outcome, role))
    }

    /// The same for whoever is not content with an outcome of others' work that is `theirs` alone: then it is done
    /// anew, a few times at most.
    pub async fn insist<F>(
        &self,
        key: K,
        errand: &Errand,
        work: impl Fn() -> F,
        theirs: impl Fn(&T) -> bool,
    ) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        for _ in 1..MOST_TRIES {
            match self.call(key.clone(), errand, &work).await? {
                (outcome, Role::Follow) if theirs(&outcome) => {}
                (outcome, _) => return Some(outcome),
            }
        }
        self.call(key, errand, work).await.map(|(outcome, _)| outcome)
    }

    /// Begins `work` for `key` unless it is under way, and waits for nothing.
    pub fn begin<F>(&self, key: K, errand: &Errand, work: impl FnOnce() -> F)
    where
        F: Future<Output = T> + Send + 'static,
    {
        drop(self.join(key, errand, |_| work()));
    }

    /// What the work for `key` that is under way has told early.
    pub fn told(&self, key: &K) -> Option<T> {
        lock(&self.under_way).get(key)?.outcome.borrow().clone()
    }

    /// Waits until no work for `key` is under way, without beginning any.
    pub async fn ended(&self, key: &K) {
        let pending = lock(&self.under_way).get(key).map(|work| work.outcome.clone());
        if let Some(mut pending) = pending {
            while pending.changed().await.is_ok() {}
        }
    }

    fn join<F>(&self, key: K, errand: &Errand, work: impl FnOnce(Early<T>) -> F) -> (Pending<T>, Role)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut table = lock(&self.under_way);
        if let Some(Work { outcome, urgency }) = table.get(&key) {
            urgency.raise(errand.urgency().get());
            return (outcome.clone(), Role::Follow);
        }
        let (done, pending) = watch::channel(None);
        let urgency = errand.urgency().clone();
        table.insert(key.clone(), Work { outcome: pending.clone(), urgency });
        drop(table);
        let entry = Entry { under_way: Arc::clone(&self.under_way), key };
        let done = Arc::new(done);
        let work = work(Early(Arc::clone(&done)));
        self.life.spawn(self.name, async move {
            let outcome = work.await;
            drop(entry);
            done.send_replace(Some(outcome));
        });
        (pending, Role::Lead)
    }
}

impl<T> Early<T> {
    /// To all who wait, and to those who come before the work has ended.
    pub fn tell(&self, outcome: T) {
        self.0.send_replace(Some(outcome));
    }
}

impl<K: Eq + Hash, T> Drop for Entry<K, T> {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A table of receivers is never half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn many_ask_and_one_works() {
        let calls = Calls::new("test", &Lifecycle::default());
        let (worked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let errand = Errand::background();
        let ask = || {
            let (worked, gate) = (Arc::clone(&worked), Arc::clone(&gate));
            calls.call("key", &errand, move || async move {
                gate.notified().await;
                worked.fetch_add(1, Ordering::SeqCst)
            })
        };
        // The first to ask goes away at once; the work goes on.
        calls.begin("key", &errand, || {
            let (worked, gate) = (Arc::clone(&worked), Arc::clone(&gate));
            async move {
                gate.notified().await;
                worked.fetch_add(1, Ordering::SeqCst)
            }
        });
        let waiters: Vec<_> = (0..20).map(|_| ask()).collect();
        gate.notify_one();
        for outcome in futures_util::future::join_all(waiters).await {
            assert_eq!(outcome, Some((0, Role::Follow)));
        }
        assert_eq!(worked.load(Ordering::SeqCst), 1);
        gate.notify_one();
        assert_eq!(ask().await, Some((1, Role::Lead)), "nothing is remembered");
    }

    #[tokio::test]
    async fn what_is_told_early_is_had_by_all_until_the_work_has_ended() {
        let calls = Calls::new("test", &Lifecycle::default());
        let (gate, errand) = (Arc::new(Notify::new()), Errand::background());
        let ask = || {
            let gate = Arc::clone(&gate);
            calls.call_early("key", &errand, move |early| async move {
                early.tell(1);
                gate.notified().await;
                1
            })
        };
        assert_eq!(calls.told(&"key"), None);
        calls.ended(&"key").await;
        assert_eq!(ask().await, Some((1, Role::Lead)));
        assert_eq!(calls.told(&"key"), Some(1));
        assert_eq!(ask().await, Some((1, Role::Follow)));
        let mut ended = pin!(calls.ended(&"key"));
        assert!(futures_util::poll!(ended.as_mut()).is_pending());
        gate.notify_one();
        ended.await;
        assert_eq!(calls.told(&"key"), None);
    }

    #[tokio::test]
    async fn who_insists_begins_anew_with_all_others_who_do() {
        // The one who begins the second one has its answer, be it a refusal.
        for (refusals, runs, granted) in [(1, 2, 20), (2, 3, 19), (usize::MAX, MOST_TRIES, 0)] {
            let calls = Calls::new("test", &Lifecycle::default());
            let worked = Arc::new(AtomicUsize::new(0));
            let errand = Errand::background();
            let work = || {
                let worked = Arc::clone(&worked);
                async move {
                    tokio::task::yield_now().await;
                    worked.fetch_add(1, Ordering::SeqCst) >= refusals
                }
            };
            calls.begin("key", &errand, work);
            let insist = || calls.insist("key", &errand, work, |is_granted: &bool| !is_granted);
            let outcomes = futures_util::future::join_all((0..20).map(|_| insist())).await;
            let came = outcomes.iter().filter(|outcome| **outcome == Some(true)).count();
            assert_eq!((worked.load(Ordering::SeqCst), came), (runs, granted), "{refusals} refusals");
        }
    }

    #[tokio::test]
    async fn a_panic_frees_the_key() {
        let calls: Calls<u8, u8> = Calls::new("test", &Lifecycle::default());
        let errand = Errand::background();
        assert_eq!(calls.call(1, &errand, || async { panic!("as it may happen") }).await, None);
        assert_eq!(calls.call(1, &errand, || async { 7 }).await, Some((7, Role::Lead)));
    }
}
