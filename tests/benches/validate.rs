//! Loading and validating a large configuration.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use patronus::{
    config::{self, Snapshot},
    validate,
};

use super::row::{Bound, Row};

const SITES: usize = 1_000;

/// Sites with ten objects each: the site, three paths, two rules, four policies.
pub fn fleet(sites: usize) -> Snapshot {
    let mut snapshot = Snapshot { revision: "bench".into(), ..Snapshot::default() };
    for n in 0..sites {
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

/// Loads and checks of the fleet.
pub fn run() -> Vec<Row> {
    let snapshot = fleet(SITES);
    let bytes: usize = snapshot.files.values().map(Vec::len).sum();
    let times = (0..7).map(|_| once(&snapshot).as_secs_f64()).collect();
    let figure = format!("load and validate {SITES} sites, 10,000 objects, {} KB", bytes / 1000);
    vec![Row::new(figure, "s", times, Bound::Most(2.0))]
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
