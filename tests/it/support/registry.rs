//! A fake registry: a real HTTP server on 127.0.0.1 over images in memory, which counts every request.
//!
//! ```text
//!  serving   one port: HTTP/1, TLS, CONNECT, absolute form      -> which site?
//!  site      log it, delay it, answer it, work the faults in
//!  door      auth     answers   endpoints     token_server   /token
//! ```
//!
//! A test pushes images, sets knobs ([`Behaviour`]) and faults, points Tidelock at
//! [`FakeRegistry::url`], and asks afterwards what was requested. Repositories named with a host in
//! front (`ghcr.io/org/app`) exist for that host only: give the fake to Tidelock as a forward proxy
//! and one fake plays several upstreams under their real names.

use std::net::SocketAddr;
use std::sync::Arc;

use super::answers::State;
use super::behaviour::{Auth, Behaviour};
use super::cdn::FakeCdn;
use super::images::{Blob, Image};
use super::log::Record;
use super::serving::{Front, Tunnel};
use super::site::Site;
use super::tls::TestCa;
use super::token_server::TokenServer;

/// A fake registry. Clones are the same one, and the last to go stops it. It derefs to [`Site`],
/// which has its log and its faults.
#[derive(Clone)]
pub struct FakeRegistry(Arc<Inner>);

struct Inner {
    front: Front,
    site: Arc<Site>,
    state: Arc<State>,
    tokens: TokenServer,
    ca: Option<TestCa>,
}

/// A fake that can stand behind a host name at another fake's port.
pub trait Hosted {
    /// What answers there.
    fn site(&self) -> Arc<Site>;
}

impl FakeRegistry {
    /// An empty registry on plain HTTP.
    pub async fn start() -> Self {
        Self::open(None, &[], false).await
    }

    /// An empty registry that speaks TLS, with a certificate for 127.0.0.1 and localhost.
    pub async fn start_tls() -> Self {
        Self::start_tls_for(&[]).await
    }

    /// The same with a certificate for these names too: for CONNECT tunnels to them.
    pub async fn start_tls_for(names: &[&str]) -> Self {
        Self::start_tls_with(&TestCa::new(), names, false).await
    }

    /// The same from a given authority; with `h2` it offers HTTP/2.
    pub async fn start_tls_with(ca: &TestCa, names: &[&str], h2: bool) -> Self {
        Self::open(Some(ca.clone()), names, h2).await
    }

    async fn open(ca: Option<TestCa>, names: &[&str], h2: bool) -> Self {
        let tokens = TokenServer::homeless();
        let state = Arc::new(State::new(tokens.issuer()));
        let answering = Arc::clone(&state);
        let site = Site::new(move |call| {
            let state = Arc::clone(&answering);
            async move { state.answer(&call) }
        });
        let acceptor = ca.as_ref().map(|ca| ca.acceptor(names, h2));
        let front = Front::start(Arc::clone(&site), acceptor).await;
        front.route_path("/token", tokens.site());
        Self(Arc::new(Inner { front, site, state, tokens, ca }))
    }

    /// `http://127.0.0.1:PORT`, or `https://…`.
    pub fn url(&self) -> String {
        self.0.front.url()
    }

    /// The same as a forward proxy: always `http://127.0.0.1:PORT`.
    pub fn proxy_url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.0.front.addr()
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.addr().to_string()
    }

    /// The certificate that a client must trust.
    ///
    /// # Panics
    /// When it was not started with TLS.
    pub fn ca_pem(&self) -> String {
        self.0.ca.as_ref().expect("a registry started with TLS").pem()
    }

    /// Puts every blob and manifest of an image into a repository and tags its top.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        self.0.state.store.push(repository, tag, image);
    }

    /// Points a tag at a digest.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.0.state.store.change(repository, |r| {
            r.tags.insert(tag.to_owned(), digest.to_owned());
        });
    }

    /// Removes a tag.
    pub fn remove_tag(&self, repository: &str, tag: &str) {
        self.0.state.store.change(repository, |r| {
            r.tags.remove(tag);
        });
    }

    /// Removes a repository with all that is in it.
    pub fn remove_repo(&self, repository: &str) {
        self.0.state.store.remove(repository);
    }

    /// Puts one blob into a repository.
    pub fn put_blob(&self, repository: &str, blob: &Blob) {
        self.0.state.store.change(repository, |r| {
            r.blobs.insert(blob.digest.clone(), blob.clone());
        });
    }

    /// Removes a blob.
    pub fn remove_blob(&self, repository: &str, digest: &str) {
        self.0.state.store.change(repository, |r| {
            r.blobs.remove(digest);
        });
    }

    /// Puts one manifest into a repository, untagged. Its digest need not be true.
    pub fn put_manifest(&self, repository: &str, manifest: &Blob) {
        self.0.state.store.change(repository, |r| {
            r.manifests.insert(manifest.digest.clone(), manifest.clone());
        });
    }

    /// Removes a manifest; tags that point at it stay, and are unknown.
    pub fn remove_manifest(&self, repository: &str, digest: &str) {
        self.0.state.store.change(repository, |r| {
            r.manifests.remove(digest);
        });
    }

    /// Changes how it behaves, from the next request on.
    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.0.state.behaviour());
    }

    /// How it behaves now, quotas as they were spent.
    pub fn behaviour(&self) -> Behaviour {
        self.0.state.behaviour().clone()
    }

    /// The token server whose tokens it takes at first: the one at its own `/token`.
    pub fn tokens(&self) -> &TokenServer {
        &self.0.tokens
    }

    /// Takes tokens of another token server and sends clients there. Sets the auth to Bearer.
    pub fn use_token_server(&self, tokens: &TokenServer) {
        *self.0.state.issuer() = tokens.issuer();
        self.set(|behaviour| {
            if !matches!(behaviour.auth, Auth::Bearer(_)) {
                behaviour.auth = Auth::bearer();
            }
            if let Auth::Bearer(bearer) = &mut behaviour.auth {
                bearer.realm = Some(tokens.realm());
            }
        });
    }

    /// The requests to the token server at its own `/token`; they are not among [`Site::requests`].
    pub fn token_requests(&self) -> Vec<Record> {
        self.0.tokens.token_requests()
    }

    /// A CDN on another port over what this registry holds. Redirect to it with `Redirect::cdn`.
    pub async fn start_cdn(&self) -> FakeCdn {
        FakeCdn::over(Arc::clone(&self.0.state.store)).await
    }

    /// As a forward proxy, passes requests for `host` to another fake.
    pub fn serve_host(&self, host: &str, other: &impl Hosted) {
        self.0.front.route_host(host, other.site());
    }

    /// The most requests under way at the same moment.
    pub fn peak_concurrency(&self) -> usize {
        self.0.site.log().peak_concurrency()
    }

    /// How many connections were ever accepted.
    pub fn accepted_connections(&self) -> usize {
        self.0.front.accepted()
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.0.front.open_connections()
    }

    /// The tunnels that were asked for with CONNECT.
    pub fn tunnels(&self) -> Vec<Tunnel> {
        self.0.front.tunnels()
    }

    /// Refuses connections from now on and kills those there are.
    pub async fn stop(&self) {
        self.0.front.stop().await;
    }

    /// Accepts again, on the same port, with everything it had.
    pub fn resume(&self) {
        self.0.front.resume();
    }

    /// Kills every connection; new ones are accepted.
    pub async fn kill_connections(&self) {
        self.0.front.kill_connections().await;
    }
}

impl std::ops::Deref for FakeRegistry {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.0.site
    }
}

impl Hosted for FakeRegistry {
    fn site(&self) -> Arc<Site> {
        Arc::clone(&self.0.site)
    }
}

impl Hosted for FakeCdn {
    fn site(&self) -> Arc<Site> {
        FakeCdn::site(self)
    }
}

impl Hosted for TokenServer {
    fn site(&self) -> Arc<Site> {
        TokenServer::site(self)
    }
}
