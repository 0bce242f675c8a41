/// One range of a `Range` header, not yet measured against a length (RFC 9110 §14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeSpec {
    /// `first-last`, both included.
    FromTo(u64, u64),
    /// `first-`.
    From(u64),
    /// `-length`: the last so many bytes.
    Last(u64),
}

/// A `Range` header in bytes, syntactically right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<RangeSpec>);

/// A range within a body of known length: `start` included, `end` not; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset behind the last byte.
    pub end: u64,
}

/// What a `Range` header means for a body of a certain length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The whole body with status 200.
    Whole,
    /// One part, or several in the order asked for, with status 206.
    Parts(Vec<ByteRange>),
    /// Nothing of it can be had: 416.
    Unsatisfiable,
    /// More parts, or more bytes over all parts, than are served at once: 400, at which clients halve.
    TooMuch,
}

impl Ranges {
    /// So many parts are served in one answer; lazy pullers ask for up to this many (podman's zstd:chunked).
    pub const MOST_PARTS: usize = 1024;

    /// Reads a `Range` header. `None` for another unit or a malformed header, which RFC 9110 has us ignore.
    ///
    /// `last < first` is kept, to be answered with 416 as the conformance suite of the spec wants.
    pub fn parse(header: &str) -> Option<Ranges> {
        let (unit, list) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let specs = list.split(',').map(str::trim).filter(|part| !part.is_empty());
        let specs = specs.map(RangeSpec::parse).collect::<Option<Vec<_>>>()?;
        (!specs.is_empty()).then_some(Ranges(specs))
    }

    /// Measures the ranges against a body of `length` bytes. Order is kept and nothing is joined, since
    /// podman counts the parts.
    pub fn select(&self, length: u64) -> Selection {
        if self.0.len() > Ranges::MOST_PARTS {
            return Selection::TooMuch;
        }
        if length == 0 {
            let suffix_only = self.0.iter().all(|spec| matches!(spec, RangeSpec::Last(1..)));
            return if suffix_only { Selection::Whole } else { Selection::Unsatisfiable };
        }
        let parts: Vec<ByteRange> = self.0.iter().filter_map(|spec| spec.within(length)).collect();
        let bytes = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.len()));
        if parts.is_empty() {
            Selection::Unsatisfiable
        } else if bytes > length.saturating_mul(2) {
            // Overlapping ranges would let one small request draw a thousand times the blob.
            Selection::TooMuch
        } else {
            Selection::Parts(parts)
        }
    }
}

impl RangeSpec {
    fn parse(text: &str) -> Option<RangeSpec> {
        // Digits only: `u64::from_str` would take a leading plus. A number too large is as good as the end.
        let number = |digits: &str| {
            let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            all_digits.then(|| digits.parse().unwrap_or(u64::MAX))
        };
        match text.split_once('-')? {
            ("", length) => number(length).map(RangeSpec::Last),
            (first, "") => number(first).map(RangeSpec::From),
            (first, last) => Some(RangeSpec::FromTo(number(first)?, number(last)?)),
        }
    }

    fn within(self, length: u64) -> Option<ByteRange> {
        let (start, end) = match self {
            RangeSpec::FromTo(first, last) => (first, last.saturating_add(1).min(length)),
            RangeSpec::From(first) => (first, length),
            RangeSpec::Last(wanted) => (length.saturating_sub(wanted), length),
        };
        (start < end).then_some(ByteRange { start, end })
    }
}

impl ByteRange {
    /// A whole body of `length` bytes; the only range that may be empty.
    pub fn whole(length: u64) -> ByteRange {
        ByteRange { start: 0, end: length }
    }

    /// How many bytes.
    #[allow(clippy::len_without_is_empty)] // a part is never empty
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// As `Content-Range` prints it, for a body of `total` bytes.
    pub fn content_range(&self, total: u64) -> String {
        format!("bytes {}-{}/{total}", self.start, self.end - 1)
    }

    /// Reads a `Content-Range: bytes a-b/total` or `…/*`; gives the range and the total where stated.
    pub fn parse_content_range(header: &str) -> Option<(ByteRange, Option<u64>)> {
        let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (start, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        let total = if total == "*" { None } else { Some(total.parse().ok()?) };
        (start <= last && last < u64::MAX).then_some((ByteRange { start, end: last + 1 }, total))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn select(header: &str, length: u64) -> Option<Selection> {
        Ranges::parse(header).map(|ranges| ranges.select(length))
    }

    fn parts(list: &[(u64, u64)]) -> Option<Selection> {
        Some(Selection::Parts(list.iter().map(|&(start, end)| ByteRange { start, end }).collect()))
    }

    #[test]
    fn by_the_table() {
        let table = [
            ("bytes=0-0", 10, parts(&[(0, 1)])),
            ("bytes=2-5", 10, parts(&[(2, 6)])),
            ("bytes=5-", 10, parts(&[(5, 10)])),
            ("bytes=-3", 10, parts(&[(7, 10)])),
            ("bytes=-30", 10, parts(&[(0, 10)])),
            ("bytes=5-99", 10, parts(&[(5, 10)])),
            ("Bytes = 1-1 , 3-3", 10, parts(&[(1, 2), (3, 4)])),
            ("bytes=8-9,0-0", 10, parts(&[(8, 10), (0, 1)])),
            ("bytes=1-2,90-", 10, parts(&[(1, 3)])),
            ("bytes=10-", 10, Some(Selection::Unsatisfiable)),
            ("bytes=5-0", 10, Some(Selection::Unsatisfiable)),
            ("bytes=-0", 10, Some(Selection::Unsatisfiable)),
            ("bytes=0-0", 0, Some(Selection::Unsatisfiable)),
            ("bytes=-5", 0, Some(Selection::Whole)),
            ("bytes=0-99999999999999999999999", 10, parts(&[(0, 10)])),
            ("bytes=0-,0-,0-", 10, Some(Selection::TooMuch)),
            ("items=0-1", 10, None),
            ("bytes=", 10, None),
            ("bytes=a-b", 10, None),
            ("bytes=+1-2", 10, None),
            ("bytes=1", 10, None),
        ];
        for (header, length, expected) in table {
            assert_eq!(select(header, length), expected, "{header} of {length}");
        }
    }

    #[test]
    fn a_thousand_and_twenty_four_parts_and_no_more() {
        let header = |count: u64| {
            let list: Vec<String> = (0..count).map(|at| format!("{}-{}", at * 2, at * 2)).collect();
            format!("bytes={}", list.join(","))
        };
        assert!(
            matches!(select(&header(1024), 1 << 20), Some(Selection::Parts(parts)) if parts.len() == 1024)
        );
        assert_eq!(select(&header(1025), 1 << 20), Some(Selection::TooMuch));
    }

    proptest! {
        #[test]
        fn every_part_lies_within(header in "bytes=[0-9,-]{1,30}", length in any::<u64>()) {
            if let Some(Selection::Parts(parts)) = select(&header, length) {
                prop_assert!(!parts.is_empty());
                prop_assert!(parts.iter().all(|part| part.start < part.end && part.end <= length));
            }
        }

        #[test]
        fn content_range_prints_and_parses(start in 0u64..1 << 60, more in 0u64..1 << 60) {
            let range = ByteRange { start, end: start + more + 1 };
            let printed = range.content_range(start + more + 5);
            prop_assert_eq!(ByteRange::parse_content_range(&printed), Some((range, Some(start + more + 5))));
        }

        #[test]
        fn never_panics(header in "\\PC{0,40}") {
            let _ = select(&header, 100);
            let _ = ByteRange::parse_content_range(&header);
        }
    }
}
