//! Stopping: what runs finishes, what rests goes, what comes is refused.

use std::io::ErrorKind;
use std::sync::Arc;

use http::Response;
use tidelock::server::Body;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::kit::{Served, echo, http2, limits, read_until, request, rest, send, start, text, within};

/// A server whose answers wait for `leave`; and how many have begun to wait.
async fn gated() -> (Served, Arc<Semaphore>, Arc<Semaphore>) {
    let (arrived, leave) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (tell, wait) = (Arc::clone(&arrived), Arc::clone(&leave));
    let served = start(limits(), None, move |_| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        async move {
            tell.add_permits(1);
            wait.acquire().await.unwrap().forget();
            Response::new(Body::full("at last"))
        }
    })
    .await;
    (served, arrived, leave)
}

/// Whoever knocks between the stop and the end of the listening socket is reset or let hang; then refused.
async fn refuses(served: &Served) {
    let refused = |attempt: std::io::Result<TcpStream>| {
        attempt.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    within(async { while !refused(TcpStream::connect(served.addr).await) {} }).await;
}

#[tokio::test]
async fn a_running_answer_finishes_while_new_connections_are_refused() {
    let (served, arrived, leave) = gated().await;
    let mut one = served.connect().await;
    send(&mut one, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut two = http2(served.connect().await).await;
    let asked = tokio::spawn(two.send_request(request("/")));
    within(arrived.acquire_many(2)).await.unwrap().forget();

    served.life.stop();
    refuses(&served).await;
    assert!(!served.ended.is_finished());
    leave.add_permits(2);
    let answer = rest(&mut one).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("at last"), "{answer}");
    assert_eq!(text(within(asked).await.unwrap().unwrap()).await, "at last");
    within(served.ended).await.unwrap();
    within(served.life.wait()).await;
}

#[tokio::test]
async fn connections_at_rest_close_at_once() {
    let served = start(limits(), None, echo).await;
    let mut fresh = served.connect().await;
    let mut rested = served.connect().await;
    send(&mut rested, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    read_until(&mut rested, "/a").await;
    let mut multiplexed = http2(served.connect().await).await;
    within(multiplexed.send_request(request("/"))).await.unwrap();
    served.open_connections_become(3).await;

    served.life.stop();
    assert_eq!(rest(&mut fresh).await, "");
    assert_eq!(rest(&mut rested).await, "");
    within(served.ended).await.unwrap();
    within(served.life.wait()).await;
    assert_eq!(served.metrics.render().matches("tidelock_connections 0").count(), 1);
}
