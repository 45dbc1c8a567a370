//! What is printed about revisions, whole.

use super::*;
use crate::{
    clock::Wall,
    config::commit::{Commit, Lineage, Signature},
    revision::{Attempt, Condition, Quarantined},
};

fn sample() -> Status {
    serde_json::from_str(include_str!("../../../../tests/it/records/status.json")).unwrap()
}

fn ago(status: &Status, seconds: i64) -> Wall {
    Wall::from_micros(status.wall.as_micros() - seconds * 1_000_000)
}

fn commit(id: &str, subject: &str, at: Wall) -> Commit {
    Commit {
        id: id.into(),
        author: "Ada <ada@example.net>".into(),
        at,
        subject: subject.into(),
        trailers: Vec::new(),
        signature: Signature::Off,
        lineage: Lineage::Descends,
    }
}

#[test]
fn a_commit_that_was_rolled_back_is_told_with_what_is_in_force() {
    let mut status = sample();
    let (bad, good) = ("b".repeat(40), "a".repeat(40));
    let why = "the management network 192.0.2.0/24 is cut off";
    let at = ago(&status, 240);
    status.source.location = "https://git.example.net/network.git, branch main".into();
    status.source.desired = Some(bad.clone());
    status.source.applied = Some(good.clone());
    let commits = [("desired", commit(&bad, "move voice to lte", at)), ("applied", commit(&good, "first", at))];
    status.source.commits = commits.map(|(k, c)| (k.to_owned(), c)).into();
    let (revision, content) = (bad, "c".to_owned());
    let (outcome, reason) = (AttemptOutcome::RolledBack, Some(why.to_owned()));
    status.source.attempted =
        Some(Attempt { revision: revision.clone(), content: content.clone(), outcome, reason, at });
    status.source.quarantine.push(Quarantined {
        revision,
        content,
        reason: why.into(),
        at,
        fault: crate::revision::Fault::Own,
    });
    let condition = |kind, status, reason: &str| Condition {
        kind,
        status,
        reason: reason.into(),
        message: String::new(),
        since: at,
    };
    status.conditions = vec![
        condition(ConditionType::Ready, Truth::False, "Quarantined"),
        condition(ConditionType::Reconciling, Truth::False, "Quarantined"),
        condition(ConditionType::Stalled, Truth::True, "Quarantined"),
        condition(ConditionType::SourceVerified, Truth::Unknown, "NotConfigured"),
    ];
    let text = anstream::adapter::strip_str(&whole(&status)).to_string();
    assert_eq!(text, include_str!("../../../../tests/it/records/source.txt"), "\n{text}");
    let first = &findings(&status)[0];
    assert_eq!(first.1, "revision bbbbbbbbbbbb failed and was rolled back");
}

#[test]
fn a_suspension_is_the_first_thing_that_is_said() {
    let mut status = sample();
    let (since, until) = (ago(&status, 7_200), Some(ago(&status, -3_600)));
    let suspension = |until| Suspension { by: "root".into(), reason: "move\u{1b}[2J".into(), since, until };
    status.source.suspended = Some(suspension(until));
    assert!(
        findings(&status)[0].1.contains("suspended by root 2h 00m ago, ends in 60m (move [2J)"),
        "{:?}",
        findings(&status)
    );
    status.source.suspended = Some(suspension(None));
    assert!(notices(&status)[0].1.contains("has no end") && notices(&status)[0].1.contains("patronus resume"));
    let text = super::super::text::status(&status, status.now);
    assert!(anstream::adapter::strip_str(&text).to_string().lines().nth(2).unwrap().contains("Revisions"), "{text}");
}

#[test]
fn a_router_without_a_configuration_says_so() {
    let mut status = sample();
    status.source.applied = None;
    let text = anstream::adapter::strip_str(&whole(&status)).to_string();
    let line = text.lines().find(|line| line.trim_start().starts_with("in force"));
    assert!(line.is_some_and(|line| line.contains("nothing yet")), "{text}");
}
