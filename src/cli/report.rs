use crate::config::Faults;

/// What a command has to say, and how it ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) out: String,
    pub(super) err: String,
    pub(super) code: u8,
}

impl Report {
    pub(super) fn done(out: impl Into<String>) -> Report {
        Report { out: out.into(), ..Report::default() }
    }

    /// It was tried and did not work.
    pub(super) fn failed(error: &anyhow::Error) -> Report {
        Report { err: format!("tidelock: {error:#}\n"), code: 1, ..Report::default() }
    }

    /// Wrong usage.
    pub(super) fn misused(message: &str) -> Report {
        Report { err: format!("tidelock: {message}\n"), code: 2, ..Report::default() }
    }

    /// The configuration is wrong.
    pub(super) fn refused(faults: &Faults) -> Report {
        Report { err: format!("{faults}\n"), code: 2, ..Report::default() }
    }
}
