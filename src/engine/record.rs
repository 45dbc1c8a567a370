//! What is written down of a revision before its first step runs.

use super::{Engine, gate::Proposed, router::Planned};
use crate::{
    apply, clock, desired,
    guard::{Deadline, Phase, Unconfirmed, patience},
    plan::{
        report::{self, Report, Revisions, View},
        text,
    },
    store::{NewGeneration, Standing},
};

impl Engine {
    /// Before the first step: whoever finds this later knows what to go back to.
    pub(super) fn note_trial(&self, proposed: &Proposed, planned: &Planned) -> Option<Unconfirmed> {
        let active = self.active.as_ref()?;
        let (revision, report) = (active.revision.clone(), self.report(planned)?);
        let generation = report.generation.to;
        let new = NewGeneration {
            generation,
            revision: &revision,
            at: clock::wall(),
            who: &proposed.who,
            plan: &anstream::adapter::strip_str(&text::render(&report, false)).to_string(),
            document: serde_json::to_value(&report).unwrap_or_default(),
            standing: if proposed.timeout.is_zero() { Standing::Applied } else { Standing::Unconfirmed },
            files: &active.files,
        };
        let wait = patience(proposed.timeout, &active.site);
        let mut change = Unconfirmed {
            record: 0,
            generation,
            revision: revision.clone(),
            previous: self.gate.before().map(|before| before.revision.clone()),
            who: proposed.who.clone(),
            deadline: Deadline::after(wait, apply::place(), clock::now(), clock::wall()),
            phase: Phase::Applying,
            baseline: proposed.baseline.clone(),
        };
        self.router.ledger.add_generation(&new, &mut change);
        Some(change)
    }

    /// The plan as people and programs read it.
    fn report(&self, planned: &Planned) -> Option<Report> {
        let active = self.active.as_ref()?;
        let old = self.gate.before();
        let mut numbers = self.router.numbers(&self.observed).targets.clone();
        numbers.extend(planned.allocations.targets.clone());
        let view = |site| View { site, selection: &self.selection };
        let inputs = report::Inputs {
            old: old.map(|old| view(&old.site)),
            new: Some(view(&active.site)),
            steps: &planned.steps,
            applied: self.router.applied(),
            intruders: &self.observed.intruders,
            obstacles: &desired::obstacles(&active.site, &self.observed.facts),
            numbers: &numbers,
            ranges: self.router.ranges(),
        };
        let revision = Revisions { to: active.revision.clone(), from: old.map(|old| old.revision.clone()) };
        Some(report::report(&inputs, active.site.name.clone(), revision, self.router.generation_of(&self.observed)))
    }
}
