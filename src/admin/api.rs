//! `/api/v1/…`: JSON for `tidelock` itself and for scripts.

use std::time::Duration;

use http::{Response, StatusCode};
use serde::Serialize;

use super::types::{Budgets, Explained, Image, Images, Refreshed, Scrubbing};
use super::{Admin, answer};
use crate::access;
use crate::config::ByteSize;
use crate::mirror;
use crate::oci::{ImageReference, Reference, Repository, Tag};
use crate::routing::Target;
use crate::scheduler::{ClientAddr, Errand, Priority};
use crate::server::Body;

/// How long a check that an operator asked for may wait for its turn.
const LONGEST_HOLD: Duration = Duration::from_secs(5);
/// And the operator for its end: `tidelock` itself waits a little longer.
const LONGEST_ASKING: Duration = Duration::from_secs(8);

/// Images of a page, where the query does not say.
const DEFAULT_PAGE: usize = 100;
/// And where it wants more than anybody can look at: for each of them its manifests are read.
const LARGEST_PAGE: usize = 1_000;

/// What is left of every budget.
pub(super) fn budgets(admin: &Admin) -> Response<Body> {
    json(&Budgets::from(admin.mirror.outlook()))
}

/// What would come of a pull of the image that the query names.
pub(super) async fn explain(admin: &Admin, query: Option<&str>) -> Response<Body> {
    let (image, target) = match named(admin, query) {
        Ok(named) => named,
        Err(refusal) => return refusal.answer(),
    };
    let explanation = admin.mirror.explain(&target, &image.reference).await;
    let outlook = admin.mirror.outlook().into_iter().nth(target.upstream.index());
    json(&Explained::new(&target, image.to_string(), image.reference.to_string(), explanation, outlook))
}

/// A page of the tags that are remembered, behind the one that the query names. Those of an upstream that is no longer
/// configured are left out: nobody could pull them.
pub(super) async fn images(admin: &Admin, query: Option<&str>) -> Response<Body> {
    let refuse = |code, message: &str| answer::error(StatusCode::BAD_REQUEST, code, message);
    let after = match parameter(query, "after").map(|after| tagged(&after)).transpose() {
        Ok(after) => after,
        Err(message) => return refuse("after_invalid", &message),
    };
    let limit = parameter(query, "limit").map_or(Ok(DEFAULT_PAGE), |limit| limit.parse::<usize>());
    let Some(limit) = limit.ok().filter(|limit| (1..=LARGEST_PAGE).contains(limit)) else {
        return refuse("limit_invalid", &format!("limit is how many images a page has, 1 to {LARGEST_PAGE}"));
    };
    let after = after.as_ref().map(|(repository, tag)| (repository, tag));
    let found = admin.mirror.store().tags(after, limit);
    let is_last = found.len() < limit;
    let rules = admin.rules.load_full();
    let (mut images, mut next) = (Vec::new(), None);
    for (Repository { registry, name: repository }, tag, stamp) in found {
        let target = rules.router.route(Some(&registry), None, &repository);
        let image = ImageReference { registry, repository, reference: Reference::Tag(tag) };
        if let Ok(target) = target {
            let content = admin.mirror.content(&target, &stamp.digest).await;
            images.push(Image::new(&image, stamp, content));
        }
        next = Some(image.to_string());
    }
    json(&Images { images, next: next.filter(|_| !is_last) })
}

/// Asks the upstream what the tag that the query names means now.
pub(super) async fn refresh(admin: &Admin, query: Option<&str>) -> Response<Body> {
    let (image, target) = match named(admin, query) {
        Ok(named) => named,
        Err(refusal) => return refusal.answer(),
    };
    let Reference::Tag(tag) = image.reference.clone() else {
        let message = "A digest means what it means: name an image by its tag.";
        return answer::error(StatusCode::BAD_REQUEST, "image_invalid", message);
    };
    let mirror = admin.mirror.clone();
    // Where clients are served: connections to upstreams live on the runtime that they were made on.
    let asking = admin.work.spawn(async move {
        let errand = Errand::of(ClientAddr::NOBODY).at(Priority::Revalidation).held_for(LONGEST_HOLD);
        mirror.refresh(&target, &tag, &errand).await
    });
    match tokio::time::timeout(LONGEST_ASKING, asking).await {
        Ok(Ok(Ok(refreshed))) => json(&Refreshed::new(&image, refreshed)),
        Ok(Ok(Err(error))) => not_refreshed(&error),
        Ok(Err(_)) => {
            let message = "The check was given up inside the mirror; its log says why.";
            answer::error(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
        }
        Err(_) => {
            let message =
                format!("{image}: no answer within {LONGEST_ASKING:?}; the check goes on by itself.");
            answer::error(StatusCode::GATEWAY_TIMEOUT, "timed_out", &message)
        }
    }
}

fn not_refreshed(error: &mirror::Error) -> Response<Body> {
    let (status, code) = match error {
        mirror::Error::Offline => (StatusCode::CONFLICT, "offline"),
        error if error.is_absence() => (StatusCode::NOT_FOUND, "not_found"),
        _ => (StatusCode::BAD_GATEWAY, "upstream"),
    };
    answer::error(status, code, &error.to_string())
}

/// Why a query cannot be answered.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn answer(&self) -> Response<Body> {
        answer::error(self.status, self.code, &self.message)
    }
}

/// The image that the query names, and where it is pulled from.
fn named(admin: &Admin, query: Option<&str>) -> Result<(ImageReference, Target), Refusal> {
    let refuse = |status, code, message: &str| Err(Refusal { status, code, message: message.to_owned() });
    let Some(image) = parameter(query, "image") else {
        let message = "Name an image: ?image=docker.io/library/nginx:latest";
        return refuse(StatusCode::BAD_REQUEST, "image_missing", message);
    };
    let image: ImageReference = match image.parse() {
        Ok(image) => image,
        Err(fault) => return refuse(StatusCode::BAD_REQUEST, "image_invalid", &fault.to_string()),
    };
    let rules = admin.rules.load_full();
    let target = match rules.router.route(Some(&image.registry), None, &image.repository) {
        Ok(target) => target,
        Err(no_route) => return refuse(StatusCode::NOT_FOUND, "no_upstream", &no_route.to_string()),
    };
    let upstream = &rules.config.upstreams[target.upstream.index()];
    if let Err(denied) = access::permit(upstream, &target.repository.name) {
        return refuse(StatusCode::FORBIDDEN, "denied", &denied.to_string());
    }
    Ok((image, target))
}

/// An image by tag, as `next` of a page has it.
fn tagged(text: &str) -> Result<(Repository, Tag), String> {
    let image: ImageReference = text.parse().map_err(|fault: crate::oci::Malformed| fault.to_string())?;
    let repository = Repository { registry: image.registry, name: image.repository };
    match image.reference {
        Reference::Tag(tag) => Ok((repository, tag)),
        Reference::Digest(_) => {
            Err("after names an image by its tag, as `next` of the page before does".to_owned())
        }
    }
}

/// How far a scrub is, or how the last one went.
pub(super) fn scrub(admin: &Admin) -> Response<Body> {
    let (scrub, blobs, bytes) = admin.mirror.store().scrub_progress();
    json(&Scrubbing::new(&scrub, blobs, bytes))
}

/// Begins one, at the pace that the query names, or at the configured one.
pub(super) fn begin_scrub(admin: &Admin, query: Option<&str>) -> Response<Body> {
    let rate = parameter(query, "rate").map(|rate| rate.parse::<ByteSize>());
    match rate.transpose() {
        Ok(Some(ByteSize(0))) | Err(_) => {
            let message = "rate is how many bytes a second are hashed: a size above 0 such as 20MiB";
            answer::error(StatusCode::BAD_REQUEST, "rate_invalid", message)
        }
        Ok(rate) => {
            admin.mirror.store().scrub(rate);
            scrub(admin)
        }
    }
}

fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(query?.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn json(value: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_string(value).expect("numbers and texts are JSON");
    answer::typed(StatusCode::OK, "application/json", format!("{body}\n"))
}
