use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

use sha2::Digest as _;

use super::Malformed;

/// A digest algorithm that this program can check.
///
/// The image spec also registers blake3; a digest that cannot be verified here cannot be served here, so it
/// is refused at parsing (see [`Digest`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, mandatory for every registry.
    Sha256,
    /// SHA-512, allowed by the image spec.
    Sha512,
}

/// A proven or claimed content address, `algorithm:hex` (image-spec descriptor.md, "Digests").
///
/// Holds the raw bytes, so two equal digests are equal whatever text they came from; hex in upper case is
/// refused, as the spec demands for the registered algorithms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    // The first `algorithm.len()` bytes count, the rest is zero.
    bytes: [u8; 64],
}

/// Computes a digest over bytes as they come.
#[derive(Clone)]
pub enum Hasher {
    /// State of a SHA-256.
    Sha256(sha2::Sha256),
    /// State of a SHA-512.
    Sha512(Box<sha2::Sha512>),
}

/// What stands before the hexadecimal part: as long for each of them.
const ALGORITHM: &[u8; 7] = b"sha256:";

impl Algorithm {
    /// Every algorithm, for walks over the tree on disk.
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// The name as it stands before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Length of the digest in bytes.
    pub fn size(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    /// A hasher that has seen nothing yet.
    pub fn hasher(self) -> Hasher {
        match self {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::new(sha2::Sha512::new())),
        }
    }
}

impl Digest {
    /// The digest of `bytes` under `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = algorithm.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether it names the blob that has no bytes.
    pub fn is_of_nothing(&self) -> bool {
        *self == Digest::of(self.algorithm, b"")
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw bytes, 32 or 64 of them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.size()]
    }

    /// The hexadecimal part in lower case, without the algorithm.
    pub fn hex(&self) -> String {
        self.with_text(|text| text[ALGORITHM.len()..].to_owned())
    }

    /// Takes the text of it, `algorithm:hex`, without memory of its own. Digests are written many times for each request;
    /// by the standard formatter that took a fifteenth of its time.
    pub fn with_text<T>(&self, take: impl FnOnce(&str) -> T) -> T {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; ALGORITHM.len() + 128];
        let (name, hex) = text.split_at_mut(ALGORITHM.len());
        name.copy_from_slice(match self.algorithm {
            Algorithm::Sha256 => ALGORITHM,
            Algorithm::Sha512 => b"sha512:",
        });
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.bytes()) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        let length = ALGORITHM.len() + 2 * self.algorithm.size();
        take(str::from_utf8(&text[..length]).expect("digits are ASCII"))
    }

    /// The digest whose raw bytes are `raw`; `None` when the length does not fit the algorithm.
    pub fn from_bytes(algorithm: Algorithm, raw: &[u8]) -> Option<Digest> {
        let mut bytes = [0; 64];
        (raw.len() == algorithm.size()).then(|| bytes[..raw.len()].copy_from_slice(raw))?;
        Some(Digest { algorithm, bytes })
    }

    /// The digest whose hexadecimal part is `hex`.
    ///
    /// # Errors
    /// When `hex` is not lower-case hexadecimal of the algorithm's length.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Result<Digest, Malformed> {
        let malformed = || {
            Malformed::new(
                hex,
                "a digest: sha256 takes 64 and sha512 takes 128 lower-case hexadecimal digits",
            )
        };
        if hex.len() != 2 * algorithm.size() {
            return Err(malformed());
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = (nibble(pair[0]).ok_or_else(malformed)? << 4) | nibble(pair[1]).ok_or_else(malformed)?;
        }
        Ok(Digest { algorithm, bytes })
    }
}

impl Hasher {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(state) => state.update(bytes),
            Hasher::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        let mut bytes = [0; 64];
        match self {
            Hasher::Sha256(state) => {
                bytes[..32].copy_from_slice(&state.finalize());
                Digest { algorithm: Algorithm::Sha256, bytes }
            }
            Hasher::Sha512(state) => {
                bytes.copy_from_slice(&state.finalize());
                Digest { algorithm: Algorithm::Sha512, bytes }
            }
        }
    }
}

impl Hash for Digest {
    /// By what counts of it, half of the room.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(self.bytes());
    }
}

impl FromStr for Digest {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Digest::from_hex(Algorithm::Sha256, hex),
            Some(("sha512", hex)) => Digest::from_hex(Algorithm::Sha512, hex),
            _ => Err(Malformed::new(text, "a digest: sha256:<64 hex digits> or sha512:<128 hex digits>")),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn knows_the_empty_blob() {
        let empty = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(
            empty.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn refuses_what_the_spec_refuses() {
        let upper = "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";
        for text in ["", "sha256:", "sha256", "md5:00", "sha256:baddigeststring", "sha256:é", upper] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn print_then_parse_is_identity(content in any::<Vec<u8>>(), wide in any::<bool>()) {
            let algorithm = if wide { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let digest = Digest::of(algorithm, &content);
            prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
            prop_assert_eq!(Digest::from_bytes(algorithm, digest.bytes()), Some(digest));
        }

        #[test]
        fn parsing_never_panics_and_prints_what_it_read(text in "\\PC{0,140}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
