//! Verdicts that were not the revision's fault, and one that could not be carried out.
//!
//! Invariant: what is tried again by itself is tried so only when the paths and services answer that it was undone for, and
//! at most [`RETRIES`] times per content.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{AttemptOutcome, Awaited, Fault, Note, Revisions, Seen, Stuck};
use crate::{clock::Wall, units::PathPart};

/// So often a content is tried again by itself.
const RETRIES: u32 = 2;

/// A content that is tried again by itself, and how often it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Again {
    pub content: String,
    tries: u32,
}

impl Revisions {
    /// The revision was undone because something fell silent, and that is silent without it as well. `awaited` has to
    /// answer before it is tried again.
    pub fn acquit(&mut self, revision: &str, awaited: Awaited) -> Option<Note> {
        let memory = &mut self.memory;
        let known = memory.quarantine.iter_mut().find(|q| q.revision == revision && q.fault == Fault::Own)?;
        let tries = memory.again.as_ref().filter(|again| again.content == known.content).map_or(0, |again| again.tries);
        let what = if tries < RETRIES {
            let what = format!("it is tried again once these answer: {awaited}");
            let only_paths = awaited.services.is_empty();
            known.fault = if only_paths { Fault::Paths(awaited.paths) } else { Fault::Services(awaited) };
            what
        } else {
            format!("but it was tried again {tries} times already")
        };
        known.reason =
            format!("{}; without it there is no answer either, so it may not be the cause: {what}", known.reason);
        if let Some(attempt) = memory.attempted.as_mut().filter(|a| a.revision == revision) {
            attempt.reason = Some(known.reason.clone());
        }
        Some(Note::warning(format!("revision {revision}: {}", known.reason)))
    }

    /// The revision was undone because something fell silent, and `who` of that answers without it; `late` if it did not
    /// at first.
    #[must_use]
    pub fn convict(&self, revision: &str, who: &str, late: bool) -> Option<Note> {
        let known = self.memory.quarantine.iter().any(|q| q.revision == revision);
        let but = if late {
            ", though not at once: if it came back by itself, `patronus source retry` tries the revision again"
        } else {
            ""
        };
        known.then(|| Note::good(format!("revision {revision} stays in quarantine: {who} answers without it{but}")))
    }

    /// Services that have to answer before what the source holds is tried again.
    #[must_use]
    pub fn awaited_services(&self) -> Option<&BTreeSet<String>> {
        match &self.in_quarantine()?.fault {
            Fault::Services(awaited) => Some(&awaited.services),
            _ => None,
        }
    }

    /// What the source holds is tried again if it was undone only for paths and services that all answer now.
    pub fn silence_ended(&mut self, path: impl Fn(&PathPart) -> bool, service: impl Fn(&str) -> bool) -> Option<Note> {
        let known = self.in_quarantine()?;
        let answers = match &known.fault {
            Fault::Paths(paths) => paths.iter().all(path),
            Fault::Services(on) => on.paths.iter().all(path) && on.services.iter().all(|at| service(at)),
            Fault::Own | Fault::TooLarge => false,
        };
        if !answers {
            return None;
        }
        let (revision, content) = (known.revision.clone(), known.content.clone());
        let before = self.memory.again.take().filter(|again| again.content == content).map_or(0, |again| again.tries);
        self.memory.again = Some(Again { content, tries: before + 1 });
        self.forgive(&revision);
        Some(Note::good(format!("revision {revision} is tried again: what fell silent during its trial answers")))
    }

    /// A revision that was to be undone stays, since what was before it cannot be used any more.
    pub fn stays(&mut self, revision: &str, reason: &str, now: Wall) {
        self.memory.stuck = Some(Stuck { revision: revision.to_owned(), reason: reason.to_owned() });
        if let Some(attempt) = self.memory.attempted.as_mut().filter(|a| a.revision == revision) {
            attempt.outcome = AttemptOutcome::RollbackFailed;
            attempt.reason = Some(reason.to_owned());
            attempt.at = now;
        }
    }

    /// What could not be undone is in the kernel no more, unless it is what has come back.
    pub fn left(&mut self, back: Option<&str>) {
        self.memory.stuck.take_if(|stuck| back != Some(&stuck.revision));
    }

    /// An earlier process left a change on trial: in force, until that ends, is what was so before.
    pub fn resumes(&mut self, before: &str, now: Wall) {
        let known = self.memory.applied.take().filter(|seen| seen.revision == before);
        let plain = || Seen { revision: before.to_owned(), commit: None, at: now };
        self.memory.applied = Some(known.unwrap_or_else(plain));
        self.confirmed = true;
    }

    /// What stays in force although it was to be undone.
    #[must_use]
    pub const fn stuck(&self) -> Option<&Stuck> {
        self.memory.stuck.as_ref()
    }
}
