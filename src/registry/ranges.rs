//! A blob's body: whole, one part, or several (RFC 9110 §14 and §15.3.7).

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use http::StatusCode;
use http::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE};
use rand::RngExt;

use super::error::Error;
use super::response::{self, Answer};
use crate::mirror::{BlobAnswer, Content};
use crate::oci::{ByteRange, Digest, Ranges, Selection};
use crate::section::Piece;

type Pieces = BoxStream<'static, std::io::Result<Piece>>;

/// The answer to a GET. `ranges` is what the client asked for, where that is to be honoured.
pub(super) fn body(answer: BlobAnswer, digest: &Digest, ranges: Option<Ranges>) -> Result<Answer, Error> {
    let BlobAnswer { size, content, served } = answer;
    let head = response::blob(digest, size, served);
    let Some(content) = content else { return Ok(head) };
    if !content.is_seekable() {
        // What passes through unkept comes once and in order; ignoring a Range is always allowed.
        return Ok(head.without(&ACCEPT_RANGES).stream(content.read_all(size), size));
    }
    match ranges.map_or(Selection::Whole, |ranges| ranges.select(size)) {
        Selection::Whole => Ok(head.stream(content.read_all(size), size)),
        Selection::Parts(parts) if parts.len() == 1 => Ok(one_part(head, &content, parts[0], size)),
        Selection::Parts(parts) => Ok(many_parts(head, content, parts, size)),
        Selection::Unsatisfiable => Err(Error::Range(size)),
        Selection::TooMuch => Err(Error::Ranges),
    }
}

fn one_part(head: Answer, content: &Content, part: ByteRange, size: u64) -> Answer {
    let head = partial(head).with(CONTENT_RANGE, part.content_range(size));
    head.stream(read(content, part, size), part.len())
}

/// `multipart/byteranges`: the parts as asked for, none joined and none left out, since podman counts them. Each is
/// made when the one before has gone: a thousand at once would be 700 KiB for a client that does not read (I7).
fn many_parts(head: Answer, content: Content, parts: Vec<ByteRange>, size: u64) -> Answer {
    let boundary = format!("{:032x}", rand::rng().random::<u128>());
    let head = partial(head).with(CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}"));
    let closing = Bytes::from(format!("\r\n--{boundary}--\r\n"));
    let lengths = parts.iter().map(|part| opening(&boundary, *part, size).len() as u64 + part.len());
    let length = lengths.sum::<u64>() + closing.len() as u64;
    let pieces = parts.into_iter().map(move |part| {
        let opening = stream::iter([Ok(opening(&boundary, part, size).into())]);
        Ok::<Pieces, std::io::Error>(opening.chain(read(&content, part, size)).boxed())
    });
    head.stream(stream::iter(pieces).try_flatten().chain(stream::iter([Ok(closing.into())])).boxed(), length)
}

/// What stands before a part.
fn opening(boundary: &str, part: ByteRange, size: u64) -> Bytes {
    let range = part.content_range(size);
    Bytes::from(format!(
        "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {range}\r\n\r\n"
    ))
}

fn partial(mut head: Answer) -> Answer {
    head.status = StatusCode::PARTIAL_CONTENT;
    head
}

fn read(content: &Content, part: ByteRange, size: u64) -> Pieces {
    content.read(part, size).unwrap_or_else(|| {
        stream::iter([Err(std::io::Error::other("only the whole of what passes through can be read"))])
            .boxed()
    })
}
