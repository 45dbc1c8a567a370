//! Switching between two good paths by the engine's own steps: what it costs, loses and leaks.

use std::{
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use patronus::{
    clock, desired,
    engine::router::Router,
    failover::{Choice, Selection},
    kernel::{Kernel as _, linux::Linux},
    plan::{self, Step},
    state::{Key, Observed, Ranges, Stamp, State},
    store::Ledger,
    validate::intent::Site,
};

use super::{
    row::{Bound, Row, ms},
    world::{Shape, World, site},
};

const SWITCHES: usize = 1000;
const POLICIES: usize = 1000;
const PPS: u32 = 4000;

/// Time, loss and leaks of many switches, with a process of `ip route replace` as the peer.
#[allow(clippy::cast_precision_loss)]
pub fn run() -> Vec<Row> {
    let world = World::new(&site(&Shape { nat: "none", policies: POLICIES, ..Shape::default() }));
    world.verb("apply", &["--yes"]);
    let mut spec = world.flow();
    (spec.pps, spec.sockets) = (PPS, 8);
    let flow = world.lab.flow(&spec).expect("a flow");
    let site = world.site.clone();
    let times =
        world.lab.thread_in(&world.router(), move || drive(&site)).join().expect("the switches").expect("the router");
    let report = flow.finish().expect("a report");
    let mut crossed = report.there.crossings();
    let by = |endpoint: &str, crossed: &mut std::collections::BTreeMap<_, u64>| -> u64 {
        let here = |c: &Option<patronus::lab::Crossing>| c.as_ref().is_some_and(|c| c.endpoint.as_str() == endpoint);
        let keys: Vec<_> = crossed.keys().filter(|c| here(c)).cloned().collect();
        keys.iter().filter_map(|key| crossed.remove(key)).sum()
    };
    let (a, b) = (by("a", &mut crossed), by("b", &mut crossed));
    let leaked: u64 = crossed.values().sum();
    let lost = format!("packets lost in {SWITCHES} switches of {POLICIES} policies, {} sent", report.there.sent());
    let leak = format!("packets leaked to a third uplink in these, {a} by a, {b} by b");
    vec![
        Row::new(lost, "packets", vec![report.there.lost() as f64], Bound::Most(0.0)),
        Row::new(leak, "packets", vec![leaked as f64], Bound::Most(0.0)),
        Row::new(
            format!("decision to kernel done, one path of {POLICIES} policies"),
            "ms",
            times.into_iter().map(ms).collect(),
            Bound::Most(5.0),
        ),
        Row::new("peer: one `ip route replace` as a process", "ms", peer(&world), Bound::None),
    ]
}

fn drive(site: &Site) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let router = Router::new(Linux::connect().expect("the kernel"), Ledger::memory(), Ranges::default());
        let mut observed = router.observe(Some(site)).await.expect("a look");
        let mut times = Vec::new();
        for n in 0..SWITCHES {
            // The path in use before is `a`, then `b`, and so on.
            let (to, other) = if n % 2 == 0 { ("b", "a") } else { ("a", "b") };
            times.push(switch(&router, site, &mut observed, to, other).await);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        times
    })
}

/// What the engine does between the decision and the kernel's acknowledgement of the last route.
async fn switch(router: &Router<Linux>, site: &Site, observed: &mut Observed, to: &str, other: &str) -> Duration {
    let name = |s: &str| s.parse().expect("a name");
    let choice = Choice { active: Some(name(to)), tail: vec![name(other)], since: clock::now(), ..Choice::default() };
    let selection = Selection { rules: std::iter::once((name("main"), choice)).collect() };
    let begun = Instant::now();
    let inputs = router.inputs(&selection, observed);
    let wanted = desired::compile_routes(site, inputs, inputs.known);
    let shown = observed.state.objects.iter().filter(|(key, _)| matches!(key, Key::Route(_)));
    let shown = State { objects: shown.map(|(key, value)| (key.clone(), value.clone())).collect() };
    let steps = plan::diff(&wanted, &shown);
    assert!(!steps.is_empty(), "a switch changes routes");
    let stamp = observed.stamp.clone().unwrap_or(Stamp { generation: 0, plan: uuid::Uuid::nil() });
    for step in &steps {
        router.kernel.execute(step, router.ranges(), &stamp).await.expect("a route");
    }
    let took = begun.elapsed();
    for step in steps {
        if let Step::Set { key, after: Some(value), .. } = step {
            Arc::make_mut(&mut observed.state).objects.insert(key, value);
        }
    }
    took
}

fn peer(world: &World) -> Vec<f64> {
    let once = |n: usize| {
        let via = if n.is_multiple_of(2) { "198.51.100.1" } else { "203.0.113.1" };
        let mut command = Command::new("ip");
        command.args(["route", "replace", "default", "via", via, "table", "77"]);
        let begun = Instant::now();
        assert!(world.lab.run_in(&world.router(), command).expect("ip").status.success());
        thread::yield_now();
        ms(begun.elapsed())
    };
    (0..31).map(once).collect()
}
