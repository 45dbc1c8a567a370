//! The difference, its order and its inverse.

use super::*;
use crate::state::{NftTable, RuleKey, SysctlKey};
use crate::units::Family;

fn route(table: u32, metric: u32) -> Key {
    let destination = "0.0.0.0/0".parse().expect("a prefix");
    Key::Route(RouteKey { table, family: Family::V4, destination, metric })
}

fn via(interface: &str) -> Value {
    let gateway = Some("192.0.2.1".parse().expect("an address"));
    Value::Route(RouteValue::Via { gateway, interface: interface.parse().expect("a name"), mtu: None })
}

fn rule(priority: u32) -> Key {
    Key::Rule(RuleKey {
        priority,
        family: Family::V4,
        fwmark: None,
        oif: None,
        table: priority,
        suppress_prefixlength: None,
    })
}

fn nft(text: &str) -> Value {
    Value::Nft(NftTable { canonical: text.into(), source: format!("source of {text}").into() })
}

fn state(objects: &[(Key, Value)]) -> State {
    State { objects: objects.iter().cloned().collect() }
}

fn kinds(steps: &[Step]) -> Vec<(Action, &'static str)> {
    steps.iter().map(|s| (s.action(), s.kind())).collect()
}

#[test]
fn equal_states_need_nothing() {
    let s = state(&[(route(20_001, 10), via("wan0")), (rule(20_001), Value::Rule), (Key::Nft, nft("a"))]);
    assert_eq!(diff(&s, &s), vec![]);
}

#[test]
fn what_nobody_sees_comes_before_the_commit_and_removal_after_it() {
    let old = state(&[(route(20_001, 10), via("wan0")), (rule(20_001), Value::Rule), (Key::Nft, nft("a"))]);
    let new = state(&[(route(20_002, 10), via("wan1")), (rule(20_002), Value::Rule), (Key::Nft, nft("b"))]);
    assert_eq!(
        kinds(&diff(&new, &old)),
        [
            (Action::Add, "route"),
            (Action::Add, "rule"),
            (Action::Change, "nft"),
            (Action::Remove, "rule"),
            (Action::Remove, "route"),
        ]
    );
}

#[test]
fn the_active_route_of_every_table_comes_before_any_tail() {
    let new =
        state(&[(route(20_001, 10), via("wan0")), (route(20_001, 20), via("wan1")), (route(20_002, 10), via("wan0"))]);
    let steps = diff(&new, &State::default());
    let metrics: Vec<u32> = steps.iter().map(|s| s.order().1).collect();
    assert_eq!(metrics, [10, 10, 20]);
}

#[test]
fn a_sysctl_that_is_not_wanted_is_left_alone() {
    let key = Key::Sysctl(SysctlKey { path: "ipv4/ip_forward".into() });
    let old = state(&[(key, Value::Sysctl { value: "1".into() })]);
    assert_eq!(diff(&State::default(), &old), vec![]);
}

#[test]
fn undo_is_the_executed_steps_last_first_with_their_before() {
    let old = state(&[(route(20_001, 10), via("wan0"))]);
    let new = state(&[(route(20_001, 10), via("wan1")), (rule(20_001), Value::Rule)]);
    let steps = diff(&new, &old);
    let taken_back = |has_run: fn(usize) -> bool| -> Vec<Step> {
        undo(&steps, has_run).into_iter().filter_map(|(_, step)| step).collect()
    };
    let all = taken_back(|_| true);
    assert_eq!(kinds(&all), [(Action::Remove, "rule"), (Action::Change, "route")]);
    assert!(matches!(&all[1], Step::Set { after: Some(v), .. } if *v == via("wan0")));
    assert_eq!(taken_back(|index| index == 0), all[1..], "what has not run is not taken back");
}

#[test]
fn a_route_on_a_tunnel_that_is_made_anew_is_made_anew_too() {
    let tunnel = |mtu| {
        Value::Link(Box::new(crate::state::Tunnel {
            id: 1001,
            local: "198.51.100.2".parse().expect("an address"),
            remote: "203.0.113.2".parse().expect("an address"),
            port: 4789,
            over: "wan0".parse().expect("a name"),
            mtu,
            addresses: vec![],
        }))
    };
    let link = Key::Link { name: "pt1001".parse().expect("a name") };
    let old = state(&[(link.clone(), tunnel(1400)), (route(20_001, 10), via("pt1001"))]);
    let new = state(&[(link, tunnel(1450)), (route(20_001, 10), via("pt1001"))]);
    assert_eq!(kinds(&diff(&new, &old)), [(Action::Change, "link"), (Action::Change, "route")]);
}
