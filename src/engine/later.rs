//! What is tried again by itself: a proposal that the kernel could not take just then, and a change that was undone for
//! paths and services which somebody else had cut off.

use std::{collections::BTreeSet, fmt, time::Duration};

use tokio::task::JoinHandle;

use super::{
    Engine,
    gate::{Proposal, Stage, answer},
    reach,
    status::ReconcileOutcome,
};
use crate::{
    clock::{self, Instant},
    guard::{
        Unconfirmed,
        doubt::{Doubt, Suspect, Verdict},
        gate::{Silent, part_works},
    },
    revision::{AttemptOutcome, Awaited, Fault},
    store::Standing,
    units::PathPart,
};

/// So often a proposal is put off before it is quarantined.
const TRIES: u32 = 3;
/// The first wait; each further one is four times as long.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait of a proposal that cannot be planned or tried.
const PLANLESS: Duration = Duration::from_secs(60);
/// Services are asked so often while it is open whether a change had cut them off.
const DOUBTED: Duration = Duration::from_secs(2);
/// And so often while a change waits for them: many routers may wait for the same one.
const AWAITED: Duration = Duration::from_secs(5);
/// Under which name the ledger keeps the change that is in doubt.
const SUSPECT: &str = "suspect";

/// Services that are asked although nothing is on trial.
#[derive(Debug, Default)]
pub(super) struct Services {
    asking: Option<(Instant, JoinHandle<BTreeSet<String>>)>,
    next: Option<Instant>,
    /// Those that answered the last time.
    answer: BTreeSet<String>,
}

/// A proposal that is put off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Again {
    content: String,
    /// How often the kernel was asked to take it; 0 while there is no plan even, or none that may be carried out.
    tries: u32,
    wait: Duration,
    /// Not before then.
    pub at: Instant,
    reason: String,
}

impl Again {
    /// The next try of a content; none when it was tried often enough.
    fn next(old: Option<Self>, content: &str, reason: &str, now: Instant) -> Option<Self> {
        let tries = old.filter(|old| old.content == content).map_or(0, |old| old.tries) + 1;
        let wait = FIRST * 4_u32.pow(tries.min(TRIES) - 1);
        let at = now + wait;
        (tries <= TRIES).then(|| Self { content: content.to_owned(), tries, wait, at, reason: reason.to_owned() })
    }

    /// The same of one that cannot be planned, or not be asked about or written down: that says nothing against it,
    /// however long it lasts.
    fn planless(old: Option<Self>, content: &str, reason: &str, now: Instant) -> Self {
        let old = old.filter(|old| old.content == content && old.tries == 0);
        let wait = old.map_or(FIRST, |old| (old.wait * 4).min(PLANLESS));
        Self { content: content.to_owned(), tries: 0, wait, at: now + wait, reason: reason.to_owned() }
    }

    /// Whether it could not be planned or tried, for the same reason.
    pub(super) fn is_planless(&self, reason: Option<&str>) -> bool {
        self.tries == 0 && reason == Some(&self.reason)
    }

    /// Whether this content has to wait still.
    pub(super) fn waits(&self, content: &str, now: Instant) -> bool {
        self.content == content && now < self.at
    }
}

impl fmt::Display for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tries {
            0 => write!(f, "{}; nothing can be done before that is over, so it is tried again", self.reason),
            tries => write!(f, "{}; that may be over soon, so it is tried again ({tries} of {TRIES})", self.reason),
        }
    }
}

impl Engine {
    /// Its steps failed and were undone: the one before it goes on.
    pub(super) fn never_in_force(&mut self, change: &Unconfirmed, outcome: ReconcileOutcome, reason: &str) {
        let standing =
            if outcome == ReconcileOutcome::RolledBack { Standing::RolledBack } else { Standing::RollbackFailed };
        self.router.ledger.settle_unconfirmed(change, standing, reason);
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
        let Some(goal) = self.goal().filter(|_| by_source && self.gate.may_pass) else { return false };
        let content = goal.content.clone();
        let Some(again) = Again::next(self.gate.again.take(), &content, reason, clock::now()) else {
            return false;
        };
        let why = again.to_string();
        self.gate.again = Some(again);
        self.put_back(why);
        true
    }

    /// The proposal of the source goes back to those that wait, and what is in the kernel goes on.
    fn put_back(&mut self, why: String) {
        if let Some(proposed) = self.withdraw() {
            self.revisions.put_off();
            self.write_down();
            self.hold(Proposal::of_source(proposed.active, self.gate.timeout()), why);
        }
    }

    /// The rails cannot be asked about the proposal, or it cannot be written down, which says nothing about it: it waits
    /// until that is possible. A person is told.
    pub(super) fn cannot_try(&mut self, why: &str) {
        if matches!(&self.gate.stage, Stage::Proposed(proposed) if proposed.who.is_person()) {
            self.turn_down(AttemptOutcome::Failed, why, Fault::Own);
        } else {
            self.put_back_planless(why);
        }
    }

    /// The kernel cannot be asked just now whether it would take the proposal, which says nothing about it: it waits, and
    /// what is in force is repaired meanwhile. The first configuration of a router has nothing else to go on with.
    pub(super) fn put_aside(&mut self, reason: &str) {
        let by_person = matches!(&self.gate.stage, Stage::Proposed(proposed) if proposed.who.is_person());
        if !by_person && self.active.is_some() {
            self.put_back_planless(reason);
        }
    }

    fn put_back_planless(&mut self, reason: &str) {
        let Stage::Proposed(proposed) = &self.gate.stage else { return };
        let again = Again::planless(self.gate.again.take(), &proposed.active.content, reason, clock::now());
        let why = again.to_string();
        self.gate.again = Some(again);
        self.put_back(why);
    }

    /// A change was undone because this was silent: whether it is so without it has to be seen.
    pub(super) fn doubt_it(&mut self, change: &Unconfirmed, silent: Silent) {
        let paths = self.active.as_ref().map(|active| &active.site.paths);
        let still = |part: &&PathPart| paths.is_some_and(|paths| paths.contains_key(&part.path));
        let up: BTreeSet<PathPart> = change.baseline.up.iter().filter(still).cloned().collect();
        let paths = silent.paths.into_iter().filter(|part| up.contains(part)).collect::<BTreeSet<_>>();
        if paths.is_empty() && silent.services.is_empty() {
            return;
        }
        let silent = Silent { paths, services: silent.services };
        let text =
            format!("revision {}: it is being looked at whether these answer without it: {silent}", change.revision);
        self.event("source", "", text, serde_json::Value::Null);
        let suspect = Suspect { revision: change.revision.clone(), up, silent };
        self.router.ledger.put(SUSPECT, &Some(&suspect));
        self.gate.services = Services::default();
        self.gate.doubt = Some(Doubt::new(suspect, clock::now()));
    }

    /// The daemon ended while that was open: it begins anew.
    pub(super) fn recall_doubt(&mut self) {
        let suspect = self.router.ledger.get::<Option<Suspect>>(SUSPECT).flatten();
        self.gate.doubt = suspect.filter(|_| !self.gate.is_open()).map(|suspect| Doubt::new(suspect, clock::now()));
    }

    /// It is known what was the cause, or another change is about to blur it.
    pub(super) fn end_doubt(&mut self) {
        if self.gate.doubt.take().is_some() {
            self.router.ledger.put(SUSPECT, &None::<Suspect>);
        }
    }

    /// Whether a change that was undone had cut off what fell silent; and whether one that had not is tried again.
    pub(super) fn weigh_doubts(&mut self) {
        let now = clock::now();
        self.ask_services(now);
        if let Some(doubt) = &self.gate.doubt {
            let note = match doubt.verdict(now) {
                Verdict::Open => None,
                Verdict::Guilty(who) => Some(self.revisions.convict(&doubt.suspect.revision, who, doubt.in_vain())),
                Verdict::Doubtful => {
                    let (paths, services) = doubt.suspect.awaited();
                    Some(self.revisions.acquit(&doubt.suspect.revision, Awaited { services, paths }))
                }
            };
            if let Some(note) = note {
                self.tell("source", note.into_iter().collect());
                self.write_down();
                // Only now: a kill in between must not make a verdict of what was a doubt.
                self.end_doubt();
            }
        }
        let path = |part: &PathPart| part_works(self.monitor.healths(), part);
        let service = |service: &str| self.gate.services.answer.contains(service);
        if let Some(note) = self.revisions.silence_ended(path, service) {
            self.gate.services = Services::default();
            self.tell("source", vec![note]);
            self.write_down();
            self.read_source_at(now);
        }
    }

    /// Asks the services of a change that is in doubt or waits for them, and takes in what was found.
    fn ask_services(&mut self, now: Instant) {
        let recovering = self.recovers(now).is_some();
        let services = &mut self.gate.services;
        if let Some((begun, asking)) = services.asking.take_if(|(_, asking)| asking.is_finished()) {
            services.answer = answer(asking);
            if let Some(doubt) = &mut self.gate.doubt {
                doubt.asked(begun, &services.answer, recovering);
            }
        }
        let (wanted, every) = match &self.gate.doubt {
            Some(doubt) => (doubt.services(), DOUBTED),
            None => (self.revisions.awaited_services(), AWAITED),
        };
        let idle = matches!(self.gate.stage, Stage::Idle) && services.asking.is_none();
        if let Some(wanted) = wanted.filter(|_| idle && services.next.is_none_or(|next| next <= now)) {
            services.asking = Some((now, tokio::spawn(reach::ask(wanted.iter().cloned().collect()))));
            services.next = Some(now + every);
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
        let mut planless = Again::planless(Some(Again::planless(None, "a", "full", at(0))), "a", "full", at(0));
        assert_eq!((planless.wait.as_secs(), planless.is_planless(Some("full"))), (4, true));
        for _ in 0..9 {
            planless = Again::planless(Some(planless), "a", "full", at(0));
        }
        assert_eq!(planless.wait, PLANLESS, "and never turned down for that");
        assert_eq!(Again::next(Some(planless), "a", "busy", at(0)).map(|again| again.tries), Some(1));
        let other =
            Again::next(None, "a", "x", at(0)).and_then(|old| Again::next(Some(old), "b", "busy", at(0))).unwrap();
        assert_eq!(other.to_string(), "busy; that may be over soon, so it is tried again (1 of 3)");
    }
}
