//! Names of revisions, read from the files of a repository (gitrepository-layout(5)).
//!
//! libgit2 would read the host's configuration to open a repository, fail where that is broken, and refuse one that
//! belongs to another user. Objects alone it takes as they are, so the names are looked up here.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Symbolic references that are followed.
const MOST: usize = 5;

/// Where a repository keeps what.
#[derive(Debug)]
pub(super) struct Layout {
    /// `HEAD` and what belongs to one work tree.
    pub(super) git: PathBuf,
    /// References and objects of all work trees.
    pub(super) common: PathBuf,
    /// The top of the work tree; a bare repository is its own.
    pub(super) top: PathBuf,
}

impl Layout {
    /// The repository around a directory.
    pub(super) fn around(dir: &Path) -> Option<Self> {
        let dir = dir.canonicalize().ok()?;
        dir.ancestors().find_map(|top| {
            let git = top.join(".git");
            if git.is_dir() {
                return Some(Self::of(git, top));
            }
            if let Ok(link) = fs::read_to_string(&git) {
                return Some(Self::of(top.join(link.strip_prefix("gitdir:")?.trim()), top));
            }
            let bare = top.join("HEAD").is_file() && top.join("objects").is_dir() && top.join("refs").is_dir();
            bare.then(|| Self::of(top.to_owned(), top))
        })
    }

    fn of(git: PathBuf, top: &Path) -> Self {
        let common = fs::read_to_string(git.join("commondir")).map_or_else(|_| git.clone(), |to| git.join(to.trim()));
        Self { git, common, top: top.to_owned() }
    }

    /// The object that a name stands for, in the order of gitrevisions(7).
    pub(super) fn find(&self, name: &str) -> Option<String> {
        let places = ["", "refs/", "refs/tags/", "refs/heads/", "refs/remotes/"];
        let places = places.iter().map(|place| format!("{place}{name}"));
        places.chain([format!("refs/remotes/{name}/HEAD")]).find_map(|full| self.follow(&full))
    }

    fn follow(&self, name: &str) -> Option<String> {
        let mut name = name.to_owned();
        for _ in 0..MOST {
            let plain = !name.split('/').any(|part| part.is_empty() || part.starts_with('.')) && !name.contains('\0');
            let special = name.starts_with("refs/") || name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            if !plain || !special {
                return None;
            }
            let value = self.value(&name)?;
            match value.strip_prefix("ref:") {
                Some(next) => next.trim().clone_into(&mut name),
                None => return is_id(&value).then_some(value),
            }
        }
        None
    }

    fn value(&self, name: &str) -> Option<String> {
        let loose = [&self.git, &self.common].into_iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok());
        loose.map(|text| text.trim().to_owned()).or_else(|| self.packed(name))
    }

    fn packed(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.common.join("packed-refs")).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(_, full)| *full == name).map(|(id, _)| id.to_owned())
    }
}

fn is_id(text: &str) -> bool {
    text.len() >= 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
