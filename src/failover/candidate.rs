//! A path as one rule sees it: measured against the rule's own thresholds where it has some, held, damped or drained.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Inputs, memory::Memory};
use crate::{
    clock::Instant,
    health::{self, PathHealth, PathState, Stats},
    units::{Family, Name, Span},
    validate::intent::{Metric, Rule},
};

/// How a rule regards one of its paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Not yet measured.
    Unknown,
    /// Good.
    Up,
    /// It works, and not well.
    Degraded,
    /// Nothing gets through, or too little.
    Down,
    /// Back from being down, and not yet for `holdDown`.
    Held,
    /// Out of use for flapping.
    Damped,
    /// Out of use by hand.
    Drained,
    /// Its interface is set down.
    Disabled,
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Unknown, Self::Up, Self::Degraded, Self::Down, Self::Held, Self::Damped, Self::Drained, Self::Disabled];

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
            Self::Held => "held",
            Self::Damped => "damped",
            Self::Drained => "drained",
            Self::Disabled => "disabled",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A member of a rule.
// Facts that have nothing to do with each other: no state machine hides in them.
#[allow(clippy::struct_excessive_bools)]
pub(super) struct Candidate<'a> {
    pub name: &'a Name,
    /// Its state under the rule's thresholds.
    pub state: PathState,
    /// Its score under the rule's thresholds.
    pub score: u8,
    /// Down by the path's own thresholds: whoever is bound to it has nothing to lose.
    pub down: bool,
    /// It became so just now.
    pub died: bool,
    /// It was down and has not been measured to work since.
    pub fallen: bool,
    /// Drained, so that it is no choice even as the last one.
    pub barred: bool,
    pub standing: Standing,
    /// Until when it is held or damped.
    pub until: Option<Instant>,
    pub cost: u32,
    /// Its line is full: new flows go elsewhere if they can.
    pub full: bool,
    /// When that changes, if its load stays as it is.
    pub turns: Option<Instant>,
    health: Option<&'a PathHealth>,
    stats: Option<&'a Stats>,
    /// The thresholds of the rule, where they count.
    sla: Option<crate::validate::intent::Health>,
}

impl<'a> Candidate<'a> {
    /// Looks at a member and takes what it finds into the rule's memory of it.
    pub fn look(name: &'a Name, rule: &'a Rule, inputs: &Inputs<'a>, memory: &mut Memory, now: Instant) -> Self {
        let health = inputs.healths.get(name);
        let measured = inputs.measures.get(name);
        let sla = sla(rule, health, measured, memory);
        let state = health.map_or(PathState::Unknown, |h| h.state);
        let (state, score) = match (&sla, measured) {
            (Some(sla), Some(measured)) => under(state, health::score(measured, sla)),
            _ => (state, health.map_or(0, |h| h.score)),
        };
        memory.observe(state, rule, now);
        memory.brim.observe(rule, health.and_then(|h| h.used), now);
        let down = health.is_some_and(|h| h.state == PathState::Down);
        let died = memory.died(down);
        let drain = inputs.overrides.drains.get(name);
        let disabled = health.is_some_and(|h| h.disabled);
        let (standing, until) = standing(state, drain.is_some(), disabled, rule, memory);
        let endpoint = || inputs.site.endpoints.get(&inputs.site.paths.get(name)?.from);
        Self {
            name,
            state,
            score,
            down,
            died,
            fallen: memory.has_fallen(),
            barred: drain.is_some_and(|d| d.force),
            standing,
            until,
            cost: endpoint().map_or(1, |e| e.cost),
            full: memory.brim.is_full(),
            turns: memory.brim.turns_at(rule),
            health,
            stats: measured,
            sla,
        }
    }

    /// Good enough to be used without looking for another.
    pub fn usable(&self, rule: &Rule) -> bool {
        self.alive() && self.score >= rule.failover_threshold
    }

    /// Nothing keeps the rule from choosing it.
    pub const fn free(&self) -> bool {
        !matches!(self.standing, Standing::Held | Standing::Damped | Standing::Drained | Standing::Disabled)
    }

    /// Measured, and not down.
    pub const fn alive(&self) -> bool {
        matches!(self.state, PathState::Up | PathState::Degraded) && !self.barred
    }

    /// Order in the tail.
    pub const fn rank(&self) -> u8 {
        match self.standing {
            Standing::Up => 0,
            Standing::Degraded => 1,
            Standing::Held | Standing::Damped => 2,
            Standing::Unknown => 3,
            Standing::Drained => 4,
            Standing::Down | Standing::Disabled => 5,
        }
    }

    /// The figure that `best-quality` compares, smaller is better; none when it is not known.
    pub fn figure(&self, metric: Metric) -> Option<f64> {
        let stats = self.stats.filter(|s| !s.dead && s.slow.rounds > 0)?;
        let worse = |of: fn(&health::Figures) -> Option<Duration>| of(&stats.slow).max(of(&stats.fast));
        match metric {
            Metric::Latency => worse(|f| f.latency).map(|d| d.as_secs_f64()),
            Metric::Jitter => worse(|f| f.jitter).map(|d| d.as_secs_f64()),
            Metric::Loss => Some(stats.slow.loss.max(stats.fast.loss).as_f64()),
        }
    }

    /// How much of what is sent is lost now; more than all of it when nothing is sent.
    pub fn badness(&self) -> (u32, Duration) {
        let Some(stats) = self.stats.filter(|_| self.health.is_some_and(|h| h.carrier) && !self.barred) else {
            return (u32::MAX, Duration::MAX);
        };
        let lost = if stats.fast.rounds == 0 { 1_000_000 } else { stats.fast.loss.ppm() };
        (lost, stats.fast.latency.unwrap_or(Duration::MAX))
    }

    /// When its last good round was sent.
    pub fn silent_since(&self) -> Option<Instant> {
        self.health?.good
    }

    /// One family of it, where both are measured.
    pub fn family(&self, family: Family) -> Option<&PathHealth> {
        self.health?.families.get(&family)
    }

    /// Whether it is measured, and not each family by itself.
    pub fn is_whole(&self) -> bool {
        self.health.is_some_and(|h| h.families.is_empty())
    }

    /// Whether both families are measured.
    pub fn has_families(&self) -> bool {
        self.health.is_some_and(|h| !h.families.is_empty())
    }

    /// How much of its bandwidth is in use, for people.
    pub fn load(&self) -> String {
        let used = self.health.and_then(|h| h.used);
        used.map_or_else(|| "an unknown part".to_owned(), |used| format!("{:.0}%", used * 100.0))
    }

    /// Whether that is known.
    pub fn weighed(&self) -> bool {
        self.health.is_some_and(|h| h.used.is_some())
    }

    /// Nothing at all gets through.
    pub fn dead(&self) -> bool {
        self.stats.is_none_or(|s| s.dead)
    }

    /// What is wrong with it, or that nothing is.
    pub fn reason(&self) -> String {
        match (&self.sla, self.stats, self.health) {
            (Some(sla), Some(stats), _) => health::explain(stats, sla),
            (_, _, Some(health)) => health.reason.clone(),
            _ => "not yet measured".to_owned(),
        }
    }

    /// What a person should know of it: `lte scored 100`, or why it is of no use.
    pub fn told(&self, now: Instant) -> String {
        let wait = self.until.map(|at| shown(at.since(now)));
        match (self.standing, wait) {
            (Standing::Unknown, _) => format!("{} is not yet measured", self.name),
            (Standing::Down | Standing::Disabled, _) => format!("{} is down: {}", self.name, self.reason()),
            (Standing::Drained, _) => format!("{} is drained by hand", self.name),
            (Standing::Held, Some(wait)) => format!("{} is back from being down and held for {wait} more", self.name),
            (Standing::Damped, Some(wait)) => format!("{} flapped and is damped for {wait} more", self.name),
            _ => format!("{} scored {}", self.name, self.score),
        }
    }
}

pub(super) fn standing(
    state: PathState,
    drained: bool,
    disabled: bool,
    rule: &Rule,
    memory: &Memory,
) -> (Standing, Option<Instant>) {
    if drained {
        return (Standing::Drained, None);
    }
    if disabled {
        return (Standing::Disabled, None);
    }
    match (state, memory.damped_until(rule), memory.held_until(rule)) {
        (PathState::Down, until, _) => (Standing::Down, until),
        (PathState::Unknown, until, _) => (Standing::Unknown, until),
        (_, Some(until), _) => (Standing::Damped, Some(until)),
        (_, None, Some(until)) => (Standing::Held, Some(until)),
        (PathState::Up, ..) => (Standing::Up, None),
        (PathState::Degraded, ..) => (Standing::Degraded, None),
    }
}

/// The thresholds of the rule that count for a path now; none where no threshold matters: the rule has none, the path
/// is not measured, or nothing gets through.
fn sla(
    rule: &Rule,
    health: Option<&PathHealth>,
    stats: Option<&Stats>,
    memory: &mut Memory,
) -> Option<crate::validate::intent::Health> {
    let sla = rule.sla.as_ref()?;
    let stats = stats.filter(|s| !s.dead && s.slow.rounds > 0)?;
    if health?.state == PathState::Unknown {
        return None;
    }
    memory.breach = memory.breach.after(stats, sla);
    Some(memory.breach.limits(sla))
}

/// State and score under the thresholds of a rule. A path that is not good enough for a class carries traffic all
/// the same: it is not down.
const fn under(own: PathState, score: u8) -> (PathState, u8) {
    match (PathState::of(score), own) {
        (PathState::Down, PathState::Down) => (PathState::Down, score),
        (PathState::Down, _) => (PathState::Degraded, score),
        (state, _) => (state, score),
    }
}

/// A duration as people write it.
pub(super) fn shown(d: Duration) -> Span {
    let seconds = d.as_secs() + u64::from(d.subsec_nanos() > 0);
    Span::from_millis(if d < Duration::from_secs(1) {
        u64::try_from(d.as_millis()).unwrap_or(0)
    } else {
        seconds * 1000
    })
}
