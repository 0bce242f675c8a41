//! What goes out of files: by sendfile on HTTP/1 in clear, through memory elsewhere, and the same bytes either way.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any};
use proptest::test_runner::TestRunner;
use tidelock::section::{Fault, Piece, Section};
use tidelock::server::Body;
use tokio::io::AsyncReadExt;

use super::kit::{Served, eventually, http1, http2, limits, request, send, start, within};

/// Of the file that all of these tests send of.
const LENGTH: u64 = 3 << 20;
/// What is shorter is copied.
const LEAST: u64 = 32 << 10;

/// A part of a body: some of the file, or bytes that are in memory.
#[derive(Debug, Clone)]
enum Part {
    File(u64, u64),
    Memory(u8),
}

/// A file of no pattern, and what is in it.
fn file() -> (Arc<File>, Bytes) {
    let mut state = 1_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    })
    .take(usize::try_from(LENGTH).unwrap())
    .collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    (Arc::new(file), bytes.into())
}

fn part() -> impl Strategy<Value = Part> {
    let edges = [0, 1, 4095, LEAST - 1, LEAST, LEAST + 1, 1 << 20, LENGTH];
    (0..LENGTH, proptest::sample::select(edges.to_vec()), any::<u8>()).prop_map(|(start, length, byte)| {
        if byte % 4 == 0 { Part::Memory(byte) } else { Part::File(start, (start + length).min(LENGTH)) }
    })
}

/// Serves the parts that a path names by their place in `bodies`.
async fn serve(file: Arc<File>, bodies: Vec<Vec<Part>>) -> Served {
    let bodies = Arc::new(bodies);
    start(limits(), None, move |request: Request<Incoming>| {
        let parts = bodies[request.uri().path()[1..].parse::<usize>().unwrap()].clone();
        let file = Arc::clone(&file);
        async move {
            let length = parts.iter().map(Part::len).sum();
            let pieces = parts.into_iter().map(move |part| {
                Ok(match part {
                    Part::File(start, end) => Piece::from(Section::new(Arc::clone(&file), start..end)),
                    Part::Memory(byte) => Piece::from(Bytes::from(vec![byte; usize::from(byte)])),
                })
            });
            // Now and then the next piece has to be waited for.
            let pieces = stream::iter(pieces).then(|piece| async {
                if matches!(piece, Ok(Piece::Bytes(_))) {
                    tokio::task::yield_now().await;
                }
                piece
            });
            Response::new(Body::stream(pieces, length))
        }
    })
    .await
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Part::File(start, end) => end - start,
            Part::Memory(byte) => u64::from(*byte),
        }
    }

    fn bytes(&self, file: &Bytes) -> Vec<u8> {
        match self {
            Part::File(start, end) => file[*start as usize..*end as usize].to_vec(),
            Part::Memory(byte) => vec![*byte; usize::from(*byte)],
        }
    }

    /// How much of it goes by sendfile.
    fn sent(&self) -> u64 {
        if matches!(self, Part::File(..)) && self.len() >= LEAST { self.len() } else { 0 }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_sendfile_the_same_bytes_go_out_as_through_memory() {
    let (file, content) = file();
    let mut runner = TestRunner::new(ProptestConfig::default());
    let bodies: Vec<Vec<Part>> = std::iter::repeat_with(|| {
        use proptest::strategy::ValueTree;
        vec(part(), 0..8).new_tree(&mut runner).unwrap().current()
    })
    .take(60)
    .collect();
    let served = serve(file, bodies.clone()).await;
    let (mut clear, mut streams) = (http1(served.connect().await).await, http2(served.connect().await).await);
    let mut sent = 0;
    for (place, parts) in bodies.iter().enumerate() {
        let path = format!("/{place}");
        let expected: Vec<u8> = parts.iter().flat_map(|part| part.bytes(&content)).collect();
        within(clear.ready()).await.unwrap();
        for answer in [clear.send_request(request(&path)).await, streams.send_request(request(&path)).await] {
            let body = within(answer.unwrap().into_body().collect()).await.unwrap().to_bytes();
            assert!(body == expected, "{parts:?}: other bytes, {} of {}", body.len(), expected.len());
        }
        sent += parts.iter().map(Part::sent).sum::<u64>();
        // Else nothing here was shown.
        eventually(|| served.metric("tidelock_sendfile_bytes_total") == i64::try_from(sent).unwrap()).await;
    }
    assert!(sent > LENGTH);
}

#[tokio::test]
async fn a_file_that_is_too_short_cuts_the_answer_and_is_told_of() {
    let (file, content) = file();
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    let served = start(limits(), None, move |_| {
        let counter = Arc::clone(&counter);
        let fault: Fault = Arc::new(move |_: &std::io::Error| {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let section = Section::new(Arc::clone(&file), LENGTH - 500_000..LENGTH + 1).or_else(fault);
        async move { Response::new(Body::stream(stream::iter([Ok(section)]), 500_001)) }
    })
    .await;
    let mut client = served.connect().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = within(client.read_to_end(&mut answer)).await;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    // The probe of its last byte may come first: then nothing goes out.
    let body = &answer[head..];
    assert!(content[content.len() - 500_000..].starts_with(body) && body.len() <= 500_000);
    served.open_connections_become(0).await;
    assert_eq!(told.load(Ordering::SeqCst), 1);
    let mut client = http2(served.connect().await).await;
    let answer = within(client.send_request(request("/"))).await.unwrap();
    assert!(within(answer.into_body().collect()).await.is_err());
    assert_eq!(told.load(Ordering::SeqCst), 2);
}

/// It holds a file and a socket, and no bytes; the file goes when the client does.
#[tokio::test]
async fn a_client_that_leaves_in_the_midst_leaves_nothing_behind() {
    let (file, _) = file();
    let own = Arc::clone(&file);
    let served = start(limits(), None, move |_| {
        let pieces: Vec<_> = (0..100).map(|_| Ok(Section::new(Arc::clone(&own), 0..1 << 20))).collect();
        async move { Response::new(Body::stream(stream::iter(pieces), 100 << 20)) }
    })
    .await;
    let before = Arc::strong_count(&file);
    let mut client = served.connect().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut some = vec![0; 1 << 20];
    within(client.read_exact(&mut some)).await.unwrap();
    assert!(Arc::strong_count(&file) > before);
    drop(client);
    served.open_connections_become(0).await;
    eventually(|| Arc::strong_count(&file) == before).await;
}
