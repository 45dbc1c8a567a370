//! What the failover rules would do, found out without a network: the daemon's own decision on a virtual clock.
//!
//! [`World`] plays one site: probe rounds go into the same [`crate::health::Monitor`] and the same
//! [`crate::failover::decide`] as in the daemon, at the moments at which they would. Tests of rules ([`trial`]), failures
//! of paths and uplinks ([`failures`]) and the seeded simulation are different weather for it. What was recorded are figures and
//! not rounds, so [`replay`] begins one step later, at the decision.
//!
//! Invariant: the same site, weather and orders give the same story, to the nanosecond.

pub mod failures;
pub mod replay;
mod series;
mod sky;
mod story;
pub mod trial;
mod verdict;
mod world;

pub use self::{
    series::{Series, SeriesError},
    story::Story,
    world::{Weather, World},
};

#[cfg(test)]
mod tests;
