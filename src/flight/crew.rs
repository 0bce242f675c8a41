use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use tokio::time::{Instant, timeout};

use super::metrics::FlightMetrics;
use super::parts::{self, Part, Parts};
use super::spread::{Extra, Member, Spread};
use super::{Error, Order};
use crate::scheduler::{Errand, Priority};
use crate::upstream::{self, Transfer};

/// The connections over which a blob comes: a first one, on which everything depends, and others beside it where that
/// is faster. Whatever becomes of those, the first one brings what they did not.
pub(super) struct Crew {
    order: Order,
    metrics: FlightMetrics,
    parts: Arc<Parts>,
    member: Option<Member>,
    connections: SelectAll<BoxStream<'static, Result<Option<Piece>, Error>>>,
}

/// Some bytes of the blob.
pub(super) struct Piece {
    /// Where they belong.
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
    /// The place of the endpoint that they came from.
    pub(super) source: usize,
}

/// The first one. It ends when all bytes have come, whoever brought them.
struct First {
    transfer: Transfer,
    parts: Arc<Parts>,
    /// Since when it is at its own part.
    since: Instant,
}

/// Another one. It takes a lease for each part, so that in between whoever is more urgent gets the connection.
struct Other {
    order: Order,
    errand: Errand,
    metrics: FlightMetrics,
    parts: Arc<Parts>,
    extra: Extra,
    at_work: Option<(Part, Transfer)>,
}

/// What another one has begun is handed out again when no byte of it comes for so long: clients wait for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// So long at least the first one waits when it has nothing left to do, and as long as its own last part took: whoever
/// needs more than twice the time is slow, and everybody would wait for its part.
const SLOW: Duration = Duration::from_secs(2);

impl Crew {
    /// One connection; others where `spread` finds that they pay, and as far as `order` lets them.
    pub(super) fn new(
        order: &Order,
        transfer: Transfer,
        spread: Option<&Arc<Spread>>,
        metrics: &FlightMetrics,
    ) -> Crew {
        let (from, total) = (transfer.offset(), transfer.total());
        let parts = Arc::new(Parts::new(from, total));
        let is_large = total.is_some_and(|total| total.saturating_sub(from) >= 2 * parts::SMALLEST);
        let spread = spread.filter(|_| is_large && order.most_extra > 0);
        let first = First { transfer, parts: Arc::clone(&parts), since: Instant::now() };
        let mut connections = SelectAll::new();
        connections.push(stream::unfold(first, First::next).boxed());
        Crew {
            order: order.clone(),
            metrics: metrics.clone(),
            parts,
            member: spread.map(|spread| spread.join(order.most_extra)),
            connections,
        }
    }

    /// The next bytes, of whatever part; `None` when all have come.
    ///
    /// # Errors
    /// Those of the first connection.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, Error> {
        let piece = self.connections.next().await.transpose()?.flatten();
        if let (Some(piece), Some(member)) = (&piece, &self.member) {
            let extra = member.came(piece.bytes.len(), self.parts.left());
            self.connections.extend(extra.map(|extra| self.other(extra)));
        }
        Ok(piece)
    }

    fn other(&self, extra: Extra) -> BoxStream<'static, Result<Option<Piece>, Error>> {
        let other = Other {
            order: self.order.clone(),
            errand: self.order.errand.at(Priority::Background),
            metrics: self.metrics.clone(),
            parts: Arc::clone(&self.parts),
            extra,
            at_work: None,
        };
        stream::unfold(other, Other::next).boxed()
    }
}

impl First {
    async fn next(mut self) -> Option<(Result<Option<Piece>, Error>, First)> {
        Some((self.bring().await, self))
    }

    async fn bring(&mut self) -> Result<Option<Piece>, Error> {
        loop {
            let (offset, end) = (self.transfer.offset(), self.parts.end());
            let is_cut_off = offset >= end && self.transfer.end() != Some(end);
            if !is_cut_off && let Some(mut bytes) = self.transfer.next().await? {
                bytes.truncate(self.parts.came(offset, bytes.len()));
                if !bytes.is_empty() {
                    return Ok(Some(Piece { offset, bytes, source: self.transfer.source() }));
                }
            } else if let Some(part) = self.parts.next(self.since.elapsed().max(SLOW)).await {
                self.transfer.turn_to(part);
                self.since = Instant::now();
            } else {
                return Ok(None);
            }
        }
    }
}

impl Other {
    async fn next(mut self) -> Option<(Result<Option<Piece>, Error>, Other)> {
        match self.bring().await {
            Ok(piece) => piece.map(|piece| (Ok(Some(piece)), self)),
            Err(error) => {
                let never = matches!(error, upstream::Error::NoParts { .. });
                self.extra.failed(never);
                tracing::debug!(
                    digest = %self.order.digest,
                    repository = %self.order.repository,
                    %error,
                    "a part of a blob will come over another connection"
                );
                None
            }
        }
    }

    /// `None` when there is nothing more for it to do.
    async fn bring(&mut self) -> Result<Option<Piece>, upstream::Error> {
        loop {
            if let Some((part, transfer)) = &mut self.at_work {
                let (offset, source) = (transfer.offset(), transfer.source());
                let bytes = tokio::select! {
                    biased;
                    bytes = timeout(PATIENCE, transfer.next()) => bytes,
                    () = part.recalled() => return Ok(None),
                };
                let Ok(bytes) = bytes else {
                    return Err(upstream::Error::TimedOut { endpoint: transfer.host(), after: PATIENCE });
                };
                if let Some(bytes) = bytes? {
                    part.came(bytes.len());
                    self.extra.flows();
                    return Ok(Some(Piece { offset, bytes, source }));
                }
                self.at_work = None;
                self.metrics.part(&self.order.repository.registry);
            } else if self.extra.goes_on() {
                self.at_work = self.begin().await?;
                if self.at_work.is_none() {
                    return Ok(None);
                }
            } else {
                return Ok(None);
            }
        }
    }

    /// First the lease, then the part: nobody else can fetch what waits in a queue.
    async fn begin(&self) -> Result<Option<(Part, Transfer)>, upstream::Error> {
        let (client, name) = (&self.order.client, &self.order.repository.name);
        let boarding = client.board(&self.errand, name).await?;
        let part = self.extra.goes_on().then(|| self.parts.hand_out(self.extra.connections())).flatten();
        let Some((part, total)) = part else { return Ok(None) };
        let transfer = client.part(boarding, name, &self.order.digest, part.left().clone(), total);
        match timeout(PATIENCE, transfer).await {
            Ok(transfer) => Ok(Some((part, transfer?))),
            Err(_) => Err(upstream::Error::TimedOut { endpoint: name.to_string(), after: PATIENCE }),
        }
    }
}
