//! What the outside may ask of the engine.

use tokio::sync::oneshot;

use crate::{clock::Wall, engine::status::ReconcileStatus};

/// A request to the engine. It answers when it has done it; a dropped reply means that it is shutting down.
#[derive(Debug)]
pub enum Command {
    /// Read the source and the kernel again and bring them together now.
    Reconcile {
        /// Takes how that went.
        reply: oneshot::Sender<ReconcileStatus>,
    },
    /// Read the source now, and go on as after any reading.
    Fetch,
    /// Something about the source and its revisions.
    Source {
        /// What.
        command: SourceCommand,
        /// Who asks.
        by: String,
        /// Takes what came of it.
        reply: oneshot::Sender<Answer>,
    },
}

/// What people ask about the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceCommand {
    /// Let the held or quarantined revision pass whose name begins so.
    Accept(String),
    /// Try again what is quarantined, and read the source.
    Retry,
    /// Take no new revision.
    Suspend {
        /// What for.
        reason: String,
        /// When it ends by itself; none: never.
        until: Option<Wall>,
    },
    /// Take new revisions again.
    Resume,
}

/// What came of a command, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done(String),
    /// It must not be done, or cannot.
    Refused(String),
}
