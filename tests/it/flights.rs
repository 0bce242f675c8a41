//! What can only be seen between two awaits of the mirror: flights without the rest of the house.

use std::sync::Arc;

use tidelock::config::{Config, UpstreamId};
use tidelock::flight::{Error, Flights, Order, Role};
use tidelock::lifecycle::Lifecycle;
use tidelock::scheduler::{Errand, Scheduler};
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
        let scheduler = Scheduler::new(&config, None, &life, &metrics);
        let flights = Flights::new(&config, &store, &life, &metrics);
        let counts = UpstreamMetrics::new(&metrics, &config);
        let client =
            Client::new(UpstreamId::new(0), &config.upstreams[0], &scheduler, counts, &life).unwrap();
        Field { flights, store, client: Arc::new(client), _folder: folder }
    }

    fn order(&self, repository: &str, blob: &Blob) -> Order {
        Order {
            errand: Errand::background(),
            client: Arc::clone(&self.client),
            repository: repository.parse().unwrap(),
            digest: blob.digest.parse().unwrap(),
            size: None,
            most_extra: 0,
        }
    }
}

/// A stranger looked into the store, another's flight came and went, and now the stranger leads one: it hands
/// out nothing and asks nobody. The store has it, and the proof is the mirror's to get.
#[tokio::test]
async fn what_an_earlier_flight_left_is_not_fetched_again() {
    let (fake, blob) = (FakeRegistry::start().await, Blob::random(1, 100));
    fake.put_blob("acme/other", &blob);
    let field = Field::over(&fake);
    field.store.put_document(blob.digest.parse().unwrap(), blob.bytes.clone()).await.unwrap();
    let (mut follower, _, role) = field.flights.join(field.order("docker.io/acme/other", &blob));
    assert_eq!(role, Role::Lead);
    let outcome = within("the flight", follower.proven()).await;
    assert!(matches!(outcome, Err(Error::Here)), "{outcome:?}");
    within("landing", async {
        while field.flights.count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(fake.total(), 0);
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
