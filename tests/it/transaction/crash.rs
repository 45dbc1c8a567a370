//! `kill -9` on a real kernel: at every operation of an apply, in recovery, and at random times from outside.
//!
//! The apply runs in a child, the same test binary started again. Whoever comes after it takes the lock first,
//! which an `nft` that outlives its parent still holds, and then recovers.

use std::{
    cell::Cell,
    collections::BTreeSet,
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::getpid,
};
use patronus::{
    kernel::{
        Executed, KernelError,
        linux::Linux,
        lock::{Lock, LockError},
    },
    state::Observed,
    store::Ledger,
};
use serde::{Deserialize, Serialize};

use super::*;
use crate::support::netns::{address6, in_netns, ip, ip_batch, nft, run, veth};

const ENTRY: &str = "transaction::crash::an_apply_that_dies";
const ORDER: &str = "PATRONUS_TEST_CRASH";

/// What the child has to do.
#[derive(Serialize, Deserialize)]
struct Order {
    desired: State,
    generation: u64,
    /// Recover, and apply nothing.
    recover: bool,
    /// Another `nft` program.
    nft: Option<PathBuf>,
    /// The operation at which it dies, and whether that has its effect.
    death: Option<(u64, bool)>,
}

/// Counts the operations on kernel and journal and dies at one of them.
struct Doom {
    count: Cell<u64>,
    death: Option<(u64, bool)>,
}

impl Doom {
    async fn around<T>(&self, work: impl Future<Output = T>) -> T {
        self.count.set(self.count.get() + 1);
        self.die_if(false);
        let done = work.await;
        self.die_if(true);
        done
    }

    fn die_if(&self, after: bool) {
        if self.death == Some((self.count.get(), after)) {
            kill(getpid(), Signal::SIGKILL).expect("a signal to oneself");
            std::thread::park();
        }
    }
}

struct Doomed<'a, T>(T, &'a Doom);

impl Kernel for Doomed<'_, Linux> {
    async fn observe(&self, scope: &Scope) -> Result<Observed, KernelError> {
        self.1.around(self.0.observe(scope)).await
    }

    async fn execute(&self, step: &Step, ranges: &Ranges, stamp: &Stamp) -> Result<Executed, KernelError> {
        self.1.around(self.0.execute(step, ranges, stamp)).await
    }

    async fn canonical(&self, source: &str) -> Result<String, KernelError> {
        self.0.canonical(source).await
    }
}

impl Journal for Doomed<'_, Ledger> {
    async fn begin(&mut self, record: &RunRecord) -> Result<RunId, JournalError> {
        self.1.around(self.0.begin(record)).await
    }

    async fn step(&mut self, run: RunId, index: usize, state: StepState, why: &str) -> Result<(), JournalError> {
        self.1.around(self.0.step(run, index, state, why)).await
    }

    async fn finish(&mut self, run: RunId, ending: Ending, message: &str) -> Result<(), JournalError> {
        self.1.around(self.0.finish(run, ending, message)).await
    }

    async fn unfinished(&mut self) -> Result<Option<Unfinished>, JournalError> {
        self.1.around(self.0.unfinished()).await
    }
}

/// Waits until the last holder and its children are gone: an `nft` that was started before the death of its
/// parent may still be about to commit, and holds the lock until it has.
fn lock(dir: &Path) -> Lock {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        match Lock::acquire(dir, "crash test") {
            Err(LockError::Busy { .. }) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(2)),
            result => return result.expect("a lock"),
        }
    }
}

fn real_scope() -> Scope {
    Scope { sysctls: vec![SYSCTLS[0].into()], ..scope() }
}

fn stamp(generation: u64) -> Stamp {
    Stamp { generation, plan: Uuid::from_u128(u128::from(generation) << 64 | 0xc0de) }
}

#[test]
#[ignore = "not a test: the child of the crash test"]
fn an_apply_that_dies() {
    let Some(dir) = env::var_os(ORDER).map(PathBuf::from) else { return };
    let _lock = lock(&dir);
    let order: Order = serde_json::from_slice(&fs::read(dir.join("order")).expect("an order")).expect("an order");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(obey(&dir, &order));
}

async fn obey(dir: &Path, order: &Order) {
    let doom = Doom { count: Cell::new(0), death: order.death };
    let linux = Linux::connect().expect("a kernel");
    let linux = order.nft.iter().cloned().fold(linux, Linux::using_nft);
    let kernel = Doomed(linux, &doom);
    let mut journal = Doomed(Ledger::open(dir).0, &doom);
    if order.recover {
        apply::recover(&kernel, &mut journal, &real_scope()).await.expect("a recovery");
        return;
    }
    let observed = kernel.0.observe(&real_scope()).await.expect("a look");
    let report = apply_to(&kernel, &mut journal, &order.desired, observed, order.generation).await;
    assert!(matches!(report.outcome, Outcome::Applied), "{report:?}");
}

async fn apply_to(
    kernel: &impl Kernel,
    journal: &mut impl Journal,
    desired: &State,
    observed: Observed,
    generation: u64,
) -> Report {
    let request = Request {
        steps: diff(desired, &observed.state).into(),
        desired,
        spared: &BTreeSet::new(),
        scope: &real_scope(),
        stamp: stamp(generation),
        previous: observed.stamp,
        revision: "r",
    };
    apply::run(kernel, journal, request).await
}

fn ruleset(mark: u32) -> String {
    format!(
        "table inet patronus {{\n\tset stamp {{\n\t\ttype mark\n\t\telements = {{ 0x00000001 comment \"generation 0 plan {}\" }}\n\t}}\n\n\tchain c{mark} {{\n\t\ttype filter hook prerouting priority mangle; policy accept;\n\t\tmeta mark set {mark:#010x}\n\t}}\n}}\n",
        Uuid::nil()
    )
}

async fn with_ruleset(kernel: &Linux, mut state: State, mark: u32) -> State {
    let source = ruleset(mark);
    let canonical = kernel.canonical(&source).await.expect("a valid ruleset");
    state.objects.insert(Key::Nft, Value::Nft(NftTable { canonical: canonical.into(), source: source.into() }));
    state
}

/// Interfaces, and a thousand objects of others around ours.
fn furnish() {
    // Link-local addresses come up seconds later and bring routes of the kernel's own.
    fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1").expect("a writable sysctl");
    for number in 0..3 {
        veth(&format!("wan{number}"), &format!("far{number}"), &format!("198.51.10{number}.2/24"));
        address6(&format!("wan{number}"), &format!("2001:db8:1{number}::2/64"));
    }
    let routes =
        (0..800).map(|n| format!("route add 10.{}.{}.0/24 dev wan0 table {}\n", n / 256, n % 256, 100 + n % 7));
    let rules = (0..100).map(|n| format!("rule add priority {} fwmark {} lookup 100\n", 5_000 + n, n + 1));
    ip_batch("-4", &routes.chain(rules).collect::<String>());
    let elements: Vec<String> = (0..100).map(|n| format!("192.0.2.{n}")).collect();
    nft(&format!("table inet other {{ set s {{ type ipv4_addr; elements = {{ {} }}; }}; }}", elements.join(", ")));
}

/// Everything that is not ours, as text.
fn foreign() -> String {
    let shown = [
        ip("-N -d -4 route show table all"),
        ip("-N -d -6 route show table all"),
        ip("-N -d -4 rule show"),
        ip("-N -d -6 rule show"),
        run("nft", &["list", "table", "inet", "other"], ""),
    ];
    let ours = |line: &&str| line.contains("proto 157") || line.contains("dev pt7");
    shown.iter().flat_map(|text| text.lines()).filter(|line| !ours(line)).collect::<Vec<_>>().join("\n")
}

/// One router in a namespace that is killed again and again.
struct Router {
    dir: tempfile::TempDir,
    kernel: Linux,
    states: [State; 2],
    generation: u64,
    foreign: String,
}

impl Router {
    async fn new() -> Self {
        furnish();
        let kernel = Linux::connect().expect("a kernel");
        let Case { old, new } = everything();
        let states = [with_ruleset(&kernel, old, 1).await, with_ruleset(&kernel, new, 2).await];
        let (dir, foreign) = (tempfile::tempdir().expect("a directory"), foreign());
        let mut router = Self { dir, kernel, states, generation: 1, foreign };
        let observed = router.look().await;
        let mut journal = Memory::default();
        let report = apply_to(&router.kernel, &mut journal, &router.states[0], observed, router.generation).await;
        assert!(matches!(report.outcome, Outcome::Applied), "{report:?}");
        router.generation += 1;
        router
    }

    async fn look(&self) -> Observed {
        self.kernel.observe(&real_scope()).await.expect("a look")
    }

    /// Starts a child in this thread's namespace.
    fn start(&self, order: &Order) -> Child {
        fs::write(self.dir.path().join("order"), serde_json::to_vec(order).expect("JSON"))
            .expect("a writable directory");
        Command::new(env::current_exe().expect("this binary"))
            .args([ENTRY, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ORDER, self.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("a child")
    }

    fn order(&mut self, to: usize, death: Option<(u64, bool)>) -> Order {
        self.generation += 1;
        Order { desired: self.states[to].clone(), generation: self.generation, recover: false, nft: None, death }
    }

    /// Recovers as the next start does, and returns which of the two states is there, exactly.
    async fn settle(&mut self, from: usize, what: &str) -> usize {
        let _lock = lock(self.dir.path());
        let (mut ledger, alarm) = Ledger::open(self.dir.path());
        assert_eq!(alarm, None, "{what}");
        apply::recover(&self.kernel, &mut ledger, &real_scope()).await.expect("a recovery");
        assert_untouched(&self.foreign, &foreign(), what);
        self.judge(from).await.unwrap_or_else(|broken| panic!("{what}: {broken}"))
    }

    async fn judge(&self, from: usize) -> Result<usize, String> {
        let seen = self.look().await;
        let at = [from, 1 - from].into_iter().find(|at| diff(&self.states[*at], &seen.state).is_empty());
        let Some(at) = at else {
            let left = self.states.each_ref().map(|state| apply::difference(state, &seen.state));
            return Err(format!("neither old nor new: {left:#?}"));
        };
        if (seen.stamp == Some(stamp(self.generation))) == (at == from) {
            return Err(format!("the stamp {:?} does not go with the state", seen.stamp));
        }
        Ok(at)
    }
}

fn assert_untouched(before: &str, after: &str, what: &str) {
    if before != after {
        let only = |a: &str, b: &str| {
            a.lines().filter(|line| !b.lines().any(|l| l == *line)).map(str::to_owned).collect::<Vec<_>>()
        };
        panic!("{what}: a foreign object changed: {:#?} became {:#?}", only(before, after), only(after, before));
    }
}

fn was_killed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    status.signal() == Some(Signal::SIGKILL as i32)
}

#[test]
fn a_kill_at_any_operation_leaves_the_old_or_the_new_state() {
    let kills = in_netns(|| async {
        let mut router = Router::new().await;
        let (mut at, mut kills) = (0, 0);
        // The next death for each direction; none when a child has outlived all operations.
        let mut next = [Some((1, false)), Some((1, false))];
        while next.iter().any(Option::is_some) {
            let (from, death) = (at, next[at]);
            let order = router.order(1 - from, death);
            let status = router.start(&order).wait().expect("a child");
            let mut what = format!("from {from}, death {death:?}");
            if was_killed(status) {
                kills += 1;
                next[from] = death.map(|(k, after)| if after { (k + 1, false) } else { (k, true) });
            } else {
                assert!(status.success(), "{what}: {status}");
                next[from] = None;
            }
            if let Some((k, after)) = death.filter(|(k, _)| k % 3 == 0 && was_killed(status)) {
                let recovery = Order { recover: true, death: Some((1 + k / 3, !after)), ..order };
                kills += u32::from(was_killed(router.start(&recovery).wait().expect("a child")));
                what += ", and another one in recovery";
            }
            at = router.settle(from, &what).await;
        }
        kills
    });
    assert!(kills >= 200, "only {kills} kills");
    println!("{kills} kills at operations");
}

#[test]
fn a_kill_from_outside_at_any_time_leaves_the_old_or_the_new_state() {
    let (kills, runs) = in_netns(|| async {
        let mut router = Router::new().await;
        let (mut at, mut kills) = (0, 0);
        let order = router.order(1 - at, None);
        let started = Instant::now();
        assert!(router.start(&order).wait().expect("a child").success());
        let whole = started.elapsed();
        at = router.settle(at, "undisturbed").await;
        let runs = 40_u32;
        for run in 0..runs {
            let order = router.order(1 - at, None);
            let mut child = router.start(&order);
            // Spread over the whole life of a child; the time itself decides nothing.
            let moment = whole.mul_f64(f64::from(run) / f64::from(runs)) + Duration::from_micros(u64::from(run) * 37);
            std::thread::sleep(moment);
            child.kill().expect("a child");
            kills += u32::from(was_killed(child.wait().expect("a child")));
            at = router.settle(at, &format!("killed after {moment:?}")).await;
        }
        (kills, runs)
    });
    assert!(kills > 0);
    println!("{kills} kills in {runs} runs");
}

#[test]
fn the_checker_sees_a_start_that_does_not_recover() {
    let broken = in_netns(|| async {
        let mut router = Router::new().await;
        let order = router.order(1, Some((12, true)));
        assert!(was_killed(router.start(&order).wait().expect("a child")));
        router.judge(0).await
    });
    assert!(broken.unwrap_err().contains("neither old nor new"));
}

/// An `nft` that takes its time before it loads anything, and says so.
fn slow_nft(dir: &Path) -> PathBuf {
    let program = dir.join("nft");
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in -f) touch {}; sleep 0.5;; esac\nexec nft \"$@\"\n",
        dir.join("begun").display()
    );
    fs::write(&program, script).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
    program
}

#[test]
fn an_nft_that_outlives_its_parent_is_waited_for() {
    in_netns(|| async {
        let mut router = Router::new().await;
        let order = Order { nft: Some(slow_nft(router.dir.path())), ..router.order(1, None) };
        let mut child = router.start(&order);
        let give_up = Instant::now() + Duration::from_secs(20);
        while !router.dir.path().join("begun").exists() {
            assert!(Instant::now() < give_up, "nft was never started");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().expect("a child");
        assert!(was_killed(child.wait().expect("a child")));
        assert_eq!(router.settle(0, "killed while nft runs").await, 1, "nft has committed, so recovery went forward");
    });
}

/// Refuses the k-th step, with or without its effect.
struct Refusing<'a> {
    kernel: &'a Linux,
    count: Cell<usize>,
    at: usize,
    after: bool,
}

impl Kernel for Refusing<'_> {
    async fn observe(&self, scope: &Scope) -> Result<Observed, KernelError> {
        self.kernel.observe(scope).await
    }

    async fn execute(&self, step: &Step, ranges: &Ranges, stamp: &Stamp) -> Result<Executed, KernelError> {
        self.count.set(self.count.get() + 1);
        let refused = self.count.get() == self.at;
        if refused && !self.after {
            return Err(KernelError::Injected { at: format!("step {}", self.at) });
        }
        let executed = self.kernel.execute(step, ranges, stamp).await?;
        if refused { Err(KernelError::Injected { at: format!("step {}", self.at) }) } else { Ok(executed) }
    }

    async fn canonical(&self, source: &str) -> Result<String, KernelError> {
        self.kernel.canonical(source).await
    }
}

#[test]
fn an_error_at_any_step_brings_the_old_state_back() {
    in_netns(|| async {
        let mut router = Router::new().await;
        for from in [0, 1] {
            let old = router.look().await;
            let steps = diff(&router.states[1 - from], &old.state).len();
            for (at, after) in (1..=steps).flat_map(|at| [(at, false), (at, true)]) {
                let observed = router.look().await;
                let refusing = Refusing { kernel: &router.kernel, count: Cell::new(0), at, after };
                router.generation += 1;
                let (desired, journal) = (&router.states[1 - from], &mut Memory::default());
                let report = apply_to(&refusing, journal, desired, observed, router.generation).await;
                let Outcome::RolledBack { cause } = report.outcome else { panic!("step {at}: {report:?}") };
                assert!(cause.to_string().starts_with(&format!("step {at} of {steps} failed: ")), "{cause}");
                let seen = router.look().await;
                assert_eq!((&seen.state, &seen.stamp), (&old.state, &old.stamp), "step {at} from {from}");
                assert_untouched(&router.foreign, &foreign(), &format!("step {at} from {from}"));
            }
            router.generation += 1;
            let (desired, journal) = (&router.states[1 - from], &mut Memory::default());
            let report = apply_to(&router.kernel, journal, desired, old, router.generation).await;
            assert!(matches!(report.outcome, Outcome::Applied), "{report:?}");
        }
    });
}
