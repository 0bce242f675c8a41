//! Carries images in and out: content by its digest, and names once all of it is there.

use std::io;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyDataStream, BodyExt, Limited};
use hyper::body::{Body as _, Incoming};
use serde::de::DeserializeOwned;

use super::{Answer, Refusal, json, named, parameter, route};
use crate::admin::types::{Adopted, Adoption, Lacking, Sought, TakenIn};
use crate::admin::{Admin, answer};
use crate::mirror::{self, NotAdopted, NotTaken};
use crate::oci::{Digest, ImageReference};
use crate::scheduler::Errand;
use crate::server::Body;
use crate::store;

/// A list of a million digests is less.
const LARGEST_QUESTION: usize = 128 << 20;
/// Digests of the inventory that are read at once.
const PAGE: usize = 1_000;

/// A manifest or blob of the image that the query names; fetched, where it is missing.
pub(in crate::admin) async fn content(admin: &Admin, query: Option<&str>) -> Answer {
    let (_, target) = named(admin, query)?;
    let digest = digest(query)?;
    match admin.mirror.blob(&target, &digest, &Errand::background()).await {
        Ok(mirror::BlobAnswer { size, content: Some(content), .. }) => {
            let mut response = Response::new(Body::stream(content.read_all(size), size));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            Ok(response)
        }
        Ok(_) => Err(internal(answer::GIVEN_UP)),
        Err(error) => Err(refusal(StatusCode::BAD_GATEWAY, "upstream", &format!("{digest}: {error}"))),
    }
}

/// The digest of everything that is here, one a line.
pub(in crate::admin) fn inventory(admin: &Arc<Admin>) -> Response<Body> {
    let pages = stream::unfold((Arc::clone(admin), None), |(admin, after)| async move {
        let page = admin.mirror.inventory(after.as_ref(), PAGE);
        let last = *page.last()?;
        let text: String = page.iter().map(|digest| format!("{digest}\n")).collect();
        Some((Bytes::from(text), (admin, Some(last))))
    });
    let mut response = Response::new(Body::endless(pages));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Which of the digests that are sent are not here.
pub(in crate::admin) async fn lacking(admin: &Admin, request: Request<Incoming>) -> Answer {
    let Sought { digests } = question(request).await?;
    let digests = read_all(&digests)?;
    let lacking = admin.mirror.lacking(&digests).await;
    let (fullness, evictable) = (admin.mirror.store().fullness(), admin.mirror.evictable(&digests));
    let lacking = lacking.iter().map(Digest::to_string).collect();
    Ok(json(&Lacking { lacking, limit: fullness.limit, pinned: fullness.pinned, evictable }))
}

/// Takes in the body under the digest that the query names, if it is what it should be.
pub(in crate::admin) async fn take_in(admin: &Admin, request: Request<Incoming>) -> Answer {
    let digest = digest(request.uri().query())?;
    let Some(size) = request.body().size_hint().exact() else {
        let message = "Send it with its Content-Length.";
        return Err(refusal(StatusCode::LENGTH_REQUIRED, "length_missing", message));
    };
    // At a stop the rest of it is not waited for: what came is kept.
    let pieces = BodyDataStream::new(request.into_body()).take_until(admin.house.stopping());
    let pieces = Box::pin(pieces.map(|piece| piece.map_err(io::Error::other)));
    match admin.mirror.take_in(digest, size, pieces).await {
        Ok(new) => Ok(json(&TakenIn { digest: digest.to_string(), new })),
        Err(error) => {
            let (status, code) = match &error {
                NotTaken::BrokenOff { .. } => (StatusCode::BAD_REQUEST, "broken_off"),
                NotTaken::Store(store::Error::Mismatch) => (StatusCode::BAD_REQUEST, "digest_mismatch"),
                NotTaken::Store(store::Error::NoRoom { .. }) => (StatusCode::INSUFFICIENT_STORAGE, "no_room"),
                NotTaken::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "cache"),
            };
            Err(refusal(status, code, &format!("{digest}: {error}")))
        }
    }
}

/// Serves an image whose content was taken in.
pub(in crate::admin) async fn adopt(admin: &Admin, request: Request<Incoming>) -> Answer {
    let Adoption { image, digest, needs } = question(request).await?;
    let image: ImageReference = image
        .parse()
        .map_err(|fault| refusal(StatusCode::BAD_REQUEST, "image_invalid", &format!("{fault}")))?;
    let (digest, needs) = (read(&digest)?, read_all(&needs)?);
    let target = route(admin, &image)?;
    match admin.mirror.adopt(&target, &image.reference, &digest, &needs).await {
        Ok(mirror::Adopted { before }) => Ok(json(&Adopted {
            image: image.to_string(),
            digest: digest.to_string(),
            before: before.map(|digest| digest.to_string()),
        })),
        Err(error) => {
            let (status, code) = match &error {
                NotAdopted::Lacking(_) => (StatusCode::CONFLICT, "lacking"),
                NotAdopted::NoManifest(_) => (StatusCode::BAD_REQUEST, "no_manifest"),
                NotAdopted::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "cache"),
            };
            Err(refusal(status, code, &format!("{image}: {error}")))
        }
    }
}

async fn question<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let wrong = |message: String| refusal(StatusCode::BAD_REQUEST, "body_invalid", &message);
    let body = Limited::new(request.into_body(), LARGEST_QUESTION).collect().await;
    let body = body.map_err(|error| wrong(format!("The body cannot be read: {error}")))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| wrong(format!("The body is not what it should be: {error}")))
}

fn digest(query: Option<&str>) -> Result<Digest, Refusal> {
    read(&parameter(query, "digest").unwrap_or_default())
}

fn read(text: &str) -> Result<Digest, Refusal> {
    Digest::from_str(text)
        .map_err(|fault| refusal(StatusCode::BAD_REQUEST, "digest_invalid", &fault.to_string()))
}

fn read_all(texts: &[String]) -> Result<Vec<Digest>, Refusal> {
    texts.iter().map(|text| read(text)).collect()
}

fn internal(message: &str) -> Refusal {
    refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
}

fn refusal(status: StatusCode, code: &'static str, message: &str) -> Refusal {
    Refusal { status, code, message: message.to_owned() }
}
