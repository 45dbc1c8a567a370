//! What people asked for by hand: a rule pinned to a path, a path drained.
//!
//! Invariant: an order ends by itself or is shown until somebody ends it; none of them makes a rule use a path that
//! is down.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    clock::{Instant, Wall},
    health::{Healths, PathState},
    units::Name,
    validate::intent::{Rule, Site},
};

/// All orders in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// By rule.
    pub pins: BTreeMap<Name, Pin>,
    /// By path.
    pub drains: BTreeMap<Name, Drain>,
}

/// A rule that shall use a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The path.
    pub to: Name,
    /// Until when.
    pub until: Instant,
    /// Why, in the words of whoever asked.
    pub reason: String,
}

/// A path that no rule shall use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Since when, by the wall clock: it may have been before the last boot.
    pub since: Wall,
    /// Not even as the last one.
    pub force: bool,
}

impl Overrides {
    /// What a rule is pinned to now.
    #[must_use]
    pub fn pin(&self, rule: &Name, now: Instant) -> Option<&Pin> {
        self.pins.get(rule).filter(|pin| pin.until > now)
    }

    /// Ends what is over, and says which rules were pinned.
    pub fn expire(&mut self, now: Instant) -> Vec<(Name, Pin)> {
        if self.pins.values().all(|pin| pin.until > now) {
            return Vec::new();
        }
        let (over, going_on) = std::mem::take(&mut self.pins).into_iter().partition(|(_, pin)| pin.until <= now);
        self.pins = going_on;
        let over: BTreeMap<Name, Pin> = over;
        over.into_iter().collect()
    }
}

/// Why a path must not be drained unless it is forced: the rules that it is the last working path of.
#[must_use]
pub fn last_for<'a>(site: &'a Site, path: &Name, orders: &Overrides, healths: &Healths) -> Vec<&'a Name> {
    let works = |m: &&Name| {
        let state = healths.get(*m).map_or(PathState::Unknown, |h| h.state);
        *m != path && !orders.drains.contains_key(*m) && matches!(state, PathState::Up | PathState::Degraded)
    };
    let last = |rule: &&Rule| rule.members.contains(path) && !rule.members.iter().any(|m| works(&m));
    site.rules.values().filter(last).map(|rule| &rule.name).collect()
}
