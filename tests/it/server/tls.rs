//! TLS: protocols, reload, clients' certificates, and clients that come with the wrong one of TLS and plain.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tempfile::TempDir;
use tidelock::config;
use tidelock::server::{Limits, Reload, Tls, TlsError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::tls::TestCa;

use super::kit::{
    Served, echo, eventually, get, http1, http2, limits, request, rest, send, start, text, within,
};

/// A certificate and its key, in PEM.
type Leaf = (String, String);

/// A client that trusts `ca`.
fn trusting(ca: &TestCa, identity: Option<&Leaf>, alpn: &[&str]) -> Arc<ClientConfig> {
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&ca.pem())).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.unwrap().with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate(cert)], key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Puts `leaf` where the server looks for it.
fn install(dir: &TempDir, leaf: &Leaf, client_ca: Option<&TestCa>) -> config::Tls {
    let file = |name: &str| dir.path().join(name);
    fs::write(file("cert.pem"), &leaf.0).unwrap();
    fs::write(file("key.pem"), &leaf.1).unwrap();
    let client_ca = client_ca.map(|ca| {
        fs::write(file("ca.pem"), ca.pem()).unwrap();
        file("ca.pem")
    });
    config::Tls { cert: file("cert.pem"), key: file("key.pem"), client_ca }
}

async fn connect(
    served: &Served,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    within(TlsConnector::from(Arc::clone(config)).connect(name, served.connect().await)).await
}

/// One exchange, after which a client knows whether it was let in, and has its session ticket.
async fn exchange(served: &Served, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<HandshakeKind> {
    let mut stream = connect(served, config, name).await?;
    within(stream.write_all(b"GET /ok HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await?;
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await?;
    assert!(answer.ends_with("/ok"), "{answer}");
    Ok(stream.get_ref().1.handshake_kind().unwrap())
}

#[tokio::test]
async fn alpn_chooses_the_protocol() {
    let (ca, dir) = (TestCa::new(), TempDir::new().unwrap());
    let tls = Tls::open(&install(&dir, &ca.issue(&["one.test"]), None)).unwrap();
    let served = start(limits(), Some(tls), echo).await;

    let stream = connect(&served, &trusting(&ca, None, &["h2", "http/1.1"]), "one.test").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let response = within(http2(stream).await.send_request(request("/two"))).await.unwrap();
    assert_eq!((response.version(), text(response).await.as_str()), (Version::HTTP_2, "/two"));

    for alpn in [&["http/1.1"][..], &[]] {
        let stream = connect(&served, &trusting(&ca, None, alpn), "one.test").await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let response = within(http1(stream).await.send_request(request("/one"))).await.unwrap();
        assert_eq!((response.version(), text(response).await.as_str()), (Version::HTTP_11, "/one"));
    }
    assert_eq!(served.metric("tidelock_tls_handshake_failures_total"), 0);
}

#[tokio::test]
async fn new_files_hold_for_new_connections_and_bad_ones_for_none() {
    let (ca, dir) = (TestCa::new(), TempDir::new().unwrap());
    let files = install(&dir, &ca.issue(&["one.test"]), None);
    let tls = Tls::open(&files).unwrap();
    let served = start(limits(), Some(tls.clone()), echo).await;
    let client = trusting(&ca, None, &[]);
    let mut old = connect(&served, &client, "one.test").await.unwrap();

    fs::write(&files.key, ca.issue(&["other.test"]).1).unwrap();
    assert!(matches!(tls.reload(), Err(TlsError::WrongKey { .. })));
    assert_eq!(tls.reload().unwrap(), Reload::Unchanged, "said once");
    assert!(exchange(&served, &client, "one.test").await.is_ok());

    install(&dir, &ca.issue(&["two.test"]), None);
    assert_eq!(tls.reload().unwrap(), Reload::Done);
    assert!(exchange(&served, &client, "two.test").await.is_ok());
    assert!(exchange(&served, &trusting(&ca, None, &[]), "one.test").await.is_err());
    send(&mut old, "GET /old HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(rest(&mut old).await.ends_with("/old"), "old connections live on");
}

#[tokio::test]
async fn the_watch_notices_a_swapped_link() {
    let (ca, dir) = (TestCa::new(), TempDir::new().unwrap());
    // As Kubernetes does it: the files are links through a link that is replaced.
    for (version, name) in [("v1", "one.test"), ("v2", "two.test")] {
        let leaf = ca.issue(&[name]);
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("tls.crt"), leaf.0).unwrap();
        fs::write(dir.path().join(version).join("tls.key"), leaf.1).unwrap();
    }
    let data = dir.path().join("..data");
    std::os::unix::fs::symlink("v1", &data).unwrap();
    let files = config::Tls { cert: data.join("tls.crt"), key: data.join("tls.key"), client_ca: None };
    let tls = Tls::open(&files).unwrap();
    let served = start(limits(), Some(tls.clone()), echo).await;
    tls.watch(&served.life, Duration::from_millis(5));

    let next = dir.path().join("..next");
    std::os::unix::fs::symlink("v2", &next).unwrap();
    fs::rename(&next, &data).unwrap();
    let client = trusting(&ca, None, &[]);
    within(async { while exchange(&served, &client, "two.test").await.is_err() {} }).await;
    served.life.stop();
    within(served.life.wait()).await;
}

#[tokio::test]
async fn sessions_outlive_a_reload_but_not_their_authority() {
    let (ca, dir) = (TestCa::new(), TempDir::new().unwrap());
    let (clients, others) = (TestCa::new(), TestCa::new());
    let server = ca.issue(&["one.test"]);
    let tls = Tls::open(&install(&dir, &server, Some(&clients))).unwrap();
    let served = start(limits(), Some(tls.clone()), echo).await;
    let client = trusting(&ca, Some(&clients.issue(&["client"])), &[]);
    assert_eq!(exchange(&served, &client, "one.test").await.unwrap(), HandshakeKind::Full);
    install(&dir, &ca.issue(&["one.test"]), Some(&clients));
    assert_eq!(tls.reload().unwrap(), Reload::Done);
    assert_eq!(exchange(&served, &client, "one.test").await.unwrap(), HandshakeKind::Resumed);
    install(&dir, &server, Some(&others));
    assert_eq!(tls.reload().unwrap(), Reload::Done);
    assert!(exchange(&served, &client, "one.test").await.is_err(), "trusted no more");
}

#[tokio::test]
async fn only_clients_of_the_authority_come_in() {
    let (ca, dir) = (TestCa::new(), TempDir::new().unwrap());
    let (clients, strangers) = (TestCa::new(), TestCa::new());
    let tls = Tls::open(&install(&dir, &ca.issue(&["one.test"]), Some(&clients))).unwrap();
    let served = start(limits(), Some(tls), echo).await;
    assert!(
        exchange(&served, &trusting(&ca, Some(&clients.issue(&["friend"])), &[]), "one.test").await.is_ok()
    );
    assert_eq!(served.metric("tidelock_tls_handshake_failures_total"), 0);
    let stranger = strangers.issue(&["stranger"]);
    for identity in [None, Some(&stranger)] {
        assert!(exchange(&served, &trusting(&ca, identity, &[]), "one.test").await.is_err());
    }
    eventually(|| served.metric("tidelock_tls_handshake_failures_total") == 2).await;
}

#[tokio::test]
async fn a_tls_hello_on_the_plain_port_is_refused_at_once() {
    let (ca, served) = (TestCa::new(), start(limits(), None, echo).await);
    let error = connect(&served, &trusting(&ca, None, &[]), "one.test").await.unwrap_err();
    assert!(
        error.to_string().contains("InvalidContentType") || error.to_string().contains("corrupt"),
        "{error}"
    );
    // What Go's clients look for before they fall back to plain HTTP: the first five bytes.
    let mut stream = served.connect().await;
    send(&mut stream, b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03").await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("plain HTTP"), "{answer}");
    assert!(get(served.addr, "/fine").await.ends_with("/fine"));
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_refused_in_words() {
    let (ca, dir) = (TestCa::new(), TempDir::new().unwrap());
    let tls = Tls::open(&install(&dir, &ca.issue(&["one.test"]), None)).unwrap();
    let served = start(limits(), Some(tls), echo).await;
    let answer = get(served.addr, "/").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("Use https://"), "{answer}");
    assert_eq!(served.metric("tidelock_tls_handshake_failures_total"), 1);
}

#[tokio::test]
async fn a_handshake_that_stops_is_cut() {
    let (ca, dir) = (TestCa::new(), TempDir::new().unwrap());
    let tls = Tls::open(&install(&dir, &ca.issue(&["one.test"]), None)).unwrap();
    let short = Duration::from_millis(100);
    let limits = Limits { handshake_timeout: short, header_read_timeout: short, ..limits() };
    let served = start(limits, Some(tls), echo).await;
    for (beginning, failures) in [(&b""[..], 0), (b"\x16\x03\x01", 1)] {
        let mut stream = served.connect().await;
        send(&mut stream, beginning).await;
        assert_eq!(rest(&mut stream).await, "");
        served.open_connections_become(0).await;
        assert_eq!(served.metric("tidelock_tls_handshake_failures_total"), failures);
    }
}

#[test]
fn bad_files_are_named_with_what_to_do() {
    let (ca, dir) = (TestCa::new(), TempDir::new().unwrap());
    let good = ca.issue(&["one.test"]);
    let refused = |cert: &str, key: &str| {
        let files = install(&dir, &(cert.to_owned(), key.to_owned()), None);
        Tls::open(&files).unwrap_err().to_string()
    };
    let cases = [
        (refused("", &good.1), "cert.pem holds no certificate"),
        (refused(&good.1, &good.1), "cert.pem holds no certificate"),
        (refused(&good.0, ""), "key.pem holds no private key"),
        (refused(&good.0, &ca.issue(&["x"]).1), "key.pem does not belong to the first certificate"),
        (
            refused("-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n", &good.1),
            "not in PEM format",
        ),
    ];
    for (text, expected) in cases {
        assert!(text.contains(expected) && text.contains(dir.path().to_str().unwrap()), "{text}");
    }
    let mut files = install(&dir, &good, Some(&ca));
    fs::write(files.client_ca.as_ref().unwrap(), "").unwrap();
    assert!(Tls::open(&files).unwrap_err().to_string().contains("ca.pem holds no certificate"));
    files.cert = dir.path().join("missing.pem");
    let text = Tls::open(&files).unwrap_err().to_string();
    assert!(text.contains("missing.pem: No such file"), "{text}");
}
