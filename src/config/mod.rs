//! Plain data that the operator wrote, checked; no live objects.
//!
//! [`Config::default`] is a working mirror of the public registries. [`Config::load`] lays the file over it,
//! and flags and environment over both: `load` and `upstreams` take the keys one by one from a `reader`, each
//! read by one of `kinds`; `check` looks at what must go together. Every fault is reported at once, each with
//! its key path. Nothing here opens a file other than the configuration itself, resolves a name or reads a
//! secret: that belongs to whoever uses it.

mod advice;
mod bandwidth;
mod check;
mod defaults;
mod fault;
mod glob;
mod kinds;
mod load;
mod overrides;
mod print;
mod probe;
mod reader;
mod suggest;
mod units;
mod upstreams;
mod warm;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub use bandwidth::{Bandwidth, Hours, Rate};
pub use fault::{Fault, Faults};
pub use glob::Glob;
pub use load::Objections;
pub use overrides::{Overrides, Setting};
pub use probe::Probe;
pub use units::{ByteSize, Share, SizeLimit, parse_duration, print_duration};
pub use warm::{MOST_TAGS, Warm, Wish};

use crate::oci::RegistryHost;
use crate::secret::Secret;

/// Everything that an operator may set.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// No upstream is ever contacted; what is cached is served at any age.
    pub offline: bool,
    /// The clients' and the operator's listeners.
    pub server: Server,
    /// Who may change something at the operator's door.
    pub admin: Admin,
    /// Where and how much is kept.
    pub cache: Cache,
    /// How long tags are trusted; each upstream may override it.
    pub freshness: Freshness,
    /// How upstream requests are held and shared out.
    pub schedule: Schedule,
    /// What is logged and how.
    pub log: Log,
    /// Where spans are sent.
    pub trace: Trace,
    /// The registries that are mirrored, and the only ones ever contacted (I6).
    pub upstreams: Vec<Upstream>,
    /// What is fetched ahead.
    pub warm: Vec<Warm>,
}

/// An upstream by its place in [`Config::upstreams`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamId(usize);

/// `[server]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Where clients connect.
    pub listen: Vec<SocketAddr>,
    /// Where metrics, health and the operator's API are. Never reachable through `listen`.
    pub admin_listen: SocketAddr,
    /// How long a stop waits for running transfers.
    pub drain_timeout: Duration,
    /// Connections served at once; more wait in the kernel's queue.
    pub max_connections: usize,
    /// Serve HTTPS on `listen`.
    pub tls: Option<Tls>,
}

/// `[admin]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admin {
    /// The file whose first line is the token that whatever changes something must bring along; read at each such request.
    pub token_file: Option<PathBuf>,
}

/// `server.tls`: files in PEM, read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// Certificates of the authorities whose clients may connect; everyone may when absent.
    pub client_ca: Option<PathBuf>,
}

/// `[cache]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// The directory that is this mirror's own.
    pub dir: PathBuf,
    /// The most bytes of blobs, finished and partial.
    pub max_size: SizeLimit,
    /// So much of the file system is left free.
    pub min_free: ByteSize,
    /// How long after everything was hashed anew it is done once more; zero for only when asked for.
    pub scrub_every: Duration,
    /// At how many bytes a second; never 0.
    pub scrub_rate: ByteSize,
}

/// `[freshness]`, with an upstream's own keys laid over it.
#[derive(Debug, Clone, PartialEq)]
pub struct Freshness {
    /// How long a tag is served unasked.
    pub tag_ttl: Duration,
    /// How long after that it is served at once and asked behind the client's back.
    pub stale_while_revalidate: Duration,
    /// How long after `tag_ttl` it is served when the upstream is down, throttled or refusing.
    pub stale_if_error: Duration,
    /// How long "there is no such thing" is remembered.
    pub negative_ttl: Duration,
    /// Tags that never move: once known, never asked again.
    pub immutable_tags: Vec<Glob>,
}

/// `[schedule]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The longest that a pull is held for budget or a connection before it is refused with `Retry-After`.
    pub max_wait: Duration,
    /// The share of an account's budget that background work may not touch.
    pub reserve: Share,
    /// The most that comes from all upstreams together.
    pub bandwidth: Bandwidth,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// The least severe level that is written, or a list such as `info,tidelock::upstream=debug`.
    pub level: String,
    /// A file that gets a line for whatever is changed at the operator's door, or was to be.
    pub audit: Option<PathBuf>,
}

/// `[trace]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The collector's base URL (OTLP over HTTP); without one no spans are made.
    pub endpoint: Option<url::Url>,
    /// Of requests whose client has not decided, so many are traced.
    pub share: Share,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// One `[[upstream]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// The registry as it stands in an image reference; the upstream's name everywhere.
    pub registry: RegistryHost,
    /// Takes requests that name no registry.
    pub default: bool,
    /// Base URLs (`http` or `https`, host, port, no path) in order of preference: mirrors first, the origin
    /// last.
    pub endpoints: Vec<url::Url>,
    /// `Host` names that select this upstream.
    pub hosts: Vec<RegistryHost>,
    /// Repositories that may be pulled.
    pub allow: Vec<Glob>,
    /// Repositories that may not be pulled, whatever `allow` says.
    pub deny: Vec<Glob>,
    /// Requests in flight at once.
    pub max_connections: usize,
    /// Requests begun in a second.
    pub requests_per_second: u32,
    /// The most that comes from it.
    pub bandwidth: Bandwidth,
    /// From the start of a connection to the end of its TLS handshake.
    pub connect_timeout: Duration,
    /// From a request to the headers of its answer.
    pub response_timeout: Duration,
    /// Without a byte; then the transfer is resumed elsewhere or fails.
    pub idle_timeout: Duration,
    /// Fetch the layers of an image whose manifest was asked for.
    pub read_ahead: bool,
    /// Fetch a large blob over several connections where one is slow.
    pub parallel_ranges: bool,
    /// PEM file with the authorities that sign this upstream's certificates, in place of the system's.
    pub ca: Option<PathBuf>,
    /// Do not verify this upstream's certificates.
    pub insecure: bool,
    /// How to get there.
    pub proxy: Proxy,
    /// Hosts besides the endpoint's own domain that may be given this upstream's credentials for a token.
    pub token_hosts: Vec<RegistryHost>,
    /// Freshness of this upstream's tags.
    pub freshness: Freshness,
    /// Accounts to log in with; anonymous when empty.
    pub accounts: Vec<Account>,
    /// Whether accounts are all there is.
    pub anonymous: Anonymous,
    /// What `tidelock check --online` asks about to learn the budgets.
    pub probe: Option<Probe>,
    /// Tags that are served as they stood once.
    pub holds: Vec<Hold>,
}

/// One `[[upstream.hold]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Hold {
    /// Which ones, as `repository:tag`.
    pub tags: Vec<Glob>,
    /// As they stood then.
    pub at: SystemTime,
}

/// `upstream.anonymous`: whether pulls may also go without an account once none of the accounts can be used
/// (budget spent, login refused, meant for other repositories). Without accounts everything is anonymous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// They may, when no account is left.
    Last,
    /// They may not.
    Never,
}

/// `upstream.proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxy {
    /// As `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// Straight, whatever the environment says.
    None,
    /// Through this HTTP proxy (`http://[user:password@]host:port`), by CONNECT.
    Through(Secret),
}

/// One `[[upstream.account]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// The account's name in logs and metrics.
    pub name: String,
    /// Where its credentials come from.
    pub credentials: Credentials,
    /// The repositories that it is used for; requests for others never carry it.
    pub repositories: Vec<Glob>,
}

/// Where an account's credentials come from. Files and programs are asked anew at each login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `username` with `password_file`.
    PasswordFile {
        /// The user.
        username: String,
        /// The file whose first line is the password or token.
        file: PathBuf,
    },
    /// `username` with `password_env`.
    PasswordEnv {
        /// The user.
        username: String,
        /// The variable's name.
        variable: String,
    },
    /// `docker_config`: a Docker `config.json` with `auths`, `credHelpers` or `credsStore`.
    DockerConfig {
        /// The file.
        file: PathBuf,
    },
    /// `credential_helper`: a program that speaks Docker's credential helper protocol.
    Helper {
        /// The program, `docker-credential-NAME`.
        program: PathBuf,
        /// How long its answer is used (`credential_ttl`).
        ttl: Duration,
    },
}

impl Upstream {
    /// When a tag is served as of, where it is held: the first that names it counts.
    pub fn held_at(&self, repository: &str, tag: &str) -> Option<SystemTime> {
        if self.holds.is_empty() {
            return None;
        }
        let name = format!("{repository}:{tag}");
        let names_it = |hold: &&Hold| hold.tags.iter().any(|glob| glob.matches(&name));
        self.holds.iter().find(names_it).map(|hold| hold.at)
    }

    /// Whether requests may go without an account.
    pub fn may_go_anonymous(&self) -> bool {
        self.accounts.is_empty() || self.anonymous == Anonymous::Last
    }
}

impl UpstreamId {
    /// The upstream at `index`.
    pub const fn new(index: usize) -> UpstreamId {
        UpstreamId(index)
    }

    /// The place in the list.
    pub fn index(self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests;
