//! Tidelock beside nginx, docker-registry and the upstream itself: how fast it is, in ratios.
//!
//! Prints a table, and writes it as JSON: `cargo bench --bench beside`. See "Benchmarks" in `tests/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::disallowed_methods)] // it starts threads of its own

mod content;
mod load;
mod place;
#[path = "../../it/support/port.rs"]
mod port;
mod rivals;
mod table;
mod upstream;
mod works;

use std::process::ExitCode;
use std::time::Instant;

use place::Place;
use table::Table;
use works::{Scale, WORKS};

/// How to call it.
const USAGE: &str = "cargo bench --bench beside [-- [--full] [--only WORK]... [--list]]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [what, port] = &arguments[..]
        && what == upstream::CHILD
    {
        upstream::serve(port.parse().expect("a port"));
    }
    let (mut scale, mut only, mut is_bench) = (Scale::quick(), Vec::new(), false);
    let mut rest = arguments.iter().map(String::as_str);
    while let Some(argument) = rest.next() {
        match argument {
            "--bench" => is_bench = true,
            "--full" => scale = Scale::full(),
            "--list" => {
                WORKS.iter().for_each(|work| println!("{:<10} {}", work.name, work.what));
                return ExitCode::SUCCESS;
            }
            "--only"
                if rest.clone().next().is_some_and(|name| WORKS.iter().any(|work| work.name == name)) =>
            {
                only.extend(rest.next());
            }
            _ => {
                eprintln!(
                    "{argument:?} means nothing here, or is followed by nothing that --list shows: {USAGE}"
                );
                return ExitCode::FAILURE;
            }
        }
    }
    if !is_bench {
        eprintln!("this is a benchmark, for minutes: {USAGE}");
        return ExitCode::SUCCESS;
    }
    let place = match Place::new() {
        Ok(place) => place,
        Err(lack) => {
            eprintln!("{lack}");
            return ExitCode::FAILURE;
        }
    };
    let (begun, mut table) = (Instant::now(), Table::default());
    for work in WORKS.iter().filter(|work| only.is_empty() || only.contains(&work.name)) {
        (work.run)(&place, &scale, &mut table);
        eprintln!("{}: done after {:.0?}", work.name, begun.elapsed());
    }
    println!("{table}");
    let file = place.results();
    std::fs::write(&file, table.json()).unwrap();
    println!("As JSON, with what each round gave: {}", file.display());
    ExitCode::SUCCESS
}
