//! What happened in a world: which path each rule used when, how the paths were, and every change with its record.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    clock::Instant,
    failover::{self, Choice, Decision, Inputs, Selection, Standing, Transition},
    health::PathState,
    units::Name,
    validate::intent::Site,
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
    states: BTreeMap<Name, Line<(PathState, String)>>,
    standings: BTreeMap<Name, BTreeMap<Name, Line<Standing>>>,
    /// Every change of a rule's path.
    pub transitions: Vec<(Duration, Transition)>,
    /// Flows that were forgotten: rule and path.
    pub forgotten: Vec<(Duration, Name, Name)>,
    /// Decisions taken.
    pub decisions: u64,
}

impl Story {
    pub(super) fn new(site: &Site, begin: Instant) -> Self {
        Self {
            begin,
            active: site.rules.keys().map(|name| (name.clone(), Line::default())).collect(),
            states: site.paths.keys().map(|name| (name.clone(), Line::default())).collect(),
            standings: site.rules.iter().map(|(name, rule)| (name.clone(), lines(&rule.members))).collect(),
            transitions: Vec::new(),
            forgotten: Vec::new(),
            decisions: 0,
        }
    }

    pub(super) fn note(&mut self, inputs: &Inputs<'_>, selection: &Selection, decision: &Decision, now: Instant) {
        let at = now.since(self.begin);
        self.decisions += 1;
        for (name, line) in &mut self.states {
            if let Some(health) = inputs.healths.get(name)
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
        self.note_standings(inputs, selection, now);
        self.transitions.extend(decision.transitions.iter().filter(|t| t.family.is_none()).map(|t| (at, t.clone())));
        self.forgotten.extend(decision.forget.iter().map(|(rule, path, _)| (at, rule.clone(), path.clone())));
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

    /// The same from a time to another.
    #[must_use]
    pub fn used_between(&self, rule: &Name, from: Duration, to: Duration) -> &[(Duration, Vec<Name>)] {
        self.active.get(rule).map(|line| line.between(from, to)).unwrap_or_default()
    }

    /// The states that a path had from a time to another, with why.
    #[must_use]
    pub fn states_between(&self, path: &Name, from: Duration, to: Duration) -> &[(Duration, (PathState, String))] {
        self.states.get(path).map(|line| line.between(from, to)).unwrap_or_default()
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

    /// The last change of a rule's path up to a time.
    #[must_use]
    pub fn last_change(&self, rule: &Name, at: Duration) -> Option<&(Duration, Transition)> {
        self.transitions.iter().rev().find(|(when, t)| *when <= at && t.rule == *rule)
    }
}
