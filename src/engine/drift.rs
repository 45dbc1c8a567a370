//! Drift as the engine keeps books of it: what was changed, what is left alone and why, and who is at it.
//!
//! What is drift and when a fight begins is decided in [`crate::drift`]; here are its inputs and what is told of it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde_json::json;

use super::{
    Engine,
    router::Planned,
    status::{DriftedObject, FightStatus, SHOWN, Treatment},
};
use crate::{
    apply::{Cause, Outcome},
    clock::{self, Instant},
    drift::{
        self, Drifted, Mode,
        along::Along,
        fights::{Fight, Fights, News},
    },
    foreign::{
        self, Override,
        programs::{self, Culprit, Touch},
    },
    kernel::linux::processes,
    plan::text,
    state::{Key, State},
    units::{IfName, Name},
};

/// Notifications that are remembered as evidence.
const TOUCHES: usize = 256;
/// What surrounds us is looked at this often.
const LOOK_AROUND: Duration = Duration::from_secs(60);
/// A look that takes longer than this is repeated less often: others have very many rules.
const SLOW: Duration = Duration::from_millis(50);

/// The books.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// What differs at the newest look, ignored kinds left out.
    found: BTreeMap<Drifted, DriftedObject>,
    /// What the newest plan leaves as it is.
    pub(super) spared: BTreeSet<Key>,
    /// What of that keeps paths from working.
    barred: Vec<Barred>,
    fights: Fights,
    along: Along,
    culprits: BTreeMap<Key, Culprit>,
    touches: VecDeque<Touch>,
    overrides: Vec<Override>,
    next_look: Instant,
}

/// A path that has no way of its own, since what somebody did to that is left as it is.
#[derive(Debug)]
struct Barred {
    path: Name,
    /// What it lacks, for the reason of its state.
    lacks: String,
    /// The whole story, with what to do.
    alarm: String,
}

impl Books {
    /// What the status shows: objects, and one line for each.
    pub(super) fn objects(&self) -> (Vec<DriftedObject>, Vec<String>) {
        let objects: Vec<DriftedObject> = self.found.values().take(SHOWN).cloned().collect();
        let lines = objects.iter().map(DriftedObject::line).collect();
        (objects, lines)
    }

    /// The fights that are on.
    pub(super) fn fights(&self, now: Instant) -> Vec<FightStatus> {
        self.fights.all().iter().map(|fight| self.fight(fight, now)).collect()
    }

    fn fight(&self, fight: &Fight, now: Instant) -> FightStatus {
        let culprit = self.culprits.get(&fight.key).cloned();
        FightStatus {
            kind: fight.key.kind().to_owned(),
            object: text::key_text(&fight.key),
            losses: fight.losses,
            seconds: now.since(fight.since).as_secs(),
            next_try_in: fight.next.since(now).as_secs(),
            culprit: culprit.unwrap_or_else(|| programs::culprit(fight.key.kind(), &[], &[])),
        }
    }

    /// What overrides us, as last looked at.
    pub(super) fn overrides(&self) -> &[Override] {
        &self.overrides
    }

    /// Everything that a person should look at.
    pub(super) fn alarms(&self, now: Instant) -> Vec<String> {
        let ahead = self.overrides.iter().filter(|o| o.certain && o.kind == foreign::Kind::RuleAhead);
        let ahead = ahead.map(|o| format!("{}; {}", o.what, o.remedy));
        let barred = self.barred.iter().map(|barred| barred.alarm.clone());
        self.fights(now).iter().map(FightStatus::line).chain(ahead).chain(barred).collect()
    }

    /// What a path lacks of its own way in the kernel.
    pub(super) fn lacks(&self, path: &Name) -> impl Iterator<Item = &str> {
        self.barred.iter().filter(move |barred| barred.path == *path).map(|barred| barred.lacks.as_str())
    }

    /// The keys of what was put right by a pass that ended well.
    fn settle(&mut self, now: Instant) {
        self.fights.repaired(now);
        self.along.put_back();
        self.found.retain(|drifted, _| self.spared.contains(&drifted.key));
    }
}

/// A drifted object as the status and the verb `drift` show it.
pub(crate) fn object(drifted: &Drifted, treatment: Treatment, wanted: &State, found: &State) -> DriftedObject {
    let Drifted { key, how } = drifted;
    DriftedObject {
        kind: key.kind().to_owned(),
        object: text::key_text(key),
        how: *how,
        detail: text::difference(wanted.objects.get(key), found.objects.get(key)),
        treatment,
    }
}

/// What a path lacks, in few words.
fn lacks(Drifted { key, how }: &Drifted) -> String {
    match key {
        Key::Route(key) => format!("its {} route in table {} {how}", key.family, key.table),
        Key::Rule(key) => format!("its {} rule with priority {} {how}", key.family, key.priority),
        _ => format!("its {} {how}", key.kind()),
    }
}

impl Engine {
    /// Notes what of a plan only puts right what somebody else did, and takes out of it what is to be left alone: kinds
    /// that are only reported, unless a new revision comes, and objects that are fought over.
    pub(super) fn weigh_drift(&mut self, planned: Planned) -> Planned {
        let now = clock::now();
        let modes = *self.router.modes();
        let found = self.router.drift(&planned, &self.observed);
        let found = self.drift.along.without(found, &planned.desired, now);
        // What goes with its interface is put back also where drift is ignored.
        let ignored = found.iter().map(|drifted| &drifted.key).filter(|key| planned.spared.contains(*key));
        let ignored: BTreeSet<Key> = ignored.cloned().collect();
        let (repaired, reported): (Vec<Drifted>, Vec<Drifted>) = found
            .into_iter()
            .filter(|drifted| modes.of(&drifted.key) != Mode::Ignore)
            .partition(|drifted| modes.of(&drifted.key) == Mode::Repair);
        self.retry_without_culprits();
        let lost = repaired.iter().map(|drifted| drifted.key.clone()).collect();
        let news = self.drift.fights.look(&lost, now);
        let held = self.drift.fights.held(now);
        let new = self.goal().is_some_and(|active| !self.router.is_in_force(&active.revision));
        let treat = |drifted: &Drifted| match modes.of(&drifted.key) {
            Mode::Report if !new => Treatment::Reported,
            _ if held.contains(&drifted.key) => Treatment::LeftAlone,
            _ => Treatment::Repaired,
        };
        let found: BTreeMap<Drifted, DriftedObject> = repaired
            .into_iter()
            .chain(reported)
            .map(|d| (d.clone(), object(&d, treat(&d), &planned.desired, &self.observed.state)))
            .collect();
        let spared = found.iter().filter(|(_, object)| object.treatment != Treatment::Repaired);
        self.drift.barred = spared.clone().filter_map(|(d, object)| self.barred(d, object, &planned.desired)).collect();
        let spared: BTreeSet<Key> = spared.map(|(drifted, _)| drifted.key.clone()).chain(ignored).collect();
        self.note_drift(found);
        self.tell_fights(&news, now);
        let planned = self.router.sparing(planned, spared, &self.observed);
        self.drift.spared.clone_from(&planned.spared);
        planned
    }

    /// What is to be said of an object that is left as it is, if it is a path's own.
    fn barred(&self, drifted: &Drifted, object: &DriftedObject, wanted: &State) -> Option<Barred> {
        let (ranges, numbers) = (self.router.ranges(), &self.router.numbers(&self.observed).targets);
        let path = drift::barred(drifted, wanted, numbers, ranges)?.clone();
        let command = text::command(&drifted.key, wanted.objects.get(&drifted.key)?, ranges.protocol)?;
        let alarm = format!("path {path} has no way of its own: {}; `{command}` puts it back", object.line());
        Some(Barred { path, lacks: lacks(drifted), alarm })
    }

    /// Counts and tells of what was not there at the last look.
    fn note_drift(&mut self, found: BTreeMap<Drifted, DriftedObject>) {
        let before = std::mem::replace(&mut self.drift.found, found);
        let new: Vec<&Drifted> = self.drift.found.keys().filter(|drifted| !before.contains_key(*drifted)).collect();
        for drifted in &new {
            *self.totals.drift.entry(drifted.key.kind().to_owned()).or_default() += 1;
        }
        if !new.is_empty() {
            let (_, lines) = self.drift.objects();
            let first = self.drift.found[new[0]].line();
            let were = if new.len() == 1 { "was" } else { "were" };
            let message = format!("{} of our objects {were} changed by someone else: {first}", new.len());
            self.warning("drift", "", message, json!(lines));
        }
    }

    /// After a pass that left the kernel as its plan wanted it.
    pub(super) fn drift_settled(&mut self) {
        self.drift.settle(clock::now());
    }

    /// After a pass that was undone: whoever took an object away before the read-back is at it.
    pub(super) fn drift_lost(&mut self, outcome: &Outcome) {
        let (Outcome::RolledBack { cause } | Outcome::RollbackFailed { cause, .. }) = outcome else { return };
        let Cause::ReadBack { keys, .. } = cause else { return };
        let now = clock::now();
        let news = self.drift.fights.lost_at_once(keys.iter().cloned(), now);
        self.tell_fights(&news, now);
    }

    fn tell_fights(&mut self, news: &[News], now: Instant) {
        for item in news {
            match item {
                News::Begun(key) | News::GoesOn(key) => self.name_culprit(key, now),
                News::Over(key) => {
                    self.drift.culprits.remove(key);
                    let message = format!("nobody touches {} any more; it is kept as ever", text::key_text(key));
                    self.event("drift", key.kind(), message, serde_json::Value::Null);
                }
            }
        }
    }

    fn name_culprit(&mut self, key: &Key, now: Instant) {
        let touches: Vec<Touch> = self.drift.touches.iter().cloned().collect();
        let mut culprit = programs::culprit(key.kind(), &touches, &processes::running());
        // Whoever has ended already cannot be waited for.
        culprit.pid = culprit.pid.filter(|pid| processes::runs(*pid));
        self.drift.culprits.insert(key.clone(), culprit);
        let fights = self.drift.fights(now);
        if let Some(fight) = fights.iter().find(|fight| fight.object == text::key_text(key)) {
            self.warning("drift", key.kind(), fight.line(), json!(fight));
        }
    }

    /// Objects whose culprit has ended are tried again at once.
    fn retry_without_culprits(&mut self) {
        let gone = |culprit: &Culprit| culprit.pid.is_some_and(|pid| !processes::runs(pid));
        let free: Vec<Key> =
            self.drift.culprits.iter().filter(|(_, culprit)| gone(culprit)).map(|(key, _)| key.clone()).collect();
        for key in free {
            if let Some(culprit) = self.drift.culprits.get_mut(&key) {
                culprit.pid = None;
                let who = culprit.program.clone().unwrap_or_default();
                let message = format!("{who} has ended; {} is tried again", text::key_text(&key));
                self.event("drift", key.kind(), message, serde_json::Value::Null);
            }
            self.drift.fights.retry(&key);
        }
    }

    /// A person wants everything put right now.
    pub(super) fn end_truces(&mut self) {
        self.drift.fights.forget();
        self.drift.culprits.clear();
    }

    /// What goes with this interface goes by itself.
    pub(super) fn interface_failed(&mut self, link: &IfName, now: Instant) {
        self.drift.along.failed(link, now);
    }

    /// Interfaces may have failed of which nothing was heard.
    pub(super) const fn notifications_lost(&mut self) {
        self.drift.along.missed();
    }

    /// What a look found tells of interfaces that failed unheard, before a switch of paths puts the first routes back.
    pub(super) fn note_what_went(&mut self) {
        if let Some(applied) = self.router.applied() {
            self.drift.along.looked(applied, &self.observed.state);
        }
    }

    /// Keeps what a notification says of who changed an object that looks like ours.
    pub(super) fn note_touch(&mut self, touch: Touch) {
        if self.router.kernel.is_own(&touch) {
            return;
        }
        self.drift.touches.push_back(touch);
        if self.drift.touches.len() > TOUCHES {
            self.drift.touches.pop_front();
        }
    }

    /// Looks at what others have around our objects, now and then.
    pub(super) fn look_around(&mut self, now: Instant) {
        if now < self.drift.next_look {
            return;
        }
        match self.router.kernel.surroundings(self.router.ranges()) {
            Ok(around) => {
                self.drift.overrides = foreign::overrides(&around, &self.observed.intruders, self.router.ranges());
            }
            Err(error) => tracing::debug!(%error, "what others have cannot be read"),
        }
        let slow = clock::now().since(now) > SLOW;
        self.drift.next_look = now + if slow { LOOK_AROUND * 10 } else { LOOK_AROUND };
    }

    /// What the kernel holds after a plan was carried out.
    pub(super) fn reached(&self, planned: &Planned) -> Arc<State> {
        if planned.spared.is_empty() {
            return Arc::clone(&planned.desired);
        }
        Arc::new(drift::sparing(&planned.desired, &self.observed.state, &planned.spared))
    }
}
