//! Metrics exposition and store.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use patronus::{
    apply::{RunRecord, StepState},
    clock::{self, Wall},
    engine::status::{ReconcileOutcome, Status},
    health::PathState,
    metrics,
    plan::Step,
    state::{Fwmark, Stamp},
    store::{HealthSample, Journal, Limits, Recorder},
    units::{Name, Ratio},
};

use super::row::{Bound, Row, ms};

const PATHS: usize = 1_000;
pub const DAY_PATHS: u64 = 100;

/// Rendering of the metrics, and what the store takes.
pub fn run() -> Vec<Row> {
    let status = status();
    let bytes = metrics::render(&status).len();
    let figure = format!("/metrics rendered, {PATHS} paths, {} KB", bytes / 1000);
    let render = row(&figure, 31, Bound::Most(50.0), || drop(metrics::render(&status)));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let recorder = Recorder::start(dir.path(), Limits::default());
    let mut at = clock::wall().as_micros();
    let batch = row("store: a batch of 1,000 samples, written", 11, Bound::None, || {
        at += 1_000_000;
        recorder.samples(status.paths.keys().map(|path| sample(path, at)).collect());
        assert!(recorder.flush(Duration::from_secs(60)), "the batch is written");
    });
    let journal = Journal::open(dir.path()).expect("a journal");
    let run = row("journal: a run of 4 steps, each marked twice", 31, Bound::None, || journaled(&journal));
    let given = row("store: 1,000 samples, time that the engine gives", 11, Bound::None, || {
        at += 1_000_000;
        recorder.samples(status.paths.keys().map(|path| sample(path, at)).collect());
    });
    vec![render, batch, run, given, day()]
}

/// A day of one-second samples, written as the daemon does: a batch each second, to the disk once a minute.
#[allow(clippy::cast_precision_loss)]
fn day() -> Row {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let recorder = Recorder::start(dir.path(), Limits::default());
    let mut lines: Vec<Line> = (0..DAY_PATHS).map(Line::new).collect();
    write(&recorder, |at, _| lines.iter_mut().map(|line| line.sample(at)).collect());
    let size = |name: &str| std::fs::metadata(dir.path().join(name)).map_or(0, |m| m.len());
    let bytes = size("records.db") + size("records.db-wal");
    let figure = format!("records.db after a day of one-second samples of {DAY_PATHS} paths");
    Row::new(figure, "MB", vec![bytes as f64 / f64::from(1 << 20)], Bound::Most(50.0))
}

/// Writes a day as the daemon does; `samples` gives those of a moment and its second.
pub fn write(recorder: &Recorder, mut samples: impl FnMut(i64, i64) -> Vec<HealthSample>) {
    let begin = clock::wall().as_micros() / 86_400_000_000 * 86_400_000_000;
    for second in 0..86_400_i64 {
        recorder.samples(samples(begin + second * 1_000_000, second));
        if second % 60 == 59 {
            assert!(recorder.flush(Duration::from_secs(60)), "the minute is written");
        }
    }
    assert_eq!((recorder.lost(), recorder.alarms()), (0, vec![]));
}

/// A path as a probe sees it: some milliseconds of noise, now and then a lost probe, means over 20 rounds.
pub struct Line {
    path: Name,
    base: u64,
    state: u64,
    window: VecDeque<Option<u64>>,
    jitter: u64,
}

impl Line {
    /// The path with this number.
    pub fn new(n: u64) -> Self {
        let path = format!("path-{n}").parse().expect("a name");
        Self { path, base: 5_000 + n * 1_000, state: n, window: VecDeque::new(), jitter: 0 }
    }

    fn noise(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % below
    }

    /// What is stored of it at a moment.
    pub fn sample(&mut self, at: i64) -> HealthSample {
        let late = i64::try_from(self.noise(3_000)).expect("a few milliseconds");
        let answer = if self.noise(500) == 0 { None } else { Some(self.base + self.noise(3_000)) };
        if let (Some(Some(last)), Some(rtt)) = (self.window.back(), answer) {
            self.jitter = (self.jitter * 15 + last.abs_diff(rtt)) / 16;
        }
        self.window.push_back(answer);
        if self.window.len() > 20 {
            self.window.pop_front();
        }
        let answered = self.window.iter().flatten().count();
        HealthSample {
            at: Wall::from_micros(at + late),
            path: self.path.clone(),
            rtt_micros: self.window.iter().flatten().sum::<u64>().checked_div(answered as u64),
            jitter_micros: Some(self.jitter),
            loss: Ratio::of(self.window.len() - answered, self.window.len()),
            score: 100,
            state: PathState::Up,
        }
    }
}

fn journaled(journal: &Journal) {
    let step = |n| Step::Forget { flows: Fwmark { mark: n, mask: 0xff }, family: None, reason: "test".into() };
    let record = RunRecord {
        stamp: Stamp { generation: 1, plan: uuid::Uuid::now_v7() },
        previous: None,
        revision: String::new(),
        place: String::new(),
        steps: (0..4).map(step).collect(),
    };
    let run = journal.begin(&record, clock::wall()).expect("begun");
    for index in 0..4 {
        journal.step(run, index, StepState::Started, None).expect("marked");
        journal.step(run, index, StepState::Done, None).expect("marked");
    }
    journal.finish(run, clock::wall(), Some(ReconcileOutcome::Applied), None).expect("finished");
}

fn row(figure: &str, rounds: usize, bound: Bound, mut work: impl FnMut()) -> Row {
    work();
    let once = |_| {
        let start = Instant::now();
        work();
        ms(start.elapsed())
    };
    Row::new(figure, "ms", (0..rounds).map(once).collect(), bound)
}

fn status() -> Status {
    let mut status: Status = serde_json::from_str(include_str!("../it/records/status.json")).expect("the sample");
    let path = status.paths["lte"].clone();
    let name = |n| format!("path-{n}").parse::<Name>().expect("a name");
    status.paths = (0..PATHS).map(|n| (name(n), path.clone())).collect::<BTreeMap<_, _>>();
    status
}

fn sample(path: &Name, at: i64) -> HealthSample {
    HealthSample {
        at: Wall::from_micros(at),
        path: path.clone(),
        rtt_micros: Some(12_340),
        jitter_micros: Some(870),
        loss: Ratio::ZERO,
        score: 97,
        state: PathState::Up,
    }
}
