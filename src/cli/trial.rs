//! A person's change on trial: written down, watched over by a process of its own, confirmed or undone.
//!
//! Invariant: whoever is cut off by his own change needs to do nothing. The watcher has a session of its own and ends
//! with the confirmation or with the undo, and with nothing else that happens to the terminal. If it is told to end
//! (a log-out that ends all processes of a session, a shutdown), it undoes the change first.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::unix::pipe::Receiver,
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use super::{
    Exit, Failure, Outcome,
    context::{self, RouterArgs},
    plan::{self, Made},
};
use crate::{
    apply, clock,
    engine::{
        Active, ReconcileOutcome,
        router::{Planned, Router},
        told,
    },
    guard::{Deadline, Due, Phase, Unconfirmed, Who, gate::Baseline},
    kernel::{
        linux::Linux,
        lock::{Lock, LockError},
    },
    plan::text,
    settings::Settings,
    store::{LastGood, Ledger, NewGeneration, Standing},
    validate::intent::Site,
};

/// How long a person's change waits, unless something else is said.
pub const TIMEOUT: Duration = Duration::from_secs(600);
/// How often the watcher looks.
const LOOK: Duration = Duration::from_millis(500);
/// The longest wait between two attempts to undo a change.
const LONGEST: Duration = Duration::from_secs(30);
/// How long it may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who runs this command.
pub fn me() -> Who {
    let uid = nix::unistd::Uid::current();
    let user = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    Who::Person { uid: uid.as_raw(), user, sudo_user: std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty()) }
}

/// Writes a plan down before its first step; with a timeout, it is on trial from here on.
pub fn write_down(router: &Router<Linux>, made: &Made, timeout: Duration) -> Unconfirmed {
    let (who, Made { active, report, observed, .. }) = (me(), made);
    let lost = || observed.stamp.is_some().then(|| Unconfirmed::LOST.to_owned());
    let new = NewGeneration {
        generation: report.generation.to,
        revision: &active.revision,
        at: clock::wall(),
        who: &who,
        plan: &anstream::adapter::strip_str(&text::render(report, false)).to_string(),
        document: &serde_json::to_string(report).unwrap_or_else(|_| "null".into()),
        standing: if timeout.is_zero() { Standing::Applied } else { Standing::Unconfirmed },
        files: &active.files,
    };
    let mut change = Unconfirmed {
        record: 0,
        generation: report.generation.to,
        revision: active.revision.clone(),
        previous: router.ledger.last_good().map(|good| good.revision).or_else(lost),
        who: who.clone(),
        deadline: Deadline::after(timeout, apply::place(), clock::now(), clock::wall()),
        phase: Phase::Applying,
        baseline: Baseline::default(),
    };
    router.ledger.add_generation(&new, &mut change);
    change
}

/// The steps ran: the time begins now.
pub fn begin(router: &Router<Linux>, change: &mut Unconfirmed, timeout: Duration) {
    change.deadline = Deadline::after(timeout, apply::place(), clock::now(), clock::wall());
    change.phase = Phase::Waiting;
    router.ledger.set_unconfirmed(change);
}

/// The change stands: what it brought is what the next start begins with.
pub fn stands(router: &Router<Linux>, change: &Unconfirmed, why: &str) -> Result<(), Failure> {
    let good = router.ledger.in_force().map(|good| LastGood { at: clock::wall(), ..good });
    router.ledger.confirm(change, Standing::Confirmed, why, good);
    written(router, || {
        let left = change.deadline.at.since(clock::now()).as_secs();
        format!(
            "generation {} is NOT confirmed: that could not be written down\n  \
             look at the space and the rights of the state directory, and confirm again within {left} s",
            change.generation
        )
    })
}

/// What a person is told must be in the journal when the command ends: nobody tries again then.
pub fn written(router: &Router<Linux>, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    router.ledger.flush().map_err(|error| {
        let (text, why) = (otherwise(), error.chain());
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        Failure::new(Exit::Error, format!("{first}: {why}\n{rest}"))
    })
}

/// Puts in force again what was in force before the change, by the ordinary plan against the kernel as it is now.
pub async fn go_back(router: &mut Router<Linux>, settings: &Settings, change: &Unconfirmed, reason: &str) -> Outcome {
    let active = match before(router, settings, change) {
        Ok(active) => active,
        Err(why) => return Err(no_way_back(router, settings, change, reason, &why)),
    };
    let undone = router.ledger.in_force().and_then(|kept| context::again(settings, kept).ok()).map(|kept| kept.site);
    let (planned, site, revision) = plan_back(router, active.as_ref(), undone.as_deref()).await?;
    let report = router.apply(&planned, site.as_deref(), &revision).await;
    match told(&report.outcome) {
        (ReconcileOutcome::Applied | ReconcileOutcome::Unchanged, _) => {
            router.ledger.settle_unconfirmed(change, Standing::RolledBack, reason);
            router.ledger.audit(&me(), "rollback", &format!("generation {}: {reason}", change.generation));
            written(router, || {
                let number = change.generation;
                format!(
                    "generation {number} is undone, but that could not be written down\n  it will be undone once more"
                )
            })?;
            Ok(Exit::Done)
        }
        (_, message) => {
            let text = format!("{reason}; going back failed: {}", message.unwrap_or_default());
            router.ledger.end_generation(change.record, Standing::RollbackFailed, &text);
            let text =
                format!("ROLLBACK FAILED, look at once: generation {} could not be undone: {text}", change.generation);
            Err(Failure::new(Exit::Error, text))
        }
    }
}

/// What comes back; none if nothing was there. The error says why what was there cannot be used.
fn before(router: &Router<Linux>, settings: &Settings, change: &Unconfirmed) -> Result<Option<Active>, String> {
    let Some(previous) = &change.previous else { return Ok(None) };
    let good =
        router.ledger.last_good().ok_or_else(|| format!("revision {previous} is not in the journal any more"))?;
    context::again(settings, good).map(Some).map_err(|failure| failure.message)
}

/// What was before cannot be used any more. That is no reason to tear down what the router works with: it stays, and
/// the next start begins with it.
fn no_way_back(router: &Router<Linux>, settings: &Settings, change: &Unconfirmed, reason: &str, why: &str) -> Failure {
    let kept = router.ledger.in_force().filter(|_| change.phase == Phase::Waiting);
    if let Some(kept) = kept.filter(|kept| context::again(settings, kept.clone()).is_ok()) {
        router.ledger.set_last_good(&LastGood { at: clock::wall(), ..kept });
    }
    let text = format!(
        "generation {} (revision {}) was to be undone ({reason}), but there is no way back: {why}; what is in the kernel \
         stays",
        change.generation, change.revision
    );
    router.ledger.settle_unconfirmed(change, Standing::RollbackFailed, &text);
    router.ledger.audit(&me(), "rollback", &format!("FAILED: {text}"));
    Failure::new(Exit::Error, format!("ROLLBACK FAILED, look at once: {text}\n  apply a configuration that works"))
}

async fn plan_back(
    router: &Router<Linux>,
    active: Option<&Active>,
    undone: Option<&Site>,
) -> Result<(Planned, Option<Arc<Site>>, String), Failure> {
    let site = active.map(|active| Arc::clone(&active.site));
    let failed = |e: &dyn std::error::Error| Failure::error("cannot plan the way back", e);
    let observed = router.observe(site.as_deref()).await.map_err(|e| failed(&e))?;
    let Some(active) = active else { return Ok((router.plan_teardown(&observed), None, "none".into())) };
    let selection = context::selection(&context::Memory::of(router), active);
    let mut planned = router.plan(&active.site, &selection, &observed).await.map_err(|e| failed(&e))?;
    plan::forget_translated(&mut planned, undone, &active.site, router);
    Ok((planned, site, active.revision.clone()))
}

/// Settles a change of an earlier process whose time is over; gives the one that waits still.
pub async fn settle(router: &mut Router<Linux>, settings: &Settings) -> Result<Option<Unconfirmed>, Failure> {
    let Some(change) = router.ledger.unconfirmed() else { return Ok(None) };
    match change.due(&apply::place(), clock::now()) {
        Due::In(_) => return Ok(Some(change)),
        Due::Elsewhere => {
            let reason = "the machine went down before it was confirmed";
            router.ledger.settle_unconfirmed(&change, Standing::RolledBack, reason);
            tracing::warn!("generation {} is gone: {reason}", change.generation);
        }
        Due::Now => {
            match go_back(router, settings, &change, why(&change)).await {
                // It is settled all the same: whoever comes next may mend it.
                Err(failure) if router.ledger.unconfirmed().is_none() => tracing::error!("{}", failure.message),
                ended => {
                    ended?;
                    tracing::warn!("generation {} was undone: {}", change.generation, why(&change));
                }
            }
        }
    }
    Ok(None)
}

const fn why(change: &Unconfirmed) -> &'static str {
    match change.phase {
        Phase::Applying => "whoever applied it ended before it was in force",
        Phase::Waiting => "nobody confirmed it in time",
    }
}

/// What a second change is told.
pub fn busy(change: &Unconfirmed) -> Failure {
    let left = change.deadline.at.since(clock::now()).as_secs();
    let text = format!(
        "{}, {left} s from now; until then nothing else is applied\n  \
         patronus confirm    it stands\n  patronus rollback   it is undone now",
        change.line()
    );
    Failure::new(Exit::Busy, text)
}

/// Starts the watcher; it is ready when this returns. It lives on when this process does not.
pub async fn watcher(lock: &Lock, settings: &Settings, config: Option<&Path>) -> Result<Child, Failure> {
    let failed = |e: &dyn std::error::Error| Failure::error("cannot start the process that would undo the change", e);
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut command = Command::new("/proc/self/exe");
    command.arg("watch-confirmation").current_dir("/");
    command.arg("--state-dir").arg(absolute(&settings.state_dir));
    command.arg("--runtime-dir").arg(absolute(&settings.runtime_dir));
    command.args(settings.site.iter().flat_map(|site| ["--site", site.as_str()]));
    command.args(config.into_iter().flat_map(|file| [PathBuf::from("--config"), absolute(file)]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = lock.apart(|| command.spawn()).map_err(|e| failed(&e))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let ready = tokio::time::timeout(PATIENCE, BufReader::new(stdout).read_line(&mut line)).await;
        ready.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    }
    if line.trim() == "ready" {
        return Ok(child);
    }
    let text = "the process that would undo the change did not start; nothing was changed\n  \
                `--confirm-timeout 0s` applies without it";
    Err(Failure::new(Exit::Error, text))
}

/// Undo a change that nobody confirms
#[derive(Debug, Clone, clap::Args)]
pub struct WatchArgs {
    #[command(flatten)]
    router: RouterArgs,
}

/// Runs the watcher.
pub async fn watch(args: WatchArgs) -> Outcome {
    // It is no leader of a process group, since whoever started it has not made it one.
    let _ = nix::unistd::setsid();
    let on = |kind| signal(kind).map_err(|e| Failure::error("cannot handle signals", &e));
    let (mut hangup, mut interrupt) = (on(SignalKind::hangup())?, on(SignalKind::interrupt())?);
    let mut term = on(SignalKind::terminate())?;
    let settings = context::settings(&args.router, None)?;
    let mut ledger = context::ledger(&settings);
    println_ready();
    let mut parent = parent().map_err(|e| Failure::error("cannot watch the process that applies", &e))?;
    let (mut orphan, mut told, mut kept) = (false, false, None);
    let (mut next, mut pause) = (clock::now(), LOOK);
    let mut byte = [0_u8; 1];
    loop {
        let known = kept.is_some();
        match look(&mut ledger, &mut kept) {
            None if known || orphan => return Ok(Exit::Done),
            Some(change) if (told || is_over(&change, orphan)) && clock::now() >= next => {
                match undo(&settings, told).await {
                    Ok(true) => return Ok(Exit::Done),
                    Ok(false) => {}
                    // There is no way back, and that is written down.
                    Err(failure) if ledger.unconfirmed().is_none() => return Err(failure),
                    Err(failure) => {
                        ledger.audit(&me(), "rollback", &failure.message);
                        (next, pause) = (clock::now() + pause, (pause * 2).min(LONGEST));
                    }
                }
            }
            _ => {}
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = parent.read(&mut byte), if !orphan => orphan = true,
            _ = term.recv() => told = true,
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// What is known of a change even when the journal that held it is lost.
struct Kept {
    change: Unconfirmed,
    before: Option<LastGood>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Kept {
    fn of(ledger: &Ledger, change: Unconfirmed) -> Self {
        let files = ledger.in_force().map(|shown| shown.files).unwrap_or_default();
        Self { change, before: ledger.last_good(), files }
    }
}

/// The change that waits. A journal that is lost meanwhile, deleted or written over, is begun anew with it: that nobody
/// can read of a change any more is no way out of its undo.
fn look(ledger: &mut Ledger, kept: &mut Option<Kept>) -> Option<Unconfirmed> {
    let found = ledger.unconfirmed();
    // Whoever settled it did so in the file that this process has open, deleted or not, unless nothing can be read there.
    let settled = found.is_none() && ledger.last_good().is_some();
    match (&found, kept.as_mut()) {
        (Some(change), Some(known)) => known.change.clone_from(change),
        (Some(change), None) => *kept = Some(Kept::of(ledger, change.clone())),
        (None, _) => {}
    }
    let (Some(known), Some(told)) = (kept, ledger.tend().filter(|_| !settled)) else { return found };
    if let Some(change) = ledger.unconfirmed() {
        // A daemon has done so.
        return Some(change);
    }
    ledger.add_trial_again(&mut known.change, known.before.as_ref(), &known.files);
    ledger.audit(&me(), "journal", &told);
    Some(known.change.clone())
}

/// Whether nobody can confirm a change any more.
fn is_over(change: &Unconfirmed, orphan: bool) -> bool {
    match change.phase {
        Phase::Applying => orphan,
        Phase::Waiting => !matches!(change.deadline.due(&apply::place(), clock::now()), Due::In(_)),
    }
}

/// Ends when whoever started this one has ended.
fn parent() -> std::io::Result<Receiver> {
    use std::os::fd::AsFd as _;
    Receiver::from_owned_fd(std::io::stdin().as_fd().try_clone_to_owned()?)
}

fn println_ready() {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    // Whoever waited for this and is gone will not be missed.
    let _ = out.write_all(b"ready\n").and_then(|()| out.flush());
}

/// Undoes the change, unless somebody else holds the router: a daemon, or the next command, settles it by itself.
async fn undo(settings: &Settings, told: bool) -> Result<bool, Failure> {
    let _lock = match Lock::acquire(&settings.runtime_dir, "rollback") {
        Ok(lock) => lock,
        Err(LockError::Busy { .. }) => return Ok(false),
        Err(error) => return Err(Failure::error("cannot take the lock of this router", &error)),
    };
    let mut router = Router::new(context::kernel()?, context::ledger(settings), settings.ranges);
    context::recover(&mut router).await?;
    let Some(change) = router.ledger.unconfirmed() else { return Ok(true) };
    let reason = if told { "the process that watched over it was told to end" } else { why(&change) };
    go_back(&mut router, settings, &change, reason).await?;
    Ok(true)
}
