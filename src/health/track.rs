//! The state machine of one path, or of one family of it.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use super::{Breach, Figures, Link, PathHealth, PathState, Sample, Stats, estimate::Window, points, score};
use crate::{
    clock::Instant,
    units::{Ratio, Span, plural},
    validate::intent::{self, Path},
};

/// Why a path is in its state. A reason's text is written when the cause changes, not with each sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Fresh,
    /// Known from an earlier process, not measured since.
    Remembered(PathState),
    Silent,
    Link(Link),
    Unprobed,
    Lost,
    /// No target has a vote: what was known stays.
    Held,
    Recovering,
    Score,
    /// Slow from its own traffic, which does not count.
    Congested,
}

/// The least time without any report after which the prober is called silent. A path that dies is found by the
/// prober's own reports; this guards against the prober, which a busy machine may hold up.
const SILENCE: Duration = Duration::from_secs(2);

/// One path.
#[derive(Debug, Clone)]
pub(super) struct Track {
    path: Arc<Path>,
    window: Window,
    link: Link,
    /// Good rounds in a row without which the path does not leave `unknown` or `down`.
    need: usize,
    /// When something was heard of the path, or it began.
    heard: Instant,
    cause: Cause,
    /// Figures that have not come down to their recovery band.
    breach: Breach,
    /// When the newest round was sent that the quorum answered.
    good: Option<Instant>,
    /// The share of its bandwidth that is used.
    used: Option<f64>,
    /// Whether it is busy with that.
    busy: bool,
    /// Latency and jitter when it was not.
    calm: (Option<Duration>, Option<Duration>),
}

/// What a look at a track found.
pub(super) struct View {
    pub health: PathHealth,
    /// None when nothing new is known.
    pub stats: Option<Stats>,
}

impl Track {
    pub fn new(path: &Arc<Path>, now: Instant) -> Self {
        let window = Window::new(&path.probe);
        Self {
            path: Arc::clone(path),
            window,
            link: Link::Ready,
            need: 1,
            heard: now,
            cause: Cause::Fresh,
            breach: Breach::default(),
            good: None,
            used: None,
            busy: false,
            calm: (None, None),
        }
    }

    /// Takes over new settings. When the history does not fit them, the path begins anew. Whether it did not.
    pub fn reconfigure(&mut self, path: &Arc<Path>, now: Instant) -> bool {
        let same = self.path.probe == path.probe && self.path.interface == path.interface;
        if same {
            self.path = Arc::clone(path);
        } else {
            *self = Self { link: self.link, ..Self::new(path, now) };
        }
        same
    }

    /// What the kernel says of its interface.
    pub const fn link(&self) -> Link {
        self.link
    }

    /// Round-trip times of its window.
    pub fn rtts(&self) -> impl Iterator<Item = Duration> + '_ {
        self.window.all_rtts()
    }

    /// Which of its targets are suspect.
    pub fn suspects(&self) -> Vec<bool> {
        self.window.suspects()
    }

    pub const fn set_link(&mut self, link: Link) {
        self.link = link;
    }

    /// Takes in which share of its bandwidth is used, and whether it is busy with that.
    pub const fn set_load(&mut self, used: Option<f64>, busy: bool) {
        (self.used, self.busy) = (used, busy);
    }

    /// Whether it is slow from its own traffic, and that does not count.
    pub fn is_congested(&self) -> bool {
        self.cause == Cause::Congested
    }

    pub fn add(&mut self, sample: &Sample, now: Instant) {
        self.heard = now;
        self.window.add(sample);
        if self.window.good_in_a_row() > 0 {
            self.good = self.good.max(Some(sample.sent));
        }
    }

    /// Takes the vote from targets that are suspect, in the order of the configuration.
    pub fn suspect(&mut self, suspects: &[bool]) {
        self.window.suspect(suspects);
    }

    /// Takes over the state that an earlier process knew.
    pub fn remember(&mut self, state: PathState) {
        self.cause = Cause::Remembered(state);
        if matches!(state, PathState::Down) {
            self.need = self.up_after();
        }
    }

    /// Takes in that for so long, up to now, nothing could be heard.
    pub fn excuse(&mut self, deaf: Duration, now: Instant) {
        self.heard = (self.heard + deaf).min(now);
    }

    /// When the path is to be called unknown because not even lost rounds are reported any more.
    pub fn silent_at(&self) -> Option<Instant> {
        let probe = &self.path.probe;
        let patience = (probe.interval * (probe.down_after + 2) + probe.timeout).max(SILENCE);
        let counts = !probe.targets.is_empty() && self.window.len() > 0 && self.link == Link::Ready;
        counts.then(|| self.heard + patience)
    }

    /// Looks at the path anew. `before` is what was published last.
    pub fn look(&mut self, before: Option<&PathHealth>, now: Instant) -> View {
        let (state, cause, measured) = self.judge(before.map(|h| h.state), now);
        if let (Cause::Held, Some(old)) = (cause, before) {
            let reason = self.reason(cause, &self.window.stats(false));
            self.cause = cause;
            return View { health: PathHealth { reason, held: true, used: self.used, ..old.clone() }, stats: None };
        }
        let dead = matches!(cause, Cause::Link(_) | Cause::Lost | Cause::Remembered(PathState::Down))
            || (cause == Cause::Recovering && state == PathState::Down);
        let raw = measured.unwrap_or_else(|| self.window.stats(dead));
        let figures = self.calmed(&raw);
        let shown = self.score(&figures, cause);
        let reason = match before {
            Some(old) if old.state == state && self.cause == cause => old.reason.clone(),
            _ => self.reason(cause, &raw),
        };
        self.cause = cause;
        let since = before.filter(|old| old.state == state).map_or(now, |old| old.since);
        View { health: self.health(state, shown, since, reason, &raw), stats: Some(figures) }
    }

    /// The state, why, and what was measured if that is why.
    fn judge(&mut self, before: Option<PathState>, now: Instant) -> (PathState, Cause, Option<Stats>) {
        if let Some((state, cause)) = self.judge_at_sight(now).or_else(|| self.judge_rounds(before)) {
            return (state, cause, None);
        }
        let raw = self.window.stats(false);
        let (state, cause) = self.judge_figures(&raw);
        (state, cause, Some(raw))
    }

    fn judge_at_sight(&mut self, now: Instant) -> Option<(PathState, Cause)> {
        if self.link != Link::Ready {
            self.restart();
            return Some((PathState::Down, Cause::Link(self.link)));
        }
        if self.path.probe.targets.is_empty() {
            return Some((PathState::Up, Cause::Unprobed));
        }
        if self.silent_at().is_some_and(|at| at <= now) {
            self.restart();
            return Some((PathState::Unknown, Cause::Silent));
        }
        None
    }

    /// None if what was measured decides.
    fn judge_rounds(&mut self, before: Option<PathState>) -> Option<(PathState, Cause)> {
        if self.window.is_void() {
            return Some((before.unwrap_or(PathState::Unknown), Cause::Held));
        }
        if self.window.lost_in_a_row() >= self.down_after() {
            self.need = self.up_after();
            return Some((PathState::Down, Cause::Lost));
        }
        if self.window.good_in_a_row() < self.need {
            // An empty window: it is new, or its link is back and what was measured before says nothing now.
            return Some(match before {
                _ if self.window.len() == 0 => self.unmeasured(),
                Some(PathState::Down) => (PathState::Down, Cause::Recovering),
                _ => (PathState::Unknown, Cause::Recovering),
            });
        }
        if std::mem::take(&mut self.need) > 0 {
            self.window.end_outage();
        }
        None
    }

    fn judge_figures(&mut self, raw: &Stats) -> (PathState, Cause) {
        if !self.busy {
            self.calm = (raw.slow.latency, raw.slow.jitter);
        }
        let stats = self.calmed(raw);
        self.breach = self.breach.after(&stats, &self.path.health);
        let counts = score(&stats, &self.limits());
        let cause = if counts > score(raw, &self.limits()) { Cause::Congested } else { Cause::Score };
        (PathState::of(counts), cause)
    }

    /// What was measured, with latency and jitter as they were before while the path is busy with its own traffic.
    fn calmed(&self, raw: &Stats) -> Stats {
        if !self.busy || self.path.probe.leave_when_busy {
            return *raw;
        }
        let (latency, jitter) = self.calm;
        let least =
            |now: Option<Duration>, calm: Option<Duration>| now.map(|now| calm.map_or(now, |calm| now.min(calm)));
        let calmed =
            |f: &Figures| Figures { latency: least(f.latency, latency), jitter: least(f.jitter, jitter), ..*f };
        Stats { slow: calmed(&raw.slow), fast: calmed(&raw.fast), dead: raw.dead }
    }

    /// What counts while nothing was measured.
    const fn unmeasured(&self) -> (PathState, Cause) {
        match self.cause {
            Cause::Silent => (PathState::Unknown, Cause::Silent),
            Cause::Remembered(state) => (state, self.cause),
            _ => (PathState::Unknown, Cause::Fresh),
        }
    }

    fn restart(&mut self) {
        self.window.clear();
        self.need = self.up_after();
        self.breach = Breach::default();
    }

    fn down_after(&self) -> usize {
        self.within_window(self.path.probe.down_after)
    }

    fn up_after(&self) -> usize {
        self.within_window(self.path.probe.up_after)
    }

    fn within_window(&self, rounds: u32) -> usize {
        rounds.clamp(1, self.path.probe.window.max(1)) as usize
    }

    /// The thresholds that count now.
    fn limits(&self) -> intent::Health {
        self.breach.limits(&self.path.health)
    }

    fn score(&self, stats: &Stats, cause: Cause) -> u8 {
        match cause {
            Cause::Score | Cause::Congested => score(stats, &self.limits()),
            Cause::Unprobed => 100,
            Cause::Remembered(PathState::Up) => 80,
            Cause::Remembered(PathState::Degraded) => 50,
            _ => 0,
        }
    }

    fn health(&self, state: PathState, score: u8, since: Instant, reason: String, figures: &Stats) -> PathHealth {
        PathHealth {
            state,
            score,
            loss: self.window.raw_loss(),
            latency: figures.slow.latency,
            jitter: figures.slow.jitter,
            rounds: u32::try_from(self.window.len()).unwrap_or(u32::MAX),
            carrier: self.link == Link::Ready,
            disabled: self.link == Link::Disabled,
            held: self.cause == Cause::Held,
            good: self.good,
            used: self.used,
            since,
            reason,
            families: BTreeMap::new(),
        }
    }

    fn reason(&self, cause: Cause, stats: &Stats) -> String {
        let interface = &self.path.interface;
        match cause {
            Cause::Fresh => "not yet measured".to_owned(),
            Cause::Remembered(was) => format!("it was {was} before the daemon was restarted; not measured since"),
            Cause::Silent => "the prober reports nothing".to_owned(),
            Cause::Link(Link::Missing) => format!("interface {interface} does not exist"),
            Cause::Link(Link::Disabled) => format!("interface {interface} is set down"),
            Cause::Link(_) => format!("no carrier on {interface}"),
            Cause::Unprobed => "not probed; the carrier is there".to_owned(),
            Cause::Lost => format!("{} lost in a row", plural(self.down_after(), "round")),
            Cause::Held => "held: what it probes answers on no path".to_owned(),
            Cause::Recovering => format!("answers again, not yet {} in a row", plural(self.need, "round")),
            Cause::Score => explain(stats, &self.limits()),
            Cause::Congested => {
                let percent = self.used.unwrap_or_default() * 100.0;
                let what = explain(stats, &self.limits());
                format!("congested by its own traffic ({percent:.0}% of its bandwidth), which does not count: {what}")
            }
        }
    }
}

/// Which thresholds are exceeded, with the figures of the worse view.
pub(crate) fn explain(stats: &Stats, limits: &intent::Health) -> String {
    let worse = if points(&stats.fast, limits) < points(&stats.slow, limits) { &stats.fast } else { &stats.slow };
    let ms = |d: std::time::Duration| format!("{:.1}ms", d.as_secs_f64() * 1e3);
    let mut text = String::new();
    let mut add = |part: String| {
        let _ = write!(text, "{}{part}", if text.is_empty() { "" } else { ", " });
    };
    if worse.evident > limits.loss {
        let percent = Ratio::as_f64(worse.loss) * 100.0;
        add(format!("loss {percent:.0}% over {} above {}", plural(worse.rounds, "round"), limits.loss));
    }
    for (what, value, limit) in [("latency", worse.latency, limits.latency), ("jitter", worse.jitter, limits.jitter)] {
        if let Some(value) = value.filter(|v| *v > limit) {
            add(format!(
                "{what} {} above {}",
                ms(value),
                Span::from_millis(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
            ));
        }
    }
    if text.is_empty() { "within its thresholds".to_owned() } else { text }
}
