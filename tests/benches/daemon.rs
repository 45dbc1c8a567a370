//! The whole daemon with many paths: processor, memory, metrics over HTTP.
//!
//! Each path has an uplink of its own, a virtual cable to a second namespace whose kernel answers the probes.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    row::{Bound, Row, ms},
    world::PATRONUS,
};

/// Until the first passes are over and the windows are full.
const WARM: Duration = Duration::from_secs(25);
/// The same for a small daemon, and its first look at everything after a minute: that takes memory for good.
const AUDITED: Duration = Duration::from_secs(55);
/// Processor time is taken over so many stretches of this length.
const STRETCHES: usize = 5;
const STRETCH: Duration = Duration::from_secs(4);

/// How often the memory of each small daemon is measured, all at the same time.
const SMALL: usize = 5;

struct Figures {
    cpu: Vec<f64>,
    memory: Memory,
    scrapes: Vec<f64>,
}

/// Resident memory in megabytes: all of it, and what is not pages of files (the program's own code, mostly).
#[derive(Clone, Copy)]
struct Memory {
    all: f64,
    anonymous: f64,
}

/// One daemon after the other, since each wants the processor for itself.
pub fn run() -> Vec<Row> {
    let alone = |paths, targets| thread::spawn(move || measure(paths, targets));
    let [none, one, hundred, more] = [0, 1, 100, 101].map(|paths| [(); SMALL].map(|()| alone(paths, 1))).map(several);
    let over = |more: &[Memory], less: &[Memory], of: fn(&Memory) -> f64| -> Vec<f64> {
        more.iter().zip(less).map(|(more, less)| of(more) - of(less)).collect()
    };
    let resident = |figure: &str, values, bound| Row::new(figure, "MB", values, bound);
    let thousand = alone(1000, 1).join().expect("the measurement");
    let threefold = alone(1000, 3).join().expect("the measurement");
    vec![
        Row::new("daemon, 1,000 paths probed at 1 s: one core", "%", thousand.cpu, Bound::Most(10.0)),
        resident("daemon, 1,000 paths: resident", vec![thousand.memory.all], Bound::Most(60.0)),
        // What is resident has no bound: which of the program's pages are there differs by more than all the paths cost,
        // between two daemons that do the same.
        resident("daemon, 100 paths more, 101 over 1: anonymous", over(&more, &one, |m| m.anonymous), Bound::Most(1.0)),
        resident("- resident, with what pages of files differ by", over(&more, &one, |m| m.all), Bound::None),
        resident(
            "- 100 over none, with the program's pages for a first path",
            over(&hundred, &none, |m| m.all),
            Bound::None,
        ),
        resident("- of it anonymous", over(&hundred, &none, |m| m.anonymous), Bound::None),
        resident("daemon, no path: resident", none.iter().map(|m| m.all).collect(), Bound::None),
        Row::new("/metrics of 1,000 paths over HTTP", "ms", thousand.scrapes, Bound::Most(50.0)),
        Row::new("daemon, 1,000 paths with 3 targets each at 1 s: one core", "%", threefold.cpu, Bound::Most(20.0)),
        resident("- resident", vec![threefold.memory.all], Bound::None),
    ]
}

fn several(sides: [thread::JoinHandle<Figures>; SMALL]) -> Vec<Memory> {
    sides.into_iter().map(|side| side.join().expect("the measurement").memory).collect()
}

fn measure(paths: usize, targets: usize) -> Figures {
    let space = Space::new(paths);
    patronus::lab::enter(&space.0).expect("the router's namespace");
    let dir = tempfile::tempdir().expect("a directory");
    for part in ["repository", "state", "run"] {
        fs::create_dir(dir.path().join(part)).expect("a directory");
    }
    fs::write(dir.path().join("repository/site.yaml"), site(paths, targets)).expect("a file");
    let settings = serde_json::json!({
        "site": "bench",
        "source": {"dir": dir.path().join("repository")},
        "stateDir": dir.path().join("state"),
        "runtimeDir": dir.path().join("run"),
        "listen": {"metrics": "127.0.0.1:9469"},
        "ranges": {"targetMask": "0xfff00000", "policyMask": "0x0000ffff", "tableBase": 5000, "priorityBase": 5000},
    });
    fs::write(dir.path().join("patronus.yaml"), settings.to_string()).expect("a file");
    let log = fs::File::create(dir.path().join("log")).expect("a log");
    let mut command = Command::new(PATRONUS);
    command.arg("run").arg("--config").arg(dir.path().join("patronus.yaml")).envs(environment());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the daemon");
    watch(&Running(child).0, paths, &dir.path().join("log"))
}

/// A daemon that ends with the measurement, also with one that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The environment that the shipped systemd unit gives to the daemon.
fn environment() -> impl Iterator<Item = (&'static str, &'static str)> {
    let unit = include_str!("../../examples/systemd/patronus.service");
    let lines = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    lines.flat_map(str::split_whitespace).filter_map(|pair| pair.split_once('='))
}

/// A router's namespace and its provider's (with a `p` behind the name); removed in the end.
struct Space(String);

impl Space {
    fn new(paths: usize) -> Self {
        static SPACES: AtomicUsize = AtomicUsize::new(0);
        let number = SPACES.fetch_add(1, Ordering::Relaxed);
        let space = Self(format!("patronusbenchd{}n{number}", std::process::id()));
        let (router, provider) = (&space.0, format!("{}p", space.0));
        let (mut near, mut far) = (String::from("link set lo up\n"), String::from("link set lo up\n"));
        far.push_str("route add local 10.48.0.0/14 dev lo\n");
        for n in 0..paths {
            let (mine, theirs) = (hardware(n, 0), hardware(n, 1));
            let _ = writeln!(
                near,
                "link add w{n} address {mine} type veth peer name i{n} address {theirs} netns {provider}"
            );
        }
        for n in 0..paths {
            // Permanent, since the kernel's table of neighbours ends at 1,024 for all namespaces together.
            for (script, name, end) in [(&mut near, 'w', 0), (&mut far, 'i', 1)] {
                let _ = writeln!(script, "address add {}/31 dev {name}{n}\nlink set {name}{n} up", address(n, end));
                let (other, hardware) = (address(n, 1 - end), hardware(n, 1 - end));
                let _ = writeln!(script, "neigh replace {other} lladdr {hardware} dev {name}{n} nud permanent");
            }
        }
        ip(&["netns", "add", router], "");
        ip(&["netns", "add", &provider], "");
        for name in [router, &provider] {
            let quiet = [
                "netns",
                "exec",
                name,
                "sysctl",
                "-qw",
                "net.ipv6.conf.default.disable_ipv6=1",
                "net.ipv4.icmp_ratelimit=0",
            ];
            ip(&quiet, "");
        }
        ip(&["-n", router, "-batch", "-"], &near);
        ip(&["-n", &provider, "-batch", "-"], &far);
        space
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        for name in [self.0.clone(), format!("{}p", self.0)] {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

/// The router's (0) or the provider's (1) address on an uplink.
fn address(n: usize, end: usize) -> String {
    format!("10.60.{}.{}", n / 100, n % 100 * 2 + end)
}

/// The hardware address of an end of an uplink's cable.
fn hardware(n: usize, end: usize) -> String {
    format!("02:00:00:{end:02x}:{:02x}:{:02x}", n / 256, n % 256)
}

fn ip(words: &[&str], input: &str) {
    let mut child = Command::new("ip").args(words).stdin(Stdio::piped()).spawn().expect("ip");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("to write");
    assert!(child.wait().expect("ip").success(), "ip {words:?}");
}

fn watch(child: &Child, paths: usize, log: &std::path::Path) -> Figures {
    let begun = Instant::now();
    let up = || {
        scrape()
            .map_or(0, |text| text.lines().filter(|l| l.starts_with("patronus_path_up{") && l.ends_with(" 1")).count())
    };
    while up() < paths {
        let said = || fs::read_to_string(log).unwrap_or_default();
        assert!(begun.elapsed() < Duration::from_secs(60), "{} of {paths} up: {}\n{:?}", up(), said(), scrape());
        thread::sleep(Duration::from_millis(300));
    }
    thread::sleep(if paths > 101 { WARM } else { AUDITED });
    let stretch = |_| {
        let (before, start) = (cpu(child.id()), Instant::now());
        thread::sleep(STRETCH);
        cpu(child.id()).saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
    };
    let shares = (0..STRETCHES).map(stretch).collect();
    let memory = memory(child.id());
    let scrapes = (0..21).map(|_| {
        let begun = Instant::now();
        let text = scrape().expect("metrics");
        assert!(text.matches("\npatronus_path_carrier{").count() == paths, "every path is there");
        ms(begun.elapsed())
    });
    Figures { cpu: shares, memory, scrapes: scrapes.collect() }
}

fn scrape() -> Option<String> {
    let mut stream = TcpStream::connect("127.0.0.1:9469").ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn site(paths: usize, targets: usize) -> String {
    let mut text = "apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: bench}
spec:
  lan:
    - {interface: lo, prefixes: [192.168.10.0/24]}
  endpoints:\n"
        .to_owned();
    if paths == 0 {
        text.push_str("    e0: {interface: w0, gateway: 10.60.0.1}\n");
    }
    for n in 0..paths {
        let _ = writeln!(text, "    e{n}: {{interface: w{n}, gateway: {}}}", address(n, 1));
    }
    if paths > 0 {
        text.push_str("  paths:\n");
    }
    for n in 0..paths {
        let target = |t: usize| format!("10.{}.{}.{}", 48 + t, n / 250, n % 250);
        let targets: Vec<String> = (0..targets).map(target).collect();
        let targets = targets.join(", ");
        let _ = writeln!(
            text,
            "    p{n}: {{from: e{n}, to: internet, nat: none, probe: {{targets: [{targets}], interval: 1s}}}}"
        );
    }
    text
}

/// Processor time of all threads of a process (`/proc/PID/task/*/schedstat`, in nanoseconds).
fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon lives").flatten();
    let spent = |path: std::path::PathBuf| -> Option<u64> {
        fs::read_to_string(path.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    Duration::from_nanos(tasks.filter_map(|task| spent(task.path())).sum())
}

fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon lives");
    Memory { all: megabytes(&text, "VmRSS:"), anonymous: megabytes(&text, "RssAnon:") }
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(status: &str, line: &str) -> f64 {
    let line = status.lines().find_map(|l| l.strip_prefix(line)).expect("a line of memory");
    let kb: u64 = line.split_whitespace().next().and_then(|kb| kb.parse().ok()).expect("a number");
    kb as f64 / 1024.0
}
