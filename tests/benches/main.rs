//! The bounds, measured: `cargo bench`. Each row is a figure with its median, its spread, its bound and a verdict;
//! words select rows (`cargo bench -- forwarding`), `--markdown` writes the rows into `docs/performance.md`.

mod daemon;
mod decide;
mod detection;
mod flows;
mod forwarding;
mod outage;
mod plan;
mod preview;
mod probe;
mod records;
mod replay;
mod row;
mod switch;
mod validate;
mod world;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use row::Row;

/// A group's name, and what measures it.
type Group = (&'static str, fn() -> Vec<Row>);

/// What can be selected, in the order in which it runs: first what measures this process, before others have filled its
/// heap, then timing, load last.
const GROUPS: [Group; 13] = [
    ("probe", probe::run),
    ("outage", outage::run),
    ("detection", detection::run),
    ("decide", decide::run),
    ("switch", switch::run),
    ("flows", flows::run),
    ("forwarding", forwarding::run),
    ("validate", validate::run),
    ("plan", plan::run),
    ("preview", preview::run),
    ("daemon", daemon::run),
    ("records", records::run),
    ("replay", replay::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let markdown = arguments.iter().any(|a| a == "--markdown");
    let words: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|w| name.contains(w.as_str()));
    let begun = Instant::now();
    let mut rows = Vec::new();
    for (name, run) in GROUPS.into_iter().filter(|(name, _)| wanted(name)) {
        eprintln!("{name} ... ({:.0} s so far)", begun.elapsed().as_secs_f64());
        let found = run();
        print!("{}", row::table(&found, rows.is_empty()));
        rows.extend(found);
    }
    let took = Duration::from_secs(begun.elapsed().as_secs());
    println!("{} rows in {took:?}; {}", rows.len(), row::machine());
    if markdown {
        row::write_markdown("docs/performance.md", &rows, took).expect("docs/performance.md can be written");
    }
    let missed = rows.iter().filter(|row| row.missed()).count();
    if missed > 0 {
        println!("{missed} bounds missed");
    }
    ExitCode::from(u8::from(missed > 0))
}
