//! A person's changes: the terminal goes, the process is killed, nobody answers.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use patronus::{
    engine::status::Status,
    store::{Standing, read},
};

use super::{
    CHANGES, SITE, World,
    daemon::{lose_journal, spoil_last_good},
    harmless, ours,
};
use crate::support::daemon::{Daemon, PATIENCE};

/// A router without a daemon.
struct Router {
    world: World,
    daemon: Daemon,
}

impl Router {
    /// One that has the good configuration in force.
    fn new() -> Self {
        let world = World::new();
        let daemon = Daemon::stopped(&world.lab, &world.repository, "berlin");
        let router = Self { world, daemon };
        let output = router.run(&["apply", "--yes"]);
        assert!(output.status.success(), "{}", said(&output));
        router
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.daemon.patronus(&words[..1]);
        command.arg("--config").arg(self.daemon.settings_file()).args(&words[1..]);
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.world.lab.run_in(&self.daemon.router(), self.command(words)).unwrap()
    }

    fn newest(&self) -> (Standing, String) {
        let newest = read::generations(&self.daemon.state_dir(), 1).unwrap().pop().unwrap();
        (newest.standing, newest.reason.unwrap_or_default())
    }

    fn newest_record(&self) -> i64 {
        read::generations(&self.daemon.state_dir(), 1).unwrap().pop().unwrap().record
    }

    /// Waits for the end of a trial, and of whoever watched over it: it holds the router a little longer.
    fn wait(&self, what: &str, wanted: Standing) -> String {
        let start = Instant::now();
        loop {
            let (standing, reason) = self.newest();
            if standing == wanted && find(self, "watch-confirmation").is_none() {
                return reason;
            }
            let audit = || read::audit(&self.daemon.state_dir(), 9);
            assert!(start.elapsed() < PATIENCE, "{what}: it is {standing}, not {wanted}; {:#?}", audit());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// How the person is lost.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// The command ends; nobody types the next one.
    Silence,
    /// The terminal goes away while the command is at work, or right after.
    Terminal,
    /// All that the person has started is killed.
    Killed,
}

/// Applies what the repository holds, and loses the person.
fn lose(router: &Router, loss: Loss) {
    let words = ["apply", "--yes", "--confirm-timeout", "1s"];
    if let Loss::Silence = loss {
        let output = router.run(&words);
        assert!(output.status.success() && said(&output).contains("patronus confirm"), "{}", said(&output));
        return;
    }
    let inner = router.command(&words);
    let line: Vec<String> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let before = router.newest_record();
    // `script` gives it a terminal of its own; killed, that terminal is gone.
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{}; sleep 60", line.join(" ")), "/dev/null"]).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = router.world.lab.spawn_in(&router.daemon.router(), command).unwrap();
    let start = Instant::now();
    // It may be over when this process gets its turn.
    while router.newest_record() == before {
        assert!(start.elapsed() < PATIENCE, "{loss:?}: nothing was applied");
        thread::sleep(Duration::from_millis(2));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    match loss {
        // It may have ended already.
        Loss::Killed => drop(find(router, "apply").map(|apply| kill(apply, Signal::SIGKILL))),
        _ => kill(pid, Signal::SIGKILL).unwrap(),
    }
    drop(child.kill());
    child.wait().unwrap();
}

#[test]
fn a_change_of_the_kernel_undoes_itself_when_its_person_is_silent_or_loses_the_terminal() {
    let router = Router::new();
    let good = ours(&router.daemon);
    // A person's change is undone where it has changed the kernel; probing is the daemon's.
    let changes = CHANGES.iter().filter(|change| change.kernel);
    for (change, loss) in changes.zip([Loss::Silence, Loss::Terminal, Loss::Killed].into_iter().cycle()) {
        router.world.repository.write("site.yaml", &change.site());
        lose(&router, loss);
        let reason = router.wait(change.what, Standing::RolledBack);
        eprintln!("{} ({loss:?}): {reason}", change.what);
        assert_eq!(ours(&router.daemon), good, "{} ({loss:?})", change.what);
    }
}

#[test]
fn a_change_that_waits_keeps_others_out_and_stands_once_confirmed() {
    let router = Router::new();
    let first = ours(&router.daemon);
    router.world.repository.write("site.yaml", &harmless(1));
    let output = router.run(&["apply", "--yes", "--confirm-timeout", "60s"]);
    assert!(output.status.success(), "{}", said(&output));
    let changed = ours(&router.daemon);
    for words in [&["apply", "--yes"][..], &["teardown", "--yes"]] {
        let refused = router.run(words);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(75), "{text}");
        assert!(text.contains("waits for its confirmation until") && text.contains("patronus rollback"), "{text}");
    }
    let output = router.run(&["confirm"]);
    assert!(output.status.success() && said(&output).contains("stands"), "{}", said(&output));
    assert_eq!(router.newest().0, Standing::Confirmed);
    assert_eq!(router.run(&["confirm"]).status.code(), Some(1), "nothing waits any more");
    assert_eq!(ours(&router.daemon), changed);
    // Undone at once, then back to an older one by its number.
    router.world.repository.write("site.yaml", &CHANGES[0].site());
    assert!(router.run(&["apply", "--yes", "--confirm-timeout", "60s"]).status.success());
    let output = router.run(&["rollback"]);
    assert!(output.status.success() && said(&output).contains("is undone"), "{}", said(&output));
    assert_eq!(ours(&router.daemon), changed);
    let output = router.run(&["rollback", "--to", "1", "--yes"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(ours(&router.daemon), first);
    let audit: Vec<String> =
        read::audit(&router.daemon.state_dir(), 99).unwrap().into_iter().map(|row| row.what).collect();
    assert_eq!(audit, ["apply", "apply", "confirm", "apply", "rollback", "rollback --to 1"], "{audit:?}");
}

/// The process of the program that runs this verb for this router.
fn find(router: &Router, verb: &str) -> Option<Pid> {
    let place = router.daemon.state_dir().parent().unwrap().to_str().unwrap().to_owned();
    let is_it = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split('\0').skip(1);
        words.next() == Some(verb) && words.any(|word| word.contains(&place))
    };
    let processes = std::fs::read_dir("/proc").unwrap();
    let mut pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.find(is_it).map(Pid::from_raw)
}

/// Kills the process that watches over the change on trial here, by its id.
fn kill_watcher(router: &Router) {
    kill(find(router, "watch-confirmation").expect("a watcher"), Signal::SIGKILL).unwrap();
}

#[test]
fn the_next_start_undoes_what_a_dead_watcher_left() {
    let router = Router::new();
    let good = ours(&router.daemon);
    router.world.repository.write("site.yaml", &CHANGES[1].site());
    assert!(router.run(&["apply", "--yes", "--confirm-timeout", "1s"]).status.success());
    kill_watcher(&router);
    thread::sleep(Duration::from_millis(1100));
    assert_ne!(ours(&router.daemon), good, "nobody is left to undo it");
    let output = router.run(&["plan"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(ours(&router.daemon), good);
    assert_eq!(router.newest(), (Standing::RolledBack, "nobody confirmed it in time".into()));
}

#[test]
fn a_daemon_that_finds_a_change_which_nobody_confirmed_undoes_it_and_does_not_try_it_by_itself() {
    let mut router = Router::new();
    let good = ours(&router.daemon);
    router.world.repository.write("site.yaml", &harmless(1));
    assert!(router.run(&["apply", "--yes", "--confirm-timeout", "1s"]).status.success());
    kill_watcher(&router);
    router.daemon.launch();
    let quarantined = |status: &Status| status.source.quarantine.len() == 1;
    let status = router.daemon.wait("the change to be quarantined", quarantined);
    assert!(status.source.quarantine[0].reason.contains("nobody confirmed it in time"), "{:?}", status.source);
    // Read once more, and still not tried, however complete the evidence would be.
    let (code, said) = router.daemon.tells(&["reconcile"]);
    assert!(code == Some(1) && said.contains("nobody confirmed it in time"), "{said}");
    router.daemon.wait("the configuration before", |_| ours(&router.daemon) == good);
    assert_eq!(router.newest(), (Standing::RolledBack, "nobody confirmed it in time".into()));
}

#[test]
fn a_person_s_change_without_a_way_back_stays_and_the_next_one_can_be_made() {
    let router = Router::new();
    let good = ours(&router.daemon);
    router.world.repository.write("site.yaml", &CHANGES[5].site());
    assert!(router.run(&["apply", "--yes", "--confirm-timeout", "1s"]).status.success());
    kill_watcher(&router);
    spoil_last_good(&router.daemon);
    thread::sleep(Duration::from_millis(1100));
    let bad = ours(&router.daemon);
    let output = router.run(&["plan"]);
    assert!(output.status.success() && said(&output).contains("ROLLBACK FAILED"), "{}", said(&output));
    assert_eq!(ours(&router.daemon), bad, "the router was not cut off");
    assert!(router.newest().0 == Standing::RollbackFailed && bad != good, "{:?}", router.newest());
    router.world.repository.write("site.yaml", SITE);
    let output = router.run(&["apply", "--yes"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(ours(&router.daemon), good);
    // Nor is there one where no journal tells of what the kernel holds.
    lose_journal(&router.daemon);
    router.world.repository.write("site.yaml", &CHANGES[5].site());
    let output = router.run(&["apply", "--yes", "--confirm-timeout", "1s"]);
    assert!(output.status.success() && said(&output).contains("no journal tells"), "{}", said(&output));
    let reason = router.wait("a change after a lost journal", Standing::RollbackFailed);
    assert!(reason.contains("there is no way back"), "{reason}");
    assert_eq!(ours(&router.daemon), bad, "the router was not torn down");
}

#[test]
fn a_journal_that_is_lost_while_a_person_s_change_waits_is_no_way_out() {
    let router = Router::new();
    let good = ours(&router.daemon);
    router.world.repository.write("site.yaml", &CHANGES[1].site());
    assert!(router.run(&["apply", "--yes", "--confirm-timeout", "3s"]).status.success());
    lose_journal(&router.daemon);
    let start = Instant::now();
    while find(&router, "watch-confirmation").is_some() {
        assert!(start.elapsed() < PATIENCE, "the watcher does not end");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ours(&router.daemon), good);
    assert_eq!(router.newest(), (Standing::RolledBack, "nobody confirmed it in time".into()));
    let audit = read::audit(&router.daemon.state_dir(), 99).unwrap();
    assert!(audit.iter().any(|row| row.what == "journal" && row.detail.contains("was deleted")), "{audit:#?}");
}

#[test]
fn a_change_that_nobody_could_undo_is_not_made() {
    let router = Router::new();
    let good = ours(&router.daemon);
    router.world.repository.write("site.yaml", &harmless(1));
    // Nothing can be written there, as on a disk that is full or broken.
    let output = router.run(&["apply", "--yes", "--confirm-timeout", "60s", "--state-dir", "/proc/patronus"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("nobody could undo the change; nothing was changed"), "{}", said(&output));
    assert_eq!(ours(&router.daemon), good);
}

#[test]
fn the_checker_sees_a_change_that_nobody_watches_over() {
    let router = Router::new();
    let good = ours(&router.daemon);
    router.world.repository.write("site.yaml", &CHANGES[1].site());
    let output = router.run(&["apply", "--yes", "--confirm-timeout", "0s"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(router.newest().0, Standing::Applied);
    assert!(router.run(&["plan"]).status.success());
    assert_ne!(ours(&router.daemon), good, "it stays cut off");
    router.world.repository.write("site.yaml", SITE);
}

#[test]
fn a_confirmation_that_cannot_be_written_down_is_none_and_can_be_repeated() {
    let router = Router::new();
    router.world.repository.write("site.yaml", &harmless(1));
    let output = router.run(&["apply", "--yes", "--confirm-timeout", "60s"]);
    assert!(output.status.success(), "{}", said(&output));
    let other = rusqlite::Connection::open(router.daemon.state_dir().join("journal.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let output = router.run(&["confirm"]);
    assert!(!output.status.success() && said(&output).contains("is NOT confirmed"), "{}", said(&output));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(router.newest().0, Standing::Unconfirmed);
    let output = router.run(&["confirm"]);
    assert!(output.status.success(), "{}", said(&output));
    router.wait("the confirmation", Standing::Confirmed);
}
