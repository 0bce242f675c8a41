//! Parts of a blob: on a hit, on a miss, and for who comes late to a blob that is on its way.

use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;

use crate::support::client::Reply;
use crate::support::eventually::{eventually, eventually_eq};
use crate::support::faults::{Fault, Match, Times};
use crate::support::gate::Gate;
use crate::support::house::House;
use crate::support::images::Blob;
use crate::support::registry::FakeRegistry;

/// As long as the blobs of the conformance suite.
const SMALL: usize = 2048;
/// Well over the hold-back, so that bytes flow before the proof.
const LARGE: usize = 300_000;

/// What a range means.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// 206 with this part, both ends included.
    Part(usize, usize),
    /// 200: the header means nothing.
    Whole,
    /// 416.
    Nothing,
}

/// The cases of the conformance suite and of RFC 9110 for a body of `n` bytes.
fn cases(n: usize) -> Vec<(String, Want)> {
    let end = n - 1;
    let table = [
        ("bytes=0-0".to_owned(), Want::Part(0, 0)),
        ("bytes=100-199".to_owned(), Want::Part(100, 199)),
        ("bytes=1000-".to_owned(), Want::Part(1000, end)),
        ("bytes=0-".to_owned(), Want::Part(0, end)),
        (format!("bytes=0-{end}"), Want::Part(0, end)),
        ("bytes=-10".to_owned(), Want::Part(n - 10, end)),
        (format!("bytes=-{}", n + 5), Want::Part(0, end)),
        (format!("bytes=2000-{}", n + 4000), Want::Part(2000, end)),
        (format!("bytes={end}-"), Want::Part(end, end)),
        ("bytes=7-99999999999999999999999".to_owned(), Want::Part(7, end)),
        (format!("bytes=1-2,{n}-"), Want::Part(1, 2)),
        ("bytes=500-0".to_owned(), Want::Nothing),
        (format!("bytes={n}-"), Want::Nothing),
        (format!("bytes={}-{}", n + 100, n + 200), Want::Nothing),
        (format!("bytes={n}-,500-0"), Want::Nothing),
        ("bytes=-0".to_owned(), Want::Nothing),
        ("items=0-1".to_owned(), Want::Whole),
        ("bytes=a-b".to_owned(), Want::Whole),
        ("bytes=1".to_owned(), Want::Whole),
        ("bytes=".to_owned(), Want::Whole),
        ("0-1".to_owned(), Want::Whole),
    ];
    table.to_vec()
}

fn assert_is(reply: &Reply, want: Want, blob: &Blob, range: &str) {
    let n = blob.len();
    let (status, body, content_range) = match want {
        Want::Part(first, last) => (206, blob.bytes.slice(first..=last), format!("bytes {first}-{last}/{n}")),
        Want::Whole => (200, blob.bytes.clone(), String::new()),
        Want::Nothing => {
            assert_eq!((reply.status, reply.error_code().as_str()), (416, "RANGE_INVALID"), "{range}");
            assert_eq!(reply.header("content-range"), format!("bytes */{n}"), "{range}");
            assert_eq!(reply.header("content-type"), "application/json", "{range}");
            return;
        }
    };
    assert_eq!(reply.status, status, "{range}");
    assert!(reply.whole() == body, "{range}: other bytes");
    assert_eq!(reply.header("content-range"), content_range, "{range}");
    assert_eq!(reply.header("content-length"), body.len().to_string(), "{range}");
    assert_eq!(reply.header("content-type"), "application/octet-stream", "{range}");
    assert_eq!(reply.header("etag"), format!("\"{}\"", blob.digest), "{range}");
    assert_eq!(reply.header("docker-content-digest"), blob.digest, "{range}");
    assert_eq!(reply.header("accept-ranges"), "bytes", "{range}");
}

/// A fake with a repository, and a house over it.
async fn scene() -> (FakeRegistry, House) {
    let fake = FakeRegistry::start().await;
    let house = House::over(&fake).await;
    (fake, house)
}

/// A new blob in the fake's repository, and where it is had.
fn new_blob(fake: &FakeRegistry, seed: u64, len: usize) -> (Blob, String) {
    let blob = Blob::random(seed, len);
    fake.put_blob("library/app", &blob);
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    (blob, path)
}

/// The same, and it is cached.
async fn cached_blob(fake: &FakeRegistry, house: &House, seed: u64, len: usize) -> (Blob, String) {
    let (blob, path) = new_blob(fake, seed, len);
    assert_eq!(house.client().get(&path).await.whole(), blob.bytes);
    house.settled().await;
    fake.clear();
    (blob, path)
}

/// The parts of a multipart body, each with its `Content-Range`; nothing else may stand in it.
fn parts(reply: &Reply) -> Vec<(String, Bytes)> {
    assert_eq!(reply.status, 206, "{}", reply.text());
    assert_eq!(reply.header("content-range"), "", "each part has its own");
    let boundary = reply.header("content-type").strip_prefix("multipart/byteranges; boundary=");
    let boundary = boundary.unwrap_or_else(|| panic!("{:?}", reply.headers));
    assert!(boundary.len() <= 70 && boundary.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let body = reply.whole();
    assert_eq!(reply.header("content-length"), body.len().to_string());
    let (opening, closing) = (format!("\r\n--{boundary}\r\n"), format!("\r\n--{boundary}--\r\n"));
    let mut found = Vec::new();
    let mut at = 0;
    while body[at..].starts_with(opening.as_bytes()) {
        let head_at = at + opening.len();
        let length = body[head_at..].windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(body[head_at..head_at + length].to_vec()).unwrap();
        let lines: Vec<&str> = head.split("\r\n").collect();
        assert_eq!((lines.len(), lines[0]), (2, "Content-Type: application/octet-stream"));
        let range = lines[1].strip_prefix("Content-Range: bytes ").unwrap().to_owned();
        let (first, last) = range.split_once('/').unwrap().0.split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let data_at = head_at + length + 4;
        at = data_at + (last + 1 - first);
        found.push((range, body.slice(data_at..at)));
    }
    assert_eq!(&body[at..], closing.as_bytes());
    found
}

fn assert_parts(reply: &Reply, blob: &Blob, wanted: &[(usize, usize)]) {
    let found = parts(reply);
    assert_eq!(found.len(), wanted.len());
    for ((range, bytes), (first, last)) in found.iter().zip(wanted) {
        assert_eq!(range, &format!("{first}-{last}/{}", blob.len()));
        assert!(*bytes == blob.bytes.slice(*first..=*last), "{range}: other bytes");
    }
}

fn header_of(ranges: &[(usize, usize)]) -> String {
    let list: Vec<String> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    format!("bytes={}", list.join(","))
}

#[tokio::test]
async fn of_a_cached_blob() {
    let (fake, house) = scene().await;
    let (blob, path) = cached_blob(&fake, &house, 1, SMALL).await;
    for (range, want) in cases(SMALL) {
        let reply = house.client().get_range(&path, &range).await;
        assert_is(&reply, want, &blob, &range);
        if !matches!(want, Want::Nothing) {
            assert_eq!(reply.header("cache-status"), "tidelock; hit", "{range}");
        }
    }
    assert_eq!(fake.total(), 0, "{:?}", fake.log().summary());
}

#[tokio::test]
async fn of_a_blob_that_is_not_there_yet() {
    let (fake, house) = scene().await;
    for (seed, len) in [(10_u64, SMALL), (50, LARGE)] {
        for (seed, (range, want)) in (seed..).zip(cases(len)) {
            let (blob, path) = new_blob(&fake, seed, len);
            let before = house.metric("tidelock_cache_blobs").await;
            assert_is(&house.client().get_range(&path, &range).await, want, &blob, &range);
            // Whatever was asked for, all of it is fetched, once.
            eventually_eq(before + 1.0, || house.metric("tidelock_cache_blobs")).await;
            let asked = fake.log().matching(|request| request.path.contains(&blob.digest));
            assert_eq!(asked.len(), 1, "{range}: {:?}", fake.log().summary());
            assert_eq!((asked[0].method.as_str(), asked[0].header("range")), ("GET", ""), "{range}");
        }
    }
}

#[tokio::test]
async fn of_a_blob_that_is_on_its_way() {
    let (fake, house) = scene().await;
    for (seed, len, passing) in [(100, SMALL, 10), (101, LARGE, 150_000)] {
        let (blob, path) = new_blob(&fake, seed, len);
        let gate = Gate::new();
        fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&gate, passing));
        let (leader, client, leaders_path) = (house.client(), house.client(), path.clone());
        let leader = tokio::spawn(async move { leader.get(&leaders_path).await });
        gate.waiting(1).await;
        let cases = cases(len);
        let late = cases.iter().map(|(range, _)| client.get_range(&path, range));
        let opens = async {
            let satisfiable = cases.iter().filter(|(_, want)| !matches!(want, Want::Nothing)).count();
            // A short blob has no headers before its proof, so that those who get a 416 wait like the others.
            let waiting = if len == SMALL { cases.len() } else { satisfiable };
            eventually(|| async {
                house.metric("tidelock_flight_followers").await
                    == (waiting + 1 - ready(&cases, len, passing)) as f64
            })
            .await;
            gate.open();
        };
        let (replies, ()) = tokio::join!(join_all(late), opens);
        for (reply, (range, want)) in replies.iter().zip(&cases) {
            assert_is(reply, *want, &blob, range);
        }
        assert_eq!(leader.await.unwrap().whole(), blob.bytes);
        assert_eq!(fake.blob_gets(&blob.digest), 1);
    }
}

/// How many of the cases end before the gate, and so need not wait for it.
fn ready(cases: &[(String, Want)], len: usize, passing: usize) -> usize {
    let ends_before = |want: &Want| matches!(want, Want::Part(_, last) if *last < passing);
    if len == SMALL { 0 } else { cases.iter().filter(|(_, want)| ends_before(want)).count() }
}

#[tokio::test]
async fn bytes_go_out_as_they_come() {
    let (fake, house) = scene().await;
    let (blob, path) = new_blob(&fake, 120, LARGE);
    let gate = Gate::new();
    fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&gate, 150_000));
    let ranged = |range: &'static str| {
        let (client, path) = (house.client(), path.clone());
        async move { client.stream(Method::GET, &path, &[("range", range)], Bytes::new()).await.unwrap() }
    };
    // The very first request for the blob asks for a part.
    let mut first = ranged("bytes=1000-149999").await;
    let (before_the_gate, error) = first.read_to_end().await;
    assert!(error.is_none() && before_the_gate == blob.bytes.slice(1000..150_000));
    // Neither of these is the whole, so nothing of them is held back for the proof.
    let mut across = ranged("bytes=149000-299999").await;
    assert_eq!(across.header("content-length"), "151000");
    assert_eq!(across.read(1000).await, blob.bytes.slice(149_000..150_000));
    let mut several = ranged("bytes=10-19,140000-149999,200000-200009").await;
    let in_several: usize = several.header("content-length").parse().unwrap();
    several.read(10_010).await;
    gate.open();
    let (rest, error) = across.read_to_end().await;
    assert!(error.is_none() && rest == blob.bytes.slice(150_000..));
    let (rest, error) = several.read_to_end().await;
    assert!(error.is_none() && rest.len() == in_several - 10_010);
    assert_eq!(fake.blob_gets(&blob.digest), 1);
}

/// A range that is the whole blob is the whole blob (I1), however it is written.
#[tokio::test]
async fn a_wrong_blob_is_never_complete() {
    let (fake, house) = scene().await;
    for (seed, range) in [(130, "bytes=0-"), (131, "bytes=0-299999"), (132, "bytes=-300000"), (133, "")] {
        let (blob, path) = new_blob(&fake, seed, LARGE);
        fake.fault(Match::blob(&blob.digest), Times::Always, Fault::WrongBytesAt(10));
        let reply = match range {
            "" => house.client().get(&path).await,
            range => house.client().get_range(&path, range).await,
        };
        assert_eq!(reply.header("content-length"), "300000", "{range}");
        assert!(reply.truncated && reply.body.len() <= LARGE - 65_536, "{range}: {}", reply.body.len());
    }
    assert_eq!(house.metric("tidelock_cache_blobs").await, 0.0);
    assert_eq!(house.metric("tidelock_verify_failures_total{upstream=\"docker.io\"}").await, 4.0);
}

#[tokio::test]
async fn a_short_wrong_blob_is_a_clean_error() {
    let (fake, house) = scene().await;
    let (blob, path) = new_blob(&fake, 140, SMALL);
    fake.fault(Match::blob(&blob.digest), Times::Always, Fault::WrongBytes);
    let reply = house.client().get_range(&path, "bytes=0-9").await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "UNAVAILABLE"));
}

#[tokio::test]
async fn several_parts_in_one_answer() {
    let (fake, house) = scene().await;
    let (cached, cached_path) = cached_blob(&fake, &house, 150, SMALL).await;
    let (missing, missing_path) = new_blob(&fake, 151, LARGE);
    for (blob, path) in [(cached, cached_path), (missing, missing_path)] {
        let client = house.client();
        // Neither sorted nor joined: podman counts them.
        let three = [(1500, 1599), (0, 0), (100, 250)];
        assert_parts(&client.get_range(&path, &header_of(&three)).await, &blob, &three);
        let touching = [(0, 99), (100, 199), (50, 149)];
        assert_parts(&client.get_range(&path, &header_of(&touching)).await, &blob, &touching);
        let mixed = client.get_range(&path, "bytes= 2000- , 5-6 , -3 ,, 9-0").await;
        let end = blob.len() - 1;
        assert_parts(&mixed, &blob, &[(2000, end), (5, 6), (end - 2, end)]);
        let most: Vec<(usize, usize)> = (0..1024).rev().map(|n| (n * 2, n * 2)).collect();
        assert_parts(&client.get_range(&path, &header_of(&most)).await, &blob, &most);
    }
}

#[tokio::test]
async fn several_parts_of_a_blob_that_is_on_its_way() {
    let (fake, house) = scene().await;
    let (blob, path) = new_blob(&fake, 160, LARGE);
    let gate = Gate::new();
    fake.fault(Match::blob(&blob.digest), Times::Once, Fault::hold_after(&gate, 100_000));
    let mut leader = house.client().get_streaming(&path).await;
    leader.read(1).await;
    let wanted: Vec<(usize, usize)> = (0..1024).rev().map(|n| (n * 290, n * 290 + 99)).collect();
    let header = header_of(&wanted);
    let client = house.client();
    let (reply, ()) = tokio::join!(client.get_range(&path, &header), async {
        // However many parts it wants, it is one client.
        eventually_eq(2.0, || house.metric("tidelock_flight_followers")).await;
        gate.open();
    });
    assert_parts(&reply, &blob, &wanted);
    assert_eq!(fake.blob_gets(&blob.digest), 1);
}

#[tokio::test]
async fn too_much_at_once_is_a_400() {
    let (fake, house) = scene().await;
    let (_, path) = cached_blob(&fake, &house, 170, SMALL).await;
    let (_, missing) = new_blob(&fake, 171, LARGE);
    let many: Vec<(usize, usize)> = (0..1025).map(|n| (n, n)).collect();
    for header in [header_of(&many), "bytes=0-,0-,0-".to_owned(), header_of(&[(0, 2047); 1024])] {
        for path in [&path, &missing] {
            let reply = house.client().get_range(path, &header).await;
            assert_eq!((reply.status, reply.error_code().as_str()), (400, "RANGE_INVALID"));
            assert_eq!(reply.header("content-range"), "");
        }
    }
    // Halving, as podman does, goes through.
    let reply = house.client().get_range(&path, &header_of(&many[..512])).await;
    assert_eq!(parts(&reply).len(), 512);
}

/// 1024 ranges far into a large layer make a header of about 20 KB.
#[tokio::test]
async fn the_longest_header_that_podman_sends() {
    let (fake, house) = scene().await;
    let (blob, path) = cached_blob(&fake, &house, 180, 12_000_000).await;
    let wanted: Vec<(usize, usize)> =
        (0..1024).map(|n| (10_000_000 + n * 1900, 10_000_799 + n * 1900)).collect();
    let header = header_of(&wanted).replace(',', ", ");
    assert!(header.len() > 19_000, "{}", header.len());
    assert_parts(&house.client().get_range(&path, &header).await, &blob, &wanted);
}

#[tokio::test]
async fn if_range_asks_for_this_very_content() {
    let (fake, house) = scene().await;
    let (blob, path) = cached_blob(&fake, &house, 190, SMALL).await;
    let own = format!("\"{}\"", blob.digest);
    let weak = format!("W/{own}");
    let other = format!("\"{}\"", blob.digest.replace("sha256:", "sha256:0"));
    let bare = blob.digest.as_str();
    let date = "Sat, 29 Oct 1994 19:43:31 GMT";
    for (validator, is_this) in
        [(own.as_str(), true), (&weak, false), (&other, false), (bare, false), (date, false)]
    {
        let headers = [("range", "bytes=5-9"), ("if-range", validator)];
        let reply = house.client().request(Method::GET, &path, &headers).await;
        let want = if is_this { Want::Part(5, 9) } else { Want::Whole };
        assert_is(&reply, want, &blob, validator);
    }
    let reply = house.client().request(Method::GET, &path, &[("if-range", &other)]).await;
    assert_is(&reply, Want::Whole, &blob, "If-Range without Range");
    let headers = [("range", "bytes=9999-"), ("if-range", other.as_str())];
    let reply = house.client().request(Method::GET, &path, &headers).await;
    assert_is(&reply, Want::Whole, &blob, "a range past the end of other content");
}

#[tokio::test]
async fn head_takes_no_notice() {
    let (fake, house) = scene().await;
    let (cached, cached_path) = cached_blob(&fake, &house, 200, SMALL).await;
    let (missing, missing_path) = new_blob(&fake, 201, SMALL);
    for (blob, path) in [(cached, cached_path), (missing, missing_path)] {
        for range in ["bytes=0-9", "bytes=9999-", "bytes=0-,0-,0-", "bytes=0-0,2-2"] {
            let reply = house.client().request(Method::HEAD, &path, &[("range", range)]).await;
            assert_eq!((reply.status, reply.body.len()), (200, 0), "{range}");
            assert_eq!(reply.header("content-length"), blob.len().to_string(), "{range}");
            assert_eq!(reply.header("content-range"), "", "{range}");
        }
    }
}

#[tokio::test]
async fn of_the_empty_blob() {
    let (fake, house) = scene().await;
    let (blob, path) = new_blob(&fake, 210, 0);
    for turn in ["miss", "hit"] {
        for range in ["bytes=0-0", "bytes=0-", "bytes=5-9", "bytes=-0", "bytes=0-,1-"] {
            let reply = house.client().get_range(&path, range).await;
            assert_eq!((reply.status, reply.header("content-range")), (416, "bytes */0"), "{turn}: {range}");
        }
        for range in ["bytes=-1", "bytes=-1,-2", "items=0-1"] {
            let reply = house.client().get_range(&path, range).await;
            assert_eq!((reply.status, reply.whole().len()), (200, 0), "{turn}: {range}");
            assert_eq!(reply.header("content-length"), "0", "{turn}: {range}");
            assert_eq!(reply.header("docker-content-digest"), blob.digest, "{turn}: {range}");
        }
    }
}

/// Without room to keep it a blob passes through once, whole; the same proof stands at its end.
#[tokio::test]
async fn of_a_blob_that_cannot_be_kept() {
    let fake = FakeRegistry::start().await;
    let house = House::with(&fake, |config| {
        config.cache.max_size = tidelock::config::SizeLimit::Bytes(tidelock::config::ByteSize(100_000));
    })
    .await;
    let (blob, path) = new_blob(&fake, 230, LARGE);
    for range in ["bytes=0-9", "bytes=0-", "bytes=9-0", "bytes=1-2,5-6"] {
        let reply = house.client().get_range(&path, range).await;
        assert_eq!((reply.status, reply.whole()), (200, blob.bytes.clone()), "{range}");
        assert_eq!(reply.header("accept-ranges"), "", "{range}: nothing is promised that is not kept");
    }
    let (wrong, path) = new_blob(&fake, 231, LARGE);
    fake.fault(Match::blob(&wrong.digest), Times::Always, Fault::WrongBytesAt(10));
    let reply = house.client().get(&path).await;
    assert!(reply.truncated && reply.body.len() <= LARGE - 65_536, "{}", reply.body.len());
    assert_eq!(house.metric("tidelock_cache_blobs").await, 0.0);
}

/// What is not a blob has no parts here.
#[tokio::test]
async fn of_a_manifest_and_a_list_there_are_none() {
    let (fake, house) = scene().await;
    let image = crate::support::images::Image::layers(220, &[10]);
    fake.push("library/app", "v1", &image);
    for path in ["manifests/v1", &format!("manifests/{}", image.digest()), "tags/list"] {
        let reply = house.client().get_range(&format!("/v2/library/app/{path}"), "bytes=0-9").await;
        assert_eq!((reply.status, reply.header("content-range")), (200, ""), "{path}");
        assert!(reply.whole().len() > 10, "{path}");
    }
}
