//! One rule at one moment: whether to move, and where to.

use std::cmp::Reverse;

use super::{
    Alternative, Choice, Decision, Flows, Pin, Standing, Transition, TransitionKind,
    candidate::{Candidate, shown},
    flows,
};
use crate::{
    clock::Instant,
    health::PathState,
    units::{Name, Ratio},
    validate::intent::{FlowAction, NoPath, Rule, Strategy},
};

/// One rule at one moment.
pub(super) struct Round<'a> {
    pub rule: &'a Rule,
    pub members: Vec<Candidate<'a>>,
    /// What it is pinned to by hand.
    pub pin: Option<&'a Pin>,
    pub now: Instant,
}

/// What is to be used next.
pub(super) struct Move<'s> {
    to: Option<&'s Candidate<'s>>,
    kind: TransitionKind,
    pub(super) reason: String,
}

impl<'s> Move<'s> {
    const fn new(to: Option<&'s Candidate<'s>>, kind: TransitionKind, reason: String) -> Self {
        Self { to, kind, reason }
    }
}

impl Round<'_> {
    /// Brings the choice to what is right now.
    pub fn decide(&self, choice: &mut Choice, known: bool, decision: &mut Decision) {
        if self.rule.spreads() {
            return self.share(choice, known, decision);
        }
        decision.routes |= !choice.sharing.is_empty();
        choice.sharing.clear();
        choice.in_turn = false;
        let active = choice.active.as_ref().and_then(|name| self.members.iter().find(|m| m.name == name));
        let unused = self.members.iter().filter(|m| m.died && !choice.in_use().any(|used| used == m.name));
        unused.for_each(|dead| flows::bury(self.rule, dead, decision));
        self.track_recovery(choice, active);
        let step = match active {
            _ if !known => Some(self.begin(None)),
            Some(active) => self.reconsider(active, choice),
            None => match &choice.active {
                Some(gone) => Some(self.begin(Some(gone))),
                None => self.revive(choice.exhausted),
            },
        };
        match step {
            Some(step) => self.carry_out(&step, choice, active, decision),
            None => choice.exhausted &= active.is_none_or(|a| a.state == PathState::Down),
        }
        flows::settle(self.rule, choice, self.now, decision);
        self.order_tail(choice, decision);
    }

    /// Keeps since when another path has been fit to be moved to.
    fn track_recovery(&self, choice: &mut Choice, active: Option<&Candidate>) {
        let preferred = active.and_then(|active| self.preferred(active));
        match preferred {
            None => (choice.recovering, choice.toward) = (None, None),
            Some(to) => {
                let primary = self.members.first().is_some_and(|p| p.name == to.name);
                let same = choice.toward.as_ref().map_or(primary, |old| old == to.name);
                if choice.recovering.is_none() || !same {
                    choice.recovering = Some(self.now);
                    choice.toward = (!primary).then(|| to.name.clone());
                }
            }
        }
    }

    /// The path that the rule would rather use than a good one, if there is one fit for it.
    fn preferred(&self, active: &Candidate) -> Option<&Candidate<'_>> {
        let fit = |m: &&Candidate| {
            m.name != active.name && m.free() && m.usable(self.rule) && m.score >= self.rule.failback_threshold
        };
        let primary = || self.members.first().filter(fit);
        match self.rule.strategy {
            Strategy::Ordered | Strategy::LoadBalance | Strategy::Overflow => primary(),
            Strategy::BestScore => primary().or_else(|| {
                let advantage =
                    self.rule.advantage.filter(|_| active.name != self.members[0].name || !active.free())?;
                self.best(self.members.iter().filter(fit)).filter(|m| higher(m.score, active.score, advantage))
            }),
            Strategy::BestQuality => {
                let best = self.best(self.members.iter().filter(fit))?;
                let (new, old) = (best.figure(self.rule.metric)?, active.figure(self.rule.metric));
                let advantage = self.rule.advantage.unwrap_or(Ratio::ZERO).as_f64();
                old.is_none_or(|old| new < old && new <= old * (1.0 - advantage)).then_some(best)
            }
            Strategy::LowestCost => self.best(self.members.iter().filter(fit)).filter(|m| m.cost < active.cost),
        }
    }

    /// The rule has a path and the path is still a member.
    fn reconsider<'s>(&'s self, active: &'s Candidate<'s>, choice: &Choice) -> Option<Move<'s>> {
        if let Some(to) = self.pinned() {
            return (to.name != active.name).then(|| self.by_hand(to));
        }
        if let Some(since) = choice.recovering.filter(|at| self.now >= *at + self.rule.failback_delay) {
            return self.preferred(active).map(|to| self.restore(to, active, since));
        }
        let drained = active.standing == Standing::Drained;
        let good = active.usable(self.rule) || (active.state == PathState::Unknown && !active.barred);
        if good && !drained {
            return None;
        }
        match self.better_than(active) {
            Some(to) if drained => {
                let reason = format!("{}; {}", active.told(self.now), to.told(self.now));
                Some(Move::new(Some(to), TransitionKind::Manual, reason))
            }
            Some(to) => Some(Move::new(Some(to), TransitionKind::Failover, self.left(active, to))),
            None => self.nothing_better(active, choice.exhausted),
        }
    }

    fn nothing_better<'s>(&'s self, active: &'s Candidate<'s>, announced: bool) -> Option<Move<'s>> {
        if active.state != PathState::Down && !active.barred {
            return None;
        }
        let worse =
            self.rule.no_path == NoPath::LeastBad && active.dead() && self.least_bad().is_some_and(|m| !m.dead());
        (!announced || self.rule.no_path.gives_up() || worse).then(|| self.exhaust(Some(active)))
    }

    /// The path that the rule is pinned to, unless it is known not to work. One that was down has to be measured to work
    /// again, and is held and damped as without the order: people pin a rule to a path, not to its flapping.
    pub(super) fn pinned(&self) -> Option<&Candidate<'_>> {
        let pin = self.pin?;
        let kept = |m: &&Candidate| matches!(m.standing, Standing::Held | Standing::Damped) || m.fallen;
        let works = |m: &&Candidate| (m.alive() || m.state == PathState::Unknown) && !m.barred;
        self.members.iter().find(|m| *m.name == pin.to && works(m) && !kept(m))
    }

    pub(super) fn by_hand<'s>(&self, to: &'s Candidate<'s>) -> Move<'s> {
        let (reason, left) = self.pin.map(|p| (p.reason.as_str(), p.until.since(self.now))).unwrap_or_default();
        let reason = format!("by hand for {}: {reason}; {}", shown(left), to.told(self.now));
        Move::new(Some(to), TransitionKind::Manual, reason)
    }

    /// Back to the primary, or on to a better path.
    fn restore<'s>(&'s self, to: &'s Candidate<'s>, active: &Candidate, since: Instant) -> Move<'s> {
        let home = self.members.first().is_some_and(|p| p.name == to.name);
        let by_rank = matches!(self.rule.strategy, Strategy::Ordered | Strategy::BestScore);
        let kind = if home && by_rank { TransitionKind::Failback } else { TransitionKind::Better };
        let (score, threshold) = (to.score, self.rule.failback_threshold);
        let waited = match since {
            Choice::AT_ONCE => "and was asked for by hand".to_owned(),
            since => format!("for {:.0} s", self.now.since(since).as_secs_f64()),
        };
        let reason = match (kind, self.rule.strategy) {
            (TransitionKind::Better, Strategy::BestQuality) => self.compared(to, active, &waited),
            (TransitionKind::Better, Strategy::LowestCost) => format!(
                "{} scored {score} >= {threshold} {waited} and costs {} < {}; {}",
                to.name,
                to.cost,
                active.cost,
                active.told(self.now)
            ),
            _ => format!("{} scored {score} >= {threshold} {waited}; {}", to.name, active.told(self.now)),
        };
        Move::new(Some(to), kind, reason)
    }

    fn compared(&self, to: &Candidate, active: &Candidate, waited: &str) -> String {
        let metric = self.rule.metric;
        let word = match metric {
            crate::validate::intent::Metric::Latency => "latency",
            crate::validate::intent::Metric::Jitter => "jitter",
            crate::validate::intent::Metric::Loss => "loss",
        };
        let figure = |m: &Candidate| match (metric, m.figure(metric)) {
            (_, None) => "unknown".to_owned(),
            (crate::validate::intent::Metric::Loss, Some(share)) => format!("{:.1}%", share * 100.0),
            (_, Some(seconds)) => format!("{:.1}ms", seconds * 1000.0),
        };
        let advantage = self.rule.advantage.unwrap_or(Ratio::ZERO);
        format!(
            "{word} of {} {} is better than {} of {} by {advantage} or more {waited}",
            to.name,
            figure(to),
            figure(active),
            active.name
        )
    }

    /// Something worth leaving a failing path for: a usable one; from one that is dead or drained also one below the
    /// threshold, one that is held, damped or drained, or one that is not yet measured, in this order.
    fn better_than(&self, active: &Candidate) -> Option<&Candidate<'_>> {
        let (drained, dead) = (active.standing == Standing::Drained, active.state == PathState::Down || active.barred);
        let others = || self.members.iter().filter(|m| m.name != active.name);
        self.best(others().filter(|m| m.usable(self.rule) && m.free()))
            .or_else(|| self.least(others().filter(|m| (dead || drained) && m.alive() && m.free())))
            .or_else(|| self.least(others().filter(|m| dead && m.alive())))
            .or_else(|| others().find(|m| dead && m.state == PathState::Unknown && !m.barred))
    }

    /// The one that the strategy takes of several that are good enough.
    fn best<'s>(&self, mut among: impl Iterator<Item = &'s Candidate<'s>>) -> Option<&'s Candidate<'s>> {
        let figure = |m: &Candidate| m.figure(self.rule.metric).unwrap_or(f64::INFINITY);
        // Of equals `min_by` keeps the first.
        match self.rule.strategy {
            Strategy::Ordered | Strategy::LoadBalance | Strategy::Overflow => among.next(),
            Strategy::BestScore => among.min_by_key(|m| Reverse(m.score)),
            Strategy::BestQuality => among.min_by(|a, b| figure(a).total_cmp(&figure(b))),
            Strategy::LowestCost => among.min_by_key(|m| m.cost),
        }
    }

    /// The one that is taken of several of which none is good enough: never simply the cheapest.
    fn least<'s>(&self, mut among: impl Iterator<Item = &'s Candidate<'s>>) -> Option<&'s Candidate<'s>> {
        match self.rule.strategy {
            Strategy::Ordered | Strategy::LoadBalance | Strategy::Overflow => among.next(),
            Strategy::BestQuality => self.best(among),
            Strategy::BestScore | Strategy::LowestCost => among.min_by_key(|m| Reverse(m.score)),
        }
    }

    /// Of paths that are all down, the one that loses least.
    pub(super) fn least_bad(&self) -> Option<&Candidate<'_>> {
        self.members.iter().filter(|m| !m.barred).min_by_key(|m| m.badness())
    }

    /// The rule has no path because all was down.
    fn revive(&self, announced: bool) -> Option<Move<'_>> {
        if let Some(to) = self.pinned().filter(|m| m.alive()) {
            return Some(self.by_hand(to));
        }
        let alive = || self.members.iter().filter(|m| m.alive());
        let best = self.best(alive().filter(|m| m.usable(self.rule) && m.free()));
        let best = best.or_else(|| self.least(alive().filter(|m| m.free()))).or_else(|| self.least(alive()));
        if let Some(to) = best {
            let reason = format!("no path was up; {}", to.told(self.now));
            return Some(Move::new(Some(to), TransitionKind::Failover, reason));
        }
        // Another answer was chosen meanwhile, so that some path has to carry the traffic.
        (!announced || !self.rule.no_path.gives_up()).then(|| self.exhaust(None))
    }

    /// The rule is new, or the path that it used is no longer a member.
    fn begin(&self, old: Option<&Name>) -> Move<'_> {
        if let Some(to) = self.pinned() {
            return self.by_hand(to);
        }
        let fit = |m: &&Candidate| m.free() && (m.usable(self.rule) || m.state == PathState::Unknown);
        let by_rank = matches!(self.rule.strategy, Strategy::Ordered | Strategy::BestScore);
        let primary = self.members.first().filter(fit).filter(|m| by_rank || m.state == PathState::Unknown);
        let good = || self.best(self.members.iter().filter(|m| m.usable(self.rule) && m.free()));
        let alive = || self.least(self.members.iter().filter(|m| m.alive() && m.free()));
        let any = || self.least(self.members.iter().filter(|m| m.alive()));
        let unmeasured = || self.members.iter().find(|m| m.state == PathState::Unknown && !m.barred);
        let first = if by_rank { primary.or_else(good) } else { good().or(primary) };
        let Some(to) = first.or_else(alive).or_else(any).or_else(unmeasured) else { return self.exhaust(None) };
        let why = match (old, self.members.first()) {
            (Some(old), _) => format!("{old} is no longer a member"),
            (None, Some(primary)) if primary.name != to.name => primary.told(self.now),
            _ => "the primary".to_owned(),
        };
        Move::new(Some(to), TransitionKind::Initial, format!("{why}; {}", to.told(self.now)))
    }

    fn exhaust<'s>(&'s self, active: Option<&'s Candidate<'s>>) -> Move<'s> {
        let all: Vec<String> = self.members.iter().map(|m| m.told(self.now)).collect();
        let (to, then) = match self.rule.no_path {
            NoPath::Keep => (active.or_else(|| self.members.first()), "staying on"),
            NoPath::LeastBad => (self.least_bad().or_else(|| self.members.first()), "the least bad is"),
            NoPath::Reject => (None, "rejecting"),
            NoPath::NextPolicy => (None, "new flows go to the next policy that matches"),
        };
        let then = to.map_or_else(|| then.to_owned(), |to| format!("{then} {}", to.name));
        Move::new(to, TransitionKind::Exhausted, format!("no path is up: {}; {then}", all.join("; ")))
    }

    pub(super) fn left(&self, active: &Candidate, to: &Candidate) -> String {
        let (score, threshold) = (active.score, self.rule.failover_threshold);
        let relation = if score < threshold { "<" } else { ">=" };
        format!("{}: {} (score {score} {relation} {threshold}); {}", active.name, active.reason(), to.told(self.now))
    }

    fn carry_out(&self, step: &Move, choice: &mut Choice, active: Option<&Candidate>, decision: &mut Decision) {
        let to = step.to.map(|m| m.name.clone());
        let from = std::mem::replace(&mut choice.active, to.clone());
        let moved = from != to;
        let action = match step.kind {
            TransitionKind::Failback | TransitionKind::Better => self.rule.on_failback,
            TransitionKind::Manual if self.rule.on_failover == FlowAction::Auto => FlowAction::Graceful,
            _ => self.rule.on_failover,
        };
        let left = active.filter(|_| moved);
        let flows = left.map_or(Flows::Graceful, |a| flows::of(action, a.down));
        if let Some(left) = left {
            flows::leave(self, choice, left, action, decision);
        }
        decision.transitions.push(Transition {
            rule: self.rule.name.clone(),
            from,
            to,
            kind: step.kind,
            family: None,
            reason: step.reason.clone(),
            threshold: self.rule.failover_threshold,
            alternatives: self.members.iter().map(|m| self.alternative(m, step.to)).collect(),
            flows,
            at: self.now,
            detected_in: left.filter(|a| a.down).and_then(Candidate::silent_since).map(|good| self.now.since(good)),
            decided_in: None,
            switched_in: None,
            forgotten: 0,
        });
        decision.routes |= moved;
        choice.exhausted = step.kind == TransitionKind::Exhausted;
        if moved {
            choice.since = self.now;
            (choice.recovering, choice.toward) = (None, None);
            self.track_recovery(choice, step.to);
        }
    }

    pub(super) fn alternative(&self, m: &Candidate, chosen: Option<&Candidate>) -> Alternative {
        let lost = match chosen {
            Some(chosen) if chosen.name == m.name => String::new(),
            _ if m.standing == Standing::Up || m.standing == Standing::Degraded => self.why_not(m, chosen),
            _ => m.told(self.now),
        };
        Alternative { path: m.name.clone(), standing: m.standing, score: m.score, measured: m.reason(), lost }
    }

    /// Why a path that works was not chosen.
    fn why_not(&self, m: &Candidate, chosen: Option<&Candidate>) -> String {
        let threshold = self.rule.failover_threshold;
        let Some(chosen) = chosen else { return "no path was chosen".to_owned() };
        match self.rule.strategy {
            _ if m.score < threshold => format!("its score {} is below {threshold}", m.score),
            Strategy::BestScore if m.score < chosen.score => format!("its score {} is below {}", m.score, chosen.score),
            Strategy::LowestCost if m.cost > chosen.cost => format!("it costs {}, more than {}", m.cost, chosen.cost),
            Strategy::BestQuality => format!("{} is better or as good", chosen.name),
            _ if self.pin.is_some_and(|p| p.to == *chosen.name) => format!("pinned to {} by hand", chosen.name),
            Strategy::Overflow if m.full => format!("{} of its bandwidth is in use", m.load()),
            Strategy::LoadBalance => "it waits to share flows again".to_owned(),
            _ => format!("{} comes first", chosen.name),
        }
    }

    /// Puts the others in order, best standing first, in order of preference within it. A rule that gives up leaves out
    /// what is down, so that the kernel does not fall back to it.
    pub(super) fn order_tail(&self, choice: &mut Choice, decision: &mut Decision) {
        let all = !self.rule.no_path.gives_up();
        let active = choice.active.as_ref();
        let wanted = |m: &&Candidate| {
            Some(m.name) != active
                && !m.barred
                && (all || (m.state != PathState::Down && m.standing != Standing::Disabled))
        };
        let mut others: Vec<&Candidate> = self.members.iter().filter(wanted).collect();
        others.sort_by_key(|m| (m.rank(), m.full));
        if !others.iter().map(|m| m.name).eq(&choice.tail) {
            choice.tail = others.into_iter().map(|m| m.name.clone()).collect();
            decision.routes = true;
        }
    }
}

/// Whether a score exceeds another by this share of it.
fn higher(score: u8, than: u8, advantage: Ratio) -> bool {
    score > than && f64::from(score) >= f64::from(than) * (1.0 + advantage.as_f64())
}
