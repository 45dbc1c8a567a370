//! Tables of both databases as lists of migrations; `user_version` counts those that have run.
//!
//! A migration that was released is never edited: add another one.

use std::path::Path;

use rusqlite::Connection;

use super::StoreError;

/// The journal: small.
pub(super) const JOURNAL: &[&str] = &[
    "
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        boot TEXT NOT NULL,
        place TEXT NOT NULL,
        plan TEXT NOT NULL,
        previous TEXT,
        generation INTEGER NOT NULL,
        revision TEXT,
        started INTEGER NOT NULL,
        ended INTEGER,
        outcome TEXT,
        message TEXT,
        steps INTEGER NOT NULL,
        document TEXT
    );
    CREATE INDEX runs_unfinished ON runs (id) WHERE ended IS NULL;
    CREATE TABLE steps (
        run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        step TEXT NOT NULL,
        state TEXT NOT NULL,
        error TEXT,
        PRIMARY KEY (run, number)
    ) WITHOUT ROWID;
    CREATE TABLE last_good (only INTEGER PRIMARY KEY CHECK (only = 1), revision TEXT NOT NULL, at INTEGER NOT NULL);
    CREATE TABLE last_good_files (path TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE sysctl_originals (key TEXT PRIMARY KEY, boot TEXT NOT NULL, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE this_boot (key TEXT PRIMARY KEY, boot TEXT NOT NULL, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE remembered (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
",
    super::generations::MIGRATION,
    super::removed::MIGRATION,
    super::removed::AUTHOR,
];

/// The records: large, batched, expendable.
pub(super) const RECORDS: &[&str] = &[
    "
    CREATE TABLE samples (
        at INTEGER NOT NULL,
        path TEXT NOT NULL,
        rtt INTEGER,
        jitter INTEGER,
        loss INTEGER NOT NULL,
        score INTEGER NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (at, path)
    ) WITHOUT ROWID;
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        message TEXT NOT NULL,
        detail TEXT NOT NULL
    );
    CREATE INDEX events_kind ON events (kind, id);
    CREATE TABLE transitions (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        rule TEXT NOT NULL,
        from_path TEXT,
        to_path TEXT,
        kind TEXT NOT NULL,
        reason TEXT NOT NULL
    );
    CREATE INDEX transitions_at ON transitions (at);
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        plan TEXT,
        generation INTEGER NOT NULL,
        revision TEXT,
        started INTEGER NOT NULL,
        ended INTEGER,
        outcome TEXT,
        message TEXT,
        steps INTEGER NOT NULL
    );
    CREATE INDEX runs_started ON runs (started);
",
    "
    DROP TABLE samples;
    CREATE TABLE paths (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE samples (slot INTEGER NOT NULL, path INTEGER NOT NULL, data BLOB NOT NULL, UNIQUE (slot, path));
    CREATE TABLE aggregates (day INTEGER NOT NULL, path INTEGER NOT NULL, data BLOB NOT NULL, UNIQUE (day, path));
    CREATE TABLE aggregated (only INTEGER PRIMARY KEY CHECK (only = 1), slot INTEGER NOT NULL);
",
    "CREATE TABLE untold (id INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, event INTEGER NOT NULL);",
];

/// Whether a file that is only read is one that this program understands.
pub(super) fn check(db: &Connection, file: &Path, migrations: &[&str]) -> Result<(), StoreError> {
    let err = StoreError::database("read", file);
    let found: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(err)?;
    let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    match found {
        0 => Err(StoreError::Foreign { file: file.to_owned() }),
        _ if found > known => Err(StoreError::Newer { file: file.to_owned(), found, known }),
        _ => Ok(()),
    }
}

/// Runs the migrations that this file has not seen, all in one transaction.
pub(super) fn migrate(db: &mut Connection, file: &Path, migrations: &[&str]) -> Result<(), StoreError> {
    let err = || StoreError::database("migrate", file);
    let seen: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(err())?;
    let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    if seen > known {
        return Err(StoreError::Newer { file: file.to_owned(), found: seen, known });
    }
    if seen == known {
        return Ok(());
    }
    // Immediate, and the version is read again inside: two processes may open a new file at once.
    let work = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(err())?;
    let seen: u32 = work.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(err())?;
    for migration in migrations.iter().skip(seen as usize) {
        work.execute_batch(migration).map_err(err())?;
    }
    work.pragma_update(None, "user_version", known).map_err(err())?;
    work.commit().map_err(err())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(db: &Connection) -> u32 {
        db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_old_file_keeps_its_rows_and_gains_the_new_columns() {
        let mut db = Connection::open_in_memory().unwrap();
        let first = ["CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1);"];
        let both = [first[0], "ALTER TABLE t ADD COLUMN b INTEGER NOT NULL DEFAULT 7;"];
        assert_eq!(version(&db), 0);
        migrate(&mut db, Path::new("x"), &first).unwrap();
        migrate(&mut db, Path::new("x"), &both).unwrap();
        assert_eq!(version(&db), 2);
        let sum: i64 = db.query_row("SELECT a + b FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(sum, 8);
    }

    #[test]
    fn a_failing_migration_leaves_the_old_version() {
        let mut db = Connection::open_in_memory().unwrap();
        let broken = ["CREATE TABLE t (a INTEGER);", "CREATE TABLE t (a INTEGER);"];
        assert!(migrate(&mut db, Path::new("x"), &broken).is_err());
        assert_eq!(version(&db), 0);
        migrate(&mut db, Path::new("x"), &broken[..1]).unwrap();
    }

    #[test]
    fn a_newer_file_is_refused_with_both_versions() {
        let mut db = Connection::open_in_memory().unwrap();
        db.pragma_update(None, "user_version", 9).unwrap();
        let text = migrate(&mut db, Path::new("x"), JOURNAL).unwrap_err().to_string();
        assert!(text.contains("format 9") && text.contains(&format!("up to {}", JOURNAL.len())), "{text}");
    }
}
