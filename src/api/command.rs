//! What the outside may ask of the engine.

use tokio::sync::oneshot;

use crate::{engine::status::ReconcileStatus, guard::Who};

/// A request to the engine. It answers when it has done it; a dropped reply means that it is shutting down.
#[derive(Debug)]
pub enum Command {
    /// Read the source and the kernel again and bring them together now.
    Reconcile {
        /// Takes how that went.
        reply: oneshot::Sender<ReconcileStatus>,
    },
    /// The change that waits for its confirmation shall stand.
    Confirm {
        /// Who says so.
        who: Who,
        /// Takes one line that says what was done, or why not.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// The change that waits shall be undone; or a recorded generation shall come back.
    Rollback {
        /// Who says so.
        who: Who,
        /// The generation that shall come back.
        to: Option<u64>,
        /// Takes one line that says what was done, or why not.
        reply: oneshot::Sender<Result<String, String>>,
    },
}
