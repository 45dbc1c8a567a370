//! The full pass: look, plan, apply, read back.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use serde_json::json;

use super::{
    AUDIT, Engine, RETRY,
    arrive::Chosen,
    gate,
    orders::named,
    router::{PlanError, Planned},
    status::{ReconcileOutcome, ReconcileStatus},
};
use crate::{
    apply::{self, Outcome},
    clock::{self, Instant},
    desired,
    guard::rails::Refusal,
    plan,
    probe::ProbeSpec,
    revision::{AttemptOutcome, Fault},
    state::{Key, RouteValue, SysctlKey, Target, Value},
    store::Run,
    units::{Name, chain, plural},
    validate::intent::{Path, Site},
};

/// Sysctls that are looked at in a second.
const SYSCTLS: usize = 100;

impl Engine {
    /// Brings kernel and configuration together once.
    pub(super) async fn pass(&mut self) {
        let start = clock::now();
        self.timers.pass = None;
        self.timers.audit = start + AUDIT;
        if self.active.is_none() && !self.gate.is_changing() {
            return;
        }
        self.tend_ledger();
        let (mut begun, mut choice, back) = (None, None, self.gate.is_going_back());
        let (outcome, steps, message) = match self.look_and_plan().await {
            Ok((planned, chosen)) => match self.refusals() {
                Ok(refusals) if refusals.is_empty() => match self.note_before(&planned, chosen.as_ref()) {
                    Ok(noted) => {
                        (begun, choice) = (noted, chosen);
                        self.bring_about(&planned).await
                    }
                    Err(why) => {
                        self.cannot_try(&why);
                        (ReconcileOutcome::Refused, 0, Some(why))
                    }
                },
                Ok(refusals) => {
                    let reason = gate::reasons(&refusals);
                    let fault = if refusals.iter().all(Refusal::is_large) { Fault::TooLarge } else { Fault::Own };
                    self.turn_down(AttemptOutcome::Failed, &reason, fault);
                    (ReconcileOutcome::Refused, 0, Some(reason))
                }
                Err(why) => {
                    self.cannot_try(&why);
                    (ReconcileOutcome::Refused, 0, Some(why))
                }
            },
            Err(error) => {
                self.cannot_plan(&error);
                (ReconcileOutcome::Refused, 0, Some(chain(&error)))
            }
        };
        // A proposal that was turned down says nothing of the way back that it was to end.
        let (outcome, message) = if back == self.gate.is_going_back() {
            self.after_pass(begun, choice, outcome, message)
        } else {
            (outcome, message)
        };
        self.configure_probes();
        self.ended(start, outcome, steps, message);
    }

    async fn bring_about(&mut self, planned: &Planned) -> (ReconcileOutcome, usize, Option<String>) {
        if planned.steps.is_empty() { self.nothing_to_do(planned).await } else { self.carry_out(planned).await }
    }

    /// Looks at the sysctls of which the kernel announces no change; on a hub with very many, at some in each second.
    pub(super) fn look_at_sysctls(&mut self, now: Instant) {
        let Some(applied) = self.router.applied() else { return };
        let sysctls = applied.objects.iter().map_while(|(key, value)| match key {
            Key::Sysctl(sysctl) => Some((sysctl, value, self.drift.spared.contains(key))),
            // They are the first of all objects.
            _ => None,
        });
        let kernel = &self.router.kernel;
        let silent: Vec<_> = sysctls.filter(|(key, _, spared)| !spared && !kernel.announces(key)).collect();
        let changed = |(key, wanted, _): &(&SysctlKey, &Value, bool)| {
            kernel.sysctl(key).is_ok_and(|found| found.is_some_and(|found| found != **wanted))
        };
        let is_changed = in_turn(&silent, &mut self.timers.sysctl, SYSCTLS).any(changed);
        // What fails as a whole is tried again in its own time.
        if self.alarms.kernel.is_none() && is_changed {
            self.timers.pass_at(now);
        }
    }

    /// A journal that somebody deleted or damaged is begun anew with what is known.
    fn tend_ledger(&mut self) {
        let Some(told) = self.router.tend_ledger() else { return };
        if !self.alarms.start.contains(&told) {
            self.warning("alarm", "journal", told.clone(), serde_json::Value::Null);
            self.alarms.start.push(told);
        }
        self.note_trial_again();
        self.doubt_revisions();
        self.keep_orders();
    }

    /// What has to be done, and the choice of paths if it is one for another configuration than the one in the kernel.
    async fn look_and_plan(&mut self) -> Result<(Planned, Option<Chosen>), PlanError> {
        let site = self.goal().map(|goal| Arc::clone(&goal.site));
        let found = self.router.observe(site.as_deref()).await?;
        // Before as much is compiled again.
        self.router.take_look(&mut self.observed, found);
        self.note_what_went();
        let now = clock::now();
        self.catch_up(now);
        self.links_from_facts(now);
        self.decide(now).await;
        // `decide` may have asked for the pass that is just under way.
        self.timers.pass = None;
        let Some(site) = site else { return Ok((self.router.plan_teardown(&self.observed), None)) };
        let chosen = self.choose(now);
        let selection = chosen.as_ref().map_or(&self.selection, |chosen| &chosen.selection);
        let planned = self.router.plan(&site, selection, &self.observed).await?;
        let mut planned = self.weigh_drift(planned);
        let replaced = self.active.as_ref().filter(|_| self.gate.is_changing() && !planned.steps.is_empty());
        if let Some(old) = replaced {
            let (numbers, ranges) = (&planned.allocations.targets, self.router.ranges());
            let more = plan::forget_translated(&old.site, &site, numbers, ranges);
            planned.steps = planned.steps.iter().cloned().chain(more).collect();
        }
        Ok((planned, chosen))
    }

    async fn nothing_to_do(&mut self, planned: &Planned) -> (ReconcileOutcome, usize, Option<String>) {
        let site = self.goal().map(|goal| Arc::clone(&goal.site));
        let revision = self.goal_revision().unwrap_or_default();
        self.router.apply(planned, site.as_deref(), &revision).await;
        self.gate.left = false;
        self.note_refused(Vec::new());
        self.router.share(&mut self.observed);
        (ReconcileOutcome::Unchanged, 0, None)
    }

    async fn carry_out(&mut self, planned: &Planned) -> (ReconcileOutcome, usize, Option<String>) {
        let revision = self.goal_revision().unwrap_or_default();
        let started = clock::wall();
        let (planned, report) = self.apply_what_goes(planned, &revision).await;
        self.gate.may_pass = report.outcome.may_pass();
        self.alarms.journal = report.alarm.as_ref().map(|e| chain(e));
        self.drift_lost(&report.outcome);
        let (outcome, message) = told(&report.outcome);
        if outcome == ReconcileOutcome::Unchanged {
            // All that was left to do is refused.
            return (outcome, 0, None);
        }
        self.recorder.run(Run {
            plan: Some(planned.stamp.plan),
            generation: planned.stamp.generation,
            revision: Some(revision),
            started,
            ended: Some(clock::wall()),
            outcome: Some(outcome),
            steps: planned.steps.len(),
            message: message.clone(),
        });
        if outcome == ReconcileOutcome::Applied {
            self.observed.state = self.reached(&planned);
            self.observed.allocations = planned.allocations.clone();
            self.observed.stamp = Some(planned.stamp.clone());
        }
        (outcome, report.steps, message)
    }

    fn ended(&mut self, begun: Instant, outcome: ReconcileOutcome, steps: usize, message: Option<String>) {
        let took = clock::now().since(begun);
        *self.totals.reconciles.entry(outcome).or_default() += 1;
        self.totals.reconcile_seconds += took.as_secs_f64();
        let failed = !matches!(outcome, ReconcileOutcome::Unchanged | ReconcileOutcome::Applied);
        let again = self.gate.again.as_ref().is_some_and(|again| again.is_planless(message.as_deref()));
        // What is in force is looked at between two tries of a proposal.
        let known = if again { &self.change } else { &self.last };
        let repeated = known.as_ref().is_some_and(|k| k.outcome == outcome && k.message == message);
        if outcome != ReconcileOutcome::Unchanged && !(failed && repeated) {
            let text = summary(outcome, steps, took, message.as_deref(), self.router.generation());
            let detail = json!({ "steps": steps, "micros": took.as_micros() });
            if failed {
                self.warning("reconcile", "", text, detail);
            } else {
                self.event("reconcile", "", text, detail);
            }
        }
        self.alarms.kernel = failed.then(|| message.clone()).flatten();
        // Of what is left out nothing else may tell that it would be taken now.
        if failed || self.alarms.refused.is_some() {
            self.timers.pass_at(clock::now() + self.timers.retry);
            self.timers.retry = (self.timers.retry * 2).min(AUDIT);
        } else {
            self.timers.retry = RETRY;
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.last = Some(ReconcileStatus { at: clock::wall(), micros, outcome, steps, message });
        if outcome != ReconcileOutcome::Unchanged {
            self.change.clone_from(&self.last);
        }
        self.timers.publish = clock::now();
    }

    /// Tells the prober what to probe, through which mark, device and source.
    ///
    /// Invariant: what the kernel holds is probed whatever becomes of a pass, from the first look at the kernel on; of a
    /// mere proposal nothing is.
    fn configure_probes(&self) {
        let Some(active) = &self.active else { return self.prober.configure(Vec::new()) };
        if !self.has_looked() {
            return;
        }
        let own = desired::own_addresses(&self.observed.facts);
        let numbers = &self.router.numbers(&self.observed).targets;
        // A path without a number has no table in the kernel: its probes would take the way of others.
        let has_number = |path: &Path| numbers.contains_key(&Target::Path(path.name.clone()));
        let paths = active.site.paths.values().filter(|path| !path.probe.targets.is_empty() && has_number(path));
        self.prober.configure(paths.map(|path| self.spec(&active.site, path, &own)).collect());
    }

    fn spec(&self, site: &Site, path: &Path, own: &BTreeSet<IpAddr>) -> ProbeSpec {
        let numbers = &self.router.numbers(&self.observed).targets;
        let number = numbers.get(&Target::Path(path.name.clone())).copied().unwrap_or_default();
        let hops = desired::next_hops(site, path, &self.observed.facts);
        let sources = desired::source_addresses(site, &path.name, &self.observed.facts);
        let mut probe = Arc::clone(&path.probe);
        let own = desired::own_targets(path, own);
        if !own.is_empty() {
            // Nobody else's silence or answer stands for theirs: they are missing from each round, hence lost.
            Arc::make_mut(&mut probe).targets.retain(|target| !own.contains(target));
        }
        ProbeSpec {
            path: path.name.clone(),
            interface: path.interface.clone(),
            mark: self.router.ranges().target_mask.mark(number),
            sources: exactly(sources.into_values()),
            gateways: exactly(hops.values().filter_map(RouteValue::gateway)),
            probe,
        }
    }

    /// How a path is probed, for whoever wants to do it by hand.
    pub(super) fn spec_by_hand(&self, path: &Name) -> Result<Box<ProbeSpec>, String> {
        let site = &self.active.as_ref().ok_or("nothing is in force yet")?.site;
        named(path, "path", "", site.paths.keys())?;
        let probed = site.paths.get(path).filter(|p| !p.probe.targets.is_empty());
        let probed = probed.ok_or_else(|| format!("{path} is not probed: it has no targets"))?;
        let spec = self.spec(site, probed, &desired::own_addresses(&self.observed.facts));
        if spec.probe.targets.is_empty() {
            return Err(format!("{path} is not probed: this router itself has the addresses of all its targets"));
        }
        Ok(Box::new(spec))
    }
}

/// A list that stays as it is. Collected as such, one of a single item has room for four.
fn exactly<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.collect::<Box<[T]>>().into_vec()
}

/// An apply's outcome as the status shows it.
pub(crate) fn told(outcome: &apply::Outcome) -> (ReconcileOutcome, Option<String>) {
    match outcome {
        Outcome::Unchanged => (ReconcileOutcome::Unchanged, None),
        Outcome::Applied => (ReconcileOutcome::Applied, None),
        Outcome::RolledBack { cause } => (ReconcileOutcome::RolledBack, Some(chain(cause))),
        Outcome::RollbackFailed { cause, undo, left } => {
            let undo = undo.as_ref().map(|e| format!("; the undo failed: {}", chain(e))).unwrap_or_default();
            let left = if left.is_empty() { String::new() } else { format!("; left: {}", left.join("; ")) };
            (ReconcileOutcome::RollbackFailed, Some(format!("{}{undo}{left}", chain(cause))))
        }
    }
}

fn summary(outcome: ReconcileOutcome, steps: usize, took: Duration, message: Option<&str>, generation: u64) -> String {
    let because = message.map(|m| format!(": {m}")).unwrap_or_default();
    match outcome {
        ReconcileOutcome::Applied => {
            format!("generation {generation} applied: {} in {} ms", plural(steps, "step"), took.as_millis())
        }
        ReconcileOutcome::RolledBack => format!("rolled back, the old state is in force{because}"),
        ReconcileOutcome::RollbackFailed => format!("ROLLBACK FAILED, look at once{because}"),
        ReconcileOutcome::Refused => format!("nothing was done{because}"),
        ReconcileOutcome::Unchanged => "nothing to do".into(),
    }
}

/// So many of all, in turn: the next ones begin where these end.
fn in_turn<'a, T>(all: &'a [T], next: &mut usize, most: usize) -> impl Iterator<Item = &'a T> + use<'a, T> {
    let begin = std::mem::replace(next, (*next + most).checked_rem(all.len()).unwrap_or(0));
    all.iter().cycle().skip(begin).take(all.len().min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_are_looked_at_in_turn_are_all_looked_at_also_when_their_number_changes() {
        let mut next = 0;
        let mut look = |all: &[u32]| in_turn(all, &mut next, 3).copied().collect::<Vec<_>>();
        assert_eq!([look(&[0, 1, 2, 3, 4, 5, 6]), look(&[0, 1, 2, 3, 4, 5, 6])], [[0, 1, 2], [3, 4, 5]]);
        assert_eq!(look(&[0, 1, 2, 3, 4, 5, 6]), [6, 0, 1], "on from there");
        assert_eq!(look(&[0, 1, 2, 3]), [2, 3, 0]);
        for few in [&[7, 8][..], &[7], &[]] {
            let mut found = look(few);
            found.sort_unstable();
            assert_eq!(found, few, "few are looked at each time");
        }
    }
}
