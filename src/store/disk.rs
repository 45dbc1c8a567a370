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
    role: Role,
    /// Why the journal is away, as its owner knows it.
    away: Option<String>,
    /// When it is tried again to move it.
    again: Turns,
}

/// Who has it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Whoever stays: moves it.
    Owner,
    /// Whoever does not: goes along.
    Guest,
}

/// Turns until the next attempt, and how many it was before: a copy of a large journal is no work for every second.
#[derive(Debug, Clone, Copy)]
struct Turns {
    left: u32,
    pause: u32,
}

/// The first pause and the longest.
const PAUSES: (u32, u32) = (5, 60);

impl Turns {
    const NOW: Self = Self { left: 0, pause: PAUSES.0 };

    /// One turn later; whether it is time.
    const fn next(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    fn later(&mut self) {
        *self = Self { left: self.pause, pause: (self.pause * 2).min(PAUSES.1) };
    }
}

impl Disk {
    /// A journal that has no other place.
    pub(super) fn of(journal: Journal) -> Self {
        let pending = RefCell::default();
        Self { journal, pending, refuge: None, role: Role::Guest, away: None, again: Turns::NOW }
    }

    /// Opens the journal of a state directory, or the one that an earlier process had to keep below the runtime directory
    /// `run`; where the state directory cannot be used, a copy there. The text, if any, is an alarm.
    pub(super) fn open(dir: &Path, run: &Path) -> Result<(Self, Option<String>), StoreError> {
        let refuge = Refuge::new(dir, run);
        let (journal, told, away) = opened(&refuge)?;
        Ok((Self { refuge: Some(refuge), role: Role::Owner, away, ..Self::of(journal) }, told))
    }

    /// Opens a journal in the place of one that was lost. The text, if any, says that a damaged one was moved aside.
    pub(super) fn begin_anew(&mut self) -> Result<Option<String>, StoreError> {
        let (journal, told, away) = if let (Some(refuge), Role::Owner) = (&self.refuge, self.role) {
            opened(refuge)?
        } else {
            let dir = self.journal.file().parent().unwrap_or(Path::new("/"));
            let (journal, told) = Journal::open_or_replace(dir)?;
            (journal, told, None)
        };
        (self.journal, self.away) = (journal, away);
        self.pending.borrow_mut().renew();
        Ok(told)
    }

    /// Opens the journal of a state directory where it is now, for whoever does not stay.
    pub(super) fn find(dir: &Path, run: &Path) -> Result<(Self, Option<String>), StoreError> {
        let refuge = Refuge::new(dir, run);
        let (journal, told) = Journal::open_or_replace(refuge.current())?;
        Ok((Self { refuge: Some(refuge), ..Self::of(journal) }, told))
    }

    /// Goes along with whoever moved the journal. Whether somebody had.
    pub(super) fn follow(&mut self) -> Result<bool, StoreError> {
        let Some(refuge) = self.refuge.as_ref().filter(|_| self.role == Role::Guest) else { return Ok(false) };
        if self.journal.file().parent() == Some(refuge.current()) {
            return Ok(false);
        }
        self.journal = Journal::open(refuge.current())?;
        Ok(true)
    }

    /// As on a disk with room for so many pages.
    #[cfg(test)]
    pub(super) fn bound(&self, pages: u32) {
        self.journal.db().pragma_update(None, "max_page_count", pages).unwrap();
    }

    /// Makes the writes that wait, and now and then tries to return. The error is that of the first write which fails again,
    /// wherever the journal may go.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        if self.again.next() && self.away.is_some() {
            self.return_home();
        }
        match self.flush() {
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
        let may = self.role == Role::Owner && self.away.is_none() && self.again.left == 0;
        let Some(refuge) = self.refuge.as_ref().filter(|_| may && refuge::is_of_the_place(error)) else { return false };
        let fled = refuge.flee(&self.journal);
        self.again.later();
        match fled {
            Ok(journal) => {
                let place = refuge.place().display();
                tracing::warn!(error = error.chain(), %place, "the journal takes no writes and goes on elsewhere");
                (self.journal, self.away) = (journal, Some(error.chain()));
                self.again = Turns { left: PAUSES.0, ..Turns::NOW };
                true
            }
            Err(further) => {
                tracing::warn!(error = further.chain(), "nor can the journal go on elsewhere");
                false
            }
        }
    }

    /// Brings a journal that is away back, if its own place has room again.
    fn return_home(&mut self) {
        let Some(refuge) = self.refuge.as_ref().filter(|_| self.role == Role::Owner) else { return };
        self.again.later();
        if !refuge.has_room_at_home() {
            return;
        }
        match refuge.go_home() {
            Ok((journal, _)) => {
                (self.journal, self.away, self.again) = (journal, None, Turns::NOW);
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

/// The journal of a place, what is told of it, and why it is away if it is.
fn opened(refuge: &Refuge) -> Result<(Journal, Option<String>, Option<String>), StoreError> {
    let found = if refuge.is_used() { refuge.go_home() } else { Journal::open_or_replace(refuge.home()) };
    match found {
        Ok((journal, told)) => Ok((journal, told, None)),
        // Whatever it is that keeps a newer journal from going home, it is the one to work with.
        Err(error) if refuge.is_used() || refuge::is_of_the_place(&error) => {
            Ok((refuge.open()?, None, Some(error.chain())))
        }
        Err(error) => Err(error),
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
        for _ in 0..PAUSES.0 {
            disk.settle().unwrap();
        }
        assert_eq!((number(&disk, "large"), disk.alarm()), (Some(100_000), None));
        put(&disk.journal, "more", 5).unwrap();
        drop(disk);
        let (disk, _) = Disk::open(state.path(), run.path()).unwrap();
        assert_eq!((number(&disk, "large"), number(&disk, "more")), (Some(100_000), Some(5)));
    }

    #[test]
    fn whoever_does_not_stay_goes_along_and_moves_nothing() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut owner, _) = Disk::open(state.path(), run.path()).unwrap();
        put(&owner.journal, "before", 10).unwrap();
        let (mut guest, _) = Disk::find(state.path(), run.path()).unwrap();
        assert!(!guest.follow().unwrap());
        fill(&owner.journal, true);
        owner.attempt(|journal| put(journal, "large", 100_000)).unwrap();
        assert!(guest.follow().unwrap() && !guest.follow().unwrap());
        assert_eq!(number(&guest, "large"), Some(100_000), "what was added elsewhere is seen");
        fill(&guest.journal, true);
        assert!(guest.attempt(|journal| put(journal, "larger", 1_000_000)).is_err());
        for _ in 0..PAUSES.0 {
            owner.settle().unwrap();
        }
        assert_eq!(owner.alarm(), None);
        assert!(guest.follow().unwrap());
        assert_eq!((number(&guest, "large"), number(&guest, "before")), (Some(100_000), Some(10)));
    }

    #[test]
    fn what_cannot_be_moved_is_not_tried_with_each_write() {
        let state = tempfile::tempdir().unwrap();
        let (mut disk, _) = Disk::open(state.path(), Path::new("/proc/patronus")).unwrap();
        fill(&disk.journal, true);
        let mut tried = Vec::new();
        for turn in 0..200 {
            let before = disk.again.left;
            assert!(disk.attempt(|journal| put(journal, "large", 100_000)).is_err());
            if disk.again.left > before {
                tried.push(turn);
            }
            disk.settle().unwrap();
        }
        assert_eq!(tried, [0, 5, 15, 35, 75, 135, 195]);
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
