//! `patronus completions` and `patronus man`.

use std::{fs, io, path::PathBuf};

use clap_complete::Shell;

use super::{Exit, Failure, Outcome, command};

/// Print completions for a shell
#[derive(Debug, Clone, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write the manual pages into a directory
#[derive(Debug, Clone, clap::Args)]
pub struct ManArgs {
    /// The directory, made if it is missing
    dir: PathBuf,
}

/// Runs `completions`.
#[expect(clippy::unnecessary_wraps, reason = "every verb returns an `Outcome`")]
pub fn completions(args: &CompletionsArgs) -> Outcome {
    clap_complete::generate(args.shell, &mut command(), "patronus", &mut io::stdout());
    Ok(Exit::Done)
}

/// Runs `man`.
pub fn man(args: &ManArgs) -> Outcome {
    let doing = format!("cannot write manual pages to {}", args.dir.display());
    fs::create_dir_all(&args.dir).map_err(|e| Failure::error(&doing, &e))?;
    clap_mangen::generate_to(command(), &args.dir).map_err(|e| Failure::error(&doing, &e))?;
    Ok(Exit::Done)
}
