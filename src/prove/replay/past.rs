//! What the stored figures of a path tell of how it was.
//!
//! Stored are loss, mean round-trip time and jitter of the whole window, and the score and state that came of both views
//! (see [`crate::health::estimate`]). The newest rounds, which find a fault first, are not stored. But under thresholds that
//! are known, the score tells how bad the worse view was: where the whole window explains less than it, the newest rounds
//! lost more, or were slower, by just so much; where it explains more, some figure did not count (a target that had no
//! vote, a path that was busy with its own traffic) and is put within its threshold. So under the thresholds of
//! then each moment has the score that it had, and under others the score that the same figures have there.
//!
//! Not told are: which rounds were lost, so that another `downAfter`, `upAfter`, window, interval or other targets change
//! nothing here; how the newest rounds were while everything was within its thresholds; and the cause of a path being
//! down without loss that explains it, which counts as nothing getting through.

use std::time::Duration;

use crate::{
    clock::Wall,
    health::{self, Breach, Figures, PathState, Stats, estimate},
    units::{Name, Ratio},
    validate::intent::{Health, Path},
};

/// One stored sample of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// When.
    pub at: Wall,
    /// Mean round-trip time of the window.
    pub latency: Option<Duration>,
    /// Its jitter.
    pub jitter: Option<Duration>,
    /// Its loss.
    pub loss: Ratio,
    /// The score that it had.
    pub score: u8,
    /// The state that it had.
    pub state: PathState,
}

/// How a path was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Condition {
    recorded: bool,
    state: PathState,
    score: u8,
    stats: Stats,
}

impl Condition {
    pub const fn unknown() -> Self {
        let nothing = Figures { rounds: 0, loss: Ratio::ZERO, evident: Ratio::ZERO, latency: None, jitter: None };
        let stats = Stats { slow: nothing, fast: nothing, dead: false };
        Self { recorded: false, state: PathState::Unknown, score: 0, stats }
    }

    pub const fn is_recorded(&self) -> bool {
        self.recorded
    }

    pub const fn is_dead(&self) -> bool {
        self.stats.dead
    }

    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// State and score of the path under its thresholds in some configuration; `limits` are those in effect.
    pub fn under(&self, path: &Path, then: Option<&Path>, limits: &Health) -> (PathState, u8) {
        if self.state == PathState::Unknown || then.is_none_or(|then| then.health == path.health) {
            return (self.state, self.score);
        }
        if self.stats.dead {
            return (PathState::Down, 0);
        }
        let score = health::score(&self.stats, limits);
        (PathState::of(score), score)
    }
}

/// A condition and since when it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Change {
    pub at: Wall,
    pub condition: Condition,
}

/// What the last sample was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// There was none for too long.
    Nothing,
    /// All was well.
    Calm,
    Trouble,
}

/// Reads the samples of one path in the order of time.
#[derive(Debug)]
pub(super) struct Past<'a> {
    /// The path as it was judged when it was recorded.
    path: &'a Path,
    /// Thresholds within which nobody minds.
    easy: Option<Health>,
    /// Every figure matters.
    exact: bool,
    window: u32,
    /// Without a sample for so long, nothing is known.
    patience: i64,
    last: Option<Wall>,
    seen: Seen,
    dead: bool,
    /// Rounds lost in a row, as far as the loss of the window tells, and that loss.
    row: f64,
    loss: Ratio,
    breach: Breach,
}

/// Points by which a score may differ since stored figures are rounded.
const ROUNDED: u8 = 1;
/// Samples are stored once a second at most.
const LEAST: Duration = Duration::from_secs(3);

impl<'a> Past<'a> {
    pub fn new(path: &'a Path, easy: Option<Health>, exact: bool) -> Self {
        let probe = &path.probe;
        let patience = (probe.interval * (probe.down_after + 2) + probe.timeout).max(LEAST);
        Self {
            path,
            easy,
            exact,
            window: probe.window.max(1),
            patience: i64::try_from(patience.as_micros()).unwrap_or(i64::MAX),
            last: None,
            seen: Seen::Nothing,
            dead: false,
            row: 0.0,
            loss: Ratio::ZERO,
            breach: Breach::default(),
        }
    }

    pub const fn name(&self) -> &'a Name {
        &self.path.name
    }

    /// What a sample changes: the end of what was known, if there was none for long, and what it says itself. Nothing, if
    /// the path was well and still is.
    pub fn take(&mut self, reading: &Reading) -> impl Iterator<Item = Change> + use<> {
        // The clock was set back: what comes is older than what is known.
        let stale = self.last.is_some_and(|last| reading.at < last);
        let silence = if stale { None } else { self.silence(reading.at) };
        let seen = if self.is_calm(reading) { Seen::Calm } else { Seen::Trouble };
        let same = seen == Seen::Calm && self.seen == Seen::Calm && !self.exact;
        let news = (!stale && !same).then(|| Change { at: reading.at, condition: self.condition(reading) });
        if !stale {
            (self.last, self.seen, self.loss) = (Some(reading.at), seen, reading.loss);
            self.row = if same { 0.0 } else { self.row };
        }
        silence.into_iter().chain(news)
    }

    /// That nothing is known any more, if no sample came for too long before a moment.
    pub fn silence(&mut self, now: Wall) -> Option<Change> {
        let ends = self.last?.as_micros().saturating_add(self.patience);
        if self.seen == Seen::Nothing || ends >= now.as_micros() {
            return None;
        }
        (self.seen, self.dead, self.breach) = (Seen::Nothing, false, Breach::default());
        Some(Change { at: Wall::from_micros(ends), condition: Condition::unknown() })
    }

    /// Up without a fault, whoever asks.
    fn is_calm(&self, r: &Reading) -> bool {
        let Some(easy) = self.easy.filter(|_| r.state == PathState::Up && r.score == 100) else { return false };
        let within = |value: Option<Duration>, limit| value.is_none_or(|v| v <= limit);
        within(r.latency, easy.latency)
            && within(r.jitter, easy.jitter)
            && (r.loss == Ratio::ZERO || estimate::evidence(r.loss, self.window) == Ratio::ZERO)
    }

    fn condition(&mut self, r: &Reading) -> Condition {
        let limits = self.breach.limits(&self.path.health);
        let (loss, evident) = (r.loss, estimate::evidence(r.loss, self.window));
        let slow = Figures { rounds: self.window, loss, evident, latency: r.latency, jitter: r.jitter };
        self.count_losses(r.loss);
        let gone = r.state == PathState::Down && r.score == 0;
        self.dead = gone && (self.dead || self.is_silent(&slow, &limits));
        let mut stats = Stats { slow, fast: slow, dead: self.dead };
        if !self.dead && r.state != PathState::Unknown {
            if health::points(&slow, &limits) + ROUNDED < r.score {
                stats.slow = lenient(slow, &limits, r.score);
            }
            stats.fast = newest(&stats.slow, &limits, r.score);
            self.breach = self.breach.after(&stats, &self.path.health);
        }
        Condition { recorded: true, state: r.state, score: r.score, stats }
    }

    /// By how many rounds the loss of the window has risen without a break: at least so many were lost in a row.
    fn count_losses(&mut self, loss: Ratio) {
        let rounds = |loss: Ratio| loss.as_f64() * f64::from(self.window);
        let more = rounds(loss) - rounds(self.loss);
        self.row = if more > 0.5 { self.row + more } else { 0.0 };
        self.loss = loss;
    }

    /// Whether a path that was down at score 0 was so since nothing got through, and not for its figures.
    fn is_silent(&self, slow: &Figures, limits: &Health) -> bool {
        let least = f64::from(self.path.probe.down_after.clamp(1, self.window)) - 0.5;
        let lost = slow.loss.as_f64() * f64::from(self.window);
        let worst = Figures { evident: estimate::evidence(ratio(concentrated(slow)), FAST), ..*slow };
        let explained = lost < least || health::points(slow, limits).min(health::points(&worst, limits)) == 0;
        slow.latency.is_none() || self.row > least || !explained
    }
}

/// The loss of the newest rounds if all of the window's were among them.
fn concentrated(slow: &Figures) -> f64 {
    (slow.loss.as_f64() * f64::from(slow.rounds) / f64::from(FAST)).min(1.0)
}

/// Puts figures that did not count within their thresholds, until they are worth as much as was told.
fn lenient(mut figures: Figures, limits: &Health, score: u8) -> Figures {
    let enough = |figures: &Figures| health::points(figures, limits) >= score;
    figures.evident = figures.evident.min(limits.loss);
    if !enough(&figures) {
        figures.latency = figures.latency.map(|l| l.min(limits.latency));
    }
    if !enough(&figures) {
        figures.jitter = figures.jitter.map(|j| j.min(limits.jitter));
    }
    figures
}

/// The newest rounds: like the window, and worse by what the score tells beyond it.
fn newest(slow: &Figures, limits: &Health, score: u8) -> Figures {
    if health::points(slow, limits) <= score.saturating_add(ROUNDED) {
        return *slow;
    }
    // Half a point within what is rounded down to the score.
    let cost = 99.5 - f64::from(score);
    let (of_latency, of_loss, _) = estimate::WEIGHTS;
    let lossless = Figures { evident: Ratio::ZERO, ..*slow };
    let rest = cost - estimate::cost(&lossless, limits);
    let (most, share) = (concentrated(slow), limits.loss.as_f64() * rest / of_loss);
    if rest >= of_loss && share <= most {
        // A score of 0 tells the least only: then they lost as much as the whole window, if that is more.
        let even = if score == 0 { estimate::evidence(slow.loss, FAST) } else { Ratio::ZERO };
        return Figures { rounds: FAST, loss: ratio(most), evident: ratio(share).max(even), ..*slow };
    }
    let rest = cost - estimate::cost(&Figures { latency: None, ..*slow }, limits);
    if rest >= of_latency {
        return Figures { rounds: FAST, latency: Some(limits.latency.mul_f64(rest / of_latency)), ..*slow };
    }
    *slow
}

/// Rounds of the fast view, as figures count them.
#[allow(clippy::cast_possible_truncation)]
const FAST: u32 = estimate::FAST as u32;

fn ratio(p: f64) -> Ratio {
    // At most a million after the clamp.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let millionths = (p.clamp(0.0, 1.0) * 1e6).round() as u32;
    Ratio::from_ppm(millionths).unwrap_or(Ratio::ONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Instant,
        health::{Link, Monitor, Notes, Sample},
        validate::intent::Site,
    };

    const SECOND: i64 = 1_000_000;

    /// A second of a path: lost, or so many milliseconds.
    type Round = Option<u64>;

    fn site() -> Site {
        crate::health::tests::site(vec![crate::health::tests::path("fiber", 1, 1000)])
    }

    /// What the daemon would store of these rounds, and the score that a moment has under other thresholds.
    fn stored(site: &Site, rounds: impl IntoIterator<Item = Round>, other: &Health) -> Vec<(Reading, u8)> {
        let name = site.paths.keys().next().unwrap().clone();
        let (mut monitor, targets) = (Monitor::new(site, Instant::from_nanos(0)), &site.paths[&name].probe.targets);
        monitor.set_link(&name, Link::Ready, Instant::from_nanos(0));
        let each = rounds.into_iter().zip(1_u64..).map(|(rtt, n)| {
            let now = Instant::from_nanos(n * 1_000_000_000);
            let answers = targets.iter().map(|t| (*t, rtt.map(Duration::from_millis))).collect();
            let sample =
                Sample { path: name.clone(), round: n, sent: now, done: now, answers, notes: Notes::default() };
            monitor.handle_sample(&sample, now);
            let health = &monitor.healths()[&name];
            let reading = Reading {
                at: Wall::from_micros(i64::try_from(n).unwrap() * SECOND),
                latency: health.latency,
                jitter: health.jitter,
                loss: health.loss,
                score: health.score,
                state: health.state,
            };
            (reading, health::score(&monitor.measures()[&name], other))
        });
        each.collect()
    }

    fn limits(site: &Site) -> Health {
        site.paths.values().next().unwrap().health
    }

    /// Faults of every kind: lost at random, slow, both, silent, and well between them.
    fn story() -> Vec<Round> {
        let well = |n: usize| vec![Some(20); n];
        let lossy = |every: usize| (0..60).map(move |n| (n % every != 0).then_some(20)).collect::<Vec<_>>();
        let slow = |ms| vec![Some(ms); 40];
        let both = (0..60).map(|n| (n % 5 != 0).then_some(180)).collect();
        [well(40), lossy(5), well(40), lossy(3), well(40), slow(200), well(40), both, vec![None; 30], well(60)].concat()
    }

    #[test]
    fn under_the_thresholds_of_then_each_moment_has_the_score_that_it_had() {
        let site = site();
        let limits = limits(&site);
        let mut past = Past::new(site.paths.values().next().unwrap(), Some(limits), true);
        for (reading, _) in stored(&site, story(), &limits) {
            let condition = past.take(&reading).last().unwrap().condition;
            let score = health::score(condition.stats(), &limits);
            let told = if reading.state == PathState::Unknown { score } else { reading.score };
            assert!(score.abs_diff(told) <= 1, "{reading:?}: {score}\n{condition:?}");
        }
    }

    #[test]
    fn under_other_thresholds_it_is_near_the_score_that_the_daemon_would_have_given() {
        let site = site();
        let own = limits(&site);
        for other in [
            Health { latency: own.latency * 2, ..own },
            Health { loss: Ratio::of(20, 100), ..own },
            Health { latency: own.latency * 2, loss: Ratio::of(20, 100), ..own },
        ] {
            let mut past = Past::new(site.paths.values().next().unwrap(), Some(own), true);
            let (mut wrong, mut all) = (0, 0);
            for (reading, truth) in stored(&site, story(), &other) {
                let condition = past.take(&reading).last().unwrap().condition;
                let good = |score: u8| score >= 50;
                all += 1;
                wrong += usize::from(good(health::score(condition.stats(), &other)) != good(truth));
            }
            assert!(wrong * 50 <= all, "{wrong} of {all} moments are on the wrong side of the threshold: {other:?}");
        }
    }

    #[test]
    fn without_samples_nothing_is_known_and_what_was_set_back_is_passed_over() {
        let site = site();
        let limits = limits(&site);
        let mut past = Past::new(site.paths.values().next().unwrap(), Some(limits), false);
        let stored = stored(&site, vec![Some(20); 120], &limits);
        let seen: Vec<Change> = stored.iter().flat_map(|(reading, _)| past.take(reading).collect::<Vec<_>>()).collect();
        assert!(seen.len() < 10, "a path that is well says nothing new: {}", seen.len());
        let at = |second: i64| Wall::from_micros(second * SECOND);
        assert_eq!(past.silence(at(121)), None);
        let (late, _) = *stored.last().unwrap();
        let found: Vec<Change> = past.take(&Reading { at: at(500), ..late }).collect();
        assert_eq!((found.len(), found[0].condition), (2, Condition::unknown()));
        assert!(found[0].at > at(120) && found[0].at < at(130), "{:?}", found[0].at);
        assert_eq!(past.take(&Reading { at: at(400), state: PathState::Down, score: 0, ..late }).count(), 0);
    }
}
