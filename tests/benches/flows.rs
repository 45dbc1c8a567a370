//! What it takes to forget the flows of a hub's rules when a path dies, in a full table of connections.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use patronus::{
    kernel::{Doomed, linux::Linux},
    state::{Fwmark, Ranges},
};

use super::row::{Bound, Row, ms};

/// Entries of the table, a third of which the rules have between them.
const ENTRIES: u32 = 100_000;
/// Marks that share the entries.
const MARKS: u32 = 900;
const RULES: u32 = 300;
const RUNS: u32 = 5;
const MASK: u32 = 0xfff0_0000;

/// One walk for all rules, against a plain dump of the table, and against the walks that each rule by itself would take.
#[allow(clippy::cast_precision_loss)]
pub fn run() -> Vec<Row> {
    let (dumps, walks, alone) = measure();
    let ratios = walks.iter().zip(&dumps).map(|(walk, dump)| walk.as_secs_f64() / dump.as_secs_f64()).collect();
    let figure = format!("flows of {RULES} rules forgotten, a third of 100,000 entries, against one plain dump");
    vec![
        Row::new(figure, "times", ratios, Bound::Most(2.0)),
        Row::new("- in one walk", "ms", walks.into_iter().map(ms).collect(), Bound::None),
        Row::new("- one rule alone", "ms", alone.into_iter().map(ms).collect(), Bound::None),
        Row::new("- peer: one plain dump, counting by policy", "ms", dumps.into_iter().map(ms).collect(), Bound::None),
    ]
}

fn doomed(number: u32) -> Doomed {
    Doomed { flows: Fwmark { mark: number << 20, mask: MASK }, family: None }
}

/// Times of plain dumps, of walks for all rules, and of walks for one. Each run has a table of its own.
fn measure() -> (Vec<Duration>, Vec<Duration>, Vec<Duration>) {
    let run = |_| thread::spawn(once).join().expect("the measurement");
    let runs: Vec<[Duration; 3]> = (0..RUNS).map(run).collect();
    let of = |which: usize| runs.iter().map(|run| run[which]).collect();
    (of(0), of(1), of(2))
}

fn once() -> [Duration; 3] {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this needs root");
    prepare();
    fill();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let kernel = Linux::connect().expect("the kernel");
        let begun = Instant::now();
        let counted = kernel.flows_by_policy(&Ranges::default()).await.expect("a dump");
        let dump = begun.elapsed();
        assert_eq!(counted.values().sum::<u64>(), u64::from(ENTRIES), "the table is full");
        let begun = Instant::now();
        let forgotten = Linux::forget((1..=RULES).map(doomed).collect()).await;
        let walk = begun.elapsed();
        assert!(forgotten.error.is_none(), "{:?}", forgotten.error);
        let sum: u64 = forgotten.flows.iter().sum();
        assert!(sum.abs_diff(u64::from(ENTRIES / 3)) <= u64::from(RULES), "{sum}");
        let begun = Instant::now();
        let forgotten = Linux::forget(vec![doomed(RULES + 1)]).await;
        let alone = begun.elapsed();
        assert!(forgotten.error.is_none() && forgotten.flows[0] > 0, "{forgotten:?}");
        [dump, walk, alone]
    })
}

/// A namespace in which each packet to another address begins a flow with the next of the marks.
fn prepare() {
    let sh = |text: &str| {
        let status = Command::new("sh").args(["-ec", text]).stdin(Stdio::null()).status().expect("a shell");
        assert!(status.success(), "{text}");
    };
    sh("ip link set lo up");
    sh(&format!(
        "nft 'table ip marks {{ chain c {{ type filter hook output priority 0; meta l4proto != udp return; \
         ct mark set numgen inc mod {MARKS} offset 1; ct mark set ct mark << 20; ct mark set ct mark | 7; }}; }}'"
    ));
    for (name, value) in [("udp_timeout", "600"), ("udp_timeout_stream", "600")] {
        fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"), value).expect("a sysctl");
    }
}

/// Fills the table.
fn fill() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for n in 0..ENTRIES {
        let [_, a, b, c] = (n + 256).to_be_bytes();
        // Nobody listens, and says so now and then.
        let _ = socket.send_to(b"x", (Ipv4Addr::new(127, a + 1, b, c), 9));
    }
}
