//! Metrics exposition and store.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use patronus::{
    clock::{self, Wall},
    engine::status::{ReconcileOutcome, Status},
    health::PathState,
    metrics,
    plan::Step,
    state::Fwmark,
    store::{HealthSample, Journal, Limits, PlanRecord, Recorder, StepState},
    units::{Name, Ratio},
};

use super::row::{Bound, Row, ms};

const PATHS: usize = 1_000;

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
    vec![render, batch, run, given]
}

fn journaled(journal: &Journal) {
    let step = |n| Step::Forget { flows: Fwmark { mark: n, mask: 0xff }, reason: "test".into() };
    let plan = PlanRecord {
        plan: uuid::Uuid::now_v7(),
        generation: 1,
        previous: None,
        place: String::new(),
        revision: None,
        started: clock::wall(),
        document: serde_json::Value::Null,
        steps: (0..4).map(step).collect(),
    };
    let run = journal.begin(&plan).expect("begun");
    for index in 0..4 {
        journal.step(run, index, &StepState::Started).expect("marked");
        journal.step(run, index, &StepState::Done).expect("marked");
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
