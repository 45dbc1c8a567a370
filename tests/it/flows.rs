//! What becomes of flows when a rule leaves a path that still works, badly or well: a call (UDP), a long download and a
//! session that speaks now and then (TCP), with and without address translation, under each flow action, when a rule
//! fails over and when it returns. The table in `docs/explanation/failover.md` is written by this test.
//!
//! Where packets go is counted at the providers, what an end of a flow learns is what its socket says.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use patronus::{
    clock::{self, Wall},
    engine::status::Status,
    failover::TransitionKind,
    health::PathState,
    lab::{Fault, Lab, Node},
};

use crate::support::daemon::{Daemon, PATIENCE, Repository, active, name, sh};

const ACTIONS: [&str; 4] = ["graceful", "drain", "forced", "reject"];
const SERVER: &str = "1.1.1.1";
/// A TCP flow that says nothing for so long is not called dead yet.
const PAUSE: Duration = Duration::from_millis(500);

/// Four uplinks, two of them with translation; a rule for each action over each pair; rules that do not keep a path.
fn yaml() -> String {
    let mut text = "apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {name: berlin}\nspec:\n  lan:\n    - \
        {interface: lan0, prefixes: [192.168.10.0/24]}\n  endpoints:\n"
        .to_owned();
    let uplinks = [("fiber", "wan0"), ("lte", "wwan0"), ("mpls", "wan1"), ("radio", "wan2")];
    for (endpoint, interface) in uplinks {
        text += &format!("    {endpoint}: {{interface: {interface}, gateway: auto}}\n");
    }
    text += "  paths:\n";
    for (path, _) in uplinks {
        let nat = if matches!(path, "fiber" | "lte") { "masquerade" } else { "none" };
        text += &format!(
            "    {path}: {{from: {path}, to: internet, nat: {nat}, health: {{latency: 90ms}}, probe: {{targets: \
             [1.1.1.1, 9.9.9.9], interval: 200ms}}}}\n"
        );
    }
    text += "  failover:\n";
    for rule in rules() {
        let (primary, backup) = rule.paths();
        let action = rule.action;
        text += &format!(
            "    {}: {{primary: {primary}, backups: [{backup}], failoverThreshold: 70, failbackDelay: 2s, flowAction: \
             {{failover: {action}, failback: {action}{}}}}}\n",
            rule.name(),
            if action == "drain" { ", drain: 4s" } else { "" }
        );
    }
    for no_path in NO_PATHS {
        text += &format!(
            "    no-{}: {{primary: fiber, backups: [lte], failbackDelay: 1s, noPath: {no_path}}}\n",
            no_path.to_lowercase()
        );
    }
    text += "  policies:\n";
    for (n, rule) in rules().iter().enumerate() {
        text += &policy(&rule.name(), n);
    }
    for (n, no_path) in NO_PATHS.iter().enumerate() {
        text += &policy(&format!("no-{}", no_path.to_lowercase()), n + 10);
    }
    text + "    default: {priority: 1000, action: {path: mpls}}\n"
}

const NO_PATHS: [&str; 3] = ["nextPolicy", "leastBad", "reject"];

fn policy(rule: &str, n: usize) -> String {
    let first = 5000 + 10 * n;
    format!(
        "    {rule}: {{priority: {}, match: {{destinationPorts: [{first}-{}]}}, action: {{failover: {rule}}}}}\n",
        100 + n,
        first + 9
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    action: &'static str,
    translated: bool,
}

impl Rule {
    fn name(self) -> String {
        format!("{}-{}", if self.translated { "nat" } else { "plain" }, self.action)
    }

    const fn paths(self) -> (&'static str, &'static str) {
        if self.translated { ("fiber", "lte") } else { ("mpls", "radio") }
    }
}

fn rules() -> Vec<Rule> {
    [true, false].into_iter().flat_map(|translated| ACTIONS.map(|action| Rule { action, translated })).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Call,
    Download,
    Session,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Call, Self::Download, Self::Session];

    const fn title(self) -> &'static str {
        match self {
            Self::Call => "a call (UDP)",
            Self::Download => "a download (TCP)",
            Self::Session => "an idle session (TCP)",
        }
    }

    const fn protocol(self) -> &'static str {
        if matches!(self, Self::Call) { "udp" } else { "tcp" }
    }
}

/// What is known of a flow while it runs.
#[derive(Default)]
struct Known {
    stop: AtomicBool,
    /// What the end in the LAN has got.
    got: AtomicU64,
    /// When it was told that the flow is over, or refused.
    told: OnceLock<Wall>,
}

struct Flow {
    rule: Rule,
    kind: Kind,
    port: u16,
    known: Arc<Known>,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.known.stop.store(true, Ordering::Relaxed);
    }
}

fn host() -> Node {
    Node::Host(name("berlin"), "lan0".parse().unwrap())
}

/// Makes a socket in a node.
fn within<T: Send + 'static>(lab: &Lab, node: &Node, make: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> T {
    lab.thread_in(node, make).join().unwrap().unwrap().unwrap()
}

impl Flow {
    fn start(lab: &Lab, rule: Rule, kind: Kind, port: u16) -> Self {
        let known = Arc::new(Known::default());
        let (at, end, shared) = ((SERVER, port), Arc::clone(&known), Arc::clone(&known));
        match kind {
            Kind::Call => {
                let server = within(lab, &Node::Internet, move || UdpSocket::bind(at));
                let client = within(lab, &host(), move || {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.connect(at)?;
                    Ok(socket)
                });
                thread::spawn(move || answer(&server, &end));
                thread::spawn(move || call(&client, &shared));
            }
            Kind::Download | Kind::Session => {
                let server = within(lab, &Node::Internet, move || TcpListener::bind(at));
                let client = within(lab, &host(), move || TcpStream::connect(at));
                client.set_read_timeout(Some(PAUSE)).unwrap();
                let (far, _) = server.accept().unwrap();
                far.set_read_timeout(Some(PAUSE)).unwrap();
                far.set_nodelay(true).unwrap();
                if kind == Kind::Download {
                    thread::spawn(move || pour(far, &end));
                    thread::spawn(move || read(client, &shared));
                } else {
                    thread::spawn(move || echo(far, &end));
                    thread::spawn(move || speak(client, &shared));
                }
            }
        }
        Self { rule, kind, port, known }
    }

    fn got(&self) -> u64 {
        self.known.got.load(Ordering::Relaxed)
    }
}

fn goes_on(known: &Known) -> bool {
    !known.stop.load(Ordering::Relaxed)
}

/// Notes that the flow is over; whether it is.
fn over<T>(result: &std::io::Result<T>, known: &Known) -> bool {
    let Err(error) = result else { return false };
    let over = !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted);
    if over {
        let _ = known.told.set(clock::wall());
    }
    over
}

fn call(socket: &UdpSocket, known: &Known) {
    socket.set_read_timeout(Some(Duration::from_millis(40))).unwrap();
    let mut buffer = [0; 200];
    while goes_on(known) {
        over(&socket.send(&buffer[..160]), known);
        let got = socket.recv(&mut buffer);
        over(&got, known);
        if got.is_ok() {
            known.got.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn answer(socket: &UdpSocket, known: &Known) {
    socket.set_read_timeout(Some(PAUSE)).unwrap();
    let mut buffer = [0; 200];
    while goes_on(known) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

fn pour(mut stream: TcpStream, known: &Known) {
    while goes_on(known) && stream.write_all(&[7; 1000]).is_ok() {
        thread::sleep(Duration::from_millis(15));
    }
}

fn read(mut stream: TcpStream, known: &Known) {
    let mut buffer = [0; 4096];
    while goes_on(known) {
        let got = stream.read(&mut buffer);
        if over(&got, known) {
            return;
        }
        known.got.fetch_add(got.unwrap_or(0) as u64, Ordering::Relaxed);
    }
}

fn echo(mut stream: TcpStream, known: &Known) {
    let mut buffer = [0; 1];
    while goes_on(known) {
        match stream.read(&mut buffer) {
            Ok(1) => drop(stream.write_all(&buffer)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => return,
        }
    }
}

fn speak(mut stream: TcpStream, known: &Known) {
    let mut buffer = [0; 1];
    while goes_on(known) {
        thread::sleep(PAUSE);
        if over(&stream.write_all(b"x"), known) {
            return;
        }
        let got = stream.read(&mut buffer);
        if over(&got, known) {
            return;
        }
        known.got.fetch_add(got.unwrap_or(0) as u64, Ordering::Relaxed);
    }
}

/// What became of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Moves,
    /// Told that it is over, so many milliseconds after the decision.
    Told(i64),
    Stalls,
}

impl Fate {
    fn word(self, kind: Kind) -> String {
        match (self, kind) {
            (Self::Stays, _) => "stays".into(),
            (Self::Moves, _) => "moves".into(),
            (Self::Told(ms), Kind::Call) => format!("is refused ({ms} ms)"),
            (Self::Told(ms), _) => format!("is reset ({ms} ms)"),
            (Self::Stalls, _) => "stalls".into(),
        }
    }
}

struct World {
    daemon: Daemon,
    lab: Arc<Lab>,
    _repository: Repository,
}

impl World {
    fn new() -> Self {
        let repository = Repository::new(&[("berlin.yaml", &yaml())]);
        let lab = repository.lab();
        for endpoint in ["fiber", "lte", "mpls", "radio"] {
            let counted = "nft 'table inet seen { set s { type inet_proto . inet_service; flags dynamic; size 4096; }; \
                chain c { type filter hook forward priority 0; iifname cpe0 update @s { meta l4proto . th dport counter \
                }; }; }'";
            sh(&lab, &Node::Provider(name("berlin"), name(endpoint)), counted);
        }
        let daemon = Daemon::start(&lab, &repository, "berlin");
        let world = Self { daemon, lab, _repository: repository };
        world.all_up();
        world
    }

    fn all_up(&self) {
        self.daemon.wait("all paths to be up", |s| s.paths.values().all(|p| p.health.state == PathState::Up));
    }

    /// Packets that a provider has got from the router, by protocol and port.
    fn seen(&self, endpoint: &str) -> BTreeMap<(String, u16), u64> {
        let listing = sh(&self.lab, &Node::Provider(name("berlin"), name(endpoint)), "nft list set inet seen s");
        let words: Vec<&str> = listing.split(|c: char| c.is_whitespace() || c == ',').collect();
        let element = |w: &[&str]| match w {
            [protocol @ ("udp" | "tcp"), ".", port, "counter", "packets", packets, ..] => {
                Some((((*protocol).to_owned(), port.parse().ok()?), packets.parse().ok()?))
            }
            _ => None,
        };
        words.windows(6).filter_map(element).collect()
    }

    fn flows(&self, phase: u16) -> Vec<Flow> {
        let mut flows = Vec::new();
        for (n, rule) in rules().into_iter().enumerate() {
            for (k, kind) in Kind::ALL.into_iter().enumerate() {
                let port = 5000 + 10 * u16::try_from(n).unwrap() + 3 * phase + u16::try_from(k).unwrap();
                flows.push(Flow::start(&self.lab, rule, kind, port));
            }
        }
        await_that("every flow runs", || flows.iter().all(|f| f.got() > 1));
        flows
    }

    /// What became of each flow since the rules left `old`, as far as it shows within some time.
    fn fates(&self, flows: &[Flow], back: bool) -> Vec<Fate> {
        let before: Vec<u64> = flows.iter().map(Flow::got).collect();
        let counted = ["fiber", "lte", "mpls", "radio"].map(|e| (e, self.seen(e)));
        let settled = |f: &Flow, got: u64| f.known.told.get().is_some() || f.got() > got + 1;
        let start = Instant::now();
        while start.elapsed() < 8 * PAUSE && !flows.iter().zip(&before).all(|(f, got)| settled(f, *got)) {
            thread::sleep(Duration::from_millis(20));
        }
        let grew = |endpoint: &str, f: &Flow| {
            let key = (f.kind.protocol().to_owned(), f.port);
            let (_, old) = counted.iter().find(|(e, _)| *e == endpoint).unwrap();
            self.seen(endpoint).get(&key).copied().unwrap_or(0) > old.get(&key).copied().unwrap_or(0)
        };
        let fate = |(f, got): (&Flow, &u64)| {
            let (primary, backup) = f.rule.paths();
            let (old, new) = if back { (backup, primary) } else { (primary, backup) };
            match f.known.told.get() {
                Some(at) => Fate::Told((at.as_micros() - self.decided(f.rule, back).as_micros()) / 1000),
                None if f.got() <= got + 1 => Fate::Stalls,
                None => match (grew(old, f), grew(new, f)) {
                    (true, false) => Fate::Stays,
                    (false, true) => Fate::Moves,
                    ways => panic!("{:?} {:?} on both ways or none: {ways:?}", f.rule, f.kind),
                },
            }
        };
        flows.iter().zip(&before).map(fate).collect()
    }

    fn decided(&self, rule: Rule, back: bool) -> Wall {
        let kind = if back { "failback" } else { "failover" };
        self.daemon.wait_event(kind, |e| e.subject == rule.name()).at
    }

    /// Has all rules leave their path, and says what became of the flows that were on it.
    fn leave(&self, back: bool) -> BTreeMap<(Kind, Rule), String> {
        let flows = self.flows(u16::from(back));
        for endpoint in ["fiber", "mpls"] {
            if back {
                self.lab.clear("berlin", endpoint).unwrap();
            } else {
                self.lab.fault("berlin", endpoint, Fault::Latency(Duration::from_millis(110))).unwrap();
            }
        }
        let there = |s: &Status| {
            rules().iter().all(|rule| {
                let (primary, backup) = rule.paths();
                active(s, &rule.name()) == Some(if back { primary } else { backup })
            })
        };
        let status = self.daemon.wait("all rules to leave", there);
        if !back {
            let state = |path: &str| status.paths[path].health.state;
            assert_eq!((state("fiber"), state("mpls")), (PathState::Degraded, PathState::Degraded), "not dead");
        }
        let draining: Vec<&Flow> = flows.iter().filter(|f| f.rule.action == "drain").collect();
        assert!(draining.iter().all(|f| f.known.told.get().is_none()));
        let (early, later): (Vec<Flow>, Vec<Flow>) = flows.into_iter().partition(|f| f.rule.action == "drain");
        let first = self.fates(&early, back);
        let waits = |s: &Status, rule: Rule| s.rules[rule.name().as_str()].choice.leaving.len();
        self.daemon.wait("flows to be forgotten", |s| {
            rules().iter().filter(|r| matches!(r.action, "drain" | "forced")).all(|r| waits(s, *r) == 0)
        });
        let second = self.fates(&early, back);
        let rest = self.fates(&later, back);
        let drained = early.iter().zip(first.iter().zip(&second)).map(|(f, (first, second))| {
            let told = if first == second {
                second.word(f.kind)
            } else {
                format!("{}, then {}", first.word(f.kind), second.word(f.kind))
            };
            ((f.kind, f.rule), told)
        });
        let others = later.iter().zip(&rest).map(|(f, fate)| ((f.kind, f.rule), fate.word(f.kind)));
        drained.chain(others).collect()
    }

    /// The records say what it took, and how many flows were forgotten.
    fn records(&self) {
        let status = self.daemon.status();
        for rule in rules() {
            let change = status.rules[rule.name().as_str()].change.as_ref().unwrap();
            assert_eq!(change.kind, TransitionKind::Failback);
            assert!(change.decided_in.is_some() && change.switched_in.is_some(), "{change:?}");
        }
        for rule in ["nat-forced", "nat-drain"] {
            let event = self.daemon.wait_event("flows", |e| e.subject == rule);
            assert!(event.detail["forgotten"].as_u64() >= Some(1), "{event:?}");
        }
        assert!(self.daemon.events(Some("flows")).iter().all(|e| e.subject.starts_with("nat-")));
        let event = self.daemon.wait_event("failover", |e| e.subject == "nat-forced");
        assert!(event.detail["switched_in"].is_object() && event.detail["decided_in"].is_object(), "{event:?}");
        let text = self.daemon.says(&["get", "failover", "nat-reject"]);
        println!("{text}");
        assert!(text.contains("switched in ") && text.contains("its flows     reject"), "{text}");
        assert!(text.contains("nat-reject: flows on lte are answered with errors for "), "{text}");
    }

    /// By which provider what is sent to a port from now on leaves.
    fn way(&self, port: u16) -> Vec<&'static str> {
        let socket = within(&self.lab, &host(), move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((SERVER, port))?;
            Ok(socket)
        });
        for _ in 0..20 {
            // An ICMP error is an answer too.
            let _ = socket.send(b"which way");
            thread::sleep(Duration::from_millis(5));
        }
        let key = ("udp".to_owned(), port);
        ["fiber", "lte", "mpls", "radio"].into_iter().filter(|e| self.seen(e).contains_key(&key)).collect()
    }
}

fn await_that(what: &str, fits: impl Fn() -> bool) {
    let start = Instant::now();
    while !fits() {
        assert!(start.elapsed() < PATIENCE, "waited for: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What the documentation promises.
fn promised(kind: Kind, rule: Rule) -> &'static str {
    match (rule.translated, rule.action, kind) {
        (false, ..) | (true, "forced", Kind::Call) => "moves",
        (true, "graceful", _) => "stays",
        (true, "drain", Kind::Call) => "stays, then moves",
        (true, "drain", _) => "stays, then is reset",
        (true, "reject", Kind::Call) => "is refused",
        _ => "is reset",
    }
}

/// Without what was measured.
fn bare(cell: &str) -> &str {
    cell.split(" (").next().unwrap_or_default()
}

#[test]
fn what_becomes_of_flows_is_what_the_documentation_says() {
    let world = World::new();
    let (over, back) = (world.leave(false), world.leave(true));
    world.records();
    let mut table = "| flow | action | with NAT, failover | with NAT, failback | without NAT, failover | without NAT, \
        failback |\n|---|---|---|---|---|---|\n"
        .to_owned();
    let mut wrong = Vec::new();
    for kind in Kind::ALL {
        for action in ACTIONS {
            let cells = [true, false].into_iter().flat_map(|translated| {
                let key = (kind, Rule { action, translated });
                [(key, over[&key].clone()), (key, back[&key].clone())]
            });
            let cells: Vec<_> = cells.collect();
            wrong.extend(cells.iter().filter(|((kind, rule), cell)| bare(cell) != promised(*kind, *rule)).cloned());
            let cells: Vec<String> = cells.into_iter().map(|(_, cell)| cell).collect();
            table += &format!("| {} | `{action}` | {} |\n", kind.title(), cells.join(" | "));
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    for seen in [&over, &back] {
        another_action_would_be_seen(seen);
    }
    documented(&table);
    nobody_is_left(&world);
}

/// The twin of the comparison: an action that is carried out as any other would not pass.
fn another_action_would_be_seen(seen: &BTreeMap<(Kind, Rule), String>) {
    let rule = |action| Rule { action, translated: true };
    for (set, done) in ACTIONS.iter().flat_map(|set| ACTIONS.iter().map(move |done| (*set, *done))) {
        let passes = Kind::ALL.iter().all(|kind| bare(&seen[&(*kind, rule(done))]) == promised(*kind, rule(set)));
        assert_eq!(passes, set == done, "{set} carried out as {done}: {seen:#?}");
    }
}

/// The table stands in the documentation; what was measured may differ.
fn documented(table: &str) {
    const BEGIN: &str = "<!-- flows: written by a test -->\n";
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/explanation/failover.md"));
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (shown, after) = rest.split_once("<!-- end -->").unwrap();
    if std::env::var_os("PATRONUS_REGENERATE").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{table}<!-- end -->{after}")).unwrap();
        return;
    }
    let words =
        |text: &str| text.lines().flat_map(|l| l.split('|').map(|c| bare(c.trim()).to_owned())).collect::<Vec<_>>();
    assert_eq!(words(shown), words(table), "run again with PATRONUS_REGENERATE=1 and review");
}

/// All paths of a rule are down: where its new flows go.
fn nobody_is_left(world: &World) {
    world.all_up();
    assert_eq!([5100, 5110, 5120].map(|port| world.way(port)), [["fiber"], ["fiber"], ["fiber"]]);
    world.lab.fault("berlin", "fiber", Fault::BlackHole).unwrap();
    world.daemon.wait_active("no-leastbad", "lte");
    world.lab.fault("berlin", "lte", Fault::Loss("70%".parse().unwrap())).unwrap();
    let all = ["no-nextpolicy", "no-leastbad", "no-reject"];
    let out = |s: &Status| {
        all.iter().all(|rule| s.rules[*rule].choice.exhausted) && s.reconcile.as_ref().is_some_and(|r| r.steps == 0)
    };
    let status = world.daemon.wait("no path to be left", out);
    let used = all.map(|rule| active(&status, rule));
    assert_eq!(used, [None, Some("lte"), None], "{:?}", all.map(|rule| &status.rules[rule].reason));
    assert_eq!(world.way(5101), ["mpls"], "the next policy that matches");
    assert_eq!(world.way(5111), ["lte"], "the least bad");
    assert!(world.way(5121).is_empty(), "rejected");
    let refused = world.lab.thread_in(&host(), || TcpStream::connect((SERVER, 5122))).join().unwrap().unwrap();
    let kind = refused.unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable), "{kind:?}");
    let text = world.daemon.says(&["status"]);
    println!("{text}");
    assert!(text.contains("rule no-nextpolicy has no path: its new flows go to the next policy"), "{text}");
    assert!(text.contains("rule no-reject has no path: its traffic is rejected"), "{text}");
    world.lab.clear("berlin", "fiber").unwrap();
    for rule in all {
        world.daemon.wait_active(rule, "fiber");
    }
    world.daemon.wait("the pass after it", |s| s.reconcile.as_ref().is_some_and(|r| r.steps == 0));
    assert_eq!([5102, 5112, 5122].map(|port| world.way(port)), [["fiber"], ["fiber"], ["fiber"]]);
}
