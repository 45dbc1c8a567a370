//! Finishes or undoes the run that an earlier process left open.

use super::{
    Cause, Ending, Journal, JournalError, Outcome, Report, RunRecord, StepState, Unfinished,
    look::{Goal, covering},
    place,
    run::{Log, Run, previous},
};
use crate::{
    kernel::{Kernel, KernelError, Scope},
    plan::Step,
    state::{Key, Observed, Stamp},
};

/// What recovery found and did.
#[derive(Debug)]
pub enum Recovery {
    /// No run was open.
    Clean,
    /// A run was open that has nothing to do with this kernel any more; it was closed, and nothing touched.
    Superseded {
        /// What it was.
        stamp: Stamp,
    },
    /// A run was open. Its report says `Applied` if it was finished, `RolledBack` if it was undone.
    Settled {
        /// What it was.
        stamp: Stamp,
        /// How it ended.
        report: Box<Report>,
    },
}

/// Recovery could not begin; nothing was changed, and the run is still open.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The journal could not be read.
    #[error("cannot read the journal")]
    Journal(#[from] JournalError),
    /// The kernel could not be read.
    #[error("cannot read the kernel to finish or undo an interrupted run")]
    Kernel(#[from] KernelError),
}

/// Which way an open run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Back,
    Nowhere,
}

/// Finishes or undoes the newest open run, so that the kernel shows exactly the old state or exactly the new.
///
/// Steps that started and are not known to be done are done or undone once more: the port is idempotent, and
/// both directions set an object to a value that the journal holds. `scope` must cover the objects of the run;
/// its sysctls are added here.
pub async fn recover<K: Kernel, J: Journal>(
    kernel: &K,
    journal: &mut J,
    scope: &Scope,
) -> Result<Recovery, RecoveryError> {
    let Some(open) = journal.unfinished().await? else { return Ok(Recovery::Clean) };
    let scope = covering(scope, &open.record.steps);
    let observed = kernel.observe(&scope).await?;
    let stamp = open.record.stamp.clone();
    let direction = direction(&open, &observed, &place());
    if direction == Direction::Nowhere {
        journal.finish(open.run, Ending::Superseded, "the kernel shows neither its old nor its new state").await?;
        return Ok(Recovery::Superseded { stamp });
    }
    let log = Log::resume(journal, open.run);
    let mut run = Run::new(kernel, &scope, &open.record, log, open.states);
    let outcome: Outcome = match direction {
        Direction::Forward => run.drive(&Goal::after(&open.record.steps)).await,
        _ => run.back(Cause::Interrupted).await,
    };
    Ok(Recovery::Settled { stamp, report: Box::new(run.close(outcome).await) })
}

/// The rules, in order:
/// 1. begun before a reboot or in another namespace: nothing of it is here;
/// 2. the table carries a third plan's id: a later run went over this one while the journal was dead;
/// 3. a step failed or was undone: the run had turned back, and goes on that way;
/// 4. committed: forward; not committed: back.
fn direction(open: &Unfinished, observed: &Observed, here: &str) -> Direction {
    let turned = |state: &Option<StepState>| matches!(state, Some(StepState::Failed | StepState::Undone));
    if open.record.place != here || is_foreign(&open.record, observed) {
        Direction::Nowhere
    } else if open.states.iter().any(turned) || !is_committed(open, observed) {
        Direction::Back
    } else {
        Direction::Forward
    }
}

fn is_foreign(record: &RunRecord, observed: &Observed) -> bool {
    observed.stamp.as_ref().is_some_and(|stamp| *stamp != record.stamp && *stamp != previous(record))
}

fn is_committed(open: &Unfinished, observed: &Observed) -> bool {
    let table = open.record.steps.iter().rev().find_map(|step| match step {
        Step::Set { key: Key::Nft, after, .. } => Some(after.is_some()),
        _ => None,
    });
    match table {
        Some(true) => observed.stamp.as_ref() == Some(&open.record.stamp),
        Some(false) => !observed.state.objects.contains_key(&Key::Nft),
        None => open.states.iter().all(|state| *state == Some(StepState::Done)),
    }
}
