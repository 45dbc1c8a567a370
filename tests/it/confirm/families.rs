//! A change that cuts off one family of a path undoes itself, although the path answers in the other.

use patronus::{engine::status::Status, health::PathState, lab::Node, revision::Fault, store::Standing, units::Family};

use super::{
    SITE, World,
    daemon::{quarantine, standing, well},
};
use crate::support::daemon::{Daemon, name, sh};

const SIX: &str = "2606:4700:4700::1111";

/// The site with IPv6 beside IPv4; the fibre is probed slowly, so that there is time for something to happen during a
/// trial.
fn dual() -> String {
    let text = SITE.replacen("interval: 150ms, timeout: 140ms", "interval: 1s, timeout: 140ms", 1);
    let edits = [
        ("[192.168.10.0/24]", "[192.168.10.0/24, \"fd10::/64\"]"),
        ("gateway: 198.51.100.1}", "gateway: [198.51.100.1, \"2001:db8:1::1\"]}"),
        ("gateway: 203.0.113.1}", "gateway: [203.0.113.1, \"2001:db8:2::1\"]}"),
        ("[1.1.1.1, 9.9.9.9]", "[1.1.1.1, 9.9.9.9, \"2606:4700:4700::1111\"]"),
    ];
    edits.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "no `{from}`");
        text.replace(from, to)
    })
}

/// It kills IPv6 of the fibre, and nothing else.
fn without_six(site: &str) -> String {
    assert!(site.contains("2001:db8:1::1"));
    site.replace("2001:db8:1::1", "2001:db8:1::77")
}

/// Both families of both paths are up, and each goes as its rule says.
fn all_well(status: &Status) -> bool {
    let up = |families: &std::collections::BTreeMap<Family, patronus::health::PathHealth>| {
        families.len() == 2 && families.values().all(|family| family.state == PathState::Up && !family.held)
    };
    well(status)
        && status.paths.values().all(|path| up(&path.health.families))
        && status.rules["critical"].parted.is_empty()
        && status.unconfirmed.is_none()
}

/// Whether the LAN reaches the internet by IPv6.
fn six_works(world: &World) -> bool {
    let host = Node::Host(name("berlin"), "lan0".parse().unwrap());
    sh(&world.lab, &host, &format!("ping -6 -n -q -c 3 -i 0.2 -W 1 {SIX} >/dev/null 2>&1 && echo yes || echo no"))
        .trim()
        == "yes"
}

/// IPv6, and nothing else, is lost at the fibre's provider.
fn provider_loses_six(world: &World, is: bool) {
    let provider = Node::Provider(name("berlin"), name("fiber"));
    let drop = "{ chain c { type filter hook forward priority 0; meta nfproto ipv6 drop; }; }";
    let line = if is { format!("nft 'table inet six {drop}'") } else { "nft delete table inet six".to_owned() };
    sh(&world.lab, &provider, &line);
}

/// First an innocent change during which a provider loses IPv6, then one that is the cause itself and is on trial while
/// the daemon is killed.
#[test]
fn a_change_that_cuts_off_ipv6_alone_is_undone_for_that_and_one_that_a_provider_failed_during_is_not_to_blame() {
    let world = World::of(&dual());
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("8s"));
    let good = daemon.wait("both families of both paths", all_well).source.applied;
    let harmless = dual().replace("dscp: [ef]", "dscp: [ef, 7]");
    world.repository.write("site.yaml", &harmless);
    let innocent = daemon.wait("the trial", |s| s.unconfirmed.is_some()).unconfirmed.unwrap().revision;
    provider_loses_six(&world, true);
    let doubted = |s: &Status| quarantine(s, &innocent).is_some_and(|why| why.contains("there is no answer either"));
    let status = daemon.wait("a change that is not to blame", doubted);
    let why = quarantine(&status, &innocent).unwrap();
    println!("{why}");
    assert!(why.starts_with("IPv6 of path fiber was up before and does not answer now ("), "{why}");
    assert!(why.ends_with("once these answer: path fiber in both families, path lte in both families"), "{why}");
    assert_eq!(status.source.applied, good);
    provider_loses_six(&world, false);
    let in_force = |s: &Status| s.source.applied.as_ref() == Some(&innocent) && all_well(s);
    let status = daemon.wait("the change after all", in_force);
    assert!(status.source.quarantine.is_empty(), "{:?}", status.source.quarantine);
    assert_eq!(standing(&daemon), (innocent.clone(), Standing::Confirmed, "the evidence is complete".into()));

    world.repository.write("site.yaml", &without_six(&harmless));
    let bad = daemon.wait("the second trial", |s| s.unconfirmed.is_some()).unconfirmed.unwrap().revision;
    daemon.kill();
    daemon.settle();
    let event = daemon.wait_event("source", |event| event.message.contains("stays in quarantine"));
    assert!(event.message.ends_with("IPv6 of path fiber answers without it"), "{}", event.message);
    let status = daemon.wait("all as before", |s| s.source.applied.as_ref() == Some(&innocent) && all_well(s));
    let (revision, ended, reason) = standing(&daemon);
    println!("{reason}");
    assert_eq!((revision, ended), (bad, Standing::RolledBack));
    assert!(reason.starts_with("IPv6 of path fiber was up before and does not answer now ("), "{reason}");
    let guilty = status.source.quarantine.last().unwrap();
    assert!(guilty.fault == Fault::Own && guilty.reason == reason, "{guilty:?}");
    assert!(six_works(&world));
}

/// Nobody asks over IPv6, so nobody can tell: what the test above breaks is broken, and stays so.
#[test]
fn the_checker_sees_ipv6_cut_off_where_only_the_whole_path_is_a_witness() {
    let site = dual().replace(&format!(", \"{SIX}\"]"), "]");
    let world = World::of(&dual());
    world.repository.write("site.yaml", &site);
    let daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("8s"));
    let good = daemon.wait("both paths", |s| well(s) && s.unconfirmed.is_none()).source.applied;
    assert!(six_works(&world));
    world.repository.write("site.yaml", &without_six(&site));
    daemon.wait("a change that nobody objects to", |s| s.source.applied != good && s.unconfirmed.is_none() && well(s));
    assert_eq!(standing(&daemon).1, Standing::Confirmed);
    assert!(!six_works(&world), "the fault is none");
}
