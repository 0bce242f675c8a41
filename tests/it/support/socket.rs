//! A TCP connection that can be told to die at an exact point of what is written to it.
//!
//! HTTP servers buffer: a body that ends in an error takes unsent bytes with it. Here the order to
//! close is obeyed in `poll_flush`, which is reached only when everything buffered above has been
//! handed to the kernel, so "cut after 1000 bytes" means 1000.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const STAYS: u8 = 0;
const CLOSES: u8 = 1;
const RESETS: u8 = 2;
const BABBLES: u8 = 3;

/// The order to end one connection.
#[derive(Default)]
pub(super) struct Control {
    order: AtomicU8,
    last_words: Mutex<Vec<u8>>,
}

/// The connection that obeys it.
pub(super) struct Socket {
    stream: TcpStream,
    control: Arc<Control>,
}

impl Control {
    /// Closes the connection once what is buffered has been written.
    pub(super) fn close(&self) {
        self.order.store(CLOSES, Ordering::SeqCst);
    }

    /// The same, by a TCP reset.
    pub(super) fn reset(&self) {
        self.order.store(RESETS, Ordering::SeqCst);
    }

    /// Writes these bytes as they are, whatever HTTP says, and closes. They must fit a send buffer.
    pub(super) fn babble(&self, bytes: &[u8]) {
        *self.last_words.lock().expect("unpoisoned") = bytes.to_vec();
        self.order.store(BABBLES, Ordering::SeqCst);
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
        match self.control.order.load(Ordering::SeqCst) {
            STAYS => return Pin::new(&mut self.stream).poll_flush(cx),
            // A linger of zero turns the coming close into a reset.
            RESETS => socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?,
            BABBLES => {
                let words = self.control.last_words.lock().expect("unpoisoned");
                self.stream.try_write(&words)?;
            }
            _ => {}
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
