//! What the headers of an answer say of a pull quota.
//!
//! | family | limit and window | remaining |
//! |---|---|---|
//! | Docker Hub, drafts up to 06 | `RateLimit-Limit: 100;w=21600` | `RateLimit-Remaining: 76;w=21600` |
//! | draft 07 | `RateLimit-Policy: 100;w=60` | `RateLimit: limit=100, remaining=50, reset=5` |
//! | drafts from 08 on | `RateLimit-Policy: "burst";q=100;w=60` | `RateLimit: "burst";r=50;t=30` |
//! | REST APIs | `X-RateLimit-Limit: 100` | `X-RateLimit-Remaining: 50` |
//!
//! The first that tells what remains is believed. A value that makes no sense is left out and named: whoever
//! plans by it had better know nothing.

use std::cmp::Reverse;
use std::num::IntErrorKind;
use std::time::{Duration, SystemTime};

use http::HeaderMap;

use crate::scheduler::Told;

/// The longest window or wait believed: a quota by the month is the slowest there is.
const LONGEST: Duration = Duration::from_secs(31 * 24 * 3600);
/// A reset above this cannot be a number of seconds, so it is a moment, as GitHub and GitLab send it.
const EPOCH: u64 = 1_000_000_000;
/// The largest number a structured field can hold (RFC 9651).
const LARGEST: u64 = 999_999_999_999_999;
/// How far from zero a remainder may be when no limit bounds it.
const FARTHEST: i64 = 1_000_000_000;
/// No registry has as many quotas; what a header lists beyond is not read.
const MOST_ITEMS: usize = 32;

const NOT_A_NUMBER: &str = "not a number";
const BEYOND_BOUNDS: &str = "a number beyond all bounds";

const HUB: Names =
    Names { limit: "ratelimit-limit", remaining: "ratelimit-remaining", reset: "ratelimit-reset" };
const REST: Names =
    Names { limit: "x-ratelimit-limit", remaining: "x-ratelimit-remaining", reset: "x-ratelimit-reset" };

/// Reading of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// What is usable: at least what remains, or a limit. `None` where there is no quota to keep.
    pub(super) told: Option<Told>,
    /// The first thing that is absurd.
    pub(super) odd: Option<&'static str>,
}

/// Reads the headers of one answer that came at `now`.
pub(super) fn read(headers: &HeaderMap, now: SystemTime) -> Reading {
    let mut reader = Reader { headers, now, odd: None, lost: false };
    let told = reader.told();
    Reading { told, odd: reader.odd }
}

/// The headers of a family that has one for each value.
struct Names {
    limit: &'static str,
    remaining: &'static str,
    reset: &'static str,
}

/// A quota the upstream keeps, whatever is left of it.
#[derive(Clone)]
struct Policy {
    name: String,
    quota: Option<u64>,
    window: Option<Duration>,
    /// Whether it counts requests. Others count bytes or what is under way.
    of_requests: bool,
}

struct Reader<'a> {
    headers: &'a HeaderMap,
    now: SystemTime,
    odd: Option<&'static str>,
    /// Whether a remainder was sent that cannot be used.
    lost: bool,
}

impl Reader<'_> {
    fn told(&mut self) -> Option<Told> {
        let policies = self.policies("ratelimit-policy");
        let families = [
            self.apart(&HUB, &policies),
            self.dictionary(&policies),
            self.named(&policies),
            self.apart(&REST, &[]),
        ];
        let counted = families.iter().find(|told| told.remaining.is_some());
        // Without what remains, a limit is news only where nobody tried to say more.
        let limited = || families.iter().find(|told| told.limit.is_some() && !self.lost);
        let first = counted.or_else(limited)?;
        let told = families.iter().fold(*first, filled);
        Some(Told { remaining: told.remaining.and_then(|left| self.bounded(left, told.limit)), ..told })
    }

    /// Docker Hub's family and the `X-` one: a header for each value.
    fn apart(&mut self, names: &Names, policies: &[Policy]) -> Told {
        let mut limits = self.policies(names.limit);
        let limit = limits.first().and_then(|first| first.quota);
        limits.extend_from_slice(policies);
        let left = self.least(names.remaining);
        let reset = items(&self.list(names.reset)).next().and_then(|item| self.reset(item.head()));
        let told = Told { limit, window: None, remaining: left.map(|(left, _)| left), reset };
        let told = completed(told, &limits);
        Told { window: told.window.or(left.and_then(|(_, window)| window)), ..told }
    }

    /// The smallest of the remainders in a header, and its window.
    fn least(&mut self, name: &str) -> Option<(i64, Option<Duration>)> {
        let list = self.list(name);
        let all: Vec<_> = items(&list)
            .filter_map(|item| Some((self.remaining(item.head())?, self.window(&item))))
            .collect();
        if all.iter().any(|(left, _)| *left != all[0].0) {
            self.note("more than one remaining");
        }
        all.into_iter().min_by_key(|(left, _)| *left)
    }

    /// Draft 07: `limit=100, remaining=50, reset=5`.
    fn dictionary(&mut self, policies: &[Policy]) -> Told {
        let mut told = Told::default();
        for item in items(&self.list("ratelimit")) {
            match item.head().split_once('=') {
                Some(("limit", value)) => told.limit = self.keep(limit(value)),
                Some(("remaining", value)) => {
                    told.remaining = told.remaining.into_iter().chain(self.remaining(value)).min();
                }
                Some(("reset", value)) => told.reset = self.reset(value),
                _ => {}
            }
        }
        completed(told, policies)
    }

    /// Drafts from 08 on: `"burst";r=50;t=30, "daily";r=10;t=4000`, of which the scarcest binds.
    fn named(&mut self, policies: &[Policy]) -> Told {
        let list = self.list("ratelimit");
        let shares = items(&list).filter_map(|item| self.share(&item, policies));
        shares.min_by_key(|told| (told.remaining, Reverse(told.reset))).unwrap_or_default()
    }

    fn share(&mut self, item: &Item<'_>, policies: &[Policy]) -> Option<Told> {
        let remaining = item.param("r")?;
        let name = unquoted(item.head());
        let policy = policies.iter().find(|policy| policy.name == name).or(only(policies));
        if policy.is_some_and(|policy| !policy.of_requests) {
            return None;
        }
        Some(Told {
            limit: policy.and_then(|policy| policy.quota),
            window: policy.and_then(|policy| policy.window),
            remaining: Some(self.remaining(remaining)?),
            reset: item.param("t").and_then(|value| self.reset(value)),
        })
    }

    /// The policies of a header: `100;w=60`, or `"burst";q=100;w=60`.
    fn policies(&mut self, name: &str) -> Vec<Policy> {
        let list = self.list(name);
        let policy = |item: Item<'_>| Policy {
            name: unquoted(item.head()),
            quota: self.keep(limit(item.param("q").unwrap_or(item.head()))),
            window: self.window(&item),
            of_requests: item.param("qu").is_none_or(|unit| unquoted(unit) == "requests"),
        };
        items(&list).map(policy).collect()
    }

    /// All lines of a header as the one list they are. What is not text is no number either.
    fn list(&self, name: &str) -> String {
        let lines = self.headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
        lines.collect::<Vec<_>>().join(",")
    }

    fn remaining(&mut self, value: &str) -> Option<i64> {
        let left = self.keep(number(value));
        self.lost |= left.is_none();
        left
    }

    /// What remains, no further below nothing than the limit. More than the limit would give back what is spent.
    fn bounded(&mut self, left: i64, limit: Option<u64>) -> Option<i64> {
        let most = limit.map_or(FARTHEST, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        if left > most && limit.is_some() {
            self.note("remaining above the limit");
            return None;
        }
        if left > most || left < -most {
            self.note(BEYOND_BOUNDS);
        }
        Some(left.clamp(-most, most))
    }

    fn window(&mut self, item: &Item<'_>) -> Option<Duration> {
        let window = item.param("w").map(number)?.and_then(|number| match number {
            0 => Err("a window of 0"),
            number => seconds(number),
        });
        self.keep(window)
    }

    fn reset(&mut self, value: &str) -> Option<Duration> {
        let now = self.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let reset = number(value).and_then(|number| match u64::try_from(number) {
            Ok(moment) if moment > EPOCH => within(Duration::from_secs(moment).saturating_sub(now)),
            _ => seconds(number),
        });
        self.keep(reset)
    }

    fn keep<T>(&mut self, value: Result<T, &'static str>) -> Option<T> {
        value.inspect_err(|odd| self.note(odd)).ok()
    }

    fn note(&mut self, odd: &'static str) {
        self.odd.get_or_insert(odd);
    }
}

/// `told` with the window of the policy that has its limit, or else all of the only policy.
fn completed(told: Told, policies: &[Policy]) -> Told {
    let same = |policy: &&Policy| policy.of_requests && policy.quota == told.limit;
    match told.limit {
        Some(_) => Told { window: policies.iter().filter(same).find_map(|policy| policy.window), ..told },
        None => match only(policies).filter(|policy| policy.of_requests) {
            Some(policy) => Told { limit: policy.quota, window: policy.window, ..told },
            None => told,
        },
    }
}

/// `told` with what it lacks taken from another family, unless that one speaks of another quota.
fn filled(told: Told, other: &Told) -> Told {
    let same = match (told.limit, other.limit) {
        (Some(one), Some(other)) => one == other,
        (None, Some(limit)) => told.remaining.is_none_or(|left| i128::from(left) <= i128::from(limit)),
        (_, None) => true,
    };
    if !same {
        return told;
    }
    Told { limit: told.limit.or(other.limit), window: told.window.or(other.window), ..told }
}

fn only(policies: &[Policy]) -> Option<&Policy> {
    if let [policy] = policies { Some(policy) } else { None }
}

fn limit(value: &str) -> Result<u64, &'static str> {
    match u64::try_from(number(value)?) {
        Ok(0) => Err("a limit of 0"),
        limit => limit.or(Err("a limit below 0")),
    }
}

fn seconds(number: i64) -> Result<Duration, &'static str> {
    within(Duration::from_secs(u64::try_from(number).or(Err("a time below 0"))?))
}

fn within(time: Duration) -> Result<Duration, &'static str> {
    if time > LONGEST { Err("a time of more than 31 days") } else { Ok(time) }
}

fn number(value: &str) -> Result<i64, &'static str> {
    match value.trim().parse::<i64>() {
        Ok(number) if number.unsigned_abs() <= LARGEST => Ok(number),
        Ok(_) => Err(BEYOND_BOUNDS),
        Err(error) => match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => Err(BEYOND_BOUNDS),
            _ => Err(NOT_A_NUMBER),
        },
    }
}

fn items(list: &str) -> impl Iterator<Item = Item<'_>> {
    split(list, ',').take(MOST_ITEMS).map(Item)
}

/// `head;name=value;name=value`.
struct Item<'a>(&'a str);

impl<'a> Item<'a> {
    fn head(&self) -> &'a str {
        split(self.0, ';').next().unwrap_or_default()
    }

    /// The value of a parameter, empty where it has none.
    fn param(&self, name: &str) -> Option<&'a str> {
        split(self.0, ';').skip(1).find_map(|param| {
            let (key, value) = param.split_once('=').unwrap_or((param, ""));
            key.trim().eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// Splits at a character, but not within quotes; leaves out what is empty.
fn split(text: &str, at: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = text.split(move |c| {
        let cut = c == at && !quoted;
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        cut
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// A name without its quotes and backslashes; a bare one as it is.
fn unquoted(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"') else { return text.to_owned() };
    let mut escaped = false;
    let kept = |c: &char| {
        escaped = *c == '\\' && !escaped;
        !escaped
    };
    inner.strip_suffix('"').unwrap_or(inner).chars().filter(kept).collect()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const MONTH: u64 = 31 * 24 * 3600;

    /// Limit, window, remaining, reset.
    type Values = (Option<u64>, Option<u64>, Option<i64>, Option<u64>);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn parsed(lines: &str) -> Reading {
        let line = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.trim().parse::<HeaderName>().unwrap(), value.trim().parse::<HeaderValue>().unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines.lines().filter(|line| !line.trim().is_empty()).map(line) {
            headers.append(name, value);
        }
        read(&headers, now())
    }

    fn check(table: &[(&str, Option<Values>, Option<&'static str>)]) {
        for (lines, values, odd) in table {
            let told = values.map(|(limit, window, remaining, reset)| Told {
                limit,
                window: window.map(Duration::from_secs),
                remaining,
                reset: reset.map(Duration::from_secs),
            });
            assert_eq!(parsed(lines), Reading { told, odd: *odd }, "{lines}");
        }
    }

    const fn all(limit: u64, window: u64, remaining: i64, reset: u64) -> Option<Values> {
        Some((Some(limit), Some(window), Some(remaining), Some(reset)))
    }

    const fn hub(limit: u64, window: u64, remaining: i64) -> Option<Values> {
        Some((Some(limit), Some(window), Some(remaining), None))
    }

    const fn left(remaining: i64) -> Option<Values> {
        Some((None, None, Some(remaining), None))
    }

    #[test]
    fn docker_hub_and_the_early_drafts() {
        let bare = Some((Some(10), None, Some(3), None));
        check(&[
            ("", None, None),
            ("content-type: a/b\ndocker-ratelimit-source: 1.2.3.4", None, None),
            ("ratelimit-limit: 100;w=21600\nratelimit-remaining: 76;w=21600", hub(100, 21_600, 76), None),
            ("RateLimit-Limit: 100 ; W = 60\nRateLimit-Remaining: 76", hub(100, 60, 76), None),
            ("ratelimit-limit: 100;w=60\nratelimit-remaining: -7;w=60", hub(100, 60, -7), None),
            ("ratelimit-limit: 100;w=60\nratelimit-remaining: 7;w=90", hub(100, 60, 7), None),
            ("ratelimit-limit: 100\nratelimit-remaining: 7;w=90", hub(100, 90, 7), None),
            ("ratelimit-limit: 10, 10;w=1, 50;w=60\nratelimit-remaining: 3", hub(10, 1, 3), None),
            (
                "ratelimit-limit: 50\nratelimit-limit: 10;w=1\nratelimit-limit: 50;w=60",
                Some((Some(50), Some(60), None, None)),
                None,
            ),
            ("ratelimit-limit: 10, 20;w=1, 50;w=60\nratelimit-remaining: 3", bare, None),
            ("ratelimit-limit: 10;comment=\"a,b;w=9\"\nratelimit-remaining: 3", bare, None),
            ("ratelimit-remaining: 7", left(7), None),
            ("ratelimit-remaining: 7;w=60", Some((None, Some(60), Some(7), None)), None),
            (
                "ratelimit-limit: 100\nratelimit-remaining: 7\nratelimit-reset: 5\nratelimit-policy: 9;w=1, 100;w=60, 5000;w=3600",
                all(100, 60, 7, 5),
                None,
            ),
            ("ratelimit-remaining: 7\nratelimit-policy: 100;w=60", hub(100, 60, 7), None),
            (
                "ratelimit-limit: 100\nratelimit-remaining: 7\nratelimit-policy: 90;w=60",
                Some((Some(100), None, Some(7), None)),
                None,
            ),
            ("ratelimit-policy: 100;w=60", Some((Some(100), Some(60), None, None)), None),
            ("ratelimit-policy: 100;w=60, 200;w=90", None, None),
            // GitLab sends a moment.
            (
                "ratelimit-limit: 60\nratelimit-remaining: 59\nratelimit-reset: 1800000030",
                Some((Some(60), None, Some(59), Some(30))),
                None,
            ),
        ]);
    }

    #[test]
    fn draft_07() {
        let policy = "\nratelimit-policy: 10;w=1, 100;w=60";
        check(&[
            (&format!("ratelimit: limit=100, remaining=50, reset=5{policy}"), all(100, 60, 50, 5), None),
            ("ratelimit: limit=100\nratelimit: remaining=50", Some((Some(100), None, Some(50), None)), None),
            ("ratelimit: remaining=50, reset=5\nratelimit-policy: 100;w=60", all(100, 60, 50, 5), None),
            ("ratelimit: remaining=50, remaining=9, more, x=1", left(9), None),
            (
                "ratelimit: limit=100, remaining=101",
                Some((Some(100), None, None, None)),
                Some("remaining above the limit"),
            ),
            ("ratelimit: limit=100, remaining=x", None, Some(NOT_A_NUMBER)),
            ("ratelimit: limit=0, remaining=5", left(5), Some("a limit of 0")),
        ]);
    }

    #[test]
    fn drafts_from_08_on() {
        let policies = "\nratelimit-policy: \"burst\";q=100;w=60,\"daily\";q=1000;w=86400";
        let with = |header: &str| format!("ratelimit: {header}{policies}");
        let odd_name = r#"ratelimit-policy: a;q=9;w=1, "x, \"y\";r=1\\";q=20;w=60"#;
        check(&[
            (&with(r#""burst";r=50;t=30, "daily";r=10;t=4000"#), all(1000, 86_400, 10, 4000), None),
            (&with(r#""burst";r=50;t=30"#), all(100, 60, 50, 30), None),
            (&with("burst; r=50; t=30"), all(100, 60, 50, 30), None),
            (&with(r#""burst";r=0;t=30, "daily";r=0;t=4000"#), all(1000, 86_400, 0, 4000), None),
            (&with(r#""other";r=50"#), left(50), None),
            (&with(r#""burst";t=50"#), None, None),
            (&format!(r#"ratelimit: "x, \"y\";r=1\\";r=4{}{odd_name}"#, "\n"), hub(20, 60, 4), None),
            ("ratelimit: \"a\";r=4;t=1\nratelimit-policy: \"b\";q=9;w=1;pk=:aGk=:", all(9, 1, 4, 1), None),
            ("ratelimit: \"a\";r=4", left(4), None),
            // A quota of bytes says nothing of pulls.
            (
                "ratelimit: \"b\";r=4, a;r=7\nratelimit-policy: \"b\";q=9;qu=\"content-bytes\", a;q=8;w=5;qu=\"requests\"",
                hub(8, 5, 7),
                None,
            ),
            ("ratelimit: b;r=4\nratelimit-policy: b;q=9;w=1;qu=\"content-bytes\"", None, None),
            (&with(r#""burst";r=1e3, "daily";r=10"#), hub(1000, 86_400, 10), Some(NOT_A_NUMBER)),
            (&with(r#""burst";r="#), None, Some(NOT_A_NUMBER)),
            ("ratelimit: a;r=4\nratelimit-policy: a;q=0;w=0", left(4), Some("a limit of 0")),
            ("ratelimit: \"a;r=4\nratelimit-policy: \"", None, Some(NOT_A_NUMBER)),
        ]);
    }

    #[test]
    fn rest_headers() {
        let rest = |reset: &str| {
            format!("X-RateLimit-Limit: 60\nX-RateLimit-Remaining: 9\nX-RateLimit-Reset: {reset}")
        };
        let told = |reset| Some((Some(60), None, Some(9), reset));
        check(&[
            (&rest("5"), told(Some(5)), None),
            (&rest("0"), told(Some(0)), None),
            (&rest("1800000030"), told(Some(30)), None),
            (&rest("1799999999"), told(Some(0)), None),
            (&rest("1800000030000"), told(None), Some("a time of more than 31 days")),
            (&rest("2678401"), told(None), Some("a time of more than 31 days")),
            (&rest("-1"), told(None), Some("a time below 0")),
            (&rest("Thu, 01 Jan 2026 00:00:00 GMT"), told(None), Some(NOT_A_NUMBER)),
            ("x-ratelimit-limit: 100;w=21600\nx-ratelimit-remaining: 7", hub(100, 21_600, 7), None),
        ]);
    }

    #[test]
    fn the_first_that_tells_what_remains_wins_and_others_fill_in() {
        let x = "\nx-ratelimit-limit: 60;w=3600\nx-ratelimit-remaining: 9\nx-ratelimit-reset: 8";
        let with = |header: &str| format!("{header}{x}");
        check(&[
            (&with("ratelimit-limit: 100;w=5\nratelimit-remaining: 7"), hub(100, 5, 7), None),
            (&with("ratelimit-limit: 60\nratelimit-remaining: 7"), hub(60, 3600, 7), None),
            (
                &with("ratelimit-limit: 61\nratelimit-remaining: 7"),
                Some((Some(61), None, Some(7), None)),
                None,
            ),
            (&with("ratelimit-remaining: 7"), hub(60, 3600, 7), None),
            (&with("ratelimit-remaining: 61"), left(61), None),
            (&with("ratelimit-limit: 100;w=5"), all(60, 3600, 9, 8), None),
            (
                &with("ratelimit-limit: 100;w=5\nratelimit-remaining: x"),
                all(60, 3600, 9, 8),
                Some(NOT_A_NUMBER),
            ),
            (
                "ratelimit: limit=5, remaining=4, a;r=3\nratelimit-remaining: 2",
                Some((Some(5), None, Some(2), None)),
                None,
            ),
            ("ratelimit: a;r=3, limit=5, remaining=4", Some((Some(5), None, Some(4), None)), None),
        ]);
    }

    #[test]
    fn what_makes_no_sense_is_left_out_and_named() {
        let huge = format!("1{}", "0".repeat(30));
        let limited = |limit: &str| format!("ratelimit-limit: {limit}\nratelimit-remaining: 7");
        let rest = |left: &str| format!("ratelimit-limit: 100;w=60\nratelimit-remaining: {left}");
        let windowless = Some((Some(100), None, Some(7), None));
        check(&[
            (&rest("101"), Some((Some(100), Some(60), None, None)), Some("remaining above the limit")),
            (&rest("-101"), hub(100, 60, -100), Some(BEYOND_BOUNDS)),
            (&rest("9, 5\nratelimit-remaining: 7"), hub(100, 60, 5), Some("more than one remaining")),
            (&rest("9\nratelimit-remaining: 9"), hub(100, 60, 9), None),
            (&rest("5, x"), hub(100, 60, 5), Some(NOT_A_NUMBER)),
            (&rest(&huge), None, Some(BEYOND_BOUNDS)),
            (&rest(&format!("-{huge}")), None, Some(BEYOND_BOUNDS)),
            (&rest("9223372036854775807"), None, Some(BEYOND_BOUNDS)),
            (&rest("NaN"), None, Some(NOT_A_NUMBER)),
            (&rest("1.5"), None, Some(NOT_A_NUMBER)),
            (&rest("0x10"), None, Some(NOT_A_NUMBER)),
            (&rest("\u{fc}"), None, Some(NOT_A_NUMBER)),
            (&rest(";w=60"), None, Some(NOT_A_NUMBER)),
            (&limited("100;w=0"), windowless, Some("a window of 0")),
            (&limited("100;w="), windowless, Some(NOT_A_NUMBER)),
            (&limited("100;w"), windowless, Some(NOT_A_NUMBER)),
            (&limited("100;w=1h"), windowless, Some(NOT_A_NUMBER)),
            (&limited("100;w=-60"), windowless, Some("a time below 0")),
            (&limited("100;w=2678400"), hub(100, MONTH, 7), None),
            (&limited("100;w=2678401"), windowless, Some("a time of more than 31 days")),
            (&limited(&format!("100;w={huge}")), windowless, Some(BEYOND_BOUNDS)),
            (&limited(&huge), left(7), Some(BEYOND_BOUNDS)),
            (&limited("0"), left(7), Some("a limit of 0")),
            (&limited("-100"), left(7), Some("a limit below 0")),
            (&limited("nan"), left(7), Some(NOT_A_NUMBER)),
            ("ratelimit-limit: a", None, Some(NOT_A_NUMBER)),
            (&limited("1.5"), left(7), Some(NOT_A_NUMBER)),
            (&limited("0x64"), left(7), Some(NOT_A_NUMBER)),
            (&format!("ratelimit-limit: {huge}"), None, Some(BEYOND_BOUNDS)),
            ("ratelimit-limit: 0;w=60", None, Some("a limit of 0")),
            ("ratelimit-remaining: 5000000000", left(FARTHEST), Some(BEYOND_BOUNDS)),
            ("ratelimit-remaining: -5000000000", left(-FARTHEST), Some(BEYOND_BOUNDS)),
            ("ratelimit-remaining:", None, None),
        ]);
    }

    #[test]
    fn a_list_is_read_only_so_far() {
        let long = format!("ratelimit-remaining: {}1", "5,".repeat(MOST_ITEMS));
        assert_eq!(parsed(&long).told.unwrap().remaining, Some(5));
    }

    /// Numbers, the characters that have a meaning, and anything at all.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        let number = "(0|[1-9]|[2-9][0-9]{6}|-?[0-9]{0,20})";
        let item = format!(
            r#"("?[ab]"?;q={number};|limit=|remaining=|reset=|||){number}(;w={number})?(;(r|t|qu)={number}){{0,2}}"#
        );
        let list = format!("({item}(,{item}){{0,2}})?");
        prop_oneof![
            3 => proptest::string::string_regex(&list).unwrap().prop_map(String::into_bytes),
            1 => "[-0-9a-w=;,\"\\\\ .]{0,40}".prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..40),
        ]
    }

    fn headers() -> impl Strategy<Value = HeaderMap> {
        let names =
            [HUB.limit, HUB.remaining, HUB.reset, REST.limit, REST.remaining, REST.reset, "ratelimit-policy"];
        let names: Vec<_> = names.into_iter().chain(["ratelimit"]).collect();
        let line = (proptest::sample::select(names), value());
        proptest::collection::vec(line, 0..10).prop_map(|lines| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                HeaderValue::from_bytes(&value).into_iter().for_each(|value| {
                    headers.append(name, value);
                });
            }
            headers
        })
    }

    proptest! {
        #[test]
        fn all_that_is_told_is_within_bounds(headers in headers(), now in 0..4_000_000_000_u64) {
            let reading = read(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(now));
            let Some(told) = reading.told else { return Ok(()) };
            prop_assert!(told.remaining.is_some() || told.limit.is_some());
            prop_assert!(told.limit != Some(0));
            prop_assert!(told.window.is_none_or(|window| !window.is_zero() && window <= LONGEST));
            prop_assert!(told.reset.is_none_or(|reset| reset <= LONGEST));
            let most = told.limit.unwrap_or(FARTHEST.unsigned_abs());
            prop_assert!(told.remaining.is_none_or(|left| left.unsigned_abs() <= most));
        }

        #[test]
        fn what_docker_hub_prints_is_read_back(
            (limit, left) in (1..=1_000_000_i64).prop_flat_map(|limit| (Just(limit), -limit..=limit)),
            window in 1..=MONTH,
        ) {
            let lines = format!("ratelimit-limit: {limit};w={window}\nratelimit-remaining: {left};w={window}");
            let told = Told {
                limit: Some(limit.unsigned_abs()),
                window: Some(Duration::from_secs(window)),
                remaining: Some(left),
                reset: None,
            };
            prop_assert_eq!(parsed(&lines), Reading { told: Some(told), odd: None });
        }

        #[test]
        fn a_name_survives_its_quotes(name in "[ -~]{0,12}", left in 0..50_i64) {
            let quoted = format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
            let lines = format!("ratelimit: {quoted};r={left}\nratelimit-policy: x;q=60, {quoted};q=50;w=9");
            prop_assume!(name != "x");
            let told = parsed(&lines).told.unwrap();
            prop_assert_eq!((told.limit, told.remaining), (Some(50), Some(left)));
        }
    }
}
