//! Rules with `load-balance` and `overflow` on the real kernel: hundreds of flows over two uplinks, what each of them
//! takes, and what moves when an uplink dies, fills or comes back.
//!
//! Where packets go is read from the internet's interfaces and the router's own, not from the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use patronus::{
    engine::status::Status,
    health::PathState,
    lab::{Fault, Flow, FlowSpec, Lab, Node, Report},
};

use crate::support::daemon::{Daemon, PATIENCE, Repository, name, sh};

mod left;

/// `%nat` and more of the rule are filled in.
const SITE: &str = r#"
apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  lan:
    - {interface: lan0, prefixes: [192.168.10.0/24, "fd10::/64"]}
  endpoints:
    fiber: {interface: wan0, gateway: [198.51.100.1, "2001:db8:1::1"]}
    lte:   {interface: wwan0, gateway: [203.0.113.1, "2001:db8:2::1"]}
  paths:
    fiber: {from: fiber, to: internet, nat: %nat, probe: {targets: %targets, interval: 100ms}}
    lte:   {from: lte,   to: internet, nat: %nat, probe: {targets: %targets, interval: 100ms}}
  failover:
    all: {primary: fiber, backups: [lte], strategy: load-balance, failbackDelay: 1s, %rule}
  policies:
    default: {priority: 1000, action: {failover: all}}
"#;

/// Two of each family.
const TARGETS: &str = r#"[1.1.1.1, 9.9.9.9, "2606:4700:4700::1111", "2606:4700:4700::1001"]"#;
/// So many flows at once.
const FLOWS: u16 = 400;

struct World {
    daemon: Daemon,
    lab: Arc<Lab>,
    _repository: Repository,
}

/// A flow's endpoints.
type Ways = BTreeSet<String>;

impl World {
    fn of(nat: &str, rule: &str) -> Self {
        Self::start(SITE, nat, rule, &["fiber", "lte"])
    }

    /// The fibre line is declared to be narrow, and is full above half of that.
    fn overflowing() -> Self {
        let narrow = "fiber: {interface: wan0, bandwidth: {down: 1Mbit, up: 1Mbit},";
        let site = SITE.replace("fiber: {interface: wan0,", narrow);
        Self::start(&site.replace("load-balance", "overflow"), "masquerade", "overflowAt: 50%", &["fiber"])
    }

    fn start(site: &str, nat: &str, rule: &str, paths: &[&str]) -> Self {
        let yaml = site.replace("%nat", nat).replace("%rule", rule).replace("%targets", TARGETS);
        let repository = Repository::new(&[("berlin.yaml", &yaml)]);
        let lab = repository.lab();
        let daemon = Daemon::start(&lab, &repository, "berlin");
        let world = Self { daemon, lab, _repository: repository };
        world.wait(paths);
        world.daemon.wait("all paths to be up", |s| s.paths.values().all(|p| p.health.state == PathState::Up));
        world
    }

    /// Waits until new flows take these paths.
    fn wait(&self, paths: &[&str]) -> Status {
        let share = |s: &Status| {
            s.rules
                .get("all")
                .is_some_and(|r| r.active_members.iter().map(patronus::units::Name::as_str).eq(paths.iter().copied()))
        };
        self.daemon.wait(&format!("{paths:?} to get new flows"), share)
    }

    /// So many flows in turn, 2,000 packets a second in all.
    fn flows(&self, sockets: u16) -> Flow {
        self.flows_with(sockets, 2000, false)
    }

    /// The same with so many packets a second, answered or not.
    fn flows_with(&self, sockets: u16, pps: u32, echo: bool) -> Flow {
        let spec = FlowSpec { sockets, echo, ..FlowSpec::new(host(), [1, 1, 1, 1].into(), pps) };
        let flow = self.lab.flow(&spec).unwrap();
        more(&flow, 2 * u64::from(sockets));
        flow
    }

    fn host(&self, line: &str) -> String {
        sh(&self.lab, &host(), line)
    }

    /// One ping from each of 24 more addresses of the host to two destinations, both families; the uplinks that the
    /// router sent each source's packets by.
    fn sources(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.daemon.sh(
            "nft 'table inet foreign { set four { typeof ip saddr . meta oifname; flags dynamic; size 999; }; \
             set six { typeof ip6 saddr . meta oifname; flags dynamic; size 999; }; \
             chain c { type filter hook postrouting priority -300; oifname { wan0, wwan0 } icmp type echo-request \
             add @four { ip saddr . oifname }; oifname { wan0, wwan0 } icmpv6 type echo-request \
             add @six { ip6 saddr . oifname }; }; }'",
        );
        self.host(
            "for n in $(seq 20 43); do ip address add 192.168.10.$n/24 dev eth0; \
             ip -6 address add fd10::$n/64 dev eth0 nodad; done",
        );
        self.host(
            "for n in $(seq 20 43); do for to in 1.1.1.1 9.9.9.9; do \
             ping -n -q -c 1 -W 1 -I 192.168.10.$n $to & done; \
             for to in 2606:4700:4700::1111 2606:4700:4700::1001; do \
             ping -n -q -c 1 -W 1 -I fd10::$n $to & done; wait; done >/dev/null 2>&1",
        );
        let listing = ["four", "six"].map(|set| self.daemon.sh(&format!("nft list set inet foreign {set}"))).join(" ");
        self.daemon.sh("nft delete table inet foreign");
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let words: Vec<&str> = listing.split_whitespace().collect();
        let ours = |w: &&[&str]| w[0].starts_with("192.168.10.") || w[0].starts_with("fd10::");
        for pair in words.windows(3).filter(|w| w[1] == "." && w[2].starts_with('"')).filter(ours) {
            let by = pair[2].trim_matches(|c: char| "\",}".contains(c));
            found.entry(pair[0].to_owned()).or_default().insert(by.to_owned());
        }
        found
    }
}

fn host() -> Node {
    Node::Host(name("berlin"), "lan0".parse().unwrap())
}

/// Waits until so many more packets have arrived.
fn more(flow: &Flow, packets: u64) {
    let (start, before) = (Instant::now(), flow.arrived());
    while flow.arrived() < before + packets {
        assert!(start.elapsed() < PATIENCE, "{} of {packets} packets arrived", flow.arrived() - before);
        thread::sleep(Duration::from_millis(2));
    }
}

/// The endpoints that each flow came by in a time.
fn ways(report: &Report, flows: u16, from: Instant, until: Instant) -> Vec<Ways> {
    let endpoint = |c: Option<patronus::lab::Crossing>| c.map_or_else(|| "?".to_owned(), |c| c.endpoint.to_string());
    let all = report.there.ways(flows.into(), from, until);
    all.into_iter().map(|ways| ways.into_iter().map(endpoint).collect()).collect()
}

fn only(path: &str) -> Ways {
    [path.to_owned()].into()
}

fn share_of(ways: &[Ways], path: &str) -> f64 {
    let by = ways.iter().filter(|w| **w == only(path)).count();
    f64::from(u32::try_from(by).unwrap()) / f64::from(u32::try_from(ways.len()).unwrap())
}

#[test]
fn flows_are_shared_by_weight_and_the_death_of_a_path_moves_only_its_own() {
    let mut world = World::of("masquerade", "weights: {fiber: 3, lte: 1}");
    let generation =
        world.daemon.wait("a calm moment", |s| s.reconcile.as_ref().is_some_and(|r| r.steps == 0)).generation;
    let flow = world.flows(FLOWS);
    let (begin, broken) = (Instant::now(), world.lab.fault("berlin", "fiber", Fault::BlackHole).unwrap());
    let status = world.wait(&["lte"]);
    assert_eq!(status.rules["all"].choice.active, Some(name("lte")));
    more(&flow, 2 * u64::from(FLOWS));
    let settled = Instant::now();
    more(&flow, 2 * u64::from(FLOWS));
    let mended = world.lab.clear("berlin", "fiber").unwrap();
    world.wait(&["fiber", "lte"]);
    more(&flow, 2 * u64::from(FLOWS));
    let fresh = world.flows(FLOWS);
    let (old, new) = (flow.finish().unwrap(), fresh.finish().unwrap());
    let now = Instant::now();

    let before = ways(&old, FLOWS, old.there.started().unwrap(), broken);
    assert!(before.iter().all(|w| w.len() == 1), "each flow stays on its path");
    let share = share_of(&before, "fiber");
    println!("{} of {FLOWS} flows by the fibre, {:?} until the fault", share * f64::from(FLOWS), broken - begin);
    // Five standard deviations of 400 throws.
    assert!((0.64..=0.86).contains(&share), "{share}");

    let after = ways(&old, FLOWS, settled, now);
    assert!(after.iter().all(|w| *w == only("lte")), "all are by LTE, and none goes back");
    let whole = ways(&old, FLOWS, old.there.started().unwrap(), now);
    let moved = whole.iter().filter(|w| w.len() == 2).count();
    let fiber = before.iter().filter(|w| **w == only("fiber")).count();
    assert_eq!(moved, fiber, "the fibre's flows moved, and no other");

    let share = share_of(&ways(&new, FLOWS, mended, now), "fiber");
    assert!((0.64..=0.86).contains(&share), "new flows use both again: {share}");
    let metrics = world.daemon.metrics();
    for path in ["fiber", "lte"] {
        let series = format!("patronus_failover_active_path{{site=\"berlin\",rule=\"all\",path=\"{path}\"}}");
        assert_eq!(metrics.get(&series), Some(&1.0), "{series}");
    }
    let calm = world.daemon.wait("a calm moment", |s| s.reconcile.as_ref().is_some_and(|r| r.steps == 0));
    assert!(calm.drift.is_empty(), "{:?}", calm.drift);
    println!("generation {generation}, then {}", calm.generation);
    let kinds: Vec<&str> = world.daemon.transitions().iter().map(|t| t.kind.word()).collect();
    assert_eq!(kinds, ["initial", "failover", "failback"]);
    let shown = world.daemon.says(&["get", "rules"]);
    assert!(shown.contains("fiber + lte"), "{shown}");
    without_a_daemon(&mut world);
}

/// Nobody is there any more: new flows are shared all the same, and a lost carrier moves its own flows.
fn without_a_daemon(world: &mut World) {
    world.daemon.kill();
    let flow = world.flows(FLOWS);
    let cut = world.lab.fault("berlin", "fiber", Fault::Carrier).unwrap();
    more(&flow, 4 * u64::from(FLOWS));
    let settled = Instant::now();
    more(&flow, 2 * u64::from(FLOWS));
    let report = flow.finish().unwrap();
    let now = Instant::now();
    let before = ways(&report, FLOWS, report.there.started().unwrap(), cut);
    let share = share_of(&before, "fiber");
    assert!((0.64..=0.86).contains(&share), "{share}");
    assert!(ways(&report, FLOWS, settled, now).iter().all(|w| *w == only("lte")), "all are by LTE");
    let whole = ways(&report, FLOWS, report.there.started().unwrap(), now);
    let stayed = before.iter().zip(&whole).filter(|(before, _)| **before == only("lte"));
    assert!(stayed.into_iter().all(|(_, whole)| *whole == only("lte")), "LTE's own flows did not move");
}

#[test]
fn new_flows_go_on_when_a_line_is_full_return_when_it_has_room_and_a_death_moves_only_its_own() {
    let world = World::overflowing();
    // Some 1.7 Mbit/s fill the line; 85 kbit/s do not.
    let first = world.flows_with(40, 2000, false);
    world.wait(&["lte"]);
    let second = world.flows_with(40, 100, false);
    let (status, rule) = (world.daemon.says(&["status"]), world.daemon.says(&["get", "rules", "all"]));
    println!("{status}\n{rule}");
    assert!(status.contains("rule all overflows: fiber is full ("), "{status}");
    assert!(rule.contains("% of the bandwidth of fiber is in use, more than 50%: new flows go on"), "{rule}");
    let first = first.finish().unwrap();
    let emptied = Instant::now();
    let all = ways(&first, 40, first.there.started().unwrap(), emptied);
    assert!(all.iter().all(|w| *w == only("fiber")), "flows that are there stay: {all:?}");

    world.wait(&["fiber"]);
    let third = world.flows_with(40, 100, false);
    let broken = world.lab.fault("berlin", "fiber", Fault::BlackHole).unwrap();
    world.wait(&["lte"]);
    more(&third, 80);
    let settled = Instant::now();
    more(&third, 80);
    let (second, third) = (second.finish().unwrap(), third.finish().unwrap());
    let now = Instant::now();
    let all = ways(&second, 40, second.there.started().unwrap(), now);
    assert!(all.iter().all(|w| *w == only("lte")), "neither the return nor the death moved these: {all:?}");
    let before = ways(&third, 40, third.there.started().unwrap(), broken);
    assert!(before.iter().all(|w| *w == only("fiber")), "new flows returned: {before:?}");
    let after = ways(&third, 40, settled, now);
    assert!(after.iter().all(|w| *w == only("lte")), "the fibre's flows moved: {after:?}");
    let kinds: Vec<&str> = world.daemon.transitions().iter().map(|t| t.kind.word()).collect();
    assert_eq!(kinds, ["initial", "better", "failback", "failover"]);
    let load = "patronus_path_load_ratio{site=\"berlin\",path=\"fiber\"}";
    assert!(world.daemon.metrics().contains_key(load), "{load}");
    let calm = world.daemon.wait("a calm moment", |s| s.reconcile.as_ref().is_some_and(|r| r.steps == 0));
    assert!(calm.drift.is_empty(), "{:?}", calm.drift);
}

#[test]
fn a_source_stays_on_one_path_in_both_families_and_untranslated_flows_follow_their_path() {
    let world = World::of("none", "sticky: source");
    let sources = world.sources();
    assert_eq!(sources.len(), 48, "24 of each family");
    assert!(sources.values().all(|by| by.len() == 1), "a source is seen by one uplink: {sources:?}");
    for family in ['.', ':'] {
        let mine = sources.iter().filter(|(source, _)| source.contains(family)).map(|(_, by)| by);
        assert_eq!(mine.collect::<BTreeSet<_>>().len(), 2, "both uplinks are used: {sources:?}");
    }
    // One source: all its flows go one way, to the other while that is dead, and back, without a packet lost at the return.
    let by = |report: &Report, from, until| ways(report, 20, from, until).into_iter().collect::<BTreeSet<_>>();
    let first = world.flows(20).finish().unwrap();
    let home = by(&first, first.there.started().unwrap(), Instant::now());
    let (home, other) = if home == [only("fiber")].into() { ("fiber", "lte") } else { ("lte", "fiber") };
    // Answered flows are bound for good; one without an answer is bound anew with each packet.
    let flow = world.flows_with(20, 2000, true);
    more(&flow, 200);
    let before = Instant::now();
    world.lab.fault("berlin", home, Fault::BlackHole).unwrap();
    world.wait(&[other]);
    more(&flow, 200);
    let moved = Instant::now();
    more(&flow, 200);
    let mended = world.lab.clear("berlin", home).unwrap();
    world.wait(&["fiber", "lte"]);
    let back = Instant::now();
    more(&flow, 400);
    let end = Instant::now();
    let report = flow.finish().unwrap();
    assert_eq!(by(&report, report.there.started().unwrap(), before), [only(home)].into());
    assert_eq!(by(&report, moved, mended), [only(other)].into());
    assert_eq!(by(&report, back + Duration::from_millis(100), end), [only(home)].into());
    assert_eq!(report.there.lost_between(moved, end).0, 0, "nothing is lost at the return");
}

#[test]
fn the_checker_sees_flows_without_pins_and_sources_that_are_not_kept_together() {
    let world = World::of("masquerade", "weights: {fiber: 1, lte: 1}");
    // Without `sticky` a source is seen everywhere.
    let sources = world.sources();
    assert!(
        sources.values().any(|by| by.len() == 2),
        "the check would not see a source that is torn apart: {sources:?}"
    );
    world.daemon.signal(Signal::SIGSTOP);
    world.daemon.sh("nft flush chain inet patronus postrouting");
    let flow = world.flows(40);
    more(&flow, 400);
    let report = flow.finish().unwrap();
    let all = ways(&report, 40, report.there.started().unwrap(), Instant::now());
    assert!(all.iter().any(|w| w.len() == 2), "the check would not see a flow that changes its path");
}
