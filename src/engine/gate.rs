//! A new revision on trial: proposed, let in by the rails, in force until its evidence or its deadline.
//!
//! Invariant: one change at a time. While one is on trial every other revision waits; one that is only proposed, and one
//! that cannot be undone, give way to another. Repair and failover go on meanwhile, with the configuration in the kernel;
//! going back is the ordinary pass with the one before it, against the kernel as it is then and with the paths in use then,
//! so nothing that failover did in between is undone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::FutureExt as _;
use ipnet::IpNet;
use serde_json::json;
use tokio::task::JoinHandle;

use super::{
    Active, DEBOUNCE, Engine,
    arrive::Chosen,
    later::{Again, Services},
    reach,
    ready::MEASURING,
    status::ReconcileOutcome,
};
use crate::{
    apply,
    clock::{self, Instant},
    config::commit::{Commit, Signature},
    guard::{
        Deadline, Phase, Rules, Unconfirmed, Who,
        doubt::Doubt,
        gate::{Baseline, Judgement, Rounds, Silent},
        patience,
        rails::{self, Change, Refusal},
    },
    health::Sample,
    revision::{AttemptOutcome, Fault},
    state::Way,
    store::Standing,
    units::{Name, PathPart, chain},
};

/// The evidence is looked at so often.
pub(super) const LOOK: Duration = Duration::from_millis(200);
/// And at a revision that waits.
const HELD: Duration = Duration::from_secs(1);
/// Everything about new revisions.
pub(super) struct Gate {
    pub rules: Rules,
    pub stage: Stage,
    /// What comes back if the one on trial fails.
    pub before: Option<Box<Active>>,
    /// The revision that has to wait, and why.
    pub held: Option<(Box<Proposal>, String)>,
    pub started: Instant,
    /// Paths and families that were up before the change that was undone last, and how long they are waited for.
    pub recovering: Option<(BTreeSet<PathPart>, Instant)>,
    /// A change that was undone and may not have been the cause.
    pub doubt: Option<Doubt>,
    /// Services that are asked although nothing is on trial.
    pub services: Services,
    /// Probe rounds of this process, while it is asked what is remembered and what was seen.
    pub seen: BTreeMap<Name, Rounds>,
    /// A proposal that the kernel could not take just then.
    pub again: Option<Again>,
    /// Whether the last pass failed for something that may be over the next time.
    pub may_pass: bool,
    /// Whether the last pass was carried out but for something that is there and that the kernel refuses to change or to
    /// remove.
    pub left: bool,
    /// Why the last thing that a person wanted was not done.
    pub refused: Option<String>,
    /// The last revision that was told to wait, and why.
    told: Option<(String, String)>,
    /// When the revision that waits is looked at again.
    look: Instant,
}

/// A revision that wants to be put in force.
pub(super) struct Proposal {
    pub active: Active,
    pub who: Who,
    /// How long it may wait for its confirmation.
    pub timeout: Duration,
    /// Whether somebody said that a large change is meant.
    pub allow_large: bool,
    /// What answers before it, once that is known.
    reached: Option<BTreeSet<String>>,
    asking: Option<JoinHandle<BTreeSet<String>>>,
}

pub(super) enum Stage {
    /// Nothing is on trial.
    Idle,
    /// The next pass puts it in force, if the rails let it in.
    Proposed(Box<Proposed>),
    /// It is in force, and waits.
    Waiting(Box<Trial>),
    /// The one before it is being put in force again.
    Back(Box<Back>),
}

/// A change that is being undone.
pub(super) struct Back {
    pub change: Unconfirmed,
    pub reason: String,
    /// What is the whole reason by its silence.
    pub silent: Silent,
    /// What comes back; none if nothing was before.
    pub to: Option<Box<Active>>,
    /// That was tried and failed. It is tried again, and another revision may take its place.
    pub failed: bool,
}

/// A configuration that is not in the kernel yet: nothing works with it.
pub(super) struct Proposed {
    pub active: Active,
    /// The way back that failed and that this shall end.
    pub in_place_of: Option<Box<Back>>,
    pub who: Who,
    pub timeout: Duration,
    allow_large: bool,
    pub baseline: Baseline,
}

/// A change in force with what is known since.
pub(super) struct Trial {
    pub change: Unconfirmed,
    pub since: Instant,
    pub rounds: BTreeMap<Name, Rounds>,
    pub reached: BTreeSet<String>,
    pub asking: Option<JoinHandle<BTreeSet<String>>>,
    pub settled: bool,
    pub cut_off: Option<Instant>,
    pub next: Instant,
    pub last: Judgement,
}

impl Trial {
    pub(super) fn new(change: Unconfirmed, now: Instant) -> Box<Self> {
        Box::new(Self {
            change,
            since: now,
            rounds: BTreeMap::new(),
            reached: BTreeSet::new(),
            asking: None,
            settled: false,
            cut_off: None,
            next: now,
            last: Judgement::default(),
        })
    }
}

impl Proposal {
    /// What the daemon found in its source.
    pub(super) fn of_source(active: Active, timeout: Duration) -> Self {
        let (who, allow_large) = active.commit.as_ref().map_or((Who::DAEMON, false), from_commit);
        Self { active, who, timeout, allow_large, reached: None, asking: None }
    }

    /// What a person wants back; that it is large is meant.
    pub(super) fn of_person(active: Active, who: Who, timeout: Duration) -> Self {
        Self { active, who, timeout, allow_large: true, reached: Some(BTreeSet::new()), asking: None }
    }
}

impl Gate {
    pub(super) fn new(rules: Rules, started: Instant) -> Self {
        Self {
            rules,
            stage: Stage::Idle,
            before: None,
            held: None,
            started,
            recovering: None,
            doubt: None,
            services: Services::default(),
            seen: BTreeMap::new(),
            again: None,
            may_pass: false,
            left: false,
            refused: None,
            told: None,
            look: started,
        }
    }

    /// How long the daemon's own changes may wait.
    pub(super) const fn timeout(&self) -> Duration {
        self.rules.confirm.timeout
    }

    /// Whether the next pass is to give the place of the configuration in the kernel to another.
    pub(super) const fn is_changing(&self) -> bool {
        matches!(self.stage, Stage::Proposed(_) | Stage::Back(_))
    }

    /// Whether a change is under way that no other one may cut in on.
    pub(super) const fn is_taken(&self) -> bool {
        match &self.stage {
            Stage::Waiting(_) => true,
            Stage::Back(back) => !back.failed,
            Stage::Idle | Stage::Proposed(_) => false,
        }
    }

    /// Whether what is in force may be undone still.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Proposed(_) | Stage::Waiting(_))
    }

    /// Whether the next pass is to put a revision in force.
    pub(super) const fn is_proposed(&self) -> bool {
        matches!(self.stage, Stage::Proposed(_))
    }

    /// Whether the configuration before is being put in force again.
    pub(super) const fn is_going_back(&self) -> bool {
        matches!(self.stage, Stage::Back(_))
    }

    /// The change that waits, with what speaks against it.
    pub(super) fn waiting(&self) -> Option<(&Unconfirmed, &Judgement)> {
        match &self.stage {
            Stage::Waiting(trial) => Some((&trial.change, &trial.last)),
            _ => None,
        }
    }

    /// The revision that has to wait, and why.
    pub(super) fn held(&self) -> Option<(&str, &str)> {
        self.held.as_ref().map(|(proposal, why)| (proposal.active.revision.as_str(), why.as_str()))
    }

    /// When something has to be done.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let trial = if let Stage::Waiting(trial) = &self.stage { Some(trial.next) } else { None };
        let held = self.held.as_ref().filter(|(proposal, _)| proposal.asking.is_some()).map(|_| now + LOOK);
        let again = self.again.as_ref().filter(|_| self.held.is_some()).map(|again| again.at).filter(|at| *at > now);
        trial.into_iter().chain(held).chain(again).min()
    }

    /// Takes in a probe round that was sent since the change.
    pub(super) fn note(&mut self, sample: &Sample, quorum: u32) {
        self.doubt.iter_mut().for_each(|doubt| doubt.add(sample));
        if sample.sent.since(self.started) >= MEASURING {
            self.seen = BTreeMap::new();
        } else if sample.sent >= self.started {
            self.seen.entry(sample.path.clone()).or_default().add(sample, quorum);
        }
        if let Stage::Waiting(trial) = &mut self.stage
            && sample.sent >= trial.since
        {
            trial.rounds.entry(sample.path.clone()).or_default().add(sample, quorum);
        }
    }
}

impl Engine {
    /// Somebody wants another revision in force: at once, or when its time has come.
    pub(super) fn propose(&mut self, mut proposal: Proposal) {
        let same = self.active.as_ref().is_some_and(|old| old.content == proposal.active.content);
        match self.not_now(&proposal) {
            Some(why) if !same => self.hold(proposal, why),
            _ if !same && proposal.reached.is_none() && !self.gate.rules.confirm.reach.is_empty() => {
                proposal.asking.get_or_insert_with(|| tokio::spawn(reach::ask(self.gate.rules.confirm.reach.clone())));
                self.hold(proposal, "what answers now is being looked at".into());
            }
            _ if self.gate.is_taken() => self.hold(proposal, "another change is on trial".into()),
            _ => match self.protected_ways() {
                Err(why) if !same => self.hold(proposal, why),
                ways => self.begin(proposal, same, &ways.unwrap_or_default()),
            },
        }
    }

    pub(super) fn hold(&mut self, proposal: Proposal, why: String) {
        let told = (proposal.active.revision.clone(), why.clone());
        if self.gate.told.as_ref() != Some(&told) {
            self.event("source", "", format!("revision {} waits: {why}", told.0), serde_json::Value::Null);
            self.timers.publish = clock::now();
            self.gate.told = Some(told);
        }
        self.gate.held = Some((Box::new(proposal), why));
    }

    /// Looks again at the revision that waits, at once when the services have answered and else now and then: it may
    /// wait for hours.
    pub(super) fn retry_held(&mut self, now: Instant) {
        let asking = self.gate.held.as_ref().and_then(|(proposal, _)| proposal.asking.as_ref());
        if asking.map_or(self.gate.look > now, |asking| !asking.is_finished()) {
            return;
        }
        self.gate.look = now + HELD;
        let Some((mut proposal, _)) = self.gate.held.take() else { return };
        if let Some(asking) = proposal.asking.take() {
            proposal.reached = Some(answer(asking));
        }
        self.propose(*proposal);
    }

    /// While a change is on trial the source holds another revision: the one before it again, perhaps.
    pub(super) fn taken_back(&mut self, revision: &str) {
        let before = self.gate.before.as_ref().is_some_and(|before| before.revision == revision);
        if before && matches!(&self.gate.stage, Stage::Waiting(trial) if !trial.change.who.is_person()) {
            self.go_back("the source holds the revision before it again", Silent::default());
        }
    }

    /// The source holds another revision than the one that waits: that is not wanted any more.
    pub(super) fn drop_held(&mut self, revision: &str) {
        self.gate.held.take_if(|(held, _)| !held.who.is_person() && held.active.revision != revision);
    }

    /// Makes it the configuration that the next pass puts in force.
    fn begin(&mut self, proposal: Proposal, same: bool, ways: &BTreeMap<IpNet, Way>) {
        let Proposal { active, who, timeout, allow_large, reached, .. } = proposal;
        if !who.is_person() && !self.offer(&active) {
            return;
        }
        let in_place_of = match std::mem::replace(&mut self.gate.stage, Stage::Idle) {
            Stage::Back(back) => Some(back),
            Stage::Proposed(proposed) => proposed.in_place_of,
            Stage::Idle | Stage::Waiting(_) => None,
        };
        if same && in_place_of.is_none() {
            return self.work_with(active);
        }
        self.end_doubt();
        let mut baseline = self.baseline(&active, reached.unwrap_or_default(), ways);
        if let Some(back) = &in_place_of {
            let before = back.to.as_ref().map(|before| &*before.site);
            baseline = baseline.in_place_of(&back.change.baseline, before, &active.site);
        }
        let proposed = Proposed { active, in_place_of, who, timeout, allow_large, baseline };
        self.gate.stage = Stage::Proposed(Box::new(proposed));
        self.timers.pass_at(clock::now());
        self.timers.publish = clock::now() + DEBOUNCE;
    }

    fn baseline(&self, new: &Active, reached: BTreeSet<String>, ways: &BTreeMap<IpNet, Way>) -> Baseline {
        let known = match &self.active {
            Some(old) => Baseline::of(&old.site, &new.site, self.monitor.healths(), &self.selection),
            None => Baseline::default(),
        };
        Baseline { ways: in_words(ways), reached, orders: self.overrides.clone(), ..known }
    }

    /// How each protected network is reached now. Invariant: that it cannot be looked up never means that there is
    /// no way, which the rails would let pass.
    pub(super) fn protected_ways(&self) -> Result<BTreeMap<IpNet, Way>, String> {
        let prefixes = &self.gate.rules.protected.prefixes;
        if prefixes.is_empty() {
            return Ok(BTreeMap::new());
        }
        let failed = |e| format!("the ways to the protected networks cannot be looked up: {}", chain(&e));
        self.router.kernel.ways(prefixes).map_err(failed)
    }

    /// What the rails say to the proposal that the pass is about to carry out, or why they cannot be asked.
    pub(super) fn refusals(&self) -> Result<Vec<Refusal>, String> {
        let Stage::Proposed(proposed) = &self.gate.stage else { return Ok(Vec::new()) };
        let (old, ways) = (self.active.as_ref().map(|active| &*active.site), self.protected_ways()?);
        let change = Change { old, new: &proposed.active.site, facts: &self.observed.facts, ways: &ways };
        Ok(rails::check(&change, &self.gate.rules.protected, self.gate.rules.limits, proposed.allow_large))
    }

    /// After the steps of a pass: a trial goes on from here, or is over. Gives what people shall be told of the pass.
    pub(super) fn after_pass(
        &mut self,
        begun: Option<Unconfirmed>,
        chosen: Option<Chosen>,
        outcome: ReconcileOutcome,
        message: Option<String>,
    ) -> (ReconcileOutcome, Option<String>) {
        if matches!(outcome, ReconcileOutcome::Applied | ReconcileOutcome::Unchanged) {
            return self.arrived(begun, chosen).map_or((outcome, message), |(outcome, text)| (outcome, Some(text)));
        }
        match (&mut self.gate.stage, begun) {
            (Stage::Proposed(_), Some(change)) => {
                self.never_in_force(&change, outcome, message.as_deref().unwrap_or_default());
            }
            (Stage::Waiting(trial), _) => trial.settled = false,
            (Stage::Back(_), _) => {
                let text = self.not_back(message.as_deref().unwrap_or_default());
                return (ReconcileOutcome::RollbackFailed, Some(text));
            }
            (Stage::Idle | Stage::Proposed(_), _) => {}
        }
        (outcome, message)
    }

    pub(super) fn trial_waits(&mut self, mut change: Unconfirmed, timeout: Duration) {
        let now = clock::now();
        self.audit(&change.who, "apply", &format!("generation {}, revision {}", change.generation, change.revision));
        self.gate.again = None;
        if timeout.is_zero() {
            return self.stands(&change, Standing::Applied, "no confirmation was asked for");
        }
        let Some(active) = &self.active else { return };
        change.deadline = Deadline::after(patience(timeout, &active.site), apply::place(), now, clock::wall());
        change.phase = Phase::Waiting;
        self.router.ledger.set_unconfirmed(&change);
        self.event("confirm", "", change.line(), json!(change.baseline));
        if !change.who.is_person() {
            self.confirming();
        }
        let mut trial = Trial::new(change, now);
        trial.settled = true;
        self.gate.stage = Stage::Waiting(trial);
    }

    /// The proposal does not come in force; what is in the kernel goes on.
    pub(super) fn turn_down(&mut self, outcome: AttemptOutcome, reason: &str, fault: Fault) {
        let Some(proposed) = self.withdraw() else { return };
        if proposed.who.is_person() {
            self.gate.refused = Some(reason.to_owned());
        } else {
            self.attempt_failed(outcome, reason, fault, self.active.is_some());
        }
    }

    /// The proposal goes, and what it was to end goes on.
    pub(super) fn withdraw(&mut self) -> Option<Proposed> {
        let stage = std::mem::replace(&mut self.gate.stage, Stage::Idle);
        let Stage::Proposed(mut proposed) = stage else {
            self.gate.stage = stage;
            return None;
        };
        if let Some(back) = proposed.in_place_of.take() {
            // Its own record took the place of that of the change which is to be undone.
            self.router.ledger.set_unconfirmed(&back.change);
            self.gate.stage = Stage::Back(back);
        }
        self.timers.pass_at(clock::now());
        Some(*proposed)
    }

    /// Who did what.
    pub(super) fn audit(&self, who: &Who, what: &str, detail: &str) {
        self.router.ledger.audit(who, what, detail);
    }
}

/// Who is behind a commit, and whether its trailer lets a large change pass.
fn from_commit(commit: &Commit) -> (Who, bool) {
    let signer = match &commit.signature {
        Signature::Good { signer, .. } => Some(signer.clone()),
        _ => None,
    };
    (Who::Daemon { author: Some(commit.author.clone()), signer }, commit.allows_large())
}

/// The ways to the protected networks as people read them, and as two looks are compared.
pub(super) fn in_words(ways: &BTreeMap<IpNet, Way>) -> BTreeMap<IpNet, String> {
    ways.iter().map(|(net, way)| (*net, way.to_string())).collect()
}

/// What a task that has ended found.
pub(super) fn answer(asking: JoinHandle<BTreeSet<String>>) -> BTreeSet<String> {
    asking.now_or_never().and_then(Result::ok).unwrap_or_default()
}

/// Why a plan could not be carried out, for the refusal of its revision.
pub(super) fn reasons(refusals: &[Refusal]) -> String {
    refusals.iter().map(Refusal::line).collect::<Vec<_>>().join("; ")
}
