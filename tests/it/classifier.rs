//! The classifier against a naive model: as a layout, as a loaded ruleset, and with real packets.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use patronus::{
    config::scalars::Protocol,
    desired::{
        self, Inputs,
        classify::{Block, Field, Interval, layout},
    },
    explain::{self, Flow, Origin, World},
    failover::Selection,
    kernel::{Kernel as _, linux::Linux},
    state::{Allocations, Facts, Key, Ranges, Value},
    units::{Dscp, Family, IfName, Name, PortRange, Ratio},
    validate::intent::{Action, Destination, Endpoint, GatewaySpec, Health, Match, Nat, Path, Policy, Probe, Site},
};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestError, TestRunner},
};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::support::netns::{in_netns, ip, nft, run, until};

const LANS: [&str; 2] = ["lan0", "lan1"];
const TCP: u8 = 6;
const UDP: u8 = 17;

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

// ---------------------------------------------------------------------------------------------- the model

/// A packet as far as a policy can see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    interface: usize,
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    ports: [u16; 2],
    dscp: u8,
}

impl Packet {
    fn has_ports(&self) -> bool {
        [TCP, UDP].contains(&self.protocol)
    }

    /// The same as `patronus explain` has it.
    fn flow(&self) -> (Flow, Origin) {
        let port = |port: u16| self.has_ports().then_some(port);
        let flow = Flow {
            protocol: Protocol(self.protocol),
            source: Some(self.source),
            given_port: port(self.ports[0]),
            destination: self.destination,
            destination_port: port(self.ports[1]),
            dscp: Some(self.dscp.to_string().parse().unwrap()),
            input: None,
        };
        (flow, Origin::Interface(LANS[self.interface].parse().unwrap()))
    }
}

/// What a policy says, word by word: the model of `patronus explain`, which these tests hold to layout and kernel.
fn fits(matches: &Match, packet: &Packet) -> bool {
    let (flow, origin) = packet.flow();
    explain::why_not(matches, &flow, &origin).is_none()
}

fn first_match<'a>(policies: &'a [Policy], packet: &Packet) -> Option<&'a Name> {
    policies.iter().find(|p| fits(&p.matches, packet)).map(|p| &p.name)
}

// ----------------------------------------------------------------------------- what a layout does to a packet

fn number(packet: &Packet, field: Field) -> u128 {
    let address = |a: IpAddr| match a {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    match field {
        Field::InInterface => 0,
        Field::Protocol => packet.protocol.into(),
        Field::Source => address(packet.source),
        Field::Destination => address(packet.destination),
        Field::SourcePort => packet.ports[0].into(),
        Field::DestinationPort => packet.ports[1].into(),
        Field::Dscp => packet.dscp.into(),
    }
}

fn holds(packet: &Packet, field: Field, value: &Interval) -> bool {
    if field == Field::InInterface {
        return value.text == format!("\"{}\"", LANS[packet.interface]);
    }
    (value.first..=value.last).contains(&number(packet, field))
}

/// The policy that the blocks send a packet to. A map in which two entries hold one packet is refused, as nft
/// refuses it.
fn classified(blocks: &[Block], packet: &Packet) -> Result<Option<Name>, String> {
    for block in blocks {
        match block {
            Block::Single(rule) => {
                if rule.fields.iter().all(|(field, values)| values.iter().any(|v| holds(packet, *field, v))) {
                    return Ok(Some(rule.policy.clone()));
                }
            }
            Block::Map { fields, entries } => {
                let held = |key: &[Interval]| fields.iter().zip(key).all(|(field, value)| holds(packet, *field, value));
                let found: Vec<&Name> = entries.iter().filter(|(key, _)| held(key)).map(|(_, name)| name).collect();
                match found[..] {
                    [] => {}
                    [one] => return Ok(Some(one.clone())),
                    _ => return Err(format!("a map holds {packet:?} {} times", found.len())),
                }
            }
        }
    }
    Ok(None)
}

// ------------------------------------------------------------------------------------------- random policies

/// Prefixes within a base that nest and touch each other.
fn prefix4(base: Ipv4Addr) -> impl Strategy<Value = IpNet> {
    let length = prop_oneof![Just(0_u8), Just(8), Just(10), 14_u8..20, 22_u8..26, 30_u8..=32];
    (0_u32..1 << 6, length).prop_map(move |(bits, length)| {
        let spread = (bits & 3) << 22 | (bits >> 2 & 3) << 14 | (bits >> 4 & 1) << 8 | (bits >> 5);
        let address = if length == 0 { 0 } else { base.to_bits() | spread };
        Ipv4Net::new(address.into(), length).unwrap().trunc().into()
    })
}

fn prefix6(base: Ipv6Addr) -> impl Strategy<Value = IpNet> {
    let length = prop_oneof![Just(0_u8), Just(48), 52_u8..66, 120_u8..=128];
    (0_u128..1 << 6, length).prop_map(move |(bits, length)| {
        let spread = (bits & 3) << 72 | (bits >> 2 & 3) << 62 | (bits >> 4 & 1) << 8 | (bits >> 5);
        let address = if length == 0 { 0 } else { base.to_bits() | spread };
        Ipv6Net::new(address.into(), length).unwrap().trunc().into()
    })
}

const SOURCE4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
const DESTINATION4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0);
const DESTINATION6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0);

fn prefixes(four: Ipv4Addr, six: Ipv6Addr) -> impl Strategy<Value = Vec<IpNet>> {
    let some = prop::collection::btree_set(prop_oneof![3 => prefix4(four), 1 => prefix6(six)], 1..4);
    prop_oneof![1 => Just(Vec::new()), 1 => some.prop_map(|set| set.into_iter().collect())]
}

const EDGES: [u16; 14] = [1, 2, 3, 79, 80, 81, 442, 443, 1023, 1024, 5060, 20_000, 65_534, 65_535];

/// Lists of ports, merged as validation merges them.
fn ports() -> impl Strategy<Value = Vec<PortRange>> {
    let one = (0..EDGES.len(), 0_usize..4)
        .prop_map(|(from, more)| PortRange { first: EDGES[from], last: EDGES[(from + more).min(EDGES.len() - 1)] });
    let some = prop::collection::btree_set(one, 1..4).prop_map(|set| {
        let mut merged: Vec<PortRange> = Vec::new();
        for range in set {
            match merged.last_mut().filter(|last| u32::from(range.first) <= u32::from(last.last) + 1) {
                Some(last) => last.last = last.last.max(range.last),
                None => merged.push(range),
            }
        }
        merged
    });
    prop_oneof![2 => Just(Vec::new()), 1 => some]
}

fn matches() -> impl Strategy<Value = Match> {
    let protocols =
        prop_oneof![Just(vec![]), Just(vec![TCP]), Just(vec![UDP]), Just(vec![1]), Just(vec![47]), Just(vec![58])];
    let dscp = prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::collection::btree_set(prop::sample::select(vec![0_u8, 1, 8, 10, 46, 62, 63]), 1..4)
            .prop_map(|set| set.into_iter().map(|d| d.to_string().parse::<Dscp>().unwrap()).collect()),
    ];
    let interface =
        prop_oneof![9 => Just(None), 1 => (0..LANS.len()).prop_map(|i| Some(LANS[i].parse::<IfName>().unwrap()))];
    (prefixes(SOURCE4, SOURCE6), prefixes(DESTINATION4, DESTINATION6), protocols, ports(), ports(), dscp, interface)
        .prop_map(|(source, destination, protocols, source_ports, destination_ports, dscp, in_interface)| {
            let with_ports = !source_ports.is_empty() || !destination_ports.is_empty();
            // As validation has it: ports alone mean TCP and UDP, and other protocols have none.
            let protocols = match protocols[..] {
                [] | [1 | 47 | 58] if with_ports => vec![TCP, UDP],
                _ => protocols,
            };
            Match { source, destination, protocols, source_ports, destination_ports, dscp, in_interface }
        })
}

fn policies(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<Policy>> {
    let action =
        prop_oneof![4 => Just(Action::Path(name("fiber"))), 1 => Just(Action::Drop), 1 => Just(Action::Reject)];
    prop::collection::vec((matches(), action), count).prop_map(|all| {
        let policy = |(n, (matches, action)): (usize, (Match, Action))| Policy {
            name: name(&format!("p{n}")),
            priority: u32::try_from(n).unwrap(),
            matches,
            action,
            set_dscp: None,
        };
        all.into_iter().enumerate().map(policy).collect()
    })
}

/// Policies that all look at the same fields, so that they compete for one map.
fn alike(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Policy>> {
    (prop::collection::vec(any::<bool>(), 6), policies(count)).prop_map(|(keep, mut all)| {
        for m in all.iter_mut().map(|p| &mut p.matches) {
            let fill = |nets: &mut Vec<IpNet>, four: Ipv4Addr| {
                if nets.is_empty() {
                    nets.push(Ipv4Net::new(four, 9).unwrap().into());
                }
            };
            if keep[0] {
                fill(&mut m.source, SOURCE4);
            } else {
                m.source.clear();
            }
            if keep[1] {
                fill(&mut m.destination, DESTINATION4);
            } else {
                m.destination.clear();
            }
            let port = |list: &mut Vec<PortRange>| {
                if list.is_empty() {
                    list.push(PortRange { first: 80, last: 81 });
                }
            };
            if keep[2] {
                port(&mut m.source_ports);
            } else {
                m.source_ports.clear();
            }
            if keep[3] {
                port(&mut m.destination_ports);
            } else {
                m.destination_ports.clear();
            }
            if keep[4] && m.dscp.is_empty() {
                m.dscp.push("ef".parse().unwrap());
            }
            if !keep[4] {
                m.dscp.clear();
            }
            if keep[5] && m.protocols.is_empty() || keep[2] || keep[3] {
                m.protocols = vec![TCP, UDP];
            }
            m.in_interface = None;
        }
        all
    })
}

fn any_policies(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Policy>> {
    prop_oneof![policies(count.clone()), alike(count)]
}

/// An address at the edge of a prefix, just beyond it, or within.
fn near(net: &IpNet, pick: u8) -> IpAddr {
    match (net.network(), net.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Addr::from_bits(match pick % 5 {
            0 => first.to_bits(),
            1 => last.to_bits(),
            2 => first.to_bits().wrapping_sub(1),
            3 => last.to_bits().wrapping_add(1),
            _ => first.to_bits() + (last.to_bits() - first.to_bits()) / 3,
        })
        .into(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Addr::from_bits(match pick % 5 {
            0 => first.to_bits(),
            1 => last.to_bits(),
            2 => first.to_bits().wrapping_sub(1),
            3 => last.to_bits().wrapping_add(1),
            _ => first.to_bits() + (last.to_bits() - first.to_bits()) / 3,
        })
        .into(),
        _ => unreachable!("both ends of a prefix are of its family"),
    }
}

/// A packet that some policy matches, or narrowly does not; whatever the policy leaves open is chosen by `dice`.
fn packet(policies: &[Policy], dice: [u8; 12]) -> Packet {
    let fallback = Match::default();
    let m = policies.get(usize::from(dice[0]) % policies.len().max(1)).map_or(&fallback, |p| &p.matches);
    let six = dice[1].is_multiple_of(4);
    let mine = |nets: &[IpNet], base: IpNet, pick: u8, edge: u8| {
        let ours: Vec<&IpNet> = nets.iter().filter(|n| n.addr().is_ipv6() == six).collect();
        let net = if ours.is_empty() { base } else { *ours[usize::from(pick) % ours.len()] };
        near(&net, edge)
    };
    let base = |four, six_base| {
        if six { Ipv6Net::new(six_base, 48).unwrap().into() } else { IpNet::from(Ipv4Net::new(four, 10).unwrap()) }
    };
    let port = |list: &[PortRange], pick: u8, edge: u8| match list {
        [] => EDGES[usize::from(pick) % EDGES.len()],
        list => {
            let range = list[usize::from(pick) % list.len()];
            let near = [range.first, range.last, range.first.saturating_sub(1), range.last.saturating_add(1)];
            near[usize::from(edge) % 4].max(1)
        }
    };
    let ping = if six { 58 } else { 1 };
    let protocol = match &m.protocols[..] {
        [] => [TCP, UDP, ping, 47][usize::from(dice[2]) % 4],
        list => list[usize::from(dice[2]) % list.len()],
    };
    let protocol = if [1, 58].contains(&protocol) { ping } else { protocol };
    Packet {
        interface: usize::from(dice[3]) % LANS.len(),
        protocol,
        source: mine(&m.source, base(SOURCE4, SOURCE6), dice[4], dice[5]),
        destination: mine(&m.destination, base(DESTINATION4, DESTINATION6), dice[6], dice[7]),
        ports: [port(&m.source_ports, dice[8], dice[9]), port(&m.destination_ports, dice[10], dice[9] / 4)],
        dscp: m.dscp.get(usize::from(dice[11]) % m.dscp.len().max(1)).map_or(dice[11] % 64, |d| d.value()),
    }
}

fn with_packets(
    policies: impl Strategy<Value = Vec<Policy>>,
    count: usize,
) -> impl Strategy<Value = (Vec<Policy>, Vec<Packet>)> {
    (policies, prop::collection::vec(any::<[u8; 12]>(), count)).prop_map(|(policies, dice)| {
        let packets = dice.into_iter().map(|d| packet(&policies, d)).collect();
        (policies, packets)
    })
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

/// Whether a way to lay out policies keeps the first match of every packet.
fn agrees(
    lay_out: impl Fn(&[Policy], Family) -> Vec<Block>,
    (policies, packets): &(Vec<Policy>, Vec<Packet>),
) -> Result<(), TestCaseError> {
    let blocks = Family::ALL.map(|family| lay_out(policies, family));
    for packet in packets {
        let family = usize::from(packet.source.is_ipv6());
        let found = classified(&blocks[family], packet).map_err(TestCaseError::fail)?;
        prop_assert_eq!(found.as_ref(), first_match(policies, packet), "{:?}", packet);
    }
    Ok(())
}

#[test]
fn the_layout_keeps_the_first_match() {
    let result = runner(600).run(&with_packets(any_policies(0..12), 60), |case| agrees(layout, &case));
    result.unwrap_or_else(|e| panic!("{e}"));
}

/// What the layout would be if nobody looked whether boxes overlap: one map of all that look at the same fields.
fn careless(policies: &[Policy], family: Family) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for block in policies.iter().flat_map(|p| layout(std::slice::from_ref(p), family)) {
        let Block::Single(rule) = &block else { continue };
        let fields: Vec<Field> = rule.fields.iter().map(|(f, _)| *f).collect();
        let mut keys: Vec<Vec<Interval>> = vec![Vec::new()];
        for (_, values) in &rule.fields {
            let longer = |key: &Vec<Interval>, value: &Interval| [key.as_slice(), std::slice::from_ref(value)].concat();
            keys = keys.iter().flat_map(|key| values.iter().map(move |value| longer(key, value))).collect();
        }
        let more = keys.into_iter().map(|key| (key, rule.policy.clone()));
        match blocks.last_mut() {
            Some(Block::Map { fields: same, entries }) if *same == fields => entries.extend(more),
            _ => blocks.push(Block::Map { fields, entries: more.collect() }),
        }
    }
    blocks
}

/// The twin of the test above: it has to find a layout that ignores overlaps, and one that sorts the policies.
#[test]
fn a_layout_that_forgets_the_order_is_found() {
    let red = runner(600).run(&with_packets(any_policies(0..12), 60), |case| agrees(careless, &case));
    assert!(matches!(red, Err(TestError::Fail(..))), "{red:?}");
    let backwards = |policies: &[Policy], family| layout(&policies.iter().rev().cloned().collect::<Vec<_>>(), family);
    let red = runner(600).run(&with_packets(any_policies(0..12), 60), |case| agrees(backwards, &case));
    assert!(matches!(red, Err(TestError::Fail(..))), "{red:?}");
}

/// The whole explanation, on policies of a site: the policy that it names is the one that a packet is sent to.
#[test]
fn the_explanation_names_the_policy_that_the_classifier_takes() {
    let result = runner(200).run(&with_packets(any_policies(0..12), 20), |(policies, packets)| {
        let (blocks, site) = (Family::ALL.map(|family| layout(&policies, family)), site(policies));
        let (facts, numbers, ranges) = (Facts::default(), Allocations::default(), Ranges::default());
        let selection = Selection::default();
        let world = World { site: &site, selection: &selection, facts: &facts, numbers: &numbers, ranges: &ranges };
        for packet in packets.iter().filter(|packet| routable(packet)) {
            let (flow, origin) = packet.flow();
            let model = explain::model(&flow, &origin, &world);
            let found =
                classified(&blocks[usize::from(packet.source.is_ipv6())], packet).map_err(TestCaseError::fail)?;
            prop_assert_eq!(model.policy.map(|(name, _)| name), found, "{:?}", packet);
            prop_assert!(model.passed.iter().all(|passed| !passed.why.is_empty()));
        }
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn policies_that_all_overlap_stay_one_rule_each() {
    let all: Vec<Policy> = (0..500_u16)
        .map(|n| Policy {
            name: name(&format!("p{n}")),
            priority: n.into(),
            matches: Match {
                source: vec!["10.0.0.0/8".parse().unwrap()],
                protocols: vec![UDP],
                destination_ports: vec![PortRange { first: 1, last: 60_000 - n }],
                ..Match::default()
            },
            action: Action::Drop,
            set_dscp: None,
        })
        .collect();
    assert_eq!(layout(&all, Family::V4).len(), 500);
    let apart = |n: u16| PortRange { first: 1 + 10 * n, last: 10 + 10 * n };
    let mut all = all;
    all.iter_mut().zip(0..).for_each(|(p, n)| p.matches.destination_ports = vec![apart(n)]);
    assert!(matches!(&layout(&all, Family::V4)[..], [Block::Map { entries, .. }] if entries.len() == 500));
}

// ------------------------------------------------------------------------------------------- the ruleset

fn site(policies: Vec<Policy>) -> Site {
    let interface: IfName = "wan0".parse().unwrap();
    let probe = Probe::default();
    let health = Health {
        latency: Duration::from_millis(150),
        loss: Ratio::of(1, 50),
        jitter: Duration::from_millis(30),
        recover: None,
    };
    let fiber = Path {
        name: name("fiber"),
        from: name("fiber"),
        to: Destination::Internet,
        interface: interface.clone(),
        nat: Nat::Masquerade,
        mtu: None,
        probe: probe.into(),
        health,
    };
    let endpoint = Endpoint {
        interface,
        address: None,
        gateway: GatewaySpec::Auto,
        down: None,
        up: None,
        cost: 1,
        metered: false,
    };
    Site {
        name: name("berlin"),
        labels: BTreeMap::new(),
        lan: Vec::new(),
        endpoints: [(name("fiber"), endpoint)].into(),
        paths: [(name("fiber"), fiber.into())].into(),
        rules: BTreeMap::new(),
        policies,
        beyond: BTreeMap::new(),
    }
}

fn ruleset(policies: Vec<Policy>) -> String {
    let inputs = Inputs {
        selection: &Selection::default(),
        facts: &Facts::default(),
        known: &Allocations::default(),
        ranges: &Ranges::default(),
        originals: &BTreeMap::new(),
    };
    let compiled = desired::compile(&site(policies), inputs).unwrap();
    match compiled.state.objects.get(&Key::Nft) {
        Some(Value::Nft(table)) => table.source.to_string(),
        other => panic!("{other:?}"),
    }
}

fn samples(
    strategy: impl Strategy<Value = (Vec<Policy>, Vec<Packet>)>,
    count: usize,
) -> Vec<(Vec<Policy>, Vec<Packet>)> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Loads policies, and loads again what nft lists: both must list alike, or drift would be seen where there is none.
async fn stands(kernel: &Linux, policies: &[Policy]) -> Result<(), String> {
    let source = ruleset(policies.to_vec());
    let listed = kernel.canonical(&source).await.map_err(|e| format!("{e}\n{source}"))?;
    let again = kernel.canonical(&listed).await.map_err(|e| format!("the listing: {e}\n{listed}"))?;
    if again == listed { Ok(()) } else { Err(format!("{listed}\nis listed as\n{again}")) }
}

#[test]
fn every_ruleset_loads_and_is_listed_as_it_is() {
    in_netns(async || {
        let kernel = Linux::connect().unwrap();
        for (policies, _) in samples(with_packets(any_policies(1..30), 0), 60) {
            stands(&kernel, &policies).await.unwrap_or_else(|e| panic!("{e}"));
        }
        for (policies, _) in samples(with_packets(policies(1_000), 0), 1) {
            stands(&kernel, &policies).await.unwrap_or_else(|e| panic!("{}", &e[..2000]));
        }
    });
}

// -------------------------------------------------------------------------------------------- real packets

/// Adds 16-bit words in one's complement (RFC 1071).
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = parts.iter().flat_map(|part| part.chunks(2)).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// A header of the transport protocol, with its checksum.
fn transport(packet: &Packet, addresses: &[u8]) -> Vec<u8> {
    let [source, destination] = packet.ports.map(u16::to_be_bytes);
    let (mut bytes, place) = match packet.protocol {
        TCP => ([&source[..], &destination, &[0; 8], &[0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]].concat(), Some(16)),
        UDP => ([&source[..], &destination, &[0, 12, 0, 0], b"data"].concat(), Some(6)),
        1 => (vec![8, 0, 0, 0, 0x12, 0x34, 0, 1], Some(2)),
        58 => (vec![128, 0, 0, 0, 0x12, 0x34, 0, 1], Some(2)),
        _ => (vec![0; 16], None),
    };
    if let Some(place) = place {
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let pseudo: &[u8] = if packet.protocol == 1 { &[] } else { addresses };
        let tail = if packet.protocol == 1 { Vec::new() } else { vec![0, packet.protocol, length[0], length[1]] };
        let sum = checksum(&[pseudo, &tail, &bytes]);
        bytes[place..place + 2].copy_from_slice(&sum);
    }
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn bytes(packet: &Packet) -> Vec<u8> {
    let addresses = [octets(packet.source), octets(packet.destination)].concat();
    let payload = transport(packet, &addresses);
    if packet.source.is_ipv6() {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let class = [0x60 | packet.dscp >> 2, (packet.dscp & 3) << 6, 0, 0];
        return [&class[..], &length, &[packet.protocol, 64], &addresses, &payload].concat();
    }
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header =
        [&[0x45, packet.dscp << 2, length[0], length[1], 0, 1, 0, 0, 64, packet.protocol, 0, 0], &addresses[..]]
            .concat();
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    [header, payload].concat()
}

/// Whether a router forwards packets between these addresses at all.
fn routable(packet: &Packet) -> bool {
    let sane = |address: IpAddr| match address {
        IpAddr::V4(a) => (1..=126).contains(&a.octets()[0]),
        IpAddr::V6(a) => a.segments()[0] == 0x2001,
    };
    let generic = packet.source.is_ipv6() == packet.destination.is_ipv6();
    generic && sane(packet.source) && sane(packet.destination) && packet.source != packet.destination
}

fn lan(device: &str) -> SyncDevice {
    let tun = DeviceBuilder::new().name(device).layer(Layer::L3).packet_information(false).build_sync().unwrap();
    tun.set_nonblocking(true).unwrap();
    ip(&format!("link set {device} up"));
    tun
}

/// A router that forwards everything nowhere: each packet is the first of its flow.
fn router() -> Vec<SyncDevice> {
    for setting in [
        "ipv4/conf/all/rp_filter=0",
        "ipv4/conf/default/rp_filter=0",
        "ipv4/ip_forward=1",
        "ipv6/conf/all/forwarding=1",
    ] {
        let (path, value) = setting.split_once('=').unwrap();
        std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
    }
    ip("link add wan0 type veth peer name isp0");
    ip("link set isp0 up");
    ip("link set wan0 up");
    ip("route add default dev wan0");
    ip("-6 route add default dev wan0");
    nft("table inet foreign { counter seen { }
         chain see { type filter hook prerouting priority -160; iifname \"lan*\" meta l4proto != 58 counter name seen
           iifname \"lan*\" icmpv6 type echo-request counter name seen; }
         chain stop { type filter hook forward priority 300; drop; };
       }");
    LANS.map(lan).into()
}

fn counters(table: &str) -> BTreeMap<String, u64> {
    let text = run("nft", &["-j", "list", "counters", "table", "inet", table], "");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let counter = |item: &serde_json::Value| {
        let counter = item.get("counter")?;
        Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
    };
    json["nftables"].as_array().unwrap().iter().filter_map(counter).collect()
}

/// Sends packets by the two LANs and waits until the kernel has seen them.
async fn send(lans: &[SyncDevice], packets: &[Packet]) {
    let before = counters("foreign")["seen"];
    for packet in packets {
        lans[packet.interface].send(&bytes(packet)).unwrap();
    }
    let all = before + packets.len() as u64;
    until("every packet to arrive", || counters("foreign")["seen"] == all).await;
}

/// Packets by policy, as the kernel counts them and as the model does.
async fn compare(lans: &[SyncDevice], policies: &[Policy], packets: &[Packet]) -> Result<(), String> {
    nft(&format!("table inet patronus {{}}; delete table inet patronus; {}", ruleset(policies.to_vec())));
    send(lans, packets).await;
    let mut model: BTreeMap<String, u64> = policies.iter().map(|p| (format!("policy_{}", p.name), 0)).collect();
    for name in packets.iter().filter_map(|packet| first_match(policies, packet)) {
        *model.get_mut(&format!("policy_{name}")).unwrap() += 1;
    }
    let kernel = counters("patronus");
    if kernel == model { Ok(()) } else { Err(format!("the kernel counts {kernel:?}\nthe model {model:?}")) }
}

#[test]
fn the_kernel_classifies_as_the_model_does() {
    in_netns(async || {
        let lans = router();
        let (mut sent, mut matched) = (0, 0);
        for (policies, packets) in samples(with_packets(any_policies(1..25), 400), 20) {
            let packets: Vec<Packet> = packets.into_iter().filter(routable).collect();
            sent += packets.len();
            matched += packets.iter().filter(|p| first_match(&policies, p).is_some()).count();
            if let Err(error) = compare(&lans, &policies, &packets).await {
                for packet in &packets {
                    compare(&lans, &policies, std::slice::from_ref(packet))
                        .await
                        .unwrap_or_else(|e| panic!("{packet:?}\n{e}\n{policies:#?}"));
                }
                panic!("only together: {error}");
            }
        }
        assert!(sent > 2_000 && matched > sent / 3, "{matched} of {sent} packets met a policy: too few to tell");
    });
}

/// The twin: a model that does not know the order is not what the kernel does.
#[test]
fn packets_show_a_wrong_order() {
    in_netns(async || {
        let lans = router();
        let red = async |(policies, packets): (Vec<Policy>, Vec<Packet>)| {
            let packets: Vec<Packet> = packets.into_iter().filter(routable).collect();
            nft(&format!("table inet patronus {{}}; delete table inet patronus; {}", ruleset(policies.clone())));
            send(&lans, &packets).await;
            let wrong: Vec<Policy> = policies.into_iter().rev().collect();
            let count = |p: &Policy| packets.iter().filter(|k| first_match(&wrong, k) == Some(&p.name)).count() as u64;
            let model: BTreeMap<String, u64> = wrong.iter().map(|p| (format!("policy_{}", p.name), count(p))).collect();
            counters("patronus") != model
        };
        for sample in samples(with_packets(policies(10..20), 300), 3) {
            assert!(red(sample).await);
        }
    });
}
