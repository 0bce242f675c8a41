//! What can only be seen between two awaits of the mirror: flights without the rest of the house.

use std::sync::Arc;

use tidelock::config::{Config, UpstreamId};
use tidelock::flight::{Error, Flights, Order, Role};
use tidelock::lifecycle::Lifecycle;
use tidelock::scheduler::Scheduler;
use tidelock::store::Store;
use tidelock::telemetry::Metrics;
use tidelock::upstream::{Client, UpstreamMetrics};

use crate::support::eventually::within;
use crate::support::house::upstream;
use crate::support::images::Blob;
use crate::support::registry::FakeRegistry;

struct Field {
    flights: Flights,
    store: Store,
    client: Arc<Client>,
    _folder: tempfile::TempDir,
}

impl Field {
    fn over(fake: &FakeRegistry) -> Field {
        let folder = tempfile::tempdir().unwrap();
        let mut config =
            Config { upstreams: vec![upstream("docker.io", &[&fake.url()])], ..Config::default() };
        config.cache.dir = folder.path().to_owned();
        config.cache.min_free = tidelock::config::ByteSize(0);
        let (life, metrics) = (Lifecycle::default(), Metrics::default());
        let store = Store::open(&config.cache, &life, &metrics).unwrap();
        let scheduler = Arc::new(Scheduler::new(&config, &metrics));
        let flights = Flights::new(&config, &store, &scheduler, &life, &metrics);
        let counts = UpstreamMetrics::new(&metrics, &config);
        let client = Client::new(UpstreamId::new(0), &config.upstreams[0], counts, &life).unwrap();
        Field { flights, store, client: Arc::new(client), _folder: folder }
    }

    fn order(&self, repository: &str, blob: &Blob) -> Order {
        Order {
            upstream: UpstreamId::new(0),
            client: Arc::clone(&self.client),
            repository: repository.parse().unwrap(),
            digest: blob.digest.parse().unwrap(),
            size: None,
        }
    }
}

/// A stranger looked into the store, another's flight came and went, and now the stranger leads one.
#[tokio::test]
async fn what_an_earlier_flight_left_is_proven_for_the_next() {
    let (fake, blob) = (FakeRegistry::start().await, Blob::random(1, 100));
    fake.put_blob("acme/copy", &blob);
    let field = Field::over(&fake);
    field.store.put_document(blob.digest.parse().unwrap(), blob.bytes.clone()).await.unwrap();
    for (repository, heads) in
        [("docker.io/acme/copy", 1), ("docker.io/acme/copy", 0), ("docker.io/acme/other", 1)]
    {
        fake.clear();
        let (mut follower, _, role) = field.flights.join(field.order(repository, &blob));
        assert_eq!(role, Role::Lead);
        let came = within("the flight", follower.proven()).await;
        assert_eq!(came.is_ok(), repository.ends_with("copy"), "{came:?}");
        assert_eq!((fake.count("HEAD", "/blobs/"), fake.total()), (heads, heads), "{repository}");
        within("landing", async {
            while field.flights.count() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hears_of_a_failure_and_tries_again_leads() {
    let (fake, blob) = (FakeRegistry::start().await, Blob::random(1, 100));
    let field = Field::over(&fake);
    for _ in 0..200 {
        let (mut follower, _, role) = field.flights.join(field.order("docker.io/acme/app", &blob));
        assert_eq!(role, Role::Lead);
        assert!(matches!(within("the flight", follower.proven()).await, Err(Error::Upstream(_))));
    }
}
