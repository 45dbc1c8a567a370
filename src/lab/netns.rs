//! Named network namespaces (ip-netns(8)): making, entering and removing them.
//!
//! A namespace belongs to a thread, not to the process, so whatever acts in one runs in a thread of its own.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns},
};

use super::Error;

/// How long links may take to come up.
pub(super) const SETTLE: Duration = Duration::from_secs(5);

const DIRECTORY: &str = "/run/netns";

/// Moves this thread into a namespace, for good.
pub fn enter(ns: &str) -> Result<(), Error> {
    let failed = |source| Error::Enter { ns: ns.to_owned(), source };
    let file = File::open(format!("{DIRECTORY}/{ns}")).map_err(failed)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
}

/// Runs a closure in a namespace and waits for it.
pub(super) fn within<T: Send>(ns: &str, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let run = || enter(ns).map(|()| work());
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Feeds lines to `ip -batch`, in a namespace or in the caller's own.
pub(super) fn ip_batch(ns: Option<&str>, lines: &[String]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(ns) = ns {
        command.args(["-n", ns]);
    }
    let place = ns.unwrap_or("the set of namespaces");
    feed(command.args(["-batch", "-"]), &(lines.join("\n") + "\n"), place)
}

/// Runs a tool with this text on its standard input; its failure carries what it said.
pub(super) fn feed(command: &mut Command, text: &str, place: &str) -> Result<(), Error> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let failed = |source: io::Error| Error::Tool { tool: tool.clone(), source };
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that stops early closes the pipe; its exit status tells more than the broken pipe.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    refused(&tool, place, text, &output)
}

fn refused(tool: &str, place: &str, text: &str, output: &Output) -> Result<(), Error> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let line = said.rsplit_once("Command failed -:").and_then(|(_, n)| n.trim().parse::<usize>().ok());
    let line = line.and_then(|n| text.lines().nth(n.saturating_sub(1))).unwrap_or_default().to_owned();
    Err(Error::Refused { tool: tool.to_owned(), place: place.to_owned(), line, said })
}

/// Writes settings under `/proc/sys/net` of a namespace. Families the kernel lacks are passed over.
pub(super) fn sysctls(ns: &str, settings: &[(&str, &str)]) -> Result<(), Error> {
    within(ns, || {
        for (name, value) in settings {
            let path = format!("/proc/sys/net/{name}");
            match fs::write(&path, value) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Setting { ns: ns.to_owned(), path, source });
                }
                _ => {}
            }
        }
        Ok(())
    })?
}

/// Waits until every interface that is up (or only this one) is also running: before that, packets are dropped
/// without a word.
pub(super) fn settle(ns: &str, only: Option<&str>) -> Result<(), Error> {
    let running = || {
        let wanted = |name: &str| only.is_none_or(|only| only == name);
        let pending = InterfaceFlags::IFF_UP;
        let mask = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        getifaddrs().is_ok_and(|mut all| !all.any(|a| wanted(&a.interface_name) && a.flags & mask == pending))
    };
    within(ns, || {
        let start = Instant::now();
        while !running() {
            if start.elapsed() > SETTLE {
                return Err(Error::Settle { ns: ns.to_owned() });
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    })?
}

/// Names of the namespaces that begin like this, sorted.
#[must_use]
pub fn list(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

/// Ends the processes in namespaces (not this one) and removes the namespaces.
pub(super) fn remove(names: &[String]) -> Result<(), Error> {
    for name in names {
        for pid in processes(name) {
            // It may have ended by itself meanwhile.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
    // One that somebody else has removed meanwhile must not keep the others.
    let lines: Vec<String> = names.iter().map(|name| format!("netns del {name}")).collect();
    feed(Command::new("ip").args(["-force", "-batch", "-"]), &(lines.join("\n") + "\n"), "the set of namespaces")
}

fn processes(ns: &str) -> Vec<nix::unistd::Pid> {
    let output = Command::new("ip").args(["netns", "pids", ns]).stdin(Stdio::null()).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok()).map(nix::unistd::Pid::from_raw);
    pids.filter(|pid| *pid != nix::unistd::Pid::this()).collect()
}
