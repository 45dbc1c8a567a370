//! Disks that are full or take no writes.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

const BALLAST: &str = "ballast";

/// A small file system of its own; gone when this is dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn over(dir: &Path, size: &str) -> Self {
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", dir.to_str().unwrap()]);
        Self(dir.to_owned())
    }

    pub fn remount(&self, how: &str) {
        mount(&["-o", &format!("remount,{how}"), self.0.to_str().unwrap()]);
    }
}

impl Tmpfs {
    /// Takes all the room that there is.
    pub fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(self.0.join(BALLAST)).unwrap();
        while ballast.write_all(&[0; 512]).is_ok() {}
    }

    /// Gives it back.
    pub fn empty(&self) {
        fs::remove_file(self.0.join(BALLAST)).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the daemon may have it open still.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(words: &[&str]) {
    assert!(Command::new("mount").args(words).status().unwrap().success(), "mount {words:?}");
}
