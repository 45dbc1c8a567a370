//! What the outside may ask of the engine.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{clock::Wall, engine::status::ReconcileStatus, guard::Who, probe::ProbeSpec, units::Name};

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
        /// How long that one may wait for its confirmation, if not as long as a revision of the source.
        within: Option<Duration>,
        /// Takes one line that says what was done, or why not.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Read the source now, and go on as after any reading.
    Fetch,
    /// How a path is probed, for probes by hand.
    Probe {
        /// The path.
        path: Name,
        /// Takes the answer, or why there is none.
        reply: oneshot::Sender<Result<Box<ProbeSpec>, String>>,
    },
    /// Something about paths and rules, by hand.
    Order {
        /// What.
        order: Order,
        /// Who asks.
        who: Who,
        /// Takes what came of it.
        reply: oneshot::Sender<Answer>,
    },
    /// Something about the source and its revisions.
    Source {
        /// What.
        command: SourceCommand,
        /// Who asks.
        who: Who,
        /// Takes what came of it.
        reply: oneshot::Sender<Answer>,
    },
}

/// What people order by hand about paths and rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "lowercase", deny_unknown_fields)]
pub enum Order {
    /// Pin a rule to a path for a while.
    Failover {
        /// The rule.
        rule: Name,
        /// The path.
        to: Name,
        /// For how long.
        seconds: u64,
        /// What for.
        reason: String,
    },
    /// End a pin, and return at once if that is possible.
    Failback {
        /// The rule.
        rule: Name,
    },
    /// Take a path out of use.
    Drain {
        /// The path.
        path: Name,
        /// Also as the last one.
        #[serde(default)]
        force: bool,
    },
    /// Use a drained path again.
    Undrain {
        /// The path.
        path: Name,
    },
}

impl Order {
    /// The verb, as the audit has it.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Failover { .. } => "failover",
            Self::Failback { .. } => "failback",
            Self::Drain { .. } => "drain",
            Self::Undrain { .. } => "undrain",
        }
    }
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

impl SourceCommand {
    /// The verb, as the audit has it.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Accept(_) => "source accept",
            Self::Retry => "source retry",
            Self::Suspend { .. } => "suspend",
            Self::Resume => "resume",
        }
    }
}

/// What came of a command, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done(String),
    /// It must not be done, or cannot.
    Refused(String),
}

impl Answer {
    /// One line for the audit.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Done(done) => done.clone(),
            Self::Refused(why) => format!("refused: {why}"),
        }
    }
}
