//! Stories of a world, and the seeded simulation.

use super::{failures, trial};
use crate::{
    config::{self, Snapshot},
    diag::{Code, Diagnostic},
    validate::{self, intent::Intent},
};

const SITE: &str = "apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  lan: [{interface: lan0, prefixes: [192.168.10.0/24]}]
  endpoints:
    fiber: {interface: wan0, gateway: 198.51.100.1}
    lte: {interface: wwan0, gateway: auto}
    sat: {interface: sat0, gateway: auto}
  paths:
    fiber: {from: fiber, to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9]}}
    lte: {from: lte, to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9]}}
    sat: {from: sat, to: internet, nat: masquerade}
  failover:
    critical: {primary: fiber, backups: [lte], RULE}
    last: {primary: fiber, backups: [lte, sat]}
  policies:
    voice: {priority: 10, match: {protocol: udp}, action: {failover: last}}
    default: {priority: 1000, action: {failover: critical}}
";

fn load(rule: &str, spec: &str) -> (config::Config, Intent) {
    let test = format!(
        "apiVersion: patronus.network/v1alpha1\nkind: FailoverTest\nmetadata: {{name: t}}\nspec:\n  site: berlin\n{spec}"
    );
    let files = [("site.yaml", SITE.replace("RULE", rule)), ("test.yaml", test)];
    let files = files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect();
    let (config, _) = config::load(&Snapshot { revision: "r".into(), files, commit: None });
    let (intent, found) = validate::check(&config);
    (config, intent.unwrap_or_else(|| panic!("{found:?}")))
}

fn found(rule: &str, spec: &str) -> Vec<Diagnostic> {
    let (config, intent) = load(rule, spec);
    trial::run(&config, &intent, |_| true).pop().unwrap().found
}

#[test]
fn a_test_orders_nothing_that_the_daemon_would_refuse_or_that_cannot_be() {
    let broken = |spec: &str| {
        let found = found("noPath: keep", spec);
        assert!(found.iter().all(|d| d.code == Code::BrokenTest), "{found:?}");
        found.into_iter().map(|d| d.message).collect::<Vec<_>>().join("; ")
    };
    let expect = "  expect: [{at: 9s, rule: critical, path: lte}]\n";
    let pinned = broken(&format!("  actions: [{{at: 5s, failover: critical, to: sat}}]\n{expect}"));
    assert_eq!(pinned, "`sat` is no path of the rule `critical`");
    let drained = "  actions: [{at: 5s, drain: fiber}, {at: 6s, drain: lte}]\n";
    assert_eq!(
        broken(&format!("{drained}{expect}")),
        "the daemon refuses this: it is the last path that works for `critical`"
    );
    let forced = drained.replace("lte}", "lte, force: true}");
    assert_eq!(broken(&format!("{forced}  expect: [{{at: 9s, rule: last, path: sat}}]\n")), "");
    let held = broken("  expect: [{at: 9s, path: lte, state: held}]\n");
    assert!(held.contains("how a rule regards a path"), "{held}");
}

#[test]
fn the_last_probed_path_is_left_when_it_dies_long_after_the_others() {
    let story = "  paths: {lte: {loss: '0% x10 100%'}, fiber: {loss: '0% x120 100%'}}
  expect:
    - {at: 119s, rule: last, path: fiber}
    - {at: 120s, within: 5s, rule: last, path: sat}
    - {at: 130s, until: 10m, rule: last, path: sat}
    - {at: 120s, within: 5s, rule: critical, path: none}
  duration: 10m
";
    let found = found("noPath: nextPolicy", story);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn what_is_left_after_a_failure_does_not_depend_on_how_long_paths_are_held() {
    let play = |rule: &str| {
        let (_, intent) = load(rule, "  expect: [{rule: critical, path: fiber}]\n");
        failures::all(&intent, 1)
    };
    // A hundred thousand days would not come to their end here.
    let played = play("holdDown: 100000d");
    assert!(!played.is_empty() && played == play("holdDown: 0s"));
}
