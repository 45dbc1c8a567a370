//! How one rule went: as it was recorded, or as it would have gone.

use super::{Switch, past::Condition, wall};
use crate::{
    clock::{Instant, Wall},
    failover::{self, Choice, Inputs, Overrides, Selection, Transition, TransitionKind},
    health::{Breach, Healths, Measures, PathHealth, PathState, explain},
    units::{Name, Ratio},
    validate::intent::{Path, Rule, Site},
};

/// Why a path is down that answers nothing.
const GONE: &str = "nothing got through";

/// What a rule uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Used {
    /// Not known, or nothing was decided yet.
    Unknown,
    /// No path.
    Nothing,
    /// This path.
    Path(Name),
}

impl Used {
    pub fn of(path: Option<Name>) -> Self {
        path.map_or(Self::Nothing, Self::Path)
    }

    pub const fn path(&self) -> Option<&Name> {
        if let Self::Path(path) = self { Some(path) } else { None }
    }
}

/// How it was.
#[derive(Debug)]
pub(super) struct Recorded {
    used: Used,
    switches: Vec<Switch>,
    done: usize,
}

impl Recorded {
    /// What was used at the beginning, if that is known, and the changes after it.
    pub const fn new(used: Used, switches: Vec<Switch>) -> Self {
        Self { used, switches, done: 0 }
    }

    pub const fn is_known(&self) -> bool {
        !matches!(self.used, Used::Unknown)
    }

    pub const fn used(&self) -> &Used {
        &self.used
    }

    /// Carries out the next change up to a moment; when that was.
    pub fn next(&mut self, moment: impl Fn(Wall) -> Instant, until: Instant) -> Option<Instant> {
        let switch = self.switches.get(self.done)?;
        let at = moment(switch.at);
        if at > until {
            return None;
        }
        self.done += 1;
        self.used = Used::of(switch.to.clone());
        Some(at)
    }

    /// The changes that are ones: a start of the daemon moves nothing.
    pub fn into_switches(self) -> Vec<Switch> {
        self.switches.into_iter().filter(moves).collect()
    }
}

fn moves(switch: &Switch) -> bool {
    switch.from.is_some() && switch.from != switch.to && switch.kind != TransitionKind::Initial
}

/// How a configuration would have had it.
#[derive(Debug)]
pub(super) struct Course<'a> {
    then: &'a Site,
    /// The site with this rule and its paths alone, so that a decision costs what one rule costs.
    site: Site,
    rule: Name,
    breaches: Vec<(Name, Breach)>,
    healths: Healths,
    measures: Measures,
    selection: Selection,
    overrides: Overrides,
    next: Option<Instant>,
    switches: Vec<Switch>,
}

impl<'a> Course<'a> {
    /// Begins with the path that the rule used, if that is one of its own; none if the site has no such rule.
    pub fn new(then: &'a Site, site: &Site, name: &Name, used: Option<&Name>, begin: Instant) -> Option<Self> {
        let rule: &Rule = site.rules.get(name)?;
        let paths = rule.members.iter().filter_map(|m| Some((m.clone(), site.paths.get(m)?.clone())));
        let alone = Site {
            name: site.name.clone(),
            labels: site.labels.clone(),
            lan: Vec::new(),
            endpoints: site.endpoints.clone(),
            paths: paths.collect(),
            rules: [(name.clone(), rule.clone())].into(),
            policies: Vec::new(),
            beyond: site.beyond.clone(),
        };
        let mut selection = Selection::default();
        if let Some(used) = used.filter(|used| rule.members.contains(used)) {
            let choice = Choice { active: Some(used.clone()), since: begin, ..Choice::default() };
            selection.rules.insert(name.clone(), choice);
        }
        let breaches = rule.members.iter().map(|m| (m.clone(), Breach::default())).collect();
        let healths = alone.paths.values().map(|p| (p.name.clone(), at_first(p, begin))).collect();
        Some(Self {
            then,
            site: alone,
            rule: name.clone(),
            breaches,
            healths,
            measures: Measures::new(),
            selection,
            overrides: Overrides::default(),
            next: None,
            switches: Vec::new(),
        })
    }

    pub fn used(&self) -> Used {
        self.selection.rules.get(&self.rule).map_or(Used::Unknown, |choice| Used::of(choice.active.clone()))
    }

    /// Decides at the next moment, up to this one, at which time alone changes something; when that was.
    pub fn wake(&mut self, until: Instant, begin: Wall) -> Option<Instant> {
        let at = self.next.filter(|at| *at <= until)?;
        self.next = None;
        // While nothing is recorded, nobody decides.
        if self.site.paths.keys().any(|path| self.is_known(path)) {
            self.decide(at, begin);
            // A rule that asks to be asked again at once would be asked for ever.
            self.next = self.next.filter(|next| *next > at);
        }
        Some(at)
    }

    fn is_known(&self, path: &Name) -> bool {
        self.healths.get(path).is_some_and(|h| h.state != PathState::Unknown && h.rounds > 0)
    }

    /// Takes in how a path is from now on, and decides.
    pub fn change(&mut self, name: &Name, condition: &Condition, at: Instant, begin: Wall) {
        let Some(path) = self.site.paths.get(name).filter(|p| !p.probe.targets.is_empty()) else { return };
        let before = self.breaches.iter_mut().find(|(known, _)| known == name).map(|(_, breach)| breach);
        let then = self.then.paths.get(name);
        let limits = before.map_or(path.health, |breach| {
            *breach =
                if condition.is_recorded() { breach.after(condition.stats(), &path.health) } else { Breach::default() };
            breach.limits(&path.health)
        });
        let (state, score) = condition.under(path, then.map(AsRef::as_ref), &limits);
        let measured = *condition.stats();
        let old = self.healths.get_mut(name).filter(|old| old.state == state);
        let since = old.as_ref().map_or(at, |old| old.since);
        let (latency, jitter) = (measured.slow.latency, measured.slow.jitter);
        // The daemon, too, writes a reason when something changes and not with each sample.
        let is_same = |old: &&mut PathHealth| old.score == score && (old.reason == GONE) == condition.is_dead();
        let reason = match old.filter(is_same) {
            Some(old) => std::mem::take(&mut old.reason),
            None if condition.is_dead() => GONE.to_owned(),
            None => explain(&measured, &limits),
        };
        let health = PathHealth {
            latency,
            jitter,
            rounds: measured.slow.rounds,
            loss: measured.slow.loss,
            ..bare(state, score, since, reason)
        };
        self.healths.insert(name.clone(), health);
        self.measures.insert(name.clone(), measured);
        if condition.is_recorded() {
            self.decide(at, begin);
        } else if let Some(choice) = self.selection.rules.get_mut(&self.rule) {
            // What nobody saw is no evidence for a return.
            choice.wait_anew();
        }
    }

    fn decide(&mut self, at: Instant, begin: Wall) {
        let Self { site, healths, measures, overrides, .. } = self;
        let inputs = Inputs { site, healths, measures, overrides };
        let decision = failover::decide(&inputs, &mut self.selection, at);
        self.next = decision.next.map(|(next, _)| next);
        self.switches.extend(decision.transitions.into_iter().map(|t| switch(t, begin)).filter(moves));
    }

    pub fn into_switches(self) -> Vec<Switch> {
        self.switches
    }
}

fn switch(t: Transition, begin: Wall) -> Switch {
    Switch { at: wall(t.at, begin), rule: t.rule, from: t.from, to: t.to, kind: t.kind, reason: t.reason }
}

/// What is not probed is up as long as its carrier is there, which is not recorded.
fn at_first(path: &Path, begin: Instant) -> PathHealth {
    if path.probe.targets.is_empty() {
        bare(PathState::Up, 100, begin, "not probed".to_owned())
    } else {
        bare(PathState::Unknown, 0, begin, "not in the record".to_owned())
    }
}

fn bare(state: PathState, score: u8, since: Instant, reason: String) -> PathHealth {
    PathHealth {
        state,
        score,
        loss: Ratio::ZERO,
        latency: None,
        jitter: None,
        rounds: 0,
        carrier: true,
        disabled: false,
        held: false,
        good: None,
        used: None,
        since,
        reason,
        families: std::collections::BTreeMap::new(),
    }
}
