//! The only loop: events come in, one pass brings kernel and configuration together, one status goes out.
//!
//! Invariant: triggers carry no meaning. Whatever wakes the engine leads to the same pass over fresh inputs; the
//! one shortcut is a switch of paths, which is the same difference restricted to routes, carried out at once and
//! followed by the full pass.

mod arrive;
mod ask;
pub mod captured;
mod drift;
mod forget;
mod gate;
mod later;
mod orders;
mod pass;
mod publish;
mod reach;
mod reader;
mod ready;
mod record;
mod revise;
pub mod router;
mod source;
mod spare;
pub mod status;
mod switch;
mod trial;
mod ways;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    api::Command,
    clock::{self, Instant},
    failover::{Overrides, Selection, Transition},
    guard::Rules,
    health::{
        Monitor, Sample,
        load::{Meter, Use},
        quality::Counts,
    },
    kernel::{
        Forgotten, KernelError, KernelEvent,
        linux::{Changes, Linux},
    },
    notify::Notices,
    probe::{ProbeError, Prober},
    revision::{Note, Revisions},
    source::Watcher,
    state::Observed,
    store::{Batch, Recorder},
    units::Name,
};

pub use self::orders::kept as kept_orders;
pub use self::source::{Active, ConfigError, Origin, Whence, activate};
pub use self::status::ReconcileOutcome;
pub(crate) use self::{drift::object as drifted_object, pass::told, revise::dice};
use self::{
    router::Router,
    status::{ReconcileStatus, Status, Tally, Totals},
};

/// Notifications that come in a burst lead to one pass.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A full pass happens at least this often, whatever the kernel says.
const AUDIT: Duration = Duration::from_secs(60);
/// The status is published at least this often.
const PUBLISH: Duration = Duration::from_secs(1);
/// Counters and flows are read from the kernel this often.
const COUNT: Duration = Duration::from_secs(10);
/// A link that came up gets its addresses and neighbours before a remote is asked over it.
const LINK_SETTLES: Duration = Duration::from_millis(300);
/// The loop wakes at least every [`PUBLISH`]; when it did not for this long, something held it up.
const HELD_UP: Duration = Duration::from_millis(1500);
/// Announcements of the kernel that are taken in before anything else is done.
const BURST: usize = 65_536;
/// Results of probes that may wait: those of a thousand paths while a pass takes half a minute.
const WAITING: usize = 32_768;
/// First wait after a pass that failed; it doubles up to [`AUDIT`].
const RETRY: Duration = Duration::from_secs(1);

/// What the engine is made of.
pub struct Parts {
    /// Which site this is, and where its configuration comes from.
    pub origin: Origin,
    /// Its kernel and journal.
    pub router: Router<Linux>,
    /// Where events and samples go.
    pub recorder: Recorder,
    /// What may be changed, when, and whether it stands.
    pub rules: Rules,
    /// Things that went wrong before the engine started.
    pub alarms: Vec<String>,
    /// Whether the wall clock is kept on UTC.
    pub clock_synchronised: bool,
    /// Requests of forges, counted.
    pub hooks: Arc<Tally>,
    /// Reports to the forge, counted.
    pub reports: Arc<Tally>,
    /// What became of notifications.
    pub notices: Arc<Notices>,
}

/// What connects the engine to the world around it.
pub struct Wires {
    /// Notifications, subscribed to before the first look.
    pub changes: Changes,
    /// Requests from the API.
    pub commands: mpsc::Receiver<Command>,
    /// Requests to read everything again (SIGHUP).
    pub reload: mpsc::Receiver<()>,
    /// Resolves when the loop shall end.
    pub stop: oneshot::Receiver<()>,
}

/// The engine.
pub struct Engine {
    origin: Origin,
    router: Router<Linux>,
    recorder: Recorder,
    /// Samples since the last published status.
    batch: Batch,
    /// How busy each endpoint of a declared bandwidth is.
    loads: BTreeMap<Name, (Option<Use>, Meter)>,
    active: Option<Active>,
    gate: gate::Gate,
    revisions: Revisions,
    /// What is written down of the revisions.
    written: String,
    hooks: Arc<Tally>,
    reports: Arc<Tally>,
    notices: Arc<Notices>,
    /// What an earlier process left to tell.
    notes: Vec<Note>,
    reader: reader::Reader,
    monitor: Monitor,
    selection: Selection,
    overrides: Overrides,
    /// When the rules have to be asked again although nothing new was measured.
    next_decision: Option<Instant>,
    prober: Prober,
    samples: mpsc::Receiver<Sample>,
    observed: Observed,
    flows: BTreeMap<u32, u64>,
    probes: BTreeMap<Name, Counts>,
    /// The last change of each rule.
    changes: BTreeMap<Name, Transition>,
    last: Option<ReconcileStatus>,
    change: Option<ReconcileStatus>,
    drift: drift::Books,
    totals: Totals,
    alarms: Alarms,
    started: clock::Wall,
    timers: Timers,
    forgetting: forget::Forgetting,
    /// Flows are being counted.
    counting: Option<JoinHandle<Result<BTreeMap<u32, u64>, KernelError>>>,
    status: watch::Sender<Arc<Status>>,
}

/// What a person should look at, by origin.
#[derive(Debug, Default)]
struct Alarms {
    start: Vec<String>,
    kernel: Option<String>,
    /// What the kernel refuses of what is in force.
    refused: Option<String>,
    journal: Option<String>,
}

/// When the loop has to do something by itself.
#[derive(Debug)]
struct Timers {
    pass: Option<Instant>,
    publish: Instant,
    count: Instant,
    audit: Instant,
    source: Instant,
    retry: Duration,
    /// The place among those to look at where the next look at sysctls begins.
    sysctl: usize,
    /// When results of probes were taken in last, if there were any.
    caught_up: Instant,
}

impl Timers {
    fn new(now: Instant) -> Self {
        Self {
            pass: Some(now),
            publish: now,
            count: now,
            audit: now + AUDIT,
            source: now,
            retry: RETRY,
            sysctl: 0,
            caught_up: now,
        }
    }

    fn pass_at(&mut self, at: Instant) {
        self.pass = Some(self.pass.map_or(at, |old| old.min(at)));
    }
}

/// Why the loop ended although nobody told it to: a path that nobody probes is never left.
#[derive(Debug, thiserror::Error)]
#[error("the thread that probes has ended, and no path is watched any more")]
pub struct Unwatched;

/// Who wakes the loop.
enum Wake {
    Stop,
    Kernel(KernelEvent),
    Sample(Sample),
    /// The thread that probes has ended.
    Unwatched,
    Source,
    Reading(reader::Reading),
    Forgotten(Vec<forget::Forget>, Forgotten),
    Command(Command),
    Time,
}

impl Engine {
    /// Makes an engine; nothing happens before [`Engine::run`].
    pub fn new(parts: Parts) -> Result<Self, ProbeError> {
        let (sender, samples) = mpsc::channel(WAITING);
        let now = clock::now();
        let (revisions, notes) = revise::remembered(&parts.router.ledger);
        let blank = publish::blank(&parts.origin);
        Ok(Self {
            selection: parts.router.remembered_selection().unwrap_or_default(),
            overrides: Overrides::default(),
            next_decision: None,
            origin: parts.origin,
            router: parts.router,
            batch: parts.recorder.batch(),
            loads: BTreeMap::new(),
            recorder: parts.recorder,
            active: None,
            gate: gate::Gate::new(parts.rules, now),
            revisions,
            written: String::new(),
            hooks: parts.hooks,
            reports: parts.reports,
            notices: parts.notices,
            notes,
            reader: reader::Reader::default(),
            monitor: Monitor::default(),
            prober: Prober::with_clock(sender, parts.clock_synchronised)?,
            samples,
            observed: Observed::default(),
            flows: BTreeMap::new(),
            probes: BTreeMap::new(),
            changes: BTreeMap::new(),
            last: None,
            change: None,
            drift: drift::Books::default(),
            totals: Totals::default(),
            alarms: Alarms { start: parts.alarms, ..Alarms::default() },
            started: clock::wall(),
            timers: Timers::new(now),
            forgetting: forget::Forgetting::default(),
            counting: None,
            status: watch::Sender::new(Arc::new(blank)),
        })
    }

    /// The published status.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    /// Adds alarms that stand for as long as the daemon runs.
    pub fn alarm_at_start(&mut self, alarms: Vec<String>) {
        self.alarms.start.extend(alarms);
    }

    /// Runs until told to stop, or until nobody probes any more: then another process has to. The data plane stays as it
    /// is when it ends.
    pub async fn run(mut self, mut wires: Wires) -> Result<(), Unwatched> {
        let mut watcher = self.origin.watcher();
        self.event("daemon", "", format!("started, version {}", env!("CARGO_PKG_VERSION")), Value::Null);
        let notes = std::mem::take(&mut self.notes);
        self.tell("source", notes);
        self.recall_orders();
        self.start_from_last_good();
        self.recall_doubt();
        self.recall_health();
        let ended = loop {
            self.on_time(&mut watcher).await;
            match self.wake(&mut wires, &mut watcher).await {
                Wake::Stop => break Ok(()),
                Wake::Unwatched => break Err(Unwatched),
                Wake::Kernel(event) => self.on_kernel(event, &mut wires.changes).await,
                Wake::Sample(sample) => self.on_sample(sample).await,
                Wake::Source => self.read_source_at(clock::now()),
                Wake::Reading(reading) => self.on_reading(reading, &watcher).await,
                Wake::Forgotten(asked, forgotten) => self.forgotten(&asked, forgotten, clock::now()),
                Wake::Command(command) => self.on_command(command).await,
                Wake::Time => {}
            }
        };
        self.forget_at_the_end(clock::now()).await;
        match &ended {
            Ok(()) => self.event("daemon", "", "stopped; the data plane stays as it is".into(), Value::Null),
            Err(error) => self.warning("daemon", "", format!("{error}; the data plane stays as it is"), Value::Null),
        }
        self.router.remember_selection(&self.selection);
        self.keep_health();
        // What could not be written has been told.
        let _ = self.router.ledger.settle();
        self.recorder.samples(self.batch.take());
        if !self.recorder.flush(Duration::from_secs(2)) {
            tracing::warn!("the last records could not be written in time");
        }
        ended
    }

    async fn wake(&mut self, wires: &mut Wires, watcher: &mut Watcher) -> Wake {
        let wait = self.next_wake().since(clock::now());
        tokio::select! {
            biased;
            _ = &mut wires.stop => Wake::Stop,
            event = wires.changes.next() => Wake::Kernel(event),
            sample = self.samples.recv() => sample.map_or(Wake::Unwatched, Wake::Sample),
            Some(()) = wires.reload.recv() => Wake::Source,
            Some(command) = wires.commands.recv() => Wake::Command(command),
            reading = self.reader.done() => Wake::Reading(reading),
            (asked, forgotten) = self.forgetting.done() => Wake::Forgotten(asked, forgotten),
            () = watcher.changed() => Wake::Source,
            () = tokio::time::sleep(wait) => Wake::Time,
        }
    }

    fn next_wake(&self) -> Instant {
        let t = &self.timers;
        let health = self.monitor.poll_timeout();
        let gate = self.gate.next_wake(clock::now());
        let optional = [t.pass, self.next_decision, health.map(|(at, _)| at), self.forgetting.next(), gate];
        optional.into_iter().flatten().fold(t.publish.min(t.count).min(t.audit).min(t.source), Instant::min)
    }

    /// Does whatever is due.
    async fn on_time(&mut self, watcher: &mut Watcher) {
        let now = clock::now();
        self.catch_up(now);
        self.monitor.handle_timeout(now);
        self.expire_orders(now);
        self.decide(now).await;
        self.forgetting.begin(now);
        self.watch_trial(now);
        if self.timers.source <= now {
            watcher.refresh();
            self.read_source(watcher, now);
        }
        if self.timers.audit <= now {
            self.keep_health();
            self.timers.pass_at(now);
        }
        if self.timers.pass.is_some_and(|at| at <= now) {
            self.pass().await;
        }
        if self.timers.count <= now {
            self.timers.count = now + COUNT;
            self.count();
        }
        if self.timers.publish <= now {
            self.look_at_sysctls(now);
            self.tend_revisions();
            // What could not be written has an alarm.
            let _ = self.router.ledger.settle();
            self.look_around(now);
            self.publish();
        }
    }

    /// Takes in the results of probes that wait, before any path is judged by the time that has passed. Whoever was held
    /// up, as by a long pass, must not call the prober silent.
    fn catch_up(&mut self, now: Instant) {
        while let Ok(sample) = self.samples.try_recv() {
            self.take_sample(&sample, now);
        }
        let deaf = now.since(std::mem::replace(&mut self.timers.caught_up, now));
        if deaf > HELD_UP {
            self.monitor.excuse(deaf, now);
        }
    }

    /// Takes in all that the kernel has announced by now, and asks for one pass: an apply of many objects is announced
    /// with as many messages, and a pass for every few of them goes on for minutes.
    async fn on_kernel(&mut self, first: KernelEvent, changes: &mut Changes) {
        let now = clock::now();
        let (mut pass, mut linked) = (false, None);
        let more = std::iter::from_fn(|| changes.ready()).take(BURST);
        for event in std::iter::once(first).chain(more) {
            pass |= !matches!(event, KernelEvent::Touched(_));
            match event {
                KernelEvent::Link { name, up, carrier } => {
                    if !up {
                        self.interface_failed(&name, now);
                    }
                    self.link_changed(&name, up, carrier, now);
                    linked = Some(linked.unwrap_or_default() || up && carrier);
                }
                KernelEvent::Touched(touch) => self.note_touch(touch),
                KernelEvent::Changed(_) => {}
                KernelEvent::AddressGone { link } => link.iter().for_each(|link| self.interface_failed(link, now)),
                KernelEvent::Lost => {
                    self.notifications_lost();
                    tracing::warn!("kernel notifications were lost; looking at everything");
                }
            }
        }
        if let Some(came_up) = linked {
            self.decide(now).await;
            if came_up && self.origin.is_remote() && self.revisions.trouble().is_some() {
                self.read_source_at(now + LINK_SETTLES);
            }
        }
        if pass {
            self.timers.pass_at(now + DEBOUNCE);
        }
    }

    async fn on_sample(&mut self, first: Sample) {
        let now = clock::now();
        let mut next = Some(first);
        while let Some(sample) = next {
            self.take_sample(&sample, now);
            next = self.samples.try_recv().ok();
        }
        self.decide(now).await;
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Reconcile { reply } => {
                self.end_truces();
                self.reader.waiting.push(reply);
                self.read_source_at(clock::now());
            }
            // Whoever asked may have gone away.
            Command::Confirm { who, reply } => drop(reply.send(self.confirm(&who))),
            Command::Rollback { who, to, within, reply } => drop(reply.send(self.rollback(&who, to, within).await)),
            Command::Order { order, who, reply } => self.on_order(order, &who, reply).await,
            Command::Probe { path, reply } => drop(reply.send(self.spec_by_hand(&path))),
            Command::Fetch => self.read_source_at(clock::now()),
            Command::Source { command, who, reply } => self.on_source_command(command, &who, reply),
        }
    }

    fn read_source_at(&mut self, at: Instant) {
        self.reader.again |= self.reader.is_busy();
        self.timers.source = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        state::Ranges,
        store::{Ledger, Limits},
        validate,
    };

    /// How the loop ends in an empty network namespace when it is told to stop, if the prober is still alive.
    async fn ended(dead: bool) -> Result<(), Unwatched> {
        let (dir, ranges) = (tempfile::tempdir().unwrap(), Ranges::default());
        let changes = Linux::subscribe(&ranges).unwrap();
        let source = Whence::Dir(dir.path().join("none"));
        let parts = Parts {
            origin: Origin { site: "hub".parse().unwrap(), source, options: validate::Options::default() },
            router: Router::new(Linux::connect().unwrap(), Ledger::memory(), ranges),
            recorder: Recorder::start(dir.path(), Limits::default()),
            rules: Rules::default(),
            alarms: Vec::new(),
            clock_synchronised: false,
            hooks: Arc::default(),
            reports: Arc::default(),
            notices: Arc::default(),
        };
        let mut engine = Engine::new(parts).unwrap();
        let (_commands, commands) = mpsc::channel(1);
        let (_reload, reload) = mpsc::channel(1);
        let (end, stop) = oneshot::channel();
        let mut end = Some(end);
        if dead {
            // A thread that has died has dropped its end of the channel.
            engine.samples = mpsc::channel(1).1;
        } else {
            end.take().into_iter().for_each(|end| end.send(()).unwrap());
        }
        tokio::time::timeout(Duration::from_secs(30), engine.run(Wires { changes, commands, reload, stop }))
            .await
            .expect("the loop ends")
    }

    #[test]
    fn a_prober_that_has_died_ends_the_daemon_with_an_error() {
        let inside = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            [true, false].map(|dead| runtime.block_on(ended(dead)).is_err())
        };
        assert_eq!(std::thread::spawn(inside).join().unwrap(), [true, false]);
    }
}
