//! HTTP/1.1 and HTTP/2, bodies, panics.

use std::io;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use tidelock::server::{BindError, Body, Peer, bind};

use super::kit::{echo, get, http2, limits, read_until, request, rest, send, start, start_on, text, within};

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let served = start(limits(), None, echo).await;
    let mut stream = served.connect().await;
    for path in ["/a", "/b", "/c"] {
        send(&mut stream, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let answer = read_until(&mut stream, path).await;
        assert!(answer.contains("content-length: 2\r\n"), "{answer}");
    }
    assert_eq!(served.metric("tidelock_connections"), 1);
    drop(stream);
    served.open_connections_become(0).await;
    assert_eq!(served.metric("tidelock_connections_total"), 1);
}

#[tokio::test]
async fn http2_without_tls_by_prior_knowledge() {
    let served = start(limits(), None, echo).await;
    let client = http2(served.connect().await).await;
    let answers = (0..100).map(|n| {
        let mut client = client.clone();
        async move {
            let response = within(client.send_request(request(&format!("/{n}")))).await.unwrap();
            assert_eq!(response.version(), Version::HTTP_2);
            assert_eq!(text(response).await, format!("/{n}"));
        }
    });
    futures_util::future::join_all(answers).await;
    assert_eq!(served.metric("tidelock_connections_total"), 1);
}

#[tokio::test]
async fn the_handler_knows_its_peer() {
    let served = start(limits(), None, |request: Request<Incoming>| async move {
        let peer = request.extensions().get::<Peer>().unwrap();
        Response::new(Body::full(format!("{} {}", peer.addr, peer.tls)))
    })
    .await;
    let mut stream = served.connect().await;
    let expected = format!("{} false", stream.local_addr().unwrap());
    send(&mut stream, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(rest(&mut stream).await.ends_with(&expected));
}

#[tokio::test]
async fn head_gets_the_length_and_no_body_on_both_protocols() {
    let served = start(limits(), None, |_| async { Response::new(Body::full("hello")) }).await;
    let mut stream = served.connect().await;
    send(&mut stream, "HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let answer = rest(&mut stream).await;
    assert!(answer.contains("content-length: 5\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");

    let mut client = http2(served.connect().await).await;
    let head = Request::head("http://x/").body(Empty::<Bytes>::new()).unwrap();
    let response = within(client.send_request(head)).await.unwrap();
    assert_eq!(response.headers()["content-length"], "5");
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn a_streamed_body_arrives_whole() {
    let served = start(limits(), None, |_| async {
        let chunks = (0..100).map(|_| Ok(Bytes::from(vec![b'x'; 10_000])));
        Response::new(Body::stream(stream::iter(chunks), 1_000_000))
    })
    .await;
    let answer = get(served.addr, "/").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-length: 1000000"), "{head}");
    assert_eq!(body.len(), 1_000_000);
    let mut client = http2(served.connect().await).await;
    assert_eq!(text(within(client.send_request(request("/"))).await.unwrap()).await.len(), 1_000_000);
}

/// I1: whoever gets part of a body can tell.
#[tokio::test]
async fn a_body_that_ends_early_is_never_taken_for_whole() {
    let served = start(limits(), None, |request: Request<Incoming>| async move {
        let mut chunks = vec![Ok(Bytes::from_static(b"some"))];
        match request.uri().path() {
            "/error" => chunks.push(Err(io::Error::other("torn"))),
            "/long" => chunks.push(Ok(Bytes::from_static(b"more than was said"))),
            _ => {}
        }
        Response::new(Body::stream(stream::iter(chunks), 10))
    })
    .await;
    for path in ["/short", "/error", "/long"] {
        let answer = get(served.addr, path).await;
        if let Some((head, body)) = answer.split_once("\r\n\r\n") {
            assert!(head.contains("content-length: 10") && body.len() < 10, "{path}: {answer}");
        }
        let mut client = http2(served.connect().await).await;
        let body = match within(client.send_request(request(path))).await {
            Ok(response) => within(response.into_body().collect()).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(body.is_err(), "{path} over HTTP/2");
    }
    served.open_connections_become(0).await;
}

#[tokio::test]
async fn a_panic_ends_one_request_and_nothing_else() {
    async fn handler(request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/panic" => panic!("in the handler (this is a test)"),
            "/panic-late" => {
                let broken = stream::once(async { panic!("in the body (this is a test)") });
                let chunks = stream::iter([Ok(Bytes::from_static(b"a"))]).chain(broken);
                Response::new(Body::stream(chunks, 2))
            }
            path => Response::new(Body::full(path.to_owned())),
        }
    }
    let served = start(limits(), None, handler).await;
    let answer = get(served.addr, "/panic").await;
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("connection: close\r\n"), "{answer}");
    assert!(!get(served.addr, "/panic-late").await.ends_with("\r\n\r\nab"));

    let mut client = http2(served.connect().await).await;
    let response = within(client.send_request(request("/panic"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let late = within(client.send_request(request("/panic-late"))).await;
    if let Ok(response) = late {
        assert!(within(response.into_body().collect()).await.is_err());
    }
    let response = within(client.send_request(request("/fine"))).await.unwrap();
    assert_eq!(text(response).await, "/fine", "the connection lives on");
    assert!(get(served.addr, "/fine").await.ends_with("/fine"));
}

#[tokio::test]
async fn a_port_in_use_is_said_in_words() {
    let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = first.local_addr().unwrap();
    let error = bind(addr).await.unwrap_err();
    assert!(matches!(error, BindError::InUse(at) if at == addr));
    let text = error.to_string();
    assert!(text.contains(&format!("{addr}: the address is in use")), "{text}");
    assert!(text.contains(&format!("sport = :{}", addr.port())), "{text}");
    let error = bind("192.0.2.1:0".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, BindError::NotHere(_)), "{error}");
}

#[tokio::test]
async fn the_ipv6_wildcard_takes_ipv4_and_peers_are_written_plainly() {
    let Ok(listener) = bind("[::]:0".parse().unwrap()).await else {
        eprintln!("skipped: no IPv6 here");
        return;
    };
    let served = start_on(listener, limits(), None, |request: Request<Incoming>| async move {
        let peer = request.extensions().get::<Peer>().unwrap();
        Response::new(Body::full(peer.addr.ip().to_string()))
    })
    .await;
    let port = served.addr.port();
    for ip in ["127.0.0.1", "::1"] {
        let answer = get(std::net::SocketAddr::new(ip.parse().unwrap(), port), "/").await;
        assert!(answer.ends_with(&format!("\r\n\r\n{ip}")), "{answer}");
    }
}
