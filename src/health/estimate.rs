//! From probe rounds to figures to a score.
//!
//! Two views are kept and the worse one counts: the *slow* view is the whole window, the *fast* view its newest
//! [`FAST`] rounds. In each, the path's figures are those of its median target, so that neither one dead nor one
//! slow target speaks for the path; a target that stays silent while the quorum is met is set aside until it
//! answers again. A target that is suspect (`vote`) has no vote in the rounds that it did not answer; a round in which
//! none has a vote says nothing.
//!
//! The loss that costs score is the *evident* loss: the lower end of Wilson's confidence interval (E. B. Wilson,
//! 1927; z = 2.33, 99 % one-sided), and nothing before the third loss. One lost probe in twenty is 5 % by
//! arithmetic and proves nothing. With a window of 20 and any loss threshold up to 5 %, a path is down when 3 of the
//! newest 10 or 4 of the newest 20 rounds are lost. Simulated over 400,000 rounds of independent loss (the test `false_alarms_are_rare…` with
//! `ROUNDS=400000`), a healthy path is called down so many times per day of probes at 1 s:
//!
//! | random loss | one target | three targets |
//! |---|---|---|
//! | 0 % | 0 | 0 |
//! | 1 % | 3.2 | 0 |
//! | 2 % | 25 | 0.2 |
//!
//! while 30 % loss is found after a median of 9 to 10 rounds, with any number of targets. Probe more than one.
//!
//! Extra latency must be seen twice in a row by the median target: one slow answer moves only the mean.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Sample,
    answers::{Answer, Answers},
};
use crate::{clock::Instant, units::Ratio, validate::intent};

/// Rounds of the fast view.
pub const FAST: usize = 10;
/// Losses of the median target below which loss is not believed: in the newest rounds, and in the whole window.
const EVIDENCE: (f64, f64) = (3.0, 4.0);
/// Shares are held in parts per million: what their rounding may take from a count.
const ROUNDING: f64 = 0.01;
/// Silent rounds, with the quorum met by others, after which a target is set aside.
const ASIDE: usize = 3;
/// Quantile of the normal distribution: 99 %, one-sided.
const Z: f64 = 2.33;

/// The figures of one view of a path.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Rounds that were looked at.
    pub rounds: u32,
    /// Share of probes that the median target lost.
    pub loss: Ratio,
    /// The part of `loss` that chance does not explain; it is what costs score.
    pub evident: Ratio,
    /// Round-trip time of the median target: the mean of the slow view; in the fast view the smaller of the last two.
    pub latency: Option<Duration>,
    /// Interarrival jitter of the median target (RFC 3550, section 6.4.1).
    pub jitter: Option<Duration>,
}

/// What scoring a path needs, whatever the thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// The whole window.
    pub slow: Figures,
    /// Its newest rounds.
    pub fast: Figures,
    /// Nothing gets through, whatever the thresholds: no carrier, no interface, or rounds lost in a row.
    pub dead: bool,
}

/// Scores a path against thresholds, 0 to 100: the worse of both views.
#[must_use]
pub fn score(stats: &Stats, limits: &intent::Health) -> u8 {
    if stats.dead { 0 } else { points(&stats.slow, limits).min(points(&stats.fast, limits)) }
}

/// What latency, loss and jitter cost of 100 points at their thresholds.
pub(crate) const WEIGHTS: (f64, f64, f64) = (30.0, 40.0, 30.0);

/// Scores one view: 100, minus 30, 40 and 30 times what latency, loss and jitter are of their threshold,
/// for each that is above it; at least 0.
#[must_use]
pub fn points(figures: &Figures, limits: &intent::Health) -> u8 {
    // 0 to 100 after the clamp; truncation is the floor of the formula.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let points = (100.0 - cost(figures, limits)).clamp(0.0, 100.0) as u8;
    points
}

/// What is taken from 100 points.
pub(crate) fn cost(figures: &Figures, limits: &intent::Health) -> f64 {
    let penalty = |value: f64, limit: f64, weight: f64| if value > limit { value / limit * weight } else { 0.0 };
    let seconds = |d: Option<Duration>| d.map_or(0.0, |d| d.as_secs_f64());
    penalty(seconds(figures.latency), limits.latency.as_secs_f64(), WEIGHTS.0)
        + penalty(figures.evident.as_f64(), limits.loss.as_f64(), WEIGHTS.1)
        + penalty(seconds(figures.jitter), limits.jitter.as_secs_f64(), WEIGHTS.2)
}

/// The part of a window's loss that chance does not explain.
pub(crate) fn evidence(loss: Ratio, rounds: u32) -> Ratio {
    let least = if rounds as usize <= FAST { EVIDENCE.0 } else { EVIDENCE.1 };
    ratio(evident(loss.as_f64(), f64::from(rounds), least))
}

/// The lower end of Wilson's interval for a share `p` seen in `n` rounds; 0 below `least` losses.
fn evident(p: f64, n: f64, least: f64) -> f64 {
    if p * n < least - ROUNDING {
        return 0.0;
    }
    let z2 = Z * Z / n;
    ((p + z2 / 2.0 - Z * ((p * (1.0 - p) + z2 / 4.0) / n).sqrt()) / (1.0 + z2)).max(0.0)
}

/// What a round says of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vote {
    /// As many targets answered as have to.
    Good,
    /// Fewer did.
    Lost,
    /// No target had a vote.
    Void,
}

/// Whether a target is held to be at fault itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    No,
    Yes,
    /// It answers elsewhere again; the path's own next probe tells whether it does here.
    Over,
}

#[derive(Debug, Clone)]
struct Round {
    sent: Instant,
    vote: Vote,
    /// Part of an outage that is over: it says nothing of how lossy the path is.
    outage: bool,
}

/// Jitter of one target.
#[derive(Debug, Clone, Copy, Default)]
struct Jitter {
    last: Option<Duration>,
    value: Option<Duration>,
}

impl Jitter {
    /// RFC 3550, section 6.4.1: J += (|D| - J) / 16, that is (15 J + |D|) / 16. Sending is evenly spaced, so D is the
    /// difference of two round-trip times.
    fn add(&mut self, rtt: Duration) {
        if let Some(last) = self.last.replace(rtt) {
            let (d, j) = (last.abs_diff(rtt), self.value.unwrap_or_default());
            self.value = Some((j * 15 + d) / 16);
        }
    }
}

/// What is known of one target over its rounds.
#[derive(Debug, Clone)]
struct Target {
    address: IpAddr,
    jitter: Jitter,
    suspicion: Suspicion,
    /// When its newest probe that was answered was sent.
    answered: Option<Instant>,
}

impl Target {
    fn new(address: IpAddr) -> Self {
        Self { address, jitter: Jitter::default(), suspicion: Suspicion::No, answered: None }
    }
}

/// The newest rounds of a path, in the order in which they were sent.
#[derive(Debug, Clone)]
pub(super) struct Window {
    targets: Box<[Target]>,
    quorum: usize,
    capacity: usize,
    rounds: VecDeque<Round>,
    /// As many rounds as there are.
    answers: Answers,
}

impl Window {
    pub fn new(probe: &intent::Probe) -> Self {
        let (targets, capacity) = (probe.targets.len(), (probe.window as usize).max(1));
        Self {
            targets: probe.targets.iter().map(|address| Target::new(*address)).collect(),
            quorum: (probe.quorum as usize).clamp(1, targets.max(1)),
            capacity,
            rounds: VecDeque::with_capacity(capacity),
            answers: Answers::new(targets, capacity),
        }
    }

    pub fn clear(&mut self) {
        self.rounds.clear();
        self.answers.clear();
        self.targets.iter_mut().for_each(|target| *target = Target::new(target.address));
    }

    /// Takes the vote from targets, or gives it back with their next probe.
    pub fn suspect(&mut self, suspects: &[bool]) {
        for (target, suspect) in self.targets.iter_mut().zip(suspects) {
            target.suspicion = match (target.suspicion, suspect) {
                (_, true) => Suspicion::Yes,
                (Suspicion::Yes, false) => Suspicion::Over,
                (old, false) => old,
            };
        }
        self.vote_anew();
    }

    /// Which targets are suspect.
    pub fn suspects(&self) -> Vec<bool> {
        self.targets.iter().map(|target| target.suspicion == Suspicion::Yes).collect()
    }

    /// Whether the newest round said nothing, since no target had a vote.
    pub fn is_void(&self) -> bool {
        self.rounds.back().is_some_and(|r| r.vote == Vote::Void)
    }

    pub fn len(&self) -> usize {
        self.rounds.len()
    }

    /// Takes in a round. One that is older than the whole window, or known already, is dropped.
    pub fn add(&mut self, sample: &Sample) {
        let mut at = self.rounds.partition_point(|r| r.sent < sample.sent);
        let known = self.rounds.get(at).is_some_and(|r| r.sent == sample.sent);
        let full = self.rounds.len() == self.capacity;
        if known || (at == 0 && full) {
            return;
        }
        let answers: Vec<Answer> = self.targets.iter().map(|t| Answer::of(sample, &t.address)).collect();
        if at == self.rounds.len() {
            self.add_jitter(&answers);
        }
        let settled = self.settle(sample.sent, &answers);
        if full {
            self.rounds.pop_front();
            self.answers.pop_front();
            at -= 1;
        }
        self.rounds.insert(at, Round { sent: sample.sent, vote: Vote::Void, outage: false });
        self.answers.insert(at, &answers);
        if settled {
            self.vote_anew();
        } else {
            self.rounds[at].vote = self.vote(at);
        }
        self.set_aside();
    }

    /// A target that was suspect and answers has been at fault itself: its losses are set aside. One that does not
    /// though it answers elsewhere has its vote back, and its losses count. Whether anything changed.
    fn settle(&mut self, sent: Instant, answers: &[Answer]) -> bool {
        let mut changed = false;
        for (t, answer) in answers.iter().enumerate() {
            let answered = answer.came();
            let target = &mut self.targets[t];
            if answered && target.suspicion != Suspicion::No {
                let silent_since = target.answered;
                let silent = |r: &&Round| silent_since.is_none_or(|last| r.sent > last);
                let run = self.rounds.iter().rev().take_while(silent).count();
                self.answers.put_aside(t, run);
            }
            if answered || target.suspicion == Suspicion::Over {
                changed |= target.suspicion != Suspicion::No;
                target.suspicion = Suspicion::No;
            }
            if answered {
                target.answered = target.answered.max(Some(sent));
            }
        }
        changed
    }

    fn vote_anew(&mut self) {
        for round in 0..self.rounds.len() {
            self.rounds[round].vote = self.vote(round);
        }
    }

    fn vote(&self, round: usize) -> Vote {
        let answered = (0..self.targets.len()).filter(|t| self.answers.get(round, *t).came()).count();
        let voters = (0..self.targets.len()).filter(|t| self.votes(*t, round)).count();
        match voters {
            _ if answered >= self.quorum => Vote::Good,
            0 => Vote::Void,
            _ if answered >= voters => Vote::Good,
            _ => Vote::Lost,
        }
    }

    /// Whether a target has a vote in a round: it was not set aside, and is not under suspicion since before it.
    fn votes(&self, target: usize, round: usize) -> bool {
        let Target { suspicion, answered, .. } = &self.targets[target];
        let sent = self.rounds[round].sent;
        let masked = || *suspicion != Suspicion::No && answered.is_none_or(|last| sent > last);
        match self.answers.get(round, target) {
            Answer::After(_) => true,
            Answer::Aside => false,
            Answer::Lost => !masked(),
        }
    }

    fn add_jitter(&mut self, answers: &[Answer]) {
        for (target, answer) in self.targets.iter_mut().zip(answers) {
            if let Answer::After(rtt) = answer {
                target.jitter.add(*rtt);
            }
        }
    }

    /// Takes the vote from targets that stay silent while the quorum is met without them.
    fn set_aside(&mut self) {
        for t in 0..self.targets.len() {
            let silent = |round: &usize| self.rounds[*round].vote == Vote::Good && !self.answers.get(*round, t).came();
            let run = (0..self.rounds.len()).rev().take_while(silent).count();
            if run >= ASIDE {
                self.answers.put_aside(t, run);
            }
        }
    }

    /// Rounds in a row, up to now, in which fewer targets than the quorum answered.
    pub fn lost_in_a_row(&self) -> usize {
        self.rounds.iter().rev().filter(|r| r.vote != Vote::Void).take_while(|r| r.vote == Vote::Lost).count()
    }

    /// Rounds in a row, up to now, in which the quorum answered.
    pub fn good_in_a_row(&self) -> usize {
        self.rounds.iter().rev().take_while(|r| r.vote == Vote::Good).count()
    }

    /// Marks the rounds lost in a row before the good ones at the end as an outage that is over. Without this a path
    /// would be called lossy for most of a window after each outage; other losses keep their weight.
    pub fn end_outage(&mut self) {
        let good = self.good_in_a_row();
        for round in self.rounds.iter_mut().rev().skip(good).take_while(|r| r.vote != Vote::Good) {
            round.outage = true;
        }
    }

    /// The newest rounds that count, newest first.
    fn counted(&self, newest: usize) -> impl Iterator<Item = usize> + '_ {
        let counts = |round: &usize| !self.rounds[*round].outage && self.rounds[*round].vote != Vote::Void;
        (0..self.rounds.len()).rev().filter(counts).take(newest)
    }

    /// Lost probes of all targets that have a vote; all of them when nothing was answered.
    pub fn raw_loss(&self) -> Ratio {
        let votes = || (0..self.rounds.len()).flat_map(|r| (0..self.targets.len()).map(move |t| (t, r)));
        let answered = self.answers.all().filter(|answer| answer.came()).count();
        let lost = votes().filter(|(t, r)| self.answers.get(*r, *t) == Answer::Lost && self.votes(*t, *r)).count();
        if answered == 0 && !self.rounds.is_empty() { Ratio::ONE } else { Ratio::of(lost, lost + answered) }
    }

    /// All round-trip times, of all targets.
    pub fn all_rtts(&self) -> impl Iterator<Item = Duration> + '_ {
        self.answers.all().filter_map(|answer| if let Answer::After(rtt) = answer { Some(rtt) } else { None })
    }

    /// Mean round-trip time and jitter of the median target, and the same for the newest rounds.
    pub fn stats(&self, dead: bool) -> Stats {
        let mut slow = self.view(self.capacity);
        let mut fast = self.view(FAST);
        slow.latency = median(self.targets(|t| mean(self.rtts(t, self.capacity))));
        fast.latency = median(self.targets(|t| newest_two(self.rtts(t, FAST))));
        slow.jitter = median(
            self.targets(|t| self.targets[t].jitter.value.filter(|_| self.rtts(t, self.capacity).next().is_some())),
        );
        fast.jitter = slow.jitter;
        Stats { slow, fast, dead }
    }

    fn targets<T>(&self, of: impl Fn(usize) -> Option<T>) -> Vec<T> {
        (0..self.targets.len()).filter_map(of).collect()
    }

    /// Round-trip times of a target, newest first.
    fn rtts(&self, target: usize, newest: usize) -> impl Iterator<Item = Duration> + '_ {
        self.counted(newest).filter_map(move |round| match self.answers.get(round, target) {
            Answer::After(rtt) => Some(rtt),
            Answer::Lost | Answer::Aside => None,
        })
    }

    fn view(&self, newest: usize) -> Figures {
        let n = self.counted(newest).count();
        let p = share(self.targets(|t| self.target_loss(t, newest)));
        // A window has far fewer rounds than an f64 has integers.
        #[allow(clippy::cast_precision_loss)]
        let evident = evident(p, n as f64, if n <= FAST { EVIDENCE.0 } else { EVIDENCE.1 });
        let rounds = u32::try_from(n).unwrap_or(u32::MAX);
        Figures { rounds, loss: ratio(p), evident: ratio(evident), latency: None, jitter: None }
    }

    /// Share of probes that a target lost; none when it has no vote.
    fn target_loss(&self, target: usize, newest: usize) -> Option<f64> {
        let votes = || self.counted(newest).filter(|round| self.votes(target, *round));
        let newest = || votes().map(|round| self.answers.get(round, target));
        let lost = newest().filter(|a| *a == Answer::Lost).count();
        let rounds = newest().count();
        (rounds > 0).then(|| Ratio::of(lost, rounds).as_f64())
    }
}

fn ratio(p: f64) -> Ratio {
    // 0 to 1,000,000 after the clamp.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let ppm = (p.clamp(0.0, 1.0) * 1e6).round() as u32;
    Ratio::from_ppm(ppm).unwrap_or(Ratio::ONE)
}

/// The path's loss from that of its targets: the median; of two, the mean, unless only one of them loses anything.
fn share(mut losses: Vec<f64>) -> f64 {
    losses.sort_by(f64::total_cmp);
    match losses[..] {
        [] => 1.0,
        [0.0, _] => 0.0,
        _ => f64::midpoint(losses[(losses.len() - 1) / 2], losses[losses.len() / 2]),
    }
}

/// The median; of an even number the smaller of the middle two.
fn median(mut values: Vec<Duration>) -> Option<Duration> {
    values.sort();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

fn mean(rtts: impl Iterator<Item = Duration>) -> Option<Duration> {
    let (sum, n) = rtts.fold((Duration::ZERO, 0_u32), |(sum, n), rtt| (sum + rtt, n + 1));
    sum.checked_div(n)
}

/// The smaller of the last two: what has been exceeded twice in a row.
fn newest_two(mut rtts: impl Iterator<Item = Duration>) -> Option<Duration> {
    Some(rtts.next()?.min(rtts.next()?))
}
