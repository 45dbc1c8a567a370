//! Numbers of targets and policies: a pure function of what exists and of the sorted names.

use std::collections::{BTreeMap, BTreeSet};

use super::{CompileError, share};
use crate::{
    state::{Allocations, Ranges, Target},
    units::{MarkMask, Name},
    validate::intent::{Nat, Site},
};

/// Every target of a site, sorted.
pub(super) fn targets(site: &Site) -> BTreeSet<Target> {
    let paths = site.paths.keys().cloned().map(Target::Path);
    let rules = site.rules.keys().cloned().map(Target::Rule);
    let members = site.rules.values().flat_map(|rule| {
        let bound = |m: &&Name| rule.spreads() || site.paths.get(*m).is_some_and(|p| p.nat != Nat::None);
        rule.members.iter().filter(bound).map(|m| Target::Member(rule.name.clone(), m.clone()))
    });
    let shares = site.rules.values().filter(|rule| rule.balance.is_some());
    let shares = shares.flat_map(|rule| rule.members.iter().map(|m| share::target(site, rule, m)));
    paths.chain(rules).chain(members).chain(shares).collect()
}

/// Keeps the numbers that exist, gives the lowest free ones to the rest. A number that is given up now is
/// not given out in the same plan: its table and rule still stand until the commit point.
pub(super) fn allocate(site: &Site, known: &Allocations, ranges: &Ranges) -> Result<Allocations, CompileError> {
    let policies: BTreeSet<Name> = site.policies.iter().map(|p| p.name.clone()).collect();
    let too_many = |what, setting, needed, mask: MarkMask| CompileError::TooMany {
        site: site.name.clone(),
        what,
        needed,
        mask,
        room: mask.max_number(),
        setting,
    };
    let targets = targets(site);
    let (many_targets, many_policies) = (targets.len(), policies.len());
    Ok(Allocations {
        targets: numbers(targets, &known.targets, ranges.target_mask.max_number())
            .ok_or_else(|| too_many("targets", "targetMask", many_targets, ranges.target_mask))?,
        policies: numbers(policies, &known.policies, ranges.policy_mask.max_number())
            .ok_or_else(|| too_many("policies", "policyMask", many_policies, ranges.policy_mask))?,
    })
}

fn numbers<T: Ord + Clone>(wanted: BTreeSet<T>, known: &BTreeMap<T, u32>, room: u32) -> Option<BTreeMap<T, u32>> {
    let mut taken: BTreeSet<u32> = known.values().copied().collect();
    let mut next = 1;
    let mut fresh = || {
        while !taken.insert(next) {
            next += 1;
        }
        (next <= room).then_some(next)
    };
    wanted
        .into_iter()
        .map(|item| {
            let number = known.get(&item).copied().filter(|n| (1..=room).contains(n)).or_else(&mut fresh)?;
            Some((item, number))
        })
        .collect()
}
