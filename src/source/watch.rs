//! Tells when a directory may have changed. It is told too often rather than too rarely.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// Watches a directory, also while it does not exist or is replaced by another of the same name.
#[derive(Debug)]
pub struct Watcher {
    root: PathBuf,
    events: mpsc::Receiver<()>,
    notifier: Option<RecommendedWatcher>,
    sender: mpsc::Sender<()>,
    /// Device and inode of what is being watched.
    watched: Option<(u64, u64)>,
}

impl Watcher {
    /// Begins to watch. Without inotify (limits reached) it goes on by [`Watcher::refresh`] alone.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        // One waiting wake-up is enough: it carries no meaning.
        let (sender, events) = mpsc::channel(1);
        let mut watcher = Self { root: root.to_owned(), events, notifier: None, sender, watched: None };
        watcher.refresh();
        watcher
    }

    /// Waits until something may have changed.
    pub async fn changed(&mut self) {
        // The sender lives in `self`, so the channel cannot be closed.
        let _ = self.events.recv().await;
        self.refresh();
    }

    /// Watches again what stands at the path now, if it is not what was watched. Returns whether it is another.
    pub fn refresh(&mut self) -> bool {
        let now = identity(&self.root);
        if now == self.watched && self.notifier.is_some() {
            return false;
        }
        match self.watch() {
            Ok(notifier) => self.notifier = Some(notifier),
            Err(error) => {
                self.notifier = None;
                tracing::warn!(directory = %self.root.display(), %error, "cannot watch the source; it is read at every audit");
            }
        }
        let changed = now != self.watched;
        self.watched = now;
        changed
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let sender = self.sender.clone();
        let mut notifier = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|e| e.kind.is_access() && !e.need_rescan()) {
                return;
            }
            let _ = sender.try_send(());
        })?;
        if let Some(parent) = self.root.parent().filter(|p| p.is_dir()) {
            notifier.watch(parent, RecursiveMode::NonRecursive)?;
        }
        if self.root.exists() {
            notifier.watch(&self.root, RecursiveMode::Recursive)?;
        }
        Ok(notifier)
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found: io::Result<fs::Metadata> = fs::metadata(path);
    found.ok().map(|m| (m.dev(), m.ino()))
}
