//! The recorded history of a site's paths under another configuration.
//!
//! What is stored of a path are figures over its window, once a second, and not the answers to single probes. So nothing
//! is probed anew: `past` makes of the figures the conditions that they tell of, and the daemon's own
//! [`crate::failover::decide`] decides anew upon these, in each rule of each configuration (`course`). The bad seconds
//! of all columns are told by one ruler, the configuration that is asked about.
//!
//! Invariant: where there is no record nothing is known: no rule moves for it, and none of its seconds counts as good.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

mod course;
mod past;
mod tally;

use self::{
    course::{Course, Recorded, Used},
    past::{Change, Condition, Past},
    tally::{Meter, Ruler},
};
pub use self::{
    past::Reading,
    tally::{Quality, Tally},
};
use crate::{
    clock::{Instant, Wall},
    failover::TransitionKind,
    units::Name,
    validate::intent::{Health, Site, Strategy},
};

/// A rule's change of path, as it was or would have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Switch {
    /// When.
    pub at: Wall,
    /// The rule.
    pub rule: Name,
    /// What was used before.
    pub from: Option<Name>,
    /// What is used then.
    pub to: Option<Name>,
    /// What kind of change.
    pub kind: TransitionKind,
    /// Why.
    pub reason: String,
}

/// One rule in one column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Column {
    /// `recorded`, or the name of the configuration.
    pub name: &'static str,
    /// What the seconds were.
    pub tally: Tally,
    /// The changes of its path.
    pub switches: Vec<Switch>,
}

/// One rule, side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// The rule.
    pub rule: Name,
    /// Where it exists.
    pub columns: Vec<Column>,
}

/// What is played.
#[derive(Debug)]
pub struct Question<'a> {
    /// The configuration whose thresholds the records were made with.
    pub then: &'a Site,
    /// The configurations that decide, with their names; the last one is the ruler.
    pub plays: Vec<(&'static str, &'a Site)>,
    /// The first moment.
    pub begin: Wall,
    /// The path that each rule used then, as far as that is known.
    pub used: BTreeMap<Name, Option<Name>>,
    /// The recorded changes, oldest first.
    pub switches: Vec<Switch>,
}

/// Where the virtual clock begins: long enough after boot that nothing reaches back before it.
const BEGIN: Instant = Instant::from_nanos(1_000_000_000_000);

/// A moment of the wall clock on the virtual one.
fn moment(at: Wall, begin: Wall) -> Instant {
    let micros = u64::try_from(at.as_micros().saturating_sub(begin.as_micros())).unwrap_or(0);
    BEGIN + Duration::from_micros(micros)
}

/// A moment of the virtual clock on the wall.
fn wall(at: Instant, begin: Wall) -> Wall {
    let micros = i64::try_from(at.since(BEGIN).as_micros()).unwrap_or(i64::MAX);
    Wall::from_micros(begin.as_micros().saturating_add(micros))
}

/// A rule in all columns.
#[derive(Debug)]
struct Lane<'a> {
    rule: &'a Name,
    ruler: Ruler<'a>,
    recorded: Recorded,
    recorded_meter: Meter,
    courses: Vec<(&'static str, Course<'a>, Meter)>,
}

/// A replay under way: readings go in slot by slot.
#[derive(Debug)]
pub struct Replay<'a> {
    begin: Wall,
    pasts: BTreeMap<&'a Name, Past<'a>>,
    conditions: BTreeMap<&'a Name, Condition>,
    lanes: Vec<Lane<'a>>,
    /// Per path, the lanes that it concerns.
    concerned: BTreeMap<&'a Name, Vec<usize>>,
    readings: u64,
}

impl<'a> Replay<'a> {
    /// Before the first reading.
    #[must_use]
    pub fn new(question: &Question<'a>) -> Self {
        let sites = || question.plays.iter().map(|(_, site)| *site).chain([question.then]);
        let mut names: Vec<&Name> = sites().flat_map(|site| site.rules.keys()).collect();
        names.sort();
        names.dedup();
        let lanes: Vec<Lane<'a>> = names.into_iter().filter_map(|rule| Lane::new(question, rule)).collect();
        let mut concerned: BTreeMap<&Name, Vec<usize>> = BTreeMap::new();
        for (number, lane) in lanes.iter().enumerate() {
            for member in sites().filter_map(|site| site.rules.get(lane.rule)).flat_map(|rule| &rule.members) {
                let lanes = concerned.entry(member).or_default();
                if lanes.last() != Some(&number) {
                    lanes.push(number);
                }
            }
        }
        let mut pasts = BTreeMap::new();
        for (name, path) in sites().flat_map(|site| &site.paths) {
            let judged = question.then.paths.get(name).unwrap_or(path);
            let exact = sites().any(|site| compares_figures(site, name));
            pasts.entry(name).or_insert_with(|| Past::new(judged, tightest(sites(), name), exact));
        }
        let conditions = pasts.keys().map(|name| (*name, Condition::unknown())).collect();
        Self { begin: question.begin, pasts, conditions, lanes, concerned, readings: 0 }
    }

    /// Takes in all readings up to a moment: of each path in the order of time, and none from before the last call.
    pub fn feed<'r>(&mut self, paths: impl IntoIterator<Item = (&'r Name, &'r [Reading])>, until: Wall) {
        let mut changes: Vec<(Wall, &'a Name, Condition)> = Vec::new();
        for (name, readings) in paths {
            let Some(past) = self.pasts.get_mut(name) else { continue };
            let name = past.name();
            self.readings += readings.len() as u64;
            for reading in readings {
                for Change { at, condition } in past.take(reading) {
                    changes.push((at, name, condition));
                }
            }
        }
        for (name, past) in &mut self.pasts {
            changes.extend(past.silence(until).map(|change| (change.at, *name, change.condition)));
        }
        changes.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        for (at, name, condition) in changes {
            self.change(name, condition, moment(at, self.begin));
        }
    }

    fn change(&mut self, path: &'a Name, condition: Condition, at: Instant) {
        let Self { lanes, concerned, conditions, begin, .. } = self;
        let concerned = concerned.get(path).map(Vec::as_slice).unwrap_or_default();
        // Numbers of lanes are those of `lanes`. Up to now the path was as before.
        for number in concerned {
            lanes[*number].advance(conditions, at, *begin);
        }
        conditions.insert(path, condition);
        for number in concerned {
            lanes[*number].change(path, conditions, at, *begin);
        }
    }

    /// What came of it up to a moment.
    #[must_use]
    pub fn finish(mut self, end: Wall) -> (Vec<Side>, u64) {
        self.feed([], end);
        let (at, begin) = (moment(end, self.begin), self.begin);
        let mut sides = Vec::new();
        for mut lane in self.lanes {
            lane.advance(&self.conditions, at, begin);
            sides.push(lane.into_side(at));
        }
        (sides, self.readings)
    }
}

/// Whether a rule compares the path's figures themselves, so that none of them may be passed over.
fn compares_figures(site: &Site, path: &Name) -> bool {
    site.rules.values().any(|rule| rule.strategy == Strategy::BestQuality && rule.members.contains(path))
}

/// The smallest of all thresholds that anybody holds against a path.
fn tightest<'a>(sites: impl Iterator<Item = &'a Site>, name: &Name) -> Option<Health> {
    let of = |site: &'a Site| {
        let rules = site.rules.values().filter(|rule| rule.members.contains(name)).filter_map(|rule| rule.sla.as_ref());
        site.paths.get(name).map(|path| &path.health).into_iter().chain(rules)
    };
    sites
        .flat_map(of)
        .flat_map(|limits| [Some(*limits), limits.recover.map(|band| within(limits, &band))])
        .flatten()
        .reduce(|a, b| Health {
            latency: a.latency.min(b.latency),
            loss: a.loss.min(b.loss),
            jitter: a.jitter.min(b.jitter),
            recover: None,
        })
}

const fn within(limits: &Health, band: &crate::validate::intent::Band) -> Health {
    Health { latency: band.latency, loss: band.loss, jitter: band.jitter, recover: limits.recover }
}

impl<'a> Lane<'a> {
    fn new(question: &Question<'a>, rule: &'a Name) -> Option<Self> {
        let mut sites = question.plays.iter().rev().map(|(_, site)| *site).chain([question.then]);
        let ruler = sites.find_map(|site| Ruler::new(question.then, site, rule))?;
        let switches: Vec<Switch> = question.switches.iter().filter(|s| s.rule == *rule).cloned().collect();
        // What the first change left was in use before it.
        let before = || switches.first().and_then(|s| s.from.clone()).map(Used::Path);
        let used = question.used.get(rule).cloned().map(Used::of).or_else(before).unwrap_or(Used::Unknown);
        let courses = question.plays.iter().filter_map(|(name, site)| {
            Some((*name, Course::new(question.then, site, rule, used.path(), BEGIN)?, Meter::new(BEGIN)))
        });
        let courses = courses.collect();
        let recorded = Recorded::new(used, switches);
        Some(Self { rule, ruler, recorded, recorded_meter: Meter::new(BEGIN), courses })
    }

    /// Lets the time pass up to a moment at which something changes.
    fn advance(&mut self, conditions: &BTreeMap<&Name, Condition>, at: Instant, begin: Wall) {
        while let Some(when) = self.recorded.next(|wall| moment(wall, begin), at) {
            self.recorded_meter.set(when, self.ruler.judge(self.recorded.used(), conditions));
        }
        for (_, course, meter) in &mut self.courses {
            while let Some(when) = course.wake(at, begin) {
                meter.set(when, self.ruler.judge(&course.used(), conditions));
            }
        }
    }

    fn change(&mut self, path: &Name, conditions: &BTreeMap<&Name, Condition>, at: Instant, begin: Wall) {
        let Some(condition) = conditions.get(path) else { return };
        self.recorded_meter.set(at, self.ruler.judge(self.recorded.used(), conditions));
        for (_, course, meter) in &mut self.courses {
            course.change(path, condition, at, begin);
            meter.set(at, self.ruler.judge(&course.used(), conditions));
        }
    }

    fn into_side(self, end: Instant) -> Side {
        let mut columns = Vec::new();
        if self.recorded.is_known() {
            let tally = self.recorded_meter.finish(end);
            columns.push(Column { name: "recorded", tally, switches: self.recorded.into_switches() });
        }
        for (name, course, meter) in self.courses {
            columns.push(Column { name, tally: meter.finish(end), switches: course.into_switches() });
        }
        Side { rule: self.rule.clone(), columns }
    }
}
