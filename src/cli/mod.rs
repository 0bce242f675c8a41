//! The commands.
//!
//! A command is a function from its arguments to a `Report`: what goes to standard output and to standard
//! error, and the exit code. Only [`run`] prints, so that every command can be tested without a process.

mod ask;
mod check;
mod client;
mod explain;
mod export;
mod images;
mod import;
mod inventory;
mod keeping;
mod list;
mod man;
mod missing;
mod online;
mod options;
mod references;
mod refresh;
mod report;
mod rollback;
mod scrub;
mod serve;
mod show;
mod status;
mod warm;
mod words;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use self::ask::ImageArgs;
use self::check::CheckArgs;
use self::client::ClientArgs;
use self::export::ExportArgs;
use self::import::ImportArgs;
use self::inventory::InventoryArgs;
use self::list::ListArgs;
use self::man::ManArgs;
use self::missing::MissingArgs;
use self::options::Options;
use self::report::Report;
use self::rollback::RollbackArgs;
use self::scrub::ScrubArgs;
use self::show::ShowArgs;
use self::status::StatusArgs;
use self::warm::WarmArgs;
use crate::config::{Config, Faults};

/// The default configuration, as `tidelock config --defaults` prints it.
const EXAMPLE: &str = include_str!("../../config.example.toml");

const EXIT_CODES: &str = "Settings: a flag wins over the environment, that over the file, that over the default.\n\
                          Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.";

/// A pull-through caching mirror for container images.
///
/// Without a command it serves. Without a configuration file it mirrors docker.io, ghcr.io, quay.io,
/// registry.k8s.io, gcr.io, mcr.microsoft.com and public.ecr.aws on 127.0.0.1:5000.
#[derive(Debug, Parser)]
#[command(name = "tidelock", version, after_help = EXIT_CODES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the mirror (what happens without a command)
    Serve,
    /// Validate the configuration, all faults at once
    Check(CheckArgs),
    /// Print the configuration that holds, passwords masked
    Config {
        /// Print the default configuration with its comments instead
        #[arg(long)]
        defaults: bool,
    },
    /// Print the configuration that points a client at this mirror
    Client(ClientArgs),
    /// Why a pull would hit, wait, be stale or miss, and who would pay; asks the running mirror, spends nothing
    Explain(ImageArgs),
    /// The running mirror at a glance: hits, bytes saved, fetches, budgets, troubles
    Status(StatusArgs),
    /// What the running mirror remembers: each tag, what it means, and what of that is here
    List(ListArgs),
    /// Ask the upstream now what a tag means, however fresh it is; a free question unless the tag has moved
    Refresh(ImageArgs),
    /// What an image consists of, and what of that is here; or what its tag meant before
    Show(ShowArgs),
    /// Serve a tag as what it meant once, whatever the upstream says, until it is released
    Rollback(RollbackArgs),
    /// Serve a tag as the upstream has it again
    Release(ImageArgs),
    /// Keep an image from eviction, also what its tag means later
    Pin(ImageArgs),
    /// Let it be evicted when its turn comes
    Unpin(ImageArgs),
    /// Take an image out of the cache; layers that others need stay
    Remove(ImageArgs),
    /// Fetch images ahead, whole, with what refers to them; what is here is not fetched again. Without an image: what the
    /// rounds of [[warm]] came to
    Warm(WarmArgs),
    /// Carry images out as a bundle: an OCI layout with checksums, in a tar or a folder, whole or as a delta
    Export(ExportArgs),
    /// Carry images in from a bundle or any OCI layout; an image is served once all of it is there and right
    Import(ImportArgs),
    /// What clients asked for in vain while nobody could be asked for it; `tidelock export --from` takes the list
    Missing(MissingArgs),
    /// The digest of everything that is here, for `tidelock export --have` on the other side
    Inventory(InventoryArgs),
    /// Hash anew what the running mirror keeps; what is damaged is taken out and fetched anew at the next pull
    Scrub(ScrubArgs),
    /// Print the manual page, or write all of them
    Man(ManArgs),
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the program with the arguments and environment of this process.
pub fn run() -> ExitCode {
    let report = match Cli::try_parse() {
        Ok(cli) => execute(&cli),
        Err(error) => {
            // Help and version come this way too, and belong on standard output. A failure to print them
            // leaves nothing to be done.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    // Whoever reads may have gone (`tidelock config | head`), which is no failure of ours.
    let _ = std::io::stdout().write_all(report.out.as_bytes());
    let _ = std::io::stderr().write_all(report.err.as_bytes());
    ExitCode::from(report.code)
}

fn execute(cli: &Cli) -> Report {
    let asked = |command: fn(&ImageArgs, &Config) -> Report, arguments| {
        cli.options.load().map(|config| command(arguments, &config))
    };
    let outcome = match &cli.command {
        None | Some(Command::Serve) => serve::serve(&cli.options),
        Some(Command::Check(arguments)) if arguments.online => {
            Ok(check::check(cli.options.load_online(), *arguments))
        }
        Some(Command::Check(arguments)) => Ok(check::check(cli.options.load(), *arguments)),
        Some(Command::Config { defaults: true }) => Ok(Report::done(EXAMPLE)),
        Some(Command::Config { defaults: false }) => {
            cli.options.load().map(|config| Report::done(config.to_toml()))
        }
        Some(Command::Client(arguments)) => {
            cli.options.load().map(|config| client::client(arguments, &config))
        }
        Some(Command::Explain(arguments)) => asked(explain::explain, arguments),
        Some(Command::Status(arguments)) => {
            cli.options.load().map(|config| status::status(arguments, &config))
        }
        Some(Command::List(arguments)) => cli.options.load().map(|config| list::list(arguments, &config)),
        Some(Command::Show(arguments)) => cli.options.load().map(|config| show::show(arguments, &config)),
        Some(Command::Rollback(arguments)) => {
            cli.options.load().map(|config| rollback::rollback(arguments, &config))
        }
        Some(Command::Release(arguments)) => asked(rollback::release, arguments),
        Some(Command::Refresh(arguments)) => asked(refresh::refresh, arguments),
        Some(Command::Pin(arguments)) => asked(keeping::pin, arguments),
        Some(Command::Unpin(arguments)) => asked(keeping::unpin, arguments),
        Some(Command::Remove(arguments)) => asked(keeping::remove, arguments),
        Some(Command::Scrub(arguments)) => cli.options.load().map(|config| scrub::scrub(arguments, &config)),
        Some(Command::Warm(arguments)) => cli.options.load().map(|config| warm::warm(arguments, &config)),
        Some(Command::Export(arguments)) => {
            cli.options.load().map(|config| export::export(arguments, &config))
        }
        Some(Command::Import(arguments)) => {
            cli.options.load().map(|config| import::import(arguments, &config))
        }
        Some(Command::Missing(arguments)) => {
            cli.options.load().map(|config| missing::missing(arguments, &config))
        }
        Some(Command::Inventory(arguments)) => {
            cli.options.load().map(|config| inventory::inventory(arguments, &config))
        }
        Some(Command::Man(arguments)) => Ok(man::man(arguments, Cli::command())),
        Some(Command::Completions { shell }) => Ok(completions(*shell)),
    };
    outcome.unwrap_or_else(|faults: Faults| Report::refused(&faults))
}

fn completions(shell: Shell) -> Report {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidelock", &mut script);
    Report::done(String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
