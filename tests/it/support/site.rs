//! One web site: the log, the faults and the function that answers. What it listens on is
//! [`super::serving`]'s business; what it answers, that of the registry, the CDN or the token server.
//!
//! A request is logged, then delayed, then answered with a plain [`Answer`] in memory, and only then
//! the faults are worked into how that answer goes over the wire.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::Semaphore;

use super::faults::{Fault, Faults, InForce, Match, Times};
use super::gate::Gate;
use super::images::random_bytes;
use super::log::{Entry, Log, Record};
use super::socket::Control;

/// The body of every answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How much is handed to the connection at once: small enough that tests see streaming.
const PIECE: usize = 64 * 1024;

/// A request, read to its end.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) host: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) tls: bool,
    pub(super) connection: usize,
}

/// An answer as it would be without faults.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Whose credentials were good.
    pub(super) account: Option<String>,
    /// Leaves Content-Length out.
    pub(super) chunked: bool,
}

/// What a fake web site is made of. The registry, the CDN and the token server deref to it.
pub struct Site {
    log: Log,
    faults: Faults,
    answer: Box<Answering>,
}

type Answering = dyn Fn(Call) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync;

/// What happens to the body, in order.
enum Step {
    Data(Bytes),
    Pause(Duration),
    Turn(Duration, Arc<Semaphore>),
    Gate(Gate),
    /// Nothing more, ever.
    Stall,
    Close,
    Reset,
}

/// An answer with its faults worked in.
struct Script {
    status: u16,
    headers: HeaderMap,
    steps: Vec<Step>,
}

impl Site {
    pub(super) fn new<F, Fut>(answer: F) -> Arc<Self>
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let answer: Box<Answering> = Box::new(move |call| Box::pin(answer(call)));
        Arc::new(Self { log: Log::default(), faults: Faults::default(), answer })
    }

    /// The requests so far and how to count them.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Record> {
        self.log.requests()
    }

    /// How many requests had this method and this piece in their path.
    pub fn count(&self, method: &str, path_fragment: &str) -> usize {
        self.log.count(method, path_fragment)
    }

    /// How many manifest GETs there were: what Docker Hub bills.
    pub fn counted(&self) -> usize {
        self.log.counted()
    }

    /// How many of them this account paid for; `None` for anonymous clients.
    pub fn counted_for(&self, account: Option<&str>) -> usize {
        self.log.counted_for(account)
    }

    /// How many GETs asked for this blob.
    pub fn blob_gets(&self, digest: &str) -> usize {
        self.log.blob_gets(digest)
    }

    /// How many requests there were.
    pub fn total(&self) -> usize {
        self.log.total()
    }

    /// Forgets the requests so far.
    pub fn clear(&self) {
        self.log.clear();
    }

    /// Lets `fault` happen to matching requests from now on.
    pub fn fault(&self, which: Match, times: Times, fault: Fault) -> InForce {
        self.faults.add(which, times, fault)
    }

    /// Ends every fault.
    pub fn lift_faults(&self) {
        self.faults.lift_all();
    }

    /// The whole life of one request.
    pub(super) async fn serve(&self, call: Call, control: Arc<Control>) -> Response<Body> {
        let entry = self.log.enter(call.record());
        let struck = self.faults.strike(&call);
        for delay in &struck.extras {
            match delay {
                Fault::Latency(pause) => tokio::time::sleep(*pause).await,
                Fault::HoldHead(gate) => gate.pass().await,
                _ => {}
            }
        }
        match &struck.main {
            Some(Fault::HangUp) => {
                control.close();
                return std::future::pending().await;
            }
            Some(Fault::Raw(bytes)) => {
                control.babble(bytes.as_bytes());
                return std::future::pending().await;
            }
            _ => {}
        }
        let head_only = call.method == Method::HEAD;
        let mut answer = match &struck.main {
            Some(Fault::Status(code, body, headers)) => Answer::scripted(*code, body, headers),
            Some(Fault::Html) => Answer::html(),
            _ => (self.answer)(call).await,
        };
        for extra in struck.extras {
            if let Fault::Headers(headers) = extra {
                headers.iter().for_each(|(name, value)| answer.set(name, value));
            }
        }
        entry.answered(answer.status, answer.account.clone());
        Script::write(answer, struck.main, head_only).respond(entry, control)
    }
}

impl Call {
    /// A header's value, empty when absent.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The values of a query parameter, decoded.
    pub(super) fn params(&self, name: &str) -> Vec<String> {
        let pairs = url::form_urlencoded::parse(self.query.as_bytes());
        pairs.filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    }

    fn record(&self) -> Record {
        Record {
            method: self.method.to_string(),
            path: self.path.clone(),
            query: self.query.clone(),
            host: self.host.clone(),
            headers: self.headers.clone(),
            at: tokio::time::Instant::now(),
            tls: self.tls,
            connection: self.connection,
            status: None,
            account: None,
            sent: 0,
            finished: false,
        }
    }
}

impl Answer {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: HeaderMap::new(), body: Bytes::new(), account: None, chunked: false }
    }

    /// An error in the form of the distribution specification.
    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
        Self::new(status).with("content-type", "application/json").body(body.to_string())
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        let name = HeaderName::try_from(name).expect("a test sets a valid header name");
        self.headers.insert(name, HeaderValue::from_str(value).expect("a test sets a valid header value"));
    }

    fn scripted(status: u16, body: &str, headers: &[(String, String)]) -> Self {
        let answer = Self::new(status).body(body.to_owned());
        headers.iter().fold(answer, |answer, (name, value)| answer.with(name, value))
    }

    pub(super) fn html() -> Self {
        let page = "<!DOCTYPE html><html><body>Please sign in to this network.</body></html>";
        Self::new(200).with("content-type", "text/html; charset=utf-8").body(page)
    }
}

impl Script {
    fn write(answer: Answer, fault: Option<Fault>, head_only: bool) -> Self {
        let Answer { status, mut headers, body, chunked, .. } = answer;
        let mut announced = (!chunked).then_some(body.len());
        let steps = match fault {
            Some(fault) => fault_steps(fault, body, &mut announced),
            None => pieces(body),
        };
        let bodiless = status == 304 || status == 204;
        if let Some(len) = announced.filter(|_| !bodiless) {
            headers.entry("content-length").or_insert(HeaderValue::from(len));
        }
        Self { status, headers, steps: if head_only || bodiless { vec![] } else { steps } }
    }

    fn respond(self, entry: Entry, control: Arc<Control>) -> Response<Body> {
        let body = if self.steps.is_empty() {
            entry.finished();
            Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
        } else {
            played(self.steps, entry, control)
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status.try_into().expect("a test scripts a valid status");
        *response.headers_mut() = self.headers;
        response
    }
}

/// How a fault changes the way `body` goes out; `announced` is the Content-Length.
fn fault_steps(fault: Fault, body: Bytes, announced: &mut Option<usize>) -> Vec<Step> {
    let upto = |n: usize| body.slice(..n.min(body.len()));
    match fault {
        Fault::Stall => vec![Step::Stall],
        Fault::StallAfter(n) => then(pieces(upto(n)), Step::Stall),
        Fault::CutAfter(n) => then(pieces(upto(n)), Step::Close),
        Fault::ResetAfter(n) => then(pieces(upto(n)), Step::Reset),
        Fault::WrongBytes => pieces(flipped(&body, body.len() / 2)),
        Fault::WrongBytesAt(offset) => pieces(flipped(&body, offset)),
        Fault::Truncate(n) => {
            *announced = None;
            // An empty pause keeps even a body cut to nothing a chunked one.
            then(pieces(upto(n)), Step::Pause(Duration::ZERO))
        }
        Fault::Extra(n) => {
            *announced = None;
            then(pieces(body), Step::Data(random_bytes(0xE, n)))
        }
        Fault::WrongLength => {
            *announced = Some(body.len() + 100);
            then(pieces(body), Step::Close)
        }
        Fault::Slow { chunk, every } => {
            cut(body, chunk).into_iter().flat_map(|piece| [Step::Data(piece), Step::Pause(every)]).collect()
        }
        Fault::InTurn { chunk, every, line } => cut(body, chunk)
            .into_iter()
            .flat_map(|piece| [Step::Turn(every, Arc::clone(&line)), Step::Data(piece)])
            .collect(),
        Fault::Hold { gate, after } => {
            let rest = body.slice(after.min(body.len())..);
            let mut steps = then(pieces(upto(after)), Step::Gate(gate));
            steps.extend(pieces(rest));
            steps
        }
        _ => pieces(body),
    }
}

/// Plays the steps as a body, one after the other.
fn played(steps: Vec<Step>, entry: Entry, control: Arc<Control>) -> Body {
    let start = (steps.into_iter(), entry, control);
    let frames = stream::unfold(start, |(mut steps, entry, control)| async move {
        loop {
            match steps.next() {
                None => {
                    entry.finished();
                    return None;
                }
                Some(Step::Data(bytes)) => {
                    entry.sent(bytes.len());
                    // With a Content-Length nobody asks for the end: the last piece is the end.
                    if steps.len() == 0 {
                        entry.finished();
                    }
                    return Some((Ok(Frame::data(bytes)), (steps, entry, control)));
                }
                Some(Step::Pause(pause)) => tokio::time::sleep(pause).await,
                Some(Step::Turn(pause, line)) => {
                    let _turn = line.acquire().await;
                    tokio::time::sleep(pause).await;
                }
                Some(Step::Gate(gate)) => gate.pass().await,
                Some(Step::Stall) => std::future::pending().await,
                Some(Step::Close) => {
                    control.close();
                    std::future::pending().await
                }
                Some(Step::Reset) => {
                    control.reset();
                    std::future::pending().await
                }
            }
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

fn pieces(body: Bytes) -> Vec<Step> {
    cut(body, PIECE).into_iter().map(Step::Data).collect()
}

fn cut(mut body: Bytes, len: usize) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while !body.is_empty() {
        pieces.push(body.split_to(len.clamp(1, body.len())));
    }
    pieces
}

fn then(mut steps: Vec<Step>, last: Step) -> Vec<Step> {
    steps.push(last);
    steps
}

fn flipped(body: &Bytes, offset: usize) -> Bytes {
    let mut bytes = body.to_vec();
    if let Some(byte) = bytes.get_mut(offset) {
        *byte ^= 1;
    }
    bytes.into()
}
