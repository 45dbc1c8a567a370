//! What a run leaves behind so that the next start can finish or undo it.
//!
//! Invariant: the whole list of steps is written down before the first of them runs, so that recovery never needs
//! the configuration, the desired state or the plan that has been computed since.

use std::{
    error::Error,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{plan::Step, state::Stamp};

/// The number of a run in its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub i64);

/// All that recovery needs to know of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Generation and plan id that the nft table carries once the plan is committed.
    pub stamp: Stamp,
    /// What the nft table carried when the plan was made; an undo puts it back.
    pub previous: Option<Stamp>,
    /// The revision of the configuration that the plan leads to, for people.
    pub revision: String,
    /// Boot and network namespace in which the steps ran; see [`super::place`].
    pub place: String,
    /// The steps, in the order in which they run.
    pub steps: Arc<[Step]>,
}

/// How far a step has come. A step without a state has not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Handed to the kernel; whether it happened is not known.
    Started,
    /// The kernel acknowledged it.
    Done,
    /// The kernel refused it, or the read-back after it failed: the run goes backwards from here on.
    Failed,
    /// Its object is as it was before.
    Undone,
}

impl StepState {
    /// The word that serde writes, for a column of text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Undone => "undone",
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// Every step ran and the kernel was read back.
    Applied,
    /// Everything that ran was undone, and that was read back.
    RolledBack,
    /// Not everything could be undone.
    RollbackFailed,
    /// Nothing was left to finish or undo: the machine restarted, or a later run replaced this one.
    Superseded,
}

impl Ending {
    /// The word that serde writes, for a column of text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::RolledBack => "rolled-back",
            Self::RollbackFailed => "rollback-failed",
            Self::Superseded => "superseded",
        }
    }
}

/// A run that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its number.
    pub run: RunId,
    /// What was to be done.
    pub record: RunRecord,
    /// How far each step came; as long as `record.steps`.
    pub states: Vec<Option<StepState>>,
}

/// The journal could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct JournalError {
    /// What was being done.
    pub doing: String,
    /// The cause.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Where runs are written down.
pub trait Journal {
    /// Opens a run. When it returns Ok, the record survives the death of the process, not of the machine: a power cut
    /// takes the kernel's state with it. Runs still open are closed as [`Ending::Superseded`] in the same transaction:
    /// whoever begins has recovered before.
    fn begin(&mut self, record: &RunRecord) -> impl Future<Output = Result<RunId, JournalError>>;

    /// Notes how far a step has come, and why it failed; empty if it has not. It survives what the run survives.
    fn step(
        &mut self,
        run: RunId,
        index: usize,
        state: StepState,
        why: &str,
    ) -> impl Future<Output = Result<(), JournalError>>;

    /// Closes a run; `message` is one line for a person and may be empty.
    fn finish(&mut self, run: RunId, ending: Ending, message: &str) -> impl Future<Output = Result<(), JournalError>>;

    /// The newest run that is open, if any.
    fn unfinished(&mut self) -> impl Future<Output = Result<Option<Unfinished>, JournalError>>;
}

/// One run in a [`Memory`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was to be done.
    pub record: RunRecord,
    /// How far each step came.
    pub states: Vec<Option<StepState>>,
    /// How it ended, with its message.
    pub end: Option<(Ending, String)>,
}

/// A journal in memory: clones share it, so it outlives the "process" of a test.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All runs so far, oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    fn with<T>(&self, run: RunId, change: impl FnOnce(&mut Entry) -> Option<T>) -> Result<T, JournalError> {
        let index = usize::try_from(run.0).ok();
        let mut entries = self.lock();
        let changed = index.and_then(|index| entries.get_mut(index)).and_then(change);
        changed.ok_or_else(|| JournalError {
            doing: format!("writing to run {}", run.0),
            source: "there is no such run or step".into(),
        })
    }
}

impl Journal for Memory {
    async fn begin(&mut self, record: &RunRecord) -> Result<RunId, JournalError> {
        let mut entries = self.lock();
        for open in entries.iter_mut().filter(|entry| entry.end.is_none()) {
            open.end = Some((Ending::Superseded, String::new()));
        }
        let run = RunId(i64::try_from(entries.len()).unwrap_or(i64::MAX));
        entries.push(Entry { record: record.clone(), states: vec![None; record.steps.len()], end: None });
        Ok(run)
    }

    async fn step(&mut self, run: RunId, index: usize, state: StepState, _: &str) -> Result<(), JournalError> {
        self.with(run, |entry| entry.states.get_mut(index).map(|slot| *slot = Some(state)))
    }

    async fn finish(&mut self, run: RunId, ending: Ending, message: &str) -> Result<(), JournalError> {
        self.with(run, |entry| {
            entry.end = Some((ending, message.to_owned()));
            Some(())
        })
    }

    async fn unfinished(&mut self) -> Result<Option<Unfinished>, JournalError> {
        let entries = self.lock();
        let open = entries.iter().enumerate().rev().find(|(_, entry)| entry.end.is_none());
        Ok(open.map(|(index, entry)| Unfinished {
            run: RunId(i64::try_from(index).unwrap_or(i64::MAX)),
            record: entry.record.clone(),
            states: entry.states.clone(),
        }))
    }
}
