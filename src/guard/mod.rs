//! Whether a change may be made, when, and whether it stands. Pure.
//!
//! Three questions, in this order: [`rails`] says what no commit may do to this router, [`window`] says whether now
//! is the time for a change, [`gate`] says whether a change that was made has cut something off. The router's own
//! settings answer the first two; the third is answered by what was measured before the change and after it.
//!
//! Invariant: nothing here ever stops drift repair or a failover. Only a *new revision* is asked about.

pub mod gate;
pub mod rails;
mod unconfirmed;
mod who;
pub mod window;

pub use unconfirmed::{Deadline, Due, Phase, Unconfirmed, patience};
pub use who::Who;
