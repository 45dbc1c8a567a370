//! The daemon's own changes: evidence, deadline, kill.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, thread, time::Duration};

use patronus::{
    engine::status::Status,
    health::PathState,
    lab::{Fault, Node},
    store::{Standing, read},
};

use super::{CHANGES, Change, REMOTE, SITE, World, harmless, ours};
use crate::support::daemon::{Daemon, active, name, sh};

pub(super) fn well(status: &Status) -> bool {
    status.paths.len() == 2
        && status.paths.values().all(|p| !p.health.held && p.health.state == PathState::Up)
        && active(status, "critical") == Some("fiber")
}

/// What the trial of the newest generation came to.
pub(super) fn standing(daemon: &Daemon) -> (String, Standing, String) {
    let newest = read::generations(&daemon.state_dir(), 1).unwrap().pop().unwrap();
    (newest.revision, newest.standing, newest.reason.unwrap_or_default())
}

fn wait_confirmed(daemon: &Daemon) -> Status {
    daemon
        .wait("a confirmed configuration and both paths", |s| s.unconfirmed.is_none() && s.waiting.is_none() && well(s))
}

/// Why a revision is not tried again.
pub(super) fn quarantine(status: &Status, revision: &str) -> Option<String> {
    status.source.quarantine.iter().find(|q| q.revision == revision).map(|q| q.reason.clone())
}

/// Pushes a change and waits until it is undone and all is as it was.
fn undoes_itself(world: &World, daemon: &mut Daemon, change: &Change, kill: bool) {
    let before = wait_confirmed(daemon);
    let (shown, good) = (ours(daemon), before.source.applied);
    world.repository.write("site.yaml", &change.site());
    let status = daemon.wait(&format!("{}: the trial", change.what), |s| s.unconfirmed.is_some());
    let bad = status.unconfirmed.unwrap().revision;
    if kill {
        daemon.kill();
        daemon.settle();
    }
    daemon.wait(&format!("{}: the way back", change.what), |s| {
        s.unconfirmed.is_none() && s.source.applied == good && well(s)
    });
    let (revision, ended, reason) = standing(daemon);
    eprintln!("{}: {reason}", change.what);
    assert_eq!((revision, ended), (bad, Standing::RolledBack), "{}", change.what);
    assert_eq!(ours(daemon), shown, "{}", change.what);
    // It stands in the source still, and is not tried again.
    let status = daemon.status();
    let bad = standing(daemon).0;
    assert!(status.unconfirmed.is_none() && quarantine(&status, &bad).is_some(), "{}", change.what);
    world.repository.write("site.yaml", SITE);
}

/// A third of the changes in a lab of its own.
fn a_third(third: usize) {
    let world = World::new();
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("2s"));
    for (number, change) in CHANGES.iter().enumerate().filter(|(number, _)| number % 3 == third) {
        undoes_itself(&world, &mut daemon, change, number % 2 == 1);
    }
    let before = wait_confirmed(&daemon).source.applied;
    world.repository.write("site.yaml", &harmless(third));
    let status = daemon.wait("a harmless change", |s| s.source.applied != before && s.unconfirmed.is_none());
    assert_eq!(
        standing(&daemon),
        (status.source.applied.clone().unwrap(), Standing::Confirmed, "the evidence is complete".into())
    );
    daemon.kill();
    let again = daemon.settle();
    assert_eq!(again.source.applied, status.source.applied, "what was confirmed stays");
}

#[test]
fn twelve_changes_that_cut_the_router_off_undo_themselves_also_when_the_daemon_is_killed() {
    let thirds = [0, 1, 2].map(|third| thread::spawn(move || a_third(third)));
    for third in thirds {
        third.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

#[test]
fn the_checker_sees_a_router_that_stays_cut_off_without_the_gate() {
    let world = World::new();
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("0s"));
    daemon.wait("both paths", well);
    world.repository.write("site.yaml", &CHANGES[1].site());
    // Nothing answers anywhere: the states of before are held, and say so.
    let down = |s: &Status| s.paths.values().all(|p| p.health.held || p.health.state == PathState::Down);
    let status = daemon.wait("a router that is cut off", down);
    assert!(status.unconfirmed.is_none(), "nobody asks");
    assert_eq!(standing(&daemon).1, Standing::Applied);
    daemon.kill();
    daemon.settle();
    daemon.wait("a router that is cut off still", down);
}

/// Another network namespace is to the journal what another boot is: a kernel without anything of ours.
#[test]
fn after_a_reboot_the_router_comes_up_with_what_was_in_force_before_the_change() {
    let (world, again) = (World::new(), World::new());
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("60s"));
    let good = wait_confirmed(&daemon).source.applied;
    world.repository.write("site.yaml", &CHANGES[5].site());
    let bad = daemon.wait("the trial", |s| s.unconfirmed.is_some()).unconfirmed.unwrap().revision;
    assert!(daemon.sh("nft list table inet patronus").contains("policy_oops"));
    daemon.kill();
    let mut settings = again.settings("60s");
    settings["stateDir"] = serde_json::json!(daemon.state_dir());
    let router = Daemon::start_with(&again.lab, &world.repository, "berlin", settings);
    let status = router.wait("the configuration before", |s| s.source.applied == good);
    assert_eq!(quarantine(&status, &bad).as_deref(), Some("the machine went down before it was confirmed"));
    assert!(!router.sh("nft list table inet patronus").contains("policy_oops"));
}

/// Right after the first one is undone no path answers yet; the second must not pass for that.
#[test]
fn two_changes_in_a_row_that_cut_the_router_off_are_both_undone() {
    let world = World::new();
    let daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("2s"));
    let good = wait_confirmed(&daemon).source.applied;
    let bad = CHANGES[1].site();
    world.repository.write("site.yaml", &bad);
    daemon.wait("the first trial", |s| s.unconfirmed.is_some());
    world.repository.write("site.yaml", &bad.replace("dscp: [ef]", "dscp: [ef, 7]"));
    let both = |s: &Status| s.source.quarantine.len() == 2 && s.unconfirmed.is_none() && well(s);
    let status = daemon.wait("both undone", both);
    assert_eq!(status.source.applied, good);
}

#[test]
fn an_older_generation_that_nobody_confirms_goes_and_the_newest_revision_is_in_force_as_before() {
    let world = World::new();
    let daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("60s"));
    let first = wait_confirmed(&daemon).source.applied;
    world.repository.write("site.yaml", &harmless(1));
    let later = |s: &Status| s.unconfirmed.is_none() && s.source.applied != first;
    let newest = daemon.wait("the newest revision", later).source.applied;
    let back = |within: &str| {
        let mut command = daemon.patronus(&["rollback"]);
        command.arg("--config").arg(daemon.settings_file());
        command.args(["--to", "1", "--yes", "--confirm-timeout", within]);
        let output = world.lab.run_in(&daemon.router(), command).unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = back("1s");
    assert!(said.contains("stands only if you say so by"), "{said}");
    let status = daemon.wait("the way back", |s| s.unconfirmed.is_none());
    assert!(status.source.applied == newest && status.source.quarantine.is_empty(), "{:?}", status.source);
    let said = back("0s");
    assert!(!said.contains("stands only"), "{said}");
    let status = daemon.status();
    assert!(status.source.applied == first && status.unconfirmed.is_none(), "{:?}", status.source);
}

#[test]
fn the_rails_and_the_windows_of_the_settings_hold_new_revisions_back_and_never_repair() {
    let world = World::new();
    let mut settings = world.settings("2s");
    settings["protected"] = serde_json::json!({"interfaces": ["mgmt0"], "ports": [22]});
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", settings.clone());
    let good = wait_confirmed(&daemon).source.applied;
    let shown = ours(&daemon);
    let ssh =
        "    oops: {priority: 50, match: {protocol: tcp, destinationPorts: [22]}, action: {drop: true}}\n    voice:";
    let refused = [
        (SITE.replace("    voice:", ssh), "PAT0904"),
        (SITE.replace("match: {source: [192.168.10.128/25]}", "match: {inInterface: mgmt0}"), "PAT0902"),
        (SITE.replace("action: {path: fiber}", "action: {drop: true}"), "PAT0912"),
    ];
    for (text, code) in refused {
        world.repository.write("site.yaml", &text);
        let known = |s: &Status| s.source.quarantine.iter().any(|q| q.reason.contains(code));
        let status = daemon.wait(code, |s| known(s) && s.reconcile.as_ref().is_some_and(|r| r.message.is_none()));
        assert!(status.source.applied == good && status.unconfirmed.is_none(), "{code}");
        assert_eq!(ours(&daemon), shown, "{code}");
    }
    world.repository.write("site.yaml", SITE);
    daemon.kill();
    // From here on it is never the time for a change.
    settings["windows"] = serde_json::json!([{"kind": "deny"}]);
    daemon.set(settings);
    daemon.settle();
    world.repository.write("site.yaml", &harmless(3));
    let waits = |s: &Status| s.waiting.as_ref().is_some_and(|w| w.reason.contains("window"));
    let status = daemon.wait("a revision that waits for its window", waits);
    assert_eq!(status.source.applied, good);
    daemon.sh("nft delete table inet patronus");
    daemon.wait("the repair", |s| s.totals.drift.contains_key("nft"));
    assert_eq!(ours(&daemon), shown, "repair is not frozen, and the revision waits still");
}

/// Private networks that nothing is to leave by have routes that lead nowhere, for all of which the lookup has an error
/// of its own.
#[test]
fn a_protected_network_with_a_route_that_leads_nowhere_leaves_the_rails_of_the_others_standing() {
    let narrow = SITE
        .replace("dscp: [ef]", "dscp: [ef], destination: [192.0.2.0/24]")
        .replace("{priority: 1000,", "{priority: 1000, match: {source: [192.168.10.0/24]},");
    let world = World::of(&narrow);
    let mut settings = world.settings("2s");
    settings["protected"] =
        serde_json::json!({"prefixes": ["172.16.0.0/12", "10.77.0.0/16", "10.78.0.0/16", "198.19.0.0/24"]});
    let routes = "ip route add blackhole 172.16.0.0/12; ip route add prohibit 10.77.0.0/16; \
                  ip route add throw 10.78.0.0/16; ip route replace default via 198.51.100.1 dev wan0";
    sh(&world.lab, &Node::Router(name("berlin")), routes);
    let daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", settings);
    let good = wait_confirmed(&daemon).source.applied;
    world.repository.write("site.yaml", SITE);
    let known = |s: &Status| s.source.quarantine.iter().any(|q| q.reason.contains("PAT0901"));
    let tried = |s: &Status| s.source.applied != good || s.unconfirmed.is_some() || known(s);
    let status = daemon.wait("the word of the rails", tried);
    assert!(known(&status) && status.source.applied == good && status.unconfirmed.is_none(), "{:?}", status.source);
    let reason = &status.source.quarantine[0].reason;
    assert!(reason.contains("198.19.0.0/24") && !reason.contains("172.16"), "{reason}");
}

/// The configuration before stands in the journal and is not valid any more, as after an upgrade of the program.
#[test]
fn a_change_without_a_way_back_stays_in_the_kernel_is_repaired_and_is_an_alarm_until_another_comes() {
    let world = World::new();
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("2s"));
    wait_confirmed(&daemon);
    world.repository.write("site.yaml", &CHANGES[5].site());
    let bad = daemon.wait("the trial", |s| s.unconfirmed.is_some()).unconfirmed.unwrap().revision;
    daemon.kill();
    spoil_last_good(&daemon);
    thread::sleep(Duration::from_secs(2));
    let shown = ours(&daemon);
    assert!(shown.contains("policy_oops"));
    daemon.settle();
    let stays = |s: &Status| s.unconfirmed.is_none() && s.source.applied.as_ref() == Some(&bad);
    let status = daemon.wait("what cannot be undone", stays);
    assert!(status.alarms.iter().any(|a| a.contains("is not valid any more")), "{:?}", status.alarms);
    assert_eq!(standing(&daemon).1, Standing::RollbackFailed);
    assert_eq!(ours(&daemon), shown, "the router was not cut off");
    daemon.wait_event("confirm", |event| event.message.contains("ROLLBACK FAILED"));
    daemon.sh("nft delete table inet patronus");
    daemon.wait("the repair", |s| s.totals.drift.contains_key("nft"));
    assert_eq!(ours(&daemon), shown);
    daemon.kill();
    let status = daemon.settle();
    assert!(status.source.applied == Some(bad) && status.alarms.iter().any(|a| a.contains("stays")), "{status:?}");
    world.repository.write("site.yaml", SITE);
    let mended = |s: &Status| well(s) && s.unconfirmed.is_none() && s.alarms.iter().all(|a| !a.contains("stays"));
    daemon.wait("a configuration that works", mended);
    assert!(!ours(&daemon).contains("policy_oops"));
}

/// Nothing can be held against it then, and no path that answers says that it is any better than nothing.
#[test]
fn a_change_after_a_lost_journal_that_leaves_no_path_is_never_called_confirmed() {
    let world = World::new();
    // Without services to reach: these would tell.
    let settings = serde_json::json!({"confirm": {"timeout": "2s"}});
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", settings);
    wait_confirmed(&daemon);
    daemon.terminate();
    lose_journal(&daemon);
    world.repository.write("site.yaml", &CHANGES[1].site());
    daemon.launch();
    daemon.wait_event("confirm", |event| event.message.contains("ROLLBACK FAILED"));
    assert_eq!(standing(&daemon).1, Standing::RollbackFailed);
    world.repository.write("site.yaml", SITE);
    daemon.wait("a configuration that works", |s| well(s) && s.unconfirmed.is_none());
}

/// Deletes the journal, whoever uses it.
pub fn lose_journal(daemon: &Daemon) {
    for file in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        drop(fs::remove_file(daemon.state_dir().join(file)));
    }
}

/// Makes the configuration before invalid, in the journal of a daemon that has ended.
pub fn spoil_last_good(daemon: &Daemon) {
    let journal = rusqlite::Connection::open(daemon.state_dir().join("journal.db")).unwrap();
    let spoilt = journal.execute("UPDATE last_good_files SET content = CAST('kind: Nothing' AS BLOB)", []).unwrap();
    assert!(spoilt > 0);
}

/// The provider fails while an innocent change is on trial.
#[test]
fn a_change_that_a_provider_failed_during_is_in_force_once_the_provider_is_back() {
    let world = World::new();
    let slow = |text: &str| text.replacen("interval: 150ms, timeout: 140ms", "interval: 1s, timeout: 140ms", 1);
    world.repository.write("site.yaml", &slow(SITE));
    let daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("3s"));
    let good = wait_confirmed(&daemon).source.applied;
    world.repository.write("site.yaml", &slow(&harmless(1)));
    let innocent = daemon.wait("the trial", |s| s.unconfirmed.is_some()).unconfirmed.unwrap().revision;
    world.lab.fault("berlin", "lte", Fault::BlackHole).unwrap();
    let doubted =
        |s: &Status| quarantine(s, &innocent).is_some_and(|why| why.contains("without it there is no answer either"));
    let status = daemon.wait("a change that is not to blame", doubted);
    assert!(status.source.applied == good && status.unconfirmed.is_none());
    world.lab.clear("berlin", "lte").unwrap();
    let status = daemon.wait("the change after all", |s| s.source.applied.as_ref() == Some(&innocent));
    assert!(status.source.quarantine.is_empty(), "{:?}", status.source.quarantine);
    assert_eq!(standing(&daemon), (innocent, Standing::Confirmed, "the evidence is complete".into()));
}

/// The remote goes away while an innocent change is on trial; every path is fine. The daemon is killed during the trial,
/// which makes the evidence begin anew, and while it is open whether the change is the cause.
#[test]
fn a_change_that_a_service_was_away_during_is_in_force_once_it_is_back_and_one_that_cuts_it_off_is_not() {
    let mut world = World::new();
    let slow = |text: &str| text.replacen("interval: 150ms, timeout: 140ms", "interval: 1s, timeout: 140ms", 1);
    world.repository.write("site.yaml", &slow(SITE));
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("5s"));
    let good = wait_confirmed(&daemon).source.applied;
    world.repository.write("site.yaml", &slow(&harmless(1)));
    let innocent = daemon.wait("the trial", |s| s.unconfirmed.is_some()).unconfirmed.unwrap().revision;
    daemon.kill();
    world.stop_remote();
    daemon.settle();
    let undone =
        |s: &Status| s.unconfirmed.is_none() && quarantine(s, &innocent).is_some_and(|why| why.contains(REMOTE));
    daemon.wait("the way back", undone);
    let open = "it is being looked at whether these answer without it: 9.9.9.9:4443";
    daemon.wait_event("source", |event| event.message.ends_with(open));
    daemon.kill();
    daemon.settle();
    let doubted = |s: &Status| quarantine(s, &innocent).is_some_and(|why| why.contains("there is no answer either"));
    let status = daemon.wait("a change that is not to blame", doubted);
    assert!(status.source.applied == good && status.unconfirmed.is_none());
    assert!(quarantine(&status, &innocent).unwrap().ends_with("tried again once these answer: 9.9.9.9:4443"));
    world.start_remote();
    let status = daemon.wait("the change after all", |s| s.source.applied.as_ref() == Some(&innocent));
    assert!(status.source.quarantine.is_empty(), "{:?}", status.source.quarantine);
    assert_eq!(standing(&daemon), (innocent.clone(), Standing::Confirmed, "the evidence is complete".into()));
    // The guilty one: the service answers without it.
    world.repository.write("site.yaml", &slow(&CHANGES[5].site()));
    let event = daemon.wait_event("source", |event| event.message.contains("stays in quarantine"));
    assert!(event.message.contains("9.9.9.9:4443 answers without it"), "{}", event.message);
    let status = daemon.status();
    let guilty = status.source.quarantine.last().unwrap();
    assert!(guilty.fault == patronus::revision::Fault::Own && guilty.reason.contains(REMOTE), "{guilty:?}");
    assert!(status.source.applied == Some(innocent) && status.unconfirmed.is_none(), "{:?}", status.source);
}

/// An `nft` that tells of a busy kernel instead of loading anything in this router, while a file `busy` lies beside it.
fn busy_nft(daemon: &Daemon, dir: &Path) {
    let (router, busy) = (daemon.sh("readlink /proc/self/ns/net"), dir.join("busy"));
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = -f ] && [ -e {} ] && [ \"$(readlink /proc/self/ns/net)\" = '{}' ]; then\n\
         cat >/dev/null; echo 'Error: Could not process rule: Device or resource busy' >&2; exit 1\nfi\n\
         exec /usr/sbin/nft \"$@\"\n",
        busy.display(),
        router.trim()
    );
    fs::write(dir.join("nft"), script).unwrap();
    fs::set_permissions(dir.join("nft"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_change_that_a_busy_kernel_could_not_take_is_tried_again_and_not_quarantined() {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let mut daemon = Daemon::stopped(&world.lab, &world.repository, "berlin");
    daemon.set(world.settings("2s"));
    busy_nft(&daemon, dir.path());
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    daemon.variable("PATH", path.into());
    daemon.settle();
    let good = wait_confirmed(&daemon).source.applied;
    fs::write(dir.path().join("busy"), "").unwrap();
    world.repository.write("site.yaml", &harmless(1));
    let again = |s: &Status| s.waiting.as_ref().is_some_and(|w| w.reason.contains("tried again (1 of 3)"));
    let status = daemon.wait("a change that is put off", again);
    assert!(status.source.applied == good && status.source.quarantine.is_empty(), "{:?}", status.source);
    assert!(status.waiting.unwrap().reason.contains("Device or resource busy"));
    fs::remove_file(dir.path().join("busy")).unwrap();
    let status = daemon.wait("the change", |s| s.source.applied != good && s.unconfirmed.is_none() && well(s));
    assert!(status.source.quarantine.is_empty(), "{:?}", status.source.quarantine);
    assert_eq!(standing(&daemon).1, Standing::Confirmed);
}

/// A backup that was made during a trial comes back when that is over.
#[test]
fn an_older_copy_of_the_journal_undoes_nothing_that_was_confirmed_since() {
    let world = World::new();
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("2s"));
    let first = wait_confirmed(&daemon).source.applied;
    world.repository.write("site.yaml", &harmless(1));
    daemon.wait("the trial", |s| s.unconfirmed.is_some());
    let (journal, copy) = (daemon.state_dir().join("journal.db"), daemon.state_dir().join("copy.db"));
    rusqlite::Connection::open(&journal).unwrap().execute("VACUUM INTO ?", [copy.to_str().unwrap()]).unwrap();
    let later = |s: &Status| s.source.applied != first && s.unconfirmed.is_none() && well(s);
    let (good, shown) = (daemon.wait("the change", later).source.applied, ours(&daemon));
    for file in ["journal.db-wal", "journal.db-shm"] {
        drop(fs::remove_file(daemon.state_dir().join(file)));
    }
    fs::rename(&copy, &journal).unwrap();
    daemon.sh("nft delete table inet patronus");
    let told = "was replaced by another file while in use; the one there now is used";
    daemon.wait("another journal", |s| s.alarms.iter().any(|a| a.contains(told)));
    daemon.kill();
    let status = daemon.settle();
    assert!(status.source.applied == good && status.unconfirmed.is_none(), "{:?}", status.source);
    assert_eq!(ours(&daemon), shown);
    assert!(standing(&daemon).2.contains("an older copy of the journal"), "{:?}", standing(&daemon));
}

#[test]
fn a_journal_that_is_lost_during_a_trial_is_written_anew_so_that_a_kill_is_no_way_out() {
    let world = World::new();
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("8s"));
    let good = wait_confirmed(&daemon).source.applied;
    world.repository.write("site.yaml", &CHANGES[5].site());
    daemon.wait("the trial", |s| s.unconfirmed.is_some());
    lose_journal(&daemon);
    // Any change makes the next pass come now.
    daemon.sh("nft delete table inet patronus");
    daemon.wait("another journal", |s| s.alarms.iter().any(|a| a.contains("a new one was begun")));
    daemon.kill();
    daemon.settle();
    let back = |s: &Status| s.unconfirmed.is_none() && s.source.applied == good && well(s);
    daemon.wait("the way back", back);
    assert!(!ours(&daemon).contains("policy_oops"));
    assert_eq!(standing(&daemon).1, Standing::RolledBack);
    // Lost while nothing runs: there is no way back to what the kernel holds, and that is no reason to tear it down.
    world.repository.write("site.yaml", SITE);
    wait_confirmed(&daemon);
    daemon.kill();
    lose_journal(&daemon);
    world.repository.write("site.yaml", &CHANGES[5].site());
    daemon.launch();
    let stays = |s: &Status| s.alarms.iter().any(|a| a.contains("what is in the kernel stays"));
    daemon.wait("a change that cannot be undone", stays);
    assert!(ours(&daemon).contains("policy_oops"));
    assert_eq!(standing(&daemon).1, Standing::RollbackFailed);
}

/// Somebody else holds the journal just when the change is confirmed, and lets go of it later.
#[test]
fn what_was_confirmed_while_the_journal_could_not_be_written_stands_after_a_kill() {
    let world = World::new();
    let mut daemon = Daemon::start_with(&world.lab, &world.repository, "berlin", world.settings("4s"));
    let first = wait_confirmed(&daemon).source.applied;
    world.repository.write("site.yaml", &harmless(1));
    daemon.wait("the trial", |s| s.unconfirmed.is_some());
    let other = rusqlite::Connection::open(daemon.state_dir().join("journal.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let later = |s: &Status| s.source.applied != first && s.unconfirmed.is_none() && well(s);
    let (good, shown) = (daemon.wait("the change", later).source.applied, ours(&daemon));
    let unwritten = |s: &Status| s.alarms.iter().any(|a| a.contains("is not written down yet"));
    daemon.wait("an alarm", unwritten);
    other.execute_batch("ROLLBACK").unwrap();
    daemon.wait("an end of the alarm", |s| !unwritten(s));
    assert_eq!(standing(&daemon).1, Standing::Confirmed);
    daemon.kill();
    let status = daemon.settle();
    assert_eq!(status.source.applied, good);
    assert!(status.source.quarantine.is_empty() && status.unconfirmed.is_none(), "{:?}", status.source);
    assert_eq!(ours(&daemon), shown);
}
