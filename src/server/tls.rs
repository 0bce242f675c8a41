//! The server's side of TLS: certificate, key and the clients' authorities, from files that may change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{
    ProducesTickets, ServerSessionMemoryCache, StoresServerSessions, VerifierBuilderError,
    WebPkiClientVerifier,
};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use super::validity;
use crate::config;
use crate::lifecycle::{Lifecycle, now};

/// TLS 1.2 sessions that can be resumed without a ticket.
const SESSIONS: usize = 1024;

/// The server's side of TLS, made of files that may change while it runs. Cheap to clone; clones change together.
#[derive(Clone)]
pub struct Tls {
    files: Arc<config::Tls>,
    active: Arc<ArcSwap<ServerConfig>>,
    tried: Arc<Mutex<Tried>>,
}

/// What a look at the files led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// They are what they were at the last look, be they good or bad.
    Unchanged,
    /// New connections get what they say now.
    Done,
}

/// TLS cannot be served with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or not for us to read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// A file is no PEM.
    #[error("{} is not in PEM format: {error:?}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        error: pem::Error,
    },
    /// A file of certificates has none.
    #[error("{} holds no certificate (a block that begins with -----BEGIN CERTIFICATE-----)", .0.display())]
    NoCertificate(PathBuf),
    /// A file of keys has none.
    #[error(
        "{} holds no private key that can be used: expected is an unencrypted PKCS#8, PKCS#1 or SEC1 key in PEM \
         (`openssl pkey -in FILE` takes a password off)", .0.display()
    )]
    NoKey(PathBuf),
    /// Certificate and key are no pair.
    #[error(
        "the key in {} does not belong to the first certificate in {}: the server's own certificate comes first, \
         then those that lead to its authority", key.display(), cert.display()
    )]
    WrongKey {
        /// The certificates.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A certificate or key is not to rustls's liking.
    #[error("cannot serve TLS with {} and {}: {error}", cert.display(), key.display())]
    Unusable {
        /// The certificates.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why not.
        #[source]
        error: rustls::Error,
    },
    /// The clients' authorities cannot be used.
    #[error("cannot verify clients by {}: {why}", path.display())]
    ClientCa {
        /// The certificates of the authorities.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// The files at the last look.
struct Tried {
    all: Fingerprint,
    client_ca: Fingerprint,
    resumption: Resumption,
}

type Fingerprint = [u8; 32];

/// What clients resume their sessions by.
#[derive(Clone)]
struct Resumption {
    tickets: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
}

/// The contents of the files, or why there are none.
struct Contents {
    cert: Result<Vec<u8>, io::Error>,
    key: Result<Zeroizing<Vec<u8>>, io::Error>,
    client_ca: Option<Result<Vec<u8>, io::Error>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what to do about it.
    pub fn open(files: &config::Tls) -> Result<Tls, TlsError> {
        let contents = Contents::read(files);
        let tried = Tried {
            all: contents.fingerprint(),
            client_ca: contents.client_ca_fingerprint(),
            resumption: Resumption::new(),
        };
        let active = server_config(files, contents, &tried.resumption)?;
        Ok(Tls {
            files: Arc::new(files.clone()),
            active: Arc::new(ArcSwap::from_pointee(active)),
            tried: Arc::new(Mutex::new(tried)),
        })
    }

    /// Looks at the files `every` so often, until `life` stops. By content, not by inotify: Kubernetes swaps a
    /// link two directories up, and network file systems notify nobody.
    pub fn watch(&self, life: &Lifecycle, every: Duration) {
        let (tls, stopping) = (self.clone(), life.stopping());
        life.spawn("tls reload", async move {
            let watching = async {
                loop {
                    tokio::time::sleep(every).await;
                    let tls = tls.clone();
                    let _ = tokio::task::spawn_blocking(move || tls.reload_and_log()).await;
                }
            };
            tokio::select! {
                () = watching => {}
                () = stopping => {}
            }
        });
    }

    /// Looks at the files now. New connections get what they say; those that are open live on.
    ///
    /// # Errors
    /// When they changed into something unusable, once; what held before goes on to hold.
    pub fn reload(&self) -> Result<Reload, TlsError> {
        let contents = Contents::read(&self.files);
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let all = contents.fingerprint();
        if tried.all == all {
            return Ok(Reload::Unchanged);
        }
        tried.all = all;
        let client_ca = contents.client_ca_fingerprint();
        // A resumed session is not verified again: clients of an authority that is trusted no more would stay.
        let resumption =
            if client_ca == tried.client_ca { tried.resumption.clone() } else { Resumption::new() };
        let config = server_config(&self.files, contents, &resumption)?;
        (tried.client_ca, tried.resumption) = (client_ca, resumption);
        self.active.store(Arc::new(config));
        Ok(Reload::Done)
    }

    /// The handshake with one client. It has no time limit of its own.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.active.load_full()).accept(stream).await
    }

    fn reload_and_log(&self) {
        match self.reload() {
            Ok(Reload::Unchanged) => {}
            Ok(Reload::Done) => {
                tracing::info!(cert = %self.files.cert.display(), "TLS files changed, now in use")
            }
            Err(error) => tracing::error!(%error, "TLS files changed and cannot be used; the old ones stay"),
        }
    }
}

#[cfg(fuzzing)]
impl Tls {
    /// Reads `pem` as the certificates, the key and the clients' authorities all in one.
    ///
    /// # Errors
    /// As of [`Tls::open`].
    pub fn of_pem(pem: &[u8]) -> Result<(), TlsError> {
        let file = || PathBuf::from("fuzz.pem");
        let files = config::Tls { cert: file(), key: file(), client_ca: Some(file()) };
        let key = Ok(Zeroizing::new(pem.to_vec()));
        let contents = Contents { cert: Ok(pem.to_vec()), key, client_ca: Some(Ok(pem.to_vec())) };
        server_config(&files, contents, &Resumption::new()).map(drop)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Resumption {
    fn new() -> Resumption {
        Resumption {
            tickets: aws_lc_rs::Ticketer::new().expect("the system has random bytes"),
            sessions: ServerSessionMemoryCache::new(SESSIONS),
        }
    }
}

impl Contents {
    fn read(files: &config::Tls) -> Contents {
        Contents {
            cert: std::fs::read(&files.cert),
            key: std::fs::read(&files.key).map(Zeroizing::new),
            client_ca: files.client_ca.as_ref().map(std::fs::read),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        digest(&mut hash, &self.cert);
        digest(&mut hash, &self.key);
        hash.update(self.client_ca_fingerprint());
        hash.finalize().into()
    }

    fn client_ca_fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        if let Some(client_ca) = &self.client_ca {
            digest(&mut hash, client_ca);
        }
        hash.finalize().into()
    }
}

/// Feeds a file's contents to `hash`, or the way in which it cannot be read.
fn digest(hash: &mut Sha256, content: &Result<impl AsRef<[u8]>, io::Error>) {
    match content {
        Ok(bytes) => {
            hash.update((bytes.as_ref().len() as u64).to_be_bytes());
            hash.update(bytes);
        }
        Err(error) => hash.update(format!("unreadable: {:?}", error.kind())),
    }
}

fn server_config(
    files: &config::Tls,
    contents: Contents,
    resumption: &Resumption,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = certificates(&files.cert, contents.cert)?;
    warn_if_expired(&files.cert, &chain[0]);
    let key = private_key(&files.key, contents.key)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider speaks both versions");
    let builder = match (&files.client_ca, contents.client_ca) {
        (Some(path), Some(content)) => {
            builder.with_client_cert_verifier(client_verifier(path, content, provider)?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| unusable(files, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(&resumption.tickets);
    config.session_storage = Arc::clone(&resumption.sessions);
    Ok(config)
}

fn certificates(
    path: &Path,
    content: Result<Vec<u8>, io::Error>,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = content.map_err(|error| TlsError::Read { path: path.to_owned(), error })?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| TlsError::Pem { path: path.to_owned(), error })?;
    if all.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(all) }
}

/// Only a warning: a client may be told not to mind, and a mirror that does not start helps nobody (I9).
fn warn_if_expired(path: &Path, certificate: &CertificateDer<'_>) {
    let expired = validity::not_after(certificate).and_then(|end| now().duration_since(end).ok());
    if let Some(since) = expired {
        let days = since.as_secs() / 86_400;
        tracing::warn!(cert = %path.display(), days, "the certificate has expired: clients will refuse it");
    }
}

fn private_key(
    path: &Path,
    content: Result<Zeroizing<Vec<u8>>, io::Error>,
) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = content.map_err(|error| TlsError::Read { path: path.to_owned(), error })?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(path.to_owned()),
        error => TlsError::Pem { path: path.to_owned(), error },
    })
}

fn client_verifier(
    path: &Path,
    content: Result<Vec<u8>, io::Error>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let refused = |why: String| TlsError::ClientCa { path: path.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for authority in certificates(path, content)? {
        roots.add(authority).map_err(|error| refused(error.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error: VerifierBuilderError| refused(error.to_string()))
}

fn unusable(files: &config::Tls, error: rustls::Error) -> TlsError {
    let (cert, key) = (files.cert.clone(), files.key.clone());
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::WrongKey { cert, key },
        error => TlsError::Unusable { cert, key, error },
    }
}
