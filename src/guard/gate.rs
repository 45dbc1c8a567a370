//! Whether a change has cut something off: what was so before it, against what is so since.
//!
//! A change stands when every path has done [`ROUNDS`] probe rounds since, each path that was up before has answered
//! so many in a row once and is not down, each policy that had a path has one, the management networks are reached the way they were, and so
//! are the Git remote and whatever else the settings name. What did not work before proves nothing.
//!
//! A family of a path is a witness like the path: one that was up before has to answer too, whatever the other does. Not
//! if the change itself asks it no more, nor if nobody asked it before. Where the whole path is silent, its families have
//! nothing to add.
//!
//! A path that lost its carrier is excused unless the change touched it: no commit pulls a cable. Nor does one pin a rule or
//! drain a path: what such an order, given since, takes from a policy is not the doing of the change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    failover::{Overrides, Selection, family_path},
    health::{Healths, PathHealth, PathState, Sample},
    units::{Family, Name, PathPart, told},
    validate::intent::{Action, Path, Policy, Site},
};

/// Probe rounds that a path has to do, and to answer in a row, since the change. Not the newest: of a thousand lines that
/// lose one round in a hundred there is never a moment at which none has lost one just now.
pub const ROUNDS: u32 = 2;

/// What was so before a change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Baseline {
    /// Paths, and families of them, that were up.
    pub up: BTreeSet<PathPart>,
    /// Paths that the change does not touch.
    pub untouched: BTreeSet<Name>,
    /// Policies whose traffic had a path that worked.
    pub carried: BTreeSet<Name>,
    /// The families of their traffic of which that is known.
    pub carried_families: BTreeSet<(Name, Family)>,
    /// How each management network was reached, in words.
    pub ways: BTreeMap<IpNet, String>,
    /// What answered, such as the Git remote.
    pub reached: BTreeSet<String>,
    /// What people had asked for by hand.
    pub orders: Overrides,
}

impl Baseline {
    /// What is so now, before `new` takes the place of `old`.
    #[must_use]
    pub fn of(old: &Site, new: &Site, healths: &Healths, selection: &Selection) -> Self {
        let works = |path: &&Name| healths.get(*path).is_some_and(works);
        let carried = |policy: &&Policy| path_of(policy, selection).is_some_and(|path| works(&path));
        let known = |(policy, family): &(&Policy, Family)| {
            let path = family_path_of(old, policy, selection, *family);
            let asks =
                |path: &Name| old.paths.get(path).is_some_and(|path| path.probe.families().any(|f| f == *family));
            path.is_some_and(|path| asks(path) && part_works(healths, &PathPart::family(path, *family)))
        };
        let of = |policy| Family::ALL.map(|family| (policy, family));
        let families = old.policies.iter().flat_map(of).filter(known);
        Self {
            up: old
                .paths
                .values()
                .flat_map(|path| parts(path, new.paths.get(&path.name)))
                .filter(|part| part_works(healths, part))
                .collect(),
            untouched: old
                .paths
                .values()
                .filter(|path| untouched(path, old, new))
                .map(|path| path.name.clone())
                .collect(),
            carried: old.policies.iter().filter(carried).map(|policy| policy.name.clone()).collect(),
            carried_families: families.map(|(policy, family)| (policy.name.clone(), family)).collect(),
            ..Self::default()
        }
    }

    /// The same where what is in force was to be undone and could not be: it is no measure of what was well. `undone` is
    /// what was so before it, when `before` was in force.
    #[must_use]
    pub fn in_place_of(self, undone: &Self, before: Option<&Site>, new: &Site) -> Self {
        let mut merged = self;
        let untouched =
            |path: &Name| before.is_some_and(|old| old.paths.get(path).is_some_and(|path| untouched(path, old, new)));
        merged.untouched.retain(untouched);
        let undone = undone.clone();
        merged.up.extend(undone.up);
        merged.carried.extend(undone.carried);
        merged.carried_families.extend(undone.carried_families);
        merged.ways.extend(undone.ways);
        merged.reached.extend(undone.reached);
        merged.orders = undone.orders;
        merged
    }
}

/// Whether a path is known to carry traffic now.
#[must_use]
pub fn works(health: &PathHealth) -> bool {
    !health.held && matches!(health.state, PathState::Up | PathState::Degraded)
}

/// The same of a part of a path.
#[must_use]
pub fn part_works(healths: &Healths, part: &PathPart) -> bool {
    healths.get(&part.path).is_some_and(|health| works(health.of(part.family)))
}

/// A path and the families that are asked over it, if it or what `becomes` of it is asked in both: where there is only
/// one, the path says it all.
fn parts<'p>(path: &'p Path, becomes: Option<&Arc<Path>>) -> impl Iterator<Item = PathPart> + 'p {
    let both = |path: &Path| path.probe.families().count() > 1;
    let apart = both(path) || becomes.is_some_and(|path| both(path));
    let families = path.probe.families().filter(move |_| apart).map(|family| PathPart::family(&path.name, family));
    std::iter::once(PathPart::whole(&path.name)).chain(families)
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

/// The paths that a policy's traffic can take.
fn ways_of<'a>(site: &'a Site, policy: &'a Policy) -> &'a [Name] {
    match &policy.action {
        Action::Failover(rule) => site.rules.get(rule).map(|rule| &rule.members[..]).unwrap_or_default(),
        Action::Path(path) => std::slice::from_ref(path),
        Action::Drop | Action::Reject => &[],
    }
}

/// The path that one family of a policy's traffic takes; none if it has no such traffic.
fn family_path_of<'a>(
    site: &'a Site,
    policy: &'a Policy,
    selection: &'a Selection,
    family: Family,
) -> Option<&'a Name> {
    let has = |nets: &[IpNet]| nets.is_empty() || nets.iter().any(|net| Family::of_net(net) == family);
    if !has(&policy.matches.source) || !has(&policy.matches.destination) {
        return None;
    }
    match &policy.action {
        Action::Failover(rule) => family_path(site.rules.get(rule)?, selection.rules.get(rule)?, family),
        _ => path_of(policy, selection),
    }
}

/// Probe rounds of one path since the change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rounds {
    /// Of the path: of targets of both families one family is enough for it.
    whole: Count,
    four: Count,
    six: Count,
}

/// Rounds, and what they came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Done.
    pub done: u32,
    /// Answered, the newest in a row.
    pub answered: u32,
    /// Whether [`ROUNDS`] in a row were, at any time since.
    pub proved: bool,
}

impl Rounds {
    /// Takes in a round that was sent since the change.
    pub fn add(&mut self, sample: &Sample, quorum: u32) {
        let good = Family::ALL.map(|family| sample.is_good(family, quorum));
        self.whole.add(good.contains(&true));
        for ((family, good), count) in Family::ALL.into_iter().zip(good).zip([&mut self.four, &mut self.six]) {
            if sample.of(Some(family)).next().is_some() {
                count.add(good);
            }
        }
    }

    /// Those of the path, or those in which a family was asked.
    #[must_use]
    pub const fn of(&self, family: Option<Family>) -> Count {
        match family {
            None => self.whole,
            Some(Family::V4) => self.four,
            Some(Family::V6) => self.six,
        }
    }
}

impl Count {
    const fn add(&mut self, good: bool) {
        self.done += 1;
        self.answered = if good { self.answered + 1 } else { 0 };
        self.proved |= self.answered >= ROUNDS;
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
    /// What people ask for by hand.
    pub orders: &'a Overrides,
}

/// What fell silent during a trial.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// Paths that were up, and families of paths whose other family answers.
    pub paths: BTreeSet<PathPart>,
    /// Services that took a connection.
    pub services: BTreeSet<String>,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&told(&self.paths).chain(self.services.iter().cloned()).collect::<Vec<_>>().join(", "))
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

/// Whether this process has measured a path, and each of its families, by the rounds that it has `seen`: what an earlier
/// one remembered of it is no evidence of how things are now.
#[must_use]
pub fn measured(path: &Path, health: Option<&PathHealth>, seen: Rounds) -> bool {
    let Some(health) = health else { return false };
    let remembered = !path.probe.targets.is_empty() && health.carrier && !health.disabled;
    let is = |health: &PathHealth, seen: Count| {
        (health.state != PathState::Unknown || health.held)
            && (!remembered || seen.answered > 0 || seen.done >= path.probe.down_after)
    };
    is(health, seen.of(None)) && health.families.iter().all(|(family, health)| is(health, seen.of(Some(*family))))
}

/// Weighs the evidence.
#[must_use]
pub fn judge(before: &Baseline, now: &Evidence<'_>) -> Judgement {
    let mut found = Judgement::default();
    if !now.settled {
        found.waits.push("the kernel was not read back yet".into());
    }
    probed(now.site).for_each(|path| judge_path(before, now, path, &mut found));
    for policy in now.site.policies.iter().filter(|policy| steers(policy)) {
        judge_policy(before, now, policy, &mut found);
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
    let rounds = |path: &Path| rounds(now, &PathPart::whole(&path.name));
    let dead = |path: &Path| rounds(path).done >= ROUNDS && rounds(path).answered == 0;
    let mut all = probed(now.site).peekable();
    found.cut_off |= !before.up.is_empty() && all.peek().is_some() && all.all(dead);
    found
}

fn probed(site: &Site) -> impl Iterator<Item = &Path> {
    site.paths.values().map(Arc::as_ref).filter(|path| !path.probe.targets.is_empty())
}

/// A path that is silent, or not heard of yet, speaks for its families too.
fn judge_path(before: &Baseline, now: &Evidence<'_>, path: &Path, found: &mut Judgement) {
    if !excused(before, now, &path.name) && judge_part(before, now, PathPart::whole(&path.name), found) {
        for family in path.probe.families() {
            judge_part(before, now, PathPart::family(&path.name, family), found);
        }
    }
}

/// Whether nothing is to be said of a part of a path.
fn judge_part(before: &Baseline, now: &Evidence<'_>, part: PathPart, found: &mut Judgement) -> bool {
    let rounds = rounds(now, &part);
    let health = now.healths.get(&part.path).map(|health| health.of(part.family));
    if rounds.done < ROUNDS && health.is_none_or(|health| health.state != PathState::Down) {
        found.waits.push(format!("{part} has done {} of {ROUNDS} probe rounds", rounds.done));
        return false;
    }
    let is_down = health.is_some_and(|health| health.state == PathState::Down);
    if !before.up.contains(&part) || rounds.proved && !is_down {
        return true;
    }
    let why = health.map(|health| format!(" ({})", health.reason)).unwrap_or_default();
    found.against.push(format!("{part} was up before and does not answer now{why}"));
    found.silent.paths.insert(part);
    false
}

fn judge_policy(before: &Baseline, now: &Evidence<'_>, policy: &Policy, found: &mut Judgement) {
    let works = |path: &Name, family| usable(now, path, family) || excused(before, now, path);
    let name = &policy.name;
    if !path_of(policy, now.selection).is_some_and(|path| works(path, None)) {
        if before.carried.contains(name) && !by_hand(before, now, policy, None) {
            found.against.push(format!("policy {name} had a path before and has none that works now"));
            found.harm = true;
        }
        return;
    }
    // The cable of the path that carried it, perhaps: the one that the rule uses in its place may carry less.
    let pulled = |path: &Name| before.up.contains(&PathPart::whole(path)) && excused(before, now, path);
    for family in Family::ALL {
        // Traffic that the policy does not mean any more has lost nothing.
        let Some(path) = family_path_of(now.site, policy, now.selection, family) else { continue };
        let lost = before.carried_families.contains(&(name.clone(), family)) && !works(path, Some(family));
        let innocent = ways_of(now.site, policy).iter().any(pulled) || by_hand(before, now, policy, Some(family));
        if lost && !innocent {
            found.against.push(format!("policy {name} had a path for {family} before and has none that works now"));
            found.harm = true;
        }
    }
}

/// Whether a policy's traffic would have a path that works, but for an order that a person gave since the change. A pin
/// keeps a family on a path, and never all traffic on one that is down.
fn by_hand(before: &Baseline, now: &Evidence<'_>, policy: &Policy, family: Option<Family>) -> bool {
    let Action::Failover(rule) = &policy.action else { return false };
    let pinned = |orders: &Overrides| orders.pins.get(rule).map(|pin| pin.to.clone());
    let pin = family.and(pinned(now.orders)).is_some_and(|to| pinned(&before.orders) != Some(to));
    let drained = |path: &Name| {
        let drain = now.orders.drains.get(path);
        drain.is_some() && before.orders.drains.get(path) != drain
    };
    let works = |path: &Name| {
        let health = now.healths.get(path).map(|health| health.of(family));
        health.is_some_and(|health| matches!(health.state, PathState::Up | PathState::Degraded))
    };
    ways_of(now.site, policy).iter().any(|path| works(path) && (pin || drained(path)))
}

fn rounds(now: &Evidence<'_>, part: &PathPart) -> Count {
    now.rounds.get(&part.path).map(|rounds| rounds.of(part.family)).unwrap_or_default()
}

/// Whether its cable was pulled, which no change has done.
fn excused(before: &Baseline, now: &Evidence<'_>, path: &Name) -> bool {
    before.untouched.contains(path) && now.healths.get(path).is_some_and(|health| !health.carrier)
}

fn usable(now: &Evidence<'_>, path: &Name, family: Option<Family>) -> bool {
    now.healths.get(path).is_some_and(|health| health.of(family).state != PathState::Down)
}

const fn steers(policy: &Policy) -> bool {
    matches!(policy.action, Action::Failover(_) | Action::Path(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Instant,
        failover::{Choice, Drain, Pin},
        health::tests::{name, path, site},
        units::Ratio,
        validate::intent::Match,
    };

    const T0: Instant = Instant::from_nanos(0);

    fn part(text: &str) -> PathPart {
        text.parse().unwrap()
    }

    /// Rounds of a path that is asked in both families: how many were done, and answered of each.
    fn rounds_of(done: u32, four: u32, six: u32) -> Rounds {
        let count = |answered| Count { done, answered, proved: answered >= ROUNDS };
        Rounds { whole: count(four.max(six)), four: count(four), six: count(six) }
    }

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
        orders: Overrides,
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
            let good = rounds_of(2, 2, 2);
            let rounds = [(name("fiber"), good), (name("lte"), good)].into_iter().collect();
            let orders = Overrides::default();
            Self { new: old.clone(), old, healths, selection, rounds, before, ways, reached, settled: true, orders }
        }

        fn fails(&mut self, path: &str, carrier: bool) {
            self.healths.insert(name(path), health(PathState::Down, carrier));
            self.rounds.insert(name(path), rounds_of(2, 0, 0));
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
                    orders: &self.orders,
                },
            )
        }
    }

    #[test]
    fn what_an_earlier_process_remembered_of_a_path_is_not_measured() {
        let fiber = path("fiber", 1, 100);
        let rounds = |done, answered| rounds_of(done, answered, answered);
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
    fn what_takes_the_place_of_a_change_that_could_not_be_undone_is_measured_by_what_was_before_that_one() {
        let mut world = World::new();
        let (was, good) = (world.before.clone(), world.old.clone());
        world.new.paths.insert(name("fiber"), path("fiber", 2, 100).into());
        world.fails("fiber", true);
        world.selection.rules.clear();
        (world.ways, world.reached) = (BTreeMap::new(), BTreeSet::new());
        let now = Baseline::of(&world.new, &world.new, &world.healths, &world.selection);
        let both = [name("fiber"), name("lte")];
        assert_eq!(now.untouched, both.clone().into());
        world.before = now.clone();
        assert_eq!(world.judge(), Judgement::default(), "the bad one is no measure: under it nothing is missed");
        world.before = now.clone().in_place_of(&was, Some(&good), &world.new);
        let against = world.judge().against;
        for lost in ["fiber was up", "policy default had a path", "10.0.0.0/24 was reached by mgmt0", "Git remote"] {
            assert!(against.iter().any(|line| line.contains(lost)), "{lost}: {against:#?}");
        }
        assert_eq!(world.before.untouched, [name("lte")].into());
        assert_eq!(now.clone().in_place_of(&was, Some(&good), &good).untouched, both.into());
        assert!(now.in_place_of(&was, None, &good).untouched.is_empty());
    }

    /// A site of so many paths, each of which loses so many of a thousand rounds, from the change to its deadline: when the
    /// change stood, if it did. `dies` is the path that dies after so many rounds.
    fn stood(paths: usize, lost: u64, dies: Option<(&str, u32)>) -> Option<u32> {
        let mut world = World::new();
        world.old.policies.clear();
        world.old.paths =
            (0..paths).map(|n| path(&format!("p{n}"), 1, 1000)).map(|p| (p.name.clone(), p.into())).collect();
        world.new = world.old.clone();
        world.healths = world.old.paths.keys().map(|name| (name.clone(), health(PathState::Up, true))).collect();
        let known = Baseline::of(&world.old, &world.new, &world.healths, &world.selection);
        world.before = Baseline { ways: world.before.ways, reached: world.before.reached, ..known };
        world.rounds.clear();
        let (mut dice, mut row) = (7_u64, BTreeMap::new());
        (1..=120).find(|round| {
            for name in world.old.paths.keys() {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let dead = dies.is_some_and(|(path, after)| name.as_str() == path && *round > after);
                let answer = (!dead && (dice >> 33) % 1000 >= lost).then_some(std::time::Duration::ZERO);
                let lost = row.entry(name.clone()).or_insert(0);
                *lost = if answer.is_some() { 0 } else { *lost + 1 };
                let state = if *lost >= 3 { PathState::Down } else { PathState::Up };
                world.healths.insert(name.clone(), health(state, true));
                let notes = crate::health::Notes::default();
                let answers = vec![("192.0.2.0".parse().unwrap(), answer)];
                let sample = Sample { path: name.clone(), round: 1, sent: T0, done: T0, answers, notes };
                world.rounds.entry(name.clone()).or_default().add(&sample, 1);
            }
            world.judge().stands()
        })
    }

    #[test]
    fn a_thousand_lines_that_lose_a_round_now_and_then_hold_up_no_change_and_one_that_dies_does() {
        assert!(stood(1000, 0, None) == Some(2) && stood(1000, 10, None).is_some_and(|round| round <= 10));
        assert!(stood(20, 200, None).is_some_and(|round| round <= 20), "and twenty bad ones");
        assert_eq!(stood(1000, 0, Some(("p7", 0))), None, "it never answered");
        assert_eq!(stood(1000, 0, Some(("p7", 1))), None, "it died after a round");
        let mut world = World::new();
        world.fails("lte", true);
        world.rounds.insert(name("lte"), {
            let mut rounds = rounds_of(9, 2, 2);
            rounds.whole.answered = 0;
            rounds
        });
        assert!(!world.judge().stands(), "it answered once and is down now");
    }

    #[test]
    fn it_waits_for_the_read_back_and_for_two_rounds_of_every_path() {
        let mut world = World::new();
        world.settled = false;
        world.rounds.insert(name("lte"), rounds_of(1, 1, 1));
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
        assert_eq!(found.doubtful().paths, [part("lte")].into());
        world.ways.clear();
        assert_eq!(world.judge().doubtful(), Silent::default(), "no provider moves the way to a management network");
        world.ways.clone_from(&world.before.ways);
        world.before.up.remove(&part("lte"));
        assert!(world.judge().stands());
    }

    /// A path that is asked in these families: `4`, `6` or both.
    fn asked_in(families: &str) -> Path {
        let mut path = path("fiber", 0, 100);
        let targets = [('4', "192.0.2.1"), ('6', "2001:db8::1")];
        let asked = targets.iter().filter(|(family, _)| families.contains(*family));
        Arc::make_mut(&mut path.probe).targets = asked.map(|(_, target)| target.parse().unwrap()).collect();
        path
    }

    /// The health of such a path, whose families are in these states.
    fn health_of(path: &Path, states: [PathState; 2]) -> PathHealth {
        let all = Family::ALL.into_iter().zip(states).filter(|(family, _)| path.probe.families().any(|f| f == *family));
        let families: BTreeMap<Family, PathHealth> = all.map(|(family, state)| (family, health(state, true))).collect();
        let up = families.values().any(|family| family.state == PathState::Up);
        let apart = if families.len() > 1 { families } else { BTreeMap::new() };
        PathHealth { families: apart, ..health(if up { PathState::Up } else { PathState::Down }, true) }
    }

    /// What it shows; in which families a path was asked and how these were, in which it is asked since and which answer,
    /// and what speaks against the change.
    type Case<'a> = (&'a str, (&'a str, [PathState; 2]), &'a str, &'a str, &'a [&'a str]);

    /// A path `fiber` beside the other: asked in which families, with which states, before; the same since, and which
    /// families answer.
    fn of_families(before: (&str, [PathState; 2]), since: &str, answers: &str) -> World {
        let mut world = World::new();
        let (old, new) = (asked_in(before.0), asked_in(since));
        let known = health_of(&old, before.1);
        world.old.paths.insert(name("fiber"), old.into());
        world.healths.insert(name("fiber"), known);
        let fresh = asked_in(since);
        world.new.paths.insert(name("fiber"), fresh.into());
        let known = Baseline::of(&world.old, &world.new, &world.healths, &world.selection);
        world.before = Baseline { ways: world.before.ways, reached: world.before.reached, ..known };
        let is = |family| if answers.contains(family) { PathState::Up } else { PathState::Down };
        world.healths.insert(name("fiber"), health_of(&new, ['4', '6'].map(is)));
        let answered = |family| if answers.contains(family) { 2 } else { 0 };
        let asked = |family, n| if since.contains(family) { n } else { 0 };
        world.rounds.insert(name("fiber"), rounds_of(2, asked('4', answered('4')), asked('6', answered('6'))));
        world
    }

    #[test]
    fn a_family_that_was_up_and_is_silent_since_speaks_against_it_and_no_other_does() {
        use PathState::{Down, Unknown, Up};
        let (both, four, six) = ([Up, Up], [Up, Down], [Down, Up]);
        let table: [Case<'_>; 14] = [
            ("both answer", ("46", both), "46", "46", &[]),
            ("IPv6 alone is cut off", ("46", both), "46", "4", &["IPv6 of path fiber"]),
            ("IPv4 alone is cut off", ("46", both), "46", "6", &["IPv4 of path fiber"]),
            ("the whole path is cut off, and is told once", ("46", both), "46", "", &["path fiber"]),
            ("IPv6 was dead before", ("46", four), "46", "4", &[]),
            ("IPv6 was not known before", ("46", [Up, Unknown]), "46", "4", &[]),
            (
                "the family that worked is cut off, the other one begins",
                ("46", six),
                "46",
                "4",
                &["IPv6 of path fiber"],
            ),
            ("IPv6 is asked no more", ("46", both), "4", "4", &[]),
            ("IPv6 is asked no more, and IPv4 is cut off", ("46", both), "4", "", &["path fiber"]),
            ("IPv6 comes new and is dead", ("4", four), "46", "4", &[]),
            ("IPv6 comes new, and IPv4 is cut off", ("4", four), "46", "6", &["IPv4 of path fiber"]),
            ("IPv6 alone was there, and IPv4 in its place", ("6", six), "46", "4", &["IPv6 of path fiber"]),
            ("the path was dead", ("46", [Down, Down]), "46", "", &[]),
            ("it is asked in the other family, which is dead", ("4", four), "6", "", &["path fiber"]),
        ];
        for (what, before, since, answers, against) in table {
            let world = of_families(before, since, answers);
            let found = world.judge();
            let mut wanted: Vec<String> = against
                .iter()
                .map(|part| format!("{part} was up before and does not answer now (3 rounds lost in a row)"))
                .collect();
            if answers.is_empty() && !wanted.is_empty() {
                wanted.push("policy default had a path before and has none that works now".into());
            }
            assert_eq!(found.against, wanted, "{what}");
            let silent: Vec<String> = found.silent.paths.iter().map(ToString::to_string).collect();
            assert_eq!(silent, against, "{what}");
            assert!(found.stands() == against.is_empty() && !found.cut_off, "{what}");
        }
    }

    #[test]
    fn a_policy_that_had_a_path_for_a_family_needs_one_still() {
        use PathState::{Down, Up};
        let with = |action: Action, prefix: &[&str], fiber: [PathState; 2]| {
            let mut world = of_families(("46", [Up, Up]), "46", "46");
            let source: Vec<IpNet> = prefix.iter().map(|p| p.parse().unwrap()).collect();
            for site in [&mut world.old, &mut world.new] {
                site.policies[0].action = Action::Path(name("lte"));
                site.policies[0].matches.source.clone_from(&source);
                let lte = Path { name: name("lte"), ..asked_in("46") };
                site.paths.insert(name("lte"), lte.into());
            }
            world.healths.insert(name("lte"), health_of(&asked_in("46"), [Up, Up]));
            world.healths.insert(name("fiber"), health_of(&asked_in("46"), fiber));
            let known = Baseline::of(&world.old, &world.new, &world.healths, &world.selection);
            world.before = Baseline { ways: world.before.ways, reached: world.before.reached, ..known };
            world.new.policies[0].action = action;
            world.judge().against
        };
        let onto = |path| Action::Path(name(path));
        assert!(with(onto("fiber"), &[], [Up, Up]).is_empty());
        let found = with(onto("fiber"), &[], [Up, Down]);
        assert_eq!(found, ["policy default had a path for IPv6 before and has none that works now"]);
        assert!(with(onto("fiber"), &["192.0.2.0/24"], [Up, Down]).is_empty(), "it has no such traffic");
        assert!(with(Action::Drop, &[], [Up, Down]).is_empty(), "that is meant");
        let found = with(onto("fiber"), &[], [Down, Down]);
        assert_eq!(found, ["policy default had a path before and has none that works now"], "once");
    }

    /// A rule that has moved from `fiber`, of which these families answer, to `lte`, whose IPv6 has long been dead.
    fn moved_to_half_a_path(answers: &str) -> World {
        use PathState::{Down, Up};
        let mut world = of_families(("46", [Up, Up]), "46", answers);
        let rule = crate::validate::intent::Rule::new(name("critical"), vec![name("fiber"), name("lte")]);
        let lte = Path { name: name("lte"), ..asked_in("46") };
        for site in [&mut world.old, &mut world.new] {
            site.rules.insert(name("critical"), rule.clone());
            site.paths.insert(name("lte"), lte.clone().into());
        }
        let (fiber, half) = (health_of(&asked_in("46"), [Up, Up]), health_of(&lte, [Up, Down]));
        let healths: Healths = [(name("fiber"), fiber), (name("lte"), half.clone())].into();
        let known = Baseline::of(&world.old, &world.new, &healths, &world.selection);
        world.before = Baseline { ways: world.before.ways, reached: world.before.reached, ..known };
        world.healths.insert(name("lte"), half);
        world.rounds.insert(name("lte"), rounds_of(2, 2, 0));
        let choice = world.selection.rules.get_mut("critical").unwrap();
        (choice.active, choice.tail) = (Some(name("lte")), vec![name("fiber")]);
        world
    }

    const LOST_SIX: &str = "policy default had a path for IPv6 before and has none that works now";

    #[test]
    fn a_pulled_cable_is_no_evidence_although_the_path_in_its_place_carries_one_family_only() {
        let mut world = moved_to_half_a_path("");
        assert!(world.judge().against.contains(&LOST_SIX.to_owned()), "{:?}", world.judge());
        world.healths.get_mut("fiber").unwrap().carrier = false;
        assert!(world.judge().stands(), "{:?}", world.judge());
    }

    #[test]
    fn what_a_pin_or_a_drain_during_a_trial_takes_from_a_policy_is_not_the_doing_of_the_change() {
        let pin = |to: &str| {
            let pin = Pin { to: name(to), until: T0, reason: String::new() };
            Overrides { pins: [(name("critical"), pin)].into(), ..Overrides::default() }
        };
        let drain = |path: &str, force| {
            let drain = Drain { since: crate::clock::Wall::default(), force };
            Overrides { drains: [(name(path), drain)].into(), ..Overrides::default() }
        };
        let mut world = moved_to_half_a_path("46");
        assert_eq!(world.judge().against, [LOST_SIX], "nobody gave an order");
        for orders in [pin("lte"), drain("fiber", false)] {
            world.orders = orders.clone();
            assert!(world.judge().stands(), "{:?}", world.judge());
            world.before.orders = orders;
            assert_eq!(world.judge().against, [LOST_SIX], "that order stood before, and IPv6 had a path");
            world.before.orders = Overrides::default();
        }
        world.orders = drain("lte", false);
        assert_eq!(world.judge().against, [LOST_SIX], "what is drained is not what would carry it");
        // The last path that works is drained by force: now the policy has none.
        world.fails("lte", true);
        world.before.up.retain(|part| part.path != name("lte"));
        let lost = "policy default had a path before and has none that works now";
        for (orders, against) in
            [(drain("fiber", true), None), (pin("lte"), Some(lost)), (drain("lte", true), Some(lost))]
        {
            world.orders = orders;
            assert_eq!(world.judge().against, Vec::from_iter(against), "{:?}", world.orders);
        }
        // What is silent itself does not get off.
        let mut world = moved_to_half_a_path("4");
        world.orders = pin("lte");
        assert_eq!(world.judge().silent.paths, [part("fiber/ipv6")].into());
        assert!(world.judge().harm, "{:?}", world.judge());
    }

    #[test]
    fn what_is_written_down_before_a_change_carries_families_and_what_was_written_without_them_is_read() {
        let world = of_families(("46", [PathState::Up; 2]), "46", "4");
        let told = serde_json::to_string(&world.before).unwrap();
        assert!(told.contains(r#""up":["fiber","fiber/ipv4","fiber/ipv6","lte"]"#), "{told}");
        let again = World { before: serde_json::from_str(&told).unwrap(), ..world };
        assert_eq!(again.judge().doubtful().to_string(), "IPv6 of path fiber");
        let older = World { before: serde_json::from_str(r#"{"up": ["fiber", "lte"]}"#).unwrap(), ..again };
        assert!(older.judge().stands(), "nobody knows how its families were");
    }

    #[test]
    fn a_pulled_cable_excuses_both_families_and_a_held_state_makes_no_witness() {
        let mut world = of_families(("46", [PathState::Up; 2]), "46", "4");
        world.healths.get_mut("fiber").unwrap().carrier = false;
        assert!(world.judge().stands());
        world.before.untouched.clear();
        assert_eq!(
            world.judge().reason(),
            "IPv6 of path fiber was up before and does not answer now (3 rounds lost in a row)"
        );
        let dual = asked_in("46");
        let mut known = health_of(&dual, [PathState::Up; 2]);
        known.families.get_mut(&Family::V6).unwrap().held = true;
        let healths: Healths = [(name("fiber"), known)].into();
        let old = site(vec![dual]);
        let before = Baseline::of(&old, &old, &healths, &Selection::default());
        assert_eq!(before.up, [part("fiber"), part("fiber/ipv4")].into());
    }

    #[test]
    fn a_path_is_measured_when_each_of_its_families_is() {
        let dual = asked_in("46");
        let known = |six| health_of(&dual, [PathState::Up, six]);
        let seen = |four, six| rounds_of(1, four, six);
        assert!(measured(&dual, Some(&known(PathState::Up)), seen(1, 1)));
        assert!(!measured(&dual, Some(&known(PathState::Up)), seen(1, 0)), "IPv6 is remembered, and was not seen");
        assert!(!measured(&dual, Some(&known(PathState::Unknown)), seen(1, 1)));
        assert!(measured(&dual, Some(&known(PathState::Down)), rounds_of(9, 9, 0)));
    }

    #[test]
    fn a_round_counts_for_the_families_that_were_asked_in_it() {
        let of = |answers: &[(&str, bool)]| Sample {
            path: name("fiber"),
            round: 1,
            sent: T0,
            done: T0,
            answers: answers
                .iter()
                .map(|(at, is)| (at.parse().unwrap(), is.then(std::time::Duration::default)))
                .collect(),
            notes: crate::health::Notes::default(),
        };
        let mut rounds = Rounds::default();
        rounds.add(&of(&[("192.0.2.1", true), ("2001:db8::1", false)]), 1);
        rounds.add(&of(&[("192.0.2.1", true)]), 1);
        rounds.add(&of(&[("192.0.2.1", true), ("2001:db8::1", true)]), 2);
        let count = |done, answered| Count { done, answered, proved: answered >= ROUNDS };
        assert_eq!(
            [None, Some(Family::V4), Some(Family::V6)].map(|family| rounds.of(family)),
            [count(3, 3), count(3, 3), count(2, 1)],
            "the second round is none of IPv6"
        );
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
        let both = Silent { paths: [part("lte")].into(), services: remote };
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
        assert_eq!(rounds.of(None), Count { done: 4, answered: 2, proved: true });
        rounds.add(&sample(true), 2);
        assert_eq!(rounds.of(None).answered, 0, "one answer is no quorum of two");
    }
}
