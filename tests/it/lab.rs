//! The lab: namespaces, faults, flows.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use patronus::{
    lab::{self, Crossing, Fault, FlowSpec, Impossible, Lab, Node, Topology},
    units::{Name, Rate, Ratio},
    validate::intent::{Destination, Endpoint, GatewaySpec, Health, Lan, Nat, Path, Probe, Site, TunnelSpec},
};

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|a| a.parse().unwrap()).collect()
}

fn site(named: &str, lans: &[(&str, &str)]) -> Site {
    let lan = |(interface, prefix): &(&str, &str)| Lan {
        interface: interface.parse().unwrap(),
        prefixes: prefix.split(' ').map(|p| p.parse().unwrap()).collect(),
    };
    Site {
        name: name(named),
        labels: BTreeMap::new(),
        lan: lans.iter().map(lan).collect(),
        endpoints: BTreeMap::new(),
        paths: BTreeMap::new(),
        rules: BTreeMap::new(),
        policies: Vec::new(),
        beyond: BTreeMap::new(),
    }
}

/// An endpoint with a path of its name to the internet; no gateways means `auto`.
fn uplink(site: &mut Site, named: &str, interface: &str, gateways: &[&str], targets: &[&str]) {
    let gateways = addresses(gateways);
    let endpoint = Endpoint {
        interface: interface.parse().unwrap(),
        address: None,
        gateway: if gateways.is_empty() { GatewaySpec::Auto } else { GatewaySpec::Fixed(gateways) },
        down: None,
        up: None,
        cost: 1,
        metered: false,
    };
    site.endpoints.insert(name(named), endpoint);
    site.paths.insert(name(named), path(named, named, interface, Destination::Internet, targets).into());
}

fn path(named: &str, from: &str, interface: &str, to: Destination, targets: &[&str]) -> Path {
    Path {
        name: name(named),
        from: name(from),
        to,
        interface: interface.parse().unwrap(),
        nat: Nat::Masquerade,
        mtu: None,
        probe: Probe { targets: addresses(targets), window: 30, ..Probe::default() }.into(),
        health: Health {
            latency: Duration::from_millis(150),
            loss: Ratio::from_ppm(10_000).unwrap(),
            jitter: Duration::from_millis(30),
            recover: None,
        },
    }
}

fn berlin() -> Site {
    let mut berlin = site("berlin", &[("lan0", "192.168.10.0/24")]);
    uplink(&mut berlin, "fiber", "wan0", &["198.51.100.1"], &["1.1.1.1", "9.9.9.9", "8.8.8.8"]);
    uplink(&mut berlin, "lte", "wwan0", &[], &["1.1.1.1", "9.9.9.9", "8.8.8.8"]);
    berlin
}

fn dual() -> Site {
    let mut dual = site("berlin", &[("lan0", "192.168.10.0/24 fd10::/64")]);
    let targets = ["1.1.1.1", "2606:4700:4700::1111"];
    uplink(&mut dual, "fiber", "wan0", &["198.51.100.1", "2001:db8:1::1"], &targets);
    uplink(&mut dual, "lte", "wwan0", &[], &targets);
    dual
}

/// A hub and two branches; each branch has a tunnel to the hub over each uplink.
fn fleet() -> Vec<Site> {
    let mut hq = site("hq", &[("lan0", "10.0.0.0/16")]);
    let mut sites = Vec::new();
    for (n, wan) in ["fiber", "cable"].into_iter().enumerate() {
        uplink(&mut hq, wan, &format!("wan{n}"), &[&format!("203.0.113.{}", 1 + 64 * n)], &["9.9.9.9"]);
        hq.endpoints.get_mut(wan).unwrap().address = Some(format!("203.0.113.{}", 10 + 64 * n).parse().unwrap());
    }
    for (b, branch) in ["berlin", "paris"].into_iter().enumerate() {
        let mut site = site(branch, &[("lan0", &format!("192.168.{b}.0/24"))]);
        for (n, wan) in ["fiber", "cable"].into_iter().enumerate() {
            uplink(&mut site, wan, &format!("wan{n}"), &[&format!("198.51.100.{}", 1 + 64 * n)], &["9.9.9.9"]);
            let own: IpAddr = format!("198.51.100.{}", 10 + 10 * b + 64 * n).parse().unwrap();
            site.endpoints.get_mut(wan).unwrap().address = Some(own);
            let tunnel = TunnelSpec::Vxlan {
                id: u32::try_from(1000 + 10 * b + n).unwrap(),
                over: format!("wan{n}").parse().unwrap(),
                local: Some(own),
                remote: hq.endpoints[wan].address.unwrap(),
                port: 4789,
                inner_local: vec![format!("169.254.{b}.{}/30", 1 + 4 * n).parse().unwrap()],
                inner_remote: addresses(&[&format!("169.254.{b}.{}", 2 + 4 * n)]),
            };
            let to = Destination::Site { site: name("hq"), endpoint: name(wan), tunnel };
            let inner = format!("169.254.{b}.{}", 2 + 4 * n);
            let tunnel = path(&format!("hq-{wan}"), wan, &format!("vx{n}"), to, &[&inner]);
            site.paths.insert(tunnel.name.clone(), tunnel.into());
        }
        sites.push(site);
    }
    sites.push(hq);
    sites
}

fn up(sites: &[Site]) -> Lab {
    Lab::build(lab::topology(sites).unwrap(), &Lab::unique_prefix("patronustest")).unwrap()
}

fn router() -> Node {
    Node::Router(name("berlin"))
}

fn host(site: &str) -> Node {
    Node::Host(name(site), "lan0".parse().unwrap())
}

fn run(lab: &Lab, node: &Node, line: &str) -> (bool, String) {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    let output = lab.run_in(node, command).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn pings(lab: &Lab, node: &Node, line: &str) -> bool {
    run(lab, node, &format!("ping -n -c 1 -W 1 {line}")).0
}

fn one_way(pps: u32) -> FlowSpec {
    FlowSpec::new(host("berlin"), "1.1.1.1".parse().unwrap(), pps)
}

#[allow(clippy::unnecessary_wraps)]
fn by(endpoint: &str) -> Option<Crossing> {
    Some(Crossing { site: name("berlin"), endpoint: name(endpoint) })
}

/// What a minimal NAT router would have, so that answers come back without Patronus.
fn masquerade(lab: &Lab) {
    let (done, text) = run(lab, &router(), "nft add table ip nat");
    assert!(done, "{text}");
    let lines = [
        "nft add chain ip nat post { type nat hook postrouting priority 100 ; }",
        "nft add rule ip nat post oifname { wan0, wwan0 } masquerade",
    ];
    for line in lines {
        let (done, text) = run(lab, &router(), line);
        assert!(done, "{text}");
    }
}

// Topology: what is invented.

#[test]
fn one_site_gets_a_plausible_lab() {
    let expected = "\
internet 1.1.1.1 8.8.8.8 9.9.9.9
site berlin
  lan lan0: router 192.168.10.1/24, host 192.168.10.10/24
  uplink fiber on wan0
    router 198.51.100.2/24, provider 198.51.100.1, main table: default via 198.51.100.1 proto static metric 100
  uplink lte on wwan0
    router 100.64.0.2/24, provider 100.64.0.1, main table: default via 100.64.0.1 proto dhcp metric 200
";
    assert_eq!(lab::topology([&berlin()]).unwrap().to_string(), expected);
}

#[test]
fn a_dual_stack_site_gets_both_families_on_every_link() {
    let expected = "\
internet 1.1.1.1 2606:4700:4700::1111
site berlin
  lan lan0: router 192.168.10.1/24 fd10::1/64, host 192.168.10.10/24 fd10::a/64
  uplink fiber on wan0
    router 198.51.100.2/24, provider 198.51.100.1, main table: default via 198.51.100.1 proto static metric 100
    router 2001:db8:1::2/64, provider 2001:db8:1::1, main table: default via 2001:db8:1::1 proto static metric 100
  uplink lte on wwan0
    router 100.64.0.2/24, provider 100.64.0.1, main table: default via 100.64.0.1 proto dhcp metric 200
    router 2001:db8:64:1::2/64, provider 2001:db8:64:1::1, main table: default via fe80::1 proto ra metric 200
";
    assert_eq!(lab::topology([&dual()]).unwrap().to_string(), expected);
}

const FLEET: &str = "\
internet 9.9.9.9
site berlin
  lan lan0: router 192.168.0.1/24, host 192.168.0.10/24
  uplink cable on wan1
    router 198.51.100.74/26, provider 198.51.100.65, main table: default via 198.51.100.65 proto static metric 100
    answered for: 198.51.100.84
  uplink fiber on wan0
    router 198.51.100.10/26, provider 198.51.100.1
    answered for: 198.51.100.20
site hq
  lan lan0: router 10.0.0.1/16, host 10.0.0.10/16
  uplink cable on wan1
    router 203.0.113.74/26, provider 203.0.113.65, main table: default via 203.0.113.65 proto static metric 100
  uplink fiber on wan0
    router 203.0.113.10/26, provider 203.0.113.1
site paris
  lan lan0: router 192.168.1.1/24, host 192.168.1.10/24
  uplink cable on wan1
    router 198.51.100.84/26, provider 198.51.100.65, main table: default via 198.51.100.65 proto static metric 100
    answered for: 198.51.100.74
  uplink fiber on wan0
    router 198.51.100.20/26, provider 198.51.100.1
    answered for: 198.51.100.10
";

#[test]
fn sites_whose_providers_share_a_network_stay_apart() {
    let text = lab::topology(&fleet()).unwrap().to_string();
    assert_eq!(text, FLEET);
    assert_eq!(text, lab::topology(fleet().iter().rev()).unwrap().to_string(), "order of the sites does not matter");
}

#[test]
fn networks_without_nat_are_routed_back() {
    let mut site = berlin();
    Arc::make_mut(site.paths.get_mut("fiber").unwrap()).nat = Nat::None;
    Arc::make_mut(site.paths.get_mut("lte").unwrap()).nat = Nat::Snat("203.0.113.7".parse().unwrap());
    let topology = lab::topology([&site]).unwrap();
    let routed =
        |endpoint| topology.uplink("berlin", endpoint).unwrap().routed.iter().map(ToString::to_string).collect();
    let lists: Vec<Vec<String>> = vec![routed("fiber"), routed("lte")];
    assert_eq!(lists, [["192.168.10.0/24"], ["203.0.113.7/32"]]);
}

#[test]
fn what_cannot_be_built_is_refused() {
    let mut twice = berlin();
    uplink(&mut twice, "spare", "wan0", &["198.51.100.1"], &[]);
    let shared = Impossible::Shared { site: name("berlin"), interface: "wan0".parse().unwrap() };
    assert_eq!(lab::topology([&twice]), Err(shared));
    assert_eq!(lab::topology([&site("internet", &[])]), Err(Impossible::Reserved));
    assert!(matches!(Lab::build(topology_of_nothing(), "a-b"), Err(lab::Error::Prefix(_))));
}

fn topology_of_nothing() -> Topology {
    lab::topology([]).unwrap()
}

// The real thing.

#[test]
fn one_site_reaches_every_target_by_every_uplink() {
    let lab = up(&[berlin()]);
    let (_, routes) = run(&lab, &router(), "ip route show default");
    assert_eq!(
        routes.lines().map(str::trim).collect::<Vec<_>>(),
        [
            "default via 198.51.100.1 dev wan0 proto static metric 100",
            "default via 100.64.0.1 dev wwan0 proto dhcp metric 200"
        ]
    );
    assert!(pings(&lab, &host("berlin"), "192.168.10.1"));
    for target in ["1.1.1.1", "8.8.8.8", "9.9.9.9"] {
        assert!(pings(&lab, &router(), target), "{target}");
        assert!(pings(&lab, &router(), &format!("-I wwan0 {target}")), "{target} by wwan0");
    }
    assert!(!pings(&lab, &host("berlin"), "1.1.1.1"), "a LAN address has no way back without NAT");
    masquerade(&lab);
    assert!(pings(&lab, &host("berlin"), "1.1.1.1"));
}

#[test]
fn both_families_work_on_every_uplink() {
    let lab = up(&[dual()]);
    let six = "2606:4700:4700::1111";
    for target in ["1.1.1.1", six] {
        assert!(pings(&lab, &router(), target), "{target}");
    }
    let (_, routes) = run(&lab, &router(), "ip -6 route show default");
    assert!(routes.contains("default via fe80::1 dev wwan0 proto ra metric 200"), "{routes}");
    assert!(run(&lab, &router(), "ip link set wan0 down").0);
    for target in ["1.1.1.1", six] {
        assert!(pings(&lab, &router(), target), "{target} by lte");
    }
    assert!(pings(&lab, &host("berlin"), "fd10::1"));
}

#[test]
fn a_path_without_nat_gets_its_answers() {
    let mut site = berlin();
    Arc::make_mut(site.paths.get_mut("fiber").unwrap()).nat = Nat::None;
    let lab = up(&[site]);
    let mut spec = one_way(1000);
    spec.echo = true;
    let report = lab.flow_for(&spec, Duration::from_millis(300)).unwrap();
    assert_eq!((report.there.lost(), report.back.unwrap().lost()), (0, 0));
    assert_eq!(report.there.sources().keys().collect::<Vec<_>>(), [&"192.168.10.10".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_hub_and_its_branches_reach_each_other_for_tunnels() {
    let start = Instant::now();
    let lab = up(&fleet());
    let built = start.elapsed();
    println!("hub and two branches, {} namespaces: {built:?}", lab.topology().nodes().len());
    assert!(built < Duration::from_secs(8), "{built:?}");
    let branch = Node::Router(name("berlin"));
    let hub = lab.topology().sites["hq"].uplinks["fiber"].legs[0].router.addr().to_string();
    assert!(pings(&lab, &branch, &hub));
    let other = lab.topology().sites["paris"].uplinks["fiber"].legs[0].router.addr().to_string();
    assert!(pings(&lab, &branch, &other), "another branch, whose provider has the same network");
    // The first uplink by name is the one that the main table leaves by.
    vxlan(&lab, "berlin", "198.51.100.74", "203.0.113.74", 1);
    vxlan(&lab, "hq", "203.0.113.74", "198.51.100.74", 2);
    assert!(pings(&lab, &branch, "169.254.0.2"), "through the tunnel");
}

fn vxlan(lab: &Lab, site: &str, local: &str, remote: &str, number: u8) {
    let router = Node::Router(name(site));
    for line in [
        &*format!("ip link add vx0 type vxlan id 1000 local {local} remote {remote} dstport 4789 dev wan1"),
        &*format!("ip addr add 169.254.0.{number}/30 dev vx0"),
        "ip link set vx0 up",
    ] {
        let (done, text) = run(lab, &router, line);
        assert!(done, "{line}: {text}");
    }
}

// Faults: each does what it says, and no more.

#[test]
fn carrier_loss_is_seen_by_the_router_and_mended() {
    let lab = up(&[dual()]);
    lab.fault("berlin", "fiber", Fault::Carrier).unwrap();
    let (_, link) = run(&lab, &router(), "ip link show wan0");
    assert!(link.contains("NO-CARRIER") && link.contains(",UP"), "{link}");
    lab.clear("berlin", "fiber").unwrap();
    let (_, link) = run(&lab, &router(), "ip link show wan0");
    assert!(link.contains("LOWER_UP"), "{link}");
    assert!(pings(&lab, &router(), "-I wan0 1.1.1.1"));
    assert!(pings(&lab, &router(), "-I wan0 2606:4700:4700::1111"));
}

#[test]
fn an_interface_set_down_or_removed_comes_back_with_its_routes() {
    let lab = up(&[dual()]);
    for fault in [Fault::InterfaceDown, Fault::Removed] {
        lab.fault("berlin", "lte", fault).unwrap();
        let (exists, link) = run(&lab, &router(), "ip link show wwan0");
        assert_eq!(exists, fault == Fault::InterfaceDown, "{link}");
        assert!(!link.contains(",UP"), "{link}");
        lab.clear("berlin", "lte").unwrap();
        for family in ["-4", "-6"] {
            let (_, routes) = run(&lab, &router(), &format!("ip {family} route show default dev wwan0"));
            assert!(routes.contains("metric 200"), "{fault:?}: {routes}");
        }
        assert!(pings(&lab, &router(), "-I wwan0 1.1.1.1"), "{fault:?}");
        assert!(pings(&lab, &router(), "-I wwan0 2606:4700:4700::1111"), "{fault:?}");
    }
}

#[test]
fn a_black_hole_swallows_everything_while_link_and_gateway_stay() {
    let lab = up(&[berlin()]);
    let flow = lab.flow(&one_way(1000)).unwrap();
    until(|| flow.arrived() > 100);
    let cut = lab.fault("berlin", "fiber", Fault::BlackHole).unwrap();
    let silent = Instant::now();
    until(|| silent.elapsed() > Duration::from_millis(300));
    assert!(pings(&lab, &router(), "198.51.100.1"), "the gateway answers");
    assert!(!pings(&lab, &router(), "-I wan0 1.1.1.1"));
    let (_, link) = run(&lab, &router(), "ip link show wan0");
    assert!(link.contains("LOWER_UP"), "{link}");
    let mended = lab.clear("berlin", "fiber").unwrap();
    let arrived = flow.arrived();
    until(|| flow.arrived() > arrived + 200);
    let report = flow.finish().unwrap();
    let (lost, sent) = report.there.lost_between(silent, mended);
    assert_eq!(lost, sent);
    assert_eq!(report.there.outages().len(), 1);
    assert!(report.there.longest_outage() >= mended - silent);
    assert!(report.there.clean_after(cut).unwrap() < mended - cut + Duration::from_millis(500));
}

#[test]
fn thirty_percent_loss_is_thirty_percent() {
    let lab = up(&[berlin()]);
    lab.fault("berlin", "fiber", Fault::Loss("30%".parse().unwrap())).unwrap();
    let report = lab.flow_for(&one_way(2000), Duration::from_secs(2)).unwrap();
    let (lost, sent) = (report.there.lost(), report.there.sent());
    // Five standard deviations of the binomial distribution: once in two million runs.
    #[allow(clippy::cast_precision_loss)]
    let (expected, bound) = (0.3 * sent as f64, 5.0 * (0.21 * sent as f64).sqrt());
    #[allow(clippy::cast_precision_loss)]
    let off = (lost as f64 - expected).abs();
    assert!(off < bound, "{lost} of {sent} lost");
    lab.clear("berlin", "fiber").unwrap();
    assert_eq!(lab.flow_for(&one_way(1000), Duration::from_millis(300)).unwrap().there.lost(), 0);
}

#[test]
fn latency_is_what_was_asked_for_and_changes_without_loss() {
    let lab = up(&[berlin()]);
    let flow = lab.flow(&one_way(1000)).unwrap();
    let mut marks = Vec::new();
    for ms in [50, 200, 10] {
        lab.fault("berlin", "fiber", Fault::Latency(Duration::from_millis(ms))).unwrap();
        let arrived = flow.arrived();
        until(|| flow.arrived() > arrived + 300);
        marks.push(ms);
    }
    lab.clear("berlin", "fiber").unwrap();
    let arrived = flow.arrived();
    until(|| flow.arrived() > arrived + 100);
    let report = flow.finish().unwrap();
    assert_eq!((report.there.lost(), report.there.duplicates(), report.there.reordered()), (0, 0, 0));
    lab.fault("berlin", "fiber", Fault::Latency(Duration::from_millis(50))).unwrap();
    let report = lab.flow_for(&one_way(1000), Duration::from_secs(1)).unwrap();
    let (median, late) = (report.there.delay(0.5).unwrap(), report.there.delay(0.99).unwrap());
    println!("50 ms asked for: median {median:?}, 99 % {late:?}, least {:?}", report.there.delay(0.0).unwrap());
    assert!(report.there.delay(0.0).unwrap() >= Duration::from_millis(50));
    assert!(median < Duration::from_millis(51), "{median:?}");
    assert_eq!(report.there.crossings().into_keys().collect::<Vec<_>>(), [by("fiber")]);
}

#[test]
fn jitter_spreads_the_delay_around_its_middle() {
    let lab = up(&[berlin()]);
    let (latency, spread) = (Duration::from_millis(30), Duration::from_millis(10));
    lab.fault("berlin", "fiber", Fault::Jitter { latency, spread }).unwrap();
    let report = lab.flow_for(&one_way(50), Duration::from_secs(2)).unwrap();
    let (least, most) = (report.there.delay(0.05).unwrap(), report.there.delay(0.95).unwrap());
    assert!(least < Duration::from_millis(25) && most > Duration::from_millis(35), "{least:?} {most:?}");
    assert_eq!(report.there.lost(), 0);
}

#[test]
fn the_emulator_passes_twenty_thousand_packets_a_second() {
    let lab = up(&[berlin()]);
    masquerade(&lab);
    lab.fault("berlin", "fiber", Fault::Latency(Duration::from_millis(20))).unwrap();
    let mut spec = one_way(20_000);
    spec.echo = true;
    let report = lab.flow_for(&spec, Duration::from_secs(1)).unwrap();
    let back = report.back.unwrap();
    println!("{} sent, {} lost, {} not back", report.there.sent(), report.there.lost(), back.lost());
    assert_eq!((report.there.lost(), back.lost()), (0, 0), "of {}", report.there.sent());
}

#[test]
fn a_rate_limit_drops_what_does_not_fit() {
    let lab = up(&[berlin()]);
    lab.fault("berlin", "fiber", Fault::Rate("1Mbit".parse::<Rate>().unwrap())).unwrap();
    let mut spec = one_way(1000);
    spec.size = 1000;
    let report = lab.flow_for(&spec, Duration::from_secs(1)).unwrap();
    let passed = report.there.sent() - report.there.lost();
    assert!((80..400).contains(&passed), "{passed} of {} passed 1 Mbit/s", report.there.sent());
}

// Flows: the measure itself is right.

#[test]
fn an_idle_good_link_loses_nothing() {
    let lab = up(&[berlin()]);
    let mut spec = one_way(1000);
    spec.sockets = 4;
    let report = lab.flow_for(&spec, Duration::from_secs(2)).unwrap();
    let there = &report.there;
    assert!(there.sent() >= 1900, "{}", there.sent());
    assert_eq!((there.lost(), there.duplicates(), there.reordered(), report.refused), (0, 0, 0, 0));
    assert_eq!(there.crossings(), BTreeMap::from([(by("fiber"), there.sent())]));
    assert!(there.outages().is_empty());
}

#[test]
fn each_packet_tells_which_provider_it_crossed() {
    let lab = up(&[dual()]);
    let mut spec = FlowSpec::new(host("berlin"), "2606:4700:4700::1111".parse().unwrap(), 1000);
    spec.dscp = 46;
    let flow = lab.flow(&spec).unwrap();
    until(|| flow.arrived() > 100);
    let cut = lab.fault("berlin", "fiber", Fault::InterfaceDown).unwrap();
    let arrived = flow.arrived();
    until(|| flow.arrived() > arrived + 200);
    let report = flow.finish().unwrap();
    let start = cut.checked_sub(Duration::from_secs(60)).unwrap();
    assert_eq!(report.there.crossings_between(start, cut).into_keys().collect::<Vec<_>>(), [by("fiber")]);
    let after = report.there.crossings_between(cut + Duration::from_millis(50), Instant::now());
    assert_eq!(after.into_keys().collect::<Vec<_>>(), [by("lte")]);
}

#[test]
fn nothing_stays_behind() {
    let lab = up(&[berlin()]);
    lab.fault("berlin", "fiber", Fault::Latency(Duration::from_millis(10))).unwrap();
    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000");
    let mut child = lab.spawn_in(&router(), sleeper).unwrap();
    let ns = lab.namespace(&router());
    let prefix = ns.strip_suffix("berlin").unwrap().to_owned();
    assert_eq!(lab::list(&prefix).len(), 5);
    let again = Lab::build(lab::topology([&berlin()]).unwrap(), prefix.trim_end_matches('-'));
    assert!(matches!(again, Err(lab::Error::Exists(_))));
    drop(again);
    drop(lab);
    assert_eq!(lab::list(&prefix), Vec::<String>::new());
    assert!(!child.wait().unwrap().success(), "the process has been ended");
}

/// Waits for something that must come true within ten seconds.
fn until(met: impl Fn() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < Duration::from_secs(10), "did not come true");
        std::thread::sleep(Duration::from_millis(2));
    }
}
