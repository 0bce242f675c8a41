//! Which part of a blob an answer holds. Plain judgement, no I/O.

use std::ops::Range;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, StatusCode};

use super::answer::text;
use crate::oci::ByteRange;

/// Where an answer's first byte belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// So many bytes come before the one that was asked for.
    pub(super) skip: u64,
    /// The length of the whole blob, where known.
    pub(super) total: Option<u64>,
    /// Where the answer ends, where known.
    pub(super) end: Option<u64>,
}

/// The `Range` header for everything from `from` on; none for a whole blob. Closed where it is known where that
/// `ends`, as not every registry takes an open one.
pub(super) fn span(from: u64, end: Option<u64>) -> Option<String> {
    let last = end.map(|end| end.saturating_sub(1).to_string()).unwrap_or_default();
    (from > 0).then(|| format!("bytes={from}-{last}"))
}

/// Reads a 200 or 206 to a request for everything from `from` on of a blob of `expected` bytes. An upstream
/// that ignores ranges sends what is there already: that is skipped, not refused.
pub(super) fn place(
    status: StatusCode,
    headers: &HeaderMap,
    from: u64,
    expected: Option<u64>,
) -> Result<Placed, String> {
    let (start, end, total) = if status == StatusCode::PARTIAL_CONTENT {
        let range = text(headers, CONTENT_RANGE).and_then(ByteRange::parse_content_range);
        let (range, total) = range.ok_or("a part without saying which")?;
        (range.start, Some(range.end), total)
    } else {
        let total = text(headers, CONTENT_LENGTH).and_then(|length| length.trim().parse().ok());
        (0, total, total)
    };
    match (expected, total) {
        (Some(expected), Some(total)) if expected != total => {
            return Err(format!("a blob of {total} bytes where {expected} were expected"));
        }
        _ => {}
    }
    let total = total.or(expected);
    if total.is_some_and(|total| total < from) {
        return Err(format!("a blob that is shorter than the {from} bytes that are there already"));
    }
    let skip = from.checked_sub(start).ok_or("another part than was asked for")?;
    Ok(Placed { skip, total, end })
}

/// Whether an answer is exactly what was asked for, or its beginning. One of several that fetch the same blob must not
/// be given what others fetch.
pub(super) fn is_part(status: StatusCode, headers: &HeaderMap, part: &Range<u64>) -> bool {
    let range = text(headers, CONTENT_RANGE).and_then(ByteRange::parse_content_range);
    let fits = range.is_some_and(|(range, _)| range.start == part.start && range.end <= part.end);
    status == StatusCode::PARTIAL_CONTENT && fits
}

/// The whole blob's length as a 206 or 416 states it: `Content-Range: bytes 0-0/1234`, `bytes */1234`.
pub(super) fn whole_length(headers: &HeaderMap) -> Option<u64> {
    let (_, length) = text(headers, CONTENT_RANGE)?.trim().strip_prefix("bytes ")?.split_once('/')?;
    length.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(
        status: u16,
        header: &str,
        from: u64,
        expected: Option<u64>,
    ) -> Result<(u64, Option<u64>), String> {
        let name = if status == 206 { CONTENT_RANGE } else { CONTENT_LENGTH };
        let headers = HeaderMap::from_iter([(name, header.parse().unwrap())]);
        let placed = place(StatusCode::from_u16(status).unwrap(), &headers, from, expected)?;
        Ok((placed.skip, placed.total))
    }

    #[test]
    fn answers_that_fit() {
        for (status, header, from, expected, placed) in [
            (200, "100", 0, None, (0, Some(100))),
            (200, "100", 0, Some(100), (0, Some(100))),
            (200, "100", 40, Some(100), (40, Some(100))),
            (200, "", 0, Some(100), (0, Some(100))),
            (200, "", 7, None, (7, None)),
            (206, "bytes 40-99/100", 40, None, (0, Some(100))),
            (206, "bytes 40-99/*", 40, Some(100), (0, Some(100))),
            (206, "bytes 40-59/100", 40, None, (0, Some(100))),
            (206, "bytes 32-99/100", 40, None, (8, Some(100))),
            (206, "bytes 0-99/100", 0, None, (0, Some(100))),
        ] {
            assert_eq!(judge(status, header, from, expected), Ok(placed), "{status} {header} {from}");
        }
    }

    #[test]
    fn answers_that_do_not() {
        for (status, header, from, expected) in [
            (200, "99", 0, Some(100)),
            (200, "30", 40, None),
            (206, "bytes 41-99/100", 40, None),
            (206, "bytes 40-99/101", 40, Some(100)),
            (206, "bytes 40-", 40, Some(100)),
            (206, "", 40, None),
        ] {
            assert!(judge(status, header, from, expected).is_err(), "{status} {header} {from}");
        }
    }

    #[test]
    fn parts_to_the_byte() {
        for (status, header, fits) in [
            (206, "bytes 40-59/100", true),
            (206, "bytes 40-49/100", true),
            (206, "bytes 40-60/100", false),
            (206, "bytes 39-59/100", false),
            (206, "bytes 0-99/100", false),
            (206, "", false),
            (200, "bytes 40-59/100", false),
            (416, "bytes */100", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, header.parse().unwrap())]);
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(is_part(status, &headers, &(40..60)), fits, "{status} {header}");
        }
    }

    #[test]
    fn ranges_asked_for() {
        assert_eq!(span(0, Some(10)), None);
        assert_eq!(span(4, Some(10)).unwrap(), "bytes=4-9");
        assert_eq!(span(4, None).unwrap(), "bytes=4-");
        let headers = |range: &str| HeaderMap::from_iter([(CONTENT_RANGE, range.parse().unwrap())]);
        assert_eq!(whole_length(&headers("bytes */10")), Some(10));
        assert_eq!(whole_length(&headers("bytes 0-0/10")), Some(10));
        assert_eq!(whole_length(&headers("bytes */*")), None);
    }
}
