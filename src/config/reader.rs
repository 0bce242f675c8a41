//! Takes a document's keys one by one, and remembers what is wrong with each.
//!
//! A [`Section`] is asked for the keys that it may have; each answer is the value or, after a fault was
//! noted, what holds in its place. So one reading finds every fault. What was not asked for is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Fault;
use super::kinds::Read;
use super::suggest::suggest;

/// Longer values are cut in messages.
const SHOWN: usize = 60;

/// The offset of what does not stand in the file; goes behind everything that does.
const ELSEWHERE: usize = usize::MAX;

/// The state of one loading.
#[derive(Debug, Default)]
pub(super) struct Reader<'a> {
    /// The file's name and text.
    source: Option<(String, &'a str)>,
    /// Where each key that was asked for stands, and its value where that may be shown.
    written: BTreeMap<String, Written>,
    /// Every key that was asked for, without indices.
    asked: BTreeSet<String>,
    /// With the offset in the file that each is about.
    faults: Vec<(usize, Fault)>,
}

/// A table of the document, or one that is not there and has no key.
pub(super) struct Section<'r, 'a> {
    reader: &'r mut Reader<'a>,
    path: String,
    table: Option<&'a DeTable<'a>>,
    asked: Vec<&'static str>,
}

#[derive(Debug, Clone)]
struct Written {
    place: String,
    offset: usize,
    given: Option<String>,
}

impl<'a> Reader<'a> {
    /// For the file called `name`.
    pub(super) fn of(name: &str, text: &'a str) -> Reader<'a> {
        Reader { source: Some((name.to_owned(), text)), ..Reader::default() }
    }

    /// Reads the whole document.
    pub(super) fn read<T>(
        &mut self,
        table: Option<&'a DeTable<'a>>,
        read: impl FnOnce(&mut Section<'_, 'a>) -> T,
    ) -> T {
        self.section(String::new(), table, read)
    }

    /// Reads one value that does not stand in the file but at `place`, as `key`.
    pub(super) fn read_from<T>(
        &mut self,
        place: &str,
        key: &str,
        given: &str,
        value: &DeValue<'_>,
        kind: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<T> {
        let written = Written { place: place.to_owned(), offset: ELSEWHERE, given: Some(given.to_owned()) };
        self.written.insert(key.to_owned(), written);
        self.judge(key, kind(value))
    }

    /// Notes a fault at `key`, or near it when nobody wrote that very key.
    pub(super) fn fault(&mut self, key: &str, message: impl Into<String>) {
        let exact = self.written.get(key);
        let near = exact.or_else(|| parents(key).find_map(|parent| self.written.get(parent)));
        let fault = Fault {
            place: near.map(|written| written.place.clone()),
            key: key.to_owned(),
            given: exact.and_then(|written| written.given.clone()),
            message: message.into(),
        };
        self.faults.push((near.map_or(ELSEWHERE, |written| written.offset), fault));
    }

    /// Notes a fault of the file as a whole, at `span`.
    pub(super) fn fault_of_file(&mut self, span: Option<Range<usize>>, message: impl Into<String>) {
        let offset = span.as_ref().map_or(ELSEWHERE, |span| span.start);
        let place = span.and_then(|span| self.place(&span));
        let place = place.or_else(|| self.source.as_ref().map(|(name, _)| name.clone()));
        let fault = Fault { place, key: String::new(), given: None, message: message.into() };
        self.faults.push((offset, fault));
    }

    /// Whether nothing was found wrong with `key`, above it or below it.
    pub(super) fn is_clean(&self, key: &str) -> bool {
        let below = |longer: &str, key: &str| {
            longer.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        !self.faults.iter().any(|(_, fault)| below(&fault.key, key) || below(key, &fault.key))
    }

    /// Every key that was asked for, `upstream.account.name`.
    pub(super) fn asked(&self) -> &BTreeSet<String> {
        &self.asked
    }

    /// What was found, in the order of the file.
    pub(super) fn into_faults(mut self) -> Vec<Fault> {
        self.faults.sort_by_key(|(offset, _)| *offset);
        self.faults.into_iter().map(|(_, fault)| fault).collect()
    }

    fn judge<T>(&mut self, key: &str, read: Read<T>) -> Option<T> {
        read.map_err(|allowed| self.fault(key, format!("must be {allowed}"))).ok()
    }

    fn section<T>(
        &mut self,
        path: String,
        table: Option<&'a DeTable<'a>>,
        read: impl FnOnce(&mut Section<'_, 'a>) -> T,
    ) -> T {
        let mut section = Section { reader: self, path, table, asked: Vec::new() };
        let outcome = read(&mut section);
        section.refuse_unknown();
        outcome
    }

    fn place(&self, span: &Range<usize>) -> Option<String> {
        let (name, text) = self.source.as_ref()?;
        let before = text.get(..span.start)?;
        Some(format!("{name}:{}", before.matches('\n').count() + 1))
    }

    fn write_down(&mut self, key: &str, span: &Range<usize>, given: Option<String>) {
        if let Some(place) = self.place(span) {
            self.written.insert(key.to_owned(), Written { place, offset: span.start, given });
        }
    }

    /// The value as it was written, unless a password may be in it.
    fn show(&self, value: &Spanned<DeValue<'a>>) -> Option<String> {
        let (_, text) = self.source.as_ref()?;
        let raw = text.get(value.span()).filter(|_| !value.get_ref().is_table())?;
        if raw.contains('@') && raw.contains("://") {
            return Some("***".to_owned());
        }
        let line: String = raw.split_whitespace().collect::<Vec<_>>().join(" ");
        let cut: String = line.chars().take(SHOWN).collect();
        Some(if cut.len() < line.len() { format!("{cut}…") } else { cut })
    }
}

impl<'a> Section<'_, 'a> {
    /// The value of `key`, or `absent` when it is not there (or wrong, which was noted).
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        absent: T,
        kind: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> T {
        self.optional(key, kind).unwrap_or(absent)
    }

    /// The value of `key` if it is there and right.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        kind: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let path = self.path_of(key);
        let given = self.reader.show(value);
        self.reader.write_down(&path, &value.span(), given);
        self.reader.judge(&path, kind(value.get_ref()))
    }

    /// As [`Section::optional`], for a value that may hold a password: no message shows it.
    pub(super) fn sealed<T>(
        &mut self,
        key: &'static str,
        kind: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let path = self.path_of(key);
        self.reader.write_down(&path, &value.span(), Some("***".to_owned()));
        self.reader.judge(&path, kind(value.get_ref()))
    }

    /// As [`Section::optional`], but notes a fault when the key is not there: `what` it is.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        what: &str,
        kind: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<T> {
        self.require(key, what);
        self.optional(key, kind)
    }

    /// Notes a fault when `key` is not there. Nothing is missing from a section that was not written.
    pub(super) fn require(&mut self, key: &str, what: &str) {
        if self.table.is_some() && !self.has(key) {
            self.fault(key, format!("is missing: {what}"));
        }
    }

    /// The list at `key`, without the members that are wrong; `absent` when there is none.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        absent: Vec<T>,
        kind: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Vec<T> {
        let Some(value) = self.take(key) else { return absent };
        let path = self.path_of(key);
        let given = self.reader.show(value);
        self.reader.write_down(&path, &value.span(), given);
        let Some(members) = value.get_ref().as_array() else {
            self.fault(key, "must be a list in brackets, even of one: [ … ]");
            return absent;
        };
        let mut read = Vec::new();
        for (i, member) in members.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let given = self.reader.show(member);
            self.reader.write_down(&path, &member.span(), given);
            read.extend(self.reader.judge(&path, kind(member.get_ref())));
        }
        read
    }

    /// The table at `key`, read as if empty when it is not there.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_, 'a>) -> T,
    ) -> T {
        let path = self.path_of(key);
        let mut table = None;
        if let Some(value) = self.take(key) {
            self.reader.write_down(&path, &value.span(), None);
            table = value.get_ref().as_table();
            if table.is_none() {
                self.fault(key, format!("must be one table: [{path}]"));
            }
        }
        self.reader.section(path, table, read)
    }

    /// The tables of the list at `key`, one by one with their places; `None` when there is no such list.
    pub(super) fn sections<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'_, 'a>, usize) -> T,
    ) -> Option<Vec<T>> {
        let value = self.take(key)?;
        let path = self.path_of(key);
        self.reader.write_down(&path, &value.span(), None);
        let Some(members) = value.get_ref().as_array() else {
            let name = generic(&path);
            self.fault(key, format!("must be a list of tables: [[{name}]], in double brackets"));
            return Some(Vec::new());
        };
        let mut all = Vec::new();
        for (i, member) in members.iter().enumerate() {
            let path = format!("{path}[{i}]");
            self.reader.write_down(&path, &member.span(), None);
            let table = member.get_ref().as_table();
            if table.is_none() {
                self.reader.fault(&path, format!("must be a table: [[{}]]", generic(&path)));
            }
            all.push(self.reader.section(path, table, |section| read(section, i)));
        }
        Some(all)
    }

    /// Whether `key` was written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Notes a fault at `key` of this section; at the section itself when `key` is empty.
    pub(super) fn fault(&mut self, key: &str, message: impl Into<String>) {
        let path = self.path_of(key);
        self.reader.fault(&path, message);
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.note_asked(key);
        self.table.and_then(|table| table.get(key))
    }

    fn note_asked(&mut self, key: &'static str) {
        self.asked.push(key);
        self.reader.asked.insert(generic(&self.path_of(key)));
    }

    fn path_of(&self, key: &str) -> String {
        match (self.path.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (_, true) => self.path.clone(),
            _ => format!("{}.{key}", self.path),
        }
    }

    fn refuse_unknown(self) {
        let Some(table) = self.table else { return };
        for key in table.keys().filter(|key| !self.asked.contains(&key.get_ref().as_ref())) {
            let path = self.path_of(&key.get_ref().escape_debug().to_string());
            self.reader.write_down(&path, &key.span(), None);
            let message = match suggest(&path, &self.asked) {
                Some(hint) => format!("is not a key: {hint}"),
                None => format!("is not a key: there are {}", self.asked.join(", ")),
            };
            self.reader.fault(&path, message);
        }
    }
}

/// The path without its indices.
fn generic(path: &str) -> String {
    let mut inside = false;
    path.chars()
        .filter(|c| {
            inside |= *c == '[';
            let keep = !inside;
            inside &= *c != ']';
            keep
        })
        .collect()
}

/// The paths above `path`, nearest first.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rfind(['.', '[']).map(|end| &path[..end])).skip(1)
}
