//! The rows of the records, as values.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    clock::Wall,
    engine::status::ReconcileOutcome,
    failover::{Transition, TransitionKind},
    health::{PathHealth, PathState},
    units::{Name, Ratio},
};

/// What was measured on a path at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSample {
    /// When.
    pub at: Wall,
    /// The path.
    pub path: Name,
    /// Mean round-trip time of the window in microseconds; absent without answers.
    pub rtt_micros: Option<u64>,
    /// Jitter of the window in microseconds; absent without answers.
    pub jitter_micros: Option<u64>,
    /// Lost probes of the window.
    pub loss: Ratio,
    /// 0 to 100.
    pub score: u8,
    /// State of the path.
    pub state: PathState,
}

impl HealthSample {
    /// The row for a path's health now.
    #[must_use]
    pub fn of(path: &Name, health: &PathHealth, at: Wall) -> Self {
        let micros = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Self {
            at,
            path: path.clone(),
            rtt_micros: health.latency.map(micros),
            jitter_micros: health.jitter.map(micros),
            loss: health.loss,
            score: health.score,
            state: health.state,
        }
    }
}

/// A change of a rule's active path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransitionRecord {
    /// When.
    pub at: Wall,
    /// The rule.
    pub rule: Name,
    /// What was active before.
    pub from: Option<Name>,
    /// What is active now.
    pub to: Option<Name>,
    /// What kind of change.
    pub kind: TransitionKind,
    /// Why.
    pub reason: String,
}

impl TransitionRecord {
    /// The row for a transition that was decided at this wall time.
    #[must_use]
    pub fn of(t: &Transition, at: Wall) -> Self {
        Self {
            at,
            rule: t.rule.clone(),
            from: t.from.clone(),
            to: t.to.clone(),
            kind: t.kind,
            reason: t.reason.clone(),
        }
    }
}

/// One reconcile or apply, as `patronus history` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its plan; absent when there was none (refused before a plan was made).
    pub plan: Option<Uuid>,
    /// The generation that it led to, or tried to.
    pub generation: u64,
    /// The revision of its configuration.
    pub revision: Option<String>,
    /// When it began.
    pub started: Wall,
    /// When it ended; absent while it runs and when it was interrupted.
    pub ended: Option<Wall>,
    /// How it ended.
    pub outcome: Option<ReconcileOutcome>,
    /// Steps of its plan.
    pub steps: usize,
    /// What went wrong, if anything.
    pub message: Option<String>,
}
