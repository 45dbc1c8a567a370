//! Helpers that several test modules share.

pub mod netns;
pub mod quiet;
pub mod wire;
