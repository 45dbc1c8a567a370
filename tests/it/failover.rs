//! The main job, end to end: the real daemon on a lab router, each path cut in each way.
//!
//! Where packets go is read from the internet's interfaces, not from the daemon. Bounds are generous: this machine may
//! be busy; exact figures belong to the benchmarks.

use std::{
    net::IpAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use patronus::{
    engine::status::{Event, Status},
    failover::TransitionKind,
    health::PathState,
    lab::{Fault, Flow, FlowSpec, Lab, Node, Report, Track},
    units::Family,
};

use crate::support::{
    daemon::{Daemon, PATIENCE, PATRONUS, Repository, active, name, sh},
    quiet,
};

const ONE_SITE: &str = include_str!("../../examples/one-site/berlin.yaml");
const PROBED: &str = "[1.1.1.1, 9.9.9.9, 8.8.8.8]";
/// The example's failback delay in these tests.
const DELAY: Duration = Duration::from_secs(1);

/// Replaces something that has to be there.
fn with(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from} is not in\n{text}");
    text.replace(from, to)
}

/// The example with a short way back.
fn example() -> String {
    with(ONE_SITE, "failbackDelay: 60s", "failbackDelay: 1s")
}

/// The example probed every 100 ms, with a timeout of 80 ms.
fn fast() -> String {
    let slow = with(&example(), ", interval: 5s", "");
    with(&slow, PROBED, &format!("{PROBED}, interval: 100ms"))
}

/// The example probed so that an answer after 300 ms still counts.
fn patient() -> String {
    with(&fast(), "interval: 100ms", "interval: 400ms, timeout: 400ms")
}

/// The same without address translation.
fn routed() -> String {
    with(&fast(), "nat: masquerade", "nat: none")
}

/// The same with IPv6 beside IPv4; the probes see to IPv6.
fn dual() -> String {
    let text = with(&fast(), "prefixes: [192.168.10.0/24]", "prefixes: [192.168.10.0/24, \"fd10::/64\"]");
    let text = with(&text, "gateway: 198.51.100.1", "gateway: [198.51.100.1, \"2001:db8:1::1\"]");
    with(&text, PROBED, &format!("[1.1.1.1, \"{SIX}\"]"))
}

const FOUR: &str = "1.1.1.1";
const SIX: &str = "2606:4700:4700::1111";

/// Three uplinks and one rule over them; `%` stands for more of the rule.
const THREE: &str = r"
apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  lan:
    - {interface: lan0, prefixes: [192.168.10.0/24]}
  endpoints:
    fiber: {interface: wan0, gateway: 198.51.100.1}
    cable: {interface: wan1, gateway: 203.0.113.1}
    lte:   {interface: wwan0, gateway: auto}
  paths:
    fiber: {from: fiber, to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9], interval: 100ms}}
    cable: {from: cable, to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9], interval: 100ms}}
    lte:   {from: lte,   to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9], interval: 100ms}}
  failover:
    critical: {primary: fiber, backups: [cable, lte], failbackDelay: 1s%}
  policies:
    default: {priority: 1000, action: {failover: critical}}
";

/// A lab and the daemon on its only router.
struct World {
    daemon: Daemon,
    lab: Arc<Lab>,
    _repository: Repository,
}

impl World {
    /// Both are up and all paths are measured.
    fn of(yaml: &str) -> Self {
        let repository = Repository::new(&[("berlin.yaml", yaml)]);
        let lab = repository.lab();
        let daemon = Daemon::start(&lab, &repository, "berlin");
        let world = Self { daemon, lab, _repository: repository };
        world.all_up();
        world
    }

    fn all_up(&self) {
        self.daemon.wait("all paths to be up", |s| s.paths.values().all(|p| p.health.state == PathState::Up));
    }

    fn fault(&self, endpoint: &str, fault: Fault) -> Instant {
        self.lab.fault("berlin", endpoint, fault).unwrap()
    }

    fn clear(&self, endpoint: &str) -> Instant {
        self.lab.clear("berlin", endpoint).unwrap()
    }

    /// 1,000 packets a second from the LAN host.
    fn flow(&self, to: &str) -> Flow {
        let flow = self.lab.flow(&FlowSpec::new(host(), to.parse().unwrap(), 1000)).unwrap();
        more(&flow, 100);
        flow
    }

    fn sh(&self, node: &Node, line: &str) -> String {
        sh(&self.lab, node, line)
    }

    /// The router's addresses on an uplink.
    fn addresses(&self, endpoint: &str) -> Vec<IpAddr> {
        let uplink = self.lab.topology().uplink("berlin", endpoint).unwrap();
        uplink.legs.iter().map(|leg| leg.router.addr()).collect()
    }
}

fn host() -> Node {
    Node::Host(name("berlin"), "lan0".parse().unwrap())
}

fn router() -> Node {
    Node::Router(name("berlin"))
}

/// Waits until so many more packets have arrived.
fn more(flow: &Flow, packets: u64) {
    let (start, before) = (Instant::now(), flow.arrived());
    while flow.arrived() < before + packets {
        assert!(start.elapsed() < PATIENCE, "{} of {packets} packets arrived", flow.arrived() - before);
        thread::sleep(Duration::from_millis(2));
    }
}

/// The endpoints that packets sent in a time came by, in order of name.
fn by(track: &Track, from: Instant, until: Instant) -> Vec<String> {
    let crossed = track.crossings_between(from, until);
    crossed.into_keys().map(|by| by.map_or_else(|| "?".to_owned(), |by| by.endpoint.to_string())).collect()
}

/// The same for all packets.
fn all_by(report: &Report) -> Vec<String> {
    by(&report.there, report.there.started().unwrap(), Instant::now())
}

/// What a metric says of a path, if anything.
fn path_metric(world: &World, metric: &str, path: &str) -> Option<f64> {
    world.daemon.metrics().get(&format!("patronus_path_{metric}{{site=\"berlin\",path=\"{path}\"}}")).copied()
}

fn active_path(world: &World, path: &str) -> Option<f64> {
    let series = format!("patronus_failover_active_path{{site=\"berlin\",rule=\"critical\",path=\"{path}\"}}");
    world.daemon.metrics().get(&series).copied()
}

fn transitions_counted(world: &World, kind: &str) -> f64 {
    let series = format!("patronus_failover_events_total{{site=\"berlin\",rule=\"critical\",type=\"{kind}\"}}");
    world.daemon.metrics().get(&series).copied().unwrap_or(0.0)
}

fn state(status: &Status, path: &str) -> PathState {
    status.paths[path].health.state
}

/// A way to break an uplink, what a person is told of it, and whether anything is answered still.
struct Cut {
    fault: Fault,
    told: &'static [&'static str],
    answered: bool,
    /// Packets of a translated flow that may be lost until it is clean again, at 1,000 a second.
    lost: u64,
}

fn cuts(interface: &'static str) -> Vec<Cut> {
    let of = |wan0, wwan0| if interface == "wan0" { wan0 } else { wwan0 };
    let cut = |fault, told, answered, lost| Cut { fault, told, answered, lost };
    vec![
        cut(Fault::Carrier, of(&["no carrier on wan0"], &["no carrier on wwan0"]), false, TELLING),
        cut(Fault::InterfaceDown, of(&["wan0 is set down"], &["wwan0 is set down"]), false, TELLING),
        // An interface is set down before it is removed, and the daemon does not wait for more.
        cut(Fault::Removed, of(&["interface wan0 "], &["interface wwan0 "]), false, TELLING),
        cut(Fault::BlackHole, &["3 rounds lost in a row"], false, 4_000),
        cut(Fault::Loss("40%".parse().unwrap()), &["loss", "above 2%"], true, 6_000),
        // Answers come after the timeout of 80 ms.
        cut(Fault::Latency(Duration::from_millis(300)), &["3 rounds lost in a row"], false, 4_000),
    ]
}

// Every path, every way.

#[test]
fn the_primary_is_left_in_each_way_and_returned_to() {
    let mut world = World::of(&fast());
    let cuts = cuts("wan0");
    for cut in &cuts {
        leave_and_return(&world, cut);
    }
    world.daemon.terminate();
    let rows: Vec<_> = world.daemon.transitions().into_iter().map(|t| (t.kind, t.to.unwrap().to_string())).collect();
    let mut expected = vec![(TransitionKind::Initial, "fiber".to_owned())];
    for _ in &cuts {
        expected.push((TransitionKind::Failover, "lte".to_owned()));
        expected.push((TransitionKind::Failback, "fiber".to_owned()));
    }
    assert_eq!(rows, expected);
    let samples = world.daemon.samples("fiber");
    for state in [PathState::Up, PathState::Down] {
        assert!(samples.iter().any(|s| s.state == state), "a {state} sample among {samples:#?}");
    }
    let silent = |s: &&patronus::store::HealthSample| s.loss.ppm() == 1_000_000;
    assert!(samples.iter().filter(silent).all(|s| s.rtt_micros.is_none() && s.score == 0), "{samples:#?}");
}

#[test]
fn a_primary_that_becomes_slow_is_left_for_its_latency() {
    let world = World::of(&patient());
    let fault = Fault::Latency(Duration::from_millis(300));
    leave_and_return(&world, &Cut { fault, told: &["latency 30", "above 150ms"], answered: true, lost: 4_000 });
}

fn leave_and_return(world: &World, cut: &Cut) {
    let what = format!("{:?}", cut.fault);
    let before = (transitions_counted(world, "failover"), transitions_counted(world, "failback"));
    let old = world.flow(FOUR);
    let broken = world.fault("fiber", cut.fault);
    let left = world.daemon.wait_active("critical", "lte");
    more(&old, 300);
    assert_eq!(state(&left, "fiber"), PathState::Down, "{what}");
    let reason = &left.rules["critical"].reason;
    assert!(cut.told.iter().all(|part| reason.contains(part)), "{what}: {reason}");
    let event = world.daemon.wait_event("failover", |e| e.message.contains(reason));
    assert!(event.message.starts_with("critical: fiber -> lte: "), "{what}: {}", event.message);
    metrics_of_a_dead_path(world, cut, &what);
    assert!((transitions_counted(world, "failover") - before.0 - 1.0).abs() < 0.1, "{what}");
    let text = world.daemon.says(&["status"]);
    assert!(text.starts_with("ATTENTION") && text.contains("is on its backup lte"), "{what}: {text}");
    assert!(cut.told.iter().all(|part| text.contains(part)), "{what}: {text}");

    world.clear("fiber");
    world.daemon.wait_active("critical", "fiber");
    let back = world.daemon.wait_event("failback", |e| e.id > event.id);
    // With random loss a path may seem well again before it is mended.
    let well = world.daemon.wait_event("path", |e| e.message.starts_with("fiber is up") && e.id < back.id);
    let after = Duration::from_micros(u64::try_from(back.at.as_micros() - well.at.as_micros()).unwrap());
    assert!(after + Duration::from_millis(10) >= DELAY, "{what}: back after {after:?}");
    assert!(back.message.contains("fiber scored") && back.message.contains("for 1 s"), "{what}: {}", back.message);
    assert!((transitions_counted(world, "failback") - before.1 - 1.0).abs() < 0.1, "{what}");
    assert_eq!((active_path(world, "fiber"), active_path(world, "lte")), (Some(1.0), Some(0.0)), "{what}");
    more(&old, 100);
    let new = world.flow(FOUR).finish().unwrap();
    let old = old.finish().unwrap();
    assert_eq!(all_by(&new), ["fiber"], "{what}: a new flow takes the primary again");
    let returned = Instant::now().checked_sub(Duration::from_millis(50)).unwrap();
    check_old_flow(world, &old, broken, returned, cut, &what);
    world.all_up();
}

/// A translated flow: by the primary before, by the backup after, and it stays there when the primary is back.
fn check_old_flow(world: &World, old: &Report, broken: Instant, returned: Instant, cut: &Cut, what: &str) {
    let track = &old.there;
    assert_eq!(by(track, track.started().unwrap(), broken), ["fiber"], "{what}");
    // Forgetting happens again after a second; nothing may move back to the dead path.
    let calm = broken + Duration::from_millis(cut.lost);
    if calm < returned {
        assert_eq!(by(track, calm, Instant::now()), ["lte"], "{what}");
    }
    let wans: Vec<IpAddr> = ["fiber", "lte"].into_iter().flat_map(|e| world.addresses(e)).collect();
    assert!(track.sources().keys().all(|a| wans.contains(a)), "{what}: {:?}", track.sources());
    println!("{what}: {} of {} lost, clean after {:?}", track.lost(), track.sent(), track.clean_after(broken));
    assert!(track.lost() <= cut.lost, "{what}: {} lost", track.lost());
}

fn metrics_of_a_dead_path(world: &World, cut: &Cut, what: &str) {
    let of = |metric| path_metric(world, metric, "fiber");
    assert_eq!((active_path(world, "fiber"), active_path(world, "lte")), (Some(0.0), Some(1.0)), "{what}");
    assert_eq!((of("up"), path_metric(world, "up", "lte")), (Some(0.0), Some(1.0)), "{what}");
    assert!(of("health_score").unwrap() < 50.0, "{what}");
    if cut.answered {
        assert!(of("rtt_seconds").is_some() && of("loss_ratio").is_some(), "{what}");
    } else {
        // The window forgets the answers from before; then there is no round-trip time, never 0.
        world.daemon.wait("no answer in the window", |s| s.paths["fiber"].health.latency.is_none());
        world.daemon.wait("a fresh publication", |s| s.paths["fiber"].health.latency.is_none());
        assert_eq!((of("rtt_seconds"), of("jitter_seconds")), (None, None), "{what}");
        assert_ne!(of("loss_ratio"), Some(0.0), "{what}");
    }
    if cut.answered && matches!(cut.fault, Fault::Latency(_)) {
        assert!(of("rtt_seconds").unwrap() > 0.01, "{what}: {:?}", of("rtt_seconds"));
    }
}

#[test]
fn a_backup_that_breaks_in_each_way_is_told_and_moves_nothing() {
    let mut world = World::of(&fast());
    for cut in cuts("wwan0") {
        let what = format!("{:?}", cut.fault);
        let flow = world.flow(FOUR);
        world.fault("lte", cut.fault);
        let down = world.daemon.wait("lte to be down", |s| state(s, "lte") == PathState::Down);
        let reason = &down.paths["lte"].health.reason;
        assert!(cut.told.iter().all(|part| reason.contains(part)), "{what}: {reason}");
        let told = |e: &Event| e.message.starts_with("lte is down") && cut.told.iter().all(|t| e.message.contains(t));
        world.daemon.wait_event("path", told);
        if cut.fault == Fault::Removed {
            let gone = |s: &Status| s.paths["lte"].health.reason == "interface wwan0 does not exist";
            world.daemon.wait("the interface to be missed", gone);
        }
        assert_eq!((path_metric(&world, "up", "lte"), active_path(&world, "fiber")), (Some(0.0), Some(1.0)), "{what}");
        let text = world.daemon.says(&["status"]);
        assert!(text.contains("path lte down"), "{what}: {text}");
        more(&flow, 200);
        world.clear("lte");
        world.all_up();
        let report = flow.finish().unwrap();
        assert_eq!(all_by(&report), ["fiber"], "{what}");
        assert_eq!(report.there.lost(), 0, "{what}");
    }
    world.daemon.terminate();
    let kinds: Vec<_> = world.daemon.transitions().into_iter().map(|t| t.kind).collect();
    assert_eq!(kinds, [TransitionKind::Initial]);
}

#[test]
fn the_example_as_it_is_leaves_a_silent_path_within_its_promise() {
    let _quiet = quiet();
    let world = World::of(&example());
    let flow = world.flow(FOUR);
    let broken = world.fault("fiber", Fault::BlackHole);
    world.daemon.wait_active("critical", "lte");
    more(&flow, 300);
    let report = flow.finish().unwrap();
    let clean = report.there.clean_after(broken).unwrap();
    println!("default probing, black hole: clean after {clean:?}");
    assert!(clean < Duration::from_secs(5), "{clean:?}");
    assert_eq!(all_by(&report), ["fiber", "lte"]);
}

// The kernel by itself.

/// What becomes of the daemon before the failure.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Runs,
    Stopped,
    Killed,
}

/// The kernel tells of a lost carrier at once, but not twice within a second (`linkwatch`), and later on a busy
/// machine; what was sent meanwhile is lost.
const TELLING: u64 = 1_200;

/// Checks that so many packets were lost at most as a rule, and in the worst case what the kernel's delay explains.
fn check_lost(found: &[(Fate, Fault, u64)], usual: u64) {
    let mut lost: Vec<u64> = found.iter().map(|(_, _, lost)| *lost).collect();
    lost.sort_unstable();
    assert!(lost[(lost.len() - 1) / 2] <= usual && lost[lost.len() - 1] <= TELLING, "{found:?}");
}

/// Lost packets of one flow over carrier loss and over an interface set down, for each fate of the daemon.
fn lost_without_help(yaml: &str) -> Vec<(Fate, Fault, u64)> {
    let mut world = World::of(yaml);
    let mut found = Vec::new();
    for fate in [Fate::Runs, Fate::Stopped, Fate::Killed] {
        for fault in [Fault::Carrier, Fault::InterfaceDown] {
            world.daemon.wait_active("critical", "fiber");
            world.all_up();
            match fate {
                Fate::Runs => {}
                Fate::Stopped => world.daemon.signal(Signal::SIGSTOP),
                Fate::Killed => world.daemon.kill(),
            }
            let flow = world.flow(FOUR);
            let broken = world.fault("fiber", fault);
            more(&flow, 300);
            let report = flow.finish().unwrap();
            assert_eq!(by(&report.there, report.there.started().unwrap(), broken), ["fiber"], "{fate:?} {fault:?}");
            assert_eq!(all_by(&report), ["fiber", "lte"], "{fate:?} {fault:?}");
            found.push((fate, fault, report.there.lost()));
            match fate {
                Fate::Runs => {}
                Fate::Stopped => world.daemon.signal(Signal::SIGCONT),
                Fate::Killed => drop(world.daemon.settle()),
            }
            // Whatever it missed, it finds.
            world.daemon.wait_active("critical", "lte");
            world.clear("fiber");
        }
    }
    found
}

#[test]
fn without_translation_the_kernel_alone_loses_only_what_is_under_way() {
    let _quiet = quiet();
    let found = lost_without_help(&routed());
    println!("routed: {found:?}");
    check_lost(&found, 0);
}

#[test]
fn with_translation_the_kernel_alone_loses_the_packet_that_finds_the_new_way() {
    let _quiet = quiet();
    let found = lost_without_help(&fast());
    println!("masquerade: {found:?}");
    check_lost(&found, 1);
}

#[test]
fn a_router_that_never_had_a_daemon_fails_over_too() {
    let _quiet = quiet();
    let repository = Repository::new(&[("berlin.yaml", &routed())]);
    let lab = repository.lab();
    let place = Repository::new(&[]);
    let mut command = std::process::Command::new(PATRONUS);
    command.args(["apply", "--yes", "--site", "berlin"]).arg(repository.path());
    command.arg("--state-dir").arg(place.path()).env("PATRONUS_SOCKET", place.path().join("none"));
    let output = lab.run_in(&router(), command).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let flow = lab.flow(&FlowSpec::new(host(), FOUR.parse().unwrap(), 1000)).unwrap();
    more(&flow, 100);
    lab.fault("berlin", "fiber", Fault::Carrier).unwrap();
    more(&flow, 300);
    let report = flow.finish().unwrap();
    assert_eq!(all_by(&report), ["fiber", "lte"]);
    assert!(report.there.lost() <= TELLING, "{} lost", report.there.lost());
}

// All paths down.

#[test]
fn with_every_path_down_the_lan_stays_and_the_rule_keeps_or_rejects() {
    for (no_path, keeps) in [("keep", true), ("reject", false)] {
        let world = World::of(&with(THREE, "%", &format!(", noPath: {no_path}")));
        for endpoint in ["cable", "lte", "fiber"] {
            world.fault(endpoint, Fault::BlackHole);
        }
        // Nothing answers anywhere: that may be this router's own fault, and there is nothing better to move to.
        let blind = |s: &Status| s.alarms.iter().any(|a| a.contains("no target answers on any path"));
        let held = world.daemon.wait("the observer to be suspect", blind);
        assert!(held.paths.values().any(|p| p.health.state == PathState::Up), "{held:#?}");
        for endpoint in ["cable", "lte", "fiber"] {
            world.fault(endpoint, Fault::Carrier);
        }
        let down = |s: &Status| s.paths.values().all(|p| p.health.state == PathState::Down);
        let exhausted = |s: &Status| down(s) && s.rules["critical"].choice.exhausted;
        let status = world.daemon.wait("all to be down", exhausted);
        assert_eq!(active(&status, "critical").is_some(), keeps, "{no_path}");
        let event = world.daemon.wait_event("exhausted", |_| true);
        assert!(event.message.contains("no path is up: "), "{}", event.message);
        world.sh(&host(), "ping -n -c 1 -W 2 192.168.10.1");
        world.sh(&router(), "ping -n -c 1 -W 2 192.168.10.10");
        if !keeps {
            // The host is told at once instead of waiting for a timeout.
            let said = world.sh(&host(), "ping -n -c 1 -W 2 1.1.1.1 || true");
            assert!(said.contains("nreachable"), "{said}");
        }
        for endpoint in ["cable", "lte", "fiber"] {
            world.fault(endpoint, Fault::InterfaceDown);
        }
        world.sh(&host(), "ping -n -c 1 -W 2 192.168.10.1");
        world.clear("lte");
        world
            .daemon
            .wait("lte to be used", |s| state(s, "lte") == PathState::Up && active(s, "critical") == Some("lte"));
        world.sh(&host(), "ping -n -c 1 -W 2 1.1.1.1");
        world.clear("fiber");
        world.daemon.wait_active("critical", "fiber");
        world.sh(&host(), "ping -n -c 1 -W 2 1.1.1.1");
    }
}

/// The only default route of the main table goes with its uplink; answers by the others still count as genuine.
#[test]
fn the_uplink_of_the_main_default_route_can_be_lost_as_any_other() {
    let yaml = with(THREE, "    lte:   {interface: wwan0, gateway: auto}\n", "");
    let yaml = yaml.lines().filter(|l| !l.contains("from: lte")).collect::<Vec<_>>().join("\n");
    let world = World::of(&with(&with(&yaml, "[cable, lte]", "[cable]"), "%", ""));
    for endpoint in ["fiber", "cable"] {
        let other = if endpoint == "fiber" { "cable" } else { "fiber" };
        world.fault(endpoint, Fault::Carrier);
        world.daemon.wait_active("critical", other);
        let flow = FlowSpec { echo: true, ..FlowSpec::new(host(), FOUR.parse().unwrap(), 100) };
        let flow = world.lab.flow(&flow).unwrap();
        more(&flow, 50);
        let report = flow.finish().unwrap();
        assert_eq!(all_by(&report), [other], "without {endpoint}");
        assert!(report.back.is_some_and(|back| back.lost() < 20), "no answers without {endpoint}");
        assert_eq!(state(&world.daemon.status(), other), PathState::Up, "without {endpoint}");
        world.clear(endpoint);
        world.all_up();
        world.daemon.wait_active("critical", "fiber");
    }
}

// Which backup.

#[test]
fn ordered_takes_the_first_that_is_good_enough_and_best_score_the_best() {
    for (strategy, chosen) in [("ordered", "cable"), ("best-score", "lte")] {
        // Slower than its threshold, cable scores 67.
        let text = with(THREE, "%", &format!(", strategy: {strategy}"));
        let slow = "cable: {from: cable, to: internet, nat: masquerade, health: {latency: 90ms}";
        let text = with(&text, "cable: {from: cable, to: internet, nat: masquerade", slow);
        let world = World::of(&with(&text, "interval: 100ms", "interval: 200ms"));
        world.fault("cable", Fault::Latency(Duration::from_millis(100)));
        let degraded = |s: &Status| state(s, "cable") == PathState::Degraded;
        world.daemon.wait("cable to be degraded", degraded);
        world.fault("fiber", Fault::Carrier);
        world
            .daemon
            .wait(strategy, |s| s.rules["critical"].choice.active.as_ref().is_some_and(|a| a.as_str() != "fiber"));
        world.daemon.wait_active("critical", chosen);
        assert_eq!(all_by(&world.flow(FOUR).finish().unwrap()), [chosen]);
    }
}

#[test]
fn a_rule_with_an_sla_leaves_a_path_that_is_good_enough_for_others() {
    let class =
        "---\napiVersion: patronus.network/v1alpha1\nkind: SlaClass\nmetadata: {name: voice}\nspec: {latency: 20ms}\n";
    let text = with(
        &with(THREE, "%", ", slaClass: voice"),
        "  policies:",
        "    plain: {primary: fiber, backups: [lte]}\n  policies:\n    tcp: {priority: 900, match: {protocol: tcp}, action: {failover: plain}}",
    );
    let world = World::of(&(text + class));
    world.fault("fiber", Fault::Latency(Duration::from_millis(50)));
    let status = world.daemon.wait("the demanding rule to leave", |s| {
        s.rules["critical"].choice.active.as_ref().is_some_and(|a| a.as_str() != "fiber")
    });
    assert_eq!(state(&status, "fiber"), PathState::Up);
    assert_eq!(active(&status, "plain"), Some("fiber"));
    let reason = &status.rules["critical"].reason;
    assert!(reason.contains("fiber: latency ") && reason.contains("above 20ms"), "{reason}");
}

// Established flows.

#[test]
fn a_merely_degraded_path_keeps_its_flows_and_gets_no_new_ones() {
    let text = with(&fast(), "interval: 100ms", "interval: 200ms");
    let text = with(&text, "nat: masquerade, probe", "nat: masquerade, health: {latency: 90ms}, probe");
    let world = World::of(&with(&text, "failbackDelay", "failoverThreshold: 70, failbackDelay"));
    let old = world.flow(FOUR);
    world.fault("fiber", Fault::Latency(Duration::from_millis(110)));
    let left = world.daemon.wait_active("critical", "lte");
    assert_eq!(state(&left, "fiber"), PathState::Degraded);
    let new = world.flow(FOUR);
    more(&old, 1500);
    assert_eq!(all_by(&new.finish().unwrap()), ["lte"]);
    // Now it dies, and what it kept moves.
    let broken = world.fault("fiber", Fault::Carrier);
    more(&old, 300);
    let report = old.finish().unwrap();
    assert_eq!(by(&report.there, report.there.started().unwrap(), broken), ["fiber"]);
    let late = by(&report.there, broken + Duration::from_millis(TELLING), Instant::now());
    assert!(!late.contains(&"fiber".to_owned()), "{late:?}");
    assert_eq!(all_by(&report), ["fiber", "lte"]);
}

#[test]
fn only_flows_of_the_dead_path_are_forgotten() {
    let world = World::of(&fast());
    // One within the site, and one that its sender bound to the other path.
    let others = [("192.168.10.10", ""), ("9.9.9.9", "-I wwan0")];
    for (address, how) in others {
        world.sh(&router(), &format!("ping -n -c 1 -W 2 -e 777 {how} {address}"));
    }
    world.sh(&host(), "ping -n -c 1 -W 2 -e 778 1.1.1.1");
    let tracked = || world.sh(&router(), "cat /proc/net/nf_conntrack 2>/dev/null || conntrack -L 2>/dev/null");
    assert_eq!(tracked().lines().filter(|l| l.contains("id=777 ")).count(), 2, "{}", tracked());
    assert_eq!(tracked().lines().filter(|l| l.contains("id=778 ")).count(), 1, "{}", tracked());
    world.fault("fiber", Fault::BlackHole);
    world.daemon.wait_active("critical", "lte");
    let start = Instant::now();
    while tracked().contains("id=778 ") {
        // Untouched, it would live for 30 s.
        assert!(start.elapsed() < Duration::from_secs(10), "{}", tracked());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(tracked().lines().filter(|l| l.contains("id=777 ")).count(), 2, "{}", tracked());
}

// Restarts.

#[test]
fn a_restart_adopts_what_it_finds_and_loses_nothing() {
    let _quiet = quiet();
    let mut world = World::of(&fast());
    world.fault("fiber", Fault::BlackHole);
    world.daemon.wait_active("critical", "lte");
    let calm = |s: &Status| s.reconcile.as_ref().is_some_and(|r| r.steps == 0);
    let why = world.daemon.wait("a calm moment", calm).rules["critical"].change.clone().unwrap();
    let ruleset = world.daemon.sh(
        "nft -s list table inet patronus; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all",
    );
    let flow = world.flow(FOUR);
    for killed in [false, true] {
        if killed {
            world.daemon.kill();
        } else {
            world.daemon.terminate();
        }
        more(&flow, 100);
        let status = world.daemon.settle();
        let reconcile = status.reconcile.unwrap();
        assert_eq!((reconcile.steps, reconcile.message), (0, None));
        let told = status.rules["critical"].change.as_ref();
        assert_eq!(told.map(|t| (t.at, &t.reason)), Some((why.at, &why.reason)), "why the rule is where it is");
        more(&flow, 300);
        let status = world.daemon.wait("fiber to be found dead", |s| state(s, "fiber") == PathState::Down);
        assert_eq!(active(&status, "critical"), Some("lte"), "still on the backup");
    }
    let report = flow.finish().unwrap();
    assert_eq!((all_by(&report), report.there.lost()), (vec!["lte".to_owned()], 0));
    let now = world.daemon.sh(
        "nft -s list table inet patronus; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all",
    );
    assert_eq!(now, ruleset);
    let moved = world.daemon.transitions().into_iter().filter(|t| t.kind != TransitionKind::Initial).count();
    assert_eq!(moved, 1, "{:?}", world.daemon.transitions());
}

// IPv6.

#[test]
fn ipv6_fails_over_and_back_as_ipv4_does() {
    let world = World::of(&dual());
    for fault in [Fault::Carrier, Fault::InterfaceDown, Fault::BlackHole] {
        let (four, six) = (world.flow(FOUR), world.flow(SIX));
        let broken = world.fault("fiber", fault);
        world.daemon.wait_active("critical", "lte");
        more(&four, 300);
        more(&six, 300);
        for (family, flow) in [(4, four), (6, six)] {
            let report = flow.finish().unwrap();
            assert_eq!(by(&report.there, report.there.started().unwrap(), broken), ["fiber"], "{fault:?} IPv{family}");
            assert_eq!(all_by(&report), ["fiber", "lte"], "{fault:?} IPv{family}");
            let lost = report.there.lost();
            println!("{fault:?} IPv{family}: {lost} lost");
            assert!(lost <= if fault == Fault::BlackHole { 3_000 } else { TELLING }, "{fault:?} IPv{family}: {lost}");
            let wans = [world.addresses("fiber"), world.addresses("lte")].concat();
            assert!(report.there.sources().keys().all(|a| wans.contains(a)), "{:?}", report.there.sources());
        }
        world.clear("fiber");
        world.daemon.wait_active("critical", "fiber");
        world.all_up();
        // Its addresses may be there a moment later than the link.
        wait_parted(&world, false);
        for address in [FOUR, SIX] {
            assert_eq!(all_by(&world.flow(address).finish().unwrap()), ["fiber"], "{fault:?} {address}");
        }
    }
}

/// IPv6, and nothing else, is lost at an uplink's provider.
fn without_six(world: &World, uplink: &str, is: bool) -> Instant {
    let provider = Node::Provider(name("berlin"), name(uplink));
    let (at, table) = (Instant::now(), "table inet six");
    let drop = "{ chain c { type filter hook forward priority 0; meta nfproto ipv6 drop; }; }";
    let line = if is { format!("nft '{table} {drop}'") } else { format!("nft delete {table}") };
    world.sh(&provider, &line);
    at
}

/// Until IPv6 goes by another path than the rule, or no longer.
fn wait_parted(world: &World, is: bool) -> Status {
    let what = if is { "IPv6 to leave the fibre" } else { "IPv6 to be back" };
    world.daemon.wait(what, |s| s.rules["critical"].parted.is_empty() != is)
}

#[test]
fn a_dead_ipv6_leaves_alone_and_comes_back_and_ipv4_loses_nothing() {
    let world = World::of(&dual());
    wait_parted(&world, false);
    let (four, six) = (world.flow(FOUR), world.flow(SIX));
    let broken = without_six(&world, "fiber", true);
    let left = wait_parted(&world, true);
    let parted = &left.rules["critical"].parted[0];
    assert_eq!((parted.from.as_str(), parted.to.as_str()), ("fiber", "lte"));
    assert_eq!((active(&left, "critical"), state(&left, "fiber")), (Some("fiber"), PathState::Up));
    more(&six, 300);
    more(&four, 300);
    let (four, six) = (four.finish().unwrap(), six.finish().unwrap());
    assert_eq!((all_by(&four), four.there.lost()), (vec!["fiber".to_owned()], 0), "IPv4 never noticed");
    assert_eq!(by(&six.there, six.there.started().unwrap(), broken), ["fiber"]);
    assert_eq!(all_by(&six), ["fiber", "lte"]);
    println!("IPv6 lost {} of 1,000 a second", six.there.lost());
    assert!(six.there.lost() <= 3_000, "{}", six.there.lost());
    // It is told wherever somebody looks.
    let series = "patronus_failover_family_path{site=\"berlin\",rule=\"critical\",family=\"ipv6\",path=\"lte\"}";
    assert_eq!(world.daemon.metrics().get(series), Some(&1.0));
    let series = "patronus_path_family_state{site=\"berlin\",path=\"fiber\",family=\"ipv6\",state=\"down\"}";
    assert_eq!(world.daemon.metrics().get(series), Some(&1.0));
    let flow = format!("udp fd10::5 to [{SIX}]:9");
    println!("{}", world.daemon.says(&["status"]));
    let explained = world.daemon.tells(&["explain", &flow]).1;
    println!("{explained}");
    assert!(explained.contains("fiber: IPv6 alone left it (3 rounds lost in a row)"), "{explained}");
    let then = patronus::clock::wall().to_string();
    without_six(&world, "fiber", false);
    wait_parted(&world, false);
    for address in [FOUR, SIX] {
        assert_eq!(all_by(&world.flow(address).finish().unwrap()), ["fiber"], "{address}");
    }
    world.daemon.wait_event("family-back", |_| true);
    // Afterwards it is told of then, and that the other family stayed.
    let (_, six_then) = world.daemon.tells(&["explain", &flow, "--at", &then]);
    println!("{six_then}");
    assert!(six_then.contains("fiber: IPv6 alone left it (3 rounds lost in a row)"), "{six_then}");
    assert!(six_then.contains("lte, out by wwan0"), "{six_then}");
    assert!(six_then.contains("fiber: IPv4 up, IPv6 down (3 rounds lost in a row)"), "{six_then}");
    let (_, four_then) = world.daemon.tells(&["explain", &format!("udp 192.168.10.5 to {FOUR}:9"), "--at", &then]);
    assert!(four_then.contains("fiber, out by wan0"), "{four_then}");
    let (_, now) = world.daemon.tells(&["explain", &flow, "--at", "0s"]);
    assert!(now.contains("fiber, out by wan0") && now.contains("fiber: IPv4 up, IPv6 up"), "{now}");
    let told = |kind| world.daemon.events(Some(kind)).into_iter().map(|e| e.message).collect::<Vec<_>>();
    let (left, back) = (told("family-left"), told("family-back"));
    assert_eq!((left.len(), back.len()), (1, 1), "{left:?} {back:?}");
    assert!(left[0].contains("IPv6: fiber -> lte: IPv6 of fiber: 3 rounds lost in a row"), "{left:?}");
    assert!(back[0].contains("IPv6: lte -> fiber: IPv6 of fiber scored"), "{back:?}");
    // One uplink's IPv6 dies after the other's: the line is dead, not the target that both ask.
    for uplink in ["lte", "fiber"] {
        without_six(&world, uplink, true);
        let six = |s: &Status| s.paths[uplink].health.of(Some(Family::V6)).state;
        let status = world.daemon.wait("IPv6 of an uplink to be down", |s| six(s) == PathState::Down);
        assert_eq!(state(&status, uplink), PathState::Up);
        assert!(!status.alarms.iter().any(|a| a.contains(SIX)), "{:?}", status.alarms);
    }
}

// Inbound.

#[test]
fn what_comes_in_by_the_backup_is_answered_by_the_backup() {
    let world = World::of(&dual());
    for endpoint in ["lte", "fiber"] {
        for address in world.addresses(endpoint) {
            let spec = FlowSpec { to: router(), echo: true, ..FlowSpec::new(Node::Internet, address, 200) };
            // The other provider would forward the answers too, so they are counted where they come out.
            let provider = Node::Provider(name("berlin"), name(if endpoint == "lte" { "fiber" } else { "lte" }));
            let strays = "nft 'table inet stray { counter answers { }; chain c { type filter hook forward priority 0; \
                iifname cpe0 meta l4proto udp counter name answers; }; }'";
            world.sh(&provider, &format!("nft delete table inet stray 2>/dev/null || true; {strays}"));
            let flow = world.lab.flow(&spec).unwrap();
            more(&flow, 50);
            let report = flow.finish().unwrap();
            let back = report.back.unwrap();
            assert_eq!((report.there.lost(), back.lost()), (0, 0), "{address}");
            assert_eq!(packets(&world.sh(&provider, "nft list counter inet stray answers")), 0, "{address}");
        }
    }
}

// Leaks: guests may use the fibre and nothing else.

/// Packets of guests that came to the internet by LTE while the fibre was gone; `meddle` comes before they are sent.
fn leaked(meddle: impl FnOnce(&World)) -> u64 {
    let world = World::of(&fast());
    world.sh(&host(), "ip address add 192.168.10.130/24 dev eth0");
    let lte = world.lab.topology().uplink("berlin", "lte").unwrap().index;
    world.sh(
        &Node::Internet,
        &format!(
            "nft 'table inet leak {{ counter leaked {{ }}; chain c {{ type filter hook prerouting priority 0; \
             iifname u{lte} icmp type echo-request icmp id 4242 counter name leaked; }}; }}'"
        ),
    );
    let ping = "ping -n -q -c 20 -i 0.05 -W 1 -e 4242 -I 192.168.10.130";
    world.sh(&host(), &format!("{ping} 1.1.1.1"));
    world.fault("fiber", Fault::Removed);
    world.daemon.wait_active("critical", "lte");
    let calm = |s: &Status| s.reconcile.as_ref().is_some_and(|r| r.steps == 0) && s.drift.is_empty();
    world.daemon.wait("the pass after the switch", calm);
    meddle(&world);
    world.sh(&host(), &format!("{ping} 1.1.1.1 || true; {ping} 9.9.9.9 || true"));
    packets(&world.sh(&Node::Internet, "nft list counter inet leak leaked"))
}

fn packets(listing: &str) -> u64 {
    let mut words = listing.split_whitespace().skip_while(|w| *w != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_policy_for_one_path_never_leaks_to_another() {
    assert_eq!(leaked(|_| {}), 0);
}

#[test]
fn without_the_last_route_of_a_table_it_leaks() {
    let sabotage = |world: &World| {
        world.daemon.signal(Signal::SIGSTOP);
        let table = table(world, "path/fiber");
        world.sh(&router(), &format!("ip route delete unreachable default table {table} metric 4294967295"));
    };
    assert!(leaked(sabotage) > 0, "the check would not see a leak");
}

/// The table of a target, by its label.
fn table(world: &World, label: &str) -> u32 {
    let listing = world.sh(&router(), "nft list set inet patronus targets");
    let (before, _) = listing.split_once(&format!(" comment \"{label}\"")).unwrap_or_else(|| panic!("{listing}"));
    let mark = before.rsplit("0x").next().unwrap();
    20_000 + (u32::from_str_radix(mark.trim(), 16).unwrap() >> 24)
}

/// The ways of a translated flow when the rule's route moves while its path lives; `meddle` comes before the flow.
fn ways_of_a_pinned_flow(meddle: impl FnOnce(&World)) -> Vec<String> {
    let world = World::of(&fast());
    // From here on the test takes the decisions.
    world.daemon.signal(Signal::SIGSTOP);
    meddle(&world);
    let flow = world.flow(FOUR);
    let gateway = world.lab.topology().uplink("berlin", "lte").unwrap().legs[0].gateway;
    let table = table(&world, "failover/critical");
    let moved = format!("ip route replace default via {gateway} dev wwan0 proto 157 metric 10 onlink table {table}");
    world.sh(&router(), &moved);
    more(&flow, 200);
    all_by(&flow.finish().unwrap())
}

#[test]
fn a_switch_of_the_rule_alone_moves_no_translated_flow() {
    assert_eq!(ways_of_a_pinned_flow(|_| {}), ["fiber"]);
}

#[test]
fn without_the_pins_a_switch_breaks_translated_flows() {
    let sabotage = |world: &World| drop(world.sh(&router(), "nft flush chain inet patronus postrouting"));
    assert_eq!(ways_of_a_pinned_flow(sabotage), ["fiber", "lte"], "the check would not see a flow that moves");
}

// By hand.

#[test]
fn orders_by_hand_are_obeyed_seen_kept_across_a_restart_and_ended() {
    let yaml = with(&fast(), "failbackDelay: 1s", "failbackDelay: 1s, flowAction: {failover: reject}");
    let mut world = World::of(&yaml);
    let pin = ["failover", "critical", "--to", "lte", "--for", "10m", "--reason", "work on the mast"];
    let yaml = world.daemon.says(&[&pin[..], &["--as-yaml"]].concat());
    assert!(yaml.contains("primary: lte\nbackups: [fiber]\n"), "{yaml}");
    assert_eq!(active(&world.daemon.status(), "critical"), Some("fiber"), "printing it does nothing");

    let told = world.daemon.says(&pin);
    assert!(told.starts_with("critical is pinned to lte for 10m by "), "{told}");
    world.daemon.wait_active("critical", "lte");
    let why = |w: &World| w.daemon.tells(&["explain", "udp 192.168.10.5:4711 to 203.0.113.9:5060"]).1;
    let pinned = |text: &str| text.contains("why        by hand: critical is pinned to lte for ");
    let text = why(&world);
    let ends = " more: work on the mast (`patronus failback critical` ends it)";
    assert!(pinned(&text) && text.contains(ends), "{text}");
    let refused = |w: &World| w.daemon.sh("nft list table inet patronus").contains("chain refuse {");
    world.daemon.wait("bound flows to be refused", |_| refused(&world));
    world.daemon.says(&["drain", "fiber"]);
    let drained = |s: &Status| s.paths["fiber"].drained_since;
    let since = drained(&world.daemon.wait("the drain to be shown", |s| drained(s).is_some()));
    world.daemon.terminate();
    let text = why(&world);
    assert!(pinned(&text) && text.contains(" more: work on the mast"), "without a daemon: {text}");
    world.daemon.settle();
    world.all_up();
    let status = world.daemon.wait("the orders to be there again", |s| drained(s).is_some());
    assert_eq!(drained(&status), since, "as it was given");
    let text = why(&world);
    assert!(text.contains("by hand: fiber is drained since 20") && text.contains("(`patronus undrain fiber` ends it)"));
    world.daemon.says(&["undrain", "fiber"]);
    let status = world.daemon.wait("the order to be shown", |s| s.rules["critical"].pinned.is_some());
    assert_eq!(active(&status, "critical"), Some("lte"), "it holds, and nothing moved");
    let text = world.daemon.says(&["status"]);
    assert!(text.contains("rule critical is pinned to lte for") && text.contains("(work on the mast)"), "{text}");
    let pinned = |(name, left): (&String, &f64)| name.starts_with("patronus_failover_pinned") && *left > 300.0;
    assert!(world.daemon.metrics().iter().any(pinned), "{:?}", world.daemon.metrics());

    assert!(world.daemon.says(&["failback", "critical"]).contains("critical returns now"));
    world.daemon.wait_active("critical", "fiber");
    world.daemon.says(&["drain", "fiber"]);
    world.daemon.wait_active("critical", "lte");
    let (exit, text) = world.daemon.tells(&["drain", "lte"]);
    assert_eq!((exit, text.contains("`--force` drains it all the same")), (Some(1), true), "{text}");
    let (exit, text) = world.daemon.tells(&["drain", "dsl"]);
    assert_eq!((exit, text.contains("there is no path dsl; there are: fiber, lte")), (Some(1), true), "{text}");
    world.daemon.says(&["undrain", "fiber"]);
    world.daemon.wait_active("critical", "fiber");
    let manual = world.daemon.transitions().into_iter().filter(|t| t.kind == TransitionKind::Manual).count();
    assert_eq!(manual, 2, "a pin and a drain: {:?}", world.daemon.transitions());

    let text = world.daemon.says(&["probe", "lte", "--count", "2"]);
    assert!(text.starts_with("lte by icmp over wwan0: every 100ms, lost after 80ms\n   1  "), "{text}");
    assert!(text.contains("lte: 6 of 6 probes answered") && text.contains("  9.9.9.9  2 of 2: min "), "{text}");
    world.fault("lte", Fault::BlackHole);
    let (exit, text) = world.daemon.tells(&["probe", "lte", "--count", "1", "--output", "json"]);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((exit, &found["format_version"], &found["targets"][0]["answered"]), (Some(1), &1.into(), &0.into()));
    let (exit, text) = world.daemon.tells(&["probe", "dsl"]);
    assert_eq!((exit, text.contains("there is no path dsl; there are: fiber, lte")), (Some(1), true), "{text}");
}
