//! The running mirror at a glance, once or as it changes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;

use super::{json, parameter};
use crate::admin::history::Span;
use crate::admin::types::{CacheState, Eviction, Popular, Status, Traffic, Victim};
use crate::admin::{Admin, answer};
use crate::lifecycle::Phase;
use crate::oci::{ImageReference, Reference};
use crate::server::Body;

/// Tags of the list of those that are asked for most often.
const MOST_POPULAR: usize = 20;
/// And of what goes next, where the query does not say.
const NEXT_TO_GO: usize = 50;
/// At most.
const MOST_TO_GO: usize = 1_000;
/// How often the status is sent to whoever watches.
const EVERY: Duration = Duration::from_secs(1);

/// Everything at a glance.
pub(in crate::admin) fn status(admin: &Admin) -> Status {
    let (mirror, read) = (&admin.mirror, admin.metrics.read());
    let popular = admin.journal.popular(MOST_POPULAR).into_iter().map(|(repository, tag, pulls)| {
        let (registry, repository) = (repository.registry, repository.name);
        let image = ImageReference { registry, repository, reference: Reference::Tag(tag) };
        Popular { image: image.to_string(), pulls }
    });
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        phase: admin.house.phase().as_str().to_owned(),
        offline: mirror.is_offline(),
        uptime_seconds: admin.begun.elapsed().as_secs(),
        traffic: Traffic::of(&read),
        cache: CacheState::new(mirror.store().fullness(), &read),
        fetches: mirror.fetches().into_iter().map(Into::into).collect(),
        upstreams: mirror.outlook().into_iter().map(Into::into).collect(),
        popular: popular.collect(),
        troubles: admin.journal.troubles().into_iter().map(Into::into).collect(),
    }
}

/// The samples of the last hour, or with `?span=day` of the last day.
pub(in crate::admin) fn history(admin: &Admin, query: Option<&str>) -> Response<Body> {
    match parameter(query, "span").as_deref() {
        None | Some("hour") => json(&admin.samples.history(Span::Hour)),
        Some("day") => json(&admin.samples.history(Span::Day)),
        Some(_) => answer::error(StatusCode::BAD_REQUEST, "span_invalid", "span is hour or day"),
    }
}

/// What goes first when room is needed.
pub(in crate::admin) fn eviction(admin: &Admin, query: Option<&str>) -> Response<Body> {
    let limit = parameter(query, "limit").map_or(Ok(NEXT_TO_GO), |limit| limit.parse::<usize>());
    let Some(limit) = limit.ok().filter(|limit| (1..=MOST_TO_GO).contains(limit)) else {
        let message = format!("limit is how many are named, 1 to {MOST_TO_GO}");
        return answer::error(StatusCode::BAD_REQUEST, "limit_invalid", &message);
    };
    let store = admin.mirror.store();
    let next = store.next_to_go(limit).into_iter().map(|(digest, kept)| {
        let repositories = store.repositories_of(&digest).iter().map(ToString::to_string).collect();
        Victim::new(digest.to_string(), kept, repositories)
    });
    json(&Eviction { next: next.collect() })
}

/// Server-sent events: the status, every second, as long as the client stays (HTML, "Server-sent events").
pub(in crate::admin) fn events(admin: &Arc<Admin>) -> Response<Body> {
    let Ok(place) = Arc::clone(&admin.watchers).try_acquire_owned() else {
        let message = "Too many watch already: close a status page, or ask /api/v1/status now and then.";
        return answer::error(StatusCode::SERVICE_UNAVAILABLE, "too_many", message);
    };
    let beginning = (Arc::clone(admin), place, true);
    let mut response = Response::new(Body::endless(stream::unfold(beginning, next_event)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

type Watching = (Arc<Admin>, OwnedSemaphorePermit, bool);

/// The first at once. They end with the house, so that a stop waits for nobody who watches.
async fn next_event((admin, place, is_first): Watching) -> Option<(Bytes, Watching)> {
    if admin.house.phase() == Phase::Stopped {
        return None;
    }
    if !is_first {
        tokio::time::sleep(EVERY).await;
    }
    let status = serde_json::to_string(&status(&admin)).expect("numbers and texts are JSON");
    Some((Bytes::from(format!("event: status\ndata: {status}\n\n")), (admin, place, false)))
}
