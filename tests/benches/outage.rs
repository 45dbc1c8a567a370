//! Packets that a flow from the LAN loses when its path loses carrier or is set down, whatever the daemon does.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use patronus::lab::Fault;

use super::{
    row::{Bound, Row},
    world::{SITE, Shape, World, site},
};

const RUNS: usize = 9;

/// One row for each fault, state of the daemon, and kind of address translation.
pub fn run() -> Vec<Row> {
    let sides = ["none", "masquerade"].map(|nat| thread::spawn(move || side(nat)));
    sides.into_iter().flat_map(|side| side.join().expect("the measurement")).collect()
}

fn side(nat: &str) -> Vec<Row> {
    let mut world = World::new(&site(&Shape { nat, probe: "interval: 100ms, timeout: 80ms", ..Shape::default() }));
    world.start();
    let mut rows = Vec::new();
    for (fault, named) in [(Fault::Carrier, "carrier lost"), (Fault::InterfaceDown, "interface set down")] {
        for mode in ["running", "stopped", "killed"] {
            let lost: Vec<f64> = (0..RUNS).map(|_| once(&mut world, fault, mode)).collect();
            let how = if nat == "none" { "no NAT" } else { "masqueraded" };
            let figure = format!("packets lost at 1,000/s: {named}, daemon {mode}, {how}");
            rows.push(Row::new(figure, "packets", lost, Bound::Most(bound(nat, fault))));
        }
    }
    rows
}

/// The packet by which netfilter notices that a masqueraded flow leaves by another interface is dropped by netfilter
/// itself; the test `a_masqueraded_flow_loses_to_a_lost_carrier_the_one_packet_that_netfilter_drops` shows where. An
/// interface that is set down takes its flows along before the next packet.
fn bound(nat: &str, fault: Fault) -> f64 {
    if nat != "none" && fault == Fault::Carrier { 1.0 } else { 0.0 }
}

#[allow(clippy::cast_precision_loss)]
fn once(world: &mut World, fault: Fault, mode: &str) -> f64 {
    let active = world.ready();
    let flow = world.lab.flow(&world.flow()).expect("a flow");
    thread::sleep(Duration::from_millis(250));
    match mode {
        "stopped" => world.signal(Signal::SIGSTOP),
        "killed" => world.signal(Signal::SIGKILL),
        _ => {}
    }
    let at = world.lab.fault(SITE, &active, fault).expect("the fault");
    thread::sleep(Duration::from_millis(450));
    let report = flow.finish().expect("a report");
    let (lost, sent) = report.there.lost_between(at, Instant::now());
    assert!(sent > 300, "the flow was sent");
    world.lab.clear(SITE, &active).expect("to mend it");
    match mode {
        "stopped" => world.signal(Signal::SIGCONT),
        "killed" => world.start(),
        _ => {}
    }
    lost as f64
}
