//! `patronus confirm` and `patronus rollback`: how a change that waits ends, and the way back to an older one.

use std::{io::Write as _, time::Duration};

use hyper::Method;

use super::{
    Exit, Failure, Outcome,
    apply::{self, agreed},
    context::{self, RouterArgs},
    plan::{self, Show},
    trial,
};
use crate::{
    api::{
        Done,
        client::{self, ClientError},
    },
    apply::place,
    clock,
    engine::router::Router,
    guard::Due,
    settings::Settings,
    store::LastGood,
    units::Span,
};

/// A daemon may have a whole transaction to do first.
const PATIENCE: Duration = Duration::from_secs(120);

/// Let the change that waits for its confirmation stand
#[derive(Debug, Clone, clap::Args)]
pub struct ConfirmArgs {
    #[command(flatten)]
    router: RouterArgs,
}

/// Undo the change that waits for its confirmation, or go back to a recorded generation
#[derive(Debug, Clone, clap::Args)]
pub struct RollbackArgs {
    /// Generation that shall come back; `patronus history --generations` lists them
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    /// How long the older generation may wait for `patronus confirm`; `0s` does not ask for one
    #[arg(long, value_name = "D", requires = "to")]
    confirm_timeout: Option<Span>,
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    show: Show,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Runs `confirm`.
pub async fn confirm(args: ConfirmArgs) -> Outcome {
    let settings = context::settings(&args.router, None)?;
    if let Some(done) = ask(&settings, "/v1/confirm").await? {
        return Ok(said(&done));
    }
    context::privilege("confirm")?;
    let _lock = context::lock(&settings, "confirm")?;
    let mut router = Router::new(context::kernel()?, context::existing_ledger(&settings), settings.ranges);
    let Some(change) = router.ledger.unconfirmed() else {
        return Err(nothing_waits(&settings, "`patronus history` tells what became of the last change"));
    };
    match change.due(&place(), clock::now()) {
        Due::In(_) => {}
        Due::Elsewhere | Due::Now => {
            trial::settle(&mut router, &settings).await?;
            let text = format!("too late: generation {} was undone", change.generation);
            return Err(Failure::new(Exit::Error, text));
        }
    }
    router.ledger.audit(&trial::me(), "confirm", &change.line());
    trial::stands(&router, &change, &format!("confirmed by {}", trial::me()))?;
    Ok(said(&format!("generation {} (revision {}) stands", change.generation, change.revision)))
}

/// Runs `rollback`.
pub async fn rollback(args: RollbackArgs) -> Outcome {
    let settings = context::settings(&args.router, None)?;
    match args.to {
        None => undo(&settings).await,
        Some(number) => restore(settings, args, number).await,
    }
}

/// Whoever asks in the wrong place must not take it for an answer.
fn nothing_waits(settings: &Settings, then: &str) -> Failure {
    let (socket, state) = (settings.socket.display(), settings.state_dir.display());
    let text = format!(
        "nothing waits for a confirmation: no daemon answers on {socket}, and the journal in {state} has no such change\n  \
         {then}\n  if this router keeps them elsewhere: --config FILE, or --socket PATH and --state-dir DIR"
    );
    Failure::new(Exit::Error, text)
}

async fn undo(settings: &Settings) -> Outcome {
    if let Some(done) = ask(settings, "/v1/rollback").await? {
        return Ok(said(&done));
    }
    context::privilege("rollback")?;
    let _lock = context::lock(settings, "rollback")?;
    let mut router = Router::new(context::kernel()?, context::existing_ledger(settings), settings.ranges);
    context::recover(&mut router).await?;
    let Some(change) = trial::settle(&mut router, settings).await? else {
        let further = "to go back further, name a generation: `patronus rollback --to N`; `patronus history --generations` \
                       lists them";
        return Err(nothing_waits(settings, further));
    };
    let exit = trial::go_back(&mut router, settings, &change, &format!("{} said so", trial::me())).await?;
    let back = change.previous.map_or_else(|| "nothing of ours".to_owned(), |revision| format!("revision {revision}"));
    said(&format!("generation {} is undone; {back} is in force", change.generation));
    Ok(exit)
}

/// The ordinary way: plan, question, steps, confirmation; with a daemon, the daemon takes the steps.
async fn restore(settings: Settings, args: RollbackArgs, number: u64) -> Outcome {
    let router = Router::new(context::kernel()?, context::ledger_to_read(&settings), settings.ranges);
    let Some((found, files)) = router.ledger.generation_at(number) else {
        let text =
            format!("there is no generation {number}: `patronus history --generations` lists those that are kept");
        return Err(Failure::new(Exit::Error, text));
    };
    let active = context::again(&settings, LastGood { revision: found.revision, at: found.at, files })?;
    let daemon = client::ask::<serde_json::Value>(&settings.socket, Method::GET, "/v1/status", PATIENCE).await.is_ok();
    let order =
        apply::Order { allow_large: true, timeout: args.confirm_timeout, ..apply::Order::new(args.show, args.yes) };
    if !daemon {
        drop(router);
        return apply::carry_through(
            &settings,
            args.router.config.as_deref(),
            active,
            order,
            &format!("rollback --to {number}"),
        )
        .await;
    }
    let made = plan::make(&router, &settings, active).await?;
    plan::print(&made.report, args.show)?;
    let within = order.timeout();
    if !agreed(args.yes, &apply::question("Go back to this?", within))? {
        return Ok(Exit::Done);
    }
    match ask(&settings, &format!("/v1/rollback?to={number}&within={}", Span::from(within))).await? {
        Some(done) => Ok(said(&done)),
        None => Err(Failure::new(Exit::Error, "the daemon ended meanwhile; try again")),
    }
}

/// The daemon's answer; none if there is no daemon.
async fn ask(settings: &Settings, uri: &str) -> Result<Option<String>, Failure> {
    match client::ask::<Done>(&settings.socket, Method::POST, uri, PATIENCE).await {
        Ok(answer) => Ok(Some(answer.done)),
        Err(ClientError::Down { .. }) => Ok(None),
        Err(ClientError::Refused(why)) => Err(Failure::new(Exit::Error, why)),
        Err(error @ ClientError::Forbidden { .. }) => Err(Failure::new(Exit::Privilege, error.to_string())),
        Err(error) => Err(Failure::error("cannot ask the daemon", &error)),
    }
}

fn said(text: &str) -> Exit {
    // It is done; a closed standard output does not undo it.
    let _ = writeln!(anstream::stdout(), "{text}");
    Exit::Done
}
