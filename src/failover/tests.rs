//! Stories with explicit time, and properties.

use std::collections::BTreeMap;

use proptest::{
    collection::vec,
    prelude::{Just, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
    strategy::Strategy as Values,
};

use super::*;
use crate::{
    clock::Wall,
    health::{
        Figures, PathHealth, PathState, Stats,
        tests::{limits, name, path, site},
    },
    units::Ratio,
    validate::intent::{Damping, Endpoint, FlowAction, GatewaySpec, Metric, NoPath, Strategy},
};

const T0: Instant = Instant::from_nanos(1_000_000_000_000);

pub(super) fn at(seconds: f64) -> Instant {
    T0 + Duration::from_secs_f64(seconds)
}

pub(super) fn rule(members: &[&str]) -> Rule {
    Rule { strategy: Strategy::BestScore, ..Rule::new(name("critical"), members.iter().map(|m| name(m)).collect()) }
}

/// `?` = not yet measured, `x` = no carrier, else the score.
pub(super) fn health(text: &str) -> PathHealth {
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
    PathHealth {
        state,
        score,
        loss: Ratio::ZERO,
        latency,
        jitter,
        rounds: 20,
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

pub(super) struct Story {
    pub(super) site: Site,
    pub(super) healths: Healths,
    pub(super) measures: Measures,
    pub(super) selection: Selection,
    pub(super) overrides: Overrides,
    pub(super) next: Option<(Instant, &'static str)>,
}

impl Story {
    pub(super) fn new(rule: Rule) -> Self {
        let mut site = site(rule.members.iter().map(|m| path(m.as_str(), 1, 1000)).collect());
        let healths = rule.members.iter().map(|m| (m.clone(), health("?"))).collect();
        site.rules.insert(rule.name.clone(), rule);
        Self {
            site,
            healths,
            measures: BTreeMap::new(),
            selection: Selection::default(),
            overrides: Overrides::default(),
            next: None,
        }
    }

    pub(super) fn rule(&mut self) -> &mut Rule {
        self.site.rules.get_mut("critical").unwrap()
    }

    /// Sets the members' health in order of preference and selects, twice: the second time nothing may change.
    fn step(&mut self, seconds: f64, healths: &[&str]) -> Option<Transition> {
        self.set(healths);
        self.select(at(seconds))
    }

    pub(super) fn set(&mut self, healths: &[&str]) {
        let members = self.site.rules["critical"].members.clone();
        for (member, text) in members.iter().zip(healths) {
            self.healths.insert(member.clone(), health(text));
        }
    }

    fn select(&mut self, now: Instant) -> Option<Transition> {
        let inputs =
            Inputs { site: &self.site, healths: &self.healths, measures: &self.measures, overrides: &self.overrides };
        let mut decision = decide(&inputs, &mut self.selection, now);
        let before = self.selection.clone();
        let again = decide(&inputs, &mut self.selection, now);
        assert_eq!((&self.selection, again.transitions, again.routes), (&before, vec![], false), "asking again");
        assert_eq!(again.next, decision.next);
        assert!(decision.next.is_none_or(|(at, _)| at > now), "{:?} at {now:?}", decision.next);
        self.next = decision.next;
        assert!(decision.transitions.len() <= self.site.rules.len());
        decision.transitions.pop()
    }

    pub(super) fn choice(&self) -> &Choice {
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

use TransitionKind::{Better, Exhausted, Failback, Failover, Initial, Manual};

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
    assert_eq!((t.from, t.to, t.flows, t.at), (Some(name("fiber")), Some(name("lte")), Flows::Forced, at(1.0)));
    s.step(2.0, &["90", "100"]);
    assert_eq!(s.next, Some((at(62.0), "return to a primary")));
    assert_eq!(failback_in(&s.site.rules["critical"], s.choice(), at(12.0)), Some(Duration::from_secs(50)));
    let t = s.step(62.0, &["90", "100"]).unwrap();
    assert_eq!((t.reason.as_str(), t.flows), ("fiber scored 90 >= 80 for 60 s; lte scored 100", Flows::Graceful));
    assert_eq!(s.next, None);
    let t = s.step(63.0, &["x", "0"]).unwrap();
    assert_eq!(
        t.reason,
        "no path is up: fiber is down: no carrier on wan0; lte is down: 3 rounds lost in a row; staying on fiber"
    );
    assert_eq!(t.flows, Flows::Graceful);
}

#[test]
fn flows_of_a_path_that_is_only_degraded_are_left_alone() {
    let mut s = Story::new(Rule { failover_threshold: 70, failback_threshold: 90, ..rule(&["fiber", "lte"]) });
    s.step(0.0, &["100", "100"]);
    let t = s.step(1.0, &["60", "100"]).unwrap();
    assert_eq!((t.kind, t.flows), (Failover, Flows::Graceful));
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
    assert_eq!(t.reason, "fiber scored 40; lte scored 100");
    assert_eq!(t.alternatives[0].lost, "its score 40 is below 50");
    assert_eq!(t.alternatives[0].measured, "latency 100.0ms above 50ms");
    assert_eq!(t.flows, Flows::Graceful, "the path itself is up");
    s.measures.insert(name("lte"), Stats { dead: true, ..stats(40) });
    let t = s.step(1.0, &["100", "0"]).unwrap();
    assert_eq!(s.active(), "fiber", "out of the class is better than dead");
    assert_eq!(t.reason, "lte: 3 rounds lost in a row (score 0 < 50); fiber scored 40");
    s.measures.insert(name("lte"), stats(40));
    s.step(2.0, &["100", "100"]);
    assert_eq!(s.active(), "lte");
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

#[test]
fn a_path_that_was_down_is_held_before_it_is_used_unless_no_other_is_up() {
    let hold =
        Rule { hold_down: Duration::from_secs(10), strategy: Strategy::Ordered, ..rule(&["fiber", "dsl", "lte"]) };
    let mut s = tell(
        "hold-down",
        hold,
        &[
            (0.0, &["100", "100", "100"], "fiber", Some(Initial)),
            (1.0, &["100", "x", "100"], "fiber", None),
            (5.0, &["100", "100", "100"], "fiber", None),
            (6.0, &["x", "100", "100"], "lte", Some(Failover)),
            (7.0, &["x", "100", "x"], "dsl", Some(Failover)),
        ],
    );
    let inputs = Inputs { site: &s.site, healths: &s.healths, measures: &s.measures, overrides: &s.overrides };
    let seen = views(&inputs, &s.site.rules["critical"], s.choice(), at(7.0));
    assert_eq!((seen[1].standing, seen[1].remaining), (Standing::Held, Some(8.0)));
    assert_eq!(s.next, Some((at(15.0), "a path that is held or damped")));
    s.step(8.0, &["x", "100", "100"]);
    assert_eq!(s.tail(), ["lte", "fiber"]);
}

const DAMPING: Damping = Damping { penalty: 1000, half_life: Duration::from_secs(60), suppress: 2500, reuse: 1000 };

#[test]
fn a_path_that_flaps_is_damped_and_used_again_when_it_was_quiet() {
    let mut s =
        Story::new(Rule { damping: Some(DAMPING), failback_delay: Duration::from_secs(1), ..rule(&["fiber", "lte"]) });
    s.step(0.0, &["100", "100"]);
    for n in 1..=3 {
        s.step(f64::from(4 * n), &["0", "100"]);
        s.step(f64::from(4 * n + 1), &["100", "100"]);
        s.select(at(f64::from(4 * n + 2)));
    }
    assert_eq!(s.active(), "lte", "three flaps within 8 s");
    let until = s.next.unwrap();
    assert_eq!(until.1, "a path that is held or damped");
    let t = s.step(20.0, &["100", "0"]).unwrap();
    assert_eq!((s.active(), t.kind), ("fiber", Failover), "never the last path");
    assert!(t.reason.contains("fiber flapped and is damped for"), "{}", t.reason);
    s.step(21.0, &["100", "100"]);
    s.step(22.0, &["0", "100"]);
    assert_eq!(s.active(), "lte");
    s.step(23.0, &["100", "100"]);
    let free = s.next.unwrap().0;
    assert!(free > until.0, "another flap, a longer wait");
    assert!(s.select(free).is_none());
    assert_eq!(s.select(free + Duration::from_secs(1)).map(|t| t.kind), Some(Failback));
}

#[test]
fn a_drained_path_is_left_and_used_only_as_the_last_one() {
    let mut s = Story::new(rule(&["fiber", "lte"]));
    s.step(0.0, &["100", "60"]);
    s.overrides.drains.insert(name("fiber"), Drain { since: Wall::default(), force: false });
    let t = s.select(at(1.0)).unwrap();
    assert_eq!((s.active(), t.kind, t.flows), ("lte", Manual, Flows::Graceful));
    assert_eq!(t.reason, "fiber is drained by hand; lte scored 60");
    s.step(100.0, &["100", "100"]);
    assert_eq!(s.active(), "lte", "no return to a drained path");
    s.step(101.0, &["100", "0"]);
    assert_eq!(s.active(), "fiber", "the last one");
    s.step(102.0, &["100", "60"]);
    assert_eq!(s.active(), "lte");
    s.overrides.drains.insert(name("fiber"), Drain { since: Wall::default(), force: true });
    let t = s.step(103.0, &["100", "0"]).unwrap();
    assert_eq!((s.active(), t.kind), ("lte", Exhausted), "by force: not even as the last one");
    assert!(s.tail().is_empty());
    s.overrides.drains.clear();
    assert_eq!(s.select(at(104.0)).map(|t| t.kind), Some(Failover));
}

#[test]
fn an_order_by_hand_holds_until_it_ends_and_never_on_a_dead_path() {
    let mut s = Story::new(Rule { failover_threshold: 70, ..rule(&["fiber", "lte"]) });
    s.step(0.0, &["100", "100"]);
    let pin = Pin { to: name("lte"), until: at(100.0), reason: "work on the mast".into() };
    s.overrides.pins.insert(name("critical"), pin);
    let t = s.select(at(1.0)).unwrap();
    assert_eq!((s.active(), t.kind), ("lte", Manual));
    assert_eq!(t.reason, "by hand for 99s: work on the mast; lte scored 100");
    assert_eq!(t.alternatives[0].lost, "pinned to lte by hand");
    assert_eq!(s.step(90.0, &["100", "60"]), None, "bad, and held there");
    s.step(91.0, &["100", "0"]);
    assert_eq!(s.active(), "fiber", "never on a dead path");
    s.step(92.0, &["100", "100"]);
    assert_eq!(s.active(), "lte");
    assert_eq!(s.next, Some((at(100.0), "the end of an order by hand")));
    assert_eq!(s.select(at(100.0)), None, "it waits to restore as always");
    s.selection.rules.get_mut("critical").unwrap().hasten();
    let t = s.select(at(101.0)).unwrap();
    assert_eq!(
        (t.kind, t.reason.as_str()),
        (Failback, "fiber scored 100 >= 80 and was asked for by hand; lte scored 100")
    );
    assert_eq!(s.overrides.expire(at(101.0)).len(), 1);
    assert!(s.overrides.pins.is_empty());
}

#[test]
fn a_rule_that_is_pinned_to_a_path_that_flaps_goes_back_to_it_once_per_hold_down_and_never_unmeasured() {
    let hold_down = Duration::from_secs(20);
    let mut s = Story::new(Rule { hold_down, damping: Some(DAMPING), ..rule(&["fiber", "lte"]) });
    s.step(0.0, &["100", "100"]);
    let pin = Pin { to: name("lte"), until: at(10_000.0), reason: "work on the mast".into() };
    s.overrides.pins.insert(name("critical"), pin);
    assert_eq!(s.select(at(1.0)).map(|t| t.kind), Some(Manual));
    s.step(10.0, &["100", "x"]);
    assert_eq!(s.active(), "fiber");
    assert_eq!(s.step(15.0, &["100", "?"]), None, "its carrier is back, and nothing else is known");
    assert_eq!(s.step(16.0, &["100", "100"]), None, "held");
    assert_eq!(s.step(36.0, &["100", "100"]).map(|t| t.kind), Some(Manual));
    let mut back = Vec::new();
    for second in 40..400 {
        let state = if second % 10 < 5 { "x" } else { "100" };
        let moved = s.step(f64::from(second), &["100", state]);
        back.extend(moved.filter(|t| t.to == Some(name("lte"))).map(|_| second));
    }
    assert_eq!(back, [0; 0], "it is never up for as long as it is held");
}

fn figures(ms: u64) -> Stats {
    let latency = Some(Duration::from_millis(ms));
    let figures = Figures { rounds: 20, loss: Ratio::ZERO, evident: Ratio::ZERO, latency, jitter: None };
    Stats { slow: figures, fast: figures, dead: false }
}

#[test]
fn best_quality_moves_to_what_is_clearly_better_for_long_enough() {
    let advantage = Some(Ratio::from_ppm(100_000).unwrap());
    let best = Rule { strategy: Strategy::BestQuality, metric: Metric::Latency, advantage, ..rule(&["fiber", "lte"]) };
    let mut s = Story::new(best);
    let mut step = |seconds: f64, fiber: u64, lte: u64| {
        s.measures.insert(name("fiber"), figures(fiber));
        s.measures.insert(name("lte"), figures(lte));
        let t = s.step(seconds, &["100", "100"]);
        (s.active().to_owned(), t.map(|t| (t.kind, t.reason)))
    };
    assert_eq!(step(0.0, 40, 30).0, "lte");
    assert_eq!(step(1.0, 28, 30), ("lte".into(), None), "not by a tenth");
    assert_eq!(step(2.0, 20, 30), ("lte".into(), None));
    assert_eq!(step(30.0, 28, 30), ("lte".into(), None), "the wait begins anew");
    assert_eq!(step(40.0, 20, 30), ("lte".into(), None));
    let (active, Some((kind, reason))) = step(100.0, 20, 30) else { panic!("it moves") };
    assert_eq!((active.as_str(), kind), ("fiber", Better));
    assert_eq!(reason, "latency of fiber 20.0ms is better than 30.0ms of lte by 10% or more for 60 s");
}

#[test]
fn lowest_cost_takes_the_cheapest_that_is_good_and_never_simply_the_cheapest() {
    let cheap = Rule { strategy: Strategy::LowestCost, ..rule(&["fiber", "dsl", "lte"]) };
    let mut s = Story::new(cheap);
    for (path, cost) in [("fiber", 5), ("dsl", 1), ("lte", 10)] {
        let endpoint = Endpoint {
            interface: "wan0".parse().unwrap(),
            address: None,
            gateway: GatewaySpec::Auto,
            down: None,
            up: None,
            cost,
            metered: false,
        };
        s.site.endpoints.insert(name(path), endpoint);
    }
    s.step(0.0, &["100", "100", "100"]);
    assert_eq!(s.active(), "dsl");
    let t = s.step(1.0, &["100", "40", "100"]).unwrap();
    assert_eq!((s.active(), t.alternatives[2].lost.as_str()), ("fiber", "it costs 10, more than 5"));
    s.step(2.0, &["30", "20", "45"]);
    assert_eq!(s.active(), "fiber", "none is good, and the one in use works");
    s.step(3.0, &["0", "20", "45"]);
    assert_eq!(s.active(), "fiber", "all are down");
    s.step(4.0, &["0", "60", "45"]);
    assert_eq!(s.active(), "dsl");
    s.step(5.0, &["100", "100", "100"]);
    assert_eq!(s.active(), "dsl", "it is the cheapest");
}

#[test]
fn of_paths_that_are_all_too_bad_lowest_cost_takes_the_best() {
    let cheap = Rule {
        strategy: Strategy::LowestCost,
        failover_threshold: 90,
        failback_threshold: 95,
        ..rule(&["a", "b", "c"])
    };
    let mut s = Story::new(cheap);
    s.step(0.0, &["x", "55", "70"]);
    assert_eq!(s.active(), "c");
}

#[test]
fn of_paths_that_are_all_down_the_least_bad_is_taken_where_the_rule_says_so() {
    let mut s = Story::new(Rule { no_path: NoPath::LeastBad, ..rule(&["fiber", "lte"]) });
    let lossy = |ppm| {
        let mut stats = figures(20);
        stats.fast.loss = Ratio::from_ppm(ppm).unwrap();
        stats
    };
    s.measures.insert(name("fiber"), lossy(600_000));
    s.measures.insert(name("lte"), lossy(300_000));
    s.step(0.0, &["100", "100"]);
    let t = s.step(1.0, &["0", "0"]).unwrap();
    assert_eq!((s.active(), t.kind), ("lte", Exhausted));
    assert!(t.reason.ends_with("; the least bad is lte"), "{}", t.reason);
    s.measures.insert(name("fiber"), lossy(100_000));
    assert_eq!(s.step(2.0, &["0", "0"]), None, "it does not jump between bad ones");
    s.measures.insert(name("lte"), Stats { dead: true, ..lossy(1_000_000) });
    s.step(3.0, &["0", "0"]);
    assert_eq!(s.active(), "fiber", "but from a dead one it goes");
}

#[test]
fn flows_are_drained_forced_or_rejected_as_the_rule_says() {
    let drain = FlowAction::Drain(Duration::from_secs(600));
    let mut s = Story::new(Rule {
        on_failover: drain,
        on_failback: FlowAction::Reject,
        failover_threshold: 70,
        ..rule(&["fiber", "lte"])
    });
    s.step(0.0, &["100", "100"]);
    let t = s.step(1.0, &["60", "100"]).unwrap();
    assert_eq!((t.flows, s.choice().leaving.len()), (Flows::Drain, 1));
    s.step(2.0, &["100", "100"]);
    let t = s.select(at(62.0)).unwrap();
    assert_eq!((t.kind, t.flows), (Failback, Flows::Reject));
    let left: Vec<_> = s.choice().leaving.iter().map(|l| (l.path.as_str(), l.told)).collect();
    assert_eq!(left, [("lte", Told::Errors)], "fiber is in use again: nothing to drain");
    let decide_at = |s: &mut Story, now| {
        let inputs = Inputs { site: &s.site, healths: &s.healths, measures: &s.measures, overrides: &s.overrides };
        decide(&inputs, &mut s.selection, now)
    };
    assert_eq!(s.next, Some((at(122.0), "flows of a path that was left")));
    let done = decide_at(&mut s, at(122.0));
    assert_eq!(done.forget.iter().map(|(_, path, _)| path.as_str()).collect::<Vec<_>>(), ["lte"]);
    assert!(done.routes, "the rule that rejects goes");
    assert!(decide_at(&mut s, at(122.0)).forget.is_empty());
}

#[test]
fn tcp_is_told_before_flows_of_a_living_path_are_forgotten_and_nobody_is_when_it_is_dead() {
    let told = |s: &Story| s.choice().leaving.iter().map(|l| l.told).collect::<Vec<_>>();
    let decide_at = |s: &mut Story, now| {
        let inputs = Inputs { site: &s.site, healths: &s.healths, measures: &s.measures, overrides: &s.overrides };
        decide(&inputs, &mut s.selection, now)
    };
    let forced = Rule { on_failover: FlowAction::Forced, failover_threshold: 70, ..rule(&["fiber", "lte"]) };
    let mut s = Story::new(forced.clone());
    s.step(0.0, &["100", "100"]);
    let t = s.step(1.0, &["60", "100"]).unwrap();
    assert_eq!((t.flows, told(&s)), (Flows::Forced, vec![Told::Resets]));
    assert!(decide_at(&mut s, at(1.9)).forget.is_empty());
    assert_eq!(decide_at(&mut s, at(2.0)).forget.len(), 1);
    assert!(told(&s).is_empty());

    let mut s = Story::new(forced);
    s.step(0.0, &["100", "100"]);
    s.set(&["0", "100"]);
    let gone = decide_at(&mut s, at(1.0));
    assert_eq!((gone.transitions[0].flows, gone.forget.len(), told(&s)), (Flows::Forced, 1, vec![]));

    let drain = FlowAction::Drain(Duration::from_secs(60));
    let mut s = Story::new(Rule { on_failover: drain, failover_threshold: 70, ..rule(&["fiber", "lte"]) });
    s.step(0.0, &["100", "100"]);
    s.step(1.0, &["60", "100"]);
    assert_eq!(told(&s), [Told::Nothing]);
    assert!(decide_at(&mut s, at(61.0)).forget.is_empty());
    assert_eq!(told(&s), [Told::Resets]);
    assert_eq!(decide_at(&mut s, at(62.0)).forget.len(), 1);
}

#[test]
fn flows_that_stayed_on_a_path_are_forgotten_when_it_dies_unless_the_rule_says_that_they_stay() {
    for (action, forgotten) in [(FlowAction::Auto, 1), (FlowAction::Graceful, 0), (FlowAction::Reject, 0)] {
        let mut s = Story::new(Rule { on_failover: action, failover_threshold: 70, ..rule(&["fiber", "lte"]) });
        s.step(0.0, &["100", "100"]);
        s.step(1.0, &["60", "100"]);
        assert_eq!(s.active(), "lte");
        s.set(&["0", "100"]);
        let inputs = Inputs { site: &s.site, healths: &s.healths, measures: &s.measures, overrides: &s.overrides };
        let died = decide(&inputs, &mut s.selection, at(2.0));
        assert_eq!((died.transitions.len(), died.forget.len()), (0, forgotten), "{action:?}");
        assert!(decide(&inputs, &mut s.selection, at(3.0)).forget.is_empty(), "once");
    }
}

#[test]
fn a_flapping_path_costs_at_most_one_return_per_hold_down_and_none_to_a_dead_path() {
    for (period, flaps) in [(1, 300), (2, 200), (5, 120), (15, 60), (45, 40), (130, 20)] {
        let steady = Rule {
            damping: Some(DAMPING),
            hold_down: Duration::from_secs(20),
            failback_delay: Duration::from_secs(20),
            ..rule(&["fiber", "lte"])
        };
        let (mut s, mut returns, mut penalties) = (Story::new(steady), Vec::new(), Vec::new());
        for second in 0..period * flaps {
            let up = (second / period) % 2 == 0;
            let t = s.step(f64::from(second), &[if up { "100" } else { "0" }, "100"]);
            assert!(up || s.active() == "lte", "period {period}, at {second} s");
            returns.extend(t.filter(|t| t.kind == Failback).map(|_| second));
            let seen = s.choice().members[0].penalty(&DAMPING, at(f64::from(second)));
            penalties.push(seen);
        }
        assert!(returns.windows(2).all(|w| w[1] - w[0] >= 20), "period {period}: {returns:?}");
        assert!(returns.is_empty() || period > 20, "period {period}: {returns:?}");
        let (rises, decays) = (penalties.windows(2).any(|w| w[0] < w[1]), penalties.windows(2).any(|w| w[0] > w[1]));
        assert!(rises && decays, "period {period}: damping rises and decays");
    }
}

pub(super) fn any_health() -> impl Values<Value = String> {
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
