//! A new revision on trial: proposed, let in by the rails, in force until its evidence or its deadline.
//!
//! Invariant: one change at a time. While one is on trial every other revision waits. Repair and failover go on
//! meanwhile, with the configuration that is on trial; going back is the ordinary pass with the one before it, against
//! the kernel as it is then and with the paths in use then, so nothing that failover did in between is undone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::FutureExt as _;
use serde_json::json;
use tokio::task::JoinHandle;

use super::{Active, Engine, activate, reach, router::Planned, status::ReconcileOutcome};
use crate::{
    apply,
    clock::{self, Instant},
    config::{
        Snapshot,
        commit::{Commit, Signature},
    },
    guard::{
        Deadline, Due, Phase, Rules, Unconfirmed, Who,
        gate::{Baseline, Evidence, Judgement, Rounds, judge},
        patience,
        rails::{self, Change, Refusal},
        window,
    },
    health::{PathState, Sample},
    state::Way,
    store::Standing,
    units::Name,
};

/// The evidence is looked at so often.
const LOOK: Duration = Duration::from_millis(200);
/// A router that is cut off for so long does not wait for the deadline.
const CUT_OFF: Duration = Duration::from_secs(10);
/// After a start the paths get so long to be measured before a new revision is tried: without figures nothing could
/// be compared.
const MEASURING: Duration = Duration::from_secs(10);

/// Everything about new revisions.
pub(super) struct Gate {
    rules: Rules,
    stage: Stage,
    /// What comes back if the one on trial fails.
    before: Option<Box<Active>>,
    /// The revision that has to wait, and why.
    held: Option<(Box<Proposal>, String)>,
    started: Instant,
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

enum Stage {
    /// Nothing is on trial.
    Idle,
    /// The next pass puts it in force, if the rails let it in.
    Proposed(Box<Proposed>),
    /// It is in force, and waits.
    Waiting(Box<Trial>),
    /// The one before it is being put in force again.
    Back(Box<Unconfirmed>, String),
}

/// A configuration that the engine works with and that is not in the kernel yet.
pub(super) struct Proposed {
    pub who: Who,
    pub timeout: Duration,
    allow_large: bool,
    pub baseline: Baseline,
}

/// A change in force with what is known since.
struct Trial {
    change: Unconfirmed,
    since: Instant,
    rounds: BTreeMap<Name, Rounds>,
    reached: BTreeSet<String>,
    asking: Option<JoinHandle<BTreeSet<String>>>,
    settled: bool,
    cut_off: Option<Instant>,
    next: Instant,
    last: Judgement,
}

impl Trial {
    fn new(change: Unconfirmed, now: Instant) -> Box<Self> {
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
        Self { rules, stage: Stage::Idle, before: None, held: None, started }
    }

    /// How long the daemon's own changes may wait.
    pub(super) const fn timeout(&self) -> Duration {
        self.rules.confirm.timeout
    }

    /// What comes back if the one on trial fails.
    pub(super) fn before(&self) -> Option<&Active> {
        self.before.as_deref()
    }

    /// Whether what is in force may be undone still.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Proposed(_) | Stage::Waiting(_))
    }

    /// Whether the configuration before is being put in force again.
    pub(super) const fn is_going_back(&self) -> bool {
        matches!(self.stage, Stage::Back(..))
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
        trial.into_iter().chain(held).min()
    }

    /// Takes in a probe round that was sent since the change.
    pub(super) fn note(&mut self, sample: &Sample, quorum: u32) {
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
        let taken_back = self.gate.before.as_ref().is_some_and(|before| before.site == proposal.active.site);
        if taken_back && matches!(self.gate.stage, Stage::Waiting(_)) && !proposal.who.is_person() {
            self.go_back("the source holds the revision before it again");
        }
        let same = self.active.as_ref().is_some_and(|old| old.site == proposal.active.site);
        match self.not_now(&proposal) {
            Some(why) if !same => self.hold(proposal, why),
            _ if !same && proposal.reached.is_none() && !self.gate.rules.confirm.reach.is_empty() => {
                proposal.asking.get_or_insert_with(|| tokio::spawn(reach::ask(self.gate.rules.confirm.reach.clone())));
                self.hold(proposal, "what answers now is being looked at".into());
            }
            _ if self.gate.is_going_back() || self.gate.is_open() => self.hold(proposal, "another change is on trial".into()),
            _ => self.begin(proposal, same),
        }
    }

    fn hold(&mut self, proposal: Proposal, why: String) {
        let known = self.gate.held.as_ref().is_some_and(|(old, told)| old.active.revision == proposal.active.revision && *told == why);
        if !known {
            let text = format!("revision {} waits: {why}", proposal.active.revision);
            self.event("source", "", text, serde_json::Value::Null);
            self.timers.publish = clock::now();
        }
        self.gate.held = Some((Box::new(proposal), why));
    }

    /// Why a proposal has to wait, if it has to.
    fn not_now(&self, proposal: &Proposal) -> Option<String> {
        let now = clock::now();
        if let Some((change, _)) = self.gate.waiting() {
            return Some(change.line());
        }
        if self.gate.is_going_back() {
            return Some("the revision before is being put in force again".into());
        }
        if !proposal.who.is_person()
            && let Err(closed) = window::decide(&self.gate.rules.windows, clock::wall())
        {
            return Some(closed.to_string());
        }
        let unknown = |path| self.monitor.healths().get(path).is_none_or(|h| h.state == PathState::Unknown);
        let measuring = now.since(self.gate.started) < MEASURING && self.active.as_ref().is_some_and(|a| a.site.paths.keys().any(unknown));
        measuring.then(|| "its paths are not measured yet".into())
    }

    /// Looks again at the revision that waits.
    pub(super) fn retry_held(&mut self) {
        let Some((mut proposal, why)) = self.gate.held.take() else { return };
        if proposal.asking.as_ref().is_some_and(|asking| !asking.is_finished()) {
            self.gate.held = Some((proposal, why));
            return;
        }
        if let Some(asking) = proposal.asking.take() {
            proposal.reached = Some(answer(asking));
        }
        self.propose(*proposal);
    }

    /// The source holds what is in force: whatever waited is not wanted any more.
    pub(super) fn drop_held(&mut self) {
        self.gate.held = None;
    }

    /// Makes it the configuration that the next pass puts in force.
    fn begin(&mut self, proposal: Proposal, same: bool) {
        let Proposal { active, who, timeout, allow_large, reached, .. } = proposal;
        if !same {
            let baseline = self.baseline(&active, reached.unwrap_or_default());
            self.gate.before = self.active.take().map(Box::new);
            self.gate.stage = Stage::Proposed(Box::new(Proposed { who, timeout, allow_large, baseline }));
        }
        self.adopt(active);
    }

    fn baseline(&self, new: &Active, reached: BTreeSet<String>) -> Baseline {
        let ways = self.ways().into_iter().map(|(net, way)| (net, way.to_string())).collect();
        let known = match &self.active {
            Some(old) => Baseline::of(&old.site, &new.site, self.monitor.healths(), &self.selection),
            None => Baseline::default(),
        };
        Baseline { ways, reached, ..known }
    }

    fn ways(&self) -> BTreeMap<ipnet::IpNet, Way> {
        match self.router.kernel.ways(&self.gate.rules.protected.prefixes) {
            Ok(ways) => ways,
            Err(error) => {
                tracing::warn!("the ways to the protected networks cannot be looked up: {error}");
                BTreeMap::new()
            }
        }
    }

    /// What the rails say to the proposal that the pass is about to carry out.
    pub(super) fn refusals(&self) -> Vec<Refusal> {
        let (Stage::Proposed(proposed), Some(new)) = (&self.gate.stage, &self.active) else { return Vec::new() };
        let (old, ways) = (self.gate.before.as_ref().map(|a| &a.site), self.ways());
        let change = Change { old, new: &new.site, facts: &self.observed.facts, ways: &ways };
        rails::check(&change, &self.gate.rules.protected, self.gate.rules.limits, proposed.allow_large)
    }

    /// Before the first step of a pass.
    pub(super) fn trial_begins(&self, planned: &Planned) -> Option<Unconfirmed> {
        match &self.gate.stage {
            Stage::Proposed(proposed) => self.write_down(proposed, planned),
            _ => None,
        }
    }

    /// After the steps of a pass: a trial goes on from here, or is over. Gives what people shall be told of the pass.
    pub(super) fn after_pass(
        &mut self,
        begun: Option<Unconfirmed>,
        outcome: ReconcileOutcome,
        message: Option<String>,
    ) -> (ReconcileOutcome, Option<String>) {
        let good = matches!(outcome, ReconcileOutcome::Applied | ReconcileOutcome::Unchanged);
        match (std::mem::replace(&mut self.gate.stage, Stage::Idle), begun) {
            (Stage::Proposed(proposed), Some(change)) if good => self.trial_waits(change, proposed.timeout),
            (Stage::Proposed(_), Some(change)) => {
                self.never_in_force(&change, outcome, message.as_deref().unwrap_or_default());
            }
            (Stage::Waiting(mut trial), _) => {
                trial.settled = good;
                self.gate.stage = Stage::Waiting(trial);
            }
            (Stage::Back(change, reason), _) if good => {
                self.is_back(&change, &reason);
                return (ReconcileOutcome::RolledBack, Some(reason));
            }
            (Stage::Back(change, reason), _) => {
                let text = format!("{reason}; going back failed: {}", message.unwrap_or_default());
                self.router.ledger.end_generation(change.record, Standing::RollbackFailed, &text);
                self.gate.stage = Stage::Back(change, reason);
                return (ReconcileOutcome::RollbackFailed, Some(text));
            }
            (other, _) => self.gate.stage = other,
        }
        (outcome, message)
    }

    fn trial_waits(&mut self, mut change: Unconfirmed, timeout: Duration) {
        let now = clock::now();
        self.audit(&change.who, "apply", &format!("generation {}, revision {}", change.generation, change.revision));
        if timeout.is_zero() {
            return self.stands(&change, Standing::Applied, "no confirmation was asked for");
        }
        let Some(active) = &self.active else { return };
        change.deadline = Deadline::after(patience(timeout, &active.site), apply::place(), now, clock::wall());
        change.phase = Phase::Waiting;
        self.router.ledger.set_unconfirmed(&change);
        self.event("confirm", "", change.line(), json!(change.baseline));
        let mut trial = Trial::new(change, now);
        trial.settled = true;
        self.gate.stage = Stage::Waiting(trial);
    }

    /// Its steps failed and were undone: the one before it goes on.
    fn never_in_force(&mut self, change: &Unconfirmed, outcome: ReconcileOutcome, reason: &str) {
        let standing = if outcome == ReconcileOutcome::RolledBack { Standing::RolledBack } else { Standing::RollbackFailed };
        self.router.ledger.settle_unconfirmed(change, standing, Some(reason));
        self.turn_down(reason);
    }

    /// The proposal is refused before its first step.
    pub(super) fn turn_down(&mut self, reason: &str) {
        self.gate.stage = Stage::Idle;
        let revision = self.active.take().map(|active| active.revision);
        if let Some(before) = self.gate.before.take() {
            self.adopt(*before);
        }
        self.refuse(revision, vec![reason.to_owned()]);
    }

    /// Looks at the evidence, at the deadline, and at what waits.
    pub(super) fn watch_trial(&mut self, now: Instant) {
        self.retry_held();
        let Stage::Waiting(trial) = &self.gate.stage else { return };
        if trial.next > now {
            return;
        }
        let due = trial.change.deadline.due(&apply::place(), now);
        let found = self.evidence();
        let Stage::Waiting(trial) = &mut self.gate.stage else { return };
        trial.next = now + LOOK;
        trial.cut_off = if found.cut_off { trial.cut_off.or(Some(now)) } else { None };
        let lost = trial.cut_off.is_some_and(|since| now.since(since) >= CUT_OFF);
        trial.last = found;
        let (change, reason, stands) = (trial.change.clone(), trial.last.reason(), trial.last.stands());
        if change.who.is_person() {
            if due == Due::Now {
                self.go_back("nobody confirmed it in time");
            }
        } else if stands {
            self.stands(&change, Standing::Confirmed, "the evidence is complete");
        } else if lost || due == Due::Now {
            self.go_back(&reason);
        }
    }

    fn evidence(&mut self) -> Judgement {
        let ways = self.ways().into_iter().map(|(net, way)| (net, way.to_string())).collect();
        let Stage::Waiting(trial) = &mut self.gate.stage else { return Judgement::default() };
        if trial.asking.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(asking) = trial.asking.take()
        {
            trial.reached.extend(answer(asking));
        }
        let missing: Vec<String> = trial.change.baseline.reached.difference(&trial.reached).cloned().collect();
        if !missing.is_empty() && trial.asking.is_none() {
            trial.asking = Some(tokio::spawn(reach::ask(missing)));
        }
        let Some(active) = &self.active else { return Judgement::default() };
        let evidence = Evidence {
            site: &active.site,
            healths: self.monitor.healths(),
            selection: &self.selection,
            rounds: &trial.rounds,
            ways: &ways,
            reached: &trial.reached,
            settled: trial.settled,
        };
        judge(&trial.change.baseline, &evidence)
    }

    /// The change stands.
    pub(super) fn stands(&mut self, change: &Unconfirmed, standing: Standing, why: &str) {
        self.gate.stage = Stage::Idle;
        self.gate.before = None;
        self.router.ledger.settle_unconfirmed(change, standing, Some(why));
        self.source.applied = None;
        self.in_force();
        let text = format!("generation {} (revision {}) stands: {why}", change.generation, change.revision);
        self.audit(&Who::DAEMON, "confirm", &text);
        self.event("confirm", "", text, serde_json::Value::Null);
        self.timers.publish = clock::now();
    }

    /// Puts the configuration before the one on trial in force again.
    pub(super) fn go_back(&mut self, reason: &str) {
        let Stage::Waiting(trial) = std::mem::replace(&mut self.gate.stage, Stage::Idle) else { return };
        let change = trial.change;
        let text = format!("generation {} (revision {}) is undone: {reason}", change.generation, change.revision);
        self.warning("confirm", "", text, serde_json::Value::Null);
        let before = self.gate.before.take();
        self.back_to(change, before, reason);
    }

    /// Invariant: the record of the change stays until the kernel was read back, so that a kill on the way back is
    /// no way out.
    fn back_to(&mut self, change: Unconfirmed, before: Option<Box<Active>>, reason: &str) {
        self.gate.stage = Stage::Back(Box::new(change), reason.to_owned());
        match before {
            Some(before) => self.adopt(*before),
            None => self.active = None,
        }
        self.timers.pass_at(clock::now());
    }

    fn is_back(&mut self, change: &Unconfirmed, reason: &str) {
        self.router.ledger.settle_unconfirmed(change, Standing::RolledBack, Some(reason));
        self.audit(&Who::DAEMON, "rollback", &format!("generation {}: {reason}", change.generation));
        let text = format!("undone: {reason}");
        self.refuse(Some(change.revision.clone()), vec![text]);
    }

    /// What an earlier process left on trial, and what is to be done about it.
    pub(super) fn resume_trial(&mut self, change: Unconfirmed, before: Option<Active>) {
        let before = before.map(Box::new);
        match change.due(&apply::place(), clock::now()) {
            Due::Elsewhere => {
                let reason = "the machine went down before it was confirmed";
                self.router.ledger.settle_unconfirmed(&change, Standing::RolledBack, Some(reason));
                self.audit(&Who::DAEMON, "rollback", &format!("generation {}: {reason}", change.generation));
                if let Some(before) = before {
                    self.adopt(*before);
                }
                self.refuse(Some(change.revision), vec![format!("undone: {reason}")]);
            }
            // A daemon that died says nothing about the revision: it is tried again.
            Due::Now if change.phase == Phase::Applying && !change.who.is_person() => {
                let reason = "the daemon ended before it was in force";
                self.router.ledger.settle_unconfirmed(&change, Standing::RolledBack, Some(reason));
                if let Some(before) = before {
                    self.adopt(*before);
                }
            }
            Due::Now if change.phase == Phase::Applying => {
                self.back_to(change, before, "whoever applied it ended before it was in force");
            }
            Due::Now => self.back_to(change, before, "nobody confirmed it in time"),
            Due::In(_) => match self.on_trial() {
                Some(active) => {
                    self.gate.before = before;
                    self.gate.stage = Stage::Waiting(Trial::new(change, clock::now()));
                    self.adopt(active);
                }
                None => self.back_to(change, before, "its configuration cannot be read any more"),
            },
        }
    }

    /// The configuration on trial, as it was written down.
    fn on_trial(&self) -> Option<Active> {
        let found = self.router.ledger.in_force()?;
        let snapshot = Snapshot { revision: found.revision, files: found.files, commit: None };
        activate(snapshot, Some(&self.origin.site), &self.origin.options).ok()
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
    let allowed = commit.trailer("Patronus-Allow-Large").is_some_and(|value| value.trim().eq_ignore_ascii_case("yes"));
    (Who::Daemon { author: Some(commit.author.clone()), signer }, allowed)
}

/// What a task that has ended found.
fn answer(asking: JoinHandle<BTreeSet<String>>) -> BTreeSet<String> {
    asking.now_or_never().and_then(Result::ok).unwrap_or_default()
}

/// Why a plan could not be carried out, for the refusal of its revision.
pub(super) fn reasons(refusals: &[Refusal]) -> String {
    refusals.iter().map(Refusal::line).collect::<Vec<_>>().join("; ")
}
