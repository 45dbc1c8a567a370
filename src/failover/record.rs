//! The record of one change: what was measured, against which threshold, what the others were worth and why they
//! lost, what moved.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Flows, Standing};
use crate::{
    clock::Instant,
    units::{Family, Name},
};

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
    /// The family that alone moves; none if the rule does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Why, for a person, with the measured figures and the threshold.
    pub reason: String,
    /// The score below which a path is left.
    pub threshold: u8,
    /// All paths of the rule: what each was worth, and why those that were not chosen lost.
    pub alternatives: Vec<Alternative>,
    /// What happens to flows that are bound to `from`.
    pub flows: Flows,
    /// When it was decided.
    pub at: Instant,
    /// From the last good sign of `from` to the decision, where it was left because nothing came any more.
    pub detected_in: Option<Duration>,
    /// How long the decision took, for all rules of the site together.
    #[serde(default)]
    pub decided_in: Option<Duration>,
    /// From the decision until the kernel had the routes.
    #[serde(default)]
    pub switched_in: Option<Duration>,
    /// Flows that were forgotten since. That takes longer than the change, so the event of it does not tell.
    #[serde(default)]
    pub forgotten: u64,
}

/// One path of the rule at the moment of the decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// The path.
    pub path: Name,
    /// How the rule regarded it.
    pub standing: Standing,
    /// Its score under the rule's thresholds.
    pub score: u8,
    /// What was measured.
    pub measured: String,
    /// Why it was not chosen; empty for the one that was.
    pub lost: String,
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
    /// From a good path to a better one.
    Better,
    /// By hand.
    Manual,
    /// No path is up.
    Exhausted,
    /// One family leaves a path, and the other stays.
    #[serde(rename = "family-left")]
    FamilyLeft,
    /// That family is back where its rule is.
    #[serde(rename = "family-back")]
    FamilyBack,
}

impl TransitionKind {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Failover => "failover",
            Self::Failback => "failback",
            Self::Better => "better",
            Self::Manual => "manual",
            Self::Exhausted => "exhausted",
            Self::FamilyLeft => "family-left",
            Self::FamilyBack => "family-back",
        }
    }
}
