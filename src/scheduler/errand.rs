use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use tokio::sync::watch;

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

/// On whose behalf, how urgently, and whether it may be held. Cheap to clone; all clones are equally urgent.
#[derive(Debug, Clone)]
pub struct Errand {
    pub(super) client: ClientAddr,
    pub(super) urgency: Urgency,
    pub(super) may_wait: bool,
}

/// A priority that can rise: somebody joins work that nobody had waited for.
#[derive(Debug, Clone)]
pub struct Urgency(watch::Sender<Priority>);

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
        Errand { client, urgency: Urgency::new(Priority::Foreground), may_wait: true }
    }

    /// For nobody in particular, without hurry.
    pub fn background() -> Errand {
        Errand::of(ClientAddr::NOBODY).at(Priority::Background)
    }

    /// The same client's, at this urgency from now on, whatever becomes of the other.
    #[must_use]
    pub fn at(&self, priority: Priority) -> Errand {
        Errand { urgency: Urgency::new(priority), ..self.clone() }
    }

    /// With something to fall back on: refused at once where it would be held for budget.
    #[must_use]
    pub fn or_else(self) -> Errand {
        Errand { may_wait: false, ..self }
    }

    /// Whether it may be held for budget.
    pub fn may_wait(&self) -> bool {
        self.may_wait
    }

    /// The handle by which it is made more urgent.
    pub fn urgency(&self) -> &Urgency {
        &self.urgency
    }
}

impl Urgency {
    fn new(priority: Priority) -> Urgency {
        Urgency(watch::Sender::new(priority))
    }

    /// How urgent it is now.
    pub fn get(&self) -> Priority {
        *self.0.borrow()
    }

    /// Makes it as urgent as `priority`; never less.
    pub fn raise(&self, priority: Priority) {
        self.0.send_if_modified(|now| std::mem::replace(now, priority.min(*now)) > priority);
    }

    pub(super) fn watch(&self) -> watch::Receiver<Priority> {
        self.0.subscribe()
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
