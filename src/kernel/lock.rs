//! One Patronus per network namespace: a held flock(2), which the kernel frees when its holder dies.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{F_SETFD, FdFlag, Flock, FlockArg, fcntl},
};

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
    /// missing. `command` tells the next one who holds it. Does not wait.
    pub fn acquire(directory: &Path, command: &str) -> Result<Self, LockError> {
        let path = directory.join(format!("lock-{}", namespace()?));
        std::fs::create_dir_all(directory).map_err(failed(format!("create {}", directory.display())))?;
        let opening = failed(format!("open the lock {}", path.display()));
        // Not removed when freed: the next holder may have it open already.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
        match Flock::lock(file.map_err(opening)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Self::held(file, path, command),
            Err((file, Errno::EWOULDBLOCK)) => Err(LockError::Busy { holder: holder(file) }),
            Err((_, errno)) => Err(failed(format!("lock {}", path.display()))(errno.into())),
        }
    }

    /// Where the lock is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn held(mut file: Flock<File>, path: PathBuf, command: &str) -> Result<Self, LockError> {
        // An `nft` that outlives us may be about to commit: it inherits the lock, so that nobody recovers under it.
        fcntl(&*file, F_SETFD(FdFlag::empty()))
            .map_err(|errno| failed("keep the lock for children".into())(errno.into()))?;
        let line = format!("pid {}, `{command}`\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(line.as_bytes()));
        written.map_err(failed(format!("write the lock {}", path.display())))?;
        Ok(Self { _file: file, path })
    }
}

/// The inode of the calling thread's network namespace (namespaces(7)).
fn namespace() -> Result<u64, LockError> {
    const FILE: &str = "/proc/thread-self/ns/net";
    std::fs::metadata(FILE).map(|m| m.ino()).map_err(failed(format!("read {FILE}")))
}

fn holder(mut file: File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "its process id is not written yet".to_owned(),
    }
}

fn failed(doing: String) -> impl FnOnce(io::Error) -> LockError {
    move |source| LockError::Io { doing, source }
}
