//! A blob on its way, taken up again where it breaks off.
//!
//! ```text
//! Flowing ──▶ Complete
//!  │    ▲
//!  ▼    │ Range from where it broke: fresh login, fresh redirect, the next endpoint if need be
//! Broken ──▶ BrokenOff (too often without a byte of progress)
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

use super::asking::{Answer, Ask};
use super::placing::{self, Placed, span, whole_length};
use super::wire::root;
use super::{Client, Error};
use crate::backoff::Backoff;
use crate::oci::Digest;
use crate::scheduler::{Access, Lease};

/// A blob that is being fetched. Holds its lease until dropped.
pub struct Transfer {
    client: Arc<Client>,
    lease: Lease,
    content: Content,
    offset: u64,
    /// Where the bytes come from now; `None` when that broke off, or there is nothing more to come.
    flow: Option<Flow>,
    /// The endpoint that is asked first when the flow breaks.
    endpoint: usize,
    /// Those that bytes came from.
    sources: Vec<usize>,
    patience: Patience,
    /// It is about to go on elsewhere in the blob.
    has_turned: bool,
    /// Bytes that came and are not paid for.
    owed: u64,
}

/// Which blob.
pub(super) struct Content {
    pub(super) ask: Ask,
    pub(super) digest: Digest,
    /// Its length, where known.
    pub(super) total: Option<u64>,
    /// Where what is wanted of it ends, where known.
    pub(super) end: Option<u64>,
}

struct Flow {
    body: Incoming,
    /// Where it ends, where known.
    end: Option<u64>,
    /// So many bytes come again that are there already.
    skip: u64,
    /// New bytes so far.
    progress: u64,
}

/// A flow that has just begun; `None` where it turned out that nothing is missing.
pub(super) struct Opened {
    flow: Option<Flow>,
    total: Option<u64>,
    endpoint: usize,
}

/// How often it is tried again.
struct Patience {
    backoff: Backoff,
    /// Since the last byte of progress.
    attempts: u32,
    resumes: u32,
}

/// What came of waiting for the next bytes.
enum Piece {
    Data(Bytes),
    End,
    Broken(String),
}

/// Without a byte of progress in between.
const MOST_ATTEMPTS: u32 = 5;
/// Whatever the progress: a line that breaks so often would be quicker by post.
const MOST_RESUMES: u32 = 1000;
/// A flow that brought less than this breaks again soon: the next one is waited for.
const FAIR_PROGRESS: u64 = 64 << 10;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The longest that a pause which an upstream asked for, or one that does not answer, is waited out in the midst of a
/// blob.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the end of a body that is complete already is waited for.
const PATIENCE_FOR_THE_END: Duration = Duration::from_secs(1);

impl Transfer {
    /// What is kept may be all of the blob: nothing is opened then.
    pub(super) fn new(
        client: Arc<Client>,
        lease: Lease,
        content: Content,
        from: u64,
        opened: Opened,
    ) -> Transfer {
        let (patience, endpoint) = (Patience::new(), lease.endpoint());
        let mut transfer = Transfer {
            client,
            lease,
            content,
            offset: from,
            flow: None,
            endpoint,
            sources: Vec::new(),
            patience,
            has_turned: false,
            owed: 0,
        };
        transfer.take_up(opened);
        transfer
    }

    /// The length of the whole blob, where known.
    pub fn total(&self) -> Option<u64> {
        self.content.total
    }

    /// Where the next byte belongs.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where what is wanted of it ends, where known.
    pub fn end(&self) -> Option<u64> {
        self.content.end
    }

    /// Whether the operator limits how fast it may come now.
    pub fn is_limited(&self) -> bool {
        self.lease.is_limited()
    }

    /// The place of the endpoint that it comes from.
    pub fn source(&self) -> usize {
        self.endpoint
    }

    /// Goes on with this part of the blob, under the same lease.
    pub fn turn_to(&mut self, part: Range<u64>) {
        let goes_on =
            self.offset == part.start && self.flow.as_ref().is_some_and(|flow| flow.end >= Some(part.end));
        if !goes_on {
            self.flow = None;
            self.has_turned = true;
        }
        self.offset = part.start;
        self.content.end = Some(part.end);
    }

    /// The next bytes; `None` once all have come that are wanted. Where the upstream does not tell the length, that is when
    /// it ended the body properly. What breaks is resumed in here. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::BrokenOff`] when it broke too often without progress, [`Error::BadAnswer`] when more bytes
    /// came than the blob has, [`Error::Refused`] when its hours are over and nobody waits for it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.owed > 0 {
            self.lease.pay(self.owed).await.map_err(Error::Refused)?;
            self.owed = 0;
        }
        loop {
            if self.content.end == Some(self.offset) {
                return self.finish().await;
            }
            if self.has_turned {
                let opened = self.open().await;
                self.has_turned = false;
                match opened {
                    Ok(opened) => self.take_up(opened),
                    Err(error) => self.resume(&error.to_string()).await?,
                }
                continue;
            }
            let Some(flow) = &mut self.flow else {
                self.resume("the connection broke").await?;
                continue;
            };
            match flow.next(self.client.wire.idle_timeout).await {
                Piece::Data(bytes) => {
                    if let Some(bytes) = self.take(bytes)? {
                        return Ok(Some(bytes));
                    }
                }
                Piece::End if self.content.total.is_none() => {
                    (self.content.total, self.content.end) = (Some(self.offset), Some(self.offset));
                    self.flow = None;
                }
                Piece::End => self.resume("the body ended early").await?,
                Piece::Broken(reason) => self.resume(&reason).await?,
            }
        }
    }

    /// Counts bytes, and gives those that are new.
    fn take(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, Error> {
        self.client.wire.tally.fetched(bytes.len());
        self.owed += bytes.len() as u64;
        let flow = self.flow.as_mut().expect("bytes come from a flow");
        let known = flow.skip.min(bytes.len() as u64);
        flow.skip -= known;
        // Lossless: it is at most the length of a slice.
        bytes = bytes.slice(known as usize..);
        flow.progress += bytes.len() as u64;
        let left = self.content.end.map(|end| end - self.offset);
        if let Some(left) = left.filter(|left| bytes.len() as u64 > *left) {
            self.flow = None;
            if self.content.end == self.content.total {
                return Err(self.too_long());
            }
            // Lossless: it is less than the length of a slice.
            bytes.truncate(left as usize);
            self.offset += left;
            return Ok(Some(bytes));
        }
        self.offset += bytes.len() as u64;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.patience.attempts = 0;
        Ok(Some(bytes))
    }

    /// All bytes are there: nothing may follow. Reading the end also lets the connection be used again; where more of
    /// the blob follows than is wanted, it is given up.
    async fn finish(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(mut flow) = self.flow.take() else { return Ok(None) };
        if self.content.end != self.content.total && flow.end != self.content.end {
            return Ok(None);
        }
        while !flow.body.is_end_stream() {
            match flow.next(PATIENCE_FOR_THE_END).await {
                Piece::Data(bytes) if !bytes.is_empty() => return Err(self.too_long()),
                Piece::Data(_) => {}
                Piece::End | Piece::Broken(_) => break,
            }
        }
        Ok(None)
    }

    /// Begins again where it broke off, with growing waits, as long as there is progress.
    async fn resume(&mut self, reason: &str) -> Result<(), Error> {
        let mut reason = reason.to_owned();
        if let Some(flow) = self.flow.take() {
            self.patience.broke(flow.progress);
            if flow.progress == 0 {
                self.endpoint = (self.endpoint + 1) % self.client.endpoints.len();
            }
        }
        loop {
            if !self.patience.wait().await {
                let (endpoint, received) = (self.host(), self.offset);
                return Err(Error::BrokenOff { endpoint, received, reason });
            }
            self.wait_for_an_endpoint().await;
            match self.open().await {
                Ok(opened) => {
                    tracing::info!(
                        endpoint = self.host(),
                        offset = self.offset,
                        reason,
                        "resumed a transfer"
                    );
                    self.client.wire.tally.resumed();
                    self.take_up(opened);
                    return Ok(());
                }
                Err(error) => reason = error.to_string(),
            }
        }
    }

    /// The first endpoint that goes on from `offset`, beginning with the current one; one that has not answered others
    /// only when nobody else will do.
    async fn open(&self) -> Result<Opened, Error> {
        let count = self.client.endpoints.len();
        // Where none of them may be asked, this try is spent on nobody.
        let mut last = self.shut_out();
        let mut order: Vec<usize> = (0..count).map(|step| (self.endpoint + step) % count).collect();
        order.sort_by_key(|place| self.client.suspects.has(&self.content.digest, *place));
        let all = || order.iter().copied().filter(|place| self.lease.pause_left(*place).is_none());
        let well = all().filter(|place| self.lease.access(*place) == Access::Open);
        for index in well.chain(all().filter(|place| self.lease.try_out(*place))) {
            match Transfer::open_at(&self.client, &self.lease, &self.content, self.offset, index).await {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    tracing::debug!(registry = %self.client.registry(), %error, "trying the next endpoint");
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Why the current endpoint may not be asked.
    fn shut_out(&self) -> Error {
        let throttled =
            Error::Throttled { endpoint: self.host(), retry_after: Some(self.pause()), quota: false };
        self.lease.down(self.endpoint).map_or(throttled, Error::Refused)
    }

    /// Waits until some endpoint may be asked, though not for ever.
    async fn wait_for_an_endpoint(&self) {
        let deadline = Instant::now() + LONGEST_PAUSE;
        loop {
            let pause = self.pause().min(deadline.saturating_duration_since(Instant::now()));
            if pause.is_zero() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// How long it is until any endpoint may be asked.
    fn pause(&self) -> Duration {
        let pauses = (0..self.client.endpoints.len()).map(|place| {
            let paused = self.lease.pause_left(place).unwrap_or_default();
            match self.lease.access(place) {
                Access::Open | Access::Trial => paused,
                Access::Shut(left) => left.max(paused),
            }
        });
        pauses.min().unwrap_or_default()
    }

    /// Asks one endpoint for everything from `offset` on.
    pub(super) async fn open_at(
        client: &Client,
        lease: &Lease,
        content: &Content,
        offset: u64,
        place: usize,
    ) -> Result<Opened, Error> {
        if offset > 0 && content.total == Some(offset) {
            return Ok(Opened { flow: None, total: content.total, endpoint: place });
        }
        let endpoint = &client.endpoints[place];
        let mut ask = content.ask.clone();
        ask.range = span(offset, content.end);
        let mut answer = client.ask_at(endpoint, lease, &ask).await?;
        if let Some(end) = content.end.filter(|_| ask.apart) {
            let (status, headers) = (answer.response.status(), answer.response.headers());
            let sends_other = status.is_success() && !placing::is_part(status, headers, &(offset..end));
            if sends_other || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Err(Error::NoParts { endpoint: answer.host });
            }
        }
        if answer.response.status() == StatusCode::RANGE_NOT_SATISFIABLE && ask.range.is_some() {
            // All of it is there already, or this registry takes exception to the range: once more without.
            let total = whole_length(answer.response.headers()).or(content.total);
            if total == Some(offset) {
                return Ok(Opened { flow: None, total, endpoint: place });
            }
            ask.range = None;
            answer = client.ask_at(endpoint, lease, &ask).await?;
        }
        if !matches!(answer.response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Err(answer.refusal().await);
        }
        let (status, headers) = (answer.response.status(), answer.response.headers());
        let placed = placing::place(status, headers, offset, content.total);
        let Placed { skip, total, end } = placed.map_err(|reason| answer.bad(&reason))?;
        Ok(Opened { flow: Some(Flow::new(answer, skip, end)), total, endpoint: place })
    }

    fn take_up(&mut self, opened: Opened) {
        self.flow = opened.flow;
        self.content.total = opened.total;
        self.content.end = self.content.end.or(opened.total);
        self.endpoint = opened.endpoint;
        if self.flow.is_some() && !self.sources.contains(&opened.endpoint) {
            self.sources.push(opened.endpoint);
        }
    }

    /// The bytes turned out to be wrong: the next time others are asked first.
    pub fn distrust(&self) {
        self.client.distrust(self.content.digest, self.sources.iter().copied());
    }

    /// The host of that endpoint.
    pub fn host(&self) -> String {
        self.client.endpoints[self.endpoint].host.clone()
    }

    fn too_long(&self) -> Error {
        self.distrust();
        let reason = "more bytes than the blob is long".to_owned();
        Error::BadAnswer { endpoint: self.host(), reason }
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Transfer");
        shown.field("offset", &self.offset).field("total", &self.content.total).finish_non_exhaustive()
    }
}

impl Flow {
    fn new(answer: Answer, skip: u64, end: Option<u64>) -> Flow {
        Flow { body: answer.response.into_body(), end, skip, progress: 0 }
    }

    async fn next(&mut self, idle: Duration) -> Piece {
        match tokio::time::timeout(idle, self.body.frame()).await {
            // Trailers are no data.
            Ok(Some(Ok(frame))) => Piece::Data(frame.into_data().unwrap_or_default()),
            Ok(Some(Err(error))) => Piece::Broken(root(&error)),
            Ok(None) => Piece::End,
            Err(_) => Piece::Broken(format!("no byte came for {idle:?}")),
        }
    }
}

impl Patience {
    fn new() -> Patience {
        Patience { backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT), attempts: 0, resumes: 0 }
    }

    /// A flow broke after so many new bytes.
    fn broke(&mut self, progress: u64) {
        if progress >= FAIR_PROGRESS {
            self.backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        }
    }

    /// Waits before the next attempt; false when there shall be none.
    async fn wait(&mut self) -> bool {
        if self.attempts == MOST_ATTEMPTS || self.resumes == MOST_RESUMES {
            return false;
        }
        self.attempts += 1;
        self.resumes += 1;
        tokio::time::sleep(self.backoff.wait()).await;
        true
    }
}
