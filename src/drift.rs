//! Drift: what somebody else did to our objects, and what is to be done about it. Pure.
//!
//! Invariant: an object is drift only if the wanted state and the state applied last agree on it and the kernel does
//! not. What the configuration, the network or the choice of paths changes is no drift and is never held back.

pub mod along;
pub mod fights;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    state::{Key, Ranges, RouteValue, State, Target, Value},
    units::Name,
};

/// What is done about drift.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is counted and put right at once.
    #[default]
    Repair,
    /// It is shown and counted; the next new revision puts it right.
    Report,
    /// It is neither shown nor put right, by a new revision neither, unless that changes the object itself.
    Ignore,
}

/// What is done about drift, for each kind of object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Modes {
    /// The table `inet patronus`, as a whole.
    pub nft: Mode,
    /// Routes in our tables.
    pub route: Mode,
    /// Routing rules.
    pub rule: Mode,
    /// Sysctls.
    pub sysctl: Mode,
    /// Tunnel interfaces.
    pub link: Mode,
}

impl Modes {
    /// What is done about this object.
    #[must_use]
    pub const fn of(&self, key: &Key) -> Mode {
        match key {
            Key::Nft => self.nft,
            Key::Route(_) => self.route,
            Key::Rule(_) => self.rule,
            Key::Sysctl(_) => self.sysctl,
            Key::Link { .. } => self.link,
        }
    }
}

/// How an object differs from what was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// It is not there.
    Missing,
    /// It is there and never was ours to make.
    Extra,
    /// It has another value.
    Changed,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::Extra => "should not be there",
            Self::Changed => "has another value",
        })
    }
}

/// One object that somebody else changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drifted {
    /// Which.
    pub key: Key,
    /// How.
    pub how: How,
}

/// What of `observed` is neither as it was applied nor as it is wanted, where both agree; in the order of the keys.
#[must_use]
pub fn drifted(desired: &State, applied: &State, observed: &State) -> Vec<Drifted> {
    let keys: BTreeSet<&Key> = desired.objects.keys().chain(observed.objects.keys()).collect();
    let of = |key: &Key| {
        let (wanted, found) = (desired.objects.get(key), observed.objects.get(key));
        let how = match (wanted, found) {
            // A sysctl neither appears nor goes: its interface does.
            (None, _) | (_, None) if matches!(key, Key::Sysctl(_)) => return None,
            (Some(a), Some(b)) if a == b => return None,
            (Some(_), None) => How::Missing,
            (None, _) => How::Extra,
            (Some(_), Some(_)) => How::Changed,
        };
        (applied.objects.get(key) == wanted).then(|| Drifted { key: key.clone(), how })
    };
    keys.into_iter().filter_map(of).collect()
}

/// The path that has no way of its own while this is as it is: its table has lost its route, or nothing leads there. What
/// carries the path's mark, its probes first, does not leave by it then.
#[must_use]
pub fn barred<'a>(
    drifted: &Drifted,
    applied: &State,
    targets: &'a BTreeMap<Target, u32>,
    ranges: &Ranges,
) -> Option<&'a Name> {
    let table = match (&drifted.key, drifted.how, applied.objects.get(&drifted.key)?) {
        (Key::Route(key), How::Missing | How::Changed, Value::Route(RouteValue::Via { .. })) => key.table,
        (Key::Rule(key), How::Missing, _) if key.fwmark.is_some() => key.table,
        _ => return None,
    };
    targets.iter().find_map(|(target, number)| match target {
        Target::Path(path) if ranges.table(*number) == table => Some(path),
        _ => None,
    })
}

/// The state to lead to when these objects are left as they are found.
#[must_use]
pub fn sparing(desired: &State, observed: &State, spared: &BTreeSet<Key>) -> State {
    let mut goal = desired.clone();
    for key in spared {
        match observed.objects.get(key) {
            Some(value) => drop(goal.objects.insert(key.clone(), value.clone())),
            None => drop(goal.objects.remove(key)),
        }
    }
    goal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan,
        state::{NftTable, RouteKey, RouteValue, RuleKey, SysctlKey, Tunnel, Value, sysctl_text},
        units::Family,
    };

    fn rule(priority: u32) -> Key {
        let (fwmark, oif, suppress_prefixlength) = (None, None, None);
        Key::Rule(RuleKey { priority, family: Family::V4, fwmark, oif, table: priority, suppress_prefixlength })
    }

    fn sysctl(value: &str) -> (Key, Value) {
        (Key::Sysctl(SysctlKey { path: "ipv4/ip_forward".into() }), Value::Sysctl { value: sysctl_text(value) })
    }

    fn nft(text: &str) -> (Key, Value) {
        (Key::Nft, Value::Nft(NftTable { canonical: text.into(), source: text.into() }))
    }

    fn state(objects: Vec<(Key, Value)>) -> State {
        State { objects: objects.into_iter().collect() }
    }

    fn hows(desired: &State, applied: &State, observed: &State) -> Vec<How> {
        drifted(desired, applied, observed).into_iter().map(|d| d.how).collect()
    }

    #[test]
    fn what_others_took_added_and_changed_is_drift() {
        let ours = state(vec![(rule(1), Value::Rule), sysctl("1"), nft("a")]);
        let found = state(vec![(rule(2), Value::Rule), sysctl("0"), nft("a")]);
        assert_eq!(hows(&ours, &ours, &found), [How::Changed, How::Missing, How::Extra]);
        assert_eq!(hows(&ours, &ours, &ours), []);
    }

    #[test]
    fn what_a_new_revision_changes_is_no_drift() {
        let (old, new) = (state(vec![nft("old")]), state(vec![nft("new"), (rule(1), Value::Rule)]));
        assert_eq!(hows(&new, &old, &old), []);
        // Also where somebody has been at the same object meanwhile.
        assert_eq!(hows(&new, &old, &state(vec![nft("other")])), []);
        let without = state(vec![]);
        assert_eq!(hows(&without, &old, &old), []);
    }

    #[test]
    fn the_checker_sees_a_revision_taken_for_drift() {
        // Without the state applied last, every step would be drift.
        let (old, new) = (state(vec![nft("old")]), state(vec![nft("new")]));
        assert_eq!(hows(&new, &new, &old), [How::Changed]);
    }

    #[test]
    fn a_sysctl_that_comes_or_goes_with_its_interface_is_no_drift() {
        let ours = state(vec![sysctl("1")]);
        assert_eq!(hows(&ours, &ours, &state(vec![])), []);
        assert_eq!(hows(&state(vec![]), &state(vec![]), &ours), []);
    }

    #[test]
    fn a_path_without_its_own_route_or_rule_is_named_and_no_other() {
        let ranges = Ranges::default();
        let path: Name = "fiber".parse().unwrap();
        let targets = [(Target::Path(path.clone()), 1), (Target::Rule("critical".parse().unwrap()), 2)].into();
        let route = |table, metric| {
            let destination = "0.0.0.0/0".parse().unwrap();
            Key::Route(RouteKey { table, family: Family::V4, destination, metric })
        };
        let by = RouteValue::Via { gateway: None, interface: "wan0".parse().unwrap(), mtu: None };
        let mut marked = rule(20_001);
        if let Key::Rule(rule) = &mut marked {
            rule.fwmark = Some(crate::state::Fwmark { mark: 1 << 24, mask: 0xff << 24 });
        }
        let applied = state(vec![
            (route(20_001, 10), Value::Route(by.clone())),
            (route(20_001, u32::MAX), Value::Route(RouteValue::Unreachable)),
            (route(20_002, 10), Value::Route(by)),
            (marked.clone(), Value::Rule),
            (rule(20_001), Value::Rule),
        ]);
        let of = |key: Key, how| barred(&Drifted { key, how }, &applied, &targets, &ranges);
        for (key, how) in [(route(20_001, 10), How::Missing), (route(20_001, 10), How::Changed), (marked, How::Missing)]
        {
            assert_eq!(of(key, how), Some(&path));
        }
        for key in [route(20_001, u32::MAX), route(20_002, 10), rule(20_001), Key::Nft] {
            assert_eq!(of(key, How::Missing), None);
        }
        assert_eq!(of(route(20_001, 5), How::Extra), None);
    }

    #[test]
    fn what_is_spared_has_no_step_and_everything_else_has() {
        let ours = state(vec![(rule(1), Value::Rule), sysctl("1"), nft("a")]);
        let found = state(vec![(rule(2), Value::Rule), sysctl("0")]);
        let spared = [rule(1), rule(2), Key::Nft].into_iter().collect();
        let steps = plan::diff(&sparing(&ours, &found, &spared), &found);
        assert_eq!(steps.iter().map(plan::Step::kind).collect::<Vec<_>>(), ["sysctl"]);
    }

    #[test]
    fn a_route_that_goes_with_its_tunnel_is_made_again_though_drift_of_routes_is_spared() {
        let tunnel = |mtu| {
            let name = "tun0".parse().unwrap();
            let (local, remote) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
            let over = "wan0".parse().unwrap();
            (
                Key::Link { name },
                Value::Link(Box::new(Tunnel { id: 1, local, remote, port: 4789, over, mtu, addresses: vec![] })),
            )
        };
        let key = Key::Route(RouteKey {
            table: 20_001,
            family: Family::V4,
            destination: "0.0.0.0/0".parse().unwrap(),
            metric: 10,
        });
        let via = Value::Route(RouteValue::Via { gateway: None, interface: "tun0".parse().unwrap(), mtu: None });
        let old = state(vec![tunnel(1400), (key.clone(), via.clone())]);
        let new = state(vec![tunnel(1300), (key, via)]);
        let spared = drifted(&new, &old, &old).into_iter().map(|d| d.key).collect();
        let steps = plan::diff(&sparing(&new, &old, &spared), &old);
        assert_eq!(steps.iter().map(plan::Step::kind).collect::<Vec<_>>(), ["link", "route"]);
    }
}
