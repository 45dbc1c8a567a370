//! Revisions of the repository around a directory, read from its object database: nothing is checked out, no
//! configuration of the host or of the repository is followed, nothing in it is run.

mod refs;

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use git2::{Commit, Config, ObjectType, Odb, Oid, Repository, Tree};

use self::refs::Layout;
use super::{MAX_DEPTH, SourceError, is_yaml, limit};
use crate::config::{MAX_FILE, MAX_FILES, MAX_TREE, Snapshot};

/// Why a revision could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// There is no repository.
    #[error(
        "{} is in no Git repository, so `{revision}` is neither a directory nor a revision here", dir.display()
    )]
    NoRepository {
        /// Where one was looked for.
        dir: PathBuf,
        /// What was to be read from it.
        revision: String,
    },
    /// The repository cannot be opened or read.
    #[error("cannot {doing} in the repository {}", repository.display())]
    Git {
        /// What was being done.
        doing: String,
        /// The repository.
        repository: PathBuf,
        /// What libgit2 said.
        #[source]
        source: git2::Error,
    },
    /// There is no such revision.
    #[error(
        "`{revision}` is neither a directory nor a revision of the repository {}\n  \
         a shallow clone has few revisions: in CI, fetch the whole history (`fetch-depth: 0`, `GIT_DEPTH: 0`)", repository.display()
    )]
    Unknown {
        /// What was asked for.
        revision: String,
        /// The repository.
        repository: PathBuf,
    },
    /// The revision does not have the directory.
    #[error("the revision {revision} has no directory `{dir}`")]
    NoDirectory {
        /// The revision.
        revision: String,
        /// The directory, relative to the repository.
        dir: String,
    },
    /// The revision's tree is over a limit, or empty.
    #[error(transparent)]
    Tree(#[from] SourceError),
}

/// A repository, and the directory in it that is the configuration.
pub struct Local {
    repository: Repository,
    layout: Layout,
    /// The directory relative to the top of the repository.
    below: String,
}

impl Local {
    /// The repository around a directory, if there is one.
    pub fn around(dir: &Path) -> Result<Option<Self>, LocalError> {
        let Some(layout) = Layout::around(dir) else { return Ok(None) };
        let repository = objects(&layout).map_err(|source| {
            let doing = "open the objects".to_owned();
            LocalError::Git { doing, repository: layout.common.clone(), source }
        })?;
        let below = dir.canonicalize().ok().and_then(|dir| Some(dir.strip_prefix(&layout.top).ok()?.to_owned()));
        let below: Vec<String> = below
            .iter()
            .flat_map(|path| path.components())
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                _ => None,
            })
            .collect();
        Ok(Some(Self { repository, layout, below: below.join("/") }))
    }

    /// The configuration at a revision, with the commit that it is.
    pub fn read(&self, revision: &str) -> Result<Snapshot, LocalError> {
        let commit = self.commit(revision)?;
        let id = commit.id().to_string();
        let tree = commit.tree().map_err(|e| self.failed(format!("read the tree of {id}"), e))?;
        let tree = self.below(&tree, &id)?;
        let mut walk = Walk { local: self, files: BTreeMap::new(), bytes: 0 };
        walk.tree(&tree, "", 0)?;
        if walk.files.is_empty() {
            return Err(SourceError::Empty { path: format!("{id}:{}", self.below).into() }.into());
        }
        Ok(Snapshot { revision: id, files: walk.files, commit: None })
    }

    /// The commit that is checked out.
    #[must_use]
    pub fn head(&self) -> Option<String> {
        self.layout.find("HEAD")
    }

    fn commit(&self, revision: &str) -> Result<Commit<'_>, LocalError> {
        let unknown = || LocalError::Unknown { revision: revision.to_owned(), repository: self.layout.git.clone() };
        // `~2`, `^`, `^{commit}`: what leads on from a name.
        let end = revision.find(['~', '^']).unwrap_or(revision.len());
        let (name, on) = revision.split_at(end);
        let id = self.layout.find(if name == "@" { "HEAD" } else { name }).or_else(|| self.abbreviated(name));
        let object = self.repository.revparse_single(&format!("{}{on}", id.ok_or_else(unknown)?));
        object.and_then(|object| object.peel_to_commit()).map_err(|_| unknown())
    }

    fn abbreviated(&self, id: &str) -> Option<String> {
        let short = (4..=40).contains(&id.len()).then(|| Oid::from_str(id).ok()).flatten()?;
        Some(self.repository.odb().ok()?.exists_prefix(short, id.len()).ok()?.to_string())
    }

    fn below(&self, tree: &Tree<'_>, id: &str) -> Result<Tree<'_>, LocalError> {
        let missing = || LocalError::NoDirectory { revision: id.to_owned(), dir: self.below.clone() };
        let entry = match self.below.as_str() {
            "" => tree.id(),
            below => tree.get_path(Path::new(below)).map_err(|_| missing())?.id(),
        };
        self.repository.find_tree(entry).map_err(|_| missing())
    }

    fn failed(&self, doing: String, source: git2::Error) -> LocalError {
        LocalError::Git { doing, repository: self.layout.git.clone(), source }
    }
}

/// The objects of a repository and nothing else of it.
fn objects(layout: &Layout) -> Result<Repository, git2::Error> {
    let odb = Odb::new()?;
    odb.add_disk_alternate(&layout.common.join("objects").to_string_lossy())?;
    let repository = Repository::from_odb(odb)?;
    repository.set_config(&Config::new()?)?;
    Ok(repository)
}

/// Limits hold while the tree is walked: a few kilobytes of objects can stand for billions of files.
struct Walk<'a> {
    local: &'a Local,
    files: BTreeMap<String, Vec<u8>>,
    bytes: usize,
}

impl Walk<'_> {
    fn tree(&mut self, tree: &Tree<'_>, below: &str, depth: usize) -> Result<(), LocalError> {
        if depth > MAX_DEPTH {
            return Err(limit(Path::new(below), format!("at most {MAX_DEPTH} directories deep")).into());
        }
        for entry in tree {
            let name = entry.name().map_err(|_| SourceError::Name { path: below.into() })?;
            if name.starts_with('.') {
                continue;
            }
            let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
            match entry.kind() {
                Some(ObjectType::Tree) => {
                    let tree = self.local.repository.find_tree(entry.id());
                    let tree = tree.map_err(|e| self.local.failed(format!("read {path}"), e))?;
                    self.tree(&tree, &path, depth + 1)?;
                }
                Some(ObjectType::Blob) if is_yaml(Path::new(&path)) => self.file(entry.id(), path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, id: git2::Oid, path: String) -> Result<(), LocalError> {
        let odb = self.local.repository.odb().map_err(|e| self.local.failed("read objects".to_owned(), e))?;
        let (length, _) = odb.read_header(id).map_err(|e| self.local.failed(format!("read {path}"), e))?;
        self.bytes = self.bytes.saturating_add(length);
        let over = if length > MAX_FILE {
            Some(format!("a file has at most {MAX_FILE} bytes, this one has {length}"))
        } else if self.bytes > MAX_TREE || self.files.len() >= MAX_FILES {
            Some(format!("a tree has at most {MAX_FILES} files and {MAX_TREE} bytes"))
        } else {
            None
        };
        if let Some(over) = over {
            return Err(limit(Path::new(&path), over).into());
        }
        let object = odb.read(id).map_err(|e| self.local.failed(format!("read {path}"), e))?;
        self.files.insert(path, object.data().to_vec());
        Ok(())
    }
}
