use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, written `50GiB`, `500 MB`, `4096`. Prints in the largest binary unit that divides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A share of a whole, written `80%`; 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u8);

/// A limit in bytes or as a share of the file system that it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeLimit {
    /// So many bytes.
    Bytes(ByteSize),
    /// So much of the file system's size.
    Share(Share),
}

const SIZE: &str = "a size such as 50GiB, 500MB or 4096";
const DURATION: &str = "a duration such as 0s, 500ms, 30s, 5m, 6h, 7d or 1h30m";

const UNITS: [(&str, u64); 14] = [
    ("", 1),
    ("B", 1),
    ("K", 1 << 10),
    ("KB", 1000),
    ("KIB", 1 << 10),
    ("M", 1 << 20),
    ("MB", 1_000_000),
    ("MIB", 1 << 20),
    ("G", 1 << 30),
    ("GB", 1_000_000_000),
    ("GIB", 1 << 30),
    ("T", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("TIB", 1 << 40),
];

const SPANS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

impl FromStr for ByteSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_uppercase();
        let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or(SIZE)?;
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).map(ByteSize).ok_or(SIZE)
    }
}

impl FromStr for Share {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_suffix('%').map(str::trim).and_then(|number| number.parse::<u8>().ok());
        number.filter(|number| *number <= 100).map(Share).ok_or("a share from 0% to 100%")
    }
}

impl FromStr for SizeLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.ends_with('%') {
            let share: Share = text.parse()?;
            if share.0 == 0 { Err("a share above 0%") } else { Ok(SizeLimit::Share(share)) }
        } else {
            text.parse().map(SizeLimit::Bytes).map_err(|_| "a size such as 50GiB, or a share such as 80%")
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl fmt::Display for SizeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SizeLimit::Bytes(size) => size.fmt(f),
            SizeLimit::Share(share) => share.fmt(f),
        }
    }
}

/// Reads `1h30m`, `500ms`, `7d`; units from `ms` to `w`, largest first or not.
///
/// # Errors
/// What is allowed, as a phrase.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let (mut rest, mut total) = (text.trim(), 0u64);
    if rest.is_empty() {
        return Err(DURATION);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(DURATION)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let span = SPANS.iter().find(|(name, _)| *name == unit).map(|(_, span)| *span).ok_or(DURATION)?;
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(span)).ok_or(DURATION)?;
        total = total.checked_add(part).ok_or(DURATION)?;
        rest = tail.trim_start();
    }
    // A century is longer than anything here may wait, and keeps every sum with a clock from overflowing.
    if total > 100 * 366 * 86_400_000 { Err(DURATION) } else { Ok(Duration::from_millis(total)) }
}

/// Prints a duration as [`parse_duration`] reads it.
pub fn print_duration(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if left == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (name, span) in SPANS.iter().rev() {
        if *name != "w" && left >= *span {
            text.push_str(&format!("{}{name}", left / span));
            left %= span;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("50GiB", 50 << 30), ("500 MB", 500_000_000), ("4096", 4096), ("1k", 1024)] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "1XB", "99999999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!("80%".parse(), Ok(SizeLimit::Share(Share(80))));
        assert!("101%".parse::<SizeLimit>().is_err() && "0%".parse::<SizeLimit>().is_err());
    }

    #[test]
    fn durations() {
        for (text, millis) in [("0s", 0), ("1h30m", 5_400_000), ("500ms", 500), ("7d", 604_800_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "5 parsecs", "-1s", "99999999999999999999s", "200000d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn durations_survive_print_and_parse(millis in 0u64..3_000_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&print_duration(duration)), Ok(duration));
        }

        #[test]
        fn sizes_survive_print_and_parse(bytes in 0u64..u64::MAX) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }
}
