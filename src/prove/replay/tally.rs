//! What the seconds of a rule were worth, by one ruler.

use std::{collections::BTreeMap, time::Duration};

use serde::{Serialize, Serializer};

use super::{course::Used, past::Condition};
use crate::{
    clock::Instant,
    health::{self, PathState},
    units::Name,
    validate::intent::{Path, Rule, Site},
};

/// What a second was worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// The path in use met everything.
    Good,
    /// It worked, and did not meet the rule's SLA class.
    OutsideClass,
    /// Its score was below the rule's `failoverThreshold`.
    BelowThreshold,
    /// It was down.
    Down,
    /// The rule used no path.
    NoPath,
    /// The path is not in the record at that time.
    Unrecorded,
}

/// How long it was what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Good.
    #[serde(rename = "good_seconds", serialize_with = "seconds")]
    pub good: Duration,
    /// Outside the rule's SLA class.
    #[serde(rename = "outside_class_seconds", serialize_with = "seconds")]
    pub outside_class: Duration,
    /// Below the rule's threshold.
    #[serde(rename = "below_threshold_seconds", serialize_with = "seconds")]
    pub below_threshold: Duration,
    /// Down.
    #[serde(rename = "down_seconds", serialize_with = "seconds")]
    pub down: Duration,
    /// Without a path.
    #[serde(rename = "no_path_seconds", serialize_with = "seconds")]
    pub no_path: Duration,
    /// Not in the record.
    #[serde(rename = "unrecorded_seconds", serialize_with = "seconds")]
    pub unrecorded: Duration,
}

fn seconds<S: Serializer>(time: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(time.as_secs_f64())
}

impl Tally {
    /// On a path that was bad in any way, or on none.
    #[must_use]
    pub fn bad(&self) -> Duration {
        self.outside_class + self.below_threshold + self.down + self.no_path
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            good: self.good + other.good,
            outside_class: self.outside_class + other.outside_class,
            below_threshold: self.below_threshold + other.below_threshold,
            down: self.down + other.down,
            no_path: self.no_path + other.no_path,
            unrecorded: self.unrecorded + other.unrecorded,
        }
    }

    fn add(&mut self, quality: Quality, time: Duration) {
        *match quality {
            Quality::Good => &mut self.good,
            Quality::OutsideClass => &mut self.outside_class,
            Quality::BelowThreshold => &mut self.below_threshold,
            Quality::Down => &mut self.down,
            Quality::NoPath => &mut self.no_path,
            Quality::Unrecorded => &mut self.unrecorded,
        } += time;
    }
}

/// Adds up.
#[derive(Debug)]
pub(super) struct Meter {
    since: Instant,
    quality: Quality,
    tally: Tally,
}

impl Meter {
    pub fn new(begin: Instant) -> Self {
        Self { since: begin, quality: Quality::Unrecorded, tally: Tally::default() }
    }

    /// From now on it is this.
    pub fn set(&mut self, at: Instant, quality: Quality) {
        self.tally.add(self.quality, at.since(self.since));
        self.since = self.since.max(at);
        self.quality = quality;
    }

    pub fn finish(mut self, end: Instant) -> Tally {
        self.set(end, self.quality);
        self.tally
    }
}

/// What a rule asks of its paths: the same for all columns.
#[derive(Debug)]
pub(super) struct Ruler<'a> {
    then: &'a Site,
    site: &'a Site,
    rule: &'a Rule,
}

impl<'a> Ruler<'a> {
    /// By the rule of a site; none if it has no such rule.
    pub fn new(then: &'a Site, site: &'a Site, rule: &Name) -> Option<Self> {
        Some(Self { then, site, rule: site.rules.get(rule)? })
    }

    /// What the path that is used is worth.
    pub fn judge(&self, used: &Used, conditions: &BTreeMap<&Name, Condition>) -> Quality {
        let used = match used {
            Used::Unknown => return Quality::Unrecorded,
            Used::Nothing => return Quality::NoPath,
            Used::Path(path) => path,
        };
        let path = self.site.paths.get(used).or_else(|| self.then.paths.get(used));
        let (Some(path), Some(condition)) = (path, conditions.get(used)) else { return Quality::Unrecorded };
        if path.probe.targets.is_empty() {
            return Quality::Good;
        }
        self.weigh(path, condition)
    }

    fn weigh(&self, path: &Path, condition: &Condition) -> Quality {
        let then = self.then.paths.get(&path.name);
        let (own, score) = condition.under(path, then.map(AsRef::as_ref), &path.health);
        if own == PathState::Unknown {
            return Quality::Unrecorded;
        }
        if condition.is_dead() || own == PathState::Down {
            return Quality::Down;
        }
        let classed = self.rule.sla.as_ref();
        let score = classed.map_or(score, |limits| health::score(condition.stats(), limits));
        match score {
            _ if score < self.rule.failover_threshold => Quality::BelowThreshold,
            0..100 if classed.is_some() => Quality::OutsideClass,
            _ => Quality::Good,
        }
    }
}
