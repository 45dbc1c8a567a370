//! A repair that the kernel refuses in one place, and carries out everywhere else.
//!
//! A new revision is put in force as a whole or not at all. What is in force already is another matter: if a route cannot
//! be set again because its interface has lost its address, that is no reason to leave the ruleset deleted.
//!
//! Invariant: a refused step is spared only where the plan brings back what is in force, and it stands as an alarm for as
//! long as the kernel refuses it; each pass tries it again, and the next one comes soon.
//!
//! Invariant: a change is not undone while the kernel keeps anything that it made.

use std::{borrow::Cow, collections::BTreeSet};

use super::{Engine, RETRY, router::Planned};
use crate::{
    apply::{Cause, Outcome, Report},
    plan::{Step, text},
    state::{Key, RouteValue, Value},
    units::{Family, IfName, plural},
};

/// So many different faults are spared in one pass.
const FAULTS: usize = 4;

/// The objects that are spared when this step is refused: what the kernel would refuse for the same reason. The ruleset and
/// the rules stand for all traffic, and are never spared.
fn spared(refused: &Step, steps: &[Step]) -> BTreeSet<Key> {
    let Step::Set { key, .. } = refused else { return BTreeSet::new() };
    let by = |interface: &IfName, family: Option<Family>| {
        let alike = |step: &&Step| match leaves_by(step) {
            Some((other, of)) => other == interface && family.is_none_or(|family| family == of),
            None => false,
        };
        steps.iter().filter(alike).filter_map(key_of).cloned().chain([key.clone()]).collect()
    };
    match (key, leaves_by(refused)) {
        (Key::Route(_), Some((interface, family))) => by(interface, Some(family)),
        (Key::Link { name }, _) => by(name, None),
        (Key::Sysctl(_), _) => BTreeSet::from([key.clone()]),
        (Key::Route(_) | Key::Rule(_) | Key::Nft, _) => BTreeSet::new(),
    }
}

const fn key_of(step: &Step) -> Option<&Key> {
    match step {
        Step::Set { key, .. } => Some(key),
        Step::Forget { .. } => None,
    }
}

/// The interface that a step's new route leaves by, and its family.
const fn leaves_by(step: &Step) -> Option<(&IfName, Family)> {
    match step {
        Step::Set { key: Key::Route(key), after: Some(Value::Route(RouteValue::Via { interface, .. })), .. } => {
            Some((interface, key.family))
        }
        _ => None,
    }
}

impl Engine {
    /// Carries out a plan. One that only brings back what is in force is carried out without what the kernel refuses; gives
    /// the plan that was carried out in the end.
    pub(super) async fn apply_what_goes<'a>(
        &mut self,
        planned: &'a Planned,
        revision: &str,
    ) -> (Cow<'a, Planned>, Report) {
        let site = self.goal().map(|goal| goal.site.clone());
        let (mut planned, mut told, mut left, mut again) = (Cow::Borrowed(planned), Vec::new(), false, true);
        let mut report = self.router.apply(&planned, site.as_deref(), revision).await;
        while told.len() < FAULTS && !self.gate.is_proposed() {
            let Outcome::RolledBack { cause: Cause::Step { number, error, .. } } = &report.outcome else { break };
            let Some(refused) = number.checked_sub(1).and_then(|index| planned.steps.get(index)) else { break };
            let mut spared = spared(refused, &planned.steps);
            if error.may_pass() && std::mem::take(&mut again) {
                // It may be over already: nothing is left out for that.
                spared.clear();
            } else {
                let Some(key) = key_of(refused).filter(|_| !spared.is_empty()) else { break };
                let more =
                    if spared.len() > 1 { format!(" (and {} like it)", spared.len() - 1) } else { String::new() };
                told.push(format!("{}{more}: {error}", text::key_text(key)));
                left |= spared.iter().any(|key| self.observed.state.objects.contains_key(key));
            }
            planned = Cow::Owned(self.router.without(&planned, &spared, &self.observed));
            report = self.router.apply(&planned, site.as_deref(), revision).await;
        }
        let good = matches!(report.outcome, Outcome::Applied | Outcome::Unchanged);
        self.gate.left = good && left;
        self.note_refused(if good { told } else { Vec::new() });
        (planned, report)
    }

    /// What of the configuration in force the kernel refuses, as an alarm for as long as that is so.
    pub(super) fn note_refused(&mut self, told: Vec<String>) {
        let line = |told: Vec<String>| {
            let (all, many) = (told.join("; "), plural(told.len(), "object"));
            format!("the kernel refuses {many} of the configuration in force: {all}; the rest of it is applied")
        };
        let alarm = (!told.is_empty()).then(|| line(told));
        if self.alarms.refused != alarm {
            if let Some(alarm) = &alarm {
                self.warning("reconcile", "", alarm.clone(), serde_json::Value::Null);
            }
            self.alarms.refused = alarm;
            // What is new among it may be over soon.
            self.timers.retry = RETRY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{RouteKey, RuleKey};

    fn route(family: Family, table: u32, interface: &str) -> Step {
        let destination = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
        let key = Key::Route(RouteKey { table, family, destination: destination.parse().unwrap(), metric: 10 });
        let via = RouteValue::Via { gateway: None, interface: interface.parse().unwrap(), mtu: None };
        Step::Set { key, before: None, after: Some(Value::Route(via)), reason: String::new() }
    }

    fn tables(keys: &BTreeSet<Key>) -> Vec<u32> {
        let table = |key: &Key| if let Key::Route(route) = key { Some(route.table) } else { None };
        keys.iter().filter_map(table).collect()
    }

    #[test]
    fn what_the_kernel_would_refuse_for_the_same_reason_is_spared_with_it_and_the_ruleset_and_rules_never() {
        let key = Key::Link { name: "wg0".parse().unwrap() };
        let link = Step::Set { key, before: None, after: None, reason: String::new() };
        let (fwmark, oif, suppress_prefixlength) = (None, None, None);
        let rule = RuleKey { priority: 1, family: Family::V4, fwmark, oif, table: 1, suppress_prefixlength };
        let set = |key| Step::Set { key, before: None, after: None, reason: String::new() };
        let steps = [
            route(Family::V4, 1, "wan0"),
            route(Family::V4, 2, "wg0"),
            route(Family::V6, 3, "wg0"),
            route(Family::V4, 4, "wg0"),
            link,
            set(Key::Rule(rule)),
            set(Key::Nft),
        ];
        let of = |index: usize| spared(&steps[index], &steps);
        assert_eq!([0, 1, 2, 4].map(|index| tables(&of(index))), [vec![1], vec![2, 4], vec![3], vec![2, 3, 4]]);
        assert_eq!(of(4).len(), 4, "and the link itself");
        assert!(of(5).is_empty() && of(6).is_empty());
    }
}
