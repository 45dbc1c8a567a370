//! When each path's next round is due. Pure: `now` is an argument.
//!
//! Paths are spread over their interval by the golden ratio: any number of them is spread evenly, and adding or
//! removing one moves no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    clock::Instant,
    units::{Name, pack},
};

/// Rounds of paths that are probed each second or more seldom begin at multiples of this: a thousand paths wake the
/// processor a hundred times a second, and ten probes in a row are no burst.
const GRID: u64 = 10_000_000;
/// The shortest interval that keeps to the grid.
const SELDOM: Duration = Duration::from_secs(1);

/// The fractional part of the golden ratio, in 2^-64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug)]
struct Entry {
    interval: Duration,
    /// The interval for the time being.
    pace: Duration,
    next: Instant,
    last: Option<Instant>,
}

/// Due times of all paths.
#[derive(Debug, Default)]
pub struct Schedule {
    entries: BTreeMap<Name, Entry>,
    due: BTreeSet<(Instant, Name)>,
    placed: u64,
}

impl Schedule {
    /// Puts a path in, or gives it another interval. A path whose interval stays is not moved.
    pub fn set(&mut self, path: &Name, interval: Duration, now: Instant) {
        if self.entries.get(path).is_some_and(|e| e.interval == interval) {
            return;
        }
        self.remove(path);
        let phase = (u128::from(self.placed.wrapping_mul(GOLDEN)) * interval.as_nanos()) >> 64;
        self.placed += 1;
        let at = (now + Duration::from_nanos(u64::try_from(phase).unwrap_or(0))).as_nanos();
        let next = Instant::from_nanos(if interval < SELDOM { at } else { at - at % GRID });
        self.entries.insert(path.clone(), Entry { interval, pace: interval, next, last: None });
        self.due.insert((next, path.clone()));
    }

    /// All paths are there, and no other comes for a while.
    pub fn pack(&mut self) {
        pack(&mut self.entries);
    }

    /// Takes a path out.
    pub fn remove(&mut self, path: &Name) {
        if let Some(entry) = self.entries.remove(path) {
            self.due.remove(&(entry.next, path.clone()));
        }
    }

    /// Gives a path another interval for the time being, counted from its last round; its own if `pace` is none.
    pub fn pace(&mut self, path: &Name, pace: Option<Duration>, now: Instant) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let pace = pace.unwrap_or(entry.interval);
        if std::mem::replace(&mut entry.pace, pace) != pace {
            let next = entry.last.map_or(entry.next, |last| (last + pace).max(now));
            self.put(path, next);
        }
    }

    /// Brings a path's next round forward, if its last one is as old as `gap`.
    pub fn hurry(&mut self, path: &Name, gap: Duration, now: Instant) {
        let Some(entry) = self.entries.get(path) else { return };
        if entry.next > now && entry.last.is_some_and(|last| last + gap <= now) {
            self.put(path, now);
        }
    }

    fn put(&mut self, path: &Name, next: Instant) {
        if let Some(entry) = self.entries.get_mut(path) {
            self.due.remove(&(std::mem::replace(&mut entry.next, next), path.clone()));
            self.due.insert((next, path.clone()));
        }
    }

    /// When the next round is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.due.first().map(|(at, _)| (*at, "the next probe round"))
    }

    /// A path whose round is due, once per round. Rounds that were slept through are left out, not made up for.
    pub fn pop(&mut self, now: Instant) -> Option<Name> {
        let (at, path) = self.due.pop_first()?;
        if at > now {
            self.due.insert((at, path));
            return None;
        }
        let entry = self.entries.get_mut(&path)?;
        let interval = entry.pace.max(Duration::from_millis(1));
        let missed = now.since(at).as_nanos() / interval.as_nanos();
        entry.next = at + interval * u32::try_from(missed + 1).unwrap_or(u32::MAX);
        entry.last = Some(at);
        self.due.insert((entry.next, path.clone()));
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(i: usize) -> Name {
        format!("p{i}").parse().unwrap()
    }

    const T0: Instant = Instant::from_nanos(1_000_000_000_000);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// All rounds within a time, as (path, milliseconds since the beginning).
    fn run(schedule: &mut Schedule, from: u64, to: u64) -> Vec<(Name, u64)> {
        let mut rounds = Vec::new();
        while let Some((at, _)) = schedule.poll_timeout().filter(|(at, _)| *at < T0 + ms(to)) {
            let path = schedule.pop(at).unwrap();
            rounds.push((path, u64::try_from(at.since(T0).as_millis()).unwrap()));
        }
        rounds.retain(|(_, at)| *at >= from);
        rounds
    }

    #[test]
    fn rounds_come_exactly_at_their_interval() {
        let mut s = Schedule::default();
        s.set(&name(0), ms(100), T0);
        assert_eq!(run(&mut s, 0, 500).iter().map(|(_, at)| *at).collect::<Vec<_>>(), [0, 100, 200, 300, 400]);
    }

    #[test]
    fn a_thousand_paths_are_spread_evenly() {
        let mut s = Schedule::default();
        (0..1000).for_each(|i| s.set(&name(i), ms(1000), T0));
        let rounds = run(&mut s, 0, 2000);
        assert_eq!(rounds.len(), 2000);
        for window in (0..2000).step_by(20) {
            let n = rounds.iter().filter(|(_, at)| (window..window + 20).contains(at)).count();
            assert!((15..=25).contains(&n), "{n} rounds from {window} ms on");
        }
    }

    #[test]
    fn what_is_added_or_removed_moves_no_other() {
        let mut s = Schedule::default();
        (0..3).for_each(|i| s.set(&name(i), ms(1000), T0));
        let mut before = run(&mut s, 0, 1000);
        s.remove(&name(1));
        s.set(&name(3), ms(500), T0 + ms(1000));
        s.set(&name(2), ms(1000), T0 + ms(1000));
        let mut after = run(&mut s, 1000, 2000);
        before.retain(|(path, _)| *path != name(1));
        after.retain(|(path, _)| *path != name(3));
        assert_eq!(before.iter().map(|(p, at)| (p.clone(), at + 1000)).collect::<Vec<_>>(), after);
    }

    #[test]
    fn rounds_slept_through_are_not_made_up_for() {
        let mut s = Schedule::default();
        s.set(&name(0), ms(100), T0);
        let late = T0 + ms(3_600_050);
        assert_eq!(s.pop(late), Some(name(0)));
        assert_eq!(s.pop(late), None);
        assert_eq!(s.poll_timeout().unwrap().0, T0 + ms(3_600_100));
    }

    #[test]
    fn doubt_makes_a_path_faster_and_its_end_gives_it_its_own_interval_back() {
        let mut s = Schedule::default();
        s.set(&name(0), ms(1000), T0);
        assert_eq!(s.pop(T0), Some(name(0)));
        s.pace(&name(0), Some(ms(250)), T0 + ms(800));
        s.pace(&name(0), Some(ms(250)), T0 + ms(800));
        assert_eq!(run(&mut s, 0, 1400).iter().map(|(_, at)| *at).collect::<Vec<_>>(), [800, 1050, 1300]);
        s.pace(&name(0), None, T0 + ms(1400));
        assert_eq!(run(&mut s, 0, 3400).iter().map(|(_, at)| *at).collect::<Vec<_>>(), [2300, 3300]);
    }

    #[test]
    fn a_path_is_hurried_once_and_not_when_it_has_just_been_probed() {
        let mut s = Schedule::default();
        s.set(&name(0), ms(5000), T0);
        assert_eq!(s.pop(T0), Some(name(0)));
        s.hurry(&name(0), ms(250), T0 + ms(100));
        assert_eq!(s.poll_timeout().unwrap().0, T0 + ms(5000));
        s.hurry(&name(0), ms(250), T0 + ms(300));
        assert_eq!(run(&mut s, 0, 10_000).iter().map(|(_, at)| *at).collect::<Vec<_>>(), [300, 5300]);
    }
}
