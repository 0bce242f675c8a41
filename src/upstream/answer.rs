//! What an answer means: its headers as values, and a refusal as an [`Error`].

use std::time::{Duration, SystemTime};

use http::header::{AsHeaderName, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::Value;

use super::{Error, Found, body};
use crate::lifecycle;
use crate::oci::Digest;

/// Longer than any window of a known registry; whoever asks for more is mistaken about the date.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// A `Retry-After` above this cannot be a number of seconds, so it is a moment. Docker Hub has sent such.
const EPOCH: f64 = 1e9;

impl Found {
    pub(super) fn of(headers: &HeaderMap) -> Found {
        Found {
            digest: text(headers, "docker-content-digest")
                .and_then(|digest| digest.trim().parse::<Digest>().ok()),
            media_type: text(headers, CONTENT_TYPE).map(str::to_owned),
            size: text(headers, CONTENT_LENGTH).and_then(|size| size.trim().parse().ok()),
        }
    }
}

/// A header as text; `None` when it is absent or not printable.
pub(super) fn text(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Whether this is a web page, which no registry API answers with: a captive portal, a login form, the front
/// of a registry that serves a page for any path.
pub(super) fn is_html(headers: &HeaderMap) -> bool {
    text(headers, CONTENT_TYPE)
        .is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

/// Whether the body is packed although that was not asked for. A blob's may well be labelled so by a storage
/// that repeats what it was told at the upload; a manifest's bytes would not be those of its digest (I10).
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    text(headers, CONTENT_ENCODING).is_some_and(|coding| !coding.trim().eq_ignore_ascii_case("identity"))
}

/// The error that an answer other than success stands for; reads what there is of its body.
pub(super) async fn refusal(answer: Response<Incoming>, endpoint: String) -> Error {
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = body::scrap(answer).await;
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Error::NotFound { endpoint },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Hidden { endpoint },
        StatusCode::TOO_MANY_REQUESTS => throttled(endpoint, &headers, &body, lifecycle::now()),
        status => Error::Status { endpoint, status: status.as_u16() },
    }
}

pub(super) fn throttled(endpoint: String, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Error {
    // Amazon's limit of requests in a second speaks the quota's JSON too.
    let is_pace = |message: &String| message.to_ascii_lowercase().contains("rate exceeded");
    let message = quota_message(body).filter(|message| !is_pace(message));
    // GHCR's pace limit speaks the quota's JSON, with the pause in its text and in no header.
    let pause = message.as_deref().and_then(pause_in_text);
    let header = text(headers, RETRY_AFTER).and_then(|value| retry_after(value, now));
    Error::Throttled { endpoint, retry_after: header.or(pause), quota: message.is_some() && pause.is_none() }
}

/// The message of a JSON error `TOOMANYREQUESTS`; abuse limits answer with plain text.
fn quota_message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let errors = body.get("errors")?.as_array()?;
    let error =
        errors.iter().find(|error| error.get("code").is_some_and(|code| code == "TOOMANYREQUESTS"))?;
    Some(error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// `retry-after: 880µs, allowed: 44000/minute`.
fn pause_in_text(message: &str) -> Option<Duration> {
    let (_, rest) = message.split_once("retry-after:")?;
    let rest = rest.trim_start();
    let (number, unit) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
    let unit = match unit.split(|c: char| c == ',' || c.is_whitespace()).next()? {
        "ns" => 1e-9,
        "µs" | "μs" | "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    seconds(number.parse::<f64>().ok()? * unit)
}

/// `Retry-After` as seconds, a date, or a moment in seconds since 1970, as a wait from `now` on.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let until = |moment: SystemTime| moment.duration_since(now).unwrap_or_default();
    let wait = match value.trim().parse::<f64>() {
        Ok(number) if number > EPOCH => {
            until(SystemTime::UNIX_EPOCH.checked_add(seconds_unbounded(number)?)?)
        }
        Ok(number) => return seconds(number),
        Err(_) => until(httpdate::parse_http_date(value.trim()).ok()?),
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

fn seconds(number: f64) -> Option<Duration> {
    let number =
        if number.is_nan() { return None } else { number.clamp(0.0, LONGEST_RETRY_AFTER.as_secs_f64()) };
    seconds_unbounded(number)
}

fn seconds_unbounded(number: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(number).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn wait(value: &str) -> Option<u64> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        retry_after(value, now).map(|wait| wait.as_secs())
    }

    #[test]
    fn retry_after_in_all_its_forms() {
        let date = |offset: i64| {
            let moment = NOW.checked_add_signed(offset).unwrap();
            httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(moment))
        };
        for (value, expected) in [
            ("60", Some(60)),
            (" 60 ", Some(60)),
            ("0", Some(0)),
            ("-5", Some(0)),
            ("1.5", Some(1)),
            ("999999999", Some(86_400)),
            ("1800000030", Some(30)),
            ("1799999999", Some(0)),
            ("18000000300", Some(86_400)),
            ("1e400", None),
            ("inf", None),
            ("nan", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(wait(value), expected, "{value}");
        }
        assert_eq!(
            [wait(&date(90)), wait(&date(-90)), wait(&date(1_000_000))],
            [Some(90), Some(0), Some(86_400)]
        );
    }

    fn judge(header: Option<&str>, body: &str) -> (Option<Duration>, bool) {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(RETRY_AFTER, value.parse().unwrap());
        }
        match throttled("r".to_owned(), &headers, body.as_bytes(), SystemTime::UNIX_EPOCH) {
            Error::Throttled { retry_after, quota, .. } => (retry_after, quota),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_spent_quota_is_told_from_an_abuse_limit() {
        let hub =
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
        assert_eq!(judge(None, hub), (None, true));
        assert_eq!(judge(Some("60"), "Too Many Requests (HAP429)"), (Some(Duration::from_secs(60)), false));
        let ghcr = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: 880.5µs, allowed: 44000/minute"}]}"#;
        assert_eq!(judge(None, ghcr), (Some(Duration::from_nanos(880_500)), false));
        for body in ["", "{}", "[]", r#"{"errors":[{"code":"DENIED"}]}"#, r#"{"errors":{}}"#] {
            assert_eq!(judge(None, body), (None, false), "{body}");
        }
    }

    #[test]
    fn pages_are_known() {
        let html = |kind: &str| is_html(&HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]));
        assert!(html("text/html") && html("Text/HTML; charset=utf-8"));
        assert!(!html("application/json") && !is_html(&HeaderMap::new()));
    }

    #[test]
    fn found_reads_what_it_can() {
        let headers = |digest: &str| {
            HeaderMap::from_iter([("docker-content-digest".parse().unwrap(), digest.parse().unwrap())])
        };
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(Found::of(&headers(&digest)).digest, digest.parse().ok());
        assert_eq!(Found::of(&headers("md5:x")), Found { digest: None, media_type: None, size: None });
    }

    proptest! {
        #[test]
        fn waits_are_bounded(value in "([-0-9.eE+]{0,20}|\\PC*)", unit in "(ns|µs|us|ms|s|\\PC)") {
            let bounded = |wait: Option<Duration>| wait.is_none_or(|wait| wait <= LONGEST_RETRY_AFTER);
            prop_assert!(bounded(retry_after(&value, SystemTime::UNIX_EPOCH)));
            let text = format!("x retry-after: {value}{unit}, allowed");
            prop_assert!(bounded(pause_in_text(&text)));
        }
    }
}
