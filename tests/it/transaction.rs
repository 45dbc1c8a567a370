//! Apply: undo, crash, recovery, on the fake and on a real kernel.
//!
//! One checker holds the promise: whatever fails and whenever the process dies, the kernel shows exactly the old
//! state or exactly the new one, and what others own never changes. The sabotage twins show it red.

use std::{fs, path::Path};

use futures_util::FutureExt;
use patronus::{
    apply::{
        self, Ending, Journal, JournalError, Memory, Outcome, Recovery, Report, Request, RunId, RunRecord, StepState,
        Unfinished,
    },
    kernel::{
        Kernel, KernelError, Scope,
        fake::{Fake, Fault},
    },
    plan::{Step, diff},
    state::{Fwmark, Key, NftTable, Ranges, RouteKey, RouteValue, RuleKey, Stamp, State, SysctlKey, Tunnel, Value},
    units::{Family, IfName},
};
use proptest::prelude::*;
use uuid::Uuid;

mod build {
    //! Objects in a few letters.

    use super::*;

    pub fn interface(name: &str) -> IfName {
        name.parse().expect("an interface name")
    }

    pub fn sysctl(interface: &str, value: u8) -> (Key, Value) {
        let path = format!("ipv4/conf/{interface}/rp_filter");
        (Key::Sysctl(SysctlKey { path }), Value::Sysctl { value: value.to_string() })
    }

    pub fn link(number: u32, mtu: u32, over: &str) -> (Key, Value) {
        let tunnel = Tunnel {
            id: number,
            local: "198.51.100.2".parse().expect("an address"),
            remote: "203.0.113.2".parse().expect("an address"),
            port: 4789,
            over: interface(over),
            mtu,
            addresses: vec!["10.255.0.1/31".parse().expect("a prefix")],
        };
        (Key::Link { name: interface(&format!("pt{number}")) }, Value::Link(tunnel))
    }

    pub fn route(number: u32, family: Family, metric: u32, by: Option<&str>) -> (Key, Value) {
        let (everything, gateway) = match family {
            Family::V4 => ("0.0.0.0/0", "198.51.100.1"),
            Family::V6 => ("::/0", "2001:db8::1"),
        };
        let destination = everything.parse().expect("a prefix");
        let value = by.map_or(RouteValue::Unreachable, |by| RouteValue::Via {
            gateway: Some(gateway.parse().expect("an address")),
            interface: interface(by),
            mtu: None,
        });
        (Key::Route(RouteKey { table: 20_000 + number, family, destination, metric }), Value::Route(value))
    }

    pub fn rule(number: u32, family: Family) -> (Key, Value) {
        let fwmark = Some(Fwmark { mark: number << 24, mask: 0xff00_0000 });
        let (priority, table) = (20_000 + number, 20_000 + number);
        (Key::Rule(RuleKey { priority, family, fwmark, table, suppress_prefixlength: None }), Value::Rule)
    }

    pub fn nft(number: u32) -> (Key, Value) {
        let text = format!("table inet patronus {{\nchain c{number} {{\n}}\n}}\n");
        (Key::Nft, Value::Nft(NftTable { canonical: text.clone(), source: format!("# a comment\n{text}") }))
    }
}

/// From one state to another, with foreign objects around.
#[derive(Debug, Clone)]
struct Case {
    old: State,
    new: State,
}

const SYSCTLS: [&str; 3] = ["ipv4/conf/wan0/rp_filter", "ipv4/conf/wan1/rp_filter", "ipv4/conf/wan2/rp_filter"];

fn scope() -> Scope {
    Scope { ranges: Ranges::default(), sysctls: SYSCTLS.map(str::to_owned).to_vec(), interfaces: vec![] }
}

fn old_stamp() -> Stamp {
    Stamp { generation: 6, plan: Uuid::from_u128(6) }
}

fn new_stamp() -> Stamp {
    Stamp { generation: 7, plan: Uuid::from_u128(7) }
}

impl Case {
    fn fake(&self) -> Fake {
        let links = ["wan0", "wan1", "wan2"].map(build::interface);
        let fake = Fake::with_links(&links.iter().collect::<Vec<_>>());
        for number in 0..20 {
            let (Key::Route(mut key), value) = build::route(0, Family::V4, number, Some("wan0")) else {
                unreachable!()
            };
            key.table = 254;
            fake.add_foreign(Key::Route(key), value);
            let (Key::Rule(mut key), value) = build::rule(number, Family::V6) else { unreachable!() };
            key.priority = 5_000;
            fake.add_foreign(Key::Rule(key), value);
        }
        let has_table = self.old.objects.contains_key(&Key::Nft);
        fake.install(&self.old, has_table.then(old_stamp));
        fake.set_flows(vec![0x0100_0000, 0x0200_0000, 0x0300_0000]);
        fake
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the journal in memory never waits")
}

/// A journal whose every write is an operation that faults can hit. It outlives the process.
#[derive(Clone)]
struct OnDisk {
    fake: Fake,
    memory: Memory,
}

impl OnDisk {
    async fn write<T>(&self, what: String, write: impl FnOnce() -> Result<T, JournalError>) -> Result<T, JournalError> {
        let mut result = None;
        let effect = || {
            result = Some(write());
            Ok(())
        };
        let done = self.fake.operation(format!("journal {what}"), effect).await;
        done.map_err(|error| JournalError { doing: what, source: error.into() })?;
        result.expect("an operation without a fault has its effect")
    }
}

impl Journal for OnDisk {
    async fn begin(&mut self, record: &RunRecord) -> Result<RunId, JournalError> {
        let mut memory = self.memory.clone();
        self.write("begin".into(), || now(memory.begin(record))).await
    }

    async fn step(&mut self, run: RunId, index: usize, state: StepState) -> Result<(), JournalError> {
        let mut memory = self.memory.clone();
        self.write(format!("step {index} {}", state.as_str()), || now(memory.step(run, index, state))).await
    }

    async fn finish(&mut self, run: RunId, ending: Ending, message: &str) -> Result<(), JournalError> {
        let mut memory = self.memory.clone();
        self.write(format!("finish {}", ending.as_str()), || now(memory.finish(run, ending, message))).await
    }

    async fn unfinished(&mut self) -> Result<Option<Unfinished>, JournalError> {
        let mut memory = self.memory.clone();
        self.write("unfinished".into(), || now(memory.unfinished())).await
    }
}

/// What is checked: the transaction, or one that lacks a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Real,
    ForgetfulJournal,
    UndoFromDesired,
    IgnoresErrors,
}

impl Subject {
    async fn run(self, fake: &Fake, journal: &mut OnDisk, case: &Case) -> Option<Report> {
        let scope = scope();
        let observed = fake.restart().observe(&scope).await.expect("no fault here");
        let mut steps = diff(&case.new, &observed.state);
        if !steps.is_empty() {
            steps.push(Step::Forget { flows: Fwmark { mark: 0x0100_0000, mask: 0xff00_0000 }, reason: "gone".into() });
        }
        if self == Self::UndoFromDesired {
            for step in &mut steps {
                if let Step::Set { before, after, .. } = step {
                    before.clone_from(after);
                }
            }
        }
        let request = Request {
            steps: &steps,
            desired: &case.new,
            scope: &scope,
            stamp: new_stamp(),
            previous: observed.stamp,
            revision: "r7",
        };
        let work = async {
            match self {
                Self::IgnoresErrors => careless(fake, &steps).await,
                _ => apply::run(fake, journal, request).await,
            }
        };
        until_killed(fake, work).await
    }

    async fn recover(self, fake: &Fake, journal: &mut OnDisk) -> Option<Result<Recovery, apply::RecoveryError>> {
        if self == Self::ForgetfulJournal {
            return Some(Ok(Recovery::Clean));
        }
        until_killed(fake, apply::recover(fake, journal, &scope())).await
    }
}

/// The executor that nobody should write.
async fn careless(fake: &Fake, steps: &[Step]) -> Report {
    for step in steps {
        let _ = fake.execute(step, &Ranges::default(), &new_stamp()).await;
    }
    Report { run: None, outcome: Outcome::Applied, steps: steps.len(), flows: 0, alarm: None }
}

async fn until_killed<T>(fake: &Fake, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! { biased; done = work => Some(done), () = fake.killed() => None }
}

/// A fault at the k-th operation of a process.
type Hit = (u64, Fault);

/// How a story ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Old,
    New,
}

/// Lives through one apply in which the n-th process meets the n-th fault, and then one undisturbed process.
/// Returns the state reached and how many operations each process had, or what promise was broken.
async fn story(case: &Case, subject: Subject, hits: &[Hit]) -> Result<(End, Vec<u64>), String> {
    let first = case.fake();
    let eye = first.restart();
    let (old, foreign) = (look(&eye).await, first.foreign());
    let memory = Memory::default();
    let mut counts = vec![];
    let mut hits = hits.iter().copied();
    if let Some((k, fault)) = hits.next() {
        first.inject(k, fault);
    }
    let mut report = subject.run(&first, &mut OnDisk { fake: first.clone(), memory: memory.clone() }, case).await;
    counts.push(first.operations());
    while report.is_none() {
        let fake = first.restart();
        let hit = hits.next();
        if let Some((k, fault)) = hit {
            fake.inject(k, fault);
        }
        let recovered = subject.recover(&fake, &mut OnDisk { fake: fake.clone(), memory: memory.clone() }).await;
        counts.push(fake.operations());
        match recovered {
            Some(Ok(Recovery::Settled { report: settled, .. })) => report = Some(*settled),
            Some(Ok(Recovery::Clean)) => break,
            Some(Ok(Recovery::Superseded { .. })) => return Err("recovery took the run for a stranger's".into()),
            Some(Err(_)) if hit.is_some() => {}
            Some(Err(error)) => return Err(format!("recovery failed without a fault: {error}")),
            None => {}
        }
    }
    let end = judge(case, &old, &look(&eye).await)?;
    match report.map(|report| report.outcome) {
        Some(Outcome::Applied) if end != End::New => return Err("it says applied, and the old state is there".into()),
        Some(Outcome::RolledBack { cause }) if end != End::Old && diff(&case.new, &old.state) != vec![] => {
            return Err(format!("it says rolled back ({cause}), and the new state is there"));
        }
        Some(Outcome::RollbackFailed { cause, undo, left }) => {
            return Err(format!("the undo failed: {cause}, {undo:?}, {left:?}"));
        }
        _ => {}
    }
    if eye.foreign() != foreign {
        return Err("a foreign object changed".into());
    }
    Ok((end, counts))
}

async fn look(eye: &Fake) -> patronus::state::Observed {
    eye.observe(&scope()).await.expect("no fault here")
}

fn judge(case: &Case, old: &patronus::state::Observed, seen: &patronus::state::Observed) -> Result<End, String> {
    let wanted = if case.new.objects.contains_key(&Key::Nft) { Some(new_stamp()) } else { None };
    let moves_table = case.new.objects.get(&Key::Nft) != case.old.objects.get(&Key::Nft);
    let left = diff(&case.new, &seen.state);
    if left.is_empty() && (!moves_table || seen.stamp == wanted) {
        return Ok(End::New);
    }
    if seen.state == old.state && seen.stamp == old.stamp {
        return Ok(End::Old);
    }
    let from_old = diff(&old.state, &seen.state);
    Err(format!("neither old nor new: {} steps from the old, {} from the new", from_old.len(), left.len()))
}

/// Every fault at every operation of the apply, then every pair of a kill and a second fault in recovery.
async fn ordeal(case: &Case, subject: Subject) -> Result<usize, String> {
    let (_, counts) = story(case, subject, &[]).await?;
    let mut stories = 1;
    for k in 1..=counts[0] {
        for fault in [Fault::Fail, Fault::FailAfter, Fault::KillBefore, Fault::KillAfter] {
            let told = story(case, subject, &[(k, fault)]).await;
            told.map_err(|broken| format!("{fault:?} at operation {k}: {broken}"))?;
            stories += 1;
        }
    }
    Ok(stories)
}

fn paused<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(work)
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

prop_compose! {
    fn links()(chosen in proptest::collection::vec((1..3_u32, 0..2_u32, 0..3_u32), 0..3)) -> Vec<(Key, Value)> {
        chosen.into_iter().map(|(n, mtu, over)| build::link(n, 1400 + 50 * mtu, &format!("wan{over}"))).collect()
    }
}

prop_compose! {
    fn states()(
        links in links(),
        routes in proptest::collection::vec((1..4_u32, families(), 1..4_u32, 0..6_u32), 0..8),
        rules in proptest::collection::vec((1..4_u32, families()), 0..4),
        nft in proptest::option::of(0..3_u32),
        sysctls in proptest::collection::vec((0..3_u32, 0..3_u8), 0..3),
    ) -> State {
        let mut state = State { objects: links.into_iter().collect() };
        for (number, family, metric, by) in routes {
            let tunnel = format!("pt{}", by.saturating_sub(3));
            let there = state.objects.contains_key(&Key::Link { name: build::interface(&tunnel) });
            let by = match by {
                0..3 => Some(format!("wan{by}")),
                _ if there => Some(tunnel),
                _ => None,
            };
            state.objects.extend([build::route(number, family, 10 * metric, by.as_deref())]);
        }
        state.objects.extend(rules.into_iter().map(|(number, family)| build::rule(number, family)));
        state.objects.extend(nft.map(build::nft));
        state.objects.extend(sysctls.into_iter().map(|(n, value)| build::sysctl(&format!("wan{n}"), value)));
        state
    }
}

prop_compose! {
    fn cases()(old in states(), new in states()) -> Case {
        Case { old, new }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_fault_anywhere_the_state_is_exactly_the_old_or_exactly_the_new(case in cases()) {
        let told = paused(ordeal(&case, Subject::Real));
        prop_assert!(told.is_ok(), "{}", told.unwrap_err());
    }
}
