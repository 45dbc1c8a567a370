//! Which path each rule uses now. Pure: `now` is an argument; every transition has a reason.
//!
//! - The active path is left when its score falls below `failoverThreshold` or it is down, if something better is
//!   there. It is never left for a path that is merely better: a backup that is good enough stays.
//! - The primary is returned to when its score has stayed at or above `failbackThreshold` for `failbackDelay`
//!   without a break; at once only when the path in use fails.
//! - A path that is not yet measured neither causes a move nor stops one: it beats one that is down, nothing else.
//!
//! Invariant: no rule uses a path that is down while another of its paths is up. Asking again at the same moment
//! changes nothing.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

mod candidate;
use candidate::Candidate;

use crate::{
    clock::Instant,
    health::{Healths, Measures, PathState},
    units::Name,
    validate::intent::{NoPath, Rule, Site, Strategy},
};

/// The path choice of every rule of the site: an *input* of `desired::compile`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// By rule.
    pub rules: BTreeMap<Name, Choice>,
}

/// The path choice of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The path in use; none only when every path is down and the rule says `reject`.
    pub active: Option<Name>,
    /// The others in the order in which the kernel shall try them when the active one loses its carrier.
    pub tail: Vec<Name>,
    /// Since when `active` is in use.
    pub since: Instant,
    /// Since when the primary has been healthy again without a break, while a backup is in use.
    pub recovering: Option<Instant>,
    /// Every path is down, and that has been announced.
    #[serde(default)]
    pub exhausted: bool,
}

/// One change of a rule's active path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// The rule.
    pub rule: Name,
    /// What was active before.
    pub from: Option<Name>,
    /// What is active now.
    pub to: Option<Name>,
    /// What kind of change.
    pub kind: TransitionKind,
    /// Why, for a person, with the measured figures and the threshold.
    pub reason: String,
    /// Whether flows pinned to `from` must be forgotten: it is down, so they have nothing to lose.
    pub forget: bool,
    /// When it was decided.
    pub at: Instant,
}

/// The kind of a transition; the `type` label of `patronus_failover_events_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransitionKind {
    /// The rule was seen for the first time, or its members changed.
    Initial,
    /// Away from a path that fell below the threshold.
    Failover,
    /// Back to the primary.
    Failback,
    /// No path is up.
    Exhausted,
}

/// Chooses for every rule of the site. Rules that are gone drop out; a rule whose active path is still a member
/// keeps it across any other change of the configuration.
#[must_use]
pub fn select(
    site: &Site,
    healths: &Healths,
    measures: &Measures,
    previous: &Selection,
    now: Instant,
) -> (Selection, Vec<Transition>) {
    let mut selection = Selection::default();
    let mut transitions = Vec::new();
    for (name, rule) in &site.rules {
        let members: Vec<Candidate> = rule.members.iter().map(|m| Candidate::new(m, rule, healths, measures)).collect();
        let round = Round { rule, members, now };
        let (choice, transition) = round.choose(previous.rules.get(name));
        selection.rules.insert(name.clone(), choice);
        transitions.extend(transition);
    }
    (selection, transitions)
}

/// When [`select`] has to be asked again although nothing new was measured, and what for.
#[must_use]
pub fn next_deadline(site: &Site, selection: &Selection) -> Option<(Instant, &'static str)> {
    let due = |(name, choice): (&Name, &Choice)| Some(choice.recovering? + site.rules.get(name)?.failback_delay);
    Some((selection.rules.iter().filter_map(due).min()?, "return to a primary"))
}

/// The time until a rule returns to its primary, while that is under way.
#[must_use]
pub fn failback_in(rule: &Rule, choice: &Choice, now: Instant) -> Option<Duration> {
    Some((choice.recovering? + rule.failback_delay).since(now))
}

/// One rule at one moment.
struct Round<'a> {
    rule: &'a Rule,
    members: Vec<Candidate<'a>>,
    now: Instant,
}

/// What is to be used next.
struct Move<'a> {
    to: Option<&'a Candidate<'a>>,
    kind: TransitionKind,
    reason: String,
}

impl Round<'_> {
    fn choose(&self, previous: Option<&Choice>) -> (Choice, Option<Transition>) {
        let recovering = self.recovering(previous);
        let old = previous.and_then(|c| c.active.as_ref());
        let active = old.and_then(|name| self.members.iter().find(|m| m.name == name));
        let announced = previous.is_some_and(|c| c.exhausted);
        let step = match (previous, active) {
            (Some(_), Some(active)) => self.reconsider(active, recovering, announced),
            (Some(c), None) if c.active.is_none() => self.revive(announced),
            _ => Some(self.begin(old)),
        };
        match step {
            Some(step) => self.carry_out(&step, previous, active),
            None => (self.stay(previous, active, recovering), None),
        }
    }

    /// Since when the primary has been fit to be returned to; none while it is in use.
    fn recovering(&self, previous: Option<&Choice>) -> Option<Instant> {
        let primary = self.members.first()?;
        let previous = previous?;
        let away = previous.active.as_ref().is_some_and(|active| active != primary.name);
        let fit = primary.usable(self.rule) && primary.score >= self.rule.failback_threshold;
        (away && fit).then(|| previous.recovering.unwrap_or(self.now))
    }

    /// The rule has a path and the path is still a member.
    fn reconsider<'s>(
        &'s self,
        active: &'s Candidate<'s>,
        recovering: Option<Instant>,
        announced: bool,
    ) -> Option<Move<'s>> {
        if let Some(since) = recovering.filter(|at| self.now >= *at + self.rule.failback_delay) {
            return Some(self.failback(active, since));
        }
        if active.usable(self.rule) || active.state == PathState::Unknown {
            return None;
        }
        match self.better_than(active) {
            Some(to) => Some(Move { to: Some(to), kind: TransitionKind::Failover, reason: self.left(active, to) }),
            None if active.state == PathState::Down && (!announced || self.rule.no_path == NoPath::Reject) => {
                Some(self.exhaust(Some(active)))
            }
            None => None,
        }
    }

    fn failback<'s>(&'s self, active: &Candidate, since: Instant) -> Move<'s> {
        let primary = &self.members[0];
        let seconds = self.now.since(since).as_secs_f64();
        let (score, threshold) = (primary.score, self.rule.failback_threshold);
        let reason = format!("{} scored {score} >= {threshold} for {seconds:.0} s; {}", primary.name, active.told());
        Move { to: Some(primary), kind: TransitionKind::Failback, reason }
    }

    /// Something worth leaving a failing path for: a usable one; from one that is down also one below the threshold,
    /// or one that is not yet measured.
    fn better_than(&self, active: &Candidate) -> Option<&Candidate<'_>> {
        let dead = active.state == PathState::Down;
        let others = || self.members.iter().filter(|m| m.name != active.name);
        self.best(others().filter(|m| m.usable(self.rule)))
            .or_else(|| self.best(others().filter(|m| dead && m.alive())))
            .or_else(|| others().find(|m| dead && m.state == PathState::Unknown))
    }

    fn best<'s>(&self, mut among: impl Iterator<Item = &'s Candidate<'s>>) -> Option<&'s Candidate<'s>> {
        match self.rule.strategy {
            Strategy::Ordered => among.next(),
            // Of equals `reduce` keeps the first.
            Strategy::BestScore => among.reduce(|best, m| if m.score > best.score { m } else { best }),
        }
    }

    /// The rule rejects because all was down.
    fn revive(&self, announced: bool) -> Option<Move<'_>> {
        let alive = || self.members.iter().filter(|m| m.alive());
        let best = self.best(alive().filter(|m| m.usable(self.rule))).or_else(|| self.best(alive()));
        if let Some(to) = best {
            let reason = format!("no path was up; {}", to.told());
            return Some(Move { to: Some(to), kind: TransitionKind::Failover, reason });
        }
        // `keep` was chosen meanwhile, so that some path has to carry the traffic.
        (!announced || self.rule.no_path == NoPath::Keep).then(|| self.exhaust(None))
    }

    /// The rule is new, or the path that it used is no longer a member.
    fn begin(&self, old: Option<&Name>) -> Move<'_> {
        let fit = |m: &Candidate| m.usable(self.rule) || m.state == PathState::Unknown;
        let primary = self.members.first().filter(|m| fit(m));
        let backup = || self.best(self.members.iter().filter(|m| m.usable(self.rule)));
        let alive = || self.best(self.members.iter().filter(|m| m.alive()));
        let unmeasured = || self.members.iter().find(|m| m.state == PathState::Unknown);
        let Some(to) = primary.or_else(backup).or_else(alive).or_else(unmeasured) else { return self.exhaust(None) };
        let why = match (old, self.members.first()) {
            (Some(old), _) => format!("{old} is no longer a member"),
            (None, Some(primary)) if primary.name != to.name => primary.told(),
            _ => "the primary".to_owned(),
        };
        Move { to: Some(to), kind: TransitionKind::Initial, reason: format!("{why}; {}", to.told()) }
    }

    fn exhaust<'s>(&'s self, active: Option<&'s Candidate<'s>>) -> Move<'s> {
        let all: Vec<String> = self.members.iter().map(Candidate::told).collect();
        let (to, then) = match self.rule.no_path {
            NoPath::Keep => (active.or_else(|| self.members.first()), "staying"),
            NoPath::Reject => (None, "rejecting"),
        };
        let then = to.map_or_else(|| then.to_owned(), |to| format!("{then} on {}", to.name));
        Move { to, kind: TransitionKind::Exhausted, reason: format!("no path is up: {}; {then}", all.join("; ")) }
    }

    fn left(&self, active: &Candidate, to: &Candidate) -> String {
        let (score, threshold) = (active.score, self.rule.failover_threshold);
        let relation = if score < threshold { "<" } else { ">=" };
        format!("{}: {} (score {score} {relation} {threshold}); {}", active.name, active.reason, to.told())
    }

    fn carry_out(
        &self,
        step: &Move,
        previous: Option<&Choice>,
        active: Option<&Candidate>,
    ) -> (Choice, Option<Transition>) {
        let old = previous.and_then(|c| c.active.as_ref());
        let to = step.to.map(|m| m.name.clone());
        let moved = old != to.as_ref();
        let transition = Transition {
            rule: self.rule.name.clone(),
            from: old.cloned(),
            to: to.clone(),
            kind: step.kind,
            reason: step.reason.clone(),
            forget: moved && active.is_some_and(|a| a.down),
            at: self.now,
        };
        let exhausted = step.kind == TransitionKind::Exhausted;
        let tail = self.tail(to.as_ref());
        let away = to.is_some() && to.as_ref() != self.rule.members.first();
        let since = previous.filter(|_| !moved).map_or(self.now, |c| c.since);
        let choice = Choice { active: to, tail, since, recovering: None, exhausted };
        let recovering = if away { self.recovering(Some(&choice)) } else { None };
        (Choice { recovering, ..choice }, Some(transition))
    }

    fn stay(&self, previous: Option<&Choice>, active: Option<&Candidate>, recovering: Option<Instant>) -> Choice {
        let name = active.map(|a| a.name.clone());
        let exhausted = previous.is_some_and(|c| c.exhausted) && active.is_none_or(|a| a.state == PathState::Down);
        let since = previous.map_or(self.now, |c| c.since);
        Choice { tail: self.tail(name.as_ref()), active: name, since, recovering, exhausted }
    }

    /// The others, best state first, in order of preference within it. `reject` leaves out what is down, so that
    /// the kernel does not fall back to it.
    fn tail(&self, active: Option<&Name>) -> Vec<Name> {
        let keep = self.rule.no_path == NoPath::Keep;
        let mut others: Vec<&Candidate> =
            self.members.iter().filter(|m| Some(m.name) != active && (keep || m.state != PathState::Down)).collect();
        others.sort_by_key(|m| m.rank());
        others.into_iter().map(|m| m.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
