//! What the outside may ask of the engine.

use tokio::sync::oneshot;

use crate::engine::status::ReconcileStatus;

/// A request to the engine. It answers when it has done it; a dropped reply means that it is shutting down.
#[derive(Debug)]
pub enum Command {
    /// Read the source and the kernel again and bring them together now.
    Reconcile {
        /// Takes how that went.
        reply: oneshot::Sender<ReconcileStatus>,
    },
}
