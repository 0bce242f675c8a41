use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::Malformed;

/// What a system must be to run an image: operating system, architecture and where there is one its variant
/// (image-spec config.md), `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform(String);

impl Platform {
    /// The platform that an object names, as a descriptor's `platform` and an image's config do. `None` where it names
    /// none, or says `unknown`, as BuildKit does of attestations.
    pub fn of(object: &Value) -> Option<Platform> {
        let part = |key: &str| object.get(key).and_then(Value::as_str).filter(|text| is_word(text));
        let (os, architecture) = (part("os")?, part("architecture")?);
        let variant = part("variant").map(|variant| format!("/{variant}")).unwrap_or_default();
        (os != "unknown").then(|| Platform(format!("{os}/{architecture}{variant}")))
    }

    /// Whether it is what `wanted` names, in whichever variant where that names none: `linux/arm64/v8` is a `linux/arm64`.
    pub fn is_a(&self, wanted: &Platform) -> bool {
        let rest = self.0.strip_prefix(&wanted.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The same for a document; `None` also for what is no JSON.
    pub fn of_config(bytes: &[u8]) -> Option<Platform> {
        Platform::of(&serde_json::from_slice(bytes).ok()?)
    }
}

impl FromStr for Platform {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let is_right = (2..=3).contains(&text.split('/').count()) && text.split('/').all(is_word);
        let expected = "a platform: OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64";
        is_right.then(|| Platform(text.to_owned())).ok_or_else(|| Malformed::new(text, expected))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_word(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&text.len()) && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use serde_json::json;

    use super::*;

    #[test]
    fn as_they_are_written() {
        let of = |value| Platform::of(&value).map(|platform| platform.to_string());
        let arm = json!({"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "1"});
        assert_eq!(of(arm).as_deref(), Some("linux/arm64/v8"));
        assert_eq!(
            of(json!({"os": "linux", "architecture": "amd64", "variant": ""})).as_deref(),
            Some("linux/amd64")
        );
        for none in [
            json!(null),
            json!({"os": "linux"}),
            json!({"os": "unknown", "architecture": "unknown"}),
            json!({"os": "a/b", "architecture": "c"}),
            json!({"os": 1, "architecture": "c"}),
        ] {
            assert_eq!(of(none.clone()), None, "{none}");
        }
        assert_eq!(
            Platform::of_config(b"{\"os\":\"linux\",\"architecture\":\"s390x\"}").unwrap().to_string(),
            "linux/s390x"
        );
    }

    #[test]
    fn what_is_wanted_is_read_and_found() {
        let platform = |text: &str| text.parse::<Platform>();
        for wrong in ["", "linux", "linux/", "/arm64", "linux/a/b/c", "linux/a b", "linux//v8"] {
            assert!(platform(wrong).is_err(), "{wrong}");
        }
        let is_a = |one: &str, other: &str| platform(one).unwrap().is_a(&platform(other).unwrap());
        assert!(is_a("linux/arm64/v8", "linux/arm64") && is_a("linux/arm64/v8", "linux/arm64/v8"));
        assert!(!is_a("linux/arm64", "linux/arm64/v8") && !is_a("linux/arm64", "linux/arm"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in any::<Vec<u8>>()) {
            let _ = Platform::of_config(&bytes);
        }
    }
}
