//! Helpers that several test modules share.

pub mod daemon;
pub mod disk;
pub mod forge;
pub mod netns;
pub mod quiet;
pub mod servers;
pub mod statuses;
pub mod wire;

pub use quiet::quiet;
