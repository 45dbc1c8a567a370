//! Apply: undo, crash, recovery, on the fake and on a real kernel.
//!
//! One checker holds the promise: whatever fails and whenever the process dies, the kernel shows exactly the old
//! state or exactly the new one, and what others own never changes. The sabotage twins show it red.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use futures_util::FutureExt;
use patronus::{
    apply::{
        self, Ending, Journal, JournalError, Memory, Outcome, Recovery, Report, Request, RunId, RunRecord, StepState,
        Unfinished,
    },
    kernel::{
        Kernel, Scope,
        fake::{Fake, Fault},
    },
    plan::{Step, diff},
    state::{Fwmark, Key, NftTable, Ranges, RouteKey, RouteValue, RuleKey, Stamp, State, SysctlKey, Tunnel, Value},
    units::{Family, IfName},
};
use proptest::prelude::*;
use uuid::Uuid;

#[path = "transaction/crash.rs"]
mod crash;

mod build {
    //! Objects in a few letters.

    use super::*;

    pub fn interface(name: &str) -> IfName {
        name.parse().expect("an interface name")
    }

    pub fn sysctl(interface: &str, value: u8) -> (Key, Value) {
        let path = format!("ipv4/conf/{interface}/rp_filter");
        (Key::Sysctl(SysctlKey { path: path.into() }), Value::Sysctl { value: value.to_string().into() })
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
        (Key::Link { name: interface(&format!("pt{number}")) }, Value::Link(Box::new(tunnel)))
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
        (Key::Rule(RuleKey { priority, family, fwmark, table, oif: None, suppress_prefixlength: None }), Value::Rule)
    }

    pub fn nft(number: u32) -> (Key, Value) {
        let text = format!("table inet patronus {{\nchain c{number} {{\n}}\n}}\n");
        (
            Key::Nft,
            Value::Nft(NftTable { canonical: text.as_str().into(), source: format!("# a comment\n{text}").into() }),
        )
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

    async fn step(&mut self, run: RunId, index: usize, state: StepState, why: &str) -> Result<(), JournalError> {
        let mut memory = self.memory.clone();
        self.write(format!("step {index} {}", state.as_str()), || now(memory.step(run, index, state, why))).await
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
    async fn run(self, fake: &Fake, journal: &mut impl Journal, case: &Case) -> Option<Report> {
        let scope = scope();
        let observed = fake.restart().observe(&scope).await.expect("no fault here");
        let mut steps = diff(&case.new, &observed.state);
        if !steps.is_empty() {
            steps.push(Step::Forget {
                flows: Fwmark { mark: 0x0100_0000, mask: 0xff00_0000 },
                family: None,
                reason: "gone".into(),
            });
        }
        if self == Self::UndoFromDesired {
            for step in &mut steps {
                if let Step::Set { before, after, .. } = step {
                    before.clone_from(after);
                }
            }
        }
        let request = Request {
            steps: steps.clone().into(),
            desired: &case.new,
            spared: &BTreeSet::new(),
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

/// Lives through one apply in which the n-th process meets the n-th faults, and then one undisturbed process.
/// Returns the state reached and how many operations each process had, or what promise was broken.
async fn story(case: &Case, subject: Subject, lives: &[&[Hit]]) -> Result<(End, Vec<u64>), String> {
    let first = case.fake();
    let eye = first.restart();
    let (old, foreign) = (look(&eye).await, first.foreign());
    let memory = Memory::default();
    let mut counts = vec![];
    let mut lives = lives.iter().copied();
    prepare(&first, lives.next());
    let mut report = subject.run(&first, &mut OnDisk { fake: first.clone(), memory: memory.clone() }, case).await;
    counts.push(first.operations());
    while report.is_none() {
        let fake = first.restart();
        let hits = lives.next();
        prepare(&fake, hits);
        let recovered = subject.recover(&fake, &mut OnDisk { fake: fake.clone(), memory: memory.clone() }).await;
        counts.push(fake.operations());
        match recovered {
            Some(Ok(Recovery::Settled { report: settled, .. })) => report = Some(*settled),
            Some(Ok(Recovery::Clean)) => break,
            Some(Ok(Recovery::Superseded { .. })) => return Err("recovery took the run for a stranger's".into()),
            Some(Err(_)) if hits.is_some() => {}
            Some(Err(error)) => return Err(format!("recovery failed without a fault: {error}")),
            None => {}
        }
    }
    let seen = look(&eye).await;
    if report.is_none() && memory.entries().is_empty() && counts[0] > 1 {
        // A dead journal and a kill: the documented limit. The next plan starts from what is there.
        let next = subject.run(&eye, &mut OnDisk { fake: eye.restart(), memory }, case).await;
        let reached = next.is_some_and(|next| matches!(next.outcome, Outcome::Applied | Outcome::Unchanged));
        return if reached { Ok((End::New, counts)) } else { Err("the next plan does not lead out".into()) };
    }
    let end = judge(case, &old, &seen)?;
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

fn prepare(fake: &Fake, hits: Option<&[Hit]>) {
    for (k, fault) in hits.unwrap_or_default() {
        fake.inject(*k, *fault);
    }
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

const FAULTS: [Fault; 4] = [Fault::Fail, Fault::FailAfter, Fault::KillBefore, Fault::KillAfter];
const KILLS: [Fault; 2] = [Fault::KillBefore, Fault::KillAfter];

/// Every fault at every operation of the apply. Returns how many stories were told.
async fn ordeal(case: &Case, subject: Subject) -> Result<usize, String> {
    let (_, counts) = story(case, subject, &[]).await?;
    let mut stories = 1;
    for hit in (1..=counts[0]).flat_map(|k| FAULTS.map(|fault| (k, fault))) {
        let told = story(case, subject, &[&[hit]]).await;
        told.map_err(|broken| format!("{hit:?}: {broken}"))?;
        stories += 1;
    }
    Ok(stories)
}

/// Two faults: an error and then any fault during the undo; a kill and then any fault during the recovery.
async fn double_ordeal(case: &Case) -> Result<usize, String> {
    let (_, counts) = story(case, Subject::Real, &[]).await?;
    let mut stories = 0;
    for k in 1..=counts[0] {
        for first in [Fault::Fail, Fault::FailAfter].map(|fault| (k, fault)) {
            let (_, counts) = story(case, Subject::Real, &[&[first]]).await?;
            for second in (k + 1..=counts[0]).flat_map(|k| FAULTS.map(|fault| (k, fault))) {
                let told = story(case, Subject::Real, &[&[first, second]]).await;
                told.map_err(|broken| format!("{first:?} and {second:?}: {broken}"))?;
                stories += 1;
            }
        }
        for first in KILLS.map(|fault| (k, fault)) {
            let (_, counts) = story(case, Subject::Real, &[&[first]]).await?;
            for second in (1..=counts[1]).flat_map(|k| FAULTS.map(|fault| (k, fault))) {
                let told = story(case, Subject::Real, &[&[first], &[second]]).await;
                told.map_err(|broken| format!("{first:?}, then {second:?}: {broken}"))?;
                stories += 1;
            }
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_three_faults_in_three_lives_too(
        case in cases(),
        faults in proptest::collection::vec((1..60_u64, 0..4_usize), 1..6),
    ) {
        let hits: Vec<Hit> = faults.into_iter().map(|(k, fault)| (k, FAULTS[fault])).collect();
        let third = hits.len().div_ceil(3);
        let lives: Vec<&[Hit]> = hits.chunks(third).collect();
        let told = paused(story(&case, Subject::Real, &lives));
        prop_assert!(told.is_ok(), "{hits:?}: {}", told.unwrap_err());
    }
}

fn cases_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

fn read(path: &Path) -> State {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The named cases, sorted: a folder per sentence.
fn named_cases() -> Vec<(PathBuf, Case)> {
    let entries = fs::read_dir(cases_folder()).expect("tests/cases is there");
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    folders.sort();
    assert!(folders.len() >= 6, "cases are missing: {folders:?}");
    let case =
        |folder: &PathBuf| Case { old: read(&folder.join("observed.json")), new: read(&folder.join("desired.json")) };
    folders.into_iter().map(|folder| (folder.clone(), case(&folder))).collect()
}

#[test]
fn every_named_case_has_the_plan_that_its_folder_holds() {
    for (folder, case) in named_cases() {
        let plan = serde_json::to_string_pretty(&diff(&case.new, &case.old)).expect("a plan is JSON") + "\n";
        let file = folder.join("plan.json");
        if env::var_os("PATRONUS_REGENERATE").is_some() {
            fs::write(&file, &plan).expect("a writable folder");
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(plan, expected, "{}: run with PATRONUS_REGENERATE=1 and read the difference", file.display());
    }
}

#[test]
fn every_named_case_survives_every_fault() {
    for (folder, case) in named_cases() {
        let told = paused(ordeal(&case, Subject::Real));
        assert!(told.is_ok(), "{}: {}", folder.display(), told.unwrap_err());
    }
}

#[test]
fn every_short_case_survives_a_second_fault_during_undo_and_recovery() {
    // The pairs grow with the square of the steps; the random stories cover the longer cases.
    let short = named_cases().into_iter().filter(|(_, case)| diff(&case.new, &case.old).len() <= 8);
    for (folder, case) in short {
        let told = paused(double_ordeal(&case));
        assert!(told.is_ok(), "{}: {}", folder.display(), told.unwrap_err());
    }
}

/// A case in which every kind of step occurs.
fn everything() -> Case {
    let named =
        named_cases().into_iter().find(|(folder, _)| folder.ends_with("the-active-path-and-the-policies-change"));
    named.expect("the case is there").1
}

#[test]
fn the_checker_sees_a_journal_that_forgets() {
    let told = paused(ordeal(&everything(), Subject::ForgetfulJournal));
    assert!(told.unwrap_err().contains("neither old nor new"));
}

#[test]
fn the_checker_sees_an_undo_that_comes_from_the_desired_state() {
    assert!(paused(ordeal(&everything(), Subject::UndoFromDesired)).is_err());
}

#[test]
fn the_checker_sees_an_executor_that_ignores_errors() {
    assert!(paused(ordeal(&everything(), Subject::IgnoresErrors)).is_err());
}

fn journal(fake: &Fake) -> OnDisk {
    OnDisk { fake: fake.clone(), memory: Memory::default() }
}

#[test]
fn after_an_apply_the_next_plan_is_empty_and_a_second_apply_does_nothing() {
    for (_, case) in named_cases() {
        let fake = case.fake();
        let mut journal = journal(&fake);
        let first = paused(Subject::Real.run(&fake, &mut journal, &case)).expect("nobody killed it");
        let second = paused(Subject::Real.run(&fake, &mut journal, &case)).expect("nobody killed it");
        assert!(matches!(first.outcome, Outcome::Applied), "{first:?}");
        assert_eq!(first.flows, 1, "the flows of the released mark are forgotten");
        assert!(matches!(second.outcome, Outcome::Unchanged), "{second:?}");
        assert_eq!(journal.memory.entries().len(), 1);
    }
}

#[test]
fn an_error_at_a_step_says_which_and_why() {
    let case = everything();
    let fake = case.fake();
    // begin, then started, execute and done for each step.
    fake.inject(3 + 3, Fault::Fail);
    let report = paused(Subject::Real.run(&fake, &mut journal(&fake), &case)).expect("nobody killed it");
    let Outcome::RolledBack { cause } = report.outcome else { panic!("{report:?}") };
    assert!(cause.to_string().starts_with("step 2 of "), "{cause}");
    assert!(std::error::Error::source(&cause).expect("a cause").to_string().starts_with("injected fault at "));
    // So does the journal, also when the step was undone since.
    let (dir, fake) = (tempfile::tempdir().expect("a directory"), case.fake());
    fake.inject(2, Fault::Fail);
    let mut ledger = patronus::store::Ledger::open(dir.path()).0;
    paused(Subject::Real.run(&fake, &mut ledger, &case)).expect("nobody killed it");
    let db = rusqlite::Connection::open(patronus::store::journal_file(dir.path())).expect("a journal");
    let sql = "SELECT number, state, error FROM steps WHERE error IS NOT NULL";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let (number, state, error): (i64, String, String) = db.query_row(sql, [], row).expect("one step that failed");
    assert_eq!((number, state.as_str()), (1, "undone"));
    assert!(error.contains("injected fault at "), "{error}");
}

#[test]
fn a_failed_undo_names_everything_that_is_left() {
    let case = everything();
    let steps = diff(&case.new, &case.old).len() as u64;
    // One operation per step, one for the flows to forget.
    for k in 1..=steps + 1 {
        let fake = case.fake();
        let old = paused(look(&fake.restart())).state;
        fake.fail_from(k);
        let memory = Memory::default();
        let mut disk = OnDisk { fake: fake.restart(), memory: memory.clone() };
        let report = paused(Subject::Real.run(&fake, &mut disk, &case)).expect("nobody killed it");
        let Outcome::RollbackFailed { left, undo, .. } = report.outcome else { panic!("{k}: {report:?}") };
        assert!(undo.is_some());
        let seen = paused(look(&fake.restart())).state;
        for step in diff(&old, &seen) {
            let name = apply::describe(step.key().expect("a difference has a key"));
            assert!(left.iter().any(|line| line.starts_with(&name)), "{k}: {name} is not in {left:?}");
        }
        assert_eq!(memory.entries()[0].end.as_ref().map(|end| end.0), Some(Ending::RollbackFailed));
    }
}

#[test]
fn a_dead_journal_raises_an_alarm_and_stops_nothing() {
    let case = everything();
    let fake = case.fake();
    let disk = fake.restart();
    disk.fail_from(1);
    let mut disk = OnDisk { fake: disk, memory: Memory::default() };
    let report = paused(Subject::Real.run(&fake, &mut disk, &case)).expect("nobody killed it");
    assert!(matches!(report.outcome, Outcome::Applied), "{report:?}");
    assert_eq!(report.alarm.expect("an alarm").to_string(), "begin");
}

#[test]
fn a_dead_journal_does_not_stop_an_undo_either() {
    let case = everything();
    let fake = case.fake();
    let old = paused(look(&fake.restart()));
    let disk = fake.restart();
    disk.fail_from(2);
    fake.inject(3, Fault::Fail);
    let mut disk = OnDisk { fake: disk, memory: Memory::default() };
    let report = paused(Subject::Real.run(&fake, &mut disk, &case)).expect("nobody killed it");
    assert!(matches!(report.outcome, Outcome::RolledBack { .. }), "{report:?}");
    assert!(report.alarm.is_some());
    assert_eq!(paused(look(&fake.restart())), old);
}

/// Kills an apply in the middle and gives back the kernel and the journal that it leaves.
fn killed_in_the_middle(case: &Case) -> (Fake, Memory) {
    let fake = case.fake();
    let mut disk = journal(&fake);
    fake.inject(9, Fault::KillAfter);
    assert!(paused(Subject::Real.run(&fake, &mut disk, case)).is_none());
    (fake.restart(), disk.memory)
}

#[test]
fn a_run_that_a_later_one_went_over_is_closed_and_not_undone() {
    let case = everything();
    let (fake, mut memory) = killed_in_the_middle(&case);
    fake.install(&case.new, Some(Stamp { generation: 8, plan: Uuid::from_u128(8) }));
    let before = paused(look(&fake));
    let recovery = paused(apply::recover(&fake, &mut memory, &scope())).expect("it can look");
    assert!(matches!(recovery, Recovery::Superseded { .. }), "{recovery:?}");
    assert_eq!(paused(look(&fake)), before);
    assert_eq!(memory.entries()[0].end.as_ref().map(|end| end.0), Some(Ending::Superseded));
}

#[test]
fn a_run_from_before_a_reboot_is_closed_and_not_undone() {
    let case = everything();
    let (_, memory) = killed_in_the_middle(&case);
    let mut record = memory.entries()[0].record.clone();
    record.place = "another boot".into();
    let mut journal = Memory::default();
    now(journal.begin(&record)).expect("memory");
    now(journal.step(RunId(0), 0, StepState::Done, "")).expect("memory");
    let empty = Case { old: State::default(), new: State::default() }.fake();
    let before = paused(look(&empty));
    let recovery = paused(apply::recover(&empty, &mut journal, &scope())).expect("it can look");
    assert!(matches!(recovery, Recovery::Superseded { .. }), "{recovery:?}");
    assert_eq!(paused(look(&empty)), before);
}

#[test]
fn recovering_twice_is_recovering_once() {
    let (fake, mut memory) = killed_in_the_middle(&everything());
    let first = paused(apply::recover(&fake, &mut memory, &scope())).expect("it can look");
    let after = paused(look(&fake));
    let second = paused(apply::recover(&fake, &mut memory, &scope())).expect("it can look");
    assert!(matches!(first, Recovery::Settled { .. }), "{first:?}");
    assert!(matches!(second, Recovery::Clean), "{second:?}");
    assert_eq!(paused(look(&fake)), after);
}

#[test]
fn the_journal_on_disk_gives_back_what_a_killed_run_left_and_closes_older_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, memory) = killed_in_the_middle(&everything());
    let left = now(memory.clone().unfinished()).expect("memory").expect("an open run");
    let mut disk = patronus::store::Ledger::open(dir.path()).0;
    now(disk.begin(&left.record)).expect("a writable journal");
    let run = now(disk.begin(&left.record)).expect("a writable journal");
    for (index, state) in left.states.iter().enumerate().filter_map(|(index, state)| Some((index, (*state)?))) {
        now(disk.step(run, index, state, "")).expect("a writable journal");
    }
    drop(disk);
    let mut disk = patronus::store::Ledger::open(dir.path()).0;
    let found = now(disk.unfinished()).expect("a readable journal").expect("an open run");
    assert_eq!((found.run, found.record, found.states), (run, left.record, left.states));
    now(disk.finish(found.run, Ending::RolledBack, "as told")).expect("a writable journal");
    assert_eq!(now(disk.unfinished()).expect("a readable journal"), None);
}
