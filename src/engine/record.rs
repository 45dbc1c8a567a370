//! What is written down of a revision before its first step runs.

use super::{
    Active, Engine,
    arrive::Chosen,
    gate::{Proposed, Stage},
    router::Planned,
};
use crate::{
    apply, clock, desired,
    failover::Selection,
    guard::{Deadline, Phase, Unconfirmed, patience},
    plan::{
        report::{self, Report, Revisions, View},
        text,
    },
    store::{NewGeneration, Standing, StoreError},
};

impl Engine {
    /// Writes down what is about to be tried, before the first step. What nobody could undo after a kill is not tried, unless
    /// nothing is in force yet that it could cut off.
    pub(super) fn note_before(
        &mut self,
        planned: &Planned,
        chosen: Option<&Chosen>,
    ) -> Result<Option<Unconfirmed>, String> {
        let note = |engine: &Self| match &engine.gate.stage {
            Stage::Proposed(proposed) => {
                let selection = chosen.map_or(&engine.selection, |chosen| &chosen.selection);
                Some(engine.note_trial(proposed, planned, selection))
            }
            _ => None,
        };
        let Some((mut change, mut failed)) = note(self) else { return Ok(None) };
        if failed.as_ref().is_some_and(|error| self.router.ledger.take_refuge(error))
            && let Some(again) = note(self)
        {
            (change, failed) = again;
        }
        match failed {
            Some(error) if self.active.is_some() => {
                Err(format!("after a kill nobody could undo it, since it cannot be written down: {}", error.chain()))
            }
            _ => Ok(Some(change)),
        }
    }

    /// Whoever finds this later knows what to go back to.
    fn note_trial(
        &self,
        proposed: &Proposed,
        planned: &Planned,
        selection: &Selection,
    ) -> (Unconfirmed, Option<StoreError>) {
        let active = &proposed.active;
        let (revision, report) = (active.revision.clone(), self.report(active, planned, selection));
        let back = proposed.in_place_of.as_ref().map_or(self.active.as_ref(), |back| back.to.as_deref());
        let generation = report.generation.to;
        // The record of a change that is to be undone goes when another takes its place, and never before.
        let is_final = proposed.timeout.is_zero() && proposed.in_place_of.is_none();
        let new = NewGeneration {
            generation,
            revision: &revision,
            at: clock::wall(),
            who: &proposed.who,
            plan: &anstream::adapter::strip_str(&text::render(&report, false)).to_string(),
            document: &serde_json::to_string(&report).unwrap_or_else(|_| "null".into()),
            standing: if is_final { Standing::Applied } else { Standing::Unconfirmed },
            files: &active.files,
        };
        let wait = patience(proposed.timeout, &active.site);
        let mut change = Unconfirmed {
            record: 0,
            generation,
            revision: revision.clone(),
            previous: back.map(|back| back.revision.clone()).or_else(|| self.of_before()),
            who: proposed.who.clone(),
            deadline: Deadline::after(wait, apply::place(), clock::now(), clock::wall()),
            phase: Phase::Applying,
            baseline: proposed.baseline.clone(),
        };
        let failed = self.router.ledger.add_generation(&new, &mut change).err();
        (change, failed)
    }

    /// What stands in this kernel although its configuration cannot be used any more, or was lost with the journal:
    /// there is no way back to it, but nor is it nothing.
    fn of_before(&self) -> Option<String> {
        let known = self.router.applied().is_some_and(|state| !state.objects.is_empty());
        let good = || self.router.ledger.last_good().map(|good| good.revision);
        (known || self.observed.stamp.is_some()).then(|| good().unwrap_or_else(|| Unconfirmed::LOST.to_owned()))
    }

    /// Another journal took the place of the one that was in use. It must know of the change on trial; if none is, and
    /// it is an older copy, it must not tell of one either.
    pub(super) fn note_trial_again(&mut self) {
        let (change, before) = match &mut self.gate.stage {
            Stage::Waiting(trial) => (&mut trial.change, self.gate.before.as_deref()),
            Stage::Back(back) => (&mut back.change, back.to.as_deref()),
            Stage::Proposed(proposed) => match &mut proposed.in_place_of {
                Some(back) => (&mut back.change, back.to.as_deref()),
                None => return self.forget_trials(),
            },
            Stage::Idle => return self.forget_trials(),
        };
        let shown = self.active.as_ref().filter(|active| active.revision == change.revision);
        let files = shown.map(|active| active.files.clone()).unwrap_or_default();
        self.router.ledger.add_trial_again(change, before.map(Active::as_last_good).as_ref(), &files);
    }

    fn forget_trials(&self) {
        if let Some(stale) = self.router.ledger.unconfirmed() {
            let reason = "an older copy of the journal took the place of the newer one";
            self.router.ledger.settle_unconfirmed(&stale, Standing::RolledBack, reason);
        }
    }

    /// The plan as people and programs read it.
    fn report(&self, active: &Active, planned: &Planned, selection: &Selection) -> Report {
        let old = self.active.as_ref();
        let mut numbers = self.router.numbers(&self.observed).targets.clone();
        numbers.extend(planned.allocations.targets.clone());
        let inputs = report::Inputs {
            old: old.map(|old| View { site: &old.site, selection: &self.selection }),
            new: Some(View { site: &active.site, selection }),
            steps: &planned.steps,
            applied: self.router.applied(),
            intruders: &self.observed.intruders,
            obstacles: &desired::obstacles(&active.site, &self.observed.facts),
            numbers: &numbers,
            ranges: self.router.ranges(),
        };
        let revision = Revisions { to: active.revision.clone(), from: old.map(|old| old.revision.clone()) };
        report::report(&inputs, active.site.name.clone(), revision, self.router.generation_of(&self.observed))
    }
}
