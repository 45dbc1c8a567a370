//! `patronus doctor`: what of this machine would keep Patronus from its work, and what to do about it.

use std::{fmt::Write as _, io::Write as _, path::PathBuf};

use anstyle::{AnsiColor, Style};
use hyper::Method;
use serde::Serialize;

use super::{
    Exit, Failure, Format, Outcome,
    context::{self, RouterArgs},
    inspect,
};
use crate::{
    api::client,
    config::Snapshot,
    doctor::{
        self, Verdict,
        facts::Configuration,
        gather::{self, Asked},
    },
    engine::{router::Router, status::Status},
    settings::{self, Settings, Source},
    source,
    state::State,
};

/// Check this machine, the settings and the source before trouble comes; status 1 if something fails
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Configuration to use instead of the settings' source
    dir: Option<PathBuf>,
    #[command(flatten)]
    router: RouterArgs,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Report {
    format_version: u32,
    checks: Vec<doctor::Outcome>,
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Summary {
    ok: usize,
    warn: usize,
    fail: usize,
    skipped: usize,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let asked = asked(&args).await;
    let checks = doctor::examine(&gather::gather(asked).await);
    let report = Report::new(checks);
    let text = match args.output {
        Format::Text => report.text(),
        Format::Json => {
            let json =
                serde_json::to_string_pretty(&report).map_err(|e| Failure::error("cannot print the checks", &e))?;
            format!("{json}\n")
        }
    };
    anstream::stdout().write_all(text.as_bytes()).map_err(|e| Failure::error("cannot print the checks", &e))?;
    Ok(if report.summary.fail > 0 { Exit::Error } else { Exit::Done })
}

/// What is known before the machine is looked at. Settings that are wrong are a finding, not an end.
async fn asked(args: &Args) -> Asked {
    let (mut settings, settings_error) = match context::settings(&args.router, args.dir.clone()) {
        Ok(settings) => (settings, None),
        Err(failure) => (Settings::default(), Some(first_line(&failure.message))),
    };
    for path in [&mut settings.state_dir, &mut settings.runtime_dir, &mut settings.socket] {
        *path = absolute(path);
    }
    let named = args.router.config.clone().unwrap_or_else(|| settings::PATH.into());
    let configuration = if settings_error.is_some() { Configuration::Unnamed } else { configuration(&settings) };
    let daemon = client::ask::<Status>(&settings.socket, Method::GET, "/v1/status", inspect::PATIENCE).await.is_ok();
    let (applied, settings_file) = (applied(&settings), absolute(&named));
    Asked { root: "/".into(), settings, settings_error, settings_file, configuration, applied, daemon }
}

/// What the journal says was applied last.
fn applied(settings: &Settings) -> Option<State> {
    let router = Router::new(context::kernel().ok()?, context::ledger_to_read(settings), settings.ranges);
    router.applied().cloned()
}

fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The configuration that the settings lead to; of a Git source what was applied last.
fn configuration(settings: &Settings) -> Configuration {
    let snapshot = match &settings.source {
        None => return Configuration::Unnamed,
        Some(Source::Dir(dir)) => match source::read(dir) {
            Ok(snapshot) => snapshot,
            Err(error) => return Configuration::Unreadable(Failure::error(dir.display(), &error).message),
        },
        Some(Source::Git(_)) => match context::ledger_to_read(settings).last_good() {
            Some(good) => Snapshot { revision: good.revision, files: good.files, commit: None },
            None => return Configuration::Unfetched,
        },
    };
    match context::activate(snapshot, settings) {
        Ok(active) => Configuration::Site(active.site),
        Err(error) => Configuration::Invalid(error.lines().first().cloned().unwrap_or_default()),
    }
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect::<Vec<_>>().join(" ")
}

impl Report {
    fn new(checks: Vec<doctor::Outcome>) -> Self {
        let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
        let summary = Summary {
            ok: count(Verdict::Ok),
            warn: count(Verdict::Warn),
            fail: count(Verdict::Fail),
            skipped: count(Verdict::Skipped),
        };
        Self { format_version: 1, checks, summary }
    }

    /// One line a check; what is not ok stands at the end, where the eye is, with what to do.
    fn text(&self) -> String {
        let (mut out, bad) = (String::new(), |check: &&doctor::Outcome| check.verdict >= Verdict::Warn);
        let good = self.checks.iter().filter(|check| !bad(check));
        for check in good.chain(self.checks.iter().filter(bad)) {
            let (word, style) = mark(check.verdict);
            let _ = writeln!(out, "{style}{word}{style:#} {:<22} {}", check.id, inspect::clean(&check.says));
            for remedy in &check.remedies {
                let _ = writeln!(out, "        -> {remedy}");
            }
        }
        let Summary { ok, warn, fail, skipped } = self.summary;
        let _ = writeln!(out, "\n{ok} ok, {skipped} skipped, {warn} to look at, {fail} failed.");
        out
    }
}

const fn mark(verdict: Verdict) -> (&'static str, Style) {
    match verdict {
        Verdict::Ok => ("  ok   ", Style::new()),
        Verdict::Skipped => ("skipped", Style::new().dimmed()),
        Verdict::Warn => (" warn  ", AnsiColor::Yellow.on_default().bold()),
        Verdict::Fail => (" FAIL  ", AnsiColor::Red.on_default().bold()),
    }
}
