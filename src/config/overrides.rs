use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use toml::de::DeValue;

use super::reader::Reader;
use super::{Config, kinds};

/// A setting that can be given without a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// `server.listen`; several.
    Listen,
    /// `server.admin_listen`.
    AdminListen,
    /// `cache.dir`.
    CacheDir,
    /// `cache.max_size`.
    MaxSize,
    /// `offline`.
    Offline,
}

/// What flags and environment lay over the file; a flag wins over the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides(BTreeMap<Setting, Given>);

/// The words as given, and by which flag or variable.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    place: &'static str,
    words: Vec<OsString>,
}

impl Setting {
    /// All of them.
    pub const ALL: [Setting; 5] =
        [Setting::Listen, Setting::AdminListen, Setting::CacheDir, Setting::MaxSize, Setting::Offline];

    /// The flag.
    pub fn flag(self) -> &'static str {
        match self {
            Setting::Listen => "--listen",
            Setting::AdminListen => "--admin-listen",
            Setting::CacheDir => "--cache-dir",
            Setting::MaxSize => "--max-size",
            Setting::Offline => "--offline",
        }
    }

    /// The environment variable. `TIDELOCK_LISTEN` holds several parted by commas.
    pub fn variable(self) -> &'static str {
        match self {
            Setting::Listen => "TIDELOCK_LISTEN",
            Setting::AdminListen => "TIDELOCK_ADMIN_LISTEN",
            Setting::CacheDir => "TIDELOCK_CACHE_DIR",
            Setting::MaxSize => "TIDELOCK_MAX_SIZE",
            Setting::Offline => "TIDELOCK_OFFLINE",
        }
    }

    /// The key that it overrides.
    pub fn key(self) -> &'static str {
        match self {
            Setting::Listen => "server.listen",
            Setting::AdminListen => "server.admin_listen",
            Setting::CacheDir => "cache.dir",
            Setting::MaxSize => "cache.max_size",
            Setting::Offline => "offline",
        }
    }
}

impl Overrides {
    /// Takes over what a flag was given; no words mean that it was not.
    pub fn flag<T: Into<OsString>>(&mut self, setting: Setting, words: impl IntoIterator<Item = T>) {
        self.put(setting, setting.flag(), words.into_iter().map(Into::into).collect());
    }

    /// Takes over, for what no flag was given, the variables as `lookup` finds them. An empty one counts as
    /// not set, because that is how compose files and unit files write "nothing".
    pub fn environment(&mut self, lookup: impl Fn(&str) -> Option<OsString>) {
        for setting in Setting::ALL {
            let Some(word) = lookup(setting.variable()).filter(|word| !word.is_empty()) else { continue };
            if self.0.contains_key(&setting) {
                continue;
            }
            let words = match (setting, word.to_str()) {
                (Setting::Listen, Some(text)) => text.split(',').map(|part| part.trim().into()).collect(),
                _ => vec![word],
            };
            self.put(setting, setting.variable(), words);
        }
    }

    fn put(&mut self, setting: Setting, place: &'static str, words: Vec<OsString>) {
        if !words.is_empty() {
            self.0.insert(setting, Given { place, words });
        }
    }

    /// Lays everything over `config`.
    pub(super) fn apply(&self, config: &mut Config, reader: &mut Reader<'_>) {
        if let Some(given) = self.0.get(&Setting::Listen) {
            let word = |(i, word): (usize, &OsString)| {
                given.read(reader, &format!("server.listen[{i}]"), word, kinds::address)
            };
            config.server.listen = given.words.iter().enumerate().filter_map(word).collect();
        }
        self.one(reader, Setting::AdminListen, kinds::address, &mut config.server.admin_listen);
        self.one(reader, Setting::CacheDir, kinds::path, &mut config.cache.dir);
        self.one(reader, Setting::MaxSize, kinds::size_limit, &mut config.cache.max_size);
        self.one(reader, Setting::Offline, switch, &mut config.offline);
    }

    fn one<T>(
        &self,
        reader: &mut Reader<'_>,
        setting: Setting,
        kind: impl Fn(&DeValue<'_>) -> kinds::Read<T>,
        target: &mut T,
    ) {
        let Some(given) = self.0.get(&setting) else { return };
        let read = given.words.last().and_then(|word| given.read(reader, setting.key(), word, kind));
        if let Some(value) = read {
            *target = value;
        }
    }
}

impl Given {
    fn read<T>(
        &self,
        reader: &mut Reader<'_>,
        key: &str,
        word: &OsStr,
        kind: impl Fn(&DeValue<'_>) -> kinds::Read<T>,
    ) -> Option<T> {
        let shown = format!("{word:?}");
        let kind = |value: &DeValue<'_>| match word.to_str() {
            Some(_) => kind(value),
            None => Err("valid UTF-8".to_owned()),
        };
        reader.read_from(self.place, key, &shown, &DeValue::String(word.to_string_lossy()), kind)
    }
}

/// A switch as people set it in an environment.
fn switch(value: &DeValue<'_>) -> kinds::Read<bool> {
    match value.as_str().map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "1" | "yes" | "on") => Ok(true),
        Some("false" | "0" | "no" | "off") => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}
