//! How long to wait before the next fetch.

use std::time::Duration;

use super::spec::Spec;

/// First wait after a failure; it doubles.
const FIRST: Duration = Duration::from_secs(5);
/// Longest wait after failures, unless the interval is longer.
const LONGEST: Duration = Duration::from_secs(300);

/// The wait after so many failures in a row; `chance` is between 0 and 1.
///
/// After a success it is the interval, longer by up to the jitter. After failures it begins at 5 s (or the interval,
/// if that is shorter), doubles up to 5 min (or the interval, if that is longer), and is shortened by up to a half, so
/// that a fleet does not come back to a server all at once.
#[must_use]
pub fn wait(spec: &Spec, failures: u32, chance: f64) -> Duration {
    let chance = chance.clamp(0.0, 1.0);
    if failures == 0 {
        return spec.interval.mul_f64(1.0 + spec.jitter.as_f64() * chance);
    }
    let first = FIRST.min(spec.interval);
    let longest = LONGEST.max(spec.interval);
    first.saturating_mul(1 << (failures - 1).min(16)).min(longest).mul_f64(1.0 - chance / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::git::{Address, Reference, Verify};

    fn spec(interval: u64) -> Spec {
        Spec {
            url: Address::parse("file:///srv/n.git").unwrap(),
            reference: Reference::Branch("main".into()),
            path: String::new(),
            interval: Duration::from_secs(interval),
            jitter: "10%".parse().unwrap(),
            timeout: Duration::from_secs(60),
            username: None,
            secret: None,
            known_hosts: None,
            ca: None,
            verify: Verify::Off,
        }
    }

    #[test]
    fn a_success_waits_the_interval_and_up_to_the_jitter() {
        assert_eq!(wait(&spec(60), 0, 0.0), Duration::from_secs(60));
        assert_eq!(wait(&spec(60), 0, 1.0), Duration::from_secs(66));
    }

    #[test]
    fn failures_double_the_wait_up_to_five_minutes_or_the_interval() {
        let waits = |interval| [1, 2, 3, 7, 60].map(|n| wait(&spec(interval), n, 0.0).as_secs());
        assert_eq!(waits(60), [5, 10, 20, 300, 300]);
        assert_eq!(waits(2), [2, 4, 8, 128, 300]);
        assert_eq!(waits(3600), [5, 10, 20, 320, 3600]);
        assert_eq!(wait(&spec(60), 1, 1.0), Duration::from_millis(2500));
    }
}
