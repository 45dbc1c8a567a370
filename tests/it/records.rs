//! The records: metrics, the journal and the records under bad luck, the API over a real socket.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use hyper::Method;
use patronus::{
    api::{
        self, ApiError, ApiState, Command as Request, Listen,
        client::{self, ClientError},
    },
    apply::{RunId, RunRecord, StepState},
    clock::{self, Wall},
    engine::status::{Event, Pinned, ReconcileOutcome, ReconcileStatus, Status, Totals, UnconfirmedStatus},
    failover::Parted,
    guard::Who,
    health::PathState,
    metrics,
    plan::Step,
    revision::{Held, HeldWhy, Suspension},
    state::{Fwmark, Stamp, State},
    store::{
        self, HealthSample, Journal, LastGood, Limits, Recorder, Run, StoreError,
        read::{self, Wanted},
    },
    units::{Family, Name, Ratio},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, watch},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = StdInstant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One path is down, so the rule is on its backup, and the way back has begun.
/// A status in which every metric has a series.
pub fn status() -> Status {
    let mut status: Status = serde_json::from_str(include_str!("records/status.json")).unwrap();
    let at = Wall::from_micros(1_700_000_500_000_000);
    let newest = "b".repeat(40);
    status.source.held = Some(Held {
        revision: newest.clone(),
        why: HeldWhy::Diverged,
        message: "the commit does not descend from the last accepted one".into(),
        remedy: "push the branch as it was".into(),
        since: at,
    });
    status.source.desired = Some(newest);
    let until = Some(Wall::from_micros(1_700_003_600_000_000));
    status.source.suspended = Some(Suspension { by: "root".into(), reason: "maintenance".into(), since: at, until });
    let rule = status.rules.get_mut("critical").unwrap();
    rule.pinned = Some(Pinned { to: "lte".parse().unwrap(), seconds: 3590.0, reason: "work on the mast".into() });
    rule.parted = vec![Parted {
        family: Family::V6,
        from: name("lte"),
        to: name("fiber"),
        since: status.now,
        reason: "3 rounds lost in a row".into(),
        back_in: Some(12.0),
    }];
    let lte = &mut status.paths.get_mut("lte").unwrap().health;
    lte.families = BTreeMap::from([(Family::V4, lte.clone()), (Family::V6, lte.clone())]);
    let sent = BTreeMap::from([("sent".to_owned(), 7), ("failed".to_owned(), 1)]);
    status.totals.notifications = BTreeMap::from([(name("pager"), sent)]);
    status.totals.webhook = BTreeMap::from([("accepted".to_owned(), 4), ("wrong-signature".to_owned(), 1)]);
    status.totals.reports = BTreeMap::from([("taken".to_owned(), 3), ("failed".to_owned(), 2)]);
    status.unconfirmed = Some(UnconfirmedStatus {
        generation: 42,
        revision: "9be01d2".into(),
        previous: None,
        who: Who::DAEMON,
        until: Wall::from_micros(1_700_001_120_000_000),
        seconds_left: 120,
        by_hand: false,
        waits: Vec::new(),
        against: Vec::new(),
    });
    status.totals.source_errors = BTreeMap::from([("invalid".to_owned(), 2), ("read".to_owned(), 1)]);
    status
}

// Metrics.

/// What `promtool check metrics` says; empty when it is content.
fn promtool(text: &str) -> String {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: apt-get install prometheus");
    tool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let out = tool.wait_with_output().unwrap();
    let said = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert_eq!(out.status.success(), said.is_empty(), "{said}");
    said
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    assert_eq!(promtool(&metrics::render(&status())), "");
    let mut bare = status();
    (bare.paths, bare.rules, bare.policies) = Default::default();
    bare.unconfirmed = None;
    bare.totals = Totals::default();
    assert_eq!(promtool(&metrics::render(&bare)), "", "before the first reconcile");
}

#[test]
fn promtool_would_complain_about_counters_in_open_metrics_style() {
    let sabotaged = metrics::render(&status()).replace("patronus_probes_total ", "patronus_probes ");
    assert!(promtool(&sabotaged).contains("patronus_probes"));
}

#[test]
fn metrics_say_what_the_status_says() {
    let text = metrics::render(&status());
    for line in [
        r#"patronus_path_rtt_seconds{site="berlin",path="lte"} 0.01234"#,
        r#"patronus_path_loss_ratio{site="berlin",path="lte"} 0.0125"#,
        r#"patronus_path_up{site="berlin",path="fiber"} 0"#,
        r#"patronus_path_state{site="berlin",path="fiber",state="down"} 1"#,
        r#"patronus_probes_total{site="berlin",path="lte",result="lost"} 7"#,
        r#"patronus_path_mos{site="berlin",path="lte"} 4.25"#,
        r#"patronus_path_one_way_seconds{site="berlin",path="lte",direction="back"} 0.007"#,
        r#"patronus_probe_oddities_total{site="berlin",path="lte",kind="duplicate"} 2"#,
        r#"patronus_probe_rtt_seconds_sum{site="berlin",path="lte"} 14.5"#,
        r#"patronus_probe_rtt_seconds_bucket{le="0.02",site="berlin",path="lte"} 990"#,
        r#"patronus_probe_rtt_seconds_bucket{le="1.0",site="berlin",path="lte"} 998"#,
        r#"patronus_policy_bytes_total{site="berlin",policy="voice"} 24500000"#,
        r#"patronus_failover_active_path{site="berlin",rule="critical",path="fiber"} 0"#,
        r#"patronus_failover_active_path{site="berlin",rule="critical",path="lte"} 1"#,
        r#"patronus_failover_events_total{site="berlin",rule="critical",type="failover"} 4"#,
        r#"patronus_failover_failback_remaining_seconds{site="berlin",rule="critical"} 30.0"#,
        r#"patronus_reconcile_total{site="berlin",result="rolled-back"} 1"#,
        r#"patronus_reconcile_duration_seconds_count{site="berlin"} 4"#,
        r#"patronus_config_revision_info{site="berlin",state="applied",revision="9be01d2"} 1"#,
        r#"patronus_config_revision_info{site="berlin",state="attempted",revision="9be01d2"} 1"#,
        r#"patronus_config_attempt_timestamp_seconds{site="berlin",outcome="applied"} 1700000940.0"#,
        r#"patronus_source_errors_total{site="berlin",reason="invalid"} 2"#,
        r#"patronus_webhook_requests_total{site="berlin",result="wrong-signature"} 1"#,
        r#"patronus_forge_reports_total{site="berlin",result="failed"} 2"#,
        r#"patronus_trial_deadline_timestamp_seconds{site="berlin"} 1700001120.0"#,
        r#"patronus_notifications_total{site="berlin",channel="pager",result="failed"} 1"#,
        r#"patronus_source_held{site="berlin",reason="diverged"} 1"#,
        r#"patronus_source_suspended{site="berlin"} 1"#,
        r#"patronus_failover_pinned_remaining_seconds{site="berlin",rule="critical"} 3590.0"#,
        r#"patronus_source_suspended_until_timestamp_seconds{site="berlin"} 1700003600.0"#,
        r#"patronus_condition{site="berlin",type="Ready",status="True"} 1"#,
        r#"patronus_condition{site="berlin",type="Ready",status="False"} 0"#,
        r#"patronus_build_info{site="berlin",version="0.1.0"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn without_answers_there_is_no_latency_and_no_jitter() {
    let text = metrics::render(&status());
    for metric in ["patronus_path_rtt_seconds", "patronus_path_jitter_seconds"] {
        let of_fiber = format!("{metric}{{site=\"berlin\",path=\"fiber\"");
        assert!(!text.contains(&of_fiber), "{metric} of a silent path in\n{text}");
    }
    assert!(text.contains(r#"patronus_path_loss_ratio{site="berlin",path="fiber"} 1"#));
}

#[test]
fn a_revision_that_is_gone_leaves_no_series() {
    let mut status = status();
    let old = "b".repeat(40);
    assert!(metrics::render(&status).contains(&old));
    status.source.desired.clone_from(&status.source.applied);
    assert!(!metrics::render(&status).contains(&old));
}

#[test]
fn a_removed_path_leaves_no_series() {
    let mut status = status();
    assert!(metrics::render(&status).contains("fiber"));
    status.paths.remove("fiber");
    status.rules.clear();
    let text = metrics::render(&status);
    assert!(!text.contains("fiber") && !text.contains("critical"), "{text}");
}

// The journal.

fn plan(steps: u32) -> RunRecord {
    let step = |n| Step::Forget { flows: Fwmark { mark: n, mask: 0xff }, family: None, reason: "test".into() };
    RunRecord {
        stamp: Stamp { generation: 7, plan: uuid::Uuid::now_v7() },
        previous: Some(Stamp { generation: 6, plan: uuid::Uuid::now_v7() }),
        place: "boot/netns".into(),
        revision: "abc".into(),
        steps: (0..steps).map(step).collect(),
    }
}

#[test]
fn a_run_is_unfinished_until_it_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.unfinished().unwrap(), None);
    let plan = plan(3);
    let run = journal.begin(&plan, clock::wall()).unwrap();
    journal.step(run, 0, StepState::Done, None).unwrap();
    journal.step(run, 1, StepState::Failed, Some("no such device")).unwrap();
    drop(journal);

    let journal = Journal::open(dir.path()).unwrap();
    let found = journal.unfinished().unwrap().unwrap();
    assert_eq!((found.run, found.record), (run, plan));
    assert_eq!(found.states, [Some(StepState::Done), Some(StepState::Failed), None]);
    journal.finish(run, clock::wall(), Some(ReconcileOutcome::RolledBack), Some("no such device")).unwrap();
    assert_eq!(journal.unfinished().unwrap(), None);
    let history = read::history(dir.path(), 10).unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].outcome, Some(ReconcileOutcome::RolledBack));
    assert_eq!((journal.generation().unwrap(), history[0].steps), (7, 3));
    assert!(!journal.has_applied(7).unwrap(), "it was undone");
    let run = journal.begin(&self::plan(1), clock::wall()).unwrap();
    journal.finish(run, clock::wall(), Some(ReconcileOutcome::Applied), None).unwrap();
    assert_eq!([6, 7, 8].map(|number| journal.has_applied(number).unwrap()), [true, true, false]);
}

#[test]
fn what_a_start_needs_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.last_good().unwrap(), None);
    let mut good =
        LastGood { revision: "a".into(), at: clock::wall(), files: BTreeMap::from([("old.yaml".into(), vec![1])]) };
    journal.set_last_good(&good).unwrap();
    good.files = BTreeMap::from([("site.yaml".into(), vec![0, 255, 10])]);
    journal.set_last_good(&good).unwrap();
    journal.keep_sysctl("ipv4/conf/wan0/rp_filter", "1").unwrap();
    journal.keep_sysctl("ipv4/conf/wan0/rp_filter", "2").unwrap();
    journal.put_for_boot("applied", &serde_json::to_string(&State::default()).unwrap()).unwrap();
    journal.put("selection", "[1, 2]").unwrap();
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.last_good().unwrap(), Some(good));
    assert_eq!(journal.sysctl_originals().unwrap()["ipv4/conf/wan0/rp_filter"], "1", "the first value is the original");
    assert_eq!(journal.applied().unwrap(), Some(State::default()));
    assert_eq!(journal.get::<Vec<u8>>("selection").unwrap(), Some(vec![1, 2]));
    journal.forget("selection").unwrap();
    assert_eq!(journal.get::<Vec<u8>>("selection").unwrap(), None);
}

#[test]
fn what_describes_the_kernel_of_another_boot_counts_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let run = journal.begin(&plan(2), clock::wall()).unwrap();
    journal.step(run, 0, StepState::Started, None).unwrap();
    journal.keep_sysctl("ipv4/conf/wan0/rp_filter", "1").unwrap();
    journal.put_for_boot("applied", &serde_json::to_string(&State::default()).unwrap()).unwrap();
    journal.put("override", r#""lte""#).unwrap();
    assert!(journal.unfinished().unwrap().is_some());
    drop(journal);
    let db = rusqlite::Connection::open(store::journal_file(dir.path())).unwrap();
    for table in ["runs", "sysctl_originals", "this_boot"] {
        db.execute(&format!("UPDATE {table} SET boot = 'another'"), []).unwrap();
    }
    drop(db);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.unfinished().unwrap(), None, "its steps must not be undone on a fresh kernel");
    assert!(journal.sysctl_originals().unwrap().is_empty());
    assert_eq!(journal.applied().unwrap(), None);
    assert_eq!(journal.get::<String>("override").unwrap().as_deref(), Some("lte"));
    let told = &read::history(dir.path(), 1).unwrap()[0];
    assert!(told.outcome.is_none() && told.message.as_deref().is_some_and(|m| m.contains("machine went down")));
}

#[test]
fn old_runs_lose_their_details_but_not_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let mut runs = Vec::new();
    for _ in 0..102 {
        let run = journal.begin(&plan(1), clock::wall()).unwrap();
        journal.finish(run, clock::wall(), Some(ReconcileOutcome::Applied), None).unwrap();
        runs.push(run);
    }
    assert!(journal.steps(runs[1]).unwrap().is_empty());
    assert_eq!(journal.steps(runs[2]).unwrap().len(), 1);
    assert_eq!(read::history(dir.path(), 1000).unwrap().len(), 102);
}

/// Not a test by itself: the child that `a_killed_writer_leaves_an_intact_journal` kills.
#[test]
fn journal_writer_child() {
    let Ok(dir) = std::env::var("PATRONUS_TEST_JOURNAL") else { return };
    let journal = Journal::open(Path::new(&dir)).unwrap();
    let mut progress = std::io::stderr();
    for _ in 0..10_000 {
        let run = journal.begin(&plan(4), clock::wall()).unwrap();
        for index in 0..4 {
            journal.step(run, index, StepState::Started, None).unwrap();
            journal.step(run, index, StepState::Done, None).unwrap();
            writeln!(progress, "{} {index}", run.0).unwrap();
        }
        journal.finish(run, clock::wall(), Some(ReconcileOutcome::Applied), None).unwrap();
    }
}

#[test]
fn a_killed_writer_leaves_an_intact_journal() {
    use std::io::{BufRead as _, BufReader};
    let dir = tempfile::tempdir().unwrap();
    for lines in [1, 2, 7, 10, 19] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["records::journal_writer_child", "--exact", "--nocapture"])
            .env("PATRONUS_TEST_JOURNAL", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
        let last = told.by_ref().take(lines).last().unwrap().unwrap();
        child.kill().unwrap();
        // What was in the pipe when it died was promised as well.
        let whole = |line: &String| line.split_once(' ').is_some_and(|(_, index)| !index.is_empty());
        let last = told.map_while(Result::ok).filter(whole).last().unwrap_or(last);
        child.wait().unwrap();
        let (run, index) = last.split_once(' ').unwrap();
        let (run, index): (i64, usize) = (run.parse().unwrap(), index.parse().unwrap());

        let journal = Journal::open(dir.path()).unwrap();
        let steps = journal.steps(RunId(run)).unwrap();
        assert!(
            steps[..=index].iter().all(|(_, state)| *state == Some(StepState::Done)),
            "told {last}, found {steps:?}"
        );
        if let Some(unfinished) = journal.unfinished().unwrap() {
            assert!(unfinished.run.0 >= run && unfinished.states.len() == 4, "{unfinished:?}");
            journal.finish(unfinished.run, clock::wall(), Some(ReconcileOutcome::RolledBack), None).unwrap();
        }
    }
}

#[test]
fn a_damaged_journal_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(store::journal_file(dir.path()), [b'x'; 9000]).unwrap();
    assert!(Journal::open(dir.path()).unwrap_err().is_corrupt());
    let (journal, told) = Journal::open_or_replace(dir.path()).unwrap();
    assert!(told.unwrap().contains(".corrupt-"));
    journal.begin(&plan(1), clock::wall()).unwrap();
}

// The records.

fn event(kind: &str, subject: &str) -> Event {
    Event {
        id: 0,
        at: clock::wall(),
        kind: kind.into(),
        subject: subject.into(),
        message: format!("{subject} did something"),
        detail: serde_json::json!({"score": 12}),
    }
}

/// Times are kept to the millisecond.
fn sample(at: Wall, path: &str) -> HealthSample {
    HealthSample {
        at: Wall::from_micros(at.as_micros() / 1_000 * 1_000),
        path: name(path),
        rtt_micros: Some(12_340),
        jitter_micros: None,
        loss: Ratio::ZERO,
        score: 99,
        state: PathState::Up,
    }
}

fn events(dir: &Path) -> Vec<Event> {
    read::events(dir, &Wanted::default()).unwrap_or_default()
}

#[test]
fn what_is_recorded_can_be_read_without_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let missing = read::events(dir.path(), &Wanted::default()).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }));
    let recorder = Recorder::start(dir.path(), Limits::default());
    let sent = [recorder.event(event("failover", "critical")), recorder.event(event("path", "fiber"))];
    assert!(sent[0].id < sent[1].id);
    let row = sample(clock::wall(), "fiber");
    recorder.samples(vec![row.clone()]);
    let refused = Run {
        plan: None,
        generation: 3,
        revision: None,
        started: clock::wall(),
        ended: None,
        outcome: Some(ReconcileOutcome::Refused),
        steps: 0,
        message: Some("2 errors".into()),
    };
    recorder.run(refused.clone());
    assert!(recorder.flush(PATIENCE));
    assert_eq!(events(dir.path()), sent);
    let only = Wanted { only: Some("path".into()), ..Wanted::default() };
    assert_eq!(read::events(dir.path(), &only).unwrap(), sent[1..]);
    assert_eq!(read::samples(dir.path(), &Wanted::default()).unwrap(), [row]);
    assert_eq!(read::history(dir.path(), 10).unwrap(), [refused]);
    assert_eq!((recorder.lost(), recorder.alarms()), (0, vec![]));
}

#[test]
fn the_last_handle_writes_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(dir.path(), Limits::default());
    recorder.samples(vec![sample(clock::wall(), "fiber")]);
    drop(recorder);
    let there = || read::samples(dir.path(), &Wanted::default()).is_ok_and(|rows| rows.len() == 1);
    until("the sample is written at the end", there);
}

#[test]
fn rows_older_than_the_retention_go() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(dir.path(), Limits::default());
    let now = clock::wall().as_micros();
    for s in 0..12_000 {
        recorder.event(Event { at: Wall::from_micros(now - 40 * 86_400_000_000 + s), ..event("path", "fiber") });
        if s % 1_000 == 0 {
            assert!(recorder.flush(PATIENCE));
        }
    }
    let old = Wall::from_micros(now - 40 * 86_400_000_000);
    recorder.samples(vec![sample(old, "fiber"), sample(Wall::from_micros(now), "fiber")]);
    recorder.event(event("path", "lte"));
    assert!(recorder.flush(PATIENCE));
    drop(recorder);
    // A start prunes: the hourly round is not waited for.
    let recorder = Recorder::start(dir.path(), Limits::default());
    assert!(recorder.flush(PATIENCE));
    let all = Wanted { limit: 20_000, ..Wanted::default() };
    assert_eq!(read::samples(dir.path(), &all).unwrap().len(), 1, "only the new one is left");
    assert_eq!(read::events(dir.path(), &all).unwrap().len(), 1, "only the new one is left");
    let kept = read::aggregates(dir.path(), &all).unwrap();
    assert_eq!(kept.iter().map(|a| a.samples).collect::<Vec<_>>(), [1], "what the old ones came to: {kept:?}");
}

#[test]
fn what_channels_have_to_tell_is_written_with_the_event_in_one_place_of_the_queue_and_waits_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let [chat, mail, log] = ["chat", "mail", "log"].map(name);
    let start = || {
        let recorder = Recorder::start(dir.path(), Limits::default());
        recorder.tell([&chat, &mail, &log].map(|channel| (channel.clone(), vec!["failover"])).into());
        recorder
    };
    let recorder = start();
    let now = clock::wall();
    let old = now.before(Duration::from_secs(2 * 86_400));
    for at in [old, old, now] {
        recorder.event(Event { at, ..event("failover", "critical") });
        recorder.event(event("path", "fiber"));
    }
    assert!(recorder.flush(PATIENCE));
    // Nobody can write for a moment, and all rules move.
    let others = rusqlite::Connection::open(dir.path().join("records.db")).unwrap();
    others.execute_batch("BEGIN IMMEDIATE").unwrap();
    (0..900).for_each(|_| drop(recorder.event(event("failover", "critical"))));
    others.execute_batch("COMMIT").unwrap();
    assert_eq!((recorder.flush(PATIENCE), recorder.lost()), (true, 0));
    assert_eq!(recorder.untold(&chat, 10).unwrap(), (vec![], 0), "they are of this process");
    drop(recorder);
    let recorder = start();
    recorder.event(event("failover", "new"));
    let (events, more) = recorder.untold(&mail, 10).unwrap();
    assert_eq!((events.len(), more), (10, 891), "901 of the last day");
    assert!(events.iter().all(|event| event.subject == "critical"));
    recorder.told(&mail, events[9].id);
    assert_eq!(recorder.untold(&mail, 10).unwrap(), (vec![], 0));
    assert_eq!(recorder.untold(&log, 10).unwrap().1, 891, "others have it still to tell");
}

#[test]
fn samples_are_thinned_to_what_fits_and_their_aggregates_stay() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { sample_bytes: 20_000, ..Limits::default() };
    let recorder = Recorder::start(dir.path(), limits);
    let begin = (clock::wall().as_micros() / 86_400_000_000 - 2) * 86_400_000_000;
    // Three hours of two paths.
    for part in 0..18 {
        let seconds = part * 600..(part + 1) * 600;
        let both = |s: i64| ["fiber", "lte"].map(|path| sample(Wall::from_micros(begin + s * 1_000_000), path));
        recorder.samples(seconds.flat_map(both).collect());
        assert!(recorder.flush(PATIENCE));
    }
    let all = Wanted { limit: usize::MAX, ..Wanted::default() };
    let written = read::samples(dir.path(), &all).unwrap();
    assert_eq!(written.len(), 2 * 10_800, "each second of each path");
    assert!(written.windows(2).all(|w| (w[0].at, &w[0].path) < (w[1].at, &w[1].path)));
    let some = Wanted { only: Some("lte".into()), since: Some(written[100].at), limit: 7, ..Wanted::default() };
    assert_eq!(
        read::samples(dir.path(), &some).unwrap(),
        written.iter().filter(|s| s.path.as_str() == "lte").skip(10_793).cloned().collect::<Vec<_>>()
    );
    drop(recorder);
    // A start prunes.
    let recorder = Recorder::start(dir.path(), limits);
    assert!(recorder.flush(PATIENCE));
    let left = read::samples(dir.path(), &all).unwrap();
    assert!(left.len() < written.len() && written.ends_with(&left) && !left.is_empty(), "{} left", left.len());
    let kept = read::aggregates(dir.path(), &all).unwrap();
    assert_eq!((kept.len(), kept.iter().map(|a| a.samples).sum::<u64>()), (2 * 36, 2 * 10_800), "once each");
    assert!(kept.iter().all(|a| a.rtt_micros == Some([12_340; 3]) && a.jitter_micros.is_none() && a.not_up == [0; 3]));
}

#[test]
fn a_full_disk_costs_rows_and_not_time() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { samples: 50_000, memory: 100_000, pages: 30, ..Limits::default() };
    let recorder = Recorder::start(dir.path(), limits);
    let now = clock::wall().as_micros();
    let start = StdInstant::now();
    for n in 0..150 {
        let batch = (0..1_000).map(|path| sample(Wall::from_micros(now + n * 1_000_000), &format!("path-{path}")));
        recorder.samples(batch.collect());
    }
    assert!(start.elapsed() < Duration::from_secs(2), "the engine waited {:?}", start.elapsed());
    assert!(recorder.flush(PATIENCE));
    let alarms = recorder.alarms();
    assert!(alarms.iter().any(|a| a.contains("nothing is recorded") && a.contains("full")), "{alarms:?}");
    assert!(recorder.lost() >= 90_000, "{} lost", recorder.lost());
    assert!(alarms.iter().any(|a| a.contains("rows of the records were lost")), "{alarms:?}");
}

#[test]
fn a_full_file_system_is_survived_and_its_end_noticed() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    // A mount namespace belongs to a thread; the writer inherits it from the thread that starts it.
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
        let recorder = Recorder::start(&at, Limits::default());
        recorder.event(event("daemon", "first"));
        assert!(recorder.flush(PATIENCE));
        let filler = at.join("filler");
        let result = std::fs::write(&filler, vec![0; 1 << 20]);
        assert!(result.is_err(), "the file system is full");
        for n in 0..200 {
            recorder.event(event("path", &format!("during-{n}")));
        }
        assert!(recorder.flush(PATIENCE));
        assert!(recorder.alarms().iter().any(|a| a.contains("nothing is recorded")), "{:?}", recorder.alarms());
        std::fs::remove_file(&filler).unwrap();
        until("the alarm goes by itself", || recorder.alarms().is_empty());
        let all = read::events(&at, &Wanted { limit: 1000, ..Wanted::default() }).unwrap();
        assert_eq!((all.len(), recorder.lost()), (201, 0), "nothing was lost");
        drop(recorder);
        until("the writer has closed the file", || umount2(&at, MntFlags::empty()).is_ok());
    })
    .join()
    .unwrap();
}

#[test]
fn a_locked_database_is_written_when_the_lock_goes() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(dir.path(), Limits::default());
    assert!(recorder.flush(PATIENCE));
    let other = rusqlite::Connection::open(store::records_file(dir.path())).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = StdInstant::now();
    recorder.event(event("path", "fiber"));
    assert!(start.elapsed() < Duration::from_millis(100));
    assert!(recorder.flush(PATIENCE));
    assert!(recorder.alarms().iter().any(|a| a.contains("locked")), "{:?}", recorder.alarms());
    assert!(events(dir.path()).is_empty());
    other.execute_batch("ROLLBACK").unwrap();
    until("the event is written", || events(dir.path()).len() == 1);
    until("the alarm goes", || recorder.alarms().is_empty());
}

#[test]
fn a_damaged_database_is_moved_aside_and_a_new_one_begun() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(dir.path(), Limits::default());
    recorder.event(event("path", "before"));
    assert!(recorder.flush(PATIENCE));
    let file = std::fs::OpenOptions::new().write(true).open(store::records_file(dir.path()));
    file.unwrap().write_all(&[b'x'; 8192]).unwrap();
    recorder.event(event("path", "after"));
    assert!(recorder.flush(PATIENCE));
    assert_eq!(events(dir.path()).iter().map(|e| e.subject.as_str()).collect::<Vec<_>>(), ["after"]);
    assert!(recorder.alarms().iter().any(|a| a.contains(".corrupt-")), "{:?}", recorder.alarms());
    let aside = std::fs::read_dir(dir.path()).unwrap().flatten();
    assert!(aside.map(|e| e.file_name().to_string_lossy().into_owned()).any(|n| n.contains(".corrupt-")));
}

#[test]
fn a_deleted_database_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(dir.path(), Limits::default());
    recorder.event(event("path", "before"));
    assert!(recorder.flush(PATIENCE));
    std::fs::remove_file(store::records_file(dir.path())).unwrap();
    recorder.event(event("path", "after"));
    assert!(recorder.flush(PATIENCE));
    assert_eq!(events(dir.path()).len(), 1);
    assert!(recorder.alarms().iter().any(|a| a.contains("deleted")), "{:?}", recorder.alarms());
}

// The API.

struct Engine {
    status: watch::Sender<Arc<Status>>,
    commands: mpsc::Receiver<Request>,
    dir: tempfile::TempDir,
    state: ApiState,
    listen: Listen,
}

fn engine() -> Engine {
    let dir = tempfile::tempdir().unwrap();
    let (status, published) = watch::channel(Arc::new(Status { now: clock::now(), ..status() }));
    let (sender, commands) = mpsc::channel(1);
    let records = Recorder::start(dir.path(), Limits::default());
    let state = ApiState { status: published, commands: sender, records, max_age: Duration::from_secs(30) };
    let listen = Listen { socket: dir.path().join("run/patronus.sock"), group: None, metrics: None };
    Engine { status, commands, dir, state, listen }
}

async fn ask<T: serde::de::DeserializeOwned>(listen: &Listen, method: Method, uri: &str) -> Result<T, ClientError> {
    client::ask(&listen.socket, method, uri, PATIENCE).await
}

#[tokio::test]
async fn the_control_socket_answers_its_group_only_and_leaves_no_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let engine = engine();
    // A socket that a killed daemon left behind is no obstacle.
    std::fs::create_dir_all(engine.listen.socket.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&engine.listen.socket).unwrap());
    let down = ask::<Status>(&engine.listen, Method::GET, "/v1/status").await.unwrap_err();
    assert!(matches!(down, ClientError::Down { .. }), "{down}");

    let control = api::control(&engine.listen, engine.state.clone()).await.unwrap();
    let mode = std::fs::metadata(&engine.listen.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let told: Status = ask(&engine.listen, Method::GET, "/v1/status").await.unwrap();
    assert_eq!(told, **engine.status.borrow());
    let second = api::control(&engine.listen, engine.state.clone()).await.unwrap_err();
    assert!(matches!(second, ApiError::InUse { .. }), "{second}");
    let unknown = ask::<Status>(&engine.listen, Method::GET, "/v9/status").await.unwrap_err();
    assert!(unknown.to_string().contains("another version"), "{unknown}");
    drop(control);
    assert!(!engine.listen.socket.exists());
}

#[tokio::test]
async fn an_unknown_group_and_a_taken_port_are_named_with_a_remedy() {
    let engine = engine();
    let listen = Listen { group: Some("no-such-group".into()), ..engine.listen.clone() };
    let error = api::control(&listen, engine.state.clone()).await.unwrap_err().to_string();
    assert!(error.contains("groupadd --system no-such-group"), "{error}");
    let taken = api::metrics("127.0.0.1:0".parse().unwrap(), engine.state.clone()).await.unwrap();
    let error = api::metrics(taken.address, engine.state.clone()).await.unwrap_err().to_string();
    assert!(error.contains(&taken.address.to_string()) && error.contains("ss -ltnp"), "{error}");
}

#[tokio::test]
async fn a_stranger_is_refused_even_if_the_mode_lets_him_in() {
    let engine = engine();
    let _control = api::control(&engine.listen, engine.state.clone()).await.unwrap();
    let open = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(&engine.listen.socket, open(0o666)).unwrap();
    std::fs::set_permissions(engine.dir.path(), open(0o755)).unwrap();
    let request = "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let script = "import os,socket,sys; os.setgid(61234); os.setgroups([]); os.setuid(61234); \
        s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode()); print(s.recv(4096).decode())";
    let stranger = tokio::process::Command::new("python3")
        .args(["-c", script, engine.listen.socket.to_str().unwrap(), request])
        .output()
        .await
        .expect("python3: apt-get install python3");
    let said = String::from_utf8_lossy(&stranger.stdout).into_owned() + &String::from_utf8_lossy(&stranger.stderr);
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
}

#[tokio::test]
async fn a_request_reaches_the_engine_and_its_answer_comes_back() {
    let mut engine = engine();
    let _control = api::control(&engine.listen, engine.state.clone()).await.unwrap();
    let done =
        ReconcileStatus { at: clock::wall(), micros: 7, outcome: ReconcileOutcome::Applied, steps: 3, message: None };
    let answer = async {
        let Some(Request::Reconcile { reply }) = engine.commands.recv().await else { panic!("no command") };
        reply.send(done.clone()).unwrap();
    };
    let (told, ()) = tokio::join!(ask::<ReconcileStatus>(&engine.listen, Method::POST, "/v1/reconcile"), answer);
    assert_eq!(told.unwrap(), done);

    // An engine that does not take requests is an error for the client, not a wait.
    let (reply, _) = tokio::sync::oneshot::channel();
    engine.state.commands.try_send(Request::Reconcile { reply }).unwrap();
    let busy = ask::<ReconcileStatus>(&engine.listen, Method::POST, "/v1/reconcile").await.unwrap_err();
    assert!(busy.to_string().contains("busy"), "{busy}");
}

#[tokio::test]
async fn followers_see_the_past_and_then_each_event_once() {
    let engine = engine();
    let _control = api::control(&engine.listen, engine.state.clone()).await.unwrap();
    let records = engine.state.records.clone();
    records.event(event("path", "stored"));
    assert!(records.flush(PATIENCE));
    records.event(event("path", "in-memory"));
    let mut seen = Vec::new();
    let each = |line: &[u8]| {
        let told: Event = serde_json::from_slice(line).unwrap();
        seen.push(told.subject);
        match seen.len() {
            2 => {
                records.event(event("daemon", "other-kind"));
                records.event(event("path", "live"));
            }
            3 => assert!(records.flush(PATIENCE)),
            _ => {}
        }
        seen.len() < 3
    };
    let follow = client::lines(&engine.listen.socket, "/v1/events?follow=true&kind=path", each);
    tokio::time::timeout(PATIENCE, follow).await.unwrap().unwrap();
    assert_eq!(seen, ["stored", "in-memory", "live"]);
}

#[tokio::test]
async fn events_are_told_even_without_a_disk() {
    let engine = engine();
    let _control = api::control(&engine.listen, engine.state.clone()).await.unwrap();
    assert!(engine.state.records.flush(PATIENCE));
    std::fs::write(store::records_file(engine.dir.path()), "broken").unwrap();
    engine.state.records.event(event("failover", "critical"));
    let told: serde_json::Value = ask(&engine.listen, Method::GET, "/v1/events").await.unwrap();
    assert_eq!(told["events"][0]["subject"], "critical", "{told}");
    let refused = ask::<serde_json::Value>(&engine.listen, Method::GET, "/v1/events?limit=many").await.unwrap_err();
    assert!(refused.to_string().contains("limit"), "{refused}");
}

/// Status code and body of a plain HTTP request.
async fn http(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let code = answer[9..12].parse().unwrap();
    (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn the_metrics_listener_says_whether_the_daemon_is_alive_and_ready() {
    let engine = engine();
    let listener = api::metrics("127.0.0.1:0".parse().unwrap(), engine.state.clone()).await.unwrap();
    let (code, text) = http(listener.address, "/metrics").await;
    assert!(code == 200 && text.contains("patronus_build_info"), "{text}");
    assert_eq!(http(listener.address, "/healthz").await, (200, r#"{"ok":true,"reasons":[]}"#.into()));
    assert_eq!(http(listener.address, "/readyz").await.0, 200);

    let change = |change: fn(&mut Status)| engine.status.send_modify(|status| change(Arc::make_mut(status)));
    change(|status| status.reconcile = None);
    let (code, text) = http(listener.address, "/readyz").await;
    assert!(code == 503 && text.contains("first reconcile"), "{text}");
    assert_eq!(http(listener.address, "/healthz").await.0, 200, "not ready is not dead");
    change(|status| status.now = clock::Instant::default());
    let (code, text) = http(listener.address, "/healthz").await;
    assert!(code == 503 && text.contains("has not moved"), "{text}");
    change(|status| status.now = clock::now());
    drop(engine.status);
    assert_eq!(http(listener.address, "/healthz").await.0, 503, "the engine is gone");
}
