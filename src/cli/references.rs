//! Every image that a file names: a list, a compose file, manifests of Kubernetes, what Helm renders, a Dockerfile.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, bail};
use saphyr::{LoadableYamlNode, Yaml};

/// The images that `text` names, in the order in which they come. `file` tells of what kind it is, where the text does not.
///
/// # Errors
/// A line or document that cannot be read, or a variable without a value.
pub(super) fn images(file: &Path, text: &str) -> anyhow::Result<Vec<String>> {
    if is_dockerfile(file, text) {
        return of_dockerfile(text);
    }
    if is_yaml(file, text) {
        return of_yaml(text);
    }
    Ok(text.lines().map(bare).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// A line of a list, without what is said about it.
fn bare(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

fn is_dockerfile(file: &Path, text: &str) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let is_called = ["dockerfile", "containerfile"].iter().any(|kind| {
        name == *kind || name.starts_with(&format!("{kind}.")) || name.ends_with(&format!(".{kind}"))
    });
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let word = first.and_then(|line| line.split_whitespace().next()).unwrap_or_default();
    is_called || ["from", "arg"].contains(&word.to_lowercase().as_str())
}

/// A list has a word a line; what it names has no space behind a colon.
fn is_yaml(file: &Path, text: &str) -> bool {
    let is_called = file.extension().is_some_and(|end| end == "yaml" || end == "yml");
    is_called
        || text.lines().map(bare).any(|line| line == "---" || line.ends_with(':') || line.contains(": "))
}

/// What the keys `image` name, wherever they stand, and `reference` in a volume of Kubernetes.
fn of_yaml(text: &str) -> anyhow::Result<Vec<String>> {
    let documents = Yaml::load_from_str(text).context("it cannot be read as YAML")?;
    let mut images = Vec::new();
    for document in &documents {
        walk(document, &mut images)?;
    }
    Ok(images)
}

fn walk(node: &Yaml<'_>, images: &mut Vec<String>) -> anyhow::Result<()> {
    for item in node.as_sequence().into_iter().flatten() {
        walk(item, images)?;
    }
    for (key, value) in node.as_mapping().into_iter().flatten() {
        if key.as_str() != Some("image") {
            walk(value, images)?;
            continue;
        }
        match value.as_str().or_else(|| value.as_mapping_get("reference").and_then(Yaml::as_str)) {
            Some(image) => images.extend(filled(image, &HashMap::new())?),
            None => walk(value, images)?,
        }
    }
    Ok(())
}

/// What each stage begins with, and what is copied or mounted from elsewhere, but for other stages.
fn of_dockerfile(text: &str) -> anyhow::Result<Vec<String>> {
    let (mut images, mut stages, mut values) = (Vec::new(), HashSet::new(), HashMap::new());
    for line in instructions(text) {
        let mut words = line.split_whitespace();
        let instruction = words.next().unwrap_or_default().to_uppercase();
        let mut name = |image: &str, values: &HashMap<String, String>, stages: &HashSet<String>| {
            let is_own = image == "scratch"
                || image.parse::<usize>().is_ok()
                || stages.contains(&image.to_lowercase());
            if !is_own {
                images.extend(filled(image, values).with_context(|| line.clone())?);
            }
            anyhow::Ok(())
        };
        match instruction.as_str() {
            "ARG" => values.extend(words.filter_map(|word| {
                let (name, value) = word.split_once('=')?;
                Some((name.to_owned(), value.trim_matches(['"', '\'']).to_owned()))
            })),
            "FROM" => {
                let mut words = words.skip_while(|word| word.starts_with("--"));
                name(words.next().with_context(|| format!("{line}: it names no image"))?, &values, &stages)?;
                if words.next().is_some_and(|word| word.eq_ignore_ascii_case("as")) {
                    stages.extend(words.next().map(str::to_lowercase));
                }
            }
            "COPY" | "ADD" | "RUN" => {
                for option in words.take_while(|word| word.starts_with("--")) {
                    let from = option.strip_prefix("--from=").or_else(|| {
                        option
                            .strip_prefix("--mount=")?
                            .split(',')
                            .find_map(|part| part.strip_prefix("from="))
                    });
                    from.map_or(Ok(()), |from| name(from, &values, &stages))?;
                }
            }
            _ => {}
        }
    }
    Ok(images)
}

/// Lines, with those joined that end in a backslash, and without comments and here-documents.
fn instructions(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let (mut all, mut open, mut at) = (Vec::new(), String::new(), 0);
    while let Some(line) = lines.get(at).map(|line| line.trim()) {
        at += 1;
        if line.starts_with('#') {
            continue;
        }
        let (line, goes_on) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        open.push_str(line);
        open.push(' ');
        if !goes_on {
            let line = std::mem::take(&mut open).trim().to_owned();
            for mark in marks_of(&line) {
                // What no line ends is no document.
                at += lines[at..].iter().position(|line| mark.ends(line)).map_or(0, |length| length + 1);
            }
            all.push(line);
        }
    }
    all.push(open.trim().to_owned());
    all.retain(|line| !line.is_empty());
    all
}

/// What ends a here-document: `<<EOF`, `<<-'EOF'`.
struct Mark {
    text: String,
    /// It may stand behind tabs.
    is_indented: bool,
}

impl Mark {
    fn ends(&self, line: &str) -> bool {
        if self.is_indented { line.trim_start_matches('\t') == self.text } else { line == self.text }
    }
}

/// Of those that begin behind an instruction, each with a word of its own.
fn marks_of(line: &str) -> Vec<Mark> {
    let mut words = line.split_whitespace();
    let instruction = words.next().unwrap_or_default();
    if !["COPY", "ADD", "RUN"].iter().any(|own| instruction.eq_ignore_ascii_case(own)) {
        return Vec::new();
    }
    let mark = |word: &str| {
        // A file descriptor may stand before it. `<<<` is a text and no document.
        let text = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
        let (text, is_indented) = text.strip_prefix('-').map_or((text, false), |text| (text, true));
        let text = text.trim_matches(['"', '\'']);
        let is_mark = !text.is_empty() && !text.starts_with('<');
        is_mark.then(|| Mark { text: text.to_owned(), is_indented })
    };
    words.filter_map(mark).collect()
}

/// The name with its variables replaced, from `values` or by what stands with them for that case. `None` for nothing.
fn filled(name: &str, values: &HashMap<String, String>) -> anyhow::Result<Option<String>> {
    let (mut text, mut rest) = (String::new(), name);
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let (inside, behind) = match after.strip_prefix('{') {
            Some(after) => after.split_once('}').with_context(|| format!("{name}: a brace is not closed"))?,
            None => after.split_at(
                after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()),
            ),
        };
        let end = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
        let (variable, rule) = inside.split_at(end);
        let value = values.get(variable).map(String::as_str);
        // With a colon what is empty counts as not there.
        let (value, rule) = match rule.strip_prefix(':') {
            Some(rule) => (value.filter(|value| !value.is_empty()), rule),
            None => (value, rule),
        };
        let value = match (rule.chars().next(), value) {
            (Some('-'), value) => value.or(Some(&rule[1..])),
            (Some('+'), value) => Some(value.map_or("", |_| &rule[1..])),
            (Some('?') | None, value) => value,
            _ => bail!("{name}: {inside} is no variable that is known here; write the image itself"),
        };
        match value {
            Some(value) => text.push_str(value),
            None => bail!("{name}: {variable} has no value; write the image itself"),
        }
        rest = behind;
    }
    text.push_str(rest);
    Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    fn named(file: &str, text: &str) -> Vec<String> {
        images(Path::new(file), text).unwrap()
    }

    #[test]
    fn in_every_kind_of_file() {
        assert_eq!(
            named("list", "nginx:1 # reason: it is one\n\n# another\nghcr.io/a/b@sha256:ab"),
            ["nginx:1", "ghcr.io/a/b@sha256:ab"]
        );
        let compose = "services:\n  a:\n    image: \"postgres:${TAG:-16}\"\n  b: {build: ., image: redis}\n";
        assert_eq!(named("compose.yml", compose), ["postgres:16", "redis"]);
        assert_eq!(named("x", compose), ["postgres:16", "redis"], "by what stands in it");
        let pods = "kind: Pod\nspec:\n  initContainers: [{image: a:1}]\n  containers:\n  - name: x\n    image: 'b:2'\n  \
                    volumes:\n  - name: v\n    image:\n      reference: c:3\n---\nkind: List\nitems:\n- spec: {template: {spec: {containers: [{image: d:4}]}}}\n";
        assert_eq!(named("-", pods), ["a:1", "b:2", "c:3", "d:4"]);
        let dockerfile = "# syntax=docker/dockerfile:1\nARG VERSION=1.27\nFROM --platform=$BUILDPLATFORM rust:${VERSION} AS build\n\
                          RUN --mount=type=bind,from=tools:1,target=/t \\\n  make\nFROM scratch\nCOPY --from=build /a /a\n\
                          COPY --from=0 /b /b\nCOPY --from=busybox:$VERSION /c /c\nfrom BUILD\n";
        assert_eq!(named("Dockerfile", dockerfile), ["rust:1.27", "tools:1", "busybox:1.27"]);
        assert_eq!(named("x", "FROM alpine"), ["alpine"]);
        let here = "FROM a:1\nCOPY <<EOF <<-\"END\" /there/\nfrom flask import Flask\n EOF\nEOF\nFROM no\n\tEND\nRUN cat <<< FROM\nFROM b:2\n\
                    RUN 3<<end-of-it cat\nFROM no\nend-of-it\nRUN python3 -c \"print(1<<n)\" $((1 <<n))\nFROM c:3";
        assert_eq!(named("Dockerfile", here), ["a:1", "b:2", "c:3"]);
    }

    #[test]
    fn variables_as_a_shell_has_them() {
        let values = HashMap::from([("A".to_owned(), "x".to_owned()), ("NONE".to_owned(), String::new())]);
        for (name, to) in [
            ("n:$A", "n:x"),
            ("n:${A}-b", "n:x-b"),
            ("n:${B:-1-2}", "n:1-2"),
            ("n:${B-1}", "n:1"),
            ("n:1${NONE-2}", "n:1"),
            ("n:${NONE:-2}", "n:2"),
            ("n:${A:?is needed}", "n:x"),
            ("n:1${A:+-y}", "n:1-y"),
            ("n:1${B:+-y}", "n:1"),
        ] {
            assert_eq!(filled(name, &values).unwrap().as_deref(), Some(to), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_known_is_said() {
        for (file, text, why) in [
            ("Dockerfile", "FROM app:$TAG", "TAG has no value"),
            ("compose.yaml", "services: {a: {image: \"app:${TAG}\"}}", "TAG has no value"),
            ("compose.yaml", "a: [", "cannot be read as YAML"),
            ("Dockerfile", "FROM ${A", "brace is not closed"),
            ("compose.yaml", "services: {a: {image: \"app:${TAG:?set-TAG}\"}}", "TAG has no value"),
            ("Dockerfile", "FROM a:${B%x}", "B%x is no variable that is known here"),
            ("Dockerfile", "FROM", "names no image"),
        ] {
            let said = format!("{:#}", images(Path::new(file), text).unwrap_err());
            assert!(said.contains(why), "{said}");
        }
    }

    proptest! {
        #[test]
        fn no_text_takes_it_down(text in "\\PC{0,80}", name in "(Dockerfile|a.yaml|list)") {
            let _ = images(Path::new(&name), &text);
        }
    }
}
