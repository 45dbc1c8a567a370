//! The source and its revisions as people read them: one line in the overview, and the whole of it.

use std::fmt::Write as _;

use super::{
    human::{between, clean, duration, time},
    text::{DIM, Mark, table},
};
use crate::{
    engine::status::{SourceStatus, Status},
    revision::{AttemptOutcome, ConditionType, Suspension, Truth},
};

/// A revision as people name it: the first digits of a commit.
pub(in crate::cli) fn short(revision: &str) -> &str {
    revision.get(..12).unwrap_or(revision)
}

/// What is wrong with the source, for the first line of the overview.
pub(super) fn findings(status: &Status) -> Vec<(Mark, String)> {
    let source = &status.source;
    let mut found = Vec::new();
    if let Some(s) = &source.suspended {
        found.push((Mark::Look, format!("no new revision is taken: {}", suspension(s, status))));
    }
    if let Some(held) = &source.held {
        found.push((Mark::Look, format!("revision {} is held: {}", short(&held.revision), clean(&held.message))));
    }
    let attempt = source.attempted.as_ref().filter(|a| Some(&a.revision) == source.desired.as_ref());
    if let Some(attempt) = attempt.filter(|a| Some(&a.revision) != source.applied.as_ref()) {
        let mark = match attempt.outcome {
            AttemptOutcome::RollbackFailed => Mark::Broken,
            AttemptOutcome::Failed | AttemptOutcome::RolledBack => Mark::Look,
            _ => return found,
        };
        found.push((mark, format!("revision {} {}", short(&attempt.revision), outcome(attempt.outcome))));
    }
    found
}

/// What has to be known before anything else: lines for the top of the overview.
pub(super) fn notices(status: &Status) -> Vec<(Mark, String)> {
    let source = &status.source;
    let mut lines = Vec::new();
    if let Some(s) = &source.suspended {
        lines.push((
            Mark::Look,
            format!("No new revision is taken: {}. `patronus resume` ends it.", suspension(s, status)),
        ));
    }
    if let Some(held) = &source.held {
        let (name, message, remedy) = (short(&held.revision), clean(&held.message), clean(&held.remedy));
        lines.push((Mark::Look, format!("Revision {name} is held: {message}; {remedy}")));
    }
    if let Some(q) = source.quarantine.iter().find(|q| Some(&q.revision) == source.desired.as_ref()) {
        let why = clean(&q.reason);
        let remedy = "it is tried again when its content for this site changes, or after `patronus source retry`";
        lines.push((Mark::Look, format!("Revision {} is quarantined: {why}; {remedy}", short(&q.revision))));
    }
    lines
}

fn suspension(s: &Suspension, status: &Status) -> String {
    let ago = duration(between(s.since, status.wall));
    let end = match s.until {
        Some(until) => format!("ends in {}", duration(between(status.wall, until))),
        None => "has no end".into(),
    };
    format!("suspended by {} {ago} ago, {end} ({})", clean(&s.by), clean(&s.reason))
}

/// The title of the lines of errors.
pub(super) const fn errors_title(source: &SourceStatus) -> &'static str {
    if source.trouble.is_some() {
        "The source cannot be read"
    } else {
        "Errors in the newest configuration (not in force)"
    }
}

/// How many lines of errors there are, and of which kind, for the first line.
pub(super) const fn errors_noun(source: &SourceStatus) -> &'static str {
    if source.trouble.is_some() { " reading the source" } else { " in the newest configuration" }
}

/// One line for the overview.
pub(super) fn line(status: &Status) -> String {
    let source = &status.source;
    let applied = source
        .applied
        .as_deref()
        .map_or("nothing is in force".into(), |r| format!("revision {} in force", clean(short(r))));
    let mut line = format!("Source  {}: {applied}, generation {}", clean(&source.location), status.generation);
    if source.desired != source.applied
        && let Some(desired) = &source.desired
    {
        let _ = write!(line, "; {} {}", Mark::Look.paint("newest is"), clean(short(desired)));
    }
    format!("{line}; {}\n", read(status))
}

fn read(status: &Status) -> String {
    let ago = |at| duration(between(at, status.wall));
    let via = status.source.via.as_ref().map(|via| format!(" over {}", clean(via))).unwrap_or_default();
    let read = |at| format!("read {} ago{via}", ago(at));
    let never = if status.source.errors.is_empty() { "not read yet" } else { "never read without an error" };
    status.source.last_success.map_or(never.into(), read)
}

/// All of it, for `patronus source` and `get source`.
pub(in crate::cli) fn whole(status: &Status) -> String {
    let source = &status.source;
    let mut out = format!("Source  {}; {}\n\n", clean(&source.location), read(status));
    out += &three(status);
    for (mark, text) in notices(status) {
        let _ = write!(out, "\n{} {text}\n", mark.paint(mark.symbol()));
    }
    if !source.errors.is_empty() {
        let _ = writeln!(out, "\n{}", errors_title(source));
        for text in &source.errors {
            let _ = writeln!(out, "{} {}", Mark::Look.paint(Mark::Look.symbol()), clean(text));
        }
    }
    let _ = write!(out, "\n{}", conditions(status));
    // What is wanted now is told above.
    let older = source.quarantine.iter().rev().filter(|q| Some(&q.revision) != source.desired.as_ref());
    let mut rows = older.map(|q| (Mark::Look, vec![short(&q.revision).to_owned(), time(q.at), clean(&q.reason)]));
    if let Some(first) = rows.next() {
        let rows = std::iter::once(first).chain(rows);
        let _ = write!(out, "\n{}", table(&["QUARANTINED", "AT", "WHY"], rows, ("revisions", usize::MAX)));
    }
    out
}

/// Wanted, tried last, in force.
fn three(status: &Status) -> String {
    let source = &status.source;
    let about = |use_: &str| {
        let commit = source.commits.get(use_)?;
        Some(format!("{}, {}: {}", time(commit.at), clean(&commit.author), clean(&commit.subject)))
    };
    let row = |mark, what: &str, revision: Option<&str>, how: Option<String>| {
        let revision = revision.map_or("-".into(), |r| clean(short(r)));
        (mark, vec![what.to_owned(), revision, how.unwrap_or_default()])
    };
    let same = source.desired == source.applied;
    let (tried, mark) = source.attempted.as_ref().map_or((None, Mark::Fine), |a| {
        let ago = duration(between(a.at, status.wall));
        let why = a.reason.as_deref().map(|r| format!(": {}", clean(r))).unwrap_or_default();
        (Some(format!("{} {ago} ago{why}", outcome(a.outcome))), severity(a.outcome))
    });
    let attempted = source.attempted.as_ref().map(|a| a.revision.as_str());
    let rows = [
        row(if same { Mark::Fine } else { Mark::Look }, "wanted", source.desired.as_deref(), about("desired")),
        row(mark, "tried last", attempted, tried),
        row(Mark::Fine, "in force", source.applied.as_deref().or(Some("nothing yet")), about("applied")),
    ];
    table(&["", "REVISION", ""], rows.into_iter(), ("revisions", usize::MAX))
}

const fn severity(outcome: AttemptOutcome) -> Mark {
    match outcome {
        AttemptOutcome::Applied => Mark::Fine,
        AttemptOutcome::Pending | AttemptOutcome::Confirming => Mark::Unknown,
        AttemptOutcome::Invalid | AttemptOutcome::Failed | AttemptOutcome::RolledBack => Mark::Look,
        AttemptOutcome::RollbackFailed => Mark::Broken,
    }
}

const fn outcome(outcome: AttemptOutcome) -> &'static str {
    match outcome {
        AttemptOutcome::Pending => "is being tried since",
        AttemptOutcome::Confirming => "waits for its confirmation since",
        AttemptOutcome::Applied => "came in force",
        AttemptOutcome::Invalid => "was found to have errors",
        AttemptOutcome::Failed => "could not be applied",
        AttemptOutcome::RolledBack => "failed and was rolled back",
        AttemptOutcome::RollbackFailed => "failed and could NOT be undone",
    }
}

fn conditions(status: &Status) -> String {
    let rows = status.conditions.iter().map(|c| {
        let good = if c.kind == ConditionType::Ready || c.kind == ConditionType::SourceVerified {
            Truth::True
        } else {
            Truth::False
        };
        let mark = match c.status {
            Truth::Unknown => Mark::Fine,
            s if s == good || c.kind == ConditionType::Reconciling => Mark::Fine,
            _ => Mark::Look,
        };
        let since = duration(between(c.since, status.wall));
        (
            mark,
            vec![c.kind.as_str().to_owned(), c.status.as_str().to_owned(), since, c.reason.clone(), clean(&c.message)],
        )
    });
    if status.conditions.is_empty() {
        return format!("  {DIM}no conditions: a daemon of an older version{DIM:#}\n");
    }
    table(&["CONDITION", "IS", ">FOR", "REASON", ""], rows, ("conditions", usize::MAX))
}

#[cfg(test)]
mod tests;
