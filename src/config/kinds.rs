//! What may stand behind a key: each function reads one value, or says what is allowed there.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use toml::de::DeValue;
use url::Url;

use super::{
    Anonymous, Bandwidth, ByteSize, Glob, Hours, LogFormat, Probe, Proxy, Share, SizeLimit, Wish,
    parse_duration, print_duration,
};
use crate::oci::{Platform, RegistryHost};
use crate::secret::Secret;

/// The value, or what is allowed as a phrase that follows "must be".
pub(super) type Read<T> = Result<T, String>;

pub(super) fn boolean(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| "true or false".to_owned())
}

/// A text that is not empty and has no line breaks.
pub(super) fn text(value: &DeValue<'_>) -> Read<String> {
    let fits = |text: &&str| !text.trim().is_empty() && !text.chars().any(char::is_control);
    value.as_str().filter(fits).map(str::to_owned).ok_or_else(|| "a text in quotes, not empty".to_owned())
}

pub(super) fn count<T>(range: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Read<T>
where
    T: TryFrom<u64> + PartialOrd + Display,
{
    move |value| {
        whole(value)
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("a whole number from {} to {}", range.start(), range.end()))
    }
}

pub(super) fn duration(value: &DeValue<'_>) -> Read<Duration> {
    parse_duration(value.as_str().unwrap_or_default()).map_err(str::to_owned)
}

pub(super) fn duration_within(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Read<Duration> {
    move |value| {
        let (least, most) = (print_duration(*range.start()), print_duration(*range.end()));
        let within = duration(value).ok().filter(|duration| range.contains(duration));
        within.ok_or_else(|| format!("a duration from {least} to {most}, such as 500ms, 30s or 1m30s"))
    }
}

pub(super) fn size(value: &DeValue<'_>) -> Read<ByteSize> {
    match whole(value) {
        Some(bytes) => Ok(ByteSize(bytes)),
        None => from_text(value),
    }
}

/// Bytes a second.
pub(super) fn rate(value: &DeValue<'_>) -> Read<ByteSize> {
    size(value)
        .and_then(|rate| if rate.0 > 0 { Ok(rate) } else { Err("above 0: it would never end".to_owned()) })
}

pub(super) fn hours(value: &DeValue<'_>) -> Read<Hours> {
    from_text(value)
}

pub(super) fn wish(value: &DeValue<'_>) -> Read<Wish> {
    from_text(value)
}

pub(super) fn platform(value: &DeValue<'_>) -> Read<Platform> {
    parsed(value, "a platform such as linux/amd64 or linux/arm/v7")
}

/// A moment: a date (its first one, in UTC), or a time with its zone.
pub(super) fn instant(value: &DeValue<'_>) -> Read<SystemTime> {
    let read = value.as_datetime().and_then(|given| {
        let text = given.to_string();
        if given.time.is_none() {
            return text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|day| day.timestamp());
        }
        text.parse::<Timestamp>().ok()
    });
    read.map(SystemTime::from).ok_or_else(|| {
        "a date such as 2026-11-01, or a time with its zone such as 2026-11-01T18:00:00Z, without quotes"
            .to_owned()
    })
}

/// One rate, or several of which the first that holds counts.
pub(super) fn bandwidth(value: &DeValue<'_>) -> Read<Bandwidth> {
    let rates = match value.as_array() {
        Some(rates) => rates.iter().map(|rate| from_text(rate.get_ref())).collect::<Read<Vec<_>>>()?,
        None => vec![from_text(value)?],
    };
    Ok(Bandwidth(rates))
}

pub(super) fn size_limit(value: &DeValue<'_>) -> Read<SizeLimit> {
    let limit = match whole(value) {
        Some(bytes) => SizeLimit::Bytes(ByteSize(bytes)),
        None => from_text(value)?,
    };
    if limit == SizeLimit::Bytes(ByteSize(0)) {
        Err("above 0: nothing could be kept".to_owned())
    } else {
        Ok(limit)
    }
}

pub(super) fn share(value: &DeValue<'_>) -> Read<Share> {
    from_text(value)
}

pub(super) fn glob(value: &DeValue<'_>) -> Read<Glob> {
    from_text(value)
}

pub(super) fn log_format(value: &DeValue<'_>) -> Read<LogFormat> {
    match value.as_str() {
        Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        _ => Err("\"text\" or \"json\"".to_owned()),
    }
}

pub(super) fn address(value: &DeValue<'_>) -> Read<SocketAddr> {
    parsed(value, "an IP address with a port, such as 127.0.0.1:5000, 0.0.0.0:5000 or [::]:5000")
}

pub(super) fn host(value: &DeValue<'_>) -> Read<RegistryHost> {
    parsed(value, "a host name, with a port where needed, such as docker.io or registry.example:5000")
}

/// A registry as it stands in image references; Docker Hub's other names are refused, since no reference
/// that is written with them would find its upstream.
pub(super) fn registry(value: &DeValue<'_>) -> Read<RegistryHost> {
    let registry = host(value)?;
    match registry.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            Err("\"docker.io\", as Docker Hub is called in image references".to_owned())
        }
        _ => Ok(registry),
    }
}

pub(super) fn path(value: &DeValue<'_>) -> Read<PathBuf> {
    let path = text(value).map_err(|_| "a path in quotes".to_owned())?;
    if path.starts_with('~') {
        return Err("a path with the home directory written out: `~` is not expanded here".to_owned());
    }
    Ok(PathBuf::from(path))
}

/// The base URL of a registry. A path is refused because requests go to `/v2/` of the host (a mirror that
/// lives under a path cannot be used), userinfo because credentials belong into an account.
pub(super) fn endpoint(value: &DeValue<'_>) -> Read<Url> {
    let url = base_url(value).filter(|url| matches!(url.scheme(), "http" | "https"));
    url.filter(|url| url.username().is_empty() && url.password().is_none()).ok_or_else(|| {
        "http:// or https://, a host and perhaps a port, without path, query or credentials, such as \
         https://registry-1.docker.io"
            .to_owned()
    })
}

pub(super) fn collector(value: &DeValue<'_>) -> Read<Url> {
    let url = base_url(value).filter(|url| url.scheme() == "http" && url.username().is_empty());
    url.ok_or_else(|| "http://, a host and perhaps a port, such as http://127.0.0.1:4318".to_owned())
}

pub(super) fn proxy(value: &DeValue<'_>) -> Read<Proxy> {
    if value.as_str() == Some("none") {
        return Ok(Proxy::None);
    }
    let through = base_url(value).filter(|url| url.scheme() == "http").and(value.as_str());
    through
        .map(|url| Proxy::Through(Secret::new(url)))
        .ok_or_else(|| "\"none\", or http://[user:password@]host:port of an HTTP proxy".to_owned())
}

pub(super) fn anonymous(value: &DeValue<'_>) -> Read<Anonymous> {
    match value.as_str() {
        Some("last") => Ok(Anonymous::Last),
        Some("never") => Ok(Anonymous::Never),
        _ => Err("\"last\" or \"never\"".to_owned()),
    }
}

pub(super) fn probe(value: &DeValue<'_>) -> Read<Probe> {
    from_text(value)
}

pub(super) fn variable(value: &DeValue<'_>) -> Read<String> {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = value.as_str().filter(|name| name.starts_with(|c: char| !c.is_ascii_digit() && known(c)));
    name.filter(|name| name.chars().all(known))
        .map(str::to_owned)
        .ok_or_else(|| "the name of an environment variable, not its value".to_owned())
}

/// The program of a credential helper: a path, or Docker's name for it.
pub(super) fn helper(value: &DeValue<'_>) -> Read<PathBuf> {
    let program = path(value)?;
    let bare = program.components().count() == 1;
    if bare && !program.to_string_lossy().starts_with("docker-credential-") {
        return Err("the whole name of the program, docker-credential-NAME, or a path to it".to_owned());
    }
    Ok(program)
}

/// The name of an account: a label of metrics and a word in log lines, where two names have a meaning already.
pub(super) fn account_name(value: &DeValue<'_>) -> Read<String> {
    let known = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    let is_taken = |name: &str| matches!(name, "anonymous" | "any");
    let fits = |name: &&str| (1..=64).contains(&name.len()) && name.chars().all(known) && !is_taken(name);
    let name = value.as_str().filter(fits);
    name.map(str::to_owned)
        .ok_or_else(|| "1 to 64 letters, digits and ._-@, and neither anonymous nor any".to_owned())
}

/// A URL that is no more than scheme, userinfo, host and port.
fn base_url(value: &DeValue<'_>) -> Option<Url> {
    let url: Url = value.as_str()?.parse().ok()?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    (bare && url.has_host()).then_some(url)
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// For types whose own error is the phrase.
fn from_text<T: FromStr<Err = &'static str>>(value: &DeValue<'_>) -> Read<T> {
    value.as_str().unwrap_or_default().parse().map_err(str::to_owned)
}

fn parsed<T: FromStr>(value: &DeValue<'_>, allowed: &'static str) -> Read<T> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| allowed.to_owned())
}
