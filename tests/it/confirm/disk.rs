//! A disk that takes no writes while a revision fails: what is known of it survives the daemon all the same.

use patronus::engine::status::Status;

use super::{
    CHANGES, World,
    daemon::{quarantine, well},
    harmless, ours,
};
use crate::support::{daemon::Daemon, disk::Tmpfs, quiet};

const AWAY: &str = "until the state directory can be used";

fn is_away(status: &Status) -> bool {
    status.alarms.iter().any(|alarm| alarm.contains(AWAY))
}

/// A daemon whose state directory is a disk of its own, with a configuration in force.
fn on_a_disk(world: &World) -> (Daemon, Tmpfs) {
    let mut daemon = Daemon::stopped(&world.lab, &world.repository, "berlin");
    daemon.set(world.settings("2s"));
    let disk = Tmpfs::over(&daemon.state_dir(), "8m");
    daemon.launch();
    daemon.wait("a configuration in force", |s| s.unconfirmed.is_none() && s.source.applied.is_some() && well(s));
    (daemon, disk)
}

/// What was given up stays so, with an order by hand, however the disk fails before the next start.
#[test]
fn a_restart_on_a_disk_that_takes_no_writes_knows_what_was_in_force_and_what_had_failed() {
    let _quiet = quiet();
    let world = World::new();
    let (mut daemon, disk) = on_a_disk(&world);
    let good = daemon.status().source.applied;
    world.repository.write("site.yaml", &CHANGES[1].site());
    let undone = |s: &Status| s.source.quarantine.len() == 1 && s.unconfirmed.is_none() && well(s);
    let bad = daemon.wait("the bad revision to be undone", undone).source.quarantine[0].revision.clone();
    daemon.says(&["drain", "lte", "--force"]);
    daemon.wait("a calm moment", |s| s.paths["lte"].drained && s.reconcile.as_ref().is_some_and(|r| r.steps == 0));
    let shown = ours(&daemon);
    let holds = |status: &Status, what: &str| {
        assert_eq!((&status.source.applied, status.unconfirmed.is_none()), (&good, true), "{what}: {status:?}");
        assert!(quarantine(status, &bad).is_some() && status.paths["lte"].drained, "{what}: {status:?}");
    };
    for full in [true, false] {
        let what = if full { "full" } else { "read-only" };
        if full {
            disk.fill();
            daemon.terminate();
        } else {
            daemon.terminate();
            disk.remount("ro");
        }
        daemon.launch();
        let status = daemon.wait(what, |s| is_away(s) && s.source.applied.is_some() && well(s));
        holds(&status, what);
        // Killed there, it is known still.
        daemon.kill();
        daemon.launch();
        holds(&daemon.wait(what, |s| is_away(s) && s.source.applied.is_some() && well(s)), what);
        assert_eq!(ours(&daemon), shown, "{what}");
        if full {
            disk.empty();
        } else {
            disk.remount("rw");
        }
        daemon.wait("the journal to be back", |s| !is_away(s));
    }
    daemon.kill();
    daemon.launch();
    let status = daemon.wait("the paths", |s| s.source.applied.is_some() && well(s));
    holds(&status, "at home again");
}

/// A change is written down before it is tried, if not here then elsewhere: who is killed in the trial undoes it later.
#[test]
fn a_change_that_cuts_the_router_off_is_undone_also_on_a_full_disk_after_a_kill() {
    let _quiet = quiet();
    let world = World::new();
    let (mut daemon, disk) = on_a_disk(&world);
    let (good, shown) = (daemon.status().source.applied, ours(&daemon));
    disk.fill();
    world.repository.write("site.yaml", &CHANGES[1].site());
    daemon.wait("the trial", |s| s.unconfirmed.is_some());
    daemon.kill();
    daemon.launch();
    let undone = |s: &Status| s.source.quarantine.len() == 1 && s.unconfirmed.is_none() && well(s);
    let status = daemon.wait("the way back", undone);
    assert_eq!((&status.source.applied, is_away(&status)), (&good, true), "{status:?}");
    assert_eq!(ours(&daemon), shown);
    // A good one goes on standing when there is room again, and is written where it belongs.
    world.repository.write("site.yaml", &harmless(1));
    let status = daemon.wait("a harmless change", |s| s.source.applied != good && s.unconfirmed.is_none() && well(s));
    disk.empty();
    daemon.wait("the journal to be back", |s| !is_away(s));
    daemon.terminate();
    daemon.launch();
    let again = daemon.wait("the paths", |s| s.source.applied.is_some() && well(s));
    assert_eq!(again.source.applied, status.source.applied);
}
