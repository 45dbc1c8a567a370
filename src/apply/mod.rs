//! The transaction: journal, execute, undo, verify.
//!
//! Invariant: the plan decides, the executor obeys. Which steps run and in which order is in the plan; what
//! is left here is the direction, and it has one rule. A run goes forward until a step fails or the read-back
//! is not what was wanted, and then backward, over the steps that *ran*, from their `before`.
//!
//! **Commit point.** The step that sets the nft table writes the plan's id into it, so a kill leaves evidence in
//! the kernel itself: with the plan's id the new state is in force and recovery finishes it, without it the
//! old one is and recovery undoes what was prepared. A plan that has no such step commits with its last
//! step; one that removes the table (teardown) commits when the table is gone.
//!
//! **A dead journal stops nothing.** A journal that cannot be written does not stop an apply: refusing would
//! leave the router with routes that are known to be wrong because a disk is full. The run goes on with its
//! states in memory, so an error is still undone, and [`Report::alarm`] says what was lost: only a kill in this very
//! run can no longer be recovered from, and the next plan starts from what the kernel shows. Route switches of
//! the failover brain never come here: they are single replaces that the next pass re-derives.

mod journal;
mod look;
mod recovery;
mod run;

use std::{collections::BTreeSet, fs};

use crate::{
    kernel::{Kernel, KernelError, Scope},
    plan::Step,
    state::{Key, Stamp, State},
};

pub use self::{
    journal::{Ending, Entry, Journal, JournalError, Memory, RunId, RunRecord, StepState, Unfinished},
    look::{describe, difference},
    recovery::{Recovery, RecoveryError, recover},
    run::{ROUNDS, WAIT},
};
use self::{
    look::{Goal, covering},
    run::{Log, Run},
};

/// One transaction.
#[derive(Debug)]
pub struct Request<'a> {
    /// The steps, in the plan's order.
    pub steps: &'a [Step],
    /// The state that they lead to; the read-back must show it.
    pub desired: &'a State,
    /// Objects in which `desired` does not hold: they are left as they are found.
    pub spared: &'a BTreeSet<Key>,
    /// What to look at, and which objects are ours.
    pub scope: &'a Scope,
    /// Generation and plan id that commit it.
    pub stamp: Stamp,
    /// The stamp that was observed when the plan was made.
    pub previous: Option<Stamp>,
    /// The revision of the configuration, for people.
    pub revision: &'a str,
}

/// Why a run went backward.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused a step.
    #[error("step {number} of {total} failed: {step}")]
    Step {
        /// The step's number, from 1.
        number: usize,
        /// How many there are.
        total: usize,
        /// The step in words.
        step: String,
        /// What the kernel said.
        #[source]
        error: KernelError,
    },
    /// All steps ran, and yet the kernel does not show the wanted state.
    #[error("the kernel took every step but does not show the wanted state: {}", left.join("; "))]
    ReadBack {
        /// The remaining differences, one line each.
        left: Vec<String>,
        /// The objects that they are about.
        keys: Vec<Key>,
    },
    /// All steps ran, and then the kernel could not be read.
    #[error("the kernel took every step but could not be read back")]
    Look {
        /// What failed.
        #[source]
        error: KernelError,
    },
    /// An earlier process ended before the commit point, or while it was undoing.
    #[error("an earlier run was interrupted")]
    Interrupted,
}

/// How a transaction ended.
#[derive(Debug)]
pub enum Outcome {
    /// There was nothing to do.
    Unchanged,
    /// Every step ran, and the kernel shows the wanted state.
    Applied,
    /// Everything that ran was undone, and the kernel shows the old state.
    RolledBack {
        /// Why.
        cause: Cause,
    },
    /// Not everything could be undone: a person must look.
    RollbackFailed {
        /// Why it went backward.
        cause: Cause,
        /// What the kernel said to the undo; none if it took every step without effect.
        undo: Option<KernelError>,
        /// What is not as it was before, one line each.
        left: Vec<String>,
    },
}

impl Cause {
    /// Whether it may be over the next time: a kernel that is busy, or somebody else's hand in between.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Step { error, .. } => error.may_pass(),
            Self::ReadBack { .. } | Self::Look { .. } | Self::Interrupted => true,
        }
    }
}

impl Outcome {
    /// Whether it failed for something that may be over the next time.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::RolledBack { cause } | Self::RollbackFailed { cause, .. } => cause.may_pass(),
            Self::Unchanged | Self::Applied => false,
        }
    }
}

/// A transaction that ended.
#[derive(Debug)]
pub struct Report {
    /// Its number in the journal, if that could be written.
    pub run: Option<RunId>,
    /// How it ended.
    pub outcome: Outcome,
    /// Steps carried out, undone ones included.
    pub steps: usize,
    /// Conntrack entries deleted.
    pub flows: u64,
    /// The first write that the journal refused. The run went on without it.
    pub alarm: Option<JournalError>,
}

/// Carries out a plan, or nothing of it.
///
/// The caller has recovered an unfinished run before (see [`recover`]) and holds the lock of the namespace.
/// Dropping the future is like the death of the process: the next [`recover`] settles it.
pub async fn run<K: Kernel, J: Journal>(kernel: &K, journal: &mut J, request: Request<'_>) -> Report {
    if request.steps.is_empty() {
        return Report { run: None, outcome: Outcome::Unchanged, steps: 0, flows: 0, alarm: None };
    }
    let record = RunRecord {
        stamp: request.stamp,
        previous: request.previous,
        revision: request.revision.to_owned(),
        place: place(),
        steps: request.steps.to_vec(),
    };
    let log = Log::begin(journal, &record).await;
    let scope = covering(request.scope, request.steps);
    let mut run = Run::new(kernel, &scope, &record, log, vec![None; record.steps.len()]);
    let outcome = run.drive(&Goal::State(request.desired, request.spared)).await;
    run.close(outcome).await
}

/// Where this process runs: the boot id of the machine and the inode of the network namespace. A run that was
/// begun elsewhere has nothing left to finish or undo here.
#[must_use]
pub fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
    format!("{} {}", boot.trim(), space.display())
}
