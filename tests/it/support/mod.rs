//! Helpers that several test modules share.

pub mod wire;
