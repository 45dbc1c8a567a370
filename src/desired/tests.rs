//! The compiler: numbers, tables, the ruleset.

use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::{
    failover::Choice,
    state::{Gateway, LinkFacts, RouteKey, RouteValue, Target},
    units::Ratio,
    validate::intent::{
        Action, Balance, Destination, Endpoint, GatewaySpec, Health, Lan, Match, Nat, Path, Policy, Probe, Rule,
        Strategy, TunnelSpec,
    },
};

fn name(s: &str) -> Name {
    s.parse().expect("a name")
}

fn path(n: &str, interface: &str) -> Path {
    Path {
        name: name(n),
        from: name(n),
        to: Destination::Internet,
        interface: interface.parse().expect("an interface"),
        nat: Nat::Masquerade,
        mtu: None,
        probe: Probe { targets: vec!["1.1.1.1".parse().expect("an address")], ..Probe::default() }.into(),
        health: Health {
            latency: Duration::from_millis(150),
            loss: Ratio::of(2, 100),
            jitter: Duration::from_millis(30),
            recover: None,
        },
    }
}

fn endpoint(interface: &str, gateway: GatewaySpec) -> Endpoint {
    let interface = interface.parse().expect("an interface");
    Endpoint { interface, address: None, gateway, down: None, up: None, cost: 1, metered: false }
}

fn policy(n: &str, priority: u32, matches: Match, action: Action) -> Policy {
    Policy { name: name(n), priority, matches, action, set_dscp: None }
}

fn berlin() -> Site {
    let dscp = |s: &str| s.parse().expect("a DSCP");
    let net = |s: &str| s.parse().expect("a prefix");
    let rule = Rule { strategy: Strategy::BestScore, ..Rule::new(name("critical"), vec![name("fiber"), name("lte")]) };
    let voice = Match { protocols: vec![17], dscp: vec![dscp("ef")], ..Match::default() };
    let guests = Match { source: vec![net("192.168.10.128/25")], ..Match::default() };
    Site {
        name: name("berlin"),
        labels: BTreeMap::new(),
        lan: vec![Lan { interface: "lan0".parse().expect("an interface"), prefixes: vec![net("192.168.10.0/24")] }],
        endpoints: [
            (name("fiber"), endpoint("wan0", GatewaySpec::Fixed(vec!["198.51.100.1".parse().expect("an address")]))),
            (name("lte"), endpoint("wwan0", GatewaySpec::Auto)),
        ]
        .into(),
        paths: [(name("fiber"), path("fiber", "wan0").into()), (name("lte"), path("lte", "wwan0").into())].into(),
        rules: [(name("critical"), rule)].into(),
        policies: vec![
            policy("voice", 100, voice, Action::Failover(name("critical"))),
            policy("guests", 200, guests, Action::Path(name("fiber"))),
            policy("default", 1000, Match::default(), Action::Failover(name("critical"))),
        ],
        beyond: BTreeMap::new(),
    }
}

fn facts() -> Facts {
    let link = |index, gateways: &[(Family, Gateway)]| LinkFacts {
        index,
        up: true,
        carrier: true,
        mtu: 1500,
        addresses: vec![],
        gateways: gateways.iter().copied().collect(),
        no_ipv6: false,
    };
    let lte = Gateway::Address("10.64.0.1".parse().expect("an address"));
    let links = [("wan0", link(2, &[])), ("wwan0", link(3, &[(Family::V4, lte)])), ("lan0", link(4, &[]))];
    Facts { links: links.into_iter().map(|(n, l)| (n.parse().expect("an interface"), l)).collect() }
}

fn selection(active: &str, tail: &[&str]) -> Selection {
    let choice =
        Choice { active: Some(name(active)), tail: tail.iter().map(|t| name(t)).collect(), ..Choice::default() };
    Selection { rules: [(name("critical"), choice)].into() }
}

fn compiled(site: &Site, selection: &Selection, known: &Allocations) -> Compiled {
    let inputs = Inputs { selection, facts: &facts(), known, ranges: &Ranges::default(), originals: &BTreeMap::new() };
    compile(site, inputs).expect("it compiles")
}

/// The next hops of a target's IPv4 table in order of metric, by interface.
fn table(c: &Compiled, target: &Target) -> Vec<String> {
    let wanted = Ranges::default().table(c.allocations.targets[target]);
    let in_table = c.state.objects.iter().filter_map(|(key, value)| match (key, value) {
        (Key::Route(RouteKey { table, family: Family::V4, .. }), Value::Route(v)) if *table == wanted => Some(v),
        _ => None,
    });
    in_table
        .map(|v| match v {
            RouteValue::Via { interface, .. } => interface.to_string(),
            RouteValue::Unreachable => "unreachable".into(),
            RouteValue::Other { text, .. } => text.to_string(),
        })
        .collect()
}

#[test]
fn every_table_ends_in_unreachable_and_only_rules_have_a_tail() {
    let c = compiled(&berlin(), &selection("fiber", &["lte"]), &Allocations::default());
    assert_eq!(table(&c, &Target::Path(name("fiber"))), ["wan0", "unreachable"]);
    assert_eq!(table(&c, &Target::Rule(name("critical"))), ["wan0", "wwan0", "unreachable"]);
    assert_eq!(table(&c, &Target::Member(name("critical"), name("lte"))), ["wwan0", "wan0", "unreachable"]);
}

#[test]
fn a_switch_changes_routes_of_the_rule_and_nothing_else_but_tails() {
    let before = compiled(&berlin(), &selection("fiber", &["lte"]), &Allocations::default());
    let after = compiled(&berlin(), &selection("lte", &["fiber"]), &before.allocations);
    let steps = crate::plan::diff(&after.state, &before.state);
    assert!(steps.iter().all(|s| s.kind() == "route"), "{steps:?}");
    let rule = Ranges::default().table(before.allocations.targets[&Target::Rule(name("critical"))]);
    assert!(matches!(steps[0].key(), Some(Key::Route(k)) if k.table == rule && k.metric == 10));
}

/// The same site, with one rule that shares and the choice of those of its paths that do.
fn sharing(site: &mut Site, used: &[&str], tail: &[&str]) -> Selection {
    let rule = site.rules.get_mut(&name("critical")).expect("the rule");
    let weights = rule.members.iter().map(|m| (m.clone(), 1)).collect();
    (rule.strategy, rule.balance) = (Strategy::LoadBalance, Some(Balance { weights, sticky: None }));
    let mut selection = selection(used[0], tail);
    let choice = selection.rules.get_mut(&name("critical")).expect("the choice");
    choice.sharing = used.iter().map(|path| name(path)).collect();
    selection
}

#[test]
fn a_translated_path_that_is_left_keeps_its_flows_and_gives_its_share_to_another_without_a_change_of_the_ruleset() {
    let mut site = berlin();
    std::sync::Arc::make_mut(site.paths.get_mut(&name("lte")).expect("the path")).nat = Nat::None;
    let both = sharing(&mut site, &["fiber", "lte"], &[]);
    let before = compiled(&site, &both, &Allocations::default());
    let of = |kind: fn(Name, Name) -> Target, path| kind(name("critical"), name(path));
    let (share, fiber, lte) = (of(Target::Share, "fiber"), of(Target::Member, "fiber"), of(Target::Member, "lte"));
    assert!(!before.allocations.targets.contains_key(&of(Target::Share, "lte")));
    let tables = |c: &Compiled| [&share, &fiber, &lte].map(|target| table(c, target)[0].clone());
    assert_eq!(tables(&before), ["wan0", "wan0", "wwan0"]);
    let left = compiled(&site, &sharing(&mut site.clone(), &["lte"], &["fiber"]), &before.allocations);
    assert_eq!(tables(&left), ["wwan0", "wan0", "wwan0"]);
    let left = compiled(&site, &sharing(&mut site.clone(), &["fiber"], &["lte"]), &before.allocations);
    assert_eq!(tables(&left), ["wan0", "wan0", "wan0"], "what is not translated follows");
    let steps = crate::plan::diff(&left.state, &before.state);
    assert!(steps.iter().all(|s| s.kind() == "route"), "{steps:?}");
}

#[test]
fn what_a_target_is_called_in_the_ruleset_is_read_back_however_long_its_names_are() {
    for length in [1, 63] {
        let (rule, path) = (name(&"r".repeat(length)), name(&"p".repeat(length)));
        let (one, other) = (Target::Member(rule.clone(), path.clone()), Target::Share(rule.clone(), path.clone()));
        for target in [Target::Path(path), Target::Rule(rule), one, other] {
            let label = nft::label(&target);
            assert!(label.len() <= print::MAX_COMMENT, "{label}");
            assert_eq!(label.parse::<Target>().expect("a target"), target);
        }
    }
}

#[test]
fn numbers_stay_and_a_number_given_up_is_not_given_out_at_once() {
    let first = compiled(&berlin(), &Selection::default(), &Allocations::default());
    let mut site = berlin();
    site.paths.remove(&name("fiber"));
    site.paths.insert(name("cable"), path("cable", "wan0").into());
    site.rules.get_mut(&name("critical")).expect("the rule").members = vec![name("cable"), name("lte")];
    let second = compiled(&site, &Selection::default(), &first.allocations);
    let kept = Target::Path(name("lte"));
    assert_eq!(first.allocations.targets[&kept], second.allocations.targets[&kept]);
    let old: BTreeSet<u32> = first.allocations.targets.values().copied().collect();
    assert!(!old.contains(&second.allocations.targets[&Target::Path(name("cable"))]));
}

#[test]
fn more_targets_than_the_mask_has_room_for_is_an_error_that_names_the_setting() {
    let mut site = berlin();
    for i in 0..300 {
        let n = format!("p{i}");
        site.paths.insert(name(&n), path(&n, &format!("wan{i}")).into());
    }
    let inputs = Inputs {
        selection: &Selection::default(),
        facts: &Facts::default(),
        known: &Allocations::default(),
        ranges: &Ranges::default(),
        originals: &BTreeMap::new(),
    };
    let error = compile(&site, inputs).expect_err("too many");
    assert!(error.to_string().contains("ranges.targetMask"), "{error}");
}

#[test]
fn the_same_input_renders_the_same_bytes() {
    let one = compiled(&berlin(), &selection("fiber", &["lte"]), &Allocations::default());
    let two = compiled(&berlin(), &selection("fiber", &["lte"]), &Allocations::default());
    let source = |c: &Compiled| match &c.state.objects[&Key::Nft] {
        Value::Nft(t) => t.source.clone(),
        _ => unreachable!("the key says nft"),
    };
    assert_eq!(source(&one), source(&two));
    if let Ok(file) = std::env::var("PATRONUS_PRINT_RULESET") {
        std::fs::write(file, &*source(&one)).expect("written");
    }
}

fn ruleset(c: &Compiled) -> &str {
    match &c.state.objects[&Key::Nft] {
        Value::Nft(t) => &t.source,
        _ => unreachable!("the key says nft"),
    }
}

/// The lines of a chain between its braces.
fn chain<'a>(ruleset: &'a str, chain: &str) -> Vec<&'a str> {
    let begin = format!("chain {chain} {{");
    let lines = ruleset.lines().map(str::trim).skip_while(|line| *line != begin).skip(1);
    lines.take_while(|line| *line != "}").collect()
}

#[test]
fn names_of_full_length_stay_within_what_nft_takes() {
    let long = |c: char| c.to_string().repeat(63);
    let (rule, fiber) = (long('r'), long('f'));
    let mut site = berlin();
    let mut member = site.paths.remove(&name("fiber")).expect("the path");
    std::sync::Arc::make_mut(&mut member).name = name(&fiber);
    site.paths.insert(name(&fiber), member);
    let mut critical = site.rules.remove(&name("critical")).expect("the rule");
    (critical.name, critical.members) = (name(&rule), vec![name(&fiber), name("lte")]);
    site.rules.insert(name(&rule), critical);
    let policies = [Action::Failover(name(&rule)), Action::Path(name(&fiber)), Action::Drop];
    let longs = policies.into_iter().zip(['a', 'b', 'c']);
    site.policies = longs.map(|(action, c)| policy(&long(c), 1, Match::default(), action)).collect();
    let c = compiled(&site, &Selection::default(), &Allocations::default());
    let text = ruleset(&c);
    let quoted: Vec<&str> = text.split("comment \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(quoted.contains(&format!("{rule} {fiber}").as_str()), "{quoted:?}");
    // nft's NFTNL_UDATA_COMMENT_MAXLEN is 128 with the zero, NFT_NAME_MAXLEN 256 and in some releases 128.
    assert!(quoted.iter().all(|comment| comment.len() <= 127), "{quoted:?}");
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"));
    let chains: Vec<&str> = named.collect();
    assert!(chains.iter().all(|chain| chain.len() <= 127), "{chains:?}");
    let different: BTreeSet<&&str> = chains.iter().collect();
    assert_eq!(different.len(), chains.len(), "{chains:?}");
    for word in text.split(|c: char| c.is_whitespace() || c == ',').filter(|w| w.starts_with("steer_")) {
        assert!(chains.contains(&word), "{word} is jumped to and is not there");
    }
}

#[test]
fn main_is_asked_first_then_bound_senders_then_marks() {
    let c = compiled(&berlin(), &selection("fiber", &["lte"]), &Allocations::default());
    let rules = |family| {
        let of = c.state.objects.keys().filter_map(move |key| match key {
            Key::Rule(rule) if rule.family == family => Some(rule),
            _ => None,
        });
        let mut all: Vec<_> = of.collect();
        all.sort_by_key(|rule| rule.priority);
        all
    };
    for family in Family::ALL {
        let all = rules(family);
        assert_eq!((all[0].table, all[0].suppress_prefixlength), (254, Some(0)), "only its specific routes");
        let last_bound = all.iter().rposition(|rule| rule.oif.is_some()).expect("uplinks");
        let first_marked = all.iter().position(|rule| rule.fwmark.is_some()).expect("targets");
        assert_eq!((last_bound, first_marked), (2, 3), "{all:?}");
        assert!(all[2].priority < all[3].priority);
        let priorities: BTreeSet<u32> = all.iter().filter(|r| r.fwmark.is_some()).map(|r| r.priority).collect();
        assert_eq!(priorities.len(), c.allocations.targets.len(), "each target has a priority of its own");
        let marked = all.iter().filter_map(|rule| rule.fwmark);
        assert!(marked.clone().all(|f| f.mask == 0xff00_0000 && f.mark & !f.mask == 0 && f.mark != 0), "{all:?}");
    }
}

#[test]
fn flows_that_left_by_no_path_are_counted_and_not_steered() {
    let mut site = berlin();
    site.policies.push(policy("never", 900, Match::default(), Action::Drop));
    let c = compiled(&site, &selection("fiber", &["lte"]), &Allocations::default());
    let unbound = chain(ruleset(&c), "unbound").join(" ");
    for (policy, counted) in [("voice", true), ("guests", true), ("default", true), ("never", false)] {
        assert_eq!(unbound.contains(&format!("goto count_{policy}")), counted, "{unbound}");
    }
    // Only what comes in by an uplink gets a mark, for the kernel's question about the way back to its source.
    assert!(unbound.starts_with("iifname vmap") && unbound.matches("steer_").count() == site.paths.len(), "{unbound}");
    assert!(!unbound.contains("policy_"), "{unbound}");
    for hook in ["prerouting", "output"] {
        let lines = chain(ruleset(&c), hook);
        let at = |part: &str| lines.iter().position(|line| line.contains(part)).expect(part);
        assert!(at("goto known") < at("goto unbound") && at("goto unbound") < at("goto classify"), "{lines:?}");
    }
    // Without a policy that steers there is nothing to count, and the chain is there all the same.
    site.policies.clear();
    let none = compiled(&site, &Selection::default(), &Allocations::default());
    assert!(!chain(ruleset(&none), "unbound").iter().any(|line| line.contains("count_")));
}

#[test]
fn a_path_of_one_family_is_no_way_for_the_other() {
    let mut site = berlin();
    let both = ["198.51.100.1", "2001:db8:1::1"].map(|g| g.parse().expect("an address"));
    site.endpoints.insert(name("fiber"), endpoint("wan0", GatewaySpec::Fixed(both.to_vec())));
    for (active, tail) in [("fiber", "lte"), ("lte", "fiber")] {
        let c = compiled(&site, &selection(active, &[tail]), &Allocations::default());
        let wanted = Ranges::default().table(c.allocations.targets[&Target::Rule(name("critical"))]);
        let ways = |family| {
            let of = c.state.objects.iter().filter_map(move |(key, value)| match (key, value) {
                (Key::Route(k), Value::Route(v)) if k.table == wanted && k.family == family => Some((k.metric, v)),
                _ => None,
            });
            let text = |v: &RouteValue| match v {
                RouteValue::Via { interface, .. } => interface.to_string(),
                _ => "none".to_owned(),
            };
            of.map(|(metric, v)| (metric, text(v))).collect::<Vec<_>>()
        };
        let interface = |path: &str| site.paths[&name(path)].interface.to_string();
        let last = (u32::MAX, "none".to_owned());
        assert_eq!(ways(Family::V4), [(10, interface(active)), (20, interface(tail)), last.clone()]);
        // LTE has no IPv6 gateway: the fibre stays in use for IPv6, as the active route.
        assert_eq!(ways(Family::V6), [(10, "wan0".to_owned()), last]);
        let lte = Ranges::default().table(c.allocations.targets[&Target::Path(name("lte"))]);
        let six = |key: &&Key| matches!(key, Key::Route(k) if k.table == lte && k.family == Family::V6);
        let only = c.state.objects.keys().filter(six).count();
        assert_eq!(only, 1, "`unreachable` alone: no leak to the main table");
    }
}

#[test]
fn a_probe_target_that_is_an_address_of_the_router_is_none() {
    let (site, mut facts) = (berlin(), facts());
    let path = &site.paths["fiber"];
    let target = path.probe.targets[0];
    assert_eq!(own_targets(path, &own_addresses(&facts)), [] as [std::net::IpAddr; 0]);
    assert!(obstacles(&site, &facts).is_empty());
    let lan: IfName = "lan0".parse().unwrap();
    facts.links.get_mut(&lan).unwrap().addresses.push(ipnet::IpNet::new(target, 24).unwrap());
    assert_eq!(own_targets(path, &own_addresses(&facts)), [target]);
    let told = obstacles(&site, &facts);
    assert!(told.iter().any(|text| text.contains("path fiber") && text.contains(&target.to_string())), "{told:?}");
}

#[test]
fn a_path_that_is_wider_than_its_link_is_an_obstacle_and_one_that_fits_is_none() {
    let mut site = berlin();
    assert!(obstacles(&site, &facts()).is_empty());
    std::sync::Arc::make_mut(site.paths.get_mut(&name("fiber")).unwrap()).mtu = Some(1500);
    assert!(obstacles(&site, &facts()).is_empty());
    std::sync::Arc::make_mut(site.paths.get_mut(&name("fiber")).unwrap()).mtu = Some(9000);
    let found = obstacles(&site, &facts());
    assert!(
        found.len() == 1 && found[0].contains("`mtu: 9000`, and its interface wan0 carries packets of 1500"),
        "{found:?}"
    );
}

#[test]
fn a_family_that_the_configuration_gives_and_the_link_does_not_have_is_named_with_the_remedy() {
    let (mut site, mut facts) = (berlin(), facts());
    let link = |facts: &mut Facts, mtu| {
        let wan0 = facts.links.get_mut("wan0").unwrap();
        (wan0.no_ipv6, wan0.mtu) = (true, mtu);
    };
    let give = |site: &mut Site, gateways: &[&str]| {
        let gateways = gateways.iter().map(|text| text.parse().unwrap()).collect();
        let path = std::sync::Arc::make_mut(site.paths.get_mut(&name("fiber")).unwrap());
        path.to =
            Destination::Site { site: name("hq"), endpoint: name("fiber"), tunnel: TunnelSpec::Interface { gateways } };
    };
    give(&mut site, &["10.0.0.1", "2001:db8::1"]);
    assert!(obstacles(&site, &facts).is_empty());
    link(&mut facts, 1500);
    let told = obstacles(&site, &facts);
    let off = "path fiber carries no IPv6, which its configuration gives it: IPv6 is off on wan0: \
               `sysctl -w net/ipv6/conf/wan0/disable_ipv6=0`";
    assert_eq!(told, [off]);
    link(&mut facts, 1200);
    let told = obstacles(&site, &facts);
    assert!(
        told.len() == 1 && told[0].ends_with("carries packets of 1200: `ip link set wan0 mtu 1280` or more"),
        "{told:?}"
    );
    give(&mut site, &["2001:db8::1"]);
    let told = obstacles(&site, &facts);
    assert!(told.len() == 1 && told[0].starts_with("path fiber cannot be used now: its gateways are IPv6"), "{told:?}");
    give(&mut site, &[]);
    assert!(obstacles(&site, &facts).is_empty(), "nobody asked for it");
}
