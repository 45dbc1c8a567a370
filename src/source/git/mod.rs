//! A Git repository as the source: fetched in this process, read from its objects, never checked out.
//!
//! ```text
//! remote <--TLS or ssh, over a way--> relay <--127.0.0.1--> libgit2 --> bare repository --> walk of the tree --> Snapshot
//! ```
//!
//! Invariant: a snapshot comes from one commit, whole; what cannot be fetched, read or allowed is an error with its
//! reason, and what was fetched before stays. Whether a commit may be *followed* (its signature, its place in the
//! history) is written on the snapshot and decided by the engine.

mod error;
mod fetch;
mod hostkey;
mod https;
mod relay;
mod resolve;
mod secret;
mod signature;
mod signers;
mod spec;
mod talk;
pub(super) mod tree;
mod way;

use std::{path::Path, sync::Arc};

use git2::{Oid, Repository};
use jiff::Timestamp;

use self::{
    error::plain,
    fetch::{Fetch, lineage},
    resolve::Resolver,
};
use crate::{
    clock::Wall,
    config::{Snapshot, commit::Commit},
};

pub use self::{
    error::{GitError, Reason},
    secret::read_secret,
    signature::{Purpose, check as check_signature},
    spec::{Address, Reference, Scheme, Secret, Spec, Verify},
    way::Way,
};

/// Trailers of one commit that are kept.
const MAX_TRAILERS: usize = 64;

/// A repository that is followed.
#[derive(Debug, Clone)]
pub struct Follower {
    fetch: Arc<Fetch>,
}

/// What a fetch has brought, and how.
#[derive(Debug)]
pub struct Fetched {
    /// The files and their commit.
    pub snapshot: Snapshot,
    /// The way that it came.
    pub way: Way,
    /// Ways that were tried before, with what came of it.
    pub failed: Vec<(Way, GitError)>,
}

impl Follower {
    /// A follower that keeps what it fetches below the state directory. It touches nothing yet.
    #[must_use]
    pub fn new(spec: Spec, state: &Path) -> Self {
        let dir = state.join("git");
        let resolver = Arc::new(Resolver::new(state.join("git-addresses")));
        Self { fetch: Arc::new(Fetch { spec, dir, resolver }) }
    }

    /// What is followed.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.fetch.spec
    }

    /// Fetches over the first way that leads there, and reads what came. `accepted` is the highest accepted commit.
    ///
    /// # Errors
    ///
    /// That of the first way; other ways are asked only if it is of the kind that another way can help.
    pub async fn fetch(&self, ways: Vec<Way>, accepted: Option<String>) -> Result<Fetched, GitError> {
        let fetch = Arc::clone(&self.fetch);
        blocking(move || {
            let accepted = known(accepted.as_deref());
            let mut failed = Vec::new();
            for way in ways {
                match fetch.run(&way, accepted) {
                    Ok(()) => return Ok(Fetched { snapshot: read(&fetch, accepted)?, way, failed }),
                    Err(error) if error.reason.is_of_the_way() => failed.push((way, error)),
                    Err(error) => return Err(error),
                }
            }
            Err(all(failed))
        })
        .await
    }

    /// What was fetched last, without the network; an error of [`Reason::Empty`] if there is nothing.
    ///
    /// # Errors
    ///
    /// Why it cannot be read.
    pub async fn stored(&self, accepted: Option<String>) -> Result<Snapshot, GitError> {
        let fetch = Arc::clone(&self.fetch);
        blocking(move || read(&fetch, known(accepted.as_deref()))).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GitError> + Send + 'static,
) -> Result<T, GitError> {
    let ended = |error: tokio::task::JoinError| {
        GitError::new(Reason::Corrupt, format!("reading the repository ended: {error}"), "it is tried again")
    };
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}

fn known(accepted: Option<&str>) -> Option<Oid> {
    accepted.and_then(|id| Oid::from_str(id).ok())
}

/// The first failure, and which other ways were tried.
fn all(failed: Vec<(Way, GitError)>) -> GitError {
    let others: Vec<String> =
        failed.iter().skip(1).map(|(way, error)| format!("{}: {}", way.name(), error.reason)).collect();
    let Some((_, mut first)) = failed.into_iter().next() else {
        return GitError::new(Reason::Unreachable, "no path is up", "see `patronus status`");
    };
    if !others.is_empty() {
        first.message.push_str(&format!(" (also tried {})", others.join(", ")));
    }
    first
}

/// The commit that was fetched last, with its files.
fn read(fetch: &Fetch, accepted: Option<Oid>) -> Result<Snapshot, GitError> {
    let repository = fetch.existing()?;
    let nothing = || {
        let message = format!("{} of {} was not fetched yet", fetch.spec.reference, fetch.spec.url);
        GitError::new(Reason::Empty, message, "`patronus run` fetches it, and goes on doing so")
    };
    let id = fetch.head(&repository).ok_or_else(nothing)?;
    let damaged = |error: git2::Error| {
        GitError::new(Reason::Corrupt, format!("commit {id}: {}", error.message()), "the next fetch brings it again")
    };
    let commit = repository.find_commit(id).map_err(damaged)?;
    let files = tree::files(&repository, commit.tree_id(), &fetch.spec.path).map_err(|error| {
        let short: String = commit.id().to_string().chars().take(12).collect();
        GitError { message: format!("commit {short}: {}", error.message), ..error }
    })?;
    let commit = describe(&repository, &commit, fetch, accepted);
    Ok(Snapshot { revision: commit.id.clone(), files, commit: Some(commit) })
}

fn describe(repository: &Repository, commit: &git2::Commit<'_>, fetch: &Fetch, accepted: Option<Oid>) -> Commit {
    let seconds = commit.time().seconds();
    let at = Timestamp::from_second(seconds).unwrap_or_default();
    let author = commit.author();
    let text = |bytes: &[u8]| plain(&String::from_utf8_lossy(bytes));
    Commit {
        id: commit.id().to_string(),
        author: format!("{} <{}>", text(author.name_bytes()), text(author.email_bytes())),
        at: Wall::from_micros(at.as_microsecond()),
        subject: commit.summary_bytes().map(text).unwrap_or_default(),
        trailers: trailers(commit.message_bytes()),
        signature: signature::judge(repository, commit.id(), at, &fetch.spec.verify),
        lineage: lineage(repository, accepted, commit.id()),
    }
}

fn trailers(message: &[u8]) -> Vec<(String, String)> {
    let message = String::from_utf8_lossy(message).replace('\0', " ");
    let Ok(found) = git2::message_trailers_strs(&message) else { return Vec::new() };
    found.iter().take(MAX_TRAILERS).map(|(key, value)| (plain(key), plain(value))).collect()
}
