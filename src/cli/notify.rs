//! `patronus notify test`: one message by each channel, now.

use serde::Serialize;

use super::{
    Exit, Failure, Format, Outcome,
    context::{self, RouterArgs},
    inspect,
};
use crate::{
    clock,
    notify::{Channel, Message, Sender},
    units::Name,
};

/// Try the channels of notifications
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    /// Send one message by each channel, as whoever runs this; status 1 if one does not arrive
    Test(TestArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct TestArgs {
    /// Only this channel
    #[arg(value_name = "CHANNEL")]
    channel: Option<Name>,
    #[command(flatten)]
    router: RouterArgs,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// What became of one message.
#[derive(Debug, Serialize)]
struct Tried {
    channel: Name,
    sent: bool,
    why: Option<String>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let What::Test(args) = args.what;
    let settings = context::settings(&args.router, None)?;
    let wanted = |channel: &&Channel| args.channel.as_ref().is_none_or(|name| *name == channel.name);
    let channels: Vec<&Channel> = settings.notify.iter().filter(wanted).collect();
    if channels.is_empty() {
        let text = match &args.channel {
            Some(name) => format!("the settings have no channel {name} in `notify`"),
            None => "the settings have no `notify`: nobody is told of anything".into(),
        };
        return Err(Failure::new(Exit::Settings, text));
    }
    let site = settings.site.clone().unwrap_or_else(context::nameless);
    let message = Message::test(&site, clock::wall());
    let mut tried = Vec::new();
    for channel in channels {
        let why = Sender::new(channel).send(&message).await.err().map(|failed| failed.why);
        tried.push(Tried { channel: channel.name.clone(), sent: why.is_none(), why });
    }
    let failed = tried.iter().any(|one| !one.sent);
    match args.output {
        Format::Json => inspect::print_json(&serde_json::json!({"format_version": 1, "channels": tried})),
        Format::Text => inspect::print(&tried.iter().map(line).collect::<String>()),
    };
    Ok(if failed { Exit::Error } else { Exit::Done })
}

fn line(tried: &Tried) -> String {
    match &tried.why {
        None => format!("{}: sent\n", tried.channel),
        Some(why) => format!("{}: NOT SENT: {}\n", tried.channel, inspect::clean(why)),
    }
}
