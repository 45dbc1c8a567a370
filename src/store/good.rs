//! The configuration in force, and how a change becomes it.
//!
//! Invariant: that a change stands and that its configuration is the one in force is one transaction, so that no start
//! finds one without the other.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension as _, params};

use super::{Journal, StoreError, pending::Ended};
use crate::{clock::Wall, guard::Unconfirmed};

/// What is being done with it.
const WRITE: &str = "write the last good configuration to";

/// The newest configuration that was applied without an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastGood {
    /// Its revision.
    pub revision: String,
    /// When it was applied.
    pub at: Wall,
    /// Its files by relative path.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Journal {
    /// Keeps this configuration as the last good one, and what was written about sites that it no longer has.
    pub fn set_last_good(&self, good: &LastGood) -> Result<(), StoreError> {
        let old = self.last_good()?;
        self.synced(|| self.together(WRITE, || self.write_last_good(old.as_ref(), good)))
    }

    /// A change waits no more: what has become of its generation, and the configuration in force if it stands. Another
    /// change that waits goes on waiting.
    pub(super) fn settle(&self, name: &str, ended: &Ended, good: Option<&LastGood>) -> Result<(), StoreError> {
        let old = good.map(|_| self.last_good()).transpose()?.flatten();
        let waits = match self.get::<Unconfirmed>(name) {
            Ok(found) => found.is_some_and(|change| change.record == ended.record),
            // Nobody can read it, so nobody waits for it.
            Err(StoreError::Value { .. }) => true,
            Err(error) => return Err(error),
        };
        let write = || {
            good.map_or(Ok(()), |good| self.write_last_good(old.as_ref(), good))?;
            self.write_end(ended)?;
            if waits { self.forget(name) } else { Ok(()) }
        };
        self.synced(|| self.together("write the end of a change to", write))
    }

    fn write_last_good(&self, old: Option<&LastGood>, good: &LastGood) -> Result<(), StoreError> {
        if let Some(old) = old.filter(|old| old.files != good.files) {
            self.write_removed(old, good)?;
        }
        self.db()
            .execute("REPLACE INTO last_good VALUES (1, ?, ?)", params![good.revision, good.at.as_micros()])
            .and_then(|_| self.db().execute("DELETE FROM last_good_files", []))
            .map_err(self.err(WRITE))?;
        for (path, content) in &good.files {
            self.db()
                .prepare_cached("INSERT INTO last_good_files VALUES (?, ?)")
                .and_then(|mut s| s.execute(params![path, content]))
                .map_err(self.err(WRITE))?;
        }
        Ok(())
    }

    /// The last good configuration, if there is one.
    pub fn last_good(&self) -> Result<Option<LastGood>, StoreError> {
        const DOING: &str = "read the last good configuration of";
        // One transaction, so that revision and files belong together.
        let work = self.db().unchecked_transaction().map_err(self.err(DOING))?;
        let head = work.query_row("SELECT revision, at FROM last_good", [], |row| Ok((row.get(0)?, row.get(1)?)));
        let Some((revision, at)) = head.optional().map_err(self.err(DOING))? else { return Ok(None) };
        let mut statement = work.prepare("SELECT path, content FROM last_good_files").map_err(self.err(DOING))?;
        let files = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        let files = files.and_then(Iterator::collect::<Result<_, _>>).map_err(self.err(DOING))?;
        Ok(Some(LastGood { revision, at: Wall::from_micros(at), files }))
    }
}
