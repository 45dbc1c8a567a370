//! `patronus plan` as a whole process.

use std::{process::Command, time::Instant};

use super::{
    row::{Bound, Row, ms},
    world::{Shape, World, site},
};

const POLICIES: usize = 1000;

/// With nothing to do, and with a ruleset that somebody changed: that must be seen.
pub fn run() -> Vec<Row> {
    let world = World::new(&site(&Shape { policies: POLICIES, ..Shape::default() }));
    world.verb("apply", &["--yes"]);
    let quiet: Vec<f64> = (0..15).map(|_| once(&world, 0)).collect();
    let mut command = Command::new("nft");
    command.args(["add", "chain", "inet", "patronus", "stranger"]);
    assert!(world.lab.run_in(&world.router(), command).expect("nft").status.success());
    let drifted: Vec<f64> = (0..5).map(|_| once(&world, 2)).collect();
    vec![
        Row::new(
            format!("`plan` with nothing to do, {POLICIES} policies, whole process"),
            "ms",
            quiet,
            Bound::Most(300.0),
        ),
        Row::new("`plan` that finds a foreign chain in our table, as above", "ms", drifted, Bound::None),
    ]
}

fn once(world: &World, exit: i32) -> f64 {
    let mut command = world.patronus("plan");
    command.arg("--detailed-exitcode");
    let begun = Instant::now();
    let output = world.lab.run_in(&world.router(), command).expect("to run it");
    let took = begun.elapsed();
    assert_eq!(output.status.code(), Some(exit), "{}", String::from_utf8_lossy(&output.stderr));
    ms(took)
}
