//! The records: metrics, the journal and the records under bad luck, the API over a real socket.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant as StdInstant},
};

use patronus::{
    clock::{self, Instant, Wall},
    engine::status::{
        Event, PathStatus, PolicyStatus, ReconcileOutcome, ReconcileStatus, RuleStatus, SourceStatus, Status, Totals,
    },
    failover::{Choice, TransitionKind},
    health::{PathHealth, PathState},
    metrics,
    plan::Step,
    state::{Counter, Fwmark, State},
    store::{
        self, HealthSample, Journal, LastGood, Limits, PlanRecord, Recorder, Run, StepState, StoreError,
        read::{self, Wanted},
    },
    units::{Name, Ratio},
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

fn path(state: PathState, answers: bool) -> PathStatus {
    let up = state != PathState::Down;
    PathStatus {
        interface: "wan0".into(),
        gateways: vec!["198.51.100.1".into()],
        health: PathHealth {
            state,
            score: if up { 97 } else { 0 },
            loss: if answers { Ratio::from_ppm(12_500).unwrap() } else { Ratio::ONE },
            latency: answers.then(|| Duration::from_micros(12_340)),
            jitter: answers.then(|| Duration::from_micros(870)),
            rounds: 30,
            carrier: true,
            since: Instant::from_nanos(100_000_000_000),
            reason: if up { "all probes answered".into() } else { "3 rounds lost in a row".into() },
        },
        probes_answered: 1000,
        probes_lost: 7,
    }
}

pub fn status() -> Status {
    let choice = Choice {
        active: Some(name("lte")),
        tail: vec![name("fiber")],
        since: Instant::from_nanos(940_000_000_000),
        recovering: Some(Instant::from_nanos(970_000_000_000)),
    };
    let rule = RuleStatus {
        members: vec![name("fiber"), name("lte")],
        choice,
        failback_in: Some(30.0),
        reason: "fiber is down: 3 rounds lost in a row".into(),
    };
    let policy = PolicyStatus {
        name: name("voice"),
        priority: 100,
        action: "failover/critical".into(),
        path: Some(name("lte")),
        counter: Counter { packets: 120_000, bytes: 24_500_000 },
        flows: 12,
    };
    Status {
        format_version: 1,
        version: "0.1.0".into(),
        site: name("berlin"),
        pid: 4711,
        started: Wall::from_micros(1_700_000_000_000_000),
        now: Instant::from_nanos(1_000_000_000_000),
        wall: Wall::from_micros(1_700_001_000_000_000),
        source: SourceStatus {
            location: "/etc/patronus/config".into(),
            desired: Some("9be01d2".into()),
            applied: Some("9be01d2".into()),
            last_success: Some(Wall::from_micros(1_700_000_999_000_000)),
            errors: Vec::new(),
        },
        generation: 42,
        reconcile: Some(ReconcileStatus {
            at: Wall::from_micros(1_700_000_940_000_000),
            micros: 4_200,
            outcome: ReconcileOutcome::Applied,
            steps: 2,
            message: None,
        }),
        paths: BTreeMap::from([
            (name("fiber"), path(PathState::Down, false)),
            (name("lte"), path(PathState::Up, true)),
        ]),
        rules: BTreeMap::from([(name("critical"), rule)]),
        policies: vec![policy],
        alarms: Vec::new(),
        drift: Vec::new(),
        totals: Totals {
            reconciles: BTreeMap::from([(ReconcileOutcome::Applied, 3), (ReconcileOutcome::RolledBack, 1)]),
            reconcile_seconds: 0.0125,
            drift: BTreeMap::from([("nft".into(), 2)]),
            transitions: BTreeMap::from([(name("critical"), BTreeMap::from([(TransitionKind::Failover, 4)]))]),
            store_lost_rows: 0,
        },
    }
}

// Metrics.

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: apt-get install prometheus");
    tool.stdin.take().unwrap().write_all(metrics::render(&status()).as_bytes()).unwrap();
    let out = tool.wait_with_output().unwrap();
    let said = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert!(out.status.success() && said.is_empty(), "{said}\n{}", metrics::render(&status()));
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
        r#"patronus_policy_bytes_total{site="berlin",policy="voice"} 24500000"#,
        r#"patronus_failover_active_path{site="berlin",rule="critical",path="fiber"} 0"#,
        r#"patronus_failover_active_path{site="berlin",rule="critical",path="lte"} 1"#,
        r#"patronus_failover_events_total{site="berlin",rule="critical",type="failover"} 4"#,
        r#"patronus_failover_failback_remaining_seconds{site="berlin",rule="critical"} 30.0"#,
        r#"patronus_reconcile_total{site="berlin",result="rolled-back"} 1"#,
        r#"patronus_reconcile_duration_seconds_count{site="berlin"} 4"#,
        r#"patronus_config_revision_info{site="berlin",use="applied",revision="9be01d2"} 1"#,
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
fn a_removed_path_leaves_no_series() {
    let mut status = status();
    assert!(metrics::render(&status).contains("fiber"));
    status.paths.remove("fiber");
    status.rules.clear();
    let text = metrics::render(&status);
    assert!(!text.contains("fiber") && !text.contains("critical"), "{text}");
}

// The journal.

fn plan(steps: u32) -> PlanRecord {
    let step = |n| Step::Forget { flows: Fwmark { mark: n, mask: 0xff }, reason: "test".into() };
    PlanRecord {
        plan: uuid::Uuid::now_v7(),
        generation: 7,
        revision: Some("abc".into()),
        started: clock::wall(),
        document: serde_json::json!({"summary": "two"}),
        steps: (0..steps).map(step).collect(),
    }
}

#[test]
fn a_run_is_unfinished_until_it_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.unfinished().unwrap(), None);
    let plan = plan(3);
    let run = journal.begin(&plan).unwrap();
    journal.step(run, 0, &StepState::Done).unwrap();
    journal.step(run, 1, &StepState::Failed("no such device".into())).unwrap();
    drop(journal);

    let journal = Journal::open(dir.path()).unwrap();
    let found = journal.unfinished().unwrap().unwrap();
    assert_eq!((found.run, found.plan, found.generation), (run, plan.plan, 7));
    assert_eq!(found.steps.iter().map(|s| s.step.clone()).collect::<Vec<_>>(), plan.steps);
    let states: Vec<_> = found.steps.iter().map(|s| s.state.clone()).collect();
    assert_eq!(states, [StepState::Done, StepState::Failed("no such device".into()), StepState::Planned]);
    journal.finish(run, clock::wall(), ReconcileOutcome::RolledBack, Some("no such device")).unwrap();
    assert_eq!(journal.unfinished().unwrap(), None);
    let history = read::history(dir.path(), 10).unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].outcome, Some(ReconcileOutcome::RolledBack));
    assert_eq!((journal.generation().unwrap(), history[0].steps), (7, 3));
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
    journal.set_applied(&State::default()).unwrap();
    journal.put("selection", &[1, 2]).unwrap();
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
fn old_runs_lose_their_details_but_not_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let mut runs = Vec::new();
    for _ in 0..102 {
        let run = journal.begin(&plan(1)).unwrap();
        journal.finish(run, clock::wall(), ReconcileOutcome::Applied, None).unwrap();
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
        let run = journal.begin(&plan(4)).unwrap();
        for index in 0..4 {
            journal.step(run, index, &StepState::Started).unwrap();
            journal.step(run, index, &StepState::Done).unwrap();
            writeln!(progress, "{} {index}", run.0).unwrap();
        }
        journal.finish(run, clock::wall(), ReconcileOutcome::Applied, None).unwrap();
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
        let last = told.map_while(Result::ok).filter(|l| l.split(' ').count() == 2).last().unwrap_or(last);
        child.wait().unwrap();
        let (run, index) = last.split_once(' ').unwrap();
        let (run, index): (i64, usize) = (run.parse().unwrap(), index.parse().unwrap());

        let journal = Journal::open(dir.path()).unwrap();
        let steps = journal.steps(store::RunId(run)).unwrap();
        assert!(steps[..=index].iter().all(|s| s.state == StepState::Done), "told {last}, found {steps:?}");
        if let Some(unfinished) = journal.unfinished().unwrap() {
            assert!(unfinished.run.0 >= run && unfinished.steps.len() == 4, "{unfinished:?}");
            journal.finish(unfinished.run, clock::wall(), ReconcileOutcome::RolledBack, None).unwrap();
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
    journal.begin(&plan(1)).unwrap();
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

fn sample(at: Wall, path: &str) -> HealthSample {
    HealthSample {
        at,
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
    recorder.sample(row.clone());
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
    recorder.sample(sample(clock::wall(), "fiber"));
    drop(recorder);
    let there = || read::samples(dir.path(), &Wanted::default()).is_ok_and(|rows| rows.len() == 1);
    until("the sample is written at the end", there);
}

#[test]
fn rows_older_than_the_retention_go() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(dir.path(), Limits { resolution: Duration::ZERO, ..Limits::default() });
    let now = clock::wall().as_micros();
    for s in 0..12_000 {
        recorder.sample(sample(Wall::from_micros(now - 40 * 86_400_000_000 + s), "fiber"));
        if s % 4_000 == 0 {
            assert!(recorder.flush(PATIENCE));
        }
    }
    recorder.sample(sample(Wall::from_micros(now), "fiber"));
    assert!(recorder.flush(PATIENCE));
    drop(recorder);
    // A start prunes: the hourly round is not waited for.
    let recorder = Recorder::start(dir.path(), Limits::default());
    assert!(recorder.flush(PATIENCE));
    let left = read::samples(dir.path(), &Wanted { limit: 20_000, ..Wanted::default() }).unwrap();
    assert_eq!(left.len(), 1, "only the new one is left");
}

#[test]
fn a_full_disk_costs_rows_and_not_time() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { resolution: Duration::ZERO, memory: 2_000, pages: 24, ..Limits::default() };
    let recorder = Recorder::start(dir.path(), limits);
    let now = clock::wall().as_micros();
    let start = StdInstant::now();
    for n in 0..6_000 {
        recorder.sample(sample(Wall::from_micros(now + n), "a-path-with-a-rather-long-name"));
    }
    assert!(start.elapsed() < Duration::from_secs(2), "the engine waited {:?}", start.elapsed());
    assert!(recorder.flush(PATIENCE));
    let alarms = recorder.alarms();
    assert!(alarms.iter().any(|a| a.contains("nothing is recorded") && a.contains("full")), "{alarms:?}");
    assert!(recorder.lost() >= 4_000, "{} lost", recorder.lost());
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
