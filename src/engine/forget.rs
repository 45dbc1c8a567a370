//! Flows that have nothing to lose any more are forgotten beside the loop: a walk through a full table of connections
//! takes up to a second, and neither a result of a probe nor another path that dies waits for it.
//!
//! Invariant: there is one walk at a time, and it takes along all that is due, in the order in which it was decided. What
//! is decided during a walk is in the next one. What is asked for anew covers what waits for the same flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::Engine;
use crate::{
    clock::Instant,
    failover::Decision,
    kernel::{Doomed, Forgotten, linux::Linux},
    state::{Fwmark, Target},
    units::{Family, Name},
    validate::intent::Nat,
};

/// Flows that were born while the old route still stood are forgotten this long after the switch.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// With more rules than these an event for each would only fill the records.
const EACH: usize = 32;
/// A daemon that ends finishes what was decided, for so long.
const AT_THE_END: Duration = Duration::from_secs(2);

/// The flows of a rule that are bound to a path, to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forget {
    rule: Name,
    path: Name,
    doomed: Doomed,
}

/// What is to be forgotten, and the walk that is under way.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    waiting: Vec<(Instant, Forget)>,
    walk: Option<(Vec<Forget>, JoinHandle<Forgotten>)>,
    /// The last walk failed, and that was told.
    failing: bool,
}

impl Forgetting {
    /// Has these forgotten now, and once more a little later.
    fn ask(&mut self, forgets: Vec<Forget>, now: Instant) {
        self.waiting.retain(|(_, waiting)| forgets.iter().all(|new| new.doomed != waiting.doomed));
        let later = forgets.iter().map(|forget| (now + SECOND_LOOK, forget.clone())).collect::<Vec<_>>();
        self.waiting.extend(forgets.into_iter().map(|forget| (now, forget)));
        self.waiting.extend(later);
    }

    /// What the next walk takes along.
    fn due(&mut self, now: Instant) -> Vec<Forget> {
        let (due, later) = std::mem::take(&mut self.waiting).into_iter().partition(|(at, _)| *at <= now);
        self.waiting = later;
        let due: Vec<(Instant, Forget)> = due;
        due.into_iter().map(|(_, forget)| forget).collect()
    }

    /// Begins a walk with what is due, unless one is under way.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.walk.is_some() {
            return;
        }
        let due = self.due(now);
        if !due.is_empty() {
            let walk = Linux::forget(due.iter().map(|forget| forget.doomed).collect());
            self.walk = Some((due, tokio::spawn(walk)));
        }
    }

    /// What a walk that failed has to say: nothing again before one succeeds, since each is followed by its second look.
    fn complaint(&mut self, error: Option<String>) -> Option<String> {
        let before = std::mem::replace(&mut self.failing, error.is_some());
        error.filter(|_| !before)
    }

    /// When the next walk is to begin; one that is under way wakes the loop by its end.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.iter().map(|(at, _)| *at).min().filter(|_| self.walk.is_none())
    }

    /// The end of the walk that is under way; never without one. Safe to drop: it goes on.
    pub(super) async fn done(&mut self) -> (Vec<Forget>, Forgotten) {
        loop {
            let Some((_, walk)) = &mut self.walk else { return pending().await };
            let ended = walk.await;
            let asked = self.walk.take().map(|(asked, _)| asked).unwrap_or_default();
            match ended {
                Ok(forgotten) => return (asked, forgotten),
                Err(error) => tracing::error!("forgetting flows ended without a result: {error}"),
            }
        }
    }
}

impl Engine {
    /// Begins to forget what a decision says. Its routes stand by now.
    pub(super) fn forget(&mut self, decision: &Decision, now: Instant) {
        let forgets = self.forgets(decision);
        self.forgetting.ask(forgets, now);
        self.forgetting.begin(now);
    }

    fn forgets(&self, decision: &Decision) -> Vec<Forget> {
        let numbers = &self.router.numbers(&self.observed).targets;
        let mask = self.router.ranges().target_mask;
        // Flows that are not translated go wherever their table leads.
        let translated = |path: &Name| {
            let path = self.active.as_ref().and_then(|a| a.site.paths.get(path));
            path.is_none_or(|path| path.nat != Nat::None)
        };
        let forget = |rule: &Name, path: &Name, family: Option<Family>| {
            let number = *numbers.get(&Target::Member(rule.clone(), path.clone()))?;
            let flows = Fwmark { mark: mask.mark(number), mask: mask.bits() };
            translated(path).then(|| Forget {
                rule: rule.clone(),
                path: path.clone(),
                doomed: Doomed { flows, family },
            })
        };
        let all = decision.forget.iter().filter_map(|(rule, path, why)| {
            tracing::debug!(%rule, %path, why, "flows are forgotten");
            forget(rule, path, None)
        });
        let families = decision.forget_family.iter().filter_map(|(rule, path, family, why)| {
            tracing::debug!(%rule, %path, %family, why, "flows are forgotten");
            forget(rule, path, Some(*family))
        });
        all.chain(families).collect()
    }

    /// Takes in what a walk came to, and begins the next one.
    pub(super) fn forgotten(&mut self, asked: &[Forget], forgotten: Forgotten, now: Instant) {
        let error = forgotten.error.map(|error| error.to_string());
        if let Some(error) = self.forgetting.complaint(error) {
            let message = format!("not all flows of paths that were left could be forgotten: {error}");
            self.warning("flows", "", message, Value::Null);
        }
        let found: Vec<(&Forget, u64)> = asked.iter().zip(forgotten.flows).filter(|(_, flows)| *flows > 0).collect();
        for (Forget { rule, path, .. }, flows) in &found {
            if let Some(change) = self.changes.get_mut(rule).filter(|change| change.from.as_ref() == Some(path)) {
                change.forgotten += flows;
            }
        }
        for (subject, message, detail) in tellings(&found) {
            self.event("flows", subject.as_str(), message, detail);
        }
        self.forgetting.begin(now);
    }

    /// Finishes what was decided, before the end.
    pub(super) async fn forget_at_the_end(&mut self, now: Instant) {
        let finish = async {
            self.forgetting.begin(now);
            while self.forgetting.walk.is_some() {
                let (asked, forgotten) = self.forgetting.done().await;
                self.forgotten(&asked, forgotten, now);
            }
        };
        if tokio::time::timeout(AT_THE_END, finish).await.is_err() {
            tracing::warn!("some flows of paths that were left were not forgotten in time");
        }
    }
}

/// What is told of a walk: of each rule by itself, or of each path where there are very many rules.
fn tellings(found: &[(&Forget, u64)]) -> Vec<(Name, String, Value)> {
    let noun = |flows: u64| if flows == 1 { "flow" } else { "flows" };
    let after = "forgotten; what they send next is a new flow";
    if found.len() <= EACH {
        let each = |(Forget { rule, path, .. }, flows): &(&Forget, u64)| {
            let message = format!("{rule}: {flows} {} on {path} {after}", noun(*flows));
            (rule.clone(), message, json!({"path": path, "forgotten": flows}))
        };
        return found.iter().map(each).collect();
    }
    let mut paths: BTreeMap<&Name, (u64, BTreeSet<&Name>)> = BTreeMap::new();
    for (Forget { rule, path, .. }, flows) in found {
        let (all, rules) = paths.entry(path).or_default();
        *all += flows;
        rules.insert(rule);
    }
    let of_path = |(path, (flows, rules)): (&Name, (u64, BTreeSet<&Name>))| {
        let message = format!("{path}: {flows} {} of {} rules {after}", noun(flows), rules.len());
        (path.clone(), message, json!({"path": path, "forgotten": flows, "rules": rules.len()}))
    };
    paths.into_iter().map(of_path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn forget(number: u32) -> Forget {
        let flows = Fwmark { mark: number << 24, mask: 0xff00_0000 };
        let name = |s: &str| s.parse().unwrap();
        Forget { rule: name(&format!("r{number}")), path: name("fiber"), doomed: Doomed { flows, family: None } }
    }

    #[test]
    fn what_is_decided_during_a_walk_is_in_the_next_one_in_its_order_and_looked_at_twice() {
        let mut forgetting = Forgetting::default();
        forgetting.ask(vec![forget(3), forget(1)], at(0));
        assert_eq!(forgetting.next(), Some(at(0)));
        assert_eq!(forgetting.due(at(0)), [forget(3), forget(1)]);
        // A walk is under way; two decisions come.
        forgetting.ask(vec![forget(2)], at(300));
        forgetting.ask(vec![forget(9), forget(4)], at(400));
        assert_eq!(forgetting.due(at(1100)), [forget(3), forget(1), forget(2), forget(9), forget(4)]);
        assert_eq!((forgetting.due(at(1299)), forgetting.next()), (vec![], Some(at(1300))));
        assert_eq!(forgetting.due(at(1300)), [forget(2)]);
        assert_eq!(forgetting.due(at(1400)), [forget(9), forget(4)]);
        assert_eq!((forgetting.due(at(9999)), forgetting.next()), (vec![], None));
    }

    #[test]
    fn a_path_that_dies_again_and_again_during_a_walk_waits_once() {
        let mut forgetting = Forgetting::default();
        for n in 0..1000 {
            forgetting.ask(vec![forget(1), forget(2)], at(n));
        }
        assert_eq!(forgetting.waiting.len(), 4);
        assert_eq!(forgetting.due(at(999)), [forget(1), forget(2)]);
        assert_eq!(forgetting.due(at(1998)), []);
        assert_eq!(forgetting.due(at(1999)), [forget(1), forget(2)]);
    }

    #[test]
    fn a_walk_that_fails_is_told_of_once_until_one_succeeds() {
        let mut forgetting = Forgetting::default();
        let walks = [Some("full"), Some("full"), Some("other"), None, Some("full")];
        let told = walks.map(|error| forgetting.complaint(error.map(str::to_owned)).is_some());
        assert_eq!(told, [true, false, false, false, true]);
    }

    #[test]
    fn few_rules_are_told_of_one_by_one_and_many_by_their_path() {
        let told = |rules: u32| {
            let all: Vec<Forget> = (1..=rules).map(forget).collect();
            let found: Vec<(&Forget, u64)> = all.iter().map(|forget| (forget, 2)).collect();
            tellings(&found)
        };
        assert_eq!(told(0), []);
        let (few, many) = (told(32), told(200));
        assert_eq!((few.len(), few[0].0.as_str()), (32, "r1"));
        assert_eq!(few[0].1, "r1: 2 flows on fiber forgotten; what they send next is a new flow");
        assert_eq!((many.len(), many[0].0.as_str()), (1, "fiber"));
        assert_eq!(many[0].1, "fiber: 400 flows of 200 rules forgotten; what they send next is a new flow");
        assert_eq!(many[0].2, json!({"path": "fiber", "forgotten": 400, "rules": 200}));
    }
}
