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

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

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
/// How long a fetch may take over all its ways together, if one alone may not take half as long: whoever waits for the
/// next look at the source waits so long.
const ALTOGETHER: Duration = Duration::from_secs(120);
/// After so many other ways the usual one is tried again: a remote that was away for a moment is back by then.
const OTHERS: usize = 2;

/// A repository that is followed.
#[derive(Debug, Clone)]
pub struct Follower {
    fetch: Arc<Fetch>,
    altogether: Duration,
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
        let altogether = ALTOGETHER.max(2 * spec.timeout);
        Self { fetch: Arc::new(Fetch { spec, dir, resolver }), altogether }
    }

    /// What is followed.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.fetch.spec
    }

    /// Fetches over the first way that leads there, and reads what came. `accepted` is the highest accepted commit. The first
    /// way is the usual one. All of them together take a bounded time, however many there are.
    ///
    /// # Errors
    ///
    /// That of the first way; other ways are asked only if it is of the kind that another way can help.
    pub async fn fetch(&self, ways: Vec<Way>, accepted: Option<String>) -> Result<Fetched, GitError> {
        let (fetch, until) = (Arc::clone(&self.fetch), Instant::now() + self.altogether);
        blocking(move || {
            let accepted = known(accepted.as_deref());
            let mut failed = Vec::new();
            for way in course(&ways).take_while(|_| Instant::now() < until) {
                match fetch.run(&way, accepted, until) {
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

/// The ways in the order in which they are tried.
fn course(ways: &[Way]) -> impl Iterator<Item = Way> {
    let (usual, others) = ways.split_at(ways.len().min(1));
    let more = others.chunks(OTHERS).flat_map(move |some| some.iter().chain(usual));
    usual.iter().chain(more).cloned()
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
    let others = failed.iter().skip(1).filter(|(way, _)| way.path.is_some());
    let others: Vec<String> = others.map(|(way, error)| format!("{}: {}", way.name(), error.reason)).collect();
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

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;
    use crate::units::Ratio;

    fn way(path: &str) -> Way {
        Way { path: Some(path.to_owned()), ..Way::default() }
    }

    fn names(ways: &[Way]) -> String {
        course(ways).map(|way| way.path.unwrap_or_else(|| "usual".to_owned())).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_usual_way_is_tried_again_between_the_others() {
        let others = [way("a"), way("b"), way("c")];
        assert_eq!(names(&[Way::default()]), "usual");
        assert_eq!(names(&[&[Way::default()], &others[..]].concat()), "usual a b usual c usual");
        assert_eq!(names(&[]), "");
    }

    #[tokio::test]
    async fn however_many_ways_there_are_a_remote_that_hangs_holds_up_the_source_for_a_bounded_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://127.0.0.1:{}/network.git", listener.local_addr().unwrap().port());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::Relaxed);
                kept.push(stream);
            }
        });
        let spec = Spec {
            url: Address::parse(&url).unwrap(),
            reference: Reference::Branch("main".into()),
            path: String::new(),
            interval: Duration::from_secs(60),
            jitter: Ratio::of(0, 1),
            timeout: Duration::from_millis(500),
            username: None,
            secret: None,
            known_hosts: None,
            ca: None,
            verify: Verify::Off,
        };
        let state = tempfile::tempdir().unwrap();
        let follower = Follower { altogether: Duration::from_millis(800), ..Follower::new(spec, state.path()) };
        let error = follower.fetch(vec![Way::default(); 20], None).await.unwrap_err();
        assert_eq!(error.reason, Reason::Timeout, "{error:?}");
        let asked = asked.load(Ordering::Relaxed);
        assert!((1..=2).contains(&asked), "asked {asked} times");
    }
}
