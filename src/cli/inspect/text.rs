//! The text that a person reads at night: the verdict first, then what is wrong, then the rest.
//!
//! Symbols carry the meaning, colour only helps: `x` broken, `!` look at it, `?` not known, nothing = fine.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{
    human::{between, bytes, clean, count, duration, latency, time},
    revisions, rules,
};
use crate::{
    clock::Instant,
    engine::status::{Event, PathStatus, ReconcileOutcome, ReconcileStatus, Status},
    health::PathState,
    store::Run,
    units::{Name, plural},
};

/// How bad something is; the order is the order of severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    Fine,
    Unknown,
    Look,
    Broken,
}

impl Mark {
    pub(super) const fn symbol(self) -> &'static str {
        match self {
            Self::Fine => " ",
            Self::Unknown => "?",
            Self::Look => "!",
            Self::Broken => "x",
        }
    }

    const fn style(self) -> Style {
        let colour = match self {
            Self::Fine => AnsiColor::Green,
            Self::Unknown | Self::Look => AnsiColor::Yellow,
            Self::Broken => AnsiColor::Red,
        };
        colour.on_default().bold()
    }

    pub(super) fn paint(self, text: &str) -> String {
        let style = self.style();
        format!("{style}{text}{style:#}")
    }
}

/// Rows per table in the overview; `get` shows all.
const ROWS: usize = 20;

pub(super) const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

/// The whole status. `now` is the reader's time.
pub(super) fn status(status: &Status, now: Instant) -> String {
    let mut out = verdict(status, now);
    section(&mut out, "Revisions", revisions::notices(status).into_iter());
    section(&mut out, "Alarms", status.alarms.iter().map(|line| (Mark::Look, clean(line))));
    section(&mut out, "Drift (not as wanted right now)", status.drift.iter().map(|line| (Mark::Look, clean(line))));
    section(&mut out, "On trial", super::past::trial(status).into_iter());
    let errors = status.source.errors.iter().map(|line| (Mark::Look, clean(line)));
    section(&mut out, revisions::errors_title(&status.source), errors);
    for (title, body) in
        [("Paths", paths(status, ROWS)), ("Rules", rules::rules(status, ROWS)), ("Policies", policies(status, ROWS))]
    {
        let _ = write!(out, "\n{BOLD}{title}{BOLD:#}\n{body}");
    }
    out.push('\n');
    out += &revisions::line(status);
    out += &daemon(status);
    out
}

fn section(out: &mut String, title: &str, lines: impl Iterator<Item = (Mark, String)>) {
    for (number, (mark, line)) in lines.enumerate() {
        if number == 0 {
            let _ = writeln!(out, "\n{BOLD}{title}{BOLD:#}");
        }
        let _ = writeln!(out, "{} {line}", mark.paint(mark.symbol()));
    }
}

/// One line: is all well, and if not, what is the worst.
fn verdict(status: &Status, now: Instant) -> String {
    let mut findings = findings(status, now);
    findings.sort_by_key(|(mark, _)| std::cmp::Reverse(*mark));
    let worst = findings.first().map_or(Mark::Fine, |(mark, _)| *mark);
    let word = match worst {
        Mark::Fine => "OK",
        Mark::Unknown => "STARTING",
        Mark::Look => "ATTENTION",
        Mark::Broken => "BROKEN",
    };
    let said: Vec<_> = findings.into_iter().map(|(_, text)| text).collect();
    let said = if said.is_empty() { all_well(status) } else { said.join("; ") };
    format!("{}  {}: {said}\n", worst.paint(word), status.site)
}

fn all_well(status: &Status) -> String {
    let (paths, rules) = (plural(status.paths.len(), "path"), plural(status.rules.len(), "rule"));
    format!("{paths} up, {rules} on the primary path, configuration in force")
}

fn findings(status: &Status, now: Instant) -> Vec<(Mark, String)> {
    let mut found = Vec::new();
    let age = now.since(status.now);
    if age.as_secs() >= 30 {
        found.push((Mark::Broken, format!("the daemon hangs: this is its state of {} ago", duration(age))));
    }
    found.extend(last_change(status));
    found.extend(revisions::findings(status));
    let rules = status.rules.iter();
    found.extend(
        rules.filter_map(|(name, rule)| Some((rules::mark(status, rule)?, rules::finding(status, name, rule)))),
    );
    found.extend(rules::parted(status));
    found.extend(orders(status));
    found.extend(path_findings(status));
    let counted = [
        (status.source.errors.len(), "error", revisions::errors_noun(&status.source)),
        (status.alarms.len(), "alarm", ""),
        (status.drift.len(), "object", " drifted"),
    ];
    found.extend(
        counted.into_iter().filter(|(n, ..)| *n > 0).map(|(n, noun, rest)| (Mark::Look, plural(n, noun) + rest)),
    );
    found
}

fn last_change(status: &Status) -> Option<(Mark, String)> {
    let Some(last) = &status.reconcile else {
        return Some((Mark::Unknown, "the first reconcile is not done yet".into()));
    };
    let (mark, text) = outcome(last.outcome);
    let why = last.message.as_deref().map(|m| format!(" ({})", clean(m))).unwrap_or_default();
    (mark > Mark::Fine).then(|| (mark, format!("the last change {text}{why}")))
}

/// What people ordered by hand.
fn orders(status: &Status) -> Vec<(Mark, String)> {
    let left = |seconds| duration(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let pins = status.rules.iter().filter_map(|(name, rule)| {
        let pin = rule.pinned.as_ref()?;
        Some((
            Mark::Look,
            format!("rule {name} is pinned to {} for {} ({})", pin.to, left(pin.seconds), clean(&pin.reason)),
        ))
    });
    let drained: Vec<&str> = status.paths.iter().filter(|(_, p)| p.drained).map(|(name, _)| name.as_str()).collect();
    let drains = (!drained.is_empty()).then(|| (Mark::Look, format!("{} drained by hand", several("path", &drained))));
    pins.chain(drains).collect()
}

fn path_findings(status: &Status) -> impl Iterator<Item = (Mark, String)> {
    let shown = [
        (PathState::Down, Mark::Look, "down"),
        (PathState::Degraded, Mark::Look, "degraded"),
        (PathState::Unknown, Mark::Unknown, "not measured yet"),
    ];
    let whole = shown.into_iter().filter_map(|(state, mark, word)| {
        let paths = status.paths.iter().filter(|(_, p)| p.health.state == state);
        let names: Vec<_> = paths.map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| (mark, format!("{} {word}", several("path", &names))))
    });
    let families = status.paths.iter().flat_map(|(name, path)| {
        let whole = path.health.state;
        let apart = path.health.families.iter().filter(move |(_, f)| f.state == PathState::Down && whole != f.state);
        apart.map(move |(family, _)| (Mark::Look, format!("{family} of path {name} down")))
    });
    whole.chain(families)
}

fn several(noun: &str, names: &[&str]) -> String {
    match names {
        [name] => format!("{noun} {name}"),
        [..] if names.len() <= 4 => format!("{noun}s {}", names.join(", ")),
        [..] => format!("{} {noun}s", names.len()),
    }
}

/// The table of paths.
pub(super) fn paths(status: &Status, limit: usize) -> String {
    let rows = status.paths.iter().map(|(name, path)| {
        let health = &path.health;
        let mark = match health.state {
            PathState::Up if path.drained || health.families.values().any(|f| f.state == PathState::Down) => Mark::Look,
            PathState::Up => Mark::Fine,
            PathState::Unknown => Mark::Unknown,
            PathState::Degraded => Mark::Look,
            PathState::Down => Mark::Broken,
        };
        let measured = health.rounds > 0;
        let loss =
            if measured { format!("{:.1}%", health.loss.as_f64() * 100.0).replace(".0%", "%") } else { "-".into() };
        let score = if health.state == PathState::Unknown { "-".into() } else { health.score.to_string() };
        let gateways = path.gateways.iter().map(|gateway| format!(" {gateway}"));
        let via = std::iter::once(path.interface.to_string()).chain(gateways).collect::<String>();
        let why = if health.carrier || health.state != PathState::Down {
            clean(&health.reason)
        } else {
            no_carrier(&health.reason)
        };
        let since = path.drained_since.map(|at| format!(" since {}", time(at))).unwrap_or_default();
        let why = if path.drained { format!("by hand{since}; it is {}: {why}", state(health.state)) } else { why };
        (
            mark,
            vec![
                name.to_string(),
                shown_state(path).into(),
                score,
                latency(health.latency),
                loss,
                latency(health.jitter),
                duration(status.now.since(health.since)),
                via,
                why,
            ],
        )
    });
    table(&["PATH", "STATE", ">SCORE", ">RTT", ">LOSS", ">JITTER", ">SINCE", "VIA", "WHY"], rows, ("paths", limit))
}

/// What one path is like, below its row.
pub(super) fn quality(status: &Status, name: &Name) -> String {
    let Some(path) = status.paths.get(name) else { return String::new() };
    let ms = |d| latency(Some(d));
    let mut lines = Vec::new();
    if let Some(s) = &path.spread {
        let ranks = format!("min {}, median {}, mean {}", ms(s.min), ms(s.median), ms(s.mean));
        let more = format!("p95 {}, p99 {}, max {}, deviation {}", ms(s.p95), ms(s.p99), ms(s.max), ms(s.deviation));
        lines.push(format!("round trips   {ranks}, {more}"));
    }
    if let Some(way) = &path.counts.one_way {
        lines.push(format!("one way       there {}, back {}", ms(way.there), ms(way.back)));
    }
    if let Some(used) = path.health.used {
        lines.push(format!("load          {:.0}% of the bandwidth", used * 100.0));
    }
    if let Some(mos) = path.mos {
        lines.push(format!("a call        MOS {mos:.1}"));
    }
    let c = &path.counts;
    let odd = format!("{} came twice, {} were overtaken", c.duplicates, c.reordered);
    let asked = c.answered + c.lost;
    lines.push(format!("probes        by {}: {} of {asked} answered since the start, {odd}", path.method, c.answered));
    if let Some(said) = &c.said {
        lines.push(format!("last answer   {}", clean(said)));
    }
    format!("\n  {}\n", lines.join("\n  "))
}

fn no_carrier(reason: &str) -> String {
    if reason.contains("carrier") { clean(reason) } else { format!("no carrier; {}", clean(reason)) }
}

/// What people did to a path comes before what is measured of it.
const fn shown_state(path: &PathStatus) -> &'static str {
    match (path.drained, path.health.disabled) {
        (true, _) => "drained",
        (_, true) => "disabled",
        _ => state(path.health.state),
    }
}

const fn state(state: PathState) -> &'static str {
    match state {
        PathState::Unknown => "unknown",
        PathState::Up => "up",
        PathState::Degraded => "degraded",
        PathState::Down => "down",
    }
}

/// The table of policies.
pub(super) fn policies(status: &Status, limit: usize) -> String {
    let rows = status.policies.iter().map(|p| {
        let path = match &p.paths[..] {
            [] => p.path.as_ref().map_or_else(|| "-".into(), ToString::to_string),
            paths => paths.iter().map(Name::as_str).collect::<Vec<_>>().join(" + "),
        };
        let (packets, volume) = (count(p.counter.packets), bytes(p.counter.bytes));
        (
            Mark::Fine,
            vec![p.priority.to_string(), p.name.to_string(), p.action.clone(), path, count(p.flows), packets, volume],
        )
    });
    table(&[">PRIORITY", "POLICY", "ACTION", "PATH", ">FLOWS", ">PACKETS", ">BYTES"], rows, ("policies", limit))
}

fn daemon(status: &Status) -> String {
    let up = duration(between(status.started, status.wall));
    let ago = |r: &ReconcileStatus| duration(between(r.at, status.wall));
    let change = status.change.as_ref().map_or_else(String::new, |r| {
        let (_, text) = outcome(r.outcome);
        let why = r.message.as_deref().map(|m| format!(": {}", clean(m))).unwrap_or_default();
        let took = latency(Some(std::time::Duration::from_micros(r.micros)));
        format!("; last change {} ago {text} ({}, {took}){why}", ago(r), plural(r.steps, "step"))
    });
    let look = status.reconcile.as_ref().filter(|r| r.outcome == ReconcileOutcome::Unchanged);
    let found = if status.drift.is_empty() { "found nothing to do" } else { "left what is drifted" };
    let look = look.map_or_else(String::new, |r| format!("; looked {} ago and {found}", ago(r)));
    format!("Daemon  version {}, pid {}, running for {up}{change}{look}\n", status.version, status.pid)
}

const fn outcome(outcome: ReconcileOutcome) -> (Mark, &'static str) {
    match outcome {
        ReconcileOutcome::Unchanged => (Mark::Fine, "found nothing to do"),
        ReconcileOutcome::Applied => (Mark::Fine, "applied"),
        ReconcileOutcome::RolledBack => (Mark::Look, "failed and was rolled back"),
        ReconcileOutcome::RollbackFailed => (Mark::Broken, "failed and could NOT be undone"),
        ReconcileOutcome::Refused => (Mark::Look, "was refused"),
    }
}

/// One event on one line.
pub(super) fn event(event: &Event) -> String {
    let mark = match event.kind.as_str() {
        "exhausted" => Mark::Broken,
        "failover" | "family-left" | "alarm" | "drift" => Mark::Look,
        _ => Mark::Fine,
    };
    let about = clean(&format!("{:<10} {:<12}", event.kind, event.subject));
    format!("{} {DIM}{}{DIM:#}  {about}  {}\n", mark.paint(mark.symbol()), time(event.at), clean(&event.message))
}

/// The table of runs.
pub(super) fn history(runs: &[Run]) -> String {
    let rows = runs.iter().map(|run| {
        let (mark, result) = run.outcome.map_or((Mark::Broken, "interrupted, or still running"), outcome);
        let took = run.ended.map_or("-".into(), |ended| latency(Some(between(run.started, ended))));
        let revision = run.revision.as_deref().map_or("-".into(), clean);
        let message = run.message.as_deref().map_or_else(String::new, clean);
        (
            mark,
            vec![
                time(run.started),
                run.generation.to_string(),
                revision,
                run.steps.to_string(),
                took,
                result.into(),
                message,
            ],
        )
    });
    table(&["STARTED", ">GENERATION", "REVISION", ">STEPS", ">TOOK", "RESULT", "WHY"], rows, ("runs", usize::MAX))
}

/// A table without borders; a mark before each row. A column whose title begins with `>` stands at the right.
/// Beyond the limit the worst rows stay.
pub(super) fn table(
    titles: &[&str],
    rows: impl Iterator<Item = (Mark, Vec<String>)>,
    (what, limit): (&str, usize),
) -> String {
    let mut rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return format!("  {DIM}no {what}{DIM:#}\n");
    }
    let more = rows.len().saturating_sub(limit);
    if more > 0 {
        rows.sort_by_key(|(mark, _)| std::cmp::Reverse(*mark));
        rows.truncate(limit);
    }
    let (marks, cells): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(titles.iter().map(|t| t.trim_start_matches('>'))).add_rows(cells);
    for (column, title) in table.column_iter_mut().zip(titles) {
        column.set_padding((0, 2));
        column.set_cell_alignment(if title.starts_with('>') { CellAlignment::Right } else { CellAlignment::Left });
    }
    let mut out = String::new();
    for (number, line) in table.lines().enumerate() {
        let line = line.trim_end();
        let _ = match number.checked_sub(1).and_then(|row| marks.get(row)) {
            None => writeln!(out, "  {DIM}{line}{DIM:#}"),
            Some(mark) => writeln!(out, "{} {line}", mark.paint(mark.symbol())),
        };
    }
    if more > 0 {
        let _ = writeln!(out, "  {DIM}and {more} more, none worse: patronus get {what}{DIM:#}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Status {
        serde_json::from_str(include_str!("../../../tests/it/records/status.json")).unwrap()
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn the_status_of_a_site_on_its_backup() {
        let mut status = sample();
        status
            .alarms
            .push("nothing is recorded: cannot write to /var/lib/patronus/records.db: database or disk is full".into());
        let text = plain(&super::status(&status, status.now));
        assert_eq!(text, include_str!("../../../tests/it/records/status.txt"));
    }

    #[test]
    fn a_family_that_goes_another_way_is_seen() {
        let mut status = sample();
        let parted = serde_json::json!([{"family": "v6", "from": "lte", "to": "fiber", "since": status.now,
            "reason": "3 rounds lost in a row", "back_in": 12.0}]);
        status.rules.get_mut("critical").unwrap().parted = serde_json::from_value(parted).unwrap();
        let lte = &mut status.paths.get_mut("lte").unwrap().health;
        let six = crate::health::PathHealth { state: PathState::Down, ..lte.clone() };
        lte.families = [(crate::units::Family::V4, lte.clone()), (crate::units::Family::V6, six)].into();
        let text = plain(&super::status(&status, status.now));
        for line in [
            "IPv6 of rule critical goes by fiber and not by lte",
            "IPv6 of path lte down",
            "critical: IPv6 goes by fiber in place of lte for 0s: 3 rounds lost in a row; back in 12s",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_first_line_says_the_worst_first() {
        let first = |change: fn(&mut Status)| {
            let mut status = sample();
            change(&mut status);
            plain(&verdict(&status, status.now))
        };
        let heal = |s: &mut Status| {
            s.paths.remove("fiber");
            let rule = s.rules.get_mut("critical").unwrap();
            rule.members.remove(0);
        };
        let mut well = sample();
        heal(&mut well);
        assert_eq!(
            plain(&verdict(&well, well.now)),
            "OK  berlin: 1 path up, 1 rule on the primary path, configuration in force\n"
        );
        let late = plain(&verdict(&well, well.now + std::time::Duration::from_secs(300)));
        assert!(late.starts_with("BROKEN  berlin: the daemon hangs: this is its state of 5m ago"), "{late}");
        let line = first(|s| s.reconcile.as_mut().unwrap().outcome = ReconcileOutcome::RollbackFailed);
        assert!(line.starts_with("BROKEN  berlin: the last change failed and could NOT be undone; "), "{line}");
        let line = first(|s| s.rules.get_mut("critical").unwrap().choice.active = None);
        assert!(
            line.starts_with("BROKEN  berlin: rule critical has no path: its traffic is rejected; path fiber down"),
            "{line}"
        );
        let line = first(|s| s.reconcile = None);
        assert!(line.starts_with("ATTENTION") && line.contains("first reconcile"), "{line}");
    }

    #[test]
    fn an_overview_of_a_thousand_paths_is_short_and_keeps_the_broken_one() {
        let mut status = sample();
        let fine = status.paths["lte"].clone();
        status.paths.extend((0..1000).map(|n| (format!("a{n}").parse().unwrap(), fine.clone())));
        let text = plain(&super::status(&status, status.now));
        assert!(text.contains("x fiber") && text.contains("and 982 more, none worse: patronus get paths"), "{text}");
        assert!(text.lines().count() < 60);
        assert_eq!(plain(&paths(&status, usize::MAX)).lines().count(), 1003);
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        let mut status = sample();
        status.source.location = "/etc/\u{1b}[2J".into();
        status.drift.push("a\nb".into());
        let text = super::status(&status, status.now);
        assert!(!text.contains("\u{1b}[2J") && text.contains("a b"));
    }

    #[test]
    fn events_and_runs_are_one_line_each() {
        let line = Event {
            id: 1,
            at: crate::clock::Wall::from_micros(1_700_000_000_000_000),
            kind: "failover".into(),
            subject: "critical".into(),
            message: "fiber -> lte: fiber is down".into(),
            detail: serde_json::Value::Null,
        };
        assert_eq!(
            plain(&event(&line)),
            "! 2023-11-14 22:13:20Z  failover   critical      fiber -> lte: fiber is down\n"
        );
        let run = Run {
            plan: None,
            generation: 42,
            revision: Some("9be01d2".into()),
            started: line.at,
            ended: Some(crate::clock::Wall::from_micros(1_700_000_000_004_200)),
            outcome: Some(ReconcileOutcome::RolledBack),
            steps: 3,
            message: Some("no such device".into()),
        };
        let interrupted = Run { outcome: None, ended: None, ..run.clone() };
        let text = plain(&history(&[run, interrupted]));
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().nth(2).unwrap().starts_with('x'), "{text}");
    }
}
