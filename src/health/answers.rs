//! What became of the probes of a window's rounds, held small: four bytes for each probe.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use super::Sample;

/// What became of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Lost,
    /// Lost while others answered, too often to be the path's fault: counts for nothing.
    Aside,
    /// Answered after so long, as exact as the kernel's timestamps: in microseconds.
    After(Duration),
}

impl Answer {
    /// The answer of a target in a round; lost if it is not in it.
    pub fn of(sample: &Sample, target: &IpAddr) -> Self {
        let found = sample.answers.iter().find(|(address, _)| address == target);
        found.and_then(|(_, rtt)| *rtt).map_or(Self::Lost, Self::After)
    }

    /// Whether there was one.
    pub const fn came(self) -> bool {
        matches!(self, Self::After(_))
    }
}

/// A round-trip time in microseconds, or one of the two numbers that no probe waits for (70 minutes).
#[derive(Debug, Clone, Copy)]
struct Packed(u32);

impl Packed {
    const LOST: u32 = u32::MAX;
    const ASIDE: u32 = u32::MAX - 1;

    fn new(answer: Answer) -> Self {
        Self(match answer {
            Answer::Lost => Self::LOST,
            Answer::Aside => Self::ASIDE,
            Answer::After(rtt) => u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX).min(Self::ASIDE - 1),
        })
    }

    const fn answer(self) -> Answer {
        match self.0 {
            Self::LOST => Answer::Lost,
            Self::ASIDE => Answer::Aside,
            micros => Answer::After(Duration::from_micros(micros as u64)),
        }
    }
}

/// The answers of all targets of a path in its newest rounds, oldest round first.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    targets: usize,
    packed: VecDeque<Packed>,
}

impl Answers {
    /// With room for so many rounds.
    pub fn new(targets: usize, rounds: usize) -> Self {
        Self { targets, packed: VecDeque::with_capacity(targets * rounds) }
    }

    pub fn clear(&mut self) {
        self.packed.clear();
    }

    /// What became of the probe to a target in a round; both have to be there.
    pub fn get(&self, round: usize, target: usize) -> Answer {
        self.packed[round * self.targets + target].answer()
    }

    fn set(&mut self, round: usize, target: usize, answer: Answer) {
        self.packed[round * self.targets + target] = Packed::new(answer);
    }

    /// What a target did not answer in the newest rounds, so many of them, counts for nothing.
    pub fn put_aside(&mut self, target: usize, newest: usize) {
        let rounds = self.packed.len().checked_div(self.targets).unwrap_or_default();
        for round in rounds.saturating_sub(newest)..rounds {
            self.set(round, target, Answer::Aside);
        }
    }

    /// Puts a round, with an answer for each target, before the one that is at this place.
    pub fn insert(&mut self, round: usize, answers: &[Answer]) {
        for (target, answer) in answers.iter().enumerate() {
            self.packed.insert(round * self.targets + target, Packed::new(*answer));
        }
    }

    /// Forgets the oldest round.
    pub fn pop_front(&mut self) {
        self.packed.drain(..self.targets.min(self.packed.len()));
    }

    /// Those of all rounds and targets.
    pub fn all(&self) -> impl Iterator<Item = Answer> + '_ {
        self.packed.iter().map(|packed| packed.answer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_as_they_went_in_and_rounds_keep_their_order() {
        let after = |micros| Answer::After(Duration::from_micros(micros));
        for answer in [Answer::Lost, Answer::Aside, after(0), after(1), after(4_294_967_293)] {
            assert_eq!(Packed::new(answer).answer(), answer);
        }
        assert_eq!(Packed::new(Answer::After(Duration::MAX)).answer(), after(4_294_967_293));
        let mut answers = Answers::new(2, 3);
        answers.insert(0, &[after(1), Answer::Lost]);
        answers.insert(1, &[after(3), after(4)]);
        answers.insert(1, &[Answer::Lost, after(2)]);
        answers.set(1, 0, Answer::Aside);
        let all = [after(1), Answer::Lost, Answer::Aside, after(2), after(3), after(4)];
        assert_eq!(answers.all().collect::<Vec<_>>(), all);
        answers.pop_front();
        assert_eq!((answers.get(0, 0), answers.get(1, 1)), (Answer::Aside, after(4)));
    }
}
