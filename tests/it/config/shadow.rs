//! Policies that can never match, against a model that only knows packets.
//!
//! The model shares no code with the validator: it holds what the YAML was written from, and walks the policies
//! in order for one packet at a time.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner},
};

use super::*;

/// A small world, so that policies meet: eight addresses of one network, one outside, a few of IPv6.
const NETS: [&str; 9] = [
    "192.0.2.0/29",
    "192.0.2.0/30",
    "192.0.2.4/30",
    "192.0.2.0/31",
    "192.0.2.2/31",
    "192.0.2.6/32",
    "0.0.0.0/0",
    "2001:db8::/126",
    "2001:db8::2/127",
];
const PORTS: [(u16, u16); 6] = [(1, 65535), (80, 80), (80, 90), (81, 90), (85, 100), (443, 443)];
const CODES_OF_DSCP: [u8; 3] = [0, 26, 46];
const INTERFACES: [&str; 2] = ["lan0", "lan1"];

/// A match as the test wrote it; empty is everything.
#[derive(Debug, Clone)]
struct Wanted {
    source: Vec<&'static str>,
    destination: Vec<&'static str>,
    protocol: Option<u8>,
    ports: Vec<(u16, u16)>,
    dscp: Vec<u8>,
    interface: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct Packet {
    source: std::net::IpAddr,
    destination: std::net::IpAddr,
    protocol: u8,
    port: u16,
    dscp: u8,
    interface: &'static str,
}

/// Which field the validator is not shown: the sabotage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hidden {
    Nothing,
    Source,
    Destination,
    Protocol,
    Ports,
    Dscp,
    Interface,
}

impl Wanted {
    fn takes(&self, packet: &Packet) -> bool {
        let within = |nets: &[&str], address| {
            nets.is_empty() || nets.iter().any(|net| net.parse::<ipnet::IpNet>().unwrap().contains(&address))
        };
        // Ports without a protocol mean TCP and UDP.
        let protocol = match self.protocol {
            Some(protocol) => packet.protocol == protocol,
            None => self.ports.is_empty() || [6, 17].contains(&packet.protocol),
        };
        let port = self.ports.is_empty() || self.ports.iter().any(|(a, b)| (*a..=*b).contains(&packet.port));
        within(&self.source, packet.source)
            && within(&self.destination, packet.destination)
            && protocol
            && port
            && (self.dscp.is_empty() || self.dscp.contains(&packet.dscp))
            && self.interface.is_none_or(|name| name == packet.interface)
    }

    /// What a validator sees that does not look at one field.
    fn without(&self, hidden: Hidden) -> Self {
        let mut seen = self.clone();
        match hidden {
            Hidden::Nothing => {}
            Hidden::Source => seen.source.clear(),
            Hidden::Destination => seen.destination.clear(),
            Hidden::Protocol => seen.protocol = None,
            Hidden::Ports => seen.ports.clear(),
            Hidden::Dscp => seen.dscp.clear(),
            Hidden::Interface => seen.interface = None,
        }
        seen
    }

    fn yaml(&self) -> String {
        let quoted = |nets: &[&str]| nets.iter().map(|net| format!("\"{net}\"")).collect::<Vec<_>>().join(", ");
        let mut fields = Vec::new();
        if !self.source.is_empty() {
            fields.push(format!("source: [{}]", quoted(&self.source)));
        }
        if !self.destination.is_empty() {
            fields.push(format!("destination: [{}]", quoted(&self.destination)));
        }
        fields.extend(self.protocol.map(|protocol| format!("protocol: {protocol}")));
        if !self.ports.is_empty() {
            let ports: Vec<String> = self.ports.iter().map(|(a, b)| format!("{a}-{b}")).collect();
            fields.push(format!("destinationPorts: [{}]", ports.join(", ")));
        }
        if !self.dscp.is_empty() {
            fields.push(format!("dscp: {:?}", self.dscp));
        }
        fields.extend(self.interface.map(|name| format!("inInterface: {name}")));
        format!("{{{}}}", fields.join(", "))
    }

    /// The same or less: each field keeps a part of what it had.
    fn narrowed(&self, pick: &[usize]) -> Self {
        let some = |n: usize| pick[n % pick.len()];
        let mut narrow = self.clone();
        narrow.source.truncate(1 + some(0) % 2);
        narrow.destination.truncate(1 + some(1) % 2);
        narrow.ports.truncate(1);
        narrow.dscp.truncate(1);
        if some(2) % 2 == 0 {
            narrow.interface = narrow.interface.or(Some(INTERFACES[some(3) % 2]));
        }
        if some(4) % 2 == 0 && narrow.dscp.is_empty() {
            narrow.dscp = vec![CODES_OF_DSCP[some(5) % 3]];
        }
        narrow
    }
}

fn some_of<T: Clone + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![Just(Vec::new()), vec(select(all), 1..3)]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let protocol = prop_oneof![Just(None), select(&[6_u8, 17][..]).prop_map(Some)];
    let interface = prop_oneof![Just(None), select(&INTERFACES[..]).prop_map(Some)];
    let fields = (some_of(&NETS), some_of(&NETS), protocol, some_of(&PORTS), some_of(&CODES_OF_DSCP), interface);
    fields.prop_map(|(source, destination, protocol, ports, dscp, interface)| Wanted {
        source,
        destination,
        protocol,
        ports,
        dscp,
        interface,
    })
}

fn packet() -> impl Strategy<Value = Packet> {
    let pair = prop_oneof![
        4 => (0_u8..9, 0_u8..9).prop_map(|(a, b)| [a, b].map(|n| std::net::IpAddr::from([192, 0, 2, n]))),
        1 => (0_u16..5, 0_u16..5)
            .prop_map(|(a, b)| [a, b].map(|n| std::net::IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]))),
    ];
    let port = select(&[1_u16, 79, 80, 81, 84, 85, 90, 91, 100, 101, 443, 65535][..]);
    let protocol = select(&[1_u8, 6, 17][..]);
    let rest = (protocol, port, select(&[0_u8, 26, 46, 7][..]), select(&["lan0", "lan1", "lan2"][..]));
    (pair, rest).prop_map(|([source, destination], (protocol, port, dscp, interface))| Packet {
        source,
        destination,
        protocol,
        port,
        dscp,
        interface,
    })
}

fn site(policies: &[Wanted]) -> String {
    let mut text = "apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {name: a}\nspec:\n  \
        endpoints: {fiber: {interface: wan0}}\n  paths: {fiber: {from: fiber, to: internet}}\n  policies:\n"
        .to_owned();
    for (n, policy) in policies.iter().enumerate() {
        let _ = writeln!(text, "    p{n}: {{priority: {n}, match: {}, action: {{path: fiber}}}}", policy.yaml());
    }
    text
}

/// The numbers of the policies that the validator calls unreachable; those after a catch-all count as well.
fn reported(policies: &[Wanted]) -> BTreeSet<usize> {
    let (_, _, found) = inspect(&one(&site(policies)), &Options::default());
    let mut numbers = BTreeSet::new();
    for finding in &found {
        let named = |text: &str| text.split('`').nth(1).unwrap()[1..].parse::<usize>().unwrap();
        match finding.code.info().code {
            "PAT0402" => drop(numbers.insert(named(&finding.message))),
            "PAT0403" => numbers.extend(named(&finding.message) + 1..policies.len()),
            _ => {}
        }
    }
    numbers
}

fn runner(cases: u32) -> TestRunner {
    let runs = Runs { cases, failure_persistence: None, ..Runs::default() };
    TestRunner::new_with_rng(runs, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// How many sampled packets are first taken by a policy that was called unreachable, and how many policies were.
fn contradictions(cases: u32, hidden: Hidden) -> (usize, usize) {
    let (wrong, shadowed) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let case = (vec(wanted(), 2..8), vec(packet(), 60));
    let run = runner(cases).run(&case, |(policies, packets)| {
        let seen: Vec<Wanted> = policies.iter().map(|policy| policy.without(hidden)).collect();
        let numbers = reported(&seen);
        shadowed.set(shadowed.get() + numbers.len());
        let first = packets.iter().filter_map(|packet| policies.iter().position(|policy| policy.takes(packet)));
        wrong.set(wrong.get() + first.filter(|n| numbers.contains(n)).count());
        Ok(())
    });
    run.unwrap();
    (wrong.get(), shadowed.get())
}

#[test]
fn a_shadowed_policy_is_never_the_first_match_of_a_packet() {
    let (wrong, shadowed) = contradictions(1_500, Hidden::Nothing);
    assert!(shadowed > 500, "only {shadowed} policies were shadowed: the world is too large");
    assert_eq!(wrong, 0);
}

/// A validator that does not look at one of the fields is caught by the packets.
#[test]
fn sabotage_the_packets_contradict_a_validator_that_overlooks_a_field() {
    use Hidden::{Destination, Dscp, Interface, Ports, Protocol, Source};
    for hidden in [Source, Destination, Protocol, Ports, Dscp, Interface] {
        let (wrong, _) = contradictions(200, hidden);
        assert!(wrong > 0, "{hidden:?}: nobody noticed");
    }
}

#[test]
fn a_policy_inside_an_earlier_one_is_reported() {
    let case = (wanted(), vec(wanted(), 0..3), vec(any::<usize>(), 6));
    let run = runner(1_500).run(&case, |(wide, between, pick)| {
        let narrow = wide.narrowed(&pick);
        let mut policies = vec![wide];
        policies.extend(between);
        policies.push(narrow);
        let (_, _, found) = inspect(&one(&site(&policies)), &Options::default());
        // What fits no packet is told as that.
        let last = format!("`p{}`", policies.len() - 1);
        let empty = found.iter().any(|d| d.code.info().code == "PAT0404");
        prop_assert!(empty || reported(&policies).contains(&(policies.len() - 1)), "{last} is not in {found:?}");
        Ok(())
    });
    run.unwrap();
}

#[test]
fn a_thousand_policies_of_one_site_are_checked_in_two_seconds() {
    let policies: Vec<Wanted> = (0..1_000_u16)
        .map(|n| Wanted {
            source: Vec::new(),
            destination: Vec::new(),
            protocol: Some(17),
            ports: vec![(1 + n * 40, 20 + n * 40)],
            dscp: Vec::new(),
            interface: None,
        })
        .collect();
    let text = site(&policies);
    let begin = Instant::now();
    let (config, intent, found) = inspect(&one(&text), &Options::default());
    let took = begin.elapsed();
    assert_eq!(intent.expect("valid").sites().values().next().unwrap().policies.len(), 1_000);
    assert!(found.len() == 1 && config.objects() == 1_002, "{found:?}");
    println!("1,000 policies on one site: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
}
