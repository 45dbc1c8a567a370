//! `patronus fmt`: files in their canonical form, comments kept.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::{Exit, Failure, Outcome, validate};
use crate::config::format::{FormatError, format};

/// Bring configuration files into one form: indentation, spaces, quotes; comments stay
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Files and directories; directories are searched for `*.yaml` and `*.yml`
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<PathBuf>,
    /// Change nothing; name the files that are not in this form, and end with status 1 if there are any
    #[arg(long)]
    check: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    let (mut changed, mut broken) = (0, 0);
    for (name, bytes) in validate::read(&args.paths)?.files {
        let file = Path::new(&name);
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::new(Exit::Config, format!("{name} is not UTF-8; nothing of it was changed")))?;
        match format(&text) {
            Ok(formatted) if formatted == text => {}
            Ok(formatted) => {
                changed += 1;
                say(&format!("{}\n", file.display()));
                if !args.check {
                    replace(file, &formatted)
                        .map_err(|error| Failure::error(format!("cannot write {}", file.display()), &error))?;
                }
            }
            Err(error) => {
                broken += usize::from(error == FormatError::Invalid);
                // The other files are formatted all the same.
                let _ = writeln!(io::stderr(), "patronus: {} is left as it is: {error}", file.display());
            }
        }
    }
    Ok(match (broken, changed) {
        (1.., _) => Exit::Config,
        (0, 1..) if args.check => Exit::Error,
        _ => Exit::Done,
    })
}

fn say(text: &str) {
    // A reader that went away is no error.
    let _ = anstream::stdout().write_all(text.as_bytes());
}

/// Writes beside, with the same permissions, and renames: whoever reads sees the old file or the new one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    // Through a link to what it leads to: the link stays.
    let file = fs::canonicalize(file)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let beside = file.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = fs::write(&beside, text)
        .and_then(|()| fs::set_permissions(&beside, fs::metadata(&file)?.permissions()))
        .and_then(|()| fs::rename(&beside, &file));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_are_checked_then_formatted_then_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, "a:   1 # why\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let run = |check| run(&Args { paths: vec![dir.path().to_owned()], check }).unwrap();
        assert_eq!(run(true), Exit::Error);
        assert_eq!(fs::read_to_string(&file).unwrap(), "a:   1 # why\n", "--check writes nothing");
        assert_eq!(run(false), Exit::Done);
        assert_eq!(fs::read_to_string(&file).unwrap(), "a: 1 # why\n");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(run(true), Exit::Done);
        fs::write(dir.path().join("b.yaml"), "a: [1").unwrap();
        assert_eq!(run(false), Exit::Config);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside");
    }
}
