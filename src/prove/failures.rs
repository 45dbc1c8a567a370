//! What is left when paths fail: every one, or every pair, of every site.
//!
//! Each failure is played: all is well for a minute, then the paths go silent, as a provider's network does when it
//! fails behind a link that stays up. What counts is the path that each policy uses once everything had time to be
//! noticed, and whether that one works.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

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
    /// The paths that fail together.
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
}

/// Plays every failure of `together` paths at once, at every site, that hits a policy.
#[must_use]
pub fn all(intent: &Intent, together: usize) -> Vec<Failure> {
    intent.sites().values().flat_map(|site| of_site(site, together)).collect()
}

/// The same for one site.
#[must_use]
pub fn of_site(site: &Site, together: usize) -> Vec<Failure> {
    let used: BTreeSet<&Name> = site.policies.iter().flat_map(|p| paths_of(site, &p.action)).collect();
    let used: Vec<&Name> = used.into_iter().collect();
    subsets(&used, together).into_iter().map(|paths| play(site, &paths)).filter(|f| !f.hit.is_empty()).collect()
}

fn paths_of<'a>(site: &'a Site, action: &'a Action) -> Vec<&'a Name> {
    match action {
        Action::Failover(rule) => site.rules.get(rule).map(|r| r.members.iter().collect()).unwrap_or_default(),
        Action::Path(path) => vec![path],
        Action::Drop | Action::Reject => Vec::new(),
    }
}

/// All subsets of this size, in order; the whole set where it is smaller.
fn subsets<'a>(all: &[&'a Name], size: usize) -> Vec<Vec<&'a Name>> {
    if size == 0 {
        return vec![Vec::new()];
    }
    let longer = |(n, first): (usize, &&'a Name)| {
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

/// After the failure, until everything that is in motion has come to rest: detection, and whatever holds a path back.
fn patience(site: &Site) -> Duration {
    let detected = site.paths.values().map(|p| p.probe.detection_time()).max().unwrap_or_default();
    let held = site.rules.values().map(|r| r.hold_down).max().unwrap_or_default();
    detected * 3 + held + Duration::from_secs(5)
}

fn play(site: &Site, paths: &[&Name]) -> Failure {
    let bare = |p: &&Path| p.probe.targets.is_empty();
    let unprobed = site.paths.values().filter(bare).map(|p| &p.name).collect();
    let mut world = World::new(site, Outage { paths, unprobed });
    let end = CALM + patience(site);
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
    Failure { site: site.name.clone(), hit: hit.collect(), paths: paths.iter().map(|p| (*p).clone()).collect() }
}
