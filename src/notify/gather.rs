//! When the next message goes, and what is in it. Pure.

use std::time::Duration;

use super::Limit;
use crate::{clock::Instant, engine::status::Event};

/// Events in one message; beyond it they are counted.
const MOST: usize = 100;

/// Events that wait to become a message.
#[derive(Debug)]
pub struct Gather {
    group: Duration,
    limit: Limit,
    events: Vec<Event>,
    more: u64,
    /// When the first of them came.
    first: Option<Instant>,
    /// The token bucket, as the moment when it is full again (the "theoretical arrival time" of ATM's GCRA).
    full: Instant,
}

impl Gather {
    /// Nothing waits, and all tokens are there.
    #[must_use]
    pub const fn new(group: Duration, limit: Limit) -> Self {
        Self { group, limit, events: Vec::new(), more: 0, first: None, full: Instant::from_nanos(0) }
    }

    /// Takes an event in.
    pub fn take(&mut self, event: Event, now: Instant) {
        self.first.get_or_insert(now);
        if self.events.len() < MOST {
            self.events.push(event);
        } else {
            self.more += 1;
        }
    }

    /// When the next message goes; never without an event.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let slack = self.limit.every * self.limit.burst.saturating_sub(1);
        let slack = u64::try_from(slack.as_nanos()).unwrap_or(u64::MAX);
        let token = Instant::from_nanos(self.full.as_nanos().saturating_sub(slack));
        Some((self.first? + self.group).max(token))
    }

    /// What goes now, with the number of events that found no room in it.
    pub fn ready(&mut self, now: Instant) -> Option<(Vec<Event>, u64)> {
        self.due().filter(|due| *due <= now)?;
        self.first = None;
        self.full = self.full.max(now) + self.limit.every;
        Some((std::mem::take(&mut self.events), std::mem::take(&mut self.more)))
    }
}
