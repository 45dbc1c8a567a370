//! What happened in a world: which path each rule used when, how the paths were, and every change with its record.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    clock::Instant,
    failover::{self, Choice, Decision, Inputs, Selection, Standing, Transition},
    health::PathState,
    units::{Family, Name, PathPart},
    validate::intent::{Path, Site},
};

/// Values with the time from which each holds.
#[derive(Debug, Clone)]
struct Line<T>(Vec<(Duration, T)>);

impl<T: PartialEq> Line<T> {
    fn note(&mut self, at: Duration, value: T) {
        match self.0.last_mut() {
            Some((_, last)) if *last == value => {}
            Some((when, last)) if *when == at => *last = value,
            _ => self.0.push((at, value)),
        }
    }

    /// The value at a time; of changes at that very moment, the last.
    fn at(&self, at: Duration) -> Option<&T> {
        let next = self.0.partition_point(|(when, _)| *when <= at);
        next.checked_sub(1).and_then(|n| self.0.get(n)).map(|(_, value)| value)
    }

    /// The values that held from a time to another, with the time from which each did.
    fn between(&self, from: Duration, to: Duration) -> &[(Duration, T)] {
        let first = self.0.partition_point(|(when, _)| *when <= from).saturating_sub(1);
        let end = self.0.partition_point(|(when, _)| *when <= to);
        &self.0[first.min(end)..end]
    }
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

fn lines<T>(names: &[Name]) -> BTreeMap<Name, Line<T>> {
    names.iter().map(|name| (name.clone(), Line::default())).collect()
}

/// What happened. All times count from the beginning.
#[derive(Debug)]
pub struct Story {
    begin: Instant,
    active: BTreeMap<Name, Line<Vec<Name>>>,
    /// The same of each family.
    of_families: BTreeMap<(Name, Family), Line<Vec<Name>>>,
    /// Of paths, and of families that are measured apart.
    states: BTreeMap<PathPart, Line<(PathState, String)>>,
    standings: BTreeMap<Name, BTreeMap<Name, Line<Standing>>>,
    /// Every change of a rule's path.
    pub transitions: Vec<(Duration, Transition)>,
    /// Every family that left a path alone, and that came back.
    family_transitions: Vec<(Duration, Transition)>,
    /// Flows that were forgotten: rule and path.
    pub forgotten: Vec<(Duration, Name, Name)>,
    /// Decisions taken.
    pub decisions: u64,
}

impl Story {
    pub(super) fn new(site: &Site, begin: Instant) -> Self {
        let rules = site.rules.keys();
        let families = |name: &Name| Family::ALL.map(|family| ((name.clone(), family), Line::default()));
        let parts = |path: &Arc<Path>| {
            let families = path.probe.families().map(|family| PathPart::family(&path.name, family));
            let apart = families.filter(|_| path.probe.families().count() > 1);
            std::iter::once(PathPart::whole(&path.name)).chain(apart).collect::<Vec<_>>()
        };
        Self {
            begin,
            active: rules.clone().map(|name| (name.clone(), Line::default())).collect(),
            of_families: rules.flat_map(families).collect(),
            states: site.paths.values().flat_map(parts).map(|part| (part, Line::default())).collect(),
            standings: site.rules.iter().map(|(name, rule)| (name.clone(), lines(&rule.members))).collect(),
            transitions: Vec::new(),
            family_transitions: Vec::new(),
            forgotten: Vec::new(),
            decisions: 0,
        }
    }

    pub(super) fn note(&mut self, inputs: &Inputs<'_>, selection: &Selection, decision: &Decision, now: Instant) {
        let at = now.since(self.begin);
        self.decisions += 1;
        for (part, line) in &mut self.states {
            if let Some(health) = inputs.healths.get(&part.path).map(|health| health.of(part.family))
                && line.0.last().is_none_or(|(_, (state, _))| *state != health.state)
            {
                line.note(at, (health.state, health.reason.clone()));
            }
        }
        for (name, line) in &mut self.active {
            let used = || selection.rules.get(name).into_iter().flat_map(Choice::in_use);
            if line.0.last().is_none_or(|(_, last)| !last.iter().eq(used())) {
                line.note(at, used().cloned().collect());
            }
        }
        self.note_families(inputs.site, selection, at);
        self.note_standings(inputs, selection, now);
        let (whole, of_families): (Vec<_>, Vec<_>) =
            decision.transitions.iter().map(|t| (at, t.clone())).partition(|(_, t)| t.family.is_none());
        self.transitions.extend(whole);
        self.family_transitions.extend(of_families);
        self.forgotten.extend(decision.forget.iter().map(|(rule, path, _)| (at, rule.clone(), path.clone())));
    }

    fn note_families(&mut self, site: &Site, selection: &Selection, at: Duration) {
        for ((name, family), line) in &mut self.of_families {
            let (Some(rule), Some(choice)) = (site.rules.get(name), selection.rules.get(name)) else { continue };
            let used = failover::family_used(rule, choice, *family);
            if line.0.last().is_none_or(|(_, last)| !last.iter().eq(used.iter().copied())) {
                line.note(at, used.into_iter().cloned().collect());
            }
        }
    }

    fn note_standings(&mut self, inputs: &Inputs<'_>, selection: &Selection, now: Instant) {
        let at = now.since(self.begin);
        for (name, rule) in &inputs.site.rules {
            let (Some(choice), Some(lines)) = (selection.rules.get(name), self.standings.get_mut(name)) else {
                continue;
            };
            for (path, standing) in failover::standings(inputs, rule, choice) {
                if let Some(line) = lines.get_mut(path) {
                    line.note(at, standing);
                }
            }
        }
    }

    /// The paths that new flows of a rule took: none, one, or several that shared them.
    #[must_use]
    pub fn used(&self, rule: &Name, at: Duration) -> &[Name] {
        self.active.get(rule).and_then(|line| line.at(at)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The same from a time to another, of one family or of both.
    #[must_use]
    pub fn used_between(
        &self,
        rule: &Name,
        family: Option<Family>,
        from: Duration,
        to: Duration,
    ) -> &[(Duration, Vec<Name>)] {
        let line = match family {
            Some(family) => self.of_families.get(&(rule.clone(), family)),
            None => self.active.get(rule),
        };
        line.map(|line| line.between(from, to)).unwrap_or_default()
    }

    /// The states that a path, or a family of it that is measured apart, had from a time to another, with why.
    #[must_use]
    pub fn states_between(&self, part: &PathPart, from: Duration, to: Duration) -> &[(Duration, (PathState, String))] {
        self.states.get(part).map(|line| line.between(from, to)).unwrap_or_default()
    }

    /// How a rule regarded a path from a time to another.
    #[must_use]
    pub fn standings_between(&self, rule: &Name, path: &Name, from: Duration, to: Duration) -> &[(Duration, Standing)] {
        self.standings
            .get(rule)
            .and_then(|lines| lines.get(path))
            .map(|line| line.between(from, to))
            .unwrap_or_default()
    }

    /// The last time up to a moment that a family of a rule left a path alone, or came back.
    #[must_use]
    pub fn last_parting(&self, rule: &Name, family: Family, at: Duration) -> Option<&(Duration, Transition)> {
        let of = |(when, t): &&(Duration, Transition)| *when <= at && t.rule == *rule && t.family == Some(family);
        self.family_transitions.iter().rev().find(of)
    }

    /// The last change of a rule's path up to a time.
    #[must_use]
    pub fn last_change(&self, rule: &Name, at: Duration) -> Option<&(Duration, Transition)> {
        self.transitions.iter().rev().find(|(when, t)| *when <= at && t.rule == *rule)
    }
}
