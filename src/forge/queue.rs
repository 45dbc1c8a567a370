//! What is to be told, and when: the newest word on each commit, once.
//!
//! Invariant: bounded, and a word that was told is not told again before another on the same commit.

use std::time::Duration;

use super::verdict::Told;
use crate::clock::Instant;

/// So many commits are waited for or remembered; the oldest goes first.
const MOST: usize = 32;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Not told yet, oldest first; one for each commit.
    wanted: Vec<Told>,
    /// Told last of each commit, oldest first.
    told: Vec<Told>,
    /// The forge is left alone until then.
    not_before: Instant,
    failures: u32,
}

impl Queue {
    /// What holds now.
    pub(super) fn want(&mut self, all: Vec<Told>) {
        for new in all {
            if self.told.contains(&new) {
                self.wanted.retain(|waiting| waiting.commit != new.commit);
            } else {
                match self.wanted.iter_mut().find(|waiting| waiting.commit == new.commit) {
                    Some(waiting) => *waiting = new,
                    None => push(&mut self.wanted, new),
                }
            }
        }
    }

    /// When something is to be sent; none if nothing is.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.wanted.is_empty()).then_some(self.not_before)
    }

    /// What is to be sent now.
    pub(super) fn next(&self, now: Instant) -> Option<&Told> {
        self.wanted.first().filter(|_| self.not_before <= now)
    }

    /// It was told, or will never be.
    pub(super) fn done(&mut self, told: Told) {
        self.failures = 0;
        self.wanted.retain(|waiting| *waiting != told);
        self.told.retain(|known| known.commit != told.commit);
        push(&mut self.told, told);
    }

    /// It could not be told; not before this time has passed.
    pub(super) fn later(&mut self, now: Instant, wait: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + wait;
    }

    /// How many requests failed in a row.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }
}

fn push(list: &mut Vec<Told>, new: Told) {
    list.push(new);
    let surplus = list.len().saturating_sub(MOST);
    list.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::{super::verdict::State, *};

    fn told(commit: &str, state: State) -> Told {
        Told { commit: commit.into(), state, text: String::new() }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_newest_word_on_a_commit_is_told_once() {
        let (pending, good) = (told("a", State::Pending), told("a", State::Success));
        let mut queue = Queue::default();
        queue.want(vec![pending.clone()]);
        queue.want(vec![pending.clone(), told("b", State::Pending)]);
        assert_eq!(queue.next(at(1)), Some(&pending));
        // While it is under way the commit comes in force.
        queue.want(vec![good.clone()]);
        queue.done(pending);
        assert_eq!(queue.next(at(1)), Some(&good));
        queue.done(good.clone());
        queue.want(vec![good]);
        assert_eq!(queue.next(at(1)).map(|t| t.commit.as_str()), Some("b"));
        queue.done(told("b", State::Pending));
        assert_eq!(queue.due(), None);
    }

    #[test]
    fn what_was_told_and_holds_again_needs_no_word() {
        let mut queue = Queue::default();
        queue.done(told("a", State::Success));
        queue.want(vec![told("a", State::Pending)]);
        queue.want(vec![told("a", State::Success)]);
        assert_eq!(queue.due(), None);
    }

    #[test]
    fn failures_wait_and_the_newest_word_waits_with_them() {
        let mut queue = Queue::default();
        queue.want(vec![told("a", State::Pending)]);
        queue.later(at(10), Duration::from_secs(5));
        queue.later(at(20), Duration::from_secs(5));
        assert_eq!((queue.failures(), queue.due(), queue.next(at(24))), (2, Some(at(25)), None));
        queue.want(vec![told("a", State::Failure)]);
        assert_eq!(queue.next(at(25)), Some(&told("a", State::Failure)));
        queue.done(told("a", State::Failure));
        assert_eq!((queue.failures(), queue.due()), (0, None));
    }

    #[test]
    fn a_forge_that_is_away_for_long_costs_a_bounded_queue() {
        let mut queue = Queue::default();
        (0..100).for_each(|n| queue.want(vec![told(&n.to_string(), State::Pending)]));
        assert_eq!((queue.wanted.len(), queue.wanted[0].commit.as_str()), (MOST, "68"));
        (0..100).for_each(|n| queue.done(told(&n.to_string(), State::Pending)));
        assert_eq!(queue.told.len(), MOST);
    }
}
