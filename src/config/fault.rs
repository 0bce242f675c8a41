use std::fmt;

/// One thing that is wrong with what the operator wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it stands: `tidelock.toml:12`, `--listen`, `TIDELOCK_LISTEN`; `None` when nobody wrote it.
    pub place: Option<String>,
    /// The key's path, `upstream[1].tag_ttl`; empty when the whole file is meant.
    pub key: String,
    /// The value as written, where there is one that may be shown.
    pub given: Option<String>,
    /// What is allowed: goes on from key and value, "must be …".
    pub message: String,
}

/// Everything that is wrong, in the order in which it was read; there is always something.
///
/// Prints one fault a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// `None` when there are none.
    pub(super) fn from_list(faults: Vec<Fault>) -> Option<Faults> {
        (!faults.is_empty()).then_some(Faults(faults))
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Faults {
        Faults(vec![fault])
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{} ", self.key)?;
        }
        if let Some(given) = &self.given {
            write!(f, "= {given} ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

impl std::error::Error for Faults {}
