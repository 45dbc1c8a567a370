//! `patronus diff`: what a change of the configuration means for every site. No kernel, no privilege, no network.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{Exit, Failure, Outcome, context};
use crate::{
    config::{self, Config, Snapshot, scalars::To},
    diag::{self, Diagnostic, Severity},
    preview::{self, Preview, Side, markdown, text},
    settings::Settings,
    source::{
        self,
        local::{Local, LocalError},
    },
    units::{Name, plural},
    validate::{self, intent::Intent},
};

/// Show what a change means for every site: two revisions or directories against each other
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory, or a Git revision of the repository around the current directory
    base: String,
    /// The same, to be compared with it [default: the files in the current directory, as they are]
    head: Option<String>,
    /// Show one site only
    #[arg(long, value_name = "SITE")]
    site: Option<Name>,
    /// How the difference is printed
    #[arg(long, value_enum, default_value_t)]
    output: Form,
    /// Show every line, also of long lists
    #[arg(long)]
    all: bool,
    /// End with 2 if any router would do something else
    #[arg(long)]
    detailed_exitcode: bool,
    /// Settings of a router, whose ranges and protected prefixes count
    #[arg(long, value_name = "FILE", env = "PATRONUS_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// For people.
    #[default]
    Text,
    /// The comment of a pull request.
    Markdown,
    /// One JSON value with a `format_version`.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
}

/// One side, loaded and checked.
struct Loaded {
    label: String,
    config: Config,
    intent: Option<Intent>,
    found: Vec<Diagnostic>,
}

impl Loaded {
    fn errors(&self) -> usize {
        self.found.iter().filter(|d| d.severity == Severity::Error).count()
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    let settings = Settings::load(args.config.as_deref(), |_| None)
        .map_err(|error| Failure { exit: Exit::Settings, ..Failure::error("reading the settings", &error) })?;
    let head = load(read(args.head.as_deref())?, &settings);
    let base = load(read(Some(&args.base))?, &settings);
    let Some(head_intent) = &head.intent else { return invalid(args, &base, &head) };
    let Some(base_intent) = &base.intent else { return nothing_to_compare(args, &base, &head) };
    known(args.site.as_ref(), base_intent, head_intent)?;
    let (from, to) = (side(&base, base_intent), side(&head, head_intent));
    let mut preview = preview::compare(from, to, args.site.as_ref(), &settings.ranges)
        .map_err(|error| Failure::error("cannot compare", &error))?;
    preview.warnings = new_warnings(&base, &head);
    let shown = match args.output {
        Form::Text => text::render(&preview, args.all),
        Form::Markdown => markdown::render(&preview),
        Form::Json => pretty(&preview)?,
        Form::Sarif => format!("{:#}\n", sarif(&preview, &head)),
    };
    print(&shown)?;
    Ok(if args.detailed_exitcode && !preview.is_empty() { Exit::Changes } else { Exit::Done })
}

fn side<'a>(loaded: &'a Loaded, intent: &'a Intent) -> Side<'a> {
    Side { label: &loaded.label, intent }
}

fn print(text: &str) -> Result<(), Failure> {
    anstream::stdout().write_all(text.as_bytes()).map_err(|e| Failure::error("cannot print the difference", &e))
}

fn pretty(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::error("cannot print the difference", &e))?;
    Ok(text + "\n")
}

/// A directory if there is one of that name, else a revision; without a name, the files that are here.
fn read(what: Option<&str>) -> Result<(String, Snapshot), Failure> {
    let dir = what.unwrap_or(".");
    if Path::new(dir).is_dir() {
        context::warn_of_refused(Path::new(dir));
        let snapshot = source::read(Path::new(dir)).map_err(|e| Failure::error(format!("cannot read {dir}"), &e))?;
        let label = what.map_or_else(|| "the working tree".to_owned(), |dir| dir.trim_end_matches('/').to_owned());
        return Ok((label, snapshot));
    }
    let failed = |error: LocalError| Failure::error(format!("cannot read `{dir}`"), &error);
    let here = std::env::current_dir().map_err(|e| Failure::error("cannot find the current directory", &e))?;
    let none = || LocalError::NoRepository { dir: here.clone(), revision: dir.to_owned() };
    let local = Local::around(&here).map_err(failed)?.ok_or_else(none).map_err(failed)?;
    let snapshot = local.read(dir).map_err(failed)?;
    let short: String = snapshot.revision.chars().take(12).collect();
    let label = if snapshot.revision.starts_with(dir) { short } else { format!("{dir} ({short})") };
    Ok((label, snapshot))
}

fn load((label, snapshot): (String, Snapshot), settings: &Settings) -> Loaded {
    let (config, mut found) = config::load(&snapshot);
    let (intent, more) = validate::check_with(&config, &settings.check_options());
    found.extend(more);
    diag::sort(&mut found);
    Loaded { label, config, intent, found }
}

fn known(site: Option<&Name>, base: &Intent, head: &Intent) -> Result<(), Failure> {
    let Some(site) = site else { return Ok(()) };
    if base.sites().contains_key(site) || head.sites().contains_key(site) {
        return Ok(());
    }
    let near = diag::suggest(site.as_str(), head.sites().keys().map(Name::as_str));
    let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    Err(Failure::new(Exit::Config, format!("neither side has a site `{site}`{near}")))
}

/// The head has errors: they are the result.
fn invalid(args: &Args, base: &Loaded, head: &Loaded) -> Outcome {
    let (errors, sources) = (head.errors(), head.config.sources());
    let left = left_behind(base, head);
    let shown = match args.output {
        Form::Text => {
            let left: Vec<String> = left.iter().map(|l| format!("deleted, and still referred to: {l}\n")).collect();
            let errors = plural(errors, "error");
            let end = format!("{} is not valid: {errors}; no router would take it\n", head.label);
            diag::terminal(&head.found, sources, true) + &left.concat() + &end
        }
        Form::Markdown => {
            // What is only a warning would take the room of what has to be mended.
            let errors_only: Vec<Diagnostic> =
                head.found.iter().filter(|d| d.severity == Severity::Error).cloned().collect();
            let shown = diag::terminal(&errors_only, sources, false);
            markdown::refused(&base.label, &head.label, errors, &left, &shown)
        }
        Form::Json => {
            let mut value = diag::json(&head.found, sources);
            value["base"] = json!(base.label);
            value["head"] = json!(head.label);
            value["left_behind"] = json!(left);
            pretty(&value)?
        }
        Form::Sarif => format!("{:#}\n", diag::sarif(&head.found, sources)),
    };
    print(&shown)?;
    Ok(Exit::Config)
}

/// Deleted sites to which paths of others still lead.
fn left_behind(base: &Loaded, head: &Loaded) -> Vec<String> {
    let there: BTreeSet<&Name> = head.config.site_names().into_iter().collect();
    let gone: BTreeSet<&Name> = base.config.site_names().into_iter().filter(|n| !there.contains(n)).collect();
    let leads = head.config.paths.iter().filter_map(|path| match (&path.spec.to, &path.scope) {
        (To::Endpoint(site, _), config::Scope::Site(owner)) if gone.contains(site) => {
            Some(format!("{site}: the path {owner}/{} leads to it", path.name))
        }
        _ => None,
    });
    leads.collect()
}

/// The base has errors, so that there is nothing to compare with; the head is a cure and not a fault.
fn nothing_to_compare(args: &Args, base: &Loaded, head: &Loaded) -> Outcome {
    let sites = head.intent.as_ref().map_or(0, |intent| intent.sites().len());
    let told = format!(
        "{} is not valid ({}), so there is nothing to compare with; {} is valid and has {}",
        base.label,
        plural(base.errors(), "error"),
        head.label,
        plural(sites, "site")
    );
    let shown = match args.output {
        Form::Text => format!("{told}\n"),
        Form::Markdown => markdown::note(&told),
        Form::Json => pretty(&json!({
            "format_version": preview::FORMAT_VERSION, "base": base.label, "head": head.label, "message": told,
        }))?,
        Form::Sarif => format!("{:#}\n", diag::sarif(&head.found, head.config.sources())),
    };
    print(&shown)?;
    Ok(if args.detailed_exitcode { Exit::Changes } else { Exit::Done })
}

fn warnings(loaded: &Loaded) -> impl Iterator<Item = String> + '_ {
    let lines = loaded.found.iter().filter(|d| d.severity == Severity::Warning);
    lines.map(|d| format!("{} [{}]", d.message, d.code))
}

fn new_warnings(base: &Loaded, head: &Loaded) -> Vec<String> {
    let known: BTreeSet<String> = warnings(base).collect();
    warnings(head).filter(|w| !known.contains(w)).collect()
}

/// The head's findings, and the risks of the change where their policies stand.
fn sarif(preview: &Preview, head: &Loaded) -> Value {
    let mut log = diag::sarif(&head.found, head.config.sources());
    let mut results = Vec::new();
    for change in &preview.sites {
        results.extend(change.risks().iter().map(|r| {
            let text = format!("{} at {} {}", r.policy, change.site, r.what);
            risk(head, &change.site, r.policy, &text)
        }));
    }
    results.extend(preview.deletions.iter().map(|d| {
        let text = format!(
            "site {} is deleted and takes {} of other sites along",
            d.site,
            plural(d.elsewhere.len(), "object")
        );
        json!({"ruleId": "preview-deletion", "level": "warning", "message": {"text": text}, "locations": []})
    }));
    let rule = |id: &str, text: &str| json!({"id": id, "shortDescription": {"text": text}});
    let rules = [
        rule("preview-risk", "the change leaves a policy with less than it had"),
        rule("preview-deletion", "a site is deleted"),
    ];
    extend(&mut log["runs"][0]["tool"]["driver"]["rules"], rules);
    extend(&mut log["runs"][0]["results"], results);
    log
}

fn extend(list: &mut Value, more: impl IntoIterator<Item = Value>) {
    if let Value::Array(list) = list {
        list.extend(more);
    }
}

fn risk(head: &Loaded, site: &Name, policy: &Name, text: &str) -> Value {
    let config = &head.config;
    let labels = config.labels.get(site);
    let object = config.policies.iter().find(|o| o.name == *policy && labels.is_some_and(|l| o.scope.covers(site, l)));
    let place = object.map(|object| diag::sarif_location(&config.name(object), config.sources()));
    json!({
        "ruleId": "preview-risk", "level": "warning", "message": {"text": text},
        "locations": place.into_iter().collect::<Vec<_>>(),
    })
}
