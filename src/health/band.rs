//! Two thresholds per figure: the one above which it is bad, and the one at which it is good again.
//!
//! Invariant: where no recovery band is given, the thresholds are what counts and nothing is remembered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Stats;
use crate::validate::intent::{Band, Health};

/// Which figures were above their threshold and have not come down to their recovery band.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Breach {
    /// Round-trip time.
    pub latency: bool,
    /// Its variation.
    pub jitter: bool,
    /// Lost probes.
    pub loss: bool,
}

impl Breach {
    /// Takes in what was measured.
    #[must_use]
    pub fn after(self, stats: &Stats, limits: &Health) -> Self {
        let Some(band) = limits.recover else { return Self::default() };
        let worst = |of: fn(&super::Figures) -> Option<Duration>| of(&stats.slow).max(of(&stats.fast));
        let time =
            |was: bool, value: Option<Duration>, fail, good| value.map_or(was, |v| v > if was { good } else { fail });
        let loss = stats.slow.evident.max(stats.fast.evident);
        Self {
            latency: time(self.latency, worst(|f| f.latency), limits.latency, band.latency),
            jitter: time(self.jitter, worst(|f| f.jitter), limits.jitter, band.jitter),
            loss: loss > if self.loss { band.loss } else { limits.loss },
        }
    }

    /// The thresholds that count now.
    #[must_use]
    pub fn limits(self, limits: &Health) -> Health {
        let Some(Band { latency, jitter, loss }) = limits.recover else { return *limits };
        Health {
            latency: if self.latency { latency } else { limits.latency },
            jitter: if self.jitter { jitter } else { limits.jitter },
            loss: if self.loss { loss } else { limits.loss },
            recover: limits.recover,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health::Figures, units::Ratio};

    fn stats(ms: u64) -> Stats {
        let latency = Some(Duration::from_millis(ms));
        let figures = Figures { rounds: 20, loss: Ratio::ZERO, evident: Ratio::ZERO, latency, jitter: None };
        Stats { slow: figures, fast: figures, dead: false }
    }

    #[test]
    fn what_was_above_its_threshold_is_bad_until_it_is_within_its_recovery_band() {
        let limits = crate::health::tests::limits(150, 2, 30);
        let band = Band { latency: Duration::from_millis(100), loss: limits.loss, jitter: limits.jitter };
        let limits = Health { recover: Some(band), ..limits };
        let mut breach = Breach::default();
        for (ms, bad) in [(120, false), (150, false), (151, true), (120, true), (101, true), (100, false), (120, false)]
        {
            breach = breach.after(&stats(ms), &limits);
            assert_eq!(breach.latency, bad, "{ms} ms");
            assert_eq!(crate::health::score(&stats(ms), &breach.limits(&limits)) < 100, bad, "{ms} ms");
        }
        let plain = Health { recover: None, ..limits };
        assert_eq!(Breach::default().after(&stats(400), &plain), Breach::default());
    }
}
