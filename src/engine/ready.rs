//! Whether a new revision may be tried now, and what it waits for.
//!
//! Invariant: a change is never tried while nothing could be held against it: not before the paths are measured, nor while
//! they still recover from the change before it.

use std::time::Duration;

use super::{Engine, gate::Proposal};
use crate::{
    clock::{self, Instant},
    guard::{
        Unconfirmed,
        gate::{measured, works},
        window,
    },
    units::PathPart,
    validate::intent::Path,
};

/// After a start the paths get so long to be measured before a new revision is tried: without figures nothing could
/// be compared.
pub(super) const MEASURING: Duration = Duration::from_secs(10);

/// After a change was undone, the paths that it may have cut get so long to answer again before the next revision is
/// tried: otherwise that one, with the same fault in it perhaps, would find nothing that it could be blamed for.
const RECOVERING: Duration = Duration::from_secs(60);

impl Engine {
    /// Why a proposal has to wait, if it has to.
    pub(super) fn not_now(&self, proposal: &Proposal) -> Option<String> {
        let now = clock::now();
        if let Some((change, _)) = self.gate.waiting() {
            return Some(change.line());
        }
        if self.gate.is_taken() {
            return Some("the revision before is being put in force again".into());
        }
        if !proposal.who.is_person()
            && let Err(closed) = window::decide(&self.gate.rules.windows, clock::wall())
        {
            return Some(closed.to_string());
        }
        if !proposal.who.is_person()
            && let Some(part) = self.recovers(now)
        {
            return Some(format!("{part} was up before the change that was undone, and is not yet again"));
        }
        if let Some(again) = self.gate.again.as_ref().filter(|again| again.waits(&proposal.active.content, now)) {
            return Some(again.to_string());
        }
        let measuring = now.since(self.gate.started) < MEASURING
            && self.active.as_ref().is_some_and(|a| !a.site.paths.values().all(|path| self.is_measured(path)));
        measuring.then(|| "its paths are not measured yet".into())
    }

    fn is_measured(&self, path: &Path) -> bool {
        let seen = self.gate.seen.get(&path.name).copied().unwrap_or_default();
        measured(path, self.monitor.healths().get(&path.name), seen)
    }

    /// From here on the paths that were up before the change that was undone are waited for.
    pub(super) fn wait_for_paths(&mut self, undone: &Unconfirmed) {
        let Some(active) = &self.active else { return };
        let paths = &active.site.paths;
        let rounds = |path: &std::sync::Arc<Path>| {
            (path.probe.interval * (path.probe.up_after + 2)).saturating_add(path.probe.timeout)
        };
        let up = undone.baseline.up.iter().filter(|part| paths.contains_key(&part.path));
        let longest = up.clone().filter_map(|part| paths.get(&part.path)).map(rounds).fold(RECOVERING, Duration::max);
        self.gate.recovering = Some((up.cloned().collect(), clock::now() + longest));
    }

    /// A path, or a family of one, that has not recovered yet from the change that was undone.
    pub(super) fn recovers(&self, now: Instant) -> Option<&PathPart> {
        let (up, _) = self.gate.recovering.as_ref().filter(|(_, until)| now < *until)?;
        let healths = self.monitor.healths();
        let lost = |part: &&PathPart| {
            healths.get(&part.path).is_some_and(|health| health.carrier && !works(health.of(part.family)))
        };
        up.iter().find(lost)
    }
}
