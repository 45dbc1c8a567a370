//! `patronus simulate`: the recorded history of a site's paths under another configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Exit, Failure, Format, Outcome, inspect::Since, validate as files};
use crate::{
    clock::Wall,
    config::{self, Config, Snapshot},
    diag::{self, Severity},
    failover::TransitionKind,
    prove::replay::{Question, Reading, Replay, Side, Switch},
    store::{self, HealthSample, StoreError, read, read::Wanted},
    units::Name,
    validate::{
        self,
        intent::{Rule, Site, Strategy},
    },
};

mod text;

/// Play the recorded history of a site's paths under another configuration, side by side with what happened
///
/// Stored are figures once a second, not answers to probes: thresholds, classes, strategies, delays and damping are
/// played anew, another way of probing is not. Orders by hand are not replayed. The database is only read, also while a
/// daemon writes into it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The records: a state directory, or its `records.db`, or a copy of one
    #[arg(long, value_name = "DB")]
    replay: PathBuf,
    /// The configuration that is asked about; its thresholds tell in every column what was bad
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// What it is compared with, in place of the configuration in force that lies beside the records
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Not older than this: a duration such as `2h`, or a time such as `2026-05-01T03:00:00Z` [default: a day before the
    /// end]
    #[arg(long, value_name = "WHEN")]
    since: Option<Since>,
    /// Not newer than this, in the same forms [default: the newest sample]
    #[arg(long, value_name = "WHEN")]
    until: Option<Since>,
    /// The site whose records they are [default: the only one of the configuration]
    #[arg(long, value_name = "SITE", env = "PATRONUS_SITE")]
    site: Option<Name>,
    /// Print each change of path too
    #[arg(long)]
    switches: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

const DAY: Duration = Duration::from_secs(86_400);

/// A configuration with its site.
struct Played {
    /// Its name in the output.
    name: &'static str,
    /// What a person calls it.
    label: String,
    config: Config,
    site: Site,
}

/// What came of it.
struct Story<'a> {
    columns: Vec<(&'static str, String)>,
    site: &'a Name,
    since: Wall,
    until: Wall,
    samples: u64,
    sides: Vec<(Side, Option<Name>)>,
    notes: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    let file = records(&args.replay)?;
    let played = configurations(args, &file)?;
    let (first, last) = (&played[0], &played[played.len() - 1]);
    let Some((oldest, newest)) = read::span(&file).map_err(|e| unreadable(&e))? else {
        let message = format!("{} has no samples: the daemon writes one a second of each path", file.display());
        return Err(Failure::new(Exit::Error, message));
    };
    let until = args.until.map_or(newest, |until| until.0);
    let since = args.since.map_or(until.before(DAY), |since| since.0).max(oldest);
    if since >= until {
        let message =
            format!("nothing is recorded between --since and --until: the records reach from {oldest} to {newest}");
        return Err(Failure::new(Exit::Usage, message));
    }
    let switches = switches(&file, since, until).map_err(|e| unreadable(&e))?;
    let names: BTreeSet<&Name> = played.iter().flat_map(|p| p.site.rules.keys()).collect();
    let used = names.into_iter().filter_map(|rule| used(&file, rule, since).transpose());
    let question = Question {
        then: &first.site,
        plays: played.iter().map(|p| (p.name, &p.site)).collect(),
        begin: since,
        used: used.collect::<Result<_, _>>().map_err(|e| unreadable(&e))?,
        switches,
    };
    let mut replay = Replay::new(&question);
    let mut seen = BTreeSet::new();
    read::slots(&file, (since, until), |paths, end| feed(&mut replay, &mut seen, paths, end))
        .map_err(|e| unreadable(&e))?;
    let (sides, samples) = replay.finish(until);
    let mut columns = vec![("recorded", "as recorded".to_owned())];
    columns.extend(played.iter().map(|p| (p.name, p.label.clone())));
    let story = Story {
        columns,
        site: &last.site.name,
        since,
        until,
        samples,
        notes: notes(&played, &seen, &sides, &question.switches),
        sides: sides.into_iter().map(|side| (class(&played, &side.rule), side)).map(|(c, s)| (s, c)).collect(),
    };
    match args.output {
        Format::Json => print(&format!("{:#}\n", text::json(&story))),
        Format::Text => print(&text::table(&story, args.switches)),
    }
    Ok(Exit::Done)
}

/// The file that is meant; whether it is there is the first thing to know.
fn records(given: &Path) -> Result<PathBuf, Failure> {
    let file = if given.is_dir() { store::records_file(given) } else { given.to_owned() };
    let wrong = match file.metadata() {
        Ok(found) if found.is_file() => return Ok(file),
        Ok(_) => format!("{} is no file", file.display()),
        Err(error) if given.is_dir() && error.kind() == io::ErrorKind::NotFound => {
            format!("there are no records in {}: it has no records.db", given.display())
        }
        Err(error) => format!("cannot read the records {}: {error}", file.display()),
    };
    let help = "--replay takes a router's state directory (/var/lib/patronus, unless its settings name another), the \
                records.db in it, or a copy of that file";
    Err(Failure::new(Exit::Error, format!("{wrong}\n  {help}")))
}

fn unreadable(error: &StoreError) -> Failure {
    let failure = Failure::error("cannot read the records", error);
    if !error.is_corrupt() {
        return failure;
    }
    let help = "it is damaged, or no database: take the copy again; while a daemon writes, `sqlite3 records.db \
                '.backup copy.db'` makes a good one";
    Failure::new(failure.exit, format!("{}\n  {help}", failure.message))
}

fn feed(replay: &mut Replay<'_>, seen: &mut BTreeSet<Name>, paths: &[(Name, Vec<HealthSample>)], end: Wall) {
    let reading = |s: &HealthSample| Reading {
        at: s.at,
        latency: s.rtt_micros.map(Duration::from_micros),
        jitter: s.jitter_micros.map(Duration::from_micros),
        loss: s.loss,
        score: s.score,
        state: s.state,
    };
    let readings: Vec<(&Name, Vec<Reading>)> =
        paths.iter().map(|(name, samples)| (name, samples.iter().map(reading).collect())).collect();
    for (name, samples) in paths {
        if !samples.is_empty() && !seen.contains(name) {
            seen.insert(name.clone());
        }
    }
    replay.feed(readings.iter().map(|(name, readings)| (*name, readings.as_slice())), end);
}

/// The recorded changes of paths.
fn switches(file: &Path, since: Wall, until: Wall) -> Result<Vec<Switch>, StoreError> {
    let wanted = Wanted { since: Some(since), until: Some(until), only: None, limit: usize::MAX };
    let rows = read::transitions_in(file, &wanted)?.into_iter();
    Ok(rows
        .map(|t| Switch { at: t.at, rule: t.rule, from: t.from, to: t.to, kind: t.kind, reason: t.reason })
        .collect())
}

/// What a rule used at a moment, by the last change before it.
fn used(file: &Path, rule: &Name, at: Wall) -> Result<Option<(Name, Option<Name>)>, StoreError> {
    let wanted = Wanted { since: None, until: Some(at), only: Some(rule.to_string()), limit: 1 };
    Ok(read::transitions_in(file, &wanted)?.pop().map(|t| (rule.clone(), t.to)))
}

/// The configurations that are played: what it is compared with, if that is known, and what is asked about, if anything.
fn configurations(args: &Args, file: &Path) -> Result<Vec<Played>, Failure> {
    let of_dir = |dir: &PathBuf| files::read(std::slice::from_ref(dir)).map(|files| (files, dir.display().to_string()));
    let base = match &args.base {
        Some(dir) => Some(of_dir(dir).map(|(files, label)| (files, format!("base {label}")))?),
        None => in_force(file)?,
    };
    let given = args.config.as_ref().map(of_dir).transpose()?;
    let mut played = Vec::new();
    for (name, found) in [("base", base), ("given", given.map(|(files, label)| (files, format!("given {label}"))))] {
        if let Some((files, label)) = found {
            played.push(one(args, name, &files, label)?);
        }
    }
    if played.is_empty() {
        let message = format!("no configuration lies beside {}: name one with --config or --base", file.display());
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(played)
}

/// What the journal beside the records says is in force.
fn in_force(file: &Path) -> Result<Option<(Snapshot, String)>, Failure> {
    let dir = file.parent().unwrap_or(file);
    let good =
        read::last_good(dir).map_err(|error| Failure::error("cannot read the journal beside the records", &error))?;
    Ok(good.map(|good| {
        let label = format!("in force {}", good.revision.chars().take(12).collect::<String>());
        (Snapshot { revision: good.revision, files: good.files, commit: None }, label)
    }))
}

fn one(args: &Args, name: &'static str, files: &Snapshot, label: String) -> Result<Played, Failure> {
    let (config, mut found) = config::load(files);
    let (intent, more) = validate::check(&config);
    found.extend(more);
    let Some(intent) = intent else {
        found.retain(|d| d.severity == Severity::Error);
        diag::sort(&mut found);
        print(&diag::terminal(&found, config.sources(), true));
        return Err(Failure::new(Exit::Config, format!("the configuration `{label}` has errors: nothing was played")));
    };
    let sites = intent.sites();
    let only = || sites.values().next().filter(|_| sites.len() == 1);
    let site = args.site.as_ref().map_or_else(only, |site| sites.get(site));
    let Some(site) = site.cloned() else {
        let known: Vec<&Name> = sites.keys().collect();
        let message = format!(
            "the records are those of one site: name it with --site; `{label}` has {}",
            diag::listed(&known, 10)
        );
        return Err(Failure::new(Exit::Config, message));
    };
    Ok(Played { name, label, config, site })
}

/// The class of a rule, by the configuration that is asked about.
fn class(played: &[Played], rule: &Name) -> Option<Name> {
    let of = |p: &Played| {
        let covers = |scope: &config::Scope| scope.covers(&p.site.name, &p.site.labels);
        let object = p.config.rules.iter().find(|r| r.name == *rule && r.spec.enabled && covers(&r.scope))?;
        object.spec.sla_class.clone()
    };
    let knows = |p: &&Played| p.site.rules.contains_key(rule);
    played.iter().rev().find(knows).and_then(of)
}

/// What the figures cannot tell.
fn notes(played: &[Played], seen: &BTreeSet<Name>, sides: &[Side], switches: &[Switch]) -> Vec<String> {
    let (then, asked) = (&played[0].site, &played[played.len() - 1].site);
    let mut notes = Vec::new();
    if played[0].name == "given" {
        notes.push(
            "the configuration in force is not known: its thresholds are taken to be those of the given one".to_owned(),
        );
    }
    let members: BTreeSet<&Name> = asked.rules.values().flat_map(|rule| &rule.members).collect();
    let paths: BTreeMap<&Name, _> = members.into_iter().filter_map(|m| Some((m, asked.paths.get(m)?))).collect();
    for (name, path) in paths {
        let probed = !path.probe.targets.is_empty();
        if !probed {
            notes.push(format!("path {name} is not probed: it counts as up"));
        } else if !seen.contains(name) {
            notes.push(format!("path {name} is not in the record: nothing is known of it"));
        } else if then.paths.get(name).is_some_and(|old| old.probe != path.probe) {
            notes.push(format!("path {name} would be probed differently, which the record cannot show"));
        }
    }
    let unknown = sides.iter().filter(|side| side.columns.iter().all(|c| c.name != "recorded"));
    notes.extend(unknown.map(|side| format!("no change of rule {} is recorded: what it used is not known", side.rule)));
    notes.extend(asked.rules.values().filter_map(spreading));
    let by_hand = switches.iter().filter(|s| s.kind == TransitionKind::Manual).count();
    if by_hand > 0 {
        let was = if by_hand == 1 { "was" } else { "were" };
        notes.push(format!("{by_hand} of the recorded changes {was} made by hand; orders are not replayed"));
    }
    notes
}

/// What is assumed of a rule that uses several paths at a time.
fn spreading(rule: &Rule) -> Option<String> {
    let name = &rule.name;
    match rule.strategy {
        Strategy::LoadBalance => {
            Some(format!("rule {name} shares its flows: its seconds are those of the first path in use, not of all"))
        }
        Strategy::Overflow => Some(format!(
            "rule {name} overflows by load, which is not recorded: it is played as if no line were ever full, and its \
             seconds are those of the path that new flows take"
        )),
        _ => None,
    }
}

/// A reader that went away (`| head`) is no error.
fn print(text: &str) {
    let mut out = anstream::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
