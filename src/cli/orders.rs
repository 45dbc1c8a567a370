//! `patronus failover`, `failback`, `drain` and `undrain`: orders by hand, which end by themselves or are shown until
//! somebody ends them.

use std::time::Duration;

use serde_json::json;

use super::{
    Exit, Failure, Format, Outcome,
    inspect::{self, Daemon},
};
use crate::{
    api::{Order, client},
    units::{Name, Span},
};

/// The engine answers between two passes.
const PATIENCE: Duration = Duration::from_secs(65);

/// Pin a failover rule to one of its paths for a while; if that path goes down, the rule leaves it all the same
#[derive(Debug, Clone, clap::Args)]
pub struct FailoverArgs {
    /// The failover rule
    rule: Name,
    /// The path
    #[arg(long, value_name = "PATH")]
    to: Name,
    /// For how long, such as `2h`; then the rule decides again
    #[arg(long = "for", value_name = "DURATION")]
    time: Span,
    /// What for; shown to whoever looks
    #[arg(long)]
    reason: String,
    /// Do nothing; print the change of the configuration that would do it for good
    #[arg(long)]
    as_yaml: bool,
    /// The daemon.
    #[command(flatten)]
    daemon: Daemon,
}

/// End a pin, and return to the primary now if it is fit for it
#[derive(Debug, Clone, clap::Args)]
pub struct FailbackArgs {
    /// The failover rule
    rule: Name,
    /// The daemon.
    #[command(flatten)]
    daemon: Daemon,
}

/// Take a path out of use; new flows go elsewhere, those that are bound to it stay until they end
#[derive(Debug, Clone, clap::Args)]
pub struct DrainArgs {
    /// The path
    path: Name,
    /// Also if it is the last path that works for a rule, which then has none
    #[arg(long)]
    force: bool,
    /// The daemon.
    #[command(flatten)]
    daemon: Daemon,
}

/// Use a drained path again
#[derive(Debug, Clone, clap::Args)]
pub struct UndrainArgs {
    /// The path
    path: Name,
    /// The daemon.
    #[command(flatten)]
    daemon: Daemon,
}

/// Runs `patronus failover`.
pub async fn failover(args: FailoverArgs) -> Outcome {
    if args.as_yaml {
        return as_yaml(&args).await;
    }
    let (rule, to, reason) = (args.rule, args.to, args.reason);
    give(&args.daemon, &Order::Failover { rule, to, seconds: args.time.get().as_secs(), reason }).await
}

/// Runs `patronus failback`.
pub async fn failback(args: FailbackArgs) -> Outcome {
    give(&args.daemon, &Order::Failback { rule: args.rule }).await
}

/// Runs `patronus drain`.
pub async fn drain(args: DrainArgs) -> Outcome {
    give(&args.daemon, &Order::Drain { path: args.path, force: args.force }).await
}

/// Runs `patronus undrain`.
pub async fn undrain(args: UndrainArgs) -> Outcome {
    give(&args.daemon, &Order::Undrain { path: args.path }).await
}

async fn give(daemon: &Daemon, order: &Order) -> Outcome {
    let asked = client::tell::<serde_json::Value>(&daemon.socket(), "/v1/orders", &json!(order), PATIENCE).await;
    let done = asked.map_err(|error| inspect::failure(&error))?;
    inspect::print(&match daemon.output {
        Format::Json => format!("{done:#}\n"),
        Format::Text => format!("{}\n", done["message"].as_str().unwrap_or_default()),
    });
    Ok(Exit::Done)
}

/// The rule with the path as its primary, as it would stand in the configuration.
async fn as_yaml(args: &FailoverArgs) -> Outcome {
    let status = inspect::fetch(&args.daemon).await?;
    let Some(rule) = status.rules.get(&args.rule) else {
        return Err(Failure::new(Exit::Error, format!("there is no failover rule {}", args.rule)));
    };
    if !rule.members.contains(&args.to) {
        return Err(Failure::new(Exit::Error, format!("{} is no path of {}", args.to, args.rule)));
    }
    let backups: Vec<&str> = rule.members.iter().filter(|m| **m != args.to).map(Name::as_str).collect();
    inspect::print(&format!(
        "# {}\n# In the rule `{}` of site {}; leave its other fields as they are.\nprimary: {}\nbackups: [{}]\n",
        args.reason.replace(['\n', '\r'], " "),
        args.rule,
        status.site,
        args.to,
        backups.join(", ")
    ));
    Ok(Exit::Done)
}
