//! A rule whose new flows take the first of its paths that is healthy and not full; established ones stay where they
//! are, so that neither the overflow nor its end moves any.
//!
//! - A line is full when more than `overflowAt` of its bandwidth has been in use for a moment, and no longer when at
//!   most four fifths of that have been in use for `failbackDelay` without a break.
//! - A line whose load is not known never becomes full, and is no longer full after the same wait.
//! - Which paths are fit to carry flows at all is decided as for rules that share: [`super::balance`].
//! - When all are full, new flows stay where they go.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Choice, Decision, Standing, TransitionKind,
    balance::{Wanted, gone},
    candidate::{Candidate, shown},
    choose::Round,
};
use crate::{
    clock::Instant,
    units::Ratio,
    validate::intent::{FlowAction, Rule},
};

/// For how long a line has to be in use that much: a burst fills none.
const FILLS: Duration = Duration::from_secs(1);
/// Below which share of `overflowAt` a line is no longer full.
const LOW: f64 = 0.8;

/// Whether a line is full.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Brim {
    full: bool,
    /// Since when its load says the contrary without a break.
    since: Option<Instant>,
}

impl Brim {
    /// Takes in the share of its bandwidth that is in use.
    pub fn observe(&mut self, rule: &Rule, used: Option<f64>, now: Instant) {
        let Some(mark) = rule.overflow else { return *self = Self::default() };
        let mark = mark.as_f64();
        let contrary =
            if self.full { used.is_none_or(|used| used <= mark * LOW) } else { used.is_some_and(|used| used > mark) };
        self.since = contrary.then(|| self.since.unwrap_or(now));
        if self.turns_at(rule).is_some_and(|at| at <= now) {
            *self = Self { full: !self.full, since: None };
        }
    }

    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// When it is the contrary, if the load stays as it is.
    pub fn turns_at(&self, rule: &Rule) -> Option<Instant> {
        let wait = if self.full { rule.failback_delay } else { FILLS };
        self.since.map(|since| if since == Choice::AT_ONCE { since } else { since + wait })
    }

    /// Since when it is on the way to being no longer full.
    pub fn empties(&self) -> Option<Instant> {
        self.since.filter(|_| self.full)
    }

    /// Ends the wait for that by hand.
    pub fn hasten(&mut self) {
        self.since = self.empties().map(|_| Choice::AT_ONCE).or(self.since);
    }
}

impl Round<'_> {
    /// The path that new flows take, of those that are fit.
    pub(super) fn turn<'s>(paths: &[&'s Candidate<'s>], choice: &Choice) -> Option<&'s Candidate<'s>> {
        let active = |m: &&&Candidate| choice.active.as_ref() == Some(m.name);
        // What is not measured is not moved to, and what came back a moment ago only if no other works.
        let known = |m: &&&Candidate| choice.active.is_none() || m.alive() || active(m);
        let room = |m: &&&Candidate| !m.full && (m.free() || active(m));
        let found = paths.iter().filter(known).find(room).or_else(|| paths.iter().find(active));
        let found = found.or_else(|| paths.iter().filter(known).find(|m| m.free()));
        found.or_else(|| paths.iter().find(known)).or_else(|| paths.first()).copied()
    }

    /// The record of a path that is left with its flows, and that of new flows that take another.
    pub(super) fn tell_turn(
        &self,
        old: &[&Candidate],
        wanted: &Wanted<'_>,
        choice: &mut Choice,
        decision: &mut Decision,
    ) {
        let was = self.members.iter().find(|m| Some(m.name) == choice.active.as_ref());
        let carries = |m: &Candidate| choice.members.iter().any(|memory| memory.path == *m.name && memory.carries);
        let left: Vec<&Candidate> = gone(old, wanted).into_iter().filter(|m| carries(m)).collect();
        for m in &left {
            self.tell_left(m, wanted, choice, decision);
        }
        let Some(to) = wanted.active.filter(|to| was.is_none_or(|was| was.name != to.name)) else { return };
        if was.is_some_and(|was| left.iter().any(|m| m.name == was.name)) {
            return;
        }
        let (kind, reason) = match was {
            _ if self.pinned().is_some() => (TransitionKind::Manual, self.by_hand(to).reason),
            Some(was) if was.full && !to.full && !self.before(to, was) => {
                (TransitionKind::Better, self.flowed(was, to))
            }
            Some(was) if self.before(to, was) && old.iter().any(|m| m.name == to.name) => {
                (TransitionKind::Failback, self.ebbed(to, was, wanted.hastened))
            }
            _ => self.why_back(to, choice),
        };
        let told = self.transition(was, Some(to), kind, reason, wanted);
        decision.transitions.push(told);
    }

    /// A path can carry no more flows: those it has are settled as they are elsewhere.
    fn tell_left(&self, m: &Candidate, wanted: &Wanted<'_>, choice: &mut Choice, decision: &mut Decision) {
        let Some(to) = wanted.active else { return };
        let pinned = self.pinned().is_some();
        let (kind, reason) = match m.standing {
            _ if pinned => (TransitionKind::Manual, self.by_hand(to).reason),
            Standing::Drained => (TransitionKind::Manual, format!("{}; {}", m.told(self.now), to.told(self.now))),
            _ => (TransitionKind::Failover, self.left(m, to)),
        };
        let action = match self.rule.on_failover {
            FlowAction::Auto if kind == TransitionKind::Manual => FlowAction::Graceful,
            action => action,
        };
        let told = self.transition(Some(m), Some(to), kind, reason, wanted);
        self.leave(m, action, told, choice, decision);
    }

    /// Whether a path comes before another in the rule's order.
    fn before(&self, one: &Candidate, other: &Candidate) -> bool {
        self.rule.members.iter().find(|m| *m == one.name || *m == other.name) == Some(one.name)
    }

    fn flowed(&self, full: &Candidate, to: &Candidate) -> String {
        let mark = self.rule.overflow.unwrap_or(Ratio::ONE);
        format!(
            "{} of the bandwidth of {} is in use, more than {mark}: new flows go on; {}",
            full.load(),
            full.name,
            to.told(self.now)
        )
    }

    fn ebbed(&self, to: &Candidate, was: &Candidate, by_hand: bool) -> String {
        let low = self.rule.overflow.unwrap_or(Ratio::ONE).as_f64() * LOW * 100.0;
        let wait = shown(self.rule.failback_delay);
        let why = if by_hand {
            "it was asked for by hand".to_owned()
        } else if !to.weighed() {
            return format!("the load of {} is not known any more for {wait}: new flows leave {}", to.name, was.name);
        } else {
            format!("it was at most {low:.0}% for {wait}")
        };
        format!("{} of the bandwidth of {} is in use, {why}: new flows leave {}", to.load(), to.name, was.name)
    }
}

#[cfg(test)]
mod tests;
