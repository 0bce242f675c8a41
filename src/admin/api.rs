//! `/api/v1/…`: JSON for `tidelock` itself and for scripts. Reads only.

use http::{Response, StatusCode};
use serde::Serialize;

use super::types::{Budgets, Explained};
use super::{Admin, answer};
use crate::access;
use crate::oci::ImageReference;
use crate::server::Body;

/// What is left of every budget.
pub(super) fn budgets(admin: &Admin) -> Response<Body> {
    json(&Budgets::from(admin.mirror.outlook()))
}

/// What would come of a pull of the image that the query names.
pub(super) async fn explain(admin: &Admin, query: Option<&str>) -> Response<Body> {
    let refuse = |status, code, message: &str| answer::error(status, code, message);
    let image = query.and_then(|query| {
        url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "image").map(|(_, image)| image)
    });
    let Some(image) = image else {
        let message = "Name an image: /api/v1/explain?image=docker.io/library/nginx:latest";
        return refuse(StatusCode::BAD_REQUEST, "image_missing", message);
    };
    let image: ImageReference = match image.parse() {
        Ok(image) => image,
        Err(fault) => return refuse(StatusCode::BAD_REQUEST, "image_invalid", &fault.to_string()),
    };
    let target = match admin.router.route(Some(&image.registry), None, &image.repository) {
        Ok(target) => target,
        Err(no_route) => return refuse(StatusCode::NOT_FOUND, "no_upstream", &no_route.to_string()),
    };
    let upstream = &admin.config.upstreams[target.upstream.index()];
    if let Err(denied) = access::permit(upstream, &target.repository.name) {
        return refuse(StatusCode::FORBIDDEN, "denied", &denied.to_string());
    }
    let explanation = admin.mirror.explain(&target, &image.reference).await;
    let outlook = admin.mirror.outlook().into_iter().nth(target.upstream.index());
    json(&Explained::new(&target, image.to_string(), image.reference.to_string(), explanation, outlook))
}

fn json(value: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_string(value).expect("numbers and texts are JSON");
    answer::typed(StatusCode::OK, "application/json", format!("{body}\n"))
}
