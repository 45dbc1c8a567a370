//! `patronus plan`: desired against the live kernel. It changes nothing.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{
    Exit, Failure, Format, Outcome,
    context::{self, Memory, RouterArgs},
    saved, trial,
};
use crate::{
    desired,
    engine::{
        Active,
        router::{PlanError, Planned, Router},
    },
    failover::Selection,
    kernel::{Kernel, linux::Linux},
    plan::{
        report::{self, Report, Revisions, View},
        text,
    },
    settings::Settings,
    state::Observed,
    validate::intent::Site,
};

/// Show what apply would change in this router's kernel
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Configuration to use instead of the settings' source
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    show: Show,
    /// End with 2 if there are changes
    #[arg(long)]
    detailed_exitcode: bool,
    /// Save the plan: `apply FILE` does exactly this, or nothing if anything has moved meanwhile
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Plan for a router that `patronus snapshot` captured, anywhere: no kernel, no privilege
    #[arg(long, value_name = "FILE", conflicts_with = "out")]
    against: Option<PathBuf>,
}

/// How a plan is printed.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Show {
    /// How to print the plan
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    /// Show every line, also of long lists
    #[arg(long)]
    all: bool,
}

/// A plan with what it was made from.
pub struct Made {
    /// The configuration.
    pub active: Active,
    /// The path choice.
    pub selection: Selection,
    /// The steps.
    pub planned: Planned,
    /// What the kernel showed.
    pub observed: Observed,
    /// What they mean.
    pub report: Report,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    if let Some(file) = &args.against {
        let made = against(&args, file).await?;
        return finish(&args, &made);
    }
    let settings = context::settings(&args.router, args.dir.clone())?;
    let active = context::configuration(&settings).await?;
    // Whoever holds the lock settles interrupted changes himself.
    let lock = context::lock(&settings, "plan").ok();
    let ledger = if lock.is_some() { context::existing_ledger } else { context::ledger_to_read };
    let mut router = Router::new(context::kernel()?, ledger(&settings), settings.ranges).treating_drift(settings.drift);
    if lock.is_some() {
        context::recover(&mut router).await?;
        trial::settle(&mut router, &settings).await?;
    }
    drop(lock);
    let made = make(&router, &settings, active).await?;
    if let Some(file) = &args.out {
        saved::write(file, &made, args.dir.as_deref(), &settings)?;
    }
    finish(&args, &made)
}

fn finish(args: &Args, made: &Made) -> Outcome {
    print(&made.report, args.show)?;
    if let Some(file) = &args.out {
        // The plan is saved; a closed standard error takes nothing from it.
        let _ = writeln!(std::io::stderr(), "Saved: `patronus apply {}` does exactly this.", file.display());
    }
    let changes = !made.planned.steps.is_empty();
    Ok(if changes && args.detailed_exitcode { Exit::Changes } else { Exit::Done })
}

/// The plan of a router that was captured.
async fn against(args: &Args, file: &Path) -> Result<Made, Failure> {
    let captured = super::snapshot::read(file)?;
    let mut settings = context::settings(&args.router, args.dir.clone())?;
    settings.ranges = captured.ranges;
    settings.site.get_or_insert_with(|| captured.site.clone());
    let active = context::configuration(&settings).await?;
    if active.site.name != captured.site {
        let text = format!("{} is of site {}, the plan is for {}", file.display(), captured.site, active.site.name);
        return Err(Failure::new(Exit::Usage, text));
    }
    let memory = Memory { selection: captured.selection.clone(), last_good: captured.last_good() };
    make_with(&Router::captured(captured), &memory, &settings, active).await
}

/// Makes a plan for a configuration.
pub async fn make(router: &Router<Linux>, settings: &Settings, active: Active) -> Result<Made, Failure> {
    make_with(router, &Memory::of(router), settings, active).await
}

async fn make_with<K: Kernel>(
    router: &Router<K>,
    memory: &Memory,
    settings: &Settings,
    active: Active,
) -> Result<Made, Failure> {
    let failed = |error: PlanError| match &error {
        PlanError::Kernel(kernel) => context::from_kernel("cannot make a plan", kernel),
        PlanError::Compile(compile) => Failure::error("cannot make a plan", compile),
    };
    let observed = router.observe(Some(&active.site)).await.map_err(|e| failed(e.into()))?;
    let selection = context::selection(memory, &active);
    let mut planned = router.plan(&active.site, &selection, &observed).await.map_err(failed)?;
    let old = context::in_force(memory, settings, &active);
    forget_translated(&mut planned, old.as_ref().map(|old| &*old.site), &active.site, router);
    let report = report(router, memory, old.as_ref(), (&active, &selection), &planned, &observed);
    Ok(Made { active, selection, planned, observed, report })
}

/// Flows that would keep a translation that is changed are forgotten.
pub fn forget_translated<K: Kernel>(planned: &mut Planned, old: Option<&Site>, new: &Site, router: &Router<K>) {
    if let Some(old) = old.filter(|_| !planned.steps.is_empty()) {
        let (numbers, ranges) = (&planned.allocations.targets, router.ranges());
        let more = crate::plan::forget_translated(old, new, numbers, ranges);
        planned.steps = planned.steps.iter().cloned().chain(more).collect();
    }
}

fn report<K: Kernel>(
    router: &Router<K>,
    memory: &Memory,
    old: Option<&Active>,
    (active, selection): (&Active, &Selection),
    planned: &Planned,
    observed: &Observed,
) -> Report {
    let old_selection = memory.selection.clone().unwrap_or_default();
    let mut numbers = router.numbers(observed).targets.clone();
    numbers.extend(planned.allocations.targets.clone());
    let inputs = report::Inputs {
        old: old.map(|a| View { site: &a.site, selection: &old_selection }),
        new: Some(View { site: &active.site, selection }),
        steps: &planned.steps,
        applied: router.applied(),
        intruders: &observed.intruders,
        obstacles: &desired::obstacles(&active.site, &observed.facts),
        numbers: &numbers,
        ranges: router.ranges(),
    };
    let revision = Revisions { to: active.revision.clone(), from: old.map(|a| a.revision.clone()) };
    report::report(&inputs, active.site.name.clone(), revision, router.generation_of(observed))
}

/// Prints a plan.
pub fn print(report: &Report, show: Show) -> Result<(), Failure> {
    let text = match show.output {
        Format::Text => text::render(report, show.all),
        Format::Json => {
            let json = serde_json::to_string_pretty(report).map_err(|e| Failure::error("cannot print the plan", &e))?;
            format!("{json}\n")
        }
    };
    anstream::stdout().write_all(text.as_bytes()).map_err(|e| Failure::error("cannot print the plan", &e))
}
