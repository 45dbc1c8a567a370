//! From the configuration in the kernel to the one that a pass brings about.
//!
//! Invariant: until the kernel has taken a revision, nothing works with it. Probes, states of paths, choices and fast
//! switches go on with what is in the kernel; the way of the traffic under another configuration is chosen on a copy, only to
//! be planned. All of it is exchanged at once, right after the commit point, and nothing of it if there is none.

use super::{
    Active, Engine,
    gate::{Back, Proposed, Stage},
    status::ReconcileOutcome,
};
use crate::{
    clock::{self, Instant},
    failover::{self, Decision, Selection},
    guard::Unconfirmed,
};

/// The way that traffic takes under a configuration that is not in the kernel yet.
pub(super) struct Chosen {
    pub selection: Selection,
    decision: Decision,
    begun: Instant,
    decided: Instant,
}

impl Engine {
    /// The configuration that the next pass brings about: the one in the kernel, unless another is to take its place.
    /// None: nothing of ours.
    pub(super) fn goal(&self) -> Option<&Active> {
        match &self.gate.stage {
            Stage::Proposed(proposed) => Some(&proposed.active),
            Stage::Back(back) => back.to.as_deref(),
            Stage::Idle | Stage::Waiting(_) => self.active.as_ref(),
        }
    }

    /// The revision of that.
    pub(super) fn goal_revision(&self) -> Option<String> {
        self.goal().map(|active| active.revision.clone())
    }

    /// Chooses paths for a configuration that is to take the place of the one in the kernel.
    pub(super) fn choose(&self, now: Instant) -> Option<Chosen> {
        let site = &self.goal().filter(|_| self.gate.is_changing())?.site;
        let begun = clock::now();
        let mut monitor = self.monitor.clone();
        monitor.reconfigure(site, now);
        for (path, link) in self.links(site) {
            monitor.set_link(&path, link, now);
        }
        let inputs = failover::Inputs {
            site,
            healths: monitor.healths(),
            measures: monitor.measures(),
            overrides: &self.overrides,
        };
        let mut selection = self.selection.clone();
        let decision = failover::decide(&inputs, &mut selection, now);
        Some(Chosen { selection, decision, begun, decided: clock::now() })
    }

    /// The kernel is as the pass wanted it. Gives what people shall be told of the pass, if it is another thing.
    pub(super) fn arrived(
        &mut self,
        begun: Option<Unconfirmed>,
        chosen: Option<Chosen>,
    ) -> Option<(ReconcileOutcome, String)> {
        self.drift_settled();
        match std::mem::replace(&mut self.gate.stage, Stage::Idle) {
            Stage::Idle => self.now_in_force(),
            Stage::Waiting(mut trial) => {
                trial.settled = true;
                self.gate.stage = Stage::Waiting(trial);
            }
            Stage::Proposed(proposed) => {
                let Proposed { active, timeout, in_place_of, .. } = *proposed;
                let old = self.active.take().map(Box::new);
                if in_place_of.is_some() {
                    self.revisions.left(None);
                }
                self.gate.before = in_place_of.map_or(old, |back| back.to);
                self.exchange(Some(active), chosen);
                if let Some(change) = begun {
                    self.trial_waits(change, timeout);
                }
            }
            Stage::Back(back) if self.gate.left => {
                let text = self.back_but_for_what_is_left(back, chosen);
                return Some((ReconcileOutcome::RollbackFailed, text));
            }
            Stage::Back(back) => {
                let Back { change, reason, silent, to, .. } = *back;
                self.exchange(to.map(|to| *to), chosen);
                self.now_in_force();
                self.is_back(&change, &reason, silent);
                return Some((ReconcileOutcome::RolledBack, reason));
            }
        }
        None
    }

    /// The kernel holds what was before and, beside it, something of the change still: what was before is worked with, and
    /// the record of the change stays until all of it is gone.
    fn back_but_for_what_is_left(&mut self, back: Box<Back>, chosen: Option<Chosen>) -> String {
        let to = back.to.as_deref().cloned();
        self.gate.stage = Stage::Back(back);
        self.exchange(to, chosen);
        let left = self.alarms.refused.clone().unwrap_or_default();
        self.not_back(&left)
    }

    /// Works with another configuration and the choices that were made for it, from now on.
    fn exchange(&mut self, active: Option<Active>, chosen: Option<Chosen>) {
        match active {
            Some(active) => self.take_up(active),
            None => self.active = None,
        }
        let Some(Chosen { selection, mut decision, begun, decided }) = chosen else { return };
        let now = clock::now();
        self.selection = selection;
        self.router.remember_selection(&self.selection);
        self.next_decision = decision.next.map(|(at, _)| at);
        self.forget(&decision, now);
        for mut transition in std::mem::take(&mut decision.transitions) {
            transition.decided_in = Some(decided.since(begun));
            transition.switched_in = Some(now.since(decided));
            self.told(transition);
        }
    }
}
