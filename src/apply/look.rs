//! What was wanted against what the kernel shows, for the read-back after a run or an undo.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    kernel::Scope,
    plan::Step,
    state::{Key, State, Value},
};

/// What the kernel must show at the end.
pub(super) enum Goal<'a> {
    /// The whole of a state, but for these objects.
    State(&'a State, &'a BTreeSet<Key>),
    /// Some objects; the others are not looked at.
    Objects(BTreeMap<&'a Key, Option<&'a Value>>),
}

impl<'a> Goal<'a> {
    /// Every object at the `after` of the last step that sets it.
    pub(super) fn after(steps: &'a [Step]) -> Self {
        Self::Objects(sets(steps.iter()).map(|(key, _, after)| (key, after)).collect())
    }

    /// Every object at the `before` of the first step that sets it.
    pub(super) fn before(steps: &'a [Step]) -> Self {
        Self::Objects(sets(steps.iter().rev()).map(|(key, before, _)| (key, before)).collect())
    }

    /// The objects that are not as they should be: key and a line for a person.
    pub(super) fn missed<'s>(&'s self, observed: &'s State) -> Vec<(&'s Key, String)> {
        match self {
            Self::State(desired, spared) => {
                let mut missed = compare(desired, observed);
                missed.retain(|(key, _)| !spared.contains(*key));
                missed
            }
            Self::Objects(objects) => objects
                .iter()
                .filter(|(key, wanted)| **wanted != observed.objects.get(*key))
                .map(|(key, wanted)| (*key, line(key, *wanted, observed.objects.get(*key))))
                .collect(),
        }
    }
}

fn sets<'a>(
    steps: impl Iterator<Item = &'a Step>,
) -> impl Iterator<Item = (&'a Key, Option<&'a Value>, Option<&'a Value>)> {
    steps.filter_map(|step| match step {
        Step::Set { key, before, after, .. } => Some((key, before.as_ref(), after.as_ref())),
        Step::Forget { .. } => None,
    })
}

fn compare<'s>(desired: &'s State, observed: &'s State) -> Vec<(&'s Key, String)> {
    let wanted = desired.objects.iter().map(|(key, value)| (key, Some(value), observed.objects.get(key)));
    // A sysctl cannot be removed: one that nobody wants any more is not a difference.
    let surplus = observed
        .objects
        .iter()
        .filter(|(key, _)| !desired.objects.contains_key(*key) && !matches!(key, Key::Sysctl(_)));
    wanted
        .chain(surplus.map(|(key, value)| (key, None, Some(value))))
        .filter(|(_, wanted, found)| wanted != found)
        .map(|(key, wanted, found)| (key, line(key, wanted, found)))
        .collect()
}

/// The objects in which the kernel differs from what is desired, one line each; empty when they agree.
#[must_use]
pub fn difference(desired: &State, observed: &State) -> Vec<String> {
    compare(desired, observed).into_iter().map(|(_, line)| line).collect()
}

fn line(key: &Key, wanted: Option<&Value>, found: Option<&Value>) -> String {
    let how = match (wanted, found) {
        (Some(_), None) => "missing",
        (None, Some(_)) => "still there",
        _ => "has another value",
    };
    format!("{} {how}", describe(key))
}

/// An object in a few words, as people write it on a command line.
#[must_use]
pub fn describe(key: &Key) -> String {
    match key {
        Key::Sysctl(sysctl) => format!("sysctl net/{}", sysctl.path),
        Key::Link { name } => format!("link {name}"),
        Key::Route(route) => {
            format!("route {} table {} metric {}", route.destination, route.table, route.metric)
        }
        Key::Rule(rule) => {
            let mark = rule.fwmark.map(|mark| format!(" fwmark {mark}")).unwrap_or_default();
            format!("rule {} {}{mark} lookup {}", rule.priority, rule.family, rule.table)
        }
        Key::Nft => "nft table inet patronus".to_owned(),
    }
}

/// A step in a few words.
pub(super) fn in_words(step: &Step) -> String {
    match step {
        Step::Set { key, before, after, .. } => {
            let verb = match (before, after) {
                (None, Some(_)) => "add",
                (_, None) => "remove",
                _ => "change",
            };
            format!("{verb} {}", describe(key))
        }
        Step::Forget { flows, .. } => format!("forget flows with mark {flows}"),
    }
}

/// The scope with every sysctl that the steps touch, though it may no longer be wanted.
pub(super) fn covering(scope: &Scope, steps: &[Step]) -> Scope {
    let mut scope = scope.clone();
    for step in steps {
        if let Step::Set { key: Key::Sysctl(sysctl), .. } = step
            && !scope.sysctls.iter().any(|path| **path == *sysctl.path)
        {
            scope.sysctls.push(sysctl.path.to_string());
        }
    }
    scope
}
