//! `/api/v1/…`: JSON for `tidelock` itself and for scripts.

pub(super) mod bundle;
pub(super) mod images;
pub(super) mod status;
pub(super) mod warm;

use http::{Response, StatusCode};
use serde::Serialize;

use super::types::{Budgets, Explained, Missing, Scrubbing};
use super::{Admin, answer};
use crate::access;
use crate::config::ByteSize;
use crate::oci::{ImageReference, Malformed};
use crate::routing::Target;
use crate::server::Body;

/// What is left of every budget.
pub(super) fn budgets(admin: &Admin) -> Response<Body> {
    json(&Budgets::from(admin.mirror.outlook()))
}

/// What would come of a pull of the image that the query names.
pub(super) async fn explain(admin: &Admin, query: Option<&str>) -> Answer {
    let (image, target) = named(admin, query)?;
    let explanation = admin.mirror.explain(&target, &image.reference).await;
    let outlook = admin.mirror.outlook().into_iter().nth(target.upstream.index());
    Ok(json(&Explained::new(&target, image.to_string(), image.reference.to_string(), explanation, outlook)))
}

/// Why a query cannot be answered.
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// What comes of a query that names an image.
pub(super) type Answer = Result<Response<Body>, Refusal>;

impl Refusal {
    pub(super) fn answer(&self) -> Response<Body> {
        answer::error(self.status, self.code, &self.message)
    }
}

/// The image that the query names, and where it is pulled from.
fn named(admin: &Admin, query: Option<&str>) -> Result<(ImageReference, Target), Refusal> {
    let image = asked_for(query)?;
    let target = route(admin, &image)?;
    Ok((image, target))
}

/// The image that the query names, wherever it may come from.
fn asked_for(query: Option<&str>) -> Result<ImageReference, Refusal> {
    let refuse = |status, code, message: &str| Err(Refusal { status, code, message: message.to_owned() });
    let Some(image) = parameter(query, "image") else {
        let message = "Name an image: ?image=docker.io/library/nginx:latest";
        return refuse(StatusCode::BAD_REQUEST, "image_missing", message);
    };
    image
        .parse()
        .or_else(|fault: Malformed| refuse(StatusCode::BAD_REQUEST, "image_invalid", &fault.to_string()))
}

/// Where an image is pulled from, if it may be.
fn route(admin: &Admin, image: &ImageReference) -> Result<Target, Refusal> {
    let refuse = |status, code, message: String| Refusal { status, code, message };
    let rules = admin.rules.load_full();
    let target = rules.router.route(Some(&image.registry), None, &image.repository);
    let target =
        target.map_err(|no_route| refuse(StatusCode::NOT_FOUND, "no_upstream", no_route.to_string()))?;
    let upstream = &rules.config.upstreams[target.upstream.index()];
    access::permit(upstream, &target.repository.name)
        .map_err(|denied| refuse(StatusCode::FORBIDDEN, "denied", denied.to_string()))?;
    Ok(target)
}

/// How far a scrub is, or how the last one went.
pub(super) fn scrub(admin: &Admin) -> Response<Body> {
    let (scrub, blobs, bytes) = admin.mirror.store().scrub_progress();
    json(&Scrubbing::new(&scrub, blobs, bytes))
}

/// What was asked for in vain; with `forget`, no more from now on.
pub(super) fn missing(admin: &Admin, forget: bool) -> Response<Body> {
    json(&Missing::new(if forget { admin.mirror.forget_missing() } else { admin.mirror.missing() }))
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

/// All that the query says under a name.
fn parameters(query: Option<&str>, name: &str) -> Vec<String> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
}

pub(super) fn json(value: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_string(value).expect("numbers and texts are JSON");
    answer::typed(StatusCode::OK, "application/json", format!("{body}\n"))
}
