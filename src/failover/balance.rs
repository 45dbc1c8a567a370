//! A rule several of whose paths carry flows at a time: new ones are shared among all that are healthy, or
//! [overflow](super::overflow) from one to the next.
//!
//! - A path is in use while it is good enough. It is left as any other is, and comes back after `failbackDelay`.
//! - When none of those in use is good, all that are worth the most are used: the good ones; else those that work and
//!   that nothing holds back; else those that work; else those that were never measured.
//! - A path that leaves takes only its own share with it: the next path in use, in the rule's order and around, takes
//!   it over. A path that comes back gets new flows and takes none from the others.

use super::{
    Choice, Decision, Flows, Standing, Transition, TransitionKind,
    candidate::{Candidate, shown},
    choose::Round,
    flows,
};
use crate::{
    clock::Instant,
    health::PathState,
    units::Name,
    validate::intent::{FlowAction, Nat, NoPath, Rule, Site},
};

/// The paths that shall be in use, and why there are no better ones if there are none.
pub(super) struct Wanted<'s> {
    pub paths: Vec<&'s Candidate<'s>>,
    exhausted: bool,
    /// The first of those that get new flows.
    pub active: Option<&'s Candidate<'s>>,
    /// Somebody ended the wait for a return.
    pub hastened: bool,
}

impl<'s> Wanted<'s> {
    fn new(paths: Vec<&'s Candidate<'s>>, exhausted: bool) -> Self {
        Self { active: paths.first().copied(), paths, exhausted, hastened: false }
    }
}

/// The paths of a rule, as the table of a flow that is bound to one of them lists them.
///
/// Its own path first, where its addresses are translated, since any other would break it; where they are not, only
/// while the path is good enough. Then those that new flows would take.
#[must_use]
pub fn ways<'a>(site: &'a Site, rule: &'a Rule, choice: &'a Choice, member: &'a Name) -> Vec<&'a Name> {
    let translated = site.paths.get(member).is_some_and(|path| path.nat != Nat::None);
    let stays = translated || choice.carrying().any(|used| used == member);
    let new = if rule.balance.is_some() {
        drawn(rule, choice, member)
    } else {
        choice.active.iter().chain(&choice.tail).collect()
    };
    std::iter::once(member)
        .filter(|_| stays)
        .chain(new.into_iter().filter(|path| !(stays && *path == member)))
        .collect()
}

/// The paths that new flows try which drew one member of a rule that shares.
///
/// The member itself while it is in use, then the others in use, in the rule's order and around, then the rest as the
/// rule ranks them. So the loss of one moves its own part and no other.
#[must_use]
pub fn drawn<'a>(rule: &'a Rule, choice: &'a Choice, member: &'a Name) -> Vec<&'a Name> {
    let used = |path: &&Name| choice.carrying().any(|u| u == *path);
    let chosen = choice.active.iter().chain(&choice.tail);
    around(&rule.members, member).filter(used).chain(chosen.filter(|path| !used(path))).collect()
}

/// The members from one on, and around.
fn around<'a>(members: &'a [Name], from: &Name) -> impl Iterator<Item = &'a Name> {
    let at = members.iter().position(|m| m == from).unwrap_or_default();
    members.iter().cycle().skip(at).take(members.len())
}

/// Those in use that shall not be any longer.
pub(super) fn gone<'s>(old: &[&'s Candidate<'s>], wanted: &Wanted<'_>) -> Vec<&'s Candidate<'s>> {
    old.iter().copied().filter(|m| !wanted.paths.iter().any(|w| w.name == m.name)).collect()
}

impl Round<'_> {
    /// Brings the shared choice to what is right now.
    pub fn share(&self, choice: &mut Choice, known: bool, decision: &mut Decision) {
        let fresh = !known || (choice.sharing.is_empty() && choice.active.is_some());
        let hastened = choice.recovering == Some(Choice::AT_ONCE);
        self.track_returns(choice);
        let old: Vec<&Candidate> = if fresh {
            self.members.iter().filter(|m| m.free()).collect()
        } else {
            self.members.iter().filter(|m| choice.sharing.contains(m.name)).collect()
        };
        let bound = |m: &Candidate| {
            let takes =
                |memory: &super::Memory| memory.path == *m.name && (memory.carries || self.rule.balance.is_some());
            old.iter().any(|o| o.name == m.name) && choice.members.iter().any(takes)
        };
        self.members.iter().filter(|m| m.died && !bound(m)).for_each(|dead| flows::bury(self.rule, dead, decision));
        let mut wanted = Wanted { hastened, ..self.wanted(&old, choice) };
        if self.rule.overflow.is_some() {
            wanted.active = Self::turn(&wanted.paths, choice);
        }
        if fresh {
            self.tell_first(&wanted, choice, decision);
        } else if wanted.exhausted {
            self.tell_exhausted(&old, &wanted, choice, decision);
        } else if self.rule.overflow.is_some() {
            self.tell_turn(&old, &wanted, choice, decision);
        } else {
            self.tell_moves(&old, &wanted, choice, decision);
        }
        choice.exhausted = wanted.exhausted;
        self.settle_on(&wanted, choice, decision);
        flows::settle(self.rule, choice, self.now, decision);
        self.order_tail(choice, decision);
    }

    /// Keeps since when each path that is not in use has been fit to come back, and shows the first of them.
    fn track_returns(&self, choice: &mut Choice) {
        let hastened = choice.recovering == Some(Choice::AT_ONCE);
        let mut first: Option<(Instant, &Name)> = None;
        for (m, memory) in self.members.iter().zip(&mut choice.members) {
            let out = !choice.sharing.contains(m.name);
            let fit = out && m.free() && m.usable(self.rule) && m.score >= self.rule.failback_threshold;
            memory.fit = fit
                .then(|| memory.fit.filter(|_| !hastened).unwrap_or(if hastened { Choice::AT_ONCE } else { self.now }));
            let since = memory.fit.or_else(|| memory.brim.empties());
            if let Some(since) = since.filter(|since| first.is_none_or(|(at, _)| *since < at)) {
                first = Some((since, m.name));
            }
        }
        choice.recovering = first.map(|(since, _)| since);
        let primary = self.members.first().map(|m| m.name);
        choice.toward = first.map(|(_, path)| path).filter(|path| Some(*path) != primary).cloned();
    }

    /// The paths to use, in the rule's order.
    fn wanted<'s>(&'s self, old: &[&Candidate], choice: &Choice) -> Wanted<'s> {
        if let Some(to) = self.pinned() {
            return Wanted::new(vec![to], false);
        }
        let was = |m: &Candidate| old.iter().any(|o| o.name == m.name);
        let drained = |m: &Candidate| m.standing == Standing::Drained;
        let back = |m: &Candidate| self.returns(m, choice).is_some();
        let unmeasured = |m: &Candidate| m.state == PathState::Unknown && !m.barred;
        let all = |fits: &dyn Fn(&Candidate) -> bool| -> Vec<&'s Candidate<'s>> {
            self.members.iter().filter(|m| fits(m)).collect()
        };
        // What is not yet measured neither causes a move nor stops one.
        let keeps = |m: &Candidate| back(m) || (was(m) && !drained(m) && (m.usable(self.rule) || unmeasured(m)));
        let sure = self.members.iter().any(|m| keeps(m) && m.usable(self.rule));
        if self.members.iter().any(keeps) {
            let works = |m: &Candidate| !sure && was(m) && m.alive() && !drained(m);
            return Wanted::new(all(&|m| keeps(m) || works(m)), false);
        }
        let tiers: [&dyn Fn(&Candidate) -> bool; 4] =
            [&|m| m.usable(self.rule) && m.free(), &|m| m.alive() && m.free(), &|m| m.alive(), &|m| unmeasured(m)];
        if let Some(tier) = tiers.into_iter().find(|tier| self.members.iter().any(tier)) {
            return Wanted::new(all(tier), false);
        }
        let paths = match self.rule.no_path {
            NoPath::Keep if old.is_empty() => self.members.iter().take(1).collect(),
            NoPath::Keep => all(&was),
            NoPath::LeastBad => self.least_bad().or_else(|| self.members.first()).into_iter().collect(),
            NoPath::Reject | NoPath::NextPolicy => Vec::new(),
        };
        Wanted::new(paths, true)
    }

    /// Since when a path has been fit, if it has been for long enough.
    fn returns(&self, m: &Candidate, choice: &Choice) -> Option<Instant> {
        let fit = choice.members.iter().find(|memory| memory.path == *m.name)?.fit;
        fit.filter(|since| *since == Choice::AT_ONCE || self.now >= *since + self.rule.failback_delay)
    }

    fn settle_on(&self, wanted: &Wanted<'_>, choice: &mut Choice, decision: &mut Decision) {
        let (active, in_turn) = (wanted.active.map(|m| m.name), self.rule.overflow.is_some());
        let moved = choice.active.as_ref() != active || choice.in_turn != in_turn;
        if choice.sharing.iter().eq(wanted.paths.iter().map(|m| m.name)) && !moved {
            return;
        }
        choice.sharing = wanted.paths.iter().map(|m| m.name.clone()).collect();
        (choice.active, choice.in_turn) = (active.cloned(), in_turn);
        choice.since = if moved || !in_turn { self.now } else { choice.since };
        for memory in &mut choice.members {
            memory.carries = choice.sharing.contains(&memory.path)
                && (memory.carries || choice.active.as_ref() == Some(&memory.path));
        }
        decision.routes = true;
        self.track_returns(choice);
    }

    fn tell_first(&self, wanted: &Wanted<'_>, choice: &Choice, decision: &mut Decision) {
        let (kind, reason) = if wanted.exhausted {
            (TransitionKind::Exhausted, self.none_up(wanted))
        } else {
            let told: Vec<String> = wanted.paths.iter().map(|m| m.told(self.now)).collect();
            let how = if self.rule.overflow.is_some() { "one after another" } else { "shared by" };
            (TransitionKind::Initial, format!("{how} {}", told.join("; ")))
        };
        let old = self.members.iter().find(|m| Some(m.name) == choice.active.as_ref());
        decision.transitions.push(self.transition(old, wanted.active, kind, reason, wanted));
    }

    /// Told once for all; each path that is given up is told for itself, since its flows have to be settled.
    fn tell_exhausted(&self, old: &[&Candidate], wanted: &Wanted<'_>, choice: &mut Choice, decision: &mut Decision) {
        let (kind, reason) = (TransitionKind::Exhausted, self.none_up(wanted));
        let to = wanted.active;
        let before = decision.transitions.len();
        for m in gone(old, wanted) {
            let told = self.transition(Some(m), to, kind, reason.clone(), wanted);
            self.leave(m, self.rule.on_failover, told, choice, decision);
        }
        if !choice.exhausted && decision.transitions.len() == before {
            decision.transitions.push(self.transition(old.first().copied(), to, kind, reason, wanted));
        }
    }

    fn none_up(&self, wanted: &Wanted<'_>) -> String {
        let all: Vec<String> = self.members.iter().map(|m| m.told(self.now)).collect();
        let names: Vec<&str> = wanted.paths.iter().map(|m| m.name.as_str()).collect();
        let then = match self.rule.no_path {
            NoPath::Keep => format!("staying on {}", names.join(", ")),
            NoPath::LeastBad => format!("the least bad is {}", names.join(", ")),
            NoPath::Reject => "rejecting".to_owned(),
            NoPath::NextPolicy => "new flows go to the next policy that matches".to_owned(),
        };
        format!("no path is up: {}; {then}", all.join("; "))
    }

    /// One record for each path that leaves, and for each that comes and did not take the place of one.
    fn tell_moves(&self, old: &[&Candidate], wanted: &Wanted<'_>, choice: &mut Choice, decision: &mut Decision) {
        let mut heirs = Vec::new();
        for m in gone(old, wanted) {
            let Some(heir) = self.heir(m, &wanted.paths) else { continue };
            heirs.push(heir.name);
            let pinned = self.pinned().is_some();
            let by_hand = pinned || m.standing == Standing::Drained;
            let kind = if by_hand { TransitionKind::Manual } else { TransitionKind::Failover };
            let reason = match kind {
                TransitionKind::Manual if pinned => self.by_hand(heir).reason,
                TransitionKind::Manual => format!("{}; {}", m.told(self.now), heir.told(self.now)),
                _ => self.left(m, heir),
            };
            let action = match self.rule.on_failover {
                FlowAction::Auto if by_hand => FlowAction::Graceful,
                action => action,
            };
            let told = self.transition(Some(m), Some(heir), kind, reason, wanted);
            self.leave(m, action, told, choice, decision);
        }
        let comes = |m: &&&Candidate| !old.iter().any(|o| o.name == m.name) && !heirs.contains(&m.name);
        for m in wanted.paths.iter().filter(comes) {
            let (kind, reason) = self.why_back(m, choice);
            decision.transitions.push(self.transition(self.heir(m, old), Some(m), kind, reason, wanted));
        }
    }

    /// A path leaves: what happens to the flows that are bound to it.
    pub(super) fn leave(
        &self,
        m: &Candidate,
        action: FlowAction,
        told: Transition,
        choice: &mut Choice,
        decision: &mut Decision,
    ) {
        let flows = flows::of(action, m.down);
        let silent = Some(m).filter(|m| m.down).and_then(Candidate::silent_since);
        flows::leave(self, choice, m, action, decision);
        decision.transitions.push(Transition { flows, detected_in: silent.map(|at| self.now.since(at)), ..told });
    }

    pub(super) fn why_back(&self, m: &Candidate, choice: &Choice) -> (TransitionKind, String) {
        match self.returns(m, choice) {
            _ if self.pin.is_some_and(|p| p.to == *m.name) => (TransitionKind::Manual, self.by_hand(m).reason),
            Some(Choice::AT_ONCE) => {
                (TransitionKind::Failback, format!("{} scored {} and was asked for by hand", m.name, m.score))
            }
            Some(since) => {
                let (score, threshold) = (m.score, self.rule.failback_threshold);
                let waited = shown(self.now.since(since));
                let shares = self.rule.balance.is_some();
                let then = if shares { "new flows are shared with it" } else { "new flows return to it" };
                let reason = format!("{} scored {score} >= {threshold} for {waited}: {then}", m.name);
                (TransitionKind::Failback, reason)
            }
            None => (TransitionKind::Failover, format!("no path in use was good; {}", m.told(self.now))),
        }
    }

    /// Who carries the share of a path: the next of these in the rule's order, and around.
    fn heir<'c>(&self, m: &Candidate, among: &[&'c Candidate<'c>]) -> Option<&'c Candidate<'c>> {
        let others = || among.iter().copied().filter(|o| o.name != m.name);
        around(&self.rule.members, m.name).find_map(|name| others().find(|o| o.name == name))
    }

    pub(super) fn transition(
        &self,
        from: Option<&Candidate>,
        to: Option<&Candidate>,
        kind: TransitionKind,
        reason: String,
        wanted: &Wanted<'_>,
    ) -> Transition {
        let alternative = |m: &Candidate| {
            let shares = |w: &&&Candidate| self.rule.balance.is_some() && w.name == m.name;
            let used = wanted.paths.iter().find(shares).copied();
            self.alternative(m, used.or(wanted.active))
        };
        Transition {
            rule: self.rule.name.clone(),
            from: from.map(|m| m.name.clone()),
            to: to.map(|m| m.name.clone()),
            kind,
            family: None,
            reason,
            threshold: self.rule.failover_threshold,
            alternatives: self.members.iter().map(alternative).collect(),
            flows: Flows::Graceful,
            at: self.now,
            detected_in: None,
            decided_in: None,
            switched_in: None,
            forgotten: 0,
        }
    }
}

#[cfg(test)]
mod tests;
