//! An endpoint that does not answer costs a few time limits in all, not one for each request, and comes back by itself.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tidelock::upstream::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::client::Reply;
use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Gate, Match, Times};
use crate::support::house::{House, upstream};
use crate::support::images::{Blob, Image};
use crate::support::registry::FakeRegistry;
use crate::upstream_rig::Plan;

/// Failures in a row before it opens.
const MOST_FAILURES: usize = 5;
/// The longest that it is left alone at first.
const FIRST_WAIT: u64 = 4;
/// The longest ever: it grows with each trial that fails.
const LONGEST_WAIT: u64 = 60;
const LIMIT: Duration = Duration::from_millis(300);
const DOWN: &str = "tidelock_endpoint_down{endpoint=\"1\",upstream=\"docker.io\"}";

/// How an upstream does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// It takes the connection and the request.
    Silent,
    Refused,
    /// Packets to it are lost.
    BlackHole,
    /// A gateway with nobody behind it.
    Gateway,
}

/// An address where nobody ever picks up: the queue of a listener that does not accept is full.
struct BlackHole {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    async fn dig() -> BlackHole {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let (mut waiting, address) = (Vec::new(), listener.local_addr().unwrap());
        while let Ok(stream) = tokio::time::timeout(LIMIT, TcpStream::connect(address)).await {
            waiting.push(stream.unwrap());
        }
        BlackHole { listener, _waiting: waiting }
    }

    fn url(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }
}

/// A registry with twelve repositories, `library/app0` and so on, that hold one image.
async fn registry() -> (FakeRegistry, Image) {
    let (fake, image) = (FakeRegistry::start().await, Image::layers(1, &[1000]));
    for number in 0..12 {
        fake.push(&format!("library/app{number}"), "v1", &image);
    }
    (fake, image)
}

async fn house(endpoints: &[&str]) -> House {
    House::start(vec![upstream("docker.io", endpoints)], |config| {
        config.upstreams[0].connect_timeout = LIMIT;
        // Longer: else either may be what a black hole is told by, and they count in different ways.
        config.upstreams[0].response_timeout = LIMIT * 3;
        config.upstreams[0].idle_timeout = Duration::from_secs(30);
    })
    .await
}

fn manifest(number: usize) -> String {
    format!("/v2/library/app{number}/manifests/v1")
}

/// Requests that went out, answered or not; a connection that was not made is one too.
async fn asked(house: &House) -> usize {
    let text = house.admin().get("/metrics").await.text();
    let lines = text.lines().filter(|line| line.starts_with("tidelock_upstream_requests_total{"));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as usize).sum()
}

/// Lets it open, by requests for different repositories one after the other.
async fn open(house: &House) {
    for number in 0..MOST_FAILURES {
        house.client().get(&manifest(number)).await;
    }
    assert_eq!(house.metric(DOWN).await, 1.0);
}

/// Whether a client is told at once that nobody answers there.
fn is_told(reply: &Reply) -> bool {
    [502, 504].contains(&reply.status)
        && reply.error_code() == "UNAVAILABLE"
        && reply.text().contains("docker.io has not answered since")
        && (1..=LONGEST_WAIT + 1).contains(&advised(reply))
}

/// For how many seconds a client is to stay away.
fn advised(reply: &Reply) -> u64 {
    reply.header("retry-after").parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_upstream_costs_a_few_time_limits_in_all() {
    for death in [Death::Silent, Death::Refused, Death::BlackHole, Death::Gateway] {
        // Many repositories; one alone.
        for repositories in [12, 1] {
            let ((fake, _), hole) = (registry().await, BlackHole::dig().await);
            match death {
                Death::Silent => {
                    drop(fake.fault(Match::any(), Times::Always, Fault::hold_head(&Gate::new())));
                }
                Death::Gateway => drop(fake.fault(Match::any(), Times::Always, Fault::status(503))),
                Death::Refused => fake.stop().await,
                Death::BlackHole => {}
            }
            let url = if death == Death::BlackHole { hole.url() } else { fake.url() };
            let house = house(&[&url]).await;
            let (begun, mut told, mut tried) = (Instant::now(), 0, 0);
            for turn in 0..60 {
                let reply = house.client().get(&manifest(turn % repositories)).await;
                let what = format!("{death:?} {repositories} {turn}: {} {}", reply.status, reply.text());
                assert!([502, 504].contains(&reply.status) && reply.error_code() == "UNAVAILABLE", "{what}");
                assert!(is_told(&reply) == (turn >= MOST_FAILURES) || told > 0, "{what}");
                // On a machine so slow that a trial has failed meanwhile, it is longer.
                assert!(told > 0 || advised(&reply) <= FIRST_WAIT + 1, "{what}: {}", advised(&reply));
                told += usize::from(is_told(&reply));
                tried += usize::from(told > 0 && !is_told(&reply));
            }
            // On a machine so slow that it is tried again meanwhile, that is another one.
            let trials = begun.elapsed().as_secs() as usize / 2;
            assert!(tried <= trials, "{death:?} {repositories}: {tried} of {told}");
            let asked = asked(&house).await;
            assert!((5..=5 + trials).contains(&asked), "{death:?} {repositories}: {asked}");
            let throttled =
                "tidelock_throttled_total{account=\"any\",reason=\"down\",upstream=\"docker.io\"}";
            assert_eq!(house.metric(throttled).await, told as f64, "{death:?}");
            let is_whole = repositories > 1 || matches!(death, Death::Refused | Death::BlackHole);
            assert_eq!(house.metric(DOWN).await, f64::from(u8::from(is_whole)), "{death:?} {repositories}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_comes_back_by_itself() {
    let (fake, image) = registry().await;
    fake.stop().await;
    let house = house(&[&fake.url()]).await;
    open(&house).await;
    fake.resume();
    let resumed = Instant::now();
    eventually(|| async {
        house.client().pull("library/app7", "v1").await.is_ok_and(|pulled| pulled.is(&image))
    })
    .await;
    assert!(resumed.elapsed() < Duration::from_secs(FIRST_WAIT + 2), "{:?}", resumed.elapsed());
    assert_eq!(house.metric(DOWN).await, 0.0);
    for number in 0..12 {
        assert!(house.client().pull(&format!("library/app{number}"), "v1").await.unwrap().is(&image));
    }
}

/// While one request finds out, the others are told at once; and the wait grows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_at_a_time_finds_out() {
    let (fake, _) = registry().await;
    let gate = Gate::new();
    fake.fault(Match::any(), Times::Always, Fault::hold_head(&gate));
    let house = house(&[&fake.url()]).await;
    open(&house).await;
    fake.clear();
    eventually(|| async {
        join_all((0..12).map(|number| {
            let client = house.client();
            async move { client.get(&manifest(number)).await }
        }))
        .await;
        fake.total() > 0
    })
    .await;
    assert_eq!(fake.total(), 1);
    let down = house.admin().get("/api/v1/budgets").await.json()["upstreams"][0]["down"][0].clone();
    assert_eq!(down["endpoint"], fake.host());
    assert!((FIRST_WAIT - 1..=2 * FIRST_WAIT).contains(&down["retry_seconds"].as_u64().unwrap()), "{down}");
    assert!(down["reason"].as_str().unwrap().contains("did not answer within"), "{down}");
}

/// What was sent together is lost together, and is one failure of the endpoint more or less.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_one_step() {
    let (fake, _) = registry().await;
    fake.fault(Match::any(), Times::Always, Fault::hold_head(&Gate::new()));
    let house = house(&[&fake.url()]).await;
    join_all((0..12).map(|number| {
        let client = house.client();
        async move { client.get(&manifest(number)).await }
    }))
    .await;
    let reply = house.client().get(&manifest(0)).await;
    assert!(is_told(&reply), "{} {}", reply.status, reply.text());
}

/// Nobody who waits in the queue waits for the dead (I8).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_when_it_opens() {
    let (fake, _) = registry().await;
    fake.fault(Match::any(), Times::Always, Fault::hold_head(&Gate::new()));
    let house = House::with(&fake, |config| {
        config.upstreams[0].max_connections = 2;
        config.upstreams[0].response_timeout = LIMIT;
        config.schedule.max_wait = Duration::from_secs(60);
    })
    .await;
    let begun = Instant::now();
    let replies = join_all((0..12).map(|number| {
        let client = house.client();
        async move { client.get(&manifest(number)).await }
    }))
    .await;
    let taken = begun.elapsed();
    let told = replies.iter().filter(|reply| is_told(reply)).count();
    // What was given up may be read only now.
    eventually_eq(12 - told, || std::future::ready(fake.total())).await;
    assert!(fake.total() <= MOST_FAILURES + 1, "{}", fake.total());
    assert!(replies.iter().all(|reply| [502, 504].contains(&reply.status)));
    assert!(taken < Duration::from_secs(10), "{taken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_tags_are_served_at_once() {
    let (fake, image) = registry().await;
    let house = house(&[&fake.url()]).await;
    for number in 0..12 {
        house.client().pull(&format!("library/app{number}"), "v1").await.unwrap();
    }
    fake.clear();
    fake.fault(Match::any(), Times::Always, Fault::hold_head(&Gate::new()));
    let begun = Instant::now();
    for turn in 0..60 {
        let reply = house.client().get(&manifest(turn % 12)).await;
        assert_eq!((reply.status, reply.header("docker-content-digest")), (200, image.digest()), "{turn}");
        assert!(reply.header("warning").starts_with("299"), "{turn}: {}", reply.header("warning"));
    }
    let trials = begun.elapsed().as_secs() as usize / 2;
    assert!((5..=5 + trials).contains(&fake.total()), "{}", fake.total());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_endpoint_takes_over_at_once() {
    let ((first, image), (second, _)) = (registry().await, registry().await);
    first.fault(Match::any(), Times::Always, Fault::hold_head(&Gate::new()));
    let house = house(&[&first.url(), &second.url()]).await;
    let begun = Instant::now();
    for number in 0..12 {
        let pulled = house.client().pull(&format!("library/app{number}"), "v1").await.unwrap();
        assert!(pulled.is(&image), "{number}");
    }
    let trials = begun.elapsed().as_secs() as usize / 2;
    assert!((5..=5 + trials).contains(&first.total()), "{}", first.total());
}

/// A mirror whose repository hangs, or has a broken gateway, is asked for all others as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_failing_repository_is_no_dead_endpoint() {
    for fault in [Fault::status(503), Fault::status(500), Fault::hold_head(&Gate::new())] {
        let (fake, image) = registry().await;
        fake.fault(Match::path("/library/app0/"), Times::Always, fault.clone());
        let house = house(&[&fake.url()]).await;
        for number in 1..12 {
            for _ in 0..2 * MOST_FAILURES {
                assert!(house.client().get(&manifest(0)).await.status >= 500, "{fault:?}");
            }
            assert_eq!(house.metric(DOWN).await, 0.0, "{fault:?} {number}");
            let pulled = house.client().pull(&format!("library/app{number}"), "v1").await.unwrap();
            assert!(pulled.is(&image), "{fault:?} {number}");
        }
    }
}

/// A house that is in the midst of a blob from its first endpoint, which then answers nobody any more.
async fn in_the_midst(second: &[&FakeRegistry]) -> (FakeRegistry, House, Blob) {
    let ((fake, _), blob) = (registry().await, Blob::random(7, 500_000));
    [&[&fake], second].concat().iter().for_each(|one| one.put_blob("library/blob", &blob));
    let urls: Vec<String> = [&[&fake], second].concat().iter().map(|one| one.url()).collect();
    let house = house(&urls.iter().map(String::as_str).collect::<Vec<_>>()).await;
    fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&Gate::new(), 200_000));
    fake.fault(Match::manifests(), Times::Always, Fault::hold_head(&Gate::new()));
    (fake, house, blob)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_under_way_goes_on_where_somebody_answers() {
    let (second, _) = registry().await;
    let (first, house, blob) = in_the_midst(&[&second]).await;
    let (client, path) = (house.client(), format!("/v2/library/blob/blobs/{}", blob.digest));
    let pulling = tokio::spawn(async move { client.get(&path).await });
    eventually(|| async { house.partials().iter().any(|(_, size)| *size >= 100_000) }).await;
    open(&house).await;
    first.clear();
    first.kill_connections().await;
    assert_eq!(pulling.await.unwrap().whole(), blob.bytes);
    assert_eq!((first.total(), second.count("GET", "/blobs/")), (0, 1));
}

/// It waits for its trial, and gives up no sooner than it would have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_under_way_outlasts_a_short_outage() {
    let (first, house, blob) = in_the_midst(&[]).await;
    let (client, path) = (house.client(), format!("/v2/library/blob/blobs/{}", blob.digest));
    let pulling = tokio::spawn(async move { client.get(&path).await });
    eventually(|| async { house.partials().iter().any(|(_, size)| *size >= 100_000) }).await;
    open(&house).await;
    first.stop().await;
    first.clear();
    // It has noticed, and does not ask while it is of no use.
    let resumed = "tidelock_resumed_total{upstream=\"docker.io\"}";
    assert_eq!(house.metric(resumed).await, 0.0);
    first.resume();
    first.lift_faults();
    assert_eq!(pulling.await.unwrap().whole(), blob.bytes);
    assert_eq!((first.total(), house.metric(resumed).await), (1, 1.0));
    eventually_eq(0.0, || house.metric(DOWN)).await;
}

/// The operator who asks whether it answers does not want to hear what others heard.
#[tokio::test]
async fn a_check_really_asks() {
    let (fake, _) = registry().await;
    fake.fault(Match::any(), Times::Always, Fault::hold_head(&Gate::new()));
    let rig = Plan::at(&fake).with(|upstream| upstream.response_timeout = LIMIT).rig();
    for number in 0..MOST_FAILURES {
        rig.head(&format!("library/app{number}"), "v1").await.unwrap_err();
    }
    assert!(matches!(rig.head("library/app7", "v1").await, Err(Error::Refused(_))));
    fake.clear();
    let outcome = rig.client.sign_in(0, None).await;
    assert!(matches!(outcome, Err(Error::TimedOut { .. })), "{outcome:?}");
    assert_eq!(fake.total(), 1);
    fake.lift_faults();
    rig.client.sign_in(0, None).await.unwrap();
    // What it found out helps everybody.
    rig.head("library/app7", "v1").await.unwrap();
}
