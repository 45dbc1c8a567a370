//! Which path each rule uses now. Pure: `now` is an argument; every transition has a reason.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{clock::Instant, units::Name};

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
