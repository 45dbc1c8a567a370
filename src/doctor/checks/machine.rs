//! Clock, disk, ports, processes.

use std::path::Path;

use super::{Facts, Finding};
use crate::doctor::facts::{Place, Port};

/// Free space below which records will soon be lost, and below which the journal may not be written.
const LOW: u64 = 256 << 20;
const VERY_LOW: u64 = 32 << 20;
/// Free space in which not one page of a database fits safely.
const NOTHING: u64 = 64 << 10;
const FEW_INODES: u64 = 1_000;
/// 2025-01-01: no machine that runs this is older.
const EARLIEST: i64 = 1_735_689_600;
/// 2100-01-01.
const LATEST: i64 = 4_102_444_800;
const KEEPERS: [&str; 8] =
    ["chronyd", "ntpd", "ntpsec", "openntpd", "ptp4l", "phc2sys", "systemd-timesyn", "timemaster"];

pub(super) fn clock(facts: &Facts) -> Finding {
    if facts.places.contains_key(Path::new("/run/systemd/timesync/synchronized")) {
        return Finding::ok("systemd-timesyncd has set the clock");
    }
    match KEEPERS.iter().find(|name| facts.runs(name).is_some()) {
        Some(&"systemd-timesyn") => Finding::warn(
            "systemd-timesyncd runs and has not reached a time server yet",
            "`timedatectl timesync-status`; signatures, windows and certificates depend on the clock",
        ),
        Some(keeper) => Finding::ok(format!("{keeper} runs")),
        None => Finding::warn(
            "nothing keeps the clock right",
            "`apt-get install chrony`; signatures, windows and certificates depend on the clock",
        ),
    }
}

pub(super) fn clock_sane(facts: &Facts) -> Finding {
    let booted = facts.wall - i64::try_from(facts.uptime).unwrap_or(i64::MAX);
    if (EARLIEST..LATEST).contains(&facts.wall) && booted >= EARLIEST {
        return Finding::ok("the clock and the time of the boot are plausible");
    }
    let says = format!("the clock says {} s since 1970, and {} s since the boot", facts.wall, facts.uptime);
    Finding::fail(says, "set it (`date -s`), then find out why it was lost: an empty battery, no time server")
}

pub(super) fn time_zones(facts: &Facts) -> Finding {
    if facts.settings.guard.windows.is_empty() {
        return Finding::skipped("the settings have no change windows");
    }
    if facts.zones {
        return Finding::ok("the database of time zones is there");
    }
    Finding::fail("there is no database of time zones", "`apt-get install tzdata`")
}

fn place<'a>(facts: &'a Facts, path: &Path) -> Result<&'a Place, Finding> {
    let missing = || {
        let remedy = format!(
            "`install -d -m 750 {}`; the unit's `StateDirectory=` and `RuntimeDirectory=` make the default ones",
            path.display()
        );
        Finding::fail(format!("{} does not exist", path.display()), remedy)
    };
    facts.places.get(path).ok_or_else(missing)
}

fn directory(facts: &Facts, path: &Path, private: bool) -> Finding {
    let place = match place(facts, path) {
        Ok(place) => place,
        Err(finding) => return finding,
    };
    let shown = path.display();
    if !place.directory {
        return Finding::fail(format!("{shown} is not a directory"), "move it away, or name another in the settings");
    }
    if place.mode & 0o022 != 0 && place.mode & 0o1000 == 0 {
        return Finding::fail(
            format!("{shown} can be written by others (mode {:o})", place.mode & 0o7777),
            format!("`chmod go-w {shown}`"),
        );
    }
    if place.read_only {
        return Finding::fail(
            format!("{shown} lies on a file system that is mounted read-only"),
            format!(
                "`mount -o remount,rw $(findmnt -nT {shown} -o TARGET)`; \
                 `dmesg` tells if the kernel did it after errors of the disk"
            ),
        );
    }
    if !place.writable {
        let says = format!("{shown} cannot be written by user {}; its owner is user {}", facts.user, place.owner);
        return Finding::fail(says, format!("run as its owner, or `chown` it: {shown}"));
    }
    // One that reports nothing at all (overlays and network file systems may) is not full.
    if matches!(place.bytes, (0..NOTHING, 1..)) || matches!(place.inodes, (0, 1..)) {
        return Finding::fail(
            format!("{shown} is there, and nothing can be written to it: its file system is full"),
            format!("make room: `du -x $(findmnt -nT {shown} -o TARGET) | sort -n | tail`"),
        );
    }
    if private && place.mode & 0o004 != 0 {
        let says = format!("{shown} can be read by everybody (mode {:o})", place.mode & 0o7777);
        return Finding::warn(says, format!("`chmod o-rwx {shown}`: the journal holds the configuration"));
    }
    Finding::ok(format!("{shown} is there and can be written"))
}

pub(super) fn state_directory(facts: &Facts) -> Finding {
    directory(facts, &facts.settings.state_dir, true)
}

pub(super) fn runtime_directory(facts: &Facts) -> Finding {
    directory(facts, &facts.settings.runtime_dir, false)
}

pub(super) fn disk_space(facts: &Facts) -> Finding {
    let Some(place) = facts.places.get(&facts.settings.state_dir) else {
        return Finding::skipped("the state directory does not exist");
    };
    if place.bytes.1 == 0 {
        return Finding::ok("this file system does not say how much room it has");
    }
    let (free, all) = (place.bytes.0 >> 20, place.bytes.1 >> 20);
    let says = format!("{free} of {all} MiB free where {} is", facts.settings.state_dir.display());
    let remedy = "make room, or a shorter `retention`; without room records are lost, and routing goes on";
    match place.bytes.0 {
        bytes if bytes < VERY_LOW => Finding::fail(says, remedy),
        bytes if bytes < LOW => Finding::warn(says, remedy),
        _ => Finding::ok(says),
    }
}

pub(super) fn disk_inodes(facts: &Facts) -> Finding {
    let Some(place) = facts.places.get(&facts.settings.state_dir) else {
        return Finding::skipped("the state directory does not exist");
    };
    match place.inodes {
        (_, 0) => Finding::ok("this file system has no limit of inodes"),
        (free, all) if free < FEW_INODES => Finding::fail(
            format!("{free} of {all} inodes free"),
            "find what makes so many files: `du --inodes -x / | sort -n | tail`",
        ),
        (free, all) => Finding::ok(format!("{free} of {all} inodes free")),
    }
}

pub(super) fn metrics_port(facts: &Facts) -> Finding {
    match &facts.metrics {
        Port::Off => Finding::skipped("the settings want no metrics"),
        Port::Free => Finding::ok("the metrics port is free"),
        Port::Refused(_) if facts.daemon => Finding::ok("the daemon has the metrics port"),
        Port::Refused(why) => Finding::fail(why.clone(), "`ss -ltnp` shows who has it; or another `listen.metrics`"),
    }
}

pub(super) fn instance(facts: &Facts) -> Finding {
    match (&facts.holder, facts.daemon) {
        (Some(holder), true) => Finding::ok(format!("the daemon runs: {holder}")),
        (Some(holder), false) => Finding::warn(
            format!("{holder} holds this router, and no daemon answers on {}", facts.settings.socket.display()),
            "wait until it has ended; if it is the daemon, is its `socket` another one?",
        ),
        (None, true) => Finding::fail(
            "a daemon answers, and nobody holds the lock of this network namespace",
            "its `runtimeDir` differs from these settings', or it runs in another network namespace: stop one of them",
        ),
        (None, false) => Finding::ok("nobody works on this router now"),
    }
}
