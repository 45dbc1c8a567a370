//! Which path each rule uses now. Pure: `now` is an argument; every transition has a reason.
//!
//! - The active path is left when its score falls below `failoverThreshold` or it is down, if something better is
//!   there. It is left for a path that is merely better only where the strategy says so, and only after
//!   `failbackDelay`.
//! - The primary is returned to when its score has stayed at or above `failbackThreshold` for `failbackDelay`
//!   without a break; at once only when the path in use fails.
//! - A path that was down is held for `holdDown`, one that flaps is damped, one that is drained is left: none of them
//!   is chosen while another works, and each of them is rather than none (except what was drained by force).
//! - Where one family of a path fails, that family alone goes another way (`family`).
//! - A path that is not yet measured neither causes a move nor stops one: it beats one that is down, nothing else.
//!
//! Invariant: no rule uses a path that is down while another of its paths is up. Asking again at the same moment
//! changes nothing.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

mod balance;
mod candidate;
mod choose;
mod family;
mod flows;
mod memory;
mod overflow;
pub mod overrides;
mod record;

pub use self::{
    balance::{drawn, ways},
    candidate::Standing,
    family::{Lame, Parted, family_drawn, family_path, family_used, family_ways, parted},
    flows::{Flows, Leaving, Told},
    memory::Memory,
    overrides::{Drain, Overrides, Pin},
    record::{Alternative, Transition, TransitionKind},
};
use self::{candidate::Candidate, choose::Round};
use crate::{
    clock::Instant,
    health::{Healths, Measures},
    units::{Family, Name},
    validate::intent::{NoPath, Rule, Site},
};

/// The path choice of every rule of the site: an *input* of `desired::compile`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// By rule.
    pub rules: BTreeMap<Name, Choice>,
}

impl Selection {
    /// Rules with a path that they left, and what its flows are told.
    pub fn told(&self) -> impl Iterator<Item = (&Name, &Name, Told)> {
        let all =
            self.rules.iter().flat_map(|(rule, choice)| choice.leaving.iter().map(move |l| (rule, &l.path, l.told)));
        all.filter(|(_, _, told)| *told != Told::Nothing)
    }

    /// Whether new flows of a rule go to the next policy that matches: it has no path and says so.
    #[must_use]
    pub fn passes_on(&self, rule: &Rule) -> bool {
        rule.no_path == NoPath::NextPolicy && self.rules.get(&rule.name).is_some_and(|c| c.active.is_none())
    }
}

/// The path choice of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// The path in use; none only when every path is down and the rule says `reject` or `nextPolicy`.
    pub active: Option<Name>,
    /// The others in the order in which the kernel shall try them when the active one loses its carrier.
    pub tail: Vec<Name>,
    /// Since when `active` is in use.
    pub since: Instant,
    /// Since when another path has been fit to be moved to without a break.
    pub recovering: Option<Instant>,
    /// Which one; the primary if absent.
    pub toward: Option<Name>,
    /// Every path is down, and that has been announced.
    pub exhausted: bool,
    /// What is remembered of each member, in their order.
    pub members: Vec<Memory>,
    /// Paths that were left, whose flows are not yet settled.
    pub leaving: Vec<Leaving>,
    /// The paths that carry flows at a time, in the rule's order; empty where one path carries all. All of them get new
    /// flows, the active one is the first; or only the active one does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sharing: Vec<Name>,
    /// Only the active one of those does: the rule overflows.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_turn: bool,
}

impl Choice {
    /// Stands in `recovering` for a wait that somebody ended by hand.
    const AT_ONCE: Instant = Instant::from_nanos(0);

    /// The paths that new flows take now: none, one, or several that share them.
    pub fn in_use(&self) -> impl Iterator<Item = &Name> {
        let alone = self.sharing.is_empty() || self.in_turn;
        let one = self.active.iter().filter(move |_| alone);
        self.sharing.iter().filter(move |_| !alone).chain(one)
    }

    /// The paths whose flows stay on them.
    pub fn carrying(&self) -> impl Iterator<Item = &Name> {
        let one = self.active.iter().filter(|_| self.sharing.is_empty());
        self.sharing.iter().chain(one)
    }

    /// Lets all waits for a return begin anew: nobody knows how the paths were meanwhile.
    pub fn wait_anew(&mut self) {
        (self.recovering, self.toward) = (None, None);
        self.members.iter_mut().for_each(|memory| memory.fit = None);
    }

    /// Ends the wait for a return, of the rule and of a family; it happens with the next decision if a path is fit to be
    /// returned to. Whether anything waited.
    pub fn hasten(&mut self) -> bool {
        let waits = self.recovering.is_some();
        if waits {
            self.recovering = Some(Self::AT_ONCE);
        }
        self.hasten_families() || waits
    }
}

/// What is decided upon.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The configuration.
    pub site: &'a Site,
    /// How the paths are.
    pub healths: &'a Healths,
    /// The figures behind that.
    pub measures: &'a Measures,
    /// What people asked for by hand.
    pub overrides: &'a Overrides,
}

/// What a decision came to.
#[derive(Debug, Default)]
pub struct Decision {
    /// Changes of active paths, each with its record.
    pub transitions: Vec<Transition>,
    /// Whether anything that shows in routes or in the ruleset changed.
    pub routes: bool,
    /// Flows that are to be forgotten now: those of a rule that are bound to a path, and why.
    pub forget: Vec<(Name, Name, String)>,
    /// The same for one family of a path.
    pub forget_family: Vec<(Name, Name, Family, String)>,
    /// When to decide again although nothing new was measured, and what for.
    pub next: Option<(Instant, &'static str)>,
}

impl Decision {
    fn wake(&mut self, at: Option<Instant>, what: &'static str) {
        if let Some(at) = at.filter(|at| self.next.is_none_or(|(next, _)| *at < next)) {
            self.next = Some((at, what));
        }
    }
}

/// Decides for every rule of the site. Rules that are gone drop out; a rule whose active path is still a member keeps
/// it across any other change of the configuration.
pub fn decide(inputs: &Inputs<'_>, selection: &mut Selection, now: Instant) -> Decision {
    let mut decision = Decision::default();
    let site = inputs.site;
    if selection.rules.len() != site.rules.len() || !selection.rules.keys().eq(site.rules.keys()) {
        selection.rules.retain(|name, _| site.rules.contains_key(name));
        decision.routes = true;
    }
    for (name, rule) in &site.rules {
        if let Some(choice) = selection.rules.get_mut(name) {
            one(inputs, rule, choice, true, now, &mut decision);
        } else {
            let mut choice = Choice::default();
            one(inputs, rule, &mut choice, false, now, &mut decision);
            selection.rules.insert(name.clone(), choice);
        }
    }
    decision
}

/// Decides for one rule.
fn one(inputs: &Inputs<'_>, rule: &Rule, choice: &mut Choice, known: bool, now: Instant, decision: &mut Decision) {
    align(&mut choice.members, &rule.members);
    if choice.recovering == Some(Choice::AT_ONCE) {
        choice.members.iter_mut().for_each(|memory| memory.brim.hasten());
    }
    let look = |(name, memory)| Candidate::look(name, rule, inputs, memory, now);
    let members: Vec<Candidate<'_>> = rule.members.iter().zip(&mut choice.members).map(look).collect();
    let pin = inputs.overrides.pin(&rule.name, now);
    let round = Round { rule, members, pin, now };
    decision.routes |= !known;
    if round.has_families(choice) {
        let (heads, active) = (family::heads(rule, choice), choice.active.clone());
        round.decide(choice, known, decision);
        round.part(inputs.site, choice, (&heads, active.as_ref()), decision);
    } else {
        round.decide(choice, known, decision);
    }
    decision.wake(pin.map(|p| p.until), "the end of an order by hand");
    let held = round.members.iter().filter_map(|m| m.until).min();
    decision.wake(held, "a path that is held or damped");
    decision.wake(round.members.iter().filter_map(|m| m.turns).min(), "a line that fills or empties");
    decision.wake(choice.recovering.map(|at| at + rule.failback_delay).filter(|at| *at > now), "return to a primary");
    decision.wake(choice.leaving.iter().map(|l| l.until).min(), "flows of a path that was left");
}

/// Brings the memories into the order of the members.
fn align(memories: &mut Vec<Memory>, members: &[Name]) {
    if memories.iter().map(|m| &m.path).eq(members) {
        return;
    }
    let mut old: BTreeMap<Name, Memory> = memories.drain(..).map(|m| (m.path.clone(), m)).collect();
    memories.extend(members.iter().map(|name| old.remove(name).unwrap_or_else(|| Memory::new(name))));
}

/// [`decide`] on a copy and without orders by hand.
#[must_use]
pub fn select(
    site: &Site,
    healths: &Healths,
    measures: &Measures,
    previous: &Selection,
    now: Instant,
) -> (Selection, Vec<Transition>) {
    let mut selection = previous.clone();
    let overrides = Overrides::default();
    let decision = decide(&Inputs { site, healths, measures, overrides: &overrides }, &mut selection, now);
    (selection, decision.transitions)
}

/// The time until a rule returns to its primary or moves to a better path, while that is under way.
#[must_use]
pub fn failback_in(rule: &Rule, choice: &Choice, now: Instant) -> Option<Duration> {
    Some((choice.recovering? + rule.failback_delay).since(now))
}

/// How a rule regards one of its paths now, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The path.
    pub path: Name,
    /// Its standing.
    pub standing: Standing,
    /// Its score under the rule's thresholds.
    pub score: u8,
    /// Why.
    pub reason: String,
    /// For how many seconds it is still held or damped.
    pub remaining: Option<f64>,
    /// Its penalty for flapping now; 0 without damping.
    pub penalty: u32,
    /// Its line is full, so that new flows go on to the next; only where the rule overflows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
}

/// How a rule regards its paths; `choice` is not changed.
#[must_use]
pub fn views(inputs: &Inputs<'_>, rule: &Rule, choice: &Choice, now: Instant) -> Vec<View> {
    let mut memories = choice.members.clone();
    align(&mut memories, &rule.members);
    let view = |(name, memory): (&Name, &mut Memory)| {
        let member = Candidate::look(name, rule, inputs, memory, now);
        View {
            path: name.clone(),
            standing: member.standing,
            score: member.score,
            reason: member.reason(),
            remaining: member.until.map(|at| at.since(now).as_secs_f64()),
            penalty: rule.damping.as_ref().map_or(0, |d| memory.penalty(d, now)),
            full: member.full,
        }
    };
    rule.members.iter().zip(&mut memories).map(view).collect()
}

/// How a rule regarded its paths when it last decided.
pub fn standings<'a>(
    inputs: &'a Inputs<'a>,
    rule: &'a Rule,
    choice: &'a Choice,
) -> impl Iterator<Item = (&'a Name, Standing)> {
    choice.members.iter().map(|memory| {
        let drained = inputs.overrides.drains.contains_key(&memory.path);
        let disabled = inputs.healths.get(&memory.path).is_some_and(|h| h.disabled);
        (&memory.path, candidate::standing(memory.state, drained, disabled, rule, memory).0)
    })
}

#[cfg(test)]
mod tests;
