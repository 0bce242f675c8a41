//! Speaks to a running mirror at its admin address.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::{Bytes, BytesMut};
use clap::{Args, ValueHint};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use url::{Url, form_urlencoded};

use super::report::Report;
use crate::admin::read_token;
use crate::config::{self, Config};
use crate::secret::Secret;

/// The mirror answers from memory; longer means that it is not there or not well.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where it may have to ask an upstream, or to look for a million digests.
const LONG_PATIENCE: Duration = Duration::from_secs(120);
/// Disks and lines that take fewer bytes a second are given up.
const SLOWEST: u64 = 100_000;
/// What is sent, or received, at once.
const PIECE: usize = 256 << 10;
/// Far more than any answer.
const LARGEST: usize = 64 << 20;

/// What every command takes that speaks to a running mirror.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    /// The admin address of the mirror; by default as the configuration has it
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// A file whose first line is the token of a mirror elsewhere; by default as the configuration has it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    token_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The admin address of a mirror, and what it takes to change something there.
#[derive(Debug)]
pub(super) struct Door {
    url: Url,
    token: config::Admin,
}

/// The same for a command about one image.
#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// The image, as it stands in a pull: nginx, ghcr.io/org/app:1, nginx@sha256:…
    image: String,
    #[command(flatten)]
    admin: AdminArgs,
}

/// The body of a request.
type Sent = UnsyncBoxBody<Bytes, io::Error>;

/// The body of an answer, to be read.
pub(super) struct Download {
    runtime: Runtime,
    body: Incoming,
    piece: Bytes,
}

/// A file as the body of a request. It is read where it is sent: nobody else lives on that thread.
struct Announced {
    size: u64,
    content: Box<dyn Read + Send>,
}

impl AdminArgs {
    /// The door to speak to: as given, else as the configuration has it.
    ///
    /// # Errors
    /// What is wrong with what was given.
    pub(super) fn door(&self, config: &Config) -> Result<Door, Report> {
        let url = address(self.admin.as_deref(), config).map_err(|fault| Report::misused(&fault))?;
        let token_file = self.token_file.clone().or_else(|| config.admin.token_file.clone());
        Ok(Door { url, token: config::Admin { token_file } })
    }

    /// Says what was answered, as it came or in words.
    pub(super) fn report<T>(
        &self,
        answer: anyhow::Result<(T, String)>,
        in_words: impl FnOnce(&T) -> String,
    ) -> Report {
        match answer {
            Ok((_, json)) if self.json => Report::done(json),
            Ok((answer, _)) => Report::done(in_words(&answer)),
            Err(error) => Report::failed(&error),
        }
    }
}

impl ImageArgs {
    /// Asks `page` of the API about the image, by `method`.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        page: &str,
        config: &Config,
        in_words: impl FnOnce(&T) -> String,
    ) -> Report {
        let door = match self.admin.door(config) {
            Ok(door) => door,
            Err(report) => return report,
        };
        let image: String = form_urlencoded::byte_serialize(self.image.as_bytes()).collect();
        self.admin.report(door.ask(method, &format!("/api/v1/{page}?image={image}")), in_words)
    }
}

fn address(given: Option<&str>, config: &Config) -> Result<Url, String> {
    let Some(given) = given else { return Ok(own(config.server.admin_listen)) };
    let with_scheme = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
    let url = with_scheme.parse::<Url>().ok().filter(|url| url.scheme() == "http" && url.has_host());
    url.ok_or_else(|| {
        format!("--admin {given:?} must be the mirror's admin address, such as http://127.0.0.1:5001")
    })
}

impl Door {
    /// What GET `path` answers: read, and as it came.
    ///
    /// # Errors
    /// Nobody there, or what the mirror itself has to say.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<(T, String)> {
        self.ask(Method::GET, path)
    }

    /// What POST `path` answers.
    ///
    /// # Errors
    /// As for [`Door::get`]; a token that cannot be read.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<(T, String)> {
        self.ask(Method::POST, path)
    }

    /// Reads the lines that POST `path` answers as they come; the mirror sends one every now and then.
    ///
    /// # Errors
    /// As for [`Door::post`]; an answer that breaks off.
    pub(super) fn post_lines<T: DeserializeOwned>(
        &self,
        path: &str,
        mut on_line: impl FnMut(T),
    ) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (admin, token) = (&self.url, read_token(&self.token)?);
        let url = admin.join(path)?;
        runtime.block_on(async {
            let silent = |_| anyhow!("the mirror at {admin} has said nothing for {PATIENCE:?}");
            let answer = tokio::time::timeout(PATIENCE, send(Method::POST, url, token, nothing()))
                .await
                .map_err(silent)?;
            let answer = answer.with_context(|| self.not_there())?;
            if !answer.status().is_success() {
                let (status, body) = collect(answer).await?;
                return Err(self.refused(status, &body));
            }
            let (mut body, mut text) = (answer.into_body(), BytesMut::new());
            while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(silent)? {
                let frame = frame.map_err(|error| anyhow!("the answer broke off: {error}"))?;
                text.extend_from_slice(&frame.into_data().unwrap_or_default());
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line = text.split_to(end + 1);
                    on_line(serde_json::from_slice(&line).with_context(|| self.foreign())?);
                }
            }
            Ok(())
        })
    }

    fn not_there(&self) -> String {
        format!("asking the mirror at {} (is it running? --admin names another address)", self.url)
    }

    fn foreign(&self) -> String {
        format!("{} does not answer as a mirror of this version does", self.url)
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> anyhow::Error {
        let admin = &self.url;
        anyhow!("{}", refusal(body).unwrap_or_else(|| format!("{admin} answered with status {status}")))
    }

    /// What POST `path` answers to `question`.
    ///
    /// # Errors
    /// As for [`Door::post`].
    pub(super) fn tell<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = Full::from(serde_json::to_vec(question)?).map_err(|never| match never {}).boxed_unsync();
        Ok(self.exchange(Method::POST, path, body, LONG_PATIENCE)?.0)
    }

    /// What POST `path` answers, also when the mirror has to ask an upstream for that.
    ///
    /// # Errors
    /// As for [`Door::post`].
    pub(super) fn post_at_leisure<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        Ok(self.exchange(Method::POST, path, nothing(), LONG_PATIENCE)?.0)
    }

    /// Sends `size` bytes to POST `path`.
    ///
    /// # Errors
    /// As for [`Door::post`]; what `content` says.
    pub(super) fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        size: u64,
        content: impl Read + Send + 'static,
    ) -> anyhow::Result<T> {
        let patience = LONG_PATIENCE + Duration::from_secs(size / SLOWEST);
        let body = Announced { size, content: Box::new(content) }.boxed_unsync();
        Ok(self.exchange(Method::POST, path, body, patience)?.0)
    }

    /// The bytes that `path` answers, as they come.
    ///
    /// # Errors
    /// As for [`Door::post`].
    pub(super) fn download(&self, method: Method, path: &str) -> anyhow::Result<Download> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let token = if method.is_safe() { None } else { read_token(&self.token)? };
        let url = self.url.join(path)?;
        let answer = runtime.block_on(async {
            let asking = send(method, url, token, nothing());
            let answer = tokio::time::timeout(LONG_PATIENCE, asking).await;
            let answer = answer.map_err(|_| anyhow!("no answer within {LONG_PATIENCE:?}"))?;
            let answer = answer.with_context(|| self.not_there())?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            let (status, body) = collect(answer).await?;
            Err(self.refused(status, &body))
        })?;
        Ok(Download { runtime, body: answer.into_body(), piece: Bytes::new() })
    }

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<(T, String)> {
        self.exchange(method, path, nothing(), PATIENCE)
    }

    fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Sent,
        patience: Duration,
    ) -> anyhow::Result<(T, String)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let admin = &self.url;
        // To look needs none, and whoever looks may not be allowed to read it.
        let token = if method.is_safe() { None } else { read_token(&self.token)? };
        let url = admin.join(path)?;
        let fetching = async { collect(send(method, url, token, body).await?).await };
        let answer = runtime.block_on(async { tokio::time::timeout(patience, fetching).await });
        let answer = answer.map_err(|_| anyhow!("no answer within {patience:?}")).and_then(|answer| answer);
        let (status, body) = answer.with_context(|| self.not_there())?;
        if !status.is_success() {
            return Err(self.refused(status, &body));
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        let value = serde_json::from_str(&text).with_context(|| self.foreign())?;
        Ok((value, text))
    }
}

/// An answer that is read whole.
async fn collect(answer: Response<Incoming>) -> anyhow::Result<(StatusCode, Bytes)> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?;
    Ok((status, body.to_bytes()))
}

async fn send(
    method: Method,
    url: Url,
    token: Option<Secret>,
    body: Sent,
) -> anyhow::Result<Response<Incoming>> {
    let client: Client<_, Sent> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(url.as_str());
    if let Some(token) = token {
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.reveal()))?;
        bearer.set_sensitive(true);
        request = request.header(AUTHORIZATION, bearer);
    }
    Ok(client.request(request.body(body)?).await?)
}

fn nothing() -> Sent {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The message of an error of the admin API.
fn refusal(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(body["error"]["message"].as_str()?.to_owned())
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let next = async { tokio::time::timeout(LONG_PATIENCE, self.body.frame()).await };
            match self.runtime.block_on(next) {
                Ok(Some(Ok(frame))) => self.piece = frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => return Err(io::Error::other(error)),
                Ok(None) => return Ok(0),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        let read = self.piece.len().min(buffer.len());
        buffer[..read].copy_from_slice(&self.piece.split_to(read));
        Ok(read)
    }
}

impl Body for Announced {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut piece = vec![0; PIECE.min(usize::try_from(self.size).unwrap_or(PIECE))];
        Poll::Ready(match self.content.read(&mut piece) {
            _ if self.size == 0 => None,
            Ok(0) => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => {
                self.size -= read as u64;
                piece.truncate(read);
                Some(Ok(Frame::data(piece.into())))
            }
            Err(error) => Some(Err(error)),
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size)
    }
}

/// Where a mirror with this setting is reached from the same machine.
fn own(listen: SocketAddr) -> Url {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    let address = SocketAddr::new(ip, listen.port());
    format!("http://{address}").parse().expect("an address with a port makes a URL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_ask() {
        let mut config = Config::default();
        let url = |given: Option<&str>, config: &Config| address(given, config).map(|url| url.to_string());
        assert_eq!(url(None, &config).unwrap(), "http://127.0.0.1:5001/");
        config.server.admin_listen = "0.0.0.0:9000".parse().unwrap();
        assert_eq!(url(None, &config).unwrap(), "http://127.0.0.1:9000/");
        config.server.admin_listen = "[::]:9000".parse().unwrap();
        assert_eq!(url(None, &config).unwrap(), "http://[::1]:9000/");
        assert_eq!(url(Some("mirror.example:5001"), &config).unwrap(), "http://mirror.example:5001/");
        assert_eq!(url(Some("http://10.0.0.1:5001"), &config).unwrap(), "http://10.0.0.1:5001/");
        for wrong in ["https://a", "", "http://", "ftp://a:1"] {
            assert!(url(Some(wrong), &config).unwrap_err().contains("--admin"), "{wrong}");
        }
    }
}
