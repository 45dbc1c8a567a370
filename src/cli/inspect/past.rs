//! What was in force, and who did what: `history --generations`, `history --audit`, `get generation N`.

use std::path::Path;

use hyper::Method;
use serde_json::json;

use super::{
    Daemon, Format, HistoryArgs, Outcome, PATIENCE, Records,
    human::{clean, time},
    or_records, print, print_json,
    text::{Mark, table},
};
use crate::{
    api::{Audit, Generations, client},
    cli::{Exit, Failure},
    engine::status::Status,
    guard::Unconfirmed,
    store::{AuditRow, Generation, Standing, read},
};

/// Runs `patronus history --generations`.
pub(super) async fn generations(args: HistoryArgs) -> Outcome {
    let found = fetch(&args.daemon, &args.records, args.limit).await?;
    Ok(match args.daemon.output {
        Format::Json => print_json(&json!({"format_version": 1, "generations": found})),
        Format::Text => print(&generation_table(&found)),
    })
}

/// Runs `patronus history --audit`.
pub(super) async fn audit(args: HistoryArgs) -> Outcome {
    let uri = format!("/v1/audit?limit={}", args.limit);
    let socket = args.daemon.socket();
    let asked = client::ask::<Audit>(&socket, Method::GET, &uri, PATIENCE);
    let stored = |dir: &Path| read::audit(dir, args.limit);
    let rows = or_records(async { Ok(asked.await?.rows) }, stored, &args.records).await?;
    Ok(match args.daemon.output {
        Format::Json => print_json(&json!({"format_version": 1, "rows": rows})),
        Format::Text => print(&audit_table(&rows)),
    })
}

/// Runs `patronus get generation`.
pub(super) async fn generation(number: Option<&str>, daemon: &Daemon, records: &Records) -> Outcome {
    let number: u64 = number.and_then(|text| text.parse().ok()).ok_or_else(|| {
        Failure::new(Exit::Usage, "which one? `patronus get generation N`; `patronus history --generations` lists them")
    })?;
    let found = fetch(daemon, records, usize::MAX).await?;
    let Some(found) = found.into_iter().rev().find(|g| g.generation <= number) else {
        let text =
            format!("there is no generation {number}: `patronus history --generations` lists those that are kept");
        return Err(Failure::new(Exit::Error, text));
    };
    Ok(match daemon.output {
        Format::Json => print_json(&json!({"format_version": 1, "generation": found})),
        Format::Text => print(&one(&found)),
    })
}

async fn fetch(daemon: &Daemon, records: &Records, limit: usize) -> Result<Vec<Generation>, Failure> {
    let uri = format!("/v1/generations?limit={}", limit.min(1_000));
    let socket = daemon.socket();
    let asked = client::ask::<Generations>(&socket, Method::GET, &uri, PATIENCE);
    let stored = |dir: &Path| read::generations(dir, limit.min(1_000));
    or_records(async { Ok(asked.await?.generations) }, stored, records).await
}

const fn mark(standing: Standing) -> Mark {
    match standing {
        Standing::Confirmed | Standing::Applied => Mark::Fine,
        Standing::Unconfirmed => Mark::Unknown,
        Standing::RolledBack => Mark::Look,
        Standing::RollbackFailed => Mark::Broken,
    }
}

fn generation_table(found: &[Generation]) -> String {
    let rows = found.iter().map(|g| {
        let why = g.reason.as_deref().map(clean).unwrap_or_default();
        let (number, who) = (g.generation.to_string(), clean(&g.who.to_string()));
        (mark(g.standing), vec![number, time(g.at), clean(&g.revision), g.standing.to_string(), who, why])
    });
    table(&[">GENERATION", "SINCE", "REVISION", "STANDING", "BY", "WHY"], rows, ("generations", usize::MAX))
}

fn audit_table(rows: &[AuditRow]) -> String {
    let rows = rows
        .iter()
        .map(|row| (Mark::Fine, vec![time(row.at), clean(&row.who.to_string()), clean(&row.what), clean(&row.detail)]));
    table(&["WHEN", "WHO", "WHAT", "DETAIL"], rows, ("audit", usize::MAX))
}

fn one(g: &Generation) -> String {
    let why = g.reason.as_deref().map(|why| format!(": {}", clean(why))).unwrap_or_default();
    let plan: Vec<String> = g.plan.lines().map(clean).collect();
    format!(
        "Generation {}, revision {}\nSince {} by {}\nIt is {}{why}\n\n",
        g.generation,
        clean(&g.revision),
        time(g.at),
        clean(&g.who.to_string()),
        g.standing
    ) + &plan.join("\n")
        + "\n"
}

/// What is on trial and what waits, for the status.
pub(super) fn trial(status: &Status) -> Vec<(Mark, String)> {
    let mut lines = Vec::new();
    if let Some(trial) = &status.unconfirmed {
        let (end, back) = match trial.previous.as_deref() {
            None => ("undone", "nothing of ours comes back".to_owned()),
            Some(Unconfirmed::LOST) => {
                ("called failed", "it stays all the same: no journal tells what was there before".to_owned())
            }
            Some(revision) => ("undone", format!("revision {} comes back", clean(revision))),
        };
        let how =
            if trial.by_hand { "unless somebody says `patronus confirm`" } else { "unless the evidence is complete" };
        let (generation, left) = (trial.generation, trial.seconds_left);
        let revision = clean(&trial.revision);
        lines.push((
            Mark::Unknown,
            format!("generation {generation} (revision {revision}) is {end} in {left} s, {how}; then {back}"),
        ));
        lines.extend(trial.against.iter().map(|line| (Mark::Look, clean(line))));
        lines.extend(trial.waits.iter().map(|line| (Mark::Unknown, clean(line))));
    }
    if let Some(waiting) = &status.waiting {
        lines.push((Mark::Look, format!("revision {} waits: {}", clean(&waiting.revision), clean(&waiting.reason))));
    }
    lines
}
