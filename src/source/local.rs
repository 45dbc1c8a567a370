//! Revisions of the repository around a directory, read from its object database: nothing is checked out, no
//! configuration of the host or of the repository is followed, nothing in it is run.

mod refs;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use git2::{Commit, Config, Odb, Oid, Repository};

use self::refs::Layout;
use super::{
    MAX_DEPTH,
    git::{GitError, tree},
};
use crate::config::Snapshot;

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
    /// The repository's objects cannot be opened.
    #[error("cannot open the objects of the repository {}", repository.display())]
    Objects {
        /// The repository.
        repository: PathBuf,
        /// What libgit2 said.
        #[source]
        source: git2::Error,
    },
    /// There is no such revision.
    #[error(
        "`{revision}` is neither a directory nor a revision of the repository {}{}",
        repository.display(),
        hint(revision, *shallow)
    )]
    Unknown {
        /// What was asked for.
        revision: String,
        /// The repository.
        repository: PathBuf,
        /// Whether its history is cut.
        shallow: bool,
    },
    /// The revision's files are not what a router would take.
    #[error(transparent)]
    Tree(#[from] GitError),
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
        let repository =
            objects(&layout).map_err(|source| LocalError::Objects { repository: layout.common.clone(), source })?;
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
        let files = tree::files(&self.repository, commit.tree_id(), &self.below)?;
        Ok(Snapshot { revision: id, files, commit: None })
    }

    /// The commit that is checked out.
    #[must_use]
    pub fn head(&self) -> Option<String> {
        self.layout.find("HEAD")
    }

    fn commit(&self, revision: &str) -> Result<Commit<'_>, LocalError> {
        let unknown = || LocalError::Unknown {
            revision: revision.to_owned(),
            repository: self.layout.git.clone(),
            shallow: self.layout.common.join("shallow").exists(),
        };
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
}

/// What may be behind a name that means nothing, as a line of its own.
fn hint(revision: &str, shallow: bool) -> String {
    match revision.split_once("..") {
        Some((from, to)) => {
            let (from, to) = (from, to.trim_start_matches('.'));
            let or = |name: &str| if name.is_empty() { "HEAD" } else { name }.to_owned();
            format!("\n  a range is written as two arguments: `patronus diff {} {}`", or(from), or(to))
        }
        None if shallow => {
            "\n  a shallow clone has few revisions: `git fetch --unshallow`; in CI, fetch the whole history \
             (`fetch-depth: 0`, `GIT_DEPTH: 0`)"
                .to_owned()
        }
        None => String::new(),
    }
}

/// Entries of a work tree that a router which follows a repository refuses, with what they are. None outside of a
/// repository: a directory may hold what it likes.
#[must_use]
pub fn refused(dir: &Path) -> Vec<(PathBuf, &'static str)> {
    let mut found = Vec::new();
    if Layout::around(dir).is_some() {
        look_for_odd(dir, 0, &mut found);
    }
    found.sort();
    found
}

fn look_for_odd(dir: &Path, depth: usize, found: &mut Vec<(PathBuf, &'static str)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if meta.is_symlink() {
            found.push((entry.path(), "is a symbolic link"));
        } else if meta.is_dir() && depth < MAX_DEPTH {
            look_for_odd(&entry.path(), depth + 1, found);
        } else if meta.is_file() && meta.permissions().mode() & 0o100 != 0 {
            found.push((entry.path(), "is executable"));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_means_nothing_gets_the_hint_that_fits() {
        assert_eq!(hint("mian", false), "");
        assert!(hint("main", true).contains("`git fetch --unshallow`; in CI"));
        assert!(hint("main..HEAD", true).ends_with("two arguments: `patronus diff main HEAD`"));
        assert!(hint("main...", false).ends_with("`patronus diff main HEAD`"));
    }

    #[test]
    fn what_a_router_refuses_of_a_work_tree_is_found_and_a_plain_directory_may_hold_it() {
        let dir = tempfile::tempdir().unwrap();
        let sites = dir.path().join("sites");
        fs::create_dir_all(&sites).unwrap();
        for (file, mode) in [("a.yaml", 0o644), ("b.yaml", 0o755), (".hidden", 0o755)] {
            fs::write(sites.join(file), "").unwrap();
            fs::set_permissions(sites.join(file), fs::Permissions::from_mode(mode)).unwrap();
        }
        std::os::unix::fs::symlink("a.yaml", sites.join("c.yaml")).unwrap();
        assert!(refused(dir.path()).is_empty());
        Repository::init(dir.path()).unwrap();
        let expected = [(sites.join("b.yaml"), "is executable"), (sites.join("c.yaml"), "is a symbolic link")];
        assert_eq!(refused(dir.path()), expected);
    }
}
