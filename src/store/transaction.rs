//! The journal of the transaction, kept in the `SQLite` journal.

use serde::{Deserialize, Serialize};

use super::{Journal, PlanRecord, StepState, StoreError};
use crate::{
    apply::{self, Ending, JournalError, RunId, RunRecord},
    clock,
    engine::status::ReconcileOutcome,
    state::Stamp,
};

/// Key under which the newest run's origin is remembered.
const ORIGIN: &str = "origin";

/// What recovery needs to know of the newest run besides its plan. It is written before the run is opened: a
/// death in between leaves no open run, and one that does not belong to the open run is not believed.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    stamp: Stamp,
    previous: Option<Stamp>,
    place: String,
}

fn failed(doing: &str) -> impl FnOnce(StoreError) -> JournalError {
    let doing = doing.to_owned();
    move |error| JournalError { doing, source: error.into() }
}

const fn outcome(ending: Ending) -> ReconcileOutcome {
    match ending {
        Ending::Applied => ReconcileOutcome::Applied,
        Ending::RolledBack => ReconcileOutcome::RolledBack,
        Ending::RollbackFailed => ReconcileOutcome::RollbackFailed,
        Ending::Superseded => ReconcileOutcome::Refused,
    }
}

fn column(state: apply::StepState) -> StepState {
    match state {
        apply::StepState::Started => StepState::Started,
        apply::StepState::Done => StepState::Done,
        apply::StepState::Undone => StepState::Undone,
        apply::StepState::Failed => StepState::Failed(String::new()),
    }
}

const fn from_column(state: &StepState) -> Option<apply::StepState> {
    match state {
        StepState::Planned => None,
        StepState::Started => Some(apply::StepState::Started),
        StepState::Done => Some(apply::StepState::Done),
        StepState::Undone => Some(apply::StepState::Undone),
        StepState::Failed(_) => Some(apply::StepState::Failed),
    }
}

impl Journal {
    fn begin_run(&self, record: &RunRecord) -> Result<RunId, StoreError> {
        while let Some(open) = self.unfinished()? {
            self.finish(open.run, clock::wall(), outcome(Ending::Superseded), Some("superseded by a later run"))?;
        }
        let RunRecord { stamp, previous, place, .. } = record.clone();
        self.put(ORIGIN, &Origin { stamp, previous, place })?;
        let run = self.begin(&PlanRecord {
            plan: record.stamp.plan,
            generation: record.stamp.generation,
            revision: Some(record.revision.clone()),
            started: clock::wall(),
            document: serde_json::Value::Null,
            steps: record.steps.clone(),
        })?;
        Ok(RunId(run.0))
    }

    fn unfinished_run(&self) -> Result<Option<apply::Unfinished>, StoreError> {
        let Some(open) = self.unfinished()? else { return Ok(None) };
        let stamp = Stamp { generation: open.generation, plan: open.plan };
        let origin = self.get::<Origin>(ORIGIN)?.filter(|origin| origin.stamp == stamp);
        let (previous, place) = origin.map(|origin| (origin.previous, origin.place)).unwrap_or_default();
        let states = open.steps.iter().map(|step| from_column(&step.state)).collect();
        let steps = open.steps.into_iter().map(|step| step.step).collect();
        let revision = open.revision.unwrap_or_default();
        let record = RunRecord { stamp, previous, revision, place, steps };
        Ok(Some(apply::Unfinished { run: RunId(open.run.0), record, states }))
    }
}

impl apply::Journal for Journal {
    async fn begin(&mut self, record: &RunRecord) -> Result<RunId, JournalError> {
        self.begin_run(record).map_err(failed("opening a run"))
    }

    async fn step(&mut self, run: RunId, index: usize, state: apply::StepState) -> Result<(), JournalError> {
        Self::step(self, super::RunId(run.0), index, &column(state)).map_err(failed("noting a step"))
    }

    async fn finish(&mut self, run: RunId, ending: Ending, message: &str) -> Result<(), JournalError> {
        let message = (!message.is_empty()).then_some(message);
        let closed = Self::finish(self, super::RunId(run.0), clock::wall(), outcome(ending), message);
        closed.map_err(failed("closing a run"))
    }

    async fn unfinished(&mut self) -> Result<Option<apply::Unfinished>, JournalError> {
        self.unfinished_run().map_err(failed("looking for an open run"))
    }
}
