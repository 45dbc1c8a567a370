//! When the records are written: pure, `now` is an argument.

use std::{collections::BTreeMap, time::Duration};

use super::HealthSample;
use crate::{
    clock::{Instant, Wall},
    health::{PathHealth, PathState},
    units::Name,
};

/// No row waits longer than this while the disk takes rows.
pub(super) const LONGEST: Duration = Duration::from_secs(60);
/// Events are looked at while they happen.
const URGENT: Duration = Duration::from_millis(500);
/// The first and the longest wait after a failed write.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Decides when a batch is written.
#[derive(Debug)]
pub struct FlushPolicy {
    every: Duration,
    due: Option<Instant>,
    retry: Option<Instant>,
    failures: u32,
}

impl FlushPolicy {
    /// Samples are written at the latest `every` after they came, 60 s at most.
    #[must_use]
    pub fn new(every: Duration) -> Self {
        Self { every: every.min(LONGEST), due: None, retry: None, failures: 0 }
    }

    /// A row came; an urgent one is written soon.
    pub fn row(&mut self, urgent: bool, now: Instant) {
        let at = now + if urgent { URGENT.min(self.every) } else { self.every };
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When to write next; none while there is nothing to write.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        Some(self.due?.max(self.retry.unwrap_or_default()))
    }

    /// Whether to write now.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.next().is_some_and(|at| at <= now)
    }

    /// Everything is written.
    pub fn written(&mut self) {
        *self = Self::new(self.every);
    }

    /// The write failed: again later, and ever later.
    pub fn failed(&mut self, now: Instant) {
        let wait = RETRY.0.saturating_mul(1 << self.failures.min(6)).min(RETRY.1);
        self.failures = self.failures.saturating_add(1);
        self.retry = Some(now + wait);
        // Even with nothing to write, so that the alarm goes when its cause has gone.
        self.due.get_or_insert(now);
    }
}

/// Samples on their way to the recorder, thinned out: one per path and period, except that a change of state is always
/// kept. The values are means over the probe window, so a dropped one tells little that its neighbours do not.
#[derive(Debug)]
pub struct Batch {
    period: Duration,
    last: BTreeMap<Name, (i64, PathState)>,
    samples: Vec<HealthSample>,
}

impl Batch {
    /// At most one sample per path and `period` of wall time; zero keeps all.
    #[must_use]
    pub const fn new(period: Duration) -> Self {
        Self { period, last: BTreeMap::new(), samples: Vec::new() }
    }

    /// Takes in what is known of a path now.
    pub fn add(&mut self, path: &Name, health: &PathHealth, at: Wall) {
        if self.keep(path, health.state, at) {
            self.samples.push(HealthSample::of(path, health, at));
        }
    }

    /// What was collected.
    #[must_use]
    pub fn take(&mut self) -> Vec<HealthSample> {
        std::mem::take(&mut self.samples)
    }

    /// A fifth less than the period passes for it: probes do not come on the microsecond.
    fn keep(&mut self, path: &Name, state: PathState, at: Wall) -> bool {
        let period = i64::try_from(self.period.as_micros() / 5 * 4).unwrap_or(i64::MAX);
        let at = at.as_micros();
        let same =
            |(last, before): &(i64, PathState)| *before == state && (0..period).contains(&at.saturating_sub(*last));
        if self.last.get(path).is_some_and(same) {
            return false;
        }
        self.last.insert(path.clone(), (at, state));
        // Paths that were removed from the configuration must not pile up.
        if self.last.len() > 10_000 {
            self.last.retain(|_, (last, _)| (0..period).contains(&at.saturating_sub(*last)));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(s: u64) -> Instant {
        Instant::from_nanos(s * 1_000_000_000)
    }

    #[test]
    fn no_sample_waits_longer_than_sixty_seconds_whatever_is_asked_for() {
        let mut policy = FlushPolicy::new(Duration::from_secs(3600));
        policy.row(false, at(100));
        policy.row(false, at(150));
        assert!(!policy.is_due(at(159)));
        assert!(policy.is_due(at(160)), "60 s after the first row, not after the last");
        policy.written();
        assert_eq!(policy.next(), None);
    }

    #[test]
    fn an_event_takes_waiting_samples_along_at_once() {
        let mut policy = FlushPolicy::new(Duration::from_secs(30));
        policy.row(false, at(100));
        policy.row(true, at(101));
        assert!(!policy.is_due(at(101)));
        assert!(policy.is_due(at(102)));
    }

    #[test]
    fn failures_back_off_to_a_minute_and_success_forgets_them() {
        let mut policy = FlushPolicy::new(Duration::from_secs(1));
        policy.row(false, at(0));
        let mut waits = Vec::new();
        for _ in 0..8 {
            policy.failed(at(1000));
            waits.push(policy.next().unwrap().since(at(1000)).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        policy.written();
        policy.row(true, at(2000));
        assert!(policy.is_due(at(2001)));
    }

    #[test]
    fn a_batch_keeps_one_sample_per_period_and_every_change_of_state() {
        let moment = |ms: i64| Wall::from_micros(ms * 1_000);
        let mut batch = Batch::new(Duration::from_secs(10));
        let name = |text: &str| text.parse::<Name>().unwrap();
        let mut kept = Vec::new();
        for s in 0..25 {
            let state = if s == 13 { PathState::Down } else { PathState::Up };
            // A little early or late.
            if batch.keep(&name("fiber"), state, moment(s * 1_000 + s % 3)) {
                kept.push(s);
            }
        }
        assert_eq!(kept, [0, 8, 13, 14, 23]);
        assert!(batch.keep(&name("lte"), PathState::Up, moment(24_000)), "paths do not thin each other out");
        assert!(batch.keep(&name("fiber"), PathState::Up, moment(3_000)), "a clock set back does not stop the record");
    }
}
