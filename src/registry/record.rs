use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http::{Request, Response};

use super::error::{Error, Told};
use super::metrics::{NOBODY, Outcome, RegistryMetrics};
use super::response::{Answer, Payload};
use crate::lifecycle::now;
use crate::mirror::Served;
use crate::oci::Kind;
use crate::routing::Target;
use crate::scheduler::Errand;
use crate::section::Piece;
use crate::server::{Body, Peer};
use crate::telemetry::{Journal, Trace, Trouble};

/// What is known of one request: the one line it leaves in the log and all of its metrics come from here, when
/// the last byte of the answer has gone or the client has.
pub(super) struct Record {
    metrics: RegistryMetrics,
    journal: Journal,
    begun: Instant,
    method: http::Method,
    path: String,
    client: Option<SocketAddr>,
    target: Option<Target>,
    errand: Option<Errand>,
    trace: Trace,
    kind: Option<Kind>,
    outcome: Option<Outcome>,
    reason: Option<&'static str>,
    error: Option<String>,
    status: u16,
    sent: u64,
    expected: u64,
    first_byte: Option<Duration>,
}

/// Of a path from outside, so many bytes go into the log.
const LONGEST_PATH: usize = 300;

impl Record {
    pub(super) fn begin<B>(
        metrics: &RegistryMetrics,
        journal: &Journal,
        request: &Request<B>,
        trace: Trace,
    ) -> Record {
        Record {
            metrics: metrics.clone(),
            journal: journal.clone(),
            begun: Instant::now(),
            method: request.method().clone(),
            path: shortened(request.uri().path()),
            client: request.extensions().get::<Peer>().map(|peer| peer.addr),
            target: None,
            errand: None,
            trace,
            kind: None,
            outcome: None,
            reason: None,
            error: None,
            status: 0,
            sent: 0,
            expected: 0,
            first_byte: None,
        }
    }

    pub(super) fn kind(&mut self, kind: Kind) {
        self.kind = Some(kind);
    }

    pub(super) fn errand(&mut self, errand: &Errand) {
        self.errand = Some(errand.clone());
    }

    /// Its span.
    pub(super) fn trace(&self) -> &Trace {
        &self.trace
    }

    pub(super) fn target(&mut self, target: &Target) {
        self.target = Some(target.clone());
    }

    pub(super) fn served(&mut self, served: Served) {
        self.outcome = Some(Outcome::Served(served));
    }

    pub(super) fn failed(&mut self, error: &Error, told: &Told) {
        self.outcome = Some(match told.reason {
            "negative" => Outcome::Negative,
            "denied" | "no_route" => Outcome::Denied,
            _ => Outcome::Error,
        });
        self.reason = Some(told.reason);
        self.error = Some(error.to_string());
    }

    /// Turns the answer into a response that ends this record when it ends.
    pub(super) fn seal(mut self, answer: Answer) -> Response<Body> {
        let Answer { status, headers, payload } = answer;
        self.status = status.as_u16();
        let body = match payload {
            Payload::Empty => Body::empty(),
            Payload::Bytes(bytes) => {
                (self.sent, self.expected) = (bytes.len() as u64, bytes.len() as u64);
                self.first_byte = Some(self.begun.elapsed());
                Body::full(bytes)
            }
            Payload::Stream(stream, length) => {
                self.expected = length;
                let counted = stream.inspect(move |piece| self.passed(piece.as_ref().map(Piece::len)));
                Body::stream(counted, length)
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    fn passed(&mut self, piece: Result<u64, &std::io::Error>) {
        match piece {
            Ok(length) => {
                self.first_byte.get_or_insert_with(|| self.begun.elapsed());
                self.sent += length;
            }
            Err(error) => self.error = Some(error.to_string()),
        }
    }

    fn count(&self) {
        let (Some(kind), Some(outcome)) = (self.kind.map(Kind::as_str), self.outcome) else { return };
        let upstream = self.target.as_ref().map_or(NOBODY, |target| target.repository.registry.as_str());
        self.metrics.requests.with_label_values(&[upstream, kind, outcome.as_str()]).inc();
        if let Outcome::Served(served) = outcome {
            self.metrics.sent.with_label_values(&[upstream, served.as_str()]).inc_by(self.sent);
        }
        let labels = [kind, outcome.as_str()];
        self.metrics.duration.with_label_values(&labels).observe(self.begun.elapsed().as_secs_f64());
        if let Some(first) = self.first_byte {
            self.metrics.first_byte.with_label_values(&labels).observe(first.as_secs_f64());
        }
    }

    /// What the operator should look at. That there is no such image is what many clients ask to hear.
    fn tell(&self) {
        let Some(reason) = self.reason.filter(|_| self.status != 404 && self.status != 0) else { return };
        let message = self.error.clone().unwrap_or_else(|| {
            format!(
                "{} of {} bytes were sent, then the client or the upstream was gone",
                self.sent, self.expected
            )
        });
        self.journal.trouble(Trouble {
            at: now(),
            client: self.client.map(|client| client.ip()),
            what: format!("{} {}", self.method, self.path),
            status: self.status,
            reason,
            message,
            times: 1,
        });
    }

    /// Ends the span.
    fn describe(&self) {
        let trace = &self.trace;
        trace.rename(|| format!("{} {}", self.method, self.kind.map_or("/v2/", Kind::as_str)));
        trace.note("http.request.method", || Some(self.method.to_string()));
        trace.note("url.path", || Some(self.path.clone()));
        trace.note("http.response.status_code", || Some(i64::from(self.status)));
        trace.note("client.address", || self.client.map(|client| client.ip().to_string()));
        trace
            .note("tidelock.repository", || self.target.as_ref().map(|target| target.repository.to_string()));
        trace.note("tidelock.outcome", || self.outcome.map(Outcome::as_str));
        trace.note("tidelock.account", || self.errand.as_ref().and_then(Errand::account));
        trace.note("tidelock.sent_bytes", || i64::try_from(self.sent).ok());
        trace.note("error.type", || self.reason);
        // What a client did wrong is no failure of ours (semantic conventions for HTTP servers).
        let failed = self.status == 0 || self.status >= 500 || self.sent < self.expected;
        let error = self.error.as_deref().or(self.reason).filter(|_| failed);
        trace.end(error);
    }

    fn log(&self) {
        let line = || {
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            (self.first_byte.map(millis), millis(self.begun.elapsed()))
        };
        let (first_ms, ms) = line();
        let repository = self.target.as_ref().map(|target| tracing::field::display(&target.repository));
        let client = self.client.map(tracing::field::display);
        let account = self.errand.as_ref().and_then(Errand::account);
        macro_rules! write_line {
            ($level:ident) => {
                tracing::$level!(
                    method = %self.method,
                    path = self.path,
                    status = self.status,
                    outcome = self.outcome.map_or("ok", Outcome::as_str),
                    repository,
                    client,
                    account,
                    sent = self.sent,
                    first_ms,
                    ms,
                    reason = self.reason,
                    error = self.error,
                    "request"
                )
            };
        }
        if self.status >= 500 || (self.error.is_some() && self.status < 400) {
            write_line!(warn);
        } else {
            write_line!(info);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.status == 0 {
            // The client went away before there was an answer, or the handler panicked.
            self.outcome = Some(Outcome::Error);
            self.reason = Some("abandoned");
        } else if self.sent < self.expected && self.reason.is_none() {
            self.reason = Some("cut_short");
        }
        self.count();
        self.tell();
        self.describe();
        self.log();
    }
}

/// As much of it as goes into the log.
fn shortened(path: &str) -> String {
    path[..path.floor_char_boundary(LONGEST_PATH)].to_owned()
}
