//! `patronus run`: the daemon.

use std::{path::PathBuf, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};

use super::{
    Exit, Failure, Outcome,
    context::{self, RouterArgs},
};
use crate::{
    api::{self, ApiState, Listen},
    engine::{
        Engine, Parts, Wires,
        router::Router,
        status::{Status, Tally},
    },
    forge::Reporter,
    guard::Rules,
    kernel::linux::Linux,
    notify::{Notices, Notifier},
    probe::Reflector,
    revision::{Condition, ConditionType, Truth},
    settings::{Settings, Source},
    source::git::read_secret,
    store::{Limits, Recorder},
};

/// A webhook's secret that can be guessed is none.
const SHORTEST_SECRET: usize = 16;
/// A status older than this means that the loop hangs; it is published every second.
const MAX_AGE: Duration = Duration::from_secs(15);

/// Run the daemon: watch, reconcile, probe, fail over, record, serve
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Configuration to use instead of the settings' source
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    router: RouterArgs,
}

/// Runs the verb until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Outcome {
    let settings = context::settings(&args.router, args.dir)?;
    let origin = context::origin(&settings)?;
    let kernel = context::kernel()?;
    context::privilege("run")?;
    let _lock = context::lock(&settings, "run")?;
    let changes =
        Linux::subscribe(&settings.ranges).map_err(|e| context::from_kernel("cannot watch the kernel", &e))?;
    let (ledger, alarm) = crate::store::Ledger::open(&settings.state_dir);
    ledger.forget_removed(crate::clock::wall().before(settings.retention));
    let mut router = Router::new(kernel, ledger, settings.ranges).treating_drift(settings.drift);
    context::recover(&mut router).await?;
    let limits = Limits { retention: settings.retention, ..Limits::default() };
    let recorder = Recorder::start(&settings.state_dir, limits);
    if let Some(alarm) = &alarm {
        tracing::warn!("{alarm}");
    }
    let mut alarms: Vec<String> = alarm.into_iter().collect();
    let (send, commands) = mpsc::channel(16);
    let signals = Signals::new()?;
    let clock_synchronised = settings.clock_synchronised;
    let (hooks, reports) = (Arc::new(Tally::default()), Arc::new(Tally::default()));
    let notices = Arc::new(Notices::default());
    let parts = Parts {
        origin,
        router,
        recorder: recorder.clone(),
        rules: rules(&settings),
        alarms: Vec::new(),
        clock_synchronised,
        hooks: Arc::clone(&hooks),
        reports: Arc::clone(&reports),
        notices: Arc::clone(&notices),
    };
    let notifier = Notifier::start(&parts.origin.site, &settings.notify, &recorder, &notices);
    let mut engine =
        Engine::new(parts).map_err(|e| Failure { exit: Exit::Privilege, ..Failure::error("cannot probe", &e) })?;
    let state = ApiState { status: engine.status(), commands: send, records: recorder, max_age: MAX_AGE };
    let reflector = reflector(&settings, &mut alarms);
    let hook = webhook(&settings, state.commands.clone(), hooks, &mut alarms).await;
    let reporter = reporter(&settings, engine.status(), reports, &mut alarms);
    let listeners = listen(&settings, state, &mut alarms).await;
    engine.alarm_at_start(alarms);
    let supervisor = tokio::spawn(supervise(engine.status()));
    let (reload, stop) = signals.spawn();
    let ended = engine.run(Wires { changes, commands, reload, stop }).await;
    supervisor.abort();
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    drop((listeners, reflector, hook, reporter, notifier));
    ended.map(|()| Exit::Done).map_err(|e| Failure::error("the daemon ends, to be started again", &e))
}

/// The settings' rules for changes; the Git remote has to be reachable afterwards as well.
fn rules(settings: &Settings) -> Rules {
    let mut rules = settings.guard.clone();
    if let Some(Source::Git(spec)) = &settings.source
        && spec.url.port != 0
    {
        let host = &spec.url.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        rules.confirm.reach.push(format!("{host}:{}", spec.url.port));
    }
    rules
}

/// Answers STAMP, if the settings say so. A port that is taken is an alarm: the routing goes on.
fn reflector(settings: &Settings, alarms: &mut Vec<String>) -> Option<Reflector> {
    let at = settings.stamp?;
    let told = |error| alarms.push(Failure::error(format!("cannot answer STAMP at {at}"), &error).message);
    Reflector::start(at, settings.clock_synchronised).map_err(told).ok()
}

/// Listens for the forge's webhook, if the settings say so. Without it the source is read at its interval.
async fn webhook(
    settings: &Settings,
    commands: mpsc::Sender<api::Command>,
    hooks: Arc<Tally>,
    alarms: &mut Vec<String>,
) -> Option<api::WebhookListener> {
    let hook = settings.webhook.as_ref()?;
    let mut told = |error: &dyn std::error::Error| {
        alarms.push(Failure::error("nobody listens for the webhook", error).message);
        tracing::error!("{}", alarms.last().map_or("", String::as_str));
    };
    let secret = read_secret(&hook.secret).map_err(|error| told(&error)).ok()?;
    if secret.len() < SHORTEST_SECRET {
        alarms.push(format!("nobody listens for the webhook: its secret has fewer than {SHORTEST_SECRET} characters"));
        return None;
    }
    api::webhook(hook.address, secret, commands, hooks).await.map_err(|error| told(&error)).ok()
}

/// Tells the forge what becomes of commits, if the settings say so. Without it everything else goes on.
fn reporter(
    settings: &Settings,
    status: watch::Receiver<Arc<Status>>,
    reports: Arc<Tally>,
    alarms: &mut Vec<String>,
) -> Option<Reporter> {
    let spec = settings.report.clone()?;
    let told = |error| alarms.push(Failure::error("nothing is reported to the forge", &error).message);
    Reporter::start(spec, status, reports).map_err(told).ok()
}

/// Opens the listeners. One that cannot be opened is an alarm: the routing goes on.
async fn listen(
    settings: &Settings,
    state: ApiState,
    alarms: &mut Vec<String>,
) -> (Option<api::ControlSocket>, Option<api::MetricsListener>) {
    let listen = Listen { socket: settings.socket.clone(), group: None, metrics: settings.metrics };
    let mut note = |error: api::ApiError| {
        let text = Failure::error("a listener is missing", &error).message;
        tracing::error!("{text}");
        alarms.push(text);
    };
    let control = api::control(&listen, state.clone()).await.map_err(&mut note).ok();
    let metrics = match listen.metrics {
        Some(address) => api::metrics(address, state).await.map_err(&mut note).ok(),
        None => None,
    };
    (control, metrics)
}

/// Tells systemd that the daemon is ready and alive. The watchdog is fed by published statuses only, so a loop
/// that hangs is restarted.
async fn supervise(mut status: watch::Receiver<Arc<Status>>) {
    let mut ready = false;
    while status.changed().await.is_ok() {
        let now = Arc::clone(&status.borrow_and_update());
        let line = summary(&now);
        let mut news = vec![NotifyState::Status(&line), NotifyState::Watchdog];
        if !ready && has_begun(&now) {
            ready = true;
            news.push(NotifyState::Ready);
        }
        if let Err(error) = sd_notify::notify(&news) {
            tracing::debug!(%error, "systemd cannot be told");
        }
    }
}

/// There is nothing more to wait for: the first pass is done, or none can be before somebody acts.
fn has_begun(status: &Status) -> bool {
    let stalled = |c: &Condition| c.kind == ConditionType::Stalled && c.status == Truth::True;
    status.reconcile.is_some() || !status.source.errors.is_empty() || status.conditions.iter().any(stalled)
}

fn summary(status: &Status) -> String {
    let up = status.paths.values().filter(|p| p.health.state == crate::health::PathState::Up).count();
    let alarms = status.alarms.len() + status.source.errors.len();
    format!(
        "site {}, generation {}, {up} of {} paths up, {alarms} alarms",
        status.site,
        status.generation,
        status.paths.len()
    )
}

struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| Failure::error("cannot handle signals", &e));
        Ok(Self {
            term: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// Requests to reload (SIGHUP) and the one to stop (SIGTERM, SIGINT).
    fn spawn(mut self) -> (mpsc::Receiver<()>, oneshot::Receiver<()>) {
        let (reload_to, reload) = mpsc::channel(1);
        let (stop_to, stop) = oneshot::channel();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = self.term.recv() => break,
                    _ = self.interrupt.recv() => break,
                    // One waiting reload is enough.
                    _ = self.hangup.recv() => drop(reload_to.try_send(())),
                }
            }
            // The engine may have ended by itself.
            let _ = stop_to.send(());
        });
        (reload, stop)
    }
}
