//! Which method finds which fault, on the real kernel: one site whose uplinks are probed by all methods, and each fault
//! on all of them at once. `docs/reference/detection.md` is written from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use patronus::{
    engine::status::{Event, Status},
    health::PathState,
    lab::{Fault, Flow, FlowSpec, Lab, Node},
};

use crate::support::{
    daemon::{Daemon, Repository, name, sh},
    quiet,
    servers::{self, Identity, Servers},
};

/// How long a fault may take to be found: 5 % of loss takes some dozens of rounds.
const PATIENCE: Duration = Duration::from_secs(180);
const TARGETS: [&str; 3] = ["1.1.1.1", "8.8.8.8", "9.9.9.9"];
/// From round to round, and until an answer no longer counts.
const INTERVAL: u64 = 400;

/// The methods and how they are written.
const METHODS: [(&str, &str); 8] = [
    ("icmp", "method: icmp"),
    ("udp", "method: udp"),
    ("stamp", "method: stamp"),
    ("tcp", "method: tcp, port: 8080"),
    ("http", "method: http, expect: {body: success}"),
    ("https", "method: https, name: www.example.org, expect: {body: success}"),
    ("dns", "method: dns, name: www.example.org"),
    ("gateway", "method: gateway"),
];

/// What becomes of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is down or degraded.
    Found,
    /// It stays up.
    Quiet,
    /// It stays up, and an alarm says that its own traffic slows it down.
    Congested,
}

/// A way to fail, and who is expected to notice.
struct Case {
    title: &'static str,
    fault: What,
    finds: fn(&str) -> Verdict,
    /// From round to round, in milliseconds.
    interval: u64,
    /// The threshold of loss.
    loss: &'static str,
}

enum What {
    Link(Fault),
    /// Everything to one target is dropped.
    Target,
    NameServers,
    Portal,
    OwnTraffic,
}

fn cases() -> Vec<Case> {
    let ms = Duration::from_millis;
    // What happens beyond the provider is nothing that a gateway could tell of.
    let beyond = |method: &str| if method == "gateway" { Verdict::Quiet } else { Verdict::Found };
    let nobody = |_: &str| Verdict::Quiet;
    let case = |title, fault, finds| Case { title, fault, finds, interval: INTERVAL, loss: "1%" };
    vec![
        case("black hole beyond the provider", What::Link(Fault::BlackHole), beyond),
        Case { interval: 150, ..case("loss of 5 %", What::Link(Fault::Loss("5%".parse().unwrap())), beyond) },
        case("loss of 20 %", What::Link(Fault::Loss("20%".parse().unwrap())), beyond),
        case("loss of 40 %", What::Link(Fault::Loss("40%".parse().unwrap())), beyond),
        case("loss in bursts: 9 packets of 45", What::Link(Fault::Bursts { length: 9, of: 45 }), beyond),
        case("100 ms of delay", What::Link(Fault::Latency(ms(100))), beyond),
        case("jitter: 40 ms +- 40 ms", What::Link(Fault::Jitter { latency: ms(40), spread: ms(40) }), beyond),
        case("one target of three is dead", What::Target, nobody),
        case("name servers fail", What::NameServers, |m| if m == "dns" { Verdict::Found } else { Verdict::Quiet }),
        case("captive portal", What::Portal, |m| if m.starts_with("http") { Verdict::Found } else { Verdict::Quiet }),
        // A line that is filled loses some packets too; this case is about its latency.
        Case {
            loss: "20%",
            ..case("own traffic fills the line", What::OwnTraffic, |m| {
                if m == "gateway" { Verdict::Quiet } else { Verdict::Congested }
            })
        },
    ]
}

/// The site. Between two cases the probing differs by a hair, so that each begins without a memory.
fn site(interval: u64, loss: &str, round: usize) -> String {
    let mut text = "apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {name: berlin}\nspec:\n  \
                    lan: [{interface: lan0, prefixes: [192.168.10.0/24]}]\n  endpoints:\n"
        .to_owned();
    for (n, (method, _)) in METHODS.iter().enumerate() {
        let bandwidth = "bandwidth: {up: 2Mbit, down: 100Mbit}";
        writeln!(text, "    {method}: {{interface: wan{n}, gateway: 203.0.{n}.1, {bandwidth}}}").unwrap();
    }
    text += "  paths:\n";
    for (method, how) in METHODS {
        let timeout = interval - u64::try_from(round % 2).unwrap();
        let targets = if method == "gateway" { String::new() } else { format!(", targets: [{}]", TARGETS.join(", ")) };
        let timing = format!("interval: {interval}ms, timeout: {timeout}ms, window: 100");
        writeln!(
            text,
            "    {method}: {{from: {method}, to: internet, nat: masquerade, \
             health: {{latency: 60ms, jitter: 15ms, loss: {loss}}}, probe: {{{how}{targets}, {timing}}}}}"
        )
        .unwrap();
    }
    text += "  policies:\n";
    for (n, (method, _)) in METHODS.iter().enumerate() {
        let ports = format!("{{protocol: udp, destinationPorts: [{}]}}", port(n));
        writeln!(text, "    {method}: {{priority: {}, match: {ports}, action: {{path: {method}}}}}", n + 1).unwrap();
    }
    text
}

fn port(n: usize) -> u16 {
    7001 + u16::try_from(n).unwrap()
}

struct World {
    daemon: Daemon,
    lab: Arc<Lab>,
    repository: Repository,
    servers: Vec<Servers>,
    _place: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let repository = Repository::new(&[("berlin.yaml", &site(INTERVAL, "1%", 0))]);
        let lab = repository.lab();
        let place = tempfile::tempdir().unwrap();
        let identities = ["genuine", "portal"].map(|name| Identity::new(place.path(), name));
        let start = move || -> Vec<Servers> {
            let [genuine, portal] = &identities;
            TARGETS.iter().map(|t| servers::start(t.parse().unwrap(), [genuine, portal])).collect()
        };
        let servers = lab.thread_in(&Node::Internet, start).join().unwrap().unwrap();
        let trusted = ("SSL_CERT_FILE", place.path().join("genuine.pem"));
        let daemon = Daemon::start_in(&lab, &repository, "berlin", trusted);
        Self { daemon, lab, repository, servers, _place: place }
    }

    /// Begins a case: nothing is wrong, and nothing is remembered.
    fn begin(&self, case: &Case, round: usize) {
        self.repository.write("berlin.yaml", &site(case.interval, case.loss, round));
        let wanted = case.interval - u64::try_from(round % 2).unwrap();
        let fresh = |s: &Status| s.paths.values().all(|p| p.health.state == PathState::Up && p.health.rounds >= 6);
        // A history that is kept would be longer than this.
        self.daemon.wait_for("a new beginning", PATIENCE, |s| s.paths.values().all(|p| p.health.rounds < 6));
        self.daemon.wait_for(&format!("{}: all to be well at {wanted} ms", case.title), PATIENCE, fresh);
    }

    /// Breaks everything; when each path was broken, and what has to be kept meanwhile.
    fn break_all(&self, what: &What) -> (BTreeMap<&'static str, Instant>, Vec<Flow>) {
        let now = Instant::now();
        let at_once = || METHODS.iter().map(|(method, _)| (*method, now)).collect();
        let each = |fault| METHODS.iter().map(|(m, _)| (*m, self.lab.fault("berlin", m, fault).unwrap())).collect();
        match what {
            What::Link(fault) => (each(*fault), vec![]),
            What::Target => {
                let rule = format!("iifname != lo ip daddr {} drop", TARGETS[1]);
                let chain = format!("chain c {{ type filter hook prerouting priority -300\n{rule}\n}}\n");
                sh(&self.lab, &Node::Internet, &format!("nft 'table inet dead {{ {chain} }}'"));
                (at_once(), vec![])
            }
            What::NameServers => {
                self.servers.iter().for_each(|s| s.ills.dns.store(true, Ordering::Relaxed));
                (at_once(), vec![])
            }
            What::Portal => {
                self.servers.iter().for_each(|s| s.ills.portal.store(true, Ordering::Relaxed));
                (at_once(), vec![])
            }
            What::OwnTraffic => {
                let broken = each(Fault::Rate("2Mbit".parse().unwrap()));
                (broken, (0..METHODS.len()).map(|n| self.flow(n)).collect())
            }
        }
    }

    /// A little more than the 2 Mbit/s of an uplink.
    fn flow(&self, n: usize) -> Flow {
        let host = Node::Host(name("berlin"), "lan0".parse().unwrap());
        let spec = FlowSpec { port: port(n), size: 1000, ..FlowSpec::new(host, TARGETS[0].parse().unwrap(), 245) };
        self.lab.flow(&spec).unwrap()
    }

    /// Files that the daemon has open.
    fn sockets(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.daemon.pid())).unwrap().count()
    }

    /// What a person is told of one path.
    fn quality(&self) {
        self.daemon.wait("STAMP to be measured", |s| s.paths["stamp"].spread.is_some());
        let told = self.daemon.says(&["get", "paths", "stamp"]);
        println!("{told}");
        for part in ["round trips   min ", "p99 ", "a call        MOS ", "probes        by stamp: ", " came twice, "] {
            assert!(told.contains(part), "{part} is not in\n{told}");
        }
        assert!(!told.contains("one way"), "the router's settings say nothing of its clock:\n{told}");
    }

    fn mend(&self, what: &What) {
        match what {
            What::Target => drop(sh(&self.lab, &Node::Internet, "nft delete table inet dead")),
            What::NameServers => self.servers.iter().for_each(|s| s.ills.dns.store(false, Ordering::Relaxed)),
            What::Portal => self.servers.iter().for_each(|s| s.ills.portal.store(false, Ordering::Relaxed)),
            What::Link(_) | What::OwnTraffic => {
                for (method, _) in METHODS {
                    self.lab.clear("berlin", method).unwrap();
                }
            }
        }
    }

    /// How long after a moment a path was called bad, by its own record: a status comes once a second only.
    fn left_after(&self, method: &str, broken: Instant) -> Duration {
        let begun = (SystemTime::now() - broken.elapsed()).duration_since(UNIX_EPOCH).unwrap();
        let at = |e: &Event| Duration::from_micros(u64::try_from(e.at.as_micros()).unwrap());
        let bad =
            |e: &Event| ["is down", "is degraded"].iter().any(|s| e.message.starts_with(&format!("{method} {s}")));
        let fits = |e: &Event| e.subject == method && bad(e) && at(e) >= begun;
        self.daemon.wait_event("path", fits);
        let all = self.daemon.events(Some("path"));
        all.iter().filter(|e| fits(e)).map(|e| at(e).checked_sub(begun).unwrap()).min().unwrap()
    }

    /// Waits until each method has its verdict, after some more rounds of each path; how long each took to find the
    /// fault.
    fn watch(&self, case: &Case, broken: &BTreeMap<&'static str, Instant>) -> BTreeMap<&'static str, Duration> {
        let probes = |s: &Status, m: &str| s.paths[m].probes_answered + s.paths[m].probes_lost;
        let before = self.daemon.status();
        let (start, mut found, mut seen) = (Instant::now(), BTreeMap::new(), BTreeSet::new());
        loop {
            let status = self.daemon.status();
            // A little loss comes and goes: each has to see it, not all of them at the same moment.
            seen.extend(METHODS.map(|(m, _)| m).into_iter().filter(|m| verdict(&status, m) == (case.finds)(m)));
            for (method, _) in METHODS {
                if verdict(&status, method) == Verdict::Congested {
                    found.entry(method).or_insert_with(|| broken[method].elapsed());
                }
            }
            // At least ten rounds of three targets, or of one gateway.
            let enough = |m: &str| probes(&status, m) >= probes(&before, m) + if m == "gateway" { 10 } else { 30 };
            let right = |m: &str| match (case.finds)(m) {
                Verdict::Quiet => verdict(&status, m) == Verdict::Quiet,
                Verdict::Found | Verdict::Congested => seen.contains(m),
            };
            if METHODS.iter().all(|(m, _)| enough(m) && right(m)) {
                found.retain(|m, _| (case.finds)(m) == Verdict::Congested);
                let finders = METHODS.iter().map(|(m, _)| *m).filter(|m| (case.finds)(m) == Verdict::Found);
                found.extend(finders.map(|m| (m, self.left_after(m, broken[m]))));
                return found;
            }
            let wrong: Vec<String> = METHODS
                .iter()
                .filter(|(m, _)| !right(m))
                .map(|(m, _)| format!("{m}: {}, {}", status.paths[*m].health.state, status.paths[*m].health.reason))
                .collect();
            assert!(start.elapsed() < PATIENCE, "{}: {wrong:#?} {:?}", case.title, status.alarms);
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn verdict(status: &Status, method: &str) -> Verdict {
    let path = &status.paths[method];
    let congested = format!("path {method} is congested");
    match path.health.state {
        PathState::Down | PathState::Degraded => Verdict::Found,
        _ if status.alarms.iter().any(|a| a.starts_with(&congested)) => Verdict::Congested,
        _ => Verdict::Quiet,
    }
}

/// One row of the table: what each method says, and after how long.
fn row(case: &Case, found: &BTreeMap<&'static str, Duration>) -> String {
    let cell = |(method, _): &(&'static str, &str)| match ((case.finds)(method), found.get(method)) {
        (Verdict::Found, Some(after)) => format!("found, {:.1} s", after.as_secs_f64()),
        (Verdict::Congested, Some(after)) => format!("congested, {:.1} s", after.as_secs_f64()),
        _ => "quiet".to_owned(),
    };
    let cells: Vec<String> = METHODS.iter().map(cell).collect();
    format!("| {} | {} |", case.title, cells.join(" | "))
}

/// The same without times.
fn words(text: &str) -> Vec<String> {
    let word = |cell: &str| cell.split(',').next().unwrap_or_default().trim().to_owned();
    let cells = |line: &str| line.split('|').map(word).collect::<Vec<_>>().join("|");
    text.lines().filter(|l| l.starts_with('|')).map(cells).collect()
}

#[test]
fn each_method_finds_the_faults_that_it_can_and_is_quiet_on_the_others() {
    let _alone = quiet();
    let world = World::new();
    let names: BTreeSet<&str> = METHODS.iter().map(|(m, _)| *m).collect();
    assert_eq!(names.len(), METHODS.len());
    let mut rows = Vec::new();
    let mut open = 0;
    for (round, case) in cases().iter().enumerate() {
        world.begin(case, round + 1);
        if round == 0 {
            open = world.sockets();
        }
        let (broken, flows) = world.break_all(&case.fault);
        let found = world.watch(case, &broken);
        drop(flows);
        world.mend(&case.fault);
        println!("{}", row(case, &found));
        rows.push(row(case, &found));
    }
    world.quality();
    // Dialogues come and go: some of 15 at a time, whatever the number of rounds.
    assert!(world.sockets() <= open + 30, "{} sockets, {open} at first", world.sockets());
    let head: Vec<&str> = METHODS.iter().map(|(m, _)| *m).collect();
    let table = format!("| fault | {} |\n|---|{}\n{}\n", head.join(" | "), "---|".repeat(head.len()), rows.join("\n"));
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/detection.md"));
    if std::env::var_os("PATRONUS_REGENERATE").is_some() {
        fs::write(&path, page(&table)).unwrap();
    }
    let shown = fs::read_to_string(&path).unwrap_or_default();
    let last = |text: &str| words(text).split_off(words(text).len().saturating_sub(rows.len()));
    assert_eq!(last(&shown), last(&table), "run again with PATRONUS_REGENERATE=1 and review");
}

fn page(table: &str) -> String {
    include_str!("detection/page.md").replace("{{table}}\n", table)
}
