//! Verdicts that were not the revision's fault, and one that could not be carried out.
//!
//! Invariant: what is tried again by itself is tried so only when the paths answer that it was undone for, and at most
//! [`RETRIES`] times per content.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{AttemptOutcome, Fault, Note, Revisions, Seen, Stuck};
use crate::clock::Wall;

/// So often a content is tried again by itself.
const RETRIES: u32 = 2;

/// A content that is tried again by itself, and how often it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Again {
    pub content: String,
    tries: u32,
}

impl Revisions {
    /// The revision was undone because paths fell silent, and they are silent without it as well. `paths` are those
    /// that have to answer before it is tried again.
    pub fn acquit(&mut self, revision: &str, paths: BTreeSet<String>) -> Option<Note> {
        let memory = &mut self.memory;
        let known = memory.quarantine.iter_mut().find(|q| q.revision == revision && q.fault == Fault::Own)?;
        let tries = memory.again.as_ref().filter(|again| again.content == known.content).map_or(0, |again| again.tries);
        let what = if tries < RETRIES {
            known.fault = Fault::Paths(paths);
            "it is tried again once they answer".to_owned()
        } else {
            format!("but it was tried again {tries} times already")
        };
        known.reason =
            format!("{}; without it they do not answer either, so it may not be the cause: {what}", known.reason);
        if let Some(attempt) = memory.attempted.as_mut().filter(|a| a.revision == revision) {
            attempt.reason = Some(known.reason.clone());
        }
        Some(Note::warning(format!("revision {revision}: {}", known.reason)))
    }

    /// What the source holds is tried again if it was undone only for paths that all answer now.
    pub fn paths_answer(&mut self, answers: impl Fn(&str) -> bool) -> Option<Note> {
        let known = self.in_quarantine()?;
        let Fault::Paths(paths) = &known.fault else { return None };
        if !paths.iter().all(|path| answers(path)) {
            return None;
        }
        let (revision, content) = (known.revision.clone(), known.content.clone());
        let before = self.memory.again.take().filter(|again| again.content == content).map_or(0, |again| again.tries);
        self.memory.again = Some(Again { content, tries: before + 1 });
        self.forgive(&revision);
        Some(Note::good(format!(
            "revision {revision} is tried again: the paths that fell silent during its trial answer"
        )))
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
