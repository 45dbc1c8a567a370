//! The command line: one file per verb; the only place that prints, and that knows exit codes.

use std::{fmt, io::Write as _, process::ExitCode};

use clap::Parser;

pub mod inspect;
pub mod lab;
pub mod schema;
pub mod validate;

/// What the process ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    /// An error.
    Error = 1,
    /// `--detailed-exitcode`: there are changes.
    Changes = 2,
    /// Wrong usage (`EX_USAGE`).
    Usage = 64,
    /// The configuration has errors (`EX_DATAERR`).
    Config = 65,
    /// Another Patronus holds this router (`EX_TEMPFAIL`).
    Busy = 75,
    /// A privilege is missing (`EX_NOPERM`).
    Privilege = 77,
    /// The router's own settings are wrong (`EX_CONFIG`).
    Settings = 78,
}

/// A verb that failed: what was being done, to what, and what to do next.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// One or more lines for a person.
    pub message: String,
}

impl Failure {
    /// A failure with this exit status.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// An ordinary error, with its chain of causes on one line.
    pub fn error(doing: impl fmt::Display, cause: &dyn std::error::Error) -> Self {
        let mut message = format!("{doing}: {cause}");
        let mut next = cause.source();
        while let Some(source) = next {
            message.push_str(&format!(": {source}"));
            next = source.source();
        }
        Self::new(Exit::Error, message)
    }
}

/// What every verb returns.
pub type Outcome = Result<Exit, Failure>;

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs, with a `format_version`.
    Json,
}

#[derive(Debug, Parser)]
#[command(name = "patronus", version, about = "Software-defined WAN on plain Linux, driven from Git")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {}

/// Runs the command line of this process to its end.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Exit::Usage as u8 } else { 0 });
        }
    };
    match run(cli.verb) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "patronus: {}", failure.message);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(verb: Verb) -> Outcome {
    match verb {}
}
