//! The command line: one file per verb; the only place that prints, and that knows exit codes.

use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser};
use tracing_subscriber::EnvFilter;

use crate::units;

pub mod apply;
pub mod confirm;
mod context;
pub mod diff;
pub mod doctor;
pub mod drift;
pub mod explain;
pub mod export;
pub mod format;
pub mod init;
pub mod inspect;
pub mod lab;
mod notify;
mod orders;
pub mod plan;
pub mod probe;
mod reference;
pub mod restore;
pub mod run;
mod saved;
pub mod schema;
pub mod simulate;
pub mod snapshot;
pub mod source;
pub mod test;
mod trial;
pub mod validate;

/// What the process ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    /// An error.
    Error = 1,
    /// `--detailed-exitcode`: there are changes; `drift`: there is some.
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
        Self::new(Exit::Error, format!("{doing}: {}", units::chain(cause)))
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

/// Software-defined WAN on plain Linux, driven from Git
#[derive(Debug, Parser)]
#[command(name = "patronus", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Validate(validate::Args),
    Plan(plan::Args),
    Diff(diff::Args),
    Snapshot(snapshot::Args),
    Apply(apply::ApplyArgs),
    Confirm(confirm::ConfirmArgs),
    Rollback(confirm::RollbackArgs),
    Restore(restore::Args),
    Teardown(apply::TeardownArgs),
    Drift(drift::Args),
    Explain(explain::Args),
    Doctor(doctor::Args),
    Run(run::Args),
    Status(inspect::StatusArgs),
    Get(inspect::GetArgs),
    Events(inspect::EventsArgs),
    History(inspect::HistoryArgs),
    Source(source::SourceArgs),
    Suspend(source::SuspendArgs),
    Resume(source::ResumeArgs),
    Reconcile(source::ReconcileArgs),
    Export(export::Args),
    Schema(schema::Args),
    Init(init::Args),
    Fmt(format::Args),
    Test(test::Args),
    Probe(probe::ProbeArgs),
    Simulate(simulate::Args),
    Failover(orders::FailoverArgs),
    Failback(orders::FailbackArgs),
    Drain(orders::DrainArgs),
    Undrain(orders::UndrainArgs),
    Notify(notify::Args),
    Lab(lab::LabArgs),
    Completions(reference::CompletionsArgs),
    Man(reference::ManArgs),
    #[command(hide = true)]
    WatchConfirmation(trial::WatchArgs),
}

/// Runs the command line of this process to its end.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to say when the terminal is gone.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Exit::Usage as u8 } else { 0 });
        }
    };
    log(matches!(cli.verb, Verb::Run(_)));
    match run(cli.verb) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "patronus: {}", failure.message);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Logs go to standard error: text, or JSON with `PATRONUS_LOG_FORMAT=json`; `PATRONUS_LOG` filters them as
/// `RUST_LOG` does elsewhere.
fn log(daemon: bool) {
    let default = if daemon { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("PATRONUS_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    // The global subscriber is set once, here.
    let _ = match std::env::var("PATRONUS_LOG_FORMAT").as_deref() {
        Ok("json") => builder.json().try_init(),
        _ => builder.with_target(false).try_init(),
    };
}

fn run(verb: Verb) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::error("cannot start", &e))?;
    let outcome = runtime.block_on(async {
        match verb {
            Verb::Validate(args) => validate::run(&args),
            Verb::Plan(args) => plan::run(args).await,
            Verb::Diff(args) => diff::run(&args),
            Verb::Snapshot(args) => snapshot::run(args).await,
            Verb::Apply(args) => apply::apply(args).await,
            Verb::Confirm(args) => confirm::confirm(args).await,
            Verb::Rollback(args) => confirm::rollback(args).await,
            Verb::WatchConfirmation(args) => trial::watch(args).await,
            Verb::Restore(args) => restore::run(&args),
            Verb::Teardown(args) => apply::teardown(args).await,
            Verb::Run(args) => Box::pin(run::run(args)).await,
            Verb::Drift(args) => drift::run(args).await,
            Verb::Explain(args) => Box::pin(explain::run(args)).await,
            Verb::Doctor(args) => doctor::run(args).await,
            Verb::Status(args) => inspect::status(args).await,
            Verb::Get(args) => inspect::get(args).await,
            Verb::Events(args) => inspect::events(args).await,
            Verb::History(args) => inspect::history(args).await,
            Verb::Source(args) => source::source(args).await,
            Verb::Suspend(args) => source::suspend(args).await,
            Verb::Resume(args) => source::resume(args).await,
            Verb::Reconcile(args) => source::reconcile(args).await,
            Verb::Export(args) => export::run(&args),
            Verb::Schema(args) => schema::run(&args),
            Verb::Init(args) => init::run(&args),
            Verb::Fmt(args) => format::run(&args),
            Verb::Test(args) => test::run(&args),
            Verb::Probe(args) => probe::run(args).await,
            Verb::Simulate(args) => simulate::run(&args),
            Verb::Failover(args) => orders::failover(args).await,
            Verb::Failback(args) => orders::failback(args).await,
            Verb::Drain(args) => orders::drain(args).await,
            Verb::Undrain(args) => orders::undrain(args).await,
            Verb::Notify(args) => notify::run(args).await,
            Verb::Lab(args) => lab::run(&args, &context::sites),
            Verb::Completions(args) => reference::completions(&args),
            Verb::Man(args) => reference::man(&args),
        }
    });
    // A thread that hangs on a dead disk must not keep the process from ending.
    runtime.shutdown_background();
    outcome
}

/// The command line's own description, for completions, manual pages and the reference.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_verb_that_asks_the_daemon_takes_its_socket_in_the_same_two_ways() {
        let all = super::command();
        for verb in [
            "status",
            "get",
            "events",
            "history",
            "source",
            "suspend",
            "resume",
            "reconcile",
            "confirm",
            "rollback",
            "failover",
            "failback",
            "drain",
            "undrain",
            "probe",
            "explain",
            "drift",
            "doctor",
            "run",
        ] {
            let command = all.find_subcommand(verb).unwrap();
            let socket = command.get_arguments().find(|arg| arg.get_long() == Some("socket"));
            let variable = socket.and_then(|arg| arg.get_env()).and_then(std::ffi::OsStr::to_str);
            assert_eq!(variable, Some("PATRONUS_SOCKET"), "{verb}");
        }
    }
}
