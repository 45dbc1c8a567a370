//! How busy an uplink is with its own traffic, from the byte counters of its interface. Pure.
//!
//! A line that is filled by what it carries becomes slow: that is no fault of the line, and moving its traffic to the
//! next one would fill that one. So while it is busy, and for a moment after, its latency and jitter count as they were
//! before.

use std::{collections::VecDeque, time::Duration};

use crate::{clock::Instant, units::Rate};

/// Over which time bytes are counted.
const SPAN: Duration = Duration::from_millis(400);
/// For how long queues may take to drain.
const AFTER: Duration = Duration::from_secs(2);

/// Bytes that an interface has moved since it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Received.
    pub down: u64,
    /// Sent.
    pub up: u64,
}

/// Shares of the declared rates that are used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Use {
    /// Towards the router.
    pub down: f64,
    /// Away from it.
    pub up: f64,
}

impl Use {
    /// The greater share.
    #[must_use]
    pub const fn most(self) -> f64 {
        self.down.max(self.up)
    }
}

/// The counters of one uplink over the last moments.
#[derive(Debug, Default)]
pub struct Meter {
    readings: VecDeque<(Instant, Moved)>,
    /// The last moment at which it was busy.
    busy: Option<Instant>,
}

impl Meter {
    /// Whether the counters should be read again.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.readings.back().is_none_or(|(at, _)| now.since(*at) >= SPAN / 2)
    }

    /// Takes in a reading. The use over the last moments, once there were some.
    pub fn add(&mut self, moved: Moved, (down, up): (Option<Rate>, Option<Rate>), now: Instant) -> Option<Use> {
        // Counters that went back are those of another interface.
        if self.readings.back().is_some_and(|(_, old)| moved.down < old.down || moved.up < old.up) {
            self.readings.clear();
        }
        self.readings.push_back((now, moved));
        while self.readings.get(1).is_some_and(|(at, _)| now.since(*at) >= SPAN) {
            self.readings.pop_front();
        }
        let (at, old) = *self.readings.front()?;
        let seconds = now.since(at).as_secs_f64();
        let share = |bytes: u64, rate: Option<Rate>| {
            // A rate is at least 1 bit a second, and no line moves 2^53 bytes in a moment.
            #[allow(clippy::cast_precision_loss)]
            rate.map_or(0.0, |r| bytes as f64 * 8.0 / seconds / r.bits_per_second() as f64)
        };
        (seconds > 0.0).then(|| Use { down: share(moved.down - old.down, down), up: share(moved.up - old.up, up) })
    }

    /// Notes whether the uplink is used from a share on; whether it counts as busy.
    pub fn weigh(&mut self, used: Use, from: f64, now: Instant) -> bool {
        if used.most() >= from {
            self.busy = Some(now);
        }
        self.busy.is_some_and(|at| now.since(at) <= AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Instant = Instant::from_nanos(1_000_000_000_000);

    fn at(ms: u64) -> Instant {
        T0 + Duration::from_millis(ms)
    }

    /// 10 Mbit/s down, nothing declared up: 125 bytes are 1 ms of it.
    fn rates() -> (Option<Rate>, Option<Rate>) {
        (Some("10Mbit".parse().unwrap()), None)
    }

    #[test]
    fn the_use_is_that_of_the_last_moments() {
        let mut meter = Meter::default();
        assert_eq!(meter.add(Moved { down: 0, up: 0 }, rates(), at(0)), None);
        assert!(!meter.is_due(at(100)) && meter.is_due(at(200)));
        let half = meter.add(Moved { down: 125_000, up: 9_999_999 }, rates(), at(200)).unwrap();
        assert!((half.down - 0.5).abs() < 1e-9 && half.up < 1e-9, "{half:?}");
        for ms in [400, 600, 800, 1000] {
            let _ = meter.add(Moved { down: 125_000 + (ms - 200) * 1250, up: 9_999_999 }, rates(), at(ms));
        }
        let full = meter.add(Moved { down: 125_000 + 1250 * 1000, up: 9_999_999 }, rates(), at(1200)).unwrap();
        assert!((full.down - 1.0).abs() < 1e-9, "{full:?}");
        assert!(meter.readings.len() <= 4);
    }

    #[test]
    fn busy_lasts_until_the_queues_have_drained() {
        let mut meter = Meter::default();
        let of = |down| Use { down, up: 0.0 };
        assert!(!meter.weigh(of(0.89), 0.9, at(0)));
        assert!(meter.weigh(of(0.9), 0.9, at(100)));
        assert!(meter.weigh(of(0.1), 0.9, at(2100)));
        assert!(!meter.weigh(of(0.1), 0.9, at(2101)));
    }

    #[test]
    fn counters_of_a_new_interface_begin_anew() {
        let mut meter = Meter::default();
        let _ = meter.add(Moved { down: 1_000_000, up: 0 }, rates(), at(0));
        assert_eq!(meter.add(Moved { down: 10, up: 0 }, rates(), at(400)), None);
    }
}
