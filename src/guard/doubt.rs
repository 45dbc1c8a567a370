//! Whether a change that was undone for paths or services that fell silent was the cause of their silence.
//!
//! What answers again without it was cut off by it. What stays silent was cut off by somebody else, a provider or a
//! server that was restarted, and the change deserves another trial once it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::gate::Silent;
use crate::{clock::Instant, health::Sample, units::PathPart};

/// Each path has to be silent for so many rounds.
const ROUNDS: u32 = 5;
/// A path gets at least so long: neighbours and sessions have to be found again.
const TIME: Duration = Duration::from_secs(3);
/// Services have to be asked in vain so often, once the paths work again.
const ASKED: u32 = 5;
/// A service gets at least so long: it may lie behind what has to settle first, such as routes of others.
const SETTLING: Duration = Duration::from_secs(15);

/// What is known of a change that was undone: it survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// Its revision.
    pub revision: String,
    /// Paths, and families of them, that were up before it.
    pub up: BTreeSet<PathPart>,
    /// What it may have cut off.
    pub silent: Silent,
}

impl Suspect {
    /// What has to answer before it is tried again, paths and services, so that it can be judged by the same evidence.
    #[must_use]
    pub fn awaited(&self) -> (BTreeSet<PathPart>, BTreeSet<String>) {
        let paths = self.up.iter().filter(|_| !self.silent.paths.is_empty());
        (paths.cloned().collect(), self.silent.services.clone())
    }
}

/// A change that was undone, and what was seen without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The change.
    pub suspect: Suspect,
    /// Rounds of the silent paths, and of families of them, that were lost without it.
    lost: BTreeMap<PathPart, u32>,
    /// How often its services were asked in vain.
    asked: u32,
    /// What answered without it.
    answered: Option<String>,
    since: Instant,
}

/// What became of paths and services without the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is too early to say.
    Open,
    /// This one answers: the change had cut it off.
    Guilty(&'a str),
    /// None answers: something else has cut them off.
    Doubtful,
}

impl Doubt {
    /// From `since` on the change is gone.
    #[must_use]
    pub fn new(suspect: Suspect, since: Instant) -> Self {
        let lost = suspect.silent.paths.iter().map(|path| (path.clone(), 0)).collect();
        Self { suspect, lost, asked: 0, answered: None, since }
    }

    /// Takes in a round. What one family of a path answers says nothing of the other.
    pub fn add(&mut self, sample: &Sample) {
        if sample.sent < self.since {
            return;
        }
        for (part, lost) in self.lost.iter_mut().filter(|(part, _)| part.path == sample.path) {
            if sample.of(part.family).any(|(_, rtt)| rtt.is_some()) {
                self.answered = Some(part.to_string());
            }
            *lost += 1;
        }
    }

    /// Services that have to be asked. Where paths are silent they decide alone: they may be the way to the services.
    #[must_use]
    pub fn services(&self) -> Option<&BTreeSet<String>> {
        let services = &self.suspect.silent.services;
        (self.lost.is_empty() && !services.is_empty()).then_some(services)
    }

    /// Its services were asked at `begun`, and these answer. While paths recover still, silence says nothing.
    pub fn asked(&mut self, begun: Instant, answer: &BTreeSet<String>, recovering: bool) {
        if begun >= self.since
            && let Some(services) = self.services()
        {
            let first = services.intersection(answer).next().cloned();
            self.asked += u32::from(!recovering && first.is_none());
            self.answered = first.or_else(|| self.answered.take());
        }
    }

    /// Whether services were silent for a while without the change too: one that answers later may have come back by
    /// itself, or only then have been found again.
    #[must_use]
    pub const fn in_vain(&self) -> bool {
        self.asked > 0
    }

    /// What is known now.
    #[must_use]
    pub fn verdict(&self, now: Instant) -> Verdict<'_> {
        let time = now.since(self.since);
        let silent = if self.services().is_some() {
            time >= SETTLING && self.asked >= ASKED
        } else {
            time >= TIME && self.lost.values().all(|lost| *lost >= ROUNDS)
        };
        match &self.answered {
            Some(who) => Verdict::Guilty(who),
            None if silent => Verdict::Doubtful,
            None => Verdict::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health::tests::name, units::Family};

    const REMOTE: &str = "192.0.2.9:22";
    const STATION: &str = "10.9.0.2:22";

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn sample(path: &str, sent: u64, answered: bool) -> Sample {
        let (sent, done) = (at(sent), at(sent + 10));
        let answers = vec![("192.0.2.1".parse().unwrap(), answered.then_some(Duration::ZERO))];
        Sample { path: name(path), round: 1, sent, done, answers, notes: crate::health::Notes::default() }
    }

    /// Its name, whether paths recovered at each asking, who answered the last one, when it is judged, and how.
    type Case<'a> = (&'a str, &'a [bool], &'a [&'a str], u64, Verdict<'a>);

    /// A change that was undone after a second.
    fn doubt(paths: &[&str], services: &[&str]) -> Doubt {
        let (up, paths, services) = (parts(&["fiber", "lte"]), parts(paths), set(services));
        Doubt::new(Suspect { revision: "abc".into(), up, silent: Silent { paths, services } }, at(1000))
    }

    fn parts(texts: &[&str]) -> BTreeSet<PathPart> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn set(texts: &[&str]) -> BTreeSet<String> {
        texts.iter().copied().map(str::to_owned).collect()
    }

    #[test]
    fn paths_that_stay_silent_without_the_change_acquit_it_and_one_that_answers_does_not() {
        let mut doubt = doubt(&["fiber", "lte"], &[]);
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
        assert_eq!(doubt.verdict(at(5000)), Verdict::Guilty("path lte"));
    }

    #[test]
    fn what_one_family_of_a_path_answers_says_nothing_of_the_other() {
        let both = |four: bool, six: bool| {
            let answer = |answered: bool| answered.then_some(Duration::ZERO);
            let answers =
                vec![("192.0.2.1".parse().unwrap(), answer(four)), ("2001:db8::1".parse().unwrap(), answer(six))];
            Sample { answers, ..sample("fiber", 1000, true) }
        };
        let mut doubt = doubt(&["fiber/ipv6"], &[]);
        (0..5).for_each(|_| doubt.add(&both(true, false)));
        assert_eq!(doubt.verdict(at(4000)), Verdict::Doubtful, "IPv4 answered all the time");
        assert_eq!(doubt.suspect.silent.to_string(), "IPv6 of path fiber");
        doubt.add(&both(false, true));
        assert_eq!(doubt.verdict(at(4000)), Verdict::Guilty("IPv6 of path fiber"));
        let told = serde_json::to_string(&doubt.suspect).unwrap();
        assert_eq!(serde_json::from_str::<Suspect>(&told).unwrap(), doubt.suspect, "{told}");
        assert_eq!(doubt.suspect.silent.paths, [PathPart::family(&name("fiber"), Family::V6)].into());
    }

    #[test]
    fn a_service_that_stays_silent_without_the_change_acquits_it_and_one_that_answers_does_not() {
        let calm = [false; 5];
        let table: [Case<'_>; 8] = [
            ("it was never asked", &[], &[], 60_000, Verdict::Open),
            ("four times", &calm[..4], &[], 60_000, Verdict::Open),
            ("five times", &calm, &[], 16_000, Verdict::Doubtful),
            ("it had no time", &calm, &[], 15_999, Verdict::Open),
            ("paths recovered meanwhile", &[true, false, false, false, false], &[], 60_000, Verdict::Open),
            ("it answers at last", &calm, &[REMOTE], 16_000, Verdict::Guilty(REMOTE)),
            ("it answers while paths recover", &[true], &[REMOTE], 2_000, Verdict::Guilty(REMOTE)),
            ("another one answers", &calm, &[STATION], 16_000, Verdict::Doubtful),
        ];
        for (what, askings, answer, judged, verdict) in table {
            let mut doubt = doubt(&[], &[REMOTE]);
            doubt.asked(at(999), &set(&[REMOTE]), false);
            for (number, recovering) in askings.iter().enumerate() {
                let last = number + 1 == askings.len();
                doubt.asked(at(1000), &if last { set(answer) } else { BTreeSet::new() }, *recovering);
            }
            assert_eq!(doubt.verdict(at(judged)), verdict, "{what}");
        }
        let mut at_once = doubt(&[], &[REMOTE]);
        at_once.asked(at(1000), &set(&[]), true);
        at_once.asked(at(2000), &set(&[REMOTE]), false);
        assert!(!at_once.in_vain(), "while paths recover, silence says nothing");
        let mut late = doubt(&[], &[REMOTE]);
        late.asked(at(1000), &set(&[]), false);
        late.asked(at(3000), &set(&[REMOTE]), false);
        assert!(late.in_vain() && late.verdict(at(3000)) == Verdict::Guilty(REMOTE));
        let mut both = doubt(&[], &[REMOTE, STATION]);
        both.asked(at(1000), &set(&[STATION]), false);
        both.asked(at(2000), &set(&[]), false);
        assert_eq!(both.verdict(at(2500)), Verdict::Guilty(STATION), "one of them was cut off");
        assert_eq!(both.suspect.awaited(), (parts(&[]), set(&[REMOTE, STATION])), "the paths were there all the time");
    }

    #[test]
    fn where_paths_are_silent_too_they_decide_alone_and_both_are_waited_for() {
        let mut doubt = doubt(&["fiber"], &[REMOTE]);
        assert_eq!(doubt.services(), None);
        doubt.asked(at(1000), &set(&[REMOTE]), false);
        (0..5).for_each(|round| doubt.add(&sample("fiber", 1000 + round, false)));
        assert_eq!(doubt.verdict(at(4000)), Verdict::Doubtful, "it may have answered over another path");
        assert_eq!(doubt.suspect.awaited(), (parts(&["fiber", "lte"]), set(&[REMOTE])));
    }
}
