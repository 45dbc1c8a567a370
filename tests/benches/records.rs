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

const PATHS: usize = 1_000;

/// Prints one row per figure.
pub fn run() {
    let status = status();
    let bytes = metrics::render(&status).len();
    row(&format!("/metrics, {PATHS} paths, {} KB", bytes / 1000), 31, "<= 50 ms", || drop(metrics::render(&status)));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let limits = Limits { resolution: Duration::ZERO, ..Limits::default() };
    let recorder = Recorder::start(dir.path(), limits);
    let mut at = clock::wall().as_micros();
    row("store, batch of 1,000 samples, written", 11, "-", || {
        at += 1_000_000;
        status.paths.keys().for_each(|path| recorder.sample(sample(path, at)));
        assert!(recorder.flush(Duration::from_secs(60)), "the batch is written");
    });
    let journal = Journal::open(dir.path()).expect("a journal");
    row("journal, run of 4 steps, every step marked twice", 31, "-", || journaled(&journal));
    row("store, 1,000 samples, time the engine gives", 11, "-", || {
        at += 1_000_000;
        status.paths.keys().for_each(|path| recorder.sample(sample(path, at)));
    });
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

fn row(name: &str, rounds: usize, bound: &str, mut work: impl FnMut()) {
    work();
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("{name:<48} {:>9.3} ms  {bound}", times[rounds / 2].as_secs_f64() * 1e3);
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
