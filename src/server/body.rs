//! The body of an answer: bytes, or a stream of which the length is known, from memory and from files; or news without
//! end.

use std::error::Error;
use std::fmt;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, TryStreamExt};

use super::outlet::{Chunk, LEAST, Outbox};
use crate::section::{Piece, Section, Spare};

/// Any error.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The body of an answer. Its length is known from the start and goes out as `Content-Length`, but for [`Body::endless`].
pub struct Body(Kind);

enum Kind {
    Whole(Bytes),
    Endless(BoxStream<'static, Bytes>),
    Stream { pieces: BoxStream<'static, io::Result<Piece>>, missing: u64, copying: Copying, spare: Spare },
}

/// A section that goes out through memory.
enum Copying {
    Nothing,
    Next(Section),
    /// What is read at the moment, and what comes after it.
    Reading(BoxFuture<'static, io::Result<Bytes>>, Section),
}

/// A stream does not hold the bytes that were announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum WrongLength {
    #[error("the body ended {missing} bytes early")]
    Short { missing: u64 },
    #[error("the body goes on for at least {excess} bytes after its end")]
    Long { excess: u64 },
}

impl Body {
    /// Nothing.
    pub fn empty() -> Body {
        Body::full(Bytes::new())
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        Body(Kind::Whole(bytes.into()))
    }

    /// `exact_len` bytes as they arrive. A stream that fails, ends early or holds more has the connection cut
    /// short of `Content-Length`, so that nobody takes what was sent for the whole (I1).
    pub fn stream<P: Into<Piece> + 'static>(
        pieces: impl Stream<Item = io::Result<P>> + Send + 'static,
        exact_len: u64,
    ) -> Body {
        let pieces = Box::pin(pieces.map_ok(Into::into));
        let (copying, spare) = (Copying::Nothing, Spare::default());
        Body(Kind::Stream { pieces, missing: exact_len, copying, spare })
    }

    /// What comes, as long as it comes and the client stays. Nothing that has a digest goes out like this.
    pub fn endless(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
        Body(Kind::Endless(Box::pin(pieces)))
    }

    /// What goes out next. What is in a file goes into the `outbox`, where there is one; else it is read.
    pub(super) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        outbox: Option<&Outbox>,
    ) -> Poll<Option<Result<Chunk, BoxError>>> {
        let (pieces, missing, copying, spare) = match &mut self.0 {
            Kind::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Kind::Whole(bytes) => return Poll::Ready(Some(Ok(Chunk::Bytes(std::mem::take(bytes))))),
            Kind::Endless(pieces) => {
                return pieces.as_mut().poll_next(cx).map(|piece| piece.map(|bytes| Ok(Chunk::Bytes(bytes))));
            }
            Kind::Stream { pieces, missing, copying, spare } => (pieces, missing, copying, spare),
        };
        loop {
            if let Some(bytes) = ready!(copying.poll_bytes(cx, spare)?) {
                *missing -= bytes.len() as u64;
                return Poll::Ready(Some(Ok(Chunk::Bytes(bytes))));
            }
            let piece = match ready!(pieces.as_mut().poll_next(cx)?) {
                Some(piece) => piece,
                None if *missing == 0 => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(WrongLength::Short { missing: *missing }.into()))),
            };
            if let Some(excess @ 1..) = piece.len().checked_sub(*missing) {
                return Poll::Ready(Some(Err(WrongLength::Long { excess }.into())));
            }
            let chunk = match (piece, outbox) {
                (Piece::Section(section), Some(outbox)) if section.len() >= LEAST => {
                    *missing -= section.len();
                    Chunk::Promise(outbox.promise(section))
                }
                (Piece::Section(section), _) => {
                    *copying = Copying::Next(section);
                    continue;
                }
                (Piece::Bytes(bytes), _) => {
                    *missing -= bytes.len() as u64;
                    Chunk::Bytes(bytes)
                }
            };
            return Poll::Ready(Some(Ok(chunk)));
        }
    }

    /// All of it, through memory.
    ///
    /// # Errors
    /// Why it ends early.
    #[cfg(any(test, fuzzing))]
    pub async fn collect(mut self) -> Result<Bytes, BoxError> {
        let mut all = Vec::new();
        while let Some(chunk) = std::future::poll_fn(|cx| self.poll_chunk(cx, None)).await {
            all.extend_from_slice(bytes::Buf::chunk(&chunk?));
        }
        Ok(all.into())
    }

    /// How many bytes are still to come; `None` where nobody knows.
    pub(super) fn missing(&self) -> Option<u64> {
        match &self.0 {
            Kind::Whole(bytes) => Some(bytes.len() as u64),
            Kind::Stream { missing, .. } => Some(*missing),
            Kind::Endless(_) => None,
        }
    }
}

impl Copying {
    /// The next bytes; none where there is nothing more of the section.
    fn poll_bytes(&mut self, cx: &mut Context<'_>, spare: &Spare) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            match std::mem::replace(self, Copying::Nothing) {
                Copying::Nothing => return Poll::Ready(Ok(None)),
                Copying::Next(section) if section.is_empty() => {}
                Copying::Next(section) => match section.read_now(spare)? {
                    Some(bytes) => return Poll::Ready(Ok(Some(self.read(bytes, section)))),
                    None => *self = Copying::Reading(Box::pin(section.clone().read()), section),
                },
                Copying::Reading(mut reading, section) => {
                    let Poll::Ready(bytes) = reading.as_mut().poll(cx) else {
                        *self = Copying::Reading(reading, section);
                        return Poll::Pending;
                    };
                    return Poll::Ready(Ok(Some(self.read(bytes?, section))));
                }
            }
        }
    }

    fn read(&mut self, bytes: Bytes, mut section: Section) -> Bytes {
        section.advance(bytes.len() as u64);
        *self = Copying::Next(section);
        bytes
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("missing", &self.missing()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::stream;

    use super::*;

    fn stream_of(chunks: &[&'static str], exact_len: u64) -> Body {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect();
        Body::stream(stream::iter(chunks), exact_len)
    }

    async fn collect(body: Body) -> Result<String, String> {
        let all = body.collect().await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8(all.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn holds_what_was_announced() {
        for (body, expected) in
            [(Body::empty(), ""), (Body::full("abc"), "abc"), (stream_of(&["ab", "", "c"], 3), "abc")]
        {
            assert_eq!(body.missing(), Some(expected.len() as u64));
            assert_eq!(collect(body).await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn a_wrong_length_is_an_error() {
        let short = collect(stream_of(&["ab"], 3)).await.unwrap_err();
        assert_eq!(short, "the body ended 1 bytes early");
        let long = collect(stream_of(&["ab", "cd"], 3)).await.unwrap_err();
        assert_eq!(long, "the body goes on for at least 1 bytes after its end");
    }

    #[tokio::test]
    async fn the_streams_own_error_comes_through() {
        let chunks = stream::iter([Ok(Bytes::from_static(b"ab")), Err(io::Error::other("torn"))]);
        assert_eq!(collect(Body::stream(chunks, 3)).await.unwrap_err(), "torn");
    }

    #[tokio::test]
    async fn what_is_in_a_file_is_read_piece_by_piece() {
        let mut file = tempfile::tempfile().unwrap();
        let text = "0123456789".repeat(20_000);
        io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        let file = Arc::new(file);
        let section = |range| Ok(Piece::from(Section::new(Arc::clone(&file), range)));
        let pieces = [section(0..150_000), Ok(Bytes::from_static(b"-").into()), section(7..7), section(3..5)];
        let body = Body::stream(stream::iter(pieces), 150_003);
        assert_eq!(collect(body).await.unwrap(), format!("{}-34", &text[..150_000]));
        let short = Body::stream(stream::iter([section(199_999..200_001)]), 2);
        assert_eq!(collect(short).await.unwrap_err(), "unexpected end of file");
    }
}
