//! What the kernel refuses of one path is no reason to leave all the others without anything.

use patronus::{
    engine::status::{ReconcileOutcome, Status},
    lab::Node,
};

use super::{SITE, drifted, ours};
use crate::support::daemon::{Daemon, Repository, name, sh};

/// Two tunnels that somebody else makes, without gateways.
const TUNNELS: &str = "    wg:    {from: fiber, to: hq/fiber, tunnel: {interface: wg0}}
    low:   {from: fiber, to: hq/fiber, tunnel: {interface: low0}}
  failover:";
const HQ: &str = "apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: hq}
spec:
  lan: [{interface: lan0, prefixes: [192.168.20.0/24]}]
  endpoints: {fiber: {interface: wan0, gateway: 192.0.2.1, address: 192.0.2.20}}
  paths:
    wg:  {from: fiber, to: berlin/fiber, tunnel: {interface: wg0}}
    low: {from: fiber, to: berlin/fiber, tunnel: {interface: low0}}
";
/// One has IPv6 switched off and will get no address of it by itself, like a `WireGuard` interface; the other's MTU is too
/// small for it.
const LINKS: &str = "for link in wg low; do
    ip link add ${link}0 type veth peer name ${link}1; ip link set ${link}0 up; ip link set ${link}1 up; done
  ip link set wg0 addrgenmode none; echo 1 > /proc/sys/net/ipv6/conf/wg0/disable_ipv6; ip link set low0 mtu 1200";

fn routes(daemon: &Daemon, interface: &str) -> [usize; 2] {
    ["-4", "-6"].map(|family| {
        let line = format!("ip {family} route show table all proto 157 dev {interface} | grep -c default || true");
        daemon.sh(&line).trim().parse().unwrap()
    })
}

fn refusal(status: &Status) -> Option<&String> {
    status.alarms.iter().find(|alarm| alarm.starts_with("the kernel refuses"))
}

#[test]
fn a_link_without_ipv6_keeps_nothing_from_being_applied_and_repaired_and_gets_its_routes_when_it_has_it() {
    let repository = Repository::new(&[("site.yaml", &SITE.replace("  failover:", TUNNELS)), ("hq.yaml", HQ)]);
    let lab = repository.lab();
    sh(&lab, &Node::Router(name("berlin")), LINKS);
    let daemon = Daemon::start(&lab, &repository, "berlin");
    let first = daemon.status().reconcile.unwrap();
    assert_eq!((first.outcome, first.message), (ReconcileOutcome::Applied, None));
    assert_eq!([routes(&daemon, "wg0"), routes(&daemon, "low0")], [[1, 0], [1, 0]]);
    let shown = ours(&daemon);
    daemon.sh("nft delete table inet patronus");
    daemon.wait("the repair", |s| drifted(s, "nft") == 1);
    assert_eq!(ours(&daemon), shown);

    // Nothing but the state of its IPv6 is announced of this one.
    daemon.sh("echo 0 > /proc/sys/net/ipv6/conf/wg0/disable_ipv6");
    daemon.wait("IPv6 over wg0", |_| routes(&daemon, "wg0") == [1, 1]);
    daemon.sh("ip link set low0 mtu 1280");
    daemon.wait("IPv6 over low0", |_| routes(&daemon, "low0") == [1, 1]);
}

#[test]
fn a_route_that_the_kernel_refuses_is_an_alarm_and_everything_else_is_repaired() {
    let repository = Repository::new(&[("site.yaml", SITE)]);
    let daemon = Daemon::start(&repository.lab(), &repository, "berlin");
    let shown = ours(&daemon);
    assert_eq!(refusal(&daemon.status()), None);
    // Somebody gives the router its own gateway's address, and another program flushes routes and ruleset.
    daemon.sh("ip address add 198.51.100.1/32 dev wan0
         ip route show table all proto 157 dev wan0 | sed 's/^/route del /; s/ proto 157//' | ip -batch -
         nft delete table inet patronus");
    let status = daemon.wait("the repair", |s| drifted(s, "nft") == 1 && refusal(s).is_some());
    let alarm = refusal(&status).unwrap();
    assert!(alarm.contains("Nexthop has invalid gateway") && alarm.contains("default"), "{alarm}");
    eprintln!("{alarm}");
    assert!(daemon.sh("nft list table inet patronus").contains("policy_voice"));
    assert_eq!(routes(&daemon, "wan0")[0], 0);
    assert!(status.fights.is_empty(), "nobody fights: {:?}", status.fights);
    // Nobody announces that a busy kernel is busy no more.
    let passes = |s: &Status| s.totals.reconciles.values().sum::<u64>();
    let sofar = passes(&daemon.wait_active("critical", "lte"));
    daemon.wait("further tries before the audit", |s| passes(s) >= sofar + 3 && refusal(s).is_some());

    daemon.sh("ip address del 198.51.100.1/32 dev wan0");
    daemon.wait("what was before", |s| refusal(s).is_none() && ours(&daemon) == shown);
}
