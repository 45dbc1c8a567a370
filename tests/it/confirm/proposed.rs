//! A revision that is only proposed, or being taken back, changes nothing of the traffic.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use patronus::{
    engine::status::Status,
    lab::Fault,
    store::{Standing, read},
};

use super::{
    CHANGES, SITE, World,
    daemon::{quarantine, standing, well},
    harmless,
};
use crate::support::daemon::{Daemon, active};

/// A daemon that loads rulesets by this program in place of `nft`. `$here` says whether it was called in the router
/// itself (and not for a check), `$rules` is the file that it was told to load.
fn with_nft(world: &World, settings: serde_json::Value, dir: &Path, script: &str) -> Daemon {
    let mut daemon = Daemon::stopped(&world.lab, &world.repository, "berlin");
    let router = daemon.sh("readlink /proc/self/ns/net");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = -f ] || exec /usr/sbin/nft \"$@\"\ncd {} || exit 1\nrules=$(mktemp ruleset.XXXXXX)\n\
         cat > \"$rules\"\nhere=no\n[ \"$(readlink /proc/self/ns/net)\" != '{}' ] || here=yes\n{script}\n\
         exec /usr/sbin/nft -f \"$rules\"\n",
        dir.display(),
        router.trim()
    );
    fs::write(dir.join("nft"), text).unwrap();
    fs::set_permissions(dir.join("nft"), fs::Permissions::from_mode(0o755)).unwrap();
    daemon.set(settings);
    daemon.variable("PATH", format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()).into());
    daemon.settle();
    daemon
}

/// Every route of ours.
fn routes(daemon: &Daemon) -> String {
    daemon.sh("ip -4 route show table all proto 157 | sort")
}

/// Has all that happens to routes of ours from now on written down; gives what was, once it is stopped.
struct Witness<'a> {
    daemon: &'a Daemon,
    file: String,
    pid: String,
}

impl<'a> Witness<'a> {
    fn new(daemon: &'a Daemon, dir: &Path) -> Self {
        let file = dir.join("monitor").display().to_string();
        let pid = daemon.sh(&format!("ip monitor route >{file} 2>&1 & echo $!")).trim().to_owned();
        // It listens once it has told of a route of somebody else.
        let heard = || fs::read_to_string(&file).is_ok_and(|text| text.contains("192.0.2.99"));
        for _ in 0..3000 {
            daemon.sh("ip route replace blackhole 192.0.2.99; ip route del blackhole 192.0.2.99");
            if heard() {
                return Self { daemon, file, pid };
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("`ip monitor` tells of nothing");
    }

    /// Routes in our tables that were deleted.
    fn deleted(self) -> Vec<String> {
        self.daemon.sh(&format!("kill {}", self.pid));
        let text = fs::read_to_string(&self.file).unwrap();
        text.lines().filter(|l| l.starts_with("Deleted") && l.contains("table 20")).map(str::to_owned).collect()
    }
}

fn message(status: &Status) -> &str {
    status.reconcile.as_ref().and_then(|r| r.message.as_deref()).unwrap_or_default()
}

#[test]
fn a_revision_that_cannot_be_planned_or_is_refused_deletes_no_route_and_one_that_is_taken_keeps_each_until_its_commit()
{
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let mut settings = world.settings("2s");
    settings["protected"] = serde_json::json!({"interfaces": ["mgmt0"], "ports": [22]});
    // The check has no memory while there is a file `full`. At the commit point it writes the routes down.
    let script = "if [ $here = no ] && [ -e full ]; then\necho 'netlink: Error: Could not process rule: \
                  Cannot allocate memory' >&2; exit 1\nfi\n\
                  [ $here = no ] || ip -4 route show table all proto 157 | sort > at-commit";
    let daemon = with_nft(&world, settings, dir.path(), script);
    daemon.wait("both paths", |s| well(s) && s.unconfirmed.is_none() && s.waiting.is_none());
    let (before, since) = (routes(&daemon), daemon.status().rules["critical"].choice.since);
    let renamed = SITE.replace("critical", "kritisch");

    fs::write(dir.path().join("full"), "").unwrap();
    let witness = Witness::new(&daemon, dir.path());
    world.repository.write("site.yaml", &renamed);
    let waits = |s: &Status| s.waiting.as_ref().is_some_and(|w| w.reason.contains("Cannot allocate memory"));
    let status = daemon.wait("a check without memory", waits);
    assert_eq!(active(&status, "critical"), Some("fiber"), "what is in the kernel is what decides");
    assert_eq!(routes(&daemon), before, "the check failed");
    assert_eq!(witness.deleted(), Vec::<String>::new(), "the check failed");
    let choice = &daemon.status().rules["critical"].choice;
    assert_eq!(choice.since, since, "the rule has forgotten nothing");
    let somebody = routes(&daemon).lines().next().unwrap().replace("proto 157", "");
    daemon.sh(&format!("ip route del {somebody}"));
    daemon.wait("the repair of what is in force", |s| s.totals.drift.contains_key("route"));
    assert_eq!(routes(&daemon), before, "repair is not frozen");

    fs::remove_file(dir.path().join("full")).unwrap();
    let taken = |s: &Status| active(s, "kritisch") == Some("fiber") && s.unconfirmed.is_none() && s.waiting.is_none();
    daemon.wait("the renamed rule", taken);
    let at_commit = fs::read_to_string(dir.path().join("at-commit")).unwrap();
    for route in before.lines() {
        assert!(at_commit.contains(route), "{route} is gone before the ruleset that needs it:\n{at_commit}");
    }

    let before = routes(&daemon);
    let since = daemon.status().rules["kritisch"].choice.since;
    let ssh =
        "    oops: {priority: 50, match: {protocol: tcp, destinationPorts: [22]}, action: {drop: true}}\n    voice:";
    let witness = Witness::new(&daemon, dir.path());
    world.repository.write("site.yaml", &SITE.replace("    voice:", ssh));
    let known = |s: &Status| s.source.quarantine.iter().any(|q| q.reason.contains("PAT0904"));
    let status = daemon.wait("the refusal", |s| known(s) && message(s).is_empty());
    assert_eq!(routes(&daemon), before, "the rails refused it");
    assert_eq!(witness.deleted(), Vec::<String>::new(), "the rails refused it");
    assert_eq!(status.rules["kritisch"].choice.since, since, "the rule has forgotten nothing");
}

/// The kernel refuses one object of the configuration before: neither a fix in the source nor a person who names a
/// generation has to wait for it.
#[test]
fn while_the_way_back_fails_another_revision_takes_its_place() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let special = SITE.replace("guests:", "special:");
    world.repository.write("site.yaml", &special);
    let script = "if [ $here = yes ] && [ -e refuse ] && grep -q policy_special \"$rules\"; then\n\
                  echo 'Error: Could not process rule: Operation not supported' >&2; exit 1\nfi";
    let mut daemon = with_nft(&world, world.settings("2s"), dir.path(), script);
    let good = daemon.wait("both paths", |s| well(s) && s.unconfirmed.is_none() && s.waiting.is_none()).source.applied;
    let stuck = |bad: &str| {
        let bad = bad.to_owned();
        move |s: &Status| s.alarms.iter().any(|a| a.contains(&bad) && a.contains("going back failed"))
    };

    world.repository.write("site.yaml", &CHANGES[5].site());
    let bad = daemon.wait("the trial", |s| s.unconfirmed.is_some()).unconfirmed.unwrap().revision;
    fs::write(dir.path().join("refuse"), "").unwrap();
    let status = daemon.wait("a way back that fails", stuck(&bad));
    assert!(quarantine(&status, &bad).is_some() && status.source.applied == good, "{:?}", status.source);
    // A restart begins the same again.
    daemon.kill();
    daemon.settle();
    daemon.wait("a way back that fails again", stuck(&bad));
    // What the kernel holds is probed all the same: a line that dies without a word is left.
    world.lab.fault("berlin", "fiber", Fault::BlackHole).unwrap();
    daemon.wait_active("critical", "lte");
    world.lab.clear("berlin", "fiber").unwrap();
    daemon.wait("the line again", well);
    // The same fault with another detail: what it is measured by is not how things are under the first.
    world.repository.write("site.yaml", &CHANGES[5].site().replace("dscp: [ef]", "dscp: [ef, 7]"));
    let other = |s: &Status| s.unconfirmed.as_ref().is_some_and(|u| u.revision != bad);
    let worse = daemon.wait("the trial of the same fault", other).unconfirmed.unwrap().revision;
    let status = daemon.wait("its way back that fails", stuck(&worse));
    assert!(quarantine(&status, &worse).unwrap().contains("answered before and does not now"), "{:?}", status.source);
    world.repository.write("site.yaml", &harmless(1));
    let mended = |s: &Status| well(s) && s.unconfirmed.is_none() && s.source.applied != good && s.alarms.is_empty();
    let fixed = daemon.wait("the fix", mended).source.applied.unwrap();
    assert_eq!(standing(&daemon), (fixed.clone(), Standing::Confirmed, "the evidence is complete".into()));

    // One that fails and then works.
    fs::remove_file(dir.path().join("refuse")).unwrap();
    world.repository.write("site.yaml", &special);
    let first = |s: &Status| well(s) && s.unconfirmed.is_none() && s.source.applied == good && s.alarms.is_empty();
    daemon.wait("the first one again", first);
    world.repository.write("site.yaml", &CHANGES[6].site());
    let bad = daemon.wait("the second trial", |s| s.unconfirmed.is_some()).unconfirmed.unwrap().revision;
    fs::write(dir.path().join("refuse"), "").unwrap();
    daemon.wait("a way back that fails once more", stuck(&bad));
    fs::remove_file(dir.path().join("refuse")).unwrap();
    daemon.wait("the way back and no alarm", first);

    // By hand: what a person takes back is not on trial again after a restart, and a generation that the kernel takes ends it.
    let kept = read::generations(&daemon.state_dir(), 9).unwrap();
    let number = |of: &str| kept.iter().find(|g| g.revision == of).unwrap().generation.to_string();
    let (from, to) = (number(&bad), number(&fixed));
    let go = |daemon: &Daemon, to: &str, within: &str| {
        daemon.tells(&["rollback", "--to", to, "--yes", "--confirm-timeout", within])
    };
    daemon.wait("a person who tries it", |_| go(&daemon, &from, "600s").0 == Some(0));
    fs::write(dir.path().join("refuse"), "").unwrap();
    let (code, said) = daemon.tells(&["rollback", "--yes"]);
    assert!(code == Some(1) && said.contains("going back failed"), "{said}");
    daemon.kill();
    daemon.settle();
    assert!(daemon.wait("the way back of the person's", stuck(&bad)).unconfirmed.is_none());
    daemon.wait("what the person wanted", |_| go(&daemon, &to, "0s").0 == Some(0));
    daemon.kill();
    daemon.settle();
    let stands = |s: &Status| well(s) && s.source.applied.as_ref() == Some(&fixed) && s.alarms.is_empty();
    assert!(daemon.wait("the same after a restart", stands).unconfirmed.is_none());
    assert_eq!(standing(&daemon), (fixed.clone(), Standing::Applied, "no confirmation was asked for".into()));
    let kept = read::generations(&daemon.state_dir(), 9).unwrap();
    let undone = kept.iter().rev().find(|g| g.revision == bad).unwrap();
    assert_eq!(undone.standing, Standing::RollbackFailed, "nothing was left to undo: {undone:?}");

    // A way back of which one route is refused is none: what the change made of it stands.
    world.repository.write("site.yaml", &CHANGES[0].site());
    let bad = daemon.wait("the third trial", |s| s.unconfirmed.is_some()).unconfirmed.unwrap().revision;
    daemon.sh("ip address add 198.51.100.1/32 dev wan0");
    daemon.wait("a way back that is refused in one place", stuck(&bad));
    assert!(routes(&daemon).contains("198.51.100.77") && standing(&daemon).1 == Standing::RollbackFailed);
    daemon.sh("ip address del 198.51.100.1/32 dev wan0");
    daemon.wait("the rest of it", |s| well(s) && s.alarms.iter().all(|a| !a.contains("refuse")));
    assert!(!routes(&daemon).contains("198.51.100.77") && standing(&daemon).1 == Standing::RolledBack);
}
