//! A report as text, for a tired engineer: symbolic names first, then the numbers that `ip` and `nft` show.
//!
//! The symbols `+ ~ -` carry the meaning; colour only helps.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, sync::Arc};

use anstyle::{AnsiColor, Style};
use similar::{ChangeTag, TextDiff};

use super::{
    Action, Step,
    report::{Consequence, ObjectChange, Report, Route},
};
use crate::{
    state::{Key, NftTable, RouteValue, RuleKey, UNKNOWN, Value},
    units::{Family, plural},
};

/// Most lines of a ruleset's difference that are shown unless all are asked for.
const NFT_LINES: usize = 40;

/// Most kernel lines of one kind that are shown unless all are asked for.
const KIND_LINES: usize = 60;

const ADD: Style = AnsiColor::Green.on_default();
const REMOVE: Style = AnsiColor::Red.on_default();
const CHANGE: Style = AnsiColor::Yellow.on_default();
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Renders a report with ANSI styles; the caller strips them where nobody wants colour.
#[must_use]
pub fn render(report: &Report, all: bool) -> String {
    let mut out = String::new();
    heading(&mut out, report);
    if report.changes.is_empty() && report.drift.is_empty() && report.objects.is_empty() && report.risks.is_empty() {
        out.push_str("\nNothing to do: the kernel is as the configuration wants it.\n");
        return out;
    }
    objects(&mut out, report);
    kernel(&mut out, report, all);
    consequences(&mut out, report);
    section(&mut out, Some("Risk"), report.risks.iter().map(|r| format!("{REMOVE}!{REMOVE:#} {r}")));
    summary(&mut out, report);
    out
}

/// Adds what changes by name.
pub(crate) fn objects(out: &mut String, report: &Report) {
    section(out, None, report.objects.iter().flat_map(object_lines));
}

/// Adds what that does to the kernel.
pub(crate) fn kernel(out: &mut String, report: &Report, all: bool) {
    section(out, Some("Kernel"), step_lines(&report.changes, report, all));
    let title = "Drift (someone else changed these; apply puts them back)";
    section(out, Some(title), step_lines(&report.drift, report, all));
}

/// Adds what it means for each policy.
pub(crate) fn consequences(out: &mut String, report: &Report) {
    let width = report.consequences.iter().map(|c| c.policy.as_str().len()).max().unwrap_or(0);
    section(out, Some("Consequence"), report.consequences.iter().map(|c| consequence(c, width)));
}

fn heading(out: &mut String, report: &Report) {
    let was = report.revision.from.as_ref().filter(|from| **from != report.revision.to);
    let was = was.map(|from| format!(" (was {from})")).unwrap_or_default();
    let generation = match report.generation {
        g if g.from == g.to => g.to.to_string(),
        g => format!("{} -> {}", g.from, g.to),
    };
    let _ = writeln!(
        out,
        "{BOLD}Site {}{BOLD:#} · revision {}{was} · generation {generation}",
        report.site, report.revision.to
    );
}

/// Adds a section with its title, unless it is empty.
pub(crate) fn section(out: &mut String, title: Option<&str>, lines: impl Iterator<Item = String>) {
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
        return;
    }
    out.push('\n');
    let indent = if title.is_some() { "    " } else { "  " };
    if let Some(title) = title {
        let _ = writeln!(out, "  {BOLD}{title}{BOLD:#}");
    }
    for line in lines {
        let _ = writeln!(out, "{indent}{line}");
    }
}

fn symbol(action: Action) -> String {
    let (style, sign) = match action {
        Action::Add => (ADD, '+'),
        Action::Remove => (REMOVE, '-'),
        Action::Change => (CHANGE, '~'),
        Action::Forget => (CHANGE, '!'),
    };
    format!("{style}{sign}{style:#}")
}

fn object_lines(change: &ObjectChange) -> Vec<String> {
    let head = format!("{} {:<8} {:<16}", symbol(change.action), change.kind, change.name);
    let mut details = change.details.iter();
    let first = details.next().map_or_else(|| head.trim_end().to_owned(), |d| format!("{head} {d}"));
    std::iter::once(first).chain(details.map(|d| format!("{:28}{d}", ""))).collect()
}

fn step_lines(steps: &[Step], report: &Report, all: bool) -> impl Iterator<Item = String> {
    let mut by_kind: BTreeMap<&str, usize> = BTreeMap::new();
    let mut lines = Vec::new();
    for step in steps {
        let seen = by_kind.entry(step.kind()).or_default();
        *seen += 1;
        if all || *seen <= KIND_LINES {
            lines.extend(step_text(step, report, all));
        }
    }
    let more = by_kind.into_iter().filter(|(_, n)| !all && *n > KIND_LINES);
    lines.extend(more.map(|(kind, n)| format!("… {} more of kind {kind} (--all shows them)", n - KIND_LINES)));
    lines.into_iter()
}

fn step_text(step: &Step, report: &Report, all: bool) -> Vec<String> {
    let sign = symbol(step.action());
    match step {
        Step::Set { key: Key::Nft, before, after, .. } => nft_lines(&sign, before.as_ref(), after.as_ref(), all),
        Step::Set { key, before, after, .. } => {
            vec![format!("{sign} {}{}", set_text(key, before.as_ref(), after.as_ref()), owner(key, report))]
        }
        Step::Forget { flows, reason, .. } => vec![format!("{sign} flows  mark {flows} are forgotten: {reason}")],
    }
}

/// Whose table a route or rule is about, by name.
fn owner(key: &Key, report: &Report) -> String {
    let table = match key {
        Key::Route(k) => k.table,
        Key::Rule(k) => k.table,
        _ => return String::new(),
    };
    report.tables.get(&table).map(|name| format!("   {DIM}# {name}{DIM:#}")).unwrap_or_default()
}

/// One kernel object and what happens to it, as `ip` would name it.
fn set_text(key: &Key, before: Option<&Value>, after: Option<&Value>) -> String {
    let name = key_text(key);
    let text = |v: &Value| value_text(v);
    match (before.map(text), after.map(text)) {
        (Some(a), Some(b)) if a != b => format!("{name} {a} -> {b}"),
        (_, Some(b)) => format!("{name} {b}"),
        (Some(a), None) => format!("{name} {a}"),
        (None, None) => name,
    }
    .trim_end()
    .to_owned()
}

/// The name of a kernel object, as `ip` and `sysctl` would show it.
#[must_use]
pub fn key_text(key: &Key) -> String {
    match key {
        Key::Sysctl(k) => format!("sysctl net/{}", k.path),
        Key::Link { name } => format!("link   {name}"),
        Key::Route(k) => {
            let default = k.destination.prefix_len() == 0;
            let to = if default { "default".to_owned() } else { k.destination.to_string() };
            let metric = if k.metric == u32::MAX { "last".to_owned() } else { k.metric.to_string() };
            format!("route  {} {to} table {} metric {metric}", k.family, k.table)
        }
        Key::Rule(k) => rule_text(k),
        Key::Nft => "nft    inet patronus".to_owned(),
    }
}

fn rule_text(k: &RuleKey) -> String {
    let mark = k.fwmark.map(|m| format!(" fwmark {m}")).unwrap_or_default();
    let oif = k.oif.as_ref().map(|o| format!(" oif {o}")).unwrap_or_default();
    let table = if k.table == 254 { "main".to_owned() } else { k.table.to_string() };
    let suppress = k.suppress_prefixlength.map(|n| format!(" suppress_prefixlength {n}")).unwrap_or_default();
    format!("rule   {} priority {}{mark}{oif} -> table {table}{suppress}", k.family, k.priority)
}

/// The command that puts a route or a rule by mark back, for whoever has to do it by hand.
#[must_use]
pub fn command(key: &Key, value: &Value, protocol: u8) -> Option<String> {
    let ip = |family| if family == Family::V4 { "ip -4" } else { "ip -6" };
    match (key, value) {
        (Key::Route(k), Value::Route(RouteValue::Via { gateway, interface, mtu })) => {
            let to = if k.destination.prefix_len() == 0 { "default".to_owned() } else { k.destination.to_string() };
            let via = gateway.map(|g| format!(" via {g}")).unwrap_or_default();
            let onlink = gateway.map_or("", |_| " onlink");
            let mtu = mtu.map(|m| format!(" mtu {m}")).unwrap_or_default();
            Some(format!(
                "{} route replace {to}{via} dev {interface}{onlink} table {} metric {} proto {protocol}{mtu}",
                ip(k.family),
                k.table,
                k.metric
            ))
        }
        (Key::Rule(k), Value::Rule) => {
            let mark = k.fwmark?;
            let (ip, priority, table) = (ip(k.family), k.priority, k.table);
            Some(format!("{ip} rule add priority {priority} fwmark {mark} lookup {table} protocol {protocol}"))
        }
        _ => None,
    }
}

/// How what was found differs from what was wanted, on one line; nothing where one of them is not there.
#[must_use]
pub fn difference(wanted: Option<&Value>, found: Option<&Value>) -> Option<String> {
    match (wanted?, found?) {
        (Value::Nft(wanted), Value::Nft(found)) => {
            let (added, removed, _) = nft_difference(&wanted.canonical, &found.canonical);
            Some(format!("{} added, {removed} removed", plural(added, "line")))
        }
        (wanted, found) => Some(format!("wanted {}, found {}", value_text(wanted), value_text(found))),
    }
}

fn value_text(value: &Value) -> String {
    match value {
        Value::Sysctl { value } => value.to_string(),
        Value::Link(t) => {
            format!("vxlan id {} {} -> {} over {} mtu {}", t.id, address(t.local), t.remote, t.over, t.mtu)
        }
        Value::Route(RouteValue::Via { gateway, interface, mtu }) => {
            let via = gateway.map(|g| format!("via {} ", address(g))).unwrap_or_default();
            let mtu = mtu.map(|m| format!(" mtu {m}")).unwrap_or_default();
            format!("{via}dev {interface}{mtu}")
        }
        Value::Route(RouteValue::Unreachable) => "unreachable".to_owned(),
        Value::Route(RouteValue::Other { text, .. }) => text.to_string(),
        Value::Rule | Value::Nft(_) => String::new(),
    }
}

/// An address; `auto` where only the router knows it.
fn address(address: IpAddr) -> String {
    if UNKNOWN.contains(&address) { "auto".to_owned() } else { address.to_string() }
}

fn nft_lines(sign: &str, before: Option<&Value>, after: Option<&Value>, all: bool) -> Vec<String> {
    let text = |v: Option<&Value>| match v {
        Some(Value::Nft(NftTable { canonical, .. })) => Arc::clone(canonical),
        _ => Arc::default(),
    };
    let (old, new) = (text(before), text(after));
    let (added, removed, body) = nft_difference(&old, &new);
    let mut lines = vec![format!("{sign} nft    inet patronus: {} added, {removed} removed", plural(added, "line"))];
    let whole = before.is_none() || after.is_none();
    let shown = if all {
        body.len()
    } else if whole {
        0
    } else {
        NFT_LINES
    };
    let rest = body.len().saturating_sub(shown);
    lines.extend(body.into_iter().take(shown).map(|line| format!("      {line}")));
    if rest > 0 && !whole {
        lines.push(format!("      … {} (--all shows them)", plural(rest, "more line")));
    }
    lines
}

/// Counts, and the changed lines under the chain or set that they stand in.
fn nft_difference(old: &str, new: &str) -> (usize, usize, Vec<String>) {
    let (mut added, mut removed, mut lines) = (0, 0, Vec::new());
    let (mut block, mut shown) = (String::new(), String::new());
    for change in TextDiff::from_lines(old, new).iter_all_changes() {
        let line = change.value().trim_end();
        if line.starts_with('\t') && line.ends_with('{') && !line.starts_with("\t\t") {
            line.trim().trim_end_matches(" {").clone_into(&mut block);
        }
        let (style, sign) = match change.tag() {
            ChangeTag::Equal => continue,
            ChangeTag::Insert => {
                added += 1;
                (ADD, '+')
            }
            ChangeTag::Delete => {
                removed += 1;
                (REMOVE, '-')
            }
        };
        if block != shown {
            lines.push(block.clone());
            shown.clone_from(&block);
        }
        if line.starts_with("\t\t") {
            lines.push(format!("  {style}{sign}{style:#}   {}", line.trim()));
        }
    }
    (added, removed, lines)
}

fn consequence(c: &Consequence, width: usize) -> String {
    let path = |r: &Option<Route>| r.as_ref().map_or_else(|| "main table".to_owned(), Route::told);
    let backups = |r: &Option<Route>| {
        let names = r.as_ref().map(|r| r.backups.join(", ")).unwrap_or_default();
        if names.is_empty() { "none".to_owned() } else { names }
    };
    let (a, b) = (backups(&c.from), backups(&c.to));
    let backup = if a == b { format!("backup {b}") } else { format!("backup {a} -> {b}") };
    let risk = c.risk.as_ref().map(|r| format!("   {REMOVE}! {r}{REMOVE:#}")).unwrap_or_default();
    format!("{:<width$}  {} -> {}   {backup}{risk}", c.policy, path(&c.from), path(&c.to))
}

fn summary(out: &mut String, report: &Report) {
    let s = &report.summary;
    let _ = writeln!(
        out,
        "\n{BOLD}Plan: {} to add, {} to change, {} to remove. {} drifted. {}.{BOLD:#}",
        s.add,
        s.change,
        s.remove,
        s.drifted,
        plural(s.risks, "risk")
    );
}
