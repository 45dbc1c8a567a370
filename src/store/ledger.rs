//! The journal as the transaction sees it: on disk, or in memory when the disk is dead.
//!
//! Also what a router remembers across restarts: numbers, old sysctl values, the state applied last, the
//! selection. Everything here has a default, so that a dead store costs memory and never function. What cannot be
//! written waits in [`Pending`] and is seen by whoever reads it here; [`Ledger::flush`] tries again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    Generation, Journal, LastGood, NewGeneration, RemovedFile, Standing, StoreError,
    disk::Disk,
    journal_file,
    pending::{Ended, Pending, UNCONFIRMED, Write},
    refuge::Refuge,
};
use crate::{
    apply::{self, Ending, JournalError, RunId, RunRecord, StepState, Unfinished},
    clock,
    engine::status::ReconcileOutcome,
    failover::Selection,
    guard::{Unconfirmed, Who},
    state::{Originals, State, SysctlKey, sysctl_text},
};

/// Where runs are journaled and what is remembered.
#[derive(Debug)]
pub enum Ledger {
    /// In the state directory.
    Disk(Box<Disk>),
    /// In memory: the state directory cannot be used.
    Memory(apply::Memory),
}

impl Ledger {
    /// Opens the journal of a state directory; the text, if any, is an alarm: what is wrong with it.
    #[must_use]
    pub fn open(dir: &Path) -> (Self, Option<String>) {
        match Journal::open_or_replace(dir) {
            Ok((journal, alarm)) => (Self::Disk(Disk::of(journal).into()), alarm),
            Err(error) => Self::without(&error),
        }
    }

    /// The same; while the state directory cannot be used, the journal is below the runtime directory `run`.
    #[must_use]
    pub fn sheltered(dir: &Path, run: &Path) -> (Self, Option<String>) {
        match Disk::open(dir, run) {
            Ok((disk, alarm)) => (Self::Disk(disk.into()), alarm),
            Err(error) => Self::without(&error),
        }
    }

    /// The journal of a state directory where it is now, for whoever does not stay: it is not moved.
    #[must_use]
    pub fn found(dir: &Path, run: &Path) -> (Self, Option<String>) {
        match Disk::find(dir, run) {
            Ok((disk, alarm)) => (Self::Disk(disk.into()), alarm),
            Err(error) => Self::without(&error),
        }
    }

    fn without(error: &StoreError) -> (Self, Option<String>) {
        (Self::memory(), Some(format!("working without a journal: {}", error.chain())))
    }

    /// Opens the journal of a state directory for whoever only looks; without one there is nothing to be seen. The text, if
    /// any, says what is wrong with it.
    #[must_use]
    pub fn open_to_read(dir: &Path, run: &Path) -> (Self, Option<String>) {
        let dir = place(dir, run);
        if !journal_file(&dir).exists() {
            return (Self::memory(), None);
        }
        match Journal::open_to_read(&dir) {
            Ok(journal) => (Self::Disk(Disk::of(journal).into()), None),
            Err(error) => (Self::memory(), Some(format!("looking without the journal: {}", error.chain()))),
        }
    }

    /// A ledger that forgets everything when the process ends.
    #[must_use]
    pub fn memory() -> Self {
        Self::Memory(apply::Memory::default())
    }

    /// Looks whether the journal's file is still the one that was opened and undamaged; if not, begins another
    /// and says so. What was remembered has to be put into it again.
    pub fn tend(&mut self) -> Option<String> {
        let Self::Disk(disk) = self else { return None };
        disk.journal.be_patient();
        match disk.follow() {
            Ok(false) => {}
            // Nothing is lost: it is elsewhere.
            Ok(true) => return None,
            Err(error) => {
                tracing::warn!(error = error.chain(), "the journal was moved and cannot be opened");
                return None;
            }
        }
        let trouble = disk.journal.trouble()?;
        let file = disk.journal.file().to_owned();
        let there = file.exists();
        match disk.begin_anew() {
            Ok(damaged) => {
                let now = if there && damaged.is_none() { "the one there now is used" } else { "a new one was begun" };
                Some(format!("{} {trouble} while in use; {now}", file.display()))
            }
            Err(error) => Some(format!("{} {trouble} while in use: {}", file.display(), error.chain())),
        }
    }

    /// Makes the writes that wait because they failed. The error is that of the first which fails again.
    pub fn flush(&self) -> Result<(), StoreError> {
        let Self::Disk(disk) = self else { return Ok(()) };
        disk.flush()
    }

    /// The same; if its place takes no writes, the journal goes on elsewhere.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        let Self::Disk(disk) = self else { return Ok(()) };
        disk.settle()
    }

    /// An alarm, as long as something could not be written down.
    #[must_use]
    pub fn alarm(&self) -> Option<String> {
        let Self::Disk(disk) = self else { return None };
        disk.alarm()
    }

    /// A remembered value; absent when there is none or the store is dead.
    #[must_use]
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let waits = |pending: &Pending| pending.remembered(key).and_then(|json| serde_json::from_str(json).ok());
        self.pending(waits).or_else(|| self.read(|j| j.get(key)).flatten())
    }

    /// Remembers a value.
    pub fn put<T: Serialize>(&self, key: &str, value: &T) {
        self.write_json(value, |json| Write::Remember { key: key.to_owned(), json });
    }

    /// The generation in force; 0 before the first.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.read(Journal::generation).unwrap_or_default()
    }

    /// Whether steps that led to this generation, or to a later one, were carried out and not undone.
    #[must_use]
    pub fn has_applied(&self, generation: u64) -> bool {
        self.read(|j| j.has_applied(generation)).unwrap_or_default()
    }

    /// The state applied last.
    #[must_use]
    pub fn applied(&self) -> Option<State> {
        self.read(Journal::applied).flatten()
    }

    /// Remembers the state applied last.
    pub fn set_applied(&self, state: &State) {
        self.write_json(state, |json| Write::ForBoot { key: "applied", json });
    }

    /// The configuration in force.
    #[must_use]
    pub fn last_good(&self) -> Option<LastGood> {
        self.pending(|pending| pending.last_good().cloned()).or_else(|| self.read(Journal::last_good).flatten())
    }

    /// Remembers the configuration in force, and what was written about sites that it no longer has.
    pub fn set_last_good(&self, good: &LastGood) {
        let same = |old: LastGood| old.revision == good.revision && old.files == good.files;
        if !self.last_good().is_some_and(same) {
            self.write(Write::LastGood(good.clone()));
        }
    }

    /// Keeps who wrote the revision that took sites away.
    pub fn name_remover(&self, without: &str, author: &str) {
        self.write(Write::Remover { without: without.to_owned(), author: author.to_owned() });
    }

    /// What was written about sites that were removed since.
    #[must_use]
    pub fn removed(&self, since: clock::Wall) -> Vec<RemovedFile> {
        self.read(|j| j.removed(since)).unwrap_or_default()
    }

    /// Forgets sites that were removed before.
    pub fn forget_removed(&self, before: clock::Wall) {
        if let Self::Disk(disk) = self
            && let Err(error) = disk.journal.forget_removed(before)
        {
            tracing::warn!(error = error.chain(), "the journal cannot be written");
        }
    }

    /// The change that waits for its confirmation, if one does.
    #[must_use]
    pub fn unconfirmed(&self) -> Option<Unconfirmed> {
        let settled = |change: &Unconfirmed| self.pending(|pending| pending.is_settled(change.record).then_some(()));
        self.get(UNCONFIRMED).filter(|change| settled(change).is_none())
    }

    /// Remembers the change that waits for its confirmation.
    pub fn set_unconfirmed(&self, change: &Unconfirmed) {
        self.put(UNCONFIRMED, change);
    }

    /// The change was undone, or cannot be; says what has become of its generation.
    pub fn settle_unconfirmed(&self, change: &Unconfirmed, standing: Standing, reason: &str) {
        self.write(Write::Settled { ended: ended(change.record, standing, reason), good: None });
    }

    /// The change stands, and this is the configuration in force: both are written down or neither is.
    pub fn confirm(&self, change: &Unconfirmed, standing: Standing, reason: &str, good: Option<LastGood>) {
        self.write(Write::Settled { ended: ended(change.record, standing, reason), good });
    }

    /// Says what has become of a generation.
    pub fn end_generation(&self, record: i64, standing: Standing, reason: &str) {
        self.write(Write::Ended(ended(record, standing, reason)));
    }

    /// The configuration that the kernel shows: the one that waits for its confirmation, else the last good one.
    #[must_use]
    pub fn in_force(&self) -> Option<LastGood> {
        let Some(change) = self.unconfirmed() else { return self.last_good() };
        let files = self.read(|j| j.generation_files(change.record))?;
        Some(LastGood { revision: change.revision, at: change.deadline.wall, files })
    }

    /// Writes a generation down, and with it the change that waits for its confirmation if it does; the change learns its
    /// row.
    pub fn add_generation(&self, new: &NewGeneration<'_>, change: &mut Unconfirmed) -> Result<(), StoreError> {
        let trial = (new.standing == Standing::Unconfirmed).then_some(UNCONFIRMED);
        change.record = 0;
        let Self::Disk(disk) = self else { return Ok(()) };
        // What waits is older.
        let _ = disk.flush();
        change.record = disk.journal.add_generation(new, trial, change)?;
        if trial.is_some() {
            disk.pending.borrow_mut().another_trial();
        }
        Ok(())
    }

    /// Whether the journal goes on elsewhere from now on, since its place takes no writes.
    pub fn take_refuge(&mut self, error: &StoreError) -> bool {
        if let Self::Disk(disk) = self { disk.flee(error) } else { false }
    }

    /// Writes a change on trial down once more, in a journal that was begun anew: whoever finds it must know of the
    /// change and of what comes back without a confirmation. `files` are those of the change.
    pub fn add_trial_again(
        &self,
        change: &mut Unconfirmed,
        before: Option<&LastGood>,
        files: &BTreeMap<String, Vec<u8>>,
    ) {
        if let Some(before) = before {
            self.set_last_good(before);
        }
        let (revision, who) = (change.revision.clone(), change.who.clone());
        let new = NewGeneration {
            generation: change.generation,
            revision: &revision,
            at: clock::wall(),
            who: &who,
            plan: "The plan was lost with the journal that held it.\n",
            document: "null",
            standing: Standing::Unconfirmed,
            files,
        };
        if let Err(error) = self.add_generation(&new, change) {
            tracing::warn!(error = error.chain(), "the journal cannot be written");
        }
    }

    /// The generation that a number means, with its files; one that is still to come means none. A journal that was begun
    /// anew may have a generation and no run yet.
    #[must_use]
    pub fn generation_at(&self, number: u64) -> Option<(Generation, BTreeMap<String, Vec<u8>>)> {
        let newest = self.read(|j| j.generation_at(u64::MAX)).flatten()?;
        if number > self.generation().max(newest.generation) {
            return None;
        }
        let found = self.read(|j| j.generation_at(number)).flatten()?;
        let files = self.read(|j| j.generation_files(found.record))?;
        Some((found, files))
    }

    /// Adds a row to the audit.
    pub fn audit(&self, who: &Who, what: &str, detail: &str) {
        let (at, who) = (clock::wall(), who.clone());
        self.write(Write::Audit { at, who, what: what.to_owned(), detail: detail.to_owned() });
    }

    /// The path choice in this boot; its moments count from the boot.
    #[must_use]
    pub fn selection(&self) -> Option<Selection> {
        self.read(Journal::selection).flatten()
    }

    /// Remembers the path choice until the machine goes down.
    pub fn set_selection(&self, selection: &Selection) {
        self.write_json(selection, |json| Write::ForBoot { key: "selection", json });
    }

    /// What was known of the paths, in this boot.
    #[must_use]
    pub fn warm<T: DeserializeOwned>(&self) -> Option<T> {
        self.read(|j| j.get_for_boot("warm")).flatten()
    }

    /// Remembers what is known of the paths until the machine goes down.
    pub fn set_warm<T: Serialize>(&self, known: &T) {
        self.write_json(known, |json| Write::ForBoot { key: "warm", json });
    }

    /// Values that sysctls had before we first set them.
    #[must_use]
    pub fn sysctl_originals(&self) -> Originals {
        let all = self.read(Journal::sysctl_originals).unwrap_or_default();
        all.into_iter().map(|(path, value)| (SysctlKey { path: path.into() }, sysctl_text(&value))).collect()
    }

    /// Remembers the value that a sysctl had, unless one is remembered.
    pub fn keep_sysctl(&self, key: &SysctlKey, value: &str) {
        self.write(Write::KeepSysctl { key: key.path.to_string(), value: value.to_owned() });
    }

    /// Forgets the value that a sysctl had: it has it again.
    pub fn forget_sysctl(&self, key: &SysctlKey) {
        self.write(Write::ForgetSysctl { key: key.path.to_string() });
    }

    fn read<T>(&self, with: impl FnOnce(&Journal) -> Result<T, StoreError>) -> Option<T> {
        let Self::Disk(disk) = self else { return None };
        match with(&disk.journal) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(error = error.chain(), "the journal cannot be read");
                None
            }
        }
    }

    fn pending<T>(&self, with: impl FnOnce(&Pending) -> Option<T>) -> Option<T> {
        let Self::Disk(disk) = self else { return None };
        with(&disk.pending.borrow())
    }

    fn write_json<T: Serialize>(&self, value: &T, write: impl FnOnce(String) -> Write) {
        if let Self::Memory(_) = self {
            return;
        }
        match serde_json::to_string(value) {
            Ok(json) => self.write(write(json)),
            Err(error) => tracing::warn!(%error, "a value cannot be written as JSON, and is not remembered"),
        }
    }

    /// Writes it down, now or as soon as that is possible.
    fn write(&self, write: Write) {
        if let Self::Disk(disk) = self {
            disk.pending.borrow_mut().push(write);
            // It waits, and there is an alarm.
            let _ = self.flush();
        }
    }
}

/// The directory that the journal of a state directory is in now.
#[must_use]
pub fn place(dir: &Path, run: &Path) -> PathBuf {
    Refuge::new(dir, run).current().to_owned()
}

fn ended(record: i64, standing: Standing, reason: &str) -> Ended {
    Ended { record, standing, at: clock::wall(), reason: reason.to_owned() }
}

fn failed(doing: &str) -> impl FnOnce(StoreError) -> JournalError {
    move |source| JournalError { doing: doing.to_owned(), source: Box::new(source) }
}

impl apply::Journal for Ledger {
    async fn begin(&mut self, record: &RunRecord) -> Result<RunId, JournalError> {
        match self {
            Self::Memory(memory) => memory.begin(record).await,
            Self::Disk(disk) => {
                let write = |journal: &Journal| journal.begin(record, clock::wall());
                disk.attempt(write).map_err(failed("writing the plan to the journal"))
            }
        }
    }

    async fn step(&mut self, run: RunId, index: usize, state: StepState, why: &str) -> Result<(), JournalError> {
        let why = (!why.is_empty()).then_some(why);
        match self {
            Self::Memory(memory) => memory.step(run, index, state, why.unwrap_or_default()).await,
            Self::Disk(disk) => {
                let write = |journal: &Journal| journal.step(run, index, state, why);
                disk.attempt(write).map_err(failed("writing a step to the journal"))
            }
        }
    }

    async fn finish(&mut self, run: RunId, ending: Ending, message: &str) -> Result<(), JournalError> {
        let disk = match self {
            Self::Memory(memory) => return memory.finish(run, ending, message).await,
            Self::Disk(disk) => disk,
        };
        let outcome = match ending {
            Ending::Applied => Some(ReconcileOutcome::Applied),
            Ending::RolledBack => Some(ReconcileOutcome::RolledBack),
            Ending::RollbackFailed => Some(ReconcileOutcome::RollbackFailed),
            Ending::Superseded => None,
        };
        let message = (!message.is_empty()).then_some(message);
        let write = |journal: &Journal| journal.finish(run, clock::wall(), outcome, message);
        disk.attempt(write).map_err(failed("closing a run in the journal"))
    }

    async fn unfinished(&mut self) -> Result<Option<Unfinished>, JournalError> {
        match self {
            Self::Memory(memory) => memory.unfinished().await,
            Self::Disk(disk) => disk.journal.unfinished().map_err(failed("reading the unfinished run of the journal")),
        }
    }
}
