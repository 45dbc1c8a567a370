//! Pure difference of desired and observed: an ordered list of steps, each with before, after and reason.
//!
//! Invariant: the plan decides, the executor obeys. Whatever could be decided is in the plan, so that it can
//! be shown, tested and refused. The order is the kernel's: first what nobody sees yet (tunnels, sysctls,
//! routes into tables, rules for marks that nobody sets), then the one nft transaction that sets the marks,
//! then the removal of what nobody uses any more.

pub mod report;
pub mod saved;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    state::{Allocations, Fwmark, Key, Ranges, RouteKey, RouteValue, State, Target, Value},
    units::{Family, IfName, Name},
    validate::intent::Site,
};

/// One change to one kernel object. The executor has no choice beyond a `match` on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Step {
    /// Bring an object from `before` to `after`; absent before is an addition, absent after a removal. Equal
    /// values mean that the object has to be made again, because an earlier step takes it away.
    Set {
        /// Which object.
        key: Key,
        /// What the observed state holds.
        before: Option<Value>,
        /// What the desired state holds.
        after: Option<Value>,
        /// Why, for a person.
        reason: String,
    },
    /// Delete the conntrack entries whose mark, under the mask, equals the value: their next packet is new
    /// and takes the path that is right now.
    Forget {
        /// Which entries.
        flows: Fwmark,
        /// Those of this family only, if it is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        family: Option<Family>,
        /// Why, for a person.
        reason: String,
    },
}

impl Step {
    /// The object that a `Set` is about.
    #[must_use]
    pub const fn key(&self) -> Option<&Key> {
        match self {
            Self::Set { key, .. } => Some(key),
            Self::Forget { .. } => None,
        }
    }

    /// Whether this is the commit point: the one nft transaction.
    #[must_use]
    pub const fn is_commit(&self) -> bool {
        matches!(self, Self::Set { key: Key::Nft, .. })
    }

    /// What happens to the object.
    #[must_use]
    pub const fn action(&self) -> Action {
        match self {
            Self::Set { before: None, .. } => Action::Add,
            Self::Set { after: None, .. } => Action::Remove,
            Self::Set { .. } => Action::Change,
            Self::Forget { .. } => Action::Forget,
        }
    }

    /// The kind of object, as `drift` modes and metrics name it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Set { key, .. } => key.kind(),
            Self::Forget { .. } => "flows",
        }
    }

    /// The step that takes this one back; forgotten flows cannot be remembered.
    #[must_use]
    pub fn inverse(&self) -> Option<Self> {
        match self {
            Self::Set { key, before, after, reason } => Some(Self::Set {
                key: key.clone(),
                before: after.clone(),
                after: before.clone(),
                reason: format!("undo: {reason}"),
            }),
            Self::Forget { .. } => None,
        }
    }

    fn order(&self) -> (u8, u32, Option<&Key>) {
        let phase = match (self, self.action()) {
            (Self::Forget { .. }, _) => 9,
            (Self::Set { key: Key::Nft, .. }, _) => 4,
            // After the tunnels: some sysctls are theirs.
            (Self::Set { key: Key::Sysctl(_), .. }, _) => 1,
            (Self::Set { key: Key::Link { .. }, .. }, Action::Remove) => 7,
            (Self::Set { key: Key::Link { .. }, .. }, _) => 0,
            (Self::Set { key: Key::Route(_), .. }, Action::Remove) => 6,
            (Self::Set { key: Key::Route(_), .. }, _) => 2,
            (Self::Set { key: Key::Rule(_), .. }, Action::Remove) => 5,
            (Self::Set { key: Key::Rule(_), .. }, _) => 3,
        };
        // The active route of every table before the tail of any: that is the switch.
        let metric = match self.key() {
            Some(Key::Route(RouteKey { metric, .. })) => *metric,
            _ => 0,
        };
        (phase, metric, self.key())
    }
}

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It appears.
    Add,
    /// It changes.
    Change,
    /// It goes away.
    Remove,
    /// Conntrack entries are deleted.
    Forget,
}

/// The steps that lead from `observed` to `desired`, in the order in which they must run.
///
/// Sysctls that `desired` does not name stay as they are. An object on a tunnel interface that is made anew
/// is made anew too, since it disappears with the interface.
#[must_use]
pub fn diff(desired: &State, observed: &State) -> Vec<Step> {
    let keys: BTreeSet<&Key> = desired.objects.keys().chain(observed.objects.keys()).collect();
    let remade = remade_links(desired, observed);
    let mut steps: Vec<Step> = keys
        .into_iter()
        .filter_map(|key| step(key, desired.objects.get(key), observed.objects.get(key), &remade))
        .collect();
    steps.sort_by(|a, b| a.order().cmp(&b.order()));
    steps
}

fn step(key: &Key, after: Option<&Value>, before: Option<&Value>, remade: &BTreeSet<&IfName>) -> Option<Step> {
    if matches!(key, Key::Sysctl(_)) && after.is_none() {
        return None;
    }
    let lost_with_link = after.and_then(leaves_by).is_some_and(|link| remade.contains(link));
    if before == after && !lost_with_link {
        return None;
    }
    let reason = match (before, after) {
        (None, _) => "wanted and not there",
        (_, None) => "there and no longer wanted",
        (a, b) if a == b => "its interface is made anew",
        _ => "there with another value",
    };
    Some(Step::Set { key: key.clone(), before: before.cloned(), after: after.cloned(), reason: reason.to_owned() })
}

/// Tunnel interfaces that exist and change.
fn remade_links<'a>(desired: &'a State, observed: &State) -> BTreeSet<&'a IfName> {
    let changed = |key: &Key, value: &Value| observed.objects.get(key).is_some_and(|old| old != value);
    desired
        .objects
        .iter()
        .filter_map(|(key, value)| match key {
            Key::Link { name } if changed(key, value) => Some(name),
            _ => None,
        })
        .collect()
}

const fn leaves_by(value: &Value) -> Option<&IfName> {
    match value {
        Value::Route(RouteValue::Via { interface, .. }) => Some(interface),
        _ => None,
    }
}

/// The undo of a run: each step that has run, last first, by its place, with the step that takes it back if there is one.
#[must_use]
pub fn undo(steps: &[Step], has_run: impl Fn(usize) -> bool) -> Vec<(usize, Option<Step>)> {
    let run = steps.iter().enumerate().rev().filter(|(index, _)| has_run(*index));
    run.map(|(index, step)| (index, step.inverse())).collect()
}

/// Steps that forget the flows of targets whose number is given up, so that whoever gets the number next
/// does not inherit them.
#[must_use]
pub fn forget_released(old: &Allocations, new: &Allocations, ranges: &Ranges) -> Vec<Step> {
    let released = old.targets.iter().filter(|(target, _)| !new.targets.contains_key(target));
    released.map(|(target, number)| forget(target, *number, ranges, format!("{target} is gone"))).collect()
}

/// Steps that forget the flows of paths whose translation changes: they would keep the old one for as long as they
/// last, probes included, so that a wrong translation would go unnoticed and a mended one would not help.
#[must_use]
pub fn forget_translated(old: &Site, new: &Site, numbers: &BTreeMap<Target, u32>, ranges: &Ranges) -> Vec<Step> {
    let changed = |name: &Name| match (old.paths.get(name), new.paths.get(name)) {
        (Some(old), Some(new)) => old.nat != new.nat,
        _ => false,
    };
    let stale = numbers.iter().filter(|(target, _)| match target {
        Target::Path(path) | Target::Member(_, path) => changed(path),
        Target::Rule(_) | Target::Share(..) => false,
    });
    stale.map(|(target, number)| forget(target, *number, ranges, format!("{target} is translated otherwise"))).collect()
}

/// The step that forgets the flows pinned to a target.
#[must_use]
pub fn forget(target: &Target, number: u32, ranges: &Ranges, reason: impl Into<String>) -> Step {
    let mask = ranges.target_mask;
    let reason: String = reason.into();
    Step::Forget {
        flows: Fwmark { mark: mask.mark(number), mask: mask.bits() },
        family: None,
        reason: format!("{reason} ({target})"),
    }
}

#[cfg(test)]
mod tests;
