//! What people ask for: accept, retry, suspend, resume; and what time brings.

use super::{Note, Refusal, Revisions, Suspension};
use crate::clock::Wall;

/// The shortest beginning of a commit's name that `accept` takes.
const SHORTEST: usize = 7;

impl Revisions {
    /// Lets the commit pass that is held because it does not descend from the highest accepted one, or that is
    /// quarantined.
    pub fn accept(&mut self, name: &str, by: &str) -> Result<Vec<Note>, Refusal> {
        if name.len() < SHORTEST {
            return Err(Refusal::TooShort(SHORTEST));
        }
        let desired = self.desired.as_ref().map(|seen| seen.revision.clone());
        let Some(revision) = desired.filter(|revision| revision.starts_with(name)) else {
            let newest = self.desired.as_ref().map(|seen| seen.revision.clone());
            return Err(Refusal::NotNewest { asked: name.to_owned(), newest });
        };
        if let Some(held) = self.held.clone().filter(|h| h.revision == revision) {
            if !held.why.can_be_accepted() {
                return Err(Refusal::Signature(held));
            }
            self.memory.accepted = Some(revision.clone());
            self.forgive(&revision);
            return Ok(vec![Note::good(format!("revision {revision} is accepted by {by}: {}", held.why))]);
        }
        if self.forgive(&revision) {
            return Ok(vec![Note::good(format!("revision {revision} is accepted by {by} and tried again"))]);
        }
        Err(Refusal::NothingToAccept(revision))
    }

    /// Ends the quarantine of what the source holds. None when it is not in quarantine.
    pub fn retry(&mut self, by: &str) -> Option<Note> {
        let revision = self.desired.as_ref()?.revision.clone();
        self.forgive(&revision).then(|| Note::good(format!("revision {revision} is tried again, says {by}")))
    }

    pub(super) fn forgive(&mut self, revision: &str) -> bool {
        let stuck = self.memory.stuck.take_if(|stuck| stuck.revision == revision).is_some();
        let content = self.memory.quarantine.iter().find(|q| q.revision == revision).map(|q| q.content.clone());
        let Some(content) = content else { return stuck };
        self.memory.quarantine.retain(|q| q.content != content && q.revision != revision);
        true
    }

    /// Takes no new revision from now on. Repair and failover go on.
    pub fn suspend(&mut self, suspension: Suspension) -> Note {
        let note = Note::warning(format!(
            "{} suspended the taking of new revisions {}: {}",
            suspension.by,
            suspension.end(),
            suspension.reason
        ));
        self.memory.suspended = Some(suspension);
        note
    }

    /// Takes new revisions again. None when nothing was suspended.
    pub fn resume(&mut self, by: &str) -> Option<Note> {
        let ended = self.memory.suspended.take()?;
        Some(Note::good(format!("{by} resumed the taking of new revisions; suspended since {}", ended.since)))
    }

    /// What time brings: the end of a suspension.
    pub fn tick(&mut self, now: Wall) -> Option<Note> {
        let ended = self.memory.suspended.take_if(|s| s.until.is_some_and(|until| until <= now))?;
        let text = format!("the suspension by {} ({}) ended; new revisions are taken again", ended.by, ended.reason);
        Some(Note::warning(text))
    }
}
