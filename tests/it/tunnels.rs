//! Sites that are joined by tunnels: examples/hub-and-branches with real daemons on a real kernel.

use std::{net::IpAddr, process::Command, sync::Arc, thread, time::Duration};

use patronus::{
    engine::status::Status,
    health::PathState,
    lab::{Fault, FlowSpec, Lab, Node, Report},
};

use crate::support::{
    daemon::{Daemon, Repository, name},
    quiet::quiet,
};

const HQ: &str = include_str!("../../examples/hub-and-branches/hq.yaml");
const NORTH: &str = include_str!("../../examples/hub-and-branches/north.yaml");
const SOUTH: &str = include_str!("../../examples/hub-and-branches/south.yaml");
const BRANCHES: &str = include_str!("../../examples/hub-and-branches/branches.yaml");

/// The example with quicker probes and a quicker way back. South is moved to providers of its own, so that its outer
/// packets need a gateway, and sends one address of the internet through the hub.
fn repository() -> Repository {
    let quick = |text: &str| {
        let text = text.replace("probe: {targets:", "probe: {interval: 200ms, timeout: 150ms, targets:");
        let tunnels = |line: &str| match line.strip_suffix("}}").filter(|line| line.contains("type: vxlan")) {
            Some(line) => format!("{line}}}, probe: {{interval: 200ms, timeout: 150ms}}}}\n"),
            None => format!("{line}\n"),
        };
        let text: String = text.lines().map(tunnels).collect();
        text.replace("backups:", "failbackDelay: 2s, backups:")
            .replace("  failbackDelay: 2s, backups:", "  failbackDelay: 2s\n  backups:")
    };
    let south = quick(SOUTH)
        .replace("198.51.100.30", "192.0.2.30")
        .replace("198.51.100.1,", "192.0.2.1,")
        .replace("203.0.113.30", "100.66.0.30")
        .replace("203.0.113.1,", "100.66.0.1,")
        .replace("2001:db8:f100::1", "2001:db8:f300::1")
        .replace("2001:db8:f200::1", "2001:db8:f400::1")
        + "  policies:\n    by-the-hub: {priority: 150, match: {destination: [9.9.9.9/32]}, action: {failover: to-hq}}\n";
    Repository::new(&[
        ("hq.yaml", &quick(HQ)),
        ("north.yaml", &quick(NORTH)),
        ("south.yaml", &south),
        ("branches.yaml", &quick(BRANCHES)),
    ])
}

struct Fleet {
    hq: Daemon,
    north: Daemon,
    south: Daemon,
    lab: Arc<Lab>,
    _repository: Repository,
}

impl Fleet {
    fn up() -> Self {
        let repository = repository();
        let lab = repository.lab();
        let [hq, north, south] = ["hq", "north", "south"].map(|site| Daemon::start(&lab, &repository, site));
        let fleet = Self { hq, north, south, lab, _repository: repository };
        for daemon in [&fleet.hq, &fleet.north, &fleet.south] {
            daemon.wait("all paths up", all_up);
        }
        fleet
    }

    fn sh(&self, node: &Node, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-ec", line]);
        let output = self.lab.run_in(node, command).unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Packets that an interface of a router has sent.
    fn sent(&self, site: &str, interface: &str) -> u64 {
        let line = format!("ip -s -j link show dev {interface}");
        let links: serde_json::Value = serde_json::from_str(&self.sh(&router(site), &line)).unwrap();
        links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    }

    /// 200 packets, each answered, and the interface of the sending site's router that carried them.
    fn exchange(&self, from: &str, to: &Node, address: &str, by: &str) -> Report {
        let before = self.sent(from, by);
        let mut spec = FlowSpec::new(host(from), ip(address), 200);
        (spec.to, spec.echo) = (to.clone(), true);
        let report = self.lab.flow_for(&spec, Duration::from_secs(1)).unwrap();
        let carried = self.sent(from, by) - before;
        assert!(carried >= report.there.sent(), "{from} to {address}: {by} carried {carried}");
        assert_eq!((report.there.lost(), report.back.as_ref().unwrap().lost()), (0, 0), "{from} to {address} by {by}");
        report
    }
}

fn all_up(status: &Status) -> bool {
    status.paths.values().all(|p| p.health.state == PathState::Up)
}

fn router(site: &str) -> Node {
    Node::Router(name(site))
}

fn host(site: &str) -> Node {
    Node::Host(name(site), "lan0".parse().unwrap())
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn active(rule: &'static str, path: &'static str) -> impl Fn(&Status) -> bool {
    move |status| status.rules.get(rule).and_then(|r| r.choice.active.as_ref()).is_some_and(|a| a.as_str() == path)
}

/// Everything that a fleet should carry when all is well, and what comes back.
#[test]
fn sites_reach_each_other_by_their_tunnels_and_the_internet_by_themselves() {
    let _quiet = quiet();
    let fleet = Fleet::up();
    for daemon in [&fleet.hq, &fleet.north, &fleet.south] {
        daemon.wait("an empty plan", |s| s.reconcile.as_ref().is_some_and(|r| r.steps == 0));
    }
    let sources = |report: &Report| report.there.sources().into_keys().collect::<Vec<_>>();
    let inner = fleet.exchange("north", &host("hq"), "10.1.0.10", "pt1001");
    assert_eq!(sources(&inner), [ip("10.2.0.10")], "addresses are not translated");
    let inner = fleet.exchange("north", &host("hq"), "2001:db8:1::a", "pt1001");
    assert_eq!(sources(&inner), [ip("2001:db8:2::a")]);
    let back = fleet.exchange("hq", &host("south"), "10.3.0.10", "pt1003");
    assert_eq!(sources(&back), [ip("10.1.0.10")]);
    let across = fleet.exchange("north", &host("south"), "10.3.0.10", "pt1001");
    assert_eq!(sources(&across), [ip("10.2.0.10")], "one branch reaches another through the hub");
    let across = fleet.exchange("south", &host("north"), "2001:db8:2::a", "pt1003");
    assert_eq!(sources(&across), [ip("2001:db8:3::a")]);
    let own = fleet.exchange("south", &Node::Internet, "1.1.1.1", "wan0");
    assert_eq!(sources(&own), [ip("192.0.2.30")], "the internet is reached by the branch's own uplink");
    let by_hub = fleet.exchange("south", &Node::Internet, "9.9.9.9", "pt1003");
    assert_eq!(
        sources(&by_hub),
        [ip("198.51.100.10")],
        "what policy sends through the hub leaves there, and answers return"
    );
    // A large packet does not fit into the tunnel; the hub's or the branch's router says so to the host.
    let large = fleet.sh(&host("south"), "ping -c 3 -i 0.3 -M do -s 1472 9.9.9.9 2>&1 || true");
    assert!(large.contains("1450") || large.contains("too long"), "{large}");
    let hop = fleet.sh(&host("south"), "ping -c 1 -W 2 -t 2 9.9.9.9 2>&1 || true");
    assert!(hop.contains("exceeded"), "the hub's own errors return to the branch: {hop}");
}

/// Outer packets stay with their endpoint: south's main table leads to the cable, and its fibre is across a gateway.
#[test]
fn a_tunnel_stays_on_its_endpoint_and_dies_with_it() {
    let _quiet = quiet();
    let fleet = Fleet::up();
    let main = fleet.sh(&router("south"), "ip route show default");
    assert!(main.contains("dev wan1"), "{main}");
    let before = fleet.sent("south", "wan0");
    fleet.exchange("south", &host("hq"), "10.1.0.10", "pt1003");
    assert!(fleet.sent("south", "wan0") - before >= 200);
    fleet.lab.fault("south", "fiber", Fault::Carrier).unwrap();
    fleet.south.wait("the tunnel over the dead fibre down", |s| s.paths["hq-fiber"].health.state == PathState::Down);
    fleet.south.wait("the cable's tunnel", active("to-hq", "hq-cable"));
    fleet.hq.wait("the hub to follow", active("south", "south-cable"));
    let by_cable = fleet.sent("south", "wan1");
    // A ping by the dead tunnel must not leave by the living uplink.
    fleet.sh(&router("south"), "ping -c 5 -i 0.2 -W 1 -I pt1003 169.254.8.214 || true");
    let outer = fleet.sent("south", "wan1") - by_cable;
    let seen = fleet.sh(&router("south"), "ip -s -j neigh show >/dev/null; ip -d link show pt1003");
    assert!(seen.contains("192.0.2.30"), "{seen}");
    assert!(outer < 60, "only probes of the living paths leave by the cable: {outer}");
    fleet.exchange("south", &host("hq"), "10.1.0.10", "pt1004");
    fleet.lab.clear("south", "fiber").unwrap();
    fleet.south.wait("the way back", active("to-hq", "hq-fiber"));
    fleet.hq.wait("the hub's way back", active("south", "south-fiber"));
    fleet.exchange("south", &host("hq"), "10.1.0.10", "pt1003");
}

/// Established flows between sites, in both directions, while the fibre dies in each way.
#[test]
fn flows_between_sites_move_to_the_other_tunnel() {
    let _quiet = quiet();
    let fleet = Fleet::up();
    for fault in [Fault::Carrier, Fault::BlackHole] {
        let mut spec = FlowSpec::new(host("north"), ip("10.1.0.10"), 500);
        (spec.to, spec.echo) = (host("hq"), true);
        let flow = fleet.lab.flow(&spec).unwrap();
        thread::sleep(Duration::from_secs(1));
        let moment = fleet.lab.fault("north", "fiber", fault).unwrap();
        fleet.north.wait("the branch on the cable", active("to-hq", "hq-cable"));
        fleet.hq.wait("the hub on the cable", active("north", "north-cable"));
        thread::sleep(Duration::from_secs(1));
        let report = flow.finish().unwrap();
        let back = report.back.as_ref().unwrap();
        eprintln!(
            "{fault:?}: lost {} there, {} there and back of {}; clean after {:?} and {:?}",
            report.there.lost(),
            back.lost(),
            report.there.sent(),
            report.there.clean_after(moment),
            back.clean_after(moment)
        );
        let clean = [&report.there, back].map(|t| t.clean_after(moment).expect("clean in the end"));
        assert!(clean.iter().all(|c| *c < Duration::from_secs(4)), "{fault:?}: {clean:?}");
        if fault == Fault::Carrier {
            let (lost, sent) = (report.there.lost(), report.there.sent());
            assert!(lost * 20 < sent, "the branch knows at once: {lost} of {sent} lost");
        }
        let moved = fleet.lab.clear("north", "fiber").unwrap();
        fleet.north.wait("the branch's way back", active("to-hq", "hq-fiber"));
        fleet.hq.wait("the hub's way back", active("north", "north-fiber"));
        assert!(moved.elapsed() > Duration::from_secs(1));
    }
}

/// A tunnel that somebody deletes, sets down or bends is repaired; teardown takes ours and leaves the others.
#[test]
fn tunnels_are_repaired_and_taken_away() {
    let mut fleet = Fleet::up();
    let north = router("north");
    fleet.sh(&north, "ip link add vx9 type vxlan id 9 remote 203.0.113.10 dstport 4789 dev wan1");
    for harm in
        ["ip link del pt1001", "ip link set pt1001 down", "ip addr flush dev pt1001", "ip link set pt1001 mtu 1280"]
    {
        fleet.sh(&north, harm);
        let whole = || {
            let shown = fleet.sh(&north, "ip addr show dev pt1001 2>/dev/null || true");
            shown.contains("mtu 1450")
                && shown.contains(",UP")
                && shown.contains("169.254.")
                && shown.contains("fe80::2/64")
                || shown.contains("mtu 1450")
                    && shown.contains(",UP")
                    && shown.contains("169.254.")
                    && shown.contains("fe80::1/64")
        };
        let start = std::time::Instant::now();
        while !whole() {
            assert!(start.elapsed() < Duration::from_secs(10), "{harm}: {}", fleet.sh(&north, "ip addr"));
            thread::sleep(Duration::from_millis(20));
        }
        fleet.north.wait("the tunnel to work", active("to-hq", "hq-fiber"));
        // A person was here: the fourth harm in a row would pass for a fight and be left alone.
        fleet.north.says(&["reconcile"]);
    }
    fleet.hq.wait("the hub's way back", active("north", "north-fiber"));
    fleet.exchange("north", &host("hq"), "10.1.0.10", "pt1001");
    fleet.exchange("north", &host("hq"), "2001:db8:1::a", "pt1001");
    fleet.north.terminate();
    let state = fleet.north.state_dir();
    let run = state.with_file_name("run");
    let place = ["--state-dir", state.to_str().unwrap(), "--runtime-dir", run.to_str().unwrap()];
    fleet.north.says(&[&["teardown", "--yes", "--site", "north"][..], &place].concat());
    let links = fleet.sh(&north, "ip -br link");
    assert!(!links.contains("pt10") && links.contains("vx9"), "{links}");
}
