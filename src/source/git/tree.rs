//! The files of a commit, read from the object database.
//!
//! Invariant: only plain files and directories. Links, submodules, executables and whatever else a mode can say are
//! refused with their path, wherever they stand below the directory that is followed; hidden names (`.github`) are
//! passed over unseen, as in a watched directory. The limits hold *while* the tree is walked, and what counts is the
//! entries that are visited, not the objects: a few kilobytes can describe 10^9 paths.

use std::collections::BTreeMap;

use git2::{ObjectType, Oid, Repository, Tree, TreeEntry};

use super::error::{GitError, Reason, plain};
use crate::{
    config::{MAX_FILE, MAX_FILES, MAX_TREE},
    source::MAX_DEPTH,
};

/// Entries that are looked at, of whatever kind.
const MAX_ENTRIES: usize = 50_000;
/// Largest directory object: fifty thousand entries with long names.
const MAX_DIRECTORY: usize = 8 << 20;
/// How a pointer of Git LFS begins.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The configuration files below `path` of a commit's tree.
pub(in crate::source) fn files(
    repository: &Repository,
    root: Oid,
    path: &str,
) -> Result<BTreeMap<String, Vec<u8>>, GitError> {
    let mut walk = Walk { repository, files: BTreeMap::new(), entries: 0, bytes: 0 };
    let start = walk.start(root, path)?;
    walk.directory(start, "", 0)?;
    if walk.files.is_empty() {
        let place = if path.is_empty() { "the tree".to_owned() } else { format!("`{path}`") };
        let message = format!("{place} holds no *.yaml or *.yml file");
        return Err(GitError::new(Reason::Empty, message, "an empty tree deletes nothing; see `path` in the settings"));
    }
    Ok(walk.files)
}

struct Walk<'a> {
    repository: &'a Repository,
    files: BTreeMap<String, Vec<u8>>,
    entries: usize,
    bytes: usize,
}

impl<'a> Walk<'a> {
    /// The directory that is followed.
    fn start(&self, root: Oid, path: &str) -> Result<Oid, GitError> {
        let mut at = root;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let found = self.tree(at, path)?.get_name(part).map(|entry| (entry.id(), entry.filemode_raw()));
            match found {
                Some((id, TREE)) => at = id,
                Some((_, mode)) => return Err(refused(path, what(mode))),
                None => {
                    let message = format!("the commit has no directory `{path}`");
                    return Err(GitError::new(Reason::Empty, message, "see `path` in the router's settings"));
                }
            }
        }
        Ok(at)
    }

    fn tree(&self, id: Oid, path: &str) -> Result<Tree<'a>, GitError> {
        let size = self.size(id, ObjectType::Tree, path)?;
        if size > MAX_DIRECTORY {
            return Err(limit(path, &format!("a directory has at most {MAX_DIRECTORY} bytes, this one has {size}")));
        }
        self.repository.find_tree(id).map_err(|error| corrupt(path, &error))
    }

    /// The size of an object, before it is unpacked.
    fn size(&self, id: Oid, wanted: ObjectType, path: &str) -> Result<usize, GitError> {
        let odb = self.repository.odb().map_err(|error| corrupt(path, &error))?;
        let (size, kind) = odb.read_header(id).map_err(|error| corrupt(path, &error))?;
        if kind == wanted { Ok(size) } else { Err(refused(path, "is not what its directory says it is")) }
    }

    fn directory(&mut self, id: Oid, path: &str, depth: usize) -> Result<(), GitError> {
        if depth > MAX_DEPTH {
            return Err(limit(path, &format!("at most {MAX_DEPTH} directories deep")));
        }
        let tree = self.tree(id, path)?;
        let found: Vec<(Vec<u8>, i32, Oid)> = tree.iter().map(|entry| of(&entry)).collect();
        for (name, mode, id) in found {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(limit(path, &format!("a tree has at most {MAX_ENTRIES} entries, counted by path")));
            }
            if !name.starts_with(b".") {
                self.entry(&name, mode, id, path, depth)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &[u8], mode: i32, id: Oid, path: &str, depth: usize) -> Result<(), GitError> {
        let shown = String::from_utf8_lossy(name);
        let full = if path.is_empty() { shown.to_string() } else { format!("{path}/{shown}") };
        let odd = std::str::from_utf8(name).is_err() || name.iter().any(|b| *b == b'/' || b.is_ascii_control());
        match mode {
            _ if odd => Err(refused(&full, "has a name that is not plain text")),
            TREE => self.directory(id, &full, depth + 1),
            FILE | FILE_GROUP if is_yaml(&shown) => self.file(id, full),
            FILE | FILE_GROUP => Ok(()),
            other => Err(refused(&full, what(other))),
        }
    }

    fn file(&mut self, id: Oid, path: String) -> Result<(), GitError> {
        let size = self.size(id, ObjectType::Blob, &path)?;
        if size > MAX_FILE {
            return Err(limit(&path, &format!("a file has at most {MAX_FILE} bytes, this one has {size}")));
        }
        self.bytes += size;
        if self.bytes > MAX_TREE {
            return Err(limit(&path, &format!("a tree has at most {MAX_TREE} bytes")));
        }
        if self.files.len() >= MAX_FILES {
            return Err(limit(&path, &format!("a tree has at most {MAX_FILES} files")));
        }
        let blob = self.repository.find_blob(id).map_err(|error| corrupt(&path, &error))?;
        if blob.content().starts_with(LFS) {
            return Err(refused(&path, "is a pointer of Git LFS, not the file itself"));
        }
        self.files.insert(path, blob.content().to_vec());
        Ok(())
    }
}

const TREE: i32 = 0o040_000;
const FILE: i32 = 0o100_644;
/// What Git wrote in its first months; it means the same.
const FILE_GROUP: i32 = 0o100_664;

fn what(mode: i32) -> &'static str {
    match mode {
        0o120_000 => "is a symbolic link",
        0o160_000 => "is a submodule",
        0o100_755 => "is executable",
        TREE => "is a directory",
        FILE | FILE_GROUP => "is a file",
        _ => "has a mode that Git does not write",
    }
}

fn of(entry: &TreeEntry<'_>) -> (Vec<u8>, i32, Oid) {
    (entry.name_bytes().to_vec(), entry.filemode_raw(), entry.id())
}

fn is_yaml(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, end)| end == "yaml" || end == "yml")
}

fn refused(path: &str, what: &str) -> GitError {
    let remedy = "only plain files and directories are taken: change it, or keep the configuration in a directory of \
                  its own and name that in the settings' `path`";
    GitError::new(Reason::Refused, format!("{} {what}", plain(path)), remedy)
}

fn limit(path: &str, limit: &str) -> GitError {
    let place = if path.is_empty() { "the tree".to_owned() } else { plain(path) };
    GitError::new(Reason::Limit, format!("{place} is over the limit: {limit}"), "make it smaller")
}

fn corrupt(path: &str, error: &git2::Error) -> GitError {
    let place = if path.is_empty() { "the tree".to_owned() } else { plain(path) };
    let message = format!("{place} cannot be read from the repository: {}", error.message());
    GitError::new(Reason::Corrupt, message, "`git fsck` looks at a clone; a router's next fetch brings it again")
}
