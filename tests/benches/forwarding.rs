//! Packets that a router forwards in a second: with 10 policies, with 1,000, and with none, in turn.
//!
//! The sender's processor does the router's work too (a virtual cable hands packets over in the sender's context),
//! so the rate is what one core can send *and* forward. The provider drops everything: nothing comes after it.

use std::{
    fs,
    io::IoSlice,
    net::UdpSocket,
    os::fd::AsRawFd as _,
    process::Command,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};
use patronus::lab::{Error, Fault, Node};

use super::{
    row::{Bound, Row},
    world::{SITE, Shape, TARGET, World, site},
};

const FLOWS: usize = 256;
const BATCH: usize = 32;
const ROUNDS: usize = 11;
const SLOT: Duration = Duration::from_millis(400);
const NEW: u16 = 4000;
const PORT: u16 = 7000;

struct Router {
    world: World,
    flows: Vec<UdpSocket>,
}

/// Rates, and the share of the smaller router's rate that the larger reaches.
#[allow(clippy::cast_precision_loss)]
pub fn run() -> Vec<Row> {
    let routers = [router(10, true), router(1000, true), router(1, false)];
    let mut rates: [Vec<f64>; 3] = Default::default();
    let mut fresh: [Vec<f64>; 3] = Default::default();
    for round in 0..ROUNDS {
        for (n, router) in routers.iter().enumerate() {
            let (seconds, count) = forwarded(&router.world, || established(router));
            rates[n].push(count / seconds);
            if round % 4 == 0 {
                let (seconds, count) = forwarded(&router.world, || new(router));
                fresh[n].push(count / seconds);
            }
        }
    }
    let share = rates[1].iter().zip(&rates[0]).map(|(many, few)| many / few * 100.0).collect();
    let [few, many, none] = rates.map(|rates| rates.into_iter().map(|r| r / 1000.0).collect::<Vec<_>>());
    let [few_new, many_new, none_new] = fresh.map(|rates| rates.into_iter().map(|r| r / 1000.0).collect::<Vec<_>>());
    let kpps = "kpackets/s";
    vec![
        Row::new("forwarding of established flows, 1,000 policies against 10", "%", share, Bound::Least(90.0)),
        Row::new(format!("- {FLOWS} established flows, 10 policies"), kpps, few, Bound::None),
        Row::new(format!("- {FLOWS} established flows, 1,000 policies"), kpps, many, Bound::None),
        Row::new("- peer: plain forwarding without Patronus or conntrack", kpps, none, Bound::None),
        Row::new("- first packets of new flows, 10 policies", kpps, few_new, Bound::None),
        Row::new("- first packets of new flows, 1,000 policies", kpps, many_new, Bound::None),
        Row::new("- peer: the same packets, plain forwarding", kpps, none_new, Bound::None),
    ]
}

fn router(policies: usize, patronus: bool) -> Router {
    let world = World::new(&site(&Shape { nat: "none", policies, ..Shape::default() }));
    if patronus {
        world.verb("apply", &["--yes"]);
    } else {
        let mut command = Command::new("ip");
        command.args(["route", "replace", "default", "via", "198.51.100.1"]);
        assert!(world.lab.run_in(&world.router(), command).expect("ip").status.success());
    }
    let echo = world.lab.thread_in(&Node::Internet, echo);
    let flows = world.lab.thread_in(&world.host(), flows).join().expect("the flows").expect("the host");
    drop(echo);
    for endpoint in ["a", "b"] {
        world.lab.fault(SITE, endpoint, Fault::BlackHole).expect("a wall behind the provider");
    }
    Router { world, flows }
}

/// Answers one packet of each flow, so that the router sees both directions.
fn echo() {
    let socket = UdpSocket::bind((TARGET, PORT)).expect("the port");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let mut buffer = [0; 64];
    for _ in 0..FLOWS {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { return };
        socket.send_to(&buffer[..length], from).expect("to answer");
    }
}

fn flows() -> Vec<UdpSocket> {
    let open = |_| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect((TARGET, PORT)).expect("a flow");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let answered = (0..10).any(|_| {
            let _ = socket.send(&[0; 32]);
            socket.recv(&mut [0; 64]).is_ok()
        });
        assert!(answered, "a flow is established");
        socket
    };
    (0..FLOWS).map(open).collect()
}

/// Sends on established flows for a slot of time.
fn established(router: &Router) -> Duration {
    let payload = [0_u8; 32];
    let slices: Vec<[IoSlice<'_>; 1]> = (0..BATCH).map(|_| [IoSlice::new(&payload)]).collect();
    let none: Vec<Option<SockaddrStorage>> = vec![None; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let begun = Instant::now();
    while begun.elapsed() < SLOT {
        for flow in &router.flows {
            // A refused packet shows in what is counted behind the router.
            let _ = sendmmsg(flow.as_raw_fd(), &mut headers, &slices, &none, [], MsgFlags::empty());
        }
    }
    begun.elapsed()
}

/// Sends first packets of new flows.
fn new(router: &Router) -> Duration {
    let sending: JoinHandle<Result<Duration, Error>> = router.world.lab.thread_in(&router.world.host(), || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        let begun = Instant::now();
        for n in 0..NEW {
            let _ = socket.send_to(&[0; 32], (TARGET, 40_000 + n));
        }
        begun.elapsed()
    });
    sending.join().expect("the sender").expect("the host")
}

/// Seconds that sending took, and packets that left the router by its uplinks meanwhile.
fn forwarded(world: &World, send: impl FnOnce() -> Duration) -> (f64, f64) {
    let before = out(world);
    let took = send();
    (took.as_secs_f64(), out(world) - before)
}

/// Packets sent by the uplinks (`/proc/net/dev`, tenth figure).
fn out(world: &World) -> f64 {
    let read = || fs::read_to_string("/proc/thread-self/net/dev").expect("counters");
    let text = world.lab.thread_in(&world.router(), read).join().expect("counters").expect("the router");
    let wan = text.lines().filter_map(|line| line.trim().strip_prefix("wan")?.split_once(':'));
    wan.filter_map(|(_, figures)| figures.split_whitespace().nth(9)?.parse::<f64>().ok()).sum()
}
