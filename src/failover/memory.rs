//! What a rule remembers of each of its paths: flaps, and since when it is back.
//!
//! A flap is the change from working to down. Each costs a penalty that halves with time (RFC 2439 does the same with
//! routes): from `suppress` on the path is damped, below `reuse` it may be used again. The penalty is capped, so that
//! the longest time out of use is known.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{family::Lame, overflow::Brim};
use crate::{
    clock::Instant,
    health::{Breach, PathState},
    units::{Family, Name},
    validate::intent::{Damping, Rule},
};

/// The penalty never exceeds so many times `suppress`.
const CAP: u32 = 4;

/// What a rule remembers of one path.
// Facts that have nothing to do with each other: no state machine hides in them.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The path.
    pub path: Name,
    /// Its state under the rule's thresholds when last looked at.
    pub(super) state: PathState,
    /// It was down and has not worked since.
    fallen: bool,
    /// Since when it works again after it was down.
    risen: Option<Instant>,
    /// Penalty when it last changed.
    penalty: u32,
    charged: Instant,
    /// Kept out of use.
    suppressed: bool,
    /// Down by its own thresholds when last looked at.
    #[serde(default)]
    dead: bool,
    /// Figures beyond their recovery band, under the rule's own thresholds.
    pub(super) breach: Breach,
    /// Since when it has been fit to share flows again, where the rule shares them.
    #[serde(default)]
    pub(super) fit: Option<Instant>,
    /// Families of it that were left for other paths.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) lame: BTreeMap<Family, Lame>,
    /// Whether its line is full, where the rule overflows.
    #[serde(default)]
    pub(super) brim: Brim,
    /// It has got new flows since it came into use, where the rule overflows.
    #[serde(default)]
    pub(super) carries: bool,
}

impl Memory {
    /// Of a path that was never looked at.
    pub(super) fn new(path: &Name) -> Self {
        Self {
            path: path.clone(),
            state: PathState::Unknown,
            fallen: false,
            risen: None,
            penalty: 0,
            charged: Instant::default(),
            suppressed: false,
            dead: false,
            breach: Breach::default(),
            fit: None,
            lame: BTreeMap::new(),
            brim: Brim::default(),
            carries: false,
        }
    }

    /// Takes in the path's state under the rule's thresholds.
    pub(super) fn observe(&mut self, state: PathState, rule: &Rule, now: Instant) {
        let worked = matches!(self.state, PathState::Up | PathState::Degraded);
        match state {
            PathState::Down => {
                self.fallen = true;
                self.risen = None;
                if let Some(damping) = rule.damping.as_ref().filter(|_| worked) {
                    self.charge(damping, now);
                }
            }
            PathState::Up | PathState::Degraded if std::mem::take(&mut self.fallen) => self.risen = Some(now),
            _ => {}
        }
        self.state = state;
        if let Some(damping) = &rule.damping {
            self.suppressed &= self.decayed(damping, now) >= f64::from(damping.reuse);
        } else {
            (self.penalty, self.suppressed) = (0, false);
        }
        if self.risen.is_some_and(|at| at + rule.hold_down <= now) {
            self.risen = None;
        }
    }

    /// Whether it was down and has not worked since.
    pub(super) const fn has_fallen(&self) -> bool {
        self.fallen
    }

    /// Takes in whether the path is down by its own thresholds, and says whether it became so just now.
    pub(super) const fn died(&mut self, down: bool) -> bool {
        let before = std::mem::replace(&mut self.dead, down);
        down && !before
    }

    fn charge(&mut self, damping: &Damping, now: Instant) {
        let cap = damping.suppress.saturating_mul(CAP);
        self.penalty = self.penalty(damping, now).saturating_add(damping.penalty).min(cap);
        self.charged = now;
        self.suppressed |= self.penalty >= damping.suppress;
    }

    fn decayed(&self, damping: &Damping, now: Instant) -> f64 {
        let halvings = now.since(self.charged).as_secs_f64() / damping.half_life.as_secs_f64();
        f64::from(self.penalty) * (-halvings).exp2()
    }

    /// The penalty now.
    #[must_use]
    pub fn penalty(&self, damping: &Damping, now: Instant) -> u32 {
        // At most what a u32 was.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let penalty = self.decayed(damping, now).round() as u32;
        penalty
    }

    /// Until when the path is kept out of use for flapping.
    #[must_use]
    pub fn damped_until(&self, rule: &Rule) -> Option<Instant> {
        let damping = rule.damping.as_ref().filter(|_| self.suppressed)?;
        let halvings = (f64::from(self.penalty) / f64::from(damping.reuse)).log2().max(0.0);
        // A millisecond more than it takes, so that rounding never makes the loop ask a moment too early.
        let wait = damping.half_life.mul_f64(halvings) + Duration::from_millis(1);
        Some(self.charged + wait)
    }

    /// Until when the path is held, having come back from being down.
    #[must_use]
    pub fn held_until(&self, rule: &Rule) -> Option<Instant> {
        Some(self.risen? + rule.hold_down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Instant = Instant::from_nanos(1_000_000_000_000);

    fn at(seconds: u64) -> Instant {
        T0 + Duration::from_secs(seconds)
    }

    fn rule() -> Rule {
        let damping = Damping { penalty: 1000, half_life: Duration::from_secs(60), suppress: 2500, reuse: 1000 };
        let hold_down = Duration::from_secs(10);
        Rule { damping: Some(damping), hold_down, ..Rule::new("r".parse().unwrap(), vec!["p".parse().unwrap()]) }
    }

    #[test]
    fn the_penalty_rises_with_flaps_halves_with_time_and_is_capped() {
        let rule = rule();
        let damping = rule.damping.unwrap();
        let mut m = Memory::new(&rule.members[0]);
        let mut seen = Vec::new();
        for n in 0..6_u64 {
            m.observe(PathState::Up, &rule, at(2 * n));
            m.observe(PathState::Down, &rule, at(2 * n + 1));
            seen.push((m.penalty(&damping, at(2 * n + 1)), m.damped_until(&rule).is_some()));
        }
        assert_eq!(seen[0], (1000, false));
        assert!(seen[1].0 > 1900 && !seen[1].1, "{seen:?}");
        assert!(seen[2].0 > 2800 && seen[2].1, "{seen:?}");
        assert!(seen.windows(2).all(|w| w[0].0 < w[1].0), "{seen:?}");
        let top = m.penalty(&damping, at(11));
        assert!(m.penalty(&damping, at(71)).abs_diff(top / 2) <= 1);
        let until = m.damped_until(&rule).unwrap();
        m.observe(PathState::Up, &rule, until + Duration::from_millis(0));
        assert_eq!(m.damped_until(&rule), None, "free when its time is over");
        for n in 0..100_u64 {
            m.observe(PathState::Up, &rule, at(1000 + n));
            m.observe(PathState::Down, &rule, at(1000 + n));
        }
        assert_eq!(m.penalty(&damping, at(1099)), 10_000);
    }

    #[test]
    fn a_path_is_held_only_after_it_was_down() {
        let rule = rule();
        let mut m = Memory::new(&rule.members[0]);
        m.observe(PathState::Up, &rule, at(0));
        assert_eq!(m.held_until(&rule), None);
        m.observe(PathState::Down, &rule, at(1));
        m.observe(PathState::Unknown, &rule, at(2));
        assert_eq!(m.held_until(&rule), None, "not yet back");
        m.observe(PathState::Up, &rule, at(5));
        m.observe(PathState::Degraded, &rule, at(6));
        assert_eq!(m.held_until(&rule), Some(at(15)));
        m.observe(PathState::Up, &rule, at(15));
        assert_eq!(m.held_until(&rule), None);
    }
}
