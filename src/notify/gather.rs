//! When the next message goes, and what is in it. Pure.
//!
//! Invariant: what waits is bounded, whatever happens while nobody can be told: the newest events, and a number for the
//! older ones.

use std::{collections::VecDeque, time::Duration};

use super::Limit;
use crate::{
    clock::{Instant, Wall},
    engine::status::Event,
};

/// Events in one message; of more the newest are told, and how many older ones there were.
pub const MOST: usize = 100;
/// What nobody could be told for so long is told no more.
const LONGEST: Duration = crate::store::UNTOLD;
/// Waits after the attempts that failed; the last one again and again.
const PAUSES: [u64; 5] = [1, 5, 25, 120, 300];
/// Something happened while a message waits: the way may be back. It is tried at once, but not more often than this.
const HASTE: Duration = Duration::from_secs(30);
/// A message about something that is longer ago than this says so in its first words.
const LATE: Duration = Duration::from_secs(60);

/// Events that wait to become a message.
#[derive(Debug)]
pub struct Gather {
    group: Duration,
    limit: Limit,
    waiting: VecDeque<Waiting>,
    more: u64,
    /// When the first of them came.
    first: Option<Instant>,
    /// The token bucket, as the moment when it is full again (the "theoretical arrival time" of ATM's GCRA).
    full: Instant,
    /// What failed, and is tried again.
    trouble: Option<Trouble>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    event: Event,
    taken: Instant,
    /// How old it was then: one of an earlier process is.
    age: Duration,
}

impl Waiting {
    fn age(&self, now: Instant) -> Duration {
        self.age + now.since(self.taken)
    }
}

/// Attempts that failed, one after the other.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    attempts: usize,
    last: Instant,
    next: Instant,
}

/// What one message tells of.
#[derive(Debug, PartialEq, Eq)]
pub struct Parcel {
    waiting: Vec<Waiting>,
    /// Older events that are left out.
    pub more: u64,
    /// It tells of something that is some time ago.
    pub late: bool,
    /// The token bucket before it.
    full: Instant,
}

impl Parcel {
    /// The events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.waiting.iter().map(|waiting| waiting.event.clone()).collect()
    }

    /// The number of the newest.
    #[must_use]
    pub fn newest(&self) -> Option<i64> {
        self.waiting.last().map(|waiting| waiting.event.id)
    }
}

impl Gather {
    /// Nothing waits, and all tokens are there.
    #[must_use]
    pub const fn new(group: Duration, limit: Limit) -> Self {
        let full = Instant::from_nanos(0);
        Self { group, limit, waiting: VecDeque::new(), more: 0, first: None, full, trouble: None }
    }

    /// Takes an event in.
    pub fn take(&mut self, event: Event, now: Instant) {
        self.push(Waiting { event, taken: now, age: Duration::ZERO }, now);
    }

    /// Takes in what an earlier process could tell nobody, oldest first, with the number of still older events; the
    /// number of events that are too old to be told.
    pub fn restore(&mut self, events: Vec<Event>, more: u64, (now, wall): (Instant, Wall)) -> u64 {
        self.more += more;
        for event in events {
            let age = wall.as_micros().saturating_sub(event.at.as_micros());
            let age = Duration::from_micros(u64::try_from(age).unwrap_or(0));
            self.push(Waiting { event, taken: now, age }, now);
        }
        self.forget(now)
    }

    fn push(&mut self, waiting: Waiting, now: Instant) {
        self.first.get_or_insert(now);
        self.waiting.push_back(waiting);
        self.cut();
    }

    fn cut(&mut self) {
        while self.waiting.len() > MOST {
            self.waiting.pop_front();
            self.more += 1;
        }
    }

    /// Leaves out what is too old; how much that was.
    fn forget(&mut self, now: Instant) -> u64 {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.age(now) <= LONGEST);
        let old = (before - self.waiting.len()) as u64;
        self.more += old;
        if self.waiting.is_empty() {
            self.first = None;
        }
        old
    }

    /// Something happened: what waits for another attempt may have a way now.
    pub fn hasten(&mut self, now: Instant) {
        if let Some(trouble) = &mut self.trouble {
            trouble.next = trouble.next.min((now + self.group).max(trouble.last + HASTE));
        }
    }

    /// When the next message goes; never without an event.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let slack = self.limit.every * self.limit.burst.saturating_sub(1);
        let slack = u64::try_from(slack.as_nanos()).unwrap_or(u64::MAX);
        let token = Instant::from_nanos(self.full.as_nanos().saturating_sub(slack));
        let ready = self.trouble.map_or(self.first? + self.group, |trouble| trouble.next);
        Some(ready.max(token))
    }

    /// What goes now.
    pub fn ready(&mut self, now: Instant) -> Option<Parcel> {
        self.due().filter(|due| *due <= now)?;
        let (full, waiting) = (self.full, Vec::from(std::mem::take(&mut self.waiting)));
        self.first = None;
        self.full = self.full.max(now) + self.limit.every;
        let late = waiting.first().is_some_and(|first| first.age(now) > LATE + self.group);
        Some(Parcel { waiting, more: std::mem::take(&mut self.more), late, full })
    }

    /// It arrived, or never will: what comes next has no trouble yet.
    pub const fn done(&mut self) {
        self.trouble = None;
    }

    /// It did not arrive and is tried again, with what came meanwhile, after a pause that grows; the number of events
    /// that are too old by now. The attempt costs no token.
    pub fn back(&mut self, parcel: Parcel, now: Instant) -> u64 {
        for waiting in parcel.waiting.into_iter().rev() {
            self.waiting.push_front(waiting);
        }
        self.more += parcel.more;
        self.full = parcel.full;
        self.first.get_or_insert(now);
        self.cut();
        let attempts = self.trouble.map_or(0, |trouble| trouble.attempts);
        let pause = Duration::from_secs(PAUSES[attempts.min(PAUSES.len() - 1)]);
        self.trouble = Some(Trouble { attempts: attempts + 1, last: now, next: now + pause });
        self.forget(now)
    }

    /// How many events wait, those included that are only counted.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting.len() as u64 + self.more
    }
}
