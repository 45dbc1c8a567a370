//! A change that waits for its confirmation, and until when.
//!
//! Invariant: a deadline is honoured by whoever looks next, whatever happened in between. It stands on
//! `CLOCK_BOOTTIME`, which counts suspend and cannot be set, beside the *place* (boot and network namespace) in
//! which that clock and the changed kernel live. In another place the change is gone already, and what comes up
//! there is what was in force before it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Who, gate::Baseline};
use crate::{
    clock::{Instant, Wall},
    validate::intent::Site,
};

/// Until when a change may wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// Boot and network namespace in which the change was made; see [`crate::apply::place`].
    pub place: String,
    /// The moment, on that boot's clock.
    pub at: Instant,
    /// The same for people.
    pub wall: Wall,
}

/// What a deadline means now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// So much time is left.
    In(Duration),
    /// It has passed.
    Now,
    /// The machine has restarted, or this is another network namespace: the kernel holds nothing of the change.
    Elsewhere,
}

impl Deadline {
    /// A deadline so far away.
    #[must_use]
    pub fn after(wait: Duration, place: String, now: Instant, wall: Wall) -> Self {
        let micros = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
        Self { place, at: now + wait, wall: Wall::from_micros(wall.as_micros().saturating_add(micros)) }
    }

    /// What it means at this place and moment.
    #[must_use]
    pub fn due(&self, place: &str, now: Instant) -> Due {
        if self.place != place {
            Due::Elsewhere
        } else if self.at <= now {
            Due::Now
        } else {
            Due::In(self.at.since(now))
        }
    }
}

/// How far an unconfirmed change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its steps run, or whoever ran them is dead: nobody can confirm this.
    Applying,
    /// It is in force and waits.
    Waiting,
}

/// A change that was made and does not stand yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// Its row among the generations.
    pub record: i64,
    /// The generation that it led to.
    pub generation: u64,
    /// Its revision.
    pub revision: String,
    /// The revision that comes back without a confirmation; none if nothing was in force before.
    pub previous: Option<String>,
    /// Who made it.
    pub who: Who,
    /// Until when.
    pub deadline: Deadline,
    /// How far it has come.
    pub phase: Phase,
    /// What was so before it.
    pub baseline: Baseline,
}

impl Unconfirmed {
    /// Stands for the revision before where the kernel holds something of ours and no journal tells what it is.
    pub const LOST: &str = "unknown";

    /// What whoever finds it has to do: nothing yet, or go back.
    #[must_use]
    pub fn due(&self, place: &str, now: Instant) -> Due {
        match self.deadline.due(place, now) {
            Due::In(_) if self.phase == Phase::Applying => Due::Now,
            due => due,
        }
    }

    /// One line: what waits, for whom, and until when.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "generation {} (revision {}, by {}) waits for its confirmation until {:.0}",
            self.generation, self.revision, self.who, self.deadline.wall
        )
    }
}

/// How long a change to this site may wait: as long as was asked for, and never less than the slowest path needs for
/// its probe rounds.
#[must_use]
pub fn patience(asked: Duration, site: &Site) -> Duration {
    let rounds = |probe: &crate::validate::intent::Probe| (probe.interval * 3).saturating_add(probe.timeout);
    let probed = site.paths.values().filter(|path| !path.probe.targets.is_empty());
    probed.map(|path| rounds(&path.probe)).fold(asked, Duration::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline() -> Deadline {
        let now = Instant::from_nanos(5_000_000_000);
        Deadline::after(Duration::from_secs(10), "boot-1 net:[1]".into(), now, Wall::from_micros(1_000_000))
    }

    fn unconfirmed(phase: Phase) -> Unconfirmed {
        Unconfirmed {
            record: 1,
            generation: 42,
            revision: "abc".into(),
            previous: None,
            who: Who::DAEMON,
            deadline: deadline(),
            phase,
            baseline: Baseline::default(),
        }
    }

    #[test]
    fn a_deadline_counts_down_passes_and_does_not_outlive_its_boot() {
        let deadline = deadline();
        assert_eq!(deadline.wall, Wall::from_micros(11_000_000));
        assert_eq!(deadline.due("boot-1 net:[1]", Instant::from_nanos(6_000_000_000)), Due::In(Duration::from_secs(9)));
        assert_eq!(deadline.due("boot-1 net:[1]", Instant::from_nanos(15_000_000_000)), Due::Now);
        assert_eq!(deadline.due("boot-2 net:[1]", Instant::from_nanos(6_000_000_000)), Due::Elsewhere);
        assert_eq!(deadline.due("boot-1 net:[2]", Instant::from_nanos(6_000_000_000)), Due::Elsewhere);
    }

    #[test]
    fn what_was_never_finished_is_due_at_once() {
        let now = Instant::from_nanos(6_000_000_000);
        assert_eq!(unconfirmed(Phase::Applying).due("boot-1 net:[1]", now), Due::Now);
        assert_eq!(unconfirmed(Phase::Waiting).due("boot-1 net:[1]", now), Due::In(Duration::from_secs(9)));
    }

    #[test]
    fn it_survives_being_written_down() {
        let before = unconfirmed(Phase::Waiting);
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<Unconfirmed>(&text).unwrap(), before);
        assert_eq!(
            before.line(),
            "generation 42 (revision abc, by daemon) waits for its confirmation until 1970-01-01T00:00:11Z"
        );
    }
}
