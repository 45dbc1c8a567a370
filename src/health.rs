//! Windows, statistics, score and state of each path. Pure: `now` is an argument.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    clock::Instant,
    units::{Name, Ratio},
};

/// The result of one probe round of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The path.
    pub path: Name,
    /// Rises by one with each round of a path.
    pub round: u64,
    /// When the round was sent.
    pub sent: Instant,
    /// When it was complete: all answers there, or timed out.
    pub done: Instant,
    /// Per target, the round-trip time; `None` = no valid answer in time.
    pub answers: Vec<(IpAddr, Option<Duration>)>,
}

/// State of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathState {
    /// Not yet measured.
    Unknown,
    /// Score 80 or more.
    Up,
    /// Score 50 or more.
    Degraded,
    /// Score below 50, no answers, no carrier or no interface.
    Down,
}

/// What is known of a path now. `latency` and `jitter` are absent when nothing was answered: never 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathHealth {
    /// Its state.
    pub state: PathState,
    /// 0 to 100.
    pub score: u8,
    /// Lost probes of the window.
    pub loss: Ratio,
    /// Mean round-trip time of the window.
    pub latency: Option<Duration>,
    /// Interarrival jitter (RFC 3550, section 6.4.1) over the window.
    pub jitter: Option<Duration>,
    /// Rounds in the window.
    pub rounds: u32,
    /// Whether the interface is there, up and has a carrier.
    pub carrier: bool,
    /// Since when the state holds.
    pub since: Instant,
    /// Why it is in this state, for a person: "3 rounds lost in a row".
    pub reason: String,
}

/// Health of all paths of the site.
pub type Healths = BTreeMap<Name, PathHealth>;
