//! One Patronus per network namespace: a held flock(2), which the kernel frees when its holder dies.
//!
//! Invariant: while the lock is free, nobody changes our objects. A killed holder may leave an `nft` behind that
//! is about to commit; so children inherit the lock, and it is free only when they have ended too.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl},
    sys::signal::kill,
    unistd::Pid,
};

use crate::clock;

/// A child of a dead holder gets so long to end; loading a ruleset takes well under a second.
const ORPHANS: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another one holds it.
    #[error("another Patronus works in this network namespace: {holder}")]
    Busy {
        /// Its process id and command, as far as it has written them.
        holder: String,
    },
    /// The lock file could not be used.
    #[error("{doing}")]
    Io {
        /// What was being done, to which file.
        doing: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The lock; dropping it frees it.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of the calling thread's network namespace in `directory`, which is made if it is
    /// missing. `command` tells the next one who holds it. Waits for nobody but the last children of a
    /// holder that is dead.
    pub fn acquire(directory: &Path, command: &str) -> Result<Self, LockError> {
        let path = directory.join(format!("lock-{}", namespace()?));
        std::fs::create_dir_all(directory).map_err(failed(format!("create {}", directory.display())))?;
        let opening = failed(format!("open the lock {}", path.display()));
        // Not removed when freed: the next holder may have it open already.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
        let (mut file, deadline) = (file.map_err(opening)?, clock::now() + ORPHANS);
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => return Self::held(file, path, command),
                Err((again, Errno::EWOULDBLOCK)) => file = again,
                Err((_, errno)) => return Err(failed(format!("lock {}", path.display()))(errno.into())),
            }
            let holder = holder(&mut file);
            if alive(&holder) || clock::now() > deadline {
                return Err(LockError::Busy { holder });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Where the lock is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn held(mut file: Flock<File>, path: PathBuf, command: &str) -> Result<Self, LockError> {
        let line = format!("pid {}, `{command}`\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(line.as_bytes()));
        let inherited = |()| Ok(fcntl(&*file, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)?);
        written.and_then(inherited).map_err(failed(format!("write the lock {}", path.display())))?;
        Ok(Self { _file: file, path })
    }
}

/// Who holds the lock of the calling thread's network namespace in `directory`, if anybody does. Takes nothing and
/// makes nothing.
#[must_use]
pub fn peek(directory: &Path) -> Option<String> {
    let path = directory.join(format!("lock-{}", namespace().ok()?));
    match Flock::lock(File::open(path).ok()?, FlockArg::LockSharedNonblock) {
        Err((mut file, Errno::EWOULDBLOCK)) => Some(holder(&mut file)),
        _ => None,
    }
}

/// The inode of the calling thread's network namespace (namespaces(7)).
fn namespace() -> Result<u64, LockError> {
    const FILE: &str = "/proc/thread-self/ns/net";
    std::fs::metadata(FILE).map(|m| m.ino()).map_err(failed(format!("read {FILE}")))
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "its process id is not written yet".to_owned(),
    }
}

/// Whether the process that the lock names lives; one that names none is young, and alive.
fn alive(holder: &str) -> bool {
    let pid = holder.strip_prefix("pid ").and_then(|rest| rest.split_once(',')?.0.parse().ok());
    pid.is_none_or(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

fn failed(doing: String) -> impl FnOnce(io::Error) -> LockError {
    move |source| LockError::Io { doing, source }
}
