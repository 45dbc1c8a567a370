//! `patronus simulate`: a recorded history whose outcome is known, under two configurations.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use patronus::{
    clock::Wall,
    failover::TransitionKind,
    health::PathState,
    store::{HealthSample, Journal, LastGood, Limits, Recorder, TransitionRecord},
    units::{Name, Ratio},
};
use serde_json::Value;

/// 2026-05-01T00:00:00Z.
const BEGIN: i64 = 1_777_593_600;
const END: i64 = 2_100;

const SITE: &str = "apiVersion: patronus.network/v1alpha1
kind: SlaClass
metadata: {name: voice}
spec: {latency: 150ms, jitter: 30ms, loss: 1%}
---
apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  lan: [{interface: lan0, prefixes: [192.168.10.0/24]}]
  endpoints:
    fiber: {interface: wan0, gateway: 198.51.100.1}
    lte: {interface: wwan0, gateway: auto}
  paths:
    fiber: {from: fiber, to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9]}}
    lte: {from: lte, to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9]}}
  failover:
    critical: {primary: fiber, backups: [lte], failbackDelay: 60s}
    calls: {primary: fiber, backups: [lte], failbackDelay: 60s, slaClass: voice}
  policies:
    voice: {priority: 100, match: {protocol: udp}, action: {failover: calls}}
    default: {priority: 1000, action: {failover: critical}}
";

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn at(second: i64) -> Wall {
    Wall::from_micros((BEGIN + second) * 1_000_000)
}

fn sample(path: &str, second: i64, ms: Option<u64>, score: u8) -> HealthSample {
    HealthSample {
        at: at(second),
        path: name(path),
        rtt_micros: ms.map(|ms| ms * 1_000),
        jitter_micros: ms.map(|_| 500),
        loss: if ms.is_none() { Ratio::ONE } else { Ratio::ZERO },
        score,
        state: PathState::of(score),
    }
}

/// The fibre line is slow for 300 s from 600 s on (200 ms: score 60 at the default threshold of 150 ms), silent for 30 s from
/// 1200 s on, and from 1500 s to 1800 s the daemon was off, unless the gap is filled.
fn record(dir: &Path, gap: bool) -> Recorder {
    let recorder = Recorder::start(dir, Limits::default());
    for second in (0..END).filter(|s| !gap || !(1_500..1_800).contains(s)) {
        let fiber = match second {
            600..900 => sample("fiber", second, Some(200), 60),
            1_200..1_230 => sample("fiber", second, None, 0),
            _ => sample("fiber", second, Some(20), 100),
        };
        recorder.samples(vec![fiber, sample("lte", second, Some(60), 100)]);
        if second % 200 == 0 {
            assert!(recorder.flush(Duration::from_secs(30)));
        }
    }
    for rule in ["critical", "calls"] {
        let change = |second, from: Option<&str>, to: &str, kind| TransitionRecord {
            at: at(second),
            rule: name(rule),
            from: from.map(name),
            to: Some(name(to)),
            kind,
            reason: "the test says so".into(),
        };
        recorder.transition(change(-3_600, None, "fiber", TransitionKind::Initial));
        recorder.transition(change(1_200, Some("fiber"), "lte", TransitionKind::Failover));
        recorder.transition(change(1_290, Some("lte"), "fiber", TransitionKind::Failback));
    }
    assert!(recorder.flush(Duration::from_secs(30)));
    recorder
}

/// A state directory with the records and the configuration in force, and another configuration beside it.
fn place(gap: bool, given: &str) -> (tempfile::TempDir, Recorder) {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let recorder = record(&state, gap);
    let files = BTreeMap::from([("berlin.yaml".to_owned(), SITE.as_bytes().to_vec())]);
    let good = LastGood { revision: "3f2c1aa".into(), at: at(0), files };
    Journal::open(&state).unwrap().set_last_good(&good).unwrap();
    fs::create_dir(dir.path().join("new")).unwrap();
    fs::write(dir.path().join("new/berlin.yaml"), given).unwrap();
    (dir, recorder)
}

fn simulate(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patronus"));
    command.env("NO_COLOR", "1").env_remove("PATRONUS_CONFIG").env_remove("PATRONUS_SITE");
    command.current_dir(dir).args(["simulate", "--replay", "state"]).args(words).output().unwrap()
}

fn told(dir: &Path, words: &[&str]) -> Value {
    let output = simulate(dir, &[&["--output", "json"], words].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn side<'v>(value: &'v Value, rule: &str, column: &str) -> &'v Value {
    let rules = value["rules"].as_array().unwrap();
    &rules.iter().find(|r| r["rule"] == rule).unwrap()["columns"][column]
}

fn figure(value: &Value, rule: &str, column: &str, figure: &str) -> f64 {
    side(value, rule, column)[figure].as_f64().unwrap_or_else(|| panic!("{rule} {column} {figure}: {value:#}"))
}

fn strict() -> String {
    let plain = "critical: {primary: fiber, backups: [lte], failbackDelay: 60s}";
    let strict =
        "critical: {primary: fiber, backups: [lte], failbackDelay: 60s, failoverThreshold: 70, failbackThreshold: 85}";
    assert!(SITE.contains(plain));
    SITE.replace(plain, strict)
}

/// What the given configuration would have done better, in switches and seconds.
fn is_the_known_outcome(value: &Value) -> bool {
    let f = |column, what| figure(value, "critical", column, what);
    let near = |a: f64, b: f64| (a - b).abs() <= 1.0;
    let switches = |column| side(value, "critical", column)["switches"].as_u64();
    [switches("recorded"), switches("base"), switches("given")] == [Some(2), Some(2), Some(4)]
        && near(f("recorded", "below_threshold_seconds"), 300.0)
        && near(f("base", "below_threshold_seconds"), 300.0)
        && near(f("given", "below_threshold_seconds"), 0.0)
        && near(f("recorded", "down_seconds"), 0.0)
        && near(f("given", "down_seconds"), 0.0)
}

#[test]
fn a_recorded_day_has_its_known_outcome_under_two_configurations() {
    let (dir, _live) = place(true, &strict());
    let before = fs::read(dir.path().join("state/records.db")).unwrap();
    let value = told(dir.path(), &["--config", "new"]);
    assert!(is_the_known_outcome(&value), "{value:#}");
    let changes = side(&value, "critical", "given")["changes"].as_array().unwrap();
    let seconds: Vec<i64> = changes.iter().map(|c| c["at"].as_i64().unwrap() / 1_000_000 - BEGIN).collect();
    assert_eq!(seconds, [600, 960, 1_200, 1_290], "{changes:#?}");
    assert!(
        changes[0]["reason"].as_str().unwrap().contains("latency 200.0ms above 150ms (score 60 < 70)"),
        "{value:#}"
    );
    // The class of the calls is as strict as the path's own thresholds: slow is outside of it, and not below the threshold.
    assert!((figure(&value, "calls", "given", "outside_class_seconds") - 300.0).abs() <= 1.0, "{value:#}");
    assert_eq!(value["classes"][0]["class"], "voice");
    assert_eq!(value["classes"][0]["columns"]["base"]["switches"], 2);

    let again = told(dir.path(), &["--config", "new"]);
    assert_eq!(value, again, "the same records give the same story");
    assert_eq!(before, fs::read(dir.path().join("state/records.db")).unwrap(), "it is only read");
    let text = simulate(dir.path(), &["--config", "new", "--switches"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in [
        "rule critical",
        "as recorded",
        "in force 3f2c1aa",
        "given new",
        "class voice",
        "critical",
        "failover fiber -> lte",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let alone = told(dir.path(), &["--since", "2026-05-01T00:15:00Z", "--until", "2026-05-01T00:25:00Z"]);
    for column in ["recorded", "base"] {
        assert_eq!(side(&alone, "critical", column)["switches"], 2, "{alone:#}");
    }
}

/// The sabotage twin: a configuration that differs in nothing does not have the outcome of the other one.
#[test]
fn the_checker_sees_a_replay_under_the_wrong_configuration() {
    let (dir, _live) = place(true, SITE);
    let value = told(dir.path(), &["--config", "new"]);
    assert!(!is_the_known_outcome(&value), "{value:#}");
    assert_eq!(side(&value, "critical", "base"), side(&value, "critical", "given"));
}

/// Nothing of the time in which the daemon was off counts, and nothing moves for it.
fn leaves_the_gap_out(value: &Value) -> bool {
    ["recorded", "base", "given"].into_iter().all(|column| {
        let f = |what| figure(value, "critical", column, what);
        let whole = f("good_seconds") + f("bad_seconds") + f("unrecorded_seconds");
        (285.0..=300.0).contains(&f("unrecorded_seconds")) && (whole - 2_099.0).abs() < 1.0
    })
}

#[test]
fn a_time_without_a_record_is_a_gap_and_no_good_health() {
    let (dir, _live) = place(true, &strict());
    let value = told(dir.path(), &["--config", "new"]);
    assert!(leaves_the_gap_out(&value), "{value:#}");
}

/// The sabotage twin: who holds the last sample over the gap is found out.
#[test]
fn the_checker_sees_a_gap_that_is_filled_with_good_health() {
    let (dir, _live) = place(false, &strict());
    let value = told(dir.path(), &["--config", "new"]);
    assert!(!leaves_the_gap_out(&value), "{value:#}");
}

#[test]
fn rules_with_several_paths_are_replayed_and_what_is_assumed_is_said() {
    let given = SITE
        .replace("gateway: 198.51.100.1}", "gateway: 198.51.100.1, bandwidth: {down: 100Mbit}}")
        .replace("slaClass: voice}", "slaClass: voice, strategy: overflow}")
        .replace(
            "critical: {primary: fiber, backups: [lte],",
            "critical: {primary: fiber, backups: [lte], strategy: load-balance,",
        );
    let (dir, _live) = place(true, &given);
    let value = told(dir.path(), &["--config", "new"]);
    for rule in ["critical", "calls"] {
        let changes = side(&value, rule, "given")["changes"].as_array().unwrap();
        let told: Vec<_> = changes.iter().map(|c| (c["kind"].as_str().unwrap(), c["to"].as_str().unwrap())).collect();
        assert_eq!(told, [("failover", "lte"), ("failback", "fiber")], "{rule}: {changes:#?}");
        assert!(figure(&value, rule, "given", "down_seconds") < 1.0, "{value:#}");
    }
    let notes = value["notes"].to_string();
    assert!(
        notes.contains("rule calls overflows by load, which is not recorded: it is played as if no line"),
        "{notes}"
    );
    assert!(
        notes.contains("rule critical shares its flows: its seconds are those of the first path in use"),
        "{notes}"
    );
}

#[test]
fn what_cannot_be_replayed_is_said() {
    let given = strict()
        .replace("lte: {from: lte, to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9]}}", {
            "lte: {from: lte, to: internet, nat: masquerade, probe: {targets: [1.1.1.1], interval: 5s}}"
        });
    let (dir, _live) = place(true, &given);
    let output = simulate(dir.path(), &["--config", "new"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("! path lte would be probed differently, which the record cannot show"), "{text}");
    fs::remove_file(dir.path().join("state/journal.db")).unwrap();
    let text = String::from_utf8_lossy(&simulate(dir.path(), &["--config", "new"]).stdout).into_owned();
    assert!(text.contains("! the configuration in force is not known"), "{text}");
    let output = simulate(dir.path(), &[]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), error.contains("name one with --config or --base")), (Some(64), true), "{error}");
}

#[test]
fn records_that_cannot_be_replayed_are_named_with_what_to_do() {
    let (dir, live) = place(false, SITE);
    drop(live);
    let place = |name: &str| dir.path().join(name);
    fs::create_dir(place("bare")).unwrap();
    fs::write(place("text.db"), "no database at all, and longer than a header is").unwrap();
    fs::write(place("empty.db"), "").unwrap();
    fs::copy(place("state/records.db"), place("newer.db")).unwrap();
    rusqlite::Connection::open(place("newer.db")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    for (replay, says, help) in [
        (
            "none",
            "cannot read the records none: No such file or directory",
            "--replay takes a router's state directory",
        ),
        ("bare", "there are no records in bare: it has no records.db", "--replay takes a router's state directory"),
        ("text.db", "text.db: file is not a database", "take the copy again"),
        ("empty.db", "empty.db is a database, but none that Patronus wrote", ""),
        ("newer.db", "newer.db has format 99 and this Patronus knows formats up to", "run the newer version"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_patronus"));
        command.env("NO_COLOR", "1").env_remove("PATRONUS_CONFIG").env_remove("PATRONUS_SITE").current_dir(dir.path());
        let output = command.args(["simulate", "--config", "new", "--replay", replay]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let right = told.contains(says) && told.contains(help) && output.stdout.is_empty();
        assert_eq!((output.status.code(), right), (Some(1), true), "{replay}: {told}");
    }
}
