//! The model and the comparison on one small site, as a table.

use std::collections::BTreeMap;

use super::*;
use crate::{
    config::Snapshot,
    failover::Choice,
    state::{Gateway, LinkFacts},
};

const SITE: &str = r"
apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  lan:
    - {interface: lan0, prefixes: [192.168.10.0/24]}
  endpoints:
    fiber: {interface: wan0, gateway: 198.51.100.1}
    lte:   {interface: wwan0, gateway: auto}
  paths:
    fiber: {from: fiber, to: internet, nat: masquerade, probe: {targets: [1.1.1.1]}}
    lte:   {from: lte,   to: internet, probe: {targets: [1.1.1.1]}}
  failover:
    critical: {primary: fiber, backups: [lte], noPath: nextPolicy}
  policies:
    voice:   {priority: 100, match: {protocol: udp, dscp: [ef]}, action: {failover: critical, dscp: cs5}}
    sip:     {priority: 150, match: {protocol: udp, destinationPorts: [5060]}, action: {path: lte}}
    guests:  {priority: 200, match: {source: [192.168.10.128/25]}, action: {drop: true}}
    web:     {priority: 300, match: {protocol: tcp, destination: [203.0.113.0/24]}, action: {reject: true}}
    router:  {priority: 400, match: {inInterface: lan9}, action: {drop: true}}
    default: {priority: 1000, match: {protocol: tcp}, action: {failover: critical}}
";

/// A router with both uplinks up, its rule on the fibre, and all numbers loaded.
struct Router {
    site: Site,
    selection: Selection,
    facts: Facts,
    numbers: Allocations,
    ranges: Ranges,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl Router {
    fn new() -> Self {
        let files = [("site.yaml".to_owned(), SITE.as_bytes().to_vec())].into();
        let (config, found) = crate::config::load(&Snapshot { revision: "r".into(), files, commit: None });
        assert!(found.is_empty(), "{found:?}");
        let (intent, _) = crate::validate::check(&config);
        let site = intent.unwrap().sites()[&name("berlin")].clone();
        let link = |addresses: &[&str], gateway: Option<&str>| LinkFacts {
            up: true,
            carrier: true,
            mtu: 1500,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            gateways: gateway.map(|g| (Family::V4, Gateway::Address(g.parse().unwrap()))).into_iter().collect(),
            ..LinkFacts::default()
        };
        let links = [
            ("wan0", link(&["198.51.100.2/24"], None)),
            ("wwan0", link(&["100.64.0.2/30"], Some("100.64.0.1"))),
            ("lan0", link(&["192.168.10.1/24"], None)),
        ];
        let facts = Facts { links: links.map(|(n, link)| (n.parse().unwrap(), link)).into() };
        let targets = ["path/fiber", "path/lte", "failover/critical", "member/critical/fiber"];
        let targets: BTreeMap<Target, u32> = targets.iter().map(|t| t.parse().unwrap()).zip(1..).collect();
        let choice = Choice { active: Some(name("fiber")), tail: vec![name("lte")], ..Choice::default() };
        Self {
            site,
            selection: Selection { rules: [(name("critical"), choice)].into() },
            facts,
            numbers: Allocations { targets, ..Allocations::default() },
            ranges: Ranges::default(),
        }
    }

    fn world(&self) -> World<'_> {
        let Self { site, selection, facts, numbers, ranges } = self;
        World { site, selection, facts, numbers, ranges }
    }

    fn link(&mut self, name: &str) -> &mut LinkFacts {
        self.facts.links.get_mut(name).unwrap()
    }

    fn choice(&mut self) -> &mut Choice {
        self.selection.rules.get_mut(&name("critical")).unwrap()
    }

    fn judge(&self, flow: &str) -> (Flow, Origin, Model) {
        let flow = Asked::words(flow).and_then(Asked::flow).unwrap();
        let origin = origin(&flow, &self.site, &self.facts).unwrap();
        let model = model(&flow, &origin, &self.world());
        (flow, origin, model)
    }

    /// Policy, way and the last reason of the policies before it, on one line.
    fn says(&self, flow: &str) -> String {
        let (_, _, model) = self.judge(flow);
        let policy = model.policy.as_ref().map_or("-", |(name, _)| name.as_str()).to_owned();
        let way = match &model.verdict {
            Verdict::Main { why } => why.clone(),
            Verdict::Drop => "drop".into(),
            Verdict::Reject => "reject".into(),
            Verdict::Steered(s) => s.hop.as_ref().map_or_else(|| "unreachable".into(), ToString::to_string),
        };
        let why = model.passed.last().map(|p| format!(" [{}: {}]", p.policy, p.why)).unwrap_or_default();
        format!("{policy} {way}{why}")
    }

    fn compare(&self, flow: &str, change: impl FnOnce(&mut Kernel)) -> Compared {
        let (flow, _, model) = self.judge(flow);
        let Verdict::Steered(steered) = &model.verdict else { panic!("{model:?}") };
        let destination = "0.0.0.0/0".parse().unwrap();
        let route = Lookup::Route { table: steered.table.unwrap(), destination, hop: steered.hop.clone() };
        let mut kernel = Kernel { ruleset: Ruleset::Intact, route, tracked: None, bound: None, ahead: Vec::new() };
        change(&mut kernel);
        compare(&flow, &model, &kernel, &self.world())
    }
}

const CALL: &str = "udp 192.168.10.5:4711 to 203.0.113.9:5060 dscp ef in lan0";
const VIA_FIBER: &str = "out by wan0 via 198.51.100.1";
const VIA_LTE: &str = "out by wwan0 via 100.64.0.1";

#[test]
fn each_flow_has_its_policy_its_way_and_the_first_thing_that_others_lack() {
    let router = Router::new();
    for (flow, says) in [
        (CALL, format!("voice {VIA_FIBER}")),
        ("udp 192.168.10.5 to 203.0.113.9:5060", format!("sip {VIA_LTE} [voice: dscp 0 is not ef]")),
        ("udp 192.168.10.5 to 203.0.113.9:53", "- no policy matches [default: protocol udp is not tcp]".into()),
        ("icmp 192.168.10.200 to 1.1.1.1", "guests drop [sip: protocol icmp is not udp]".into()),
        (
            "tcp 192.168.10.5:1 -> 203.0.113.9:443",
            "web reject [guests: source 192.168.10.5 is not in 192.168.10.128/25]".into(),
        ),
        (
            "tcp 192.168.10.5 to 1.1.1.1:443 in lan0",
            format!("default {VIA_FIBER} [router: it comes in by lan0, not by lan9]"),
        ),
        ("tcp to 1.1.1.1:443", format!("default {VIA_FIBER} [router: it is the router's own, not by lan9]")),
        (
            "tcp 1.1.1.1 to 198.51.100.2:22 in wan0",
            "- it comes in by the path fiber: no policy is asked, and its answers leave by fiber".into(),
        ),
        (
            "tcp 192.168.10.5 to 192.168.10.1:22",
            "- its destination is an address of this router: no policy is asked".into(),
        ),
        ("udp 192.168.10.5 to 192.168.10.255:137", "- its destination is not one host: no policy is asked".into()),
        ("udp 192.168.10.5 to 239.1.1.1:99", "- its destination is not one host: no policy is asked".into()),
    ] {
        assert_eq!(router.says(flow), says, "{flow}");
    }
}

#[test]
fn the_path_is_the_first_of_the_rule_that_the_kernel_can_take() {
    let mut router = Router::new();
    router.choice().tail.clear();
    router.choice().active = Some(name("lte"));
    assert_eq!(router.says(CALL), format!("voice {VIA_LTE}"));
    let mut router = Router::new();
    router.link("wan0").carrier = false;
    assert_eq!(router.says(CALL), format!("voice {VIA_LTE}"));
    let (_, _, model) = router.judge(CALL);
    let Verdict::Steered(steered) = model.verdict else { panic!() };
    assert_eq!(steered.skipped, ["fiber: wan0 has no carrier, and the kernel takes the next one"]);
    assert_eq!((steered.nat, steered.path), (None, Some(name("lte"))));
    router.link("wwan0").gateways.clear();
    assert_eq!(router.says(CALL), "voice unreachable");
    router.choice().active = None;
    let passed_on = "sip unreachable [voice: its rule critical has no path that is up, and says `noPath: nextPolicy`]";
    assert_eq!(router.says(CALL), passed_on);
}

#[test]
fn what_is_typed_wrongly_is_said_with_what_to_type() {
    for (text, says) in [
        ("tcp 192.168.10.5", "where does it go?"),
        ("192.168.10.5 to 1.1.1.1", "which protocol?"),
        ("tcp 192.168.10.5 to 1.1.1.1", "to which port? write 1.1.1.1:443"),
        ("icmp 192.168.10.5 to 1.1.1.1:7", "icmp has no ports"),
        ("tcp 192.168.10.5 to [2001:db8::1]:80", "source and destination are not of one family"),
        ("icmp to 2001:db8::1", "icmp is not a protocol of IPv6"),
        ("tcp 192.168.10.5 to", "after `to` comes the destination"),
        ("192.168.10.5 1.1.1.1", "`1.1.1.1` is a second address: where the flow goes stands after `to`; write it"),
        ("tcp udp to 1.1.1.1:5", "`udp` is one word too many"),
        ("tpc to 1.1.1.1:5", "did you mean `tcp`?"),
        ("tcp to nowhere", "`nowhere` is neither an address nor one with a port"),
        ("tcp to 1.1.1.1:5 dscp eff", "`eff` is not a DSCP"),
    ] {
        let error = Asked::words(text).and_then(Asked::flow).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
    let router = Router::new();
    let flow = Asked::words("tcp 10.9.9.9 to 1.1.1.1:5").and_then(Asked::flow).unwrap();
    assert!(origin(&flow, &router.site, &router.facts).unwrap_err().contains("add `in INTERFACE`"));
    let six =
        Asked::words("tcp [2001:db8::5]:4711 to [2001:db8::9]:443 dscp 46 in lan0").and_then(Asked::flow).unwrap();
    assert_eq!(six.to_string(), "tcp [2001:db8::5]:4711 -> [2001:db8::9]:443, dscp ef");
}

#[test]
fn a_kernel_that_says_the_same_agrees_and_one_that_does_not_is_named() {
    let router = Router::new();
    assert_eq!(router.compare(CALL, |_| {}), Compared::default());
    let elsewhere = |table| Lookup::Route {
        table,
        destination: "0.0.0.0/0".parse().unwrap(),
        hop: Some(Hop { interface: "wwan0".parse().unwrap(), gateway: None }),
    };
    let red = |change: &dyn Fn(&mut Kernel), part: &str| {
        let found = router.compare(CALL, change);
        assert!(found.disagreements.iter().any(|d| d.contains(part)), "{part}: {found:?}");
    };
    red(&|k| k.route = elsewhere(254), "the model says out by wan0 via 198.51.100.1 by table");
    red(&|k| k.route = elsewhere(router.ranges.table(4)), "`patronus drift`");
    red(&|k| k.route = Lookup::Unreachable, "the kernel says unreachable");
    red(&|k| k.ruleset = Ruleset::Changed, "somebody changed our ruleset");
    red(&|k| k.ruleset = Ruleset::Missing, "no ruleset of ours is loaded");
    let ahead = |k: &mut Kernel| {
        k.route = elsewhere(100);
        k.ahead = vec!["the IPv4 rule with priority 5 is asked before ours".into()];
    };
    red(&ahead, "the IPv4 rule with priority 5 is asked before ours");
    let strange = Tracked { mark: 0x7700_0000, source_became: None, target: None };
    red(&|k| k.tracked = Some(strange.clone()), "target 119, which nobody has");
}

#[test]
fn what_has_its_reason_is_explained_and_no_error() {
    let mut router = Router::new();
    router.choice().active = Some(name("lte"));
    router.choice().tail = vec![name("fiber")];
    let specific = |k: &mut Kernel| {
        let hop = Some(Hop { interface: "lan0".parse().unwrap(), gateway: None });
        k.route = Lookup::Route { table: 254, destination: "203.0.113.0/24".parse().unwrap(), hop };
    };
    let found = router.compare(CALL, specific);
    assert!(found.disagreements.is_empty() && found.explained[0].contains("specific routes win"), "{found:?}");
    // The flow began on the fibre, where its source is translated; the rule has moved on.
    let target: Target = "member/critical/fiber".parse().unwrap();
    let number = router.numbers.targets[&target];
    let bound = |hop: &str| {
        let hop = Some(Hop { interface: hop.parse().unwrap(), gateway: Some("198.51.100.1".parse().unwrap()) });
        Some(Lookup::Route { table: router.ranges.table(number), destination: "0.0.0.0/0".parse().unwrap(), hop })
    };
    let mark = router.ranges.target_mask.mark(number) | 1;
    let source_became = Some("198.51.100.2".parse().unwrap());
    let tracked = Some(Tracked { mark, source_became, target: Some(target.clone()) });
    let found = router.compare(CALL, |k| (k.tracked, k.bound) = (tracked.clone(), bound("wan0")));
    assert!(found.disagreements.is_empty(), "{found:?}");
    assert!(found.explained[0].contains("began when critical used fiber"), "{found:?}");
    // And what its mark leads to elsewhere is an error all the same.
    let found = router.compare(CALL, |k| (k.tracked, k.bound) = (tracked.clone(), bound("wwan0")));
    assert_eq!(found.disagreements.len(), 1, "{found:?}");
    let unmarked = Some(Tracked { mark: 0, source_became: None, target: None });
    let found = router.compare(CALL, |k| k.tracked = unmarked);
    assert!(found.disagreements.is_empty() && found.explained[0].contains("without a mark of ours"), "{found:?}");
}
