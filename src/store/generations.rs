//! Every state of the configuration that was put in force, and the audit: who did what, and when.
//!
//! Invariant: the audit only grows. Triggers in the database refuse to change or delete a row of it, whoever asks.
//! Files are kept once per content, so that a hundred generations of a tree cost little more than one.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Journal, StoreError, from_word, int, pending::Ended, uint, word};
use crate::{
    clock::Wall,
    guard::{Unconfirmed, Who},
};

/// Generations that can be gone back to.
const KEEP: i64 = 100;

pub(super) const MIGRATION: &str = "
    CREATE TABLE generations (
        record INTEGER PRIMARY KEY AUTOINCREMENT,
        generation INTEGER NOT NULL,
        revision TEXT NOT NULL,
        at INTEGER NOT NULL,
        who TEXT NOT NULL,
        plan TEXT NOT NULL,
        document TEXT NOT NULL,
        standing TEXT NOT NULL,
        ended INTEGER,
        reason TEXT
    );
    CREATE INDEX generations_number ON generations (generation);
    CREATE TABLE contents (hash BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE generation_files (
        record INTEGER NOT NULL REFERENCES generations (record) ON DELETE CASCADE,
        path TEXT NOT NULL,
        hash BLOB NOT NULL,
        PRIMARY KEY (record, path)
    ) WITHOUT ROWID;
    CREATE INDEX generation_files_hash ON generation_files (hash);
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        who TEXT NOT NULL,
        what TEXT NOT NULL,
        detail TEXT NOT NULL
    );
    CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT raise(ABORT, 'the audit is only added to'); END;
    CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
        BEGIN SELECT raise(ABORT, 'the audit is only added to'); END;
";

/// What has become of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// In force until its deadline.
    Unconfirmed,
    /// It was confirmed.
    Confirmed,
    /// Nobody asked for a confirmation.
    Applied,
    /// It was undone, and that was verified.
    RolledBack,
    /// It was to be undone, and that failed.
    RollbackFailed,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Unconfirmed => "unconfirmed",
            Self::Confirmed => "confirmed",
            Self::Applied => "applied",
            Self::RolledBack => "rolled back",
            Self::RollbackFailed => "ROLLBACK FAILED",
        })
    }
}

/// A generation about to be put in force.
#[derive(Debug, Clone, PartialEq)]
pub struct NewGeneration<'a> {
    /// Its number.
    pub generation: u64,
    /// Its revision.
    pub revision: &'a str,
    /// When.
    pub at: Wall,
    /// By whom.
    pub who: &'a Who,
    /// The plan as people read it.
    pub plan: &'a str,
    /// The plan as programs read it, in JSON: as a tree of values a large hub's would be several times the text.
    pub document: &'a str,
    /// What has become of it.
    pub standing: Standing,
    /// Its configuration.
    pub files: &'a BTreeMap<String, Vec<u8>>,
}

/// A generation without its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Its row.
    pub record: i64,
    /// Its number.
    pub generation: u64,
    /// Its revision.
    pub revision: String,
    /// When it was put in force.
    pub at: Wall,
    /// By whom.
    pub who: Who,
    /// The plan as people read it.
    pub plan: String,
    /// The plan as programs read it.
    pub document: serde_json::Value,
    /// What has become of it.
    pub standing: Standing,
    /// Since when.
    pub ended: Option<Wall>,
    /// Why.
    pub reason: Option<String>,
}

/// One row of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Its number.
    pub id: i64,
    /// When.
    pub at: Wall,
    /// Who.
    pub who: Who,
    /// What they did: a verb, or what happened to a generation.
    pub what: String,
    /// One line for a person.
    pub detail: String,
}

const COLUMNS: &str = "record, generation, revision, at, who, plan, document, standing, ended, reason";

impl Journal {
    /// Writes a generation down with its files, and the change that waits for its confirmation under its name: both or
    /// nothing. Gives the row.
    pub fn add_generation(
        &self,
        new: &NewGeneration<'_>,
        trial: Option<&str>,
        change: &Unconfirmed,
    ) -> Result<i64, StoreError> {
        const DOING: &str = "write a generation to";
        let who = serde_json::to_string(new.who).map_err(StoreError::value(DOING))?;
        let mut record = 0;
        self.synced(|| {
            let work = self.db().unchecked_transaction().map_err(self.err(DOING))?;
            let written = work
                .execute(
                    "INSERT INTO generations (generation, revision, at, who, plan, document, standing)
                        VALUES (?, ?, ?, ?, ?, ?, ?)",
                    params![
                        int(new.generation),
                        new.revision,
                        new.at.as_micros(),
                        who,
                        new.plan,
                        new.document,
                        word(&new.standing)
                    ],
                )
                .map(|_| record = work.last_insert_rowid())
                .and_then(|()| add_files(&work, record, new.files))
                .and_then(|()| trial.map_or(Ok(()), |name| remember(&work, name, record, change)))
                .and_then(|()| prune(&work));
            written.and_then(|()| work.commit()).map_err(self.err(DOING))
        })?;
        Ok(record)
    }

    /// Says what has become of a generation.
    pub(super) fn end_generation(&self, ended: &Ended) -> Result<(), StoreError> {
        self.synced(|| self.write_end(ended))
    }

    pub(super) fn write_end(&self, ended: &Ended) -> Result<(), StoreError> {
        let sql = "UPDATE generations SET standing = ?, ended = ?, reason = ? WHERE record = ?";
        let row = params![word(&ended.standing), ended.at.as_micros(), ended.reason, ended.record];
        self.db().execute(sql, row).map(drop).map_err(self.err("write the end of a generation to"))
    }

    /// The files of a generation, by its row.
    pub fn generation_files(&self, record: i64) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        const DOING: &str = "read the files of a generation in";
        let sql = "SELECT path, content FROM generation_files JOIN contents USING (hash) WHERE record = ?";
        let mut statement = self.db().prepare(sql).map_err(self.err(DOING))?;
        let rows = statement.query_map([record], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.and_then(Iterator::collect).map_err(self.err(DOING))
    }

    /// The newest generation of at most this number: repairs count on without a configuration of their own.
    pub fn generation_at(&self, number: u64) -> Result<Option<Generation>, StoreError> {
        at(self.db(), number).map_err(self.err("read a generation of"))
    }

    /// Adds a row to the audit.
    pub fn audit(&self, at: Wall, who: &Who, what: &str, detail: &str) -> Result<(), StoreError> {
        const DOING: &str = "write the audit to";
        let who = serde_json::to_string(who).map_err(StoreError::value(DOING))?;
        let sql = "INSERT INTO audit (at, who, what, detail) VALUES (?, ?, ?, ?)";
        let write = || self.db().execute(sql, params![at.as_micros(), who, what, detail]);
        self.synced(|| write().map(drop).map_err(self.err(DOING)))
    }
}

fn remember(work: &Connection, name: &str, record: i64, change: &Unconfirmed) -> rusqlite::Result<()> {
    let change = Unconfirmed { record, ..change.clone() };
    let text = serde_json::to_string(&change).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    work.execute("REPLACE INTO remembered VALUES (?, ?)", [name, &text]).map(drop)
}

fn add_files(work: &Connection, record: i64, files: &BTreeMap<String, Vec<u8>>) -> rusqlite::Result<()> {
    for (path, content) in files {
        let hash = Sha256::digest(content);
        work.prepare_cached("INSERT OR IGNORE INTO contents VALUES (?, ?)")?.execute(params![&hash[..], content])?;
        work.prepare_cached("INSERT INTO generation_files VALUES (?, ?, ?)")?.execute(params![
            record,
            path,
            &hash[..]
        ])?;
    }
    Ok(())
}

/// Forgets the oldest generations, never one that waits for its confirmation, and contents that nobody has any more.
fn prune(work: &Connection) -> rusqlite::Result<()> {
    let old = "SELECT record FROM generations WHERE standing <> 'unconfirmed'
        AND record <= (SELECT max(record) FROM generations) - ?";
    work.execute(&format!("DELETE FROM generation_files WHERE record IN ({old})"), [KEEP])?;
    if work.execute(&format!("DELETE FROM generations WHERE record IN ({old})"), [KEEP])? > 0 {
        work.execute("DELETE FROM contents WHERE hash NOT IN (SELECT hash FROM generation_files)", [])?;
    }
    Ok(())
}

fn generation(row: &Row<'_>) -> rusqlite::Result<Generation> {
    Ok(Generation {
        record: row.get(0)?,
        generation: uint(row.get(1)?),
        revision: row.get(2)?,
        at: Wall::from_micros(row.get(3)?),
        who: json(row, 4)?,
        plan: row.get(5)?,
        document: json(row, 6)?,
        standing: from_word(row.get(7)?).unwrap_or(Standing::Applied),
        ended: row.get::<_, Option<i64>>(8)?.map(Wall::from_micros),
        reason: row.get(9)?,
    })
}

fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    let wrong = |e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e));
    serde_json::from_str(&text).map_err(wrong)
}

/// The newest generation of at most this number.
pub(super) fn at(db: &Connection, number: u64) -> rusqlite::Result<Option<Generation>> {
    let sql = format!("SELECT {COLUMNS} FROM generations WHERE generation <= ? ORDER BY record DESC LIMIT 1");
    db.query_row(&sql, [int(number)], generation).optional()
}

/// The newest generations, oldest first.
pub(super) fn newest(db: &Connection, limit: usize) -> rusqlite::Result<Vec<Generation>> {
    let sql = format!("SELECT {COLUMNS} FROM generations ORDER BY record DESC LIMIT :limit");
    rows(db, &sql, limit, generation)
}

/// The newest rows of the audit, oldest first.
pub(super) fn newest_audit(db: &Connection, limit: usize) -> rusqlite::Result<Vec<AuditRow>> {
    rows(db, "SELECT id, at, who, what, detail FROM audit ORDER BY id DESC LIMIT :limit", limit, |row| {
        let at = Wall::from_micros(row.get(1)?);
        Ok(AuditRow { id: row.get(0)?, at, who: json(row, 2)?, what: row.get(3)?, detail: row.get(4)? })
    })
}

fn rows<T>(
    db: &Connection,
    sql: &str,
    limit: usize,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    let mut statement = db.prepare(sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = statement.query_map(named_params! {":limit": limit}, read)?;
    let mut found = found.collect::<rusqlite::Result<Vec<T>>>()?;
    found.reverse();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock::Instant,
        guard::{Deadline, Phase, gate::Baseline},
    };

    fn files(text: &str) -> BTreeMap<String, Vec<u8>> {
        [("a.yaml", "same"), ("b.yaml", text)].map(|(p, c)| (p.to_owned(), c.as_bytes().to_vec())).into_iter().collect()
    }

    fn add(journal: &Journal, number: u64, text: &str, standing: Standing) -> i64 {
        let new = NewGeneration {
            generation: number,
            revision: "abc",
            at: Wall::from_micros(7),
            who: &Who::DAEMON,
            plan: "1 to add",
            document: r#"{"format_version": 1}"#,
            standing,
            files: &files(text),
        };
        journal.add_generation(&new, Some("trial"), &change(number)).unwrap()
    }

    fn change(generation: u64) -> Unconfirmed {
        Unconfirmed {
            record: 0,
            generation,
            revision: "abc".into(),
            previous: None,
            who: Who::DAEMON,
            deadline: Deadline::after(Duration::ZERO, String::new(), Instant::default(), Wall::default()),
            phase: Phase::Applying,
            baseline: Baseline::default(),
        }
    }

    fn count(journal: &Journal, table: &str) -> i64 {
        journal.db().query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_generation_is_kept_with_its_files_and_found_by_any_number_up_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let first = add(&journal, 3, "one", Standing::Unconfirmed);
        let second = add(&journal, 7, "two", Standing::Applied);
        assert_eq!(count(&journal, "contents"), 3, "equal files are kept once");
        let (standing, at) = (Standing::RolledBack, Wall::from_micros(9));
        journal.end_generation(&Ended { record: first, standing, at, reason: "it hurt".into() }).unwrap();
        let found = journal.generation_at(6).unwrap().unwrap();
        assert_eq!(
            (found.record, found.standing, found.reason.as_deref()),
            (first, Standing::RolledBack, Some("it hurt"))
        );
        assert_eq!(journal.generation_at(99).unwrap().unwrap().record, second);
        assert_eq!(journal.generation_at(2).unwrap(), None);
        let trial: Unconfirmed = journal.get("trial").unwrap().unwrap();
        assert_eq!((trial.record, trial.generation), (second, 7));
        assert_eq!(journal.generation_files(first).unwrap(), files("one"));
        assert_eq!(newest(journal.db(), 1).unwrap()[0].record, second);
    }

    #[test]
    fn a_journal_begun_anew_has_a_generation_without_a_run_and_finds_it_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = crate::store::Ledger::open(dir.path());
        assert_eq!(ledger.generation_at(7), None);
        ledger.add_trial_again(&mut change(7), None, &files("seven"));
        assert_eq!((ledger.generation(), ledger.generation_at(6), ledger.generation_at(8)), (0, None, None));
        let (found, its) = ledger.generation_at(7).unwrap();
        assert_eq!((found.generation, its), (7, files("seven")));
    }

    #[test]
    fn old_generations_are_forgotten_with_their_contents_and_one_that_waits_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let waiting = add(&journal, 1, "waits", Standing::Unconfirmed);
        for n in 2..120 {
            add(&journal, n, &n.to_string(), Standing::Confirmed);
        }
        assert_eq!(count(&journal, "generations"), KEEP + 1);
        assert_eq!(count(&journal, "contents"), KEEP + 2, "one of each, and the file that all share");
        assert_eq!(journal.generation_files(waiting).unwrap(), files("waits"));
    }

    #[test]
    fn the_audit_is_only_added_to() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.audit(Wall::from_micros(1), &Who::DAEMON, "apply", "generation 1").unwrap();
        for sql in ["DELETE FROM audit", "UPDATE audit SET who = 'nobody'"] {
            let error = journal.db().execute(sql, []).unwrap_err().to_string();
            assert!(error.contains("only added to"), "{error}");
        }
        let rows = newest_audit(journal.db(), 9).unwrap();
        assert_eq!((rows.len(), rows[0].what.as_str(), &rows[0].who), (1, "apply", &Who::DAEMON));
    }

    #[test]
    fn the_checker_sees_an_audit_without_its_triggers() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.audit(Wall::from_micros(1), &Who::DAEMON, "apply", "").unwrap();
        journal.db().execute_batch("DROP TRIGGER audit_is_not_deleted").unwrap();
        assert_eq!(journal.db().execute("DELETE FROM audit", []).unwrap(), 1);
    }
}
