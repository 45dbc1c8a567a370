//! Tests of failover rules, as files beside the configuration describe them.
//!
//! [`run`] plays each test and says, at the place in its file, what did not come as expected, what came instead, and the
//! reason that the rule itself gave for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Deserialize as _;

use super::{
    World,
    sky::{Sky, apart},
    verdict::{self, Place},
};
use crate::{
    clock::{Instant, Wall},
    config::{
        Config,
        schema::{self, Kind, Schemas},
        trial::{DeedSpec, ExpectSpec, TestSpec},
        yaml::Document,
    },
    diag::{self, Code, Diagnostic, suggest},
    failover::{Drain, Pin, overrides},
    units::{Name, Span},
    validate::intent::{Intent, Site},
};

/// How one test went.
#[derive(Debug)]
pub struct Outcome {
    /// The file.
    pub file: String,
    /// Its name.
    pub name: String,
    /// What is wrong with it, or with the rules; empty if it passed.
    pub found: Vec<Diagnostic>,
    /// For how long it played on its own clock.
    pub played: Duration,
    /// Rules that left a path in it: site and rule.
    pub exercised: BTreeSet<(Name, Name)>,
    /// Decisions that were taken.
    pub decisions: u64,
}

/// Longest test.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// Runs the tests of a configuration that are in files that `wanted` takes.
pub fn run(config: &Config, intent: &Intent, wanted: impl Fn(&str) -> bool) -> Vec<Outcome> {
    // Compiled once for all of them.
    let _held = Schemas::held();
    config.trials().filter(|document| wanted(&document.file)).map(|document| one(config, intent, document)).collect()
}

/// Rules that no test makes leave a path, as warnings at their place. A rule of many sites needs one of them.
#[must_use]
pub fn unexercised(config: &Config, intent: &Intent, outcomes: &[Outcome]) -> Vec<Diagnostic> {
    let seen: BTreeSet<&(Name, Name)> = outcomes.iter().flat_map(|o| &o.exercised).collect();
    let all = intent.sites().values().flat_map(|site| site.rules.keys().map(move |rule| (&site.name, rule)));
    let mut places: BTreeMap<diag::Span, (&Name, bool)> = BTreeMap::new();
    for (site, rule) in all {
        if let Some(at) = verdict::rule_at(config, intent, site, rule) {
            places.entry(at).or_insert((rule, false)).1 |= seen.contains(&(site.clone(), rule.clone()));
        }
    }
    let bare = places.into_iter().filter(|(_, (_, exercised))| !exercised);
    let found = bare.map(|(at, (rule, _))| {
        let message = format!("no test makes the rule `{rule}` leave a path");
        Diagnostic::warning(Code::Unexercised, message).at(at).help("write a test in which its primary fails")
    });
    found.collect()
}

fn one(config: &Config, intent: &Intent, document: &Document) -> Outcome {
    let name = document.value.pointer("/metadata/name").and_then(serde_json::Value::as_str).unwrap_or("?");
    let mut outcome = Outcome {
        file: document.file.to_string(),
        name: name.to_owned(),
        found: Vec::new(),
        played: Duration::ZERO,
        exercised: BTreeSet::new(),
        decisions: 0,
    };
    match Trial::read(intent, document) {
        Ok(trial) => trial.play(config, intent, &mut outcome),
        Err(found) => outcome.found = found,
    }
    diag::sort(&mut outcome.found);
    outcome
}

/// A test that makes sense.
struct Trial<'a> {
    document: &'a Document,
    site: &'a Site,
    spec: TestSpec,
    sky: Sky<'a>,
    ends: Duration,
}

pub(super) fn bad(at: diag::Span, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Code::BrokenTest, message).at(at).help(help)
}

/// A finding about a name that is not there.
pub(super) fn no_such<'n>(
    at: diag::Span,
    noun: &str,
    name: &Name,
    known: impl Iterator<Item = &'n Name>,
) -> Diagnostic {
    let known: Vec<&str> = known.map(Name::as_str).collect();
    let help = match suggest(name.as_str(), known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => format!("there is no {noun} here"),
        None => format!("there are {}", diag::listed(&known, 10)),
    };
    bad(at, format!("there is no {noun} `{name}`"), help)
}

impl<'a> Trial<'a> {
    fn read(intent: &'a Intent, document: &'a Document) -> Result<Self, Vec<Diagnostic>> {
        let problems = Schemas::held().of(Kind::FailoverTest).problems(&document.value);
        if !problems.is_empty() {
            let shown = |p: &schema::Problem| {
                let at = if p.on_key { document.key_at(&p.pointer) } else { document.value_at(&p.pointer) };
                let found = Diagnostic::error(p.code, p.message.clone()).at(at);
                match &p.help {
                    Some(help) => found.help(help.clone()),
                    None => found,
                }
            };
            return Err(problems.iter().map(shown).collect());
        }
        let spec = TestSpec::deserialize(&document.value["spec"])
            .map_err(|e| vec![bad(document.value_at("/spec"), e.to_string(), "correct it")])?;
        let Some(site) = intent.sites().get(&spec.site) else {
            return Err(vec![no_such(document.value_at("/spec/site"), "site", &spec.site, intent.sites().keys())]);
        };
        let mut found = Vec::new();
        let sky = Sky::read(document, site, &spec, &mut found);
        deeds(document, site, &spec.actions, &mut found);
        expectations(document, site, &spec.expect, &mut found);
        let moments = spec.expect.iter().flat_map(|e| {
            let at = e.at.map_or(Duration::ZERO, Span::get);
            [at + e.within.map_or(Duration::ZERO, Span::get), e.until.map_or(at, Span::get)]
        });
        let last = moments.chain(spec.actions.iter().map(|a| a.at.get())).max().unwrap_or_default();
        let ends = spec.duration.map_or(last, Span::get).max(last);
        if ends > LONGEST {
            let at = document.value_at("/spec");
            found.push(bad(at, "the test plays for more than a week", "shorten it, or split it"));
        }
        if found.is_empty() { Ok(Self { document, site, spec, sky, ends }) } else { Err(found) }
    }

    fn play(self, config: &Config, intent: &Intent, outcome: &mut Outcome) {
        let Self { document, site, spec, sky, ends } = self;
        let mut deeds: Vec<(usize, &DeedSpec)> = spec.actions.iter().enumerate().collect();
        deeds.sort_by_key(|(_, deed)| deed.at.get());
        let mut world = World::new(site, sky);
        for (n, deed) in deeds {
            world.play_until(deed.at.get());
            if let Some(last) = refused(site, &world, deed) {
                let at = document.value_at(&format!("/spec/actions/{n}/drain"));
                let message = format!("the daemon refuses this: it is the last path that works for {last}");
                outcome.found.push(bad(at, message, "write `force: true` beside it if that is what is to be tested"));
                continue;
            }
            act(&mut world, deed);
            world.decide();
        }
        world.play_until(ends);
        let story = world.into_story();
        outcome.played = ends;
        outcome.decisions = story.decisions;
        let left = story.transitions.iter().filter(|(_, t)| t.from.is_some() && t.from != t.to);
        outcome.exercised = left.map(|(_, t)| (site.name.clone(), t.rule.clone())).collect();
        let place = Place { config, intent, document, site, ends };
        let each = spec.expect.iter().enumerate();
        outcome.found.extend(each.filter_map(|(n, expected)| verdict::judge(&place, &story, n, expected)));
    }
}

/// The rules for which the daemon would refuse to drain a path.
fn refused(site: &Site, world: &World<'_, Sky<'_>>, deed: &DeedSpec) -> Option<String> {
    let path = deed.drain.as_ref().filter(|_| !deed.force)?;
    let last = overrides::last_for(site, path, &world.overrides, world.monitor().healths());
    let last: Vec<String> = last.iter().map(|rule| format!("`{rule}`")).collect();
    (!last.is_empty()).then(|| last.join(", "))
}

fn act(world: &mut World<'_, Sky<'_>>, deed: &DeedSpec) {
    let now: Instant = world.now();
    if let (Some(rule), Some(to)) = (&deed.failover, &deed.to) {
        let until = now + deed.lasts.map_or(Duration::from_secs(3600), Span::get);
        world.overrides.pins.insert(rule.clone(), Pin { to: to.clone(), until, reason: "the test says so".into() });
    }
    if let Some(rule) = &deed.failback {
        world.overrides.pins.remove(rule);
        if let Some(choice) = world.selection().rules.get_mut(rule) {
            choice.hasten();
        }
    }
    if let Some(path) = &deed.drain {
        world.overrides.drains.insert(path.clone(), Drain { since: Wall::default(), force: deed.force });
    }
    if let Some(path) = &deed.undrain {
        world.overrides.drains.remove(path);
    }
}

fn deeds(document: &Document, site: &Site, deeds: &[DeedSpec], found: &mut Vec<Diagnostic>) {
    for (n, deed) in deeds.iter().enumerate() {
        let at = |field: &str| document.value_at(&format!("/spec/actions/{n}{field}"));
        let kinds = [&deed.failover, &deed.failback, &deed.drain, &deed.undrain];
        if kinds.iter().filter(|k| k.is_some()).count() != 1 {
            let help = "write exactly one of `failover`, `failback`, `drain` and `undrain`";
            found.push(bad(at(""), "an action does one thing", help));
            continue;
        }
        for (field, rule) in [("/failover", &deed.failover), ("/failback", &deed.failback)] {
            if let Some(rule) = rule.as_ref().filter(|rule| !site.rules.contains_key(*rule)) {
                found.push(no_such(at(field), "failover rule", rule, site.rules.keys()));
            }
        }
        for (field, path) in [("/to", &deed.to), ("/drain", &deed.drain), ("/undrain", &deed.undrain)] {
            if let Some(path) = path.as_ref().filter(|path| !site.paths.contains_key(*path)) {
                found.push(no_such(at(field), "path", path, site.paths.keys()));
            }
        }
        let rule = deed.failover.as_ref().and_then(|rule| site.rules.get(rule));
        if let (Some(rule), Some(to)) = (rule, &deed.to)
            && site.paths.contains_key(to)
            && !rule.members.contains(to)
        {
            let help = format!("it has {}", diag::listed(&rule.members.iter().collect::<Vec<_>>(), 10));
            found.push(bad(at("/to"), format!("`{to}` is no path of the rule `{}`", rule.name), help));
        }
        if deed.failover.is_some() != deed.to.is_some() {
            found.push(bad(at(""), "`failover` and `to` go together", "write `failover: RULE, to: PATH, for: 2h`"));
        }
    }
}

fn expectations(document: &Document, site: &Site, all: &[ExpectSpec], found: &mut Vec<Diagnostic>) {
    for (n, e) in all.iter().enumerate() {
        let at = |field: &str| document.value_at(&format!("/spec/expect/{n}{field}"));
        if let Some(policy) = e.policy.as_ref().filter(|p| !site.policies.iter().any(|q| q.name == **p)) {
            found.push(no_such(at("/policy"), "policy", policy, site.policies.iter().map(|p| &p.name)));
        }
        if let Some(rule) = e.rule.as_ref().filter(|rule| !site.rules.contains_key(*rule)) {
            found.push(no_such(at("/rule"), "failover rule", rule, site.rules.keys()));
        }
        let none = e.state.is_none() && e.path.as_ref().is_some_and(|p| p.as_str() == "none");
        if let Some(path) = e.path.as_ref().filter(|path| !none && !site.paths.contains_key(*path)) {
            found.push(no_such(at("/path"), "path", path, site.paths.keys()));
        }
        for (i, path) in e.paths.iter().enumerate().filter(|(_, path)| !site.paths.contains_key(*path)) {
            found.push(no_such(at(&format!("/paths/{i}")), "path", path, site.paths.keys()));
        }
        let path = e.path.as_ref().filter(|_| e.family.is_some() && e.state.is_some());
        found.extend(path.and_then(|path| apart(at("/family"), site.paths.get(path)?)));
        if let Some((message, help)) = senseless(e) {
            found.push(bad(at(""), message, help));
        }
    }
}

/// What is wrong with the shape of an expectation.
fn senseless(e: &ExpectSpec) -> Option<(&'static str, &'static str)> {
    let (user, path) = (e.policy.is_some() || e.rule.is_some(), e.path.is_some());
    if e.within.is_some() && e.until.is_some() {
        return Some((
            "`within` and `until` exclude each other",
            "`within: 10s` is a time to come; `until: 60s` is how long it lasts",
        ));
    }
    if e.until.is_some_and(|until| until.get() < e.at.map_or(Duration::ZERO, Span::get)) {
        return Some(("`until` lies before `at`", "write the later moment, counted from the beginning of the test"));
    }
    if e.policy.is_some() && e.rule.is_some() {
        return Some(("`policy` and `rule` exclude each other", "name the one whose path is meant"));
    }
    let of_rules = ["held", "damped", "drained", "disabled"];
    if e.rule.is_none() && e.state.as_ref().is_some_and(|state| of_rules.contains(&state.as_str())) {
        return Some(("this state is how a rule regards a path, and no rule is named", "name it beside: `rule: RULE`"));
    }
    if e.family.is_some() && (e.event.is_some() || e.rule.is_some() && e.state.is_some()) {
        return Some((
            "a `family` goes with the path that is used, or with the state of a path",
            "leave it out: events and standings are of the whole rule",
        ));
    }
    match (&e.event, &e.state) {
        (Some(_), Some(_)) => Some(("`event` and `state` exclude each other", "write two expectations")),
        (Some(_), None) if e.rule.is_none() => Some(("an event is one of a `rule`", "name the rule")),
        (None, Some(_)) if !path || e.policy.is_some() => Some((
            "a `state` is one of a `path`",
            "name the path, and the `rule` if the state is held, damped or drained",
        )),
        _ if !e.paths.is_empty() && (path || e.event.is_some() || e.state.is_some()) => {
            Some(("`paths` goes with `policy` or `rule` alone", "write two expectations"))
        }
        (None, None) if !(user && (path || !e.paths.is_empty())) => Some((
            "nothing is expected",
            "write `policy` or `rule` with `path`, `path` with `state`, or `event` with `rule`",
        )),
        (None, _) if e.count.is_some() || e.flows.is_some() => {
            Some(("`count` and `flows` belong to an `event`", "name the event"))
        }
        _ => None,
    }
}
