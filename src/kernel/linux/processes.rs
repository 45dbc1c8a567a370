//! Who runs on this machine, and who is behind a netlink port.

use std::fs;

use crate::foreign::programs::Process;

/// Every process that can be seen.
#[must_use]
pub fn running() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some(Process { pid, name: name(pid)? })).collect()
}

/// A process's name.
pub(super) fn name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// Whether there is such a process.
#[must_use]
pub fn runs(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// The process that started this one.
pub(super) fn parent(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // pid (name) state ppid …; the name may hold anything.
    let pid = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    // Process 1 has started nothing of this: it adopted an orphan.
    if pid > 1 { Some(Process { pid, name: name(pid)? }) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_has_a_parent() {
        let own = std::process::id();
        assert!(running().iter().any(|p| p.pid == own && Some(&p.name) == name(own).as_ref()));
        assert!(parent(own).is_some());
        assert!(runs(own) && !runs(u32::MAX) && name(u32::MAX).is_none());
    }
}
