//! What happens to flows that are bound to a path when a rule leaves it.
//!
//! Flows whose addresses are not translated follow the rule and are not concerned.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Choice, Decision, candidate::Candidate, choose::Round};
use crate::{
    clock::Instant,
    units::Name,
    validate::intent::{FlowAction, Rule},
};

/// For how long flows are answered with errors: who keeps a connection open without a word, such as an idle SSH
/// session, hears of it when it speaks next within this time.
const REJECTED_FOR: Duration = Duration::from_secs(60);

/// For how long TCP is told before flows of a path that still works are forgotten. Whoever only listens learns of it in
/// no other way: once its flow is forgotten, what the other end sends reaches nobody.
const RESET_FOR: Duration = Duration::from_secs(1);

/// What happens to the flows that are bound to the path that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flows {
    /// They stay until they end; new ones take the other path.
    Graceful,
    /// They stay for a while.
    Drain,
    /// They are forgotten; their next packet is new.
    Forced,
    /// They are answered with errors.
    Reject,
}

impl Flows {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Graceful => "graceful",
            Self::Drain => "drain",
            Self::Forced => "forced",
            Self::Reject => "reject",
        }
    }
}

/// A path that a rule left, whose flows are not yet settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// The path.
    pub path: Name,
    /// How it was left.
    pub flows: Flows,
    /// Until then its flows are treated in this way.
    pub until: Instant,
    /// What they are told until then.
    #[serde(default)]
    pub told: Told,
}

/// What the ends of a flow are told when they send something by a path that was left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    /// Nothing: it goes on.
    #[default]
    Nothing,
    /// That it is over, if it is TCP.
    Resets,
    /// That it is over.
    Errors,
}

/// What an action means for a path that is left now.
pub(super) const fn of(action: FlowAction, down: bool) -> Flows {
    match action {
        FlowAction::Auto | FlowAction::Drain(_) if down => Flows::Forced,
        FlowAction::Auto | FlowAction::Graceful => Flows::Graceful,
        FlowAction::Drain(_) => Flows::Drain,
        FlowAction::Forced => Flows::Forced,
        FlowAction::Reject => Flows::Reject,
    }
}

/// Takes down that `path` was left in this way.
pub(super) fn leave(
    round: &Round<'_>,
    choice: &mut Choice,
    left: &Candidate,
    action: FlowAction,
    decision: &mut Decision,
) {
    let (path, now) = (left.name, round.now);
    let flows = of(action, left.down);
    choice.leaving.retain(|l| l.path != *path);
    let (until, told) = match (flows, action) {
        (Flows::Drain, FlowAction::Drain(time)) => (now + time, Told::Nothing),
        (Flows::Reject, _) => (now + REJECTED_FOR, Told::Errors),
        (Flows::Forced, _) if !left.down => (now + RESET_FOR, Told::Resets),
        (Flows::Forced, _) => {
            return decision.forget.push((round.rule.name.clone(), path.clone(), format!("{path} was left")));
        }
        _ => return,
    };
    decision.routes |= told != Told::Nothing;
    choice.leaving.push(Leaving { path: path.clone(), flows, until, told });
}

/// Flows that stayed on a path lose nothing any more when it dies as well: they are forgotten, unless the rule says
/// that they stay, or that they are told.
pub(super) fn bury(rule: &Rule, dead: &Candidate, decision: &mut Decision) {
    if !matches!(rule.on_failover, FlowAction::Graceful | FlowAction::Reject) {
        decision.forget.push((rule.name.clone(), dead.name.clone(), format!("{} is down", dead.name)));
    }
}

/// Does what is due; a path that is in use again has nothing to settle.
pub(super) fn settle(rule: &Rule, choice: &mut Choice, now: Instant, decision: &mut Decision) {
    if choice.leaving.is_empty() {
        return;
    }
    let in_use: Vec<Name> = choice.carrying().cloned().collect();
    choice.leaving.retain_mut(|l| {
        let (back, gone) = (in_use.contains(&l.path), !rule.members.contains(&l.path));
        if !back && !gone && l.until > now {
            return true;
        }
        decision.routes |= l.told != Told::Nothing;
        if !back && !gone && l.told == Told::Nothing {
            (l.told, l.until) = (Told::Resets, now + RESET_FOR);
            decision.routes = true;
            return true;
        }
        if !back {
            let why = match l.flows {
                Flows::Drain => "was drained for long enough",
                Flows::Reject => "was rejected for long enough",
                Flows::Forced | Flows::Graceful => "was left",
            };
            decision.forget.push((rule.name.clone(), l.path.clone(), format!("{} {why}", l.path)));
        }
        false
    });
}
