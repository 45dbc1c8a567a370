//! The only loop.

pub mod status;
