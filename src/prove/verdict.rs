//! Expectations against a story. What was not met is told as a compiler would: where it is written, what was expected,
//! what came instead, and why.

use std::time::Duration;

use super::Story;
use crate::{
    config::{Config, Scope, trial::ExpectSpec, yaml::Document},
    diag::{Code, Diagnostic, Span},
    failover::Transition,
    units::{Family, Name, PathPart, Span as Length, plural},
    validate::intent::{Action, Intent, Site},
};

/// Where an expectation stands, and what it is about.
pub(super) struct Place<'a> {
    pub config: &'a Config,
    pub intent: &'a Intent,
    pub document: &'a Document,
    pub site: &'a Site,
    pub ends: Duration,
}

/// The time that an expectation is about.
#[derive(Clone, Copy)]
struct Window {
    from: Duration,
    to: Duration,
    /// It has to be so all the time; else once.
    throughout: bool,
}

/// The place of a rule in the configuration.
pub(super) fn rule_at(config: &Config, intent: &Intent, site: &Name, rule: &Name) -> Option<Span> {
    let labels = &intent.sites().get(site)?.labels;
    let covers = |scope: &Scope| scope.covers(site, labels);
    let object = config.rules.iter().find(|r| r.name == *rule && r.spec.enabled && covers(&r.scope))?;
    Some(config.name(object))
}

/// A time as a person writes it.
fn shown(at: Duration) -> String {
    let seconds = format!("{:.3}", at.as_secs_f64());
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if at.subsec_millis() == 0 {
        Length::from(Duration::from_secs(at.as_secs())).to_string()
    } else {
        format!("{seconds}s")
    }
}

impl Window {
    fn of(e: &ExpectSpec, ends: Duration) -> Self {
        let from = e.at.map_or(Duration::ZERO, Length::get);
        match (e.within, e.until) {
            (Some(within), _) => Self { from, to: from + within.get(), throughout: false },
            (_, Some(until)) => Self { from, to: until.get(), throughout: true },
            _ if e.event.is_some() => Self { from, to: ends, throughout: false },
            _ => Self { from, to: from, throughout: true },
        }
    }

    fn told(self) -> String {
        match (self.from == self.to, self.throughout) {
            (true, _) => format!("at {}", shown(self.from)),
            (_, true) => format!("from {} to {}", shown(self.from), shown(self.to)),
            (_, false) => format!("between {} and {}", shown(self.from), shown(self.to)),
        }
    }

    /// The first value that is wrong, or the last one if none is right.
    fn wrong<T>(self, values: &[(Duration, T)], right: impl Fn(&T) -> bool) -> Option<&(Duration, T)> {
        if self.throughout {
            values.iter().find(|(_, value)| !right(value))
        } else if values.iter().any(|(_, value)| right(value)) {
            None
        } else {
            values.last()
        }
    }
}

/// What is wrong with one expectation, if anything.
pub(super) fn judge(place: &Place<'_>, story: &Story, number: usize, e: &ExpectSpec) -> Option<Diagnostic> {
    let window = Window::of(e, place.ends);
    let at = |field: &str| place.document.value_at(&format!("/spec/expect/{number}/{field}"));
    match (&e.event, &e.state, &e.path) {
        (Some(event), _, _) => happened(place, story, e, event, window, at("event")),
        (_, Some(state), Some(path)) => was(story, e, (path, state), window, at("state")),
        (_, _, Some(path)) => {
            let wanted: &[Name] = if path.as_str() == "none" { &[] } else { std::slice::from_ref(path) };
            let right = |got: &[Name]| wanted.first().map_or(got.is_empty(), |path| got.contains(path));
            used(place, story, e, (wanted, &right), window, at("path"))
        }
        _ if !e.paths.is_empty() => {
            let right = |got: &[Name]| got.len() == e.paths.len() && e.paths.iter().all(|path| got.contains(path));
            used(place, story, e, (&e.paths, &right), window, at("paths"))
        }
        _ => None,
    }
}

fn unmet(message: String, at: Span) -> Diagnostic {
    Diagnostic::error(Code::Unmet, message).at(at)
}

/// The rule behind an expectation; a policy may go straight to a path.
fn rule_of<'a>(place: &'a Place<'_>, e: &'a ExpectSpec) -> Result<&'a Name, Option<&'a Name>> {
    let action = e.policy.as_ref().and_then(|name| place.site.policies.iter().find(|p| p.name == *name));
    match (&e.rule, action.map(|p| &p.action)) {
        (Some(rule), _) | (None, Some(Action::Failover(rule))) => Ok(rule),
        (None, Some(Action::Path(path))) => Err(Some(path)),
        _ => Err(None),
    }
}

fn user(e: &ExpectSpec) -> String {
    let user = whose(e);
    e.family().map_or_else(|| user.clone(), |family| format!("{family} of {user}"))
}

fn whose(e: &ExpectSpec) -> String {
    match (&e.policy, &e.rule) {
        (Some(policy), _) => format!("policy `{policy}`"),
        (_, Some(rule)) => format!("rule `{rule}`"),
        _ => String::new(),
    }
}

fn name_of(path: Option<&Name>) -> String {
    path.map_or_else(|| "no path".to_owned(), |path| format!("`{path}`"))
}

fn names_of(paths: &[Name]) -> String {
    let names: Vec<String> = paths.iter().map(|path| format!("`{path}`")).collect();
    if names.is_empty() { "no path".to_owned() } else { names.join(" and ") }
}

/// What is expected of the paths in use: names for a person, and the check.
type Expected<'e> = (&'e [Name], &'e dyn Fn(&[Name]) -> bool);

fn used(
    place: &Place<'_>,
    story: &Story,
    e: &ExpectSpec,
    (wanted, right): Expected<'_>,
    window: Window,
    at: Span,
) -> Option<Diagnostic> {
    let rule = match rule_of(place, e) {
        Ok(rule) => rule,
        Err(fixed) => {
            let fixed: Vec<Name> = fixed.into_iter().cloned().collect();
            let message = format!("{} always uses {}, expected {}", user(e), names_of(&fixed), names_of(wanted));
            return (!right(&fixed)).then(|| unmet(message, at).help("its action names no failover rule"));
        }
    };
    let (since, got) = window.wrong(story.used_between(rule, e.family(), window.from, window.to), |got| right(got))?;
    let moment = if window.throughout { (*since).max(window.from) } else { window.to };
    let message = format!(
        "{} {} uses {}, expected {}",
        if window.throughout { format!("at {}", shown(moment)) } else { window.told() },
        user(e),
        names_of(got),
        names_of(wanted)
    );
    let missing = wanted.iter().find(|path| !got.contains(path)).or_else(|| wanted.first());
    Some(explained(place, story, unmet(message, at), (rule, e.family()), moment, missing))
}

/// Adds what the rule itself says, and where it stands.
fn explained(
    place: &Place<'_>,
    story: &Story,
    found: Diagnostic,
    (rule, family): (&Name, Option<Family>),
    moment: Duration,
    wanted: Option<&Name>,
) -> Diagnostic {
    let condition = |path: &Name| condition(story, &PathPart { path: path.clone(), family }, moment);
    let mut lines = Vec::new();
    if let Some(family) = family
        && let Some((when, t)) = story.last_parting(rule, family, moment)
    {
        lines.push(format!("{family} by {} since {}: {}", name_of(t.to.as_ref()), shown(*when), t.reason));
    }
    if let Some((when, t)) = story.last_change(rule, moment) {
        lines.push(format!("{} since {}: {}", name_of(t.to.as_ref()), shown(*when), t.reason));
        lines.extend(lost(t, wanted));
        lines.extend(t.to.as_ref().and_then(condition));
    }
    lines.extend(wanted.and_then(condition));
    let next = story.transitions.iter().find(|(when, t)| *when > moment && t.rule == *rule);
    if let Some((when, t)) = next {
        lines.push(format!("at {} it moves to {}: {}", shown(*when), name_of(t.to.as_ref()), t.reason));
    }
    let found = match rule_at(place.config, place.intent, &place.site.name, rule) {
        Some(at) => found.note(at, "decided by this rule"),
        None => found,
    };
    lines.dedup();
    found.help(format!("why: {}", lines.join("\n")))
}

/// Why the path that was expected had lost, when the rule last decided.
fn lost(t: &Transition, wanted: Option<&Name>) -> Option<String> {
    let other = t.alternatives.iter().find(|a| Some(&a.path) == wanted && !a.lost.is_empty())?;
    Some(format!("`{}` was not taken then: {}", other.path, other.lost))
}

/// How a path is; of a family that is not measured apart, how the path is.
fn condition(story: &Story, part: &PathPart, at: Duration) -> Option<String> {
    let of = |part: &PathPart| story.states_between(part, at, at).last();
    let (part, (since, (state, reason))) = match of(part) {
        Some(found) => (part.clone(), found),
        None => (PathPart::whole(&part.path), of(&PathPart::whole(&part.path))?),
    };
    let family = part.family.map(|family| format!("{family} of ")).unwrap_or_default();
    Some(format!("{family}`{}` is {state} since {}: {reason}", part.path, shown(*since)))
}

fn was(story: &Story, e: &ExpectSpec, (path, state): (&Name, &String), window: Window, at: Span) -> Option<Diagnostic> {
    let part = PathPart { path: path.clone(), family: e.family() };
    let (since, got) = if let Some(rule) = &e.rule {
        let values = story.standings_between(rule, path, window.from, window.to);
        window.wrong(values, |s| s.word() == state).map(|(at, s)| (*at, s.word().to_owned()))?
    } else {
        let values = story.states_between(&part, window.from, window.to);
        window.wrong(values, |(s, _)| s.to_string() == *state).map(|(at, (s, _))| (*at, s.to_string()))?
    };
    let moment = if window.throughout { since.max(window.from) } else { window.to };
    let under = e.rule.as_ref().map(|rule| format!(" under the rule `{rule}`")).unwrap_or_default();
    let when = if window.throughout { format!("at {}", shown(moment)) } else { window.told() };
    let family = e.family().map(|family| format!("{family} of ")).unwrap_or_default();
    let message = format!("{when} {family}path `{path}` is {got}{under}, expected {state}");
    let why = condition(story, &part, moment).unwrap_or_else(|| format!("`{path}` is not known then"));
    Some(unmet(message, at).help(format!("why: {why}")))
}

fn happened(
    place: &Place<'_>,
    story: &Story,
    e: &ExpectSpec,
    event: &str,
    window: Window,
    at: Span,
) -> Option<Diagnostic> {
    let rule = e.rule.as_ref()?;
    let to = |t: &Transition| match &e.path {
        Some(path) if path.as_str() == "none" => t.to.is_none(),
        Some(path) => t.to.as_ref() == Some(path),
        None => true,
    };
    let inside = |when: Duration| when >= window.from && when <= window.to;
    let all: Vec<&(Duration, Transition)> =
        story.transitions.iter().filter(|(when, t)| t.rule == *rule && inside(*when)).collect();
    let fits =
        |t: &Transition| t.kind.word() == event && to(t) && e.flows.as_deref().is_none_or(|f| t.flows.word() == f);
    let count = all.iter().filter(|(_, t)| fits(t)).count();
    let right = e.count.map_or(count > 0, |wanted| wanted as usize == count);
    if right {
        return None;
    }
    let wanted = match e.count {
        Some(n) => format!("exactly {n}"),
        None => "at least once".to_owned(),
    };
    let target = e.path.as_ref().map(|path| format!(" to {}", name_of(Some(path)))).unwrap_or_default();
    let flows = e.flows.as_ref().map(|f| format!(" with flows {f}")).unwrap_or_default();
    let message = format!(
        "{} rule `{rule}` has {} `{event}`{target}{flows}, expected {wanted}",
        Window { throughout: false, ..window }.told(),
        plural(count, "event")
    );
    let told = |(when, t): &&(Duration, Transition)| {
        format!(
            "{} {} to {}, flows {}: {}",
            shown(*when),
            t.kind.word(),
            name_of(t.to.as_ref()),
            t.flows.word(),
            t.reason
        )
    };
    let seen: Vec<String> = all.iter().take(8).map(told).collect();
    let seen = if seen.is_empty() { "it did not change its path in this time".to_owned() } else { seen.join("\n") };
    let found = unmet(message, at).help(format!("what it did: {seen}"));
    Some(match rule_at(place.config, place.intent, &place.site.name, rule) {
        Some(at) => found.note(at, "decided by this rule"),
        None => found,
    })
}
