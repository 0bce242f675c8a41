use std::fs::File;
use std::io;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use tokio::sync::watch;

use super::metrics::Counted;
use super::{Error, State};
use crate::oci::ByteRange;
use crate::section::Section;
use crate::store::{HOLD_BACK, SECTION};

/// Someone who reads a blob while it is being fetched. Cheap to clone; all clones are the same one, who reads
/// several parts.
#[derive(Debug, Clone)]
pub struct Follower {
    state: watch::Receiver<State>,
    _counted: Arc<Counted>,
}

/// How far a follower may read, or that it must wait.
enum Reach {
    /// Up to here.
    To(Arc<File>, u64),
    /// Until more is written, or the state changes when nobody writes any more.
    Wait(watch::Receiver<u64>),
}

impl Follower {
    pub(super) fn new(state: watch::Receiver<State>, counted: Counted) -> Follower {
        Follower { state, _counted: Arc::new(counted) }
    }

    /// Waits until the length is known: as a rule, for the upstream's headers. An upstream that does not tell
    /// is waited for to the end. Cancel-safe.
    ///
    /// # Errors
    /// Why the fetch failed.
    pub async fn total(&mut self) -> Result<u64, Error> {
        self.until(|state| match state {
            State::Growing { total, .. } => *total,
            State::Proven { total, .. } => Some(*total),
            State::Boarding | State::Failed(_) => None,
        })
        .await
    }

    /// Waits until the digest is proven, and gives the length. Cancel-safe.
    ///
    /// # Errors
    /// Why the fetch failed.
    pub async fn proven(&mut self) -> Result<u64, Error> {
        self.until(|state| match state {
            State::Proven { total, .. } => Some(*total),
            _ => None,
        })
        .await
    }

    /// Waits until the flight has ended and its blob is kept, if it can be. Cancel-safe.
    ///
    /// # Errors
    /// Why the fetch failed.
    pub async fn landed(&mut self) -> Result<u64, Error> {
        let total = self.proven().await?;
        // An error means that whoever leads has left its seat.
        while self.state.changed().await.is_ok() {}
        Ok(total)
    }

    /// The bytes of `range` as they come in, in sections, of a blob that is `total` bytes long. Where the range is the
    /// whole blob its end is held back until the proof.
    pub fn read(
        self,
        range: ByteRange,
        total: u64,
    ) -> impl Stream<Item = io::Result<Section>> + Send + 'static {
        let free = if range == ByteRange::whole(total) { total.saturating_sub(HOLD_BACK) } else { total };
        stream::try_unfold((self, range.start), move |(mut follower, at)| async move {
            if at >= range.end {
                return Ok(None);
            }
            let section = follower.next(at, range.end, free).await?;
            let after = at + section.len();
            Ok(Some((section, (follower, after))))
        })
    }

    /// At least one byte from `at` on; an error where the proven blob is shorter than it was said to be. Without proof only
    /// bytes before `free` are given out.
    async fn next(&mut self, at: u64, end: u64, free: u64) -> io::Result<Section> {
        loop {
            match self.reach(at, free)? {
                Reach::To(_, reach) if at >= reach => return Err(io::ErrorKind::UnexpectedEof.into()),
                Reach::To(file, reach) => {
                    return Ok(Section::new(file, at..reach.min(end).min(at + SECTION)));
                }
                Reach::Wait(mut committed) => {
                    let more = committed.wait_for(|written| at < (*written).min(free));
                    if more.await.is_err() {
                        // The writer is done: what remains is the verdict.
                        self.proven().await.map_err(io::Error::other)?;
                    }
                }
            }
        }
    }

    fn reach(&self, at: u64, free: u64) -> io::Result<Reach> {
        match &*self.state.borrow() {
            State::Proven { file, total } => Ok(Reach::To(Arc::clone(file), *total)),
            State::Failed(error) => Err(io::Error::other(error.clone())),
            State::Growing { file, committed, .. } => {
                let written = (*committed.borrow()).min(free);
                let ready = at < written;
                Ok(if ready { Reach::To(Arc::clone(file), written) } else { Reach::Wait(committed.clone()) })
            }
            State::Boarding => Err(io::Error::other("read before the length was known")),
        }
    }

    async fn until<T>(&mut self, pick: impl Fn(&State) -> Option<T>) -> Result<T, Error> {
        let ready = self.state.wait_for(|state| matches!(state, State::Failed(_)) || pick(state).is_some());
        let state = ready.await.map_err(|_| Error::Abandoned)?;
        match &*state {
            State::Failed(error) => Err(error.clone()),
            state => pick(state).ok_or(Error::Abandoned),
        }
    }
}
