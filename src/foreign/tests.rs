//! What overrides us, and what only looks like it.

use super::*;

fn rule(priority: u32) -> Rule {
    Rule {
        family: Family::V4,
        priority,
        fwmark: None,
        selective: false,
        inverted: false,
        table: Some(52),
        suppress_prefixlength: None,
        protocol: "boot".into(),
    }
}

fn marked(value: u32, mask: u32) -> Rule {
    Rule { fwmark: Some(Fwmark { mark: value, mask }), ..rule(5_210) }
}

fn with_rules(rules: Vec<Rule>) -> Vec<(Kind, bool)> {
    let around = Surroundings { rules, ..Surroundings::default() };
    overrides(&around, &[], &Ranges::default()).into_iter().map(|o| (o.kind, o.certain)).collect()
}

fn hooked(at: At, priority: i32, does: Does) -> Chain {
    let (table, name) = ("ip filter".into(), "C".into());
    Chain { table, name, hook: Some(Hook { at, priority }), does, ..Chain::default() }
}

fn with_chains(chains: Vec<Chain>) -> Vec<(Kind, bool)> {
    let around = Surroundings { chains, ..Surroundings::default() };
    overrides(&around, &[], &Ranges::default()).into_iter().map(|o| (o.kind, o.certain)).collect()
}

#[test]
fn rules_that_every_router_has_override_nothing() {
    let local = Rule { table: Some(255), ..rule(0) };
    let main = Rule { table: Some(254), ..rule(32_766) };
    let default = Rule { table: Some(253), ..rule(32_767) };
    assert_eq!(with_rules(vec![local, main, default]), []);
}

#[test]
fn a_rule_ahead_of_ours_is_certain_only_if_it_takes_everything() {
    assert_eq!(with_rules(vec![Rule { table: Some(254), ..rule(100) }]), [(Kind::RuleAhead, true)]);
    assert_eq!(with_rules(vec![rule(5_270)]), [(Kind::RuleAhead, false)]);
    let specific = Rule { table: Some(254), suppress_prefixlength: Some(0), ..rule(100) };
    assert_eq!(with_rules(vec![specific]), [(Kind::RuleAhead, false)]);
    assert_eq!(with_rules(vec![Rule { selective: true, table: Some(254), ..rule(100) }]), [(Kind::RuleAhead, false)]);
    assert_eq!(with_rules(vec![rule(31_000)]), []);
}

#[test]
fn a_rule_for_the_marks_of_others_takes_nothing_of_ours() {
    assert_eq!(with_rules(vec![marked(0x0008_0000, 0x00ff_0000)]), []);
    assert_eq!(with_rules(vec![marked(0x0200_0000, 0xff00_0000)]), [(Kind::Marks, true)]);
    let behind = Rule { priority: 31_000, ..marked(0x0200_0000, 0xff00_0000) };
    assert_eq!(with_rules(vec![behind]), [(Kind::Marks, false)]);
    // `not fwmark …` matches ours.
    assert_eq!(with_rules(vec![Rule { inverted: true, ..marked(0xca6c, 0xffff_ffff) }]), [(Kind::RuleAhead, false)]);
}

#[test]
fn a_forward_chain_that_drops_is_found_also_behind_a_jump() {
    let docker = Chain { drops_by_default: true, ..hooked(At::Forward, 0, Does::default()) };
    assert_eq!(with_chains(vec![docker]), [(Kind::Drop, true)]);
    let jump = Chain { jumps: vec!["D".into()], ..hooked(At::Forward, 0, Does::default()) };
    let target = Chain {
        table: "ip filter".into(),
        name: "D".into(),
        does: Does { drop: true, ..Does::default() },
        jumps: vec!["C".into(), "D".into()],
        ..Chain::default()
    };
    assert_eq!(with_chains(vec![jump.clone(), target.clone()]), [(Kind::Drop, false)]);
    let elsewhere = Chain { table: "ip nat".into(), ..target };
    assert_eq!(with_chains(vec![jump, elsewhere]), []);
    // What comes to the router itself is not ours to steer.
    assert_eq!(with_chains(vec![hooked(At::Input, 0, Does { drop: true, ..Does::default() })]), []);
}

#[test]
fn marks_that_are_set_after_ours_and_translations_before_ours_are_found() {
    let mark = Does { mark: true, ..Does::default() };
    assert_eq!(with_chains(vec![hooked(At::Prerouting, 0, mark)]), [(Kind::Remark, false)]);
    assert_eq!(with_chains(vec![hooked(At::Prerouting, -300, mark)]), []);
    let snat = Does { snat: true, ..Does::default() };
    assert_eq!(with_chains(vec![hooked(At::Postrouting, 100, snat)]), [(Kind::Nat, false)]);
    assert_eq!(with_chains(vec![hooked(At::Postrouting, 200, snat)]), []);
    let connection = Does { connection_mark: true, ..Does::default() };
    assert_eq!(with_chains(vec![hooked(At::Input, 0, connection)]), [(Kind::Remark, false)]);
}

#[test]
fn intruders_and_flowtables_are_named_and_the_worst_comes_first() {
    let around = Surroundings { flowtables: vec!["inet fw ft".into()], ..Surroundings::default() };
    let intruders = ["IPv4 rule priority 20001 by protocol boot".to_owned()];
    let found = overrides(&around, &intruders, &Ranges::default());
    assert_eq!(found.iter().map(|o| o.kind).collect::<Vec<_>>(), [Kind::Ranges, Kind::Flowtable]);
    assert!(found.iter().all(|o| !o.remedy.is_empty()));
}
