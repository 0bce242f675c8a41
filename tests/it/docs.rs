//! The pages say what the program does: the example configuration, and the snippets in README.md.

use std::collections::BTreeSet;
use std::path::Path;

use tidelock::config::Config;

const EXAMPLE: &str = "config.example.toml";

#[test]
fn the_example_is_the_default() {
    let config = Config::from_toml(EXAMPLE, &page(EXAMPLE)).unwrap_or_else(|faults| panic!("\n{faults}\n"));
    assert_eq!(config, Config::default());
}

#[test]
fn the_example_names_every_key() {
    let table: toml::Table = uncommented(&page(EXAMPLE)).parse().unwrap();
    let mut named = BTreeSet::new();
    collect(&toml::Value::Table(table), "", &mut named);
    let missing: Vec<_> = Config::keys().difference(&named).cloned().collect();
    assert!(missing.is_empty(), "{EXAMPLE} says nothing about {missing:?}");
}

/// What the example's commented lines show can be written: only the four sources of credentials, of which
/// one account has one, are told that they do not go together.
#[test]
fn the_examples_in_comments_are_right() {
    let text = uncommented(&page(EXAMPLE));
    let faults = Config::from_toml(EXAMPLE, &text).expect_err("four sources of credentials");
    let told: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(told, ["upstream[0].account[0]"], "\n{faults}\n");
}

/// The lines `# key = …` and `# [[table]]` without their mark.
fn uncommented(text: &str) -> String {
    let is_key = |line: &str| {
        let (key, _) = line.split_once(" = ").unwrap_or_default();
        !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let uncomment = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if is_key(rest) || rest.starts_with("[[") => rest.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

/// The paths of all keys, without indices.
fn collect(value: &toml::Value, path: &str, named: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                named.insert(path.clone());
                collect(value, &path, named);
            }
        }
        toml::Value::Array(members) => members.iter().for_each(|member| collect(member, path, named)),
        _ => {}
    }
}

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}
