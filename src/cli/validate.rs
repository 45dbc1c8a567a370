//! `patronus validate`: all that is wrong with a tree, without kernel and network.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{Exit, Failure, Outcome};
use crate::{
    config::{self, Config, MAX_FILE, MAX_FILES, MAX_TREE, Snapshot},
    diag::{self, CODES, Diagnostic, Severity},
    units::Name,
    validate::{self, intent::Intent},
};

/// Check configuration files: syntax, schema, references, addressing, policies, failover, probing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and directories; directories are searched for `*.yaml` and `*.yml`.
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<PathBuf>,
    /// How findings are printed.
    #[arg(long, value_enum, default_value_t)]
    output: Form,
    /// Fail unless this site is there.
    #[arg(long, value_name = "SITE")]
    site: Option<Name>,
    /// Explain a code, such as `PAT0402`, and end.
    #[arg(long, value_name = "CODE")]
    explain: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// For people.
    #[default]
    Text,
    /// One JSON value with a `format_version`.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// Annotations of GitHub, Gitea and Forgejo workflows.
    Github,
}

/// Validates and prints what was found.
pub fn run(args: &Args) -> Outcome {
    if let Some(code) = &args.explain {
        return explain(code);
    }
    let snapshot = read(&args.paths)?;
    let (config, mut found) = config::load(&snapshot);
    let (intent, more) = validate::check(&config);
    found.extend(more);
    diag::sort(&mut found);
    print(args, &config, &found).map_err(|error| Failure::error("cannot print the findings", &error))?;
    if let (Some(site), Some(intent)) = (&args.site, &intent)
        && !intent.sites().contains_key(site)
    {
        return Err(Failure::new(Exit::Config, format!("the configuration has no site `{site}`")));
    }
    if args.output == Form::Text {
        summary(&config, intent.as_ref(), &found);
    }
    Ok(if intent.is_some() { Exit::Done } else { Exit::Config })
}

fn explain(code: &str) -> Outcome {
    let info = CODES.iter().find(|info| info.code.eq_ignore_ascii_case(code));
    let Some(info) = info else {
        let (first, last) = (CODES[0].code, CODES[CODES.len() - 1].code);
        return Err(Failure::new(Exit::Usage, format!("`{code}` is not a code; they go from {first} to {last}")));
    };
    let text = format!("{}: {}\n\n{}\n", info.code, info.title, info.explanation);
    anstream::stdout().write_all(text.as_bytes()).map_err(|error| Failure::error("cannot print", &error))?;
    Ok(Exit::Done)
}

fn print(args: &Args, config: &Config, found: &[Diagnostic]) -> std::io::Result<()> {
    let sources = config.sources();
    // The stream drops the styles again where NO_COLOR or a non-terminal asks for it.
    let mut out = anstream::stdout();
    match args.output {
        Form::Text => out.write_all(diag::terminal(found, sources, true).as_bytes()),
        Form::Json => writeln!(out, "{:#}", diag::json(found, sources)),
        Form::Sarif => writeln!(out, "{:#}", diag::sarif(found, sources)),
        Form::Github => out.write_all(diag::github(found, sources).as_bytes()),
    }
}

fn summary(config: &Config, intent: Option<&Intent>, found: &[Diagnostic]) {
    let errors = found.iter().filter(|d| d.severity == Severity::Error).count();
    let files = config.sources().len();
    let counted = [(errors, "error"), (found.len() - errors, "warning"), (files, "file")];
    let [errors, warnings, files] = counted.map(|(n, word)| format!("{n} {word}{}", if n == 1 { "" } else { "s" }));
    let mut text = format!("{errors}, {warnings} in {files}");
    if let Some(intent) = intent {
        text.push_str(&format!(": {} sites, {} objects are valid", intent.sites().len(), config.objects()));
    }
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Reads all configuration files under the given paths.
pub fn read(paths: &[PathBuf]) -> Result<Snapshot, Failure> {
    let mut walk = Walk::default();
    for path in paths {
        walk.path(path, path.is_file())?;
    }
    if walk.snapshot.files.is_empty() {
        let shown: Vec<_> = paths.iter().map(|path| path.display()).collect();
        let message = format!("no *.yaml or *.yml file in {}", diag::listed(&shown, 5));
        return Err(Failure::new(Exit::Config, message));
    }
    Ok(walk.snapshot)
}

#[derive(Default)]
struct Walk {
    snapshot: Snapshot,
    total: u64,
}

impl Walk {
    fn path(&mut self, path: &Path, named: bool) -> Result<(), Failure> {
        let doing = |path: &Path| format!("cannot read {}", path.display());
        let meta = fs::metadata(path).map_err(|error| Failure::error(doing(path), &error))?;
        if meta.is_dir() {
            let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let mut entries = entries.map_err(|error| Failure::error(doing(path), &error))?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let hidden = entry.file_name().to_string_lossy().starts_with('.');
                // A linked directory could lead back up; a linked file is read like any other.
                let looping = entry.file_type().is_ok_and(|t| t.is_symlink()) && entry.path().is_dir();
                if !hidden && !looping && (entry.path().is_dir() || is_yaml(&entry.path())) {
                    self.path(&entry.path(), false)?;
                }
            }
            return Ok(());
        }
        if named || is_yaml(path) {
            self.file(path, meta.len())?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, size: u64) -> Result<(), Failure> {
        self.total += size.min(MAX_FILE as u64);
        if self.total > MAX_TREE as u64 || self.snapshot.files.len() >= MAX_FILES {
            let message = format!("more than {MAX_FILES} files or {MAX_TREE} bytes: this is no configuration tree");
            return Err(Failure::new(Exit::Config, message));
        }
        let mut name = path.strip_prefix(".").unwrap_or(path).to_string_lossy().into_owned();
        if !is_yaml(path) {
            name.push_str(".yaml");
        }
        // One byte more than allowed is enough for the loader to refuse it.
        let mut bytes = Vec::new();
        let read = fs::File::open(path).and_then(|file| {
            std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_FILE as u64 + 1), &mut bytes)
        });
        read.map_err(|error| Failure::error(format!("cannot read {}", path.display()), &error))?;
        self.snapshot.files.insert(name, bytes);
        Ok(())
    }
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "yaml" || end == "yml")
}
