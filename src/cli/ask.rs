//! Speaks to a running mirror at its admin address.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use url::{Url, form_urlencoded};

use super::report::Report;
use crate::config::Config;

/// The mirror answers from memory; longer means that it is not there or not well.
const PATIENCE: Duration = Duration::from_secs(10);
/// Far more than any answer.
const LARGEST: usize = 64 << 20;

/// What every command takes that speaks to a running mirror.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    /// The admin address of the mirror; by default as the configuration has it
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The same for a command about one image.
#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// The image, as it stands in a pull: nginx, ghcr.io/org/app:1, nginx@sha256:…
    image: String,
    #[command(flatten)]
    admin: AdminArgs,
}

impl AdminArgs {
    /// The admin address to speak to: as given, else as the configuration has it.
    ///
    /// # Errors
    /// What is wrong with what was given.
    pub(super) fn address(&self, config: &Config) -> Result<Url, Report> {
        address(self.admin.as_deref(), config).map_err(|fault| Report::misused(&fault))
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
        let admin = match self.admin.address(config) {
            Ok(admin) => admin,
            Err(report) => return report,
        };
        let image: String = form_urlencoded::byte_serialize(self.image.as_bytes()).collect();
        self.admin.report(ask(method, &admin, &format!("/api/v1/{page}?image={image}")), in_words)
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

/// What GET `path` at the admin address answers.
///
/// # Errors
/// Nobody there, or what the mirror itself has to say.
pub(super) fn get<T: DeserializeOwned>(admin: &Url, path: &str) -> anyhow::Result<(T, String)> {
    ask(Method::GET, admin, path)
}

/// What POST `path` answers.
///
/// # Errors
/// As for [`get`].
pub(super) fn post<T: DeserializeOwned>(admin: &Url, path: &str) -> anyhow::Result<(T, String)> {
    ask(Method::POST, admin, path)
}

fn ask<T: DeserializeOwned>(method: Method, admin: &Url, path: &str) -> anyhow::Result<(T, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let url = admin.join(path)?;
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, fetch(method, &url)).await });
    let (status, body) =
        answer.map_err(|_| anyhow!("no answer within {PATIENCE:?}")).and_then(|answer| answer).with_context(
            || format!("asking the mirror at {admin} (is it running? --admin names another address)"),
        )?;
    if !status.is_success() {
        bail!("{}", refusal(&body).unwrap_or_else(|| format!("{admin} answered with status {status}")));
    }
    let text = String::from_utf8_lossy(&body).into_owned();
    let value = serde_json::from_str(&text)
        .with_context(|| format!("{admin} does not answer as a mirror of this version does"))?;
    Ok((value, text))
}

async fn fetch(method: Method, url: &Url) -> anyhow::Result<(http::StatusCode, Bytes)> {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::builder().method(method).uri(url.as_str()).body(Empty::new())?;
    let answer = client.request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?;
    Ok((status, body.to_bytes()))
}

/// The message of an error of the admin API.
fn refusal(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(body["error"]["message"].as_str()?.to_owned())
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
