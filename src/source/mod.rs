//! Where configuration comes from: a directory or a Git repository becomes a snapshot; no parsing.
//!
//! Invariant: a snapshot is taken whole or not at all. A file that changes while it is read, a directory that
//! vanishes half-way, or a tree over its limits is an error, never a smaller tree.

pub mod git;
pub mod local;
mod watch;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::config::{MAX_FILE, MAX_FILES, MAX_TREE, Snapshot};

pub use crate::config::commit;
pub use watch::Watcher;

/// Directories below the root that are looked into; deeper ones are an error.
pub(crate) const MAX_DEPTH: usize = 16;

/// For how long a tree has to stay as it is before it counts as written completely.
const SETTLE: Duration = Duration::from_millis(60);

/// How often a tree that goes on changing is read before that is an error.
const SETTLE_ROUNDS: u32 = 30;

/// Why a directory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory or a file in it cannot be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Something in the tree is over a limit.
    #[error("{path} is over the limit: {limit}")]
    Limit {
        /// What.
        path: PathBuf,
        /// Which limit.
        limit: String,
    },
    /// A file name is not UTF-8.
    #[error("the name of {path} is not UTF-8: rename it")]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// There are no YAML files. An empty tree is more likely a mistake than a wish to delete everything.
    #[error("{path} holds no *.yaml or *.yml file")]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// A repository cannot be followed.
    #[error(transparent)]
    Git(#[from] git::GitError),
    /// The tree goes on changing.
    #[error("{path} has been changing for {} ms: waiting until it is written completely", (SETTLE * SETTLE_ROUNDS).as_millis())]
    Unsettled {
        /// The directory.
        path: PathBuf,
    },
}

impl SourceError {
    /// The reason in one word, for metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Limit { .. } => "limit",
            Self::Name { .. } => "name",
            Self::Empty { .. } => "empty",
            Self::Unsettled { .. } => "unsettled",
            Self::Git(error) => error.reason.label(),
        }
    }
}

/// Reads a directory (or one file) once.
///
/// Hidden files and directories are passed over, as are files of other types than `*.yaml` and `*.yml`. Links to
/// files are followed, links to directories are not.
pub fn read(root: &Path) -> Result<Snapshot, SourceError> {
    let mut tree = Tree { root, files: BTreeMap::new(), bytes: 0 };
    let kind = fs::metadata(root).map_err(|source| SourceError::Read { path: root.to_owned(), source })?;
    if kind.is_file() {
        let name = root.file_name().map(PathBuf::from).unwrap_or_default();
        tree.file(root, &name)?;
    } else {
        tree.directory(root, 0)?;
    }
    if tree.files.is_empty() {
        return Err(SourceError::Empty { path: root.to_owned() });
    }
    Ok(Snapshot { revision: revision(&tree.files), files: tree.files, commit: None })
}

/// Reads a directory until two readings agree, so that a tree in the middle of being written is not taken.
/// It reads on a thread for such work: a slow disk keeps nobody waiting but the caller.
pub async fn read_settled(root: &Path) -> Result<Snapshot, SourceError> {
    let mut last: Option<Snapshot> = None;
    for _ in 0..SETTLE_ROUNDS {
        let path = root.to_owned();
        let ended = |e| SourceError::Read { path: root.to_owned(), source: io::Error::other(e) };
        let now = match tokio::task::spawn_blocking(move || read(&path)).await.map_err(ended)? {
            // Somebody is tidying up.
            Err(SourceError::Read { path, source }) if source.kind() == io::ErrorKind::NotFound && path != root => {
                tokio::time::sleep(SETTLE).await;
                continue;
            }
            result => result?,
        };
        if last.as_ref().is_some_and(|last| last.revision == now.revision) {
            return Ok(now);
        }
        last = Some(now);
        tokio::time::sleep(SETTLE).await;
    }
    Err(SourceError::Unsettled { path: root.to_owned() })
}

struct Tree<'a> {
    root: &'a Path,
    files: BTreeMap<String, Vec<u8>>,
    bytes: usize,
}

impl Tree<'_> {
    fn directory(&mut self, path: &Path, depth: usize) -> Result<(), SourceError> {
        let failed = |source| SourceError::Read { path: path.to_owned(), source };
        if depth > MAX_DEPTH {
            return Err(limit(path, format!("at most {MAX_DEPTH} directories deep")));
        }
        let mut entries = fs::read_dir(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            let path = entry.path();
            if kind.is_dir() {
                self.directory(&path, depth + 1)?;
            } else if is_yaml(&path) && (kind.is_file() || path.is_file()) {
                let relative = path.strip_prefix(self.root).unwrap_or(&path).to_owned();
                self.file(&path, &relative)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, relative: &Path) -> Result<(), SourceError> {
        let name = relative.to_str().ok_or_else(|| SourceError::Name { path: path.to_owned() })?;
        let failed = |source| SourceError::Read { path: path.to_owned(), source };
        let length = fs::metadata(path).map_err(failed)?.len();
        if length > MAX_FILE as u64 {
            return Err(limit(path, format!("a file has at most {MAX_FILE} bytes, this one has {length}")));
        }
        let content = fs::read(path).map_err(failed)?;
        self.bytes += content.len();
        self.files.insert(name.to_owned(), content);
        if self.files.len() > MAX_FILES {
            return Err(limit(self.root, format!("a tree has at most {MAX_FILES} files")));
        }
        if self.bytes > MAX_TREE {
            return Err(limit(self.root, format!("a tree has at most {MAX_TREE} bytes")));
        }
        Ok(())
    }
}

fn limit(path: &Path, limit: String) -> SourceError {
    SourceError::Limit { path: path.to_owned(), limit }
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml")
}

/// The name of a tree's content: the beginning of the SHA-256 over names and contents.
#[must_use]
pub fn revision(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut hash = Sha256::new();
    for (name, content) in files {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(content);
    }
    hash.finalize()
        .iter()
        .take(6)
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, content).expect("a file");
        }
        dir
    }

    #[test]
    fn hidden_files_and_other_types_are_passed_over() {
        let dir =
            tree(&[("a.yaml", "a"), ("sub/b.yml", "b"), (".git/c.yaml", "c"), ("README.md", "d"), (".e.yaml", "e")]);
        let names: Vec<String> = read(dir.path()).expect("a snapshot").files.into_keys().collect();
        assert_eq!(names, ["a.yaml", "sub/b.yml"]);
    }

    #[test]
    fn an_empty_directory_is_an_error_and_not_an_empty_configuration() {
        assert!(matches!(read(tree(&[]).path()), Err(SourceError::Empty { .. })));
    }

    #[test]
    fn a_directory_that_is_not_there_says_so() {
        let error = read(Path::new("/nonexistent/patronus")).expect_err("not there");
        assert_eq!(error.to_string(), "reading /nonexistent/patronus");
    }

    #[test]
    fn the_revision_follows_names_and_contents() {
        let one = read(tree(&[("a.yaml", "ab"), ("b.yaml", "c")]).path()).expect("a snapshot");
        let two = read(tree(&[("a.yaml", "a"), ("b.yaml", "bc")]).path()).expect("a snapshot");
        assert_ne!(one.revision, two.revision);
    }

    #[test]
    fn a_file_over_the_limit_is_refused_before_it_is_read() {
        let dir = tree(&[("a.yaml", "")]);
        let file = fs::File::create(dir.path().join("b.yaml")).expect("a file");
        file.set_len(1 << 40).expect("a sparse file");
        assert!(matches!(read(dir.path()), Err(SourceError::Limit { .. })));
    }
}
