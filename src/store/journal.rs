//! The journal of applies: every step is on disk before it runs.
//!
//! Invariant: when a method returns Ok, what it wrote survives `kill -9`. What also has to outlive the
//! machine (configuration, remembered values) is synced to the disk first
//! (<https://sqlite.org/pragma.html#pragma_synchronous>). Runs, steps and originals of sysctls describe the
//! state of *this* kernel, which dies with the machine: they carry the boot's id, count for no other boot,
//! and need no fsync, which on a router's flash would take longer than the switch itself.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::de::DeserializeOwned;

use super::{PATIENCE, StoreError, head::Head, int, journal_file, move_aside, open, read, schema, uint, word};
use crate::{
    apply::{RunId, RunRecord, StepState, Unfinished},
    clock::{self, Wall},
    engine::status::ReconcileOutcome,
    failover::Selection,
    plan::Step,
    state::{Stamp, State},
};

/// Finished runs whose steps are kept; older ones keep only their line in the history.
const KEEP_STEPS: i64 = 100;
/// Finished runs that are kept at all.
const KEEP_RUNS: i64 = 10_000;

const fn of_word(state: &str) -> Option<StepState> {
    match state.as_bytes() {
        b"planned" => None,
        b"done" => Some(StepState::Done),
        b"undone" => Some(StepState::Undone),
        b"failed" => Some(StepState::Failed),
        // An unknown word is treated as the state that recovery takes most care with.
        _ => Some(StepState::Started),
    }
}

/// The journal of one router.
#[derive(Debug)]
pub struct Journal {
    db: Connection,
    /// Dropped after the connection.
    head: Head,
    file: PathBuf,
    boot: String,
}

/// The id that the kernel makes up at each boot (random(4)).
fn boot() -> Result<String, StoreError> {
    let file = PathBuf::from("/proc/sys/kernel/random/boot_id");
    match std::fs::read_to_string(&file) {
        Ok(id) => Ok(id.trim().to_owned()),
        Err(source) => Err(StoreError::File { doing: "read", file, source }),
    }
}

impl Journal {
    /// Opens or creates the journal in a state directory.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let file = journal_file(dir);
        let journal = Self::of(open(&file, schema::JOURNAL)?, file)?;
        journal.close_other_boots()?;
        Ok(journal)
    }

    /// Opens the journal in a state directory for whoever only looks. It creates and changes nothing.
    pub fn open_to_read(dir: &Path) -> Result<Self, StoreError> {
        let file = journal_file(dir);
        Self::of(read::open_anywhere(&file, schema::JOURNAL)?, file)
    }

    fn of(db: Connection, file: PathBuf) -> Result<Self, StoreError> {
        let failed = |source| StoreError::File { doing: "read", file: file.clone(), source };
        let head = Head::of(&file).map_err(failed)?;
        Ok(Self { db, head, file, boot: boot()? })
    }

    pub(super) const fn db(&self) -> &Connection {
        &self.db
    }

    pub(super) const fn db_mut(&mut self) -> &mut Connection {
        &mut self.db
    }

    /// The database.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What happened to the file while it was open, if anything.
    #[must_use]
    pub fn trouble(&self) -> Option<&'static str> {
        self.head.trouble(&self.file)
    }

    /// Opens the journal; a damaged one is moved aside and a new one begun. The text, if any, says so.
    pub fn open_or_replace(dir: &Path) -> Result<(Self, Option<String>), StoreError> {
        match Self::open(dir) {
            Err(error) if error.is_corrupt() => {
                let aside = move_aside(&journal_file(dir), clock::wall())?;
                let told = format!("the journal was damaged ({}) and is now {}", error.chain(), aside.display());
                Ok((Self::open(dir)?, Some(told)))
            }
            other => other.map(|journal| (journal, None)),
        }
    }

    /// The kernel that those runs changed and those values came from is gone. Nobody reads them; that they are cleared away
    /// may wait for whoever holds the file.
    fn close_other_boots(&self) -> Result<(), StoreError> {
        let closed = "UPDATE runs SET ended = started, message = 'the machine went down during it'
            WHERE ended IS NULL AND boot <> ?";
        self.db
            .execute(closed, [&self.boot])
            .and_then(|_| self.db.execute("DELETE FROM sysctl_originals WHERE boot <> ?", [&self.boot]))
            .map(drop)
            .or_else(|error| match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(()),
                _ => Err(self.err("close old runs of")(error)),
            })
    }

    /// Runs a write whose result must outlive the machine.
    pub(super) fn synced(&self, write: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
        const DOING: &str = "sync";
        self.db.pragma_update(None, "synchronous", "full").map_err(self.err(DOING))?;
        let result = write();
        self.db.pragma_update(None, "synchronous", "normal").map_err(self.err(DOING))?;
        result
    }

    /// Runs writes that belong together: all of them are made or none.
    pub(super) fn together<T>(
        &self,
        doing: &'static str,
        write: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // It waits for the locks of others at its beginning, since later it could not.
        self.db.execute_batch("BEGIN IMMEDIATE").map_err(self.err(doing))?;
        let written = write().and_then(|done| self.db.execute_batch("COMMIT").map_err(self.err(doing)).map(|()| done));
        if written.is_err() {
            // A disk that is full may have ended it already.
            let _ = self.db.execute_batch("ROLLBACK");
        }
        written
    }

    /// Whoever has waited in vain for somebody else's lock waits no more, until [`Journal::be_patient`].
    pub(super) fn err(&self, doing: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
        let to_error = StoreError::database(doing, &self.file);
        move |error| {
            if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) {
                let _ = self.db.busy_timeout(std::time::Duration::ZERO);
            }
            to_error(error)
        }
    }

    /// Waits for the locks of others again.
    pub fn be_patient(&self) {
        let _ = self.db.busy_timeout(PATIENCE);
    }

    /// Writes down a plan with all its steps before the first one runs. Runs that are still open are closed:
    /// whoever begins has recovered before.
    pub fn begin(&self, record: &RunRecord, started: Wall) -> Result<RunId, StoreError> {
        const DOING: &str = "begin a run in";
        let previous =
            record.previous.as_ref().map(serde_json::to_string).transpose().map_err(StoreError::value(DOING))?;
        let work = self.db.unchecked_transaction().map_err(self.err(DOING))?;
        let closed = "UPDATE runs SET ended = ?, message = 'replaced by a later run' WHERE ended IS NULL";
        work.execute(closed, [started.as_micros()]).map_err(self.err(DOING))?;
        work.prepare_cached(
            "INSERT INTO runs (boot, place, plan, previous, generation, revision, started, steps)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .and_then(|mut s| {
            let RunRecord { stamp, revision, place, steps, .. } = record;
            let (plan, generation, steps) = (stamp.plan.to_string(), int(stamp.generation), int(steps.len()));
            s.execute(params![self.boot, place, plan, previous, generation, revision, started.as_micros(), steps])
        })
        .map_err(self.err(DOING))?;
        let run = RunId(work.last_insert_rowid());
        for (number, step) in record.steps.iter().enumerate() {
            let step = serde_json::to_string(step).map_err(StoreError::value(DOING))?;
            work.prepare_cached("INSERT INTO steps (run, number, step, state) VALUES (?, ?, ?, 'planned')")
                .and_then(|mut s| s.execute(params![run.0, int(number), step]))
                .map_err(self.err(DOING))?;
        }
        work.commit().map_err(self.err(DOING))?;
        Ok(run)
    }

    /// Writes down how far a step has come. Why it failed stays when it was undone since.
    pub fn step(&self, run: RunId, index: usize, state: StepState, why: Option<&str>) -> Result<(), StoreError> {
        self.db
            .prepare_cached("UPDATE steps SET state = ?, error = coalesce(?, error) WHERE run = ? AND number = ?")
            .and_then(|mut s| s.execute(params![state.as_str(), why, run.0, int(index)]))
            .map(drop)
            .map_err(self.err("write a step to"))
    }

    /// Closes a run, and forgets the details of old ones. No outcome means that nothing was left to finish or
    /// undo.
    pub fn finish(
        &self,
        run: RunId,
        ended: Wall,
        outcome: Option<ReconcileOutcome>,
        message: Option<&str>,
    ) -> Result<(), StoreError> {
        const DOING: &str = "finish a run in";
        let work = self.db.unchecked_transaction().map_err(self.err(DOING))?;
        work.execute(
            "UPDATE runs SET ended = ?, outcome = ?, message = ? WHERE id = ?",
            params![ended.as_micros(), outcome.as_ref().map(word), message, run.0],
        )
        .and_then(|_| work.execute("DELETE FROM steps WHERE run <= ?", [run.0 - KEEP_STEPS]))
        .and_then(|_| work.execute("DELETE FROM runs WHERE id <= ?", [run.0 - KEEP_RUNS]))
        .and_then(|_| work.commit())
        .map_err(self.err(DOING))
    }

    /// The newest run of this boot that was begun and never finished.
    pub fn unfinished(&self) -> Result<Option<Unfinished>, StoreError> {
        const DOING: &str = "read the unfinished run of";
        let sql = "SELECT id, plan, generation, revision, previous, place FROM runs
            WHERE ended IS NULL AND boot = ? ORDER BY id DESC LIMIT 1";
        let found = self.db.query_row(sql, [&self.boot], |row| {
            let (plan, previous): (String, Option<String>) = (row.get(1)?, row.get(4)?);
            let stamp = Stamp { generation: uint(row.get(2)?), plan: plan.parse().map_err(|e| unreadable(1, e))? };
            let record = RunRecord {
                stamp,
                previous: previous.map(|text| serde_json::from_str(&text)).transpose().map_err(|e| unreadable(4, e))?,
                revision: row.get::<_, Option<String>>(3)?.unwrap_or_default(),
                place: row.get(5)?,
                steps: Arc::default(),
            };
            Ok(Unfinished { run: RunId(row.get(0)?), record, states: Vec::new() })
        });
        let Some(mut found) = found.optional().map_err(self.err(DOING))? else { return Ok(None) };
        let (steps, states): (Vec<Step>, _) = self.steps(found.run)?.into_iter().unzip();
        (found.record.steps, found.states) = (steps.into(), states);
        Ok(Some(found))
    }

    /// The steps of a run in order, with how far each came.
    pub fn steps(&self, run: RunId) -> Result<Vec<(Step, Option<StepState>)>, StoreError> {
        const DOING: &str = "read the steps of";
        let sql = "SELECT step, state FROM steps WHERE run = ? ORDER BY number";
        let mut statement = self.db.prepare_cached(sql).map_err(self.err(DOING))?;
        let rows = statement.query_map([run.0], |row| Ok((row.get(0)?, of_word(&row.get::<_, String>(1)?))));
        let rows = rows.and_then(Iterator::collect::<Result<Vec<(String, _)>, _>>).map_err(self.err(DOING))?;
        let step =
            |(step, state): (String, _)| Ok((serde_json::from_str(&step).map_err(StoreError::value(DOING))?, state));
        rows.into_iter().map(step).collect()
    }

    /// The highest generation that any run led to; 0 before the first.
    pub fn generation(&self) -> Result<u64, StoreError> {
        let sql = "SELECT coalesce(max(generation), 0) FROM runs";
        self.db.query_row(sql, [], |row| row.get(0)).map(uint).map_err(self.err("read the generation of"))
    }

    /// Whether steps that led to this generation, or to a later one, were carried out and not undone.
    pub fn has_applied(&self, generation: u64) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM runs WHERE generation >= ? AND outcome = 'applied')";
        self.db.query_row(sql, [int(generation)], |row| row.get(0)).map_err(self.err("read the runs of"))
    }

    /// Keeps the value that a sysctl had before we first set it; a later call for the same key changes nothing.
    pub fn keep_sysctl(&self, key: &str, value: &str) -> Result<(), StoreError> {
        self.db
            .execute("INSERT OR IGNORE INTO sysctl_originals VALUES (?, ?, ?)", [key, &self.boot, value])
            .map(drop)
            .map_err(self.err("write a sysctl to"))
    }

    /// The sysctls as they were in this boot before us, by their path below `/proc/sys/net/`.
    pub fn sysctl_originals(&self) -> Result<BTreeMap<String, String>, StoreError> {
        const DOING: &str = "read the sysctls of";
        let sql = "SELECT key, value FROM sysctl_originals WHERE boot = ?";
        let mut statement = self.db.prepare(sql).map_err(self.err(DOING))?;
        let rows = statement.query_map([&self.boot], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.and_then(Iterator::collect).map_err(self.err(DOING))
    }

    /// Forgets the original of a sysctl after it was put back.
    pub fn forget_sysctl(&self, key: &str) -> Result<(), StoreError> {
        self.db
            .execute("DELETE FROM sysctl_originals WHERE key = ?", [key])
            .map(drop)
            .map_err(self.err("forget a sysctl in"))
    }

    /// The desired state that was last put in force in this boot.
    pub fn applied(&self) -> Result<Option<State>, StoreError> {
        self.get_for_boot("applied")
    }

    /// The choice of every rule as it was last kept in this boot.
    pub fn selection(&self) -> Result<Option<Selection>, StoreError> {
        self.get_for_boot("selection")
    }

    /// Keeps a value in JSON until the machine goes down.
    pub fn put_for_boot(&self, key: &str, json: &str) -> Result<(), StoreError> {
        self.db
            .prepare_cached("REPLACE INTO this_boot VALUES (?, ?, ?)")
            .and_then(|mut s| s.execute([key, &self.boot, json]))
            .map(drop)
            .map_err(self.err("write a value to"))
    }

    pub(super) fn get_for_boot<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        const DOING: &str = "read a value of";
        let sql = "SELECT value FROM this_boot WHERE key = ? AND boot = ?";
        let found = self.db.query_row(sql, [key, &self.boot], |row| row.get::<_, String>(0)).optional();
        parsed(DOING, found.map_err(self.err(DOING))?)
    }

    /// Remembers a value (such as an operator's overrides) in JSON under a key, over reboots too. It costs an fsync.
    pub fn put(&self, key: &str, json: &str) -> Result<(), StoreError> {
        let write = || self.db.execute("REPLACE INTO remembered VALUES (?, ?)", [key, json]);
        self.synced(|| write().map(drop).map_err(self.err("remember a value in")))
    }

    /// The value remembered under a key.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        const DOING: &str = "read a value of";
        let sql = "SELECT value FROM remembered WHERE key = ?";
        let found = self.db.query_row(sql, [key], |row| row.get::<_, String>(0)).optional().map_err(self.err(DOING))?;
        parsed(DOING, found)
    }

    /// Forgets a value.
    pub fn forget(&self, key: &str) -> Result<(), StoreError> {
        self.db.execute("DELETE FROM remembered WHERE key = ?", [key]).map(drop).map_err(self.err("forget a value in"))
    }
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

fn parsed<T: DeserializeOwned>(doing: &'static str, text: Option<String>) -> Result<Option<T>, StoreError> {
    text.map(|text| serde_json::from_str(&text).map_err(StoreError::value(doing))).transpose()
}
