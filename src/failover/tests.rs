//! Stories with explicit time, and properties.

use std::collections::BTreeMap;

use proptest::{
    collection::vec,
    prelude::{Just, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
    strategy::Strategy as Values,
};

use super::*;
use crate::{
    health::{
        Figures, PathHealth, Stats,
        tests::{limits, name, path, site},
    },
    units::Ratio,
};

const T0: Instant = Instant::from_nanos(1_000_000_000_000);

fn at(seconds: f64) -> Instant {
    T0 + Duration::from_secs_f64(seconds)
}

fn rule(members: &[&str]) -> Rule {
    Rule {
        name: name("critical"),
        members: members.iter().map(|m| name(m)).collect(),
        strategy: Strategy::BestScore,
        failover_threshold: 50,
        failback_threshold: 80,
        failback_delay: Duration::from_secs(60),
        sla: None,
        no_path: NoPath::Keep,
    }
}

/// `?` = not yet measured, `x` = no carrier, else the score.
fn health(text: &str) -> PathHealth {
    let (state, score, reason) = match text {
        "?" => (PathState::Unknown, 0, "not yet measured"),
        "x" => (PathState::Down, 0, "no carrier on wan0"),
        "0" => (PathState::Down, 0, "3 rounds lost in a row"),
        score => {
            let score = score.parse().unwrap();
            (PathState::of(score), score, "latency 400.0ms above 150ms")
        }
    };
    let carrier = text != "x";
    let (latency, jitter, reason) = (None, None, reason.to_owned());
    PathHealth { state, score, loss: Ratio::ZERO, latency, jitter, rounds: 20, carrier, since: T0, reason }
}

struct Story {
    site: Site,
    healths: Healths,
    measures: Measures,
    selection: Selection,
}

impl Story {
    fn new(rule: Rule) -> Self {
        let mut site = site(rule.members.iter().map(|m| path(m.as_str(), 1, 1000)).collect());
        let healths = rule.members.iter().map(|m| (m.clone(), health("?"))).collect();
        site.rules.insert(rule.name.clone(), rule);
        Self { site, healths, measures: BTreeMap::new(), selection: Selection::default() }
    }

    fn rule(&mut self) -> &mut Rule {
        self.site.rules.get_mut("critical").unwrap()
    }

    /// Sets the members' health in order of preference and selects, twice: the second time nothing may change.
    fn step(&mut self, seconds: f64, healths: &[&str]) -> Option<Transition> {
        let members = self.site.rules["critical"].members.clone();
        for (member, text) in members.iter().zip(healths) {
            self.healths.insert(member.clone(), health(text));
        }
        self.select(at(seconds))
    }

    fn select(&mut self, now: Instant) -> Option<Transition> {
        let (selection, mut transitions) = select(&self.site, &self.healths, &self.measures, &self.selection, now);
        let again = select(&self.site, &self.healths, &self.measures, &selection, now);
        assert_eq!(again, (selection.clone(), vec![]), "asking again changes nothing");
        self.selection = selection;
        assert!(transitions.len() <= 1);
        transitions.pop()
    }

    fn choice(&self) -> &Choice {
        &self.selection.rules["critical"]
    }

    fn active(&self) -> &str {
        self.choice().active.as_ref().map_or("-", Name::as_str)
    }

    fn tail(&self) -> Vec<&str> {
        self.choice().tail.iter().map(Name::as_str).collect()
    }
}

/// Steps are: second, health of each member, active path afterwards, and the kind of transition if there is one.
type Line<'a> = (f64, &'a [&'a str], &'a str, Option<TransitionKind>);

fn tell(title: &str, rule: Rule, lines: &[Line]) -> Story {
    let mut story = Story::new(rule);
    for (seconds, healths, active, kind) in lines {
        let transition = story.step(*seconds, healths);
        let context = format!("{title}, at {seconds} s: {transition:?}");
        assert_eq!(story.active(), *active, "{context}");
        assert_eq!(transition.map(|t| t.kind), *kind, "{context}");
    }
    story
}

use TransitionKind::{Exhausted, Failback, Failover, Initial};

#[test]
fn leaves_a_dead_primary_and_returns_after_a_minute_of_health() {
    tell(
        "carrier",
        rule(&["fiber", "lte"]),
        &[
            (0.0, &["?", "?"], "fiber", Some(Initial)),
            (1.0, &["100", "100"], "fiber", None),
            (2.0, &["x", "100"], "lte", Some(Failover)),
            (3.0, &["?", "100"], "lte", None),
            (6.0, &["100", "100"], "lte", None),
            (65.9, &["100", "100"], "lte", None),
            (66.0, &["100", "100"], "fiber", Some(Failback)),
            (67.0, &["100", "100"], "fiber", None),
        ],
    );
}

#[test]
fn a_break_in_the_primary_s_health_starts_the_delay_anew() {
    tell(
        "break",
        rule(&["fiber", "lte"]),
        &[
            (0.0, &["0", "100"], "lte", Some(Initial)),
            (1.0, &["100", "100"], "lte", None),
            (59.0, &["79", "100"], "lte", None),
            (60.0, &["80", "100"], "lte", None),
            (119.9, &["80", "100"], "lte", None),
            (120.0, &["80", "100"], "fiber", Some(Failback)),
        ],
    );
}

#[test]
fn a_good_backup_is_not_left_for_a_better_one() {
    tell(
        "stay",
        rule(&["fiber", "dsl", "lte"]),
        &[
            (0.0, &["100", "100", "100"], "fiber", Some(Initial)),
            (1.0, &["0", "60", "90"], "lte", Some(Failover)),
            (2.0, &["0", "100", "70"], "lte", None),
            (3.0, &["0", "100", "50"], "lte", None),
            (4.0, &["0", "100", "49"], "dsl", Some(Failover)),
        ],
    );
}

#[test]
fn ordered_takes_the_first_usable_and_best_score_the_first_of_equals() {
    let ordered = Rule { strategy: Strategy::Ordered, ..rule(&["fiber", "dsl", "lte"]) };
    tell("ordered", ordered, &[(0.0, &["0", "50", "100"], "dsl", Some(Initial))]);
    tell("equals", rule(&["fiber", "dsl", "lte"]), &[(0.0, &["0", "90", "90"], "dsl", Some(Initial))]);
    tell("best", rule(&["fiber", "dsl", "lte"]), &[(0.0, &["0", "50", "100"], "lte", Some(Initial))]);
}

#[test]
fn nothing_better_nothing_done() {
    tell(
        "both degraded",
        Rule { failover_threshold: 90, failback_threshold: 95, ..rule(&["fiber", "lte"]) },
        &[
            (0.0, &["100", "100"], "fiber", Some(Initial)),
            (1.0, &["70", "75"], "fiber", None),
            (2.0, &["70", "95"], "lte", Some(Failover)),
            (3.0, &["70", "0"], "fiber", Some(Failover)),
        ],
    );
}

#[test]
fn all_down_keeps_the_last_path_and_takes_the_first_that_comes_up() {
    let story = tell(
        "keep",
        rule(&["fiber", "dsl", "lte"]),
        &[
            (0.0, &["100", "100", "100"], "fiber", Some(Initial)),
            (1.0, &["0", "0", "100"], "lte", Some(Failover)),
            (2.0, &["0", "0", "0"], "lte", Some(Exhausted)),
            (3.0, &["0", "0", "x"], "lte", None),
            (4.0, &["0", "55", "0"], "dsl", Some(Failover)),
            (5.0, &["0", "0", "0"], "dsl", Some(Exhausted)),
            (6.0, &["100", "0", "0"], "fiber", Some(Failover)),
        ],
    );
    assert!(!story.choice().exhausted);
    assert_eq!(story.tail(), ["dsl", "lte"], "dead ones stay in reach");
}

#[test]
fn all_down_rejects_where_the_rule_says_so() {
    let story = tell(
        "reject",
        Rule { no_path: NoPath::Reject, ..rule(&["fiber", "lte"]) },
        &[
            (0.0, &["100", "0"], "fiber", Some(Initial)),
            (1.0, &["0", "0"], "-", Some(Exhausted)),
            (2.0, &["0", "?"], "-", None),
            (3.0, &["0", "60"], "lte", Some(Failover)),
        ],
    );
    assert!(story.tail().is_empty(), "what is down is out of reach");
}

#[test]
fn a_change_of_no_path_takes_effect_while_all_is_down() {
    let mut story = tell("keep", rule(&["fiber", "lte"]), &[(0.0, &["0", "0"], "fiber", Some(Exhausted))]);
    story.rule().no_path = NoPath::Reject;
    assert_eq!(story.step(1.0, &["0", "0"]).map(|t| t.kind), Some(Exhausted));
    assert_eq!(story.active(), "-");
    story.rule().no_path = NoPath::Keep;
    assert_eq!(story.step(2.0, &["0", "0"]).map(|t| t.kind), Some(Exhausted));
    assert_eq!(story.active(), "fiber");
}

#[test]
fn the_unmeasured_neither_cause_a_move_nor_stop_one() {
    tell(
        "unknown",
        rule(&["fiber", "dsl", "lte"]),
        &[
            (0.0, &["?", "100", "100"], "fiber", Some(Initial)),
            (1.0, &["0", "?", "60"], "lte", Some(Failover)),
            (2.0, &["0", "?", "0"], "dsl", Some(Failover)),
            (3.0, &["0", "0", "?"], "lte", Some(Failover)),
        ],
    );
}

#[test]
fn the_primary_is_taken_at_once_when_the_backup_fails() {
    tell(
        "no waiting",
        rule(&["fiber", "lte"]),
        &[
            (0.0, &["0", "100"], "lte", Some(Initial)),
            (10.0, &["100", "100"], "lte", None),
            (11.0, &["100", "0"], "fiber", Some(Failover)),
        ],
    );
}

#[test]
fn reasons_name_figures_thresholds_and_the_alternative() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    assert_eq!(s.step(0.0, &["?", "?"]).unwrap().reason, "the primary; fiber is not yet measured");
    let t = s.step(1.0, &["0", "100"]).unwrap();
    assert_eq!(t.reason, "fiber: 3 rounds lost in a row (score 0 < 50); lte scored 100");
    assert_eq!((t.from, t.to, t.forget, t.at), (Some(name("fiber")), Some(name("lte")), true, at(1.0)));
    s.step(2.0, &["90", "100"]);
    assert_eq!(next_deadline(&s.site, &s.selection), Some((at(62.0), "return to a primary")));
    assert_eq!(failback_in(&s.site.rules["critical"], s.choice(), at(12.0)), Some(Duration::from_secs(50)));
    let t = s.step(62.0, &["90", "100"]).unwrap();
    assert_eq!((t.reason.as_str(), t.forget), ("fiber scored 90 >= 80 for 60 s; lte scored 100", false));
    assert_eq!(next_deadline(&s.site, &s.selection), None);
    let t = s.step(63.0, &["x", "0"]).unwrap();
    assert_eq!(
        t.reason,
        "no path is up: fiber is down: no carrier on wan0; lte is down: 3 rounds lost in a row; staying on fiber"
    );
    assert!(!t.forget);
}

#[test]
fn flows_of_a_path_that_is_only_degraded_are_left_alone() {
    let mut s = Story::new(Rule { failover_threshold: 70, failback_threshold: 90, ..rule(&["fiber", "lte"]) });
    s.step(0.0, &["100", "100"]);
    let t = s.step(1.0, &["60", "100"]).unwrap();
    assert_eq!((t.kind, t.forget), (Failover, false));
}

#[test]
fn a_rule_s_own_thresholds_decide_for_it_alone() {
    let mut s = Story::new(Rule { sla: Some(limits(50, 5, 30)), ..rule(&["fiber", "lte"]) });
    let stats = |ms| {
        let latency = Some(Duration::from_millis(ms));
        let figures = Figures { rounds: 20, loss: Ratio::ZERO, evident: Ratio::ZERO, latency, jitter: None };
        Stats { slow: figures, fast: figures, dead: false }
    };
    s.measures.insert(name("fiber"), stats(100));
    s.measures.insert(name("lte"), stats(40));
    let t = s.step(0.0, &["100", "100"]).unwrap();
    assert_eq!(s.active(), "lte", "100 ms of 50 ms costs 60 points");
    assert_eq!(t.reason, "fiber is down: latency 100.0ms above 50ms; lte scored 100");
    assert!(!t.forget, "the path itself is up");
    s.measures.insert(name("lte"), Stats { dead: true, ..stats(40) });
    s.step(1.0, &["100", "0"]);
    assert_eq!(s.active(), "lte", "out of the class is not better than dead, and both are down to this rule");
    s.measures.insert(name("fiber"), stats(60));
    s.step(2.0, &["100", "0"]);
    assert_eq!(s.active(), "fiber");
}

#[test]
fn the_selection_survives_a_new_configuration() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    s.step(0.0, &["0", "100"]);
    s.step(1.0, &["100", "100"]);
    let since = s.choice().since;
    s.rule().members = vec![name("fiber"), name("dsl"), name("lte")];
    let other = Rule { name: name("bulk"), ..rule(&["lte"]) };
    s.site.rules.insert(name("bulk"), other);
    assert_eq!(s.step(2.0, &["100", "?", "100"]).map(|t| t.rule), Some(name("bulk")));
    assert_eq!((s.active(), s.choice().since, s.choice().recovering), ("lte", since, Some(at(1.0))));
    assert_eq!(s.tail(), ["fiber", "dsl"]);
    s.rule().members = vec![name("fiber"), name("dsl")];
    s.site.rules.remove("bulk");
    let t = s.step(3.0, &["100", "100"]).unwrap();
    assert_eq!((t.kind, t.reason.as_str()), (Initial, "lte is no longer a member; fiber scored 100"));
    assert!(!s.selection.rules.contains_key("bulk"));
}

#[test]
fn the_tail_is_best_state_first_and_preference_within() {
    let mut s = Story::new(rule(&["a", "b", "c", "d", "e"]));
    s.step(0.0, &["100", "0", "60", "?", "95"]);
    assert_eq!(s.tail(), ["e", "c", "d", "b"]);
    s.rule().no_path = NoPath::Reject;
    s.step(1.0, &["100", "0", "60", "?", "95"]);
    assert_eq!(s.tail(), ["e", "c", "d"]);
}

fn any_health() -> impl Values<Value = String> {
    prop_oneof![Just("?".to_owned()), Just("x".to_owned()), (0_u8..=100).prop_map(|s| s.to_string())]
}

proptest! {
    #[test]
    fn never_on_a_down_path_while_one_is_up_and_deterministic(
        steps in vec((0.0_f64..100.0, vec(any_health(), 4)), 1..40),
        ordered in any::<bool>(),
        reject in any::<bool>(),
        threshold in 1_u8..=100,
    ) {
        let strategy = if ordered { Strategy::Ordered } else { Strategy::BestScore };
        let no_path = if reject { NoPath::Reject } else { NoPath::Keep };
        let make = || Story::new(Rule {
            strategy, no_path, failover_threshold: threshold, failback_threshold: threshold, ..rule(&["a", "b", "c", "d"])
        });
        let (mut one, mut two) = (make(), make());
        let mut now = 0.0;
        for (pause, healths) in &steps {
            now += pause;
            let healths: Vec<&str> = healths.iter().map(String::as_str).collect();
            let transition = one.step(now, &healths);
            prop_assert_eq!(&transition, &two.step(now, &healths));
            prop_assert_eq!(&one.selection, &two.selection);
            let up = one.healths.values().any(|h| h.state == PathState::Up);
            let state = one.choice().active.as_ref().map(|a| one.healths[a.as_str()].state);
            prop_assert!(!up || !matches!(state, None | Some(PathState::Down)), "{:?}", one.choice());
            prop_assert!(one.choice().active.as_ref().is_none_or(|a| !one.choice().tail.contains(a)));
        }
    }

    #[test]
    fn a_flapping_primary_is_returned_to_at_most_once_per_delay(
        steps in vec((1_u32..20_000, 0_u8..=100), 1..200),
    ) {
        let mut s = Story::new(rule(&["fiber", "lte"]));
        let mut now = 0.0;
        let mut last: Option<f64> = None;
        for (ms, score) in steps {
            now += f64::from(ms) / 1000.0;
            let returned = s.step(now, &[&score.to_string(), "100"]).is_some_and(|t| t.kind == Failback);
            if returned {
                prop_assert!(last.is_none_or(|last| now - last >= 59.999), "{last:?} {now}");
                last = Some(now);
            }
        }
    }
}
