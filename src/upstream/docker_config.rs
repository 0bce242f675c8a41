//! Reads Docker's `config.json`: whose password is where.

use std::collections::HashMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::credentials::Login;
use crate::secret::Secret;

/// Where the credentials for a server are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// In the file itself.
    Login(Login),
    /// With this program.
    Helper(String),
}

/// The file is not what Docker writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Docker Hub's name in config files and to helpers, for historical reasons.
const HUB: &str = "https://index.docker.io/v1/";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

/// With a helper in charge, Docker leaves an empty object.
#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What `registry` is called in config files and by helpers.
pub(super) fn server(registry: &str) -> &str {
    if registry == "docker.io" { HUB } else { registry }
}

/// Where the file says that the credentials for `server` are: with the server's own helper, in the file, or
/// with the helper for all, in this order.
pub(super) fn find(json: &[u8], server: &str) -> Result<Option<Entry>, Malformed> {
    let file: File = serde_json::from_slice(json).map_err(|_| Malformed)?;
    if let Some(name) = lookup(&file.cred_helpers, server) {
        return program(name).map(Some);
    }
    if let Some(login) = lookup(&file.auths, server).map(Auth::login).transpose()?.flatten() {
        return Ok(Some(Entry::Login(login)));
    }
    file.creds_store.as_deref().filter(|name| !name.is_empty()).map(program).transpose()
}

impl Auth {
    fn login(&self) -> Result<Option<Login>, Malformed> {
        let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        let pair = match given(&self.auth) {
            Some(auth) => Some(decode(&auth)?),
            None => given(&self.username).map(|name| (name, self.password.clone().unwrap_or_default())),
        };
        if let Some(token) = given(&self.identitytoken) {
            let username = pair.map_or_else(|| "<token>".to_owned(), |(username, _)| username);
            return Ok(Some(Login::Identity { username, token: Secret::new(token) }));
        }
        Ok(pair.map(|(username, password)| Login::new(username, Secret::new(password))))
    }
}

/// The entry for a server, however its key is written: with or without a scheme, with the path of an API.
fn lookup<'a, T>(entries: &'a HashMap<String, T>, server: &str) -> Option<&'a T> {
    let same =
        |key: &str| host(key) == host(server) || (host(server) == host(HUB) && host(key) == "docker.io");
    entries.get(server).or_else(|| entries.iter().find(|(key, _)| same(key)).map(|(_, entry)| entry))
}

fn host(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.split('/').next().unwrap_or_default().to_ascii_lowercase()
}

/// A helper's name is a part of a file name, never a path to somewhere else.
fn program(name: impl AsRef<str>) -> Result<Entry, Malformed> {
    let name = name.as_ref();
    if name.contains(['/', '\0']) {
        Err(Malformed)
    } else {
        Ok(Entry::Helper(format!("docker-credential-{name}")))
    }
}

/// `user:password` in base64; padding is left out by some who write it.
fn decode(auth: &str) -> Result<(String, String), Malformed> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let bytes = LENIENT.decode(auth.trim()).map_err(|_| Malformed)?;
    let text = String::from_utf8(bytes).map_err(|_| Malformed)?;
    let (username, password) = text.split_once(':').ok_or(Malformed)?;
    // Docker for Windows once padded with NULs.
    Ok((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> Result<Option<Entry>, Malformed> {
        let (username, password) = (username.to_owned(), Secret::new(password));
        Ok(Some(Entry::Login(Login::Password { username, password })))
    }

    fn identity(username: &str, token: &str) -> Result<Option<Entry>, Malformed> {
        let (username, token) = (username.to_owned(), Secret::new(token));
        Ok(Some(Entry::Login(Login::Identity { username, token })))
    }

    fn helper(program: &str) -> Result<Option<Entry>, Malformed> {
        Ok(Some(Entry::Helper(program.to_owned())))
    }

    #[test]
    fn where_the_credentials_are() {
        // dTpwOnc= is u:p:w, dTo= is u: (no password).
        for (json, registry, expected) in [
            (r#"{"auths":{"ghcr.io":{"auth":"dTpwOnc="}}}"#, "ghcr.io", password("u", "p:w")),
            (r#"{"auths":{"ghcr.io":{"auth":"dTpwOnc"}}}"#, "ghcr.io", password("u", "p:w")),
            (r#"{"auths":{"https://ghcr.io/v2/":{"auth":"dTpwOnc="}}}"#, "ghcr.io", password("u", "p:w")),
            (r#"{"auths":{"http://r:5000":{"auth":"dTpwOnc="}}}"#, "r:5000", password("u", "p:w")),
            (r#"{"auths":{"r:5001":{"auth":"dTpwOnc="}}}"#, "r:5000", Ok(None)),
            (
                r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnc="}}}"#,
                "docker.io",
                password("u", "p:w"),
            ),
            (r#"{"auths":{"docker.io":{"auth":"dTpwOnc="}}}"#, "docker.io", password("u", "p:w")),
            (r#"{"auths":{"a":{"username":"u","password":"p"}}}"#, "a", password("u", "p")),
            (r#"{"auths":{"a":{"auth":"dTo=","identitytoken":"t"}}}"#, "a", identity("u", "t")),
            (r#"{"auths":{"a":{"identitytoken":"t"}}}"#, "a", identity("<token>", "t")),
            (r#"{"auths":{"a":{}},"credsStore":"pass"}"#, "a", helper("docker-credential-pass")),
            (r#"{"auths":{"a":{}}}"#, "a", Ok(None)),
            (
                r#"{"credHelpers":{"a":"gcloud"},"credsStore":"pass"}"#,
                "a",
                helper("docker-credential-gcloud"),
            ),
            (r#"{"credHelpers":{"b":"gcloud"},"credsStore":"pass"}"#, "a", helper("docker-credential-pass")),
            (r#"{"credsStore":"","HttpHeaders":{}}"#, "a", Ok(None)),
            ("{}", "a", Ok(None)),
            ("", "a", Err(Malformed)),
            (r#"{"auths":{"a":{"auth":"%%"}}}"#, "a", Err(Malformed)),
            (r#"{"auths":{"a":{"auth":"dQ=="}}}"#, "a", Err(Malformed)),
            (r#"{"credsStore":"../../bin/sh"}"#, "a", Err(Malformed)),
        ] {
            assert_eq!(find(json.as_bytes(), server(registry)), expected, "{json} {registry}");
        }
    }
}
