//! Fights: somebody takes away what we put back, again and again.
//!
//! Putting an object back for the fourth time in five minutes helps nobody: traffic flaps at the rhythm of two programs,
//! and the log hides why. So the object is left alone for a while, which grows, and a person is told.
//!
//! Invariant: an object is lost once until it was put right; looking at the same loss again, or failing to repair it,
//! is no further loss. No object is left alone that was not put right and lost more than [`MOST`] times within
//! [`WINDOW`], and none for longer than [`LONGEST`] without another try.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::{clock::Instant, state::Key};

/// Losses within this time count together.
pub const WINDOW: Duration = Duration::from_secs(5 * 60);
/// So many losses are answered by repairs; one more begins a truce.
pub const MOST: usize = 3;
/// The first truce; each further one is twice as long.
pub const FIRST: Duration = Duration::from_secs(10 * 60);
/// No truce is longer.
pub const LONGEST: Duration = Duration::from_secs(60 * 60);

/// The books over all objects that were lost lately.
#[derive(Debug, Default)]
pub struct Fights {
    contests: BTreeMap<Key, Contest>,
}

/// One object's losses.
#[derive(Debug)]
struct Contest {
    /// Within the window, oldest first.
    losses: VecDeque<Instant>,
    /// All of them.
    total: u64,
    /// Lost, and not yet put right.
    open: bool,
    /// When it was last seen to be lost.
    seen: Instant,
    truce: Option<Truce>,
}

#[derive(Debug, Clone, Copy)]
struct Truce {
    begun: Instant,
    length: Duration,
}

impl Truce {
    fn ends(&self) -> Instant {
        self.begun + self.length
    }
}

/// What a person should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The object is left alone from now on.
    Begun(Key),
    /// It was tried again and lost again.
    GoesOn(Key),
    /// Nobody has touched it for a while.
    Over(Key),
}

/// A fight that is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fight {
    /// Over which object.
    pub key: Key,
    /// How often it was lost since the fight began.
    pub losses: u64,
    /// Since when it is left alone.
    pub since: Instant,
    /// When it is tried again.
    pub next: Instant,
}

impl Fights {
    /// Takes in which objects are lost at this look.
    pub fn look(&mut self, lost: &BTreeSet<Key>, now: Instant) -> Vec<News> {
        let mut news: Vec<News> = lost.iter().filter_map(|key| self.lost(key, now)).collect();
        self.contests.retain(|key, contest| {
            let stays = lost.contains(key) || now.since(contest.seen) < WINDOW;
            if !stays && contest.truce.is_some() {
                news.push(News::Over(key.clone()));
            }
            contest.open &= lost.contains(key);
            stays
        });
        news
    }

    fn lost(&mut self, key: &Key, now: Instant) -> Option<News> {
        let contest = self.contests.entry(key.clone()).or_insert_with(|| Contest::new(now));
        contest.seen = now;
        if std::mem::replace(&mut contest.open, true) {
            return None;
        }
        contest.count(now).map(|first| if first { News::Begun(key.clone()) } else { News::GoesOn(key.clone()) })
    }

    /// These were put right, and somebody took them away again before that could be seen.
    pub fn lost_at_once(&mut self, keys: impl IntoIterator<Item = Key>, now: Instant) -> Vec<News> {
        let mut news = Vec::new();
        for key in keys {
            if let Some(contest) = self.contests.get_mut(&key) {
                contest.open = false;
                news.extend(self.lost(&key, now));
            }
        }
        news
    }

    /// All that was not held was put right.
    pub fn repaired(&mut self, now: Instant) {
        for contest in self.contests.values_mut().filter(|contest| !contest.held(now)) {
            contest.open = false;
        }
    }

    /// What is left alone now.
    #[must_use]
    pub fn held(&self, now: Instant) -> BTreeSet<Key> {
        self.contests.iter().filter(|(_, contest)| contest.held(now)).map(|(key, _)| key.clone()).collect()
    }

    /// The fights that are on, also those whose object is being tried again.
    #[must_use]
    pub fn all(&self) -> Vec<Fight> {
        let fight = |(key, contest): (&Key, &Contest)| {
            let truce = contest.truce?;
            Some(Fight { key: key.clone(), losses: contest.total, since: truce.begun, next: truce.ends() })
        };
        self.contests.iter().filter_map(fight).collect()
    }

    /// Tries one object again at the next pass: who took it away is gone.
    pub fn retry(&mut self, key: &Key) {
        if let Some(truce) = self.contests.get_mut(key).and_then(|contest| contest.truce.as_mut()) {
            truce.length = Duration::ZERO;
        }
    }

    /// Forgets everything: a person wants all of it tried again.
    pub fn forget(&mut self) {
        self.contests.clear();
    }
}

impl Contest {
    const fn new(now: Instant) -> Self {
        Self { losses: VecDeque::new(), total: 0, open: false, seen: now, truce: None }
    }

    fn held(&self, now: Instant) -> bool {
        self.truce.is_some_and(|truce| now < truce.ends())
    }

    /// Counts a loss; begins a truce, and says whether it is the first, if that was one too many.
    fn count(&mut self, now: Instant) -> Option<bool> {
        self.losses.push_back(now);
        self.total += 1;
        while self.losses.front().is_some_and(|at| now.since(*at) >= WINDOW) {
            self.losses.pop_front();
        }
        if self.held(now) || (self.truce.is_none() && self.losses.len() <= MOST) {
            return None;
        }
        let first = self.truce.is_none();
        let length = self.truce.map_or(FIRST, |old| (old.length * 2).clamp(FIRST, LONGEST));
        self.truce = Some(Truce { begun: now, length });
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SysctlKey;

    fn key() -> Key {
        Key::Sysctl(SysctlKey { path: "x".into() })
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn lost() -> BTreeSet<Key> {
        [key()].into()
    }

    /// Lost and put right, so many times, a second apart.
    fn rounds(fights: &mut Fights, from: u64, times: u64) -> Vec<News> {
        let mut news = Vec::new();
        for second in from..from + times {
            news.extend(fights.look(&lost(), at(second)));
            fights.repaired(at(second));
        }
        news
    }

    #[test]
    fn three_losses_are_repaired_and_the_fourth_begins_a_truce() {
        let mut fights = Fights::default();
        assert_eq!(rounds(&mut fights, 0, 3), []);
        assert!(fights.held(at(2)).is_empty() && fights.all().is_empty());
        assert_eq!(rounds(&mut fights, 3, 1), [News::Begun(key())]);
        assert_eq!(fights.held(at(4)), lost());
        assert_eq!(fights.all(), [Fight { key: key(), losses: 4, since: at(3), next: at(603) }]);
    }

    /// After how many repairs a fight that goes on is given up, within a day of one loss a second.
    fn repairs(after_each: impl Fn(&mut Fights)) -> Option<u64> {
        let mut fights = Fights::default();
        (0..86_400).find(|second| {
            let given_up = !rounds(&mut fights, *second, 1).is_empty();
            after_each(&mut fights);
            given_up
        })
    }

    #[test]
    fn a_fight_is_given_up() {
        assert_eq!(repairs(|_| {}), Some(MOST as u64));
    }

    #[test]
    fn the_checker_sees_a_fight_that_nobody_remembers() {
        assert_eq!(repairs(Fights::forget), None);
    }

    #[test]
    fn slow_losses_are_no_fight() {
        let mut fights = Fights::default();
        for n in 0..50 {
            assert_eq!(rounds(&mut fights, n * 100, 1), []);
            assert!(fights.held(at(n * 100)).is_empty());
        }
    }

    #[test]
    fn a_repair_that_fails_again_and_again_is_one_loss() {
        let mut fights = Fights::default();
        for second in 0..100 {
            assert_eq!(fights.look(&lost(), at(second)), []);
        }
        assert!(fights.held(at(100)).is_empty());
    }

    #[test]
    fn what_is_gone_before_the_read_back_counts_each_time() {
        let mut fights = Fights::default();
        assert_eq!(fights.look(&lost(), at(0)), []);
        assert_eq!(fights.lost_at_once([key()], at(1)), []);
        assert_eq!(fights.lost_at_once([key()], at(2)), []);
        assert_eq!(fights.lost_at_once([key()], at(3)), [News::Begun(key())]);
        // What never was drift is none of ours.
        assert_eq!(fights.lost_at_once([Key::Nft], at(3)), []);
    }

    #[test]
    fn truces_double_up_to_an_hour_and_one_loss_renews_them() {
        let mut fights = Fights::default();
        rounds(&mut fights, 0, 4);
        let (mut now, mut waits) = (3, Vec::new());
        for _ in 0..5 {
            let next = fights.all()[0].next;
            waits.push(next.since(at(now)).as_secs());
            now = next.as_nanos() / 1_000_000_000;
            // Still lost: it is tried again, and that works.
            assert_eq!(fights.look(&lost(), at(now)), []);
            assert!(fights.held(at(now)).is_empty(), "it is not tried again at {now}");
            fights.repaired(at(now));
            now += 1;
            assert_eq!(fights.look(&lost(), at(now)), [News::GoesOn(key())]);
        }
        assert_eq!(waits, [600, 1200, 2400, 3600, 3600]);
    }

    #[test]
    fn a_fight_is_over_when_nobody_touches_the_object_for_the_window() {
        let mut fights = Fights::default();
        rounds(&mut fights, 0, 4);
        // The other side puts it back itself.
        assert_eq!(fights.look(&BTreeSet::new(), at(10)), []);
        assert_eq!(fights.look(&BTreeSet::new(), at(302)), []);
        assert_eq!(fights.look(&BTreeSet::new(), at(303)), [News::Over(key())]);
        assert!(fights.all().is_empty());
        assert_eq!(rounds(&mut fights, 400, 3), [], "the next fight begins at nothing");
    }

    #[test]
    fn a_culprit_that_is_gone_or_a_person_ends_the_truce() {
        let mut fights = Fights::default();
        rounds(&mut fights, 0, 4);
        fights.retry(&key());
        assert!(fights.held(at(4)).is_empty() && fights.all().len() == 1);
        fights.look(&lost(), at(4));
        fights.repaired(at(4));
        assert_eq!(fights.look(&lost(), at(5)), [News::GoesOn(key())]);
        assert_eq!(fights.all()[0].next, at(605));
        fights.forget();
        assert!(fights.all().is_empty() && fights.held(at(6)).is_empty());
    }
}
