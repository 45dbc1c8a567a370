//! Probing many paths.
//!
//! Ten uplinks between two network namespaces, the far one answering from the kernel; each path has its own mark and
//! target. CPU time is that of all threads of this process, which does nothing else meanwhile, with the health of all
//! paths kept, and includes what the kernel does in their context: on a veth pair also the far side's receiving and answering.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    thread,
    time::{Duration, Instant},
};

use patronus::{
    clock,
    health::Monitor,
    probe::{ProbeSpec, Prober},
    units::Ratio,
    validate::intent::{Destination, Health, Nat, Path, Probe, Site},
};
use tokio::sync::mpsc;

use super::row::{Bound, Row};

#[allow(dead_code)]
#[path = "../it/support/wire.rs"]
mod wire;

const UPLINKS: usize = 10;

/// The prober with the health of all paths, without the rest of the daemon.
///
/// # Panics
/// When it cannot run: it needs root, `ip` and `nft`.
pub fn run() -> Vec<Row> {
    thread::spawn(measure).join().expect("the measurement")
}

#[allow(clippy::cast_precision_loss)]
fn measure() -> Vec<Row> {
    let provider = wire::two_uplinks();
    for n in 2..UPLINKS {
        wire::plug(&provider, u8::try_from(n).expect("few uplinks"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        // Loads the code, so that what follows is the paths' own.
        probe(1, Duration::from_secs(3)).await;
        // Long enough to fill the windows of 20 rounds.
        let none = probe(0, Duration::from_secs(2)).await;
        let hundred = probe(100, Duration::from_secs(22)).await;
        let thousand = probe(1000, Duration::from_secs(22)).await;
        let more = hundred.rss.saturating_sub(none.rss) as f64 / 1024.0;
        let one = |figure: &str, unit, value: f64, bound| Row::new(figure, unit, vec![value], bound);
        let lost = format!("- probes lost, of {}", thousand.probes);
        vec![
            one("prober alone, 1,000 paths at 1 s: one core", "%", thousand.cpu * 100.0, Bound::Most(10.0)),
            one("- resident, this benchmark's process", "MB", thousand.rss as f64 / 1024.0, Bound::Most(60.0)),
            one(&lost, "probes", thousand.lost as f64, Bound::Most(0.0)),
            one("- median round trip", "ms", thousand.rtt as f64 / 1e3, Bound::None),
            one("prober alone, 100 paths over none: resident", "MB", more, Bound::Most(1.0)),
        ]
    })
}

struct Figures {
    cpu: f64,
    rss: u64,
    probes: usize,
    lost: usize,
    rtt: u128,
}

/// Probes so many paths every second for a while.
async fn probe(paths: usize, time: Duration) -> Figures {
    let specs: Vec<ProbeSpec> = (0..paths).map(spec).collect();
    let mut monitor = Monitor::new(&site(&specs), clock::now());
    let (sender, mut samples) = mpsc::channel(1024);
    let prober = Prober::start(sender).expect("the privilege to probe");
    prober.configure(specs);
    // The first second fills neighbour tables and allocates.
    let warm = Instant::now() + Duration::from_secs(1);
    let (mut answers, mut cpu, mut began) = (Vec::new(), cpu_time(), Instant::now());
    let mut warming = true;
    while let Some(left) = (warm + time).checked_duration_since(Instant::now()) {
        let sample = tokio::time::timeout(left, samples.recv()).await.ok().flatten();
        if warming && Instant::now() >= warm {
            (cpu, began, warming) = (cpu_time(), Instant::now(), false);
            answers.clear();
        }
        if let Some(sample) = sample {
            answers.extend(sample.answers.iter().map(|(_, rtt)| rtt.map(|rtt| rtt.as_micros())));
            monitor.handle_sample(&sample, clock::now());
        }
    }
    let share = cpu_time().checked_sub(cpu).unwrap().as_secs_f64() / began.elapsed().as_secs_f64();
    let mut rtts: Vec<u128> = answers.iter().copied().flatten().collect();
    rtts.sort_unstable();
    let (asked, lost) = (answers.len(), answers.len() - rtts.len());
    Figures { cpu: share, rss: rss(), probes: asked, lost, rtt: rtts.get(rtts.len() / 2).copied().unwrap_or(0) }
}

fn spec(i: usize) -> ProbeSpec {
    let uplink = i % UPLINKS;
    let [.., high, low] = i.to_be_bytes();
    ProbeSpec {
        path: format!("path-{i}").parse().expect("a name"),
        interface: format!("wan{uplink}").parse().expect("a name"),
        mark: u32::try_from(((uplink + 1) << 24) | i).expect("a mark"),
        sources: vec![format!("198.51.10{uplink}.2").parse().expect("an address")],
        gateways: vec![],
        probe: Probe { targets: vec![IpAddr::V4(Ipv4Addr::new(10, 50, high, low))], ..Probe::default() }.into(),
    }
}

fn site(specs: &[ProbeSpec]) -> Site {
    let path = |spec: &ProbeSpec| Path {
        name: spec.path.clone(),
        from: spec.path.clone(),
        to: Destination::Internet,
        interface: spec.interface.clone(),
        nat: Nat::None,
        mtu: None,
        probe: spec.probe.clone(),
        health: Health {
            latency: Duration::from_millis(150),
            loss: Ratio::from_ppm(50_000).expect("a ratio"),
            jitter: Duration::from_millis(30),
            recover: None,
        },
    };
    Site {
        name: "bench".parse().expect("a name"),
        labels: std::iter::empty().collect(),
        lan: vec![],
        endpoints: std::iter::empty().collect(),
        paths: specs.iter().map(|s| (s.path.clone(), path(s).into())).collect(),
        rules: std::iter::empty().collect(),
        policies: vec![],
        beyond: std::iter::empty().collect(),
    }
}

/// Time that the threads of this process have run on a CPU (`schedstat`, first field, in nanoseconds).
fn cpu_time() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").expect("threads").flatten();
    // A thread that ends meanwhile is none of those that probe.
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    Duration::from_nanos(texts.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum())
}

/// Resident memory in kB.
fn rss() -> u64 {
    let text = fs::read_to_string("/proc/self/status").expect("status");
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    line.split_whitespace().next().and_then(|kb| kb.parse().ok()).expect("a number")
}
