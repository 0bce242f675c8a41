//! The file over the defaults, flags and environment over both.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

use super::reader::{Reader, Section};
use super::{
    Admin, Cache, Config, Fault, Faults, Freshness, Log, Overrides, Schedule, Server, Tls, Trace, check,
    kinds, upstreams, warm,
};

/// A day: no wait of this program needs to be longer.
const DAY: Duration = Duration::from_secs(86_400);

/// Far above what a client waits; see [`Config::advice`].
const LONGEST_HOLD: Duration = Duration::from_secs(600);

/// What a caller finds wrong besides, as key path and message.
pub type Objections = Vec<(String, String)>;

impl Config {
    /// Loads the file at `path` (the defaults where there is none) with `overrides` over it.
    ///
    /// # Errors
    /// Everything that is wrong with either.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, Faults> {
        Config::load_and(path, overrides, |_| Vec::new())
    }

    /// As [`Config::load`], and has `also` look for what this module cannot judge, so that its objections
    /// come in the same run and with the same places.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn load_and(
        path: Option<&Path>,
        overrides: &Overrides,
        also: impl FnOnce(&Config) -> Objections,
    ) -> Result<Config, Faults> {
        let Some(path) = path else { return read(Reader::default(), None, overrides, also) };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| Fault {
            place: Some(name.clone()),
            key: String::new(),
            given: None,
            message: format!("cannot be read: {error}"),
        })?;
        parse(&name, &text, overrides, also)
    }

    /// Reads `text` as the file called `name`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_toml(name: &str, text: &str) -> Result<Config, Faults> {
        parse(name, text, &Overrides::default(), |_| Vec::new())
    }

    /// Every key that a file may have, in the form `upstream.account.name`.
    pub fn keys() -> BTreeSet<String> {
        // The reading itself knows them: whatever it asks for when there is one of everything.
        let text = "[[upstream]]\n[[upstream.account]]\n[[upstream.hold]]\n[[warm]]\n";
        let table = DeTable::parse(text).expect("the lines above are TOML");
        let mut reader = Reader::of("", text);
        reader.read(Some(table.get_ref()), document);
        reader.asked().clone()
    }
}

fn parse(
    name: &str,
    text: &str,
    overrides: &Overrides,
    also: impl FnOnce(&Config) -> Objections,
) -> Result<Config, Faults> {
    let mut reader = Reader::of(name, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        // Not the error's own Display: that shows the line, and a password may stand in it.
        reader.fault_of_file(error.span(), format!("not TOML: {}", error.message().replace('\n', ", ")));
    }
    if errors.is_empty() {
        return read(reader, Some(table.get_ref()), overrides, also);
    }
    Err(Faults::from_list(reader.into_faults()).expect("one fault per error"))
}

fn read<'a>(
    mut reader: Reader<'a>,
    table: Option<&'a DeTable<'a>>,
    overrides: &Overrides,
    also: impl FnOnce(&Config) -> Objections,
) -> Result<Config, Faults> {
    let mut config = reader.read(table, document);
    overrides.apply(&mut config, &mut reader);
    let objections = check::check(&config).into_iter().chain(also(&config));
    // What is wrong in itself was replaced by a default, which is no ground to object to anything else.
    let sound: Objections = objections.filter(|(key, _)| reader.is_clean(key)).collect();
    for (key, message) in sound {
        reader.fault(&key, message);
    }
    Faults::from_list(reader.into_faults()).map_or(Ok(config), Err)
}

fn document(file: &mut Section<'_, '_>) -> Config {
    let absent = Config::default();
    let freshness = file.section("freshness", |section| freshness(section, &absent.freshness));
    Config {
        offline: file.value("offline", absent.offline, kinds::boolean),
        server: file.section("server", server),
        admin: file
            .section("admin", |section| Admin { token_file: section.optional("token_file", kinds::path) }),
        cache: file.section("cache", cache),
        schedule: file.section("schedule", schedule),
        log: file.section("log", log),
        trace: file.section("trace", trace),
        upstreams: upstreams::read(file, &freshness),
        warm: file.sections("warm", |section, _| warm::read(section)).unwrap_or_default(),
        freshness,
    }
}

fn server(section: &mut Section<'_, '_>) -> Server {
    let absent = Server::default();
    Server {
        listen: section.list("listen", absent.listen, kinds::address),
        admin_listen: section.value("admin_listen", absent.admin_listen, kinds::address),
        drain_timeout: section.value(
            "drain_timeout",
            absent.drain_timeout,
            kinds::duration_within(Duration::ZERO..=DAY),
        ),
        max_connections: section.value(
            "max_connections",
            absent.max_connections,
            kinds::count(1..=1_000_000),
        ),
        tls: section.section("tls", tls),
    }
}

fn tls(section: &mut Section<'_, '_>) -> Option<Tls> {
    let mut file = |key, what| section.required(key, what, kinds::path);
    let (cert, key) = (file("cert", "the file with the certificate chain"), file("key", "its private key"));
    let client_ca = section.optional("client_ca", kinds::path);
    Some(Tls { cert: cert?, key: key?, client_ca })
}

fn cache(section: &mut Section<'_, '_>) -> Cache {
    let absent = Cache::default();
    Cache {
        dir: section.value("dir", absent.dir, kinds::path),
        max_size: section.value("max_size", absent.max_size, kinds::size_limit),
        min_free: section.value("min_free", absent.min_free, kinds::size),
        scrub_every: section.value("scrub_every", absent.scrub_every, kinds::duration),
        scrub_rate: section.value("scrub_rate", absent.scrub_rate, kinds::rate),
    }
}

/// `[freshness]`, or the keys of an upstream that override it: `absent` holds where nothing is written.
pub(super) fn freshness(section: &mut Section<'_, '_>, absent: &Freshness) -> Freshness {
    Freshness {
        tag_ttl: section.value("tag_ttl", absent.tag_ttl, kinds::duration),
        stale_while_revalidate: section.value(
            "stale_while_revalidate",
            absent.stale_while_revalidate,
            kinds::duration,
        ),
        stale_if_error: section.value("stale_if_error", absent.stale_if_error, kinds::duration),
        negative_ttl: section.value("negative_ttl", absent.negative_ttl, kinds::duration),
        immutable_tags: section.list("immutable_tags", absent.immutable_tags.clone(), kinds::glob),
    }
}

fn trace(section: &mut Section<'_, '_>) -> Trace {
    let absent = Trace::default();
    Trace {
        endpoint: section.optional("endpoint", kinds::collector),
        share: section.value("share", absent.share, kinds::share),
    }
}

fn schedule(section: &mut Section<'_, '_>) -> Schedule {
    let absent = Schedule::default();
    let hold = kinds::duration_within(Duration::ZERO..=LONGEST_HOLD);
    Schedule {
        max_wait: section.value("max_wait", absent.max_wait, hold),
        reserve: section.value("reserve", absent.reserve, kinds::share),
        bandwidth: section.value("bandwidth", absent.bandwidth, kinds::bandwidth),
    }
}

fn log(section: &mut Section<'_, '_>) -> Log {
    let absent = Log::default();
    Log {
        format: section.value("format", absent.format, kinds::log_format),
        level: section.value("level", absent.level, kinds::text),
        audit: section.optional("audit", kinds::path),
    }
}
