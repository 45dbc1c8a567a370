//! One run: forward over its steps, backward over those that ran.

use std::{error::Error, ops::Range, time::Duration};

use uuid::Uuid;

use super::{
    Cause, Ending, Journal, JournalError, Outcome, Report, RunId, RunRecord, StepState,
    look::{Goal, describe, in_words},
};
use crate::{
    kernel::{Kernel, KernelError, Scope},
    plan::{self, Step},
    state::{Key, Observed, Stamp},
    units::chain,
};

/// How often the kernel is read back before a run gives up.
pub const ROUNDS: u32 = 5;

/// The time before the second read-back; it doubles for each further one, to 0.75 s in all: whoever applies waits
/// so long, probes and all.
pub const WAIT: Duration = Duration::from_millis(50);

/// The journal of one run. It swallows errors after keeping the first: see the module's documentation.
pub(super) struct Log<'a, J> {
    journal: &'a mut J,
    run: Option<RunId>,
    alarm: Option<JournalError>,
}

impl<'a, J: Journal> Log<'a, J> {
    pub(super) async fn begin(journal: &'a mut J, record: &RunRecord) -> Self {
        let (run, alarm) = match journal.begin(record).await {
            Ok(run) => (Some(run), None),
            Err(error) => (None, Some(error)),
        };
        Self { journal, run, alarm }
    }

    pub(super) const fn resume(journal: &'a mut J, run: RunId) -> Self {
        Self { journal, run: Some(run), alarm: None }
    }

    async fn step(&mut self, index: usize, state: StepState, why: &str) {
        if let Some(run) = self.run {
            let written = self.journal.step(run, index, state, why).await;
            self.keep(written);
        }
    }

    async fn finish(&mut self, ending: Ending, message: &str) {
        if let Some(run) = self.run {
            let written = self.journal.finish(run, ending, message).await;
            self.keep(written);
        }
    }

    fn keep(&mut self, written: Result<(), JournalError>) {
        if let Err(error) = written {
            self.alarm.get_or_insert(error);
        }
    }
}

/// A run that is under way.
pub(super) struct Run<'a, K, J> {
    kernel: &'a K,
    scope: &'a Scope,
    record: &'a RunRecord,
    log: Log<'a, J>,
    states: Vec<Option<StepState>>,
    executed: usize,
    flows: u64,
}

/// An undo that did not reach its goal.
struct Stuck {
    error: Option<KernelError>,
    left: Vec<String>,
}

impl<'a, K: Kernel, J: Journal> Run<'a, K, J> {
    pub(super) const fn new(
        kernel: &'a K,
        scope: &'a Scope,
        record: &'a RunRecord,
        log: Log<'a, J>,
        states: Vec<Option<StepState>>,
    ) -> Self {
        Self { kernel, scope, record, log, states, executed: 0, flows: 0 }
    }

    /// Forward to the goal, or back.
    pub(super) async fn drive(&mut self, goal: &Goal<'_>) -> Outcome {
        let reached = match self.forward().await {
            Ok(()) => self.settle(goal).await,
            Err(cause) => Err(cause),
        };
        match reached {
            Ok(()) => Outcome::Applied,
            Err(cause) => self.back(cause).await,
        }
    }

    /// Writes the ending down.
    pub(super) async fn close(mut self, outcome: Outcome) -> Report {
        let (ending, message) = match &outcome {
            Outcome::Unchanged | Outcome::Applied => (Ending::Applied, String::new()),
            Outcome::RolledBack { cause } => (Ending::RolledBack, chain(cause)),
            Outcome::RollbackFailed { cause, left, .. } => {
                (Ending::RollbackFailed, format!("{}; not undone: {}", chain(cause), left.join("; ")))
            }
        };
        self.log.finish(ending, &message).await;
        Report { run: self.log.run, outcome, steps: self.executed, flows: self.flows, alarm: self.log.alarm }
    }

    async fn mark(&mut self, index: usize, state: StepState) {
        self.note(index, state, "").await;
    }

    async fn mark_failed(&mut self, index: usize, why: &dyn Error) {
        self.note(index, StepState::Failed, &chain(why)).await;
    }

    async fn note(&mut self, index: usize, state: StepState, why: &str) {
        self.states[index] = Some(state);
        self.log.step(index, state, why).await;
    }

    async fn execute(&mut self, step: &Step, stamp: &Stamp) -> Result<(), KernelError> {
        let executed = self.kernel.execute(step, &self.scope.ranges, stamp).await?;
        self.executed += 1;
        self.flows += executed.flows;
        Ok(())
    }

    /// Every step that is not known to be done. One that only started is done again, which the port allows.
    async fn forward(&mut self) -> Result<(), Cause> {
        let record = self.record;
        let total = record.steps.len();
        let mut index = 0;
        while index < total {
            let group = self.together(index);
            let steps = &record.steps[index..index + group.len()];
            if self.states[index] != Some(StepState::Done) {
                self.mark_all(group.clone(), StepState::Started).await;
                if let Err(error) = self.execute_all(steps).await {
                    for index in group {
                        self.mark_failed(index, &error).await;
                    }
                    return Err(Cause::Step { number: index + 1, total, step: in_words(&steps[0]), error });
                }
                self.mark_all(group.clone(), StepState::Done).await;
            }
            index = group.end;
        }
        Ok(())
    }

    /// The step at `index` and those that are carried out with it: flows of many marks are forgotten in one walk.
    fn together(&self, index: usize) -> Range<usize> {
        let open = |at: &usize| {
            let forgets = matches!(self.record.steps[*at], Step::Forget { .. });
            forgets && self.states[*at] != Some(StepState::Done)
        };
        let more = (index..self.record.steps.len()).take_while(open).count();
        index..index + more.max(1)
    }

    async fn execute_all(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        let stamp = &self.record.stamp;
        if let [one] = steps {
            return self.execute(one, stamp).await;
        }
        let executed = self.kernel.forget_all(steps, &self.scope.ranges, stamp).await?;
        self.executed += steps.len();
        self.flows += executed.flows;
        Ok(())
    }

    async fn mark_all(&mut self, steps: Range<usize>, state: StepState) {
        for index in steps {
            self.mark(index, state).await;
        }
    }

    /// Reads back until the goal shows. A failure is noted at the last step, so that a kill during the undo
    /// that follows finds the direction in the journal.
    async fn settle(&mut self, goal: &Goal<'_>) -> Result<(), Cause> {
        let mut cause = Cause::ReadBack { left: Vec::new(), keys: Vec::new() };
        for round in 0..ROUNDS {
            pause(round).await;
            cause = match self.look().await {
                Ok(observed) => match goal.missed(&observed.state) {
                    missed if missed.is_empty() => return Ok(()),
                    // Others change what this run did not touch: that is for the next plan.
                    missed if round + 1 == ROUNDS && !missed.iter().any(|(key, _)| self.touches(key)) => return Ok(()),
                    missed => {
                        self.put_again(&missed).await?;
                        let keys = missed.iter().map(|(key, _)| (*key).clone()).collect();
                        Cause::ReadBack { left: lines(missed), keys }
                    }
                },
                Err(error) => Cause::Look { error },
            };
        }
        self.mark_failed(self.states.len() - 1, &cause).await;
        Err(cause)
    }

    fn touches(&self, key: &Key) -> bool {
        self.record.steps.iter().any(|step| matches!(step, Step::Set { key: other, .. } if other == key))
    }

    /// Somebody deletes faster than we look: what is missing is set once more before the run is given up.
    async fn put_again(&mut self, missed: &[(&Key, String)]) -> Result<(), Cause> {
        let record = self.record;
        for (index, step) in record.steps.iter().enumerate() {
            let Step::Set { key, .. } = step else { continue };
            if !missed.iter().any(|(other, _)| *other == key) {
                continue;
            }
            if let Err(error) = self.kernel.execute(step, &self.scope.ranges, &record.stamp).await {
                self.mark_failed(index, &error).await;
                let (number, total) = (index + 1, record.steps.len());
                return Err(Cause::Step { number, total, step: in_words(step), error });
            }
        }
        Ok(())
    }

    async fn look(&self) -> Result<Observed, KernelError> {
        self.kernel.observe(self.scope).await
    }

    /// Undoes what ran and says how that went.
    pub(super) async fn back(&mut self, cause: Cause) -> Outcome {
        match self.undo().await {
            Ok(()) => Outcome::RolledBack { cause },
            Err(Stuck { error, left }) => Outcome::RollbackFailed { cause, undo: error, left },
        }
    }

    /// Undoes what ran until every object of the plan is as it was. What one change takes away besides its own
    /// object (a link that is made anew takes its routes along, also those whose step has not run yet) is
    /// put back in the next round.
    async fn undo(&mut self) -> Result<(), Stuck> {
        let record = self.record;
        let goal = Goal::before(&record.steps);
        let mut stuck = Stuck { error: None, left: Vec::new() };
        for round in 0..ROUNDS {
            pause(round).await;
            let error = self.undo_once().await.err();
            stuck = match self.look().await {
                Ok(observed) => {
                    let missed = goal.missed(&observed.state);
                    if missed.is_empty() && error.is_none() {
                        return Ok(());
                    }
                    self.again(&missed);
                    Stuck { error, left: lines(missed) }
                }
                Err(look) => Stuck { error: Some(error.unwrap_or(look)), left: self.not_undone() },
            };
        }
        Err(stuck)
    }

    /// Stops at the first error: the steps before it are what the state now in force rests on, and taking
    /// the routes away from under a ruleset that still marks for them would leak traffic.
    async fn undo_once(&mut self) -> Result<(), KernelError> {
        let record = self.record;
        let old = previous(record);
        let has_run = |index: usize| !matches!(self.states[index], None | Some(StepState::Undone));
        for (index, inverse) in plan::undo(&record.steps, has_run) {
            if let Some(inverse) = inverse {
                self.execute(&inverse, &old).await?;
            }
            self.mark(index, StepState::Undone).await;
        }
        Ok(())
    }

    fn again(&mut self, missed: &[(&Key, String)]) {
        for (step, state) in self.record.steps.iter().zip(&mut self.states) {
            let Step::Set { key, .. } = step else { continue };
            if missed.iter().any(|(other, _)| *other == key) {
                *state = Some(StepState::Done);
            }
        }
    }

    fn not_undone(&self) -> Vec<String> {
        let steps = self.record.steps.iter().zip(&self.states);
        let open = steps.filter(|(_, state)| !matches!(state, None | Some(StepState::Undone)));
        open.filter_map(|(step, _)| match step {
            Step::Set { key, .. } => Some(format!("{} not undone", describe(key))),
            Step::Forget { .. } => None,
        })
        .collect()
    }
}

fn lines(missed: Vec<(&Key, String)>) -> Vec<String> {
    missed.into_iter().map(|(_, line)| line).collect()
}

async fn pause(round: u32) {
    if round > 0 {
        tokio::time::sleep(WAIT * (1 << (round - 1))).await;
    }
}

/// The stamp that an undo puts back: a table without one gets the nil plan.
pub(super) fn previous(record: &RunRecord) -> Stamp {
    record.previous.clone().unwrap_or(Stamp { generation: 0, plan: Uuid::nil() })
}
