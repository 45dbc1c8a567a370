//! `patronus validate`: all that is wrong with a tree, without kernel and network.

use std::{
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{Exit, Failure, Outcome};
use crate::{
    config::{self, Config, MAX_FILE, MAX_FILES, MAX_TREE, Snapshot},
    diag::{self, CODES, Diagnostic, Severity},
    settings::Settings,
    units::{Name, plural},
    validate::{self, Options, intent::Intent},
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
    /// Show only what concerns this site, and fail unless it is there.
    #[arg(long, value_name = "SITE")]
    site: Option<Name>,
    /// Settings of a router, whose ranges and protected prefixes count.
    #[arg(long, value_name = "FILE", env = "PATRONUS_CONFIG")]
    config: Option<PathBuf>,
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
    let options = options(args)?;
    let snapshot = read(&args.paths)?;
    let (config, mut found) = config::load(&snapshot);
    let (intent, more) = validate::check_with(&config, &options);
    found.extend(more);
    diag::sort(&mut found);
    let all = found.len();
    if let Some(site) = &args.site {
        exists(site, &config)?;
        found.retain(|found| found.is_about(site));
    }
    let summary = Summary::of(&config, intent.as_ref(), &found, all);
    print(args.output, &config, &found, &summary)
        .map_err(|error| Failure::error("cannot print the findings", &error))?;
    Ok(if intent.is_some() { Exit::Done } else { Exit::Config })
}

/// What the settings say that bears on the configuration; without settings, the defaults.
fn options(args: &Args) -> Result<Options, Failure> {
    let Some(path) = &args.config else { return Ok(Options::default()) };
    let settings = Settings::load(Some(path), |_| None)
        .map_err(|error| Failure { exit: Exit::Settings, ..Failure::error("reading the settings", &error) })?;
    Ok(settings.check_options())
}

fn exists(site: &Name, config: &Config) -> Result<(), Failure> {
    let sites = config.site_names();
    if sites.contains(&site) {
        return Ok(());
    }
    let near = diag::suggest(site.as_str(), sites.iter().map(|name| name.as_str()));
    let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    Err(Failure::new(Exit::Config, format!("the configuration has no site `{site}`{near}")))
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

fn print(form: Form, config: &Config, found: &[Diagnostic], summary: &Summary) -> std::io::Result<()> {
    let sources = config.sources();
    // The stream drops the styles again where NO_COLOR or a non-terminal asks for it.
    let mut out = anstream::stdout();
    match form {
        Form::Text => out.write_all(diag::terminal(found, sources, true).as_bytes())?,
        Form::Json => {
            let mut value = diag::json(found, sources);
            value["summary"] = serde_json::to_value(summary)?;
            writeln!(out, "{value:#}")?;
        }
        Form::Sarif => writeln!(out, "{:#}", diag::sarif(found, sources))?,
        Form::Github => out.write_all(diag::github(found, sources).as_bytes())?,
    }
    out.flush()?;
    if form != Form::Json {
        // The findings are out; a closed standard error takes nothing from them.
        let _ = writeln!(std::io::stderr(), "{summary}");
    }
    Ok(())
}

/// What it adds up to.
#[derive(serde::Serialize)]
struct Summary {
    /// Whether the whole configuration may be applied.
    valid: bool,
    errors: usize,
    warnings: usize,
    /// Findings that do not concern the site that was asked for.
    elsewhere: usize,
    files: usize,
    sites: usize,
    objects: usize,
}

impl Summary {
    fn of(config: &Config, intent: Option<&Intent>, found: &[Diagnostic], all: usize) -> Self {
        let errors = found.iter().filter(|d| d.severity == Severity::Error).count();
        Self {
            valid: intent.is_some(),
            errors,
            warnings: found.len() - errors,
            elsewhere: all - found.len(),
            files: config.sources().len(),
            sites: config.site_names().len(),
            objects: config.objects(),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = plural(self.files, "file");
        if self.valid {
            write!(f, "valid: {}, {} in {files}", plural(self.sites, "site"), plural(self.objects, "object"))?;
            if self.sites == 0 {
                f.write_str("; without a site no router would take any of it")?;
            }
        } else {
            write!(f, "not valid: {} in {files}", plural(self.errors, "error"))?;
        }
        if self.warnings > 0 {
            write!(f, ", {}", plural(self.warnings, "warning"))?;
        }
        if self.elsewhere > 0 {
            write!(f, "; {} elsewhere", plural(self.elsewhere, "finding"))?;
        }
        let explain = self.errors + self.warnings > 0;
        if explain { f.write_str("; `patronus validate --explain CODE` says more") } else { Ok(()) }
    }
}

/// Reads all configuration files under the given paths.
pub fn read(paths: &[PathBuf]) -> Result<Snapshot, Failure> {
    let mut walk = Walk::default();
    for path in paths {
        super::context::warn_of_refused(path);
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
        if is_yaml(path) {
            self.file(path, meta.len())?;
        } else if named {
            let message = format!("{} is neither *.yaml nor *.yml, and would not be read", path.display());
            return Err(Failure::new(Exit::Usage, message));
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, size: u64) -> Result<(), Failure> {
        self.total += size.min(MAX_FILE as u64);
        if self.total > MAX_TREE as u64 || self.snapshot.files.len() >= MAX_FILES {
            let message = format!("more than {MAX_FILES} files or {MAX_TREE} bytes: this is no configuration tree");
            return Err(Failure::new(Exit::Config, message));
        }
        let name = path.strip_prefix(".").unwrap_or(path).to_string_lossy().into_owned();
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
