//! `patronus lab demo`: the newcomer's first minute, as a story in steps.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, SigSet, Signal},
    unistd::Pid,
};
use serde_json::Value;

use super::{DemoArgs, Load, failure, nodes, privilege, script::Cast, site};
use crate::{
    cli::{Exit, Failure, Outcome},
    clock,
    lab::{self, Crossing, Fault, Flow, Lab, Node, Report},
    validate::intent::Site,
};

/// Packets per second of the traffic shown.
pub(super) const PPS: u32 = 1_000;
/// The site that is shown when no directory is given.
const EXAMPLE: &str = include_str!("../../../examples/one-site/berlin.yaml");
/// How long the primary has to be well before it is returned to, in the demo.
const FAILBACK: &str = "5s";
/// How long a step may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Traffic shown before a fault and after the reaction to it.
const CALM: Duration = Duration::from_millis(1500);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the demonstration with `exe` as `patronus`.
pub fn demo(args: &DemoArgs, load: Load<'_>, exe: &Path) -> Outcome {
    privilege("demo")?;
    catch_signals();
    let place = Scratch::new().map_err(|e| Failure::error("making a directory for the demo", &e))?;
    let shortened =
        copy(args.dir.as_deref(), &place.repository()).map_err(|e| Failure::error("copying the site", &e))?;
    let sites = load(&place.repository())?;
    let shown = match (&args.site, sites.values().next()) {
        (Some(name), _) => site(&sites, name)?,
        (None, Some(first)) => first,
        (None, None) => return Err(Failure::new(Exit::Config, "the configuration has no site")),
    };
    let cast = Cast::of(shown)?;
    Story::begin(exe, &place, cast, shown, shortened)?.tell()?;
    Ok(Exit::Done)
}

/// Fields are dropped in this order: the daemon before the ground under it.
struct Story<'a> {
    daemon: RefCell<Option<Daemon>>,
    lab: Lab,
    exe: &'a Path,
    place: &'a Scratch,
    cast: Cast,
}

impl<'a> Story<'a> {
    fn begin(exe: &'a Path, place: &'a Scratch, cast: Cast, site: &Site, shortened: bool) -> Result<Self, Failure> {
        heading("1", "A private copy of the site, in network namespaces on this machine");
        let topology = lab::topology([site]).map_err(|e| Failure::error("planning the lab", &e))?;
        let start = Instant::now();
        let lab =
            Lab::build(topology, &Lab::unique_prefix("patronusdemo")).map_err(|e| failure("building the lab", &e))?;
        let took = start.elapsed().as_millis();
        anstream::print!("{}", nodes(lab.topology()));
        let built = lab.topology().nodes().len();
        anstream::println!("  {built} namespaces in {took} ms; this machine's own network is not touched.");
        if shortened {
            anstream::println!("  failbackDelay is {FAILBACK} here, so that you need not wait for the way back.");
        }
        Ok(Self { daemon: RefCell::default(), lab, exe, place, cast })
    }

    fn tell(self) -> Result<(), Failure> {
        self.plan()?;
        self.daemon()?;
        self.good()?;
        self.cut()?;
        self.mend()?;
        self.black_hole()?;
        let (daemon, lab) = (self.daemon.take(), self.lab);
        drop(daemon);
        drop(lab);
        anstream::println!("\nAll cleaned up. Next: docs/tutorial.md, or `patronus lab up` with a site of your own.");
        Ok(())
    }

    fn plan(&self) -> Result<(), Failure> {
        heading("2", "What Patronus would do to the router  (patronus plan)");
        let mut command = self.patronus("plan");
        command.arg(self.place.repository()).args(["--site", self.cast.site.as_str()]);
        self.show(command, 15)
    }

    fn daemon(&self) -> Result<(), Failure> {
        heading("3", "The daemon applies it and probes every path  (patronus run)");
        let settings = self.place.settings(&self.cast).map_err(|e| Failure::error("writing the settings", &e))?;
        let start = Instant::now();
        let mut command = self.patronus("run");
        command.arg("--config").arg(settings).process_group(0);
        let log = File::create(self.place.log()).map_err(|e| Failure::error("making the daemon's log", &e))?;
        let copy = log.try_clone().map_err(|e| Failure::error("making the daemon's log", &e))?;
        command.stdin(Stdio::null()).stdout(copy).stderr(log);
        let child = self.lab.spawn_in(&self.router(), command).map_err(|e| failure("starting the daemon", &e))?;
        self.daemon.replace(Some(Daemon(child)));
        for path in [self.cast.primary.to_string(), self.cast.backup.to_string()] {
            let pointer = format!("/paths/{path}/health/state");
            let what = format!("{path} to be up");
            self.wait(&what, |status| word(status, &pointer).is_some_and(|state| state == "up"))?;
            anstream::println!("  {path} is known to be good after {:.1} s", start.elapsed().as_secs_f64());
        }
        self.wait_for_active(self.cast.primary.as_str(), true)?;
        self.show(self.patronus("status"), 10)
    }

    fn good(&self) -> Result<(), Failure> {
        let Cast { policy, rule, traffic, address, host, .. } = &self.cast;
        heading("4", &format!("A call from the LAN: {PPS} packets/s from {host} to {address}"));
        anstream::println!("  {traffic}: policy {policy} sends it to failover rule {rule}.");
        let flow = self.flow()?;
        rest(CALM)?;
        tally(&finish(flow)?, None);
        Ok(())
    }

    /// Carrier loss: the kernel's own next route takes over.
    fn cut(&self) -> Result<(), Failure> {
        heading(
            "5",
            &format!("Under traffic, {} is cut: {} loses its carrier", self.cast.primary, self.cast.interface),
        );
        let since = clock::wall();
        let (report, moment) = self.break_with(Fault::Carrier)?;
        tally(&report, Some(moment));
        anstream::println!(
            "  The backup route stood in the kernel before it was needed: nothing had to be decided first."
        );
        self.why(since)
    }

    fn black_hole(&self) -> Result<(), Failure> {
        heading("7", "The nasty one: packets vanish beyond the provider, and the link stays up");
        let since = clock::wall();
        let (report, moment) = self.break_with(Fault::BlackHole)?;
        tally(&report, Some(moment));
        anstream::println!("  Only the probes could tell: their interval and downAfter set how long that takes.");
        self.why(since)
    }

    /// Breaks the primary under traffic and waits until the rule has left it.
    fn break_with(&self, fault: Fault) -> Result<(Report, Instant), Failure> {
        let Cast { site, endpoint, primary, .. } = &self.cast;
        let flow = self.flow()?;
        rest(CALM)?;
        let broken =
            self.lab.fault(site.as_str(), endpoint.as_str(), fault).map_err(|e| failure("breaking the link", &e))?;
        self.wait_for_active(primary.as_str(), false)?;
        rest(CALM)?;
        Ok((finish(flow)?, broken))
    }

    fn mend(&self) -> Result<(), Failure> {
        heading("6", &format!("{} is repaired, and must prove itself before it is used again", self.cast.primary));
        let Cast { site, endpoint, primary, .. } = &self.cast;
        let (since, flow) = (clock::wall(), self.flow()?);
        rest(CALM)?;
        let mended = self.lab.clear(site.as_str(), endpoint.as_str()).map_err(|e| failure("mending the link", &e))?;
        self.wait_for_active(primary.as_str(), true)?;
        let back = Instant::now();
        anstream::println!("  back on {primary} {:.1} s after the repair", mended.elapsed().as_secs_f64());
        rest(CALM)?;
        tally(&finish(flow)?, None);
        let call = self.flow()?;
        rest(CALM / 3)?;
        let arrived = finish(call)?.there.crossings_between(back, Instant::now());
        anstream::println!("  A call begun now: {}.", shares(&arrived));
        anstream::println!("  One begun earlier stays where its address was translated: moving it would cut it off.");
        self.why(since)
    }

    fn why(&self, since: clock::Wall) -> Result<(), Failure> {
        anstream::println!("\n  Why  (patronus events)");
        let mut command = self.patronus("events");
        command.args(["--since", &since.to_string(), "--state-dir"]).arg(self.place.0.join("state"));
        self.show(command, 8)
    }

    fn flow(&self) -> Result<Flow, Failure> {
        self.lab.flow(&self.cast.flow()).map_err(|e| failure("starting the traffic", &e))
    }

    fn router(&self) -> Node {
        Node::Router(self.cast.site.clone())
    }

    fn patronus(&self, verb: &str) -> Command {
        let mut command = Command::new(self.exe);
        command.arg(verb).env("PATRONUS_SOCKET", self.place.socket()).stdin(Stdio::null());
        command
    }

    /// Runs a verb in the router and shows the first lines and the last one of what it prints.
    fn show(&self, command: Command, lines: usize) -> Result<(), Failure> {
        let output = self.lab.run_in(&self.router(), command).map_err(|e| failure("running patronus", &e))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let all: Vec<&str> = text.lines().collect();
        let hidden = all.len().saturating_sub(lines + 1);
        let (head, end) = all.split_at(if hidden > 1 { lines } else { all.len() });
        for line in head {
            anstream::println!("  | {line}");
        }
        if let Some(last) = end.last() {
            anstream::println!("  | … {hidden} more lines …\n  | {last}");
        }
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Failure::new(Exit::Error, format!("a step of the demo failed ({}): {said}", output.status)));
        }
        Ok(())
    }

    fn wait_for_active(&self, path: &str, wanted: bool) -> Result<(), Failure> {
        let pointer = format!("/rules/{}/choice/active", self.cast.rule);
        let what = if wanted { format!("the traffic to be on {path}") } else { format!("the traffic to leave {path}") };
        self.wait(&what, |status| word(status, &pointer).is_some_and(|active| (active == path) == wanted))
    }

    fn alive(&self) -> bool {
        self.daemon.borrow_mut().as_mut().is_none_or(|daemon| matches!(daemon.0.try_wait(), Ok(None)))
    }

    /// Asks the daemon until its status fits.
    fn wait(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Result<(), Failure> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE && self.alive() {
            let mut command = self.patronus("status");
            command.args(["--output", "json"]);
            let output = self.lab.run_in(&self.router(), command).map_err(|e| failure("asking the daemon", &e))?;
            if serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|status| fits(&status)) {
                return Ok(());
            }
            rest(Duration::from_millis(100))?;
        }
        let log = fs::read_to_string(self.place.log()).unwrap_or_default();
        let end: Vec<&str> = log.lines().rev().take(10).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        let waited = start.elapsed().as_secs();
        Err(Failure::new(
            Exit::Error,
            format!("waited {waited} s for {what}; the daemon's log ends:\n{}", end.join("\n")),
        ))
    }
}

/// What the traffic went through, in numbers.
fn tally(report: &Report, fault: Option<Instant>) {
    let track = &report.there;
    let (now, past) = (Instant::now(), track.started());
    let by = |from, until| shares(&track.crossings_between(from, until));
    let (outage, lost) = (track.longest_outage(), track.lost());
    anstream::println!("  sent {}, lost {lost}, longest silence {:.0} ms", track.sent(), millis(outage));
    match (fault, past) {
        (Some(moment), Some(start)) => {
            anstream::println!("  arrived before: {}; after: {}", by(start, moment), by(moment, now));
            if let Some(clean) = track.clean_after(moment).filter(|_| lost > 0) {
                anstream::println!("  clean again {:.2} s after the fault", clean.as_secs_f64());
            }
        }
        (_, Some(start)) => anstream::println!("  arrived: {}", by(start, now)),
        _ => {}
    }
}

/// How many packets came by which endpoint.
fn shares(crossed: &BTreeMap<Option<Crossing>, u64>) -> String {
    let name = |crossing: &Option<Crossing>| crossing.as_ref().map_or("?".to_owned(), |c| c.endpoint.to_string());
    let shares: Vec<String> = crossed.iter().map(|(by, n)| format!("{n} by {}", name(by))).collect();
    if shares.is_empty() { "none".to_owned() } else { shares.join(", ") }
}

/// Begun milliseconds, so that a single lost packet is not 0 ms.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).ceil()
}

fn word<'a>(status: &'a Value, pointer: &str) -> Option<&'a str> {
    status.pointer(pointer)?.as_str()
}

fn finish(flow: Flow) -> Result<Report, Failure> {
    flow.finish().map_err(|e| failure("measuring the traffic", &e))
}

fn heading(number: &str, text: &str) {
    let bold = anstyle::Style::new().bold();
    anstream::println!("\n{bold}{number}. {text}{bold:#}");
}

/// Lets time pass; an interruption ends it, and with it the demo.
fn rest(time: Duration) -> Result<(), Failure> {
    let start = Instant::now();
    while start.elapsed() < time {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(Failure::new(Exit::Error, "interrupted; everything is cleaned up"));
        }
        thread::sleep(Duration::from_millis(20).min(time));
    }
    Ok(())
}

/// Turns Ctrl-C and SIGTERM into an orderly end. Threads started later inherit the blocked signals, children do not.
fn catch_signals() {
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    if signals.thread_block().is_ok() {
        thread::spawn(move || {
            if signals.wait().is_ok() {
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        });
    }
}

/// The daemon; dropped, it is asked to end, and made to after three seconds.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(i32::MAX));
        let _ = signal::kill(pid, Signal::SIGTERM);
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(3) {
            thread::sleep(Duration::from_millis(20));
        }
        // Both fail only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory for the demo's files; dropped, it is removed.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(Lab::unique_prefix("patronus-demo-"));
        DirBuilder::new().mode(0o700).create(&path)?;
        let scratch = Self(path);
        for part in ["repository", "state", "run"] {
            DirBuilder::new().mode(0o700).create(scratch.0.join(part))?;
        }
        Ok(scratch)
    }

    fn repository(&self) -> PathBuf {
        self.0.join("repository")
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run").join("patronus.sock")
    }

    fn log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }

    /// Writes the router's own settings; JSON is YAML.
    fn settings(&self, cast: &Cast) -> io::Result<PathBuf> {
        let settings = serde_json::json!({
            "site": cast.site,
            "source": {"dir": self.repository()},
            "stateDir": self.0.join("state"),
            "runtimeDir": self.0.join("run"),
            "listen": {"metrics": "127.0.0.1:9469"},
        });
        let path = self.0.join("patronus.yaml");
        fs::write(&path, format!("{settings:#}\n"))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is under the directory for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies the YAML of a directory, or the built-in example, with a shorter failback delay; whether that differs.
fn copy(from: Option<&Path>, to: &Path) -> io::Result<bool> {
    let Some(from) = from else {
        let text = hasten(EXAMPLE);
        fs::write(to.join("berlin.yaml"), &text)?;
        return Ok(text != EXAMPLE);
    };
    let mut changed = false;
    for entry in fs::read_dir(from)? {
        let (path, target) = entry.map(|e| (e.path(), to.join(e.file_name())))?;
        if path.is_dir() && !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            fs::create_dir(&target)?;
            changed |= copy(Some(&path), &target)?;
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            let text = fs::read_to_string(&path)?;
            let hastened = hasten(&text);
            changed |= hastened != text;
            fs::write(target, hastened)?;
        }
    }
    Ok(changed)
}

/// The text with every `failbackDelay` replaced.
fn hasten(text: &str) -> String {
    let mut parts = text.split("failbackDelay:");
    let mut hastened = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let blank = part.len() - part.trim_start_matches(' ').len();
        let value = part[blank..].find([',', '}', '\n', ' ', '#']).map_or(part.len(), |end| blank + end);
        hastened.extend(["failbackDelay: ", FAILBACK, &part[value..]]);
    }
    hastened
}

#[cfg(test)]
mod tests {
    use super::hasten;

    #[test]
    fn every_failback_delay_is_replaced_and_nothing_else() {
        let text = "a: {failbackDelay: 60s, x: 1}\nb:\n  failbackDelay: 2m # slow\n  failbackThreshold: 80\n";
        let fast = "a: {failbackDelay: 5s, x: 1}\nb:\n  failbackDelay: 5s # slow\n  failbackThreshold: 80\n";
        assert_eq!(hasten(text), fast);
        assert_eq!(hasten("no delay here"), "no delay here");
    }
}
