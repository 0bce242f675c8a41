//! Sends what is in files without taking it into memory: sendfile beneath hyper.
//!
//! ```text
//! body: Section ──▶ Outbox ─────────────────────────▶ Outlet: sendfile
//!           └────▶ Promise ──▶ hyper's queue ──▶ stand-in ──▲
//! ```
//!
//! hyper sends buffers and knows nothing of files. So a body gives it a [`Promise`]: a buffer as long as the section, that
//! shows a stand-in where its bytes should be. hyper offers that to its socket, which is an [`Outlet`]. The outlet knows
//! the stand-in by its address, sends as much of the section in its place, and says how much.
//!
//! The stand-in itself never goes out. hyper could, in some version to come, copy it in place of offering it; but whoever
//! takes bytes from a buffer tells it so, and a promise that was not kept panics then: the connection is cut before a
//! wrong byte is sent (I1), and tests fail.
//!
//! That works in clear and on HTTP/1 only, where bodies go out one after the other.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use rustix::net::sockopt::set_tcp_cork;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::ServerMetrics;
use crate::section::Section;

/// What hyper sends.
#[derive(Debug)]
pub(super) enum Chunk {
    /// In memory.
    Bytes(Bytes),
    /// In a file.
    Promise(Promise),
}

/// Sections that are promised on one connection and have not gone out. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Outbox(Arc<Mutex<Promised>>);

#[derive(Debug, Default)]
struct Promised {
    sections: VecDeque<Section>,
    /// So many bytes have gone out of which their promises have not heard.
    kept: usize,
    /// Nothing comes after them in this answer.
    is_last: bool,
}

/// A buffer whose bytes are in a file.
#[derive(Debug)]
pub(super) struct Promise {
    left: usize,
    outbox: Outbox,
}

/// A client's socket in clear.
pub(super) struct Outlet {
    stream: TcpStream,
    outbox: Outbox,
    front: Front,
    /// The kernel sends full packets only.
    is_corked: bool,
    /// Something was sent since the last flush.
    is_flowing: bool,
    /// Bytes sent from files since this connection last let others have the thread.
    run: u64,
    metrics: ServerMetrics,
}

/// Whether the section that is next can be sent without waiting for the disk.
enum Front {
    Unknown,
    Warming(BoxFuture<'static, io::Result<()>>),
    Resident,
}

/// Never read: pages of zeros that take no memory.
static STAND_IN: [u8; 1 << 20] = [0; 1 << 20];

/// So much of files, then it is another connection's turn: about what a socket takes before it is full.
const RUN_LIMIT: u64 = 4 << 20;

/// Below this it is cheaper to copy the bytes into the same packet as the head.
pub(super) const LEAST: u64 = 32 << 10;

impl Outbox {
    /// Takes `section` in, and gives what hyper is to get in its place.
    pub(super) fn promise(&self, section: Section) -> Promise {
        let left = usize::try_from(section.len()).expect("a section is no longer than the store makes it");
        let mut promised = self.promised();
        promised.sections.push_back(section);
        promised.is_last = false;
        drop(promised);
        Promise { left, outbox: self.clone() }
    }

    /// The answer is handed over to its last byte.
    pub(super) fn complete(&self) {
        self.promised().is_last = true;
    }

    fn is_complete(&self) -> bool {
        let promised = self.promised();
        promised.is_last && promised.sections.is_empty()
    }

    fn front(&self) -> Option<Section> {
        self.promised().sections.front().cloned()
    }

    /// So much of the first section has gone out; whether that was all of it.
    fn sent(&self, count: usize) -> bool {
        let mut promised = self.promised();
        promised.kept += count;
        let Some(front) = promised.sections.front_mut() else { return true };
        front.advance(count as u64);
        let is_out = front.is_empty();
        if is_out {
            promised.sections.pop_front();
        }
        is_out
    }

    fn promised(&self) -> MutexGuard<'_, Promised> {
        // Each change is whole by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buf for Promise {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        &STAND_IN[..self.left.min(STAND_IN.len())]
    }

    fn advance(&mut self, count: usize) {
        let kept = self.outbox.promised().kept.checked_sub(count);
        // Panics with the lock given back.
        let kept =
            kept.expect("hyper took bytes from a stand-in; this version of it does not go with this server");
        self.outbox.promised().kept = kept;
        self.left -= count;
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        match self {
            Chunk::Bytes(bytes) => bytes.remaining(),
            Chunk::Promise(promise) => promise.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Chunk::Bytes(bytes) => bytes.chunk(),
            Chunk::Promise(promise) => promise.chunk(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Chunk::Bytes(bytes) => bytes.advance(count),
            Chunk::Promise(promise) => promise.advance(count),
        }
    }
}

impl Outlet {
    /// `stream`, with what is promised in `outbox`.
    pub(super) fn new(stream: TcpStream, outbox: Outbox, metrics: ServerMetrics) -> Outlet {
        let front = Front::Unknown;
        Outlet { stream, outbox, front, is_corked: false, is_flowing: false, run: 0, metrics }
    }

    /// From here on until the answer pauses or ends, full packets only: the head goes with the first bytes, and the reader
    /// is not woken for the odd end of each section. A byte to one client costs a quarter less (measured).
    fn cork(&mut self) -> io::Result<()> {
        if !self.is_corked {
            set_tcp_cork(&self.stream, true)?;
            self.is_corked = true;
        }
        Ok(())
    }

    /// What is held back goes out where nothing comes after it at once. hyper flushes after each piece, and once more when
    /// it has to wait for the next one.
    fn uncork(&mut self) -> io::Result<()> {
        let is_flowing = std::mem::take(&mut self.is_flowing);
        if self.is_corked && (!is_flowing || self.outbox.is_complete()) {
            set_tcp_cork(&self.stream, false)?;
            self.is_corked = false;
        }
        Ok(())
    }

    fn poll_send_section(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        if self.run >= RUN_LIMIT {
            self.run = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let section =
            self.outbox.front().ok_or_else(|| io::Error::other("a stand-in without its section"))?;
        ready!(self.front.poll_resident(cx, &section, &self.metrics))?;
        self.cork()?;
        let Poll::Ready(sent) = self.poll_send(cx, || section.send(&self.stream, most)) else {
            self.run = 0;
            return Poll::Pending;
        };
        self.is_flowing = true;
        let count = sent?;
        self.run += count as u64;
        self.metrics.sent_from_file(count);
        if self.outbox.sent(count) {
            self.front = Front::Unknown;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        mut send: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, &mut send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl Front {
    /// Waits until the section is in memory. It would be sent either way; but a worker that waits for the disk serves
    /// nobody else meanwhile: with sixteen cold blobs, every tenth manifest took 18 ms in place of one (measured).
    fn poll_resident(
        &mut self,
        cx: &mut Context<'_>,
        section: &Section,
        metrics: &ServerMetrics,
    ) -> Poll<io::Result<()>> {
        loop {
            match self {
                Front::Resident => return Poll::Ready(Ok(())),
                Front::Unknown if section.is_resident()? => *self = Front::Resident,
                Front::Unknown => {
                    metrics.waited_for_disk();
                    *self = Front::Warming(Box::pin(section.clone().warm()));
                }
                Front::Warming(warming) => {
                    ready!(warming.as_mut().poll(cx))?;
                    *self = Front::Resident;
                }
            }
        }
    }
}

impl AsyncRead for Outlet {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Outlet {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match bufs.iter().position(|buf| is_stand_in(buf)) {
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
            Some(0) => self.poll_send_section(cx, bufs[0].len()),
            Some(before) => {
                self.cork()?;
                Pin::new(&mut self.stream).poll_write_vectored(cx, &bufs[..before])
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.uncork()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("stream", &self.stream).finish_non_exhaustive()
    }
}

fn is_stand_in(buf: &[u8]) -> bool {
    !buf.is_empty() && STAND_IN.as_ptr_range().contains(&buf.as_ptr())
}
