use std::fs;
use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use minisign::{PublicKey, PublicKeyBox, SecretKey, SecretKeyBox, SignatureBox};

use super::Error;
use crate::secret::Secret;

/// How long a secret key is, and where it says how it is sealed.
const KEY_LENGTH: usize = 158;
const KDF: std::ops::Range<usize> = 2..4;

/// Signs bundles with an ed25519 key, as minisign does.
pub struct Signer(SecretKey);

/// Tells whether a bundle was signed with the key that is trusted.
#[derive(Debug)]
pub struct Verifier(PublicKey);

impl Signer {
    /// The key of a file that `minisign -G` wrote, and where it has one its password.
    ///
    /// # Errors
    /// A file that cannot be read or is no secret key, a wrong or missing password.
    pub fn open(file: &Path, password: Option<&Secret>) -> Result<Signer, Error> {
        let text = fs::read_to_string(file).map_err(Error::io(file))?;
        let wrong = |why: String| Error::Signature(format!("{} cannot sign: {why}", file.display()));
        if let Some(key) = open_one(&text) {
            return Ok(Signer(key));
        }
        let sealed = SecretKeyBox::from_string(&text).map_err(|error| wrong(error.to_string()))?;
        let password =
            password.ok_or_else(|| wrong("it is sealed with a password, and none was given".to_owned()))?;
        let key = sealed.into_secret_key(Some(password.reveal().to_owned()));
        key.map(Signer).map_err(|error| wrong(error.to_string()))
    }

    pub(super) fn sign(&self, text: &str) -> Result<String, Error> {
        let signed = minisign::sign(None, &self.0, Cursor::new(text), Some("tidelock bundle"), None);
        let signed = signed.map_err(|error| Error::Signature(format!("cannot sign: {error}")))?;
        Ok(signed.into_string())
    }
}

/// A key that was made without a password. minisign itself leaves out its checksum, which its library insists on.
fn open_one(text: &str) -> Option<SecretKey> {
    let bytes = BASE64_STANDARD.decode(text.lines().nth(1)?.trim()).ok()?;
    let is_open = bytes.len() == KEY_LENGTH && bytes[KDF] == [0, 0];
    is_open.then(|| SecretKey::from_bytes(&bytes).ok()).flatten()
}

impl Verifier {
    /// The key of a file that `minisign -G` wrote, or the key itself, as minisign prints it.
    ///
    /// # Errors
    /// A file that cannot be read or is no public key.
    pub fn open(key: &str) -> Result<Verifier, Error> {
        if let Ok(key) = PublicKey::from_base64(key) {
            return Ok(Verifier(key));
        }
        let text = fs::read_to_string(key).map_err(Error::io(key))?;
        let read = PublicKeyBox::from_string(&text).and_then(PublicKeyBox::into_public_key);
        let read = read.or_else(|_| PublicKey::from_base64(text.trim()));
        read.map(Verifier).map_err(|error| Error::Signature(format!("{key} is not a public key: {error}")))
    }

    /// Whether `signature` is one of `text`.
    pub(super) fn verify(&self, text: &[u8], signature: &str) -> Result<(), Error> {
        let wrong =
            |error| Error::Signature(format!("the signature is wrong, nothing was taken in: {error}"));
        let signature = SignatureBox::from_string(signature).map_err(wrong)?;
        minisign::verify(&self.0, &signature, Cursor::new(text), true, false, false).map_err(wrong)
    }
}
