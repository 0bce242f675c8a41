//! How long a connection may keep us waiting. hyper has a time limit for a request's head, but counts it while
//! a connection rests between two requests too, and has none for finding out the protocol, nor for a client
//! that stops reading. So this watches the connection from outside.
//!
//! ```text
//! Opening ──request──▶ Busy ──last answer out──▶ Idle ──first byte──▶ Head ──request──▶ Busy
//! ```
//!
//! A client that closes its sending half after a request may still read, or may have left altogether: nothing tells the
//! two apart until something is sent. It gets its answer, but no long wait for one. hyper would cut it off at once.
//!
//! On HTTP/2 bytes alone say nothing (pings flow while a client sits on a closed window): there only requests
//! and the pieces of their answers count, and there is no Head.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Buf;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::outlet::{Chunk, Outbox};
use super::{Body, BoxError, Limits};

/// What one connection is doing, and since when. Clones share it.
#[derive(Clone)]
pub(super) struct Patience {
    limits: Arc<Limits>,
    state: Arc<Mutex<State>>,
}

/// A request that is being answered, until dropped.
pub(super) struct Busy {
    patience: Patience,
    /// What it may be answered by.
    turn: Option<OwnedSemaphorePermit>,
}

/// A socket whose traffic is watched.
pub(super) struct WatchedIo<I> {
    io: I,
    patience: Patience,
    /// Bytes read since this connection last let others have the thread.
    run: usize,
}

/// An answer whose departure is watched.
pub(super) struct WatchedBody {
    body: Body,
    busy: Busy,
    /// Where what is in files goes out by, on a connection that can.
    outbox: Option<Outbox>,
    /// Bytes since this body last let others have the thread.
    run: usize,
}

/// So many bytes of one answer, then it is another connection's turn: without it a few large answers from
/// memory keep a worker for themselves, and small ones wait 45 ms in place of 6 (99th percentile, measured).
const RUN_LIMIT: usize = 256 << 10;

/// The same for what a client sends. An honest one never comes near; a flood of small things that each cost something
/// (headers of HTTP/2 out of a table) would have a worker for seconds.
const READ_LIMIT: usize = 64 << 10;

/// So long a client that has closed its sending half is kept when there is nothing to send it.
const HALF_CLOSED: Duration = Duration::from_secs(2);

/// What a connection keeps us waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing was asked yet.
    Opening,
    /// The next request's head has begun.
    Head,
    /// So many requests are being answered.
    Busy(usize),
    /// Between two requests.
    Idle,
}

struct State {
    doing: Doing,
    since: Instant,
    multiplexed: bool,
    /// The client has closed its sending half, and this is who is to be told once its answer is out.
    half_closed: Option<Waker>,
    /// The client does not take what is being sent. Were it gone, its kernel would say so.
    blocked: bool,
}

impl Doing {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Doing::Opening => "opening",
            Doing::Head => "head",
            Doing::Busy(_) => "stalled",
            Doing::Idle => "idle",
        }
    }
}

impl State {
    fn go_on(&mut self, doing: Doing) {
        self.doing = doing;
        self.since = Instant::now();
    }

    /// Where it was kept from hyper that the client has closed its half, and need not be any longer.
    fn wake_reader(&self) {
        if let (Doing::Idle, Some(reader)) = (self.doing, &self.half_closed) {
            reader.wake_by_ref();
        }
    }
}

impl Patience {
    pub(super) fn new(limits: Arc<Limits>) -> Patience {
        let state = State {
            doing: Doing::Opening,
            since: Instant::now(),
            multiplexed: false,
            half_closed: None,
            blocked: false,
        };
        Patience { limits, state: Arc::new(Mutex::new(state)) }
    }

    /// A request has arrived.
    pub(super) fn begin(&self, multiplexed: bool) -> Busy {
        let mut state = self.state();
        state.multiplexed = multiplexed;
        let others = if let Doing::Busy(others) = state.doing { others } else { 0 };
        state.go_on(Doing::Busy(others + 1));
        Busy { patience: self.clone(), turn: None }
    }

    /// Resolves when the connection has kept us waiting for too long, with what it was doing.
    pub(super) async fn end(&self) -> Doing {
        let mut alarm = pin!(sleep_until(self.deadline()));
        poll_fn(|cx| {
            // What happened since the last look may have brought the deadline forward.
            let deadline = self.deadline();
            if deadline < alarm.deadline() {
                alarm.as_mut().reset(deadline);
            }
            loop {
                ready!(alarm.as_mut().poll(cx));
                let deadline = self.deadline();
                if deadline <= Instant::now() {
                    return Poll::Ready(self.state().doing);
                }
                alarm.as_mut().reset(deadline);
            }
        })
        .await
    }

    fn deadline(&self) -> Instant {
        let state = self.state();
        let limit = match state.doing {
            _ if state.half_closed.is_some() && !state.blocked => HALF_CLOSED,
            Doing::Opening | Doing::Head => self.limits.header_read_timeout,
            Doing::Busy(_) => self.limits.stall_timeout,
            Doing::Idle => self.limits.idle_timeout,
        };
        state.since + limit
    }

    fn received(&self) {
        let mut state = self.state();
        match state.doing {
            _ if state.multiplexed => {}
            Doing::Opening | Doing::Head => {} // drip by drip is still slow
            Doing::Idle => state.go_on(Doing::Head),
            Doing::Busy(_) => state.since = Instant::now(),
        }
    }

    /// The client has closed its sending half. Whether the end of its answer comes first; then `reader` is woken.
    fn half_closed(&self, reader: &Waker) -> bool {
        let mut state = self.state();
        let answering = matches!(state.doing, Doing::Busy(_)) || state.blocked;
        if state.multiplexed || !answering {
            return false;
        }
        if state.half_closed.replace(reader.clone()).is_none() {
            state.since = Instant::now();
        }
        true
    }

    fn blocked(&self) {
        self.state().blocked = true;
    }

    fn sent(&self) {
        let mut state = self.state();
        state.blocked = false;
        match state.doing {
            _ if state.multiplexed => {}
            Doing::Opening | Doing::Head => {}
            // Idle may still be writing the last piece of an answer.
            Doing::Idle | Doing::Busy(_) => state.since = Instant::now(),
        }
        state.wake_reader();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Busy {
    /// Gives `turn` back when the answer is out.
    pub(super) fn holds(&mut self, turn: OwnedSemaphorePermit) {
        self.turn = Some(turn);
    }

    /// Watches `body` as it goes out, by `outbox` where it is in files and there is one.
    pub(super) fn watch(self, body: Body, outbox: Option<Outbox>) -> WatchedBody {
        WatchedBody { body, busy: self, outbox, run: 0 }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.patience.state();
        let others = if let Doing::Busy(all) = state.doing { all - 1 } else { 0 };
        state.go_on(if others == 0 { Doing::Idle } else { Doing::Busy(others) });
        state.wake_reader();
    }
}

impl<I> WatchedIo<I> {
    pub(super) fn new(io: I, patience: Patience) -> WatchedIo<I> {
        WatchedIo { io, patience, run: 0 }
    }

    fn sent(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(1..)) => self.patience.sent(),
            Poll::Ready(_) => {}
            Poll::Pending => self.patience.blocked(),
        }
        result
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for WatchedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.run >= READ_LIMIT {
            self.run = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (before, room) = (buf.filled().len(), buf.remaining());
        let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buf) else {
            self.run = 0;
            return Poll::Pending;
        };
        read?;
        let count = buf.filled().len() - before;
        self.run += count;
        if count > 0 {
            self.patience.received();
        } else if room > 0 && self.patience.half_closed(cx.waker()) {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for WatchedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.sent(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.sent(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl http_body::Body for WatchedBody {
    type Data = Chunk;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BoxError>>> {
        let this = self.get_mut();
        if this.run >= RUN_LIMIT {
            this.run = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Poll::Ready(chunk) = this.body.poll_chunk(cx, this.outbox.as_ref()) else {
            this.run = 0;
            return Poll::Pending;
        };
        if let Some(Ok(chunk @ Chunk::Bytes(_))) = &chunk {
            this.run += chunk.remaining();
        }
        if let Some(outbox) = this.outbox.as_ref().filter(|_| this.body.missing() == Some(0)) {
            outbox.complete();
        }
        this.busy.patience.state().since = Instant::now();
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.missing() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.missing().map(SizeHint::with_exact).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::AsyncReadExt;

    use super::*;

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(120);
    const STALL: Duration = Duration::from_secs(300);

    fn patience() -> Patience {
        Patience::new(Arc::new(Limits::new(1)))
    }

    /// How long it takes to lose patience, and with what, when nothing happens any more.
    async fn ends(patience: &Patience) -> (Doing, Duration) {
        let start = Instant::now();
        (patience.end().await, Instant::now() - start)
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_its_own_end() {
        let patience = patience();
        patience.received();
        assert_eq!(ends(&patience).await, (Doing::Opening, HEAD));
        let busy = patience.begin(false);
        assert_eq!(ends(&patience).await, (Doing::Busy(1), STALL));
        drop(busy);
        assert_eq!(ends(&patience).await, (Doing::Idle, IDLE));
        patience.received();
        assert_eq!(ends(&patience).await, (Doing::Head, HEAD));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_comes_forward_while_waited_for() {
        let patience = patience();
        drop(patience.begin(false));
        let start = Instant::now();
        let mut end = pin!(patience.end());
        assert!(futures_util::poll!(end.as_mut()).is_pending());
        patience.received();
        assert_eq!(end.await, Doing::Head);
        assert_eq!(Instant::now() - start, HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn drips_do_not_help_a_head_but_an_answer() {
        let patience = patience();
        tokio::time::advance(HEAD / 2).await;
        patience.received();
        assert_eq!(ends(&patience).await, (Doing::Opening, HEAD / 2));
        let _busy = patience.begin(false);
        tokio::time::advance(STALL / 2).await;
        patience.sent();
        assert_eq!(ends(&patience).await, (Doing::Busy(1), STALL));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_closed_its_half_is_kept_while_something_can_be_sent() {
        let (patience, reader) = (patience(), Waker::noop());
        assert!(!patience.half_closed(reader), "nothing was asked");
        let busy = patience.begin(false);
        assert!(patience.half_closed(reader));
        tokio::time::advance(HALF_CLOSED / 2).await;
        patience.sent();
        assert!(patience.half_closed(reader), "asked again, it is no news");
        assert_eq!(ends(&patience).await, (Doing::Busy(1), HALF_CLOSED));
        patience.sent();
        patience.blocked();
        assert_eq!(ends(&patience).await, (Doing::Busy(1), STALL));
        drop(busy);
        assert!(patience.half_closed(reader), "the end of the answer is not out");
        patience.sent();
        assert!(!patience.half_closed(reader));
        let _multiplexed = patience.begin(true);
        assert!(!patience.half_closed(reader), "frames say which streams are still wanted");
    }

    #[tokio::test]
    async fn a_long_answer_lets_others_have_a_turn() {
        let chunks = futures_util::stream::repeat_with(|| Ok(bytes::Bytes::from(vec![0; RUN_LIMIT / 2])));
        let mut body = patience().begin(false).watch(Body::stream(chunks, 1 << 40), None);
        let mut turns = Vec::new();
        for _ in 0..6 {
            turns.push(futures_util::poll!(body.frame()).is_ready());
        }
        assert_eq!(turns, [true, true, false, true, true, false]);
    }

    #[tokio::test]
    async fn who_sends_much_lets_others_have_a_turn() {
        let mut io = WatchedIo::new(tokio::io::repeat(7), patience());
        let mut turns = Vec::new();
        for _ in 0..6 {
            turns.push(futures_util::poll!(pin!(io.read(&mut [0; READ_LIMIT / 2]))).is_ready());
        }
        assert_eq!(turns, [true, true, false, true, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn pings_do_not_help_a_stalled_stream() {
        let patience = patience();
        let (one, two) = (patience.begin(true), patience.begin(true));
        tokio::time::advance(STALL / 2).await;
        patience.received();
        patience.sent();
        assert_eq!(ends(&patience).await, (Doing::Busy(2), STALL / 2));
        drop((one, two));
        patience.received();
        assert_eq!(ends(&patience).await, (Doing::Idle, IDLE));
    }
}
