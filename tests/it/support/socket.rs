//! A TCP connection that can be told to die at an exact point of what is written to it.
//!
//! HTTP servers buffer: a body that ends in an error takes unsent bytes with it. Here the order to
//! close is obeyed in `poll_flush`, which is reached only when everything buffered above has been
//! handed to the kernel, so "cut after 1000 bytes" means 1000.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const STAYS: u8 = 0;
const CLOSES: u8 = 1;
const RESETS: u8 = 2;

/// The order to end one connection.
#[derive(Default)]
pub(super) struct Control(AtomicU8);

/// The connection that obeys it.
pub(super) struct Socket {
    stream: TcpStream,
    control: Arc<Control>,
}

impl Control {
    /// Closes the connection once what is buffered has been written.
    pub(super) fn close(&self) {
        self.0.store(CLOSES, Ordering::SeqCst);
    }

    /// The same, by a TCP reset.
    pub(super) fn reset(&self) {
        self.0.store(RESETS, Ordering::SeqCst);
    }
}

impl Socket {
    pub(super) fn new(stream: TcpStream, control: Arc<Control>) -> Self {
        Self { stream, control }
    }

    /// The first byte that the client sends, left in place; none when it hangs up without one.
    pub(super) async fn first_byte(&self) -> Option<u8> {
        let mut byte = [0];
        match self.stream.peek(&mut byte).await {
            Ok(1) => Some(byte[0]),
            _ => None,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.control.0.load(Ordering::SeqCst) {
            STAYS => return Pin::new(&mut self.stream).poll_flush(cx),
            // A linger of zero turns the coming close into a reset.
            RESETS => socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?,
            _ => {}
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
