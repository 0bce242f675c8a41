//! The knobs of a fake registry: plain data, changed at any time through `registry.set(|b| …)`.

use std::collections::BTreeMap;

use super::cdn::FakeCdn;

pub use super::quota::{AbuseLimit, RateLimit};

/// How a fake registry behaves. The default is a polite public one without auth.
#[derive(Clone)]
pub struct Behaviour {
    /// What it asks of a client.
    pub auth: Auth,
    /// Repositories that need an account, though others don't.
    pub private: Vec<String>,
    /// How a repository that is missing, or private to this client, is answered when there is auth.
    pub absent: Absent,
    /// Where blobs and manifests are really served from.
    pub redirect: Option<Redirect>,
    /// The pull quota of anonymous clients, and of accounts without their own.
    pub rate_limit: Option<RateLimit>,
    /// The pull quotas of accounts, by user name.
    pub account_limits: BTreeMap<String, RateLimit>,
    /// The limit of requests of any kind; the token server is not under it.
    pub abuse: Option<AbuseLimit>,
    /// Whether there is a referrers endpoint; off, it is a bare 404.
    pub referrers: bool,
    /// The longest page of a tag list that the server gives, whatever `n` says.
    pub tags_page: Option<usize>,
    /// Oddities of the answers.
    pub quirks: Quirks,
}

/// What a registry asks of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Nothing.
    None,
    /// A token for each repository, from the token server.
    Bearer(Bearer),
    /// A user name and a password on every request.
    Basic {
        /// The user name.
        user: String,
        /// The password.
        password: String,
    },
}

/// The particulars of token auth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// Where tokens are had; none is `/token` on the host that was asked.
    pub realm: Option<String>,
    /// The name that the registry goes by at the token server.
    pub service: String,
    /// Whether every repository needs an account.
    pub require_account: bool,
    /// Whether `/v2/` itself answers without a token.
    pub open_ping: bool,
    /// The WWW-Authenticate header word for word, in place of the usual one.
    pub challenge: Option<String>,
    /// Whether the challenge is only given at `/v2/`, as GCR once did.
    pub challenge_at_ping_only: bool,
}

/// How a missing or private repository is answered to a client with a good token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// 401 with insufficient_scope: Docker Hub.
    Unauthorized,
    /// 404 NAME_UNKNOWN.
    NotFound,
    /// 403 DENIED.
    Forbidden,
}

/// Where answers are redirected to.
#[derive(Clone)]
pub struct Redirect {
    /// The other place.
    pub to: Target,
    /// Whether blobs are redirected.
    pub blobs: bool,
    /// Whether manifests are, as at registry.k8s.io.
    pub manifests: bool,
    /// 307, or one of its relatives.
    pub status: u16,
    /// What is put before the repository's name in the other place, slash included.
    pub prefix: String,
}

/// The kinds of other place.
#[derive(Clone)]
pub enum Target {
    /// A CDN behind signed URLs.
    Cdn(FakeCdn),
    /// Another registry, by its URL.
    Registry(String),
    /// Exactly this URL, whatever was asked.
    Url(String),
    /// Back to the very same URL.
    Loop,
}

/// Oddities of a registry's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// No Docker-Content-Digest.
    pub no_digest: bool,
    /// No Content-Length: GET bodies are chunked, HEAD tells no size.
    pub no_length: bool,
    /// No ETag.
    pub no_etag: bool,
    /// No Accept-Ranges, though ranges work.
    pub no_accept_ranges: bool,
    /// Range is ignored: always 200 with everything.
    pub ignore_range: bool,
    /// This Content-Type on every manifest and blob.
    pub content_type: Option<String>,
    /// This Docker-Content-Digest on every manifest and blob.
    pub wrong_digest: Option<String>,
    /// An OCI manifest is 404 when Accept does not name its type.
    pub require_accept: bool,
    /// Every path but `/v2/` is a web page with status 200.
    pub html: bool,
    /// HEAD of a manifest is 405.
    pub no_head: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            auth: Auth::None,
            private: Vec::new(),
            absent: Absent::Unauthorized,
            redirect: None,
            rate_limit: None,
            account_limits: BTreeMap::new(),
            abuse: None,
            referrers: true,
            tags_page: None,
            quirks: Quirks::default(),
        }
    }
}

impl Auth {
    /// Tokens from the registry's own `/token`, also for anonymous clients.
    pub fn bearer() -> Self {
        Self::Bearer(Bearer::default())
    }

    /// The same, but every repository needs an account.
    pub fn bearer_with_account() -> Self {
        Self::Bearer(Bearer { require_account: true, ..Bearer::default() })
    }

    /// HTTP Basic.
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic { user: user.to_owned(), password: password.to_owned() }
    }
}

impl Default for Bearer {
    fn default() -> Self {
        Self {
            realm: None,
            service: "registry.fake".to_owned(),
            require_account: false,
            open_ping: false,
            challenge: None,
            challenge_at_ping_only: false,
        }
    }
}

impl Redirect {
    /// Blobs from a CDN, by 307.
    pub fn cdn(cdn: &FakeCdn) -> Self {
        Self::to(Target::Cdn(cdn.clone()))
    }

    /// Blobs and manifests from another registry, as registry.k8s.io does.
    pub fn registry(url: &str, prefix: &str) -> Self {
        let to = Target::Registry(url.to_owned());
        Self { manifests: true, prefix: prefix.to_owned(), ..Self::to(to) }
    }

    /// Blobs to exactly this URL.
    pub fn url(url: &str) -> Self {
        Self::to(Target::Url(url.to_owned()))
    }

    /// Blobs to themselves, for ever.
    pub fn looping() -> Self {
        Self::to(Target::Loop)
    }

    /// Manifests too.
    pub fn with_manifests(mut self) -> Self {
        self.manifests = true;
        self
    }

    /// By this status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    fn to(to: Target) -> Self {
        Self { to, blobs: true, manifests: false, status: 307, prefix: String::new() }
    }
}
