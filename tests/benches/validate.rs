//! Loading and validating a large configuration.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use patronus::{
    config::{self, Snapshot},
    validate,
};

const SITES: usize = 1_000;
const BOUND: Duration = Duration::from_secs(2);

/// A thousand sites with ten objects each: the site, three paths, two rules, four policies.
fn fleet() -> Snapshot {
    let mut snapshot = Snapshot { revision: "bench".into(), ..Snapshot::default() };
    for n in 0..SITES {
        snapshot.files.insert(format!("sites/site-{n:04}.yaml"), site(n).into_bytes());
    }
    snapshot
}

fn site(n: usize) -> String {
    let (high, low) = (n / 250, n % 250);
    let mut text = format!(
        "apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {{name: site-{n}, labels: {{role: branch}}}}
spec:
  lan:
    - {{interface: lan0, prefixes: [10.{high}.{low}.0/24]}}
  endpoints:
    fiber: {{interface: wan0, gateway: 198.51.100.1, bandwidth: {{down: 1Gbit, up: 500Mbit}}, cost: 1}}
    cable: {{interface: wan1, gateway: 203.0.113.1, bandwidth: {{down: 500Mbit, up: 50Mbit}}, cost: 2}}
    lte: {{interface: wwan0, gateway: auto, metered: true, cost: 10}}
  paths:\n"
    );
    for path in ["fiber", "cable", "lte"] {
        let _ = writeln!(
            text,
            "    {path}: {{from: {path}, to: internet, nat: masquerade, probe: {{targets: [1.1.1.1, 9.9.9.9, 8.8.8.8]}}}}"
        );
    }
    let _ = write!(
        text,
        "  failover:
    critical: {{primary: fiber, backups: [cable, lte], failbackDelay: 60s}}
    bulk: {{primary: cable, backups: [fiber], noPath: reject}}
  policies:
    voice: {{priority: 100, match: {{protocol: udp, dscp: [ef]}}, action: {{failover: critical}}}}
    guests: {{priority: 200, match: {{source: [10.{high}.{low}.128/25]}}, action: {{path: cable}}}}
    backup: {{priority: 300, match: {{protocol: tcp, destinationPorts: [873, 10000-20000]}}, action: {{failover: bulk}}}}
    default: {{priority: 1000, action: {{failover: critical}}}}\n"
    );
    text
}

/// Prints one row: the median of five loads and checks of the fleet, against the bound.
pub fn run() {
    let snapshot = fleet();
    let mut times: Vec<Duration> = (0..5).map(|_| once(&snapshot)).collect();
    times.sort_unstable();
    let verdict = if times[2] <= BOUND { "ok" } else { "MISSED" };
    let bytes: usize = snapshot.files.values().map(Vec::len).sum();
    println!(
        "validate {SITES} sites, 10,000 objects, {} KB: {:.3} s (bound {:.1} s, median of 5: {:.3}..{:.3}) {verdict}",
        bytes / 1000,
        times[2].as_secs_f64(),
        BOUND.as_secs_f64(),
        times[0].as_secs_f64(),
        times[4].as_secs_f64(),
    );
}

fn once(snapshot: &Snapshot) -> Duration {
    let begin = Instant::now();
    let (config, found) = config::load(snapshot);
    let (intent, more) = validate::check(&config);
    let took = begin.elapsed();
    let sites = intent.map_or(0, |intent| intent.sites().len());
    assert_eq!((config.objects(), sites), (SITES * 10, SITES), "{:?}", found.first().or(more.first()));
    took
}
