//! From a reading to the revision in force: taking it, trying it, going back.
//!
//! Whether a revision stays in force once it has been tried is decided in [`super::gate`] and [`super::trial`].

use std::time::Duration;

use tokio::sync::oneshot;

use super::{
    DEBOUNCE, Engine, activate,
    gate::Proposal,
    reader::{Ask, Reading},
    router::PlanError,
    source::{Active, ConfigError},
    status::SourceStatus,
};
use crate::{
    api::{Answer, SourceCommand},
    clock::{self, Instant},
    config::Snapshot,
    guard::Who,
    kernel::KernelError,
    revision::{AttemptOutcome, Fault, Note, Revisions, Seen, Suspension, Triage},
    source::Watcher,
    store::{LastGood, Ledger},
    units::chain,
};

/// A tree that somebody writes to is looked at again after this time.
const UNFINISHED: Duration = Duration::from_millis(250);
/// Under which name the ledger keeps what has to survive a restart.
const REVISIONS: &str = "revisions";

/// What an earlier process remembered, and what has to be told about it.
pub(super) fn remembered(ledger: &Ledger) -> (Revisions, Vec<Note>) {
    Revisions::remembered(ledger.get::<String>(REVISIONS).as_deref(), clock::wall())
}

impl Engine {
    /// Before the source is read for the first time: what was in force before still is, whatever the source
    /// says now.
    pub(super) fn start_from_last_good(&mut self) {
        let good = self.last_good();
        match (self.router.ledger.unconfirmed(), good) {
            (Some(change), good) => self.resume_trial(change, good),
            (None, Some(good)) => self.work_with(good),
            (None, None) => {}
        }
    }

    fn last_good(&self) -> Option<Active> {
        let good = self.again(self.router.ledger.last_good()?);
        if let Err(error) = &good {
            tracing::warn!(errors = ?error.lines(), "the last good configuration is not valid any more");
        }
        good.ok()
    }

    /// A configuration from the ledger, checked once more.
    pub(super) fn again(&self, kept: LastGood) -> Result<Active, ConfigError> {
        let snapshot = Snapshot { revision: kept.revision, files: kept.files, commit: None };
        activate(snapshot, Some(&self.origin.site), &self.origin.options)
    }

    /// Begins to read the source, unless that is under way or somebody is writing it.
    pub(super) fn read_source(&mut self, watcher: &Watcher, now: Instant) {
        if self.reader.is_busy() || watcher.is_being_written(now) {
            self.timers.source = now + UNFINISHED;
            return;
        }
        let failures = self.revisions.trouble().map_or(0, |t| t.failures);
        self.timers.source = now + self.origin.rhythm().wait(failures, dice());
        let current = self.goal_revision();
        self.reader.begin(self.origin.clone(), Ask { revisions: self.revisions.clone(), current, ways: self.ways() });
    }

    /// Takes what was read, unless somebody has begun to write meanwhile.
    pub(super) async fn on_reading(&mut self, reading: Reading, watcher: &Watcher) {
        let now = clock::now();
        if watcher.is_being_written(now) {
            self.timers.source = now + UNFINISHED;
            return;
        }
        self.take_reading(reading);
        if std::mem::take(&mut self.reader.again) {
            self.read_source_at(now);
        } else if !self.reader.waiting.is_empty() {
            self.pass().await;
            // Whoever is answered may look at once.
            self.publish();
            for reply in std::mem::take(&mut self.reader.waiting) {
                // Whoever asked may have gone away.
                let _ = self.last.clone().map(|status| reply.send(status));
            }
        }
    }

    fn take_reading(&mut self, reading: Reading) {
        let now = clock::wall();
        match reading {
            Reading::Failed(error) => {
                *self.totals.source_errors.entry(error.reason().into()).or_default() += 1;
                let notes = self.revisions.unreadable(error.reason(), chain(&error), now);
                let failures = self.revisions.trouble().map_or(1, |t| t.failures);
                self.timers.source = clock::now() + self.origin.rhythm().wait(failures, dice());
                self.tell("source", notes);
            }
            Reading::Read { revision, commit, via, checked } => {
                self.reader.via = via;
                let current = self.goal_revision();
                let (triage, notes) = self.revisions.arrived(&revision, commit.as_ref(), current.as_deref(), now);
                self.tell("source", notes);
                self.drop_held(&revision);
                match (triage, checked) {
                    (Triage::Check, Some(checked)) => self.try_it(checked),
                    (Triage::Waits, _) => self.taken_back(&revision),
                    // Somebody accepted it or resumed while it was read: now it has to be looked into.
                    (Triage::Check, None) => self.read_source_at(clock::now()),
                    _ => {}
                }
            }
        }
        self.write_down();
    }

    /// Tries what was checked if it is valid and its time has come, else keeps what is in force and says why.
    fn try_it(&mut self, checked: Result<Box<Active>, ConfigError>) {
        match checked {
            Ok(active) => self.propose(Proposal::of_source(*active, self.gate.timeout())),
            Err(error) => {
                *self.totals.source_errors.entry("invalid".into()).or_default() += 1;
                let notes = self.revisions.refused("", error.lines(), clock::wall());
                self.tell("source", notes);
            }
        }
    }

    /// Whether the revision may be tried that the source holds.
    pub(super) fn offer(&mut self, active: &Active) -> bool {
        let current = self.goal_revision();
        let (may, notes) = self.revisions.offer(&active.content, current.as_deref(), clock::wall());
        self.tell("source", notes);
        self.write_down();
        may
    }

    /// Works with a configuration that the kernel holds, or is to hold again, and has a pass make sure of it.
    pub(super) fn work_with(&mut self, active: Active) {
        self.take_up(active);
        self.timers.pass_at(clock::now());
    }

    /// Works with another configuration from now on.
    pub(super) fn take_up(&mut self, active: Active) {
        let now = clock::now();
        self.monitor.reconfigure(&active.site, now);
        let mut counted = std::mem::take(&mut self.probes);
        let counts = active.site.paths.keys().map(|path| (path.clone(), counted.remove(path).unwrap_or_default()));
        self.probes = counts.collect();
        // What was renamed or removed must not pile up in a daemon that runs for years.
        self.changes.retain(|rule, _| active.site.rules.contains_key(rule));
        self.totals.transitions.retain(|rule, _| active.site.rules.contains_key(rule));
        self.measure_loads(&active.site);
        self.active = Some(active);
        self.links_from_facts(now);
        self.timers.publish = now + DEBOUNCE;
    }

    /// The pass found the kernel as the configuration wants it, or made it so, and nothing is on trial.
    pub(super) fn now_in_force(&mut self) {
        let Some(active) = &self.active else { return };
        let known = self.revisions.applied().is_some_and(|seen| seen.revision == active.revision);
        if known && !self.revisions.is_trying(&active.revision) {
            return;
        }
        self.revisions.in_force(&active.revision, clock::wall());
        self.router.ledger.set_last_good(&active.as_last_good());
        if let Some(commit) = &active.commit {
            self.router.ledger.name_remover(&active.revision, &commit.author);
        }
        self.write_down();
        // Another revision may have waited for this.
        self.read_source_at(clock::now());
    }

    /// The revision that was tried waits for its confirmation.
    pub(super) fn confirming(&mut self) {
        self.revisions.confirming(clock::wall());
        self.write_down();
    }

    /// The revision that was tried last is not in force; if there is another to go on with, it is quarantined.
    pub(super) fn attempt_failed(&mut self, outcome: AttemptOutcome, reason: &str, fault: Fault, fallback: bool) {
        let notes = self.revisions.failed(outcome, reason, fault, fallback, clock::wall());
        self.tell("source", notes);
        self.write_down();
        self.read_source_at(clock::now());
    }

    /// There is no plan. That is the revision's fault if the compiler or nft refuses it; a kernel that cannot be
    /// looked at says nothing about it, and the next pass tries again.
    pub(super) fn cannot_plan(&mut self, error: &PlanError) {
        let own = match error {
            PlanError::Compile(_) => true,
            PlanError::Kernel(error) => matches!(error, KernelError::Nft { .. }) && !error.may_pass(),
        };
        if own {
            self.turn_down(AttemptOutcome::Failed, &chain(error), Fault::Own);
        } else {
            self.put_aside(&chain(error));
        }
    }

    /// What people ask of the source.
    pub(super) fn on_source_command(&mut self, command: SourceCommand, who: &Who, reply: oneshot::Sender<Answer>) {
        let (verb, by) = (command.verb(), &who.to_string());
        let answer = match command {
            SourceCommand::Accept(revision) => match self.revisions.accept(&revision, by) {
                Ok(notes) => Answer::Done(self.say("source", notes)),
                Err(refusal) => Answer::Refused(refusal.to_string()),
            },
            SourceCommand::Retry => match self.revisions.retry(by) {
                Some(note) => Answer::Done(self.say("source", vec![note])),
                None => Answer::Done("nothing is quarantined of what the source holds; it is read again now".into()),
            },
            SourceCommand::Suspend { reason, until } => {
                let suspension = Suspension { by: by.clone(), reason, since: clock::wall(), until };
                let note = self.revisions.suspend(suspension);
                Answer::Done(self.say("source", vec![note]))
            }
            SourceCommand::Resume => match self.revisions.resume(by) {
                Some(note) => Answer::Done(self.say("source", vec![note])),
                None => Answer::Done("nothing was suspended".into()),
            },
        };
        self.audit(who, verb, &answer.line());
        self.write_down();
        self.read_source_at(clock::now());
        // Whoever asked may have gone away.
        let _ = reply.send(answer);
    }

    /// A suspension ends by itself.
    pub(super) fn tend_revisions(&mut self) {
        self.weigh_doubts();
        if let Some(note) = self.revisions.tick(clock::wall()) {
            self.tell("source", vec![note]);
            self.write_down();
            self.read_source_at(clock::now());
        }
    }

    pub(super) fn tell(&mut self, kind: &str, notes: Vec<Note>) {
        for note in notes {
            if note.warning {
                self.warning(kind, "", note.text, note.detail);
            } else {
                self.event(kind, "", note.text, note.detail);
            }
            self.timers.publish = clock::now();
        }
    }

    /// The same, and the lines as a text.
    fn say(&mut self, kind: &str, notes: Vec<Note>) -> String {
        let text = notes.iter().map(|note| note.text.as_str()).collect::<Vec<_>>().join("; ");
        self.tell(kind, notes);
        text
    }

    /// The journal was begun anew: what is in force has to be found out and written down again.
    pub(super) fn doubt_revisions(&mut self) {
        self.revisions.doubt();
        self.written.clear();
        self.write_down();
    }

    pub(super) fn write_down(&mut self) {
        let memory = self.revisions.memory();
        if self.written != memory {
            self.router.ledger.put(REVISIONS, &memory);
            self.written = memory;
        }
    }

    /// The source as the status shows it.
    pub(super) fn source_status(&self) -> SourceStatus {
        let r = &self.revisions;
        let commits = [("desired", r.desired()), ("applied", r.applied())];
        let commit = |(use_, seen): (&str, Option<&Seen>)| Some((use_.to_owned(), seen?.commit.clone()?));
        SourceStatus {
            desired: r.desired().map(|seen| seen.revision.clone()),
            attempted: r.attempt().cloned(),
            applied: r.applied().map(|seen| seen.revision.clone()),
            commits: commits.into_iter().filter_map(commit).collect(),
            highest: r.highest().map(str::to_owned),
            held: r.held().cloned(),
            quarantine: r.quarantined().to_vec(),
            suspended: r.suspended().cloned(),
            trouble: r.trouble().cloned(),
            last_success: r.last_success(),
            errors: r.errors(),
            via: self.reader.via.clone(),
            ..SourceStatus::of(self.origin.location())
        }
    }
}

/// Any number; it spreads what many routers do. The random end of an id is random enough.
pub(crate) fn dice() -> u64 {
    uuid::Uuid::now_v7().as_u64_pair().1.rotate_left(32)
}
