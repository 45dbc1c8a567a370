//! Whether the daemon is alive, and whether it is ready. Pure: `now` is an argument.

use std::time::Duration;

use serde::Serialize;

use crate::{
    clock::Instant,
    engine::status::{ReconcileOutcome, Status},
};

/// The answer to a health question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Yes or no.
    pub ok: bool,
    /// Why not, one line each.
    pub reasons: Vec<String>,
}

impl From<Vec<String>> for Verdict {
    fn from(reasons: Vec<String>) -> Self {
        Self { ok: reasons.is_empty(), reasons }
    }
}

/// Alive: the loop has published a status lately. A restart may help if not.
#[must_use]
pub fn alive(status: &Status, now: Instant, max_age: Duration) -> Verdict {
    let age = now.since(status.now);
    let hangs = (age > max_age).then(|| format!("the engine has not moved for {} s", age.as_secs()));
    hangs.into_iter().collect::<Vec<_>>().into()
}

/// Ready: the first reconcile is done and the last one did not fail. A restart does not help if not.
#[must_use]
pub fn ready(status: &Status, now: Instant, max_age: Duration) -> Verdict {
    let mut reasons = alive(status, now, max_age).reasons;
    let what = status.reconcile.as_ref().map(|r| (r.outcome, r.message.as_deref().unwrap_or("no details")));
    match what {
        None => reasons.push("the first reconcile is not done yet".into()),
        Some((ReconcileOutcome::Unchanged | ReconcileOutcome::Applied, _)) => {}
        Some((ReconcileOutcome::RolledBack, why)) => reasons.push(format!("the last change was rolled back: {why}")),
        Some((ReconcileOutcome::RollbackFailed, why)) => {
            reasons.push(format!("the last change failed and could not be undone: {why}"));
        }
        Some((ReconcileOutcome::Refused, why)) => reasons.push(format!("the last change was refused: {why}")),
    }
    reasons.into()
}
