//! What survives a restart, in `SQLite` (WAL): two files in the state directory with different promises.
//!
//! - `journal.db` ([`Journal`]) is written synchronously by whoever applies a plan, before each step: after
//!   a crash it says exactly which steps were begun. It also holds what a start needs: the last good
//!   configuration, the last applied state, the sysctls as they were before us.
//! - `records.db` ([`Recorder`]) is written by a thread of its own from a bounded queue: samples, events,
//!   runs. It may lose rows and says how many.
//!
//! Invariant: nothing that happens to `records.db` (full disk, lock, corruption, deletion) blocks or fails a
//! caller of [`Recorder`], and none of it can touch the journal, which is another file.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};
use serde::{Serialize, de::DeserializeOwned};

mod aggregates;
mod chunks;
mod flush;
mod generations;
mod good;
mod head;
mod journal;
mod ledger;
mod pending;
pub mod read;
mod recorder;
mod records;
mod removed;
mod rows;
mod schema;
mod writer;

pub use aggregates::Aggregate;
pub use flush::{Batch, FlushPolicy};
pub use generations::{AuditRow, Generation, NewGeneration, Standing};
pub use good::LastGood;
pub use journal::Journal;
pub use ledger::Ledger;
pub use recorder::{Kept, Limits, Recorder};
pub use removed::RemovedFile;
pub use rows::{HealthSample, Run, TransitionRecord};

/// A database that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `SQLite` refused.
    #[error("cannot {doing} {}{}", file.display(), likely(source))]
    Database {
        /// What was being done.
        doing: &'static str,
        /// The database.
        file: PathBuf,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// The file is from a newer version.
    #[error("{} has format {found} and this Patronus knows formats up to {known}: run the newer version, or move the file away", file.display())]
    Newer {
        /// The database.
        file: PathBuf,
        /// Its `user_version`.
        found: u32,
        /// The newest that this program knows.
        known: u32,
    },
    /// The file is a database of somebody else.
    #[error("{} is a database, but none that Patronus wrote", file.display())]
    Foreign {
        /// The database.
        file: PathBuf,
    },
    /// A value did not have the shape that this version writes.
    #[error("{doing}: a stored value is not readable")]
    Value {
        /// What was being read or written.
        doing: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The state directory could not be used.
    #[error("cannot {doing} {}", file.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        file: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// There is no database.
    #[error("there are no records in {}: has the daemon run on this machine? (--state-dir names another directory)", dir.display())]
    Missing {
        /// Where one was looked for.
        dir: PathBuf,
    },
}

impl StoreError {
    /// Whether the file itself is damaged, so that only a new one helps.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Database { source, .. } => source.sqlite_error_code(),
            _ => None,
        }
    }

    fn database(doing: &'static str, file: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Database { doing, file: file.to_owned(), source }
    }

    fn value(doing: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Value { doing, source }
    }

    /// The error and its causes on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        crate::units::chain(self)
    }
}

/// What is behind codes of `SQLite` that do not say it: the file beside a database through which its log is shared could not
/// be made or grow.
fn likely(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ffi::{SQLITE_IOERR_SHMMAP, SQLITE_IOERR_SHMOPEN, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_WRITE};
    match error.sqlite_error().map(|error| error.extended_code) {
        Some(SQLITE_IOERR_SHMMAP | SQLITE_IOERR_SHMOPEN | SQLITE_IOERR_SHMSIZE | SQLITE_IOERR_WRITE) => {
            " (its disk is full or read-only)"
        }
        _ => "",
    }
}

/// How long a lock of others is waited for. Short: the engine waits for the journal, and a reader never blocks a
/// writer in WAL mode.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(250);

/// The journal's file in a state directory.
#[must_use]
pub fn journal_file(dir: &Path) -> PathBuf {
    dir.join("journal.db")
}

/// The records' file in a state directory.
#[must_use]
pub fn records_file(dir: &Path) -> PathBuf {
    dir.join("records.db")
}

/// Opens a database for writing, creates the directory if needed, brings the schema up to date.
fn open(file: &Path, migrations: &[&str]) -> Result<Connection, StoreError> {
    if let Some(dir) = file.parent() {
        let failed = |source| StoreError::File { doing: "create", file: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let err = || StoreError::database("open", file);
    let mut db = Connection::open(file).map_err(err())?;
    db.busy_timeout(PATIENCE).map_err(err())?;
    db.pragma_update(None, "journal_mode", "wal").map_err(err())?;
    db.pragma_update(None, "synchronous", "normal").map_err(err())?;
    db.pragma_update(None, "journal_size_limit", 4 << 20).map_err(err())?;
    // Written much and read hardly ever; in KiB, and the page cache of the kernel holds the rest.
    db.pragma_update(None, "cache_size", -64).map_err(err())?;
    schema::migrate(&mut db, file, migrations)?;
    Ok(db)
}

/// What follows the name of a damaged database, before the second in which it was moved.
const ASIDE: &str = ".corrupt-";
/// What nobody could be told for so long waits no more.
pub const UNTOLD: std::time::Duration = std::time::Duration::from_secs(86_400);
/// So many damaged databases are kept of each.
const KEPT_ASIDE: usize = 3;

/// Moves a damaged database with its write-ahead log out of the way; returns where it went.
fn move_aside(file: &Path, now: crate::clock::Wall) -> Result<PathBuf, StoreError> {
    let suffixed = |suffix: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = suffixed(&format!("{ASIDE}{}", now.as_micros() / 1_000_000));
    let failed = |source| StoreError::File { doing: "move aside", file: file.to_owned(), source };
    std::fs::rename(file, &aside).map_err(failed)?;
    for suffix in ["-wal", "-shm"] {
        let mut to = aside.as_os_str().to_owned();
        to.push(suffix);
        let _ = std::fs::rename(suffixed(suffix), PathBuf::from(to));
    }
    keep_newest(file, now.as_micros() / 1_000_000);
    Ok(aside)
}

/// A disk that dies damages one database after the other: the newest few are evidence enough, and more would fill it. The
/// clock may have been set back since the others were moved: the one that was moved last is the newest, whatever its name.
fn keep_newest(file: &Path, moved_last: i64) {
    let Some((dir, name)) = file.parent().zip(file.file_name().and_then(|name| name.to_str())) else { return };
    let prefix = format!("{name}{ASIDE}");
    let moved = std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let digits = name.strip_prefix(&prefix)?.split('-').next()?;
        Some((digits.parse::<i64>().ok()?, entry.path()))
    });
    let moved: Vec<(i64, PathBuf)> = moved.filter(|(at, _)| *at != moved_last).collect();
    let mut times: Vec<i64> = moved.iter().map(|(at, _)| *at).collect();
    times.sort_unstable();
    times.dedup();
    let old = (times.len() + 1).saturating_sub(KEPT_ASIDE);
    for (_, path) in moved.iter().filter(|(at, _)| times[..old].contains(at)) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(file = %path.display(), %error, "an old damaged database cannot be removed");
        }
    }
}

/// `SQLite` integers are signed.
fn int(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

fn uint(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// The word that serde gives a unit variant.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn from_word<T: DeserializeOwned>(word: String) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(word)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Wall;

    #[test]
    fn of_databases_that_were_damaged_the_newest_three_are_kept_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let others = ["other.db.corrupt-1", "journal.db.corrupt-notes", "journal.db"];
        for second in 1..=10_i64 {
            for name in ["journal.db", "journal.db-wal", "other.db.corrupt-1", "journal.db.corrupt-notes"] {
                std::fs::write(file(name), name).unwrap();
            }
            let aside = move_aside(&file("journal.db"), Wall::from_micros(second * 1_000_000)).unwrap();
            assert_eq!(aside, file(&format!("journal.db.corrupt-{second}")));
        }
        std::fs::write(file("journal.db"), "").unwrap();
        let there = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut wanted: Vec<String> = others.map(str::to_owned).into();
        for second in 8..=10 {
            wanted.extend(["", "-wal"].map(|suffix| format!("journal.db.corrupt-{second}{suffix}")));
        }
        wanted.sort();
        let mut there: Vec<String> = there.collect();
        there.sort();
        assert_eq!(there, wanted);
    }

    #[test]
    fn the_database_that_was_moved_last_is_kept_also_after_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("records.db");
        for second in [100, 101, 102, 7] {
            std::fs::write(&file, "damaged").unwrap();
            let aside = move_aside(&file, Wall::from_micros(second * 1_000_000)).unwrap();
            assert!(aside.exists(), "{}", aside.display());
        }
        let kept = [7, 100, 101, 102].map(|at| dir.path().join(format!("records.db{ASIDE}{at}")).exists());
        assert_eq!(kept, [true, false, true, true]);
    }
}
