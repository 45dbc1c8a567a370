//! A path that works is left by rules that share: what becomes of the translated flows that are on it, under each flow
//! action, and where new ones go.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
};

use super::*;

/// Rules, ports, and what they say of flows; the first is the default of policies and of actions.
const RULES: [(&str, u16, &str); 4] = [
    ("all", 5000, ""),
    ("drained", 5001, ", flowAction: {failover: drain, drain: 6s}"),
    ("forced", 5002, ", flowAction: {failover: forced}"),
    ("rejected", 5003, ", flowAction: {failover: reject}"),
];
/// What LTE translates to; the fibre masquerades.
const SNAT: &str = "203.0.113.2";
const SERVER: [u8; 4] = [1, 1, 1, 1];
const EACH: u16 = 30;

fn site() -> String {
    let (mut rules, mut policies) = (String::new(), String::new());
    for (name, port, flows) in &RULES[1..] {
        rules += &format!(
            "    {name}: {{primary: fiber, backups: [lte], strategy: load-balance, failbackDelay: 1s, \
             failoverThreshold: 70{flows}}}\n"
        );
        policies += &format!(
            "    {name}: {{priority: {port}, match: {{destinationPorts: [{port}]}}, action: {{failover: {name}}}}}\n"
        );
    }
    SITE.replace("  policies:\n", &format!("{rules}  policies:\n{policies}"))
        .replace("priority: 1000", "priority: 9000")
        .replace("interval: 100ms", "interval: 200ms")
        .replace("probe:", "health: {latency: 90ms}, probe:")
        .replace("lte,   to: internet, nat: %nat", &format!("lte,   to: internet, nat: {{snat: {SNAT}}}"))
}

/// A TCP connection whose far end says everything again.
struct Session {
    near: TcpStream,
    by: &'static str,
}

impl Session {
    /// Two by each uplink.
    fn four(lab: &Lab, port: u16) -> Vec<Self> {
        let at = (IpAddr::from(SERVER), port);
        let listener = lab.thread_in(&Node::Internet, move || TcpListener::bind(at)).join().unwrap().unwrap().unwrap();
        let mut found: Vec<Self> = Vec::new();
        for _ in 0..100 {
            let near = lab.thread_in(&host(), move || TcpStream::connect(at)).join().unwrap().unwrap().unwrap();
            near.set_read_timeout(Some(PATIENCE)).unwrap();
            let (far, from) = listener.accept().unwrap();
            let by = if from.ip().to_string() == SNAT { "lte" } else { "fiber" };
            if found.iter().filter(|s| s.by == by).count() < 2 {
                thread::spawn(move || io::copy(&mut &far, &mut &far));
                found.push(Self { near, by });
            }
            if found.len() == 4 {
                return found;
            }
        }
        panic!("all connections take one path")
    }

    /// What is said comes back, or why not.
    fn talks(&mut self) -> Result<(), ErrorKind> {
        self.near.write_all(b"x").and_then(|()| self.near.read_exact(&mut [0])).map_err(|e| e.kind())
    }
}

fn all_talk(sessions: &mut [Session], when: &str) {
    for session in sessions {
        assert_eq!(session.talks(), Ok(()), "a session by {} {when}", session.by);
    }
}

/// Those by the fibre were told that they are over, the others go on.
fn the_fibres_are_over(sessions: &mut [Session], rule: &str) {
    for session in sessions {
        let told = session.talks();
        let over = matches!(told, Err(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
        assert_eq!(
            (over, told.is_ok()),
            (session.by == "fiber", session.by == "lte"),
            "{rule} {}: {told:?}",
            session.by
        );
    }
}

impl World {
    fn flow_to(&self, port: u16) -> Flow {
        let spec = FlowSpec { port, sockets: EACH, echo: true, ..FlowSpec::new(host(), SERVER.into(), 300) };
        let flow = self.lab.flow(&spec).unwrap();
        twice(&flow);
        flow
    }

    fn all_rules_use(&self, paths: &[&str]) -> Status {
        let used = |s: &Status, rule: &str| {
            let names = s.rules.get(rule).into_iter().flat_map(|r| &r.active_members);
            names.map(patronus::units::Name::as_str).eq(paths.iter().copied())
        };
        self.daemon.wait(&format!("all rules to use {paths:?}"), |s| RULES.iter().all(|(rule, ..)| used(s, rule)))
    }
}

fn twice(flow: &Flow) {
    more(flow, 2 * u64::from(EACH));
}

/// Each flow has one way, and both are in use.
fn are_shared(ways: &[Ways], what: &str) {
    assert!(ways.iter().all(|w| w.len() == 1), "{what}: each stays on its path: {ways:?}");
    assert_eq!(ways.iter().collect::<BTreeSet<_>>().len(), 2, "{what}: both are used");
}

#[test]
fn flows_on_a_path_that_works_and_is_left_are_treated_as_the_rule_says_and_new_ones_are_shared_by_the_others() {
    let world = World::start(&site(), "masquerade", "failoverThreshold: 70", &["fiber", "lte"]);
    world.all_rules_use(&["fiber", "lte"]);
    // Whatever has no policy of its own is the first rule's.
    let [all, drained, forced, rejected] = [0, 5001, 5002, 5003].map(|port| world.flow_to(port));
    let mut sessions = RULES.map(|(_, port, _)| Session::four(&world.lab, port));
    for of_rule in &mut sessions {
        all_talk(of_rule, "at the start");
    }

    world.lab.fault("berlin", "fiber", Fault::Latency(Duration::from_millis(110))).unwrap();
    let left = world.all_rules_use(&["lte"]);
    assert_eq!(left.paths["fiber"].health.state, PathState::Degraded, "not dead");
    [&all, &drained].into_iter().for_each(twice);
    let still = Instant::now();
    all_talk(&mut sessions[0], "after its path was left");
    all_talk(&mut sessions[1], "while its path is drained");
    let leaving = |s: &Status, rule: &str| s.rules[rule].choice.leaving.len();
    assert_eq!(leaving(&world.daemon.status(), "drained"), 1, "its time is not over yet");
    let away = world.flow_to(0);
    let settled = |s: &Status| leaving(s, "drained") + leaving(s, "forced") == 0;
    world.daemon.wait("flows to be forgotten", settled);
    [&all, &drained, &forced].into_iter().for_each(twice);
    let moved = Instant::now();
    [&all, &drained, &forced, &away].into_iter().for_each(twice);
    for ((rule, ..), sessions) in RULES.iter().zip(&mut sessions).skip(1) {
        the_fibres_are_over(sessions, rule);
    }
    all_talk(&mut sessions[0], "long after its path was left");

    let mended = Instant::now();
    world.lab.clear("berlin", "fiber").unwrap();
    world.all_rules_use(&["fiber", "lte"]);
    let back = world.flow_to(0);
    world.daemon.says(&["drain", "lte"]);
    world.all_rules_use(&["fiber"]);
    let by_hand = world.flow_to(0);
    [&all, &away, &back].into_iter().for_each(twice);
    all_talk(&mut sessions[0], "after its path was drained by hand");
    let broken = Instant::now();
    world.lab.fault("berlin", "lte", Fault::BlackHole).unwrap();
    world.daemon.wait("the drained path to die", |s| s.paths["lte"].health.state == PathState::Down);
    twice(&all);
    let buried = Instant::now();
    [&all, &back].into_iter().for_each(twice);

    let reports = [all, away, back, by_hand].map(|flow| flow.finish().unwrap());
    let until = |from: Option<Instant>, until| {
        reports.each_ref().map(|r| ways(r, EACH, from.or(r.there.started()).unwrap(), until))
    };
    let [all, away, back, by_hand] = until(None, broken);
    are_shared(&all, "flows that are there, until they end or their path does");
    are_shared(&back, "new flows after the return");
    assert!(away.iter().all(|w| *w == only("lte")), "new flows take the other, and stay: {away:?}");
    assert!(by_hand.iter().all(|w| *w == only("fiber")), "new flows leave the path drained by hand: {by_hand:?}");
    let after = until(Some(buried), Instant::now()).concat();
    assert!(after.iter().all(|w| *w == only("fiber")), "flows that stayed are forgotten with their path: {after:?}");
    let [drained, forced, rejected] = [drained, forced, rejected].map(|flow| flow.finish().unwrap());
    are_shared(&ways(&drained, EACH, drained.there.started().unwrap(), still), "drained, until the time is over");
    for report in [&drained, &forced] {
        let after = ways(report, EACH, moved, mended);
        assert!(after.iter().all(|w| *w == only("lte")), "forgotten flows are new: {after:?}");
    }
    let after = ways(&rejected, EACH, still, mended);
    assert!(after.iter().all(|w| w.is_empty() || *w == only("lte")), "errors and no other way: {after:?}");
    assert!(after.iter().any(Ways::is_empty) && after.contains(&only("lte")), "{after:?}");
}
