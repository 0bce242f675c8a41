//! What a connection may take, and how long (I7, I8).

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use tidelock::server::{Body, Limits};

use super::kit::{
    echo, eventually, get, http2, limits, read_until, request, rest, send, start, text, within,
};

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_head_that_never_ends_is_cut() {
    let served = start(Limits { header_read_timeout: SHORT, ..limits() }, None, echo).await;
    for beginning in ["", "G", "PRI * HT", "GET / HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = served.connect().await;
        send(&mut stream, beginning).await;
        assert_eq!(rest(&mut stream).await, "", "{beginning:?}");
    }
    // The second request's head is timed too, from its first byte.
    let mut stream = served.connect().await;
    send(&mut stream, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    read_until(&mut stream, "/a").await;
    send(&mut stream, "GET /b").await;
    assert_eq!(rest(&mut stream).await, "");
    served.open_connections_become(0).await;
}

#[tokio::test]
async fn a_connection_may_rest_longer_than_a_head_may_take() {
    let limits = Limits { header_read_timeout: SHORT, idle_timeout: 5 * SHORT, ..limits() };
    let served = start(limits, None, echo).await;
    let mut stream = served.connect().await;
    send(&mut stream, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    read_until(&mut stream, "/a").await;
    let rested = std::time::Instant::now();
    assert_eq!(rest(&mut stream).await, "");
    assert!(rested.elapsed() > 4 * SHORT, "{:?}", rested.elapsed());
}

#[tokio::test]
async fn many_that_rest_are_ended_and_others_come_in() {
    let limits = Limits { idle_timeout: 5 * SHORT, ..Limits::new(300) };
    let served = start(limits, None, echo).await;
    let mut rested = Vec::new();
    for _ in 0..300 {
        let mut stream = served.connect().await;
        send(&mut stream, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
        read_until(&mut stream, "/a").await;
        rested.push(stream);
    }
    // It waits until a slot is given up.
    assert!(get(served.addr, "/b").await.ends_with("/b"));
    served.open_connections_become(0).await;
    for stream in &mut rested {
        assert_eq!(rest(stream).await, "");
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut() {
    let served = start(Limits { stall_timeout: SHORT, ..limits() }, None, |_| async {
        let endless = stream::repeat_with(|| Ok(Bytes::from(vec![0; 64 << 10])));
        Response::new(Body::stream(endless, 1 << 40))
    })
    .await;
    let mut one = served.connect().await;
    send(&mut one, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut two = http2(served.connect().await).await;
    let _unread = within(two.send_request(request("/"))).await.unwrap();
    served.open_connections_become(0).await;
    assert_eq!(served.metric("tidelock_connections_total"), 2);
}

#[tokio::test]
async fn a_head_of_64_kib_passes_and_a_larger_one_does_not() {
    let served = start(limits(), None, echo).await;
    let head = |total: usize| {
        let (begin, end) = ("GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: ", "\r\n\r\n");
        format!("{begin}{}{end}", "r".repeat(total - begin.len() - end.len()))
    };
    for (total, status) in [(64 << 10, "200"), (200 << 10, "431")] {
        let mut stream = served.connect().await;
        let (mut read, mut write) = stream.split();
        let head = head(total);
        // The server may close while we still write: only its answer matters.
        let sending = async { drop(tokio::io::AsyncWriteExt::write_all(&mut write, head.as_bytes()).await) };
        let (answer, ()) = tokio::join!(read_until(&mut read, "\r\n"), sending);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[tokio::test]
async fn http2_takes_a_head_of_1024_ranges_and_refuses_a_huge_one() {
    let served = start(limits(), None, echo).await;
    let mut client = http2(served.connect().await).await;
    let with_range = |bytes: usize| {
        let range = "r".repeat(bytes);
        Request::get("http://x/a").header("range", range).body(Empty::<Bytes>::new()).unwrap()
    };
    let response = within(client.send_request(with_range(48 << 10))).await.unwrap();
    assert_eq!(text(response).await, "/a");
    let refused = within(client.send_request(with_range(200 << 10))).await;
    assert!(refused.map_or(true, |answer| answer.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    assert!(get(served.addr, "/b").await.ends_with("/b"));
}

#[tokio::test]
async fn a_connection_over_the_limit_waits_for_its_turn() {
    let served = start(Limits::new(2), None, echo).await;
    let mut held = vec![served.connect().await, served.connect().await];
    served.open_connections_become(2).await;
    let mut waiting = served.connect().await; // by the kernel; nobody answers yet
    send(&mut waiting, "GET /w HTTP/1.1\r\nHost: x\r\n\r\n").await;
    // Whoever holds a slot is served meanwhile.
    send(&mut held[0], "GET /h HTTP/1.1\r\nHost: x\r\n\r\n").await;
    read_until(&mut held[0], "/h").await;
    assert_eq!(served.metric("tidelock_connections_total"), 2);
    held.pop();
    assert!(read_until(&mut waiting, "/w").await.starts_with("HTTP/1.1 200"));
    eventually(|| served.metric("tidelock_connections") == 2).await;
}

#[tokio::test]
async fn listeners_share_their_slots_and_none_keeps_one_for_itself() {
    let limits = Limits::new(1);
    let (one, two) = (start(limits.clone(), None, echo).await, start(limits, None, echo).await);
    for served in [&one, &two, &one, &two] {
        assert!(get(served.addr, "/a").await.ends_with("/a"));
    }
    let held = one.connect().await;
    one.open_connections_become(1).await;
    let mut waiting = two.connect().await;
    send(&mut waiting, "GET /w HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    drop(held);
    assert!(rest(&mut waiting).await.ends_with("/w"));
}
