//! A preview for a terminal: the worst first, sites that change alike together.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::{
    Group, Preview,
    deletion::Deletion,
    groups,
    outage::{Outage, Then},
};
use crate::{
    plan::{
        Action,
        text::{consequences, kernel, objects, section},
    },
    units::{Name, plural},
};

const BOLD: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default();

/// Sites that are named in a heading; the others are counted.
const NAMED: usize = 3;

/// Renders a preview with ANSI styles; the caller strips them where nobody wants colour.
#[must_use]
pub fn render(preview: &Preview, all: bool) -> String {
    let mut out = format!("{BOLD}{} -> {}{BOLD:#}: {}\n", preview.base, preview.head, headline(preview));
    for deletion in &preview.deletions {
        let _ = write!(out, "\n{BOLD}Site {}{BOLD:#} is deleted\n", deletion.site);
        out.push_str(&deleted(deletion));
    }
    for group in groups(&preview.sites) {
        let new = if group.first.action == Action::Add { " new" } else { "" };
        let _ = writeln!(out, "\n{BOLD}{}{BOLD:#}{new}", heading(&group));
        out.push_str(&details(&group, all));
    }
    section(&mut out, Some("Warnings of the validator that are new"), preview.warnings.iter().cloned());
    out
}

/// The whole in one line.
#[must_use]
pub fn headline(preview: &Preview) -> String {
    let s = &preview.summary;
    if preview.is_empty() {
        return "no router would do anything else".to_owned();
    }
    let mut parts = Vec::new();
    let change = s.added + s.changed;
    if change > 0 {
        let new = if s.added > 0 { format!(" ({} new)", s.added) } else { String::new() };
        parts.push(format!("{change} of {} change{}{new}", plural(s.sites, "site"), verb(change)));
    }
    if s.worse > 0 {
        parts.push(format!("{} get{} worse", s.worse, verb(s.worse)));
    }
    if s.removed > 0 {
        let taken = if s.taken > 0 {
            format!(" and take{} {} of others along", verb(s.removed), plural(s.taken, "object"))
        } else {
            String::new()
        };
        parts.push(format!("{} deleted{taken}", plural(s.removed, "site")));
    }
    parts.join(", ")
}

const fn verb(n: usize) -> &'static str {
    if n == 1 { "s" } else { "" }
}

fn heading(group: &Group<'_>) -> String {
    let word = if group.sites.len() == 1 { "Site" } else { "Sites" };
    format!("{word} {}", named(&group.sites))
}

/// The first sites by name, and how many more there are.
pub(super) fn named(sites: &[&Name]) -> String {
    let shown: Vec<&str> = sites.iter().take(NAMED).map(|n| n.as_str()).collect();
    match sites.len().checked_sub(NAMED) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

/// What a group's sites do, and what a failure does to them; the kernel's part last, since it is long.
pub(super) fn details(group: &Group<'_>, all: bool) -> String {
    let change = group.first;
    let mut out = String::new();
    objects(&mut out, &change.plan);
    consequences(&mut out, &change.plan);
    section(&mut out, Some("If one path fails"), failures(&change.outages).into_iter());
    kernel(&mut out, &change.plan, all);
    if group.sites.len() > 1 && !change.plan.changes.is_empty() {
        let _ = writeln!(out, "    (of {}: addresses and the like differ at the others)", change.site);
    }
    out
}

/// One line for all policies that fare alike in one failure.
fn failures(outages: &[Outage]) -> Vec<String> {
    let alike = |a: &Outage, b: &Outage| (&a.fault, &a.before, a.then) == (&b.fault, &b.before, b.then);
    outages.chunk_by(alike).map(failure).collect()
}

fn failure(outages: &[Outage]) -> String {
    let name = |o: &Outage| {
        let to: Vec<String> = o.destination.iter().map(ToString::to_string).collect();
        if to.is_empty() { o.policy.to_string() } else { format!("{} (to {})", o.policy, to.join(", ")) }
    };
    let names: Vec<String> = outages.iter().map(name).collect();
    let one = &outages[0];
    let then = match one.then {
        Then::Lost => "lost",
        Then::Rejected => "rejected",
    };
    let what = format!("{} fails: {} {then}", one.fault, names.join(", "));
    match &one.before {
        Some(before) => format!("{BAD}!{BAD:#} {what}; {before} took over before this change"),
        None => format!("  {what}; new, and without a backup"),
    }
}

/// Everything that goes with a site.
pub(super) fn deleted(deletion: &Deletion) -> String {
    let mut out = String::new();
    let networks = deletion.prefixes.iter().map(|n| format!("{BAD}-{BAD:#} {} behind {}", n.prefix, n.interface));
    section(&mut out, Some("Networks that no site has any more"), networks);
    let own = deletion.own;
    let own = [
        plural(own.endpoints, "uplink"),
        plural(own.paths, "path"),
        plural(own.failover, "failover rule"),
        plural(own.policies, "policy"),
    ];
    let itself = format!("{}; its router keeps its last state until `patronus teardown`", own.join(", "));
    section(&mut out, Some("Its own"), std::iter::once(itself));
    let taken = deletion.elsewhere.iter();
    let taken = taken.map(|t| format!("{BAD}-{BAD:#} {:<8} {}/{:<16} {}", t.kind, t.site, t.name.as_str(), t.what));
    let title = format!("Taken along at other sites ({})", deletion.elsewhere.len());
    section(&mut out, Some(&title), taken);
    let left = deletion.left.iter();
    let left = left
        .map(|l| format!("{BAD}!{BAD:#} {}/{} still names {}, which leads nowhere now", l.site, l.policy, l.prefix));
    section(&mut out, Some("Left over"), left);
    out
}
