//! What became of the probes of a round, held small: a window has one for each of its rounds and targets.

use std::{
    net::IpAddr,
    ops::{Deref, DerefMut},
    slice,
    time::Duration,
};

use super::Sample;

/// What became of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Lost,
    /// Lost while others answered, too often to be the path's fault: counts for nothing.
    Aside,
    After(Rtt),
}

impl Answer {
    /// The answer of a target in a round; lost if it is not in it.
    pub fn of(sample: &Sample, target: &IpAddr) -> Self {
        let found = sample.answers.iter().find(|(address, _)| address == target);
        found.and_then(|(_, rtt)| *rtt).map_or(Self::Lost, |rtt| Self::After(Rtt::of(rtt)))
    }
}

/// A round-trip time in microseconds, as exact as the kernel's timestamps: a window has one per round and target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rtt(u32);

impl Rtt {
    fn of(rtt: Duration) -> Self {
        Self(u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX))
    }

    pub const fn time(self) -> Duration {
        Duration::from_micros(self.0 as u64)
    }
}

/// Of one probe per target. Most paths have one target, and a window has many rounds: that one is held in place.
#[derive(Debug)]
pub(super) enum Answers {
    One(Answer),
    Several(Box<[Answer]>),
}

impl FromIterator<Answer> for Answers {
    fn from_iter<I: IntoIterator<Item = Answer>>(answers: I) -> Self {
        let answers: Vec<Answer> = answers.into_iter().collect();
        if let [one] = answers[..] { Self::One(one) } else { Self::Several(answers.into()) }
    }
}

impl Deref for Answers {
    type Target = [Answer];

    fn deref(&self) -> &[Answer] {
        match self {
            Self::One(one) => slice::from_ref(one),
            Self::Several(all) => all,
        }
    }
}

impl DerefMut for Answers {
    fn deref_mut(&mut self) -> &mut [Answer] {
        match self {
            Self::One(one) => slice::from_mut(one),
            Self::Several(all) => all,
        }
    }
}
