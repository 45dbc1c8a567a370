//! `patronus plan`: desired against the live kernel. It changes nothing.

use std::{io::Write as _, path::PathBuf};

use super::{
    Exit, Failure, Format, Outcome,
    context::{self, RouterArgs},
    trial,
};
use crate::{
    desired,
    engine::{
        Active,
        router::{PlanError, Planned, Router},
    },
    failover::Selection,
    kernel::linux::Linux,
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
    /// What they mean.
    pub report: Report,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let settings = context::settings(&args.router, args.dir)?;
    let active = context::configuration(&settings)?;
    let mut router = Router::new(context::kernel()?, context::existing_ledger(&settings), settings.ranges);
    // Whoever holds the lock settles interrupted changes himself.
    if let Ok(_lock) = context::lock(&settings, "plan") {
        context::recover(&mut router).await?;
        trial::settle(&mut router, &settings).await?;
    }
    let made = make(&router, &settings, active).await?;
    print(&made.report, args.show)?;
    let changes = !made.planned.steps.is_empty();
    Ok(if changes && args.detailed_exitcode { Exit::Changes } else { Exit::Done })
}

/// Makes a plan for a configuration.
pub async fn make(router: &Router<Linux>, settings: &Settings, active: Active) -> Result<Made, Failure> {
    let failed = |error: PlanError| match &error {
        PlanError::Kernel(kernel) => context::from_kernel("cannot make a plan", kernel),
        PlanError::Compile(compile) => Failure::error("cannot make a plan", compile),
    };
    let observed = router.observe(Some(&active.site)).await.map_err(|e| failed(e.into()))?;
    let selection = context::selection(router, &active);
    let mut planned = router.plan(&active.site, &selection, &observed).await.map_err(failed)?;
    let old = context::in_force(router, settings, &active).map(|old| old.site);
    forget_translated(&mut planned, old.as_ref(), &active.site, router);
    let report = report(router, settings, &active, &selection, &planned, &observed);
    Ok(Made { active, selection, planned, report })
}

/// Flows that would keep a translation that is changed are forgotten.
pub fn forget_translated(planned: &mut Planned, old: Option<&Site>, new: &Site, router: &Router<Linux>) {
    if let Some(old) = old.filter(|_| !planned.steps.is_empty()) {
        let (numbers, ranges) = (&planned.allocations.targets, router.ranges());
        planned.steps.extend(crate::plan::forget_translated(old, new, numbers, ranges));
    }
}

fn report(
    router: &Router<Linux>,
    settings: &Settings,
    active: &Active,
    selection: &Selection,
    planned: &Planned,
    observed: &Observed,
) -> Report {
    let old = context::in_force(router, settings, active);
    let old_selection = router.remembered_selection().unwrap_or_default();
    let mut numbers = router.numbers(observed).targets.clone();
    numbers.extend(planned.allocations.targets.clone());
    let inputs = report::Inputs {
        old: old.as_ref().map(|a| View { site: &a.site, selection: &old_selection }),
        new: Some(View { site: &active.site, selection }),
        steps: &planned.steps,
        applied: router.applied(),
        intruders: &observed.intruders,
        obstacles: &desired::obstacles(&active.site, &observed.facts),
        numbers: &numbers,
        ranges: router.ranges(),
    };
    let revision = Revisions { to: active.revision.clone(), from: old.as_ref().map(|a| a.revision.clone()) };
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
