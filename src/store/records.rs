//! The statements of the records: a batch in, old rows out.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, params};

use super::{
    Limits, Run, StoreError, TransitionRecord, UNTOLD, aggregates,
    chunks::{self, Chunks},
    int,
    recorder::Row,
    uint, word,
};
use crate::{clock::Wall, engine::status::Event, units::Name};

/// Rows deleted in one transaction, so that a reader or a checkpoint never waits for long.
const SLICE: i64 = 5_000;
/// A sample that comes later than this after its slot is not in the slot's aggregate.
const LATE: i64 = 10_000_000;
/// Aggregates are kept so long, or for the retention if that is longer.
const YEAR: Duration = Duration::from_secs(366 * 86_400);

/// Inserts a batch in one transaction: all of it or nothing.
pub(super) fn insert<'a>(
    db: &Connection,
    file: &Path,
    rows: impl IntoIterator<Item = &'a Row>,
    chunks: &Chunks,
) -> Result<(), StoreError> {
    let err = || StoreError::database("write to", file);
    let work = db.unchecked_transaction().map_err(err())?;
    for row in rows {
        match row {
            Row::Event(row, tellers) => event(&work, row, tellers),
            Row::Transition(row) => transition(&work, row),
            Row::Run(row) => run(&work, row),
            Row::Told(channel, event) => told(&work, channel, *event),
        }
        .map_err(err())?;
    }
    for (slot, path, data) in chunks.waiting() {
        append(&work, "samples", "slot", slot, path, data).map_err(err())?;
    }
    work.commit().map_err(err())
}

/// Appends to the row of a path and a time, or begins it.
fn append(db: &Connection, table: &str, time: &str, at: i64, path: &Name, data: &[u8]) -> rusqlite::Result<usize> {
    db.prepare_cached("INSERT INTO paths (name) VALUES (?) ON CONFLICT DO NOTHING")?.execute([path.as_str()])?;
    // Two blobs put together are a text otherwise.
    db.prepare_cached(&format!(
        "INSERT INTO {table} ({time}, path, data) SELECT ?, id, ? FROM paths WHERE name = ?
         ON CONFLICT ({time}, path) DO UPDATE SET data = CAST(data || excluded.data AS BLOB)"
    ))?
    .execute(params![at, data, path.as_str()])
}

/// Aggregates the slots that ended before `now` and were not yet: a slot has all its samples once the next has some.
pub(super) fn aggregate(db: &Connection, file: &Path, now: Wall) -> Result<(), StoreError> {
    let err = || StoreError::database("aggregate", file);
    let ended = chunks::slot(Wall::from_micros(now.as_micros() - LATE)) - 1;
    let done = "SELECT COALESCE((SELECT slot FROM aggregated), -1)";
    let done: i64 = db.query_row(done, [], |row| row.get(0)).map_err(err())?;
    let rows = rows_between(db, done + 1, ended).map_err(err())?;
    // A clock that was ahead is right again: it goes on from now.
    let last = if done > ended { Some(ended) } else { rows.last().map(|(slot, ..)| *slot) };
    let Some(last) = last else { return Ok(()) };
    let work = db.unchecked_transaction().map_err(err())?;
    for (slot, path, data) in rows {
        let Some(found) = aggregates::of(slot, &chunks::decode(&path, &data)) else { continue };
        let (day, _) = aggregates::place(slot);
        append(&work, "aggregates", "day", day, &path, &aggregates::encode(&found)).map_err(err())?;
    }
    work.execute("REPLACE INTO aggregated (only, slot) VALUES (1, ?)", [last]).map_err(err())?;
    work.commit().map_err(err())
}

fn rows_between(db: &Connection, first: i64, last: i64) -> rusqlite::Result<Vec<(i64, Name, Vec<u8>)>> {
    let mut rows = db.prepare(
        "SELECT slot, name, data FROM samples JOIN paths ON paths.id = path WHERE slot BETWEEN ? AND ? ORDER BY slot",
    )?;
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?));
    let rows = rows.query_map([first, last], row)?;
    // A name that is none was not written by us.
    let known = rows.map(|row| row.map(|(slot, name, data)| Some((slot, name.parse().ok()?, data))));
    known.filter_map(Result::transpose).collect()
}

fn event(db: &Connection, row: &Event, tellers: &[Name]) -> rusqlite::Result<usize> {
    let detail = row.detail.to_string();
    for channel in tellers {
        let sql = "INSERT INTO untold (channel, event) VALUES (?, ?)";
        db.prepare_cached(sql)?.execute(params![channel.as_str(), row.id])?;
    }
    db.prepare_cached("REPLACE INTO events (id, at, kind, subject, message, detail) VALUES (?, ?, ?, ?, ?, ?)")?
        .execute(params![row.id, row.at.as_micros(), row.kind, row.subject, row.message, detail])
}

/// The newest row that waits for a channel; 0 without any.
pub(super) fn newest_untold(db: &Connection, file: &Path) -> Result<i64, StoreError> {
    let sql = "SELECT COALESCE(MAX(id), 0) FROM untold";
    db.query_row(sql, [], |row| row.get(0)).map_err(StoreError::database("read", file))
}

/// The numbers of events do not rise where the clock was set back; those of the rows do.
fn told(db: &Connection, channel: &Name, event: i64) -> rusqlite::Result<usize> {
    let sql = "DELETE FROM untold WHERE channel = ?1
        AND id <= (SELECT MAX(id) FROM untold WHERE channel = ?1 AND event = ?2)";
    db.prepare_cached(sql)?.execute(params![channel.as_str(), event])
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

/// Deletes rows older than the retention, in slices; of the samples also the oldest beyond the newest so many bytes.
pub(super) fn prune(db: &Connection, file: &Path, now: Wall, limits: &Limits) -> Result<(), StoreError> {
    let before = |age: Duration| {
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        Wall::from_micros(now.as_micros().saturating_sub(age))
    };
    let err = || StoreError::database("prune", file);
    let (oldest, untold) = (before(limits.retention), before(UNTOLD));
    let slot = chunks::slot(oldest).max(first_slot_within(db, limits.sample_bytes).map_err(err())?);
    let samples = "DELETE FROM samples WHERE rowid IN (SELECT rowid FROM samples WHERE slot < ? LIMIT ?)";
    while db.execute(samples, [slot, SLICE]).map_err(err())? > 0 {}
    let day = aggregates::day(before(limits.retention.max(YEAR)));
    db.execute("DELETE FROM aggregates WHERE day < ?", [day]).map_err(err())?;
    for (sql, oldest) in [
        ("DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ? ORDER BY id LIMIT ?)", oldest),
        ("DELETE FROM transitions WHERE id IN (SELECT id FROM transitions WHERE at < ? ORDER BY at LIMIT ?)", oldest),
        ("DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE started < ? ORDER BY started LIMIT ?)", oldest),
        // Of channels that are gone from the settings too.
        (
            "DELETE FROM untold WHERE id IN (SELECT id FROM untold WHERE event NOT IN (SELECT id FROM events WHERE at >= ?) LIMIT ?)",
            untold,
        ),
    ] {
        while db.execute(sql, [oldest.as_micros(), SLICE]).map_err(err())? > 0 {}
    }
    Ok(())
}

/// The first slot of the newest that have together no more than so many bytes.
fn first_slot_within(db: &Connection, most: u64) -> rusqlite::Result<i64> {
    let mut slots = db.prepare("SELECT slot, SUM(LENGTH(data)) FROM samples GROUP BY slot ORDER BY slot DESC")?;
    let mut rows = slots.query([])?;
    let mut sum = 0;
    while let Some(row) = rows.next()? {
        sum += uint(row.get(1)?);
        if sum > most {
            return Ok(row.get::<_, i64>(0)? + 1);
        }
    }
    Ok(i64::MIN)
}
