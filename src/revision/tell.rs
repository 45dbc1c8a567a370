//! What is told: the three revisions, and why they differ.

use std::time::Duration;

use super::{Attempt, AttemptOutcome, Held, Quarantined, Revisions, Seen, Suspension, Trouble, types::age};
use crate::clock::Wall;

/// A suspension without an end is an alarm when it is so old.
pub const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);

impl Revisions {
    /// What the source holds.
    #[must_use]
    pub const fn desired(&self) -> Option<&Seen> {
        self.desired.as_ref()
    }

    /// What was tried last.
    #[must_use]
    pub const fn attempt(&self) -> Option<&Attempt> {
        self.memory.attempted.as_ref()
    }

    /// What is in force, as far as this process has seen.
    #[must_use]
    pub fn applied(&self) -> Option<&Seen> {
        self.memory.applied.as_ref().filter(|_| self.confirmed)
    }

    /// Whether a revision is being tried that is not in force.
    #[must_use]
    pub fn is_trying(&self, revision: &str) -> bool {
        self.memory.trying.as_ref().is_some_and(|seen| seen.revision == revision)
    }

    /// Whether a revision is carried out and waits for its confirmation.
    #[must_use]
    pub fn is_confirming(&self) -> bool {
        let confirming = self.attempt().is_some_and(|a| a.outcome == AttemptOutcome::Confirming);
        confirming && self.memory.trying.is_some()
    }

    /// The journal was lost: what is in force has to be found out again.
    pub const fn doubt(&mut self) {
        self.confirmed = false;
    }

    /// What the source holds and must not be tried.
    #[must_use]
    pub const fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Revisions that failed, oldest first.
    #[must_use]
    pub fn quarantined(&self) -> &[Quarantined] {
        &self.memory.quarantine
    }

    /// The quarantine of what the source holds.
    #[must_use]
    pub fn in_quarantine(&self) -> Option<&Quarantined> {
        let desired = self.desired.as_ref()?;
        self.memory.quarantine.iter().rev().find(|q| q.revision == desired.revision)
    }

    /// Why no new revision is taken.
    #[must_use]
    pub const fn suspended(&self) -> Option<&Suspension> {
        self.memory.suspended.as_ref()
    }

    /// Why the source cannot be read.
    #[must_use]
    pub const fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// When the source was last read without an error.
    #[must_use]
    pub const fn last_success(&self) -> Option<Wall> {
        self.last_success
    }

    /// The highest accepted commit.
    #[must_use]
    pub fn highest(&self) -> Option<&str> {
        self.memory.highest.as_deref()
    }

    /// Why the newest content is not in force, one line per finding.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        if let Some(trouble) = &self.trouble {
            return vec![trouble.message.clone()];
        }
        self.invalid.as_ref().map(|(_, errors)| errors.clone()).unwrap_or_default()
    }

    /// What a person should look at.
    #[must_use]
    pub fn alarms(&self, now: Wall) -> Vec<String> {
        let forgotten = self.memory.suspended.iter().filter(|s| s.until.is_none() && age(s.since, now) > FORGOTTEN);
        let stuck = self.memory.stuck.iter().map(|s| {
            format!("{}; push a configuration that works, or let it stand: `patronus source accept`", s.reason)
        });
        stuck.chain(forgotten.map(|s| {
            let hours = age(s.since, now).as_secs() / 3600;
            format!(
                "{} suspended the taking of new revisions {hours} hours ago and without an end ({}): `patronus resume`",
                s.by, s.reason
            )
        }))
        .collect()
    }
}
