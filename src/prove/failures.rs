//! What is left when something fails: every path and every uplink, or every pair of them, of every site.
//!
//! An uplink takes all paths over it along: a tunnel and the path to the internet over one line fall together. Each
//! failure is played: all is well for a minute, then the paths go silent, as a provider's network does when it fails
//! behind a link that stays up. What counts is the path that each policy uses once everything had time to be
//! noticed, and whether that one works.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use super::{Weather, World};
use crate::{
    health::Link,
    units::Name,
    validate::intent::{Action, Intent, Path, Site},
};

/// All is well for so long before anything fails.
const CALM: Duration = Duration::from_secs(60);

/// One failure at one site, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The site.
    pub site: Name,
    /// The uplinks that fail with the paths over them, where it is not single paths.
    pub uplinks: BTreeMap<Name, Vec<Name>>,
    /// The paths that fail together, those of the uplinks among them.
    pub paths: Vec<Name>,
    /// Policies that used one of them before.
    pub hit: Vec<Hit>,
}

/// A policy that used a path that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hit {
    /// The policy.
    pub policy: Name,
    /// The path it used before.
    pub before: Name,
    /// The path that works and that it uses afterwards; none if there is none.
    pub after: Option<Name>,
    /// From the failure to the switch, in milliseconds.
    pub millis: Option<u64>,
}

impl Failure {
    /// Policies that had a path and have none.
    pub fn stranded(&self) -> impl Iterator<Item = &Hit> {
        self.hit.iter().filter(|hit| hit.after.is_none())
    }

    /// The paths that fail by themselves.
    pub fn alone(&self) -> impl Iterator<Item = &Name> {
        self.paths.iter().filter(|path| !self.uplinks.values().any(|over| over.contains(path)))
    }
}

/// Plays every failure of `together` paths or uplinks at once, at every site, that hits a policy.
#[must_use]
pub fn all(intent: &Intent, together: usize) -> Vec<Failure> {
    intent.sites().values().flat_map(|site| of_site(site, together)).collect()
}

/// The same for one site.
#[must_use]
pub fn of_site(site: &Site, together: usize) -> Vec<Failure> {
    let used: BTreeSet<&Name> = site.policies.iter().flat_map(|p| paths_of(site, &p.action)).collect();
    let units = units(site, &used);
    let failures = subsets(&units.iter().collect::<Vec<_>>(), together).into_iter();
    failures.filter(|failed| apart(failed)).map(|failed| play(site, &failed)).filter(|f| !f.hit.is_empty()).collect()
}

/// What fails as a whole: a path, or an uplink with its paths.
struct Unit<'a> {
    uplink: Option<&'a Name>,
    paths: Vec<&'a Name>,
}

/// Every path, then every uplink that carries more than one.
fn units<'a>(site: &'a Site, used: &BTreeSet<&'a Name>) -> Vec<Unit<'a>> {
    let mut uplinks: BTreeMap<&Name, Vec<&Name>> = BTreeMap::new();
    for path in used.iter().filter_map(|name| site.paths.get(*name)) {
        uplinks.entry(&path.from).or_default().push(&path.name);
    }
    let single = used.iter().map(|path| Unit { uplink: None, paths: vec![*path] });
    let shared = uplinks.into_iter().filter(|(_, paths)| paths.len() > 1);
    single.chain(shared.map(|(uplink, paths)| Unit { uplink: Some(uplink), paths })).collect()
}

/// Whether none of them is a part of another, which would be a smaller failure.
fn apart(failed: &[&Unit<'_>]) -> bool {
    let mut seen = BTreeSet::new();
    failed.iter().flat_map(|unit| &unit.paths).all(|path| seen.insert(*path))
}

fn paths_of<'a>(site: &'a Site, action: &'a Action) -> Vec<&'a Name> {
    match action {
        Action::Failover(rule) => site.rules.get(rule).map(|r| r.members.iter().collect()).unwrap_or_default(),
        Action::Path(path) => vec![path],
        Action::Drop | Action::Reject => Vec::new(),
    }
}

/// All subsets of this size, in order; the whole set where it is smaller.
fn subsets<'a, T>(all: &[&'a T], size: usize) -> Vec<Vec<&'a T>> {
    if size == 0 {
        return vec![Vec::new()];
    }
    let longer = |(n, first): (usize, &&'a T)| {
        let first = *first;
        subsets(&all[n + 1..], size - 1).into_iter().map(move |rest| [vec![first], rest].concat()).collect::<Vec<_>>()
    };
    all.iter().enumerate().flat_map(longer).collect()
}

/// Good weather in which some paths go silent; unprobed ones lose their carrier, since nothing else is seen of them.
struct Outage<'a> {
    paths: &'a [&'a Name],
    unprobed: BTreeSet<&'a Name>,
}

impl Weather for Outage<'_> {
    fn answer(&mut self, path: &Name, _: IpAddr, at: Duration) -> Option<Duration> {
        let silent = at >= CALM && self.paths.contains(&path);
        (!silent).then_some(Duration::from_millis(5))
    }

    fn links(&self, path: &Name) -> Vec<(Duration, Link)> {
        if self.paths.contains(&path) && self.unprobed.contains(path) {
            vec![(CALM, Link::NoCarrier)]
        } else {
            Vec::new()
        }
    }
}

/// After the failure, until everything that is in motion has come to rest. Nothing is held then: no path was down before.
fn patience(site: &Site) -> Duration {
    let detected = site.paths.values().map(|p| p.probe.detection_time()).max().unwrap_or_default();
    detected.saturating_mul(3).saturating_add(Duration::from_secs(5))
}

fn owned(names: &[&Name]) -> Vec<Name> {
    names.iter().map(|name| (*name).clone()).collect()
}

fn play(site: &Site, failed: &[&Unit<'_>]) -> Failure {
    let paths: Vec<&Name> = failed.iter().flat_map(|unit| unit.paths.iter().copied()).collect();
    let paths = paths.as_slice();
    let bare = |p: &&Arc<Path>| p.probe.targets.is_empty();
    let unprobed = site.paths.values().filter(bare).map(|p| &p.name).collect();
    let mut world = World::new(site, Outage { paths, unprobed });
    let end = CALM.saturating_add(patience(site));
    world.play_until(end);
    let story = world.into_story();
    let works = |path: &&Name| !paths.contains(path);
    let just_before = CALM.saturating_sub(Duration::from_millis(1));
    let hit = site.policies.iter().filter_map(|policy| {
        let fails = |path: &&Name| paths.contains(path);
        // Of several that share, the one that fails is told.
        let (before, after, rule) = match &policy.action {
            Action::Path(path) => (path, Some(path), None),
            Action::Failover(rule) => (
                story.used(rule, just_before).iter().find(fails)?,
                story.used(rule, end).iter().find(works),
                Some(rule),
            ),
            Action::Drop | Action::Reject => return None,
        };
        let switched = rule.and_then(|rule| {
            story.transitions.iter().find(|(at, t)| *at >= CALM && t.rule == *rule && t.from.as_ref() == Some(before))
        });
        let after = after.filter(works);
        let millis = switched.filter(|_| after.is_some()).map(|(at, _)| at.saturating_sub(CALM).as_millis());
        let hit = Hit {
            policy: policy.name.clone(),
            before: before.clone(),
            after: after.cloned(),
            millis: millis.and_then(|ms| u64::try_from(ms).ok()),
        };
        paths.contains(&before).then_some(hit)
    });
    Failure {
        site: site.name.clone(),
        uplinks: failed.iter().filter_map(|unit| Some((unit.uplink?.clone(), owned(&unit.paths)))).collect(),
        hit: hit.collect(),
        paths: owned(paths),
    }
}
