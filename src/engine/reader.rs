//! Reading the source aside: a fetch takes seconds and so does a large fleet, and no probe waits for either.
//!
//! This is the seam to the kinds of sources: [`snapshot`] gives the newest content of any of them, or says why not.

use tokio::{sync::oneshot, task::JoinHandle};

use super::{Active, ConfigError, Origin, activate, source::Whence, status::ReconcileStatus};
use crate::{
    clock,
    config::{Snapshot, commit::Commit},
    revision::{Revisions, Triage},
    source::{
        self, SourceError,
        git::{Scheme, Way},
    },
};

/// What reading the source has come to.
#[derive(Debug)]
pub(super) enum Reading {
    /// It could not be read.
    Failed(SourceError),
    /// What it holds.
    Read {
        /// Its revision.
        revision: String,
        /// The commit, if it is one.
        commit: Option<Commit>,
        /// The way that it came, if it was fetched.
        via: Option<String>,
        /// What was found in it; none if there was no need to look.
        checked: Option<Result<Box<Active>, ConfigError>>,
    },
}

/// What the engine knows when it asks: it decides what is looked into.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub revisions: Revisions,
    /// The revision that the engine works with.
    pub current: Option<String>,
    /// The ways that lead to a remote, in the order in which they are tried.
    pub ways: Vec<Way>,
}

/// Reads and checks the source aside.
#[derive(Debug, Default)]
pub(super) struct Reader {
    task: Option<JoinHandle<Option<Reading>>>,
    /// Somebody asked while a reading was under way: what was new then may not be in it.
    pub(super) again: bool,
    /// The way by which the source was fetched last.
    pub(super) via: Option<String>,
    /// Who waits for the pass after the next reading.
    pub(super) waiting: Vec<oneshot::Sender<ReconcileStatus>>,
}

impl Reader {
    /// Whether a reading is under way.
    pub(super) const fn is_busy(&self) -> bool {
        self.task.is_some()
    }

    pub(super) fn begin(&mut self, origin: Origin, ask: Ask) {
        self.task = Some(tokio::spawn(read(origin, ask)));
    }

    /// The reading that is under way; never without one. Safe to drop: it goes on.
    pub(super) async fn done(&mut self) -> Reading {
        loop {
            let Some(task) = &mut self.task else { return std::future::pending().await };
            let result = task.await;
            self.task = None;
            if let Ok(Some(reading)) = result {
                return reading;
            }
            tracing::error!("reading the source ended without a result; the next audit tries again");
        }
    }
}

/// The newest content of the source, and the way that it came.
async fn snapshot(origin: &Origin, ask: &mut Ask) -> Result<(Snapshot, Option<String>), SourceError> {
    match &origin.source {
        Whence::Dir(dir) => Ok((source::read_settled(dir).await?, None)),
        Whence::Git(follower) => {
            let highest = ask.revisions.highest().map(str::to_owned);
            let fetched = follower.fetch(std::mem::take(&mut ask.ways), highest).await?;
            let via = fetched.way.name().to_owned();
            let remote = follower.spec().url.scheme != Scheme::File;
            for (way, error) in fetched.failed {
                tracing::warn!(over = way.name(), used = via, "the source could not be fetched: {error}");
            }
            Ok((fetched.snapshot, remote.then_some(via)))
        }
    }
}

async fn read(origin: Origin, mut ask: Ask) -> Option<Reading> {
    let (snapshot, via) = match snapshot(&origin, &mut ask).await {
        Ok(found) => found,
        Err(error) => return Some(Reading::Failed(error)),
    };
    let (revision, commit) = (snapshot.revision.clone(), snapshot.commit.clone());
    let triage = ask.revisions.triage(&revision, commit.as_ref(), ask.current.as_deref(), clock::wall());
    if triage != Triage::Check {
        return Some(Reading::Read { revision, commit, via, checked: None });
    }
    let check = move || activate(snapshot, Some(&origin.site), &origin.options);
    let checked = tokio::task::spawn_blocking(check).await.ok()?;
    Some(Reading::Read { revision, commit, via, checked: Some(checked.map(Box::new)) })
}
