//! `patronus export`: the records for a spreadsheet or a program. Reads the database, whether the daemon runs or not.
//!
//! Invariant: a cell never begins with what a spreadsheet takes for a formula; names and messages come from
//! configuration and programs, and whoever opens the file must not run them.

use std::{io::Write as _, time::Duration};

use serde::Serialize;

use super::{
    Exit, Failure, Outcome,
    inspect::{Records, Since},
};
use crate::{
    clock::{self, Wall},
    engine::status::Event,
    health::PathState,
    store::{HealthSample, StoreError, TransitionRecord, read, read::Wanted},
};

/// Samples are read in parts, so that a month of them needs no memory.
const PART: i64 = 3_600_000_000;
/// How far back is looked if nothing is said.
const DEFAULT: Duration = Duration::from_secs(86_400);

/// Write the records for a spreadsheet or a program
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to write
    what: What,
    /// In which form
    #[arg(long, value_enum, default_value_t)]
    format: Form,
    /// Not older than this: a duration such as `2h`, or a time such as `2026-05-01T03:00:00Z` [default: 24h]
    #[arg(long, value_name = "WHEN")]
    since: Option<Since>,
    /// Not newer than this, in the same forms [default: now]
    #[arg(long, value_name = "WHEN")]
    until: Option<Since>,
    #[command(flatten)]
    records: Records,
}

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Samples of every path's health
    Health,
    /// Changes of every rule's path
    Failovers,
    /// What happened, as `patronus events` shows it
    Events,
}

/// How it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// One line a record, with a header (RFC 4180)
    #[default]
    Csv,
    /// One JSON object a line
    Json,
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    let now = clock::wall();
    let until = args.until.map_or(now, |until| until.0);
    let day = i64::try_from(DEFAULT.as_micros()).unwrap_or(i64::MAX);
    let since = args.since.map_or(Wall::from_micros(until.as_micros().saturating_sub(day)), |since| since.0);
    if since > until {
        return Err(Failure::new(Exit::Usage, format!("--since {since} is later than --until {until}")));
    }
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match write(&mut out, args, since, until).and_then(|()| out.flush().map_err(Broken::Output)) {
        Ok(()) => Ok(Exit::Done),
        // A reader that went away (`| head`) is no error.
        Err(Broken::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(Broken::Output(error)) => Err(Failure::error("cannot write the export", &error)),
        Err(Broken::Store(error)) => Err(Failure::error("cannot read the records", &error)),
    }
}

/// Why an export ended early.
enum Broken {
    Store(StoreError),
    Output(std::io::Error),
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn write(out: &mut impl std::io::Write, args: &Args, since: Wall, until: Wall) -> Result<(), Broken> {
    let dir = &args.records.dir();
    let wanted = |since, until| Wanted { since: Some(since), until: Some(until), only: None, limit: usize::MAX };
    match args.what {
        What::Events => rows(out, args.format, true, &read::events(dir, &wanted(since, until))?),
        What::Failovers => rows(out, args.format, true, &read::transitions(dir, &wanted(since, until))?),
        What::Health => {
            for (number, (from, to)) in parts(since, until).enumerate() {
                rows(out, args.format, number == 0, &read::samples(dir, &wanted(from, to))?)?;
            }
            Ok(())
        }
    }
}

/// A span of time in parts that do not overlap; both ends belong to it.
fn parts(since: Wall, until: Wall) -> impl Iterator<Item = (Wall, Wall)> {
    let (first, last) = (since.as_micros(), until.as_micros());
    let mut next = Some(first);
    std::iter::from_fn(move || {
        let from = next.filter(|from| *from <= last)?;
        let to = from.saturating_add(PART - 1).min(last);
        next = to.checked_add(1);
        Some((Wall::from_micros(from), Wall::from_micros(to)))
    })
}

/// A record with its cells.
trait Record: Serialize {
    const HEADER: &'static [&'static str];

    fn cells(&self) -> Vec<String>;
}

fn rows<T: Record>(out: &mut impl std::io::Write, form: Form, header: bool, rows: &[T]) -> Result<(), Broken> {
    if form == Form::Csv && header {
        let names: Vec<String> = T::HEADER.iter().map(|name| (*name).to_owned()).collect();
        out.write_all(line(&names).as_bytes()).map_err(Broken::Output)?;
    }
    for row in rows {
        let text = match form {
            Form::Csv => line(&row.cells()),
            Form::Json => serde_json::to_string(row).map_err(|e| Broken::Output(e.into()))? + "\n",
        };
        out.write_all(text.as_bytes()).map_err(Broken::Output)?;
    }
    Ok(())
}

impl Record for HealthSample {
    const HEADER: &'static [&'static str] =
        &["time", "path", "state", "score", "rtt_seconds", "jitter_seconds", "loss_ratio"];

    fn cells(&self) -> Vec<String> {
        let seconds = |micros: Option<u64>| micros.map(|m| format!("{}.{:06}", m / 1_000_000, m % 1_000_000));
        let state = match self.state {
            PathState::Up => "up",
            PathState::Degraded => "degraded",
            PathState::Down => "down",
            PathState::Unknown => "unknown",
        };
        vec![
            self.at.to_string(),
            self.path.to_string(),
            state.to_owned(),
            self.score.to_string(),
            seconds(self.rtt_micros).unwrap_or_default(),
            seconds(self.jitter_micros).unwrap_or_default(),
            self.loss.as_f64().to_string(),
        ]
    }
}

impl Record for TransitionRecord {
    const HEADER: &'static [&'static str] = &["time", "rule", "from", "to", "kind", "reason"];

    fn cells(&self) -> Vec<String> {
        let name = |name: &Option<crate::units::Name>| name.as_ref().map(ToString::to_string).unwrap_or_default();
        let kind = serde_json::to_value(self.kind).ok().and_then(|kind| Some(kind.as_str()?.to_owned()));
        vec![
            self.at.to_string(),
            self.rule.to_string(),
            name(&self.from),
            name(&self.to),
            kind.unwrap_or_default(),
            self.reason.clone(),
        ]
    }
}

impl Record for Event {
    const HEADER: &'static [&'static str] = &["time", "kind", "subject", "message"];

    fn cells(&self) -> Vec<String> {
        vec![self.at.to_string(), self.kind.clone(), self.subject.clone(), self.message.clone()]
    }
}

/// One line of CSV as RFC 4180 has it.
fn line(cells: &[String]) -> String {
    cells.iter().map(|text| cell(text)).collect::<Vec<_>>().join(",") + "\r\n"
}

fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Wall {
        Wall::from_micros(micros)
    }

    #[test]
    fn cells_are_quoted_where_they_have_to_be_and_never_formulas() {
        let cells = ["plain", "a,b", "say \"hi\"", "two\nlines", "=HYPERLINK(1)", "-1+2", "@x", "\tx", "", "a=b"];
        let shown = line(&cells.map(str::to_owned));
        assert_eq!(shown, "plain,\"a,b\",\"say \"\"hi\"\"\",\"two\nlines\",'=HYPERLINK(1),'-1+2,'@x,'\tx,,a=b\r\n");
    }

    #[test]
    fn a_span_is_read_in_parts_that_do_not_overlap_and_leave_nothing_out() {
        let all: Vec<_> = parts(at(5), at(5 + 2 * PART)).collect();
        assert_eq!(
            all,
            [(at(5), at(4 + PART)), (at(5 + PART), at(4 + 2 * PART)), (at(5 + 2 * PART), at(5 + 2 * PART))]
        );
        assert_eq!(parts(at(5), at(5)).collect::<Vec<_>>(), [(at(5), at(5))]);
        assert_eq!(parts(at(6), at(5)).count(), 0);
        assert_eq!(parts(at(i64::MAX - 1), at(i64::MAX)).count(), 1);
    }

    #[test]
    fn what_is_recorded_comes_out_in_both_forms() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = crate::store::Recorder::start(dir.path(), crate::store::Limits::default());
        let (kind, subject) = ("alarm".to_owned(), "x".to_owned());
        let message = "=cmd(), \"quoted\"".to_owned();
        recorder.event(Event { id: 0, at: at(1_000_000), kind, subject, message, detail: serde_json::Value::Null });
        assert!(recorder.flush(Duration::from_secs(10)));
        let export = |format| {
            let records = Records::of(dir.path());
            let args = Args { what: What::Events, format, since: None, until: None, records };
            let mut out = Vec::new();
            assert!(write(&mut out, &args, at(0), at(2_000_000)).is_ok());
            assert!(write(&mut Vec::new(), &args, at(2_000_000), at(3_000_000)).is_ok());
            String::from_utf8(out).unwrap()
        };
        let csv = "time,kind,subject,message\r\n1970-01-01T00:00:01.000Z,alarm,x,\"'=cmd(), \"\"quoted\"\"\"\r\n";
        assert_eq!(export(Form::Csv), csv);
        let json: Event = serde_json::from_str(&export(Form::Json)).unwrap();
        assert_eq!(json.message, "=cmd(), \"quoted\"");
    }
}
