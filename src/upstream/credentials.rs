//! Gets an account's user name and password from where the operator keeps them.
//!
//! Files, variables and helper programs are asked anew at each login, so that a changed password needs no
//! restart; only a helper's answer is kept for its `credential_ttl`, as helpers may call a cloud. Nothing of
//! what is read goes into an error.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use http::HeaderValue;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::docker_config::{self, Entry};
use super::helper;
use crate::config;
use crate::oci::RegistryHost;
use crate::secret::Secret;

/// An account and where its credentials are.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) name: String,
    source: config::Credentials,
    server: String,
    // Also makes those who need it at the same time ask a helper once.
    kept: Mutex<Option<Kept>>,
}

/// What an account logs in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// User name and password (or what goes as one).
    Password { username: String, password: Secret },
    /// A refresh token, to be traded for access tokens.
    Identity { username: String, token: Secret },
}

/// An account's login, and whether it was kept from an earlier time.
#[derive(Debug)]
pub(super) struct Had {
    pub(super) login: Login,
    pub(super) kept: bool,
}

/// Why an account has no credentials, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoCredentials {
    #[error("cannot read {} ({cause}); create it, or correct the account's settings", .file.display())]
    Unreadable { file: PathBuf, cause: io::ErrorKind },
    #[error("{} is empty; its first line must be the password or token", .file.display())]
    Empty { file: PathBuf },
    #[error("the environment variable {variable} is not set; set it, or correct `password_env`")]
    Unset { variable: String },
    #[error("{} is not a Docker config.json; create one with `docker login`", .file.display())]
    NoConfig { file: PathBuf },
    #[error("{} has no credentials for {server}; add them with `docker login {server}`", .file.display())]
    NoEntry { file: PathBuf, server: String },
    #[error("the credential helper {program} {fault}")]
    Helper { program: String, fault: helper::Fault },
}

#[derive(Debug)]
struct Kept {
    login: Login,
    until: Instant,
}

/// Far more than any credential or config.json.
const MOST_BYTES: u64 = 1 << 20;
/// By this user name Docker's helpers mark a password that is an identity token.
const IDENTITY: &str = "<token>";
/// How long the answer of a helper that a config.json names is kept; there is no setting for it.
const HELPER_TTL: Duration = Duration::from_secs(300);

impl Account {
    pub(super) fn new(account: &config::Account, registry: &RegistryHost) -> Account {
        Account {
            name: account.name.clone(),
            source: account.credentials.clone(),
            server: docker_config::server(registry.as_str()).to_owned(),
            kept: Mutex::new(None),
        }
    }

    /// What to log in with now. Cancel-safe: a helper that nobody waits for is killed.
    pub(super) async fn login(&self) -> Result<Had, NoCredentials> {
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| Instant::now() < kept.until) {
            return Ok(Had { login: kept.login.clone(), kept: true });
        }
        let (login, ttl) = self.ask().await?;
        *kept = ttl.map(|ttl| Kept { login: login.clone(), until: Instant::now() + ttl });
        Ok(Had { login, kept: false })
    }

    /// Forgets what was kept: it was refused.
    pub(super) async fn forget(&self) {
        *self.kept.lock().await = None;
    }

    /// The login, and for how long it may be kept.
    async fn ask(&self) -> Result<(Login, Option<Duration>), NoCredentials> {
        match &self.source {
            config::Credentials::PasswordFile { username, file } => {
                Ok((Login::new(username.clone(), first_line(file).await?), None))
            }
            config::Credentials::PasswordEnv { username, variable } => {
                let password = std::env::var(variable).ok().filter(|password| !password.is_empty());
                let password = password.ok_or_else(|| NoCredentials::Unset { variable: variable.clone() })?;
                Ok((Login::new(username.clone(), Secret::new(password)), None))
            }
            config::Credentials::DockerConfig { file } => self.read_docker_config(file).await,
            config::Credentials::Helper { program, ttl } => Ok((self.ask_helper(program).await?, Some(*ttl))),
        }
    }

    async fn read_docker_config(&self, file: &Path) -> Result<(Login, Option<Duration>), NoCredentials> {
        let json = read(file).await?;
        let entry = docker_config::find(json.reveal().as_bytes(), &self.server)
            .map_err(|_| NoCredentials::NoConfig { file: file.to_owned() })?;
        match entry {
            Some(Entry::Login(login)) => Ok((login, None)),
            Some(Entry::Helper(program)) => {
                Ok((self.ask_helper(Path::new(&program)).await?, Some(HELPER_TTL)))
            }
            None => Err(NoCredentials::NoEntry { file: file.to_owned(), server: self.server.clone() }),
        }
    }

    async fn ask_helper(&self, program: &Path) -> Result<Login, NoCredentials> {
        let answer = helper::get(program, &self.server).await;
        answer.map_err(|fault| NoCredentials::Helper { program: program.display().to_string(), fault })
    }
}

impl Login {
    pub(super) fn new(username: String, password: Secret) -> Login {
        if username == IDENTITY {
            Login::Identity { username, token: password }
        } else {
            Login::Password { username, password }
        }
    }

    /// `Authorization: Basic …`, marked so that it is never printed.
    pub(super) fn basic(&self) -> HeaderValue {
        let (Login::Password { username, password: secret } | Login::Identity { username, token: secret }) =
            self;
        let pair = Secret::new(format!("{username}:{}", secret.reveal()));
        let mut header = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair.reveal())))
            .expect("base64 may stand in a header");
        header.set_sensitive(true);
        header
    }
}

async fn first_line(file: &Path) -> Result<Secret, NoCredentials> {
    let text = read(file).await?;
    let line = text.reveal().lines().next().unwrap_or_default().trim_end();
    if line.is_empty() { Err(NoCredentials::Empty { file: file.to_owned() }) } else { Ok(Secret::new(line)) }
}

/// A small text file, read off the runtime's workers.
async fn read(file: &Path) -> Result<Secret, NoCredentials> {
    let unreadable =
        |error: io::Error| NoCredentials::Unreadable { file: file.to_owned(), cause: error.kind() };
    let mut text = String::new();
    let open = tokio::fs::File::open(file).await.map_err(unreadable)?;
    open.take(MOST_BYTES).read_to_string(&mut text).await.map_err(unreadable)?;
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(credentials: config::Credentials) -> Account {
        let account = config::Account::new("ci", credentials);
        Account::new(&account, &"docker.io".parse().unwrap())
    }

    fn password(username: &str, password: &str) -> Login {
        Login::Password { username: username.to_owned(), password: Secret::new(password) }
    }

    #[tokio::test]
    async fn a_password_file_is_read_anew_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let account =
            account(config::Credentials::PasswordFile { username: "u".to_owned(), file: file.clone() });
        let missing = account.login().await.unwrap_err().to_string();
        assert!(missing.contains("password") && missing.contains("create it"), "{missing}");
        for (text, expected) in [("one\nrest", "one"), ("two \r\n", "two"), ("three", "three")] {
            std::fs::write(&file, text).unwrap();
            let had = account.login().await.unwrap();
            assert_eq!((had.login, had.kept), (password("u", expected), false));
        }
        std::fs::write(&file, "\n").unwrap();
        assert!(matches!(account.login().await, Err(NoCredentials::Empty { .. })));
    }

    #[tokio::test]
    async fn from_the_environment() {
        let from = |variable: &str| {
            account(config::Credentials::PasswordEnv {
                username: "u".to_owned(),
                variable: variable.to_owned(),
            })
        };
        // Cargo sets this one for every test.
        let had = from("CARGO_PKG_NAME").login().await.unwrap();
        assert_eq!(had.login, password("u", "tidelock"));
        let unset = from("TIDELOCK_NO_SUCH_VARIABLE").login().await.unwrap_err().to_string();
        assert!(unset.contains("TIDELOCK_NO_SUCH_VARIABLE"), "{unset}");
    }

    #[tokio::test]
    async fn from_a_docker_config() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let account = account(config::Credentials::DockerConfig { file: file.clone() });
        std::fs::write(&file, "not json with a secret").unwrap();
        let broken = account.login().await.unwrap_err().to_string();
        assert!(!broken.contains("secret") && broken.contains("docker login"), "{broken}");
        std::fs::write(&file, r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#).unwrap();
        assert_eq!(account.login().await.unwrap().login, password("u", "p"));
        std::fs::write(&file, r#"{"auths":{"ghcr.io":{"auth":"dTpw"}}}"#).unwrap();
        let none = account.login().await.unwrap_err().to_string();
        assert!(none.contains("docker login https://index.docker.io/v1/"), "{none}");
    }

    #[test]
    fn basic_is_never_printed() {
        let header = password("user", "pass").basic();
        assert_eq!(header, "Basic dXNlcjpwYXNz");
        assert!(header.is_sensitive());
        assert!(!format!("{:?}", password("user", "hunter2")).contains("hunter2"));
    }

    #[test]
    fn the_name_that_means_an_identity_token() {
        assert!(matches!(Login::new("<token>".to_owned(), Secret::new("t")), Login::Identity { .. }));
    }
}
