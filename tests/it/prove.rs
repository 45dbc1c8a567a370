//! Tests of failover rules: what they find, how it reads, and that a wrong rule is caught.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use patronus::{
    cli::validate::read,
    config::{self, Config},
    diag::{self, Code},
    prove::{failures, trial},
    validate::{self, intent::Intent},
};

/// Codes that only tests of rules give; the samples here have each of them.
pub const CODES_OF_TESTS: [Code; 3] = [Code::BrokenTest, Code::Unmet, Code::Unexercised];

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn patronus(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patronus"));
    command.env("NO_COLOR", "1").env_remove("PATRONUS_CONFIG").current_dir(dir).args(words).output().unwrap()
}

fn told(output: &Output) -> (i32, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

fn load(paths: &[PathBuf]) -> (Config, Intent) {
    let (config, found) = config::load(&read(paths).unwrap_or_else(|f| panic!("{}", f.message)));
    let (intent, more) = validate::check(&config);
    (config, intent.unwrap_or_else(|| panic!("{found:?} {more:?}")))
}

/// A copy of an example in a directory of its own.
fn copy_of(example: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = format!("{}/.", root().join(example).display());
    assert!(Command::new("cp").args(["-r", &from]).arg(dir.path()).status().unwrap().success());
    dir
}

#[test]
fn the_examples_keep_what_their_tests_promise_and_every_rule_is_tested() {
    for example in ["one-site", "two-lines", "hub-and-branches"] {
        let (config, intent) = load(&[root().join("examples").join(example)]);
        let outcomes = trial::run(&config, &intent, |_| true);
        assert!(!outcomes.is_empty(), "{example} has no tests");
        let found: Vec<_> = outcomes.iter().flat_map(|o| o.found.clone()).collect();
        assert!(found.is_empty(), "{example}:\n{}", diag::terminal(&found, config.sources(), false));
        let bare = trial::unexercised(&config, &intent, &outcomes);
        assert!(bare.is_empty(), "{example}:\n{}", diag::terminal(&bare, config.sources(), false));
    }
}

/// Each of these is a rule that somebody might write by mistake; the example's tests catch it.
#[test]
fn a_deliberately_wrong_rule_is_caught_by_the_examples_tests() {
    let right = "failbackDelay: 60s";
    for wrong in [
        "failbackDelay: 5s",
        "failbackDelay: 60s, failoverThreshold: 1, failbackThreshold: 2, enabled: true, noPath: reject, flowAction: {failover: graceful}",
        "failbackDelay: 60s, flowAction: {failback: forced}",
        "failbackDelay: 2h",
        "failbackDelay: 60s, holdDown: 5m",
    ] {
        let dir = copy_of("examples/one-site");
        let file = dir.path().join("berlin.yaml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(right));
        fs::write(&file, text.replace(right, wrong)).unwrap();
        let (exit, text) = told(&patronus(dir.path(), &["test"]));
        assert_eq!(exit, 1, "{wrong}:\n{text}");
        assert!(text.contains("error[PAT0902]") && text.contains("decided by this rule"), "{wrong}:\n{text}");
    }
    let (exit, text) = told(&patronus(copy_of("examples/one-site").path(), &["test"]));
    assert_eq!(exit, 0, "{text}");
}

#[test]
fn what_is_not_met_is_told_with_place_expectation_outcome_and_reason() {
    let directory = root().join("tests/prove");
    let (config, intent) = load(&["site.yaml", "broken.yaml", "unmet.yaml"].map(|f| directory.join(f)));
    let outcomes = trial::run(&config, &intent, |_| true);
    let mut codes: Vec<Code> = Vec::new();
    for (file, wanted) in [("broken.yaml", Code::BrokenTest), ("unmet.yaml", Code::Unmet)] {
        let found: Vec<_> = outcomes.iter().filter(|o| o.file.ends_with(file)).flat_map(|o| o.found.clone()).collect();
        assert!(found.iter().any(|d| d.code == wanted));
        codes.extend(found.iter().map(|d| d.code));
        compare(&directory.join(file).with_extension("expected"), &diag::terminal(&found, config.sources(), false));
    }
    let bare = trial::unexercised(&config, &intent, &outcomes);
    codes.extend(bare.iter().map(|d| d.code));
    compare(&directory.join("unexercised.expected"), &diag::terminal(&bare, config.sources(), false));
    assert!(CODES_OF_TESTS.iter().all(|code| codes.contains(code)), "{codes:?}");
}

fn compare(file: &Path, text: &str) {
    let text = text.replace(&format!("{}/", root().display()), "");
    if std::env::var_os("PATRONUS_REGENERATE").is_some() {
        fs::write(file, &text).unwrap();
    }
    let there = fs::read_to_string(file).unwrap_or_default();
    assert!(there == text, "{}: run with PATRONUS_REGENERATE=1 and read the difference:\n{text}", file.display());
}

#[test]
fn a_test_that_makes_no_sense_ends_with_65_and_stops_no_router() {
    let dir = copy_of("tests/prove");
    let (exit, text) = told(&patronus(dir.path(), &["test", "broken.yaml"]));
    assert_eq!(exit, 65, "{text}");
    assert!(text.contains("help: did you mean `fiber`?"), "{text}");
    let (exit, text) = told(&patronus(dir.path(), &["validate"]));
    assert_eq!(exit, 0, "the loader passes tests over:\n{text}");
    let (exit, text) = told(&patronus(dir.path(), &["test", "site.yaml"]));
    assert_eq!((exit, text.contains("no test in site.yaml")), (65, true), "{text}");
}

#[test]
fn results_are_junit_and_json_too() {
    let dir = copy_of("tests/prove");
    let output = patronus(dir.path(), &["test", "unmet.yaml", "--junit", "out.xml", "--output", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &value["tests"][0]["passed"]), (Some(1), &false.into()));
    assert_eq!(value["tests"][0]["findings"].as_array().map(Vec::len), Some(7));
    let report = fs::read_to_string(dir.path().join("out.xml")).unwrap();
    let report = quick_junit::Report::deserialize_from_str(&report).unwrap();
    assert_eq!((report.tests, report.failures, report.errors), (1, 1, 0));
}

#[test]
fn every_failure_of_a_path_is_played_and_a_policy_left_without_one_is_named() {
    let (_, intent) = load(&[root().join("examples/hub-and-branches")]);
    let one = failures::all(&intent, 1);
    let (uplinks, paths): (Vec<_>, Vec<_>) = one.iter().partition(|f| !f.uplinks.is_empty());
    assert_eq!(paths.len(), 7);
    assert!(paths.iter().all(|f| f.paths.len() == 1 && f.stranded().count() == 0));
    // The path to the internet and the tunnels over one line fall together.
    assert!(!uplinks.is_empty() && uplinks.iter().all(|f| f.uplinks.len() == 1 && f.paths.len() > 1));
    let slowest = one.iter().flat_map(|f| &f.hit).filter_map(|hit| hit.millis).max();
    assert!(slowest.is_some_and(|ms| ms <= 3_800), "left within the promised time: {slowest:?}");
    let two = failures::all(&intent, 2);
    let stranded: Vec<_> = two.iter().filter(|f| f.stranded().count() > 0).map(|f| f.paths.len()).collect();
    assert!(!stranded.is_empty() && stranded.iter().all(|n| *n >= 2));
    let twice = |f: &failures::Failure| f.paths.iter().collect::<BTreeSet<_>>().len() != f.paths.len();
    assert!(!two.iter().any(twice), "an uplink with one of its own paths is no pair");
    for (n, exit) in [("1", 2), ("2", 2)] {
        assert_eq!(told(&patronus(&root(), &["test", "--dir", "examples/one-site", "--failures", n])).0, exit);
    }
    let calm = ["test", "--dir", "examples/hub-and-branches", "--failures", "1", "--site", "north"];
    assert_eq!(told(&patronus(&root(), &calm)).0, 0);
}
