//! A kernel in memory that injects faults.
//!
//! Invariant: it models what the transaction has to survive, and nothing kinder. Rules have no replace and never appear
//! twice; a route is keyed by (table, destination, metric); making a link anew takes its routes and sysctls
//! with it; deleting the absent is Ok; what others own is kept apart and never changes.
//!
//! A [`Fake`] is one process; [`Fake::restart`] is the next one on the same kernel. A killed process does not
//! return an error, which its code could act on: the operation never returns. Race it with [`Fake::killed`].

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{Executed, Kernel, KernelError, Scope};
use crate::{
    plan::Step,
    state::{
        Allocations, Counter, Facts, Fwmark, Key, LinkFacts, NftTable, Observed, Ranges, RouteValue, Stamp, State,
        SysctlKey, Value, sysctl_text,
    },
    units::{IfName, Name},
};

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;

/// What happens at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It fails without an effect.
    Fail,
    /// It has its effect and fails nevertheless, like a reply that got lost.
    FailAfter,
    /// The process is killed before the effect.
    KillBefore,
    /// The process is killed after the effect.
    KillAfter,
}

/// The kernel that all processes share.
#[derive(Debug, Default)]
struct World {
    ours: BTreeMap<Key, Value>,
    sysctls: BTreeMap<String, String>,
    stamp: Option<Stamp>,
    facts: Facts,
    allocations: Allocations,
    counters: BTreeMap<Name, Counter>,
    foreign: BTreeMap<Key, Value>,
    flows: Vec<u32>,
}

/// What belongs to one process.
#[derive(Debug, Default)]
struct Life {
    count: u64,
    faults: BTreeMap<u64, Fault>,
    refused_from: Option<u64>,
    log: Vec<String>,
    dead: bool,
}

/// A kernel in memory, as one process sees it. Clones are the same process.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    world: Arc<Mutex<World>>,
    life: Arc<Mutex<Life>>,
    death: Arc<Notify>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is around our objects.
impl Fake {
    /// A kernel with these interfaces, up and with a carrier.
    #[must_use]
    pub fn with_links(names: &[&IfName]) -> Self {
        let fake = Self::default();
        for (index, name) in (1..).zip(names) {
            let facts = LinkFacts { index, up: true, carrier: true, mtu: 1500, ..LinkFacts::default() };
            lock(&fake.world).facts.links.insert((*name).clone(), facts);
        }
        fake
    }

    /// Replaces the facts. Routes over interfaces that are gone disappear with them.
    pub fn set_facts(&self, facts: Facts) {
        let mut world = lock(&self.world);
        let gone: Vec<IfName> =
            world.facts.links.keys().filter(|name| !facts.links.contains_key(*name)).cloned().collect();
        world.facts = facts;
        for name in gone {
            world.lose_link(&name);
        }
    }

    /// Sets the numbers that `observe` reports.
    pub fn set_allocations(&self, allocations: Allocations) {
        lock(&self.world).allocations = allocations;
    }

    /// Sets the counters that `observe` reports.
    pub fn set_counters(&self, counters: BTreeMap<Name, Counter>) {
        lock(&self.world).counters = counters;
    }

    /// Sets the connection marks of the flows that exist.
    pub fn set_flows(&self, marks: Vec<u32>) {
        lock(&self.world).flows = marks;
    }

    /// Connection marks of the flows that exist.
    #[must_use]
    pub fn flows(&self) -> Vec<u32> {
        lock(&self.world).flows.clone()
    }

    /// Adds an object of somebody else.
    pub fn add_foreign(&self, key: Key, value: Value) {
        lock(&self.world).foreign.insert(key, value);
    }

    /// Everything that is not ours, as text to compare byte by byte.
    #[must_use]
    pub fn foreign(&self) -> String {
        format!("{:#?}", lock(&self.world).foreign)
    }

    /// Changes our objects behind the back of the process: drift.
    pub fn tamper(&self, change: impl FnOnce(&mut BTreeMap<Key, Value>)) {
        let mut world = lock(&self.world);
        change(&mut world.ours);
        if !world.ours.contains_key(&Key::Nft) {
            world.stamp = None;
        }
    }

    /// Puts a whole state there, as an earlier apply would have left it.
    pub fn install(&self, state: &State, stamp: Option<Stamp>) {
        let mut world = lock(&self.world);
        for (key, value) in &state.objects {
            match (key, value) {
                (Key::Sysctl(key), Value::Sysctl { value }) => {
                    world.sysctls.insert(key.path.to_string(), value.to_string());
                }
                _ => {
                    world.ours.insert(key.clone(), as_listed(value));
                }
            }
        }
        world.stamp = stamp;
    }
}

/// Faults and processes.
impl Fake {
    /// Lets the `k`-th operation from now on meet a fault, counted from 1.
    pub fn inject(&self, k: u64, fault: Fault) {
        let mut life = lock(&self.life);
        let at = life.count + k;
        life.faults.insert(at, fault);
    }

    /// Lets the `k`-th operation from now on and every later one fail, counted from 1.
    pub fn fail_from(&self, k: u64) {
        let mut life = lock(&self.life);
        life.refused_from = Some(life.count + k);
    }

    /// How many operations this process has begun.
    #[must_use]
    pub fn operations(&self) -> u64 {
        lock(&self.life).count
    }

    /// What this process did, one line per operation.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        lock(&self.life).log.clone()
    }

    /// The next process on the same kernel, without faults.
    #[must_use]
    pub fn restart(&self) -> Self {
        Self { world: Arc::clone(&self.world), ..Self::default() }
    }

    /// Returns when the process is dead.
    pub async fn killed(&self) {
        let notified = self.death.notified();
        if !lock(&self.life).dead {
            notified.await;
        }
    }

    /// One operation that faults can hit, such as a write of a test's journal: it counts like the kernel's own.
    pub async fn operation<T>(
        &self,
        what: impl Into<String>,
        effect: impl FnOnce() -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let what = what.into();
        let fault = self.begin(&what);
        match fault {
            Some(Fault::KillBefore) => match self.die().await {},
            Some(Fault::Fail) => return Err(KernelError::Injected { at: what }),
            _ => {}
        }
        let done = effect();
        match fault {
            Some(Fault::KillAfter) => match self.die().await {},
            Some(Fault::FailAfter) => Err(KernelError::Injected { at: what }),
            _ => done,
        }
    }

    fn begin(&self, what: &str) -> Option<Fault> {
        let mut life = lock(&self.life);
        if life.dead {
            return Some(Fault::KillBefore);
        }
        life.count += 1;
        let count = life.count;
        life.log.push(format!("{count} {what}"));
        let refused = life.refused_from.is_some_and(|from| count >= from);
        life.faults.remove(&count).or_else(|| refused.then_some(Fault::Fail))
    }

    async fn die(&self) -> Infallible {
        lock(&self.life).dead = true;
        self.death.notify_waiters();
        future::pending().await
    }
}

impl Kernel for Fake {
    async fn observe(&self, scope: &Scope) -> Result<Observed, KernelError> {
        self.operation("observe", || Ok(lock(&self.world).observe(scope))).await
    }

    async fn execute(&self, step: &Step, ranges: &Ranges, stamp: &Stamp) -> Result<Executed, KernelError> {
        let what = match step {
            Step::Set { key, after, .. } => format!("set {key:?} to {after:?}"),
            Step::Forget { flows, .. } => format!("forget {flows}"),
        };
        self.operation(what, || lock(&self.world).execute(step, ranges, stamp)).await
    }

    async fn canonical(&self, source: &str) -> Result<String, KernelError> {
        Ok(canonical(source))
    }
}

/// A ruleset without indentation, blank lines and comments.
fn canonical(source: &str) -> String {
    let lines = source.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

fn as_listed(value: &Value) -> Value {
    match value {
        Value::Nft(table) => {
            let text: Arc<str> = canonical(&table.source).into();
            Value::Nft(NftTable { canonical: Arc::clone(&text), source: text })
        }
        other => other.clone(),
    }
}

fn refused(doing: String, errno: i32, text: &str) -> KernelError {
    KernelError::Netlink { doing, errno, text: text.to_owned() }
}

impl World {
    fn observe(&self, scope: &Scope) -> Observed {
        let sysctls = scope.sysctls.iter().filter(|path| self.has_sysctl(path)).map(|path| {
            let value = sysctl_text(self.sysctls.get(path).map_or("0", String::as_str));
            (Key::Sysctl(SysctlKey { path: path.as_str().into() }), Value::Sysctl { value })
        });
        let ours = self.ours.iter().map(|(key, value)| (key.clone(), value.clone()));
        Observed {
            state: Arc::new(State { objects: ours.chain(sysctls).collect() }),
            facts: self.facts_in(&scope.interfaces),
            allocations: self.allocations.clone(),
            stamp: self.stamp.clone(),
            counters: self.counters.clone(),
            intruders: self.intruders(&scope.ranges),
        }
    }

    fn facts_in(&self, interfaces: &[IfName]) -> Facts {
        let wanted: BTreeSet<&IfName> = interfaces.iter().collect();
        let links = self.facts.links.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name));
        Facts { links: links.map(|(name, facts)| (name.clone(), facts.clone())).collect() }
    }

    fn intruders(&self, ranges: &Ranges) -> Vec<String> {
        let inside = |key: &&Key| match key {
            Key::Route(route) => ranges.owns_table(route.table),
            Key::Rule(rule) => ranges.owns_priority(rule.priority),
            _ => false,
        };
        self.foreign.keys().filter(inside).map(|key| format!("{key:?}")).collect()
    }

    fn execute(&mut self, step: &Step, ranges: &Ranges, stamp: &Stamp) -> Result<Executed, KernelError> {
        match step {
            Step::Forget { flows, .. } => Ok(self.forget(*flows)),
            Step::Set { key: Key::Sysctl(key), after, .. } => self.set_sysctl(key, after.as_ref()),
            Step::Set { key, after: None, .. } => Ok(self.remove(key)),
            Step::Set { key, after: Some(value), .. } => self.set(key, value, ranges, stamp),
        }
    }

    fn forget(&mut self, which: Fwmark) -> Executed {
        let before = self.flows.len();
        self.flows.retain(|mark| mark & which.mask != which.mark);
        Executed { flows: (before - self.flows.len()) as u64 }
    }

    fn has_link(&self, name: &str) -> bool {
        let ours = |key: &Key| matches!(key, Key::Link { name: ours } if ours.as_str() == name);
        self.facts.links.keys().any(|known| known.as_str() == name) || self.ours.keys().any(ours)
    }

    /// Files under `conf/` come and go with their interface; every other one exists.
    fn has_sysctl(&self, path: &str) -> bool {
        match path.split('/').collect::<Vec<_>>()[..] {
            [_, "conf", "all" | "default", _] => true,
            [_, "conf", interface, _] => self.has_link(interface),
            _ => true,
        }
    }

    fn set_sysctl(&mut self, key: &SysctlKey, after: Option<&Value>) -> Result<Executed, KernelError> {
        let Some(Value::Sysctl { value }) = after else { return Ok(Executed::default()) };
        if !self.has_sysctl(&key.path) {
            let source = std::io::Error::from_raw_os_error(ENOENT);
            return Err(KernelError::Sysctl { doing: format!("writing {}", key.path), source });
        }
        self.sysctls.insert(key.path.to_string(), value.to_string());
        Ok(Executed::default())
    }

    fn remove(&mut self, key: &Key) -> Executed {
        let there = self.ours.remove(key).is_some();
        match key {
            Key::Link { name } if there => self.lose_link(name),
            Key::Nft => self.stamp = None,
            _ => {}
        }
        Executed::default()
    }

    fn set(&mut self, key: &Key, value: &Value, ranges: &Ranges, stamp: &Stamp) -> Result<Executed, KernelError> {
        if self.foreign.contains_key(key) {
            return Err(refused(format!("adding {key:?}"), EEXIST, "somebody else's object is there"));
        }
        match (key, value) {
            (Key::Route(route), Value::Route(to)) if ranges.owns_table(route.table) => self.reachable(key, to)?,
            (Key::Rule(rule), Value::Rule) if ranges.owns_priority(rule.priority) => {}
            (Key::Link { name }, Value::Link(tunnel)) => {
                if !self.has_link(tunnel.over.as_str()) {
                    return Err(refused(format!("adding link {name}"), ENODEV, "no such device"));
                }
                if self.ours.get(key) != Some(value) {
                    self.lose_link(name);
                }
            }
            (Key::Nft, Value::Nft(_)) => self.stamp = Some(stamp.clone()),
            _ => return Err(refused(format!("setting {key:?}"), 22, "not an object of ours")),
        }
        self.ours.insert(key.clone(), as_listed(value));
        Ok(Executed::default())
    }

    fn reachable(&self, key: &Key, to: &RouteValue) -> Result<(), KernelError> {
        match to {
            RouteValue::Via { interface, .. } if !self.has_link(interface.as_str()) => {
                Err(refused(format!("adding {key:?} by {interface}"), ENODEV, "no such device"))
            }
            _ => Ok(()),
        }
    }

    /// An interface takes its routes and its sysctls along.
    fn lose_link(&mut self, name: &IfName) {
        let over =
            |value: &Value| matches!(value, Value::Route(RouteValue::Via { interface, .. }) if interface == name);
        self.ours.retain(|_, value| !over(value));
        let conf = format!("/conf/{name}/");
        self.sysctls.retain(|path, _| !path.contains(&conf));
    }
}
