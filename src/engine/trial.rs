//! A change in force that does not stand yet: the evidence, the deadline, and the way back.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::{
    Active, Engine,
    gate::{Back, LOOK, Stage, Trial, answer, in_words},
    reach,
};
use crate::{
    apply,
    clock::{self, Instant},
    guard::{
        Deadline, Due, Phase, Unconfirmed, Who,
        gate::{Evidence, Judgement, Silent, judge, works},
    },
    revision::{AttemptOutcome, Fault},
    store::Standing,
};

/// A router that is cut off for so long does not wait for the deadline.
const CUT_OFF: Duration = Duration::from_secs(10);

impl Engine {
    /// Looks at the evidence, at the deadline, and at what waits.
    pub(super) fn watch_trial(&mut self, now: Instant) {
        self.retry_held(now);
        let Stage::Waiting(trial) = &self.gate.stage else { return };
        if trial.next > now {
            return;
        }
        let over = trial.change.deadline.at <= now;
        let found = self.evidence();
        let Stage::Waiting(trial) = &mut self.gate.stage else { return };
        trial.next = now + LOOK;
        trial.cut_off = if found.cut_off { trial.cut_off.or(Some(now)) } else { None };
        let lost = trial.cut_off.is_some_and(|since| now.since(since) >= CUT_OFF)
            || found.harm && now.since(trial.since) >= self.gate.rules.confirm.timeout;
        trial.last = found;
        let (change, reason, stands) = (trial.change.clone(), trial.last.reason(), trial.last.stands());
        let silent = trial.last.doubtful();
        if change.who.is_person() {
            if over {
                self.go_back("nobody confirmed it in time", Silent::default());
            }
        } else if stands && !self.is_blind(&change) {
            self.stands(&change, Standing::Confirmed, "the evidence is complete");
        } else if lost || over {
            self.go_back(&reason, silent);
        }
    }

    /// Whether it is not known what was in force before, and no path shows that the change is any better than nothing.
    fn is_blind(&self, change: &Unconfirmed) -> bool {
        let lost = change.previous.as_deref() == Some(Unconfirmed::LOST);
        lost && !self.monitor.healths().values().any(works)
    }

    fn evidence(&mut self) -> Judgement {
        let found = self.protected_ways();
        let Stage::Waiting(trial) = &mut self.gate.stage else { return Judgement::default() };
        if trial.asking.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(asking) = trial.asking.take()
        {
            trial.reached.extend(answer(asking));
        }
        let missing: Vec<String> = trial.change.baseline.reached.difference(&trial.reached).cloned().collect();
        if !missing.is_empty() && trial.asking.is_none() {
            trial.asking = Some(tokio::spawn(reach::ask(missing)));
        }
        let Some(active) = &self.active else { return Judgement::default() };
        // What cannot be looked up is not known, and no evidence either way.
        let (ways, unknown) = match found {
            Ok(ways) => (in_words(&ways), None),
            Err(why) => (trial.change.baseline.ways.clone(), Some(why)),
        };
        let evidence = Evidence {
            site: &active.site,
            healths: self.monitor.healths(),
            selection: &self.selection,
            rounds: &trial.rounds,
            ways: &ways,
            reached: &trial.reached,
            settled: trial.settled,
            orders: &self.overrides,
        };
        let mut found = judge(&trial.change.baseline, &evidence);
        found.waits.extend(unknown);
        found
    }

    /// The change stands.
    pub(super) fn stands(&mut self, change: &Unconfirmed, standing: Standing, why: &str) {
        self.gate.stage = Stage::Idle;
        self.gate.before = None;
        let good = self.active.as_ref().map(Active::as_last_good);
        self.router.ledger.confirm(change, standing, why, good);
        self.now_in_force();
        let text = format!("generation {} (revision {}) stands: {why}", change.generation, change.revision);
        self.audit(&Who::DAEMON, "confirm", &text);
        self.event("confirm", "", text, serde_json::Value::Null);
        self.timers.publish = clock::now();
    }

    /// Puts the configuration before the one on trial in force again. `silent` is what is the whole reason by its
    /// silence, if that is so.
    pub(super) fn go_back(&mut self, reason: &str, silent: Silent) {
        let Stage::Waiting(trial) = std::mem::replace(&mut self.gate.stage, Stage::Idle) else { return };
        let (mut change, now) = (trial.change, clock::now());
        if change.deadline.at > now {
            // Whoever finds the record goes on undoing.
            change.deadline = Deadline::after(Duration::ZERO, change.deadline.place, now, clock::wall());
            self.router.ledger.set_unconfirmed(&change);
        }
        let text = format!("generation {} (revision {}) is undone: {reason}", change.generation, change.revision);
        self.warning("confirm", "", text, serde_json::Value::Null);
        let before = self.gate.before.take();
        self.back_to(change, before, reason, silent);
    }

    /// Invariant: the record of the change stays until the kernel was read back, so that a kill on the way back is
    /// no way out.
    ///
    /// Invariant: only where nothing was before, nothing is what comes back. What was before and cannot be used any
    /// more is no reason to tear down what the router works with.
    fn back_to(&mut self, change: Unconfirmed, before: Option<Box<Active>>, reason: &str, silent: Silent) {
        if let (None, Some(previous)) = (&before, &change.previous) {
            let previous = previous.clone();
            return self.no_way_back(&change, &previous, reason);
        }
        // After a restart nothing is worked with yet.
        if self.active.is_none()
            && let Some(held) = self.held_by_the_kernel(&change, before.as_deref())
        {
            self.work_with(held);
        }
        let reason = reason.to_owned();
        self.gate.stage = Stage::Back(Box::new(Back { change, reason, silent, to: before, failed: false }));
        self.timers.pass_at(clock::now());
    }

    /// What the kernel holds while a change is undone after a restart, as far as that can be told: what was applied
    /// last, or what was before if its steps were undone.
    fn held_by_the_kernel(&self, change: &Unconfirmed, before: Option<&Active>) -> Option<Active> {
        let made = change.phase == Phase::Waiting || self.router.ledger.has_applied(change.generation);
        self.on_trial().filter(|_| made).or_else(|| before.cloned())
    }

    /// Going back failed: it is tried again, and from now on another revision may take its place. Gives what people
    /// shall be told.
    pub(super) fn not_back(&mut self, why: &str) -> String {
        let Stage::Back(back) = &mut self.gate.stage else { return why.to_owned() };
        let (change, first) = (back.change.clone(), !std::mem::replace(&mut back.failed, true));
        let text = format!("{}; going back failed: {why}", back.reason);
        self.router.ledger.end_generation(change.record, Standing::RollbackFailed, &text);
        if first {
            let text =
                format!("generation {} (revision {}) is to be undone: {text}", change.generation, change.revision);
            self.audit(&Who::DAEMON, "rollback", &format!("FAILED: {text}"));
            if self.is_last_attempt(&change) {
                self.attempt_failed(AttemptOutcome::RollbackFailed, &text, Fault::Own, true);
            }
            self.revisions.stays(&change.revision, &text, clock::wall());
            self.write_down();
            self.read_source_at(clock::now());
        }
        text
    }

    /// The configuration before cannot be used any more: what the kernel holds stays, and is repaired if its own
    /// configuration can be read.
    fn no_way_back(&mut self, change: &Unconfirmed, previous: &str, reason: &str) {
        let why = match self.router.ledger.last_good().map(|good| self.again(good)) {
            Some(Err(error)) => format!("is not valid any more: {}", error.lines().join("; ")),
            _ => "is not in the journal any more".to_owned(),
        };
        let text = format!(
            "generation {} (revision {}) was to be undone ({reason}), but revision {previous}, which was in force before \
             it, {why}; what is in the kernel stays",
            change.generation, change.revision
        );
        if self.active.is_none()
            && change.phase == Phase::Waiting
            && let Some(active) = self.on_trial()
        {
            self.work_with(active);
        }
        self.router.ledger.settle_unconfirmed(change, Standing::RollbackFailed, &text);
        self.audit(&Who::DAEMON, "rollback", &format!("FAILED: {text}"));
        self.warning("confirm", "", format!("ROLLBACK FAILED, look at once: {text}"), serde_json::Value::Null);
        self.revisions.stays(&change.revision, &text, clock::wall());
        self.write_down();
        self.timers.publish = clock::now();
        self.timers.pass_at(clock::now());
        self.read_source_at(clock::now());
    }

    /// Whether a change is what was tried last of the source: one that was to take the place of a way back that fails
    /// may have been refused since, for a reason of its own.
    fn is_last_attempt(&self, change: &Unconfirmed) -> bool {
        let last = self.revisions.attempt().is_some_and(|attempt| attempt.revision == change.revision);
        last && !change.who.is_person()
    }

    /// What was before the change is in the kernel again.
    pub(super) fn is_back(&mut self, change: &Unconfirmed, reason: &str, silent: Silent) {
        let undone = self.on_trial().filter(|_| change.who.is_person());
        self.router.ledger.settle_unconfirmed(change, Standing::RolledBack, reason);
        self.audit(&Who::DAEMON, "rollback", &format!("generation {}: {reason}", change.generation));
        self.wait_for_paths(change);
        self.revisions.left(self.active.as_ref().map(|active| active.revision.as_str()));
        if !change.who.is_person() {
            if self.is_last_attempt(change) {
                self.attempt_failed(AttemptOutcome::RolledBack, reason, Fault::Own, true);
            }
            self.doubt_it(change, silent);
        } else if let Some(active) = &self.active {
            // What the person wanted to leave is in force again.
            self.revisions.in_force(&active.revision, clock::wall());
        }
        if let Some(undone) = undone {
            let notes = self.revisions.unconfirmed(&change.revision, &undone.content, reason, clock::wall());
            self.tell("source", notes);
            self.write_down();
        }
    }

    /// What an earlier process left on trial, and what is to be done about it.
    pub(super) fn resume_trial(&mut self, change: Unconfirmed, before: Option<Active>) {
        let before = before.map(Box::new);
        match change.due(&apply::place(), clock::now()) {
            Due::Elsewhere => {
                let reason = "the machine went down before it was confirmed";
                self.router.ledger.settle_unconfirmed(&change, Standing::RolledBack, reason);
                self.audit(&Who::DAEMON, "rollback", &format!("generation {}: {reason}", change.generation));
                let fallback = before.is_some();
                if let Some(before) = before {
                    self.work_with(*before);
                }
                if !change.who.is_person() {
                    self.attempt_failed(AttemptOutcome::RolledBack, reason, Fault::Own, fallback);
                }
            }
            // A daemon that died says nothing about the revision: it is tried again.
            Due::Now if change.phase == Phase::Applying && !change.who.is_person() => {
                let reason = "the daemon ended before it was in force";
                self.router.ledger.settle_unconfirmed(&change, Standing::RolledBack, reason);
                if let Some(before) = before {
                    self.work_with(*before);
                }
            }
            Due::Now if change.phase == Phase::Applying => {
                let reason = "whoever applied it ended before it was in force";
                self.back_to(change, before, reason, Silent::default());
            }
            Due::Now => {
                let by_daemon = "its time was over, or it was being undone when the daemon ended";
                let reason = if change.who.is_person() { "nobody confirmed it in time" } else { by_daemon };
                self.back_to(change, before, reason, Silent::default());
            }
            Due::In(_) => match self.on_trial() {
                Some(active) => {
                    if let Some(before) = &before {
                        self.revisions.resumes(&before.revision, clock::wall());
                    }
                    self.gate.before = before;
                    self.gate.stage = Stage::Waiting(Trial::new(change, clock::now()));
                    self.work_with(active);
                }
                None => self.back_to(change, before, "its configuration cannot be read any more", Silent::default()),
            },
        }
    }

    /// The configuration on trial, as it was written down.
    fn on_trial(&self) -> Option<Active> {
        self.again(self.router.ledger.in_force()?).ok()
    }
}
