//! Rules that overflow: stories with explicit time, and properties.

use proptest::{
    collection::vec,
    prelude::{Just, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
};

use super::{
    super::{
        Drain, Flows, Inputs, Pin, Transition, decide,
        tests::{Story, at, health, rule},
        ways,
    },
    *,
};
use crate::{
    clock::Wall,
    health::{PathState, tests::name},
    units::Name,
    validate::intent::{Nat, NoPath, Strategy},
};
use TransitionKind::{Better, Exhausted, Failback, Failover, Initial, Manual};

/// A rule over these paths that overflows above 80 %.
fn overflowing(members: &[&str]) -> Rule {
    Rule { strategy: Strategy::Overflow, overflow: Ratio::from_ppm(800_000).ok(), ..rule(members) }
}

type Moves = Vec<(TransitionKind, String, String, Flows)>;

impl Story {
    /// Sets the members' health in order, `score` or `score@load`, and decides, twice: the second time nothing may
    /// change. The path that new flows take, and what moved.
    fn flows(&mut self, seconds: f64, healths: &[&str]) -> (String, Vec<Transition>) {
        let members = self.site.rules["critical"].members.clone();
        for (member, text) in members.iter().zip(healths) {
            let (score, load) = text.split_once('@').map_or((*text, None), |(score, load)| (score, Some(load)));
            let mut now = health(score);
            now.used = load.map(|load| load.parse::<f64>().unwrap() / 100.0);
            self.healths.insert(member.clone(), now);
        }
        let inputs =
            Inputs { site: &self.site, healths: &self.healths, measures: &self.measures, overrides: &self.overrides };
        let decision = decide(&inputs, &mut self.selection, at(seconds));
        let before = self.selection.clone();
        let again = decide(&inputs, &mut self.selection, at(seconds));
        assert_eq!((&self.selection, again.transitions, again.routes), (&before, vec![], false), "asking again");
        assert!(decision.next.is_none_or(|(next, _)| next > at(seconds)), "{:?} at {seconds}", decision.next);
        self.next = decision.next;
        (self.takes().to_owned(), decision.transitions)
    }

    /// The path of new flows.
    fn takes(&self) -> &str {
        assert!(self.choice().in_use().count() <= 1);
        self.choice().in_use().next().map_or("-", Name::as_str)
    }

    /// The first hop of flows that are bound to a member.
    fn stays(&self, member: &str) -> Option<&str> {
        let rule = &self.site.rules["critical"];
        let member = rule.members.iter().find(|m| m.as_str() == member).unwrap();
        ways(&self.site, rule, self.choice(), member).first().map(|path| path.as_str())
    }
}

fn moves(told: &[Transition]) -> Moves {
    let text = |n: &Option<Name>| n.as_ref().map_or("-", Name::as_str).to_owned();
    told.iter().map(|t| (t.kind, text(&t.from), text(&t.to), t.flows)).collect()
}

fn moved(kind: TransitionKind, from: &str, to: &str, flows: Flows) -> Moves {
    vec![(kind, from.into(), to.into(), flows)]
}

#[test]
fn new_flows_go_on_when_the_line_is_full_and_return_when_it_has_room() {
    let mut s = Story::new(overflowing(&["a", "b"]));
    let (to, told) = s.flows(0.0, &["100@10", "100@0"]);
    assert_eq!((to.as_str(), moves(&told)), ("a", moved(Initial, "-", "a", Flows::Graceful)));
    assert_eq!(s.flows(1.0, &["100@81", "100@0"]).0, "a", "a burst fills no line");
    assert_eq!(s.next, Some((at(2.0), "a line that fills or empties")));
    assert_eq!(s.flows(1.5, &["100@80", "100@0"]).0, "a", "exactly that much is not more");
    assert_eq!(s.flows(2.0, &["100@99", "100@0"]).0, "a");
    let (to, told) = s.flows(3.0, &["100@99", "100@0"]);
    assert_eq!((to.as_str(), moves(&told)), ("b", moved(Better, "a", "b", Flows::Graceful)));
    assert_eq!(told[0].reason, "99% of the bandwidth of a is in use, more than 80%: new flows go on; b scored 100");
    assert_eq!(told[0].alternatives[0].lost, "99% of its bandwidth is in use");
    assert_eq!((s.stays("a"), s.stays("b")), (Some("a"), Some("b")), "established flows stay");
    // Between the marks nothing happens, however long it takes.
    assert_eq!(s.flows(900.0, &["100@65", "100@70"]), ("b".into(), vec![]));
    assert_eq!(s.flows(1000.0, &["100@64", "100@70"]).0, "b");
    assert_eq!(s.choice().recovering, Some(at(1000.0)));
    assert_eq!(s.flows(1059.0, &["100@65", "100@70"]).0, "b", "the wait begins anew");
    assert_eq!(s.flows(1060.0, &["100@20", "100@70"]).0, "b");
    let (to, told) = s.flows(1120.0, &["100@20", "100@70"]);
    assert_eq!((to.as_str(), moves(&told)), ("a", moved(Failback, "b", "a", Flows::Graceful)));
    assert_eq!(told[0].reason, "20% of the bandwidth of a is in use, it was at most 64% for 60s: new flows leave b");
    assert_eq!((s.stays("a"), s.stays("b")), (Some("a"), Some("b")));
    assert_eq!(s.choice().recovering, None);
}

#[test]
fn further_lines_fill_likewise_and_when_all_are_full_nothing_moves() {
    let mut s = Story::new(overflowing(&["a", "b", "c"]));
    s.flows(0.0, &["100@90", "100@0", "100@0"]);
    assert_eq!(s.flows(1.0, &["100@90", "100@90", "100@0"]).0, "b");
    assert_eq!(s.flows(2.0, &["100@90", "100@90", "100@0"]).0, "c");
    s.flows(3.0, &["100@90", "100@90", "100@90"]);
    assert_eq!(s.flows(4.0, &["100@90", "100@90", "100@90"]), ("c".into(), vec![]));
    // The second has room first, then the first.
    s.flows(10.0, &["100@90", "100@10", "100@90"]);
    let (to, told) = s.flows(70.0, &["100@10", "100@10", "100@90"]);
    assert_eq!((to.as_str(), moves(&told)), ("b", moved(Failback, "c", "b", Flows::Graceful)));
    assert_eq!(s.flows(130.0, &["100@10", "100@10", "100@90"]).0, "a");
}

#[test]
fn a_death_moves_only_its_own_flows() {
    let mut s = Story::new(overflowing(&["a", "b", "c"]));
    for path in s.site.paths.values_mut() {
        std::sync::Arc::make_mut(path).nat = Nat::None;
    }
    s.flows(0.0, &["100@90", "100@0", "100@0"]);
    s.flows(1.0, &["100@90", "100@0", "100@0"]);
    let (to, told) = s.flows(2.0, &["0@0", "100@0", "100@0"]);
    assert_eq!((to.as_str(), moves(&told)), ("b", moved(Failover, "a", "b", Flows::Forced)));
    assert_eq!((s.stays("a"), s.stays("b")), (Some("b"), Some("b")));
    // One that carries nothing dies without a word.
    assert_eq!(s.flows(3.0, &["0@0", "100@0", "0@0"]), ("b".into(), vec![]));
    let (to, told) = s.flows(70.0, &["100@0", "100@0", "100@0"]);
    assert_eq!((to.as_str(), told.len()), ("b", 0), "not before its wait");
    let (to, told) = s.flows(130.0, &["100@0", "100@0", "100@0"]);
    assert_eq!((to.as_str(), moves(&told)), ("a", moved(Failback, "b", "a", Flows::Graceful)));
    assert_eq!(s.stays("b"), Some("b"), "what it carries stays on it");
    // The one that carried before dies: its flows are settled, new ones stay where they go.
    let (to, told) = s.flows(140.0, &["100@0", "0@0", "100@0"]);
    assert_eq!((to.as_str(), moves(&told)), ("a", moved(Failover, "b", "a", Flows::Forced)));
    assert_eq!(s.stays("b"), Some("a"));
}

#[test]
fn flows_through_nat_stay_on_a_path_that_is_left_by_hand() {
    let mut s = Story::new(overflowing(&["a", "b"]));
    for path in s.site.paths.values_mut() {
        std::sync::Arc::make_mut(path).nat = Nat::Masquerade;
    }
    s.flows(0.0, &["100@0", "100@0"]);
    s.overrides.drains.insert(name("a"), Drain { since: Wall::default(), force: false });
    let (to, told) = s.flows(1.0, &["100@0", "100@0"]);
    assert_eq!((to.as_str(), moves(&told)), ("b", moved(Manual, "a", "b", Flows::Graceful)));
    assert_eq!(s.stays("a"), Some("a"));
    s.overrides.drains.clear();
    s.flows(2.0, &["100@0", "100@0"]);
    assert_eq!(s.flows(62.0, &["100@0", "100@0"]).0, "a");
    let pin = Pin { to: name("b"), until: at(200.0), reason: "works".into() };
    s.overrides.pins.insert(name("critical"), pin);
    let (to, told) = s.flows(100.0, &["100@0", "100@95"]);
    assert_eq!((to.as_str(), moves(&told)), ("b", moved(Manual, "a", "b", Flows::Graceful)));
    assert_eq!(s.flows(150.0, &["100@0", "100@95"]).0, "b", "a person knows better");
}

#[test]
fn flows_that_stayed_on_a_path_are_forgotten_when_it_dies_and_no_others() {
    let mut s = Story::new(overflowing(&["a", "b", "c"]));
    let all = ["100@0", "100@0", "100@0"];
    s.flows(0.0, &all);
    s.overrides.drains.insert(name("a"), Drain { since: Wall::default(), force: false });
    s.flows(1.0, &all);
    let mut dies = |seconds, healths: &[&str]| {
        s.set(healths);
        let inputs = Inputs { site: &s.site, healths: &s.healths, measures: &s.measures, overrides: &s.overrides };
        let decision = decide(&inputs, &mut s.selection, at(seconds));
        decision.forget.into_iter().map(|(_, path, _)| path.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(dies(2.0, &["0", "100", "100"]), ["a"], "those that stayed on the drained one");
    assert_eq!(dies(3.0, &["0", "100", "100"]), [""; 0], "once");
    assert_eq!(dies(4.0, &["0", "0", "100"]), ["b"], "those of the one in use, once");
}

#[test]
fn a_path_that_is_held_or_worse_gets_no_flows_however_empty() {
    let hold_down = std::time::Duration::from_secs(20);
    let mut s = Story::new(Rule { hold_down, failover_threshold: 70, ..overflowing(&["a", "b", "c"]) });
    s.flows(0.0, &["100@0", "100@0", "100@0"]);
    s.flows(1.0, &["0@0", "100@90", "100@0"]);
    assert_eq!(s.flows(2.0, &["100@0", "100@90", "100@0"]).0, "c", "a is held, b is full");
    assert_eq!(s.flows(21.0, &["100@0", "100@90", "100@0"]).0, "c");
    assert_eq!(s.flows(23.0, &["100@0", "100@90", "100@0"]).0, "c", "it waits from the end of that");
    assert_eq!(s.flows(83.0, &["100@0", "100@90", "100@0"]).0, "a");
    // One that is too bad is left for a full one that works, and one that works badly is better than none.
    assert_eq!(s.flows(84.0, &["60@0", "100@90", "60@0"]).0, "b");
    assert_eq!(s.flows(85.0, &["60@0", "0@0", "60@0"]).0, "a");
}

#[test]
fn a_return_that_is_asked_for_happens_at_once_if_there_is_room() {
    let mut s = Story::new(overflowing(&["a", "b"]));
    s.flows(0.0, &["100@90", "100@0"]);
    s.flows(1.0, &["100@90", "100@0"]);
    s.selection.rules.get_mut("critical").unwrap().hasten();
    assert_eq!(s.flows(2.0, &["100@90", "100@0"]).0, "b");
    s.flows(3.0, &["100@10", "100@0"]);
    s.selection.rules.get_mut("critical").unwrap().hasten();
    let (to, told) = s.flows(4.0, &["100@10", "100@0"]);
    assert_eq!((to.as_str(), moves(&told)), ("a", moved(Failback, "b", "a", Flows::Graceful)));
    assert!(told[0].reason.contains("asked for by hand"), "{}", told[0].reason);
}

#[test]
fn the_unmeasured_and_a_restart_change_nothing() {
    let mut s = Story::new(overflowing(&["a", "b"]));
    s.flows(0.0, &["100@90", "100@0"]);
    s.flows(1.0, &["100@90", "100@0"]);
    assert_eq!(s.flows(2.0, &["?", "?"]), ("b".into(), vec![]));
    assert_eq!(s.flows(60.0, &["100", "100"]), ("b".into(), vec![]), "an unknown load is low, after the same wait");
    assert_eq!(s.flows(61.0, &["100@90", "100"]), ("b".into(), vec![]), "it was not: the wait begins anew");
    s.flows(70.0, &["100", "100"]);
    let (to, told) = s.flows(130.0, &["100", "100"]);
    assert_eq!((to.as_str(), moves(&told)), ("a", moved(Failback, "b", "a", Flows::Graceful)));
    assert_eq!(told[0].reason, "the load of a is not known any more for 60s: new flows leave b");
    assert_eq!(s.flows(900.0, &["100", "100"]), ("a".into(), vec![]), "and never a full one");
    let mut s = Story::new(overflowing(&["a", "b"]));
    assert_eq!(s.flows(0.0, &["?", "?"]).0, "a");
    assert_eq!(s.flows(1.0, &["?", "100"]), ("a".into(), vec![]));
}

#[test]
fn all_down_is_what_no_path_says() {
    let mut s = Story::new(overflowing(&["a", "b"]));
    s.flows(0.0, &["100@90", "100@0"]);
    s.flows(1.0, &["100@90", "100@0"]);
    let (to, told) = s.flows(2.0, &["0", "0"]);
    assert_eq!((to.as_str(), moves(&told)), ("b", moved(Exhausted, "a", "b", Flows::Graceful)));
    assert_eq!(s.flows(3.0, &["100@90", "0"]).0, "a", "a full line is better than a dead one");
    let mut s = Story::new(Rule { no_path: NoPath::Reject, ..overflowing(&["a", "b"]) });
    s.flows(0.0, &["100@0", "100@0"]);
    assert_eq!(s.flows(1.0, &["0", "x"]).0, "-");
    assert_eq!(s.flows(2.0, &["0", "100@0"]).0, "b");
}

#[test]
fn a_rule_begins_and_ends_to_overflow_with_its_configuration() {
    let mut s = Story::new(Rule { strategy: Strategy::Ordered, overflow: None, ..overflowing(&["a", "b"]) });
    s.flows(0.0, &["100@90", "100@0"]);
    *s.rule() = overflowing(&["a", "b"]);
    assert_eq!(s.flows(1.0, &["100@90", "100@0"]).0, "a");
    assert_eq!(s.flows(2.0, &["100@90", "100@0"]).0, "b");
    *s.rule() = Rule { strategy: Strategy::Ordered, overflow: None, ..overflowing(&["a", "b"]) };
    assert_eq!(s.flows(3.0, &["100@90", "100@0"]).0, "b");
    assert_eq!(s.flows(63.0, &["100@90", "100@0"]).0, "a");
}

proptest! {
    #[test]
    fn no_flow_moves_but_those_of_a_path_that_fails_and_new_ones_never_meet_a_full_line_without_need(
        steps in vec((0.0_f64..70.0, vec((prop_oneof![4 => Just("100"), 1 => Just("60"), 1 => Just("0"), 1 => Just("x"), 1 => Just("?")], 0_u8..=100), 3)), 1..40),
        translated in any::<bool>(),
    ) {
        let make = || {
            let mut s = Story::new(overflowing(&["a", "b", "c"]));
            for path in s.site.paths.values_mut() {
                std::sync::Arc::make_mut(path).nat = if translated { Nat::Masquerade } else { Nat::None };
            }
            s
        };
        let (mut one, mut two) = (make(), make());
        let mut now = 0.0;
        for (pause, states) in &steps {
            now += pause;
            let texts: Vec<String> = states.iter().map(|(score, load)| format!("{score}@{load}")).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let (to, told) = one.flows(now, &texts);
            prop_assert_eq!(&told, &two.flows(now, &texts).1);
            prop_assert_eq!(&one.selection, &two.selection);
            let state = |path: &str| one.healths[path].state;
            let works = |path: &str| matches!(state(path), PathState::Up | PathState::Degraded);
            prop_assert!(state(&to) != PathState::Down || !["a", "b", "c"].into_iter().any(works), "{to}");
            let choice = one.choice();
            let full = |path: &str| choice.members.iter().any(|m| m.path.as_str() == path && m.brim.is_full());
            let fit: Vec<&str> = choice.carrying().map(Name::as_str).collect();
            prop_assert!(!full(&to) || fit.iter().all(|path| full(path) || !works(path)), "{to} of {fit:?}");
            for member in &fit {
                prop_assert_eq!(one.stays(member), Some(*member), "what a fit path carries stays on it");
            }
            // An overflow and its end touch no flow.
            for t in &told {
                let fails = t.from.as_ref().is_some_and(|from| !fit.contains(&from.as_str()));
                prop_assert!(fails || t.flows == Flows::Graceful, "{t:?}");
            }
        }
    }
}
