//! Reading the databases: by the API, and by the command line when the daemon is down. Never writes.

use std::path::Path;

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, named_params, params, types::Type};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Aggregate, AuditRow, Generation, HealthSample, LastGood, Run, StoreError, TransitionRecord, aggregates, chunks,
    from_word, generations, int, journal_file, records_file, schema, uint,
};
use crate::{clock::Wall, engine::status::Event, units::Name};

/// Which rows are wanted: the newest `limit` of those that match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Not before.
    pub since: Option<Wall>,
    /// Not after.
    pub until: Option<Wall>,
    /// Events of this kind only, or samples of this path only, or transitions of this rule only.
    pub only: Option<String>,
    /// At most so many, the newest.
    pub limit: usize,
}

/// The last moment of the year 9999.
const FOREVER: Wall = Wall::from_micros(253_402_300_799_999_999);

impl Default for Wanted {
    fn default() -> Self {
        Self { since: None, until: None, only: None, limit: 100 }
    }
}

fn open(file: &Path) -> Result<Option<Connection>, StoreError> {
    // Not by opening it: to close a file again would end the locks that `SQLite` has on it in this process.
    match access(file, AccessFlags::R_OK) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(errno) => return Err(StoreError::File { doing: "read", file: file.to_owned(), source: errno.into() }),
        Ok(()) => {}
    }
    let err = || StoreError::database("read", file);
    let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(err())?;
    db.busy_timeout(std::time::Duration::from_secs(1)).map_err(err())?;
    Ok(Some(db))
}

/// Opens a database of ours; none too if nothing was ever written into it.
fn open_written(file: &Path) -> Result<Option<Connection>, StoreError> {
    let Some(db) = connect(file)? else { return Ok(None) };
    let version: u32 =
        db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(StoreError::database("read", file))?;
    Ok((version > 0).then_some(db))
}

/// Opens a database of ours wherever it lies.
pub(super) fn open_anywhere(file: &Path, migrations: &[&str]) -> Result<Connection, StoreError> {
    let missing = || StoreError::Missing { dir: file.parent().unwrap_or(file).to_owned() };
    let db = connect(file)?.ok_or_else(missing)?;
    schema::check(&db, file, migrations)?;
    Ok(db)
}

/// Opens a database wherever it lies, if it is there. In a place where nothing can be created, and on a disk that is full,
/// its log cannot be shared, and need not be: nobody writes there. A log that lies beside it belongs to it and is not
/// passed over.
fn connect(file: &Path) -> Result<Option<Connection>, StoreError> {
    let err = || StoreError::database("read", file);
    let Some(db) = open(file)? else { return Ok(None) };
    let readable = db.query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |_| Ok(()));
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    // The attempt itself may have made an empty one.
    let log = Path::new(&log).metadata().is_ok_and(|log| log.len() > 0);
    match readable {
        Err(rusqlite::Error::SqliteFailure(e, _)) if cannot_share(e.code) && !log => {
            let path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
            let mut uri = String::from("file:");
            for byte in path.as_os_str().as_encoded_bytes() {
                uri += &format!("%{byte:02x}");
            }
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(uri + "?immutable=1", flags).map(Some).map_err(err())
        }
        _ => Ok(Some(db)),
    }
}

const fn cannot_share(code: rusqlite::ErrorCode) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, ReadOnly, SystemIoFailure};
    matches!(code, CannotOpen | DiskFull | ReadOnly | SystemIoFailure)
}

/// The times of the oldest and the newest sample of a file of records; none without samples.
pub fn span(file: &Path) -> Result<Option<(Wall, Wall)>, StoreError> {
    let err = || StoreError::database("read", file);
    let db = open_anywhere(file, schema::RECORDS)?;
    let sql =
        "SELECT name, data FROM samples JOIN paths ON paths.id = path WHERE slot = (SELECT {}(slot) FROM samples)";
    let times = |which: &str| -> Result<Vec<Wall>, StoreError> {
        let mut statement = db.prepare(&sql.replace("{}", which)).map_err(err())?;
        let read = |row: &Row<'_>| Ok((name(row, 0)?, row.get::<_, Vec<u8>>(1)?));
        let rows = statement.query_map([], read).map_err(err())?;
        let rows: Vec<(Name, Vec<u8>)> = rows.collect::<Result<_, _>>().map_err(err())?;
        Ok(rows.iter().flat_map(|(path, data)| chunks::decode(path, data)).map(|sample| sample.at).collect())
    };
    let (first, last) = (times("MIN")?, times("MAX")?);
    Ok(first.into_iter().min().zip(last.into_iter().max()))
}

/// Calls for each slot of a file of records, oldest first, with the samples of each path in it and the slot's end. All of
/// it is one view of the file, whoever writes meanwhile.
pub fn slots(
    file: &Path,
    (since, until): (Wall, Wall),
    mut each: impl FnMut(&[(Name, Vec<HealthSample>)], Wall),
) -> Result<(), StoreError> {
    let err = || StoreError::database("read", file);
    let db = open_anywhere(file, schema::RECORDS)?;
    let mut statement = db
        .prepare("SELECT slot, name, data FROM samples JOIN paths ON paths.id = path WHERE slot BETWEEN ? AND ? ORDER BY slot, path")
        .map_err(err())?;
    let mut rows = statement.query(params![chunks::slot(since), chunks::slot(until)]).map_err(err())?;
    let (mut slot, mut paths) = (None, Vec::new());
    while let Some(row) = rows.next().map_err(err())? {
        let read = || Ok((row.get::<_, i64>(0)?, name(row, 1)?, row.get_ref(2)?.as_blob()?));
        let (at, path, data) = read().map_err(err())?;
        if let Some(old) = slot.replace(at).filter(|old| *old != at) {
            each(&paths, chunks::end(old).min(until));
            paths.clear();
        }
        let mut samples = chunks::decode(&path, data);
        samples.retain(|s| (since..=until).contains(&s.at));
        paths.push((path, samples));
    }
    if let Some(last) = slot {
        each(&paths, chunks::end(last).min(until));
    }
    Ok(())
}

/// Events, oldest first. [`StoreError::Missing`] when nothing was ever recorded here.
pub fn events(dir: &Path, wanted: &Wanted) -> Result<Vec<Event>, StoreError> {
    let sql = "SELECT id, at, kind, subject, message, detail FROM events
        WHERE at BETWEEN :since AND :until AND (:only IS NULL OR kind = :only) ORDER BY id DESC LIMIT :limit";
    newest(dir, sql, wanted, event)
}

/// The newest event about a subject, of one of these kinds and up to a moment, that fits.
pub fn last_event(
    dir: &Path,
    kinds: &[&str],
    subject: &Name,
    until: Wall,
    fits: impl Fn(&Event) -> bool,
) -> Result<Option<Event>, StoreError> {
    let (db, file) = (open_dir(dir)?, records_file(dir));
    let newest = |kind: &&str| -> rusqlite::Result<Option<Event>> {
        let sql = "SELECT id, at, kind, subject, message, detail FROM events
            WHERE kind = ? AND subject = ? AND at <= ? ORDER BY id DESC";
        let mut statement = db.prepare_cached(sql)?;
        let mut rows = statement.query_map(params![kind, subject.as_str(), until.as_micros()], event)?;
        rows.find(|row| row.as_ref().map_or(true, &fits)).transpose()
    };
    let all: rusqlite::Result<Vec<Option<Event>>> = kinds.iter().map(newest).collect();
    let all = all.map_err(StoreError::database("read", &file))?;
    Ok(all.into_iter().flatten().max_by_key(|event| event.id))
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get(0)?,
        at: Wall::from_micros(row.get(1)?),
        kind: row.get(2)?,
        subject: row.get(3)?,
        message: row.get(4)?,
        detail: serde_json::from_str(&row.get::<_, String>(5)?).unwrap_or_default(),
    })
}

/// The events that a channel of notifications has still to tell, the newest `limit` of them, oldest first, and how many
/// older ones there are. Rows after `last` do not count.
pub fn untold(dir: &Path, channel: &Name, last: i64, limit: usize) -> Result<(Vec<Event>, u64), StoreError> {
    let file = records_file(dir);
    let db = open_written(&file)?.ok_or_else(|| StoreError::Missing { dir: dir.to_owned() })?;
    let read = || -> rusqlite::Result<(Vec<Event>, u64)> {
        let sql = "SELECT COUNT(*) FROM untold WHERE channel = ? AND id <= ?";
        let all = db.query_row(sql, params![channel.as_str(), last], |row| row.get(0).map(uint))?;
        let mut statement = db.prepare(
            "SELECT events.id, at, kind, subject, message, detail FROM untold JOIN events ON events.id = event
             WHERE channel = ? AND untold.id <= ? ORDER BY untold.id DESC LIMIT ?",
        )?;
        let rows = statement.query_map(params![channel.as_str(), last, int(limit)], event)?;
        let mut events: Vec<Event> = rows.collect::<Result<_, _>>()?;
        events.reverse();
        let more = all.saturating_sub(events.len() as u64);
        Ok((events, more))
    };
    read().map_err(StoreError::database("read", &file))
}

/// Health samples, oldest first.
pub fn samples(dir: &Path, wanted: &Wanted) -> Result<Vec<HealthSample>, StoreError> {
    let mut found: Vec<HealthSample> = Vec::new();
    let (since, until) = (wanted.since.unwrap_or(Wall::from_micros(0)), wanted.until.unwrap_or(FOREVER));
    let sql = "SELECT slot, name, data FROM samples JOIN paths ON paths.id = path
        WHERE slot BETWEEN ? AND ? AND (?3 IS NULL OR name = ?3) ORDER BY slot DESC";
    let slots = (chunks::slot(since), chunks::slot(until));
    let mut last = None;
    each_row(dir, sql, slots, wanted, |slot, path, data| {
        if found.len() >= wanted.limit && last != Some(slot) {
            return false;
        }
        last = Some(slot);
        found.extend(chunks::decode(path, data).into_iter().filter(|s| (since..=until).contains(&s.at)));
        true
    })?;
    found.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
    Ok(found.split_off(found.len().saturating_sub(wanted.limit)))
}

/// What the samples of five minutes each came to, oldest first.
pub fn aggregates(dir: &Path, wanted: &Wanted) -> Result<Vec<Aggregate>, StoreError> {
    let mut found = Vec::new();
    let (since, until) = (wanted.since.unwrap_or(Wall::from_micros(0)), wanted.until.unwrap_or(FOREVER));
    let sql = "SELECT day, name, data FROM aggregates JOIN paths ON paths.id = path
        WHERE day BETWEEN ? AND ? AND (?3 IS NULL OR name = ?3)";
    each_row(dir, sql, (aggregates::day(since), aggregates::day(until)), wanted, |day, path, data| {
        found.extend(aggregates::decode(day, path, data).into_iter().filter(|a| (since..=until).contains(&a.at)));
        true
    })?;
    found.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
    Ok(found.split_off(found.len().saturating_sub(wanted.limit)))
}

/// Calls for each row of bytes with its time and its path, until the answer is no.
fn each_row(
    dir: &Path,
    sql: &str,
    (first, last): (i64, i64),
    wanted: &Wanted,
    mut each: impl FnMut(i64, &Name, &[u8]) -> bool,
) -> Result<(), StoreError> {
    let file = records_file(dir);
    let err = || StoreError::database("read", &file);
    let db = open_written(&file)?.ok_or_else(|| StoreError::Missing { dir: dir.to_owned() })?;
    let mut statement = db.prepare(sql).map_err(err())?;
    let mut rows = statement.query(params![first, last, wanted.only]).map_err(err())?;
    while let Some(row) = rows.next().map_err(err())? {
        let read = || Ok((row.get(0)?, name(row, 1)?, row.get_ref(2)?.as_blob()?));
        let (time, path, data) = read().map_err(err())?;
        if !each(time, &path, data) {
            break;
        }
    }
    Ok(())
}

/// Transitions, oldest first.
pub fn transitions(dir: &Path, wanted: &Wanted) -> Result<Vec<TransitionRecord>, StoreError> {
    transitions_of(&open_dir(dir)?, &records_file(dir), wanted)
}

/// Transitions of a file of records, oldest first.
pub fn transitions_in(file: &Path, wanted: &Wanted) -> Result<Vec<TransitionRecord>, StoreError> {
    transitions_of(&open_anywhere(file, schema::RECORDS)?, file, wanted)
}

fn transitions_of(db: &Connection, file: &Path, wanted: &Wanted) -> Result<Vec<TransitionRecord>, StoreError> {
    let sql = "SELECT at, rule, from_path, to_path, kind, reason FROM transitions
        WHERE at BETWEEN :since AND :until AND (:only IS NULL OR rule = :only) ORDER BY at DESC, id DESC LIMIT :limit";
    rows(db, file, sql, wanted, |row| {
        let path = |text: Option<String>| text.and_then(|t| t.parse().ok());
        Ok(TransitionRecord {
            at: Wall::from_micros(row.get(0)?),
            rule: name(row, 1)?,
            from: path(row.get(2)?),
            to: path(row.get(3)?),
            kind: enumerated(row, 4)?,
            reason: row.get(5)?,
        })
    })
}

/// The newest reconciles and applies, oldest first: the journal's, and those that never came to a plan.
pub fn history(dir: &Path, limit: usize) -> Result<Vec<Run>, StoreError> {
    let sql = "SELECT plan, generation, revision, started, ended, outcome, steps, message FROM runs
        WHERE started BETWEEN :since AND :until AND :only IS NULL ORDER BY started DESC LIMIT :limit";
    let wanted = Wanted { limit, ..Wanted::default() };
    let journal = from(&journal_file(dir), sql, &wanted, run)?;
    let records = from(&records_file(dir), sql, &wanted, run)?;
    if journal.is_none() && records.is_none() {
        return Err(StoreError::Missing { dir: dir.to_owned() });
    }
    let mut runs = journal.unwrap_or_default();
    let known: std::collections::BTreeSet<_> = runs.iter().filter_map(|r| r.plan).collect();
    runs.extend(records.unwrap_or_default().into_iter().filter(|r| r.plan.is_none_or(|plan| !known.contains(&plan))));
    runs.sort_by_key(|r| r.started);
    runs.drain(..runs.len().saturating_sub(limit));
    Ok(runs)
}

fn run(row: &Row<'_>) -> rusqlite::Result<Run> {
    Ok(Run {
        plan: row.get::<_, Option<String>>(0)?.and_then(|t| t.parse().ok()),
        generation: uint(row.get(1)?),
        revision: row.get(2)?,
        started: Wall::from_micros(row.get(3)?),
        ended: row.get::<_, Option<i64>>(4)?.map(Wall::from_micros),
        outcome: row.get::<_, Option<String>>(5)?.and_then(from_word),
        steps: usize::try_from(row.get::<_, i64>(6)?).unwrap_or(0),
        message: row.get(7)?,
    })
}

fn newest<T>(
    dir: &Path,
    sql: &str,
    wanted: &Wanted,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    from(&records_file(dir), sql, wanted, read)?.ok_or_else(|| StoreError::Missing { dir: dir.to_owned() })
}

/// The rows oldest first, of a query that gives the newest first; none if there is no such file.
fn from<T>(
    file: &Path,
    sql: &str,
    wanted: &Wanted,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<Vec<T>>, StoreError> {
    open_written(file)?.map(|db| rows(&db, file, sql, wanted, read)).transpose()
}

fn rows<T>(
    db: &Connection,
    file: &Path,
    sql: &str,
    wanted: &Wanted,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let err = || StoreError::database("read", file);
    let since = wanted.since.map_or(i64::MIN, Wall::as_micros);
    let until = wanted.until.map_or(i64::MAX, Wall::as_micros);
    let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
    let mut statement = db.prepare(sql).map_err(err())?;
    let bound = named_params! {":since": since, ":until": until, ":only": wanted.only, ":limit": limit};
    let rows = statement.query_map(bound, read).map_err(err())?;
    let mut rows: Vec<T> = rows.collect::<Result<_, _>>().map_err(err())?;
    rows.reverse();
    Ok(rows)
}

fn open_dir(dir: &Path) -> Result<Connection, StoreError> {
    open_written(&records_file(dir))?.ok_or_else(|| StoreError::Missing { dir: dir.to_owned() })
}

fn name(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    let text: String = row.get(column)?;
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn enumerated<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    from_word(row.get(column)?).ok_or_else(|| rusqlite::Error::InvalidColumnType(column, "a word".into(), Type::Text))
}

/// The newest generations of the configuration, oldest first.
pub fn generations(dir: &Path, limit: usize) -> Result<Vec<Generation>, StoreError> {
    journal(dir, |db| generations::newest(db, limit))
}

/// The generation that a number means, if it is kept still.
pub fn generation(dir: &Path, number: u64) -> Result<Option<Generation>, StoreError> {
    journal(dir, |db| generations::at(db, number))
}

/// The newest rows of the audit, oldest first.
pub fn audit(dir: &Path, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
    journal(dir, |db| generations::newest_audit(db, limit))
}

fn journal<T>(dir: &Path, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
    let file = journal_file(dir);
    let db = open_written(&file)?.ok_or_else(|| StoreError::Missing { dir: dir.to_owned() })?;
    read(&db).map_err(StoreError::database("read", &file))
}

/// The configuration in force, by the journal of a state directory; none where there is no journal, or nothing in force.
pub fn last_good(dir: &Path) -> Result<Option<LastGood>, StoreError> {
    let file = journal_file(dir);
    if !file.exists() {
        return Ok(None);
    }
    let db = open_anywhere(&file, schema::JOURNAL)?;
    let read = || -> rusqlite::Result<Option<LastGood>> {
        let mut files = db.prepare("SELECT path, content FROM last_good_files")?;
        let files = files.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let head = db.query_row("SELECT revision, at FROM last_good", [], |row| Ok((row.get(0)?, row.get(1)?)));
        let good = head.optional()?;
        Ok(good.map(|(revision, at)| LastGood { revision, at: Wall::from_micros(at), files }))
    };
    read().map_err(StoreError::database("read", &file))
}
