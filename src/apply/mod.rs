//! The transaction: journal, execute, undo, verify.
pub mod journal;
pub use journal::{Ending, Journal, JournalError, Memory, RunId, RunRecord, StepState, Unfinished};

/// Where this process runs: the kernel's boot id and the network namespace's inode.
#[must_use]
pub fn place() -> String {
    String::new()
}
