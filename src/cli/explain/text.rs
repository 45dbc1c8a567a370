//! An explanation for a person: the answer first, then why, then what the kernel says.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::{ByHand, Chosen, FamilyThen, Report};
use crate::{
    cli::inspect::{clean, duration, time},
    explain::{Kernel, Model, Origin, Ruleset, Steered, Verdict},
    health::PathState,
    units::Name,
};

const BAD: Style = AnsiColor::Red.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const HEAD: Style = Style::new().bold();

/// The whole text.
pub(super) fn report(report: &Report) -> String {
    let mut out = String::new();
    let whence = match &report.origin {
        Origin::Router => ", sent by the router itself".to_owned(),
        Origin::Interface(interface) => format!(", in by {interface}"),
        Origin::Path(path, interface) => format!(", in by {interface} (path {path})"),
    };
    let _ = writeln!(out, "{HEAD}{}{whence}{HEAD:#}\n", report.flow);
    let when = report.at.map(|at| format!(" at {at}")).unwrap_or_default();
    let _ = writeln!(out, "{HEAD}By the configuration{HEAD:#} (revision {}){when}", clean(&report.revision));
    model(&mut out, &report.model);
    let why: Vec<String> = report.orders.iter().map(|order| by_hand(order, &report.model)).collect();
    let why = why.into_iter().chain(report.since.iter().flat_map(since));
    for (n, text) in why.enumerate() {
        line(&mut out, if n == 0 { "why" } else { "" }, &text);
    }
    families(&mut out, &report.families);
    match &report.kernel {
        Some(kernel) => {
            let _ = writeln!(out, "\n{HEAD}By the kernel{HEAD:#}");
            self::kernel(&mut out, kernel);
            conclusion(&mut out, report);
        }
        None => out.push_str("\nNext hops are those of now; the kernel of then cannot be asked.\n"),
    }
    out
}

fn line(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "  {label:<10} {}", clean(text));
}

fn model(out: &mut String, model: &Model) {
    match &model.policy {
        Some((policy, priority)) => line(out, "policy", &format!("{policy} (priority {priority})")),
        None => line(out, "policy", "none"),
    }
    for passed in &model.passed {
        line(out, "  not", &format!("{} ({}): {}", passed.policy, passed.priority, passed.why));
    }
    match &model.verdict {
        Verdict::Main { why } => line(out, "way", &format!("as the main table says: {why}")),
        Verdict::Drop => line(out, "way", "dropped in silence"),
        Verdict::Reject => line(out, "way", "rejected, with an answer"),
        Verdict::Steered(steered) => self::steered(out, steered),
    }
    if let Some(dscp) = model.dscp {
        line(out, "dscp", &format!("set to {dscp}"));
    }
}

fn steered(out: &mut String, steered: &Steered) {
    if let Some(rule) = &steered.rule {
        line(out, "rule", rule.as_str());
    }
    for skipped in &steered.skipped {
        line(out, "  not", skipped);
    }
    match (&steered.path, &steered.hop) {
        (Some(path), Some(hop)) => line(out, "path", &format!("{path}, {hop}")),
        _ => line(out, "path", "none can carry it: answered with `unreachable`"),
    }
    if !steered.shares.is_empty() {
        let names: Vec<&str> = steered.shares.iter().map(Name::as_str).collect();
        line(
            out,
            "shared",
            &format!("{}: a new flow draws one of them; one that exists is shown below", names.join(" + ")),
        );
    }
    if let Some(nat) = &steered.nat {
        line(out, "nat", nat);
    }
    if let (Some(mark), Some(table)) = (&steered.mark, steered.table) {
        line(out, "mark", &format!("{mark} ({}), table {table}", steered.target));
    }
}

/// An order, whether it is obeyed, and what ends it.
fn by_hand(order: &ByHand, model: &Model) -> String {
    let used = |path: &Name| match &model.verdict {
        Verdict::Steered(steered) => steered.path.as_ref() == Some(path) || steered.shares.contains(path),
        _ => false,
    };
    match order {
        ByHand::Pin { rule, to, seconds, reason } => {
            let left = duration(std::time::Duration::try_from_secs_f64(*seconds).unwrap_or_default());
            let but = if used(to) { "" } else { "; it cannot be obeyed now" };
            format!(
                "by hand: {rule} is pinned to {to} for {left} more: {reason}{but} (`patronus failback {rule}` ends it)"
            )
        }
        ByHand::Drain { path, since } => {
            let since = since.map(|at| format!(" since {}", time(at))).unwrap_or_default();
            let but = if used(path) { "; it is used all the same, for want of another" } else { "" };
            format!("by hand: {path} is drained{since}{but} (`patronus undrain {path}` ends it)")
        }
    }
}

/// The record of the choice, a line each.
fn since(chosen: &Chosen) -> Vec<String> {
    let t = &chosen.transition;
    let name = |n: &Option<Name>| n.as_ref().map_or("none", |n| n.as_str()).to_owned();
    let text = format!("{} since {}: {} -> {}: {}", t.kind.word(), t.at, name(&t.from), name(&t.to), t.reason);
    if let Some(path) = &chosen.missing {
        let missing =
            format!("the move to {path} is not recorded: it was just now, or the daemon was killed; before it,");
        return vec![missing, text];
    }
    let others = chosen.alternatives.iter().map(|other| {
        let lost = if other.lost.is_empty() { "chosen" } else { &other.lost };
        format!("{}: score {}, {}; {lost}", other.path, other.score, other.measured)
    });
    std::iter::once(text).chain(others).collect()
}

/// One line for each path whose families were measured apart.
fn families(out: &mut String, all: &[FamilyThen]) {
    let mut paths: Vec<&Name> = all.iter().map(|then| &then.path).collect();
    paths.dedup();
    for (n, path) in paths.into_iter().enumerate() {
        let told = all.iter().filter(|then| then.path == *path).map(|then| {
            let why = if then.state == PathState::Up { String::new() } else { format!(" ({})", then.reason) };
            format!("{} {}{why}", then.family, then.state)
        });
        let told: Vec<String> = told.collect();
        line(out, if n == 0 { "families" } else { "" }, &format!("{path}: {}", told.join(", ")));
    }
}

fn kernel(out: &mut String, kernel: &Kernel) {
    let ruleset = match kernel.ruleset {
        Ruleset::Intact => "loaded, as it was applied",
        Ruleset::Changed => "loaded, but changed by somebody",
        Ruleset::Missing => "none of ours is loaded",
        Ruleset::Unknown => "loaded; how it was applied is not remembered",
    };
    line(out, "ruleset", ruleset);
    line(out, "route", &kernel.route.to_string());
    let Some(tracked) = &kernel.tracked else {
        return line(out, "flow", "not known to connection tracking: it would be a new one");
    };
    let target = tracked.target.as_ref().map_or_else(|| "no target of ours".to_owned(), ToString::to_string);
    let became = tracked.source_became.map(|a| format!(", its source became {a}")).unwrap_or_default();
    line(out, "flow", &format!("exists, mark {:#010x} ({target}){became}", tracked.mark));
    if let Some(bound) = &kernel.bound {
        line(out, "", &format!("its packets go {bound}"));
    }
}

fn conclusion(out: &mut String, report: &Report) {
    out.push('\n');
    for text in &report.compared.explained {
        let _ = writeln!(out, "Note: {}.", clean(text));
    }
    for text in &report.compared.disagreements {
        let _ = writeln!(out, "{BAD}Disagreement:{BAD:#} {}.", clean(text));
    }
    if report.compared.disagreements.is_empty() {
        let _ = writeln!(out, "{GOOD}Configuration and kernel agree.{GOOD:#}");
    }
}
