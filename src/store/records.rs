//! The statements of the records: a batch in, old rows out.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, params};

use super::{HealthSample, Run, StoreError, TransitionRecord, int, recorder::Row, word};
use crate::{clock::Wall, engine::status::Event};

/// Rows deleted in one transaction, so that a reader or a checkpoint never waits for long.
const SLICE: i64 = 5_000;

/// Inserts a batch in one transaction: all of it or nothing.
pub(super) fn insert<'a>(
    db: &Connection,
    file: &Path,
    rows: impl IntoIterator<Item = &'a Row>,
) -> Result<(), StoreError> {
    let err = || StoreError::database("write to", file);
    let work = db.unchecked_transaction().map_err(err())?;
    for row in rows {
        match row {
            Row::Sample(row) => sample(&work, row),
            Row::Event(row) => event(&work, row),
            Row::Transition(row) => transition(&work, row),
            Row::Run(row) => run(&work, row),
        }
        .map_err(err())?;
    }
    work.commit().map_err(err())
}

fn sample(db: &Connection, row: &HealthSample) -> rusqlite::Result<usize> {
    let (rtt, jitter) = (row.rtt_micros.map(int), row.jitter_micros.map(int));
    db.prepare_cached("REPLACE INTO samples (at, path, rtt, jitter, loss, score, state) VALUES (?, ?, ?, ?, ?, ?, ?)")?
        .execute(params![
            row.at.as_micros(),
            row.path.as_str(),
            rtt,
            jitter,
            row.loss.ppm(),
            row.score,
            word(&row.state)
        ])
}

fn event(db: &Connection, row: &Event) -> rusqlite::Result<usize> {
    let detail = row.detail.to_string();
    db.prepare_cached("REPLACE INTO events (id, at, kind, subject, message, detail) VALUES (?, ?, ?, ?, ?, ?)")?
        .execute(params![row.id, row.at.as_micros(), row.kind, row.subject, row.message, detail])
}

fn transition(db: &Connection, row: &TransitionRecord) -> rusqlite::Result<usize> {
    let (from, to) = (row.from.as_ref().map(ToString::to_string), row.to.as_ref().map(ToString::to_string));
    db.prepare_cached("INSERT INTO transitions (at, rule, from_path, to_path, kind, reason) VALUES (?, ?, ?, ?, ?, ?)")?
        .execute(params![row.at.as_micros(), row.rule.as_str(), from, to, word(&row.kind), row.reason])
}

fn run(db: &Connection, row: &Run) -> rusqlite::Result<usize> {
    let (plan, outcome) = (row.plan.map(|id| id.to_string()), row.outcome.as_ref().map(word));
    let (started, ended) = (row.started.as_micros(), row.ended.map(Wall::as_micros));
    db.prepare_cached(
        "INSERT INTO runs (plan, generation, revision, started, ended, outcome, message, steps) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![plan, int(row.generation), row.revision, started, ended, outcome, row.message, int(row.steps)])
}

/// Deletes rows older than the retention, in slices.
pub(super) fn prune(db: &Connection, file: &Path, now: Wall, retention: Duration) -> Result<(), StoreError> {
    let keep = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
    let oldest = now.as_micros().saturating_sub(keep);
    for sql in [
        "DELETE FROM samples WHERE (at, path) IN (SELECT at, path FROM samples WHERE at < ? ORDER BY at LIMIT ?)",
        "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ? ORDER BY id LIMIT ?)",
        "DELETE FROM transitions WHERE id IN (SELECT id FROM transitions WHERE at < ? ORDER BY at LIMIT ?)",
        "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE started < ? ORDER BY started LIMIT ?)",
    ] {
        while db.execute(sql, [oldest, SLICE]).map_err(StoreError::database("prune", file))? > 0 {}
    }
    Ok(())
}
