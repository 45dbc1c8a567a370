//! Rules that share new flows: stories with explicit time, and properties.

use proptest::{
    collection::vec,
    prelude::{any, prop_assert, prop_assert_eq, proptest},
};

use super::{
    super::{
        Drain, Inputs, Pin, decide,
        tests::{Story, any_health, at, health, rule},
    },
    *,
};
use crate::{
    clock::Wall,
    health::tests::name,
    validate::intent::{Balance, Sticky, Strategy},
};
use TransitionKind::{Exhausted, Failback, Failover, Initial, Manual};

/// A rule that shares among these paths, equally.
fn sharing(members: &[&str]) -> Rule {
    let weights = members.iter().map(|m| (name(m), 1)).collect();
    let balance = Some(Balance { weights, sticky: Some(Sticky::Source) });
    Rule { strategy: Strategy::LoadBalance, balance, ..rule(members) }
}

impl Story {
    /// Sets the members' health in order and decides, twice: the second time nothing may change. The paths in use, and
    /// what moved.
    fn shares(&mut self, seconds: f64, healths: &[&str]) -> (Vec<&str>, Vec<Transition>) {
        let members = self.site.rules["critical"].members.clone();
        for (member, text) in members.iter().zip(healths) {
            self.healths.insert(member.clone(), health(text));
        }
        let inputs =
            Inputs { site: &self.site, healths: &self.healths, measures: &self.measures, overrides: &self.overrides };
        let decision = decide(&inputs, &mut self.selection, at(seconds));
        let before = self.selection.clone();
        let again = decide(&inputs, &mut self.selection, at(seconds));
        assert_eq!((&self.selection, again.transitions, again.routes), (&before, vec![], false), "asking again");
        assert!(decision.next.is_none_or(|(next, _)| next > at(seconds)), "{:?} at {seconds}", decision.next);
        self.next = decision.next;
        (self.choice().in_use().map(Name::as_str).collect(), decision.transitions)
    }

    fn member(&self, member: &str) -> (&Rule, &Name) {
        let rule = &self.site.rules["critical"];
        (rule, rule.members.iter().find(|m| m.as_str() == member).unwrap())
    }

    /// The first hop of new flows that drew a member.
    fn leads(&self, member: &str) -> Option<&str> {
        let (rule, member) = self.member(member);
        drawn(rule, self.choice(), member).first().map(|path| path.as_str())
    }

    /// The first hop of the flows that are bound to a member.
    fn bound(&self, member: &str) -> Option<&str> {
        let (rule, member) = self.member(member);
        ways(&self.site, rule, self.choice(), member).first().map(|path| path.as_str())
    }
}

fn moves(transitions: &[Transition]) -> Vec<(TransitionKind, &str, &str, Flows)> {
    let text = |n: &Option<Name>| n.as_ref().map_or("-", |n| n.as_str()).to_owned();
    let told = |t: &Transition| (t.kind, text(&t.from), text(&t.to), t.flows);
    let all: Vec<_> = transitions.iter().map(told).collect();
    all.into_iter().map(|(kind, from, to, flows)| (kind, &*from.leak(), &*to.leak(), flows)).collect()
}

#[test]
fn all_that_are_healthy_share_and_a_death_moves_only_its_own() {
    let mut s = Story::new(sharing(&["a", "b", "c"]));
    let (used, told) = s.shares(0.0, &["?", "?", "?"]);
    assert_eq!(used, ["a", "b", "c"]);
    assert_eq!(moves(&told), [(Initial, "-", "a", Flows::Graceful)]);
    assert_eq!(s.shares(1.0, &["100", "100", "100"]).1, []);
    let (used, told) = s.shares(2.0, &["100", "0", "100"]);
    assert_eq!(used, ["a", "c"]);
    assert_eq!(moves(&told), [(Failover, "b", "c", Flows::Forced)]);
    assert_eq!((s.leads("a"), s.leads("b"), s.leads("c")), (Some("a"), Some("c"), Some("c")));
    // Two more die: what is left carries all.
    let (used, told) = s.shares(3.0, &["0", "0", "100"]);
    assert_eq!((used, moves(&told)), (vec!["c"], vec![(Failover, "a", "c", Flows::Forced)]));
    assert_eq!((s.leads("a"), s.leads("b")), (Some("c"), Some("c")));
}

#[test]
fn a_path_comes_back_after_its_wait_and_moves_no_flow() {
    let mut s = Story::new(sharing(&["a", "b"]));
    s.shares(0.0, &["100", "100"]);
    s.shares(1.0, &["0", "100"]);
    assert_eq!(s.shares(2.0, &["100", "100"]).0, ["b"]);
    assert_eq!(s.next, Some((at(62.0), "return to a primary")));
    // Below the failback threshold the wait begins anew.
    assert_eq!(s.shares(50.0, &["79", "100"]).0, ["b"]);
    assert_eq!(s.shares(51.0, &["80", "100"]).0, ["b"]);
    assert_eq!(s.shares(110.9, &["80", "100"]).0, ["b"]);
    let (used, told) = s.shares(111.0, &["80", "100"]);
    assert_eq!((used, moves(&told)), (vec!["a", "b"], vec![(Failback, "b", "a", Flows::Graceful)]));
    assert!(told[0].reason.contains("80 >= 80 for 60s"), "{}", told[0].reason);
    assert_eq!(s.choice().recovering, None);
}

#[test]
fn a_return_that_is_asked_for_happens_at_once() {
    let mut s = Story::new(sharing(&["a", "b"]));
    s.shares(0.0, &["100", "100"]);
    s.shares(1.0, &["100", "x"]);
    s.shares(2.0, &["100", "100"]);
    s.selection.rules.get_mut("critical").unwrap().hasten();
    let (used, told) = s.shares(3.0, &["100", "100"]);
    assert_eq!(used, ["a", "b"]);
    assert!(told[0].reason.contains("asked for by hand"), "{}", told[0].reason);
}

#[test]
fn when_none_is_good_all_that_work_share() {
    let picky = Rule { failover_threshold: 90, failback_threshold: 95, ..sharing(&["a", "b", "c"]) };
    let mut s = Story::new(picky);
    s.shares(0.0, &["100", "100", "100"]);
    assert_eq!(s.shares(1.0, &["60", "100", "100"]).0, ["b", "c"]);
    assert_eq!(s.shares(2.0, &["60", "0", "70"]).0, ["a", "c"]);
    // One that is good again is better than all that are not.
    assert_eq!(s.shares(3.0, &["60", "100", "70"]).0, ["b"]);
}

#[test]
fn the_unmeasured_change_nothing_also_after_a_restart() {
    let mut s = Story::new(sharing(&["a", "b", "c"]));
    s.shares(0.0, &["100", "100", "100"]);
    s.shares(1.0, &["0", "100", "100"]);
    assert_eq!(s.shares(2.0, &["?", "?", "?"]), (vec!["b", "c"], vec![]), "a restart keeps what was remembered");
    assert_eq!(s.shares(3.0, &["?", "?", "60"]).0, ["b", "c"]);
    assert_eq!(s.shares(4.0, &["0", "?", "0"]).0, ["b"], "one that is dead is left for it");
}

#[test]
fn all_down_keeps_those_that_were_in_use_or_rejects() {
    let mut s = Story::new(sharing(&["a", "b", "c"]));
    s.shares(0.0, &["100", "100", "100"]);
    s.shares(1.0, &["0", "100", "100"]);
    let (used, told) = s.shares(2.0, &["0", "0", "0"]);
    assert_eq!(used, ["b", "c"]);
    assert_eq!(moves(&told), [(Exhausted, "b", "b", Flows::Graceful)]);
    assert_eq!(s.shares(3.0, &["0", "0", "60"]).0, ["c"]);
    let mut s = Story::new(Rule { no_path: NoPath::Reject, ..sharing(&["a", "b"]) });
    s.shares(0.0, &["100", "100"]);
    let (used, told) = s.shares(1.0, &["0", "x"]);
    assert!(used.is_empty());
    assert_eq!(moves(&told), [(Exhausted, "a", "-", Flows::Forced), (Exhausted, "b", "-", Flows::Forced)]);
    assert_eq!((s.leads("a"), s.leads("b")), (None, None), "the kernel does not fall back to what is down");
    assert_eq!(s.shares(2.0, &["0", "100"]).0, ["b"]);
}

#[test]
fn orders_by_hand_hold_for_rules_that_share() {
    let mut s = Story::new(sharing(&["a", "b"]));
    s.shares(0.0, &["100", "100"]);
    s.overrides.drains.insert(name("a"), Drain { since: Wall::default(), force: false });
    let (used, told) = s.shares(1.0, &["100", "100"]);
    assert_eq!((used, moves(&told)), (vec!["b"], vec![(Manual, "a", "b", Flows::Graceful)]));
    assert_eq!(s.shares(2.0, &["100", "0"]).0, ["a"], "the last one that works");
    s.overrides.drains.clear();
    s.shares(100.0, &["100", "100"]);
    assert_eq!(s.shares(160.0, &["100", "100"]).0, ["a", "b"]);
    let pin = Pin { to: name("b"), until: at(200.0), reason: "works at the mast".into() };
    s.overrides.pins.insert(name("critical"), pin);
    let (used, told) = s.shares(161.0, &["100", "100"]);
    assert_eq!((used, moves(&told)), (vec!["b"], vec![(Manual, "a", "b", Flows::Graceful)]));
    assert_eq!(s.shares(200.0, &["100", "100"]).0, ["b"], "not before its wait");
    assert_eq!(s.shares(221.0, &["100", "100"]).0, ["a", "b"]);
}

#[test]
fn translated_flows_stay_on_a_path_that_works_and_is_left_and_others_follow() {
    for (nat, stays) in [(Nat::Masquerade, "b"), (Nat::None, "c")] {
        let mut s = Story::new(Rule { failover_threshold: 70, ..sharing(&["a", "b", "c"]) });
        s.site.paths.values_mut().for_each(|path| std::sync::Arc::make_mut(path).nat = nat);
        s.shares(0.0, &["100", "100", "100"]);
        assert_eq!((s.leads("b"), s.bound("b")), (Some("b"), Some("b")));
        let (used, told) = s.shares(1.0, &["100", "60", "100"]);
        assert_eq!((used, moves(&told)), (vec!["a", "c"], vec![(Failover, "b", "c", Flows::Graceful)]));
        assert_eq!((s.leads("b"), s.bound("b"), s.bound("a")), (Some("c"), Some(stays), Some("a")));
        s.shares(2.0, &["100", "100", "100"]);
        assert_eq!(s.shares(62.0, &["100", "100", "100"]).0, ["a", "b", "c"]);
        assert_eq!((s.leads("b"), s.bound("b")), (Some("b"), Some("b")));
    }
}

#[test]
fn a_rule_begins_and_ends_to_share_with_its_configuration() {
    let mut s = Story::new(Rule { strategy: Strategy::Ordered, balance: None, ..sharing(&["a", "b"]) });
    s.shares(0.0, &["0", "100"]);
    let balance = sharing(&["a", "b"]).balance;
    s.rule().balance = balance;
    s.rule().strategy = Strategy::LoadBalance;
    assert_eq!(s.shares(1.0, &["100", "100"]).0, ["a", "b"]);
    s.rule().balance = None;
    s.rule().strategy = Strategy::Ordered;
    assert_eq!(s.shares(2.0, &["100", "100"]).0, ["a"]);
}

proptest! {
    #[test]
    fn a_change_moves_only_the_flows_of_paths_that_leave_or_come(
        steps in vec((0.0_f64..100.0, vec(any_health(), 4)), 1..40),
        reject in any::<bool>(),
    ) {
        let no_path = if reject { NoPath::Reject } else { NoPath::Keep };
        let make = || Story::new(Rule { no_path, ..sharing(&["a", "b", "c", "d"]) });
        let (mut one, mut two) = (make(), make());
        let mut now = 0.0;
        for (pause, healths) in &steps {
            now += pause;
            let healths: Vec<&str> = healths.iter().map(String::as_str).collect();
            let before = one.choice_or_none();
            let (used, told) = one.shares(now, &healths);
            let used: Vec<String> = used.into_iter().map(str::to_owned).collect();
            prop_assert_eq!(&told, &two.shares(now, &healths).1);
            prop_assert_eq!(&one.selection, &two.selection);
            let up = one.healths.values().any(|h| h.state == PathState::Up);
            let bad = used.iter().any(|u| one.healths[u.as_str()].state == PathState::Down);
            prop_assert!(!up || (!used.is_empty() && !bad), "{used:?}");
            for member in ["a", "b", "c", "d"] {
                let leads = one.leads(member);
                // Who is in use carries its own; the others' flows go to one that is.
                if used.iter().any(|u| u == member) {
                    prop_assert_eq!(leads, Some(member));
                } else if !used.is_empty() {
                    prop_assert!(leads.is_some_and(|l| used.iter().any(|u| u == l)), "{member} {leads:?} {used:?}");
                }
            }
            // Nobody leaves or comes without a record.
            for member in before.iter().filter(|m| !used.contains(m)) {
                prop_assert!(told.iter().any(|t| t.from.as_ref().is_some_and(|f| f.as_str() == member)), "{member}: {told:?}");
            }
        }
    }
}

impl Story {
    fn choice_or_none(&self) -> Vec<String> {
        let choice = self.selection.rules.get("critical");
        choice.into_iter().flat_map(Choice::in_use).map(ToString::to_string).collect()
    }
}
