use std::sync::Arc;

use http::header::VARY;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::api::{self, bundle, images, status, warm};
use super::{Admin, answer, ui};
use crate::lifecycle::Phase;
use crate::server::Body;

/// What Prometheus expects of its text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4";

/// What all of this is, for programs; a test holds it to what is answered.
const OPEN_API: &str = include_str!("openapi.json");

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Index,
    OpenApi,
    Status,
    Events,
    History,
    Eviction,
    Metrics,
    Health,
    Readiness,
    Budgets,
    Explain,
    Scrub,
    Images,
    Image,
    Refresh,
    Pin,
    Unpin,
    Remove,
    TagHistory,
    Rollback,
    Release,
    Matching,
    Warm,
    Missing,
    Content,
    Inventory,
    Lacking,
    Blob,
    Adopt,
}

impl Page {
    const ALL: [Page; 29] = [
        Page::Index,
        Page::OpenApi,
        Page::Status,
        Page::Events,
        Page::History,
        Page::Eviction,
        Page::Metrics,
        Page::Health,
        Page::Readiness,
        Page::Budgets,
        Page::Explain,
        Page::Scrub,
        Page::Images,
        Page::Image,
        Page::Refresh,
        Page::Pin,
        Page::Unpin,
        Page::Remove,
        Page::TagHistory,
        Page::Rollback,
        Page::Release,
        Page::Matching,
        Page::Warm,
        Page::Missing,
        Page::Content,
        Page::Inventory,
        Page::Lacking,
        Page::Blob,
        Page::Adopt,
    ];

    fn path(self) -> &'static str {
        match self {
            Page::Index => "/",
            Page::OpenApi => "/api/v1/openapi.json",
            Page::Status => "/api/v1/status",
            Page::Events => "/api/v1/events",
            Page::History => "/api/v1/history",
            Page::Eviction => "/api/v1/eviction",
            Page::Metrics => "/metrics",
            Page::Health => "/healthz",
            Page::Readiness => "/readyz",
            Page::Budgets => "/api/v1/budgets",
            Page::Explain => "/api/v1/explain",
            Page::Scrub => "/api/v1/scrub",
            Page::Images => "/api/v1/images",
            Page::Image => "/api/v1/image",
            Page::Refresh => "/api/v1/refresh",
            Page::Pin => "/api/v1/pin",
            Page::Unpin => "/api/v1/unpin",
            Page::Remove => "/api/v1/remove",
            Page::TagHistory => "/api/v1/tag-history",
            Page::Rollback => "/api/v1/rollback",
            Page::Release => "/api/v1/release",
            Page::Matching => "/api/v1/matching",
            Page::Warm => "/api/v1/warm",
            Page::Missing => "/api/v1/missing",
            Page::Content => "/api/v1/content",
            Page::Inventory => "/api/v1/inventory",
            Page::Lacking => "/api/v1/lacking",
            Page::Blob => "/api/v1/blob",
            Page::Adopt => "/api/v1/adopt",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Page::Index => "this list; for a browser, the status page",
            Page::OpenApi => "what all of /api takes and answers, as OpenAPI 3.1",
            Page::Status => "everything at a glance: traffic, cache, fetches, budgets, troubles",
            Page::Events => "the same every second, as server-sent events",
            Page::History => "?span=hour or day: how the sums of traffic came to be what they are",
            Page::Eviction => "?limit=50: what goes first when room is needed",
            Page::Metrics => "what is counted, for Prometheus",
            Page::Health => "200 while the process works",
            Page::Budgets => "what is left of each account, when it will be spent, and who pulls",
            Page::Explain => "?image=NAME: what would come of a pull of it now, and why",
            Page::Scrub => {
                "how far hashing anew what is kept is; POST, with ?rate=20MiB or without, begins it"
            }
            Page::Images => "the tags that are remembered and what is here of them; ?limit=100&after=IMAGE",
            Page::Image => "?image=NAME: what it consists of, and what of that is here",
            Page::Pin => "POST, ?image=NAME: keeps it from eviction",
            Page::Unpin => "POST, ?image=NAME: lets it be evicted",
            Page::Remove => "POST, ?image=NAME: takes it out of the cache",
            Page::Warm => {
                "what the rounds of [[warm]] came to; POST, ?image=NAME&platform=OS/ARCH&referrers=true&latest=true&pin=true: \
                 fetches what is missing of it"
            }
            Page::Missing => "what was asked for in vain while nobody could be asked for it; POST forgets it",
            Page::Content => "POST, ?image=NAME&digest=DIGEST: a manifest or blob of it",
            Page::Inventory => "the digest of everything that is here, one a line",
            Page::Lacking => "POST, {digests}: those of them that are not here",
            Page::Blob => "POST, ?digest=DIGEST and the content: takes it in, if it hashes to that",
            Page::Adopt => "POST, {image, digest, needs}: serves an image that was taken in",
            Page::TagHistory => "?image=NAME: what this tag meant, since when, and until when",
            Page::Rollback => {
                "POST, ?image=NAME&to=DIGEST: serves the tag as what it meant once, or as `previous`"
            }
            Page::Release => "POST, ?image=NAME: serves the tag as the upstream has it again",
            Page::Matching => {
                "POST, ?image=NAME:PATTERN&newest=3: the tags that it matches, the newest version first"
            }
            Page::Refresh => "POST, ?image=NAME: asks the upstream now what this tag means",
            Page::Readiness => "200 while pulls are served, 503 while starting and draining",
        }
    }

    /// How it can be asked.
    fn methods(self) -> &'static str {
        match self {
            Page::Scrub | Page::Missing | Page::Warm => "GET, HEAD, POST",
            Page::Refresh | Page::Pin | Page::Unpin | Page::Remove | Page::Rollback | Page::Release => "POST",
            Page::Matching | Page::Content | Page::Lacking | Page::Blob | Page::Adopt => "POST",
            _ => "GET, HEAD",
        }
    }

    fn takes(self, method: &Method) -> bool {
        self.methods().split(", ").any(|taken| taken == method.as_str())
    }

    fn at(path: &str) -> Option<Page> {
        Page::ALL.into_iter().find(|page| page.path() == path)
    }
}

/// Answers one request.
pub(super) async fn answer(admin: &Arc<Admin>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    if let Some(asset) = ui::asset(path).filter(|_| request.method().is_safe()) {
        return asset;
    }
    let Some(page) = Page::at(path) else {
        return answer::error(StatusCode::NOT_FOUND, "not_found", "No such page. GET / lists what is here.");
    };
    if !page.takes(request.method()) {
        return answer::wrong_method(page.methods());
    }
    let query = request.uri().query();
    let about_image = match page {
        Page::Index => return ui::page(request.headers()).unwrap_or_else(index),
        Page::OpenApi => return answer::typed(StatusCode::OK, "application/json", OPEN_API),
        Page::Status => return api::json(&status::status(admin)),
        Page::Events => return status::events(admin),
        Page::History => return status::history(admin, query),
        Page::Eviction => return status::eviction(admin, query),
        Page::Metrics => return answer::typed(StatusCode::OK, METRICS_TYPE, admin.metrics.render()),
        Page::Health => return answer::text(StatusCode::OK, "ok\n"),
        Page::Readiness => return readiness(admin.house.phase()),
        Page::Budgets => return api::budgets(admin),
        Page::Scrub if *request.method() == Method::POST => return api::begin_scrub(admin, query),
        Page::Scrub => return api::scrub(admin),
        Page::Missing => return api::missing(admin, *request.method() == Method::POST),
        Page::Images => return images::images(admin, query).await,
        Page::Explain => api::explain(admin, query).await,
        Page::Image => images::show(admin, query).await,
        Page::Refresh => images::refresh(admin, query).await,
        Page::Pin => images::pin(admin, query).await,
        Page::Unpin => images::unpin(admin, query).await,
        Page::Remove => images::remove(admin, query).await,
        Page::TagHistory => images::history(admin, query),
        Page::Rollback => images::roll_back(admin, query).await,
        Page::Release => images::release(admin, query).await,
        Page::Matching => warm::matching(admin, query).await,
        Page::Warm if *request.method() != Method::POST => return warm::rounds(admin),
        Page::Warm => warm::warm(admin, query).await,
        Page::Content => bundle::content(admin, query).await,
        Page::Inventory => return bundle::inventory(admin),
        Page::Lacking => bundle::lacking(admin, request).await,
        Page::Blob => bundle::take_in(admin, request).await,
        Page::Adopt => bundle::adopt(admin, request).await,
    };
    about_image.unwrap_or_else(|refusal| refusal.answer())
}

fn index() -> Response<Body> {
    let head = format!("Tidelock {}\n\n", env!("CARGO_PKG_VERSION"));
    let lines = Page::ALL.map(|page| format!("{:<20} {}\n", page.path(), page.about()));
    let mut list = answer::text(StatusCode::OK, head + &lines.concat());
    list.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    list
}

fn readiness(phase: Phase) -> Response<Body> {
    let status = match phase {
        Phase::Ready => StatusCode::OK,
        Phase::Starting | Phase::Draining | Phase::Stopped => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer::text(status, format!("{}\n", phase.as_str()))
}
