//! Another place for the journal while its own takes no writes: a disk that is full, read-only or dying.
//!
//! It lies in the runtime directory, in memory as a rule: what is written there outlives the process and not the machine.
//! Without it a restart on a full disk would know neither what was in force nor what had failed, and would try that again.
//!
//! Invariant: a journal that is away is newer than the one at home. It comes to be in one piece, marked as such, and the mark
//! goes only when its content is at home, which happens in one transaction. What has no mark is passed over.

use std::{
    fs::{self, DirBuilder},
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use nix::sys::statvfs::{FsFlags, statvfs};
use rusqlite::{Connection, ErrorCode, backup::Backup, backup::StepResult};
use sha2::{Digest as _, Sha256};

use super::{Journal, StoreError, journal_file};

/// What lies beside a database and belongs to it; the third one, `-shm`, is made anew by whoever opens it.
const PARTS: [&str; 2] = ["", "-wal"];
/// Says that a journal lies beside it that is whole and newer than the one at home.
const MARK: &str = "whole";

/// The place for the journal of one state directory.
#[derive(Debug)]
pub(super) struct Refuge {
    home: PathBuf,
    place: PathBuf,
}

impl Refuge {
    /// For the journal of the state directory `home`, below the runtime directory `run`.
    pub fn new(home: &Path, run: &Path) -> Self {
        let home = std::path::absolute(home).unwrap_or_else(|_| home.to_owned());
        let digest = Sha256::digest(home.as_os_str().as_encoded_bytes());
        let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        Self { home, place: run.join("journal").join(format!("{number:016x}")) }
    }

    /// The state directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The directory that the journal is in while it is away.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Whether a journal is here, and hence not at home.
    pub fn is_used(&self) -> bool {
        self.mark().exists()
    }

    /// The directory that the journal is in now.
    pub fn current(&self) -> &Path {
        if self.is_used() { &self.place } else { &self.home }
    }

    fn mark(&self) -> PathBuf {
        self.place.join(MARK)
    }

    /// Opens the journal that is here; if none is, a copy of the one at home, which cannot be opened where it is.
    pub fn open(&self) -> Result<Journal, StoreError> {
        if self.is_used() { Journal::open(&self.place) } else { self.open_copy() }
    }

    /// Opens a copy of the journal at home; a new one if there is none.
    fn open_copy(&self) -> Result<Journal, StoreError> {
        self.build(|new| {
            for part in PARTS {
                match fs::copy(suffixed(&journal_file(&self.home), part), suffixed(&journal_file(new), part)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.file("copy", error)),
                    _ => {}
                }
            }
            Ok(())
        })?;
        Journal::open(&self.place)
    }

    /// Goes on here with a journal that takes no writes at home any more.
    pub fn flee(&self, from: &Journal) -> Result<Journal, StoreError> {
        self.build(|new| {
            let file = journal_file(new);
            let mut to = Connection::open(&file).map_err(StoreError::database("open", &file))?;
            carry(from, &mut to)
        })?;
        Journal::open(&self.place)
    }

    /// Brings the content of the journal that is here back; the journal at home, which has it now.
    pub fn go_home(&self) -> Result<(Journal, Option<String>), StoreError> {
        let away = match Journal::open(&self.place) {
            Err(error) if error.is_corrupt() => None,
            other => Some(other?),
        };
        let (mut home, told) = Journal::open_or_replace(&self.home)?;
        if let Some(away) = away {
            carry(&away, home.db_mut())?;
        }
        self.clear().map_err(|error| self.file("remove", error))?;
        Ok((home, told))
    }

    /// Whether the disk at home has room for what is here, by what it says.
    pub fn has_room_at_home(&self) -> bool {
        let size = |part| suffixed(&journal_file(&self.place), part).metadata().map_or(0, |file| file.len());
        let needed: u64 = PARTS.into_iter().map(size).sum();
        statvfs(&self.home).is_ok_and(|disk| {
            let room = disk.blocks_available().saturating_mul(disk.fragment_size());
            !disk.flags().contains(FsFlags::ST_RDONLY) && room > 2 * needed
        })
    }

    /// Fills a new directory and puts it in place when it is complete.
    fn build(&self, fill: impl FnOnce(&Path) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let new = self.place.with_extension("new");
        let emptied = || {
            self.clear()?;
            remove(&new)?;
            DirBuilder::new().recursive(true).mode(0o700).create(&new)
        };
        emptied().map_err(|error| self.file("create", error))?;
        fill(&new)?;
        let placed = || {
            fs::write(new.join(MARK), "")?;
            fs::rename(&new, &self.place)
        };
        placed().map_err(|error| self.file("create", error))
    }

    /// The mark first: what is left without it is nothing.
    fn clear(&self) -> io::Result<()> {
        match fs::remove_file(self.mark()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        remove(&self.place)
    }

    fn file(&self, doing: &'static str, source: io::Error) -> StoreError {
        StoreError::File { doing, file: self.place.clone(), source }
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn suffixed(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes one database what another one is, in one transaction.
fn carry(from: &Journal, to: &mut Connection) -> Result<(), StoreError> {
    let failed = || StoreError::database("copy", from.file());
    let copied = Backup::new(from.db(), to).and_then(|backup| backup.step(-1)).map_err(failed())?;
    if copied == StepResult::Done {
        return Ok(());
    }
    let busy = rusqlite::ffi::Error { code: ErrorCode::DatabaseBusy, extended_code: rusqlite::ffi::SQLITE_BUSY };
    Err(failed()(rusqlite::Error::SqliteFailure(busy, None)))
}

/// Whether it is the fault of the place, so that another one helps.
pub(super) fn is_of_the_place(error: &StoreError) -> bool {
    let codes = [
        ErrorCode::DiskFull,
        ErrorCode::ReadOnly,
        ErrorCode::SystemIoFailure,
        ErrorCode::CannotOpen,
        ErrorCode::PermissionDenied,
    ];
    matches!(error, StoreError::File { .. }) || error.code().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(journal: &Journal) -> Option<u32> {
        journal.get("number").unwrap()
    }

    #[test]
    fn a_journal_flees_with_all_it_holds_and_comes_home_with_what_was_added() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let refuge = Refuge::new(state.path(), run.path());
        let home = Journal::open(state.path()).unwrap();
        home.put("number", "1").unwrap();
        let away = refuge.flee(&home).unwrap();
        assert!(refuge.is_used() && remembered(&away) == Some(1));
        away.put("number", "2").unwrap();
        drop((home, away));
        // Another process finds it.
        let refuge = Refuge::new(state.path(), run.path());
        assert!(refuge.is_used());
        let (home, told) = refuge.go_home().unwrap();
        assert_eq!((remembered(&home), told, refuge.is_used()), (Some(2), None, false));
        home.put("number", "3").unwrap();
        drop(home);
        assert_eq!(remembered(&Journal::open(state.path()).unwrap()), Some(3));
    }

    #[test]
    fn the_copy_of_a_journal_has_what_is_in_its_log_only() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let refuge = Refuge::new(state.path(), run.path());
        let home = Journal::open(state.path()).unwrap();
        home.put("number", "1").unwrap();
        let log = suffixed(&journal_file(state.path()), "-wal");
        assert!(log.metadata().unwrap().len() > 0, "as a process leaves it that was killed");
        let away = refuge.open_copy().unwrap();
        assert_eq!(remembered(&away), Some(1));
        drop(away);
        // What an older copy left does not mix with a newer one.
        home.put("number", "2").unwrap();
        assert_eq!(remembered(&refuge.open_copy().unwrap()), Some(2));
    }

    #[test]
    fn where_nothing_can_be_created_a_new_journal_is_begun_away_and_each_state_directory_has_its_own() {
        let run = tempfile::tempdir().unwrap();
        let refuge = Refuge::new(Path::new("/proc/patronus"), run.path());
        let away = refuge.open_copy().unwrap();
        away.put("number", "1").unwrap();
        drop(away);
        assert!(refuge.is_used() && refuge.go_home().is_err() && refuge.is_used(), "it stays until it is at home");
        assert_eq!(remembered(&Journal::open(refuge.place()).unwrap()), Some(1));
        assert!(!Refuge::new(Path::new("/proc/another"), run.path()).is_used());
        assert_ne!(fs::metadata(refuge.place()).unwrap().permissions(), fs::metadata("/").unwrap().permissions());
    }

    #[test]
    fn a_copy_that_was_not_finished_is_none() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let refuge = Refuge::new(state.path(), run.path());
        let half = |new: &Path| {
            fs::write(journal_file(new), "half").unwrap();
            Err(refuge.file("copy", ErrorKind::StorageFull.into()))
        };
        assert!(refuge.build(half).is_err() && !refuge.is_used());
        assert_eq!(remembered(&refuge.open_copy().unwrap()), None);
    }

    #[test]
    fn a_journal_that_somebody_begins_where_there_was_one_is_passed_over() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let refuge = Refuge::new(state.path(), run.path());
        let home = Journal::open(state.path()).unwrap();
        home.put("number", "1").unwrap();
        drop(refuge.flee(&home).unwrap());
        drop(home);
        drop(refuge.go_home().unwrap());
        // As by a process that had the journal open there, and does not know that it went home.
        let stray = Journal::open(refuge.place()).unwrap();
        stray.put("number", "9").unwrap();
        assert!(!refuge.is_used() && refuge.current() == state.path());
        assert_eq!(remembered(&refuge.flee(&Journal::open(state.path()).unwrap()).unwrap()), Some(1));
    }

    #[test]
    fn room_is_asked_for_before_a_journal_is_carried() {
        let run = tempfile::tempdir().unwrap();
        assert!(Refuge::new(run.path(), run.path()).has_room_at_home());
        assert!(!Refuge::new(Path::new("/proc/patronus"), run.path()).has_room_at_home());
        assert!(!Refuge::new(Path::new("/proc"), run.path()).has_room_at_home(), "no room at all");
    }
}
