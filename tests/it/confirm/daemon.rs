//! The daemon's own changes: evidence, deadline, kill.

use std::thread;

use patronus::{
    engine::status::Status,
    health::PathState,
    store::{Standing, read},
};

use super::{CHANGES, Change, SITE, World, harmless, ours};
use crate::support::daemon::{Daemon, active};

fn well(status: &Status) -> bool {
    status.paths.len() == 2
        && status.paths.values().all(|p| p.health.state == PathState::Up)
        && active(status, "critical") == Some("fiber")
}

/// What the trial of the newest generation came to.
fn standing(daemon: &Daemon) -> (String, Standing, String) {
    let newest = read::generations(&daemon.state_dir(), 1).unwrap().pop().unwrap();
    (newest.revision, newest.standing, newest.reason.unwrap_or_default())
}

fn wait_confirmed(daemon: &Daemon) -> Status {
    daemon
        .wait("a confirmed configuration and both paths", |s| s.unconfirmed.is_none() && s.waiting.is_none() && well(s))
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
    assert!(status.unconfirmed.is_none() && !status.source.errors.is_empty(), "{}", change.what);
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
    let down = |s: &Status| s.paths.values().all(|p| p.health.state == PathState::Down);
    let status = daemon.wait("a router that is cut off", down);
    assert!(status.unconfirmed.is_none(), "nobody asks");
    assert_eq!(standing(&daemon).1, Standing::Applied);
    daemon.kill();
    daemon.settle();
    daemon.wait("a router that is cut off still", down);
}
