//! Targets x paths: who is at fault when probes are not answered. Pure.
//!
//! A target that fails on every path that asks it is the *suspect target*: it has no vote until it answers somewhere. A
//! path on which all targets fail while something answers elsewhere is the suspect path; that is what the rest of
//! this module's parent finds by itself. When everything fails everywhere, the *observer* is suspect: no target has a
//! vote, and every path keeps the state that it had.
//!
//! It takes two paths to tell them apart, so a site with one probed path has no suspects but the path. One loss here
//! and there at the same time proves nothing: somewhere it must have been two in a row.
//!
//! A path that was found down while something answered elsewhere is *convicted* until it answers: its silence is its own
//! and no evidence of the observer's fault, nor, without another witness, of a target's. Otherwise a backup that has
//! been dead for a week would keep a primary that dies today from ever being left. Where a path asks targets of both
//! families, each family of it is convicted by itself, on what answers of the same family elsewhere, and is a witness by
//! itself: a backup whose IPv6 has been dead for a week says nothing of a target of IPv6, however well its IPv4 is.
//!
//! What answers elsewhere has to have been asked since the silence began. A target that dies is missed first where the
//! timeout is shortest: what a slower path was answered before would convict the quick one, and nobody the target.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use crate::{
    clock::Instant,
    units::{Family, Name, pack, plural},
    validate::intent::Method,
};

/// What is asked: an address, and how. A name server that is dead for DNS may answer ICMP.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    target: IpAddr,
    how: Cow<'static, str>,
}

impl Service {
    /// A target of a path. Gateways are nobody else's.
    pub fn of(path: &Name, target: IpAddr, method: &Method) -> Self {
        let how = match method {
            Method::Icmp => Cow::Borrowed("icmp"),
            Method::Gateway => format!("gateway of {path}").into(),
            Method::Udp { port } | Method::Stamp { port } | Method::Tcp { port } => {
                format!("{} at port {port}", method.text()).into()
            }
            Method::Http(web) => format!("{} at port {}: {}", method.text(), web.port, web.path).into(),
            Method::Dns(question) => format!("dns at port {}: {}", question.port, question.name).into(),
        };
        Self { target, how }
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.target, self.how)
    }
}

/// How often something was asked, and with which result; of the newest probe of each path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    asked: usize,
    silent: usize,
    /// Silent twice in a row or more.
    twice: usize,
    /// Asked by families of paths that are not convicted.
    free: usize,
}

impl Tally {
    fn count(&mut self, run: Option<u32>, free: bool, sign: bool) {
        let add = |n: &mut usize, is: bool| {
            if is {
                *n = if sign { *n + 1 } else { n.saturating_sub(1) };
            }
        };
        add(&mut self.asked, run.is_some());
        add(&mut self.silent, run.is_some_and(|r| r > 0));
        add(&mut self.twice, run.is_some_and(|r| r > 1));
        add(&mut self.free, free && run.is_some());
    }

    const fn all_silent(self) -> bool {
        self.asked > 1 && self.silent == self.asked && self.twice > 0
    }

    const fn is_answered(self) -> bool {
        self.silent < self.asked
    }

    const fn and(self, other: Self) -> Self {
        Self {
            asked: self.asked + other.asked,
            silent: self.silent + other.silent,
            twice: self.twice + other.twice,
            free: self.free + other.free,
        }
    }
}

/// Something of each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Each<T>([T; Family::ALL.len()]);

impl<T> std::ops::Index<Family> for Each<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        &self.0[family as usize]
    }
}

impl<T> std::ops::IndexMut<Family> for Each<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        &mut self.0[family as usize]
    }
}

/// One target of one path.
#[derive(Debug, Clone)]
struct Cell {
    service: Service,
    /// Losses in a row up to the newest probe; none before the first result.
    run: Option<u32>,
}

impl Cell {
    const fn family(&self) -> Family {
        Family::of(&self.service.target)
    }
}

/// The targets of one path.
#[derive(Debug, Clone, Default)]
struct Panel {
    cells: Vec<Cell>,
    /// What of it was found down while something answered elsewhere, and has not answered since.
    convicted: Each<bool>,
    /// Since when each family is silent, where it is; only what was asked later speaks against it.
    since: Each<Instant>,
}

impl Panel {
    fn of(&self, family: Family) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(move |c| c.family() == family)
    }

    fn is_heard(&self, family: Family) -> bool {
        self.of(family).any(|c| c.run.is_some())
    }

    fn answers(&self, family: Family) -> bool {
        self.of(family).any(|c| c.run == Some(0))
    }

    fn is_silent(&self, family: Family) -> bool {
        self.is_heard(family) && !self.answers(family)
    }

    /// What is not convicted.
    fn free(&self) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(|c| !self.convicted[c.family()])
    }

    /// Whether it has a result that counts.
    fn is_witness(&self) -> bool {
        self.free().any(|c| c.run.is_some())
    }
}

/// What was answered last, of all paths whose links are ready.
#[derive(Debug, Clone, Default)]
pub(super) struct Jury {
    paths: BTreeMap<Name, Panel>,
    /// Of all paths.
    services: BTreeMap<Service, Tally>,
    /// Of what is not convicted.
    all: Each<Tally>,
    /// Paths with a result in a family that is not convicted.
    heard: usize,
    /// When the newest round was sent that was answered, of any path.
    answered: Each<Instant>,
}

impl Jury {
    /// Begins with a path anew: nothing was asked over it.
    pub fn begin(&mut self, path: &Name, services: impl Iterator<Item = Service>) {
        self.clear(path);
        let cells = services.map(|service| Cell { service, run: None }).collect();
        self.paths.insert(path.clone(), Panel { cells, ..Panel::default() });
    }

    /// All paths have begun, and no other will for a while.
    pub fn pack(&mut self) {
        pack(&mut self.paths);
    }

    /// Forgets a path.
    pub fn remove(&mut self, path: &Name) {
        self.clear(path);
        self.paths.remove(path);
    }

    /// Forgets what was answered over a path: its link is gone, which says nothing of the targets.
    pub fn clear(&mut self, path: &Name) {
        let Some(panel) = self.paths.get_mut(path) else { return };
        self.heard -= usize::from(panel.is_witness());
        let convicted = std::mem::take(&mut panel.convicted);
        panel.since = Each::default();
        for cell in &mut panel.cells {
            let free = !convicted[cell.family()];
            if free {
                self.all[cell.family()].count(cell.run, true, false);
            }
            if let Some(tally) = self.services.get_mut(&cell.service) {
                tally.count(cell.run, free, false);
                if *tally == Tally::default() {
                    self.services.remove(&cell.service);
                }
            }
            cell.run = None;
        }
    }

    /// Takes in which targets of a path were answered in a round, in the order in which it began.
    pub fn add(&mut self, path: &Name, sent: Instant, answered: impl Iterator<Item = bool>) {
        let Some(panel) = self.paths.get_mut(path) else { return };
        let silent = Family::ALL.map(|family| panel.is_silent(family));
        self.heard -= usize::from(panel.is_witness());
        for (cell, answered) in panel.cells.iter_mut().zip(answered) {
            let free = !panel.convicted[cell.family()];
            let run = Some(if answered { 0 } else { cell.run.unwrap_or_default().saturating_add(1) });
            let tally = match self.services.get_mut(&cell.service) {
                Some(tally) => tally,
                None => self.services.entry(cell.service.clone()).or_default(),
            };
            tally.count(cell.run, free, false);
            tally.count(run, free, true);
            if free {
                let all = &mut self.all[cell.family()];
                all.count(cell.run, true, false);
                all.count(run, true, true);
            }
            cell.run = run;
        }
        self.heard += usize::from(panel.is_witness());
        for (family, silent) in Family::ALL.into_iter().zip(silent) {
            self.settle(path, family, sent, silent);
        }
    }

    /// Notes when a family of a path that was `silent` or not answered last, or fell silent.
    fn settle(&mut self, path: &Name, family: Family, sent: Instant, silent: bool) {
        let Some(panel) = self.paths.get_mut(path) else { return };
        let newest = self.answered[family].max(sent);
        if panel.answers(family) {
            self.answered[family] = newest;
            self.set_convicted(path, family, false);
        } else if !silent {
            // A loss is known later than an answer to what was sent after it, be it the path's own.
            panel.since[family] = newest;
        }
    }

    /// Takes in that a path was found down. A family of it is convicted if nothing answers on the path and something of
    /// this family does elsewhere or, where nobody else asks in this family, anything.
    pub fn convict(&mut self, path: &Name) {
        let silent = |panel: &&Panel| !Family::ALL.into_iter().any(|family| panel.answers(family));
        let Some(panel) = self.paths.get(path).filter(silent) else { return };
        let any = self.together().is_answered() && self.answered.0.iter().max() > panel.since.0.iter().max();
        let guilty = |family| self.is_guilty(panel, family) || any && self.asks_alone(panel, family);
        for (family, guilty) in Family::ALL.map(|family| (family, guilty(family))) {
            if guilty {
                self.set_convicted(path, family, true);
            }
        }
    }

    /// Takes in that a family of a path was found down. It is convicted if nothing answers on it and something of this
    /// family does elsewhere.
    pub fn convict_family(&mut self, path: &Name, family: Family) {
        if self.paths.get(path).is_some_and(|panel| self.is_guilty(panel, family)) {
            self.set_convicted(path, family, true);
        }
    }

    /// Whether a family of a path is silent and something of it answers elsewhere that was asked since.
    fn is_guilty(&self, panel: &Panel, family: Family) -> bool {
        let newer = self.answered[family] > panel.since[family];
        !panel.answers(family) && newer && self.all[family].is_answered()
    }

    /// Whether no other path asks in a family and is not convicted in it.
    fn asks_alone(&self, panel: &Panel, family: Family) -> bool {
        let own = panel.free().filter(|cell| cell.family() == family && cell.run.is_some()).count();
        self.all[family].asked == own
    }

    /// Convicts a family of a path that was heard, or no longer.
    fn set_convicted(&mut self, path: &Name, family: Family, convicted: bool) {
        let changes = |panel: &&mut Panel| panel.is_heard(family) && panel.convicted[family] != convicted;
        let Some(panel) = self.paths.get_mut(path).filter(changes) else { return };
        self.heard -= usize::from(panel.is_witness());
        panel.convicted[family] = convicted;
        self.heard += usize::from(panel.is_witness());
        for cell in panel.of(family) {
            self.all[family].count(cell.run, true, !convicted);
            if let Some(tally) = self.services.get_mut(&cell.service) {
                tally.count(cell.run, convicted, false);
                tally.count(cell.run, !convicted, true);
            }
        }
    }

    /// Of both families.
    fn together(&self) -> Tally {
        self.all[Family::V4].and(self.all[Family::V6])
    }

    /// Whether nothing answers anywhere.
    pub fn observer_is_suspect(&self) -> bool {
        self.heard > 1 && self.together().all_silent()
    }

    /// Which targets of a path have no vote, in the order in which it began.
    pub fn suspects(&self, path: &Name) -> Vec<bool> {
        let all = self.observer_is_suspect();
        let of = |panel: &Panel| panel.cells.iter().map(|c| all || self.is_suspect(c, panel)).collect();
        self.paths.get(path).map(of).unwrap_or_default()
    }

    /// Whether a target is at fault itself where a path asks it: nobody reaches it, and either the path reaches something
    /// else of its family or a second one that is not convicted in this family asks it too.
    fn is_suspect(&self, cell: &Cell, panel: &Panel) -> bool {
        let answers = || panel.answers(cell.family());
        self.services.get(&cell.service).is_some_and(|t| t.all_silent() && (t.free > 1 || answers()))
    }

    /// The paths that ask something which this path asks too, itself included.
    pub fn sharing(&self, path: &Name) -> Vec<Name> {
        let of = |path: &Name| self.paths.get(path).into_iter().flat_map(|p| &p.cells).map(|c| &c.service);
        let shares = |other: &&Name| of(other).any(|s| of(path).any(|own| own == s));
        self.paths.keys().filter(shares).cloned().collect()
    }

    /// What a person should know.
    pub fn alarms(&self) -> Vec<String> {
        if self.observer_is_suspect() {
            let text = "no target answers on any path: this router itself, or what all paths have in common, is suspect; \
                        the paths keep their states";
            return vec![text.to_owned()];
        }
        let asks = |panel: &Panel, service: &Service| panel.cells.iter().any(|c| c.service == *service);
        let answers = |panel: &Panel, service: &Service| panel.answers(Family::of(&service.target));
        let witness = |service| self.paths.values().any(|panel| answers(panel, service) && asks(panel, service));
        let suspects = self.services.iter().filter(|(_, tally)| tally.all_silent());
        suspects
            .filter(|(service, tally)| tally.free > 1 || witness(service))
            .map(|(service, tally)| {
                format!("the probe target {service} fails on all {} and has no vote", plural(tally.asked, "path"))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn name(s: &str) -> Name {
        s.parse().unwrap()
    }

    /// So many targets, of both families from the second on.
    fn of_both_families(n: usize) -> impl Iterator<Item = Service> {
        let targets = ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(|t| t.parse().unwrap());
        targets.into_iter().take(n).map(|t| Service::of(&name("any"), t, &Method::Icmp))
    }

    fn services(n: u8) -> impl Iterator<Item = Service> {
        (1..=n).map(|t| Service::of(&name("any"), [192, 0, 2, t].into(), &Method::Icmp))
    }

    /// A round later than all that were answered and all that were lost.
    fn add(jury: &mut Jury, path: &str, answered: impl Iterator<Item = bool>) {
        let known = jury.paths.values().map(|panel| panel.since).chain([jury.answered]).flat_map(|each| each.0);
        let last = known.max().unwrap_or_default();
        jury.add(&name(path), last + Duration::from_secs(1), answered);
    }

    /// Two paths with three targets.
    fn jury() -> Jury {
        let mut jury = Jury::default();
        jury.begin(&name("p1"), services(3));
        jury.begin(&name("p2"), services(3));
        jury
    }

    /// Two paths with a target of IPv4 and one of IPv6, which were answered.
    fn dual_jury() -> Jury {
        let mut jury = Jury::default();
        for path in ["p1", "p2"] {
            jury.begin(&name(path), of_both_families(2));
        }
        families(&mut jury, 1, [true; 2], [true; 2]);
        jury
    }

    /// So many rounds on both paths: whether IPv4 and IPv6 answer on each.
    fn families(jury: &mut Jury, n: usize, p1: [bool; 2], p2: [bool; 2]) {
        for _ in 0..n {
            add(jury, "p1", p1.into_iter());
            add(jury, "p2", p2.into_iter());
        }
    }

    /// So many rounds on both paths, with dead targets (bits) and dead paths (bits).
    fn rounds(jury: &mut Jury, n: usize, targets: u8, paths: u8) {
        for _ in 0..n {
            for (bit, path) in [(1, "p1"), (2, "p2")] {
                add(jury, path, (0..3).map(|t| paths & bit == 0 && targets >> t & 1 == 0));
            }
        }
    }

    /// Who is suspect: targets as bits, and whether the observer is.
    fn verdict(jury: &Jury) -> (u8, bool) {
        let suspects = jury.suspects(&name("p1"));
        (suspects.iter().enumerate().map(|(t, s)| u8::from(*s) << t).sum(), jury.observer_is_suspect())
    }

    #[test]
    fn each_set_of_dead_targets_with_each_set_of_dead_paths_has_its_verdict() {
        // Dead targets, dead paths: suspect targets, suspect observer.
        let mut table = Vec::new();
        for targets in 0..8 {
            table.push((targets, 0, targets, targets == 7));
            // Over a dead path nothing is answered, so what the other one does not reach fails on both.
            table.push((targets, 1, targets, targets == 7));
            table.push((targets, 2, targets, targets == 7));
            table.push((targets, 3, 7, true));
        }
        assert_eq!(table.len(), 32);
        for (targets, paths, suspects, observer) in table {
            let mut jury = jury();
            rounds(&mut jury, 2, 0, 0);
            assert_eq!(verdict(&jury), (0, false));
            rounds(&mut jury, 2, targets, paths);
            assert_eq!(verdict(&jury), (suspects, observer), "targets {targets:03b} paths {paths:02b}");
            assert_eq!(jury.alarms().is_empty(), suspects == 0, "{:?}", jury.alarms());
            rounds(&mut jury, 1, 0, 0);
            assert_eq!(verdict(&jury), (0, false), "one answer anywhere ends a suspicion");
        }
    }

    #[test]
    fn one_loss_on_each_path_at_the_same_time_is_chance() {
        let mut jury = jury();
        rounds(&mut jury, 3, 0, 0);
        rounds(&mut jury, 1, 7, 0);
        assert_eq!(verdict(&jury), (0, false));
    }

    #[test]
    fn with_one_path_only_the_path_is_suspect() {
        let mut jury = Jury::default();
        jury.begin(&name("p1"), services(3));
        for _ in 0..10 {
            add(&mut jury, "p1", [false; 3].into_iter());
        }
        assert_eq!(verdict(&jury), (0, false));
        // The other path has no carrier: it says nothing.
        let mut two = super::tests::jury();
        rounds(&mut two, 5, 7, 0);
        two.clear(&name("p2"));
        assert_eq!(verdict(&two), (0, false));
    }

    #[test]
    fn a_service_is_an_address_and_a_method_and_a_gateway_is_nobody_else_s() {
        let dns = Method::Dns(crate::validate::intent::Question { port: 53, name: "a".into(), record: "A".into() });
        let of = |path: &str, method: &Method| Service::of(&name(path), [192, 0, 2, 1].into(), method);
        assert_ne!(of("p1", &dns), of("p1", &Method::Icmp));
        assert_eq!(of("p1", &dns), of("p2", &dns));
        assert_ne!(of("p1", &Method::Gateway), of("p2", &Method::Gateway));
        let mut jury = Jury::default();
        for path in ["p1", "p2", "p3"] {
            jury.begin(&name(path), std::iter::once(of(path, &Method::Gateway)));
        }
        for (path, answered) in [("p1", false), ("p1", false), ("p2", false), ("p2", false), ("p3", true)] {
            add(&mut jury, path, std::iter::once(answered));
        }
        assert_eq!(verdict(&jury), (0, false));
    }

    #[test]
    fn a_path_that_has_long_been_down_is_no_witness_against_the_observer_nor_alone_against_a_target() {
        let mut jury = jury();
        rounds(&mut jury, 3, 0, 1);
        jury.convict(&name("p1"));
        rounds(&mut jury, 3, 0, 3);
        assert_eq!(verdict(&jury), (0, false), "p2 alone is at fault");
        assert_eq!((jury.suspects(&name("p2")), jury.alarms()), (vec![false; 3], vec![]));
        // One target of the path that is left: what else it reaches speaks against the target.
        rounds(&mut jury, 2, 1, 1);
        assert_eq!(jury.suspects(&name("p2")), [true, false, false]);
        assert_eq!(jury.alarms().len(), 1);
        // Whoever answers is a witness again.
        rounds(&mut jury, 1, 0, 0);
        rounds(&mut jury, 2, 0, 3);
        assert!(jury.observer_is_suspect());
    }

    #[test]
    fn nobody_is_convicted_while_nothing_answers_or_as_long_as_it_answers_itself() {
        let mut jury = jury();
        rounds(&mut jury, 2, 0, 3);
        jury.convict(&name("p1"));
        assert!(jury.observer_is_suspect());
        rounds(&mut jury, 2, 1, 0);
        jury.convict(&name("p1"));
        assert_eq!(jury.heard, 2);
    }

    #[test]
    fn a_family_that_has_long_been_down_is_no_witness_against_a_target_of_its_own_and_the_other_family_is_one() {
        let mut jury = dual_jury();
        families(&mut jury, 3, [true, false], [true; 2]);
        jury.convict_family(&name("p1"), Family::V6);
        families(&mut jury, 3, [true, false], [true, false]);
        assert_eq!(jury.suspects(&name("p2")), [false; 2], "IPv6 of p2 alone is at fault, whatever IPv4 answers");
        assert!(jury.alarms().is_empty());
        families(&mut jury, 3, [false; 2], [true, false]);
        assert_eq!((jury.suspects(&name("p1")), jury.heard), (vec![false; 2], 2));
        families(&mut jury, 3, [false; 2], [false; 2]);
        assert!(jury.observer_is_suspect(), "IPv4 of both");
        // When the rest of p1 is found down too, it is heard no more. What answers is a witness again, and it alone.
        families(&mut jury, 1, [false; 2], [true, false]);
        jury.convict(&name("p1"));
        assert_eq!((jury.heard, jury.paths[&name("p1")].convicted), (1, Each([true; 2])));
        families(&mut jury, 1, [false, true], [true, false]);
        assert_eq!((jury.heard, jury.paths[&name("p1")].convicted), (2, Each([true, false])));
    }

    #[test]
    fn the_checker_sees_a_family_that_is_convicted_only_with_its_whole_path() {
        let mut jury = dual_jury();
        families(&mut jury, 3, [true, false], [true; 2]);
        jury.convict(&name("p1"));
        families(&mut jury, 3, [true, false], [true, false]);
        assert_eq!(jury.suspects(&name("p2")), [false, true], "the dead backup keeps IPv6 of p2 from being found down");
    }

    #[test]
    fn only_what_was_asked_since_a_silence_began_convicts() {
        let at = |seconds| Instant::from_nanos(0) + Duration::from_secs(seconds);
        let mut jury = Jury::default();
        for path in ["p1", "p2"] {
            jury.begin(&name(path), services(1));
        }
        let mut story = |path: &str, sent, answered: bool| {
            jury.add(&name(path), at(sent), std::iter::once(answered));
            jury.convict(&name("p1"));
            jury.convict_family(&name("p1"), Family::V4);
            jury.paths[&name("p1")].convicted[Family::V4]
        };
        assert!(!story("p1", 1, true) && !story("p2", 1, true));
        // Its own answer to the next round is known before it is known that this one is lost.
        assert!(!story("p1", 3, true) && !story("p1", 2, false) && !story("p1", 4, false));
        assert!(!story("p2", 3, true), "that was asked before");
        assert!(!story("p2", 5, false) && !story("p2", 4, false), "and that was not answered");
        assert!(story("p2", 6, true));
        assert!(!story("p1", 7, true));
    }

    #[test]
    fn a_path_is_convicted_on_another_family_only_where_nobody_else_asks_in_its_own() {
        for alone in [false, true] {
            let mut jury = Jury::default();
            jury.begin(&name("p1"), of_both_families(1));
            jury.begin(&name("p2"), of_both_families(2).skip(alone.into()));
            for _ in 0..3 {
                add(&mut jury, "p1", [false].into_iter());
                add(&mut jury, "p2", [false, true].into_iter().skip(alone.into()));
            }
            jury.convict(&name("p1"));
            assert_eq!(jury.paths[&name("p1")].convicted[Family::V4], alone);
            assert_eq!(jury.suspects(&name("p2")), if alone { vec![false] } else { vec![true, false] });
        }
    }

    #[test]
    fn a_family_is_not_convicted_on_what_the_other_one_answers() {
        let mut jury = dual_jury();
        families(&mut jury, 3, [true, false], [true, false]);
        jury.convict_family(&name("p1"), Family::V6);
        assert_eq!(jury.suspects(&name("p2")), [false, true]);
    }

    proptest! {
        /// The counters are those of a plain count over all cells, whatever happened.
        #[test]
        fn counting_as_it_goes_is_counting_at_the_end(story in proptest::collection::vec((0_usize..4, 0_u8..14), 0..200)) {
            let names = ["p0", "p1", "p2", "p3"].map(name);
            let mut jury = Jury::default();
            for (path, what) in story {
                match what {
                    0 => jury.remove(&names[path]),
                    1 => jury.begin(&names[path], of_both_families(path)),
                    2 => jury.clear(&names[path]),
                    3 => jury.convict(&names[path]),
                    4 => jury.convict_family(&names[path], Family::V4),
                    5 => jury.convict_family(&names[path], Family::V6),
                    bits => add(&mut jury, &names[path].to_string(), (0..3).map(|t| bits >> t & 1 == 0)),
                }
                let cells = || jury.paths.values().flat_map(|p| &p.cells);
                let at_large = || jury.paths.values().flat_map(Panel::free);
                for family in Family::ALL {
                    let of = |c: &&Cell, least: u32| c.family() == family && c.run.is_some_and(|r| r >= least);
                    let count = |least| at_large().filter(|c| of(c, least)).count();
                    let all = Tally { asked: count(0), silent: count(1), twice: count(2), free: count(0) };
                    prop_assert_eq!(jury.all[family], all);
                    let fits = |p: &Panel| !p.convicted[family] || p.is_heard(family) && !p.answers(family);
                    prop_assert!(jury.paths.values().all(fits));
                }
                let heard = |p: &&Panel| p.free().any(|c| c.run.is_some());
                prop_assert_eq!(jury.heard, jury.paths.values().filter(heard).count());
                // A suspect target is one that no path has an answer of.
                for (service, tally) in &jury.services {
                    let answered = cells().any(|c| c.service == *service && c.run == Some(0));
                    prop_assert!(!(tally.all_silent() && answered));
                    let asked = |c: &&Cell| c.service == *service && c.run.is_some();
                    prop_assert_eq!(tally.asked, cells().filter(asked).count());
                    prop_assert_eq!(tally.free, at_large().filter(asked).count());
                }
            }
        }
    }
}
