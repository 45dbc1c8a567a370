//! Which revision is wanted, tried and in force, on a real router: what fails, what is suspended, who is answered what.

use std::process::Output;

use patronus::{
    engine::status::Status,
    revision::{AttemptOutcome, ConditionType, Truth},
};

use super::{SITE, all_up, repository};
use crate::support::daemon::{Daemon, Repository};

/// The site with a tunnel whose interface's name somebody else has: valid, and the kernel cannot have it.
fn with_a_tunnel(repository: &Repository) {
    let tunnel = "    hq:    {from: fiber, to: hq/fiber, tunnel: {type: vxlan, id: 77}}\n  failover:\n";
    let site = SITE
        .replace("gateway: 198.51.100.1,", "address: 198.51.100.2, gateway: 198.51.100.1,")
        .replace("  failover:\n", tunnel);
    let hq = "apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {name: hq}\nspec:\n  \
        endpoints:\n    fiber: {interface: wan0, address: 203.0.113.10, gateway: 203.0.113.1}\n  \
        paths:\n    berlin: {from: fiber, to: berlin/fiber, tunnel: {type: vxlan, id: 77}}\n";
    repository.write("hq.yaml", hq);
    repository.write("site.yaml", &site);
}

fn with_policy(number: u32) -> String {
    let line = format!(
        "    extra{number}: {{priority: {number}, match: {{destination: [10.77.0.0/16]}}, action: {{drop: true}}}}\n"
    );
    SITE.replace("  policies:\n", &format!("  policies:\n{line}"))
}

/// What a verb says and how it ends.
fn run(daemon: &Daemon, words: &[&str]) -> (Option<i32>, String) {
    let output: Output = daemon.lab().run_in(&daemon.router(), daemon.patronus(words)).unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn is(status: &Status, kind: ConditionType, truth: Truth, reason: &str) -> bool {
    status.conditions.iter().any(|c| c.kind == kind && c.status == truth && c.reason == reason)
}

#[test]
fn what_fails_is_quarantined_and_what_was_in_force_goes_on() {
    let repository = repository();
    let lab = repository.lab();
    let mut daemon = Daemon::start(&lab, &repository, "berlin");
    daemon.wait("both paths", all_up);
    let first = daemon.wait("it to be in force", |s| is(s, ConditionType::Ready, Truth::True, "Applied"));
    let first = first.source.applied.unwrap();

    daemon.sh("ip link add pt77 type veth peer name pt77far");
    with_a_tunnel(&repository);
    let status = daemon.wait("the failure", |s| is(s, ConditionType::Stalled, Truth::True, "Quarantined"));
    let attempt = status.source.attempted.clone().unwrap();
    assert_eq!(attempt.outcome, AttemptOutcome::RolledBack, "{status:?}");
    assert_eq!(Some(&attempt.revision), status.source.desired.as_ref());
    assert_eq!(status.source.applied.as_ref(), Some(&first));
    assert!(attempt.reason.unwrap().contains("is not ours"), "{:?}", status.source);
    let generation = status.generation;

    daemon.sh("ip rule del priority 20001");
    daemon.wait("the repair", |s| super::drifted(s, "rule") > 0);
    daemon.wait("the kernel to be whole", |s| s.drift.is_empty());
    assert_eq!(daemon.sh("ip rule show priority 20001 | wc -l").trim(), "1");
    let (code, said) = run(&daemon, &["reconcile", "--wait"]);
    assert!(code == Some(1) && said.contains("is quarantined") && said.contains("source retry"), "{code:?} {said}");
    let metrics = daemon.metrics();
    let shown = |state: &str| {
        let mut series = metrics.keys().filter(|k| k.starts_with("patronus_config_revision_info") && k.contains(state));
        series.next().cloned().unwrap_or_default()
    };
    assert!(shown("applied").contains(&first) && !shown("attempted").contains(&first), "{metrics:?}");

    daemon.terminate();
    daemon.settle();
    let status = daemon.wait("the quarantine", |s| is(s, ConditionType::Stalled, Truth::True, "Quarantined"));
    assert_eq!(status.generation, generation + 1, "only the repair, no second attempt");

    daemon.sh("ip link del pt77");
    let (code, said) = run(&daemon, &["source", "retry"]);
    assert!(code == Some(0) && said.contains("is in force"), "{code:?} {said}");
    std::fs::remove_file(repository.path().join("hq.yaml")).unwrap();
    repository.write("site.yaml", SITE);
    daemon.wait("the first content again", |s| s.source.applied == s.source.desired && s.paths.len() == 2);

    suspended(&daemon, &repository);
    refused(&daemon, &repository);
}

/// Nothing new is taken; the rest goes on.
fn suspended(daemon: &Daemon, repository: &Repository) {
    let (code, said) = run(daemon, &["suspend", "--reason", "a wedding", "--for", "2h"]);
    assert!(code == Some(0) && said.contains("until"), "{code:?} {said}");
    repository.write("site.yaml", &with_policy(50));
    let status = daemon.wait("the newest to be known", |s| is(s, ConditionType::Stalled, Truth::True, "Suspended"));
    assert!(status.source.applied != status.source.desired && status.policies.len() == 3);
    let repaired = super::drifted(&status, "rule");
    daemon.sh("ip rule del priority 20002");
    daemon.wait("repair while suspended", |s| super::drifted(s, "rule") > repaired);
    let said = daemon.says(&["status"]);
    assert!(said.lines().nth(2) == Some("Revisions") && said.contains("a wedding"), "{said}");
    assert_eq!(run(daemon, &["reconcile"]).0, Some(75));
    assert!(daemon.metrics().iter().any(|(k, v)| k.starts_with("patronus_source_suspended{") && *v > 0.0));
    let (code, said) = run(daemon, &["resume"]);
    assert!(code == Some(0) && said.contains("resumed"), "{code:?} {said}");
    daemon.wait("the newest", |s| s.policies.len() == 4);

    daemon.says(&["suspend", "--reason", "short", "--for", "1s"]);
    daemon.wait_event("source", |e| e.message.contains("the suspension by") && e.message.contains("ended"));
}

fn refused(daemon: &Daemon, repository: &Repository) {
    let (code, said) = run(daemon, &["source", "accept", "0123456789ab"]);
    assert!(code == Some(1) && said.contains("is not what the source holds"), "{code:?} {said}");
    repository.write("site.yaml", &with_policy(60).replace("drop: true", "drop: maybe"));
    let (code, said) = run(daemon, &["reconcile", "--wait"]);
    assert!(code == Some(65) && said.contains("site.yaml:"), "{code:?} {said}");
    repository.write("site.yaml", SITE);
    let (code, said) = run(daemon, &["reconcile", "--wait"]);
    assert!(code == Some(0) && said.contains("is in force"), "{code:?} {said}");
    assert!(run(daemon, &["source"]).1.contains("tried last"));
}
