//! Writes to the journal that are still to be made: the disk was full, or somebody else held the file.
//!
//! Invariant: what was said to be so is written down as soon as that is possible, in the order in which it was said, or
//! the newest of what replaces each other. Nothing is given up while this process lives, but for what no disk could take.

use std::collections::VecDeque;

use rusqlite::ErrorCode;

use super::{Journal, LastGood, Standing, StoreError};
use crate::{clock::Wall, guard::Who};

/// Under which name the change is remembered that waits for its confirmation.
pub(super) const UNCONFIRMED: &str = "unconfirmed";

/// So many writes wait at most; beyond that rows of the audit are given up, the oldest first.
const MOST: usize = 1_000;

/// What has become of a generation.
#[derive(Debug)]
pub(super) struct Ended {
    pub record: i64,
    pub standing: Standing,
    pub at: Wall,
    pub reason: String,
}

#[derive(Debug)]
pub(super) enum Write {
    /// A value over reboots.
    Remember {
        key: String,
        json: String,
    },
    /// A value of this boot.
    ForBoot {
        key: &'static str,
        json: String,
    },
    LastGood(LastGood),
    /// Who took the sites away that are not in a revision any more.
    Remover {
        without: String,
        author: String,
    },
    Ended(Ended),
    /// A change waits no more; with the configuration in force then, if it stands.
    Settled {
        ended: Ended,
        good: Option<LastGood>,
    },
    KeepSysctl {
        key: String,
        value: String,
    },
    ForgetSysctl {
        key: String,
    },
    Audit {
        at: Wall,
        who: Who,
        what: String,
        detail: String,
    },
}

impl Write {
    fn make(&self, journal: &Journal) -> Result<(), StoreError> {
        match self {
            Self::Remember { key, json } => journal.put(key, json),
            Self::ForBoot { key, json } => journal.put_for_boot(key, json),
            Self::LastGood(good) => journal.set_last_good(good),
            Self::Remover { without, author } => journal.name_remover(without, author),
            Self::Ended(ended) => journal.end_generation(ended),
            Self::Settled { ended, good } => journal.settle(UNCONFIRMED, ended, good.as_ref()),
            Self::KeepSysctl { key, value } => journal.keep_sysctl(key, value),
            Self::ForgetSysctl { key } => journal.forget_sysctl(key),
            Self::Audit { at, who, what, detail } => journal.audit(*at, who, what, detail),
        }
    }

    /// Whether a later write makes this one needless.
    fn is_replaced_by(&self, later: &Self) -> bool {
        match (self, later) {
            (Self::Remember { key, .. }, Self::Remember { key: other, .. }) => key == other,
            (Self::ForBoot { key, .. }, Self::ForBoot { key: other, .. }) => key == other,
            (Self::LastGood(good), Self::LastGood(other)) => good.files == other.files,
            (Self::Ended(ended), Self::Ended(other)) => ended.record == other.record,
            _ => false,
        }
    }

    /// Whether it is of a row that only the journal has which it was meant for.
    fn is_of_a_row(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Settled { .. } | Self::Remover { .. })
    }
}

/// The writes in their order, and why the first of them could not be made.
#[derive(Debug, Default)]
pub(super) struct Pending {
    writes: VecDeque<Write>,
    error: Option<String>,
}

impl Pending {
    pub fn push(&mut self, write: Write) {
        self.writes.retain(|earlier| !earlier.is_replaced_by(&write));
        self.writes.push_back(write);
        if self.writes.len() > MOST {
            let row = self.writes.iter().position(|write| matches!(write, Write::Audit { .. }));
            self.writes.remove(row.unwrap_or(0));
        }
    }

    /// Makes what waits, up to the first that cannot be made.
    pub fn make(&mut self, journal: &Journal) -> Result<(), StoreError> {
        while let Some(write) = self.writes.front() {
            match write.make(journal) {
                Ok(()) => drop(self.writes.pop_front()),
                Err(error) if is_hopeless(&error) => {
                    tracing::warn!(error = error.chain(), "the journal cannot take a value, it is given up");
                    self.writes.pop_front();
                }
                Err(error) => {
                    if self.error.is_none() {
                        tracing::warn!(error = error.chain(), "the journal cannot be written, it is tried again");
                    }
                    self.error = Some(error.chain());
                    return Err(error);
                }
            }
        }
        self.error = None;
        Ok(())
    }

    /// Another journal took the place of the one that they were meant for, which knows neither its rows nor its trial.
    pub fn renew(&mut self) {
        self.writes.retain(|write| !write.is_of_a_row());
        self.another_trial();
    }

    /// Another change waits for its confirmation, and that is written down.
    pub fn another_trial(&mut self) {
        self.writes.retain(|write| !matches!(write, Write::Remember { key, .. } if key == UNCONFIRMED));
    }

    /// The value of a key, if it waits.
    pub fn remembered(&self, name: &str) -> Option<&str> {
        self.writes.iter().rev().find_map(|write| match write {
            Write::Remember { key, json } if key == name => Some(json.as_str()),
            _ => None,
        })
    }

    /// The configuration in force, if it waits.
    pub fn last_good(&self) -> Option<&LastGood> {
        self.writes.iter().rev().find_map(|write| match write {
            Write::LastGood(good) | Write::Settled { good: Some(good), .. } => Some(good),
            _ => None,
        })
    }

    /// Whether the change of this row is over.
    pub fn is_settled(&self, row: i64) -> bool {
        self.writes.iter().any(|write| matches!(write, Write::Settled { ended, .. } if ended.record == row))
    }

    /// What waits, and why.
    pub fn alarm(&self) -> Option<String> {
        let (waiting, error) = (self.writes.len(), self.error.as_ref()?);
        let what = if waiting == 1 { "a change".into() } else { format!("{waiting} changes") };
        Some(format!("{what} in the journal is not written down yet and would be lost with this process: {error}"))
    }
}

/// Whether it is the fault of the value, so that no disk could take it.
fn is_hopeless(error: &StoreError) -> bool {
    let of_the_value = [ErrorCode::ConstraintViolation, ErrorCode::TooBig, ErrorCode::TypeMismatch];
    matches!(error, StoreError::Value { .. }) || error.code().is_some_and(|code| of_the_value.contains(&code))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use rusqlite::Connection;

    use super::*;
    use crate::{
        clock::Instant,
        guard::{Deadline, Phase, Unconfirmed, gate::Baseline},
        store::{Ledger, NewGeneration, journal_file, read},
    };

    fn good(revision: &str) -> LastGood {
        let files = BTreeMap::from([("site.yaml".to_owned(), revision.as_bytes().to_vec())]);
        LastGood { revision: revision.into(), at: Wall::from_micros(5), files }
    }

    /// A change that is in force and waits.
    fn trial(ledger: &Ledger, number: u64, revision: &str) -> Unconfirmed {
        let new = NewGeneration {
            generation: number,
            revision,
            at: Wall::from_micros(number.cast_signed()),
            who: &Who::DAEMON,
            plan: "",
            document: "null",
            standing: Standing::Unconfirmed,
            files: &good(revision).files,
        };
        let mut change = Unconfirmed {
            record: 0,
            generation: number,
            revision: revision.into(),
            previous: None,
            who: Who::DAEMON,
            deadline: Deadline::after(std::time::Duration::ZERO, String::new(), Instant::default(), Wall::default()),
            phase: Phase::Waiting,
            baseline: Baseline::default(),
        };
        ledger.add_generation(&new, &mut change).unwrap();
        change
    }

    /// Somebody else who holds the journal until this is dropped.
    fn holder(dir: &Path) -> Connection {
        let other = Connection::open(journal_file(dir)).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        other
    }

    #[test]
    fn what_could_not_be_written_is_seen_told_and_written_later_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path());
        ledger.set_last_good(&good("before"));
        let change = trial(&ledger, 1, "first");
        let held = holder(dir.path());
        ledger.audit(&Who::DAEMON, "confirm", "one");
        ledger.confirm(&change, Standing::Confirmed, "it is well", Some(good("first")));
        ledger.audit(&Who::DAEMON, "confirm", "two");
        for number in 0..5 {
            ledger.put("number", &number);
        }
        assert_eq!((ledger.get("number"), ledger.unconfirmed()), (Some(4), None), "seen before it is written");
        assert_eq!(ledger.last_good(), Some(good("first")));
        assert!(ledger.flush().is_err());
        let alarm = ledger.alarm().unwrap();
        assert!(alarm.starts_with("4 changes in the journal") && alarm.contains("locked"), "{alarm}");
        drop(held);
        ledger.flush().unwrap();
        assert_eq!(ledger.alarm(), None);
        let (again, _) = Ledger::open(dir.path());
        assert_eq!((again.get("number"), again.unconfirmed(), again.last_good()), (Some(4), None, Some(good("first"))));
        assert_eq!(read::generations(dir.path(), 9).unwrap()[0].standing, Standing::Confirmed);
        let audit: Vec<String> = read::audit(dir.path(), 9).unwrap().into_iter().map(|row| row.detail).collect();
        assert_eq!(audit, ["one", "two"]);
    }

    #[test]
    fn of_what_a_full_disk_refuses_nothing_is_half_written_and_all_is_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path());
        ledger.set_last_good(&good("before"));
        let change = trial(&ledger, 1, "first");
        let Ledger::Disk(disk) = &ledger else { panic!("{ledger:?}") };
        let bound = |pages: u32| disk.bound(pages);
        bound(1);
        let large = LastGood { files: BTreeMap::from([("site.yaml".into(), vec![b'x'; 300_000])]), ..good("first") };
        ledger.confirm(&change, Standing::Confirmed, "it is well", Some(large.clone()));
        assert!(ledger.alarm().unwrap().contains("full"), "{:?}", ledger.alarm());
        let on_disk = || {
            let (again, _) = Ledger::open(dir.path());
            (again.unconfirmed(), again.last_good(), read::generations(dir.path(), 1).unwrap()[0].standing)
        };
        assert_eq!(on_disk(), (Some(change), Some(good("before")), Standing::Unconfirmed));
        bound(u32::MAX - 1);
        ledger.flush().unwrap();
        assert_eq!((on_disk(), ledger.alarm()), ((None, Some(large), Standing::Confirmed), None));
    }

    #[test]
    fn a_change_that_is_settled_late_takes_nothing_from_the_one_that_waits_now() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path());
        let first = trial(&ledger, 1, "first");
        let held = holder(dir.path());
        ledger.set_unconfirmed(&first);
        ledger.confirm(&first, Standing::Confirmed, "it is well", Some(good("first")));
        drop(held);
        let second = trial(&ledger, 2, "second");
        ledger.flush().unwrap();
        let (again, _) = Ledger::open(dir.path());
        assert_eq!((again.unconfirmed(), again.last_good()), (Some(second.clone()), Some(good("first"))));
        // Settled once more, as by whoever was told late.
        again.settle_unconfirmed(&first, Standing::Confirmed, "it is well");
        assert_eq!(again.unconfirmed(), Some(second));
    }

    #[test]
    fn what_no_disk_could_take_holds_up_nothing_and_the_audit_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path());
        let held = holder(dir.path());
        ledger.put("kept", &1);
        for row in 0..2 * MOST {
            ledger.audit(&Who::DAEMON, "apply", &row.to_string());
        }
        assert!(ledger.alarm().unwrap().starts_with(&format!("{MOST} changes")));
        drop(held);
        ledger.flush().unwrap();
        assert_eq!(ledger.get("kept"), Some(1));
        let audit = read::audit(dir.path(), 2 * MOST).unwrap();
        assert_eq!((audit.len(), audit.last().unwrap().detail.as_str()), (MOST - 1, "1999"));
        // A journal in which a value breaks a rule.
        let other = Connection::open(journal_file(dir.path())).unwrap();
        let rule =
            "CREATE TRIGGER rule BEFORE INSERT ON remembered WHEN new.key = 'bad' BEGIN SELECT raise(ABORT, 'no'); END";
        other.execute_batch(rule).unwrap();
        ledger.put("bad", &1);
        ledger.put("good", &2);
        assert_eq!((ledger.alarm(), ledger.get::<i32>("bad"), ledger.get("good")), (None, None, Some(2)));
    }
}
