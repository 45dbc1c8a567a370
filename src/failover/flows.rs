//! What happens to flows that are bound to a path when a rule leaves it.
//!
//! Flows whose addresses are not translated follow the rule and are not concerned.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Choice, Decision};
use crate::{
    clock::Instant,
    units::Name,
    validate::intent::{FlowAction, Rule},
};

/// For how long flows are answered with errors: who keeps a connection open without a word, such as an idle SSH
/// session, hears of it when it speaks next within this time.
const REJECTED_FOR: Duration = Duration::from_secs(60);

/// What happens to the flows that are bound to the path that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flows {
    /// They stay until they end; new ones take the other path.
    Graceful,
    /// They stay for a while.
    Drain,
    /// They are forgotten at once; their next packet is new.
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
    /// Its flows are forgotten then.
    pub until: Instant,
    /// Until then they are answered with errors; otherwise they stay as they are.
    pub reject: bool,
}

/// What an action means for a path that is left now.
pub(super) const fn of(action: FlowAction, down: bool) -> Flows {
    match action {
        FlowAction::Auto if down => Flows::Forced,
        FlowAction::Auto | FlowAction::Graceful => Flows::Graceful,
        FlowAction::Drain(_) => Flows::Drain,
        FlowAction::Forced => Flows::Forced,
        FlowAction::Reject => Flows::Reject,
    }
}

/// Takes down that `path` was left in this way.
pub(super) fn leave(choice: &mut Choice, path: &Name, action: FlowAction, flows: Flows, now: Instant) {
    choice.leaving.retain(|l| l.path != *path);
    let until = match (flows, action) {
        (Flows::Drain, FlowAction::Drain(time)) => now + time,
        (Flows::Reject, _) => now + REJECTED_FOR,
        _ => return,
    };
    choice.leaving.push(Leaving { path: path.clone(), until, reject: flows == Flows::Reject });
}

/// Does what is due; a path that is in use again has nothing to settle.
pub(super) fn settle(rule: &Rule, choice: &mut Choice, now: Instant, decision: &mut Decision) {
    if choice.leaving.is_empty() {
        return;
    }
    let in_use: Vec<Name> = choice.carrying().cloned().collect();
    choice.leaving.retain(|l| {
        let back = in_use.contains(&l.path);
        let over = back || l.until <= now || !rule.members.contains(&l.path);
        decision.routes |= over && l.reject;
        if over && !back {
            let why = if l.reject { "rejected for long enough" } else { "drained for long enough" };
            decision.forget.push((rule.name.clone(), l.path.clone(), format!("{} was {why}", l.path)));
        }
        !over
    });
}
