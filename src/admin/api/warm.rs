//! Fetches an image ahead, and tells how far it is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, Refusal, json, named, parameter, parameters, route};
use crate::admin::types::{Matching, Rounds, Warmed, Warming};
use crate::admin::{Admin, answer};
use crate::config::{MOST_TAGS, Wish};
use crate::lifecycle::Phase;
use crate::mirror::{self, Wanted};
use crate::oci::{ImageReference, Malformed, Platform, Reference};
use crate::routing::Target;
use crate::scheduler::Errand;
use crate::server::Body;

/// How often it is told how far it is: clients take that for a sign of life.
const EVERY: Duration = Duration::from_millis(500);

/// An image being fetched, for one who watches. It ends with whoever watches: nobody else asked for it.
struct Watched {
    admin: Arc<Admin>,
    work: AbortOnDropHandle<Warming>,
    progress: watch::Receiver<mirror::Warming>,
}

/// What the rounds of `[[warm]]` came to.
pub(in crate::admin) fn rounds(admin: &Admin) -> Response<Body> {
    json(&Rounds::new(admin.rounds.report()))
}

/// Fetches what is missing of the image that the query names, and of what refers to it: a line of JSON now and then says how
/// far that is, and the last one how it ended.
pub(in crate::admin) async fn warm(admin: &Arc<Admin>, query: Option<&str>) -> Answer {
    let (image, target) = named(admin, query)?;
    let is_set = |name| parameter(query, name).as_deref() == Some("true");
    let platforms = parameters(query, "platform");
    let platforms: Result<Vec<Platform>, Malformed> =
        platforms.iter().map(|platform| platform.parse()).collect();
    let platforms = platforms.map_err(|fault| Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "platform_invalid",
        message: fault.to_string(),
    })?;
    let wanted =
        Wanted { platforms, has_referrers: is_set("referrers"), is_latest: is_set("latest"), terms: None };
    let (sender, progress) = watch::channel(mirror::Warming::default());
    let work = fetch(Arc::clone(admin), image, target, wanted, is_set("pin"), sender);
    let work = AbortOnDropHandle::new(admin.work.spawn(work));
    let watched = Watched { admin: Arc::clone(admin), work, progress };
    let mut response = Response::new(Body::endless(stream::unfold(Some(watched), next)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The tags that a pattern in place of one matches, as the upstream lists them.
pub(in crate::admin) async fn matching(admin: &Admin, query: Option<&str>) -> Answer {
    let refuse = |code, message: String| Refusal { status: StatusCode::BAD_REQUEST, code, message };
    let given = parameter(query, "image").unwrap_or_default();
    let wish = given.parse::<Wish>();
    let Wish { image, tags } =
        wish.map_err(|expected| refuse("image_invalid", format!("{given:?} is not {expected}")))?;
    let pattern = tags.ok_or_else(|| {
        refuse("pattern_missing", "Name tags: ?image=docker.io/library/postgres:16*".to_owned())
    })?;
    let most = parameter(query, "newest").map_or(Ok(MOST_TAGS), |most| most.parse::<usize>());
    let most = most.ok().filter(|most| (1..=MOST_TAGS).contains(most));
    let most =
        most.ok_or_else(|| refuse("newest_invalid", format!("newest is how many, 1 to {MOST_TAGS}")))?;
    let target = route(admin, &image)?;
    let tags = admin.mirror.matching(&target, &pattern, most, &Errand::background()).await;
    let tags = tags.map_err(|error| Refusal {
        status: StatusCode::BAD_GATEWAY,
        code: "upstream",
        message: format!("{given}: {error}"),
    })?;
    let whole = |tag| ImageReference { reference: Reference::Tag(tag), ..image.clone() }.to_string();
    Ok(json(&Matching { images: tags.into_iter().map(whole).collect() }))
}

async fn next(watched: Option<Watched>) -> Option<(Bytes, Option<Watched>)> {
    let mut watched = watched?;
    let ended = tokio::time::timeout(EVERY, &mut watched.work).await;
    let (line, is_last) = match ended {
        Ok(Ok(last)) => (last, true),
        Ok(Err(_)) => (Warming::Failed { message: answer::GIVEN_UP.to_owned() }, true),
        Err(_) if matches!(watched.admin.house.phase(), Phase::Draining | Phase::Stopped) => {
            let message =
                "The mirror is stopping; what came stays, and the next time it goes on there.".to_owned();
            (Warming::Failed { message }, true)
        }
        Err(_) => (Warming::from(watched.progress.borrow_and_update().clone()), false),
    };
    let line = serde_json::to_string(&line).expect("numbers and texts are JSON") + "\n";
    Some((Bytes::from(line), (!is_last).then_some(watched)))
}

async fn fetch(
    admin: Arc<Admin>,
    image: ImageReference,
    target: Target,
    wanted: Wanted,
    pins: bool,
    progress: watch::Sender<mirror::Warming>,
) -> Warming {
    let failed = |message: String| Warming::Failed { message: format!("{image}: {message}") };
    let warmed = match admin.mirror.warm(&target, &image.reference, &wanted, &progress).await {
        Ok(warmed) => warmed,
        Err(error) => return failed(error.to_string()),
    };
    for root in warmed.roots.iter().filter(|_| pins) {
        if let Err(error) = admin.mirror.pin(&target, &root.reference).await {
            return failed(format!("all of it is here, and it cannot be pinned: {error}"));
        }
    }
    Warming::Done(Warmed::new(&image, warmed, pins))
}
