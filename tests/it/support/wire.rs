//! A router and its provider in two network namespaces, joined by two uplinks; for tests of the probes alone.

use std::{
    process::{Command, Stdio},
    rc::Rc,
    sync::mpsc,
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};

/// The provider's namespace; a thread keeps it until this is dropped.
pub struct Provider {
    tid: i32,
    _keep: mpsc::Sender<()>,
}

impl Provider {
    fn new() -> Self {
        let (ready, tid) = mpsc::channel();
        let (keep, end) = mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace of its own");
            ready.send(gettid().as_raw()).expect("the test waits for it");
            let _ = end.recv();
        });
        Self { tid: tid.recv().expect("the namespace"), _keep: keep }
    }

    /// Runs a shell line in the provider's namespace.
    pub fn sh(&self, line: &str) -> String {
        run(Command::new("nsenter").arg(format!("--net={}", self.path())).args(["sh", "-ec", line]), line)
    }

    fn path(&self) -> String {
        // A child's own `self` would be another process.
        format!("/proc/{}/task/{}/ns/net", std::process::id(), self.tid)
    }

    /// Packets that an nft counter of table `t` has seen.
    pub fn count(&self, counter: &str) -> u64 {
        packets(&self.sh(&format!("nft list counter inet t {counter}")))
    }

    /// Runs code on a thread in the provider's namespace.
    pub fn spawn(&self, run: impl FnOnce() + Send + 'static) {
        let path = self.path();
        thread::spawn(move || {
            let ns = std::fs::File::open(path).expect("the namespace");
            nix::sched::setns(ns, CloneFlags::CLONE_NEWNET).expect("to enter it");
            run();
        });
    }
}

/// Runs a shell line in the router's namespace, which is that of the calling thread.
pub fn sh(line: &str) -> String {
    run(Command::new("sh").args(["-ec", line]), line)
}

/// Packets that an nft counter of table `t` in the router's namespace has seen.
pub fn count(counter: &str) -> u64 {
    packets(&sh(&format!("nft list counter inet t {counter}")))
}

fn run(command: &mut Command, line: &str) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the command to start");
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn packets(listing: &str) -> u64 {
    let mut words = listing.split_whitespace().skip_while(|w| *w != "packets");
    words.nth(1).and_then(|n| n.parse().ok()).expect("a counter")
}

/// Joins uplink `n` (0 or 1): `wan{n}` of the router to `isp{n}` of the provider.
pub fn plug(provider: &Provider, n: u8) {
    let tid = provider.tid;
    sh(&format!(
        "ip link add wan{n} type veth peer name isp{n} netns {tid}
         ip addr add 198.51.10{n}.2/24 dev wan{n}; ip addr add 2001:db8:{n}::2/64 dev wan{n} nodad
         ip link set wan{n} up"
    ));
    provider.sh(&format!(
        "ip addr add 198.51.10{n}.1/24 dev isp{n}; ip addr add 2001:db8:{n}::1/64 dev isp{n} nodad
         ip link set isp{n} up"
    ));
    let (mark, table) = (format!("{:#x}", u32::from(n + 1) << 24), 20_001 + u32::from(n));
    sh(&format!(
        "ip route replace default via 198.51.10{n}.1 dev wan{n} table {table}
         ip -6 route replace default via 2001:db8:{n}::1 dev wan{n} table {table}
         ip rule del pref {table} 2>/dev/null || true; ip -6 rule del pref {table} 2>/dev/null || true
         ip rule add pref {table} fwmark {mark}/0xff000000 lookup {table}
         ip -6 rule add pref {table} fwmark {mark}/0xff000000 lookup {table}"
    ));
}

/// A router with two uplinks whose main table leads to the second one only, and a provider that answers for
/// `10.50.0.0/16` and `2001:db8:50::/64` and counts echo requests per uplink (`in0`, `in1`).
pub fn two_uplinks() -> Provider {
    unshare(CloneFlags::CLONE_NEWNET).expect("a namespace of its own");
    let provider = Provider::new();
    sh("ip link set lo up");
    provider.sh("ip link set lo up
         ip route add local 10.50.0.0/16 dev lo; ip -6 route add local 2001:db8:50::/64 dev lo
         sysctl -qw net.ipv4.icmp_ratelimit=0");
    plug(&provider, 0);
    plug(&provider, 1);
    sh("ip route add default via 198.51.101.1; ip -6 route add default via 2001:db8:1::1");
    provider.sh("nft 'table inet t {
           counter in0 {}; counter in1 {};
           chain input { type filter hook prerouting priority -300;
             icmp type echo-request iifname isp0 counter name in0
             icmp type echo-request iifname isp1 counter name in1
             icmpv6 type echo-request iifname isp0 counter name in0
             icmpv6 type echo-request iifname isp1 counter name in1
           };
           chain fault { type filter hook prerouting priority -200; };
         }'");
    provider
}

/// Runs a test on a thread of its own with a current-thread runtime, in the namespaces of [`two_uplinks`].
pub fn with_two_uplinks<F: Future<Output = ()>>(test: impl FnOnce(Rc<Provider>) -> F + Send + 'static) {
    let body = move || {
        let provider = Rc::new(two_uplinks());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // Kept here too: a test that does not name the provider needs its namespace all the same.
        runtime.block_on(test(Rc::clone(&provider)));
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}
