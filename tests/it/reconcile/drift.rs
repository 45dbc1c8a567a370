//! Others change what is ours, by accident and by force, among a thousand objects of their own.

use std::{
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use patronus::lab::Fault;

use super::{all_up, drifted, ours, repository};
use crate::support::{
    daemon::{Daemon, active},
    quiet,
};

/// The promise is a second; a machine that is busy with other tests gets more.
const BOUND: Duration = Duration::from_secs(3);

/// More than a thousand objects of others: many, and those that look like ours or stand next to them.
fn foreigners() -> String {
    let mut script = String::from("ip -batch - <<'END'\n");
    for n in 0..340 {
        let (table, protocol) = ([30_000, 20_000, 20_256][n % 3], [186, 157, 42][n % 3]);
        let _ =
            writeln!(script, "route add blackhole 10.200.{}.{}/32 table {table} proto {protocol}", n / 256, n % 256);
        let priority = [5_000, 19_989, 19_991, 20_256][n % 4] + 256 * (n / 4) * usize::from(n % 4 == 3);
        let _ = writeln!(
            script,
            "rule add pref {priority} from 10.201.{}.{} fwmark 0x1000000/0xff000000 lookup 30000 protocol {protocol}",
            n / 256,
            n % 256,
        );
    }
    // In the main table and, with another protocol number, in the midst of ours.
    script += "route add blackhole 10.202.0.1/32 proto 157
rule add pref 20001 from 10.202.0.2 lookup 30000 protocol 42
route add blackhole 10.202.0.3/32 table 20001 proto 42
END
nft -f - <<'END'
table inet patronus2 { chain patronus { type filter hook forward priority 0; accept comment \"generation 9 plan 9\"; }; }
table ip patronus { set targets { type mark; elements = { 0x01000000 comment \"path/fiber\" }; }; }
table inet foreign {
  set addresses { type ipv4_addr; elements = { ";
    for n in 0..340 {
        let _ = write!(script, "{}10.203.{}.{}", if n == 0 { "" } else { ", " }, n / 256, n % 256);
    }
    script
        + " }; }
  chain forward { type filter hook forward priority 10; ip saddr @addresses drop; }
}
END
"
}

/// All of it again, byte for byte, with what the administrator has in the main table.
fn theirs(daemon: &Daemon) -> String {
    daemon.sh("ip -4 rule show | grep -v 'proto 157$\\|20001:.*fwmark 0x1000000/0xff000000 lookup 20001' | grep 10.20
         ip -4 rule show | grep 'from 10.20.*157$'
         for table in 20000 20001 20256 30000 main; do ip -d -4 route show table $table | grep 'blackhole 10.20'; done
         nft -n list table inet patronus2; nft -n list table ip patronus; nft -n list table inet foreign")
}

struct Watched {
    daemon: Daemon,
    before: String,
    report: String,
}

impl Watched {
    /// Breaks something on the router and waits until all is as it was.
    fn repair(&mut self, kind: &str, what: &str, line: &str) {
        let count = drifted(&self.daemon.status(), kind);
        self.daemon.sh(line);
        let start = Instant::now();
        loop {
            let now = ours(&self.daemon);
            if now == self.before {
                break;
            }
            if start.elapsed() > BOUND * 3 {
                let difference = similar::TextDiff::from_lines(&self.before, &now).unified_diff().to_string();
                panic!("{what}: not repaired\n{difference}");
            }
        }
        let took = start.elapsed();
        let _ = writeln!(self.report, "{:6} ms  {what}", took.as_millis());
        assert!(took < BOUND, "{what} took {took:?}");
        let status = self.daemon.wait("the drift to be counted", |s| drifted(s, kind) > count && s.drift.is_empty());
        assert!(status.reconcile.is_some_and(|r| r.message.is_none()), "{what}");
        // Nobody fights here: each fault is the first one.
        self.daemon.says(&["reconcile"]);
    }
}

#[test]
fn whatever_is_changed_is_put_back_within_a_second_and_a_thousand_foreign_objects_stay() {
    let _quiet = quiet();
    let repository = repository();
    let lab = repository.lab();
    let daemon = Daemon::start(&lab, &repository, "berlin");
    daemon.sh(&foreigners());
    daemon.wait("both paths", all_up);
    let (theirs_before, before) = (theirs(&daemon), ours(&daemon));
    assert!(theirs_before.lines().count() > 720 && before.contains("path/fiber"), "{theirs_before}\n{before}");
    let mut watched = Watched { daemon, before, report: String::new() };
    let table =
        "t=$(nft list set inet patronus targets | grep -o '0x[0-9a-f]* comment \"path/fiber\"' | cut -d' ' -f1)";
    let faults = [
        ("nft", "our table deleted", "nft delete table inet patronus"),
        (
            "nft",
            "a chain flushed",
            "nft flush chain inet patronus $(nft list table inet patronus | awk '$1==\"chain\"{print $2; exit}')",
        ),
        ("nft", "an element deleted", &format!("{table}; nft delete element inet patronus targets {{ $t }}")),
        ("nft", "all numbers deleted", "nft flush set inet patronus targets; nft flush set inet patronus policies"),
        ("nft", "the stamp deleted", "nft flush set inet patronus stamp"),
        (
            "nft",
            "a foreign rule in our table",
            "nft insert rule inet patronus $(nft list table inet patronus | awk '$1==\"chain\"{print $2; exit}') meta mark 5 accept",
        ),
        ("nft", "a foreign set in our table", "nft add set inet patronus mine '{ type mark; }'"),
        ("rule", "one rule deleted", "ip rule del pref 20001 proto 157"),
        // Those of others with our protocol number stand outside.
        (
            "rule",
            "all rules deleted",
            "for p in $(ip rule show | grep 'proto 157' | grep -v 'from 10.20' | sed 's/:.*//' | sort -u); do
            for f in -4 -6; do while ip $f rule del pref $p proto 157 2>/dev/null; do :; done; done; done",
        ),
        ("route", "one route deleted", "ip route del default table 20001 metric 10 proto 157"),
        (
            "route",
            "a route changed",
            "ip route change default via 198.51.100.77 dev wan0 onlink table 20001 metric 10 proto 157",
        ),
        ("route", "a table flushed", "ip route flush table 20001 proto 157; ip -6 route flush table 20001 proto 157"),
        (
            "route",
            "all tables flushed",
            "for t in $(seq 20001 20012); do ip route flush table $t proto 157 2>/dev/null || true; ip -6 route flush table $t proto 157 2>/dev/null || true; done",
        ),
        ("route", "a stray route with our marks", "ip route add 10.208.0.0/16 dev wan0 table 20002 proto 157"),
        ("sysctl", "rp_filter changed", "echo 1 > /proc/sys/net/ipv4/conf/wan0/rp_filter"),
        ("sysctl", "forwarding off", "echo 0 > /proc/sys/net/ipv4/ip_forward"),
        (
            "sysctl",
            "ignore_routes_with_linkdown off",
            "echo 0 > /proc/sys/net/ipv4/conf/wan0/ignore_routes_with_linkdown",
        ),
        ("sysctl", "src_valid_mark off", "echo 0 > /proc/sys/net/ipv4/conf/wan0/src_valid_mark"),
        ("sysctl", "forwarding of IPv6 off", "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding"),
        (
            "sysctl",
            "ignore_routes_with_linkdown of IPv6 off",
            "echo 0 > /proc/sys/net/ipv6/conf/wan0/ignore_routes_with_linkdown",
        ),
        ("sysctl", "accept_ra as the kernel has it", "echo 1 > /proc/sys/net/ipv6/conf/wwan0/accept_ra"),
    ];
    for (kind, what, line) in faults {
        watched.repair(kind, what, line);
        assert!(theirs(&watched.daemon) == theirs_before, "{what}: something of others changed");
    }
    failover_among_foreigners(&mut watched, &theirs_before);
    links(&mut watched);
    flush_ruleset(&mut watched);
    eprintln!("repaired after:\n{}", watched.report);
    end(watched.daemon, &theirs_before);
}

fn failover_among_foreigners(watched: &mut Watched, theirs_before: &str) {
    let lab = std::sync::Arc::clone(watched.daemon.lab());
    lab.fault("berlin", "fiber", Fault::Carrier).unwrap();
    watched.daemon.wait_active("critical", "lte");
    assert!(theirs(&watched.daemon) == theirs_before, "a failover changed something of others");
    lab.clear("berlin", "fiber").unwrap();
    watched.daemon.wait_active("critical", "fiber");
    watched.daemon.wait("both paths", all_up);
    let start = Instant::now();
    while ours(&watched.daemon) != watched.before {
        assert!(start.elapsed() < BOUND, "the way back leads to another state");
    }
}

/// Links and addresses that go and come back: the routes over them are there again.
fn links(watched: &mut Watched) {
    let faults = [
        ("a link down and up", "ip link set wan0 down; ip link set wan0 up"),
        (
            "an address gone and back",
            "a=$(ip -4 -o addr show wan0 | awk '{print $4}'); ip addr del $a dev wan0; ip addr add $a dev wan0",
        ),
    ];
    for (what, line) in faults {
        watched.daemon.sh(line);
        let start = Instant::now();
        while ours(&watched.daemon) != watched.before || active(&watched.daemon.status(), "critical") != Some("fiber") {
            assert!(start.elapsed() < BOUND * 4, "{what}: {}", ours(&watched.daemon));
        }
        let _ = writeln!(watched.report, "{:6} ms  {what}, and back on the primary", start.elapsed().as_millis());
    }
}

/// What a stop of Debian's nftables.service does, others' tables included; they load theirs again.
fn flush_ruleset(watched: &mut Watched) {
    let saved = "nft list table inet patronus2; nft list table ip patronus; nft list table inet foreign";
    let text = watched.daemon.sh(saved);
    let line = format!("nft flush ruleset; nft -f - <<'END'\n{text}END");
    watched.repair("nft", "nft flush ruleset", &line);
    let metrics = watched.daemon.metrics();
    let counted = metrics.iter().find(|(k, _)| k.starts_with("patronus_drift_total") && k.contains("nft"));
    assert!(counted.is_some_and(|(_, v)| *v >= 8.0), "{metrics:?}");
    let event = watched.daemon.wait_event("drift", |e| e.message.contains("nft"));
    assert!(event.message.contains("changed by someone else"), "{event:?}");
}

/// A stop leaves our state as it is, a teardown only that of others.
fn end(mut daemon: Daemon, theirs_before: &str) {
    let before = ours(&daemon);
    let start = Instant::now();
    daemon.terminate();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "it took {took:?} to end");
    assert_eq!(ours(&daemon), before);
    let state = daemon.state_dir();
    let place = state.parent().unwrap();
    let (state, run) = (state.to_str().unwrap(), place.join("run"));
    daemon.says(&["teardown", "--yes", "--state-dir", state, "--runtime-dir", run.to_str().unwrap()]);
    assert!(theirs(&daemon) == theirs_before, "the teardown changed something of others");
    let left = ours(&daemon);
    assert!(!left.contains("patronus") && !left.contains("lookup 20001") && !left.contains("default"), "{left}");
    assert!(left.contains("ipv4/conf/wan0/ignore_routes_with_linkdown:0"), "sysctls are not restored: {left}");
}

#[test]
fn a_storm_of_foreign_changes_starves_nobody_and_lost_notifications_lead_to_a_full_look() {
    let _quiet = quiet();
    let repository = repository();
    let lab = repository.lab();
    let daemon = Daemon::start(&lab, &repository, "berlin");
    let before = daemon.wait("both paths", all_up).paths["fiber"].probes_answered;
    let one = "(seq 0 4999 | awk '{printf \"route add blackhole 10.%d.%d.1/32 table 30000\\n\", 128+$1/256, $1%256}' | ip -batch -)";
    let batch = format!("{one}; ip route flush table 30000; {one}");
    let storm = {
        let (lab, node) = (std::sync::Arc::clone(&lab), daemon.router());
        thread::spawn(move || crate::support::daemon::sh(&lab, &node, &batch))
    };
    let start = lab.fault("berlin", "fiber", Fault::BlackHole).unwrap();
    daemon.wait_active("critical", "lte");
    let switched = start.elapsed();
    storm.join().unwrap();
    let status = daemon.status();
    eprintln!("left a black hole after {switched:?} in a storm of 15,000 changes of routes");
    assert!(switched < Duration::from_secs(5), "{switched:?}");
    assert!(status.paths["lte"].probes_lost < 6 && status.paths["lte"].probes_answered > before, "{:?}", status.paths);
    assert!(status.totals.drift.is_empty(), "{:?}", status.totals.drift);
    lost_notifications(&daemon);
}

fn lost_notifications(daemon: &Daemon) {
    let before = ours(daemon);
    daemon.signal(Signal::SIGSTOP);
    daemon.sh(
        "for i in 1 2 3 4 5 6; do ip route flush table 30000; seq 0 9999 | awk '{printf \"route add blackhole 10.%d.%d.1/32 table 30000\\n\", 128+$1/256, $1%256}' | ip -batch -; done
         ip rule del pref 20001 proto 157",
    );
    daemon.signal(Signal::SIGCONT);
    let start = Instant::now();
    while ours(daemon) != before {
        assert!(start.elapsed() < BOUND, "not repaired after lost notifications");
    }
    eprintln!("repaired {:?} after lost notifications", start.elapsed());
    let log = daemon.log();
    assert!(log.contains("notifications were lost"), "nothing was lost: make the storm larger");
    // A storm of losses is one story.
    assert!(log.matches("notifications were lost").count() < 5, "{log}");
}
