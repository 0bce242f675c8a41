//! The pages say what the program does: the example configuration, and the snippets in README.md.

use std::collections::BTreeSet;
use std::path::Path;

use tidelock::config::Config;

use crate::support::house::House;
use crate::support::registry::FakeRegistry;

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

/// A fenced block of README.md.
struct Block {
    /// The file that the line above names first, where it names one.
    file: Option<String>,
    language: String,
    text: String,
}

#[test]
fn the_readme_shows_configurations_that_load() {
    let blocks = blocks(&page("README.md"));
    let ours: Vec<&Block> =
        blocks.iter().filter(|block| block.text.starts_with("# tidelock.toml\n")).collect();
    assert!(ours.len() >= 3, "they begin with `# tidelock.toml`");
    for Block { text, .. } in ours {
        Config::from_toml("README.md", text).unwrap_or_else(|faults| panic!("\n{faults}\n{text}"));
    }
}

/// Every toml, json and yaml block is either ours or a client's, and then an extract of what `tidelock client`
/// prints for the file that the line above names.
#[test]
fn the_readme_agrees_with_the_client_command() {
    let names = ["docker", "containerd", "podman", "buildkit", "k3s"];
    let files: Vec<(String, String)> = names.iter().flat_map(|name| crate::cli::client(name, &[])).collect();
    let mut seen = BTreeSet::new();
    for Block { file, language, text } in blocks(&page("README.md")) {
        if language == "sh" || text.starts_with("# tidelock.toml\n") {
            continue;
        }
        let path = file.unwrap_or_else(|| panic!("the line above names the file:\n{text}"));
        let (_, body) = files.iter().find(|(known, _)| *known == path).unwrap_or_else(|| panic!("{path}"));
        let mut lines = body.lines();
        for line in text.lines() {
            assert!(lines.any(|printed| printed == line), "{path}: `{line}` is not in\n{body}");
        }
        seen.insert(path);
    }
    assert_eq!(seen.len(), names.len(), "{seen:?}");
}

/// The README shows no command and no flag that the program does not have.
#[test]
fn the_readme_names_only_commands_that_exist() {
    let readme = page("README.md");
    let in_text = readme.split("`tidelock ").skip(1).filter_map(|rest| rest.split('`').next());
    let in_blocks = readme.lines().filter_map(|line| line.strip_prefix("tidelock "));
    let calls: Vec<&str> = in_text.chain(in_blocks).collect();
    assert!(calls.len() > 10, "{calls:?}");
    for call in calls {
        let words: Vec<&str> =
            call.split_whitespace().take_while(|word| !matches!(*word, ">" | "#")).collect();
        let command = words.first().filter(|word| !word.starts_with("--"));
        let help = crate::cli::printed(&[command.copied().as_slice(), &["--help"]].concat());
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "tidelock {call}");
        }
    }
}

/// The fenced blocks of a page, each with the file that the paragraph above begins with or names first.
fn blocks(page: &str) -> Vec<Block> {
    let (mut found, mut paragraph, mut begins) = (Vec::new(), "", true);
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n"));
            let file = paragraph.split('`').nth(1).filter(|path| path.starts_with('/')).map(str::to_owned);
            found.push(Block { file, language: language.to_owned(), text: text.collect() });
        } else if begins {
            paragraph = line;
        }
        begins = line.is_empty();
    }
    found
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

/// The rows of a table behind a heading of `deploy/README.md`, each as its first cell's words in backticks.
fn table(page: &str, heading: &str) -> BTreeSet<String> {
    let (_, rest) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("{heading}"));
    let rows =
        rest.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = rows.skip(2).map(|row| row.split('|').nth(1).unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

#[test]
fn the_operators_page_names_every_key() {
    let keys = Config::keys();
    let leaves = keys.iter().filter(|key| !keys.iter().any(|other| other.starts_with(&format!("{key}."))));
    assert_eq!(table(&page("deploy/README.md"), "Every key"), leaves.cloned().collect());
}

#[tokio::test]
async fn the_operators_page_names_every_metric_and_its_labels() {
    let fake = FakeRegistry::start().await;
    let house = House::with(&fake, |config| {
        let text = "[[warm]]\nname = \"a\"\nimages = [\"app\"]\n";
        config.warm = Config::from_toml("a.toml", text).unwrap().warm;
    });
    let house = house.await;
    let exposed = house.admin().get("/metrics").await.text();
    let names = exposed.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let names: BTreeSet<String> = names.map(str::to_owned).collect();
    let page = page("deploy/README.md");
    assert_eq!(table(&page, "Every metric"), names);
    for name in names {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).unwrap();
        let told: BTreeSet<&str> = row.split('|').nth(3).unwrap().split('`').skip(1).step_by(2).collect();
        let series = exposed.lines().filter(|line| {
            let own = line.strip_prefix(&name).unwrap_or("-");
            own.starts_with(['{', ' ']) || own.starts_with("_bucket{")
        });
        let labels = series.flat_map(|line| {
            let inside = line
                .split_once('{')
                .and_then(|(_, rest)| rest.rsplit_once('}'))
                .map_or("", |(labels, _)| labels);
            inside.split("\",").filter_map(|label| label.split_once('=')).map(|(label, _)| label)
        });
        let labels: BTreeSet<&str> = labels.filter(|label| *label != "le").collect();
        assert!(labels.is_empty() || labels == told, "{name}: {labels:?}, told {told:?}");
    }
}

/// What an alert is about stands in the table by symptom.
#[test]
fn the_operators_page_names_every_alert() {
    let (page, alerts) = (page("deploy/README.md"), page("deploy/prometheus/alerts.yml"));
    let names: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}
