//! One router: its kernel, its journal, and what it remembers. The pipeline from a site to a changed kernel,
//! as the daemon and the one-shot verbs share it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::captured::{Captured, Frozen};
use crate::{
    apply::{self, Outcome, RecoveryError, Request},
    desired::{self, CompileError},
    drift::{self, Drifted, Mode, Modes},
    failover::Selection,
    kernel::{Kernel, KernelError, Scope},
    plan::{self, Step},
    state::{Allocations, Key, NftTable, Observed, Originals, Ranges, Stamp, State, SysctlKey, Value, sysctl_text},
    store::Ledger,
    units::{IfName, pack},
    validate::intent::Site,
};

/// Under which name the ledger keeps the numbers.
const ALLOCATIONS: &str = "allocations";
/// Under which name the ledger keeps how the ruleset applied last was written.
const WRITTEN: &str = "written";

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The site cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The kernel cannot be read, or does not accept the ruleset.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What shall be done, and all that doing it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The state that the steps lead to.
    pub desired: Arc<State>,
    /// The steps in order. Shared with the journal's record of the run: thousands at the start of a large hub.
    pub steps: Arc<[Step]>,
    /// Numbers in the desired state.
    pub allocations: Allocations,
    /// Stamp of the new state.
    pub stamp: Stamp,
    /// Stamp that was observed.
    pub previous: Option<Stamp>,
    /// Drift that is left as it is: the steps do not touch it, and nobody expects it to be as desired.
    pub spared: BTreeSet<Key>,
    /// How the ruleset was written, where its canonical form had to be made for this plan.
    pub written: Option<Written>,
}

/// What the state applied last belongs to.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct InForce {
    /// The boot and the network namespace that it was applied in.
    place: String,
    revision: String,
}

/// How a ruleset was written, and by which program its canonical form was made. A large hub's is megabytes, so it is
/// in the ledger only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    by: String,
    source: Arc<str>,
    /// Of the canonical form, since the state is written at another moment.
    digest: String,
}

impl Written {
    fn is_of(&self, table: &NftTable) -> bool {
        self.digest == digest(&table.canonical)
    }
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"))
}

/// Which revision was applied last, and where.
const IN_FORCE: &str = "in-force";

/// A router.
#[derive(Debug)]
pub struct Router<K> {
    /// Its kernel.
    pub kernel: K,
    /// Its journal.
    pub ledger: Ledger,
    ranges: Ranges,
    known: Allocations,
    originals: Originals,
    applied: Option<Arc<State>>,
    in_force: InForce,
    modes: Modes,
    generation: u64,
}

/// Adds what is known and not shown, where its number is not taken meanwhile.
fn fill_in<T: Ord + Clone>(shown: &mut BTreeMap<T, u32>, known: &BTreeMap<T, u32>) {
    let taken: BTreeSet<u32> = shown.values().copied().collect();
    for (item, number) in known.iter().filter(|(_, number)| !taken.contains(number)) {
        shown.entry(item.clone()).or_insert(*number);
    }
}

/// Brings a state to where executed steps have led.
fn take_in(steps: &[&Step], state: &mut Arc<State>) {
    if steps.is_empty() {
        return;
    }
    let objects = &mut Arc::make_mut(state).objects;
    for step in steps {
        match step {
            Step::Set { key, after: Some(value), .. } => drop(objects.insert(key.clone(), value.clone())),
            Step::Set { key, after: None, .. } => drop(objects.remove(key)),
            Step::Forget { .. } => {}
        }
    }
}

/// Whether a plan has set a sysctl back to what it was before us, or found that there is no such one any more.
fn is_restored(planned: &Planned, key: &SysctlKey, original: &str) -> bool {
    let key = Key::Sysctl(key.clone());
    let left = planned.desired.objects.get(&key);
    !planned.spared.contains(&key)
        && left.is_none_or(|left| matches!(left, Value::Sysctl { value } if **value == *original))
}

impl Router<Frozen> {
    /// A router as it was captured.
    #[must_use]
    pub fn captured(captured: Captured) -> Self {
        let originals = captured
            .originals
            .iter()
            .map(|(path, value)| (SysctlKey { path: path.as_str().into() }, sysctl_text(value)));
        let (originals, known) = (originals.collect(), captured.numbers.clone());
        let (ranges, generation) = (captured.ranges, captured.generation);
        let (kernel, applied) = captured.thaw();
        let applied = applied.map(Arc::new);
        // What was applied there counts here, as if this were that router.
        let in_force = InForce { place: apply::place(), ..InForce::default() };
        let (ledger, modes) = (Ledger::memory(), Modes::default());
        Self { kernel, ledger, ranges, known, originals, applied, in_force, modes, generation }
    }
}

impl<K: Kernel> Router<K> {
    /// A router that remembers what its ledger holds.
    pub fn new(kernel: K, ledger: Ledger, ranges: Ranges) -> Self {
        let mut applied = ledger.applied();
        applied.as_mut().and_then(State::table_mut).into_iter().for_each(NftTable::forget_source);
        Self {
            known: ledger.get(ALLOCATIONS).unwrap_or_default(),
            originals: ledger.sysctl_originals(),
            applied: applied.map(Arc::new),
            in_force: ledger.get(IN_FORCE).unwrap_or_default(),
            modes: Modes::default(),
            generation: ledger.generation(),
            kernel,
            ledger,
            ranges,
        }
    }

    /// The ranges of marks, tables and priorities.
    pub const fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Values that sysctls had before us.
    pub const fn originals(&self) -> &Originals {
        &self.originals
    }

    /// The same, with these ways to treat drift.
    #[must_use]
    pub fn treating_drift(self, modes: Modes) -> Self {
        Self { modes, ..self }
    }

    /// How drift is treated.
    pub const fn modes(&self) -> &Modes {
        &self.modes
    }

    /// The state applied last in this boot and this network namespace, if any: what differs from it is drift.
    pub fn applied(&self) -> Option<&State> {
        self.applied.as_deref().filter(|_| self.in_force.place == apply::place())
    }

    /// Whether this revision is the one applied last, here.
    pub fn is_in_force(&self, revision: &str) -> bool {
        self.in_force.revision == revision && self.applied().is_some()
    }

    /// What somebody else changed of what a plan wants, in the order of the keys.
    pub fn drift(&self, planned: &Planned, observed: &Observed) -> Vec<Drifted> {
        self.applied().map(|applied| drift::drifted(&planned.desired, applied, &observed.state)).unwrap_or_default()
    }

    /// Takes in another look at the kernel. What it found as before stays where it is: the newer copy lies behind all that
    /// the look needed, and the heap could not shrink.
    pub fn take_look(&self, observed: &mut Observed, mut found: Observed) {
        if found.facts == observed.facts {
            found.facts = std::mem::take(&mut observed.facts);
        }
        if found.allocations == observed.allocations {
            found.allocations = std::mem::take(&mut observed.allocations);
        }
        *observed = found;
        self.share(observed);
    }

    /// Lets a look at the kernel share the state applied last, if it found just that: a large hub's is megabytes.
    pub fn share(&self, observed: &mut Observed) {
        if let Some(applied) = self.applied.as_ref().filter(|applied| **applied == observed.state) {
            observed.state = Arc::clone(applied);
        }
    }

    /// The generation in force; 0 before the first.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The same, also if the journal was lost: the table that was observed tells.
    pub fn generation_of(&self, observed: &Observed) -> u64 {
        self.generation.max(observed.stamp.as_ref().map_or(0, |stamp| stamp.generation))
    }

    /// The path choice remembered from before, if any.
    pub fn remembered_selection(&self) -> Option<Selection> {
        self.ledger.selection()
    }

    /// Remembers the path choice.
    pub fn remember_selection(&self, selection: &Selection) {
        self.ledger.set_selection(selection);
    }

    /// What has to be looked at for a site; without one, what has ever been ours.
    pub fn scope(&self, site: Option<&Site>) -> Scope {
        let sysctls = site.map_or_else(
            || self.originals.keys().map(|key| key.path.to_string()).collect(),
            |site| desired::sysctl_scope(site, &self.originals),
        );
        Scope { ranges: self.ranges, sysctls, interfaces: Vec::<IfName>::new() }
    }

    /// Looks at the kernel.
    ///
    /// Numbers that somebody deleted from our table are filled in from memory: flows carry them, so that an
    /// object that lost its number must get the same one again.
    pub async fn observe(&self, site: Option<&Site>) -> Result<Observed, KernelError> {
        self.observe_within(&self.scope(site)).await
    }

    /// The same, with a scope of the caller's.
    pub async fn observe_within(&self, scope: &Scope) -> Result<Observed, KernelError> {
        let mut observed = self.kernel.observe(scope).await?;
        fill_in(&mut observed.allocations.targets, &self.known.targets);
        fill_in(&mut observed.allocations.policies, &self.known.policies);
        Ok(observed)
    }

    /// Numbers in use: what the kernel shows, or what was last known if our table is gone.
    pub const fn numbers<'a>(&'a self, observed: &'a Observed) -> &'a Allocations {
        if observed.stamp.is_some() { &observed.allocations } else { &self.known }
    }

    /// Inputs of the compiler for this router.
    pub const fn inputs<'a>(&'a self, selection: &'a Selection, observed: &'a Observed) -> desired::Inputs<'a> {
        desired::Inputs {
            selection,
            facts: &observed.facts,
            known: self.numbers(observed),
            ranges: &self.ranges,
            originals: &self.originals,
        }
    }

    /// Plans the way to a site's state.
    pub async fn plan(&self, site: &Site, selection: &Selection, observed: &Observed) -> Result<Planned, PlanError> {
        let compiled = desired::compile(site, self.inputs(selection, observed))?;
        let mut desired = compiled.state;
        let mut written = None;
        if let Some(table) = desired.table_mut() {
            match self.applied_form(&table.source) {
                Some(canonical) => table.canonical = canonical,
                None => written = Some(self.make_canonical(table).await?),
            }
        }
        let planned = Planned { written, ..self.planned(desired, compiled.allocations, observed) };
        let ignored = self.drift(&planned, observed).into_iter().map(|drifted| drifted.key);
        let ignored = ignored.filter(|key| self.modes.of(key) == Mode::Ignore).collect();
        Ok(self.sparing(planned, ignored, observed))
    }

    /// The same plan without a step for these objects, and with one for those that it spared before.
    pub fn sparing(&self, planned: Planned, spared: BTreeSet<Key>, observed: &Observed) -> Planned {
        if spared == planned.spared {
            return planned;
        }
        let goal = drift::sparing(&planned.desired, &observed.state, &spared);
        let steps = self.steps(&goal, &planned.allocations, observed);
        Planned { steps, spared, ..planned }
    }

    /// The same plan for all but these objects, which the kernel refuses: they are left as they are found, and are not
    /// what was applied then, so that the next plan wants them again and nobody calls them drift.
    pub fn without(&self, planned: &Planned, refused: &BTreeSet<Key>, observed: &Observed) -> Planned {
        let stays = |step: &&Step| !matches!(step, Step::Set { key, .. } if refused.contains(key));
        let steps = planned.steps.iter().filter(stays).cloned().collect();
        let desired = Arc::new(drift::sparing(&planned.desired, &observed.state, refused));
        let stamp = Stamp { plan: Uuid::now_v7(), ..planned.stamp.clone() };
        Planned { desired, steps, stamp, ..planned.clone() }
    }

    /// Plans the removal of everything of ours.
    pub fn plan_teardown(&self, observed: &Observed) -> Planned {
        let desired = desired::nothing(&self.originals, &observed.facts);
        self.planned(desired, Allocations::default(), observed)
    }

    async fn make_canonical(&self, table: &mut NftTable) -> Result<Written, KernelError> {
        table.canonical = self.kernel.canonical(&table.source).await?.into();
        let by = self.kernel.canonical_by().unwrap_or_default();
        Ok(Written { by, source: Arc::clone(&table.source), digest: digest(&table.canonical) })
    }

    /// The canonical form of the ruleset applied last, if this is its source and the same program on the same
    /// kernel made that form. It was read back from the kernel then.
    fn applied_form(&self, source: &str) -> Option<Arc<str>> {
        let Some(Value::Nft(table)) = self.applied.as_ref()?.objects.get(&Key::Nft) else { return None };
        let by = self.kernel.canonical_by()?;
        let written = self.ledger.get::<Written>(WRITTEN)?;
        let same = written.by == by && *written.source == *source && written.is_of(table);
        same.then(|| Arc::clone(&table.canonical))
    }

    /// The state applied last, with its ruleset as it was written.
    pub fn applied_as_written(&self) -> Option<State> {
        let mut state = self.applied()?.clone();
        if let Some(table) = state.table_mut() {
            let written = self.ledger.get::<Written>(WRITTEN).filter(|written| written.is_of(table));
            table.source = written.map_or_else(|| Arc::clone(&table.source), |written| written.source);
        }
        Some(state)
    }

    fn planned(&self, mut desired: State, mut allocations: Allocations, observed: &Observed) -> Planned {
        for key in desired::of_leaving_tunnels(&desired, &observed.state) {
            desired.objects.remove(&key);
        }
        // A sysctl that is not there has gone with its interface, or with the IPv6 of that.
        let lost = |key: &Key| matches!(key, Key::Sysctl(sysctl) if self.originals.contains_key(sysctl));
        desired.objects.retain(|key, _| !lost(key) || observed.state.objects.contains_key(key));
        pack(&mut desired.objects);
        pack(&mut allocations.targets);
        pack(&mut allocations.policies);
        let steps = self.steps(&desired, &allocations, observed);
        desired.table_mut().into_iter().for_each(NftTable::forget_source);
        let (desired, previous) = (Arc::new(desired), observed.stamp.clone());
        let stamp = Stamp { generation: self.generation_of(observed) + 1, plan: Uuid::now_v7() };
        Planned { desired, steps, allocations, stamp, previous, spared: BTreeSet::new(), written: None }
    }

    /// The steps to a state. What belongs to a tunnel that goes is not set back first: it goes with it.
    fn steps(&self, desired: &State, allocations: &Allocations, observed: &Observed) -> Arc<[Step]> {
        let mut shown = Arc::clone(&observed.state);
        for key in desired::of_leaving_tunnels(desired, &observed.state) {
            Arc::make_mut(&mut shown).objects.remove(&key);
        }
        let mut steps = plan::diff(desired, &shown);
        if !steps.is_empty() {
            steps.extend(plan::forget_released(self.numbers(observed), allocations, &self.ranges));
        }
        steps.into()
    }

    /// Carries out a plan, or nothing of it, and remembers what is in force then.
    pub async fn apply(&mut self, planned: &Planned, site: Option<&Site>, revision: &str) -> apply::Report {
        self.keep_originals(&planned.steps);
        let scope = self.scope(site);
        let request = Request {
            steps: Arc::clone(&planned.steps),
            desired: &planned.desired,
            spared: &planned.spared,
            scope: &scope,
            stamp: planned.stamp.clone(),
            previous: planned.previous.clone(),
            revision,
        };
        let report = apply::run(&self.kernel, &mut self.ledger, request).await;
        if matches!(report.outcome, Outcome::Applied | Outcome::Unchanged) {
            self.remember(planned, site, revision);
        }
        if matches!(report.outcome, Outcome::Applied) {
            self.generation = planned.stamp.generation;
        }
        report
    }

    fn keep_originals(&mut self, steps: &[Step]) {
        for step in steps {
            if let Step::Set { key: Key::Sysctl(key), before: Some(Value::Sysctl { value }), .. } = step
                && !self.originals.contains_key(key)
            {
                self.ledger.keep_sysctl(key, value);
                self.originals.insert(key.clone(), value.clone());
            }
        }
        pack(&mut self.originals);
    }

    fn remember(&mut self, planned: &Planned, site: Option<&Site>, revision: &str) {
        let in_force = InForce { place: apply::place(), revision: revision.to_owned() };
        if self.in_force != in_force {
            self.ledger.put(IN_FORCE, &in_force);
            self.in_force = in_force;
        }
        if self.known != planned.allocations {
            self.known = planned.allocations.clone();
            self.ledger.put(ALLOCATIONS, &self.known);
        }
        if self.applied.as_ref() != Some(&planned.desired) {
            self.ledger.set_applied(&planned.desired);
            self.applied = Some(Arc::clone(&planned.desired));
        }
        if let Some(written) = &planned.written {
            self.ledger.put(WRITTEN, written);
        }
        let wanted: BTreeSet<String> =
            site.map(|s| desired::sysctl_scope(s, &BTreeMap::new())).unwrap_or_default().into_iter().collect();
        let done = |key: &SysctlKey, value: &str| !wanted.contains(&*key.path) && is_restored(planned, key, value);
        let restored: Vec<SysctlKey> =
            self.originals.iter().filter(|(key, value)| done(key, value)).map(|(key, _)| key.clone()).collect();
        for key in restored {
            self.ledger.forget_sysctl(&key);
            self.originals.remove(&key);
        }
    }

    /// Looks whether the journal is still there; if not, begins another one with all that is remembered, and says
    /// so.
    pub fn tend_ledger(&mut self) -> Option<String> {
        let told = self.ledger.tend()?;
        self.ledger.put(ALLOCATIONS, &self.known);
        self.originals.iter().for_each(|(key, value)| self.ledger.keep_sysctl(key, value));
        self.applied.iter().for_each(|state| self.ledger.set_applied(state));
        self.ledger.put(IN_FORCE, &self.in_force);
        Some(told)
    }

    /// Takes in that steps were executed outside a transaction: they are part of what is applied now.
    pub fn switched(&mut self, steps: &[&Step], observed: &mut Observed) {
        take_in(steps, &mut observed.state);
        if let Some(applied) = &mut self.applied {
            take_in(steps, applied);
        }
        self.share(observed);
    }

    /// Finishes or undoes what an earlier process left open.
    pub async fn recover(&mut self) -> Result<apply::Recovery, RecoveryError> {
        let scope = self.scope(None);
        let recovery = apply::recover(&self.kernel, &mut self.ledger, &scope).await?;
        self.generation = self.ledger.generation();
        Ok(recovery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_ruleset_was_written_is_believed_of_its_own_canonical_form_only() {
        let table = |canonical: &str| NftTable { canonical: canonical.into(), source: "source".into() };
        let written = Written { by: "nft".into(), source: "source".into(), digest: digest("canonical") };
        assert!(written.is_of(&table("canonical")));
        // A process that dies between two writes leaves the one of now beside the other of before.
        assert!(!written.is_of(&table("another")) && !written.is_of(&table("")));
    }

    #[test]
    fn a_sysctl_is_set_back_where_it_is_to_be_seen_and_its_old_value_is_kept_until_it_is_back() {
        let key = SysctlKey { path: "ipv6/conf/wan0/ignore_routes_with_linkdown".into() };
        let (object, value) = (Key::Sysctl(key.clone()), |text| Value::Sysctl { value: sysctl_text(text) });
        let mut router = Router::new(crate::kernel::fake::Fake::default(), Ledger::memory(), Ranges::default());
        router.originals.insert(key.clone(), sysctl_text("0"));
        // IPv6 is switched off; its sysctls are there unless the interface's MTU is too small for it.
        let link = crate::state::LinkFacts { no_ipv6: true, ..Default::default() };
        let mut observed = Observed::default();
        observed.facts.links.insert("wan0".parse().unwrap(), link);
        assert!(router.plan_teardown(&observed).steps.is_empty());

        Arc::make_mut(&mut observed.state).objects.insert(object.clone(), value("1"));
        let planned = router.plan_teardown(&observed);
        let [Step::Set { key: set, after, .. }] = &*planned.steps else { panic!("{:?}", planned.steps) };
        assert_eq!((set, after), (&object, &Some(value("0"))));
        let refused = [object].into();
        router.remember(&router.without(&planned, &refused, &observed), None, "none");
        assert!(router.originals.contains_key(&key), "the kernel refused it");
        router.remember(&router.sparing(planned.clone(), refused, &observed), None, "none");
        assert!(router.originals.contains_key(&key), "it was left as others had set it");
        router.remember(&planned, None, "none");
        assert!(router.originals.is_empty());
    }
}
