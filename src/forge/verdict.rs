//! What a published status says of commits.

use crate::{engine::status::Status, revision::AttemptOutcome};

/// The longest description that every forge takes.
pub(super) const LONGEST: usize = 140;

/// How a commit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It is on trial, held, or waits.
    Pending,
    /// It is in force.
    Success,
    /// It is not in force, because of what is in it.
    Failure,
    /// It could neither be put in force nor undone.
    Error,
}

/// A word on a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// The commit, all digits of it.
    pub commit: String,
    /// How it stands.
    pub state: State,
    /// Why, on one line of at most [`LONGEST`] characters.
    pub text: String,
}

/// What is to be said of the commits that are in force, were tried last, and are wanted; in this order.
pub(super) fn verdicts(status: &Status) -> Vec<Told> {
    let source = &status.source;
    let attempted = source.attempted.as_ref().map(|a| &a.revision);
    let mut commits: Vec<&String> = Vec::new();
    for revision in source.applied.iter().chain(attempted).chain(&source.desired) {
        if is_commit(revision) && !commits.contains(&revision) {
            commits.push(revision);
        }
    }
    let told = |commit: &String| {
        let (state, text) = judge(status, commit)?;
        Some(Told { commit: commit.clone(), state, text: line(&text) })
    };
    commits.into_iter().filter_map(told).collect()
}

fn judge(status: &Status, revision: &str) -> Option<(State, String)> {
    let source = &status.source;
    if let Some(trial) = status.unconfirmed.as_ref().filter(|trial| trial.revision == revision) {
        return Some((State::Pending, format!("in the kernel, on trial until {:.0}", trial.until)));
    }
    if source.applied.as_deref() == Some(revision) {
        return Some((State::Success, "in force".into()));
    }
    if let Some(waiting) = status.waiting.as_ref().filter(|waiting| waiting.revision == revision) {
        return Some((State::Pending, format!("waits: {}", waiting.reason)));
    }
    if let Some(held) = source.held.as_ref().filter(|held| held.revision == revision) {
        return Some((State::Pending, format!("held: {}", held.why)));
    }
    let reason = |reason: &Option<String>| reason.clone().unwrap_or_else(|| "see `patronus source`".into());
    if let Some(attempt) = source.attempted.as_ref().filter(|attempt| attempt.revision == revision) {
        return Some(match attempt.outcome {
            AttemptOutcome::Pending | AttemptOutcome::Confirming => (State::Pending, "is being tried".into()),
            AttemptOutcome::Applied => (State::Success, "in force".into()),
            AttemptOutcome::Invalid => (State::Failure, format!("invalid: {}", reason(&attempt.reason))),
            AttemptOutcome::Failed => (State::Failure, format!("not applied: {}", reason(&attempt.reason))),
            AttemptOutcome::RolledBack => (State::Failure, format!("rolled back: {}", reason(&attempt.reason))),
            AttemptOutcome::RollbackFailed => (State::Error, format!("ROLLBACK FAILED: {}", reason(&attempt.reason))),
        });
    }
    if let Some(known) = source.quarantine.iter().find(|known| known.revision == revision) {
        return Some((State::Failure, format!("quarantined: {}", known.reason)));
    }
    source.suspended.as_ref().map(|suspended| (State::Pending, format!("not taken: suspended {}", suspended.end())))
}

/// A directory's revision is a hash of another length.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// One line without control characters, cut where it is too long.
fn line(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let plain = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    if plain.chars().count() <= LONGEST {
        return plain;
    }
    plain.chars().take(LONGEST - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Wall,
        engine::status::{UnconfirmedStatus, WaitingStatus},
        guard::Who,
        revision::{Attempt, Held, HeldWhy, Quarantined, Suspension},
    };

    /// A router on `a…` that is asked for `b…`.
    fn asked_for_b() -> Status {
        let mut status: Status = serde_json::from_str(include_str!("../../tests/it/records/status.json")).unwrap();
        status.source.applied = Some("a".repeat(40));
        status.source.desired = Some("b".repeat(40));
        status.source.attempted = None;
        status
    }

    fn of_b(change: impl FnOnce(&mut Status)) -> Option<(State, String)> {
        let mut status = asked_for_b();
        change(&mut status);
        let all = verdicts(&status);
        assert_eq!(all[0], Told { commit: "a".repeat(40), state: State::Success, text: "in force".into() });
        all.into_iter().find(|told| told.commit.starts_with('b')).map(|told| (told.state, told.text))
    }

    fn tried(outcome: AttemptOutcome, reason: Option<&str>) -> Option<(State, String)> {
        of_b(|s| {
            s.source.attempted = Some(Attempt {
                revision: "b".repeat(40),
                content: String::new(),
                outcome,
                reason: reason.map(str::to_owned),
                at: Wall::default(),
            });
        })
    }

    fn is(found: Option<(State, String)>, state: State, text: &str) {
        let (found, said) = found.unwrap();
        assert_eq!((found, said.as_str()), (state, text));
    }

    #[test]
    fn each_way_a_commit_can_stand_has_its_word() {
        assert_eq!(of_b(|_| ()), None, "nothing is known yet");
        is(tried(AttemptOutcome::Pending, None), State::Pending, "is being tried");
        is(tried(AttemptOutcome::Invalid, Some("site.yaml:3:1: x")), State::Failure, "invalid: site.yaml:3:1: x");
        is(tried(AttemptOutcome::Failed, Some("x")), State::Failure, "not applied: x");
        is(tried(AttemptOutcome::RolledBack, Some("x")), State::Failure, "rolled back: x");
        is(tried(AttemptOutcome::RollbackFailed, Some("x")), State::Error, "ROLLBACK FAILED: x");
        let held = Held {
            revision: "b".repeat(40),
            message: String::new(),
            why: HeldWhy::Behind,
            remedy: String::new(),
            since: Wall::default(),
        };
        let told = of_b(|s| s.source.held = Some(held));
        is(told, State::Pending, "held: the branch was set back behind the last accepted commit");
        let known = Quarantined {
            revision: "b".repeat(40),
            content: String::new(),
            reason: "x".into(),
            at: Wall::default(),
            fault: crate::revision::Fault::Own,
        };
        is(of_b(|s| s.source.quarantine.push(known)), State::Failure, "quarantined: x");
        let stop = Suspension { by: "root".into(), reason: "x".into(), since: Wall::default(), until: None };
        is(of_b(|s| s.source.suspended = Some(stop)), State::Pending, "not taken: suspended without an end");
        let waiting = WaitingStatus { revision: "b".repeat(40), reason: "a window".into() };
        is(of_b(|s| s.waiting = Some(waiting)), State::Pending, "waits: a window");
        let trial = UnconfirmedStatus {
            generation: 43,
            revision: "b".repeat(40),
            previous: None,
            who: Who::DAEMON,
            until: Wall::from_micros(1_000_000),
            seconds_left: 90,
            by_hand: false,
            waits: Vec::new(),
            against: Vec::new(),
        };
        let on_trial = of_b(|s| s.unconfirmed = Some(trial));
        is(on_trial, State::Pending, "in the kernel, on trial until 1970-01-01T00:00:01Z");
    }

    #[test]
    fn a_directory_is_not_reported() {
        let mut status = asked_for_b();
        status.source.applied = Some("c".repeat(64));
        status.source.desired = Some("d".repeat(64));
        assert_eq!(verdicts(&status), []);
    }

    #[test]
    fn a_description_is_one_line_of_140_characters_at_most() {
        let text = tried(AttemptOutcome::Failed, Some(&"wörd\n\u{1b}[31m ".repeat(50))).unwrap().1;
        assert_eq!(text.chars().count(), LONGEST);
        assert!(text.starts_with("not applied: wörd [31m wörd") && text.ends_with('…'), "{text}");
    }
}
