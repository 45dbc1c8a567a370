//! When the source is read next: at its interval, more slowly after failures, and never in step with other routers.

use std::time::Duration;

/// How often a source is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// Between two readings that succeed.
    pub interval: Duration,
    /// After the first failure; it doubles with each further one.
    pub retry: Duration,
    /// The longest wait after failures.
    pub most: Duration,
    /// Up to this share of a wait is added, in percent.
    pub jitter: u32,
}

impl Rhythm {
    /// The wait before the next reading, after so many failures in a row. `dice` is any number: it decides where in
    /// the jitter the wait falls.
    #[must_use]
    pub fn wait(&self, failures: u32, dice: u64) -> Duration {
        let wait = match failures {
            0 => self.interval,
            n => self.retry.saturating_mul(1 << (n - 1).min(16)).min(self.most),
        };
        let most = wait.as_nanos().saturating_mul(u128::from(self.jitter)) / 100;
        let extra = (most + 1).saturating_mul(u128::from(dice)) >> u64::BITS;
        wait.saturating_add(Duration::from_nanos(u64::try_from(extra).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failures_slow_it_down_to_a_limit_and_a_success_ends_that() {
        let rhythm = Rhythm { interval: 60 * SECOND, retry: 2 * SECOND, most: 30 * SECOND, jitter: 0 };
        let waits: Vec<u64> = (0..8).map(|n| rhythm.wait(n, u64::MAX).as_secs()).collect();
        assert_eq!(waits, [60, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(rhythm.wait(u32::MAX, 0), 30 * SECOND);
    }

    #[test]
    fn the_jitter_spreads_over_its_whole_share_and_never_shortens() {
        let rhythm = Rhythm { interval: 60 * SECOND, retry: SECOND, most: SECOND, jitter: 10 };
        assert_eq!(rhythm.wait(0, 0), 60 * SECOND);
        assert_eq!(rhythm.wait(0, u64::MAX / 2).as_secs(), 63);
        assert_eq!(rhythm.wait(0, u64::MAX), 66 * SECOND);
    }
}
