use std::fmt;
use std::future::{Future, pending};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Refused, Terms};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Trace;

/// How urgent a request is. The order is the order in which they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A client waits.
    Foreground,
    /// What was served already is checked behind the client's back.
    Revalidation,
    /// Nobody waits: reading ahead, warming. It leaves the reserve of a budget alone.
    Background,
}

/// Whoever a request is made for: an IPv4 address, or the /64 network of an IPv6 one, which is what a client
/// may choose its addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddr(Option<IpAddr>);

/// On whose behalf, how urgently, since when, and whether it may be held. Cheap to clone; all clones are equally
/// urgent.
#[derive(Debug, Clone)]
pub struct Errand {
    pub(super) client: ClientAddr,
    pub(super) urgency: Urgency,
    pub(super) may_wait: bool,
    begun: Instant,
    /// Longer or shorter than `schedule.max_wait`.
    hold: Option<Duration>,
    patience: Duration,
    pub(super) trace: Trace,
    pub(super) terms: Option<Arc<Terms>>,
}

/// A priority that can rise: somebody joins work that nobody had waited for.
#[derive(Debug, Clone)]
pub struct Urgency(Arc<Level>);

/// What all clones share. Made for each request, of which few wait or ask an upstream, so it is small.
#[derive(Debug)]
struct Level {
    /// The place in [`Priority::ALL`].
    priority: AtomicU8,
    raised: Notify,
    /// By which account it last went upstream.
    account: Mutex<Option<String>>,
}

/// A busy connection or pace is over in this time, as a rule.
const MOMENT: Duration = Duration::from_secs(1);

impl Priority {
    /// All of them, the most urgent first.
    pub const ALL: [Priority; 3] = [Priority::Foreground, Priority::Revalidation, Priority::Background];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Foreground => "foreground",
            Priority::Revalidation => "revalidation",
            Priority::Background => "background",
        }
    }
}

impl ClientAddr {
    /// The mirror itself.
    pub const NOBODY: ClientAddr = ClientAddr(None);

    /// The client at `address`.
    pub fn of(address: IpAddr) -> ClientAddr {
        ClientAddr(Some(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
            address => address,
        }))
    }
}

impl Errand {
    /// For a client that waits.
    pub fn of(client: ClientAddr) -> Errand {
        Errand {
            client,
            urgency: Urgency::new(Priority::Foreground),
            may_wait: true,
            begun: Instant::now(),
            hold: None,
            patience: Duration::MAX,
            trace: Trace::default(),
            terms: None,
        }
    }

    /// For a client that waits so long for the head of an answer.
    #[must_use]
    pub fn within(self, patience: Duration) -> Errand {
        Errand { patience, ..self }
    }

    /// What is asked of upstreams for it is part of this span.
    #[must_use]
    pub fn traced(self, trace: Trace) -> Errand {
        Errand { trace, ..self }
    }

    /// Held for so long, whatever `schedule.max_wait` says.
    #[must_use]
    pub fn held_for(self, hold: Duration) -> Errand {
        Errand { hold: Some(hold), ..self }
    }

    /// When all its waits are over: they count together, but for a moment that each has in any case.
    pub(super) fn deadline(&self, max_wait: Duration) -> Instant {
        let hold = self.hold.unwrap_or(max_wait);
        (self.begun + hold).max(Instant::now() + hold.min(MOMENT))
    }

    /// How long the client waits for the head of an answer.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// For nobody in particular, without hurry.
    pub fn background() -> Errand {
        Errand::of(ClientAddr::NOBODY).at(Priority::Background)
    }

    /// On these terms, as long as nobody waits for it.
    #[must_use]
    pub fn on(self, terms: Option<Arc<Terms>>) -> Errand {
        Errand { terms, ..self }
    }

    /// The same client's, begun now and at this urgency, whatever becomes of the other.
    #[must_use]
    pub fn at(&self, priority: Priority) -> Errand {
        Errand { urgency: Urgency::new(priority), begun: Instant::now(), ..self.clone() }
    }

    /// With something to fall back on: refused at once where it would be held for budget.
    #[must_use]
    pub fn or_else(self) -> Errand {
        Errand { may_wait: false, ..self }
    }

    /// It goes upstream by this account.
    pub(super) fn goes_by(&self, account: Option<String>) {
        *self.urgency.account() = account;
    }

    /// By which account it last went upstream; `None` where it did not, since what it wanted was here or somebody else
    /// was fetching it.
    pub fn account(&self) -> Option<String> {
        self.urgency.account().clone()
    }

    /// Does `work`; where nobody waits for it, only while the house is not being stopped: else a stop would take as long as
    /// it may, and all that matters of such work goes on at the next start. Cancel-safe as `work` is.
    ///
    /// # Errors
    /// [`Refused::Stopping`].
    pub async fn unless_stopping<T>(
        &self,
        life: &Lifecycle,
        work: impl Future<Output = T>,
    ) -> Result<T, Refused> {
        let is_idle = || self.urgency.get() != Priority::Foreground;
        if !is_idle() {
            return Ok(work.await);
        }
        let idle_at_a_stop = async {
            life.stopping().await;
            if !is_idle() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = idle_at_a_stop => Err(Refused::Stopping),
            done = work => Ok(done),
        }
    }

    /// The handle by which it is made more urgent.
    pub fn urgency(&self) -> &Urgency {
        &self.urgency
    }
}

impl Urgency {
    pub(super) fn new(priority: Priority) -> Urgency {
        let (priority, raised) = (AtomicU8::new(priority as u8), Notify::new());
        Urgency(Arc::new(Level { priority, raised, account: Mutex::default() }))
    }

    fn account(&self) -> MutexGuard<'_, Option<String>> {
        self.0.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How urgent it is now.
    pub fn get(&self) -> Priority {
        Priority::ALL[usize::from(self.0.priority.load(Ordering::SeqCst))]
    }

    /// Makes it as urgent as `priority`; never less.
    pub fn raise(&self, priority: Priority) {
        if self.0.priority.fetch_min(priority as u8, Ordering::SeqCst) > priority as u8 {
            self.0.raised.notify_waiters();
        }
    }

    /// Waits until it is more urgent than `priority`. Cancel-safe.
    pub(super) async fn rises_above(&self, priority: Priority) -> Priority {
        loop {
            let mut raised = pin!(self.0.raised.notified());
            // From here on no raise is missed.
            raised.as_mut().enable();
            let now = self.get();
            if now < priority {
                return now;
            }
            raised.await;
        }
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("tidelock"),
            Some(IpAddr::V4(address)) => address.fmt(f),
            Some(IpAddr::V6(network)) => write!(f, "{network}/64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_by_what_they_cannot_choose() {
        let shown = |address: &str| ClientAddr::of(address.parse().unwrap()).to_string();
        assert_eq!(shown("192.0.2.7"), "192.0.2.7");
        assert_eq!(shown("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(shown("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(ClientAddr::NOBODY.to_string(), "tidelock");
    }

    #[test]
    fn urgency_only_rises() {
        let errand = Errand::background();
        errand.urgency().raise(Priority::Revalidation);
        errand.urgency().raise(Priority::Background);
        assert_eq!(errand.urgency().get(), Priority::Revalidation);
        assert_eq!(errand.at(Priority::Foreground).urgency().get(), Priority::Foreground);
        assert_eq!(errand.clone().urgency().get(), Priority::Revalidation);
    }
}
