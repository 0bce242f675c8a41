//! The body of an answer: bytes, or a stream of which the length is known.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Frame, SizeHint};

/// Any error.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The body of an answer. Its length is known from the start and goes out as `Content-Length`.
pub struct Body(Kind);

enum Kind {
    Whole(Bytes),
    Stream { chunks: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>, missing: u64 },
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
    pub fn stream(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static, exact_len: u64) -> Body {
        Body(Kind::Stream { chunks: Box::pin(chunks), missing: exact_len })
    }

    fn missing(&self) -> u64 {
        match &self.0 {
            Kind::Whole(bytes) => bytes.len() as u64,
            Kind::Stream { missing, .. } => *missing,
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let next = match &mut self.get_mut().0 {
            Kind::Whole(bytes) if bytes.is_empty() => None,
            Kind::Whole(bytes) => Some(Ok(std::mem::take(bytes))),
            Kind::Stream { chunks, missing } => match ready!(chunks.as_mut().poll_next(cx)) {
                Some(chunk) => Some(chunk.map_err(BoxError::from).and_then(|chunk| deduct(chunk, missing))),
                None if *missing == 0 => None,
                None => Some(Err(WrongLength::Short { missing: *missing }.into())),
            },
        };
        Poll::Ready(next.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.missing() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.missing())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("missing", &self.missing()).finish()
    }
}

fn deduct(chunk: Bytes, missing: &mut u64) -> Result<Bytes, BoxError> {
    let len = chunk.len() as u64;
    let excess = len.saturating_sub(*missing);
    if excess > 0 {
        return Err(WrongLength::Long { excess }.into());
    }
    *missing -= len;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::BodyExt;

    use super::*;

    fn stream_of(chunks: &[&'static str], exact_len: u64) -> Body {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect();
        Body::stream(stream::iter(chunks), exact_len)
    }

    #[tokio::test]
    async fn holds_what_was_announced() {
        for (body, expected) in
            [(Body::empty(), ""), (Body::full("abc"), "abc"), (stream_of(&["ab", "", "c"], 3), "abc")]
        {
            assert_eq!(http_body::Body::size_hint(&body).exact(), Some(expected.len() as u64));
            assert_eq!(body.collect().await.unwrap().to_bytes(), expected);
        }
    }

    #[tokio::test]
    async fn a_wrong_length_is_an_error() {
        let short = stream_of(&["ab"], 3).collect().await.unwrap_err();
        assert_eq!(short.to_string(), "the body ended 1 bytes early");
        let long = stream_of(&["ab", "cd"], 3).collect().await.unwrap_err();
        assert_eq!(long.to_string(), "the body goes on for at least 1 bytes after its end");
    }

    #[tokio::test]
    async fn the_streams_own_error_comes_through() {
        let chunks = stream::iter([Ok(Bytes::from_static(b"ab")), Err(io::Error::other("torn"))]);
        assert_eq!(Body::stream(chunks, 3).collect().await.unwrap_err().to_string(), "torn");
    }
}
