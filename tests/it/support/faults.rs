//! What can go wrong on the way, as words that a test applies to chosen requests.
//!
//! A test says *which* requests ([`Match`]), *how often* ([`Times`]) and *what* ([`Fault`]):
//! `registry.fault(Match::blob(digest), Times::Once, Fault::CutAfter(1000))`. Of the faults that
//! match a request the first one added is used; those that only delay or decorate
//! ([`Fault::Latency`], [`Fault::HoldHead`], [`Fault::Headers`]) are used on top of it.
//!
//! Byte counts are of the body that is served: of a 206 that is the range, not the blob.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::site::Call;

pub use super::gate::Gate;

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Waits before the headers.
    Latency(Duration),
    /// Waits before the headers until the gate opens.
    HoldHead(Gate),
    /// Sets these headers on the answer, over those it has.
    Headers(Vec<(String, String)>),
    /// Closes the connection without any answer.
    HangUp,
    /// Writes these bytes in place of a HTTP answer and closes the connection. Not over TLS.
    Raw(String),
    /// Sends the headers and then nothing, ever.
    Stall,
    /// Sends this many bytes of the body and then nothing, ever.
    StallAfter(usize),
    /// Closes the connection after this many bytes, though Content-Length promised them all.
    CutAfter(usize),
    /// The same by a TCP reset. What the client had not yet read may be lost.
    ResetAfter(usize),
    /// Ends a chunked body cleanly after this many bytes: nothing in the framing tells.
    Truncate(usize),
    /// Sends the whole body and this many bytes more, chunked.
    Extra(usize),
    /// Flips a bit of the byte in the middle.
    WrongBytes,
    /// Flips a bit of this byte of the body.
    WrongBytesAt(usize),
    /// Announces 100 bytes more than there are and closes after the real ones.
    WrongLength,
    /// Sends `chunk` bytes, waits `every`, and so on.
    Slow {
        /// Bytes at a time.
        chunk: usize,
        /// The pause after each.
        every: Duration,
    },
    /// The same for all answers on this line together: one after the other.
    InTurn {
        /// Bytes at a time.
        chunk: usize,
        /// The pause after each.
        every: Duration,
        /// Held by whoever's turn it is.
        line: Arc<Semaphore>,
    },
    /// Answers this status, body and headers in place of what was asked for.
    Status(u16, String, Vec<(String, String)>),
    /// Answers 200 with a web page, as a captive portal does.
    Html,
    /// Sends `after` bytes of the body, then waits until the gate opens, then goes on.
    Hold {
        /// What holds it.
        gate: Gate,
        /// Bytes that pass first.
        after: usize,
    },
}

/// Which requests a fault applies to; every part that is set must fit.
#[derive(Clone, Debug, Default)]
pub struct Match {
    method: Option<String>,
    fragments: Vec<String>,
    host: Option<String>,
    ranged: Option<bool>,
    authorized: Option<bool>,
}

/// How many of the matching requests a fault applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// The first one.
    Once,
    /// The first so many.
    N(usize),
    /// Only this one, counted from 1.
    Nth(usize),
    /// All but the first so many.
    After(usize),
    /// Every one.
    Always,
}

/// A fault in force: how often it struck, and a way to lift it.
#[derive(Clone)]
pub struct InForce {
    id: usize,
    faults: Faults,
}

/// The faults of one fake.
#[derive(Clone, Default)]
pub(super) struct Faults(Arc<Mutex<Vec<Rule>>>);

/// The faults that one request meets.
#[derive(Default)]
pub(super) struct Struck {
    /// Delays and decorations, in order.
    pub(super) extras: Vec<Fault>,
    /// What becomes of the answer.
    pub(super) main: Option<Fault>,
}

struct Rule {
    which: Match,
    times: Times,
    fault: Fault,
    matched: usize,
    struck: usize,
    lifted: bool,
}

impl Fault {
    /// A bare status with an OCI error body of that meaning.
    pub fn status(code: u16) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"UNKNOWN","message":"scripted {code}"}}]}}"#);
        Self::Status(code, body, vec![("content-type".into(), "application/json".into())])
    }

    /// Docker Hub's answer once the pull quota is spent: JSON, no Retry-After.
    pub fn quota() -> Self {
        let message = "You have reached your unauthenticated pull rate limit. \
                       https://www.docker.com/increase-rate-limit";
        let body = format!(r#"{{"errors":[{{"code":"TOOMANYREQUESTS","message":"{message}"}}]}}"#);
        Self::Status(429, body, vec![("content-type".into(), "application/json".into())])
    }

    /// Docker Hub's abuse limit: plain text, Retry-After, and the connection is closed.
    pub fn abuse(retry_after_seconds: u64) -> Self {
        let headers = vec![
            ("content-type".into(), "text/plain".into()),
            ("retry-after".into(), retry_after_seconds.to_string()),
            ("connection".into(), "close".into()),
        ];
        Self::Status(429, "Too Many Requests (HAP429).\n".into(), headers)
    }

    /// The abuse limit as it was seen on the wire: every line ends in a bare line feed.
    pub fn abuse_with_bare_line_feeds(retry_after_seconds: u64) -> Self {
        let body = "Too Many Requests (HAP429).\n";
        Self::Raw(format!(
            "HTTP/1.1 429 Too Many Requests\ncontent-length: {}\nretry-after: {retry_after_seconds}\n\
             content-type: text/plain\nconnection: close\n\n{body}",
            body.len()
        ))
    }

    /// Holds the body at its first byte; the headers go out.
    pub fn hold(gate: &Gate) -> Self {
        Self::Hold { gate: gate.clone(), after: 0 }
    }

    /// Holds the body after `after` bytes.
    pub fn hold_after(gate: &Gate, after: usize) -> Self {
        Self::Hold { gate: gate.clone(), after }
    }

    /// Holds the whole answer.
    pub fn hold_head(gate: &Gate) -> Self {
        Self::HoldHead(gate.clone())
    }

    /// Sets one header.
    pub fn header(name: &str, value: &str) -> Self {
        Self::Headers(vec![(name.to_owned(), value.to_owned())])
    }

    fn is_extra(&self) -> bool {
        matches!(self, Self::Latency(_) | Self::HoldHead(_) | Self::Headers(_))
    }
}

impl Match {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests whose path holds this piece.
    pub fn path(fragment: &str) -> Self {
        Self::any().and_path(fragment)
    }

    /// GETs of this blob, at the registry or its CDN.
    pub fn blob(digest: &str) -> Self {
        Self::path(&format!("/blobs/{digest}")).method("GET")
    }

    /// GETs of any blob.
    pub fn blobs() -> Self {
        Self::path("/blobs/").method("GET")
    }

    /// GETs of this manifest, by tag or digest.
    pub fn manifest(reference: &str) -> Self {
        Self::path(&format!("/manifests/{reference}")).method("GET")
    }

    /// GETs and HEADs of any manifest.
    pub fn manifests() -> Self {
        Self::path("/manifests/")
    }

    /// Only this method.
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Any method again.
    pub fn any_method(mut self) -> Self {
        self.method = None;
        self
    }

    /// The path must hold this piece too.
    pub fn and_path(mut self, fragment: &str) -> Self {
        self.fragments.push(fragment.to_owned());
        self
    }

    /// Only requests meant for this host.
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// Only requests with a Range header (true) or without (false).
    pub fn ranged(mut self, ranged: bool) -> Self {
        self.ranged = Some(ranged);
        self
    }

    /// Only requests with an Authorization header (true) or without (false).
    pub fn authorized(mut self, authorized: bool) -> Self {
        self.authorized = Some(authorized);
        self
    }

    fn fits(&self, call: &Call) -> bool {
        self.method.as_ref().is_none_or(|method| method == call.method.as_str())
            && self.fragments.iter().all(|fragment| call.path.contains(fragment))
            && self.host.as_ref().is_none_or(|host| *host == call.host)
            && self.ranged.is_none_or(|ranged| ranged == call.headers.contains_key("range"))
            && self.authorized.is_none_or(|with| with == call.headers.contains_key("authorization"))
    }
}

impl Times {
    /// The first one.
    pub fn once() -> Self {
        Self::Once
    }

    /// Every one.
    pub fn always() -> Self {
        Self::Always
    }

    /// Whether the `nth` match (from 1) is struck.
    fn covers(self, nth: usize) -> bool {
        match self {
            Self::Once => nth == 1,
            Self::N(first) => nth <= first,
            Self::Nth(only) => nth == only,
            Self::After(spared) => nth > spared,
            Self::Always => true,
        }
    }
}

impl InForce {
    /// How many requests it struck.
    pub fn hits(&self) -> usize {
        self.faults.rules()[self.id].struck
    }

    /// Ends it.
    pub fn lift(&self) {
        self.faults.rules()[self.id].lifted = true;
    }
}

impl Faults {
    pub(super) fn add(&self, which: Match, times: Times, fault: Fault) -> InForce {
        let mut rules = self.rules();
        rules.push(Rule { which, times, fault, matched: 0, struck: 0, lifted: false });
        InForce { id: rules.len() - 1, faults: self.clone() }
    }

    /// Lifts every fault; the handles given out stay good.
    pub(super) fn lift_all(&self) {
        self.rules().iter_mut().for_each(|rule| rule.lifted = true);
    }

    /// What this request meets; counts it against every rule it matches.
    pub(super) fn strike(&self, call: &Call) -> Struck {
        let mut struck = Struck::default();
        for rule in self.rules().iter_mut().filter(|rule| !rule.lifted && rule.which.fits(call)) {
            if !rule.fault.is_extra() && struck.main.is_some() {
                continue;
            }
            rule.matched += 1;
            if !rule.times.covers(rule.matched) {
                continue;
            }
            rule.struck += 1;
            match rule.fault.is_extra() {
                true => struck.extras.push(rule.fault.clone()),
                false => struck.main = Some(rule.fault.clone()),
            }
        }
        struck
    }

    fn rules(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.0.lock().expect("no test panics while it holds the faults")
    }
}
