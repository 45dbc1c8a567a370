//! What is tried again by itself: a proposal that the kernel could not take just then, and a change that was undone for
//! paths which somebody else had cut.

use std::{collections::BTreeSet, fmt, time::Duration};

use super::{
    Engine,
    gate::{Proposal, Stage},
    status::ReconcileOutcome,
};
use crate::{
    clock::{self, Instant},
    guard::{
        Unconfirmed,
        doubt::{Doubt, Verdict},
        gate::works,
    },
    revision::{AttemptOutcome, Fault},
    store::Standing,
    units::Name,
};

/// So often a proposal is put off before it is quarantined.
const TRIES: u32 = 3;
/// The first wait; each further one is four times as long.
const FIRST: Duration = Duration::from_secs(1);

/// A proposal that is put off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Again {
    content: String,
    tries: u32,
    /// Not before then.
    pub at: Instant,
    reason: String,
}

impl Again {
    /// The next try of a content; none when it was tried often enough.
    fn next(old: Option<Self>, content: &str, reason: &str, now: Instant) -> Option<Self> {
        let tries = old.filter(|old| old.content == content).map_or(0, |old| old.tries) + 1;
        let at = now + FIRST * 4_u32.pow(tries.min(TRIES) - 1);
        (tries <= TRIES).then(|| Self { content: content.to_owned(), tries, at, reason: reason.to_owned() })
    }

    /// Whether this content has to wait still.
    pub(super) fn waits(&self, content: &str, now: Instant) -> bool {
        self.content == content && now < self.at
    }
}

impl fmt::Display for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; that may be over soon, so it is tried again ({} of {TRIES})", self.reason, self.tries)
    }
}

impl Engine {
    /// Its steps failed and were undone: the one before it goes on.
    pub(super) fn never_in_force(&mut self, change: &Unconfirmed, outcome: ReconcileOutcome, reason: &str) {
        let standing =
            if outcome == ReconcileOutcome::RolledBack { Standing::RolledBack } else { Standing::RollbackFailed };
        self.router.ledger.settle_unconfirmed(change, standing, Some(reason));
        let outcome = match standing {
            Standing::RolledBack => AttemptOutcome::RolledBack,
            _ => AttemptOutcome::RollbackFailed,
        };
        if !self.put_off(reason) {
            self.turn_down(outcome, reason, Fault::Own);
        }
    }

    /// The kernel could not take the proposal just then, which may be no fault of its own: it waits and is tried again,
    /// a few times. False: it has to be turned down.
    fn put_off(&mut self, reason: &str) -> bool {
        let by_source = matches!(&self.gate.stage, Stage::Proposed(proposed) if !proposed.who.is_person());
        let Some(active) = self.active.as_ref().filter(|_| by_source && self.gate.may_pass) else { return false };
        let Some(again) = Again::next(self.gate.again.take(), &active.content, reason, clock::now()) else {
            return false;
        };
        let why = again.to_string();
        self.gate.again = Some(again);
        self.gate.stage = Stage::Idle;
        let active = self.active.take();
        if let Some(before) = self.gate.before.take() {
            self.work_with(*before);
        }
        if let Some(active) = active {
            self.hold(Proposal::of_source(active, self.gate.timeout()), why);
        }
        true
    }

    /// A change was undone because these paths were silent: whether they are so without it has to be seen.
    pub(super) fn doubt_it(&mut self, change: &Unconfirmed, silent: BTreeSet<Name>) {
        let Some(active) = self.active.as_ref().filter(|_| !silent.is_empty()) else { return };
        let still = |path: &Name| active.site.paths.contains_key(path);
        let up: BTreeSet<Name> = change.baseline.up.iter().filter(|path| still(path)).cloned().collect();
        let silent: BTreeSet<Name> = silent.into_iter().filter(|path| up.contains(path)).collect();
        if !silent.is_empty() {
            self.gate.doubt = Some(Doubt::new(change.revision.clone(), up, silent, clock::now()));
        }
    }

    /// Whether a change that was undone had cut its paths; and whether one that had not is tried again.
    pub(super) fn weigh_doubts(&mut self) {
        if let Some(doubt) = self.gate.doubt.take() {
            match doubt.verdict(clock::now()) {
                Verdict::Open => self.gate.doubt = Some(doubt),
                Verdict::Guilty => {}
                Verdict::Doubtful => {
                    let paths = doubt.up.iter().map(ToString::to_string).collect();
                    let note = self.revisions.acquit(&doubt.revision, paths);
                    self.tell("source", note.into_iter().collect());
                    self.write_down();
                }
            }
        }
        let answers = |path: &str| self.monitor.healths().iter().any(|(name, h)| name.as_str() == path && works(h));
        if let Some(note) = self.revisions.paths_answer(answers) {
            self.tell("source", vec![note]);
            self.write_down();
            self.read_source_at(clock::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_is_put_off_three_times_with_longer_waits_and_another_begins_anew() {
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let (mut again, mut waits) = (None, Vec::new());
        while let Some(next) = Again::next(again.take(), "a", "the kernel is busy", at(100)) {
            assert!(next.waits("a", at(100)) && !next.waits("b", at(100)) && !next.waits("a", next.at));
            waits.push(next.at.since(at(100)).as_secs());
            again = Some(next);
            assert!(waits.len() < 9);
        }
        assert_eq!(waits, [1, 4, 16]);
        let other =
            Again::next(None, "a", "x", at(0)).and_then(|old| Again::next(Some(old), "b", "busy", at(0))).unwrap();
        assert_eq!(other.to_string(), "busy; that may be over soon, so it is tried again (1 of 3)");
    }
}
