//! The file of an open database, looked at from outside: `SQLite` goes on writing to a file that was deleted or
//! replaced, and to one whose pages it has cached.
//!
//! Invariant: as long as this process has a database open, it closes no descriptor of that file behind `SQLite`'s back.
//! A process that closes any descriptor of a file loses all its locks on it (fcntl(2)); the next program that opens the
//! database and closes it again would believe itself alone and delete the write-ahead log that is in use
//! (<https://sqlite.org/howtocorrupt.html>, 2.2). So the file is opened once, however many connections there are, and the
//! path is only asked for its metadata.

use std::{
    fs::{File, Metadata},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// The first 16 bytes of every database (<https://sqlite.org/fileformat.html#magic_header_string>).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What is said of a file that is no database any more.
pub(super) const OVERWRITTEN: &str = "was overwritten";

/// The descriptors of this process by which databases are looked at.
static OPEN: Mutex<Vec<(Id, Weak<File>)>> = Mutex::new(Vec::new());

/// Device and inode.
type Id = (u64, u64);

/// A descriptor beside the connection of a database; whoever holds both drops the connection first.
#[derive(Debug)]
pub(super) struct Head {
    file: Arc<File>,
    id: Id,
}

impl Head {
    /// Of a database that was opened just now.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, file)| file.strong_count() > 0);
        let id = id(&path.metadata()?);
        if let Some(file) = open.iter().find(|(other, _)| *other == id).and_then(|(_, file)| file.upgrade()) {
            return Ok(Self { file, id });
        }
        let file = Arc::new(File::open(path)?);
        open.push((id, Arc::downgrade(&file)));
        Ok(Self { file, id })
    }

    /// What has happened to the file at this path since, if anything.
    pub fn trouble(&self, path: &Path) -> Option<&'static str> {
        match path.metadata() {
            Err(_) => Some("was deleted"),
            Ok(now) if id(&now) != self.id => Some("was replaced by another file"),
            Ok(_) if self.is_database() => None,
            Ok(_) => Some(OVERWRITTEN),
        }
    }

    /// Whether the file begins as every database does.
    fn is_database(&self) -> bool {
        let mut head = [0; MAGIC.len()];
        self.file.read_exact_at(&mut head, 0).is_ok() && head == *MAGIC
    }
}

fn id(metadata: &Metadata) -> Id {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Journal, journal_file};

    /// Whether this process has a lock on a file, by what the kernel says.
    fn locked(path: &Path) -> bool {
        let (pid, inode) = (std::process::id().to_string(), format!(":{}", path.metadata().unwrap().ino()));
        std::fs::read_to_string("/proc/locks").unwrap().lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words[1] == "POSIX" && words.contains(&pid.as_str()) && words.iter().any(|word| word.ends_with(&inode))
        })
    }

    #[test]
    fn whoever_looks_whether_a_database_is_sound_keeps_its_locks() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let file = journal_file(dir.path());
        assert!(locked(&file), "an open database has a lock");
        assert_eq!(journal.trouble(), None);
        assert!(locked(&file), "after a look at it");
        let another = Journal::open(dir.path()).unwrap();
        drop(journal);
        assert!(locked(&file), "after another connection of the same process was closed");
        assert_eq!(another.trouble(), None);
        crate::store::read::generations(dir.path(), 1).unwrap();
        crate::store::read::last_good(dir.path()).unwrap();
        assert!(locked(&file), "after somebody has read in it");
    }

    #[test]
    fn the_checker_sees_a_file_that_is_opened_and_closed_beside_its_connection() {
        let dir = tempfile::tempdir().unwrap();
        let _journal = Journal::open(dir.path()).unwrap();
        let file = journal_file(dir.path());
        drop(File::open(&file).unwrap());
        assert!(!locked(&file));
    }

    #[test]
    fn what_happened_to_a_database_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let file = journal_file(dir.path());
        let open = File::options().write(true).open(&file).unwrap();
        open.write_all_at(&[0x5a; 16], 0).unwrap();
        assert_eq!(journal.trouble(), Some("was overwritten"));
        open.write_all_at(MAGIC, 0).unwrap();
        assert_eq!(journal.trouble(), None);
        std::fs::rename(&file, dir.path().join("moved")).unwrap();
        assert_eq!(journal.trouble(), Some("was deleted"));
        std::fs::copy(dir.path().join("moved"), &file).unwrap();
        assert_eq!(journal.trouble(), Some("was replaced by another file"));
    }
}
