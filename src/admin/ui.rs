//! The status page and what it consists of. All of it is in the program: the page asks nobody but the mirror.

use http::header::{CONTENT_SECURITY_POLICY, HeaderName, VARY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::answer;
use crate::server::Body;

/// A file of the page: its path, its type and its content.
type Asset = (&'static str, &'static str, &'static str);

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

const PAGE: Asset = ("/", "text/html; charset=utf-8", include_str!("ui/index.html"));

const ASSETS: [Asset; 10] = [
    ("/ui/main.js", SCRIPT, include_str!("ui/main.js")),
    ("/ui/api.js", SCRIPT, include_str!("ui/api.js")),
    ("/ui/charts.js", SCRIPT, include_str!("ui/charts.js")),
    ("/ui/images.js", SCRIPT, include_str!("ui/images.js")),
    ("/ui/overview.js", SCRIPT, include_str!("ui/overview.js")),
    ("/ui/words.js", SCRIPT, include_str!("ui/words.js")),
    ("/ui/uplot.js", SCRIPT, include_str!("ui/vendor/uplot.js")),
    ("/ui/uplot.css", STYLE, include_str!("ui/vendor/uplot.css")),
    ("/ui/style.css", STYLE, include_str!("ui/style.css")),
    ("/ui/icon.svg", "image/svg+xml", include_str!("ui/icon.svg")),
];

/// Nothing but what comes from here, and nothing written into the page: neither script nor style.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The page, for who asks `/` for HTML, as browsers do; programs and people with `curl` get a list there.
pub(super) fn page(headers: &HeaderMap) -> Option<Response<Body>> {
    let accept = headers.get(http::header::ACCEPT).and_then(|accept| accept.to_str().ok())?;
    accept.contains("text/html").then(|| sent(PAGE))
}

/// What the page consists of, by its path.
pub(super) fn asset(path: &str) -> Option<Response<Body>> {
    ASSETS.into_iter().find(|(own, ..)| *own == path).map(sent)
}

fn sent((_, kind, content): Asset) -> Response<Body> {
    let mut response = answer::typed(StatusCode::OK, kind, content);
    let nosniff = HeaderValue::from_static("nosniff");
    let no_referrer = HeaderValue::from_static("no-referrer");
    response.headers_mut().extend([
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, nosniff),
        (HeaderName::from_static("referrer-policy"), no_referrer),
        (VARY, HeaderValue::from_static("accept")),
    ]);
    response
}
