//! `patronus source`, `suspend`, `resume` and `reconcile`: which revision is wanted, tried and in force, and what
//! people may do about it.

use std::{fmt::Write as _, time::Duration};

use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use super::{
    Exit, Failure, Format, Outcome,
    inspect::{self, Daemon, revisions},
};
use crate::{
    api::client,
    clock::{self, Wall},
    engine::status::{ReconcileOutcome, ReconcileStatus, SHOWN, Status, Treatment},
    revision::AttemptOutcome,
    units::{Span, plural},
};

/// The engine answers between two passes.
const PATIENCE: Duration = Duration::from_secs(65);
/// A reconcile may wait for a fetch and a transaction with its read-backs.
const RECONCILE_PATIENCE: Duration = Duration::from_secs(120);
/// Whoever lets a revision pass is told whether it stands: its trial lasts so long as a rule.
const TRIAL: Duration = Duration::from_secs(150);
/// How often somebody who waits looks.
const LOOK: Duration = Duration::from_millis(200);

/// Show which revision is wanted, tried last and in force, or decide about one
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SourceArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// The daemon.
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    /// Show which revision is wanted, tried last and in force
    Status {
        /// The daemon.
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Take the newest commit although it does not descend from the one accepted before, or failed before
    Accept {
        /// The commit, at least 7 characters of it; it has to be the newest that the source holds
        commit: String,
        /// The daemon.
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Read the source now, and try its newest revision again if that failed
    Retry {
        /// The daemon.
        #[command(flatten)]
        daemon: Daemon,
    },
}

/// Take no new revision until told; drift repair and failover go on
#[derive(Debug, Clone, clap::Args)]
pub struct SuspendArgs {
    /// What for; shown to whoever looks
    #[arg(long)]
    reason: String,
    /// End by itself after this time, such as `2h`; without it, only `patronus resume` ends it
    #[arg(long = "for", value_name = "DURATION")]
    time: Option<Span>,
    /// The daemon.
    #[command(flatten)]
    daemon: Daemon,
}

/// Take new revisions again
#[derive(Debug, Clone, clap::Args)]
pub struct ResumeArgs {
    /// The daemon.
    #[command(flatten)]
    daemon: Daemon,
}

/// Have the daemon read source and kernel again now, and wait for the outcome
#[derive(Debug, Clone, clap::Args)]
pub struct ReconcileArgs {
    /// Wait also for the confirmation of a change: until the newest revision is in force, held or has failed
    #[arg(long)]
    wait: bool,
    /// How long to wait at most with --wait
    #[arg(long, value_name = "DURATION", default_value = "15m", requires = "wait")]
    timeout: Span,
    /// The daemon.
    #[command(flatten)]
    daemon: Daemon,
}

/// Runs `patronus source`.
pub async fn source(args: SourceArgs) -> Outcome {
    match args.what.unwrap_or(What::Status { daemon: args.daemon }) {
        What::Status { daemon } => show(&daemon).await,
        What::Accept { commit, daemon } => {
            tell(&daemon, "/v1/source/accept", &json!({"revision": commit})).await?;
            reconciled(&daemon, TRIAL).await
        }
        What::Retry { daemon } => {
            tell(&daemon, "/v1/source/retry", &json!({})).await?;
            reconciled(&daemon, TRIAL).await
        }
    }
}

/// Runs `patronus suspend`.
pub async fn suspend(args: SuspendArgs) -> Outcome {
    let until = args.time.map(|time| {
        let after = i64::try_from(time.get().as_micros()).unwrap_or(i64::MAX);
        Wall::from_micros(clock::wall().as_micros().saturating_add(after)).as_micros()
    });
    let said = tell(&args.daemon, "/v1/source/suspend", &json!({"reason": args.reason, "until": until})).await?;
    let hint = if until.is_none() { "; `patronus resume` ends it, and after 24 hours it is an alarm" } else { "" };
    Ok(done(&args.daemon, &format!("{said}{hint}")))
}

/// Runs `patronus resume`.
pub async fn resume(args: ResumeArgs) -> Outcome {
    let said = tell(&args.daemon, "/v1/source/resume", &json!({})).await?;
    Ok(done(&args.daemon, &said))
}

/// Runs `patronus reconcile`.
pub async fn reconcile(args: ReconcileArgs) -> Outcome {
    let patience = if args.wait { args.timeout.get() } else { Duration::ZERO };
    reconciled(&args.daemon, patience).await
}

async fn show(daemon: &Daemon) -> Outcome {
    let status = inspect::fetch(daemon).await?;
    Ok(match daemon.output {
        Format::Json => inspect::print_json(&json!({
            "format_version": 1, "site": status.site, "source": status.source, "conditions": status.conditions,
        })),
        Format::Text => inspect::print(&revisions::whole(&status)),
    })
}

#[derive(Deserialize)]
struct Said {
    message: String,
}

async fn tell(daemon: &Daemon, uri: &str, details: &serde_json::Value) -> Result<String, Failure> {
    let asked = client::tell::<Said>(&daemon.socket(), uri, details, PATIENCE).await;
    asked.map(|said| said.message).map_err(|error| inspect::failure(&error))
}

fn done(daemon: &Daemon, said: &str) -> Exit {
    match daemon.output {
        Format::Json => inspect::print_json(&json!({"format_version": 1, "message": said})),
        Format::Text => inspect::print(&format!("{said}\n")),
    }
}

/// One reading of the source and one pass; then what became of the newest revision, waiting for it so long at most.
async fn reconciled(daemon: &Daemon, patience: Duration) -> Outcome {
    let asked = client::ask(&daemon.socket(), Method::POST, "/v1/reconcile", RECONCILE_PATIENCE).await;
    let pass: ReconcileStatus = asked.map_err(|error| inspect::failure(&error))?;
    let begun = clock::now();
    let mut status = inspect::fetch(daemon).await?;
    while settled(&status).is_none() && clock::now().since(begun) < patience {
        tokio::time::sleep(LOOK).await;
        status = inspect::fetch(daemon).await?;
    }
    let (exit, said) = settled(&status).unwrap_or_else(|| open(&status, patience));
    match daemon.output {
        Format::Json => inspect::print_json(&json!({
            "format_version": 1, "reconcile": pass, "message": said,
            "source": status.source, "conditions": status.conditions,
        })),
        Format::Text => inspect::print(&format!("{said}\n{}", last_pass(&pass, &status))),
    };
    Ok(exit)
}

/// What became of the newest revision; none while it is under way.
fn settled(status: &Status) -> Option<(Exit, String)> {
    let source = &status.source;
    let kept = source.applied.as_ref().map_or_else(
        || "nothing is in force".to_owned(),
        |applied| format!("revision {} stays in force", revisions::short(applied)),
    );
    if let Some(trouble) = &source.trouble {
        return Some((Exit::Error, format!("the source cannot be read: {}; {kept}", trouble.message)));
    }
    let desired = source.desired.as_ref()?;
    let name = revisions::short(desired);
    if let Some(held) = &source.held {
        return Some((Exit::Busy, format!("revision {name} is held: {}; {kept}\n  {}", held.message, held.remedy)));
    }
    if source.applied.as_ref() == Some(desired) {
        return Some(in_force(status, name));
    }
    if let Some(suspended) = &source.suspended {
        let (by, end, why) = (&suspended.by, suspended.end(), &suspended.reason);
        return Some((Exit::Busy, format!("revision {name} is not taken: {by} suspended that {end} ({why}); {kept}")));
    }
    let attempt = source.attempted.as_ref().filter(|a| a.revision == *desired);
    if attempt.is_some_and(|a| a.outcome == AttemptOutcome::Invalid) {
        let mut text = format!("revision {name} has errors; {kept}");
        source.errors.iter().for_each(|line| _ = write!(text, "\n  {line}"));
        return Some((Exit::Config, text));
    }
    let known = source.quarantine.iter().find(|q| q.revision == *desired)?;
    let remedy = "`patronus source retry` tries it again";
    Some((Exit::Error, format!("revision {name} is quarantined: {}; {kept}\n  {remedy}", known.reason)))
}

/// What is said of a revision that is under way. On trial it is in the kernel: whoever did not ask to wait is served.
fn open(status: &Status, patience: Duration) -> (Exit, String) {
    match status.unconfirmed.as_ref().filter(|trial| status.source.desired.as_ref() == Some(&trial.revision)) {
        Some(trial) if patience.is_zero() => {
            let (name, left) = (revisions::short(&trial.revision), trial.seconds_left);
            (
                Exit::Done,
                format!(
                    "revision {name} is in the kernel, on trial for {left} s at most; `patronus status` shows the evidence"
                ),
            )
        }
        _ => (Exit::Busy, format!("{}: not settled yet", under_way(status))),
    }
}

fn in_force(status: &Status, name: &str) -> (Exit, String) {
    let failed = status
        .reconcile
        .as_ref()
        .filter(|r| !matches!(r.outcome, ReconcileOutcome::Unchanged | ReconcileOutcome::Applied));
    match failed {
        None => (Exit::Done, format!("revision {name} is in force, generation {}", status.generation)),
        Some(r) => {
            let why = r.message.as_deref().unwrap_or("no details");
            (Exit::Error, format!("revision {name} is in force, but the kernel cannot be kept as it wants: {why}"))
        }
    }
}

fn under_way(status: &Status) -> String {
    let reconciling = status.conditions.iter().find(|c| c.kind == crate::revision::ConditionType::Reconciling);
    reconciling.map_or_else(|| "the daemon is starting".to_owned(), |c| c.message.clone())
}

fn last_pass(done: &ReconcileStatus, status: &Status) -> String {
    let left = left_alone(status);
    let how = match done.outcome {
        ReconcileOutcome::Unchanged if left.is_some() => "nothing was changed",
        ReconcileOutcome::Unchanged => "nothing to do: the kernel is as the configuration wants it",
        ReconcileOutcome::Applied => "the kernel was changed and read back",
        ReconcileOutcome::RolledBack => "rolled back, the old state is in force",
        ReconcileOutcome::RollbackFailed => "ROLLBACK FAILED, look at once",
        ReconcileOutcome::Refused => "nothing was done",
    };
    let message = done.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
    let (steps, left) = (plural(done.steps, "step"), left.unwrap_or_default());
    format!("last pass: {how}{message} ({steps}, {} ms)\n{left}", done.micros / 1000)
}

/// What a pass does not touch although it is not as the configuration wants it.
fn left_alone(status: &Status) -> Option<String> {
    let all = status.drifted.iter().filter(|object| object.treatment != Treatment::Repaired).count();
    let first = status.drifted.iter().find(|object| object.treatment != Treatment::Repaired)?;
    // The status carries the first of them.
    let (more, verb) = (if all >= SHOWN { " or more" } else { "" }, if all == 1 { "is" } else { "are" });
    Some(format!(
        "left as found: {all}{more} of our objects {verb} not as the configuration wants: {}\n  `patronus drift` shows \
         them; a new revision puts right what is only reported\n",
        inspect::clean(&first.line())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        drift::How,
        engine::status::{DriftedObject, UnconfirmedStatus},
        guard::Who,
        revision::{Attempt, Held, HeldWhy, Quarantined, Suspension, Trouble},
    };

    fn sample() -> Status {
        serde_json::from_str(include_str!("../../tests/it/records/status.json")).unwrap()
    }

    fn newer(change: impl FnOnce(&mut Status)) -> (Exit, String) {
        let mut status = sample();
        status.source.desired = Some("b".repeat(40));
        change(&mut status);
        settled(&status).unwrap_or_else(|| (Exit::Changes, under_way(&status)))
    }

    fn attempt(outcome: AttemptOutcome) -> Attempt {
        let (revision, content) = ("b".repeat(40), String::new());
        Attempt { revision, content, outcome, reason: None, at: Wall::default() }
    }

    #[test]
    fn a_revision_on_trial_is_an_answer_for_whoever_does_not_wait() {
        let mut status = sample();
        let revision = "b".repeat(40);
        status.source.desired = Some(revision.clone());
        assert_eq!(open(&status, Duration::ZERO).0, Exit::Busy);
        status.unconfirmed = Some(UnconfirmedStatus {
            generation: 43,
            revision,
            previous: None,
            who: Who::DAEMON,
            until: Wall::default(),
            seconds_left: 90,
            by_hand: false,
            waits: Vec::new(),
            against: Vec::new(),
        });
        let (exit, text) = open(&status, Duration::ZERO);
        assert!(exit == Exit::Done && text.contains("on trial for 90 s"), "{text}");
        assert_eq!(open(&status, Duration::from_secs(1)).0, Exit::Busy);
    }

    #[test]
    fn a_pass_names_what_it_leaves_as_it_found_it() {
        let mut status = sample();
        let done = ReconcileStatus {
            at: Wall::default(),
            micros: 3_000,
            outcome: ReconcileOutcome::Unchanged,
            steps: 0,
            message: None,
        };
        status.drifted.clear();
        assert_eq!(
            last_pass(&done, &status),
            "last pass: nothing to do: the kernel is as the configuration wants it (0 steps, 3 ms)\n"
        );
        let object = |treatment| DriftedObject {
            kind: "route".into(),
            object: "route  IPv4 default table 20001 metric 10".into(),
            how: How::Missing,
            detail: None,
            treatment,
        };
        status.drifted = vec![object(Treatment::Repaired), object(Treatment::Reported)];
        let text = last_pass(&done, &status);
        assert!(text.starts_with("last pass: nothing was changed (0 steps, 3 ms)\nleft as found: 1 of our objects is"));
        assert!(text.contains("table 20001 metric 10 is missing; only reported (`drift: {route: report}`)"), "{text}");
        status.drifted = vec![object(Treatment::Reported); SHOWN];
        assert!(last_pass(&done, &status).contains("20 or more of our objects are"), "{text}");
    }

    #[test]
    fn the_exit_status_says_what_became_of_the_newest_revision() {
        assert_eq!(settled(&sample()), Some((Exit::Done, "revision 9be01d2 is in force, generation 42".into())));
        assert_eq!(
            newer(|s| s.source.attempted = Some(attempt(AttemptOutcome::Confirming))).0,
            Exit::Changes,
            "under way"
        );
        let (exit, text) = newer(|s| {
            s.source.attempted = Some(attempt(AttemptOutcome::Invalid));
            s.source.errors = vec!["site.yaml:3:1: no such field".into()];
        });
        assert_eq!(exit, Exit::Config);
        assert!(text.contains("bbbbbbbbbbbb has errors; revision 9be01d2 stays in force\n  site.yaml:3:1"), "{text}");
        let why = HeldWhy::Diverged;
        let held = Held {
            revision: "b".repeat(40),
            message: why.to_string(),
            why,
            remedy: "accept it".into(),
            since: Wall::default(),
        };
        assert_eq!(newer(|s| s.source.held = Some(held)).0, Exit::Busy);
        let suspension = Suspension { by: "root".into(), reason: "x".into(), since: Wall::default(), until: None };
        let (exit, text) = newer(|s| s.source.suspended = Some(suspension));
        assert!(exit == Exit::Busy && text.contains("root suspended that without an end (x)"), "{text}");
        let known = Quarantined {
            revision: "b".repeat(40),
            content: String::new(),
            reason: "no such device".into(),
            at: Wall::default(),
            fault: crate::revision::Fault::Own,
        };
        let (exit, text) = newer(|s| s.source.quarantine.push(known));
        assert!(exit == Exit::Error && text.contains("no such device") && text.contains("source retry"), "{text}");
        let trouble =
            Trouble { reason: "dns".into(), message: "no such host".into(), since: Wall::default(), failures: 1 };
        assert_eq!(newer(|s| s.source.trouble = Some(trouble)).0, Exit::Error);
    }
}
