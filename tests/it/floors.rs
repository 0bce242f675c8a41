//! Imports point down only: reads `src/**/*.rs` and fails on an arrow that points up.
//!
//! The sources are read as words and signs, not compiled, so that nothing has to be built for this. Test code
//! (`#[cfg(test)]`) may look wherever it likes. The same reading draws the picture in `src/README.md`, counts
//! lines and compares `lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The one table. A module may use those that stand before it, in its own floor too, and itself.
const FLOORS: [(&str, &[&str]); 7] = [
    ("words", &["oci"]),
    ("furniture", &["secret", "backoff", "section", "spans", "lifecycle", "config", "telemetry"]),
    ("judgement", &["routing", "freshness", "access"]),
    ("hands", &["store", "scheduler", "upstream"]),
    ("work", &["flight", "mirror", "bundle"]),
    ("doors", &["server", "registry", "admin"]),
    ("house", &["app", "cli", "main"]),
];

const LONGEST_FILE: usize = 500;

const MARKER: &str = "<!-- graph -->";

/// What one source file says, without its test code.
struct Reading {
    /// Modules of the crate's top that are named, each with the line.
    uses: Vec<(String, usize)>,
    /// Child modules that exist only for tests.
    test_children: Vec<String>,
    lines: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Sign(char),
}

type Tokens<'a> = Vec<(Token<'a>, usize)>;

#[test]
fn imports_point_down() {
    let faults: Vec<String> =
        sources().iter().flat_map(|(path, text)| judge(path, &read(path, text))).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn files_stay_short() {
    for (path, text) in sources() {
        let lines = read(&path, &text).lines;
        assert!(lines <= LONGEST_FILE, "src/{} has {lines} lines, never {LONGEST_FILE}", path.display());
    }
}

#[test]
fn lib_lists_the_modules_in_floor_order() {
    let text = std::fs::read_to_string(source_dir().join("lib.rs")).unwrap();
    let code = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    let present = modules();
    let in_order = order().into_iter().filter(|module| *module != "main" && present.contains(*module));
    let expected: Vec<String> = in_order.map(|module| format!("pub mod {module};")).collect();
    assert_eq!(
        code.collect::<Vec<_>>(),
        expected,
        "src/lib.rs lists the modules in floor order and holds nothing else; it should read\n{}\n",
        expected.join("\n")
    );
}

#[test]
fn the_page_shows_the_graph() {
    let Ok(page) = std::fs::read_to_string(source_dir().join("README.md")) else { return };
    let graph = graph();
    let shown = page.split(MARKER).nth(1).map(str::trim);
    assert!(
        shown == Some(graph.trim()),
        "between two lines `{MARKER}`, src/README.md should show\n\n{graph}\n"
    );
}

#[test]
fn an_upward_arrow_is_found() {
    let upward = "//! crate::mirror\nuse crate::oci::Tag;\nfn f() { let _ = \"crate::mirror\"; }\n";
    let reading = |path: &str, text: &str| judge(Path::new(path), &read(Path::new(path), text));
    assert!(reading("store/tree.rs", upward).is_empty());
    for (path, text) in [
        ("store/tree.rs", "use crate::oci::Tag;\nuse crate::mirror::Mirror;"),
        ("store/tree.rs", "\nuse crate::{oci::Tag, mirror::{Mirror, Served}};"),
        ("store/tree.rs", "\nfn f() -> super::super::mirror::Served {}"),
        ("store/tree.rs", "\nfn f(served: crate::mirror::Served) {}"),
        ("store/tree.rs", "\nuse super::{super::{mirror, oci}, Store};"),
        ("store/mod.rs", "\nuse super::mirror::Mirror;"),
        ("store.rs", "/* \" */ const Q: char = '\"'; const R: &str = r#\"\"\"#;\nuse crate::mirror::Mirror;"),
        ("store/mod.rs", "#[cfg(test)] mod tests { use crate::registry; }\nuse crate::mirror::Mirror;"),
    ] {
        let faults = reading(path, text);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        let start = format!("src/{path}:2: `store` (floor 3, hands) uses `mirror` (floor 4, work)");
        assert!(faults[0].starts_with(&start), "{faults:?}");
    }
    assert!(reading("config/mod.rs", "use crate::secret::Secret;").is_empty());
    assert_eq!(reading("secret.rs", "use crate::config::Config;").len(), 1, "the order in a floor counts");
    assert_eq!(reading("attic/mod.rs", "").len(), 1, "a module has a floor");
    assert!(reading("main.rs", "fn main() { tidelock::cli::run() }").is_empty());
}

fn order() -> Vec<&'static str> {
    FLOORS.iter().flat_map(|(_, modules)| modules.iter().copied()).collect()
}

/// Where a module stands in the whole order, its floor's number and its floor's name.
fn floor_of(module: &str) -> Option<(usize, usize, &'static str)> {
    let place = order().iter().position(|known| *known == module)?;
    let floor = FLOORS.iter().position(|(_, modules)| modules.contains(&module))?;
    Some((place, floor, FLOORS[floor].0))
}

/// The faults of one file, as lines of text.
fn judge(path: &Path, reading: &Reading) -> Vec<String> {
    let module = module_of(path);
    let at = |line: usize| format!("src/{}:{line}", path.display());
    if module == "lib" {
        return Vec::new();
    }
    let Some((place, floor, name)) = floor_of(&module) else {
        return vec![format!("{}: `{module}` stands on no floor: put it into the table of floors.rs", at(1))];
    };
    let upward = reading.uses.iter().filter_map(|(used, line)| {
        let (used_place, used_floor, used_name) = floor_of(used)?;
        (used_place > place).then(|| {
            format!(
                "{}: `{module}` (floor {floor}, {name}) uses `{used}` (floor {used_floor}, {used_name}): \
                 imports point down only, in the order {}",
                at(*line),
                order().join(", ")
            )
        })
    });
    upward.collect()
}

/// What each module uses, from the top floor down.
fn graph() -> String {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        let mut used: BTreeSet<String> = read(&path, &text).uses.into_iter().map(|(used, _)| used).collect();
        used.remove(&module);
        edges.entry(module).or_default().append(&mut used);
    }
    let mut lines = vec!["```text".to_owned()];
    for (number, (name, modules)) in FLOORS.iter().enumerate().rev() {
        lines.push(format!("{number} {name}"));
        for module in modules.iter().rev() {
            let Some(used) = edges.get(*module) else { continue };
            let mut used: Vec<&str> = used.iter().map(String::as_str).collect();
            used.sort_by_key(|used| std::cmp::Reverse(floor_of(used)));
            lines.push(format!("    {module:<10} {}", used.join(" ")).trim_end().to_owned());
        }
    }
    lines.push("```\n".to_owned());
    lines.join("\n")
}

/// The module of the crate's top that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.iter().next().expect("a file has a name");
    Path::new(first).with_extension("").to_string_lossy().into_owned()
}

fn modules() -> BTreeSet<String> {
    sources().iter().map(|(path, _)| module_of(path)).collect()
}

fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file under `src` by its path there, without those that exist only for tests.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![source_dir()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(source_dir()).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    let of_tests: Vec<PathBuf> = found.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    found.retain(|(path, _)| !of_tests.iter().any(|of_test| path.with_extension("").starts_with(of_test)));
    found
}

/// The children of a file that are declared for tests only, as paths without `.rs`.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let folder = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => path.parent().expect("a file is in a folder").to_owned(),
        _ => path.with_extension(""),
    };
    read(path, text).test_children.iter().map(|child| folder.join(child)).collect()
}

fn read(path: &Path, text: &str) -> Reading {
    let (tokens, test_children, test_lines) = without_tests(tokens(text));
    let is_root = |name: &str| matches!(name, "lib.rs" | "main.rs");
    let depth = path.iter().filter(|part| !is_root(&part.to_string_lossy()) && *part != "mod.rs").count();
    let mut uses = Vec::new();
    for (i, (token, _)) in tokens.iter().enumerate() {
        let goes_on = i > 1 && tokens[i - 2..i].iter().all(|(token, _)| *token == Token::Sign(':'));
        let level = match token {
            Token::Word("crate") => Some(0),
            Token::Word("tidelock") if module_of(path) == "main" => Some(0),
            Token::Word("super") => depth.checked_sub(1),
            _ => None,
        };
        if let Some(level) = level.filter(|_| !goes_on) {
            follow(&tokens[i + 1..], level, &mut uses);
        }
    }
    Reading { uses, test_children, lines: text.lines().count() - test_lines }
}

/// Goes on along a path or a tree of paths from `level` modules below the crate's top, and notes what is
/// named at the top itself. Returns how many tokens it took.
fn follow(tokens: &[(Token<'_>, usize)], level: usize, uses: &mut Vec<(String, usize)>) -> usize {
    let is_sign =
        |at: usize, sign: char| tokens.get(at).is_some_and(|(token, _)| *token == Token::Sign(sign));
    if !(is_sign(0, ':') && is_sign(1, ':')) {
        return 0;
    }
    if is_sign(2, '{') {
        let mut at = 3;
        while at < tokens.len() && !is_sign(at, '}') {
            at += branch(&tokens[at..], level, uses).max(1);
        }
        return at + 1;
    }
    2 + branch(&tokens[2..], level, uses)
}

/// One name of a path and what follows it.
fn branch(tokens: &[(Token<'_>, usize)], level: usize, uses: &mut Vec<(String, usize)>) -> usize {
    match tokens.first() {
        Some((Token::Word("super"), _)) => 1 + follow(&tokens[1..], level.saturating_sub(1), uses),
        Some((Token::Word("self"), _)) => 1,
        Some((Token::Word(name), line)) => {
            if level == 0 {
                uses.push(((*name).to_owned(), *line));
            }
            1 + follow(&tokens[1..], level + 1, uses)
        }
        _ => 0,
    }
}

/// Takes out what stands under `#[cfg(test)]`; also says which child modules were so declared and how many
/// lines went.
fn without_tests(tokens: Tokens<'_>) -> (Tokens<'_>, Vec<String>, usize) {
    let (mut kept, mut children, mut lines) = (Vec::new(), Vec::new(), 0);
    let mut at = 0;
    while at < tokens.len() {
        let attribute = attribute_end(&tokens, at);
        let of_test = |end: usize| {
            let has = |word: &str| tokens[at..end].iter().any(|(token, _)| *token == Token::Word(word));
            has("cfg") && has("test") && !has("not")
        };
        match attribute {
            Some(end) if of_test(end) => {
                let mut start = end;
                while let Some(next) = attribute_end(&tokens, start) {
                    start = next;
                }
                let end = item_end(&tokens, start);
                if let [(Token::Word("mod"), _), (Token::Word(name), _), (Token::Sign(';'), _)] =
                    tokens[start..end]
                {
                    children.push(name.to_owned());
                }
                lines += tokens[end - 1].1 - tokens[at].1 + 1;
                at = end;
            }
            _ => {
                kept.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    (kept, children, lines)
}

/// Behind the outer attribute that starts at `at`, if one does.
fn attribute_end(tokens: &Tokens<'_>, at: usize) -> Option<usize> {
    let is = |at: usize, sign: char| tokens.get(at).is_some_and(|(token, _)| *token == Token::Sign(sign));
    (is(at, '#') && is(at + 1, '[')).then(|| balanced_end(tokens, at + 1))
}

/// Behind the item that starts at `at`: its `;`, or its body's closing brace.
fn item_end(tokens: &Tokens<'_>, at: usize) -> usize {
    let mut at = at;
    while at < tokens.len() {
        match tokens[at].0 {
            Token::Sign(';') => return at + 1,
            Token::Sign('{') => return balanced_end(tokens, at),
            Token::Sign('(' | '[') => at = balanced_end(tokens, at),
            Token::Sign('}') => return at,
            _ => at += 1,
        }
    }
    at
}

/// Behind the bracket that closes the one at `at`.
fn balanced_end(tokens: &Tokens<'_>, at: usize) -> usize {
    let mut depth = 0;
    for (i, (token, _)) in tokens.iter().enumerate().skip(at) {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// Words and signs with their lines, without comments, strings, characters and spaces.
fn tokens(text: &str) -> Tokens<'_> {
    let (mut found, mut line, mut rest) = (Vec::new(), 1, text);
    while let Some(c) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let skipped = comment(rest).or_else(|| literal(rest));
        let length = match skipped {
            Some(length) => length,
            None if word > 0 => {
                found.push((Token::Word(&rest[..word]), line));
                word
            }
            None => {
                if !c.is_whitespace() {
                    found.push((Token::Sign(c), line));
                }
                c.len_utf8()
            }
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// The length of the comment that `rest` begins with.
fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        Some(rest.find('\n').unwrap_or(rest.len()))
    } else if rest.starts_with("/*") {
        Some(rest.find("*/").map_or(rest.len(), |end| end + 2))
    } else {
        None
    }
}

/// The length of the string or character that `rest` begins with. A lifetime is none.
fn literal(rest: &str) -> Option<usize> {
    let raw = rest.trim_start_matches('b').strip_prefix('r');
    let hashes = raw.map_or(0, |raw| raw.len() - raw.trim_start_matches('#').len());
    if let Some(raw) = raw.filter(|raw| raw[hashes..].starts_with('"')) {
        let close = format!("\"{}", "#".repeat(hashes));
        let start = rest.len() - raw.len() + hashes + 1;
        return Some(rest[start..].find(&close).map_or(rest.len(), |end| start + end + close.len()));
    }
    let quoted = rest.strip_prefix('b').unwrap_or(rest);
    let prefix = rest.len() - quoted.len();
    if let Some(inner) = quoted.strip_prefix('"') {
        return Some(prefix + 1 + closing(inner, '"')?);
    }
    let inner = quoted.strip_prefix('\'')?;
    let mut chars = inner.chars();
    let is_character = chars.next() == Some('\\') || chars.next() == Some('\'');
    is_character.then(|| closing(inner, '\'')).flatten().map(|end| prefix + 1 + end)
}

/// Behind the first `quote` that no backslash hides.
fn closing(inner: &str, quote: char) -> Option<usize> {
    let mut hidden = false;
    for (at, c) in inner.char_indices() {
        match c {
            _ if hidden => hidden = false,
            '\\' => hidden = true,
            c if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}
