//! Rows: a figure, what was measured, what it is held against.

use std::{fmt::Write as _, fs, io, time::Duration};

/// What the median is held against.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// It must not be above this.
    Most(f64),
    /// It must not be below this.
    Least(f64),
    /// For information, or a peer.
    None,
}

/// One figure.
#[derive(Debug, Clone)]
pub struct Row {
    /// What it is.
    pub figure: String,
    /// Its unit.
    pub unit: &'static str,
    /// One value for each run, sorted.
    pub values: Vec<f64>,
    /// What the median is held against.
    pub bound: Bound,
}

impl Row {
    /// A row of these values.
    pub fn new(figure: impl Into<String>, unit: &'static str, mut values: Vec<f64>, bound: Bound) -> Self {
        assert!(!values.is_empty(), "a figure without a run");
        values.sort_by(f64::total_cmp);
        Self { figure: figure.into(), unit, values, bound }
    }

    /// The value in the middle.
    pub fn median(&self) -> f64 {
        self.values[self.values.len() / 2]
    }

    /// Whether the bound is missed.
    pub fn missed(&self) -> bool {
        match self.bound {
            Bound::Most(most) => self.median() > most,
            Bound::Least(least) => self.median() < least,
            Bound::None => false,
        }
    }

    fn cells(&self) -> [String; 5] {
        let (least, most) = (self.values[0], self.values[self.values.len() - 1]);
        let spread = match self.values.len() {
            1 => "1 run".to_owned(),
            runs => format!("{}–{}, {runs} runs", number(least), number(most)),
        };
        let bound = match self.bound {
            Bound::Most(b) => format!("<= {} {}", number(b), self.unit),
            Bound::Least(b) => format!(">= {} {}", number(b), self.unit),
            Bound::None => "-".to_owned(),
        };
        let verdict = match (self.bound, self.missed()) {
            (Bound::None, _) => "",
            (_, false) => "ok",
            (_, true) => "MISSED",
        };
        let median = format!("{} {}", number(self.median()), self.unit);
        [self.figure.clone(), median, spread, bound, verdict.to_owned()]
    }
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Three digits that matter, or a whole number.
fn number(value: f64) -> String {
    let places = match value.abs() {
        v if v.fract() == 0.0 || v >= 1000.0 => 0,
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}

const HEAD: [&str; 5] = ["figure", "median", "min–max", "bound", ""];

/// The rows as text.
pub fn table(rows: &[Row], head: bool) -> String {
    let line = |cells: [String; 5]| {
        let [figure, median, spread, bound, verdict] = cells;
        format!("{figure:<74} {median:>18}  {spread:<28} {bound:<20} {verdict}\n")
    };
    let head = if head { line(HEAD.map(str::to_owned)) } else { String::new() };
    rows.iter().fold(head, |text, row| text + &line(row.cells()))
}

/// The machine in a few words.
pub fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = kernel.trim().split('-').next().unwrap_or_default().to_owned();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split_whitespace().take(2).collect();
    format!("{cpus} cores, Linux {release}, load {} at the end", load.join(" and "))
}

const BEGIN: &str = "<!-- figures: written by `cargo bench -- --markdown` -->";
const END: &str = "<!-- end of figures -->";

/// Puts the rows between the two marks of a document.
pub fn write_markdown(path: &str, rows: &[Row], took: Duration) -> io::Result<()> {
    let mut text = String::from("| figure | median | min–max | bound | |\n|---|---|---|---|---|\n");
    for row in rows {
        let _ = writeln!(text, "| {} |", row.cells().join(" | ").replace("<= ", "≤ ").replace(">= ", "≥ "));
    }
    let _ = write!(text, "\n{} rows in {took:?}. Machine: {}.\n", rows.len(), machine());
    let old = fs::read_to_string(path)?;
    let (head, rest) = old.split_once(BEGIN).ok_or(io::ErrorKind::InvalidData)?;
    let (_, tail) = rest.split_once(END).ok_or(io::ErrorKind::InvalidData)?;
    fs::write(path, format!("{head}{BEGIN}\n\n{text}\n{END}{tail}"))
}
