//! `patronus test`: failover rules on a virtual clock, without kernel and network.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::json;

use super::{Exit, Failure, Format, Outcome, validate as files};
use crate::{
    config::{self, Config},
    diag::{self, Code, Diagnostic, Severity},
    prove::{
        failures::{self, Hit},
        trial,
    },
    units::{Name, Span, plural},
    validate::{self, intent::Intent},
};

/// Test failover rules on a virtual clock: the tests beside a configuration, or every failure of its paths
///
/// Exit status: 0 all is as expected; 1 an expectation is not met; 2 `--failures` found a policy that had a path and has
/// none; 65 the configuration or a test has errors.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files with tests; all that the configuration's directory holds if none is named
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The configuration
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Instead of tests: let every path and every uplink of every site fail (1), or every pair of them (2), and say which
    /// policy has none left
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2))]
    failures: Option<u8>,
    /// Only this site
    #[arg(long, value_name = "SITE")]
    site: Option<Name>,
    /// Write the results as `JUnit` XML too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// How results are printed
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Runs the tests, or the failures.
pub fn run(args: &Args) -> Outcome {
    let mut paths = vec![args.dir.clone()];
    paths.extend(args.files.iter().cloned());
    let (config, mut found) = config::load(&files::read(&paths)?);
    let (intent, more) = validate::check(&config);
    found.extend(more);
    let Some(intent) = intent else {
        found.retain(|d| d.severity == Severity::Error);
        diag::sort(&mut found);
        print(&diag::terminal(&found, config.sources(), true));
        let message = format!("the configuration in {} has errors: nothing was tested", args.dir.display());
        return Err(Failure::new(Exit::Config, message));
    };
    if let Some(site) = args.site.as_ref().filter(|site| !intent.sites().contains_key(*site)) {
        return Err(Failure::new(Exit::Config, format!("the configuration has no site `{site}`")));
    }
    match args.failures {
        Some(together) => Ok(fail(args, &intent, usize::from(together))),
        None => test(args, &config, &intent),
    }
}

/// A test and how long it took here.
struct Done {
    outcome: trial::Outcome,
    took: Duration,
}

fn test(args: &Args, config: &Config, intent: &Intent) -> Outcome {
    let named: Vec<String> = args.files.iter().map(|path| plain(path)).collect();
    let wanted = |file: &str| named.is_empty() || named.iter().any(|name| name == file);
    let begun = Instant::now();
    let mut done: Vec<Done> = Vec::new();
    for outcome in trial::run(config, intent, wanted) {
        let before: Duration = done.iter().map(|d| d.took).sum();
        done.push(Done { outcome, took: begun.elapsed().saturating_sub(before) });
    }
    if done.is_empty() {
        let place = if named.is_empty() { args.dir.display().to_string() } else { named.join(", ") };
        let message =
            format!("no test in {place}: write a document with `kind: FailoverTest` beside the configuration");
        return Err(Failure::new(Exit::Config, message));
    }
    let outcomes: Vec<trial::Outcome> = done.iter().map(|d| copy(&d.outcome)).collect();
    let bare = if named.is_empty() { trial::unexercised(config, intent, &outcomes) } else { Vec::new() };
    if let Some(path) = &args.junit {
        junit(path, config, &done)?;
    }
    match args.output {
        Format::Text => tell(config, &done, &bare, named.is_empty()),
        Format::Json => print(&format!("{:#}\n", as_json(config, &done, &bare))),
    }
    Ok(exit(&outcomes))
}

fn exit(outcomes: &[trial::Outcome]) -> Exit {
    let any = |broken: bool| outcomes.iter().flat_map(|o| &o.found).any(|d| (d.code == Code::Unmet) != broken);
    match (any(true), any(false)) {
        (true, _) => Exit::Config,
        (_, true) => Exit::Error,
        _ => Exit::Done,
    }
}

fn copy(o: &trial::Outcome) -> trial::Outcome {
    trial::Outcome {
        file: o.file.clone(),
        name: o.name.clone(),
        found: o.found.clone(),
        exercised: o.exercised.clone(),
        ..*o
    }
}

/// A path as the loader names files.
fn plain(path: &Path) -> String {
    path.strip_prefix(".").unwrap_or(path).to_string_lossy().into_owned()
}

fn tell(config: &Config, done: &[Done], bare: &[Diagnostic], whole: bool) {
    let mut text = String::new();
    for Done { outcome, .. } in done {
        let word = if outcome.found.is_empty() { "ok  " } else { "FAIL" };
        text += &format!("{word}  {}  {}\n", outcome.file, outcome.name);
        if !outcome.found.is_empty() {
            text += "\n";
            text += &diag::terminal(&outcome.found, config.sources(), true);
        }
    }
    if !bare.is_empty() {
        text += "\n";
        text += &diag::terminal(bare, config.sources(), true);
    }
    print(&text);
    let failed = done.iter().filter(|d| !d.outcome.found.is_empty()).count();
    let played: Duration = done.iter().map(|d| d.outcome.played).sum();
    let took: Duration = done.iter().map(|d| d.took).sum();
    let mut summary = format!(
        "{} passed, {failed} failed; {} played in {} ms",
        done.len() - failed,
        Span::from(played),
        took.as_millis()
    );
    // When only some tests are played, which rules have none is not asked.
    if whole {
        let _ = write!(summary, "; {} without a test", plural(bare.len(), "rule"));
    }
    // The results are out; a closed standard error takes nothing from them.
    let _ = writeln!(std::io::stderr(), "{summary}");
}

fn as_json(config: &Config, done: &[Done], bare: &[Diagnostic]) -> serde_json::Value {
    let tests = done.iter().map(|Done { outcome, took }| {
        json!({
            "file": outcome.file,
            "name": outcome.name,
            "passed": outcome.found.is_empty(),
            "played_seconds": outcome.played.as_secs_f64(),
            "took_seconds": took.as_secs_f64(),
            "decisions": outcome.decisions,
            "findings": diag::json(&outcome.found, config.sources())["diagnostics"],
        })
    });
    json!({
        "format_version": 1,
        "tests": tests.collect::<Vec<_>>(),
        "unexercised": diag::json(bare, config.sources())["diagnostics"],
    })
}

/// One suite per file, one case per test.
fn junit(path: &Path, config: &Config, done: &[Done]) -> Result<(), Failure> {
    let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
    for Done { outcome, took } in done {
        let status = match outcome.found.first() {
            None => TestCaseStatus::success(),
            Some(first) => {
                let broken = outcome.found.iter().any(|d| d.code != Code::Unmet);
                let kind = if broken { NonSuccessKind::Error } else { NonSuccessKind::Failure };
                let mut status = TestCaseStatus::non_success(kind);
                status.set_message(first.message.clone());
                status.set_description(diag::terminal(&outcome.found, config.sources(), false));
                status
            }
        };
        let mut case = TestCase::new(outcome.name.clone(), status);
        case.set_classname(outcome.file.clone());
        case.set_time(*took);
        suites.entry(&outcome.file).or_insert_with(|| TestSuite::new(outcome.file.clone())).add_test_case(case);
    }
    let mut report = Report::new("patronus test");
    report.add_test_suites(suites.into_values());
    let doing = || format!("cannot write {}", path.display());
    let text = report.to_string().map_err(|error| Failure::error(doing(), &error))?;
    std::fs::write(path, text).map_err(|error| Failure::error(doing(), &error))
}

fn fail(args: &Args, intent: &Intent, together: usize) -> Exit {
    let sites = intent.sites().values().filter(|site| args.site.as_ref().is_none_or(|s| *s == site.name));
    let all: Vec<failures::Failure> = sites.flat_map(|site| failures::of_site(site, together)).collect();
    let stranded: usize = all.iter().map(|f| f.stranded().count()).sum();
    match args.output {
        Format::Json => print(&format!("{:#}\n", json!({"format_version": 1, "failures": all}))),
        Format::Text => print(&all.iter().map(told).collect::<String>()),
    }
    let policies = if stranded == 1 { "1 time a policy has" } else { &format!("{stranded} times a policy has") };
    let summary = format!("{}; {policies} no path left", plural(all.len(), "failure"));
    let _ = writeln!(std::io::stderr(), "{summary}");
    if stranded > 0 { Exit::Changes } else { Exit::Done }
}

fn told(failure: &failures::Failure) -> String {
    let mut text = format!("{}: {} {}\n", failure.site, what(failure), if is_one(failure) { "fails" } else { "fail" });
    let width = failure.hit.iter().map(|hit| hit.policy.as_str().len()).max().unwrap_or_default();
    for hit in &failure.hit {
        text += &format!("  {} {:width$}  {}\n", if hit.after.is_none() { "!" } else { " " }, hit.policy, way(hit));
    }
    text
}

/// What fails: uplinks with their paths, and single paths.
fn what(failure: &failures::Failure) -> String {
    let listed = |over: &[Name]| over.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    let uplinks = failure.uplinks.iter().map(|(uplink, over)| format!("uplink {uplink} ({})", listed(over)));
    uplinks.chain(failure.alone().map(ToString::to_string)).collect::<Vec<_>>().join(" and ")
}

fn is_one(failure: &failures::Failure) -> bool {
    failure.uplinks.len() + failure.alone().count() == 1
}

fn way(hit: &Hit) -> String {
    match (&hit.after, hit.millis) {
        // Milliseconds of a minute are exact in an f64.
        #[allow(clippy::cast_precision_loss)]
        (Some(after), Some(ms)) => format!("{} -> {after} after {:.1} s", hit.before, ms as f64 / 1000.0),
        (Some(after), None) => format!("{} -> {after}", hit.before),
        (None, _) => format!("{} -> no path that works", hit.before),
    }
}

/// A reader that went away (`| head`) is no error.
fn print(text: &str) {
    let mut out = anstream::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
