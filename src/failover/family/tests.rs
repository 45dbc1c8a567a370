//! Stories of paths of which one family fails.

use super::{
    super::{
        Inputs, Overrides, Pin, Selection, decide,
        tests::{at, health, rule},
    },
    *,
};
use crate::{
    health::{
        Healths, Measures, PathHealth,
        tests::{name, path, site},
    },
    validate::intent::{Balance, Endpoint, Strategy},
};

/// A path with a text for IPv4 and one for IPv6, as `health` reads them.
fn dual(four: &str, six: &str) -> PathHealth {
    let families = BTreeMap::from([(Family::V4, health(four)), (Family::V6, health(six))]);
    let better = families.values().max_by_key(|h| (h.state != PathState::Down, h.score)).unwrap().clone();
    PathHealth { families, ..better }
}

struct Story {
    site: Site,
    selection: Selection,
    overrides: Overrides,
}

impl Story {
    fn new(rule: Rule) -> Self {
        let mut site = site(rule.members.iter().map(|m| path(m.as_str(), 1, 1000)).collect());
        site.rules.insert(rule.name.clone(), rule);
        Self { site, selection: Selection::default(), overrides: Overrides::default() }
    }

    /// IPv4 and IPv6 of each member; what was told of families, and whether flows were forgotten.
    fn step(&mut self, seconds: f64, members: &[(&str, &str)]) -> (Vec<Transition>, bool) {
        let names = self.site.rules["critical"].members.clone();
        let healths = names.into_iter().zip(members).map(|(name, (four, six))| (name, dual(four, six))).collect();
        self.decide(seconds, &healths)
    }

    fn decide(&mut self, seconds: f64, healths: &Healths) -> (Vec<Transition>, bool) {
        let measures = Measures::new();
        let inputs = Inputs { site: &self.site, healths, measures: &measures, overrides: &self.overrides };
        let decision = decide(&inputs, &mut self.selection, at(seconds));
        let before = self.selection.clone();
        let again = decide(&inputs, &mut self.selection, at(seconds));
        assert_eq!((&self.selection, again.transitions, again.routes), (&before, vec![], false), "asking again");
        (decision.transitions, !decision.forget_family.is_empty())
    }

    /// The path of the rule, and those of IPv4 and IPv6 in their order.
    fn ways(&self) -> [String; 2] {
        let choice = &self.selection.rules["critical"];
        Family::ALL.map(|family| {
            let all = choice.active.iter().chain(&choice.tail).collect();
            choice.in_family(family, all).into_iter().map(Name::as_str).collect::<Vec<_>>().join(" ")
        })
    }
}

const WELL: (&str, &str) = ("100", "100");
const NO_SIX: (&str, &str) = ("100", "0");

/// Kinds of what was told.
fn kinds(told: &[Transition]) -> Vec<(TransitionKind, Option<Family>)> {
    told.iter().map(|t| (t.kind, t.family)).collect()
}

use TransitionKind::{Failback, Failover, FamilyBack, FamilyLeft};

const SIX: Option<Family> = Some(Family::V6);

#[test]
fn a_family_that_fails_leaves_alone_and_comes_back_after_the_wait_to_restore() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    s.step(0.0, &[WELL, WELL]);
    assert_eq!(s.ways(), ["fiber lte", "fiber lte"]);
    let (told, forgotten) = s.step(1.0, &[NO_SIX, WELL]);
    assert_eq!((kinds(&told), forgotten), (vec![(FamilyLeft, SIX)], true));
    assert_eq!((told[0].from.clone(), told[0].to.clone()), (Some(name("fiber")), Some(name("lte"))));
    assert!(told[0].reason.contains("IPv6 of fiber: 3 rounds lost in a row (score 0 < 50)"), "{}", told[0].reason);
    assert_eq!(s.ways(), ["fiber lte", "lte fiber"], "behind the others, never gone");
    // A break starts the wait anew; what waits is seen.
    s.step(10.0, &[WELL, WELL]);
    s.step(30.0, &[NO_SIX, WELL]);
    assert_eq!(s.step(40.0, &[WELL, WELL]).0, vec![]);
    let shown = parted(&s.site.rules["critical"], &s.selection.rules["critical"], at(50.0));
    assert_eq!((shown.len(), shown[0].back_in), (1, Some(50.0)));
    assert_eq!(s.step(99.0, &[WELL, WELL]).0, vec![]);
    let (told, _) = s.step(100.0, &[WELL, WELL]);
    assert_eq!(kinds(&told), [(FamilyBack, SIX)]);
    assert!(told[0].reason.contains("for 60 s"), "{}", told[0].reason);
    assert_eq!(s.ways(), ["fiber lte", "fiber lte"]);
}

#[test]
fn the_reverse_holds_for_ipv4() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    s.step(0.0, &[WELL, WELL]);
    assert_eq!(kinds(&s.step(1.0, &[("0", "100"), WELL]).0), [(FamilyLeft, Some(Family::V4))]);
    assert_eq!(s.ways(), ["lte fiber", "fiber lte"]);
}

#[test]
fn when_both_families_fail_the_rule_moves_and_no_family_by_itself() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    s.step(0.0, &[WELL, WELL]);
    assert_eq!(kinds(&s.step(1.0, &[("0", "0"), WELL]).0), [(Failover, None)]);
    assert_eq!(s.ways(), ["lte fiber", "lte fiber"]);
    // IPv4 is back alone: the rule returns, IPv6 stays until it is well too.
    s.step(10.0, &[NO_SIX, WELL]);
    assert_eq!(kinds(&s.step(70.0, &[NO_SIX, WELL]).0), [(Failback, None)]);
    assert_eq!(s.ways(), ["fiber lte", "lte fiber"]);
    s.step(80.0, &[WELL, WELL]);
    assert_eq!(kinds(&s.step(140.0, &[WELL, WELL]).0), [(FamilyBack, SIX)]);
}

#[test]
fn a_family_stays_where_no_other_path_carries_it_and_returns_at_once_when_the_other_fails() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    s.step(0.0, &[WELL, NO_SIX]);
    assert_eq!(kinds(&s.step(1.0, &[NO_SIX, NO_SIX]).0), [], "nothing better");
    assert_eq!(s.ways(), ["fiber lte", "fiber lte"]);
    assert_eq!(kinds(&s.step(2.0, &[NO_SIX, WELL]).0), [(FamilyLeft, SIX)]);
    s.step(3.0, &[WELL, WELL]);
    assert_eq!(kinds(&s.step(4.0, &[WELL, ("100", "0")]).0), [(FamilyBack, SIX)], "no wait: nothing is to be lost");
    // A path that has no gateway of the family by its configuration carries nothing.
    let mut s = Story::new(rule(&["fiber", "lte"]));
    let gateway = GatewaySpec::Fixed(vec![[192, 0, 2, 1].into()]);
    let endpoint = Endpoint {
        interface: "wan1".parse().unwrap(),
        gateway,
        address: None,
        metered: false,
        cost: 1,
        down: None,
        up: None,
    };
    s.site.endpoints.insert(name("lte"), endpoint);
    s.step(0.0, &[WELL, WELL]);
    assert_eq!(kinds(&s.step(1.0, &[NO_SIX, WELL]).0), []);
}

#[test]
fn a_degraded_family_leaves_for_a_good_one_and_keeps_its_flows_until_it_dies() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    s.site.rules.get_mut("critical").unwrap().failover_threshold = 70;
    s.step(0.0, &[WELL, WELL]);
    let (told, forgotten) = s.step(1.0, &[("100", "60"), WELL]);
    assert_eq!((kinds(&told), forgotten), (vec![(FamilyLeft, SIX)], false));
    let (told, forgotten) = s.step(2.0, &[NO_SIX, WELL]);
    assert_eq!((kinds(&told), forgotten), (vec![], true));
    assert!(!s.step(3.0, &[NO_SIX, WELL]).1, "once");
}

#[test]
fn a_pin_and_an_order_to_return_count_for_families_too() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    s.step(0.0, &[WELL, WELL]);
    s.step(1.0, &[NO_SIX, WELL]);
    let pin = Pin { to: name("fiber"), until: at(100.0), reason: "test".into() };
    s.overrides.pins.insert(name("critical"), pin);
    assert_eq!(kinds(&s.step(2.0, &[NO_SIX, WELL]).0), [(FamilyBack, SIX)]);
    assert_eq!(kinds(&s.step(3.0, &[NO_SIX, WELL]).0), []);
    assert_eq!(kinds(&s.step(100.0, &[NO_SIX, WELL]).0), [(FamilyLeft, SIX)], "the pin is over");
    let hasten = |s: &mut Story| s.selection.rules.get_mut("critical").unwrap().hasten();
    assert!(!hasten(&mut s), "it is not fit");
    s.step(101.0, &[WELL, WELL]);
    assert!(hasten(&mut s));
    assert_eq!(kinds(&s.step(102.0, &[WELL, WELL]).0), [(FamilyBack, SIX)]);
}

#[test]
fn of_a_rule_that_shares_only_the_share_of_the_family_moves() {
    let weights = ["fiber", "cable", "lte"].map(|path| (name(path), 1)).into();
    let balance = Some(Balance { weights, sticky: None });
    let mut s = Story::new(Rule { strategy: Strategy::LoadBalance, balance, ..rule(&["fiber", "cable", "lte"]) });
    s.step(0.0, &[WELL, WELL, WELL]);
    let (told, _) = s.step(1.0, &[WELL, NO_SIX, WELL]);
    assert_eq!(kinds(&told), [(FamilyLeft, SIX)]);
    let (rule, choice) = (&s.site.rules["critical"], &s.selection.rules["critical"]);
    let texts = |paths: Vec<&Name>| paths.into_iter().map(Name::to_string).collect::<Vec<_>>();
    let of = |family, member: &str| texts(family_drawn(rule, choice, &name(member), family));
    assert_eq!(of(Family::V6, "cable"), ["lte", "fiber", "cable"]);
    assert_eq!(of(Family::V4, "cable"), ["cable", "lte", "fiber"]);
    assert_eq!(of(Family::V6, "fiber"), ["fiber", "lte", "cable"]);
    let bound = texts(family_ways(&s.site, rule, choice, &name("cable"), Family::V6));
    assert_eq!(bound, ["cable", "lte", "fiber"], "those that are translated stay until they are forgotten");
}

#[test]
fn paths_that_are_measured_in_one_family_never_part() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    let plain = |fiber: &str| Healths::from([(name("fiber"), health(fiber)), (name("lte"), health("100"))]);
    s.decide(0.0, &plain("100"));
    let (told, _) = s.decide(1.0, &plain("0"));
    assert_eq!(kinds(&told), [(Failover, None)]);
    let text = serde_json::to_string(&s.selection).unwrap();
    assert!(!text.contains("lame"), "{text}");
    // And one that is no longer measured in both comes back.
    let mut s = Story::new(rule(&["fiber", "lte"]));
    s.step(0.0, &[WELL, WELL]);
    s.step(1.0, &[NO_SIX, WELL]);
    assert_eq!(kinds(&s.decide(2.0, &plain("100")).0), [(FamilyBack, SIX)]);
}
