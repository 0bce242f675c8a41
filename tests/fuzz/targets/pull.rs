//! A whole request head against the clients' door, over a cache that holds a little and an upstream that may not be
//! asked.
//!
//! ```text
//! GET /v2/library/app/manifests/latest?ns=docker.io
//! range: bytes=0-1
//! ```
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{Method, Request, Response, StatusCode};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use tidelock::config::{ByteSize, Config, SizeLimit};
use tidelock::lifecycle::Lifecycle;
use tidelock::mirror::Mirror;
use tidelock::oci::{Algorithm, ByteRange, Digest, OCI_INDEX, Repository};
use tidelock::registry::Registry;
use tidelock::store::{Link, Name, Stamp, Store};
use tidelock::telemetry::{Journal, Metrics, Traces};
use tidelock_fuzz::{message, now, text};
use tokio::runtime::Runtime;

/// A door, and what is behind it.
struct House {
    runtime: Runtime,
    registry: Registry,
    _folder: TempDir,
}

const BLOB: &[u8] =
    b"a layer of one hundred bytes, which is enough for ranges to begin, end, overlap and miss it.........";
const SECRET: &[u8] = b"a layer that only library/secret may show";
const MANIFEST: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;
const TAGS: &[u8] = br#"{"name":"library/app","tags":["a","b","c","latest"]}"#;

static HOUSE: LazyLock<House> = LazyLock::new(House::build);

fuzz_target!(|data: &[u8]| {
    let (line, rest) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let Some((method, target)) = text(line).and_then(|line| line.split_once(' ')) else { return };
    let Ok(mut request) = Request::builder().method(method).uri(target).body(()) else { return };
    *request.headers_mut() = message(rest.get(1..).unwrap_or_default()).0;
    let (asked, path) = (request.method().clone(), request.uri().path().to_owned());
    let (head, body) = HOUSE.runtime.block_on(async {
        let (head, body) = HOUSE.registry.clone().handle(request).await.into_parts();
        let body = body.collect().await.expect("a body that ends well");
        (Response::from_parts(head, ()), body)
    });
    check(&asked, &path, &head, &body);
});

fn check(asked: &Method, path: &str, head: &Response<()>, body: &Bytes) {
    let known = [200, 206, 304, 400, 403, 404, 405, 416].contains(&head.status().as_u16());
    assert!(known, "{asked} {path}: {}", head.status());
    // I5, however the name is written.
    assert!(body.as_ref() != SECRET || path.contains("ecret") || path.contains('%'), "{path}");
    if *asked == Method::HEAD || head.status() == StatusCode::NOT_MODIFIED {
        assert!(body.is_empty());
        return;
    }
    let length = header(head, CONTENT_LENGTH).map(|length| length.parse::<usize>().expect("a number"));
    assert_eq!(length, Some(body.len()));
    match head.status() {
        // I1.
        StatusCode::OK => {
            let claimed = header(head, "docker-content-digest")
                .map(|digest| digest.parse::<Digest>().expect("a digest"));
            assert!(claimed.is_none_or(|digest| Digest::of(digest.algorithm(), body) == digest));
        }
        StatusCode::PARTIAL_CONTENT => check_part(head, body),
        _ => {
            let told: serde_json::Value = serde_json::from_slice(body).expect("an error in JSON");
            assert!(told["errors"][0]["code"].is_string() && told["errors"][0]["message"].is_string());
        }
    }
}

fn check_part(head: &Response<()>, body: &Bytes) {
    let Some(range) = header(head, CONTENT_RANGE) else { return };
    let (ByteRange { start, end }, total) = ByteRange::parse_content_range(range).expect("a range");
    let digest = header(head, "docker-content-digest").expect("a digest");
    let is_it = |bytes: &&&[u8]| Digest::of(Algorithm::Sha256, bytes).to_string() == digest;
    let whole = [BLOB, SECRET, MANIFEST, TAGS].iter().find(is_it).expect("something that is here");
    assert_eq!(total, Some(whole.len() as u64));
    assert_eq!(
        body.as_ref(),
        &whole[usize::try_from(start).expect("small")..usize::try_from(end).expect("small")]
    );
}

fn header(head: &Response<()>, name: impl http::header::AsHeaderName) -> Option<&str> {
    head.headers().get(name).map(|value| value.to_str().expect("text"))
}

impl House {
    fn build() -> House {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = Config { offline: true, ..Config::default() };
        config.cache.dir = folder.path().to_owned();
        config.cache.max_size = SizeLimit::Bytes(ByteSize(1 << 20));
        config.cache.min_free = ByteSize(0);
        // Waits are over at once: there is nothing else to do.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let registry = runtime.block_on(async {
            let (life, metrics) = (Lifecycle::default(), Metrics::default());
            let store = Store::open(&config.cache, &life, &metrics).expect("a store");
            fill(&store).await;
            let mirror = Mirror::new(&config, &store, &life, &metrics).expect("a mirror");
            Registry::new(&config, mirror, &metrics, &Journal::default(), &Traces::default())
        });
        House { runtime, registry, _folder: folder }
    }
}

async fn fill(store: &Store) {
    let app: Repository = "docker.io/library/app".parse().expect("a repository");
    let secret: Repository = "docker.io/library/secret".parse().expect("a repository");
    for (repository, bytes, media_type) in [
        (&app, BLOB, ""),
        (&secret, SECRET, ""),
        (&app, MANIFEST, OCI_INDEX),
        (&app, TAGS, "application/json"),
    ] {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        store.put_document(digest, Bytes::from_static(bytes)).await.expect("it fits");
        let is_manifest = media_type == OCI_INDEX;
        let link = Link { size: bytes.len() as u64, is_manifest, media_type: media_type.to_owned() };
        store.add_link(repository, digest, link).await.expect("it is kept");
    }
    let names = [
        (Name::Tag("latest".parse().expect("a tag")), MANIFEST, OCI_INDEX),
        (Name::Tags, TAGS, "application/json"),
    ];
    for (name, bytes, media_type) in names {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let (size, media_type) = (bytes.len() as u64, media_type.to_owned());
        let stamp = Stamp { digest, size, media_type, since: now(), confirmed: now() };
        store.set_name(&app, &name, stamp).await.expect("it is kept");
    }
}
