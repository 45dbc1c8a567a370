//! The conditions `Ready`, `Reconciling`, `Stalled` and `SourceVerified`, as Flux and kstatus mean them.
//!
//! `Ready` is true when what the source holds is in force and the kernel is as it wants it. `Reconciling` is true
//! while Patronus works on that by itself, retries included; `Stalled` is true when it cannot go on without a person
//! or a new commit. Never both: either somebody has to act or not. `SourceVerified` tells of the signature of what
//! the source holds; it is unknown where the settings ask for none.

use serde::{Deserialize, Serialize};

use super::{Fault, Revisions};
use crate::{clock::Wall, config::commit::Signature};

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it holds.
    pub status: Truth,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// Since when the status is what it is.
    pub since: Wall,
}

/// Which condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConditionType {
    /// What the source holds is in force.
    Ready,
    /// Patronus is working on it.
    Reconciling,
    /// It cannot go on by itself.
    Stalled,
    /// The signature of what the source holds is good.
    SourceVerified,
}

impl ConditionType {
    /// As it stands in the status and in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::SourceVerified => "SourceVerified",
        }
    }
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Truth {
    /// Yes.
    True,
    /// No.
    False,
    /// Not known.
    Unknown,
}

impl Truth {
    /// As it stands in the status and in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What the conditions need to know of the passes.
#[derive(Debug, Clone, Copy, Default)]
pub struct View<'a> {
    /// What went wrong in the last pass, if it failed.
    pub failure: Option<&'a str>,
}

/// Where things stand: what to say, and who has to act.
struct Standing {
    ready: Truth,
    act: Act,
    reason: &'static str,
    message: String,
}

#[derive(PartialEq, Eq)]
enum Act {
    Nobody,
    Patronus,
    People,
}

impl Standing {
    fn new(ready: Truth, act: Act, reason: &'static str, message: impl Into<String>) -> Self {
        Self { ready, act, reason, message: message.into() }
    }
}

impl Revisions {
    /// The conditions now; remembers since when each is as it is.
    pub fn conditions(&mut self, view: View<'_>, now: Wall) -> Vec<Condition> {
        let standing = self.standing(view);
        let truth = |yes: bool| if yes { Truth::True } else { Truth::False };
        let (ready, reconciling, stalled) =
            (standing.ready, truth(standing.act == Act::Patronus), truth(standing.act == Act::People));
        let (verified, word, sentence) = self.verified();
        let (why, text) = (standing.reason, standing.message);
        let fresh = [
            (ConditionType::Ready, ready, why, text.clone()),
            (ConditionType::Reconciling, reconciling, why, text.clone()),
            (ConditionType::Stalled, stalled, why, text),
            (ConditionType::SourceVerified, verified, word, sentence),
        ];
        let since = |kind, status| {
            let old = self.conditions.iter().find(|c| c.kind == kind && c.status == status);
            old.map_or(now, |c| c.since)
        };
        let made = fresh.map(|(kind, status, reason, message)| Condition {
            since: since(kind, status),
            kind,
            status,
            reason: reason.into(),
            message,
        });
        self.conditions = made.to_vec();
        self.conditions.clone()
    }

    fn standing(&self, view: View<'_>) -> Standing {
        if let Some(standing) = self.under_way(view) {
            return standing;
        }
        if let Some(standing) = self.stalled() {
            return standing;
        }
        if let Some(trouble) = &self.trouble {
            return Standing::new(Truth::False, Act::Patronus, "SourceUnavailable", trouble.message.clone());
        }
        if let Some(failure) = view.failure {
            return Standing::new(Truth::False, Act::Patronus, "ReconcileFailed", failure);
        }
        match (self.applied(), &self.desired) {
            (Some(applied), Some(desired)) if applied.revision == desired.revision => {
                let text = format!("revision {} is in force", applied.revision);
                Standing::new(Truth::True, Act::Nobody, "Applied", text)
            }
            (_, None) => Standing::new(Truth::Unknown, Act::Patronus, "Starting", "the source was not read yet"),
            (_, Some(desired)) => {
                let text = format!("revision {} is about to be tried", desired.revision);
                Standing::new(Truth::Unknown, Act::Patronus, "Progressing", text)
            }
        }
    }

    fn under_way(&self, view: View<'_>) -> Option<Standing> {
        let revision = &self.memory.trying.as_ref()?.revision;
        Some(match view.failure {
            _ if self.is_confirming() => {
                let text = format!("revision {revision} is carried out and waits for its confirmation");
                Standing::new(Truth::Unknown, Act::Patronus, "AwaitingConfirmation", text)
            }
            Some(failure) => {
                let text = format!("revision {revision}: {failure}");
                Standing::new(Truth::False, Act::Patronus, "ReconcileFailed", text)
            }
            None => {
                let text = format!("revision {revision} is being tried");
                Standing::new(Truth::Unknown, Act::Patronus, "Progressing", text)
            }
        })
    }

    /// Why nothing goes on without a person or a new commit.
    fn stalled(&self) -> Option<Standing> {
        let desired = self.desired.as_ref()?;
        let stop = |reason, text: String| Some(Standing::new(Truth::False, Act::People, reason, text));
        if let Some(held) = &self.held {
            return stop("Held", held.to_string());
        }
        if let Some(stuck) = self.stuck() {
            return stop("RollbackFailed", stuck.reason.clone());
        }
        let behind = self.applied().is_none_or(|applied| applied.revision != desired.revision);
        if let Some(suspension) = self.suspended().filter(|_| behind) {
            let (end, why) = (suspension.end(), &suspension.reason);
            return stop("Suspended", format!("revision {} is not taken: suspended {end}: {why}", desired.revision));
        }
        if let Some((revision, errors)) = &self.invalid {
            let first = errors.first().map(String::as_str).unwrap_or_default();
            return stop("InvalidConfiguration", format!("revision {revision}: {first}"));
        }
        let known = self.in_quarantine().filter(|_| behind)?;
        let awaits = |reason| Some(Standing::new(Truth::False, Act::Patronus, reason, known.to_string()));
        match known.fault {
            Fault::Paths(_) => awaits("AwaitingPaths"),
            Fault::Services(_) => awaits("AwaitingServices"),
            Fault::Own | Fault::TooLarge => stop("Quarantined", known.to_string()),
        }
    }

    fn verified(&self) -> (Truth, &'static str, String) {
        let signature = self.desired.as_ref().and_then(|seen| seen.commit.as_ref()).map(|commit| &commit.signature);
        match signature {
            None | Some(Signature::Off) => {
                (Truth::Unknown, "NotConfigured", "the settings ask for no signature".to_owned())
            }
            Some(Signature::Good { signer, key }) => {
                (Truth::True, "Verified", format!("signed by {signer} with {key}"))
            }
            Some(Signature::Missing) => (Truth::False, "Unsigned", "the commit has no signature".to_owned()),
            Some(Signature::Bad { reason }) => (Truth::False, "BadSignature", reason.clone()),
        }
    }
}
