//! `patronus restore`: brings back what was written about a site that the configuration no longer has.

use std::{
    fs,
    io::{self, Write as _},
    path::{Component, Path, PathBuf},
};

use super::{
    Exit, Failure, Outcome,
    context::{self, RouterArgs},
};
use crate::{
    clock,
    store::RemovedFile,
    units::{Name, plural},
};

/// Write a deleted site back into a working tree, as it was written; without a name, list those that can come back
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What is brought back
    #[arg(value_enum)]
    kind: Kind,
    /// Its name
    name: Option<Name>,
    /// The working tree
    #[arg(long, value_name = "DIR", default_value = ".")]
    into: PathBuf,
    /// Print it instead of writing it
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    router: RouterArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// A site.
    Site,
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    let settings = context::settings(&args.router, None)?;
    let Kind::Site = args.kind;
    let removed = context::ledger_to_read(&settings).removed(clock::wall().before(settings.retention));
    let Some(name) = &args.name else { return list(&removed) };
    let files: Vec<&RemovedFile> = removed.iter().filter(|file| file.site == *name).collect();
    if files.is_empty() {
        let text = format!(
            "no site {name} was removed within the retention ({})\n  `patronus restore site` lists those that were",
            plural(settings.retention.as_secs() / 86_400, "day")
        );
        return Err(Failure::new(Exit::Error, text));
    }
    if args.print {
        let parts: Vec<String> = files.iter().map(|file| format!("# {}\n{}", file.file, file.content)).collect();
        return say(&parts.join("---\n"));
    }
    write(&files, &args.into)
}

fn say(text: &str) -> Outcome {
    io::stdout().write_all(text.as_bytes()).map_err(|e| Failure::error("cannot print", &e))?;
    Ok(Exit::Done)
}

fn list(removed: &[RemovedFile]) -> Outcome {
    if removed.is_empty() {
        return say("No site was removed.\n");
    }
    let mut lines: Vec<String> = removed.iter().map(|file| format!("{:<24} {}\n", file.site, origin(file))).collect();
    lines.dedup();
    say(&lines.concat())
}

/// When it went, with which revision, by whom.
fn origin(file: &RemovedFile) -> String {
    let who = file.who.as_ref().map(|who| format!(" by {who}")).unwrap_or_default();
    format!("removed {} with revision {}{who}", file.at, file.without)
}

/// All files or none: what is there already is never written over.
fn write(files: &[&RemovedFile], into: &Path) -> Outcome {
    if !into.is_dir() {
        let text =
            format!("there is no directory {}: create it, or name the working tree with `--into DIR`", into.display());
        return Err(Failure::new(Exit::Error, text));
    }
    let mut targets = Vec::new();
    for file in files {
        let relative = Path::new(&file.file);
        let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            let text = format!("{} would be outside of {}", file.file, into.display());
            return Err(Failure::new(Exit::Error, text));
        }
        let target = into.join(relative);
        if target.symlink_metadata().is_ok() {
            let text = format!(
                "{} is there already and was left alone: `--print` shows what to put into it, `--into DIR` writes elsewhere",
                target.display()
            );
            return Err(Failure::new(Exit::Error, text));
        }
        targets.push((target, file));
    }
    for (target, file) in &targets {
        create(target, &file.content).map_err(|e| Failure::error(format!("cannot write {}", target.display()), &e))?;
    }
    let written: Vec<String> = targets.iter().map(|(target, _)| format!("  {}\n", target.display())).collect();
    say(&format!(
        "Site {} as revision {} had it ({}):\n{}Next: patronus validate {}\n\
         What other sites had for it (tunnels to it, say) is in the history of the repository.\n",
        files[0].site,
        files[0].last,
        origin(files[0]),
        written.concat(),
        into.display()
    ))
}

fn create(target: &Path, content: &str) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::options().write(true).create_new(true).open(target)?.write_all(content.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_is_a_typing_error_and_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let typo = dir.path().join("confg");
        let failure = write(&[], &typo).unwrap_err();
        assert!(failure.message.contains("there is no directory") && !typo.exists(), "{}", failure.message);
    }
}
