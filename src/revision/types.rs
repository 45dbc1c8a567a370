//! What the status, the events and the journal carry about revisions.

use std::{collections::BTreeSet, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    clock::Wall,
    config::commit::Commit,
    units::{PathPart, told},
};

/// A revision and when it was seen or came in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its name: a commit, or the hash of a directory's content.
    pub revision: String,
    /// The commit; none for a directory.
    #[serde(default)]
    pub commit: Option<Commit>,
    /// When.
    pub at: Wall,
}

/// What was tried last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The revision.
    pub revision: String,
    /// The hash of what it means for this site.
    pub content: String,
    /// How it went.
    pub outcome: AttemptOutcome,
    /// Why, if it did not go well.
    #[serde(default)]
    pub reason: Option<String>,
    /// When that was known.
    pub at: Wall,
}

/// How an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttemptOutcome {
    /// It is under way.
    Pending,
    /// It is carried out and waits for its confirmation.
    Confirming,
    /// It is in force.
    Applied,
    /// It has errors; nothing was done.
    Invalid,
    /// The kernel cannot have it; nothing was done.
    Failed,
    /// It was carried out in part or in full, and undone.
    RolledBack,
    /// The undo failed as well.
    RollbackFailed,
}

impl AttemptOutcome {
    /// As it stands in the status and in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirming => "confirming",
            Self::Applied => "applied",
            Self::Invalid => "invalid",
            Self::Failed => "failed",
            Self::RolledBack => "rolled-back",
            Self::RollbackFailed => "rollback-failed",
        }
    }
}

/// Why a revision is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldWhy {
    /// The settings want a signature, and there is none.
    Unsigned,
    /// There is a signature that must not be believed.
    BadSignature(String),
    /// It is an ancestor of the highest accepted commit.
    Behind,
    /// It is no descendant of the highest accepted commit.
    Diverged,
}

impl HeldWhy {
    /// Whether `patronus source accept` ends it. A signature policy is not bent by hand: the settings say it.
    #[must_use]
    pub const fn can_be_accepted(&self) -> bool {
        matches!(self, Self::Behind | Self::Diverged)
    }

    /// One word for programs.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::BadSignature(_) => "bad-signature",
            Self::Behind => "behind",
            Self::Diverged => "diverged",
        }
    }
}

impl fmt::Display for HeldWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned => f.write_str("the commit has no signature, and this router wants one"),
            Self::BadSignature(reason) => write!(f, "the commit's signature is not accepted: {reason}"),
            Self::Behind => f.write_str("the branch was set back behind the last accepted commit"),
            Self::Diverged => f.write_str("the commit does not descend from the last accepted one"),
        }
    }
}

/// A revision that the source holds and that must not be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which.
    pub revision: String,
    /// Why.
    pub why: HeldWhy,
    /// The same in a sentence.
    pub message: String,
    /// What ends it.
    pub remedy: String,
    /// Since when.
    pub since: Wall,
}

impl Held {
    /// Makes one with its sentences.
    pub(super) fn new(revision: &str, why: HeldWhy, highest: Option<&str>, since: Wall) -> Self {
        let than = highest.map(|h| format!(" ({h})")).unwrap_or_default();
        let message = if why.can_be_accepted() { format!("{why}{than}") } else { why.to_string() };
        let remedy = if why.can_be_accepted() {
            let short = revision.get(..12).unwrap_or(revision);
            format!("if that is meant: `patronus source accept {short}`; else push the branch as it was")
        } else {
            "push a commit that somebody of the allowed signers signed".to_owned()
        };
        Self { revision: revision.to_owned(), why, message, remedy, since }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {} is held: {}; {}", self.revision, self.message, self.remedy)
    }
}

/// What a content failed of, as far as that decides when it is tried again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Its own: it is tried again when somebody says so.
    #[default]
    Own,
    /// It is larger than a commit may be that does not say so.
    TooLarge,
    /// Paths, or families of them, fell silent during its trial and stayed so without it: it is tried again by itself once
    /// all of these answer.
    Paths(BTreeSet<PathPart>),
    /// The same of services, and of paths besides.
    Services(Awaited),
}

/// What has to answer before a revision is tried again by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Awaited {
    /// Services, as `HOST:PORT`.
    pub services: BTreeSet<String>,
    /// Paths and families of paths.
    pub paths: BTreeSet<PathPart>,
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&told(&self.paths).chain(self.services.iter().cloned()).collect::<Vec<_>>().join(", "))
    }
}

/// A revision in force that was to be undone and could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// Which.
    pub revision: String,
    /// What happened.
    pub reason: String,
}

/// A content that failed and is not tried again by itself, unless its fault says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The revision it came with.
    pub revision: String,
    /// The hash of what it means for this site.
    pub content: String,
    /// What happened.
    pub reason: String,
    /// When.
    pub at: Wall,
    /// What it failed of.
    #[serde(default)]
    pub fault: Fault,
}

impl fmt::Display for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {} was quarantined: {}", self.revision, self.reason)
    }
}

/// No new revision is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// Who said so.
    pub by: String,
    /// What for.
    pub reason: String,
    /// Since when.
    pub since: Wall,
    /// When it ends by itself; none: never.
    pub until: Option<Wall>,
}

impl Suspension {
    /// `until …` or `without an end`.
    #[must_use]
    pub fn end(&self) -> String {
        self.until.map_or_else(|| "without an end".into(), |until| format!("until {until:.0}"))
    }
}

/// The source cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// One word for metrics.
    pub reason: String,
    /// What happened, on one line.
    pub message: String,
    /// Since when.
    pub since: Wall,
    /// How many readings failed in a row.
    pub failures: u32,
}

/// Something to tell: an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Whether a person should look.
    pub warning: bool,
    /// One line.
    pub text: String,
    /// Details for a program.
    pub detail: serde_json::Value,
}

impl Note {
    pub(super) const fn good(text: String) -> Self {
        Self { warning: false, text, detail: serde_json::Value::Null }
    }

    pub(super) const fn warning(text: String) -> Self {
        Self { warning: true, text, detail: serde_json::Value::Null }
    }

    pub(super) fn with(self, detail: serde_json::Value) -> Self {
        Self { detail, ..self }
    }
}

/// Why a person is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name of the commit is too short to mean one.
    #[error("name the commit with at least {0} characters, so that no other is meant")]
    TooShort(usize),
    /// The commit is not what the source holds.
    #[error("{asked} is not what the source holds: {}", newest.as_deref().unwrap_or("it was not read yet"))]
    NotNewest {
        /// What was asked for.
        asked: String,
        /// What the source holds.
        newest: Option<String>,
    },
    /// The commit is held by the signature policy.
    #[error("{}: the router's settings want that; {}", .0.message, .0.remedy)]
    Signature(Held),
    /// Nothing keeps the revision.
    #[error("revision {0} is neither held nor quarantined: nothing has to be accepted")]
    NothingToAccept(String),
}

/// Time between two moments; zero if the clock was set back.
pub(super) fn age(since: Wall, now: Wall) -> Duration {
    Duration::from_micros(u64::try_from(now.as_micros().saturating_sub(since.as_micros())).unwrap_or(0))
}
