//! What packets meet on the router, on the real kernel: marks, NAT, DSCP, refusals, counters.
//!
//! Tables of the test's own beside ours see the packets before and after our chains; what they count is the evidence.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use patronus::{
    engine::status::Status,
    health::PathState,
    lab::{Fault, Flow, FlowSpec, Lab, Node, Report},
};

use crate::support::{
    daemon::{Daemon, PATIENCE, Repository, active, name},
    quiet,
};

/// Two uplinks; `%policies` and the NAT and MTU of the fibre are filled in.
const SITE: &str = r"
apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  lan:
    - {interface: lan0, prefixes: [192.168.10.0/24]}
  endpoints:
    fiber: {interface: wan0, gateway: 198.51.100.1}
    lte:   {interface: wwan0, gateway: 203.0.113.1}
  paths:
    fiber: {from: fiber, to: internet, %fiber, probe: {targets: [1.1.1.1, 9.9.9.9], interval: 200ms}}
    lte:   {from: lte,   to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9], interval: 200ms}}
  failover:
    critical: {primary: fiber, backups: [lte], failbackDelay: 60s}
    bulk:     {primary: lte, backups: [fiber], failbackDelay: 60s}
  policies:
%policies
    default: {priority: 1000, action: {failover: critical}}
";

fn site(fiber: &str, policies: &[&str]) -> String {
    let lines: Vec<String> = policies.iter().map(|p| format!("    {p}")).collect();
    SITE.replace("%fiber", fiber).replace("%policies", &lines.join("\n"))
}

fn masquerading(policies: &[&str]) -> String {
    site("nat: masquerade", policies)
}

struct World {
    daemon: Daemon,
    lab: Arc<Lab>,
    repository: Repository,
}

impl World {
    fn of(yaml: &str) -> Self {
        let repository = Repository::new(&[("berlin.yaml", yaml)]);
        let lab = repository.lab();
        let daemon = Daemon::start(&lab, &repository, "berlin");
        let up = |s: &Status| {
            s.paths.values().all(|p| p.health.state == PathState::Up)
                && active(s, "critical") == Some("fiber")
                && active(s, "bulk") == Some("lte")
        };
        daemon.wait("all paths to be up", up);
        Self { daemon, lab, repository }
    }

    /// Adds a table of somebody else's on the router: chains, and counters by these names.
    fn watch(&self, counters: &[&str], chains: &str) {
        let counters: String = counters.iter().map(|c| ["counter ", c, " { }; "].concat()).collect();
        self.daemon.sh(&format!("nft 'table inet foreign {{ {counters} {chains} }}'"));
    }

    fn seen(&self, counter: &str) -> u64 {
        let listing = self.daemon.sh(&format!("nft list counter inet foreign {counter}"));
        let mut words = listing.split_whitespace().skip_while(|w| *w != "packets");
        words.nth(1).unwrap().parse().unwrap()
    }

    fn host(&self, line: &str) -> String {
        crate::support::daemon::sh(&self.lab, &host(), line)
    }

    /// Puts other rules (or none) in the place of those of one of our chains that contain a text. The daemon must have
    /// ended: it would put them back.
    fn sabotage(&self, chain: &str, text: &str, instead: Option<&str>) {
        self.tamper(chain, text, |_| instead.map(str::to_owned));
    }

    /// Puts another text in the place of one in a chain's rules.
    fn weaken(&self, chain: &str, text: &str, instead: &str) {
        self.tamper(chain, text, |rule| Some(rule.replace(text, instead)));
    }

    fn tamper(&self, chain: &str, text: &str, instead: impl Fn(&str) -> Option<String>) {
        let listing = self.daemon.sh(&format!("nft -a list chain inet patronus {chain}"));
        let rules = listing.lines().filter(|line| line.contains(text)).filter_map(|line| line.split_once(" # handle "));
        let mut hit = 0;
        for (rule, handle) in rules {
            let (verb, rule) = instead(rule.trim()).map_or(("delete", String::new()), |rule| ("replace", rule));
            self.daemon.sh(&format!("nft '{verb} rule inet patronus {chain} handle {handle} {rule}'"));
            hit += 1;
        }
        assert!(hit > 0, "no rule with `{text}`:\n{listing}");
    }

    /// What counters have counted more after some work.
    fn counted<const N: usize>(&self, counters: [&str; N], work: impl FnOnce(&Self)) -> [u64; N] {
        let before = counters.map(|c| self.seen(c));
        work(self);
        let after = counters.map(|c| self.seen(c));
        std::array::from_fn(|n| after[n] - before[n])
    }

    /// So many packets from a node to a port of 1.1.1.1, and what became of them.
    fn packets(&self, spec: &FlowSpec, at_least: u64) -> Report {
        let flow = self.lab.flow(spec).unwrap();
        arrived(&flow, at_least);
        flow.finish().unwrap()
    }

    /// What a thread on a node finds.
    fn on<T: Send + 'static>(&self, node: &Node, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.lab.thread_in(node, work).join().unwrap().unwrap()
    }

    fn policy(&self, policy: &str) -> (u64, u64) {
        let status = self.daemon.status();
        let found = status.policies.iter().find(|p| p.name.as_str() == policy).unwrap();
        (found.counter.packets, found.flows)
    }
}

fn host() -> Node {
    Node::Host(name("berlin"), "lan0".parse().unwrap())
}

fn router() -> Node {
    Node::Router(name("berlin"))
}

fn udp(from: Node, port: u16) -> FlowSpec {
    FlowSpec { port, ..FlowSpec::new(from, [1, 1, 1, 1].into(), 500) }
}

fn arrived(flow: &Flow, packets: u64) {
    let start = Instant::now();
    while flow.arrived() < packets {
        assert!(start.elapsed() < PATIENCE, "{} of {packets} packets arrived", flow.arrived());
        thread::sleep(Duration::from_millis(2));
    }
}

/// The endpoints that a flow's packets came by.
fn ways(report: &Report) -> Vec<String> {
    let crossings = report.there.crossings();
    crossings.into_keys().map(|c| c.map_or_else(|| "?".to_owned(), |c| c.endpoint.to_string())).collect()
}

// Marks.

#[test]
fn bits_of_others_stay_in_both_marks() {
    let world = World::of(&masquerading(&[]));
    world.watch(
        &["sent", "kept", "steered"],
        "chain before { type filter hook prerouting priority -160; udp dport 7000 jump set_them; }; \
         chain own { type filter hook output priority -160; udp dport 7000 jump set_them; }; \
         chain set_them { meta mark set 0x00ff0000; ct mark set ct mark | 0x00ff0000; }; \
         chain after { type filter hook postrouting priority 200; \
           udp dport 7000 counter name sent; \
           udp dport 7000 meta mark & 0x00ff0000 == 0x00ff0000 ct mark & 0x00ff0000 == 0x00ff0000 counter name kept; \
           udp dport 7000 meta mark & 0xff000000 != 0 ct mark & 0xff000000 != 0 ct mark & 0x0000ffff != 0 \
             counter name steered; };",
    );
    let sent: u64 = [host(), router()].map(|from| world.packets(&udp(from, 7000), 50).there.sent()).iter().sum();
    assert_eq!(["sent", "kept", "steered"].map(|c| world.seen(c)), [sent; 3]);
}

#[test]
fn only_unicast_to_elsewhere_is_steered() {
    let world = World::of(&masquerading(&[]));
    let watched = "icmp type echo-request icmp id 4711";
    world.watch(
        &["multicast", "broadcast", "local", "own", "control", "stray"],
        &format!(
            "chain came {{ type filter hook prerouting priority -140; iifname lan0 {watched} jump sort; }}; \
             chain left {{ type filter hook postrouting priority 200; {watched} jump sort; }}; \
             chain sort {{ ip daddr 1.1.1.1 meta mark & 0xff000000 != 0 counter name control return; \
               ip daddr 1.1.1.1 return; \
               ip daddr 224.0.0.0/4 counter name multicast; \
               ip daddr {{ 192.168.10.255, 255.255.255.255 }} counter name broadcast; \
               ip daddr 192.168.10.1 iifname lan0 counter name local; \
               ip daddr 127.0.0.0/8 counter name own; \
               meta mark & 0xff000000 != 0 counter name stray; \
               ct mark & 0xff000000 != 0 counter name stray; }};"
        ),
    );
    let ping = "ping -n -c 2 -i 0.1 -W 1 -e 4711";
    world.host(&format!("{ping} 1.1.1.1; {ping} 192.168.10.1"));
    world.host(&format!("{ping} -I eth0 224.0.0.251 || true; {ping} -b 192.168.10.255 || true"));
    world.daemon.sh(&format!("{ping} 127.0.0.1"));
    world.daemon.sh(&format!("{ping} -I lan0 224.0.0.251 || true; {ping} -b 192.168.10.255 || true"));
    for counter in ["control", "multicast", "broadcast", "local", "own"] {
        assert!(world.seen(counter) > 0, "{counter}");
    }
    assert_eq!(world.seen("stray"), 0, "{}", world.daemon.sh("nft list table inet foreign"));
}

#[test]
fn the_routers_own_traffic_is_steered_and_probes_are_not() {
    let mut world =
        World::of(&masquerading(&["own: {priority: 10, match: {destination: [1.1.1.1/32]}, action: {path: lte}}"]));
    let report = world.packets(&udp(router(), 0), 50);
    assert_eq!(ways(&report), ["lte"]);
    let lte = world.lab.topology().uplink("berlin", "lte").unwrap().legs[0].router.addr();
    assert_eq!(report.there.sources().into_keys().collect::<Vec<_>>(), [lte]);
    // Both paths probe 1.1.1.1, each by itself; probes of a new daemon are new flows, which meet the classifier.
    world.daemon.terminate();
    world.daemon.settle();
    world.watch(
        &["fiber", "lte", "astray"],
        "chain c { type filter hook postrouting priority 200; icmp type echo-request ip daddr 1.1.1.1 jump d; }; \
         chain d { oifname wan0 counter name fiber; oifname wwan0 counter name lte; \
           oifname wan0 meta mark & 0xff000000 != 0x01000000 counter name astray; \
           oifname wwan0 meta mark & 0xff000000 != 0x02000000 counter name astray; };",
    );
    world.daemon.wait("probes on both paths", |_| world.seen("fiber") > 2 && world.seen("lte") > 2);
    assert_eq!(world.seen("astray"), 0);
    world.daemon.wait("both to be up", |s| s.paths.values().all(|p| p.health.state == PathState::Up));
}

/// A probe as the prober sends it: bound to the fibre, with its mark.
const PROBE: &str = "ping -n -c 2 -i 0.2 -W 1 -I wan0 -m 16777216 9.9.9.9 || true";

#[test]
fn the_checker_sees_a_ruleset_without_its_guards() {
    let mut world = World::of(&masquerading(&[
        "voice: {priority: 10, match: {protocol: udp, destinationPorts: [7000]}, action: {failover: critical, dscp: ef}}",
        "quiet: {priority: 20, match: {protocol: udp, destinationPorts: [7001]}, action: {drop: true}}",
        "own: {priority: 30, match: {destination: [9.9.9.9/32]}, action: {path: lte}}",
        "loud: {priority: 40, match: {protocol: udp, destinationPorts: [7002]}, action: {reject: true}}",
    ]));
    world.daemon.terminate();
    world.watch(
        &["probes", "astray", "stray", "ef", "back", "back_ef", "leaked", "marked", "kept", "told"],
        "chain before { type filter hook prerouting priority -160; udp dport 7005 meta mark set 0x00ff0000 \
           ct mark set ct mark | 0x00ff0000; }; \
         chain came { type filter hook prerouting priority -140; iifname lan0 ip daddr 224.0.0.0/4 \
           meta mark & 0xff000000 != 0 counter name stray; }; \
         chain after { type filter hook postrouting priority 200; \
           icmp type echo-request ip daddr 9.9.9.9 counter name probes; \
           icmp type echo-request ip daddr 9.9.9.9 meta mark & 0xff000000 != 0x01000000 counter name astray; \
           oifname wan0 udp dport 7000 ip dscp ef counter name ef; \
           oifname lan0 udp sport 7000 counter name back; oifname lan0 udp sport 7000 ip dscp ef counter name back_ef; \
           oifname { wan0, wwan0 } udp dport 7001 counter name leaked; \
           oifname lan0 icmp type destination-unreachable counter name told; \
           udp dport 7005 counter name marked; \
           udp dport 7005 meta mark & 0x00ff0000 == 0x00ff0000 ct mark & 0x00ff0000 == 0x00ff0000 counter name kept; };",
    );
    let probe = |world: &World| drop(world.daemon.sh(PROBE));
    let multicast = |world: &World| drop(world.host("ping -n -c 1 -W 1 -I eth0 224.0.0.251 || true"));
    let calls = |world: &World| drop(world.packets(&FlowSpec { echo: true, ..udp(host(), 7000) }, 20));
    let dropped = |world: &World| drop(world.on(&host(), || told(7001)));

    let [sent, astray] = world.counted(["probes", "astray"], probe);
    assert!(sent == 2 && astray == 0, "{astray} of {sent}");
    world.sabotage("output", "meta mark !=", None);
    assert_ne!(world.counted(["astray"], probe), [0], "whoever has chosen a path himself is steered all the same");

    assert_eq!(world.counted(["stray"], multicast), [0]);
    world.sabotage("classify_ip", "fib daddr type", None);
    assert_ne!(world.counted(["stray"], multicast), [0], "multicast is steered");

    let [ef, back, back_ef] = world.counted(["ef", "back", "back_ef"], calls);
    assert!(ef > 0 && back > 0 && back_ef == 0, "{ef} {back} {back_ef}");
    world.sabotage("count_voice", "ip dscp set", Some("ip dscp set ef"));
    assert_ne!(world.counted(["back_ef"], calls), [0], "answers are rewritten");

    assert_eq!(world.counted(["leaked"], dropped), [0]);
    world.sabotage("policy_quiet", "drop", Some("goto steer_path_fiber"));
    assert_ne!(world.counted(["leaked"], dropped), [0], "what shall be dropped goes out");

    let refused = |world: &World| drop(world.on(&host(), || told(7002)));
    assert_eq!(world.counted(["told"], refused), [1]);
    world.sabotage("policy_loud", "reject", Some("drop"));
    assert_eq!(world.counted(["told"], refused), [0], "what shall be refused is dropped in silence");

    // The first packet of a flow is steered to its rule, the others to the path that its address binds it to.
    let flow = |world: &World| drop(world.packets(&udp(host(), 7005), 20));
    for (chain, first) in [("steer_failover_critical", true), ("steer_member_critical_fiber", false)] {
        let [sent, kept] = world.counted(["marked", "kept"], flow);
        assert!(sent >= 20 && kept == sent, "{kept} of {sent}");
        world.weaken(chain, "ffffff |", "00ffff |");
        let [sent, kept] = world.counted(["marked", "kept"], flow);
        assert_eq!(kept, if first { sent - 1 } else { 1 }, "of {sent}, those that were steered elsewhere");
        world.weaken(chain, "00ffff |", "ffffff |");
    }
}

// What policies do to packets.

#[test]
fn dscp_is_rewritten_in_every_packet_of_the_original_direction() {
    let world = World::of(&masquerading(&[
        "voice: {priority: 10, match: {protocol: udp, destinationPorts: [7000]}, action: {failover: critical, dscp: ef}}",
    ]));
    world.watch(
        &["there", "there_ef", "back", "back_ef"],
        "chain c { type filter hook postrouting priority 200; \
           oifname { wan0, wwan0 } udp dport 7000 counter name there; \
           oifname { wan0, wwan0 } udp dport 7000 ip dscp ef counter name there_ef; \
           oifname lan0 udp sport 7000 counter name back; oifname lan0 udp sport 7000 ip dscp ef counter name back_ef; };",
    );
    let report = world.packets(&FlowSpec { echo: true, ..udp(host(), 7000) }, 50);
    let sent = report.there.sent();
    assert_eq!((report.there.lost(), report.back.unwrap().lost()), (0, 0));
    assert_eq!(["there", "there_ef", "back", "back_ef"].map(|c| world.seen(c)), [sent, sent, sent, 0]);
    let report = world.packets(&udp(router(), 7000), 50);
    assert_eq!(world.seen("there_ef"), sent + report.there.sent());
}

fn tcp(port: u16) -> io::Result<()> {
    let to = SocketAddr::from(([1, 1, 1, 1], port));
    TcpStream::connect_timeout(&to, Duration::from_millis(500)).map(drop)
}

/// What a sender of UDP is told within half a second.
fn told(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.connect(("1.1.1.1", port))?;
    socket.send(b"hello")?;
    socket.recv(&mut [0; 16]).map(drop)
}

#[test]
fn drop_is_silent_and_reject_answers() {
    let world = World::of(&masquerading(&[
        "quiet: {priority: 10, match: {destinationPorts: [7001]}, action: {drop: true}}",
        "loud:  {priority: 20, match: {destinationPorts: [7002]}, action: {reject: true}}",
    ]));
    world.watch(
        &["leaked", "resets", "unreachable"],
        "chain c { type filter hook postrouting priority 200; \
           oifname { wan0, wwan0 } th dport { 7001, 7002 } counter name leaked; \
           oifname { lan0, lo } tcp sport 7002 tcp flags & rst == rst counter name resets; \
           oifname { lan0, lo } icmp type destination-unreachable counter name unreachable; };",
    );
    for node in [host(), router()] {
        let kind = |work: fn(u16) -> io::Result<()>, port| world.on(&node, move || work(port).unwrap_err().kind());
        let silent = |kind| matches!(kind, ErrorKind::TimedOut | ErrorKind::WouldBlock);
        let before = (world.seen("resets"), world.seen("unreachable"));
        assert!(silent(kind(tcp, 7001)), "{node} TCP: {:?}", kind(tcp, 7001));
        // Its own sender is told by its own kernel that the packet was not let out.
        let dropped = kind(told, 7001);
        assert!(silent(dropped) || node == router() && dropped == ErrorKind::PermissionDenied, "{node}: {dropped:?}");
        assert_eq!((world.seen("resets"), world.seen("unreachable")), before, "{node}");
        assert_eq!(kind(tcp, 7002), ErrorKind::ConnectionRefused, "{node} TCP");
        assert_eq!(world.seen("resets"), before.0 + 1, "{node}");
        let refused = kind(told, 7002);
        let expected = [ErrorKind::ConnectionRefused, ErrorKind::PermissionDenied];
        assert!(refused == expected[0] || node == router() && refused == expected[1], "{node} UDP: {refused:?}");
        assert_eq!(world.seen("unreachable"), before.1 + 1, "{node}");
    }
    assert_eq!(world.seen("leaked"), 0);
    let counted = |s: &Status| s.policies.iter().filter(|p| p.counter.packets > 0).count();
    world.daemon.wait("both policies to have counted", |s| counted(s) >= 2);
}

#[test]
fn segments_fit_the_paths_mtu_both_ways_and_snat_takes_its_address() {
    let world = World::of(&site("nat: {snat: 192.0.2.77}, mtu: 1400", &[]));
    world.watch(
        &["out", "out_fits", "back", "back_fits"],
        "chain c { type filter hook postrouting priority 200; tcp flags & (syn | rst) == syn jump d; }; \
         chain d { oifname wan0 counter name out; oifname wan0 tcp option maxseg size 1360 counter name out_fits; \
           oifname lan0 counter name back; oifname lan0 tcp option maxseg size 1360 counter name back_fits; };",
    );
    let listener = world.on(&Node::Internet, || TcpListener::bind("1.1.1.1:7003").unwrap());
    let to = SocketAddr::from(([1, 1, 1, 1], 7003));
    let ours = world.on(&host(), move || TcpStream::connect_timeout(&to, PATIENCE).unwrap());
    let (_, from) = listener.accept().unwrap();
    assert_eq!(from.ip().to_string(), "192.0.2.77");
    drop(ours);
    let all = ["out", "out_fits", "back", "back_fits"].map(|c| world.seen(c));
    assert!(all.iter().all(|n| *n > 0 && *n == all[0]), "{all:?}");
    let report = world.packets(&FlowSpec { echo: true, ..udp(host(), 0) }, 50);
    assert_eq!((report.there.lost(), report.back.as_ref().unwrap().lost()), (0, 0));
    assert_eq!(report.there.sources().into_keys().collect::<Vec<_>>(), [from.ip()]);
}

/// `nf_nat_inet_fn` (`net/netfilter/nf_nat_core.c`): a packet whose flow is masqueraded to another interface's address
/// than the one that it leaves by ends the flow and is dropped (`nf_nat_oif_changed`, then `NF_DROP`). What is lost
/// has passed the last chain before that hook, by the new uplink, and does not reach the first one after it.
#[test]
fn a_masqueraded_flow_loses_to_a_lost_carrier_the_one_packet_that_netfilter_drops() {
    let world = World::of(&masquerading(&[]));
    world.watch(
        &["before", "after", "line"],
        "chain b { type filter hook postrouting priority 99; oifname wwan0 udp dport 7000 counter name before; }; \
         chain a { type filter hook postrouting priority 101; oifname wwan0 udp dport 7000 counter name after; \
         oifname wan0 udp dport 7000 counter name line; };",
    );
    let flow = world.lab.flow(&FlowSpec { pps: 1000, ..udp(host(), 7000) }).unwrap();
    arrived(&flow, 100);
    world.lab.fault("berlin", "fiber", Fault::Carrier).unwrap();
    let already = flow.arrived();
    arrived(&flow, already + 300);
    let report = flow.finish().unwrap();
    let by_fiber = report
        .there
        .crossings()
        .into_iter()
        .filter(|(c, _)| c.as_ref().is_some_and(|c| c.endpoint.as_str() == "fiber"));
    let by_fiber: u64 = by_fiber.map(|(_, packets)| packets).sum();
    let [before, after, line] = ["before", "after", "line"].map(|name| world.seen(name));
    assert!(before - after <= 1, "{before} packets before netfilter's NAT, {after} after it");
    // A busy kernel takes a moment to notice that the line has no carrier; what it sends until then is on the line.
    assert_eq!(report.there.lost(), (before - after) + (line - by_fiber), "nothing is lost elsewhere");
    assert_eq!(ways(&report), ["fiber", "lte"]);
}

// Counters and flows.

#[test]
fn each_packet_counts_once_whichever_way_it_goes() {
    let world = World::of(&masquerading(&[
        "once: {priority: 10, match: {protocol: udp, destinationPorts: [7000]}, action: {failover: critical}}",
        "both: {priority: 20, match: {protocol: udp, destinationPorts: [7001]}, action: {failover: bulk}}",
    ]));
    for from in [host(), router()] {
        let before = (world.policy("once").0, world.policy("both").0);
        let once = world.packets(&FlowSpec { sockets: 5, ..udp(from.clone(), 7000) }, 100).there.sent();
        let both = world.packets(&FlowSpec { echo: true, sockets: 3, ..udp(from, 7001) }, 100).there.sent() * 2;
        let wanted = (before.0 + once, before.1 + both);
        let count = |s: &Status, n: &str| s.policies.iter().find(|p| p.name.as_str() == n).unwrap().counter.packets;
        world.daemon.wait(&format!("counters {wanted:?}"), |s| (count(s, "once"), count(s, "both")) == wanted);
    }
    let flows = |s: &Status, n: &str| s.policies.iter().find(|p| p.name.as_str() == n).unwrap().flows;
    world.daemon.wait("10 and 6 active flows", |s| (flows(s, "once"), flows(s, "both")) == (10, 6));
}

#[test]
fn applies_move_no_flow_lose_no_packet_and_never_count_backwards() {
    let _quiet = quiet();
    let policy = |port: u16| {
        format!(
            "other: {{priority: 10, match: {{protocol: tcp, destinationPorts: [{port}]}}, action: {{failover: bulk}}}}"
        )
    };
    let steady =
        "steady: {priority: 20, match: {protocol: udp, destinationPorts: [7000]}, action: {failover: critical}}";
    let world = World::of(&masquerading(&[&policy(80), steady]));
    let flow = world.lab.flow(&FlowSpec { pps: 1000, ..udp(host(), 7000) }).unwrap();
    arrived(&flow, 100);
    let (mut counted, start) = (0, Instant::now());
    for n in 1..=20 {
        world.repository.write("berlin.yaml", &masquerading(&[&policy(80 + n), steady]));
        let loaded = format!("tcp . {} : goto policy_other", 80 + n);
        let mut done = false;
        while !done {
            let listing = world.daemon.sh("nft list table inet patronus");
            assert!(start.elapsed() < 2 * PATIENCE, "apply {n}:\n{listing}");
            done = listing.contains(&loaded);
            let now = world.policy("steady").0;
            assert!(now >= counted, "apply {n}: {now} after {counted}");
            counted = now;
        }
    }
    println!("20 applies in {:?}", start.elapsed());
    let report = flow.finish().unwrap();
    let counted = counter_in(&world.daemon.sh("nft list table inet patronus"), "policy_steady");
    println!("{} sent, {counted} counted", report.there.sent());
    assert_eq!((report.there.lost(), ways(&report)), (0, vec!["fiber".to_owned()]));
    // What passes between reading a counter and replacing it is not counted.
    assert!(
        counted <= report.there.sent() && counted * 2 > report.there.sent(),
        "{counted} of {}",
        report.there.sent()
    );
}

fn counter_in(listing: &str, counter: &str) -> u64 {
    let (_, after) = listing.split_once(&format!("counter {counter} {{")).unwrap();
    after.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_failover_forgets_the_flows_of_the_dead_member_alone() {
    let world = World::of(&masquerading(&[
        "bulk: {priority: 10, match: {destination: [9.9.9.9/32]}, action: {failover: bulk}}",
        "unrelated: {priority: 20, match: {protocol: udp, destinationPorts: [7000]}, action: {path: lte}}",
    ]));
    // By the fibre; by LTE under the other rule; by LTE alone; to the router itself.
    world.host(
        "ping -n -c 1 -W 2 -e 801 1.1.1.1; ping -n -c 1 -W 2 -e 802 9.9.9.9; ping -n -c 1 -W 2 -e 803 192.168.10.1",
    );
    world.packets(&udp(host(), 7000), 20);
    let tracked = || world.daemon.sh("cat /proc/net/nf_conntrack 2>/dev/null || conntrack -L 2>/dev/null");
    let marks = ["id=801 ", "id=802 ", "id=803 ", "dport=7000 "];
    let there = || marks.map(|m| tracked().contains(m));
    assert_eq!(there(), [true; 4], "{}", tracked());
    world.lab.fault("berlin", "fiber", Fault::BlackHole).unwrap();
    world.daemon.wait_active("critical", "lte");
    let start = Instant::now();
    while there()[0] {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", tracked());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(there(), [false, true, true, true], "{}", tracked());
}
