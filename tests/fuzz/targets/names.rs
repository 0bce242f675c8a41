//! Everything that has a name: images as people type them, repositories, registries, tags, digests.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use tidelock::oci::{
    Algorithm, Digest, ImageReference, Reference, RegistryHost, Repository, RepositoryName, Tag,
};
use tidelock_fuzz::text;

fuzz_target!(|data: &[u8]| {
    let Some(text) = text(data) else { return };
    for printed in
        [exact::<Digest>(text), exact::<Tag>(text), exact::<Reference>(text), exact::<RepositoryName>(text)]
    {
        assert!(printed.is_none_or(|printed| printed == text), "it prints as it was");
    }
    // Host names are compared without regard to case.
    assert!(exact::<RegistryHost>(text).is_none_or(|printed| printed == text.to_ascii_lowercase()));
    exact::<Repository>(text);
    exact::<ImageReference>(text);
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(Digest::from_bytes(digest.algorithm(), digest.bytes()), Some(digest));
        assert_eq!(Digest::from_hex(digest.algorithm(), &digest.hex()), Ok(digest));
    }
    for algorithm in Algorithm::ALL {
        assert_eq!(Digest::from_bytes(algorithm, data).is_some(), data.len() == algorithm.size());
    }
});

/// What is read of `text`, printed; it reads back to the same.
fn exact<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) -> Option<String> {
    let value: T = text.parse().ok()?;
    let printed = value.to_string();
    assert_eq!(printed.parse::<T>().expect("what is printed can be read"), value);
    Some(printed)
}
