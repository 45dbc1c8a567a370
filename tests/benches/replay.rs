//! `patronus simulate --replay` of a day of a hundred paths, as a whole process.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use patronus::{
    health::PathState,
    store::{HealthSample, Limits, Recorder},
};

use super::{
    records::{DAY_PATHS, Line, write},
    row::{Bound, Row, ms},
    world::PATRONUS,
};

/// A site of so many paths in pairs, each with a rule of its class.
fn site(dir: &Path, threshold: u8) {
    let mut text = String::from(
        "apiVersion: patronus.network/v1alpha1\nkind: SlaClass\nmetadata: {name: voice}\n\
         spec: {latency: 250ms, jitter: 30ms, loss: 1%}\n---\n\
         apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {name: hub}\nspec:\n  lan: [{interface: lan0, prefixes: [192.168.10.0/24]}]\n",
    );
    text += "  endpoints:\n";
    for n in 0..DAY_PATHS {
        let _ = writeln!(text, "    path-{n}: {{interface: wan{n}, gateway: auto}}");
    }
    text += "  paths:\n";
    for n in 0..DAY_PATHS {
        let _ =
            writeln!(text, "    path-{n}: {{from: path-{n}, to: internet, probe: {{targets: [1.1.1.1, 9.9.9.9]}}}}");
    }
    text += "  failover:\n";
    for n in (0..DAY_PATHS).step_by(2) {
        let class = if n % 4 == 0 { ", slaClass: voice" } else { "" };
        let _ = writeln!(
            text,
            "    rule-{n}: {{primary: path-{n}, backups: [path-{}], failoverThreshold: {threshold}{class}}}",
            n + 1
        );
    }
    text += "  policies:\n";
    for n in (0..DAY_PATHS).step_by(2) {
        let _ = writeln!(
            text,
            "    p-{n}: {{priority: {}, match: {{source: [192.168.10.{n}/32]}}, action: {{failover: rule-{n}}}}}",
            n + 1
        );
    }
    fs::create_dir_all(dir).expect("a directory");
    fs::write(dir.join("hub.yaml"), text).expect("a file");
}

/// Each path is slow for a tenth of each hour, every one at its own time.
fn faulty(sample: HealthSample, number: u64, second: i64) -> HealthSample {
    let at = (second + i64::try_from(number).unwrap_or(0) * 360) % 3600;
    if at >= 360 {
        return sample;
    }
    // 200 ms more than usual, and what that scores with the default threshold of 150 ms.
    let rtt = sample.rtt_micros.map(|us| us + 200_000);
    let cost = rtt.map_or(100, |us| us * 30 / 150_000).min(100);
    let score = u8::try_from(100 - cost).unwrap_or(0);
    HealthSample { rtt_micros: rtt, score, state: PathState::of(score), ..sample }
}

/// Two configurations over the same day.
pub fn run() -> Vec<Row> {
    let place = tempfile::tempdir().expect("a directory");
    let dir = place.path();
    let recorder = Recorder::start(dir, Limits::default());
    let mut lines: Vec<Line> = (0..DAY_PATHS).map(Line::new).collect();
    write(&recorder, |at, second| {
        lines.iter_mut().zip(0..).map(|(line, n)| faulty(line.sample(at), n, second)).collect()
    });
    site(&dir.join("base"), 50);
    site(&dir.join("given"), 70);
    let times = (0..7).map(|_| once(dir)).collect();
    assert!(recorder.flush(Duration::from_secs(60)), "a live recorder is no hindrance");
    let figure = format!("`simulate --replay` of a day of {DAY_PATHS} paths under two configurations, whole process");
    vec![Row::new(figure, "s", times, Bound::Most(2.0))]
}

fn once(dir: &Path) -> f64 {
    let begun = Instant::now();
    let words = ["simulate", "--replay", ".", "--base", "base", "--config", "given", "--output", "json"];
    let output = Command::new(PATRONUS).args(words).current_dir(dir).stderr(Stdio::inherit()).output();
    let output = output.expect("to run it");
    let took = begun.elapsed();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(value["samples"].as_u64().is_some_and(|n| n > 8_000_000), "{}", value["samples"]);
    let switches = |column: &str| value["rules"][1]["columns"][column]["switches"].as_u64().expect("a number");
    assert!(switches("given") > switches("base"), "the given configuration leaves slow paths");
    ms(took) / 1e3
}
