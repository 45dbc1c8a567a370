//! A lab with the daemon in its router.

use std::{
    fmt::Write as _,
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use patronus::{
    config,
    lab::{self, Crossing, FlowSpec, Lab, Node, Track},
    source,
    units::Name,
    validate::{self, intent::Site},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The built program.
pub const PATRONUS: &str = env!("CARGO_BIN_EXE_patronus");
/// The site's name.
pub const SITE: &str = "bench";
/// An address of the internet that every path probes.
pub const TARGET: &str = "1.1.1.1";

/// What a site of two uplinks looks like.
pub struct Shape<'a> {
    /// `none` or `masquerade`.
    pub nat: &'a str,
    /// Fields of the probe beside its targets.
    pub probe: &'a str,
    /// The health thresholds.
    pub health: &'a str,
    /// How many policies there are.
    pub policies: usize,
}

impl Default for Shape<'_> {
    fn default() -> Self {
        Self { nat: "masquerade", probe: "", health: "", policies: 1 }
    }
}

/// A site with uplinks `a` and `b` in rule `main`, and a third one that no policy uses but that the main table's
/// default route takes.
pub fn site(shape: &Shape<'_>) -> String {
    let Shape { nat, probe, health, policies } = shape;
    let mut text = format!(
        "apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {{name: {SITE}}}
spec:
  lan:
    - {{interface: lan0, prefixes: [192.168.10.0/24]}}
  endpoints:
    0main: {{interface: wan9, gateway: 192.0.2.1}}
    a: {{interface: wan0, gateway: 198.51.100.1}}
    b: {{interface: wan1, gateway: 203.0.113.1}}
  paths:\n"
    );
    for path in ["a", "b"] {
        let _ = writeln!(
            text,
            "    {path}: {{from: {path}, to: internet, nat: {nat}, health: {{{health}}}, \
             probe: {{targets: [{TARGET}, 9.9.9.9, 8.8.8.8]{}{probe}}}}}",
            if probe.is_empty() { "" } else { ", " }
        );
    }
    text.push_str("  failover:\n    main: {primary: a, backups: [b], failbackDelay: 1h}\n  policies:\n");
    for n in 1..*policies {
        let matching = match n % 4 {
            0 => format!(
                "destination: [10.{}.{}.0/24], protocol: tcp, destinationPorts: [{}]",
                n / 250,
                n % 250,
                1000 + n
            ),
            1 => format!("source: [192.168.10.{}/32], protocol: tcp, destinationPorts: [{}]", 20 + n % 200, 2000 + n),
            2 => format!("protocol: udp, destinationPorts: [{}-{}]", 20_000 + n * 10, 20_005 + n * 10),
            _ => format!("protocol: udp, dscp: [{}], sourcePorts: [{}]", n % 64, 3000 + n),
        };
        let _ = writeln!(text, "    p{n}: {{priority: {n}, match: {{{matching}}}, action: {{failover: main}}}}");
    }
    text.push_str("    default: {priority: 60000, action: {failover: main}}\n");
    text
}

/// A lab, its daemon and their files.
pub struct World {
    daemon: Option<Child>,
    /// The namespaces.
    pub lab: Lab,
    /// The site.
    pub site: Site,
    dir: TempDir,
}

impl World {
    /// Builds the lab of a site.
    pub fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for part in ["repository", "state", "run"] {
            std::fs::create_dir(dir.path().join(part)).expect("a directory");
        }
        std::fs::write(dir.path().join("repository/site.yaml"), text).expect("a file");
        let settings = json!({
            "site": SITE,
            "source": {"dir": dir.path().join("repository")},
            "stateDir": dir.path().join("state"),
            "runtimeDir": dir.path().join("run"),
            "listen": {"metrics": "127.0.0.1:9469"},
        });
        std::fs::write(dir.path().join("patronus.yaml"), settings.to_string()).expect("a file");
        let site = load(&dir.path().join("repository"));
        let topology = lab::topology([&site]).expect("a lab of this site");
        let lab = Lab::build(topology, &Lab::unique_prefix("patronusbench")).expect("the lab needs root");
        Self { daemon: None, lab, site, dir }
    }

    /// The router's namespace.
    pub fn router(&self) -> Node {
        Node::Router(self.site.name.clone())
    }

    /// The host in the LAN.
    pub fn host(&self) -> Node {
        Node::Host(self.site.name.clone(), "lan0".parse().expect("a name"))
    }

    /// A file or directory of this world.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A verb with this router's settings.
    pub fn patronus(&self, verb: &str) -> Command {
        let mut command = Command::new(PATRONUS);
        command.arg(verb).arg("--config").arg(self.file("patronus.yaml")).stdin(Stdio::null());
        command
    }

    /// Runs a verb in the router to its end.
    pub fn verb(&self, verb: &str, more: &[&str]) -> String {
        let mut command = self.patronus(verb);
        command.args(more);
        let output = self.lab.run_in(&self.router(), command).expect("to run it");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {} {said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts the daemon.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.file("log")).expect("a log");
        let copy = log.try_clone().expect("a log");
        let mut command = self.patronus("run");
        command.stdout(copy).stderr(log).env("NO_COLOR", "1");
        self.daemon = Some(self.lab.spawn_in(&self.router(), command).expect("the daemon"));
    }

    /// Sends the daemon a signal; one that ends it is waited for.
    pub fn signal(&mut self, signal: Signal) {
        let Some(child) = &mut self.daemon else { return };
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        signal::kill(pid, signal).expect("the daemon lives");
        if matches!(signal, Signal::SIGTERM | Signal::SIGKILL) {
            child.wait().expect("to wait");
            self.daemon = None;
        }
    }

    /// The daemon's status.
    pub fn status(&self) -> Option<Value> {
        let mut command = Command::new(PATRONUS);
        command.args(["status", "--output", "json"]).env("PATRONUS_SOCKET", self.file("run/patronus.sock"));
        let output = command.stdin(Stdio::null()).output().expect("to run it");
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until the status is as wanted.
    pub fn wait(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            match self.status().filter(|status| fits(status)) {
                Some(status) => return status,
                None if start.elapsed() > Duration::from_secs(40) => {
                    let log = std::fs::read_to_string(self.file("log")).unwrap_or_default();
                    let end: Vec<&str> = log.lines().rev().take(15).collect();
                    panic!("waited for {what}: {end:#?}\n{:?}", self.status());
                }
                None => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits until both paths are up and nothing is left to do; the path in use.
    pub fn ready(&self) -> String {
        let fits = |s: &Value| {
            let up = |p: &str| s["paths"][p]["health"]["state"] == "up";
            let settled = ["unchanged", "applied"].iter().any(|o| s["reconcile"]["outcome"] == *o);
            up("a") && up("b") && settled
        };
        let status = self.wait("both paths to be up", fits);
        status["rules"]["main"]["choice"]["active"].as_str().expect("an active path").to_owned()
    }

    /// Mends an uplink, and gives the daemon a new life without memory of what it measured.
    pub fn renew(&mut self, endpoint: &str) {
        if self.daemon.is_some() {
            self.signal(Signal::SIGTERM);
        }
        self.lab.clear(SITE, endpoint).expect("to mend it");
        self.start();
    }

    /// One flow of 1,000 packets/s from the LAN to the internet.
    pub fn flow(&self) -> FlowSpec {
        FlowSpec::new(self.host(), TARGET.parse().expect("an address"), 1000)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let _ = self.daemon.as_mut().map(Child::kill);
            let _ = self.daemon.as_mut().map(Child::wait);
        }
    }
}

/// Loads the only site of a directory.
pub fn load(dir: &std::path::Path) -> Site {
    let (config, found) = config::load(&source::read(dir).expect("a directory"));
    let (intent, more) = validate::check(&config);
    let intent = intent.unwrap_or_else(|| panic!("{found:?} {more:?}"));
    intent.sites().values().next().expect("a site").clone()
}

/// How long after `moment` the last packet was sent that came by this endpoint.
pub fn left_after(track: &Track, moment: Instant, endpoint: &str) -> Duration {
    let by: Option<Crossing> =
        Some(Crossing { site: SITE.parse().expect("a name"), endpoint: endpoint.parse::<Name>().expect("a name") });
    let end = moment + Duration::from_secs(3600);
    let (mut low, mut high) = (Duration::ZERO, Duration::from_secs(60));
    while high.checked_sub(low).unwrap() > Duration::from_micros(200) {
        let middle = (low + high) / 2;
        let some = track.crossings_between(moment + middle, end).get(&by).is_some_and(|n| *n > 0);
        (low, high) = if some { (middle, high) } else { (low, middle) };
    }
    high
}

/// A moment between nothing and this, so that probes and faults are out of step.
pub fn random_pause(most: Duration) {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    thread::sleep(most.mul_f64(f64::from(nanos % 9973) / 9973.0));
}
