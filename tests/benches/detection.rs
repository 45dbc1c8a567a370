//! How long traffic suffers from what only probes can see. The phase between probes and fault is random.

use std::{
    thread,
    time::{Duration, Instant},
};

use patronus::{lab::Fault, units::Ratio};

use super::{
    row::{Bound, Row, ms},
    world::{SITE, Shape, World, left_after, random_pause, site},
};

/// Labs at once.
const LABS: usize = 3;

struct Case {
    figure: &'static str,
    probe: &'static str,
    health: &'static str,
    fault: Fault,
    /// Time until the windows are full.
    fill: Duration,
    interval: Duration,
    /// Longest time watched.
    watch: Duration,
    bound: f64,
    /// Runs in each lab: few where default probing waits long, more where chance has a say.
    runs: usize,
}

/// One row for each kind of fault.
pub fn run() -> Vec<Row> {
    let fast = Duration::from_millis(100);
    let cases = [
        Case {
            figure: "silent black hole until clean, default probing (1 s, 800 ms, 3)",
            probe: "",
            health: "",
            fault: Fault::BlackHole,
            fill: Duration::from_secs(2),
            interval: Duration::from_secs(1),
            watch: Duration::from_millis(4500),
            bound: 3500.0,
            runs: 3,
        },
        Case {
            figure: "silent black hole until clean, 100 ms x 3 (timeout 100 ms)",
            probe: "interval: 100ms, timeout: 100ms",
            health: "",
            fault: Fault::BlackHole,
            fill: Duration::from_secs(2),
            interval: fast,
            watch: Duration::from_millis(1200),
            bound: 400.0,
            runs: 7,
        },
        Case {
            figure: "30 % loss until left, 100 ms probes (timeout 100 ms)",
            probe: "interval: 100ms, timeout: 100ms",
            health: "",
            fault: Fault::Loss(Ratio::from_ppm(300_000).expect("a ratio")),
            fill: Duration::from_secs(4),
            interval: fast,
            watch: Duration::from_secs(4),
            bound: 1500.0,
            runs: 7,
        },
        Case {
            figure: "+200 ms until left, 100 ms probes (timeout 100 ms)",
            probe: "interval: 100ms, timeout: 100ms",
            health: "latency: 100ms",
            fault: Fault::Latency(Duration::from_millis(200)),
            fill: Duration::from_secs(4),
            interval: fast,
            watch: Duration::from_millis(2500),
            bound: 500.0,
            runs: 3,
        },
    ];
    cases.iter().map(measure).collect()
}

fn measure(case: &Case) -> Row {
    let values = thread::scope(|scope| {
        let labs: Vec<_> = (0..LABS).map(|_| scope.spawn(|| lab(case))).collect();
        labs.into_iter().flat_map(|lab| lab.join().expect("the measurement")).collect()
    });
    Row::new(case.figure, "ms", values, Bound::Most(case.bound))
}

fn lab(case: &Case) -> Vec<f64> {
    let shape = Shape { nat: "none", probe: case.probe, health: case.health, ..Shape::default() };
    let mut world = World::new(&site(&shape));
    world.start();
    (0..case.runs).map(|_| once(&mut world, case)).collect()
}

fn once(world: &mut World, case: &Case) -> f64 {
    let begun = Instant::now();
    world.ready();
    thread::sleep(case.fill.saturating_sub(begun.elapsed()));
    let active = world.ready();
    random_pause(case.interval);
    let flow = world.lab.flow(&world.flow()).expect("a flow");
    thread::sleep(Duration::from_millis(100));
    let at = world.lab.fault(SITE, &active, case.fault).expect("the fault");
    thread::sleep(case.watch);
    let report = flow.finish().expect("a report");
    let took = match case.fault {
        Fault::BlackHole => report.there.clean_after(at).map_or(f64::INFINITY, ms),
        _ => ms(left_after(&report.there, at, &active)),
    };
    world.renew(&active);
    took
}
