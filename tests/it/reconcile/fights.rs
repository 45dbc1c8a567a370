//! Drift that is not simply put back: fights with another program, kinds that are reported or ignored, and what
//! overrides us without touching anything of ours.

use std::{
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use patronus::engine::status::{Status, Treatment};

use super::{all_up, drifted, ours, repository};
use crate::support::daemon::{Daemon, PATIENCE};

/// Takes one of our rules away as often as it is there.
const FIGHTER: &str = "while :; do ip rule del pref 20001 proto 157 2>/dev/null; sleep 0.05; done";

struct Fighter(Child);

impl Fighter {
    fn start(daemon: &Daemon) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", FIGHTER]);
        Self(daemon.lab().spawn_in(&daemon.router(), command).unwrap())
    }
}

impl Drop for Fighter {
    fn drop(&mut self) {
        // It ends with the test, whatever happens to it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn has_rule(daemon: &Daemon) -> bool {
    daemon.sh("ip -4 rule show pref 20001").contains("157")
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn fought(status: &Status) -> bool {
    status.fights.len() == 1 && status.drifted.iter().any(|d| d.treatment == Treatment::LeftAlone)
}

#[test]
fn a_fight_is_given_up_named_and_taken_up_again_when_its_culprit_has_ended() {
    let repository = repository();
    let lab = repository.lab();
    let daemon = Daemon::start(&lab, &repository, "berlin");
    daemon.wait("both paths", all_up);
    let before = ours(&daemon);
    let fighter = Fighter::start(&daemon);
    let status = daemon.wait("the fight to be given up", fought);
    let fight = &status.fights[0];
    assert!(fight.losses > 3 && fight.kind == "rule" && fight.object.contains("20001"), "{fight:?}");
    assert!(fight.next_try_in > 500 && fight.next_try_in <= 600, "{fight:?}");
    assert!(status.alarms.iter().any(|a| a.contains("taken away")), "{:?}", status.alarms);
    assert!(!has_rule(&daemon), "it is still put back");
    // Everything else is kept: a fight costs its own object and no other.
    let count = drifted(&status, "route");
    daemon.sh("ip route del default table 20001 metric 10 proto 157");
    daemon.wait("the route to be repaired", |s| drifted(s, "route") > count && fought(s));
    until("the route", || daemon.sh("ip route show table 20001").contains("metric 10"));
    let event = daemon.wait_event("drift", |e| e.message.contains("was taken away"));
    assert!(event.detail["culprit"]["evidence"].is_array(), "{event:?}");
    let metrics = daemon.metrics();
    let fights = metrics.iter().find(|(k, _)| k.starts_with("patronus_drift_fights"));
    assert!(fights.is_some_and(|(_, v)| *v > 0.5), "{metrics:?}");
    let (code, text) = daemon.tells(&["drift"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("left alone") && text.contains("likely:") && text.contains("do:"), "{text}");
    named(&text);
    eprintln!("{text}");
    let known = fight.culprit.pid;
    drop(fighter);
    if known.is_some() {
        // Any pass finds that it has ended; without a change there is one each minute.
        daemon.sh("ip route del default table 20001 metric 10 proto 157");
        daemon.wait_event("drift", |e| e.message.contains("has ended"));
        until("the rule to be put back", || has_rule(&daemon));
    }
    // A person says that it is over.
    daemon.says(&["reconcile"]);
    daemon.wait("the end of the fight", |s| s.fights.is_empty() && s.drift.is_empty());
    until("all as before", || ours(&daemon) == before);
    let (code, text) = daemon.tells(&["drift", "--output", "json"]);
    assert_eq!(code, Some(0), "{text}");
}

/// The kernel's notification leads to the shell that runs `ip`, or at least says that it was a short-lived process.
fn named(text: &str) {
    assert!(text.contains("the kernel names `ip`") || text.contains("a process that ended at once"), "{text}");
}

#[test]
fn kinds_that_are_reported_or_ignored_are_left_alone_until_a_new_revision_comes() {
    let repository = repository();
    let lab = repository.lab();
    let modes = serde_json::json!({"drift": {"rule": "report", "route": "ignore"}});
    let mut daemon = Daemon::start_with(&lab, &repository, "berlin", modes);
    daemon.wait("both paths", all_up);
    daemon.sh("ip rule del pref 20001 proto 157; ip route del default table 20001 metric 10 proto 157");
    let status = daemon.wait("the rule to be reported", |s| s.drifted.len() == 1);
    assert_eq!(status.drifted[0].treatment, Treatment::Reported, "{status:?}");
    assert!(status.drift[0].contains("drift: {rule: report}"), "{:?}", status.drift);
    assert_eq!((drifted(&status, "rule"), drifted(&status, "route")), (1, 0), "{:?}", status.totals);
    // A pass that somebody asks for changes nothing of it, nor does a new start.
    daemon.says(&["reconcile"]);
    assert!(!has_rule(&daemon));
    daemon.terminate();
    let (code, text) = daemon.tells(&["drift"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("1 missing") && text.contains("No daemon runs"), "{text}");
    daemon.settle();
    daemon.wait("the rule to be reported again", |s| s.drifted.len() == 1);
    assert!(!has_rule(&daemon));
    // What is not of these kinds is repaired as ever.
    daemon.sh("nft delete table inet patronus");
    until("our table", || daemon.sh("nft list tables").contains("inet patronus"));
    assert!(!has_rule(&daemon));
    let changed = super::SITE.replace("priority: 1000", "priority: 1001");
    assert_ne!(changed, super::SITE);
    repository.write("site.yaml", &changed);
    until("the rule to come with the new revision", || has_rule(&daemon));
    daemon.wait("no drift", |s| s.drifted.is_empty());
    let routes = daemon.sh("ip route show table 20001");
    assert!(!routes.contains("metric 10"), "an ignored kind was put back: {routes}");
}

#[test]
fn an_interface_that_flaps_has_its_routes_back_each_time() {
    let repository = repository();
    let lab = repository.lab();
    // Also where drift of routes is only reported or ignored: this is none.
    for mode in ["repair", "report", "ignore"] {
        let modes = serde_json::json!({"drift": {"route": mode}});
        let mut daemon = Daemon::start_with(&lab, &repository, "berlin", modes);
        daemon.wait("both paths", all_up);
        for _ in 0..6 {
            // As a modem that is reset while the router is busy: back before anybody has looked.
            daemon.signal(Signal::SIGSTOP);
            daemon.sh("ip link set wan0 down; ip link set wan0 up");
            daemon.signal(Signal::SIGCONT);
            until("the route", || daemon.sh("ip route show table 20001").contains("dev wan0"));
        }
        let status = daemon.wait("both paths again", all_up);
        assert_eq!((drifted(&status, "route"), status.fights.len()), (0, 0), "{:?}", status.drift);
        if mode == "report" {
            flap_unheard(&mut daemon);
            deleted_and_only_reported(&daemon);
        }
        daemon.terminate();
    }
}

/// While the daemon is dead nobody hears of it, and all that it leaves is routes that are missing.
fn flap_unheard(daemon: &mut Daemon) {
    daemon.terminate();
    daemon.sh("ip link set wan0 down; ip link set wan0 up");
    daemon.settle();
    let status = daemon.wait("both paths after a flap unheard", |s| all_up(s) && s.drifted.is_empty());
    assert_eq!(drifted(&status, "route"), 0, "{:?}", daemon.events(Some("drift")));
    assert!(daemon.sh("ip route show table 20001").contains("dev wan0"));
}

/// What a person does to a path's only route stays as he did it, whatever happens elsewhere, and every verb says so.
fn deleted_and_only_reported(daemon: &Daemon) {
    daemon.sh("ip route del default table 20001 metric 10");
    let status = daemon.wait("the route to be reported", |s| s.drifted.len() == 1);
    assert_eq!(status.drifted[0].treatment, Treatment::Reported, "{status:?}");
    daemon.sh("ip link add other0 type veth peer name other1
        ip addr add 203.0.113.77/32 dev other0; ip addr del 203.0.113.77/32 dev other0");
    let said = daemon.says(&["reconcile"]);
    assert!(said.contains("nothing was changed") && said.contains("left as found: 1 of our objects is"), "{said}");
    let routes = daemon.sh("ip route show table 20001");
    assert!(!routes.contains("metric 10"), "an address of another interface brought it back: {routes}");
    let status = daemon.wait("the path to say why", |s| {
        s.paths["fiber"].health.reason.ends_with("its IPv4 route in table 20001 is missing")
    });
    let named =
        |text: &str| text.contains("path fiber has no way of its own: route  IPv4 default table 20001 metric 10");
    for words in [&["doctor"][..], &["explain", "udp 192.168.10.5:4711 to 192.0.2.9:5060 dscp ef in lan0"]] {
        let (code, text) = daemon.tells(words);
        assert!(code == Some(1) && named(&text), "{words:?}: {text}");
    }
    let alarm = status.alarms.iter().find(|alarm| named(alarm)).unwrap_or_else(|| panic!("{:?}", status.alarms));
    eprintln!("{said}{alarm}\n{}", daemon.says(&["status"]));
    let command = alarm.split('`').find(|part| part.starts_with("ip -4 route")).unwrap();
    daemon.sh(command);
    daemon.wait("all as before", |s| all_up(s) && s.drifted.is_empty() && !s.alarms.iter().any(|alarm| named(alarm)));
}

#[test]
fn what_overrides_us_without_touching_us_is_named() {
    let repository = repository();
    let lab = repository.lab();
    let daemon = Daemon::start(&lab, &repository, "berlin");
    daemon.wait("both paths", all_up);
    assert_eq!(daemon.tells(&["drift"]).0, Some(0));
    daemon.sh("ip rule add pref 100 lookup main
        ip rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
        ip rule add pref 5270 lookup 52
        ip rule add pref 31000 fwmark 0x1000000/0xff000000 lookup 52
        ip route add blackhole 10.202.0.3/32 table 20001 proto 42
        nft -f - <<'END'
table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }
table inet theirs {
  chain marks { type filter hook prerouting priority 0; meta mark set 0x1; };
  chain jumps { type filter hook forward priority 5; jump drops; };
  chain drops { ip daddr 192.0.2.1 drop; };
  chain nats { type nat hook postrouting priority 90; oifname \"wan0\" masquerade; };
}
END");
    let mut daemon = daemon;
    daemon.terminate();
    let (code, text) = daemon.tells(&["drift"]);
    assert_eq!(code, Some(2), "{text}");
    for part in [
        "rule with priority 100 is asked before ours and sends everything to the main table",
        "rule with priority 5270",
        "matches mark 0x01000000/0xff000000",
        "10.202.0.3/32",
        "chain ip filter FORWARD drops forwarded traffic that its own rules do not accept",
        "chain inet theirs marks sets packet marks after ours",
        "chain inet theirs jumps drops some forwarded traffic",
        "chain inet theirs nats translates source addresses at priority 90",
        "0 missing, 0 extra, 0 changed; overridden by 3, perhaps by 5 more",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains("5210"), "marks of others that are none of ours are no news\n{text}");
    eprintln!("{text}");
}
