//! `patronus apply` and `patronus teardown`: exactly what the plan said, or nothing.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::PathBuf,
};

use super::{
    Exit, Failure, Outcome,
    context::{self, RouterArgs},
    plan::{self, Made, Show},
    saved,
};
use crate::{
    apply::Report,
    clock,
    engine::{
        ReconcileOutcome,
        router::{Planned, Router},
        told,
    },
    kernel::linux::Linux,
    plan::report::{self, Revisions},
    store::LastGood,
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
    let kernel = context::kernel()?;
    context::privilege("apply")?;
    let _lock = context::lock(&settings, "apply")?;
    let mut router = Router::new(kernel, context::ledger(&settings), settings.ranges).treating_drift(settings.drift);
    context::recover(&mut router).await?;
    let mut made = plan::make(&router, &settings, active).await?;
    if let Some(opened) = &saved {
        saved::take(&opened.saved, &mut made, &settings)?;
    }
    if let Some(approver) = &approver {
        tracing::warn!(%approver, "the plan is signed");
    }
    let Made { active, selection, planned, report, .. } = made;
    plan::print(&report, args.show)?;
    if args.dry_run || (!planned.steps.is_empty() && !agreed(args.yes, "Apply this plan?")?) {
        return Ok(Exit::Done);
    }
    let exit = carry_out(&mut router, &planned, Some(&active.site), &active.revision).await?;
    router.remember_selection(&selection);
    let (revision, files) = (active.revision, active.files);
    router.ledger.set_last_good(&LastGood { revision, at: clock::wall(), files });
    Ok(exit)
}

/// Runs `teardown`.
pub async fn teardown(args: TeardownArgs) -> Outcome {
    let settings = context::settings(&args.router, None)?;
    let kernel = context::kernel()?;
    context::privilege("teardown")?;
    let _lock = context::lock(&settings, "teardown")?;
    let mut router = Router::new(kernel, context::ledger(&settings), settings.ranges);
    context::recover(&mut router).await?;
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
    carry_out(&mut router, &planned, None, "none").await
}

/// Asks, unless told not to. Without a terminal nobody can answer.
fn agreed(yes: bool, question: &str) -> Result<bool, Failure> {
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
            let flows = if report.flows > 0 { format!(", {} flows forgotten", report.flows) } else { String::new() };
            let text =
                format!("Applied: {} steps in {} ms, {}{flows}.\n", report.steps, took.as_millis(), planned.stamp);
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
