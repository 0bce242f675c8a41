//! Until when a certificate is valid. rustls checks that of others, never of its own, and an expired one of
//! ours shows in every client's log but not in ours.

use std::time::{Duration, SystemTime};

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The end of a certificate's validity; none when it cannot be found, which is no reason not to serve it.
pub(super) fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?; // of the part that is signed
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    let (_, _serial, fields) = element(fields)?;
    let (_, _algorithm, fields) = element(fields)?;
    let (_, _issuer, fields) = element(fields)?;
    let (tag, validity, _) = element(fields)?;
    let (_, _not_before, rest) = element(validity).filter(|_| tag == SEQUENCE)?;
    let (tag, time, _) = element(rest)?;
    let seconds = parse_time(tag, std::str::from_utf8(time).ok()?)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// The first element of a DER encoding: its tag, its content and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (bytes, rest) =
            rest.split_at_checked(usize::from(length & 0x7f)).filter(|(b, _)| b.len() <= 4)?;
        (bytes.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, 4.1.2.5), in seconds since 1970.
fn parse_time(tag: u8, text: &str) -> Option<i64> {
    let digits = text.strip_suffix('Z').filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let number = |at: usize| rest.get(at..at + 2)?.parse::<i64>().ok();
    let days = days_since_1970(year, number(0)?, number(2)?);
    Some(((days * 24 + number(4)?) * 60 + number(6)?) * 60 + number(8)?)
}

/// Counts years from March, so that a leap day is the last of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719,469 days lie between 1 March of the year 0, counted as day 1, and 1 January 1970.
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 719_469
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(certificate: &[u8]) -> Option<u64> {
        Some(not_after(certificate)?.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
    }

    fn certificate(year: i32, month: u8, day: u8) -> rcgen::Certificate {
        let mut params = rcgen::CertificateParams::new(vec!["x.test".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(1975, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, month, day);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn finds_the_end_of_a_certificate() {
        for ((year, month, day), expected) in [
            ((1975, 1, 1), 157_766_400),
            ((2000, 2, 29), 951_782_400),
            ((2026, 11, 21), 1_795_219_200),
            ((2049, 12, 31), 2_524_521_600),
            ((2100, 3, 1), 4_107_542_400),
        ] {
            let end = seconds(certificate(year, month, day).der());
            assert_eq!(end, Some(expected), "{year}-{month}-{day}");
        }
    }

    proptest! {
        #[test]
        fn nonsense_has_no_end(bytes: Vec<u8>) {
            not_after(&bytes);
        }

        #[test]
        fn a_torn_certificate_does_no_harm(keep in 0usize..400, at in 0usize..400, byte: u8) {
            let mut der = certificate(2030, 1, 1).der().to_vec();
            let at = at % der.len();
            der[at] = byte;
            der.truncate(keep);
            not_after(&der);
        }
    }
}
