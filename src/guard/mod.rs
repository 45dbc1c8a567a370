//! Whether a change may be made, when, and whether it stands. Pure.
//!
//! Three questions, in this order: [`rails`] says what no commit may do to this router, [`window`] says whether now
//! is the time for a change, [`gate`] says whether a change that was made has cut something off. The router's own
//! settings answer the first two; the third is answered by what was measured before the change and after it.
//!
//! Invariant: nothing here ever stops drift repair or a failover. Only a *new revision* is asked about.

pub mod doubt;
pub mod gate;
pub mod rails;
mod unconfirmed;
mod who;
pub mod window;

pub use unconfirmed::{Deadline, Due, Phase, Unconfirmed, patience};
pub use who::Who;

use std::time::Duration;

/// What the router's own settings say about changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// What no commit may cut off.
    pub protected: rails::Protected,
    /// How large a change may be.
    pub limits: rails::Limits,
    /// How a change of the daemon's is confirmed.
    pub confirm: Confirm,
    /// When a new revision may be put in force.
    pub windows: Vec<window::Window>,
}

/// How a change of the daemon's is confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirm {
    /// How long it may wait; zero puts a revision in force without a question.
    pub timeout: Duration,
    /// TCP services, as `HOST:PORT`, that have to answer after a change if they did before.
    pub reach: Vec<String>,
}

impl Default for Confirm {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(120), reach: Vec::new() }
    }
}
