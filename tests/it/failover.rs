//! The main job, end to end: the real daemon on a lab router, each path cut in each way.

use std::{sync::Arc, time::Duration};

use patronus::{
    health::PathState,
    lab::{Fault, Lab},
};

use crate::support::daemon::{Daemon, Repository};

const ONE_SITE: &str = include_str!("../../examples/one-site/berlin.yaml");

#[test]
fn starts() {
    let repository = Repository::new(&[("berlin.yaml", ONE_SITE)]);
    let lab: Arc<Lab> = repository.lab();
    let mut daemon = Daemon::start(&lab, &repository, "berlin");
    daemon.wait("both up", |s| s.paths.values().all(|p| p.health.state == PathState::Up));
    lab.fault("berlin", "fiber", Fault::Carrier).unwrap();
    daemon.wait_active("critical", "lte");
    println!("{:#?}", daemon.metrics());
    println!("{:#?}", daemon.wait_event("failover", |_| true));
    println!("{}", daemon.says(&["status"]));
    daemon.terminate();
    println!("{:#?} {:#?}", daemon.transitions(), daemon.samples("fiber"));
    let _ = Duration::ZERO;
}
