//! The journal on disk: where it is, and what it could not take yet.
//!
//! Invariant: where its own place takes no writes it goes on in its [`Refuge`], with all that it held, and returns as
//! soon as it can. So a restart on a full or read-only disk knows what was in force, what waits and what has failed.

use std::{cell::RefCell, path::Path};

use super::{
    Journal, StoreError,
    pending::Pending,
    refuge::{self, Refuge},
};

/// A journal, what it could not take yet, and why it is away if it is.
#[derive(Debug)]
pub struct Disk {
    pub(super) journal: Journal,
    pub(super) pending: RefCell<Pending>,
    refuge: Option<Refuge>,
    away: Option<String>,
    /// How often it was settled while it was away.
    turns: u32,
}

/// Every so many turns it is tried to return.
const RETURN: u32 = 5;

impl Disk {
    /// A journal that has no other place.
    pub(super) fn of(journal: Journal) -> Self {
        Self { journal, pending: RefCell::default(), refuge: None, away: None, turns: 0 }
    }

    /// Opens the journal of a state directory, or the one that an earlier process had to keep below the runtime directory
    /// `run`; where the state directory cannot be used, a copy there. The text, if any, is an alarm.
    pub(super) fn open(dir: &Path, run: &Path) -> Result<(Self, Option<String>), StoreError> {
        let refuge = Refuge::new(dir, run);
        let found = if refuge.is_used() { refuge.go_home() } else { Journal::open_or_replace(dir) };
        let (journal, told, away) = match found {
            Ok((journal, told)) => (journal, told, None),
            Err(error) if refuge::is_of_the_place(&error) => (refuge.open()?, None, Some(error.chain())),
            Err(error) => return Err(error),
        };
        Ok((Self { refuge: Some(refuge), away, ..Self::of(journal) }, told))
    }

    /// As on a disk with room for so many pages.
    #[cfg(test)]
    pub(super) fn bound(&self, pages: u32) {
        self.journal.db().pragma_update(None, "max_page_count", pages).unwrap();
    }

    /// Makes the writes that wait, and now and then tries to return. The error is that of the first write which fails again,
    /// wherever the journal may go.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        if self.away.is_some() {
            self.turns += 1;
            if self.turns.is_multiple_of(RETURN) {
                self.return_home();
            }
        }
        let made = self.flush();
        match made {
            Err(error) if self.flee(&error) => self.flush(),
            other => other,
        }
    }

    /// The same, and the journal stays where it is.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.pending.borrow_mut().make(&self.journal)
    }

    /// Does something with the journal, once more in its refuge if it is the place's fault that it fails.
    pub(super) fn attempt<T>(&mut self, work: impl Fn(&Journal) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match work(&self.journal) {
            Err(error) if self.flee(&error) => work(&self.journal),
            other => other,
        }
    }

    /// Whether the journal goes on elsewhere from now on.
    pub(super) fn flee(&mut self, error: &StoreError) -> bool {
        let Some(refuge) = self.refuge.as_ref().filter(|_| self.away.is_none() && refuge::is_of_the_place(error))
        else {
            return false;
        };
        match refuge.flee(&self.journal) {
            Ok(journal) => {
                let place = refuge.place().display();
                tracing::warn!(error = error.chain(), %place, "the journal takes no writes and goes on elsewhere");
                (self.journal, self.away) = (journal, Some(error.chain()));
                true
            }
            Err(further) => {
                tracing::warn!(error = further.chain(), "nor can the journal go on elsewhere");
                false
            }
        }
    }

    /// Brings a journal that is away back, if its own place can be used again.
    pub(super) fn return_home(&mut self) {
        let Some(refuge) = self.refuge.as_ref().filter(|_| self.away.is_some()) else { return };
        match refuge.go_home() {
            Ok((journal, _)) => {
                (self.journal, self.away) = (journal, None);
                tracing::info!("the journal is back in the state directory");
            }
            Err(error) => self.away = Some(error.chain()),
        }
    }

    /// What a person should know.
    pub(super) fn alarm(&self) -> Option<String> {
        let away = self.away.as_ref().zip(self.refuge.as_ref()).map(|(why, refuge)| {
            let place = refuge.place().display();
            format!(
                "the journal is in {place} until the state directory can be used, and would be lost in a reboot: {why}"
            )
        });
        self.pending.borrow().alarm().or(away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From now on a database takes no more than it has.
    fn fill(journal: &Journal, full: bool) {
        let pages: u32 = journal.db().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        let most = if full { pages } else { u32::MAX / 2 };
        journal.db().pragma_update_and_check(None, "max_page_count", most, |_| Ok(())).unwrap();
    }

    fn number(disk: &Disk, key: &str) -> Option<usize> {
        disk.journal.get::<String>(key).unwrap().map(|text| text.len())
    }

    fn put(journal: &Journal, key: &str, length: usize) -> Result<(), StoreError> {
        journal.put(key, &format!("\"{}\"", "x".repeat(length)))
    }

    #[test]
    fn on_a_full_disk_the_journal_goes_on_elsewhere_is_found_there_and_comes_back() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut disk, told) = Disk::open(state.path(), run.path()).unwrap();
        assert_eq!((told, disk.alarm()), (None, None));
        put(&disk.journal, "before", 10).unwrap();
        fill(&disk.journal, true);
        assert!(put(&disk.journal, "large", 100_000).is_err(), "it is full");
        disk.attempt(|journal| put(journal, "large", 100_000)).unwrap();
        assert_eq!((number(&disk, "before"), number(&disk, "large")), (Some(10), Some(100_000)));
        let alarm = disk.alarm().unwrap();
        assert!(alarm.contains("full") && alarm.contains("lost in a reboot"), "{alarm}");
        // Killed here, the next process finds it, and brings it home.
        drop(disk);
        assert_eq!(Journal::open(state.path()).unwrap().get::<String>("large").unwrap(), None);
        let (disk, _) = Disk::open(state.path(), run.path()).unwrap();
        assert_eq!((number(&disk, "large"), disk.alarm()), (Some(100_000), None));
        drop(disk);
        let home = Journal::open(state.path()).unwrap();
        assert_eq!(home.get::<String>("large").unwrap().map(|text| text.len()), Some(100_000));
    }

    #[test]
    fn the_same_process_brings_the_journal_back_and_a_lock_of_others_is_no_reason_to_go() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut disk, _) = Disk::open(state.path(), run.path()).unwrap();
        let other = Journal::open(state.path()).unwrap();
        other.db().execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(disk.attempt(|journal| put(journal, "late", 10)).is_err());
        assert_eq!(disk.alarm(), None);
        other.db().execute_batch("COMMIT").unwrap();
        drop(other);
        fill(&disk.journal, true);
        disk.attempt(|journal| put(journal, "large", 100_000)).unwrap();
        disk.return_home();
        assert_eq!((number(&disk, "large"), disk.alarm()), (Some(100_000), None));
        put(&disk.journal, "more", 5).unwrap();
        drop(disk);
        let (disk, _) = Disk::open(state.path(), run.path()).unwrap();
        assert_eq!((number(&disk, "large"), number(&disk, "more")), (Some(100_000), Some(5)));
    }

    #[test]
    fn a_state_directory_that_cannot_be_used_at_the_start_is_no_reason_to_forget() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(&Journal::open(state.path()).unwrap(), "before", 10).unwrap();
        // A directory where the file should be can be opened by nobody, whatever his rights.
        let hidden = state.path().join("hidden");
        std::fs::rename(super::super::journal_file(state.path()), &hidden).unwrap();
        std::fs::create_dir(super::super::journal_file(state.path())).unwrap();
        assert!(Disk::open(state.path(), run.path()).is_err(), "nor can it be copied");
        std::fs::remove_dir(super::super::journal_file(state.path())).unwrap();
        std::fs::rename(&hidden, super::super::journal_file(state.path())).unwrap();
        let (disk, _) = Disk::open(state.path(), run.path()).unwrap();
        assert_eq!((number(&disk, "before"), disk.alarm()), (Some(10), None));
    }
}
