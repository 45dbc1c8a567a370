//! Rounds under way: which probe waits for which answer, and when a round is complete. Pure: `now` is an argument.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use super::{ProbeSpec, echo::Reply};
use crate::{clock::Instant, health::Sample, units::Name};

/// Names a round: when it ends, and a number that rises.
pub type RoundKey = (Instant, u64);

#[derive(Debug)]
struct Round {
    path: Name,
    number: u64,
    sent: Instant,
    timeout: Duration,
    answers: Vec<(IpAddr, Option<Duration>)>,
    nonces: Vec<u64>,
}

#[derive(Debug)]
struct Pending {
    round: RoundKey,
    index: usize,
    sequence: u16,
    interface: u32,
    sent: Sent,
}

/// When a probe was sent, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// On the monotonic clock.
    pub at: Instant,
    /// On the wall clock, in microseconds, to compare with the kernel's timestamps.
    pub wall: i64,
}

/// An answer as it came in.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Its content.
    pub reply: Reply,
    /// Who sent it.
    pub from: IpAddr,
    /// Index of the interface that it came in by.
    pub interface: u32,
    /// When the kernel received it, in microseconds of the wall clock, if it says so.
    pub wall: Option<i64>,
    /// When we read it.
    pub read: Instant,
}

/// All rounds under way.
#[derive(Debug, Default)]
pub struct Rounds {
    open: BTreeMap<RoundKey, Round>,
    // Looked up by nonce, never iterated.
    pending: HashMap<u64, Pending>,
    opened: u64,
}

impl Rounds {
    /// Opens a round of a path.
    pub fn open(&mut self, spec: &ProbeSpec, number: u64, now: Instant) -> RoundKey {
        self.opened += 1;
        let key = (now + spec.timeout, self.opened);
        let answers = spec.targets.iter().map(|t| (*t, None)).collect();
        let path = spec.path.clone();
        self.open.insert(key, Round { path, number, sent: now, timeout: spec.timeout, answers, nonces: Vec::new() });
        key
    }

    /// Notes that the probe to a round's target `index` was sent.
    pub fn sent(&mut self, round: RoundKey, index: usize, reply: Reply, interface: u32, sent: Sent) {
        if let Some(open) = self.open.get_mut(&round) {
            open.nonces.push(reply.nonce);
            self.pending.insert(reply.nonce, Pending { round, index, sequence: reply.sequence, interface, sent });
        }
    }

    /// Takes in an answer. It counts only with the nonce and sequence number of a probe under way, from the probed
    /// address, by the interface that the probe left by, and in time. The sample, if it was the last one missing.
    pub fn arrived(&mut self, arrival: &Arrival) -> Option<Sample> {
        let pending = self.pending.get(&arrival.reply.nonce)?;
        let round = self.open.get_mut(&pending.round)?;
        let (target, answer) = round.answers.get_mut(pending.index)?;
        let genuine = pending.sequence == arrival.reply.sequence
            && *target == arrival.from
            && pending.interface == arrival.interface;
        if !genuine {
            return None;
        }
        let rtt = round_trip(pending.sent, arrival);
        let key = pending.round;
        *answer = Some(rtt).filter(|rtt| *rtt <= round.timeout);
        self.pending.remove(&arrival.reply.nonce);
        round.nonces.retain(|n| *n != arrival.reply.nonce);
        self.close_if_complete(key, arrival.read)
    }

    /// The sample of a round in which nothing is waited for (any more).
    pub fn close_if_complete(&mut self, round: RoundKey, now: Instant) -> Option<Sample> {
        let complete = self.open.get(&round)?.nonces.is_empty();
        complete.then(|| self.close(round, now)).flatten()
    }

    /// When the next round ends.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.open.first_key_value().map(|((at, _), _)| (*at, "the end of a probe round"))
    }

    /// The sample of a round whose time is over.
    pub fn expired(&mut self, now: Instant) -> Option<Sample> {
        let (key, _) = self.open.first_key_value().filter(|((at, _), _)| *at <= now)?;
        self.close(*key, now)
    }

    fn close(&mut self, key: RoundKey, now: Instant) -> Option<Sample> {
        let round = self.open.remove(&key)?;
        for nonce in &round.nonces {
            self.pending.remove(nonce);
        }
        Some(Sample { path: round.path, round: round.number, sent: round.sent, done: now, answers: round.answers })
    }
}

/// By the kernel's timestamp where it is plausible: the wall clock may be set between the two readings.
fn round_trip(sent: Sent, arrival: &Arrival) -> Duration {
    let outside = arrival.read.since(sent.at);
    let kernel = arrival.wall.and_then(|wall| u64::try_from(wall - sent.wall).ok()).map(Duration::from_micros);
    kernel.filter(|rtt| *rtt <= outside + Duration::from_micros(1)).unwrap_or(outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Instant = Instant::from_nanos(1_000_000_000_000);
    const REPLY: Reply = Reply { sequence: 7, nonce: 0xfeed };

    fn spec(targets: &[&str]) -> ProbeSpec {
        ProbeSpec {
            path: "fiber".parse().unwrap(),
            interface: "wan0".parse().unwrap(),
            mark: 1,
            sources: vec![],
            targets: targets.iter().map(|t| t.parse().unwrap()).collect(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(800),
            size: 56,
        }
    }

    fn arrival(ms: u64) -> Arrival {
        let at = T0 + Duration::from_millis(ms);
        Arrival { reply: REPLY, from: "192.0.2.1".parse().unwrap(), interface: 4, wall: None, read: at }
    }

    fn one() -> (Rounds, RoundKey) {
        let mut rounds = Rounds::default();
        let key = rounds.open(&spec(&["192.0.2.1"]), 1, T0);
        rounds.sent(key, 0, REPLY, 4, Sent { at: T0, wall: 5_000_000 });
        (rounds, key)
    }

    #[test]
    fn an_answer_completes_the_round() {
        let (mut rounds, _) = one();
        let sample = rounds.arrived(&arrival(20)).unwrap();
        assert_eq!(sample.answers[0].1, Some(Duration::from_millis(20)));
        assert_eq!(sample.done, T0 + Duration::from_millis(20));
        assert_eq!(rounds.poll_timeout(), None);
        assert!(rounds.arrived(&arrival(21)).is_none(), "a duplicate");
    }

    #[test]
    fn what_is_forged_or_came_another_way_does_not_count() {
        let good = arrival(20);
        for (what, bad) in [
            ("nonce", Arrival { reply: Reply { nonce: 1, ..REPLY }, ..good }),
            ("sequence", Arrival { reply: Reply { sequence: 8, ..REPLY }, ..good }),
            ("address", Arrival { from: "192.0.2.2".parse().unwrap(), ..good }),
            ("interface", Arrival { interface: 5, ..good }),
        ] {
            let (mut rounds, _) = one();
            assert!(rounds.arrived(&bad).is_none(), "{what}");
            assert!(rounds.arrived(&good).is_some(), "the true one still counts after a wrong {what}");
        }
    }

    #[test]
    fn a_late_answer_is_lost_and_one_read_late_is_not() {
        let (mut rounds, _) = one();
        let late = Arrival { wall: Some(5_000_000 + 900_000), ..arrival(1000) };
        assert_eq!(rounds.arrived(&late).unwrap().answers[0].1, None);
        let (mut rounds, _) = one();
        let read_late = Arrival { wall: Some(5_000_000 + 20_000), ..arrival(1000) };
        assert_eq!(rounds.arrived(&read_late).unwrap().answers[0].1, Some(Duration::from_millis(20)));
    }

    #[test]
    fn a_wall_clock_that_was_set_does_no_harm() {
        for wall in [0, 5_000_000 + 3_600_000_000] {
            let (mut rounds, _) = one();
            let sample = rounds.arrived(&Arrival { wall: Some(wall), ..arrival(20) }).unwrap();
            assert_eq!(sample.answers[0].1, Some(Duration::from_millis(20)));
        }
    }

    #[test]
    fn a_round_ends_with_its_time_and_forgets_its_probes() {
        let (mut rounds, _) = one();
        assert!(rounds.expired(T0 + Duration::from_millis(799)).is_none());
        let sample = rounds.expired(T0 + Duration::from_millis(800)).unwrap();
        assert_eq!(sample.answers[0].1, None);
        assert!(rounds.arrived(&arrival(801)).is_none() && rounds.pending.is_empty());
    }

    #[test]
    fn a_round_of_which_nothing_could_be_sent_is_complete_at_once() {
        let mut rounds = Rounds::default();
        let key = rounds.open(&spec(&["192.0.2.1", "192.0.2.2"]), 9, T0);
        let sample = rounds.close_if_complete(key, T0).unwrap();
        assert_eq!((sample.round, sample.answers.len()), (9, 2));
    }
}
