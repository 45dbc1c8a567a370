//! One family of a path that fails while the other works: only its traffic leaves, and it comes back by itself.
//!
//! A rule chooses a path for both families, and a path is as its better one (`health`). Where a family of a path is worse
//! than that, the rule's routes of this family put the path behind the others: it is *lame* in it. What makes a path
//! lame and what brings it back are the rule's own thresholds and its wait to restore.
//!
//! - Only a path that is measured in both families can be lame, and only while another can carry this family better.
//! - A lame path stays the last resort of its family: the kernel falls back to it when all others lose their carrier.
//! - What is pinned by hand is not lame.
//!
//! Invariant: without a lame path every family takes the paths in the rule's own order.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{
    Alternative, Choice, Decision, Flows, Standing, Transition, TransitionKind,
    balance::{drawn, ways},
    candidate::Candidate,
    choose::Round,
    memory::Memory,
};
use crate::{
    clock::Instant,
    health::PathState,
    units::{Family, Name},
    validate::intent::{Destination, FlowAction, GatewaySpec, Nat, Rule, Site, TunnelSpec},
};

/// One family of a path that a rule left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lame {
    /// Since when.
    pub since: Instant,
    /// Why, for a person.
    pub why: String,
    /// Nothing gets through.
    dead: bool,
    /// Since when it has been fit to be returned to without a break.
    fit: Option<Instant>,
}

/// A family that goes another way than its rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parted {
    /// The family.
    pub family: Family,
    /// The path that the rule uses.
    pub from: Name,
    /// The path that the family takes.
    pub to: Name,
    /// Since when.
    pub since: Instant,
    /// Why.
    pub reason: String,
    /// Seconds until it comes back, while that is under way.
    pub back_in: Option<f64>,
}

/// How good a path is for one family; the order is that of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Good,
    Poor,
    Unknown,
    Dead,
}

/// For each family and each path in use, the path that carries it.
type Heads = BTreeMap<(Family, Name), Name>;

impl Choice {
    /// Why a family of a path was left, if it was.
    #[must_use]
    pub fn lame(&self, path: &Name, family: Family) -> Option<&Lame> {
        self.members.iter().find(|memory| memory.path == *path)?.lame.get(&family)
    }

    /// Notes that a family left a path, as is known of an earlier moment.
    pub fn leave(&mut self, path: &Name, family: Family, why: String) {
        let known = self.members.iter().position(|memory| memory.path == *path);
        let at = known.unwrap_or_else(|| {
            self.members.push(Memory::new(path));
            self.members.len() - 1
        });
        self.members[at].lame.insert(family, Lame { since: Instant::default(), why, dead: false, fit: None });
    }

    /// Paths in the order for one family: those that are lame in it come last.
    #[must_use]
    pub fn in_family<'n>(&self, family: Family, mut paths: Vec<&'n Name>) -> Vec<&'n Name> {
        if self.members.iter().any(|memory| memory.lame.contains_key(&family)) {
            paths.sort_by_key(|path| self.lame(path, family).is_some());
        }
        paths
    }

    /// Ends the wait of families for their return; whether one waited.
    pub(super) fn hasten_families(&mut self) -> bool {
        let lame = self.members.iter_mut().flat_map(|memory| memory.lame.values_mut());
        lame.filter(|lame| lame.fit.is_some()).map(|lame| lame.fit = Some(Self::AT_ONCE)).count() > 0
    }
}

/// The paths in the order for one family, as the table of a flow lists them that is bound to a path. Through NAT it stays
/// there even if the path is lame.
#[must_use]
pub fn family_ways<'n>(
    site: &'n Site,
    rule: &'n Rule,
    choice: &'n Choice,
    member: &'n Name,
    family: Family,
) -> Vec<&'n Name> {
    let all = ways(site, rule, choice, member);
    let translated = site.paths.get(member).is_some_and(|path| path.nat != Nat::None);
    if !translated {
        return choice.in_family(family, all);
    }
    let rest = all.into_iter().filter(|path| *path != member).collect();
    std::iter::once(member).chain(choice.in_family(family, rest)).collect()
}

/// The paths in the order for one family that new flows try which drew a member of a rule that shares.
#[must_use]
pub fn family_drawn<'n>(rule: &'n Rule, choice: &'n Choice, member: &'n Name, family: Family) -> Vec<&'n Name> {
    choice.in_family(family, drawn(rule, choice, member))
}

/// The path that a rule's first choice is for a family.
#[must_use]
pub fn family_path<'n>(rule: &'n Rule, choice: &'n Choice, family: Family) -> Option<&'n Name> {
    head(rule, choice, choice.active.as_ref()?, family)
}

/// The paths that new flows of a family take now, as [`Choice::in_use`] tells it of both.
#[must_use]
pub fn family_used<'n>(rule: &'n Rule, choice: &'n Choice, family: Family) -> Vec<&'n Name> {
    let mut used = Vec::new();
    for path in choice.in_use().filter_map(|path| head(rule, choice, path, family)) {
        if !used.contains(&path) {
            used.push(path);
        }
    }
    used
}

/// The path that a family takes in place of one that is in use.
fn head<'n>(rule: &'n Rule, choice: &'n Choice, used: &'n Name, family: Family) -> Option<&'n Name> {
    let all = if rule.balance.is_some() {
        drawn(rule, choice, used)
    } else {
        choice.active.iter().chain(&choice.tail).collect()
    };
    choice.in_family(family, all).into_iter().next()
}

/// Where each family goes; nothing is looked at where no family can part.
pub(super) fn heads(rule: &Rule, choice: &Choice) -> Heads {
    let used = || choice.in_use().flat_map(|used| Family::ALL.map(|family| (family, used)));
    used().filter_map(|(f, used)| Some(((f, used.clone()), head(rule, choice, used, f)?.clone()))).collect()
}

/// The families of a rule that go another way than it.
#[must_use]
pub fn parted(rule: &Rule, choice: &Choice, now: Instant) -> Vec<Parted> {
    let part = |((family, from), to): (&(Family, Name), &Name)| {
        let lame = choice.lame(from, *family)?;
        Some(Parted {
            family: *family,
            from: from.clone(),
            to: to.clone(),
            since: lame.since,
            reason: lame.why.clone(),
            back_in: lame.fit.map(|since| (since + rule.failback_delay).since(now).as_secs_f64()),
        })
    };
    heads(rule, choice).iter().filter(|((_, from), to)| from != *to).filter_map(part).collect()
}

/// Whether a path may have a next hop of a family: `auto` may bring one.
fn may_carry(site: &Site, path: &Name, family: Family) -> bool {
    let Some(path) = site.paths.get(path) else { return false };
    let any = |gateways: &[IpAddr]| gateways.iter().any(|gateway| Family::of(gateway) == family);
    match &path.to {
        Destination::Internet => match site.endpoints.get(&path.from).map(|e| &e.gateway) {
            Some(GatewaySpec::Fixed(gateways)) => any(gateways),
            Some(GatewaySpec::Auto) | None => true,
        },
        Destination::Site { tunnel: TunnelSpec::Vxlan { inner_remote, .. }, .. } => any(inner_remote),
        Destination::Site { tunnel: TunnelSpec::Interface { gateways }, .. } => gateways.is_empty() || any(gateways),
    }
}

/// What becomes of one family of one path.
enum Turn {
    Stay,
    Leave(String),
    Return(String),
}

impl Round<'_> {
    /// Whether a family of a path may go another way than the rule.
    pub fn has_families(&self, choice: &Choice) -> bool {
        self.members.iter().any(Candidate::has_families) || choice.members.iter().any(|m| !m.lame.is_empty())
    }

    /// Lets families leave paths and come back. `before` is where they went before the rule decided.
    pub fn part(&self, site: &Site, choice: &mut Choice, before: (&Heads, Option<&Name>), decision: &mut Decision) {
        let mut whys: BTreeMap<(Family, &Name), String> = BTreeMap::new();
        for family in Family::ALL {
            for (m, memory) in self.members.iter().zip(&mut choice.members) {
                let rank = self.rank(m, family);
                let turn =
                    self.turn_of(m, family, rank, self.best_other(site, m, family), memory.lame.get_mut(&family));
                let dead = rank == Rank::Dead && !m.down;
                match turn {
                    Turn::Leave(why) => {
                        whys.insert((family, m.name), why);
                        let why = m.family(family).map_or_else(String::new, |h| h.reason.clone());
                        memory.lame.insert(family, Lame { since: self.now, why, dead, fit: None });
                        self.forget(m, family, dead, decision);
                        decision.routes = true;
                    }
                    Turn::Return(why) => {
                        whys.insert((family, m.name), why);
                        memory.lame.remove(&family);
                        decision.routes = true;
                    }
                    Turn::Stay => {
                        let Some(lame) = memory.lame.get_mut(&family) else { continue };
                        let died = !std::mem::replace(&mut lame.dead, dead) && dead;
                        self.forget(m, family, died, decision);
                        let back = lame.fit.map(|since| since + self.rule.failback_delay);
                        decision.wake(back.filter(|at| *at > self.now), "the return of a family");
                    }
                }
            }
        }
        self.tell_families(choice, before, &whys, decision);
    }

    fn turn_of(&self, m: &Candidate, family: Family, rank: Rank, best: Rank, lame: Option<&mut Lame>) -> Turn {
        let pinned = self.pinned().is_some_and(|to| to.name == m.name);
        let own = m.family(family);
        let Some(lame) = lame else {
            let bad = matches!(rank, Rank::Poor | Rank::Dead) && best < rank;
            let leaves = own.is_some() && bad && !pinned && !m.down;
            return if leaves { Turn::Leave(self.because(m, family)) } else { Turn::Stay };
        };
        let fit = rank == Rank::Good && own.is_some_and(|h| h.score >= self.rule.failback_threshold) && m.free();
        lame.fit = fit.then(|| lame.fit.unwrap_or(self.now));
        let waited = lame.fit.filter(|at| *at == Choice::AT_ONCE || *at + self.rule.failback_delay <= self.now);
        match (own, waited) {
            (None, _) if m.is_whole() => {
                Turn::Return(format!("{family} of {} is no longer measured by itself", m.name))
            }
            _ if pinned => Turn::Return(format!("the rule is pinned to {} by hand", m.name)),
            (Some(_), Some(Choice::AT_ONCE)) => Turn::Return(format!("{family} of {} was asked for by hand", m.name)),
            (Some(h), Some(since)) => {
                let (threshold, waited) = (self.rule.failback_threshold, self.now.since(since).as_secs());
                Turn::Return(format!("{family} of {} scored {} >= {threshold} for {waited} s", m.name, h.score))
            }
            _ if best == Rank::Dead => Turn::Return(format!("no other path carries {family}")),
            _ if best == Rank::Poor && rank == Rank::Good => {
                Turn::Return(format!("{family} of {} is good and that of no other path", m.name))
            }
            _ => Turn::Stay,
        }
    }

    /// How good a path is for a family; one that is measured in one family only is as good for both.
    fn rank(&self, m: &Candidate, family: Family) -> Rank {
        let (state, score) = m.family(family).map_or((m.state, m.score), |h| (h.state, h.score));
        match state {
            PathState::Down => Rank::Dead,
            PathState::Unknown => Rank::Unknown,
            _ if score >= self.rule.failover_threshold => Rank::Good,
            _ => Rank::Poor,
        }
    }

    /// How good the best of the others is for a family.
    fn best_other(&self, site: &Site, m: &Candidate, family: Family) -> Rank {
        let out = |o: &Candidate| o.barred || matches!(o.standing, Standing::Drained | Standing::Disabled);
        let others = self.members.iter().filter(|o| o.name != m.name && !out(o) && may_carry(site, o.name, family));
        others.map(|o| self.rank(o, family)).min().unwrap_or(Rank::Dead)
    }

    fn because(&self, m: &Candidate, family: Family) -> String {
        let (reason, score) = m.family(family).map_or(("", 0), |h| (h.reason.as_str(), h.score));
        let threshold = self.rule.failover_threshold;
        format!("{family} of {}: {reason} (score {score} < {threshold})", m.name)
    }

    /// Flows that are bound to a path whose family is dead have nothing to lose, unless the rule says that they stay.
    fn forget(&self, m: &Candidate, family: Family, died: bool, decision: &mut Decision) {
        if died && !matches!(self.rule.on_failover, FlowAction::Graceful | FlowAction::Reject) {
            let why = format!("{family} of {} is dead", m.name);
            decision.forget_family.push((self.rule.name.clone(), m.name.clone(), family, why));
        }
    }

    /// One record for each family that goes another way than before, unless it simply goes along with its rule.
    fn tell_families(
        &self,
        choice: &Choice,
        (before, active): (&Heads, Option<&Name>),
        whys: &BTreeMap<(Family, &Name), String>,
        decision: &mut Decision,
    ) {
        let after = heads(self.rule, choice);
        for ((family, used), to) in &after {
            // A rule that shares has several paths in use, and each is told for itself.
            let used_before = if self.rule.balance.is_some() { Some(used) } else { active };
            let from = used_before.and_then(|old| before.get(&(*family, old.clone())));
            let Some(from) = from.filter(|from| *from != to) else { continue };
            if Some(from) == used_before && to == used {
                continue;
            }
            let kind = if to == used { TransitionKind::FamilyBack } else { TransitionKind::FamilyLeft };
            let why = whys.get(&(*family, from)).or_else(|| whys.get(&(*family, to)));
            let lame = || choice.lame(used, *family).map(|lame| format!("{family} of {used}: {}", lame.why));
            let reason = why.cloned().or_else(lame).unwrap_or_else(|| format!("{from} is left"));
            let told = self.family_transition(*family, (from, to), kind, reason, choice);
            decision.transitions.push(told);
        }
    }

    fn family_transition(
        &self,
        family: Family,
        (from, to): (&Name, &Name),
        kind: TransitionKind,
        reason: String,
        choice: &Choice,
    ) -> Transition {
        let left = self.members.iter().find(|m| m.name == from);
        let dead = left.is_some_and(|m| kind == TransitionKind::FamilyLeft && self.rank(m, family) == Rank::Dead);
        let silent = left.filter(|_| dead).and_then(|m| m.family(family)?.good);
        let alternative = |m: &Candidate| {
            let own = m.family(family);
            let lost = match choice.lame(m.name, family) {
                _ if m.name == to => String::new(),
                Some(lame) => lame.why.clone(),
                None => format!("{to} comes first"),
            };
            let measured = own.map_or_else(|| m.reason(), |h| h.reason.clone());
            let score = own.map_or(m.score, |h| h.score);
            Alternative { path: m.name.clone(), standing: m.standing, score, measured, lost }
        };
        Transition {
            rule: self.rule.name.clone(),
            from: Some(from.clone()),
            to: Some(to.clone()),
            kind,
            family: Some(family),
            reason,
            threshold: self.rule.failover_threshold,
            alternatives: self.members.iter().map(alternative).collect(),
            flows: if dead { Flows::Forced } else { Flows::Graceful },
            at: self.now,
            detected_in: silent.map(|good| self.now.since(good)),
            decided_in: None,
            switched_in: None,
            forgotten: 0,
        }
    }
}

#[cfg(test)]
mod tests;
