//! How many questions of one sender a reflector answers. Pure.
//!
//! An answer is as long as its question, so a reflector amplifies nothing; but the address of a question can be forged,
//! and then its answers go to somebody who did not ask. Each address (of IPv6 each /64, which is one subscriber) has a
//! bucket of [`BURST`] answers that fills at [`RATE`] a second, which is enough for twenty paths probed every 100 ms.
//!
//! Invariant: however many addresses ask, there are at most [`SOURCES`] buckets. When they are all in use, further
//! addresses share one more; those that are known keep theirs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use crate::clock::Instant;

/// Answers a second.
pub const RATE: f64 = 200.0;
/// Answers at once.
pub const BURST: f64 = 200.0;
/// Addresses that are told apart.
pub const SOURCES: usize = 1024;
/// A bucket is full again after so long, so that looking for such ones more often finds none.
const REFILL: Duration = Duration::from_secs(1);
/// Between two warnings.
const QUIET: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    const fn full(now: Instant) -> Self {
        Self { level: BURST, at: now }
    }

    fn level(&self, now: Instant) -> f64 {
        (self.level + now.since(self.at).as_secs_f64() * RATE).min(BURST)
    }

    fn take(&mut self, now: Instant) -> bool {
        let level = self.level(now);
        let taken = level >= 1.0;
        *self = Self { level: if taken { level - 1.0 } else { level }, at: now };
        taken
    }
}

/// The buckets.
#[derive(Debug)]
pub struct Limit {
    sources: BTreeMap<IpAddr, Bucket>,
    /// Of all addresses beyond the table.
    others: Bucket,
    swept: Instant,
    warned: Option<Instant>,
}

impl Limit {
    /// Nobody has asked yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { sources: BTreeMap::new(), others: Bucket::full(now), swept: now, warned: None }
    }

    /// Whether a question from an address is answered now.
    pub fn take(&mut self, from: IpAddr, now: Instant) -> bool {
        let from = subscriber(from);
        if !self.sources.contains_key(&from) && self.sources.len() >= SOURCES {
            self.sweep(now);
        }
        if self.sources.len() < SOURCES || self.sources.contains_key(&from) {
            self.sources.entry(from).or_insert(Bucket::full(now)).take(now)
        } else {
            self.others.take(now)
        }
    }

    /// Drops the buckets that are full: a new one would be the same.
    fn sweep(&mut self, now: Instant) {
        if now.since(self.swept) >= REFILL {
            self.swept = now;
            self.sources.retain(|_, bucket| bucket.level(now) < BURST);
        }
    }

    /// Whether somebody should be told of a refusal now; at most once a minute.
    pub fn is_news(&mut self, now: Instant) -> bool {
        let news = self.warned.is_none_or(|at| now.since(at) >= QUIET);
        if news {
            self.warned = Some(now);
        }
        news
    }
}

/// The part of an address that stands for whoever has it.
fn subscriber(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Instant = Instant::from_nanos(1_000_000_000_000);

    fn at(ms: u64) -> Instant {
        T0 + Duration::from_millis(ms)
    }

    fn v4(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(n).into()
    }

    fn answers(limit: &mut Limit, from: IpAddr, questions: usize, now: Instant) -> usize {
        (0..questions).filter(|_| limit.take(from, now)).count()
    }

    #[test]
    fn a_flood_from_one_address_gets_its_burst_and_then_its_rate_and_costs_the_others_nothing() {
        let mut limit = Limit::new(T0);
        assert_eq!(answers(&mut limit, v4(1), 100_000, at(0)), 200);
        assert_eq!(answers(&mut limit, v4(1), 100_000, at(500)), 100, "half a second later");
        assert_eq!(answers(&mut limit, v4(2), 10, at(500)), 10);
        assert_eq!(answers(&mut limit, v4(1), 100_000, at(3_600_000)), 200, "nothing is saved up beyond the burst");
    }

    #[test]
    fn a_prober_of_many_paths_is_always_answered() {
        let mut limit = Limit::new(T0);
        for ms in (0..60_000).step_by(100) {
            assert_eq!(answers(&mut limit, v4(1), 10, at(ms)), 10, "{ms}");
        }
    }

    #[test]
    fn forged_addresses_fill_no_memory_and_starve_nobody_who_is_known() {
        let mut limit = Limit::new(T0);
        assert!(limit.take(v4(1), at(0)));
        let mut answered = 0;
        for n in 0..200_000 {
            let now = at(1 + u64::from(n) / 200);
            answered += usize::from(limit.take(v4(1_000 + n), now));
            if n % 2_000 == 0 {
                assert!(limit.take(v4(1), now), "the peer that was there before");
            }
            assert!(limit.sources.len() <= SOURCES);
        }
        assert!((SOURCES..3 * SOURCES).contains(&answered), "the rest shares one bucket for a second: {answered}");
        assert!(limit.take(v4(2), at(10_000)) && limit.sources.contains_key(&v4(2)), "a new peer after the flood");
    }

    #[test]
    fn a_network_of_ipv6_is_one_subscriber() {
        let mut limit = Limit::new(T0);
        let host = |n: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, n));
        let answered = (0..10_000).filter(|n| limit.take(host(*n), T0)).count();
        assert_eq!((answered, limit.sources.len()), (200, 1));
    }

    #[test]
    fn a_refusal_is_news_once_a_minute() {
        let mut limit = Limit::new(T0);
        let news: Vec<bool> = [0, 1, 59_999, 60_000, 60_001].into_iter().map(|ms| limit.is_news(at(ms))).collect();
        assert_eq!(news, [true, false, false, true, false]);
    }
}
