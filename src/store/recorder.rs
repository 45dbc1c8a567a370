//! The handle by which the engine records: never blocks, never fails, counts what it could not take.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, SyncSender, TrySendError},
    },
    time::Duration,
};

use tokio::sync::broadcast;

use super::{Batch, HealthSample, Run, StoreError, TransitionRecord, read, writer};
use crate::{
    engine::status::Event,
    units::{Name, plural},
};

/// Messages between the engine and the writer; a busy site makes a few per second.
const QUEUE: usize = 1_024;
/// Newest events kept in memory, for followers and for when the disk is gone.
const RECENT: usize = 1_000;
/// How long whoever asks for what earlier processes could not tell waits for the writer.
const RECALL: Duration = Duration::from_secs(5);

/// What the records may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Samples are on disk at the latest after this time; 60 s at most.
    pub flush: Duration,
    /// At most one sample per path and this time, besides changes of state.
    pub resolution: Duration,
    /// Older rows are deleted.
    pub retention: Duration,
    /// Rows held in memory while the disk takes none; beyond it the oldest are lost, and counted.
    pub memory: usize,
    /// Samples held in memory while the disk takes none, at four bytes each; beyond it the oldest are lost.
    pub samples: usize,
    /// Samples are kept on disk up to so many bytes, the newest; a day of 100 paths has room. What five minutes come
    /// to is kept for a year.
    pub sample_bytes: u64,
    /// `PRAGMA max_page_count`, in pages of 4,096 bytes; 0 = no bound.
    pub pages: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flush: Duration::from_secs(60),
            resolution: Duration::from_secs(1),
            retention: Duration::from_secs(30 * 86_400),
            memory: 20_000,
            samples: 1_000_000,
            sample_bytes: 44 << 20,
            pages: 0,
        }
    }
}

/// A row on its way.
#[derive(Debug)]
pub(super) enum Row {
    /// With the channels that have it to tell: one place in the queue, however many they are.
    Event(Event, Vec<Name>),
    Transition(TransitionRecord),
    Run(Run),
    /// A channel told this event, and all that it had to tell before.
    Told(Name, i64),
}

/// A message to the writer. Small, since the queue's places are allocated beforehand.
#[derive(Debug)]
pub(super) enum Message {
    Row(Box<Row>),
    Samples(Vec<HealthSample>),
    Flush(SyncSender<()>),
}

/// What writer and handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub lost: AtomicU64,
    /// Samples in the queue.
    pub queued: AtomicUsize,
    /// The newest row that an earlier process left for the channels; the writer knows once it has the database.
    pub left: AtomicI64,
    alarms: Mutex<Alarms>,
    recent: Mutex<Recent>,
}

/// The writer's complaints.
#[derive(Debug, Default, Clone)]
pub(super) struct Alarms {
    /// Why the last write failed; cleared by the next that succeeds.
    pub failing: Option<String>,
    /// A database that was damaged or deleted; stays until the daemon restarts.
    pub replaced: Option<String>,
}

#[derive(Debug, Default)]
struct Recent {
    last_id: i64,
    events: VecDeque<Kept>,
    /// The channels of notifications, and the kinds of events that each of them tells of.
    channels: Vec<(Name, Vec<&'static str>)>,
}

impl Recent {
    /// Who has an event of this kind to tell.
    fn tellers(&self, kind: &str) -> Vec<Name> {
        let tells = self.channels.iter().filter(|(_, kinds)| kinds.contains(&kind));
        tells.map(|(name, _)| name.clone()).collect()
    }
}

/// An event in memory, as JSON: a tenth of its parsed size, and hardly ever asked for.
#[derive(Debug, Clone)]
pub struct Kept(Arc<str>);

impl Kept {
    fn new(event: &Event) -> Self {
        Self(serde_json::to_string(event).unwrap_or_default().into())
    }

    /// The event.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        serde_json::from_str(&self.0).ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another holder leaves whole values behind: each is replaced by one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new() -> Self {
        let (alarms, recent) = (Mutex::default(), Mutex::default());
        Self { lost: 0.into(), queued: 0.into(), left: i64::MAX.into(), alarms, recent }
    }

    pub fn alarm(&self, change: impl FnOnce(&mut Alarms)) {
        change(&mut lock(&self.alarms));
    }
}

/// Records what happens. Clones share one writer, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Recorder {
    dir: Arc<Path>,
    queue: SyncSender<Message>,
    live: broadcast::Sender<Kept>,
    shared: Arc<Shared>,
    limits: Limits,
}

impl Recorder {
    /// Starts the writer on `records.db` in a state directory. That the database cannot be opened is an
    /// alarm, not an error.
    #[must_use]
    pub fn start(dir: &Path, limits: Limits) -> Self {
        let (queue, rows) = mpsc::sync_channel(QUEUE);
        let shared = Arc::new(Shared::new());
        let writer = writer::Writer::new(super::records_file(dir), limits, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("records".into()).spawn(move || writer.run(&rows));
        if let Err(error) = thread {
            shared.alarm(|a| a.failing = Some(format!("nothing is recorded: cannot start a thread: {error}")));
        }
        Self { dir: dir.into(), queue, live: broadcast::channel(RECENT).0, shared, limits }
    }

    /// The state directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.to_path_buf()
    }

    /// A batch to collect samples in, thinned out to the resolution.
    #[must_use]
    pub const fn batch(&self) -> Batch {
        Batch::new(self.limits.resolution)
    }

    /// Records the health of paths.
    pub fn samples(&self, samples: Vec<HealthSample>) {
        let count = samples.len();
        if count == 0 {
            return;
        }
        let waiting = self.shared.queued.fetch_add(count, Ordering::Relaxed);
        // One batch is always taken, however large.
        if (waiting > 0 && waiting + count > self.limits.memory) || !self.send(Message::Samples(samples)) {
            self.shared.queued.fetch_sub(count, Ordering::Relaxed);
            self.shared.lost.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    /// Records an event and tells the followers; returns it with its number.
    ///
    /// Numbers are microseconds of wall time made unique, so that they rise over restarts and without a disk.
    #[expect(clippy::must_use_candidate, reason = "recording is the purpose")]
    pub fn event(&self, mut event: Event) -> Event {
        let mut recent = lock(&self.shared.recent);
        event.id = event.at.as_micros().max(recent.last_id + 1);
        recent.last_id = event.id;
        let kept = Kept::new(&event);
        recent.events.push_back(kept.clone());
        if recent.events.len() > RECENT {
            recent.events.pop_front();
        }
        // No follower is no error.
        let _ = self.live.send(kept);
        // Rows are in the order in which followers hear of them.
        self.row(Row::Event(event.clone(), recent.tellers(&event.kind)));
        drop(recent);
        event
    }

    /// From now on events of these kinds are recorded as still to be told by these channels, with the events themselves:
    /// also the last one before the end is told after the next start.
    pub fn tell(&self, channels: Vec<(Name, Vec<&'static str>)>) {
        lock(&self.shared.recent).channels = channels;
    }

    /// What an earlier process left a channel to tell: see [`read::untold`].
    pub fn untold(&self, channel: &Name, limit: usize) -> Result<(Vec<Event>, u64), StoreError> {
        // The writer brings the tables up to date before anything else.
        let _ = self.flush(RECALL);
        read::untold(&self.dir, channel, self.shared.left.load(Ordering::Relaxed), limit)
    }

    /// Records that a channel has told an event, and all that it had to tell before that one.
    pub fn told(&self, channel: &Name, event: i64) {
        self.row(Row::Told(channel.clone(), event));
    }

    /// Records a transition.
    pub fn transition(&self, transition: TransitionRecord) {
        self.row(Row::Transition(transition));
    }

    /// Records a reconcile. Those that the journal holds too (same plan) are shown once.
    pub fn run(&self, run: Run) {
        self.row(Row::Run(run));
    }

    /// The newest events, oldest first, and those to come, without a gap or a double between them.
    #[must_use]
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Kept>) {
        let recent = lock(&self.shared.recent);
        let (events, live) = (recent.events.clone(), self.live.subscribe());
        drop(recent);
        (events.iter().filter_map(Kept::event).collect(), live)
    }

    /// Rows that were not taken since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// What a person should know about the records, one line each; empty when all is well.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        let Alarms { failing, replaced } = lock(&self.shared.alarms).clone();
        // A disk that hangs reports no error; the rows that found the queue full do.
        let lost = Some(self.lost()).filter(|n| *n > 0).map(|n| {
            let were = if n == 1 { "was" } else { "were" };
            format!("{} of the records {were} lost since the start", plural(n, "row"))
        });
        failing.into_iter().chain(replaced).chain(lost).collect()
    }

    /// Writes what is waiting, for the shutdown and for tests; false if that took longer than `patience`.
    #[must_use]
    pub fn flush(&self, patience: Duration) -> bool {
        let (done, wait) = mpsc::sync_channel(1);
        let end = std::time::Instant::now() + patience;
        let mut message = Message::Flush(done);
        // The queue may be full, which a writer that is at work soon changes.
        while let Err(TrySendError::Full(back)) = self.queue.try_send(message) {
            if std::time::Instant::now() >= end {
                return false;
            }
            message = back;
            std::thread::sleep(Duration::from_millis(5));
        }
        wait.recv_timeout(end.saturating_duration_since(std::time::Instant::now())).is_ok()
    }

    fn row(&self, row: Row) {
        if !self.send(Message::Row(Box::new(row))) {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send(&self, message: Message) -> bool {
        self.queue.try_send(message).is_ok()
    }
}
