//! Tells when a directory may have changed. It is told too often rather than too rarely.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::mpsc;

use super::is_yaml;
use crate::clock::{self, Instant};

/// A file that was written to and not closed counts as half-written for so long after the last write.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Files that somebody writes to, with the moment of the last write.
type Writing = Arc<Mutex<BTreeMap<PathBuf, Instant>>>;

/// Watches a directory, also while it does not exist or is replaced by another of the same name.
#[derive(Debug)]
pub struct Watcher {
    /// Nothing: it never tells of a change.
    root: Option<PathBuf>,
    events: mpsc::Receiver<()>,
    notifier: Option<RecommendedWatcher>,
    sender: mpsc::Sender<()>,
    /// Device and inode of what is being watched.
    watched: Option<(u64, u64)>,
    writing: Writing,
    warned: bool,
}

impl Watcher {
    /// Begins to watch. Without inotify (limits reached) it goes on by [`Watcher::refresh`] alone.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self::of(Some(root.to_owned()))
    }

    /// Watches nothing, for a source that nobody can tell of.
    #[must_use]
    pub fn of_nothing() -> Self {
        Self::of(None)
    }

    fn of(root: Option<PathBuf>) -> Self {
        // One waiting wake-up is enough: it carries no meaning.
        let (sender, events) = mpsc::channel(1);
        let mut watcher =
            Self { root, events, notifier: None, sender, watched: None, writing: Writing::default(), warned: false };
        watcher.refresh();
        watcher
    }

    /// Waits until something may have changed.
    pub async fn changed(&mut self) {
        // The sender lives in `self`, so the channel cannot be closed.
        let _ = self.events.recv().await;
        self.refresh();
    }

    /// Whether somebody is in the middle of writing a file of the tree: it was written to, not closed since, and
    /// the last write is not long ago.
    #[must_use]
    pub fn is_being_written(&self, now: Instant) -> bool {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.retain(|_, last| now.since(*last) < LONGEST_PAUSE);
        !writing.is_empty()
    }

    /// Watches again what stands at the path now, if it is not what was watched. Returns whether it is another.
    pub fn refresh(&mut self) -> bool {
        let Some(root) = self.root.clone() else { return false };
        let now = identity(&root);
        if now == self.watched && self.notifier.is_some() {
            return false;
        }
        match self.watch(&root) {
            Ok(notifier) => (self.notifier, self.warned) = (Some(notifier), false),
            Err(error) => {
                self.notifier = None;
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!(directory = %root.display(), %error, "cannot watch the source; it is read at every audit");
                }
            }
        }
        let changed = now != self.watched;
        self.watched = now;
        changed
    }

    fn watch(&self, root: &Path) -> notify::Result<RecommendedWatcher> {
        let (sender, writing) = (self.sender.clone(), Arc::clone(&self.writing));
        writing.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut notifier = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.map_or(true, |e| note(&e, &writing)) {
                let _ = sender.try_send(());
            }
        })?;
        if let Some(parent) = root.parent().filter(|p| p.is_dir()) {
            notifier.watch(parent, RecursiveMode::NonRecursive)?;
        }
        if root.exists() {
            notifier.watch(root, RecursiveMode::Recursive)?;
        }
        Ok(notifier)
    }
}

/// Keeps account of who writes; returns whether the tree may be another one now.
fn note(event: &Event, writing: &Writing) -> bool {
    let mut writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
    let files = event.paths.iter().filter(|path| is_yaml(path));
    match event.kind {
        _ if event.need_rescan() => writing.clear(),
        EventKind::Modify(ModifyKind::Data(_)) => writing.extend(files.map(|path| (path.clone(), clock::now()))),
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Remove(_)
        | EventKind::Modify(ModifyKind::Name(_)) => {
            for path in files {
                writing.remove(path);
            }
        }
        EventKind::Access(_) => return false,
        _ => {}
    }
    true
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found: io::Result<fs::Metadata> = fs::metadata(path);
    found.ok().map(|m| (m.dev(), m.ino()))
}
