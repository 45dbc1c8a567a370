//! The state directory fails under a running daemon: probing and switching go on, and an alarm says what is wrong.

use std::{
    fs::{self, File},
    io::{Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use patronus::lab::Fault;

use super::{all_up, repository};
use crate::support::{daemon::Daemon, quiet};

/// A small file system of its own; gone when this is dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn over(dir: &Path, size: &str) -> Self {
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", dir.to_str().unwrap()]);
        Self(dir.to_owned())
    }

    fn remount(&self, how: &str) {
        mount(&["-o", &format!("remount,{how}"), self.0.to_str().unwrap()]);
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

/// There and back again: the switch is as quick as with a store, and says what is wrong.
fn switches(daemon: &Daemon, what: &str, alarm: Option<&str>) {
    let lab = daemon.lab();
    let start = lab.fault("berlin", "fiber", Fault::BlackHole).unwrap();
    daemon.wait_active("critical", "lte");
    let took = start.elapsed();
    eprintln!("{what}: switched after {took:?}");
    assert!(took < Duration::from_secs(4), "{what}: {took:?}");
    lab.clear("berlin", "fiber").unwrap();
    daemon.wait_active("critical", "fiber");
    let status = daemon.wait("both paths", all_up);
    if let Some(alarm) = alarm {
        let shows = |alarms: &[String]| alarms.iter().any(|a| a.contains(alarm));
        daemon.wait(&format!("{what}: an alarm with `{alarm}`"), |s| shows(&s.alarms));
        assert!(daemon.says(&["status"]).contains(alarm), "{what}");
    } else {
        assert!(status.alarms.is_empty(), "{what}: {:?}", status.alarms);
    }
}

#[test]
fn whatever_happens_to_the_store_probing_and_switching_go_on() {
    let _quiet = quiet();
    let repository = repository();
    let lab = repository.lab();
    let mut daemon = Daemon::start(&lab, &repository, "berlin");
    daemon.terminate();
    let disk = Tmpfs::over(&daemon.state_dir(), "1m");
    daemon.settle();
    switches(&daemon, "a good disk", None);

    let ballast = daemon.state_dir().join("ballast");
    // It ends when the disk is full.
    while File::options().create(true).append(true).open(&ballast).unwrap().write_all(&[0; 512]).is_ok() {}
    switches(&daemon, "a full disk", Some("full"));
    fs::remove_file(&ballast).unwrap();
    daemon.wait("the alarm to end", |s| s.alarms.iter().all(|a| !a.contains("full")));

    locked(&daemon);
    for file in ["journal.db", "records.db"] {
        let mut open = File::options().write(true).open(daemon.state_dir().join(file)).unwrap();
        open.rewind().unwrap();
        open.write_all(&[0x5a; 8_192]).unwrap();
    }
    switches(&daemon, "corrupted", Some("journal.db was overwritten while in use"));
    daemon.wait("the records' alarm", |s| s.alarms.iter().any(|a| a.contains("records were damaged")));

    for entry in fs::read_dir(daemon.state_dir()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    switches(&daemon, "deleted", Some("journal.db was deleted while in use"));
    // What was remembered is in the new journal.
    daemon.terminate();
    let before = super::ours(&daemon);
    let status = daemon.settle();
    assert_eq!(super::ours(&daemon), before);
    assert!(status.generation > 0 && status.alarms.is_empty(), "{status:?}");

    daemon.terminate();
    disk.remount("ro");
    daemon.launch();
    daemon.wait("both paths", all_up);
    switches(&daemon, "a read-only disk", Some("working without a journal"));
}

/// Whoever looks opens the same databases. If the daemon's locks were gone, he would be the last to close them, and some
/// versions of `SQLite` delete the log then that the daemon goes on writing to.
#[test]
fn whoever_looks_at_a_router_takes_nothing_from_what_its_daemon_remembers() {
    let repository = repository();
    let lab = repository.lab();
    let mut daemon = Daemon::start(&lab, &repository, "berlin");
    daemon.wait("both paths", all_up);
    daemon.says(&["reconcile"]);
    holds_its_databases(&daemon, "a pass");
    let flow = "tcp 192.168.10.5:4711 to 203.0.113.9:443";
    for words in [&["explain", flow][..], &["plan"], &["snapshot"], &["doctor"], &["restore", "site"], &["history"]] {
        let (code, said) = daemon.tells(words);
        assert!(code == Some(0) && !said.contains("without the journal"), "{words:?}: {said}");
        holds_its_databases(&daemon, words[0]);
    }
    daemon.says(&["drain", "lte"]);
    daemon.kill();
    daemon.settle();
    assert!(daemon.status().paths["lte"].drained, "the drain is forgotten");
    // Nor is it when the journal itself is taken away.
    for file in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        fs::remove_file(daemon.state_dir().join(file)).unwrap();
    }
    daemon.says(&["reconcile"]);
    daemon.kill();
    daemon.settle();
    assert!(daemon.status().paths["lte"].drained, "the drain is forgotten with the journal");
}

/// By the kernel's list of locks; and the logs are where they are written to.
fn holds_its_databases(daemon: &Daemon, after: &str) {
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let mine = |line: &&str| line.contains("POSIX") && line.contains(&format!(" {} ", daemon.pid()));
    let mine: Vec<&str> = locks.lines().filter(mine).collect();
    for file in ["journal.db", "records.db"] {
        let (file, log) = (daemon.state_dir().join(file), daemon.state_dir().join(format!("{file}-wal")));
        let inode = format!(":{} ", fs::metadata(&file).unwrap().ino());
        assert!(
            mine.iter().any(|line| line.contains(&inode)),
            "after {after} no lock on {}: {mine:#?}",
            file.display()
        );
        assert!(log.exists(), "after {after} there is no {}", log.display());
    }
}

fn locked(daemon: &Daemon) {
    let lock = |file: &str| {
        let db = rusqlite::Connection::open(daemon.state_dir().join(file)).unwrap();
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        db
    };
    let held = ["journal.db", "records.db"].map(lock);
    switches(daemon, "locked databases", Some("locked"));
    drop(held);
}
