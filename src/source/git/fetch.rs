//! One fetch over one way, by libgit2, into the bare repository of the state directory.
//!
//! Isolated: the repository is made file by file without templates or hooks, and its configuration is replaced by an
//! empty one as soon as it is open, so that nothing of the host's (`insteadOf`, proxies, helpers) has a say. libgit2 reads
//! the host's files all the same when it opens a repository; one that cannot be parsed is an error that names it.
//!
//! Shallow where it can be: the first fetch brings the head alone; later ones bring what is between. Only when the new
//! head does not visibly descend from the accepted commit is the whole history asked for, to tell "set back" from
//! "written anew". A directory of this machine is always fetched whole: libgit2 cannot do otherwise.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use git2::{ErrorClass, ErrorCode, Oid, Repository};
use sha2::{Digest as _, Sha256};

use super::{
    error::{GitError, Reason},
    https::Https,
    relay::{Protocol, Relay, Route},
    resolve::Resolver,
    secret::Login,
    spec::{Reference, Scheme, Spec},
    talk::{Followed, Talk},
    way::Way,
};
use crate::config::commit::Lineage;

/// With more packs than this the repository is begun anew: libgit2 does not collect garbage.
const MAX_PACKS: usize = 200;
/// Commits that are looked at to tell where one stands.
const MAX_HISTORY: usize = 200_000;
/// Commits that libgit2 tells a remote about at most.
const MAX_TOLD: usize = 256;
/// The configuration of our repository.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n";
/// Everything, in the words of the protocol.
const WHOLE: i32 = i32::MAX;

/// What is fetched, into which directory.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) spec: Spec,
    pub(super) dir: PathBuf,
    pub(super) resolver: Arc<Resolver>,
}

impl Fetch {
    /// Brings the head of what is followed into the repository. Blocks for at most the spec's timeout, and not beyond
    /// `until`.
    pub(super) fn run(&self, way: &Way, accepted: Option<Oid>, until: Instant) -> Result<(), GitError> {
        let repository = &self.open()?;
        if let Reference::Commit(id) = &self.spec.reference
            && repository.find_commit(oid(id)?).is_ok()
        {
            return self.keep(repository, oid(id)?);
        }
        let first = self.head(repository).is_none();
        let cut = first && self.spec.url.scheme != Scheme::File && !matches!(self.spec.reference, Reference::Commit(_));
        let deadline = until.min(Instant::now() + self.spec.timeout);
        self.connection(repository, way, deadline, i32::from(cut))?;
        if let Reference::Commit(id) = &self.spec.reference {
            return self.keep(repository, oid(id)?);
        }
        let head = self.head(repository).ok_or_else(|| self.absent())?;
        let doubtful = accepted.is_some_and(|accepted| !lineage(repository, Some(accepted), head).is_forward());
        if doubtful && repository.is_shallow() {
            self.connection(repository, way, deadline, WHOLE)?;
        }
        Ok(())
    }

    /// The commit that was fetched last.
    pub(super) fn head(&self, repository: &Repository) -> Option<Oid> {
        let found = repository.find_reference(&self.name()).ok()?;
        found.peel_to_commit().ok().map(|commit| commit.id())
    }

    /// Opens the repository without asking the network; an error of `Empty` if there is none yet.
    pub(super) fn existing(&self) -> Result<Repository, GitError> {
        if !self.dir.join("HEAD").exists() {
            let message = format!("nothing was fetched from {} yet", self.spec.url);
            return Err(GitError::new(Reason::Empty, message, "`patronus run` fetches it, and goes on doing so"));
        }
        let repository = Repository::open_bare(&self.dir).map_err(|error| self.storage(&error))?;
        let empty = git2::Config::new().map_err(|error| self.storage(&error))?;
        repository.set_config(&empty).map_err(|error| self.storage(&error))?;
        Ok(repository)
    }

    /// Opens the repository; makes it if there is none, and anew if it is damaged or has grown old.
    fn open(&self) -> Result<Repository, GitError> {
        match self.existing() {
            Ok(repository) if packs(&self.dir) <= MAX_PACKS && self.is_sound(&repository) => Ok(repository),
            // What is wrong elsewhere on this machine is no reason to throw away what was fetched.
            Err(error) if error.reason == Reason::Settings => Err(error),
            _ => self.anew(),
        }
    }

    fn anew(&self) -> Result<Repository, GitError> {
        self.make().map_err(|error| {
            let message = format!("the repository {} cannot be made: {error}", self.dir.display());
            GitError::new(Reason::Storage, message, "the state directory must be writable and have space: df -h")
        })?;
        self.existing()
    }

    fn make(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        for sub in ["objects/pack", "objects/info", "refs/heads"] {
            private.create(self.dir.join(sub))?;
        }
        fs::write(self.dir.join("config"), CONFIG)?;
        fs::write(self.dir.join("HEAD"), "ref: refs/heads/none\n")
    }

    /// Whether what was fetched before can be read: its reference, its tree, and the commits that are told to the
    /// remote. A commit that is not there is the edge of a shallow history.
    fn is_sound(&self, repository: &Repository) -> bool {
        if repository.find_reference(&self.name()).is_err() {
            return true;
        }
        let Some(head) = self.head(repository) else { return false };
        let tree = repository.find_commit(head).ok().map(|commit| commit.tree_id());
        let files = tree.map(|tree| super::tree::files(repository, tree, &self.spec.path));
        if !matches!(&files, Some(Ok(_))) && !matches!(&files, Some(Err(e)) if e.reason != Reason::Corrupt) {
            return false;
        }
        let mut next = Some(head);
        for _ in 0..MAX_TOLD {
            match next.map(|id| repository.find_commit(id)) {
                Some(Ok(commit)) => next = commit.parent_ids().next(),
                Some(Err(error)) if error.code() != ErrorCode::NotFound => return false,
                _ => break,
            }
        }
        true
    }

    /// Our name for what is followed; another address or branch has another.
    fn name(&self) -> String {
        let digest = Sha256::digest(format!("{}\n{}", self.spec.url, self.spec.reference));
        let number = digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        format!("refs/patronus/{number:016x}")
    }

    fn keep(&self, repository: &Repository, id: Oid) -> Result<(), GitError> {
        repository.find_commit(id).map_err(|_| self.absent())?;
        repository.reference(&self.name(), id, true, "").map_err(|error| self.storage(&error))?;
        Ok(())
    }

    /// One conversation with the remote; `depth` 0 brings what is missing.
    fn connection(&self, repository: &Repository, way: &Way, deadline: Instant, depth: i32) -> Result<(), GitError> {
        let login = Login::of(&self.spec)?;
        let relay = self.relay(way, deadline, &login)?;
        let url = relay.as_ref().map_or_else(|| self.spec.url.to_string(), |(_, url)| url.clone());
        let talk = Talk::new(&self.spec, &login, deadline);
        talk.fetch(repository, &url, &self.followed(), depth).map_err(|error| {
            // The first cause is the one that counts: the relay's, then ours, then what libgit2 made of it.
            let cause = relay.and_then(|(relay, _)| relay.failure()).or_else(|| talk.failure());
            cause.unwrap_or(error)
        })
    }

    fn followed(&self) -> Followed {
        match &self.spec.reference {
            Reference::Branch(name) => Followed::One(format!("refs/heads/{name}"), self.name()),
            Reference::Tag(name) => Followed::One(format!("refs/tags/{name}"), self.name()),
            // Few servers let a commit be asked for by its name.
            Reference::Commit(_) => Followed::All,
        }
    }

    /// The relay to the remote and its address for libgit2; none for a directory.
    fn relay(&self, way: &Way, deadline: Instant, login: &Login) -> Result<Option<(Relay, String)>, GitError> {
        let url = &self.spec.url;
        let (protocol, path) = match url.scheme {
            Scheme::File => return Ok(None),
            Scheme::Ssh => (Protocol::Plain, String::new()),
            Scheme::Https => {
                let login = login.secret.as_ref().map(|password| (login.user.as_str(), password.trim()));
                let https = Https::new(url, self.spec.ca.as_deref(), login)?;
                let path = https.secret().to_owned();
                (Protocol::Https(https), path)
            }
        };
        let route = Route {
            host: url.host.clone(),
            port: url.port,
            way: way.clone(),
            resolver: Arc::clone(&self.resolver),
            deadline,
            timeout: self.spec.timeout.min(deadline.saturating_duration_since(Instant::now())),
        };
        let relay = Relay::start(route, protocol)?;
        let at = relay.address();
        let text = match url.scheme {
            Scheme::Ssh if url.path.starts_with('/') => format!("ssh://{}@{at}{}", login.user, url.path),
            // The user is asked for: beside brackets this form has no place for one.
            Scheme::Ssh => format!("[{at}]:{}", url.path),
            _ => format!("http://{at}{path}"),
        };
        Ok(Some((relay, text)))
    }

    fn absent(&self) -> GitError {
        super::talk::absent(&self.spec)
    }

    fn storage(&self, error: &git2::Error) -> GitError {
        let own = fs::read_to_string(self.dir.join("config"));
        if error.class() == ErrorClass::Config && own.is_ok_and(|text| text == CONFIG) {
            let message = format!("the Git configuration of this machine cannot be parsed: {}", error.message());
            let remedy = "mend the file that is named; nothing in it has an effect here, but libgit2 reads it";
            return GitError::new(Reason::Settings, message, remedy);
        }
        let message = format!("the repository {} cannot be used: {}", self.dir.display(), error.message());
        GitError::new(Reason::Storage, message, "the state directory must be writable and have space: df -h")
    }
}

fn oid(id: &str) -> Result<Oid, GitError> {
    Oid::from_str(id)
        .map_err(|error| GitError::new(Reason::Settings, error.message(), "write all 40 digits of the commit"))
}

/// How many packs there are.
fn packs(dir: &Path) -> usize {
    let found = fs::read_dir(dir.join("objects/pack")).into_iter().flatten().flatten();
    found.filter(|entry| entry.path().extension().is_some_and(|end| end == "pack")).count()
}

/// Where a commit stands relative to the accepted one, as far as the fetched history shows it.
pub(super) fn lineage(repository: &Repository, accepted: Option<Oid>, head: Oid) -> Lineage {
    let Some(accepted) = accepted else { return Lineage::First };
    if accepted == head {
        Lineage::Same
    } else if descends(repository, head, accepted) {
        Lineage::Descends
    } else if descends(repository, accepted, head) {
        Lineage::Behind
    } else {
        Lineage::Diverged
    }
}

/// Whether `one` has `other` among its ancestors. Where the history was cut the search ends: libgit2's own does not
/// survive a cut.
fn descends(repository: &Repository, one: Oid, other: Oid) -> bool {
    let mut seen = BTreeSet::from([one]);
    let mut next = vec![one];
    while let Some(id) = next.pop() {
        let Ok(commit) = repository.find_commit(id) else { continue };
        for parent in commit.parent_ids() {
            if parent == other {
                return true;
            }
            if seen.len() < MAX_HISTORY && seen.insert(parent) {
                next.push(parent);
            }
        }
    }
    false
}
