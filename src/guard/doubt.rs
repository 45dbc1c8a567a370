//! Whether a change that was undone for silent paths was the cause of their silence.
//!
//! Paths that answer again without it were cut by it. Paths that stay silent were cut by somebody else, a provider
//! perhaps, and the change deserves another trial once they answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{clock::Instant, health::Sample, units::Name};

/// Each path has to be silent for so many rounds.
const ROUNDS: u32 = 5;
/// A path gets at least so long: neighbours and sessions have to be found again.
const TIME: Duration = Duration::from_secs(3);

/// A change that was undone, and the paths that it may have cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// Its revision.
    pub revision: String,
    /// Paths that were up before it.
    pub up: BTreeSet<Name>,
    /// Paths that fell silent, with the rounds that were lost without it.
    silent: BTreeMap<Name, u32>,
    answered: bool,
    since: Instant,
}

/// What became of the paths without the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is too early to say.
    Open,
    /// One of them answers: the change had cut it.
    Guilty,
    /// None answers: something else has cut them.
    Doubtful,
}

impl Doubt {
    /// From `since` on the change is gone.
    #[must_use]
    pub fn new(revision: String, up: BTreeSet<Name>, silent: BTreeSet<Name>, since: Instant) -> Self {
        let silent = silent.into_iter().map(|path| (path, 0)).collect();
        Self { revision, up, silent, answered: false, since }
    }

    /// Takes in a round.
    pub fn add(&mut self, sample: &Sample) {
        if sample.sent >= self.since
            && let Some(lost) = self.silent.get_mut(&sample.path)
        {
            self.answered |= sample.answers.iter().any(|(_, rtt)| rtt.is_some());
            *lost += 1;
        }
    }

    /// What is known now.
    #[must_use]
    pub fn verdict(&self, now: Instant) -> Verdict {
        if self.answered {
            Verdict::Guilty
        } else if now.since(self.since) >= TIME && self.silent.values().all(|lost| *lost >= ROUNDS) {
            Verdict::Doubtful
        } else {
            Verdict::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::tests::name;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn sample(path: &str, sent: u64, answered: bool) -> Sample {
        let (sent, done) = (at(sent), at(sent + 10));
        let answers = vec![("192.0.2.1".parse().unwrap(), answered.then_some(Duration::ZERO))];
        Sample { path: name(path), round: 1, sent, done, answers, notes: crate::health::Notes::default() }
    }

    fn doubt() -> Doubt {
        let paths: BTreeSet<Name> = ["fiber", "lte"].map(name).into_iter().collect();
        Doubt::new("abc".into(), paths.clone(), paths, at(1000))
    }

    #[test]
    fn paths_that_stay_silent_without_the_change_acquit_it_and_one_that_answers_does_not() {
        let mut doubt = doubt();
        doubt.add(&sample("fiber", 900, true));
        assert_eq!(doubt.verdict(at(9000)), Verdict::Open, "that was before");
        for round in 0..5 {
            assert_eq!(doubt.verdict(at(9000)), Verdict::Open, "round {round}");
            doubt.add(&sample("fiber", 1000 + round, false));
            doubt.add(&sample("lte", 1000 + round, false));
            doubt.add(&sample("other", 1000 + round, true));
        }
        assert_eq!(doubt.verdict(at(3999)), Verdict::Open);
        assert_eq!(doubt.verdict(at(4000)), Verdict::Doubtful);
        doubt.add(&sample("lte", 5000, true));
        assert_eq!(doubt.verdict(at(5000)), Verdict::Guilty);
    }
}
