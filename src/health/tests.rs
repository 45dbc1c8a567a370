//! Stories with explicit time, and the rate of false alarms.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use super::*;
use crate::validate::intent::{Destination, Health, Nat, Path, Probe, Site};

pub fn name(s: &str) -> Name {
    s.parse().unwrap()
}

pub fn limits(latency: u64, loss_percent: u32, jitter: u64) -> Health {
    Health {
        latency: Duration::from_millis(latency),
        loss: Ratio::from_ppm(loss_percent * 10_000).unwrap(),
        jitter: Duration::from_millis(jitter),
        recover: None,
    }
}

pub fn target(i: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, u8::try_from(i).unwrap()))
}

pub fn path(path: &str, targets: usize, interval_ms: u64) -> Path {
    Path {
        name: name(path),
        from: name(path),
        to: Destination::Internet,
        interface: "wan0".parse().unwrap(),
        nat: Nat::Masquerade,
        mtu: None,
        probe: Probe {
            targets: (0..targets).map(target).collect(),
            interval: Duration::from_millis(interval_ms),
            timeout: Duration::from_millis(interval_ms * 8 / 10),
            ..Probe::default()
        }
        .into(),
        health: limits(150, 2, 30),
    }
}

pub fn site(paths: Vec<Path>) -> Site {
    Site {
        name: name("berlin"),
        labels: BTreeMap::new(),
        lan: vec![],
        endpoints: BTreeMap::new(),
        paths: paths.into_iter().map(|p| (p.name.clone(), p.into())).collect(),
        rules: BTreeMap::new(),
        policies: vec![],
        beyond: std::collections::BTreeMap::new(),
    }
}

const T0: Instant = Instant::from_nanos(1_000_000_000_000);

/// One path under test and its clock.
struct Story {
    monitor: Monitor,
    site: Site,
    round: u64,
}

impl Story {
    fn new(targets: usize, interval_ms: u64) -> Self {
        let site = site(vec![path("fiber", targets, interval_ms)]);
        Self { monitor: Monitor::new(&site, T0), site, round: 0 }
    }

    fn probe(&self) -> &Probe {
        &self.site.paths["fiber"].probe
    }

    fn at(&self) -> Instant {
        T0 + self.probe().interval * u32::try_from(self.round).unwrap()
    }

    /// One round; each entry is a round-trip time in milliseconds, 0 = lost.
    fn round(&mut self, ms: &[u64]) -> &PathHealth {
        self.round += 1;
        let answer = |(i, ms): (usize, &u64)| (target(i), (*ms > 0).then(|| Duration::from_millis(*ms)));
        let answers: Vec<_> = ms.iter().enumerate().map(answer).collect();
        let sent = self.at();
        let wait = answers.iter().map(|(_, rtt)| rtt.unwrap_or(self.probe().timeout)).max().unwrap_or_default();
        let sample = Sample {
            path: name("fiber"),
            round: self.round,
            sent,
            done: sent + wait,
            answers,
            notes: Notes::default(),
        };
        self.monitor.handle_sample(&sample, sent + wait);
        self.health()
    }

    fn rounds(&mut self, n: usize, ms: &[u64]) -> &PathHealth {
        for _ in 0..n {
            self.round(ms);
        }
        self.health()
    }

    fn health(&self) -> &PathHealth {
        &self.monitor.healths()["fiber"]
    }
}

#[test]
fn the_first_answer_makes_a_new_path_up() {
    let mut s = Story::new(1, 1000);
    assert_eq!(s.health().state, PathState::Unknown);
    assert_eq!(s.health().latency, None);
    let h = s.round(&[20]);
    assert_eq!((h.state, h.score, h.latency), (PathState::Up, 100, Some(Duration::from_millis(20))));
    let event = s.monitor.poll_event().unwrap();
    assert_eq!((event.from, event.to), (PathState::Unknown, PathState::Up));
    assert_eq!(s.monitor.poll_event(), None);
}

#[test]
fn three_rounds_lost_in_a_row_are_down_and_three_good_ones_end_it() {
    let mut s = Story::new(1, 1000);
    s.rounds(20, &[20]);
    assert_eq!(s.rounds(2, &[0]).state, PathState::Up);
    let h = s.round(&[0]);
    assert_eq!((h.state, h.score, h.reason.as_str()), (PathState::Down, 0, "3 rounds lost in a row"));
    assert_eq!(s.rounds(2, &[20]).state, PathState::Down);
    assert_eq!(s.round(&[0]).state, PathState::Down);
    assert_eq!(s.rounds(2, &[20]).state, PathState::Down);
    // Three good ones at last, but losses lie before the latest outage too: 3 of the fast view's 10.
    assert_eq!(s.round(&[20]).state, PathState::Down);
    assert!(s.health().reason.contains("loss"), "{}", s.health().reason);
    assert_eq!(s.rounds(20, &[20]).state, PathState::Up);
}

#[test]
fn an_outage_that_is_over_does_not_make_a_path_lossy() {
    for outage in [3, 5, 20, 100] {
        let mut s = Story::new(2, 1000);
        s.rounds(20, &[20, 20]);
        assert_eq!(s.rounds(outage, &[0, 0]).state, PathState::Down);
        assert_eq!(s.rounds(2, &[20, 20]).state, PathState::Down);
        let h = s.round(&[20, 20]);
        assert_eq!((h.state, h.score), (PathState::Up, 100), "{outage} rounds");
        assert!(h.loss > Ratio::ZERO, "the report still shows it");
    }
}

/// The twin: where losses go on, the end of one outage is not the end of the matter.
#[test]
fn outages_one_after_the_other_do() {
    let mut s = Story::new(2, 1000);
    s.rounds(20, &[20, 20]);
    for _ in 0..3 {
        s.rounds(3, &[0, 0]);
        s.rounds(1, &[20, 20]);
    }
    assert_eq!(s.rounds(3, &[20, 20]).state, PathState::Down);
}

#[test]
fn three_losses_count_however_short_the_history_is() {
    for before in 1..20 {
        let mut s = Story::new(3, 1000);
        s.rounds(before, &[20, 20, 20]);
        for _ in 0..2 {
            s.round(&[0, 0, 0]);
            s.round(&[20, 20, 20]);
        }
        let h = s.round(&[0, 0, 0]);
        assert_eq!(h.state, PathState::Down, "after {before} good rounds: {h:?}");
    }
}

#[test]
fn no_answer_at_all_is_loss_1_and_no_latency() {
    let mut s = Story::new(2, 1000);
    let h = s.rounds(3, &[0, 0]);
    assert_eq!((h.state, h.loss, h.latency, h.jitter), (PathState::Down, Ratio::ONE, None, None));
    s.rounds(5, &[20, 20]);
    let h = s.rounds(20, &[0, 0]);
    assert_eq!((h.loss, h.latency, h.jitter), (Ratio::ONE, None, None));
}

#[test]
fn one_lost_probe_never_makes_a_path_leave() {
    for before in 0..25 {
        let mut s = Story::new(1, 1000);
        s.rounds(before, &[20]);
        let expected = if before == 0 { PathState::Unknown } else { PathState::Up };
        assert_eq!(s.round(&[0]).state, expected, "after {before} good rounds");
        assert_eq!(s.round(&[20]).score, 100);
    }
}

#[test]
fn a_dead_target_among_several_does_not_count() {
    for dead in [&[0_u64, 20][..], &[0, 20, 21], &[0, 0, 21]] {
        let mut s = Story::new(dead.len(), 1000);
        assert!((0..40).all(|_| s.round(dead).score == 100), "{dead:?} from the start");
        let alive = vec![20; dead.len()];
        let mut s = Story::new(dead.len(), 1000);
        s.rounds(20, &alive);
        assert!((0..40).all(|_| s.round(dead).score == 100), "{dead:?} dies");
        assert_eq!(s.health().loss, Ratio::ZERO);
        assert!((0..40).all(|_| s.round(&alive).score == 100), "{dead:?} comes back");
        assert_eq!(s.rounds(3, &vec![0; dead.len()]).state, PathState::Down, "all die");
    }
}

#[test]
fn a_slow_target_does_not_speak_for_the_path() {
    let mut s = Story::new(3, 1000);
    s.rounds(20, &[20, 25, 30]);
    assert_eq!(s.rounds(20, &[20, 25, 700]).score, 100);
    assert_eq!(s.health().latency, Some(Duration::from_millis(25)));
}

#[test]
fn two_hundred_milliseconds_more_are_noticed_after_two_answers_and_one_is_not_enough() {
    let mut s = Story::new(3, 100);
    Arc::make_mut(s.site.paths.get_mut("fiber").unwrap()).health = limits(100, 5, 30);
    let site = s.site.clone();
    s.monitor.reconfigure(&site, T0);
    s.rounds(20, &[20, 20, 20]);
    assert_eq!(s.round(&[220, 220, 220]).state, PathState::Up);
    let h = s.round(&[220, 220, 220]);
    assert_eq!(h.state, PathState::Down);
    assert!(h.reason.contains("latency 220.0ms above 100ms"), "{}", h.reason);
    // The window's mean has to come down before the path is good again.
    s.rounds(4, &[220, 220, 220]);
    assert_ne!(s.rounds(3, &[20, 20, 20]).state, PathState::Down);
    assert_eq!(s.rounds(20, &[20, 20, 20]).score, 100);
}

#[test]
fn carrier_loss_is_down_at_once_and_its_return_needs_evidence() {
    let mut s = Story::new(1, 1000);
    s.rounds(20, &[20]);
    let now = s.at();
    s.monitor.set_carrier(&name("fiber"), false, now);
    assert_eq!((s.health().state, s.health().carrier, s.health().since), (PathState::Down, false, now));
    assert_eq!(s.health().reason, "no carrier on wan0");
    assert!(s.monitor.measures()["fiber"].dead);
    assert_eq!(s.rounds(2, &[20]).state, PathState::Down, "answers cannot outvote the carrier");
    s.monitor.set_link(&name("fiber"), Link::Missing, s.at());
    assert_eq!(s.health().reason, "interface wan0 does not exist");
    s.monitor.set_carrier(&name("fiber"), true, s.at());
    assert_eq!(s.health().state, PathState::Unknown);
    assert_eq!(s.rounds(2, &[20]).state, PathState::Unknown);
    assert_eq!(s.round(&[20]).state, PathState::Up);
}

#[test]
fn a_silent_prober_makes_paths_unknown_and_not_down() {
    let mut s = Story::new(1, 1000);
    s.rounds(5, &[20]);
    let silent = s.at() + Duration::from_millis(20 + 5_000 + 800);
    // It may ask to be called too early, never too late.
    let mut calls = 0;
    while let Some((at, why)) = s.monitor.poll_timeout() {
        assert!(at <= silent && s.health().state != PathState::Unknown, "{at:?}");
        assert_eq!(why, "a path of which the prober may report nothing");
        s.monitor.handle_timeout(at);
        calls += 1;
        assert!(calls <= 2 && (s.health().state == PathState::Unknown) == (at == silent), "{at:?}");
    }
    assert_eq!(s.health().state, PathState::Unknown);
}

#[test]
fn a_pass_however_long_makes_no_path_unknown() {
    for pass in [2, 14, 600].map(Duration::from_secs) {
        let mut s = Story::new(1, 1000);
        s.rounds(20, &[20]);
        let now = s.at() + pass;
        s.monitor.excuse(pass, now);
        s.monitor.handle_timeout(now);
        s.monitor.set_link(&name("fiber"), Link::Ready, now);
        assert_eq!((s.health().state, s.monitor.poll_timeout().is_some()), (PathState::Up, true), "{pass:?}");
        s.round += pass.as_secs();
        assert_eq!(s.round(&[20]).state, PathState::Up);
        s.monitor.handle_timeout(s.at() + Duration::from_secs(7));
        assert_eq!(s.health().state, PathState::Unknown, "the prober is still watched");
    }
}

#[test]
fn the_checker_sees_a_pass_that_nobody_excuses() {
    let mut s = Story::new(1, 1000);
    s.rounds(20, &[20]);
    let now = s.at() + Duration::from_secs(14);
    s.monitor.set_link(&name("fiber"), Link::Ready, now);
    assert_eq!(s.health().state, PathState::Unknown);
}

#[test]
fn an_unprobed_path_lives_by_its_carrier() {
    let mut s = Story::new(0, 1000);
    assert_eq!((s.health().state, s.health().score), (PathState::Up, 100));
    s.monitor.set_carrier(&name("fiber"), false, T0);
    assert_eq!(s.health().state, PathState::Down);
    s.monitor.set_carrier(&name("fiber"), true, T0);
    assert_eq!(s.health().state, PathState::Up);
}

#[test]
fn reconfiguring_keeps_the_history_of_paths_whose_probing_is_the_same() {
    let mut s = Story::new(1, 1000);
    s.rounds(10, &[20]);
    let mut changed = s.site.clone();
    Arc::make_mut(changed.paths.get_mut("fiber").unwrap()).health = limits(10, 5, 30);
    changed.paths.insert(name("lte"), path("lte", 1, 5000).into());
    s.monitor.reconfigure(&changed, s.at());
    assert_eq!((s.health().rounds, s.health().score), (10, 40), "20 ms of 10 ms cost 60 points");
    assert_eq!(s.monitor.healths()["lte"].state, PathState::Unknown);
    let fiber = Arc::make_mut(changed.paths.get_mut("fiber").unwrap());
    Arc::make_mut(&mut fiber.probe).interval = Duration::from_millis(500);
    s.monitor.reconfigure(&changed, s.at());
    assert_eq!((s.health().rounds, s.health().state), (0, PathState::Unknown));
    changed.paths.remove("fiber");
    s.monitor.reconfigure(&changed, s.at());
    assert!(!s.monitor.healths().contains_key("fiber") && !s.monitor.measures().contains_key("fiber"));
}

/// A round of a path with one target, 100 ms after the one before.
fn sample(round: u64, rtt: Option<u64>) -> Sample {
    Sample {
        path: name("fiber"),
        round,
        sent: T0 + Duration::from_millis(100 * round),
        done: T0 + Duration::from_millis(100 * round + 80),
        answers: vec![(target(0), rtt.map(Duration::from_millis))],
        notes: Notes::default(),
    }
}

#[test]
fn what_another_configuration_asked_says_nothing_of_a_path() {
    let asks = |target| {
        let mut path = path("fiber", 1, 100);
        Arc::make_mut(&mut path.probe).targets = vec![target];
        site(vec![path])
    };
    let mut monitor = Monitor::new(&asks(target(0)), T0);
    for round in 1..=5 {
        monitor.handle_sample(&sample(round, Some(20)), T0 + Duration::from_millis(100 * round + 80));
    }
    assert_eq!(monitor.healths()[&name("fiber")].state, PathState::Up);
    // The prober asks the old target still, which answers; or what it had asked comes late.
    let changed = T0 + Duration::from_millis(600);
    monitor.reconfigure(&asks(target(1)), changed);
    for round in 6..=8 {
        monitor.handle_sample(&sample(round, Some(20)), T0 + Duration::from_millis(100 * round + 80));
    }
    assert_eq!(monitor.healths()[&name("fiber")].state, PathState::Unknown);
    let of_before = Sample { answers: vec![(target(1), None)], ..sample(5, None) };
    for round in 9..=11 {
        monitor.handle_sample(&Sample { round, ..of_before.clone() }, changed + Duration::from_millis(round));
    }
    assert_eq!(monitor.healths()[&name("fiber")].state, PathState::Unknown, "sent before there was this path");
    for round in 12..=14 {
        let lost = Sample { answers: vec![(target(1), None)], ..sample(round, None) };
        monitor.handle_sample(&lost, T0 + Duration::from_millis(100 * round + 80));
    }
    assert_eq!(monitor.healths()[&name("fiber")].state, PathState::Down, "its own silence counts");
}

#[test]
fn samples_that_come_late_are_sorted_in_and_none_counts_twice() {
    let mut s = Story::new(1, 100);
    s.rounds(5, &[20]);
    let now = T0 + Duration::from_secs(1);
    s.monitor.handle_sample(&sample(9, Some(20)), now);
    for round in [6, 7, 8, 8, 7] {
        s.monitor.handle_sample(&sample(round, None), now);
    }
    assert_eq!(s.health().rounds, 9);
    assert_ne!(s.health().reason, "3 rounds lost in a row", "the newest round was answered");
}

#[test]
fn losses_that_come_late_count_in_a_full_window_too() {
    let mut s = Story::new(1, 100);
    s.rounds(24, &[20]);
    let now = T0 + Duration::from_secs(3);
    s.monitor.handle_sample(&sample(28, Some(20)), now);
    assert_eq!(s.health().state, PathState::Up);
    for round in [27, 26, 25] {
        s.monitor.handle_sample(&sample(round, None), now);
    }
    let h = s.health();
    assert_eq!((h.state, h.rounds), (PathState::Down, 20), "{}: 3 of the newest 10 are lost", h.reason);
}

#[test]
fn the_score_follows_the_formula() {
    let figures = |latency, loss_ppm, jitter| Figures {
        rounds: 20,
        loss: Ratio::ZERO,
        evident: Ratio::from_ppm(loss_ppm).unwrap(),
        latency: Some(Duration::from_millis(latency)),
        jitter: Some(Duration::from_millis(jitter)),
    };
    for (latency, loss, jitter, expected) in [
        (150, 50_000, 30, 100),
        (151, 0, 0, 69),
        (300, 0, 0, 40),
        (0, 62_500, 0, 50),
        (0, 0, 45, 55),
        (200, 60_000, 40, 0),
        (10_000, 1_000_000, 10_000, 0),
    ] {
        assert_eq!(points(&figures(latency, loss, jitter), &limits(150, 5, 30)), expected, "{latency} {loss} {jitter}");
    }
}

#[test]
fn jitter_is_that_of_rfc_3550() {
    let mut s = Story::new(1, 1000);
    s.round(&[20]);
    assert_eq!(s.health().jitter, None);
    assert_eq!(s.round(&[36]).jitter, Some(Duration::from_millis(1)));
    assert_eq!(s.round(&[20]).jitter, Some(Duration::from_nanos(1_937_500)));
}

/// A small generator, so that the figures in the documentation can be made again.
struct Dice(u64);

impl Dice {
    fn lose(&mut self, ppm: u64) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % 1_000_000 < ppm
    }
}

/// How often the state becomes down, and the median number of rounds until it first does.
fn alarms(targets: usize, rounds: usize, loss_ppm: u64, seed: u64) -> usize {
    let mut dice = Dice(seed);
    let mut s = Story::new(targets, 1000);
    let mut alarms = 0;
    let mut was = PathState::Up;
    for _ in 0..rounds {
        let ms: Vec<u64> = (0..targets).map(|_| if dice.lose(loss_ppm) { 0 } else { 20 }).collect();
        let state = s.round(&ms).state;
        alarms += usize::from(state == PathState::Down && was != PathState::Down);
        was = state;
    }
    alarms
}

fn rounds_to_leave(targets: usize, loss_ppm: u64, seed: u64) -> usize {
    let mut dice = Dice(seed);
    let mut s = Story::new(targets, 100);
    s.rounds(20, &vec![20; targets]);
    (1..1000)
        .find(|_| {
            let ms: Vec<u64> = (0..targets).map(|_| if dice.lose(loss_ppm) { 0 } else { 20 }).collect();
            s.round(&ms).state == PathState::Down
        })
        .unwrap()
}

#[test]
fn false_alarms_are_rare_and_thirty_percent_loss_is_found_in_time() {
    let rounds = std::env::var("ROUNDS").map_or(40_000, |n| n.parse().unwrap());
    for (targets, loss, per_day) in
        [(1, 0, 0.0), (1, 10_000, 8.0), (1, 20_000, 50.0), (3, 10_000, 2.5), (3, 20_000, 5.0)]
    {
        let found = alarms(targets, rounds, loss, 0x9e37_79b9_7f4a_7c15);
        #[allow(clippy::cast_precision_loss)]
        let rate = found as f64 * 86_400.0 / rounds as f64;
        println!("{targets} targets, {loss} ppm: {rate:.2} false alarms a day");
        assert!(rate <= per_day, "{targets} targets at {loss} ppm: {rate} a day");
    }
    for targets in 1..=3 {
        let mut found: Vec<usize> = (1..=301)
            .map(|seed| rounds_to_leave(targets, 300_000, 0x1234_5678_9abc_def1_u64.wrapping_mul(seed)))
            .collect();
        found.sort_unstable();
        println!("{targets} targets, 30 %: median {} rounds, 90 % within {}", found[150], found[270]);
        // A round takes 100 ms to be sent and 80 ms to be known lost.
        assert!(found[150] <= 13, "{targets} targets: {}", found[150]);
    }
}

/// Two paths that probe the same targets, of which so many have to answer.
struct Pair {
    monitor: Monitor,
    round: u64,
}

impl Pair {
    fn new(targets: usize, quorum: u32) -> Self {
        let paths = ["fiber", "lte"].map(|p| {
            let mut path = path(p, targets, 1000);
            Arc::make_mut(&mut path.probe).quorum = quorum;
            path
        });
        let mut pair = Self { monitor: Monitor::new(&site(paths.into()), T0), round: 0 };
        let all = vec![true; targets];
        pair.rounds(5, &all, &all);
        pair
    }

    /// Which targets are answered over the fibre, and over LTE.
    fn rounds(&mut self, n: usize, fiber: &[bool], lte: &[bool]) -> [PathState; 2] {
        for _ in 0..n {
            self.round += 1;
            for (path, answered) in [("fiber", fiber), ("lte", lte)] {
                let at = T0 + Duration::from_secs(self.round);
                let rtt = |a: &bool| a.then(|| Duration::from_millis(20));
                let answers = answered.iter().enumerate().map(|(t, a)| (target(t), rtt(a))).collect();
                let notes = Notes::default();
                let sample = Sample { path: name(path), round: self.round, sent: at, done: at, answers, notes };
                self.monitor.handle_sample(&sample, at);
            }
        }
        ["fiber", "lte"].map(|p| self.monitor.healths()[p].state)
    }
}

#[test]
fn a_target_that_fails_on_every_path_takes_none_of_them_down() {
    let mut pair = Pair::new(3, 3);
    let dead = [true, false, true];
    assert_eq!(pair.rounds(30, &dead, &dead), [PathState::Up; 2]);
    let alarms = pair.monitor.alarms();
    assert!(alarms.len() == 1 && alarms[0].contains("192.0.2.1 (icmp) fails on all 2 paths"), "{alarms:?}");
    // It has its vote back where it answers, and where it does not though it could.
    assert_eq!(pair.rounds(4, &[true; 3], &dead), [PathState::Up, PathState::Down]);
    assert!(pair.monitor.alarms().is_empty());
}

#[test]
fn the_checker_sees_a_target_that_keeps_its_vote() {
    // Without a second path that is ready, the dead target speaks against the first.
    let mut pair = Pair::new(3, 3);
    pair.monitor.set_carrier(&name("lte"), false, T0 + Duration::from_secs(5));
    assert_eq!(pair.rounds(4, &[true, false, true], &[true, false, true])[0], PathState::Down);
}

#[test]
fn when_nothing_answers_anywhere_states_are_held_until_something_does() {
    let mut pair = Pair::new(1, 1);
    assert_eq!(pair.rounds(60, &[false], &[false]), [PathState::Up; 2]);
    let health = &pair.monitor.healths()["fiber"];
    assert!(health.reason.starts_with("held") && health.score == 100, "{health:?}");
    assert!(pair.monitor.alarms()[0].contains("no target answers on any path"));
    // All is well again: no path is called down for what was nobody's fault.
    assert_eq!(pair.rounds(1, &[true], &[true]), [PathState::Up; 2]);
    assert_eq!(pair.monitor.healths()["fiber"].score, 100);
    // One path was really dead.
    pair.rounds(60, &[false], &[false]);
    assert_eq!(pair.rounds(2, &[false], &[true]), [PathState::Down, PathState::Up]);
}

#[test]
fn of_two_paths_with_one_target_a_dead_one_is_down() {
    let mut pair = Pair::new(1, 1);
    assert_eq!(pair.rounds(3, &[false], &[true]), [PathState::Down, PathState::Up]);
    // A loss on the other one does not bring it back.
    assert_eq!(pair.rounds(1, &[false], &[false]), [PathState::Down, PathState::Up]);
    assert_eq!(pair.rounds(1, &[false], &[true]), [PathState::Down, PathState::Up]);
}

#[test]
fn a_backup_that_has_long_been_dead_does_not_keep_the_last_path_from_being_found_down() {
    let mut pair = Pair::new(1, 1);
    assert_eq!(pair.rounds(10, &[true], &[false]), [PathState::Up, PathState::Down]);
    assert_eq!(pair.rounds(3, &[false], &[false]), [PathState::Down; 2]);
    assert!(pair.monitor.alarms().is_empty());
    // Both are back: when both fall silent at once, it is the observer again.
    assert_eq!(pair.rounds(30, &[true], &[true]), [PathState::Up; 2]);
    assert_eq!(pair.rounds(10, &[false], &[false]), [PathState::Up; 2]);
}

#[test]
fn what_a_path_s_own_traffic_slows_down_counts_as_before() {
    let mut s = Story::new(1, 1000);
    s.rounds(20, &[20]);
    s.monitor.set_load(&name("fiber"), Some(0.97), true);
    let busy = s.rounds(10, &[400]);
    assert_eq!((busy.state, busy.score), (PathState::Up, 100));
    assert!(busy.latency.unwrap() > Duration::from_millis(100), "what is shown is what was measured");
    assert!(busy.reason.starts_with("congested by its own traffic (97% of its bandwidth)"), "{}", busy.reason);
    assert!(s.monitor.alarms()[0].starts_with("path fiber is congested"));
    // Loss counts as ever, and so does latency once the line is not busy.
    assert_eq!(s.rounds(3, &[0]).state, PathState::Down);
    let mut s = Story::new(1, 1000);
    s.rounds(20, &[20]);
    assert_eq!(s.rounds(10, &[400]).state, PathState::Down);
}

/// A path that probes IPv4 twice and IPv6 once, beside one that does so too.
struct Dual {
    monitor: Monitor,
    round: u64,
}

impl Dual {
    fn site(quorum: u32) -> Site {
        let targets = ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(|t| t.parse().unwrap());
        let paths = ["fiber", "lte"].map(|p| {
            let mut path = path(p, 0, 1000);
            let probe = Arc::make_mut(&mut path.probe);
            (probe.targets, probe.quorum) = (targets.to_vec(), quorum);
            path
        });
        site(paths.into())
    }

    fn new(quorum: u32) -> Self {
        let mut dual = Self { monitor: Monitor::new(&Self::site(quorum), T0), round: 0 };
        dual.rounds(5, [true; 2], [true; 2]);
        while dual.monitor.poll_event().is_some() {}
        dual
    }

    /// Whether IPv4 and IPv6 answer over the fibre, and over LTE.
    fn rounds(&mut self, n: usize, fiber: [bool; 2], lte: [bool; 2]) -> [PathState; 3] {
        for _ in 0..n {
            self.round += 1;
            let at = T0 + Duration::from_secs(self.round);
            for (path, [four, six]) in [("fiber", fiber), ("lte", lte)] {
                let rtt = |answers: bool| answers.then(|| Duration::from_millis(20));
                let targets = [("192.0.2.1", four), ("2001:db8::1", six), ("192.0.2.2", four)];
                let answers = targets.map(|(t, answers)| (t.parse().unwrap(), rtt(answers))).to_vec();
                let (path, notes) = (name(path), Notes::default());
                let sample = Sample { path, round: self.round, sent: at, done: at, answers, notes };
                self.monitor.handle_sample(&sample, at);
            }
        }
        let health = self.fiber();
        [health.state, health.families[&Family::V4].state, health.families[&Family::V6].state]
    }

    fn fiber(&self) -> &PathHealth {
        &self.monitor.healths()["fiber"]
    }

    fn events(&mut self) -> Vec<(Option<Family>, PathState)> {
        std::iter::from_fn(|| self.monitor.poll_event()).map(|e| (e.family, e.to)).collect()
    }
}

#[test]
fn each_family_is_judged_by_its_own_targets_and_the_path_is_as_the_better_one() {
    use PathState::{Down, Up};
    const ALL: [bool; 2] = [true; 2];
    for quorum in [1, 3] {
        let mut s = Dual::new(quorum);
        assert_eq!(s.rounds(2, [true, false], ALL), [Up, Up, Up], "not yet three");
        assert_eq!(s.rounds(1, [true, false], ALL), [Up, Up, Down]);
        assert_eq!(s.events(), [(Some(Family::V6), Down)]);
        let fiber = s.fiber();
        assert_eq!((fiber.score, fiber.loss), (100, Ratio::ZERO), "the path is as IPv4 is");
        assert_eq!(fiber.reason, "within its thresholds; IPv6 is down: 3 rounds lost in a row");
        // The other one fails as well: the path is down, for one reason.
        assert_eq!(s.rounds(3, [false, false], ALL), [Down, Down, Down]);
        assert_eq!(s.events(), [(None, Down)]);
        assert_eq!(s.fiber().reason, "3 rounds lost in a row");
        // IPv6 is back first, and speaks.
        assert_eq!(s.rounds(3, [false, true], ALL), [Up, Down, Up]);
        assert_eq!(s.events(), [(None, Up)]);
        assert_eq!(s.rounds(3, ALL, ALL), [Up, Up, Up]);
        assert_eq!(s.events(), [(Some(Family::V4), Up)]);
        // Without a carrier there is nothing to tell apart.
        s.monitor.set_carrier(&name("fiber"), false, T0 + Duration::from_secs(60));
        assert_eq!((s.fiber().state, s.events()), (Down, vec![(None, Down)]));
        assert!(s.fiber().families.values().all(|f| f.reason == "no carrier on wan0"));
    }
}

#[test]
fn a_target_of_one_family_that_fails_on_every_path_is_suspect_and_its_family_is_held() {
    let mut s = Dual::new(1);
    assert_eq!(s.rounds(30, [true, false], [true, false]), [PathState::Up; 3]);
    assert!(s.fiber().families[&Family::V6].held && !s.fiber().held);
    assert!(s.monitor.alarms()[0].contains("2001:db8::1 (icmp) fails on all 2 paths"), "{:?}", s.monitor.alarms());
    // It answers elsewhere: here it is the path.
    assert_eq!(s.rounds(4, [true, false], [true; 2]), [PathState::Up, PathState::Up, PathState::Down]);
}

#[test]
fn ipv6_that_has_long_been_dead_on_a_backup_does_not_keep_that_of_the_last_path_from_being_found_down() {
    use PathState::{Down, Up};
    const ALL: [bool; 2] = [true; 2];
    const FOUR: [bool; 2] = [true, false];
    for quorum in [1, 3] {
        let mut s = Dual::new(quorum);
        assert_eq!(s.rounds(10, ALL, FOUR), [Up; 3]);
        assert_eq!(s.rounds(3, FOUR, FOUR), [Up, Up, Down]);
        assert!(!s.fiber().families[&Family::V6].held && s.monitor.alarms().is_empty(), "{:?}", s.monitor.alarms());
        // IPv4 of both is a witness as ever: when that falls silent at once too, it is the observer.
        assert_eq!(s.rounds(10, [false; 2], [false; 2]), [Up, Up, Down]);
        assert!(s.fiber().held && s.monitor.alarms()[0].contains("no target answers on any path"));
        // IPv6 is back on both: when it falls silent on both at once, it is the target.
        assert_eq!(s.rounds(30, ALL, ALL), [Up; 3]);
        assert_eq!(s.rounds(10, FOUR, FOUR), [Up; 3]);
        assert!(s.monitor.alarms()[0].contains("2001:db8::1 (icmp) fails on all 2 paths"), "{:?}", s.monitor.alarms());
    }
}

/// The target `dead` of a fibre and of LTE dies. Over the fibre it is missed after 800 ms, over LTE after two seconds.
fn dies(dead: &str, fiber: &[&str], lte: &[&str]) -> Monitor {
    let lines = [("fiber", fiber, 500, 800), ("lte", lte, 1000, 2000)];
    let paths = lines.map(|(name, targets, every, _)| {
        let mut path = path(name, 0, every);
        Arc::make_mut(&mut path.probe).targets = targets.iter().map(|t| t.parse().unwrap()).collect();
        path
    });
    let mut monitor = Monitor::new(&site(paths.into()), T0);
    let mut rounds = Vec::new();
    for (path, targets, every, timeout) in lines {
        for round in 1..30_000 / every {
            let lost = round * every >= 10_000 && targets.contains(&dead);
            rounds.push((round * every + if lost { timeout } else { 20 }, path, round, round * every, lost, targets));
        }
    }
    rounds.sort_unstable();
    for (done, path, round, sent, lost, targets) in rounds {
        let at = |ms| T0 + Duration::from_millis(ms);
        let rtt = |t: &str| (!lost || t != dead).then(|| Duration::from_millis(20));
        let answers = targets.iter().map(|t| (t.parse().unwrap(), rtt(t))).collect();
        let (path, notes) = (name(path), Notes::default());
        monitor.handle_sample(&Sample { path, round, sent: at(sent), done: at(done), answers, notes }, at(done));
    }
    monitor
}

#[test]
fn a_target_that_dies_convicts_no_path_on_what_a_slower_one_was_answered_before_nor_on_another_family() {
    const FOUR: &str = "192.0.2.1";
    const SIX: &str = "2001:db8::1";
    let both: &[&str] = &[FOUR, SIX];
    let table = [(SIX, both, both), (FOUR, &[FOUR], &[FOUR]), (FOUR, &[FOUR], both), (SIX, &[SIX], both)];
    for (dead, fiber, lte) in table {
        let monitor = dies(dead, fiber, lte);
        let health = monitor.healths()["lte"].of(Some(Family::of(&dead.parse().unwrap())));
        assert_eq!((health.state, health.held), (PathState::Up, true), "{fiber:?} {lte:?}: {}", health.reason);
        assert_eq!(monitor.alarms().len(), 1, "{fiber:?} {lte:?}: {:?}", monitor.alarms());
    }
}

#[test]
fn ipv6_that_has_long_been_dead_on_a_backup_is_no_witness_after_a_restart_or_a_carrier_that_came_back_either() {
    let mut s = Dual::new(1);
    s.rounds(10, [true; 2], [true, false]);
    let known = s.monitor.healths().clone();
    let mut later = Dual { monitor: Monitor::new(&Dual::site(1), T0), round: 0 };
    later.monitor.remember(&known, T0);
    for carrier in [false, true] {
        s.monitor.set_carrier(&name("lte"), carrier, T0 + Duration::from_secs(20));
    }
    for mut story in [s, later] {
        story.monitor.reconfigure(&Dual::site(1), T0 + Duration::from_secs(20));
        story.rounds(5, [true; 2], [true, false]);
        assert_eq!(story.rounds(3, [true, false], [true, false]), [PathState::Up, PathState::Up, PathState::Down]);
    }
}

#[test]
fn what_was_known_of_a_family_is_known_after_a_restart_and_one_family_alone_has_no_states_of_its_own() {
    let mut s = Dual::new(1);
    s.rounds(3, [true, false], [true; 2]);
    let known: Healths = serde_json::from_str(&serde_json::to_string(s.monitor.healths()).unwrap()).unwrap();
    let mut later = Dual { monitor: Monitor::new(&site(vec![]), T0), round: 0 };
    let mut fiber = path("fiber", 0, 1000);
    Arc::make_mut(&mut fiber.probe).targets = vec![target(1), "2001:db8::1".parse().unwrap()];
    later.monitor.reconfigure(&site(vec![fiber.clone()]), T0);
    later.monitor.remember(&known, T0);
    let states = later.fiber().families.values().map(|f| f.state).collect::<Vec<_>>();
    assert_eq!((later.fiber().state, states), (PathState::Up, vec![PathState::Up, PathState::Down]));
    // Its targets change: one track, and no states per family.
    Arc::make_mut(&mut fiber.probe).targets.pop();
    later.monitor.reconfigure(&site(vec![fiber]), T0);
    assert!(later.fiber().families.is_empty());
    let plain = serde_json::to_string(later.fiber()).unwrap();
    assert!(!plain.contains("families"), "{plain}");
}

#[test]
fn the_checker_sees_one_track_for_both_families() {
    // Of a dead IPv6 it sees nothing, or an outage of all.
    for (quorum, expected) in [(1, PathState::Up), (3, PathState::Down)] {
        let mut whole = path("fiber", 2, 1000);
        let probe = Arc::make_mut(&mut whole.probe);
        probe.targets.push("2001:db8::1".parse().unwrap());
        probe.quorum = quorum;
        let mut track = track::Track::new(&Arc::new(whole), T0);
        for round in 1..10 {
            let at = T0 + Duration::from_secs(round);
            let answers =
                vec![(target(0), Some(Duration::from_millis(20))), (target(1), Some(Duration::from_millis(20)))];
            let (path, notes) = (name("fiber"), Notes::default());
            track.add(&Sample { path, round, sent: at, done: at, answers, notes }, at);
        }
        let seen = track.look(None, T0 + Duration::from_secs(10)).health.state;
        assert_eq!(seen, expected, "quorum {quorum}");
    }
}
