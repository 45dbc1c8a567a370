//! The fast path: health in, path choice out, routes switched at once.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::json;

use super::{Engine, status::Event};
use crate::{
    clock::{self, Instant},
    desired, failover,
    failover::{Decision, Transition},
    health::{
        Link, Sample,
        load::{Moved, Use},
    },
    kernel::Kernel as _,
    plan::{self, Step},
    state::{Key, Stamp, State},
    store::TransitionRecord,
    units::{IfName, Name},
    validate::intent::{Path, Site},
};

impl Engine {
    pub(super) fn take_sample(&mut self, sample: &Sample, now: Instant) {
        if let Some(counts) = self.probes.get_mut(&sample.path) {
            counts.add(sample);
        }
        let path = self.active.as_ref().and_then(|a| a.site.paths.get(&sample.path).map(Arc::clone));
        if let Some(path) = &path {
            self.look_at_load(path, now);
        }
        self.gate.note(sample, path.map_or(1, |path| path.probe.quorum));
        if let Some(health) = self.monitor.handle_sample(sample, now) {
            self.batch.add(&sample.path, health, clock::wall());
        }
    }

    /// How busy an uplink is, is measured where its bandwidth is declared.
    pub(super) fn measure_loads(&mut self, site: &Site) {
        let mut known = std::mem::take(&mut self.loads);
        let declared = site.endpoints.iter().filter(|(_, endpoint)| endpoint.down.is_some() || endpoint.up.is_some());
        let loads = declared.map(|(name, _)| (name.clone(), known.remove(name).unwrap_or_default()));
        self.loads = loads.collect();
        for path in site.paths.values().filter(|path| !self.loads.contains_key(&path.from)) {
            self.monitor.set_load(&path.name, None, false);
        }
    }

    /// Reads how busy a path's uplink is, where its bandwidth is declared, before what was measured is judged.
    fn look_at_load(&mut self, path: &Path, now: Instant) {
        let Some((used, meter)) = self.loads.get_mut(&path.from) else { return };
        let endpoint = self.active.as_ref().and_then(|a| a.site.endpoints.get(&path.from));
        let Some(endpoint) = endpoint else { return };
        if meter.is_due(now) {
            match self.router.kernel.link_bytes(&endpoint.interface) {
                Ok(Some((down, up))) => {
                    *used = meter.add(Moved { down, up }, (endpoint.down, endpoint.up), now);
                }
                Ok(None) => *used = None,
                Err(error) => tracing::debug!(%error, "the load of an uplink is not known"),
            }
        }
        let busy = meter.weigh(used.unwrap_or_default(), path.probe.busy_at.as_f64(), now);
        self.monitor.set_load(&path.name, used.map(Use::most), busy);
    }

    /// A link's state reaches every path that leaves by it, before any look at the kernel; the switch that follows
    /// must not set routes by a link that is down.
    pub(super) fn link_changed(&mut self, name: &IfName, up: bool, carrier: bool, now: Instant) {
        if let Some(facts) = self.observed.facts.links.get_mut(name) {
            (facts.up, facts.carrier) = (up, carrier);
        }
        let told = |interface: &IfName| {
            if interface == name { state(up, carrier) } else { self.link_of(interface) }
        };
        let paths = self.active.iter().flat_map(|a| a.site.paths.values());
        let changed = paths.filter(|p| p.interface == *name || p.under() == Some(name));
        let links: Vec<_> = changed.map(|path| (path.name.clone(), link(path, told))).collect();
        for (path, link) in links {
            self.monitor.set_link(&path, link, now);
        }
    }

    /// An interface at the last look.
    fn link_of(&self, interface: &IfName) -> Link {
        self.observed.facts.links.get(interface).map_or(Link::Missing, |l| state(l.up, l.carrier))
    }

    /// Takes the links from the last look at the kernel.
    pub(super) fn links_from_facts(&mut self, now: Instant) {
        let links = self.active.as_ref().map(|active| self.links(&active.site)).unwrap_or_default();
        for (path, link) in links {
            self.monitor.set_link(&path, link, now);
        }
    }

    /// What the last look at the kernel says of the paths of a site; nothing before the first.
    pub(super) fn links(&self, site: &Site) -> Vec<(Name, Link)> {
        let paths = site.paths.values().filter(|_| self.has_looked());
        paths.map(|path| (path.name.clone(), link(path, |interface| self.link_of(interface)))).collect()
    }

    /// Whether the kernel has been looked at since the start: every network namespace has a loopback interface.
    pub(super) fn has_looked(&self) -> bool {
        !self.observed.facts.links.is_empty()
    }

    /// Asks the failover rules; switches at once if they want another path. Before the first look at the kernel
    /// every interface would seem to be missing, so nothing is decided.
    pub(super) async fn decide(&mut self, now: Instant) {
        if !self.has_looked() {
            return;
        }
        while let Some(event) = self.monitor.poll_event() {
            let family = event.family.map(|family| format!(": {family}")).unwrap_or_default();
            let message = format!("{}{family} is {}, was {}: {}", event.path, event.to, event.from, event.reason);
            let health = self.monitor.healths().get(&event.path).map(|h| json!(h)).unwrap_or_default();
            self.event("path", event.path.as_str(), message, health);
        }
        let Some(active) = &self.active else { return };
        let inputs = failover::Inputs {
            site: &active.site,
            healths: self.monitor.healths(),
            measures: self.monitor.measures(),
            overrides: &self.overrides,
        };
        let begun = clock::now();
        let decision = failover::decide(&inputs, &mut self.selection, now);
        let decided = clock::now();
        self.next_decision = decision.next.map(|(at, _)| at);
        let due = decision.routes || !decision.forget.is_empty() || !decision.forget_family.is_empty();
        let switched = if due { self.switch(&decision, now).await } else { None };
        for mut transition in decision.transitions {
            transition.decided_in = Some(decided.since(begun));
            transition.switched_in = switched.map(|at| at.since(decided));
            self.told(transition);
        }
        if decision.routes {
            self.router.remember_selection(&self.selection);
            self.timers.pass_at(now);
            self.timers.publish = now;
        }
    }

    /// Brings the routes to the new choice, in the tables of targets that the site has: the active ones first, then it
    /// begins that flows which have nothing to lose are forgotten, then the tails. The full pass that follows must find
    /// nothing left to do here. Says when the kernel had the active routes.
    async fn switch(&mut self, decision: &Decision, now: Instant) -> Option<Instant> {
        let active = self.active.as_ref()?;
        let inputs = self.router.inputs(&self.selection, &self.observed);
        let mut numbers = inputs.known.clone();
        let known = desired::targets(&active.site);
        numbers.targets.retain(|target, _| known.contains(target));
        let tables: BTreeSet<u32> = numbers.targets.values().map(|number| inputs.ranges.table(*number)).collect();
        let wanted = desired::compile_routes(&active.site, inputs, &numbers);
        let in_table = |key: &Key| matches!(key, Key::Route(route) if tables.contains(&route.table));
        let routes = self.observed.state.objects.iter().filter(|(key, _)| in_table(key));
        let shown = State { objects: routes.map(|(key, value)| (key.clone(), value.clone())).collect() };
        let mut steps = plan::diff(&wanted, &shown);
        steps.retain(|step| !self.is_spared(step));
        let first = steps.iter().take_while(|s| is_active_route(s)).count();
        let (active_steps, tails) = steps.split_at(first);
        self.execute(active_steps).await;
        let switched = clock::now();
        self.forget(decision, switched);
        self.execute(tails).await;
        tracing::info!(steps = steps.len(), micros = clock::now().since(now).as_micros(), "paths switched");
        Some(switched)
    }

    /// Whether a step would only put back what is left as it is.
    fn is_spared(&self, step: &Step) -> bool {
        let key = step.key().filter(|key| self.drift.spared.contains(key));
        key.is_some() && self.router.applied().is_some_and(|applied| plan::report::drifted(step, applied))
    }

    /// Executes steps outside a transaction. What fails is found by the full pass, which repairs or reports it.
    async fn execute(&mut self, steps: &[Step]) {
        let stamp = self.observed.stamp.clone().unwrap_or(Stamp { generation: 0, plan: uuid::Uuid::nil() });
        let mut executed = Vec::new();
        for step in steps {
            match self.router.kernel.execute(step, self.router.ranges(), &stamp).await {
                Ok(_) => {
                    tracing::debug!(?step, "switched");
                    executed.push(step);
                }
                Err(error) => {
                    tracing::warn!("a switch step failed, the full pass takes over: {error}");
                    tracing::debug!(?step, "failed");
                }
            }
        }
        self.router.switched(&executed, &mut self.observed);
    }

    pub(super) fn told(&mut self, transition: Transition) {
        let kind = transition.kind.word();
        let name = |n: &Option<Name>| n.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        let message = format!(
            "{}{}: {} -> {}: {}",
            transition.rule,
            transition.family.map(|family| format!(": {family}")).unwrap_or_default(),
            name(&transition.from),
            name(&transition.to),
            transition.reason
        );
        self.event(kind, transition.rule.as_str(), message, json!(transition));
        let by_kind = self.totals.transitions.entry(transition.rule.clone()).or_default();
        *by_kind.entry(transition.kind).or_default() += 1;
        // The record of a rule's path is not that of one family of it.
        if transition.family.is_none() {
            self.recorder.transition(TransitionRecord::of(&transition, clock::wall()));
            self.changes.insert(transition.rule.clone(), transition);
        }
    }

    /// Records and logs that something happened.
    pub(super) fn event(&self, kind: &str, subject: &str, message: String, detail: serde_json::Value) {
        tracing::info!(kind, subject, "{message}");
        self.record(kind, subject, message, detail);
    }

    /// The same for what a person should look at.
    pub(super) fn warning(&self, kind: &str, subject: &str, message: String, detail: serde_json::Value) {
        tracing::warn!(kind, subject, "{message}");
        self.record(kind, subject, message, detail);
    }

    fn record(&self, kind: &str, subject: &str, message: String, detail: serde_json::Value) {
        let event = Event { id: 0, at: clock::wall(), kind: kind.into(), subject: subject.into(), message, detail };
        self.recorder.event(event);
    }
}

/// What a path's link is worth: a tunnel of ours has its carrier still when the interface under it has lost its own.
fn link(path: &Path, of: impl Fn(&IfName) -> Link) -> Link {
    match (of(&path.interface), path.under().map(of)) {
        (Link::Ready, Some(under)) => under,
        (own, _) => own,
    }
}

const fn state(up: bool, carrier: bool) -> Link {
    match (up, carrier) {
        (true, true) => Link::Ready,
        (true, false) => Link::NoCarrier,
        (false, _) => Link::Disabled,
    }
}

fn is_active_route(step: &Step) -> bool {
    matches!(step, Step::Set { key: Key::Route(key), after: Some(_), .. } if key.metric == desired::ACTIVE)
}
