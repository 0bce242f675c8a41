use http::{Method, Request, Response, StatusCode};

use super::{Admin, answer, api};
use crate::lifecycle::Phase;
use crate::server::Body;

/// What Prometheus expects of its text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4";

/// What a path means. The status page gets its variant here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Index,
    Metrics,
    Health,
    Readiness,
    Budgets,
    Explain,
    Scrub,
    Images,
    Refresh,
}

impl Page {
    const ALL: [Page; 9] = [
        Page::Index,
        Page::Metrics,
        Page::Health,
        Page::Readiness,
        Page::Budgets,
        Page::Explain,
        Page::Scrub,
        Page::Images,
        Page::Refresh,
    ];

    fn path(self) -> &'static str {
        match self {
            Page::Index => "/",
            Page::Metrics => "/metrics",
            Page::Health => "/healthz",
            Page::Readiness => "/readyz",
            Page::Budgets => "/api/v1/budgets",
            Page::Explain => "/api/v1/explain",
            Page::Scrub => "/api/v1/scrub",
            Page::Images => "/api/v1/images",
            Page::Refresh => "/api/v1/refresh",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Page::Index => "this list",
            Page::Metrics => "what is counted, for Prometheus",
            Page::Health => "200 while the process works",
            Page::Budgets => "what is left of each account, when it will be spent, and who pulls",
            Page::Explain => "?image=NAME: what would come of a pull of it now, and why",
            Page::Scrub => {
                "how far hashing anew what is kept is; POST, with ?rate=20MiB or without, begins it"
            }
            Page::Images => "the tags that are remembered and what is here of them; ?limit=100&after=IMAGE",
            Page::Refresh => "POST, ?image=NAME: asks the upstream now what this tag means",
            Page::Readiness => "200 while pulls are served, 503 while starting and draining",
        }
    }

    /// How it can be asked.
    fn methods(self) -> &'static str {
        match self {
            Page::Scrub => "GET, HEAD, POST",
            Page::Refresh => "POST",
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
pub(super) async fn answer<B>(admin: &Admin, request: &Request<B>) -> Response<Body> {
    let Some(page) = Page::at(request.uri().path()) else {
        return answer::error(StatusCode::NOT_FOUND, "not_found", "No such page. GET / lists what is here.");
    };
    if !page.takes(request.method()) {
        return answer::wrong_method(page.methods());
    }
    match page {
        Page::Index => answer::text(StatusCode::OK, index()),
        Page::Metrics => answer::typed(StatusCode::OK, METRICS_TYPE, admin.metrics.render()),
        Page::Health => answer::text(StatusCode::OK, "ok\n"),
        Page::Readiness => readiness(admin.house.phase()),
        Page::Budgets => api::budgets(admin),
        Page::Explain => api::explain(admin, request.uri().query()).await,
        Page::Scrub if *request.method() == Method::POST => api::begin_scrub(admin, request.uri().query()),
        Page::Scrub => api::scrub(admin),
        Page::Refresh => api::refresh(admin, request.uri().query()).await,
        Page::Images => api::images(admin, request.uri().query()).await,
    }
}

fn index() -> String {
    let head = format!("Tidelock {}\n\n", env!("CARGO_PKG_VERSION"));
    let lines = Page::ALL.map(|page| format!("{:<16} {}\n", page.path(), page.about()));
    head + &lines.concat()
}

fn readiness(phase: Phase) -> Response<Body> {
    let status = match phase {
        Phase::Ready => StatusCode::OK,
        Phase::Starting | Phase::Draining | Phase::Stopped => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer::text(status, format!("{}\n", phase.as_str()))
}
