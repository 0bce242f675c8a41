//! A certificate authority of the tests' own, and TLS for the fakes and the client that trust it.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A certificate authority that nobody but a test trusts. Clones are the same authority.
#[derive(Clone)]
pub struct TestCa(Arc<CertifiedIssuer<'static, KeyPair>>);

impl TestCa {
    /// A fresh authority.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "Tidelock test authority");
        let key = KeyPair::generate().expect("a key can be generated");
        Self(Arc::new(CertifiedIssuer::self_signed(params, key).expect("the authority can sign itself")))
    }

    /// Its certificate: what a client is told to trust.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names, 127.0.0.1 and localhost, and its key, both as PEM.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let mut all: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        all.extend(["127.0.0.1".to_owned(), "localhost".to_owned()]);
        let params = CertificateParams::new(all).expect("the names are valid");
        let key = KeyPair::generate().expect("a key can be generated");
        let certificate = params.signed_by(&key, &self.0).expect("the authority can sign");
        (certificate.pem(), key.serialize_pem())
    }

    /// A TLS server for these names; with `h2` it offers HTTP/2 before HTTP/1.1.
    pub(super) fn acceptor(&self, names: &[&str], h2: bool) -> TlsAcceptor {
        let (certificate, key) = self.issue(names);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("rcgen writes PEM")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("rcgen writes PEM");
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("the key fits the certificate");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if h2 {
            config.alpn_protocols.insert(0, b"h2".to_vec());
        }
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Default for TestCa {
    fn default() -> Self {
        Self::new()
    }
}

/// A TLS client that trusts only the given certificate and offers this protocol: `http/1.1` or `h2`.
pub fn connector(ca_pem: &str, protocol: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("the CA is PEM"))
        .expect("the CA is a certificate");
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Named, not installed: the process-wide default is the program's to set.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
