//! Whether a change has cut something off: what was so before it, against what is so since.
//!
//! A change stands when every path has done [`ROUNDS`] probe rounds since, each path that was up before answered
//! all of them, each policy that had a path has one, the management networks are reached the way they were, and so
//! are the Git remote and whatever else the settings name. What did not work before proves nothing.
//!
//! A path that lost its carrier is excused unless the change touched it: no commit pulls a cable.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    failover::Selection,
    health::{Healths, PathHealth, PathState, Sample},
    units::{Family, Name},
    validate::intent::{Action, Path, Policy, Site},
};

/// Probe rounds that a path has to do, and to answer, since the change.
pub const ROUNDS: u32 = 2;

/// What was so before a change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Baseline {
    /// Paths that were up.
    pub up: BTreeSet<Name>,
    /// Paths that the change does not touch.
    pub untouched: BTreeSet<Name>,
    /// Policies whose traffic had a path that worked.
    pub carried: BTreeSet<Name>,
    /// How each management network was reached, in words.
    pub ways: BTreeMap<IpNet, String>,
    /// What answered, such as the Git remote.
    pub reached: BTreeSet<String>,
}

impl Baseline {
    /// What is so now, before `new` takes the place of `old`.
    #[must_use]
    pub fn of(old: &Site, new: &Site, healths: &Healths, selection: &Selection) -> Self {
        let works = |path: &&Name| healths.get(*path).is_some_and(works);
        let carried = |policy: &&Policy| path_of(policy, selection).is_some_and(|path| works(&path));
        Self {
            up: old.paths.keys().filter(works).cloned().collect(),
            untouched: old
                .paths
                .values()
                .filter(|path| untouched(path, old, new))
                .map(|path| path.name.clone())
                .collect(),
            carried: old.policies.iter().filter(carried).map(|policy| policy.name.clone()).collect(),
            ..Self::default()
        }
    }
}

/// Whether a path is known to carry traffic now.
#[must_use]
pub fn works(health: &PathHealth) -> bool {
    !health.held && matches!(health.state, PathState::Up | PathState::Degraded)
}

/// Whether a path and the endpoint under it are what they were.
fn untouched(path: &Path, old: &Site, new: &Site) -> bool {
    new.paths.get(&path.name).is_some_and(|new| **new == *path)
        && old.endpoints.get(&path.from) == new.endpoints.get(&path.from)
}

/// The path that a policy's traffic takes.
fn path_of<'a>(policy: &'a Policy, selection: &'a Selection) -> Option<&'a Name> {
    match &policy.action {
        Action::Failover(rule) => selection.rules.get(rule)?.active.as_ref(),
        Action::Path(path) => Some(path),
        Action::Drop | Action::Reject => None,
    }
}

/// Probe rounds of one path since the change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rounds {
    /// Done.
    pub done: u32,
    /// Answered, the newest in a row.
    pub answered: u32,
}

impl Rounds {
    /// Takes in a round that was sent since the change. Of targets of both families one family is enough.
    pub fn add(&mut self, sample: &Sample, quorum: u32) {
        let good = Family::ALL.into_iter().any(|family| sample.is_good(family, quorum));
        self.done += 1;
        self.answered = if good { self.answered + 1 } else { 0 };
    }
}

/// What is so since the change.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The site as changed.
    pub site: &'a Site,
    /// State of each path.
    pub healths: &'a Healths,
    /// The path of each rule.
    pub selection: &'a Selection,
    /// Probe rounds since the change.
    pub rounds: &'a BTreeMap<Name, Rounds>,
    /// How each management network is reached.
    pub ways: &'a BTreeMap<IpNet, String>,
    /// What has answered since.
    pub reached: &'a BTreeSet<String>,
    /// Whether the kernel was read back since and shows what is wanted.
    pub settled: bool,
}

/// What fell silent during a trial.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// Paths that were up.
    pub paths: BTreeSet<Name>,
    /// Services that took a connection.
    pub services: BTreeSet<String>,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = self.paths.iter().map(|path| format!("path {path}"));
        f.write_str(&paths.chain(self.services.iter().cloned()).collect::<Vec<_>>().join(", "))
    }
}

/// What the evidence says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What is not known yet, one line each.
    pub waits: Vec<String>,
    /// What speaks against the change, one line each.
    pub against: Vec<String>,
    /// Whether traffic or a service has lost its way: no use in waiting for the rounds of a slow path.
    pub harm: bool,
    /// What answered before and does not now.
    pub silent: Silent,
    /// Whether a management network is reached another way, which no provider can bring about.
    pub moved: bool,
    /// Whether the router seems to be cut off: no use in waiting for the deadline.
    pub cut_off: bool,
}

impl Judgement {
    /// Whether the change stands.
    #[must_use]
    pub const fn stands(&self) -> bool {
        self.waits.is_empty() && self.against.is_empty()
    }

    /// What may be the whole reason by its silence; nothing if there is another. A policy can lose its path by the
    /// silence of paths, and by that of a service never.
    #[must_use]
    pub fn doubtful(&self) -> Silent {
        let other = self.silent.paths.is_empty() && self.against.len() > self.silent.services.len();
        if self.moved || other { Silent::default() } else { self.silent.clone() }
    }

    /// Why it does not stand, on one line.
    #[must_use]
    pub fn reason(&self) -> String {
        let all: Vec<&str> = self.against.iter().chain(&self.waits).map(String::as_str).collect();
        all.join("; ")
    }
}

/// Whether this process has measured a path, by the rounds that it has `seen`: what an earlier one remembered of it is
/// no evidence of how things are now.
#[must_use]
pub fn measured(path: &Path, health: Option<&PathHealth>, seen: Rounds) -> bool {
    let Some(health) = health else { return false };
    let remembered = !path.probe.targets.is_empty() && health.carrier && !health.disabled;
    (health.state != PathState::Unknown || health.held)
        && (!remembered || seen.answered > 0 || seen.done >= path.probe.down_after)
}

/// Weighs the evidence.
#[must_use]
pub fn judge(before: &Baseline, now: &Evidence<'_>) -> Judgement {
    let mut found = Judgement::default();
    if !now.settled {
        found.waits.push("the kernel was not read back yet".into());
    }
    probed(now.site).for_each(|path| judge_path(before, now, path, &mut found));
    for policy in now.site.policies.iter().filter(|policy| before.carried.contains(&policy.name)) {
        let works = |path| usable(now, path) || excused(before, now, path);
        if steers(policy) && !path_of(policy, now.selection).is_some_and(works) {
            found.against.push(format!("policy {} had a path before and has none that works now", policy.name));
            found.harm = true;
        }
    }
    for (net, way) in &before.ways {
        if now.ways.get(net) != Some(way) {
            let is = now.ways.get(net).map_or("not at all", String::as_str);
            found.against.push(format!("the management network {net} was reached {way}, and is now reached {is}"));
            (found.cut_off, found.moved) = (true, true);
        }
    }
    let silent: BTreeSet<String> = before.reached.difference(now.reached).cloned().collect();
    found.harm |= !silent.is_empty();
    found.against.extend(silent.iter().map(|label| format!("{label} answered before and does not now")));
    found.silent.services = silent;
    let dead = |path: &Path| rounds(now, &path.name).done >= ROUNDS && rounds(now, &path.name).answered == 0;
    let mut all = probed(now.site).peekable();
    found.cut_off |= !before.up.is_empty() && all.peek().is_some() && all.all(dead);
    found
}

fn probed(site: &Site) -> impl Iterator<Item = &Path> {
    site.paths.values().map(Arc::as_ref).filter(|path| !path.probe.targets.is_empty())
}

fn judge_path(before: &Baseline, now: &Evidence<'_>, path: &Path, found: &mut Judgement) {
    let name = &path.name;
    let rounds = rounds(now, name);
    let known = rounds.done >= ROUNDS || now.healths.get(name).is_some_and(|health| health.state == PathState::Down);
    if excused(before, now, name) {
    } else if !known {
        found.waits.push(format!("path {name} has done {} of {ROUNDS} probe rounds", rounds.done));
    } else if before.up.contains(name) && rounds.answered < ROUNDS {
        let why = now.healths.get(name).map(|health| format!(" ({})", health.reason)).unwrap_or_default();
        found.against.push(format!("path {name} was up before and does not answer now{why}"));
        found.silent.paths.insert(name.clone());
    }
}

fn rounds(now: &Evidence<'_>, path: &Name) -> Rounds {
    now.rounds.get(path).copied().unwrap_or_default()
}

/// Whether its cable was pulled, which no change has done.
fn excused(before: &Baseline, now: &Evidence<'_>, path: &Name) -> bool {
    before.untouched.contains(path) && now.healths.get(path).is_some_and(|health| !health.carrier)
}

fn usable(now: &Evidence<'_>, path: &Name) -> bool {
    now.healths.get(path).is_some_and(|health| health.state != PathState::Down)
}

const fn steers(policy: &Policy) -> bool {
    matches!(policy.action, Action::Failover(_) | Action::Path(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Instant,
        failover::Choice,
        health::tests::{name, path, site},
        units::Ratio,
        validate::intent::Match,
    };

    const T0: Instant = Instant::from_nanos(0);

    fn health(state: PathState, carrier: bool) -> PathHealth {
        let (loss, reason) = (Ratio::ZERO, "3 rounds lost in a row".to_owned());
        PathHealth {
            state,
            score: 0,
            loss,
            latency: None,
            jitter: None,
            rounds: 9,
            carrier,
            disabled: false,
            held: false,
            good: None,
            used: None,
            since: T0,
            reason,
            families: BTreeMap::new(),
        }
    }

    /// Two paths, one rule, one policy; everything was well before and is well now.
    struct World {
        old: Site,
        new: Site,
        healths: Healths,
        selection: Selection,
        rounds: BTreeMap<Name, Rounds>,
        before: Baseline,
        ways: BTreeMap<IpNet, String>,
        reached: BTreeSet<String>,
        settled: bool,
    }

    impl World {
        fn new() -> Self {
            let mut old = site(vec![path("fiber", 1, 100), path("lte", 1, 100)]);
            old.policies = vec![Policy {
                name: name("default"),
                priority: 9,
                matches: Match::default(),
                action: Action::Failover(name("critical")),
                set_dscp: None,
            }];
            let healths: Healths =
                ["fiber", "lte"].map(|p| (name(p), health(PathState::Up, true))).into_iter().collect();
            let choice =
                Choice { active: Some(name("fiber")), tail: vec![name("lte")], since: T0, ..Choice::default() };
            let selection = Selection { rules: [(name("critical"), choice)].into_iter().collect() };
            let mut before = Baseline::of(&old, &old, &healths, &selection);
            let ways: BTreeMap<IpNet, String> =
                [("10.0.0.0/24".parse().unwrap(), "by mgmt0".to_owned())].into_iter().collect();
            before.ways.clone_from(&ways);
            before.reached.insert("the Git remote".into());
            let reached = before.reached.clone();
            let good = Rounds { done: 2, answered: 2 };
            let rounds = [(name("fiber"), good), (name("lte"), good)].into_iter().collect();
            Self { new: old.clone(), old, healths, selection, rounds, before, ways, reached, settled: true }
        }

        fn fails(&mut self, path: &str, carrier: bool) {
            self.healths.insert(name(path), health(PathState::Down, carrier));
            self.rounds.insert(name(path), Rounds { done: 2, answered: 0 });
        }

        fn judge(&self) -> Judgement {
            judge(
                &self.before,
                &Evidence {
                    site: &self.new,
                    healths: &self.healths,
                    selection: &self.selection,
                    rounds: &self.rounds,
                    ways: &self.ways,
                    reached: &self.reached,
                    settled: self.settled,
                },
            )
        }
    }

    #[test]
    fn what_an_earlier_process_remembered_of_a_path_is_not_measured() {
        let fiber = path("fiber", 1, 100);
        let rounds = |done, answered| Rounds { done, answered };
        let (up, down) = (health(PathState::Up, true), health(PathState::Down, true));
        assert!(!measured(&fiber, None, rounds(9, 9)) && !measured(&fiber, Some(&up), rounds(0, 0)));
        assert!(!measured(&fiber, Some(&up), rounds(1, 0)), "one lost round is not the end of a path");
        assert!(measured(&fiber, Some(&up), rounds(1, 1)) && measured(&fiber, Some(&down), rounds(9, 0)));
        assert!(!measured(&fiber, Some(&health(PathState::Unknown, true)), rounds(9, 9)));
        assert!(measured(&fiber, Some(&health(PathState::Down, false)), rounds(0, 0)), "no cable, no rounds");
        assert!(measured(&path("fiber", 0, 100), Some(&up), rounds(0, 0)), "it is not probed");
    }

    #[test]
    fn a_change_stands_when_all_that_worked_before_works() {
        let world = World::new();
        assert_eq!(world.judge(), Judgement::default());
        assert_eq!(world.before.untouched.len(), 2);
    }

    #[test]
    fn it_waits_for_the_read_back_and_for_two_rounds_of_every_path() {
        let mut world = World::new();
        world.settled = false;
        world.rounds.insert(name("lte"), Rounds { done: 1, answered: 1 });
        let found = world.judge();
        assert_eq!(found.waits, ["the kernel was not read back yet", "path lte has done 1 of 2 probe rounds"]);
        assert!(found.against.is_empty() && !found.stands() && !found.cut_off);
    }

    #[test]
    fn a_path_that_was_up_and_does_not_answer_speaks_against_it_and_one_that_was_down_does_not() {
        let mut world = World::new();
        world.fails("lte", true);
        let found = world.judge();
        assert_eq!(found.against, ["path lte was up before and does not answer now (3 rounds lost in a row)"]);
        assert!(!found.cut_off && !found.harm, "the other path answers");
        assert_eq!(found.doubtful().paths, [name("lte")].into_iter().collect());
        world.ways.clear();
        assert_eq!(world.judge().doubtful(), Silent::default(), "no provider moves the way to a management network");
        world.ways.clone_from(&world.before.ways);
        world.before.up.remove(&name("lte"));
        assert!(world.judge().stands());
    }

    #[test]
    fn a_cable_that_somebody_pulled_is_no_evidence_unless_the_change_touched_that_path() {
        let mut world = World::new();
        world.fails("lte", false);
        assert!(world.judge().stands());
        world.old.policies[0].action = Action::Path(name("lte"));
        world.new.policies = world.old.policies.clone();
        assert!(world.judge().stands(), "nor is it against a policy that has no other path");
        Arc::make_mut(world.new.paths.get_mut(&name("lte")).unwrap()).mtu = Some(1400);
        world.before.untouched = Baseline::of(&world.old, &world.new, &world.healths, &world.selection).untouched;
        assert!(!world.judge().stands());
    }

    #[test]
    fn without_any_path_the_router_is_cut_off_and_its_policies_are_named() {
        let mut world = World::new();
        world.fails("fiber", true);
        world.fails("lte", true);
        let found = world.judge();
        assert!(found.cut_off && found.against.iter().any(|a| a.contains("policy default")), "{found:?}");
        world.before = Baseline::default();
        assert!(world.judge().stands(), "a router that nothing worked on before loses nothing");
    }

    #[test]
    fn a_way_that_changed_and_a_remote_that_fell_silent_speak_against_it() {
        let mut world = World::new();
        world.ways.clear();
        world.reached.clear();
        let found = world.judge();
        assert!(found.cut_off && found.harm);
        assert_eq!(
            found.reason(),
            "the management network 10.0.0.0/24 was reached by mgmt0, and is now reached not at all; \
             the Git remote answered before and does not now"
        );
    }

    #[test]
    fn the_silence_of_a_service_is_in_doubt_unless_something_else_than_paths_speaks_against_the_change() {
        let mut world = World::new();
        world.reached.clear();
        let remote = BTreeSet::from(["the Git remote".to_owned()]);
        assert_eq!(world.judge().doubtful(), Silent { paths: BTreeSet::new(), services: remote.clone() });
        world.fails("lte", true);
        let both = Silent { paths: [name("lte")].into_iter().collect(), services: remote };
        assert_eq!(world.judge().doubtful(), both);
        world = World::new();
        world.reached.clear();
        world.selection = Selection::default();
        assert_eq!(world.judge().doubtful(), Silent::default(), "a policy has no path, and every path answers");
        world = World::new();
        world.reached.clear();
        world.ways.clear();
        assert_eq!(world.judge().doubtful(), Silent::default(), "the management network is reached another way");
    }

    #[test]
    fn a_round_that_is_lost_begins_the_count_again() {
        let sample = |answered: bool| Sample {
            path: name("fiber"),
            round: 1,
            sent: T0,
            done: T0,
            answers: vec![("192.0.2.1".parse().unwrap(), answered.then(std::time::Duration::default))],
            notes: crate::health::Notes::default(),
        };
        let mut rounds = Rounds::default();
        for good in [true, false, true, true] {
            rounds.add(&sample(good), 1);
        }
        assert_eq!(rounds, Rounds { done: 4, answered: 2 });
        rounds.add(&sample(true), 2);
        assert_eq!(rounds.answered, 0, "one answer is no quorum of two");
    }
}
