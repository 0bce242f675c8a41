use std::fs;
use std::io::Cursor;
use std::path::Path;

use minisign::{PublicKey, PublicKeyBox, SecretKey, SecretKeyBox, SignatureBox};

use super::Error;
use crate::secret::Secret;

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
        let wrong = |error| {
            Error::Signature(format!("{} is not to be used as a secret key: {error}", file.display()))
        };
        let sealed = SecretKeyBox::from_string(&text).map_err(wrong)?;
        let key = match password {
            Some(password) => sealed.into_secret_key(Some(password.reveal().to_owned())),
            None => sealed.into_unencrypted_secret_key(),
        };
        Ok(Signer(key.map_err(wrong)?))
    }

    pub(super) fn sign(&self, text: &str) -> Result<String, Error> {
        let signed = minisign::sign(None, &self.0, Cursor::new(text), Some("tidelock bundle"), None);
        let signed = signed.map_err(|error| Error::Signature(format!("cannot sign: {error}")))?;
        Ok(signed.into_string())
    }
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
