//! Failover rules as people read them: the table, what waits and for how long, and one rule in full.

use std::{fmt::Write as _, time::Duration};

use super::{
    human::{clean, duration, latency},
    text::{DIM, Mark, table},
};
use crate::{
    clock::Instant,
    engine::status::{RuleStatus, Status},
    failover::{Flows, Leaving, Standing, Told, Transition, View},
    health::PathState,
    units::{Name, plural},
};

fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// None when the rule is on its primary and that is usable.
pub(super) fn mark(status: &Status, rule: &RuleStatus) -> Option<Mark> {
    let Some(active) = &rule.choice.active else { return Some(Mark::Broken) };
    if !rule.shares.is_empty() {
        let down = |path| status.paths.get(path).is_some_and(|p| p.health.state == PathState::Down);
        let all = rule.choice.in_use().count() == rule.members.len();
        return if rule.choice.in_use().all(down) { Some(Mark::Broken) } else { (!all).then_some(Mark::Look) };
    }
    let state = status.paths.get(active).map_or(PathState::Unknown, |p| p.health.state);
    match state {
        PathState::Down => Some(Mark::Broken),
        _ if rule.members.first() != Some(active) => Some(Mark::Look),
        _ => None,
    }
}

pub(super) fn finding(status: &Status, name: &Name, rule: &RuleStatus) -> String {
    let primary = rule.standings.first().filter(|view| view.full);
    match &rule.choice.active {
        None if rule.passes_on => format!("rule {name} has no path: its new flows go to the next policy"),
        None => format!("rule {name} has no path: its traffic is rejected"),
        Some(_) if !rule.shares.is_empty() => {
            let used: Vec<&str> = rule.choice.in_use().map(Name::as_str).collect();
            format!(
                "rule {name} shares its flows among {} of {} paths: {}",
                used.len(),
                rule.members.len(),
                used.join(", ")
            )
        }
        Some(active) if rule.members.first() == Some(active) => {
            format!("rule {name} is on {active}, which is down, and has no better")
        }
        Some(active) => match primary {
            Some(full) => format!("rule {name} overflows: {}, new flows take {active}", fullness(status, &full.path)),
            None => format!("rule {name} is on its backup {active}"),
        },
    }
}

/// Families that go another way than their rule.
pub(super) fn parted(status: &Status) -> impl Iterator<Item = (Mark, String)> {
    let all = status.rules.iter().flat_map(|(name, rule)| rule.parted.iter().map(move |p| (name, p)));
    all.map(|(name, p)| (Mark::Look, format!("{} of rule {name} goes by {} and not by {}", p.family, p.to, p.from)))
}

/// That a line is full, and how.
fn fullness(status: &Status, path: &Name) -> String {
    let used = status.paths.get(path).and_then(|p| p.health.used);
    let used = used.map_or_else(String::new, |used| format!(" ({:.0}% of its bandwidth in use)", used * 100.0));
    format!("{path} is full{used}")
}

/// The table of rules, and below it whatever waits, with the time that is left.
pub(super) fn rules(status: &Status, limit: usize) -> String {
    let rows = status.rules.iter().map(|(name, rule)| {
        let none = if rule.passes_on { "none: next policy" } else { "none: rejecting" };
        let used: Vec<&str> = rule.choice.in_use().map(Name::as_str).collect();
        let active = if used.is_empty() { none.to_owned() } else { used.join(" + ") };
        let sharing = !rule.shares.is_empty();
        let instead = rule.members.iter().take(if sharing { usize::MAX } else { 1 });
        let instead: Vec<&str> = instead.filter(|p| !rule.choice.in_use().any(|u| u == *p)).map(Name::as_str).collect();
        let primary = if instead.is_empty() { "-".into() } else { instead.join(", ") };
        let back = rule.failback_in.map_or("-".into(), seconds);
        let next = rule.choice.tail.first().map_or("nothing".into(), ToString::to_string);
        let since = duration(status.now.since(rule.choice.since));
        let mark = mark(status, rule).unwrap_or(Mark::Fine);
        (mark, vec![name.to_string(), active, since, primary, back, next, clean(&rule.reason)])
    });
    let titles = ["RULE", "USES", ">SINCE", "INSTEAD OF", ">BACK IN", "NEXT", "WHY"];
    let mut out = table(&titles, rows, ("rules", limit));
    let waits: Vec<_> = status.rules.iter().flat_map(|(name, rule)| waits(status, name, rule)).collect();
    for (mark, line) in waits.iter().take(limit) {
        let _ = writeln!(out, "{} {line}", mark.paint(mark.symbol()));
    }
    if let Some(more) = waits.len().checked_sub(limit).filter(|more| *more > 0) {
        let _ = writeln!(out, "  {DIM}and {more} more that wait: patronus get rules{DIM:#}");
    }
    out
}

/// What a rule waits for.
fn waits(status: &Status, name: &Name, rule: &RuleStatus) -> Vec<(Mark, String)> {
    let pin = rule.pinned.iter().map(|pin| {
        let (left, why) = (seconds(pin.seconds), clean(&pin.reason));
        (Mark::Look, format!("{name}: pinned to {} for {left} more, by hand: {why}", pin.to))
    });
    let parted = rule.parted.iter().map(|p| {
        let back = p.back_in.map(|left| format!("; back in {}", seconds(left))).unwrap_or_default();
        let since = duration(status.now.since(p.since));
        let why = clean(&p.reason);
        (Mark::Look, format!("{name}: {} goes by {} in place of {} for {since}: {why}{back}", p.family, p.to, p.from))
    });
    let held = rule.standings.iter().filter_map(held).map(|text| (Mark::Look, format!("{name}: {text}")));
    let full = rule.standings.iter().filter(|view| view.full).map(|view| {
        (Mark::Fine, format!("{name}: {}, so it keeps its flows and gets no new ones", fullness(status, &view.path)))
    });
    let left = rule.choice.leaving.iter().map(|l| (Mark::Fine, format!("{name}: {}", leaving(l, status.now))));
    pin.chain(parted).chain(held).chain(full).chain(left).collect()
}

/// Why a path that may well work is kept out of use; none if it is not.
fn held(view: &View) -> Option<String> {
    let (path, left) = (&view.path, view.remaining.map(seconds));
    match (view.standing, left) {
        (Standing::Drained, _) => Some(format!("{path} drained by hand, until `patronus undrain {path}`")),
        (Standing::Disabled, _) => Some(format!("{path} disabled: {}", clean(&view.reason))),
        (Standing::Held, Some(left)) => Some(format!("{path} back from being down, held for {left} more")),
        (Standing::Damped, Some(left)) => {
            Some(format!("{path} flapped, damped for {left} more (penalty {})", view.penalty))
        }
        (Standing::Down, Some(left)) => {
            Some(format!("{path} down, and damped for {left} more for flapping (penalty {})", view.penalty))
        }
        _ => None,
    }
}

fn leaving(l: &Leaving, now: Instant) -> String {
    let (path, left) = (&l.path, duration(l.until.since(now)));
    match l.told {
        Told::Nothing => format!("flows on {path} stay for {left} more, then they are forgotten"),
        Told::Resets => format!("TCP on {path} is reset for {left} more, then all its flows are forgotten"),
        Told::Errors => format!("flows on {path} are answered with errors for {left} more"),
    }
}

/// All that is known of one rule, below its row.
pub(super) fn whole(status: &Status, name: &Name) -> String {
    let Some(rule) = status.rules.get(name) else { return String::new() };
    let rows = rule.standings.iter().map(|view| {
        let mark = match view.standing {
            Standing::Up => Mark::Fine,
            Standing::Unknown => Mark::Unknown,
            Standing::Down | Standing::Disabled => Mark::Broken,
            Standing::Degraded | Standing::Held | Standing::Damped | Standing::Drained => Mark::Look,
        };
        let more = view.remaining.map_or("-".into(), seconds);
        let penalty = if view.penalty > 0 { view.penalty.to_string() } else { "-".into() };
        let cells = [view.path.to_string(), view.standing.to_string(), view.score.to_string(), more, penalty];
        (mark, cells.into_iter().chain([clean(&view.reason)]).collect())
    });
    let titles = ["PATH", "STANDING", ">SCORE", ">FOR MORE", ">PENALTY", "WHY"];
    let paths = table(&titles, rows, ("paths", usize::MAX));
    format!("\n{paths}{}", rule.change.as_ref().map(|c| change(c, status.now)).unwrap_or_default())
}

/// The record of the last change.
fn change(c: &Transition, now: Instant) -> String {
    let name = |n: &Option<Name>| n.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let ago = duration(now.since(c.at));
    let mut lines = vec![format!("last change   {} {ago} ago: {} -> {}", c.kind.word(), name(&c.from), name(&c.to))];
    lines.push(format!("because       {}", clean(&c.reason)));
    let took = [
        c.detected_in.map(|d| format!("detected {} after the last good sign", latency(Some(d)))),
        c.decided_in.map(|d| format!("decided in {}", latency(Some(d)))),
        c.switched_in.map(|d| format!("switched in {}", latency(Some(d)))),
    ];
    let took: Vec<String> = took.into_iter().flatten().collect();
    if !took.is_empty() {
        lines.push(format!("it took       {}", took.join(", ")));
    }
    if c.from.is_some() {
        let forgotten = usize::try_from(c.forgotten).unwrap_or(usize::MAX);
        let count = match c.flows {
            Flows::Forced if forgotten > 0 => format!(", {} forgotten with it", plural(forgotten, "flow")),
            Flows::Drain | Flows::Reject if forgotten > 0 => format!(", {} forgotten since", plural(forgotten, "flow")),
            _ => String::new(),
        };
        lines.push(format!("its flows     {}{count}", c.flows.word()));
    }
    let lost = c.alternatives.iter().filter(|a| !a.lost.is_empty());
    lines.extend(lost.map(|a| format!("not chosen    {}: {} (score {})", a.path, clean(&a.lost), a.score)));
    format!("\n  {}\n", lines.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::status::Pinned,
        failover::{Alternative, TransitionKind},
    };

    fn name(s: &str) -> Name {
        s.parse().unwrap()
    }

    fn view(path: &str, standing: Standing, remaining: Option<f64>, penalty: u32) -> View {
        View {
            path: name(path),
            standing,
            score: 97,
            reason: "all probes answered".into(),
            remaining,
            penalty,
            full: false,
        }
    }

    fn sample() -> Status {
        let mut status: Status = serde_json::from_str(include_str!("../../../tests/it/records/status.json")).unwrap();
        let now = status.now;
        let rule = status.rules.get_mut("critical").unwrap();
        rule.standings = vec![
            view("fiber", Standing::Held, Some(12.0), 0),
            view("lte", Standing::Up, None, 0),
            view("dsl", Standing::Damped, Some(250.0), 3100),
            view("cable", Standing::Drained, None, 0),
        ];
        rule.pinned = Some(Pinned { to: name("lte"), seconds: 3590.0, reason: "work on the mast".into() });
        let until = now + Duration::from_secs(540);
        rule.choice.leaving = vec![
            Leaving { path: name("fiber"), flows: Flows::Drain, until, told: Told::Nothing },
            Leaving { path: name("dsl"), flows: Flows::Reject, until, told: Told::Errors },
        ];
        rule.change = Some(Transition {
            rule: name("critical"),
            from: Some(name("fiber")),
            to: Some(name("lte")),
            kind: TransitionKind::Failover,
            family: None,
            reason: rule.reason.clone(),
            threshold: 50,
            alternatives: vec![Alternative {
                path: name("dsl"),
                standing: Standing::Damped,
                score: 90,
                measured: "all probes answered".into(),
                lost: "dsl flapped and is damped for 4m more".into(),
            }],
            flows: Flows::Forced,
            at: rule.choice.since,
            detected_in: Some(Duration::from_millis(2400)),
            decided_in: Some(Duration::from_micros(120)),
            switched_in: Some(Duration::from_micros(350)),
            forgotten: 17,
        });
        status
    }

    #[test]
    fn whatever_waits_is_shown_with_the_time_that_is_left() {
        let status = sample();
        let text = anstream::adapter::strip_str(&rules(&status, usize::MAX)).to_string();
        let below: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            below,
            [
                "! critical: pinned to lte for 59m more, by hand: work on the mast",
                "! critical: fiber back from being down, held for 12s more",
                "! critical: dsl flapped, damped for 4m more (penalty 3100)",
                "! critical: cable drained by hand, until `patronus undrain cable`",
                "  critical: flows on fiber stay for 9m more, then they are forgotten",
                "  critical: flows on dsl are answered with errors for 9m more",
            ]
        );
        assert!(rules(&status, 2).contains("and 4 more that wait"), "{}", rules(&status, 2));
    }

    #[test]
    fn a_full_line_is_shown_as_the_cause() {
        let mut status = sample();
        let full = View { full: true, ..view("fiber", Standing::Up, None, 0) };
        status.paths.get_mut(&name("fiber")).unwrap().health.used = Some(0.934);
        let rule = status.rules.get_mut("critical").unwrap();
        (rule.standings, rule.pinned, rule.choice.leaving) =
            (vec![full, view("lte", Standing::Up, None, 0)], None, vec![]);
        let text = anstream::adapter::strip_str(&rules(&status, usize::MAX)).to_string();
        assert_eq!(
            text.lines().nth(2).unwrap(),
            "  critical: fiber is full (93% of its bandwidth in use), so it keeps its flows and gets no new ones"
        );
        assert_eq!(
            finding(&status, &name("critical"), &status.rules["critical"]),
            "rule critical overflows: fiber is full (93% of its bandwidth in use), new flows take lte"
        );
    }

    #[test]
    fn one_rule_in_full_says_what_its_last_change_took_and_what_lost() {
        let status = sample();
        let text = anstream::adapter::strip_str(&whole(&status, &name("critical"))).to_string();
        let shown = "\n  PATH   STANDING  SCORE  FOR MORE  PENALTY  WHY\n\
            ! fiber  held         97       12s        -  all probes answered\n  \
            lte    up           97         -        -  all probes answered\n\
            ! dsl    damped       97        4m     3100  all probes answered\n\
            ! cable  drained      97         -        -  all probes answered\n\n  \
            last change   failover 60s ago: fiber -> lte\n  \
            because       fiber is down: 3 rounds lost in a row\n  \
            it took       detected 2400ms after the last good sign, decided in 0.12ms, switched in 0.35ms\n  \
            its flows     forced, 17 flows forgotten with it\n  \
            not chosen    dsl: dsl flapped and is damped for 4m more (score 90)\n";
        assert_eq!(text, shown);
    }

    #[test]
    fn a_rule_without_a_path_says_where_its_flows_go() {
        let mut status = sample();
        let said = |status: &Status| finding(status, &name("critical"), &status.rules["critical"]);
        status.rules.get_mut("critical").unwrap().choice.active = None;
        assert!(said(&status).ends_with("its traffic is rejected"));
        status.rules.get_mut("critical").unwrap().passes_on = true;
        assert!(said(&status).ends_with("its new flows go to the next policy"));
        assert!(rules(&status, 9).contains("none: next policy"));
    }
}
