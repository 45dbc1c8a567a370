//! Rounds under way: which probe waits for which answer, and when a round is complete. Pure: `now` is an argument.
//!
//! A round is remembered for a while after it is reported, so that answers which come twice, late or out of order are
//! recognised as such. Its nonces stay secret and are not used again.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{ProbeSpec, echo::Reply, stamp::Reflection};
use crate::{
    clock::Instant,
    health::{Notes, Sample},
    units::Name,
};

/// For how long a round that is over is remembered.
const MEMORY: Duration = Duration::from_secs(1);

/// Names a round: when it ends, and a number that rises.
pub type RoundKey = (Instant, u64);

#[derive(Debug)]
struct Round {
    key: RoundKey,
    spec: Arc<ProbeSpec>,
    number: u64,
    sent: Instant,
    /// Those that could be sent.
    probes: Vec<Probe>,
    waiting: usize,
    /// Hardly any round has something to note.
    notes: Option<Box<Notes>>,
}

/// A probe that was sent.
#[derive(Debug)]
struct Probe {
    /// Which of the path's targets was asked.
    target: usize,
    nonce: u64,
    sequence: u16,
    interface: u32,
    sent: Sent,
    answered: bool,
    rtt: Option<Duration>,
}

/// What is remembered of a path over its rounds.
#[derive(Debug, Default)]
struct Seen {
    /// Per target, the highest round that was answered.
    highest: Vec<u64>,
    duplicates: u32,
    reordered: u32,
}

impl Seen {
    fn answer(&mut self, index: usize, round: u64) {
        if self.highest.len() <= index {
            self.highest.resize(index + 1, 0);
        }
        if let Some(highest) = self.highest.get_mut(index) {
            self.reordered += u32::from(round < *highest);
            *highest = round.max(*highest);
        }
    }
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
    /// What a reflector says beside.
    pub reflection: Option<Reflection>,
}

/// All rounds under way.
#[derive(Debug, Default)]
pub struct Rounds {
    /// In the order of their keys.
    known: VecDeque<Round>,
    open: BTreeSet<RoundKey>,
    /// The round of each nonce, and which of its probes it is. Looked up by key, never iterated.
    pending: HashMap<u64, (RoundKey, usize)>,
    seen: HashMap<Name, Seen>,
    opened: u64,
    /// Whether our own clock is said to be synchronised.
    pub synchronised: bool,
}

impl Rounds {
    /// Opens a round of a path.
    pub fn open(&mut self, spec: &Arc<ProbeSpec>, number: u64, now: Instant) -> RoundKey {
        self.forget(now);
        self.opened += 1;
        let key = (now + spec.probe.timeout, self.opened);
        let probes = Vec::with_capacity(spec.probe.targets.len());
        let round = Round { key, spec: Arc::clone(spec), number, sent: now, probes, waiting: 0, notes: None };
        // Mostly the last place: timeouts hardly differ.
        let at = self.known.partition_point(|earlier| earlier.key < key);
        self.known.insert(at, round);
        self.open.insert(key);
        key
    }

    /// Notes that the probe to a round's target `index` was sent.
    pub fn sent(&mut self, round: RoundKey, index: usize, reply: Reply, interface: u32, sent: Sent) {
        if let Some(open) = find(&mut self.known, round) {
            let Reply { nonce, sequence } = reply;
            self.pending.insert(nonce, (round, open.probes.len()));
            open.probes.push(Probe { target: index, nonce, sequence, interface, sent, answered: false, rtt: None });
            open.waiting += 1;
        }
    }

    /// Takes in an answer. It counts only with the nonce and sequence number of a probe under way, from the probed
    /// address, by the interface that the probe left by, and in time. The sample, if it was the last one missing.
    pub fn arrived(&mut self, arrival: &Arrival) -> Option<Sample> {
        let (key, at) = *self.pending.get(&arrival.reply.nonce)?;
        let round = find(&mut self.known, key)?;
        let probe = round.probes.get_mut(at)?;
        let genuine = probe.sequence == arrival.reply.sequence
            && round.spec.probe.targets.get(probe.target) == Some(&arrival.from)
            && probe.interface == arrival.interface;
        if !genuine {
            return None;
        }
        let seen = match self.seen.get_mut(&round.spec.path) {
            Some(seen) => seen,
            None => self.seen.entry(round.spec.path.clone()).or_default(),
        };
        if std::mem::replace(&mut probe.answered, true) {
            seen.duplicates += 1;
            return None;
        }
        seen.answer(probe.target, round.number);
        if !self.open.contains(&key) {
            return None;
        }
        let sent = probe.sent;
        let rtt = round_trip(sent.at, sent.wall, arrival.read, arrival.wall);
        probe.rtt = Some(rtt).filter(|rtt| *rtt <= round.spec.probe.timeout);
        if let (Some(told), Some(rtt)) = (arrival.reflection, probe.rtt.as_mut()) {
            *rtt = rtt.checked_sub(told.kept()).unwrap_or(*rtt);
            let one_way = arrival.wall.and_then(|wall| told.one_way(sent.wall, wall, self.synchronised));
            if one_way.is_some() {
                let notes = round.notes.get_or_insert_default();
                notes.one_way = notes.one_way.or(one_way);
            }
        }
        round.waiting -= 1;
        self.close_if_complete(key, arrival.read)
    }

    /// Takes in how a probe ended that is more than a packet; `said` is what was answered wrongly.
    pub fn settled(&mut self, nonce: u64, rtt: Option<Duration>, said: Option<String>, now: Instant) -> Option<Sample> {
        let (key, at) = self.pending.remove(&nonce)?;
        let round = find(&mut self.known, key).filter(|_| self.open.contains(&key))?;
        let probe = round.probes.get_mut(at)?;
        probe.rtt = rtt.filter(|rtt| *rtt <= round.spec.probe.timeout);
        if let (Some(said), Some(target)) = (said, round.spec.probe.targets.get(probe.target)) {
            let notes = round.notes.get_or_insert_default();
            notes.said.get_or_insert_with(|| format!("{target} {said}").into_boxed_str());
        }
        round.waiting -= 1;
        self.close_if_complete(key, now)
    }

    /// The sample of a round in which nothing is waited for (any more).
    pub fn close_if_complete(&mut self, round: RoundKey, now: Instant) -> Option<Sample> {
        let complete = find(&mut self.known, round)?.waiting == 0;
        complete.then(|| self.close(round, now)).flatten()
    }

    /// When the next round ends.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.open.first().map(|(at, _)| (*at, "the end of a probe round"))
    }

    /// The sample of a round whose time is over.
    pub fn expired(&mut self, now: Instant) -> Option<Sample> {
        let key = *self.open.first().filter(|(at, _)| *at <= now)?;
        self.close(key, now)
    }

    /// Forgets a path that is probed no more.
    pub fn remove(&mut self, path: &Name) {
        self.seen.remove(path);
    }

    fn close(&mut self, key: RoundKey, now: Instant) -> Option<Sample> {
        if !self.open.remove(&key) {
            return None;
        }
        let round = find(&mut self.known, key)?;
        let mut notes = round.notes.take().map(|notes| *notes).unwrap_or_default();
        let Round { spec, probes, number, sent, .. } = round;
        if let Some(seen) = self.seen.get_mut(&spec.path) {
            notes.duplicates = std::mem::take(&mut seen.duplicates);
            notes.reordered = std::mem::take(&mut seen.reordered);
        }
        let rtt = |index| probes.iter().find(|probe| probe.target == index).and_then(|probe| probe.rtt);
        let targets = spec.probe.targets.iter().enumerate();
        let answers = targets.map(|(index, target)| (*target, rtt(index))).collect();
        Some(Sample { path: spec.path.clone(), round: *number, sent: *sent, done: now, answers, notes })
    }

    fn forget(&mut self, now: Instant) {
        while self.known.front().is_some_and(|round| round.key.0 + MEMORY <= now) {
            let Some(round) = self.known.pop_front() else { return };
            self.open.remove(&round.key);
            for probe in round.probes {
                self.pending.remove(&probe.nonce);
            }
        }
    }
}

fn find(known: &mut VecDeque<Round>, key: RoundKey) -> Option<&mut Round> {
    let at = known.binary_search_by_key(&key, |round| round.key).ok()?;
    known.get_mut(at)
}

/// From sending to reception, by the kernel's timestamp where it is plausible: the wall clock may be set between the two
/// readings.
pub(super) fn round_trip(sent: Instant, sent_wall: i64, read: Instant, wall: Option<i64>) -> Duration {
    let outside = read.since(sent);
    let kernel = wall.and_then(|wall| u64::try_from(wall - sent_wall).ok()).map(Duration::from_micros);
    kernel.filter(|rtt| *rtt <= outside + Duration::from_micros(1)).unwrap_or(outside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::intent;

    const T0: Instant = Instant::from_nanos(1_000_000_000_000);
    const REPLY: Reply = Reply { sequence: 7, nonce: 0xfeed };

    fn spec(targets: &[&str]) -> Arc<ProbeSpec> {
        Arc::new(ProbeSpec {
            path: "fiber".parse().unwrap(),
            interface: "wan0".parse().unwrap(),
            mark: 1,
            sources: vec![],
            gateways: vec![],
            probe: intent::Probe {
                targets: targets.iter().map(|t| t.parse().unwrap()).collect(),
                ..intent::Probe::default()
            }
            .into(),
        })
    }

    fn arrival(ms: u64) -> Arrival {
        let at = T0 + Duration::from_millis(ms);
        Arrival {
            reply: REPLY,
            from: "192.0.2.1".parse().unwrap(),
            interface: 4,
            wall: None,
            read: at,
            reflection: None,
        }
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
        assert!(rounds.arrived(&arrival(801)).is_none() && rounds.open.is_empty());
        let _ = rounds.open(&spec(&["192.0.2.1"]), 8, T0 + Duration::from_millis(1801));
        assert!(rounds.pending.is_empty() && rounds.known.len() == 1);
    }

    #[test]
    fn an_answer_that_comes_again_is_a_duplicate_and_one_that_was_overtaken_is_reordered() {
        let (mut rounds, _) = one();
        assert!(rounds.arrived(&arrival(20)).is_some());
        assert!(rounds.arrived(&arrival(21)).is_none());
        let mut next = |number: u64, sent: u64| {
            let at = T0 + Duration::from_millis(sent);
            let key = rounds.open(&spec(&["192.0.2.1"]), number, at);
            rounds.sent(key, 0, Reply { nonce: number, ..REPLY }, 4, Sent { at, wall: 0 });
        };
        next(8, 100);
        next(9, 200);
        let answer = |nonce, ms| Arrival { reply: Reply { nonce, ..REPLY }, ..arrival(ms) };
        let notes = rounds.arrived(&answer(9, 250)).unwrap().notes;
        assert_eq!((notes.duplicates, notes.reordered), (1, 0));
        let notes = rounds.arrived(&answer(8, 260)).unwrap().notes;
        assert_eq!((notes.duplicates, notes.reordered), (0, 1));
    }

    #[test]
    fn a_round_of_which_nothing_could_be_sent_is_complete_at_once() {
        let mut rounds = Rounds::default();
        let key = rounds.open(&spec(&["192.0.2.1", "192.0.2.2"]), 9, T0);
        let sample = rounds.close_if_complete(key, T0).unwrap();
        assert_eq!((sample.round, sample.answers.len()), (9, 2));
    }
}
