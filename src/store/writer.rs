//! The thread that writes the records, and what it does when the disk lets it down.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use rusqlite::Connection;

use super::{
    FlushPolicy, HealthSample, Limits, StoreError,
    chunks::Chunks,
    head::{Head, OVERWRITTEN},
    move_aside, open,
    recorder::{Message, Row, Shared},
    records, schema,
};
use crate::clock;

/// Between two rounds of deleting old rows.
const PRUNE: Duration = Duration::from_secs(3_600);

pub(super) struct Writer {
    file: PathBuf,
    limits: Limits,
    shared: Arc<Shared>,
    policy: FlushPolicy,
    waiting: VecDeque<Row>,
    chunks: Chunks,
    open: Option<Open>,
    pruned: Option<clock::Instant>,
}

/// An open database, and which file it is.
struct Open {
    db: Connection,
    /// Dropped after the connection.
    head: Head,
}

impl Writer {
    pub fn new(file: PathBuf, limits: Limits, shared: Arc<Shared>) -> Self {
        let (policy, waiting, chunks) = (FlushPolicy::new(limits.flush), VecDeque::new(), Chunks::default());
        Self { file, limits, shared, policy, waiting, chunks, open: None, pruned: None }
    }

    /// Writes until the last handle is gone.
    pub fn run(mut self, rows: &Receiver<Message>) {
        self.flush();
        loop {
            match rows.recv_timeout(self.patience()) {
                Ok(Message::Row(row)) => self.take(*row),
                Ok(Message::Samples(samples)) => self.take_samples(&samples),
                Ok(Message::Flush(done)) => {
                    self.flush();
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
            if self.policy.is_due(clock::now()) {
                self.flush();
            }
        }
    }

    fn patience(&self) -> Duration {
        self.policy.next().map_or(PRUNE, |at| at.since(clock::now()))
    }

    fn take(&mut self, row: Row) {
        self.policy.row(true, clock::now());
        self.waiting.push_back(row);
        if self.waiting.len() > self.limits.memory {
            self.waiting.pop_front();
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take_samples(&mut self, samples: &[HealthSample]) {
        self.shared.queued.fetch_sub(samples.len(), Ordering::Relaxed);
        self.policy.row(false, clock::now());
        for sample in samples {
            self.chunks.add(sample);
        }
        let lost = self.chunks.shed(self.limits.samples);
        self.shared.lost.fetch_add(lost as u64, Ordering::Relaxed);
    }

    /// Writes all that waits; after a failure it goes on waiting.
    fn flush(&mut self) {
        let mut result = self.write();
        if result.as_ref().is_err_and(StoreError::is_corrupt) {
            result = self.replace(&result).and_then(|()| self.write());
        }
        match result {
            Ok(()) => {
                self.policy.written();
                self.shared.alarm(|a| a.failing = None);
            }
            Err(error) => {
                self.open = None;
                self.policy.failed(clock::now());
                let text = format!("nothing is recorded: {}", error.chain());
                self.shared.alarm(|a| {
                    if a.failing.is_none() {
                        tracing::warn!("{text}");
                    }
                    a.failing = Some(text);
                });
            }
        }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.check()?;
        let now = clock::now();
        let prune = self.pruned.is_none_or(|last| now.since(last) >= PRUNE);
        let open = match self.open.take() {
            Some(open) => open,
            None => self.connect()?,
        };
        records::insert(&open.db, &self.file, &self.waiting, &self.chunks)?;
        self.waiting = VecDeque::new();
        self.chunks.written();
        records::aggregate(&open.db, &self.file, clock::wall())?;
        if prune {
            records::prune(&open.db, &self.file, clock::wall(), &self.limits)?;
            self.pruned = Some(now);
        }
        self.open = Some(open);
        Ok(())
    }

    fn connect(&self) -> Result<Open, StoreError> {
        let db = open(&self.file, schema::RECORDS)?;
        if self.limits.pages > 0 {
            let bounded = db.pragma_update(None, "max_page_count", self.limits.pages);
            bounded.map_err(StoreError::database("bound the size of", &self.file))?;
        }
        let newest = records::newest_untold(&db, &self.file)?;
        // Only the first time: what is there then is not of this process.
        let _ = self.shared.left.compare_exchange(i64::MAX, newest, Ordering::Relaxed, Ordering::Relaxed);
        let failed = |source| StoreError::File { doing: "read", file: self.file.clone(), source };
        Ok(Open { head: Head::of(&self.file).map_err(failed)?, db })
    }

    /// Looks whether the file is still the one that was opened, and undamaged.
    fn check(&mut self) -> Result<(), StoreError> {
        let Some(trouble) = self.open.as_ref().and_then(|open| open.head.trouble(&self.file)) else { return Ok(()) };
        self.open = None;
        if trouble == OVERWRITTEN {
            let text = Some("the file's header was overwritten".to_owned());
            let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB), text);
            return Err(StoreError::Database { doing: "write to", file: self.file.clone(), source });
        }
        self.begin_anew();
        self.told(format!("{} was deleted while in use; a new one was begun", self.file.display()));
        Ok(())
    }

    fn replace(&mut self, result: &Result<(), StoreError>) -> Result<(), StoreError> {
        self.open = None;
        let aside = move_aside(&self.file, clock::wall())?;
        self.begin_anew();
        let why = result.as_ref().err().map(StoreError::chain).unwrap_or_default();
        self.told(format!("the records were damaged ({why}); they are now {}, new ones were begun", aside.display()));
        Ok(())
    }

    /// Samples that wait are told as differences to rows that are gone, and nothing of an earlier process is left.
    fn begin_anew(&mut self) {
        self.shared.left.store(0, Ordering::Relaxed);
        let lost = self.chunks.restart();
        self.shared.lost.fetch_add(lost as u64, Ordering::Relaxed);
    }

    fn told(&self, text: String) {
        tracing::warn!("{text}");
        self.shared.alarm(|a| a.replaced = Some(text));
    }
}
