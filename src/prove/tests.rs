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

/// IPv6 of the fibre is lost for a while, and comes back after the wait to restore.
const WITHOUT_SIX: &str = "  paths: {fiber: {ipv6: {loss: '0% x60 100% x60 0%'}}}
  expect:
    - {at: 10s, rule: critical, family: ipv6, path: fiber}
    - {at: 60s, within: 5s, path: fiber, family: ipv6, state: down}
    - {at: 60s, within: 5s, policy: default, family: ipv6, path: lte}
    - {at: 0s, until: 5m, policy: default, family: ipv4, path: fiber}
    - {at: 1s, until: 5m, path: fiber, family: ipv4, state: up}
    - {at: 1s, until: 5m, path: fiber, state: up}
    - {at: 0s, until: 5m, rule: critical, path: fiber}
    - {at: 120s, within: 30s, rule: critical, family: ipv6, path: fiber}
  duration: 5m
";

fn both_families(spec: &str) -> Vec<Diagnostic> {
    let test = format!(
        "apiVersion: patronus.network/v1alpha1\nkind: FailoverTest\nmetadata: {{name: t}}\nspec:\n  site: berlin\n{spec}"
    );
    let six = SITE.replace("9.9.9.9]", "'2001:db8::9']").replace("198.51.100.1}", "auto}");
    let files = [("site.yaml", six.replace("RULE", "failbackDelay: 20s")), ("test.yaml", test)];
    let files = files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect();
    let (config, _) = config::load(&Snapshot { revision: "r".into(), files, commit: None });
    let (intent, found) = validate::check(&config);
    let intent = intent.unwrap_or_else(|| panic!("{found:?}"));
    trial::run(&config, &intent, |_| true).pop().unwrap().found
}

#[test]
fn a_family_that_a_test_names_goes_its_own_way_and_the_other_stays() {
    let found = both_families(WITHOUT_SIX);
    assert!(found.is_empty(), "{found:#?}");
    let found =
        both_families(&WITHOUT_SIX.replace("{ipv6: {loss: '0% x60 100% x60 0%'}}", "{loss: '0% x60 100% x60 0%'}"));
    assert!(!found.is_empty(), "both families go with the path");
}

#[test]
fn what_a_family_does_not_do_is_told_of_it_and_one_that_nobody_asks_is_no_test() {
    let wrong = WITHOUT_SIX.replace(
        "{at: 10s, rule: critical, family: ipv6, path: fiber}",
        "{at: 80s, rule: critical, family: ipv6, path: fiber}",
    );
    let found = both_families(&wrong);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].message, "at 80s IPv6 of rule `critical` uses `lte`, expected `fiber`");
    let help = found[0].help.clone().unwrap();
    assert!(help.starts_with("why: IPv6 by `lte` since 62.8s: IPv6 of fiber: 3 rounds lost in a row"), "{help}");
    assert_eq!(help.matches("IPv6 of `fiber` is down since").count(), 1, "{help}");
    let unasked = super::tests::found(
        "noPath: keep",
        "  paths: {fiber: {ipv6: {loss: '100%'}}}\n  expect: [{at: 9s, path: fiber, family: ipv6, state: down}]\n",
    );
    let unasked: Vec<&str> = unasked.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(unasked, ["the families of `fiber` are not told apart: it has no probe targets of both"; 2]);
    let event = WITHOUT_SIX.replace(
        "{at: 10s, rule: critical, family: ipv6, path: fiber}",
        "{event: failover, rule: critical, family: ipv6}",
    );
    let found = both_families(&event);
    assert!(found.len() == 1 && found[0].message.starts_with("a `family` goes with"), "{found:?}");
}
