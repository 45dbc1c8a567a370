//! The status that goes out after each pass and once a second.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::FutureExt;

use super::{
    Engine, Origin, PUBLISH,
    status::{
        PathStatus, Pinned, PolicyStatus, RuleStatus, SourceStatus, Status, Totals, UnconfirmedStatus, WaitingStatus,
    },
};
use crate::{
    clock, desired,
    failover::{self, Choice},
    health::quality,
    plan::report::action_text,
    revision::View,
    state::RouteValue,
    units::Name,
    validate::intent::{Action, Path, Policy, Rule, Site},
};

/// Version of the status format.
const FORMAT_VERSION: u32 = 1;

/// A status before anything is known.
pub(super) fn blank(origin: &Origin) -> Status {
    Status {
        format_version: FORMAT_VERSION,
        version: env!("CARGO_PKG_VERSION").into(),
        site: origin.site.clone(),
        pid: std::process::id(),
        started: clock::wall(),
        now: clock::now(),
        wall: clock::wall(),
        source: SourceStatus::of(origin.location()),
        conditions: Vec::new(),
        generation: 0,
        reconcile: None,
        change: None,
        unconfirmed: None,
        waiting: None,
        paths: BTreeMap::new(),
        rules: BTreeMap::new(),
        policies: Vec::new(),
        alarms: Vec::new(),
        drift: Vec::new(),
        drifted: Vec::new(),
        fights: Vec::new(),
        overrides: Vec::new(),
        totals: Totals::default(),
    }
}

impl Engine {
    /// Publishes what is known now.
    pub(super) fn publish(&mut self) {
        self.timers.publish = clock::now() + PUBLISH;
        self.recorder.samples(self.batch.take());
        self.take_count();
        let mut status = blank(&self.origin);
        status.source = self.source_status();
        let view = View { failure: self.alarms.kernel.as_deref() };
        status.conditions = self.revisions.conditions(view, clock::wall());
        status.started = self.started;
        status.generation = self.router.generation_of(&self.observed);
        status.reconcile.clone_from(&self.last);
        status.change.clone_from(&self.change);
        (status.drifted, status.drift) = self.drift.objects();
        status.fights = self.drift.fights(status.now);
        status.overrides = self.drift.overrides().to_vec();
        status.totals = self.totals.clone();
        status.totals.webhook = self.hooks.counts();
        status.totals.reports = self.reports.counts();
        status.totals.notifications = self.notices.results();
        status.totals.store_lost_rows = self.recorder.lost();
        status.alarms = self.alarms();
        status.unconfirmed = self.unconfirmed();
        status.waiting = self
            .gate
            .held()
            .map(|(revision, reason)| WaitingStatus { revision: revision.into(), reason: reason.into() });
        if let Some(active) = &self.active {
            status.rules = self.rules(&active.site);
            status.policies = active.site.policies.iter().map(|p| self.policy(p)).collect();
        }
        self.status.send_modify(|published| {
            // Where nobody reads the old ones, the paths change in their place: they are most of a large hub's status.
            status.paths = Arc::get_mut(published).map(|old| std::mem::take(&mut old.paths)).unwrap_or_default();
            self.fill_in_paths(&mut status.paths);
            *published = Arc::new(status);
        });
    }

    fn unconfirmed(&self) -> Option<UnconfirmedStatus> {
        let (change, found) = self.gate.waiting()?;
        Some(UnconfirmedStatus {
            generation: change.generation,
            revision: change.revision.clone(),
            previous: change.previous.clone(),
            who: change.who.clone(),
            until: change.deadline.wall,
            seconds_left: change.deadline.at.since(clock::now()).as_secs(),
            by_hand: change.who.is_person(),
            waits: found.waits.clone(),
            against: found.against.clone(),
        })
    }

    fn alarms(&self) -> Vec<String> {
        let a = &self.alarms;
        let mut all: Vec<String> =
            a.start.iter().chain(&a.kernel).chain(&a.refused).chain(&a.journal).cloned().collect();
        all.extend(self.router.ledger.alarm());
        all.extend(self.revisions.alarms(clock::wall()));
        all.extend(self.recorder.alarms());
        all.extend(self.notices.alarms());
        all.extend(self.monitor.alarms());
        all.extend(self.drift.alarms(clock::now()));
        if let Some(active) = &self.active {
            all.extend(desired::obstacles(&active.site, &self.observed.facts));
        }
        all.extend(self.observed.intruders.iter().map(|i| crate::plan::report::intruder(i)));
        all
    }

    /// Brings what is published of the paths up to now.
    fn fill_in_paths(&self, paths: &mut BTreeMap<Name, PathStatus>) {
        let Some(site) = self.active.as_ref().map(|active| &active.site) else { return paths.clear() };
        let new = || site.paths.iter().filter_map(|(name, path)| Some((name, self.path(site, path)?)));
        if paths.keys().eq(site.paths.keys()) {
            for (name, new) in new() {
                paths.entry(name.clone()).and_modify(|old| *old = new);
            }
        } else {
            *paths = new().map(|(name, path)| (name.clone(), path)).collect();
        }
    }

    fn path(&self, site: &Site, path: &Path) -> Option<PathStatus> {
        let name = &path.name;
        let counts = self.probes.get(name).cloned().unwrap_or_default();
        let mut health = self.monitor.healths().get(name)?.clone();
        self.drift.lacks(name).for_each(|lacks| health.reason = format!("{}; {lacks}", health.reason));
        let call = health.latency.map(|l| quality::mos(l, health.jitter.unwrap_or_default(), health.loss.as_f64()));
        let hops = desired::next_hops(site, path, &self.observed.facts);
        let mut gateways: Vec<_> = hops.values().filter_map(RouteValue::gateway).collect();
        gateways.shrink_to_fit();
        Some(PathStatus {
            interface: path.interface.clone(),
            gateways,
            health,
            probes_answered: counts.answered,
            probes_lost: counts.lost,
            method: path.probe.method.text().into(),
            spread: self.monitor.spread(name),
            mos: call,
            counts,
            drained: self.overrides.drains.contains_key(name),
            drained_since: self.overrides.drains.get(name).map(|drain| drain.since),
        })
    }

    fn rules(&self, site: &Site) -> BTreeMap<Name, RuleStatus> {
        let now = clock::now();
        let inputs = failover::Inputs {
            site,
            healths: self.monitor.healths(),
            measures: self.monitor.measures(),
            overrides: &self.overrides,
        };
        let status = |(name, rule): (&Name, &crate::validate::intent::Rule)| {
            let choice = self.selection.rules.get(name)?.clone();
            let change = self.changes.get(name);
            let rule = RuleStatus {
                members: rule.members.clone(),
                failback_in: failover::failback_in(rule, &choice, now)
                    .map(|d| d.max(self.overrides.pin(name, now).map(|p| p.until.since(now)).unwrap_or_default()))
                    .map(|d| d.as_secs_f64()),
                reason: change.map(|c| c.reason.clone()).unwrap_or_default(),
                change: change.cloned(),
                passes_on: self.selection.passes_on(rule),
                active_members: choice.in_use().cloned().collect(),
                shares: shares(rule),
                parted: failover::parted(rule, &choice, now),
                standings: failover::views(&inputs, rule, &choice, now),
                pinned: self.overrides.pin(name, now).map(|pin| Pinned {
                    to: pin.to.clone(),
                    seconds: pin.until.since(now).as_secs_f64(),
                    reason: pin.reason.clone(),
                }),
                choice,
            };
            Some((name.clone(), rule))
        };
        site.rules.iter().filter_map(status).collect()
    }

    fn policy(&self, policy: &Policy) -> PolicyStatus {
        let paths: Vec<Name> = match &policy.action {
            Action::Failover(rule) => {
                self.selection.rules.get(rule).into_iter().flat_map(Choice::in_use).cloned().collect()
            }
            Action::Path(path) => vec![path.clone()],
            Action::Drop | Action::Reject => Vec::new(),
        };
        let number = self.router.numbers(&self.observed).policies.get(&policy.name);
        PolicyStatus {
            name: policy.name.clone(),
            priority: policy.priority,
            action: action_text(&policy.action),
            path: paths.first().cloned(),
            paths,
            counter: self.observed.counters.get(&policy.name).copied().unwrap_or_default(),
            flows: number.and_then(|n| self.flows.get(n)).copied().unwrap_or_default(),
        }
    }

    /// Reads counters, and has flows counted: a large table of connections is long to read, and nothing waits for it.
    pub(super) fn count(&mut self) {
        if self.active.is_none() {
            return;
        }
        match self.router.kernel.counters() {
            Ok(counters) => self.observed.counters = counters,
            Err(error) => tracing::debug!(%error, "counters cannot be read"),
        }
        if self.counting.is_none() {
            self.counting = Some(tokio::spawn(self.router.kernel.flows_by_policy(self.router.ranges())));
        }
    }

    /// Takes in the flows that were counted, if that is done.
    fn take_count(&mut self) {
        let counted = self.counting.take_if(|counting| counting.is_finished());
        match counted.and_then(FutureExt::now_or_never) {
            Some(Ok(Ok(flows))) => self.flows = flows,
            Some(Ok(Err(error))) => tracing::debug!(%error, "flows cannot be counted"),
            Some(Err(error)) => tracing::error!("counting flows ended without a result: {error}"),
            None => {}
        }
    }
}

/// The share of each path of a rule that shares.
fn shares(rule: &Rule) -> BTreeMap<Name, String> {
    let balance = rule.balance.iter();
    balance.flat_map(|b| b.weights.keys().map(|path| (path.clone(), b.share(path)))).collect()
}
