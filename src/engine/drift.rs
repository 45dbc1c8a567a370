//! Drift: what somebody else changed since the last apply, as the engine keeps books of it.

use serde_json::json;

use super::Engine;
use crate::plan::{self, Step, text};

/// Lines of drift that a status carries.
const LINES: usize = 20;

impl Engine {
    /// What differs from the state applied last was changed by someone else.
    pub(super) fn note_drift(&mut self, steps: &[Step]) {
        let drifted: Vec<&Step> = match self.router.applied() {
            Some(applied) if self.observed.stamp.is_some() || !applied.objects.is_empty() => {
                steps.iter().filter(|s| plan::report::drifted(s, applied)).collect()
            }
            _ => Vec::new(),
        };
        for step in &drifted {
            *self.totals.drift.entry(step.kind().to_owned()).or_default() += 1;
        }
        self.drift = drifted.iter().filter_map(|s| Some(drift_line(s, &text::key_text(s.key()?)))).collect();
        if !self.drift.is_empty() {
            let count = self.drift.len();
            let message = format!("{count} of our objects were changed by someone else: {}", self.drift[0]);
            self.drift.truncate(LINES);
            self.warning("drift", "", message, json!(self.drift));
        }
    }
}

fn drift_line(step: &Step, object: &str) -> String {
    match step {
        Step::Set { before: None, .. } => format!("{object} is missing"),
        Step::Set { after: None, .. } => format!("{object} should not be there"),
        _ => format!("{object} has another value"),
    }
}
