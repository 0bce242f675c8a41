//! `tidelock man`: manual pages, made of what `--help` says.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, ValueHint};

use super::report::Report;

/// What `man` takes.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write a page for the program and one for each command into this folder, in place of printing the program's
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: Option<PathBuf>,
}

/// Prints a page, or writes all of them.
pub(super) fn man(arguments: &ManArgs, program: Command) -> Report {
    let made = match &arguments.out {
        None => page(program).map(|page| String::from_utf8_lossy(&page).into_owned()),
        Some(folder) => write(program, folder),
    };
    made.map_or_else(|error| Report::failed(&error), Report::done)
}

fn page(command: Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

fn write(mut program: Command, folder: &Path) -> anyhow::Result<String> {
    program.build();
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let own = program.get_name().to_owned();
    let commands = program.get_subcommands().filter(|command| command.get_name() != "help").map(|command| {
        // As git and others name theirs, so that `man tidelock-list` finds it.
        let name = format!("{own}-{}", command.get_name());
        (name.clone(), command.clone().name(name))
    });
    let mut written = String::new();
    for (name, command) in [(own.clone(), program.clone())].into_iter().chain(commands) {
        let file = folder.join(format!("{name}.1"));
        std::fs::write(&file, page(command)?).with_context(|| format!("writing {}", file.display()))?;
        written += &format!("{}\n", file.display());
    }
    Ok(written)
}
