//! `patronus apply` and `patronus teardown`: exactly what the plan said, or nothing.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Exit, Failure, Outcome,
    context::{self, Memory, RouterArgs},
    plan::{self, Made, Show},
    saved, trial,
};
use crate::{
    apply::Report,
    clock,
    engine::{
        Active, ReconcileOutcome,
        router::{Planned, Router},
        told,
    },
    guard::{Unconfirmed, rails, window},
    kernel::linux::Linux,
    plan::report::{self, Revisions},
    settings::Settings,
    store::Standing,
    units::{Span, plural},
};

/// Change this router's kernel to what the configuration wants
#[derive(Debug, Clone, clap::Args)]
pub struct ApplyArgs {
    /// Configuration to use instead of the settings' source, or a plan that `plan --out` saved
    #[arg(value_name = "DIR or PLANFILE")]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    show: Show,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Do everything up to the first step
    #[arg(long)]
    dry_run: bool,
    /// Undo the change unless `patronus confirm` comes within this time; `0s` does not ask for one [default: 600s at a
    /// terminal, else 0s]
    #[arg(long, value_name = "D")]
    confirm_timeout: Option<Span>,
    /// That most of what is there goes away is meant
    #[arg(long)]
    allow_large: bool,
    /// Apply outside of the change windows, for this reason
    #[arg(long, value_name = "REASON")]
    now: Option<String>,
}

/// Remove everything that is ours from this router's kernel, and nothing else
#[derive(Debug, Clone, clap::Args)]
pub struct TeardownArgs {
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    show: Show,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// How a change is to be made.
pub struct Order {
    /// How the plan is printed.
    pub show: Show,
    /// Nobody is asked.
    pub yes: bool,
    /// Nothing is changed.
    pub dry_run: bool,
    /// How long it may wait for its confirmation.
    pub timeout: Option<Span>,
    /// That it is large is meant.
    pub allow_large: bool,
    /// Why it is made outside of the change windows.
    pub now: Option<String>,
    /// The plan that it has to be.
    pub saved: Option<saved::Opened>,
    /// Who signed that plan.
    pub approver: Option<String>,
}

impl Order {
    /// The ordinary way.
    #[must_use]
    pub const fn new(show: Show, yes: bool) -> Self {
        Self { show, yes, dry_run: false, timeout: None, allow_large: false, now: None, saved: None, approver: None }
    }

    /// A person at a terminal confirms; a script that nobody follows would see its change go long after it ended.
    pub fn timeout(&self) -> Duration {
        let default = if io::stdin().is_terminal() { trial::TIMEOUT } else { Duration::ZERO };
        self.timeout.map_or(default, Span::get)
    }
}

/// Runs `apply`.
pub async fn apply(args: ApplyArgs) -> Outcome {
    let saved = saved::open(args.dir.as_deref())?;
    let dir = match &saved {
        Some(opened) => opened.saved.binding.directory.clone().map(PathBuf::from),
        None => args.dir,
    };
    let mut settings = context::settings(&args.router, dir)?;
    let mut approver = None;
    if let Some(opened) = &saved {
        saved::adopt(&opened.saved, &mut settings)?;
        approver = saved::approver(opened, &settings)?;
    }
    let active = context::configuration(&settings).await?;
    context::signed(&active)?;
    let order = Order {
        saved,
        approver,
        dry_run: args.dry_run,
        timeout: args.confirm_timeout,
        allow_large: args.allow_large,
        now: args.now,
        ..Order::new(args.show, args.yes)
    };
    carry_through(&settings, args.router.config.as_deref(), active, order, "apply").await
}

/// From a configuration to a changed kernel: plan, rails, question, steps, confirmation.
pub async fn carry_through(
    settings: &Settings,
    config: Option<&Path>,
    active: Active,
    order: Order,
    verb: &str,
) -> Outcome {
    let kernel = context::kernel()?;
    context::privilege(verb)?;
    let lock = context::lock(settings, verb)?;
    let mut router = Router::new(kernel, context::ledger(settings), settings.ranges).treating_drift(settings.drift);
    context::recover(&mut router).await?;
    if let Some(change) = trial::settle(&mut router, settings).await? {
        return Err(trial::busy(&change));
    }
    let mut made = plan::make(&router, settings, active).await?;
    if let Some(opened) = &order.saved {
        saved::take(&opened.saved, &mut made, settings)?;
    }
    if let Some(approver) = &order.approver {
        tracing::warn!(%approver, "the plan is signed");
    }
    plan::print(&made.report, order.show)?;
    allowed(&router, settings, &made, &order)?;
    let timeout = order.timeout();
    if order.dry_run || (!made.planned.steps.is_empty() && !agreed(order.yes, &question("Apply this plan?", timeout))?)
    {
        return Ok(Exit::Done);
    }
    let mut detail = order.now.as_ref().map(|reason| format!(", outside of the windows: {reason}")).unwrap_or_default();
    detail.extend(order.approver.iter().map(|approver| format!(", a plan signed by {approver}")));
    router.ledger.audit(&trial::me(), verb, &format!("revision {}{detail}", made.active.revision));
    if made.planned.steps.is_empty() || timeout.is_zero() {
        return at_once(&mut router, &made).await;
    }
    on_trial(
        &mut router,
        &made,
        timeout,
        trial::watcher(&lock, &Settings { site: Some(made.active.site.name.clone()), ..settings.clone() }, config),
    )
    .await
}

/// What is asked before a change, with what becomes of it.
#[must_use]
pub fn question(what: &str, timeout: Duration) -> String {
    if timeout.is_zero() {
        return what.to_owned();
    }
    format!("{what} It is undone unless `patronus confirm` comes within {}.", Span::from(timeout))
}

/// The router's own rules: what no change may do, and when none is made.
fn allowed(router: &Router<Linux>, settings: &Settings, made: &Made, order: &Order) -> Result<(), Failure> {
    let failed = |e| context::from_kernel("cannot look at the kernel", &e);
    let ways = router.kernel.ways(&settings.guard.protected.prefixes).map_err(failed)?;
    let old = context::in_force(&Memory::of(router), settings, &made.active);
    let change = rails::Change {
        old: old.as_ref().map(|a| &*a.site),
        new: &made.active.site,
        facts: &made.observed.facts,
        ways: &ways,
    };
    let refusals = rails::check(&change, &settings.guard.protected, settings.guard.limits, order.allow_large);
    if !refusals.is_empty() {
        let lines: Vec<String> = refusals.iter().map(|r| format!("{r} [{}]\n  {}", r.code(), r.remedy())).collect();
        return Err(Failure::new(Exit::Config, format!("nothing was changed: {}", lines.join("\n"))));
    }
    match window::decide(&settings.guard.windows, clock::wall()) {
        Err(closed) if order.now.is_none() && !order.dry_run && !made.planned.steps.is_empty() => {
            let text = format!(
                "this is no time for changes: {closed}\n  --now REASON applies all the same, and the audit keeps the reason"
            );
            Err(Failure::new(Exit::Busy, text))
        }
        _ => Ok(()),
    }
}

/// Without a confirmation.
async fn at_once(router: &mut Router<Linux>, made: &Made) -> Outcome {
    let Made { active, selection, planned, .. } = made;
    let change = (!planned.steps.is_empty()).then(|| trial::write_down(router, made, Duration::ZERO));
    let exit = carry_out(router, planned, Some(&active.site), &active.revision).await;
    match (&exit, change) {
        (Err(failure), Some(change)) => {
            router.ledger.end_generation(change.record, Standing::RolledBack, &failure.message);
        }
        (Ok(_), _) => {
            router.remember_selection(selection);
            router.ledger.set_last_good(&active.as_last_good());
            trial::written(router, || {
                "the change is made, but that could not be written down\n  \
                 look at the space and the rights of the state directory, and apply again: the next start of the daemon \
                 would undo it"
                    .into()
            })?;
        }
        _ => {}
    }
    exit
}

/// With one: whoever undoes it is there before the first step.
async fn on_trial(
    router: &mut Router<Linux>,
    made: &Made,
    timeout: Duration,
    watcher: impl Future<Output = Result<tokio::process::Child, Failure>>,
) -> Outcome {
    // It ends by itself when this process does.
    let _watcher = watcher.await?;
    let mut change = trial::write_down(router, made, timeout);
    // What an older change left must not pass for this one.
    if change.record == 0 || router.ledger.unconfirmed().is_none_or(|known| known.record != change.record) {
        let text = "the state directory cannot be written, so nobody could undo the change; nothing was changed\n  \
                    look at its space and rights, or apply without a safety net: `--confirm-timeout 0s`";
        return Err(Failure::new(Exit::Error, text));
    }
    if let Err(failure) = carry_out(router, &made.planned, Some(&made.active.site), &made.active.revision).await {
        router.ledger.settle_unconfirmed(&change, Standing::RolledBack, &failure.message);
        return Err(failure);
    }
    router.remember_selection(&made.selection);
    trial::begin(router, &mut change, timeout);
    trial::written(router, || {
        "the change is made, but that could not be written down\n  \
         look at the space and the rights of the state directory: the change is undone now"
            .into()
    })?;
    let back = match change.previous.as_deref() {
        None => "what was there before comes back".to_owned(),
        Some(Unconfirmed::LOST) => "it is called failed and stays: no journal tells what was there before".to_owned(),
        Some(revision) => format!("revision {revision} comes back"),
    };
    let text = format!(
        "It stands only if you say so by {:.0}: patronus confirm\nOtherwise, or with `patronus rollback`, {back}.\n",
        change.deadline.wall,
    );
    // The change is made; a closed standard error does not undo it.
    let _ = anstream::stderr().write_all(text.as_bytes());
    Ok(Exit::Done)
}

/// Runs `teardown`.
pub async fn teardown(args: TeardownArgs) -> Outcome {
    let settings = context::settings(&args.router, None)?;
    let kernel = context::kernel()?;
    context::privilege("teardown")?;
    let _lock = context::lock(&settings, "teardown")?;
    let mut router = Router::new(kernel, context::ledger(&settings), settings.ranges);
    context::recover(&mut router).await?;
    if let Some(change) = trial::settle(&mut router, &settings).await? {
        return Err(trial::busy(&change));
    }
    let observed = router.observe(None).await.map_err(|e| context::from_kernel("cannot look at the kernel", &e))?;
    let planned = router.plan_teardown(&observed);
    let inputs = report::Inputs {
        old: None,
        new: None,
        steps: &planned.steps,
        applied: None,
        intruders: &observed.intruders,
        obstacles: &[],
        numbers: &router.numbers(&observed).targets,
        ranges: router.ranges(),
    };
    let revision = Revisions { to: "none".into(), from: None };
    let site = settings.site.clone().unwrap_or_else(context::nameless);
    plan::print(&report::report(&inputs, site, revision, router.generation_of(&observed)), args.show)?;
    if planned.steps.is_empty() || !agreed(args.yes, "Remove all of this?")? {
        return Ok(Exit::Done);
    }
    router.ledger.audit(&trial::me(), "teardown", "everything of ours is removed");
    carry_out(&mut router, &planned, None, "none").await
}

/// Asks, unless told not to. Without a terminal nobody can answer.
pub fn agreed(yes: bool, question: &str) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "nobody can be asked here: add --yes to apply without asking"));
    }
    let mut stderr = anstream::stderr();
    let asked = write!(stderr, "\n{question} Only `yes` is taken for one: ").and_then(|()| stderr.flush());
    asked.map_err(|e| Failure::error("cannot ask", &e))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::error("cannot read the answer", &e))?;
    Ok(answer.trim() == "yes")
}

async fn carry_out(
    router: &mut Router<Linux>,
    planned: &Planned,
    site: Option<&crate::validate::intent::Site>,
    revision: &str,
) -> Outcome {
    let started = clock::now();
    let report = router.apply(planned, site, revision).await;
    let took = clock::now().since(started);
    if let Some(alarm) = &report.alarm {
        tracing::warn!(%alarm, "the journal could not be written; the change went on without it");
    }
    finished(&report, planned, took)
}

fn finished(report: &Report, planned: &Planned, took: std::time::Duration) -> Outcome {
    let (outcome, message) = told(&report.outcome);
    let message = message.unwrap_or_default();
    match outcome {
        ReconcileOutcome::Applied => {
            let flows =
                if report.flows > 0 { format!(", {} forgotten", plural(report.flows, "flow")) } else { String::new() };
            let steps = plural(report.steps, "step");
            let text = format!("Applied: {steps} in {} ms, {}{flows}.\n", took.as_millis(), planned.stamp);
            // The change stands; a closed standard output does not undo it.
            let _ = anstream::stderr().write_all(text.as_bytes());
            Ok(Exit::Done)
        }
        ReconcileOutcome::RolledBack => {
            Err(Failure::new(Exit::Error, format!("rolled back, the old state is in force: {message}")))
        }
        ReconcileOutcome::RollbackFailed => {
            Err(Failure::new(Exit::Error, format!("ROLLBACK FAILED, look at once: {message}")))
        }
        ReconcileOutcome::Unchanged | ReconcileOutcome::Refused => Ok(Exit::Done),
    }
}
