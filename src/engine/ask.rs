//! What people ask of a change: that it stands, that it goes, that an older one comes back.

use std::time::Duration;

use super::{Engine, activate, gate::Proposal};
use crate::{
    config::Snapshot,
    guard::{Who, gate::Silent},
    revision::{AttemptOutcome, Fault},
    store::{Standing, StoreError},
};

type Answer = Result<String, String>;

impl Engine {
    /// `patronus confirm`.
    pub(super) fn confirm(&mut self, who: &Who) -> Answer {
        let Some((change, _)) = self.gate.waiting() else { return Err(NOTHING_WAITS.into()) };
        let change = change.clone();
        self.audit(who, "confirm", &change.line());
        self.stands(&change, Standing::Confirmed, &format!("confirmed by {who}"));
        let stands = format!("generation {} (revision {}) stands", change.generation, change.revision);
        match self.router.ledger.settle() {
            Ok(()) => Ok(stands),
            Err(error) => Err(unwritten(&stands, &error)),
        }
    }

    /// `patronus rollback`.
    pub(super) async fn rollback(&mut self, who: &Who, to: Option<u64>, within: Option<Duration>) -> Answer {
        match to {
            None => self.undo(who).await,
            Some(number) => self.restore(who, number, within.unwrap_or(self.gate.timeout())).await,
        }
    }

    async fn undo(&mut self, who: &Who) -> Answer {
        let Some((change, _)) = self.gate.waiting() else { return Err(NOTHING_TO_UNDO.into()) };
        let change = change.clone();
        self.audit(who, "rollback", &change.line());
        self.go_back(&format!("{who} said so"), Silent::default());
        self.pass().await;
        if let Some(stuck) = self.revisions.stuck().filter(|stuck| stuck.revision == change.revision) {
            return Err(stuck.reason.clone());
        }
        if self.gate.is_going_back() {
            return Err("going back failed and is tried again: look at `patronus status`".into());
        }
        let back =
            change.previous.map_or_else(|| "nothing of ours".to_owned(), |revision| format!("revision {revision}"));
        Ok(format!("generation {} is undone; {back} is in force", change.generation))
    }

    /// The source still holds what was in force until now: it is not tried again until it changes.
    async fn restore(&mut self, who: &Who, number: u64, within: Duration) -> Answer {
        if let Some((change, _)) = self.gate.waiting() {
            return Err(format!("{}; confirm it or undo it first", change.line()));
        }
        let found = self.router.ledger.generation_at(number);
        let (found, files) = found
            .ok_or_else(|| format!("there is no generation {number}: `patronus history --generations` lists them"))?;
        let snapshot = Snapshot { revision: found.revision.clone(), files, commit: None };
        let active = activate(snapshot, Some(&self.origin.site), &self.origin.options)
            .map_err(|error| format!("generation {number} is not valid any more: {}", error.lines().join("; ")))?;
        self.audit(who, "rollback", &format!("to generation {}, revision {}", found.generation, found.revision));
        self.gate.refused = None;
        self.propose(Proposal::of_person(active, who.clone(), within));
        // Whoever is told no must not see it happen later all the same.
        if let Some((_, why)) = self.gate.held.take_if(|(held, _)| held.who.is_person()) {
            return Err(format!("nothing was changed, try again later: {why}"));
        }
        self.pass().await;
        let is_in_force = self.active.as_ref().is_some_and(|active| active.revision == found.revision);
        if !is_in_force || self.gate.is_changing() {
            // Whoever is told no must not see it happen later all the same.
            let planless = self.withdraw().and(self.last.as_ref()).and_then(|last| last.message.clone());
            let why = self.gate.refused.take().or(planless);
            return Err(why.unwrap_or_else(|| "look at `patronus status`".into()));
        }
        let reason = format!("{who} went back to generation {}", found.generation);
        self.attempt_failed(AttemptOutcome::RolledBack, &reason, Fault::Own, true);
        let ends = self.gate.waiting().map(|(change, _)| change.deadline.wall);
        let ends =
            ends.map(|at| format!("\nIt stands only if you say so by {at:.0}: patronus confirm")).unwrap_or_default();
        Ok(format!("revision {} of generation {} is in force{ends}", found.revision, found.generation))
    }
}

/// A person who is told that a change stands goes away.
fn unwritten(stands: &str, error: &StoreError) -> String {
    format!(
        "{stands} as long as the daemon runs, but that could not be written down: {}\n  \
         it is tried again every second; until `patronus status` shows no such alarm, a restart undoes the change",
        error.chain()
    )
}

const NOTHING_WAITS: &str = "nothing waits for a confirmation: `patronus history` tells what became of the last change";
const NOTHING_TO_UNDO: &str = "nothing waits for a confirmation. To go back further, name a generation: \
    `patronus rollback --to N`; `patronus history --generations` lists them";
