//! Small bodies, whole in memory.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::Error;
use super::wire::root;

/// The most that is read of an error's or redirect's body: for its text, and so that the connection can be
/// used again.
const MOST_OF_AN_ERROR: usize = 64 << 10;
/// The longest that an error's body is waited for; its status says enough.
const PATIENCE_WITH_ERRORS: Duration = Duration::from_secs(5);
/// The longest that a whole document may take, however steadily it drips.
const PATIENCE_WITH_DOCUMENTS: Duration = Duration::from_secs(300);

/// The whole body, of at most `most` bytes, with never more than `idle` between two pieces.
pub(super) async fn whole(
    answer: Response<Incoming>,
    endpoint: &str,
    most: usize,
    idle: Duration,
) -> Result<Bytes, Error> {
    let reading = read(answer.into_body(), endpoint, most, idle);
    tokio::time::timeout(PATIENCE_WITH_DOCUMENTS, reading)
        .await
        .unwrap_or_else(|_| Err(timed_out(endpoint, PATIENCE_WITH_DOCUMENTS)))
}

/// As much of an error's or redirect's body as is worth having; what goes wrong with it does not matter.
pub(super) async fn scrap(answer: Response<Incoming>) -> Bytes {
    let mut body = answer.into_body();
    let mut bytes = BytesMut::new();
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            if bytes.len() > MOST_OF_AN_ERROR {
                return;
            }
        }
    };
    // An answer cut off by the time limit is as good as a short one.
    let _ = tokio::time::timeout(PATIENCE_WITH_ERRORS, reading).await;
    bytes.truncate(MOST_OF_AN_ERROR);
    bytes.freeze()
}

async fn read(mut body: Incoming, endpoint: &str, most: usize, idle: Duration) -> Result<Bytes, Error> {
    if body.size_hint().lower() > most as u64 {
        return Err(too_large(endpoint, most));
    }
    let mut bytes = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(idle, body.frame()).await.map_err(|_| timed_out(endpoint, idle))?;
        let Some(frame) = frame else { return Ok(bytes.freeze()) };
        let frame = frame.map_err(|error| Error::BrokenOff {
            endpoint: endpoint.to_owned(),
            received: bytes.len() as u64,
            reason: root(&error),
        })?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        if bytes.len() > most {
            return Err(too_large(endpoint, most));
        }
    }
}

fn too_large(endpoint: &str, most: usize) -> Error {
    Error::BadAnswer {
        endpoint: endpoint.to_owned(),
        reason: format!("a document of more than {most} bytes"),
    }
}

fn timed_out(endpoint: &str, after: Duration) -> Error {
    Error::TimedOut { endpoint: endpoint.to_owned(), after }
}
