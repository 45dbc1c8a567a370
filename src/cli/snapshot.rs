//! `patronus snapshot`: this router's live state, for a plan that is made elsewhere.

use std::{fs, io::Write as _, path::Path};

use super::{
    Exit, Failure, Outcome,
    context::{self, RouterArgs},
};
use crate::{
    clock,
    engine::{
        captured::{Captured, FORMAT_VERSION},
        router::Router,
    },
};

/// Write this router's live state to standard output, for `plan --against` anywhere
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    router: RouterArgs,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let settings = context::settings(&args.router, None)?;
    let missing = "which site is this router? Give the settings a `site: NAME`, or add --site NAME";
    let site = settings.site.as_ref().ok_or_else(|| Failure::new(Exit::Settings, missing))?;
    let router = Router::new(context::kernel()?, context::ledger_to_read(&settings), settings.ranges);
    let captured = Captured::of(&router, site, clock::wall()).await;
    let captured = captured.map_err(|e| context::from_kernel("cannot look at the kernel", &e))?;
    let failed = |e: &dyn std::error::Error| Failure::error("cannot print the state", e);
    let text = serde_json::to_string_pretty(&captured).map_err(|e| failed(&e))?;
    writeln!(std::io::stdout(), "{text}").map_err(|e| failed(&e))?;
    Ok(Exit::Done)
}

/// Reads what the verb wrote.
pub fn read(file: &Path) -> Result<Captured, Failure> {
    let doing = || format!("cannot use {}", file.display());
    let bytes = fs::read(file).map_err(|e| Failure::error(doing(), &e))?;
    let captured: Captured = serde_json::from_slice(&bytes).map_err(|e| {
        let failure = Failure::error(doing(), &e);
        Failure::new(failure.exit, format!("{}\n  `patronus snapshot > FILE` on the router writes it", failure.message))
    })?;
    match captured.format_version {
        FORMAT_VERSION => Ok(captured),
        other => {
            let text = format!("{} has format {other}, and this Patronus knows {FORMAT_VERSION}", file.display());
            Err(Failure::new(Exit::Error, text))
        }
    }
}
