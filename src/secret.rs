//! A text that must not be seen: prints as `***`, is wiped when dropped.
//!
//! Leaves out any protection against someone who reads the process's memory.

use std::fmt;

use zeroize::Zeroizing;

/// A password or token (I6: never into a log, a metric, an error or the disk).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(Zeroizing::new(text.into()))
    }

    /// The text itself. Every use of this is a place where it might leak: keep it on the way to the wire.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
