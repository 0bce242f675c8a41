use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use crate::server::Body;

/// Where there is nothing better to say.
pub(super) const GIVEN_UP: &str = "It was given up inside the mirror; its log says why.";

/// Plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", body)
}

/// Any body. What stands here is true for this moment only, so nobody may keep it.
pub(super) fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An error for programs (`code`) and people (`message`).
pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({ "error": { "code": code, "message": message } });
    typed(status, "application/json", format!("{body}\n"))
}

/// Who asks must say who they are (RFC 9110 §15.5.2).
pub(super) fn unauthorized(code: &str, message: &str) -> Response<Body> {
    let mut response = error(StatusCode::UNAUTHORIZED, code, message);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tidelock\""));
    response
}

/// The page is there, but not to be asked like this.
pub(super) fn wrong_method(allowed: &'static str) -> Response<Body> {
    let message = format!("This page takes {allowed} only.");
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// The task that was to answer panicked.
pub(super) fn given_up() -> Response<Body> {
    error(StatusCode::INTERNAL_SERVER_ERROR, "internal", GIVEN_UP)
}
