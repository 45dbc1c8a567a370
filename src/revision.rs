//! Which revision is wanted, which was tried, and which is in force: three answers, never one.
//!
//! `desired` is what the source holds, `attempted` what was tried last and how that went, `applied` what the kernel
//! has. A file that cannot be applied stands in Git all the same; these three say so instead of pretending.
//!
//! Invariant: only [`Revisions::offer`] lets a revision be tried, and never one that is held, quarantined, invalid
//! or that comes while suspended. What is applied changes by [`Revisions::in_force`] alone. Whatever happens here,
//! repair and failover of the applied revision go on: this module has no way to stop them.

mod ask;
mod condition;
mod doubt;
mod rhythm;
mod tell;
mod types;

use serde::{Deserialize, Serialize};

use crate::{
    clock::Wall,
    config::commit::{Commit, Lineage, Signature},
};

pub use self::{
    condition::{Condition, ConditionType, Truth, View},
    rhythm::Rhythm,
    tell::FORGOTTEN,
    types::{
        Attempt, AttemptOutcome, Awaited, Fault, Held, HeldWhy, Note, Quarantined, Refusal, Seen, Stuck, Suspension,
        Trouble,
    },
};

/// An attempt that the daemon did not survive so often is given up.
const DEATHS: u32 = 3;
/// So many quarantined contents are remembered; the oldest goes first.
const QUARANTINE: usize = 32;

/// When what is quarantined comes again.
const RETRIED: &str = "it is tried again when its content for this site changes, or after `patronus source retry`";

/// What survives a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Memory {
    /// The highest accepted commit: the last one that came in force.
    highest: Option<String>,
    /// A commit that a person lets pass although it does not descend from the highest.
    accepted: Option<String>,
    quarantine: Vec<Quarantined>,
    suspended: Option<Suspension>,
    attempted: Option<Attempt>,
    /// How often the daemon ended while that attempt was open.
    deaths: u32,
    /// That attempt was put off: nothing is done for it.
    put_off: bool,
    /// The revision that is being tried.
    trying: Option<Seen>,
    applied: Option<Seen>,
    /// What is in force although it was to be undone.
    stuck: Option<Stuck>,
    /// The content that was tried again by itself, and how often.
    again: Option<doubt::Again>,
}

/// The three revisions and why they differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revisions {
    memory: Memory,
    desired: Option<Seen>,
    /// Whether what was applied before the start is known to be in force in this life.
    confirmed: bool,
    held: Option<Held>,
    /// What is wrong with a revision, and with which.
    invalid: Option<(String, Vec<String>)>,
    trouble: Option<Trouble>,
    last_success: Option<Wall>,
    conditions: Vec<Condition>,
}

/// What a revision that the source holds is, before anybody looks into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Triage {
    /// It is what the engine works with already.
    Current,
    /// It must not be tried before a person says so, or before another one comes.
    Held(Held),
    /// No revision is taken now.
    Suspended,
    /// It is known to have errors.
    Invalid,
    /// It failed before.
    Quarantined(Quarantined),
    /// Another one waits for its confirmation: this one's turn comes after it.
    Waits,
    /// It has to be loaded and checked.
    Check,
}

impl Revisions {
    /// What an earlier process left, if it left anything.
    #[must_use]
    pub fn remembered(text: Option<&str>, now: Wall) -> (Self, Vec<Note>) {
        let memory = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let mut this = Self { memory, ..Self::default() };
        let notes = this.died(now);
        (this, notes)
    }

    /// What has to be written down to survive a restart.
    #[must_use]
    pub fn memory(&self) -> String {
        // Plain values have no way to fail.
        serde_json::to_string(&self.memory).unwrap_or_default()
    }

    /// An attempt that was open when the daemon ended. A revision that kills it each time is given up.
    fn died(&mut self, now: Wall) -> Vec<Note> {
        let Some(attempt) = self.memory.attempted.clone().filter(|a| a.outcome == AttemptOutcome::Pending) else {
            self.memory.deaths = 0;
            return Vec::new();
        };
        self.memory.trying = None;
        if self.memory.put_off {
            return Vec::new();
        }
        self.memory.deaths += 1;
        if self.memory.deaths < DEATHS || self.memory.applied.is_none() {
            return Vec::new();
        }
        let reason = format!("the daemon ended {DEATHS} times while it was being applied");
        self.memory.deaths = 0;
        let fault = Fault::Own;
        let (revision, content) = (attempt.revision.clone(), attempt.content.clone());
        self.quarantine(Quarantined { revision, content, reason: reason.clone(), at: now, fault });
        let revision = attempt.revision.clone();
        self.attempted(Attempt { outcome: AttemptOutcome::Failed, reason: Some(reason.clone()), at: now, ..attempt });
        vec![Note::warning(format!("revision {revision} is quarantined: {reason}"))]
    }

    /// Looks at a revision without taking note of it. `current` is the one that the engine works with.
    #[must_use]
    pub fn triage(&self, revision: &str, commit: Option<&Commit>, current: Option<&str>, now: Wall) -> Triage {
        if current == Some(revision) {
            return Triage::Current;
        }
        if let Some(held) = commit.and_then(|commit| self.hold(commit, now)) {
            return Triage::Held(held);
        }
        if self.memory.suspended.is_some() {
            return Triage::Suspended;
        }
        if self.invalid.as_ref().is_some_and(|(known, _)| known == revision) {
            return Triage::Invalid;
        }
        if let Some(known) = self.memory.quarantine.iter().rev().find(|q| q.revision == revision) {
            return Triage::Quarantined(known.clone());
        }
        if self.is_confirming() { Triage::Waits } else { Triage::Check }
    }

    fn hold(&self, commit: &Commit, now: Wall) -> Option<Held> {
        let why = match (&commit.signature, commit.lineage) {
            (Signature::Missing, _) => HeldWhy::Unsigned,
            (Signature::Bad { reason }, _) => HeldWhy::BadSignature(reason.clone()),
            _ if self.memory.accepted.as_ref() == Some(&commit.id) => return None,
            (_, Lineage::Behind) => HeldWhy::Behind,
            (_, Lineage::Diverged) => HeldWhy::Diverged,
            _ => return None,
        };
        let known = self.held.as_ref().filter(|h| h.revision == commit.id && h.why == why);
        let since = known.map_or(now, |h| h.since);
        Some(Held::new(&commit.id, why, self.memory.highest.as_deref(), since))
    }

    /// Takes note of what the source holds when nobody has to look into it; `Check` if somebody has to.
    pub fn arrived(
        &mut self,
        revision: &str,
        commit: Option<&Commit>,
        current: Option<&str>,
        now: Wall,
    ) -> (Triage, Vec<Note>) {
        let triage = self.triage(revision, commit, current, now);
        let before = self.desired.clone();
        self.read(revision, commit, now);
        let news = before.is_none_or(|seen| seen.revision != revision);
        let held = if let Triage::Held(held) = &triage { Some(held.clone()) } else { None };
        let newly_held = held.is_some() && held != self.held;
        self.held = held;
        if !matches!(triage, Triage::Invalid) {
            let back = self.invalid.take();
            if let (Triage::Current, Some(_)) = (&triage, back) {
                let text = format!("revision {revision} is what the source holds again; it is in force");
                return (triage, vec![Note::good(text)]);
            }
        }
        let notes = match &triage {
            Triage::Held(held) if newly_held => vec![Note::warning(format!("{held}; {}", self.kept()))],
            Triage::Suspended if news => vec![Note::good(self.waits(revision))],
            Triage::Quarantined(q) if news => vec![Note::warning(format!("{q}; {}", self.kept()))],
            _ => Vec::new(),
        };
        (triage, notes)
    }

    fn waits(&self, revision: &str) -> String {
        let end = self.memory.suspended.as_ref().map(Suspension::end).unwrap_or_default();
        format!("revision {revision} is not taken: suspended {end}")
    }

    /// The source was read without an error.
    fn read(&mut self, revision: &str, commit: Option<&Commit>, now: Wall) {
        self.trouble = None;
        self.last_success = Some(now);
        match &mut self.desired {
            Some(seen) if seen.revision == revision => seen.commit = commit.cloned(),
            other => *other = Some(Seen { revision: revision.to_owned(), commit: commit.cloned(), at: now }),
        }
    }

    /// The source could not be read. `reason` is one word for metrics.
    pub fn unreadable(&mut self, reason: &str, message: String, now: Wall) -> Vec<Note> {
        let old = self.trouble.take();
        let same = old.as_ref().is_some_and(|t| t.reason == reason && t.message == message);
        let (since, failures) = old.map_or((now, 0), |t| (t.since, t.failures));
        let notes = if same { Vec::new() } else { vec![Note::warning(format!("{message}; {}", self.kept()))] };
        self.trouble = Some(Trouble { reason: reason.to_owned(), message, since, failures: failures + 1 });
        notes
    }

    /// The revision that was checked has errors.
    pub fn refused(&mut self, content: &str, errors: Vec<String>, now: Wall) -> Vec<Note> {
        let Some(desired) = &self.desired else { return Vec::new() };
        let revision = desired.revision.clone();
        let first = errors.first().cloned().unwrap_or_default();
        let more = if errors.len() > 1 { format!(" (and {} more)", errors.len() - 1) } else { String::new() };
        let text = format!("revision {revision}: {first}{more}; {}", self.kept());
        self.attempted(Attempt {
            revision: revision.clone(),
            content: content.to_owned(),
            outcome: AttemptOutcome::Invalid,
            reason: Some(format!("{first}{more}")),
            at: now,
        });
        let note = Note::warning(text).with(serde_json::json!(errors));
        self.invalid = Some((revision, errors));
        vec![note]
    }

    /// A revision that was checked and is valid wants to be tried. True: it shall be.
    pub fn offer(&mut self, content: &str, current: Option<&str>, now: Wall) -> (bool, Vec<Note>) {
        let Some(seen) = self.desired.clone() else { return (false, Vec::new()) };
        let triage = self.triage(&seen.revision, seen.commit.as_ref(), current, now);
        if triage != Triage::Check {
            return (false, Vec::new());
        }
        // Whoever pushes the same content again and says that it is meant answers a refusal for its size, and no other.
        let meant = seen.commit.as_ref().is_some_and(Commit::allows_large);
        let lifted = |q: &&Quarantined| meant && q.fault == Fault::TooLarge;
        let known = self.memory.quarantine.iter().rev().find(|q| q.content == content).filter(|q| !lifted(q));
        if let Some(known) = known.cloned() {
            self.quarantine(Quarantined { revision: seen.revision.clone(), at: now, ..known.clone() });
            let text = format!("revision {}: nothing changed for this site since {known}", seen.revision);
            return (false, vec![Note::warning(format!("{text}; {}", self.kept()))]);
        }
        let revision = seen.revision.clone();
        let repeated = self.memory.attempted.as_ref().filter(|a| a.revision == revision);
        let told = repeated.is_some_and(|a| a.outcome == AttemptOutcome::Pending);
        self.memory.deaths = if repeated.is_some() { self.memory.deaths } else { 0 };
        self.attempted(Attempt {
            revision: revision.clone(),
            content: content.to_owned(),
            outcome: AttemptOutcome::Pending,
            reason: None,
            at: now,
        });
        self.memory.trying = Some(seen);
        self.memory.put_off = false;
        let note = Note::good(format!("revision {revision} is valid"));
        (true, if told { Vec::new() } else { vec![note] })
    }

    fn attempted(&mut self, attempt: Attempt) {
        self.memory.attempted = Some(attempt);
    }

    /// The revision that is being tried waits until it can be: a daemon that ends meanwhile does not end for it.
    pub const fn put_off(&mut self) {
        self.memory.put_off = true;
    }

    /// The revision that is being tried waits for its confirmation.
    pub fn confirming(&mut self, now: Wall) {
        if let Some(attempt) = self.memory.attempted.as_mut().filter(|_| self.memory.trying.is_some()) {
            attempt.outcome = AttemptOutcome::Confirming;
            attempt.at = now;
        }
    }

    /// This revision is in force: the kernel was read back and is as it wants it.
    pub fn in_force(&mut self, revision: &str, now: Wall) {
        let known = self.memory.applied.clone().filter(|seen| seen.revision == revision);
        let tried = self.memory.trying.take_if(|seen| seen.revision == revision);
        self.memory.stuck.take_if(|stuck| stuck.revision != revision);
        let sound = self.memory.stuck.is_none();
        if let Some(attempt) = self.memory.attempted.as_mut().filter(|a| sound && a.revision == revision) {
            if attempt.outcome != AttemptOutcome::Applied {
                attempt.at = now;
            }
            attempt.outcome = AttemptOutcome::Applied;
            attempt.reason = None;
            self.memory.deaths = 0;
            let content = &attempt.content;
            self.memory.quarantine.retain(|q| q.content != *content);
            self.memory.again.take_if(|again| again.content == *content);
        }
        if let Some(commit) = tried.as_ref().and_then(|seen| seen.commit.as_ref()) {
            self.memory.accepted.take_if(|accepted| *accepted == commit.id);
            self.memory.highest = Some(commit.id.clone());
        }
        let fresh = tried.map(|seen| Seen { at: now, ..seen });
        let plain = || Seen { revision: revision.to_owned(), commit: None, at: now };
        self.memory.applied = Some(fresh.or(known).unwrap_or_else(plain));
        self.confirmed = true;
    }

    /// The revision that was being tried did not come in force. If there is another to go on with, it is not tried
    /// again before its content changes or somebody says so.
    pub fn failed(
        &mut self,
        outcome: AttemptOutcome,
        reason: &str,
        fault: Fault,
        fallback: bool,
        now: Wall,
    ) -> Vec<Note> {
        let Some(attempt) = &mut self.memory.attempted else { return Vec::new() };
        attempt.outcome = outcome;
        attempt.reason = Some(reason.to_owned());
        attempt.at = now;
        self.memory.deaths = 0;
        if !fallback {
            return Vec::new();
        }
        let (revision, content) = (attempt.revision.clone(), attempt.content.clone());
        self.memory.trying = None;
        self.quarantine(Quarantined { revision: revision.clone(), content, reason: reason.to_owned(), at: now, fault });
        let text = format!("revision {revision} is quarantined: {reason}; {}; {RETRIED}", self.kept());
        vec![Note::warning(text)]
    }

    /// What a person tried was undone, because it was not confirmed. If the source holds it too, it is not to come back by
    /// evidence that the person did not have.
    pub fn unconfirmed(&mut self, revision: &str, content: &str, reason: &str, now: Wall) -> Vec<Note> {
        if self.desired.as_ref().is_some_and(|seen| seen.revision != revision) {
            return Vec::new();
        }
        let (revision, content, reason) = (revision.to_owned(), content.to_owned(), reason.to_owned());
        let known = Quarantined { revision, content, reason, at: now, fault: Fault::Own };
        let text = format!("{known}; {}; {RETRIED}", self.kept());
        self.quarantine(known);
        vec![Note::warning(text)]
    }

    fn quarantine(&mut self, failed: Quarantined) {
        let list = &mut self.memory.quarantine;
        list.retain(|q| q.revision != failed.revision);
        list.push(failed);
        let surplus = list.len().saturating_sub(QUARANTINE);
        list.drain(..surplus);
    }

    /// What a verdict leaves in force, as a half sentence.
    fn kept(&self) -> String {
        self.memory
            .applied
            .as_ref()
            .map_or_else(|| "nothing is in force yet".into(), |a| format!("revision {} stays in force", a.revision))
    }
}

#[cfg(test)]
mod tests;
