//! How a rule with `load-balance` shares new flows: numbers that are drawn for each flow, or from its addresses.
//!
//! All members have their numbers, whatever their state, so that no ruleset is loaded when one dies: where new flows go
//! is up to the table that a number leads to. Flows that are translated never have that table later: they are bound to
//! the path that they took, and stay on it when others take over its share.

use std::ops::Range;

use serde::Serialize;

use super::{
    classify::Field,
    nft::{field_text, hex},
};
use crate::{
    state::Target,
    units::{Family, Name},
    validate::intent::{Nat, Rule, Site, Sticky},
};

/// The seed of the hashes: the same on every router and after every change, so that a source keeps its path across
/// both.
const SEED: u32 = 0x7061_7472;

/// What the template sees of one rule.
#[derive(Serialize)]
pub(super) struct BalanceContext {
    rule: String,
    /// What is hashed, per family; empty where each flow draws at random.
    draws: Vec<String>,
    total: u32,
    seed: String,
    shares: Vec<ShareContext>,
}

/// The numbers of one member.
#[derive(Serialize)]
struct ShareContext {
    numbers: String,
    chain: String,
}

/// The numbers of each member out of all parts, in the rule's order.
pub(super) fn numbers(rule: &Rule) -> Vec<(Range<u32>, &Name)> {
    let Some(balance) = &rule.balance else { return Vec::new() };
    let mut next = 0;
    let weighed = rule.members.iter().filter_map(|member| Some((*balance.weights.get(member)?, member)));
    let range = |(parts, member)| {
        let first = next;
        next += parts;
        (first..next, member)
    };
    weighed.map(range).collect()
}

/// What the numbers of a member lead to.
pub(super) fn target(site: &Site, rule: &Rule, member: &Name) -> Target {
    let translated = site.paths.get(member).is_some_and(|path| path.nat != Nat::None);
    let kind = if translated { Target::Share } else { Target::Member };
    kind(rule.name.clone(), member.clone())
}

/// What the template has to know; none for a rule that does not share.
pub(super) fn context(site: &Site, rule: &Rule, chain: impl Fn(&Target) -> String) -> Option<BalanceContext> {
    let balance = rule.balance.as_ref()?;
    let share = |(range, member): (Range<u32>, &Name)| ShareContext {
        numbers: text(&range),
        chain: chain(&target(site, rule, member)),
    };
    let draw = |family| {
        let (source, destination) = (field_text(Field::Source, family), field_text(Field::Destination, family));
        match balance.sticky? {
            Sticky::Source => Some(source.to_owned()),
            Sticky::Pair => Some(format!("{source} . {destination}")),
        }
    };
    Some(BalanceContext {
        rule: rule.name.to_string(),
        draws: Family::ALL.into_iter().filter_map(draw).collect(),
        total: balance.total(),
        seed: hex(SEED),
        shares: numbers(rule).into_iter().map(share).collect(),
    })
}

fn text(range: &Range<u32>) -> String {
    match range.len() {
        1 => range.start.to_string(),
        _ => format!("{}-{}", range.start, range.end - 1),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        failover::{Choice, drawn},
        validate::intent::{Balance, Strategy},
    };

    fn rule(weights: &[u32]) -> Rule {
        let members: Vec<Name> = (0..weights.len()).map(|n| format!("p{n}").parse().unwrap()).collect();
        let balance = Balance { weights: members.iter().cloned().zip(weights.iter().copied()).collect(), sticky: None };
        Rule { strategy: Strategy::LoadBalance, balance: Some(balance), ..Rule::new("r".parse().unwrap(), members) }
    }

    /// Those in use, and the rest behind them.
    fn choice(rule: &Rule, used: &[bool]) -> Choice {
        let (sharing, tail): (Vec<_>, Vec<_>) = rule.members.iter().cloned().zip(used).partition(|(_, used)| **used);
        let name = |(name, _): (Name, _)| name;
        let sharing: Vec<Name> = sharing.into_iter().map(name).collect();
        Choice {
            active: sharing.first().cloned(),
            tail: tail.into_iter().map(name).collect(),
            sharing,
            ..Choice::default()
        }
    }

    /// Which path each number leads to, looked up one by one.
    fn led(rule: &Rule, choice: &Choice) -> Vec<Name> {
        let total = rule.balance.as_ref().unwrap().total();
        let owner = |n: u32| numbers(rule).into_iter().find(|(range, _)| range.contains(&n)).unwrap().1;
        (0..total).map(|n| drawn(rule, choice, owner(n))[0].clone()).collect()
    }

    proptest! {
        #[test]
        fn every_number_has_its_path_weights_are_kept_and_a_death_moves_its_own(
            weights in vec(1_u32..=100, 2..6),
            used in vec(any::<bool>(), 6),
            dies in 0_usize..6,
        ) {
            let rule = rule(&weights);
            let (mut used, dies) = (used[..weights.len()].to_vec(), dies % weights.len());
            let all = led(&rule, &choice(&rule, &vec![true; weights.len()]));
            let mut counted: BTreeMap<&Name, u32> = BTreeMap::new();
            for path in &all {
                *counted.entry(path).or_default() += 1;
            }
            for (member, weight) in rule.members.iter().zip(&weights) {
                prop_assert_eq!(counted[member], *weight);
            }
            used[dies] = true;
            used[(dies + 1) % weights.len()] = true;
            let before = led(&rule, &choice(&rule, &used));
            used[dies] = false;
            let after = led(&rule, &choice(&rule, &used));
            for (old, new) in before.iter().zip(&after) {
                let moved = *old == rule.members[dies];
                prop_assert_eq!(old != new, moved, "{} -> {}", old, new);
            }
        }
    }
}
