//! A path as one rule sees it: measured against the rule's own thresholds where it has some.

use crate::{
    health::{self, Healths, Measures, PathHealth, PathState, Stats},
    units::Name,
    validate::intent::{self, Rule},
};

/// A member of a rule.
pub(super) struct Candidate<'a> {
    pub name: &'a Name,
    /// Its state under the rule's thresholds.
    pub state: PathState,
    /// Its score under the rule's thresholds.
    pub score: u8,
    /// Why, for a person.
    pub reason: String,
    /// Down by the path's own thresholds: whoever is bound to it has nothing to lose.
    pub down: bool,
}

impl<'a> Candidate<'a> {
    pub fn new(name: &'a Name, rule: &Rule, healths: &Healths, measures: &Measures) -> Self {
        let Some(health) = healths.get(name) else {
            return Self {
                name,
                state: PathState::Unknown,
                score: 0,
                reason: "not yet measured".to_owned(),
                down: false,
            };
        };
        let own = (health.state, health.score, health.reason.clone());
        let (state, score, reason) = match (rule.sla.as_ref(), measures.get(name)) {
            (Some(sla), Some(stats)) => under(sla, health, stats).unwrap_or(own),
            _ => own,
        };
        Self { name, state, score, reason, down: health.state == PathState::Down }
    }

    /// Good enough to be used without looking for another.
    pub fn usable(&self, rule: &Rule) -> bool {
        self.alive() && self.score >= rule.failover_threshold
    }

    /// Measured, and not down.
    pub fn alive(&self) -> bool {
        matches!(self.state, PathState::Up | PathState::Degraded)
    }

    /// Order in the tail.
    pub const fn rank(&self) -> u8 {
        match self.state {
            PathState::Up => 0,
            PathState::Degraded => 1,
            PathState::Unknown => 2,
            PathState::Down => 3,
        }
    }

    /// What a person should know of it: `lte scored 100`, or why it is of no use.
    pub fn told(&self) -> String {
        match self.state {
            PathState::Unknown => format!("{} is not yet measured", self.name),
            PathState::Down => format!("{} is down: {}", self.name, self.reason),
            PathState::Up | PathState::Degraded => format!("{} scored {}", self.name, self.score),
        }
    }
}

/// The path under the thresholds of a rule; none where no threshold matters: unmeasured, or nothing gets through.
fn under(sla: &intent::Health, health: &PathHealth, stats: &Stats) -> Option<(PathState, u8, String)> {
    if health.state == PathState::Unknown || stats.dead || stats.slow.rounds == 0 {
        return None;
    }
    let score = health::score(stats, sla);
    Some((PathState::of(score), score, health::explain(stats, sla)))
}
