//! `patronus status`, `get`, `events` and `history`: what is, and what happened.

use std::{
    fmt::Write as _,
    future::Future,
    io::Write as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use hyper::Method;
use serde_json::json;

use super::{
    Exit, Failure, Format, Outcome,
    context::{self, SOCKET_VARIABLE},
};
use crate::{
    api::client::{self, ClientError},
    clock::{self, Wall},
    engine::status::{Event, Status},
    store::{Run, StoreError, read, read::Wanted},
    units::{Name, Span},
};

mod human;
mod past;
pub(super) mod revisions;
mod rules;
mod text;

pub(in crate::cli) use human::{clean, duration, latency, time};

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Which daemon to ask.
#[derive(Debug, Clone, clap::Args)]
pub struct Daemon {
    /// Control socket of the daemon [default: the settings' one]
    #[arg(long, value_name = "PATH", env = SOCKET_VARIABLE)]
    socket: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    pub output: Format,
}

impl Daemon {
    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(context::socket)
    }
}

/// Where the records are when no daemon answers.
#[derive(Debug, Clone, clap::Args)]
pub struct Records {
    /// State directory, read when the daemon is not running [default: the settings' one]
    #[arg(long, value_name = "DIR", env = "PATRONUS_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

impl Records {
    /// Where they are.
    pub fn dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(context::state_dir)
    }

    /// Those in a directory.
    #[cfg(test)]
    pub(super) fn of(dir: &std::path::Path) -> Self {
        Self { state_dir: Some(dir.to_owned()) }
    }
}

/// Show whether all is well, and what is not
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    /// The daemon.
    #[command(flatten)]
    pub daemon: Daemon,
}

/// Show one kind of object
#[derive(Debug, Clone, clap::Args)]
pub struct GetArgs {
    /// What to show
    pub kind: Kind,
    /// Only the one of this name
    pub name: Option<Name>,
    /// The daemon.
    #[command(flatten)]
    pub daemon: Daemon,
    /// The records.
    #[command(flatten)]
    pub records: Records,
}

/// What `get` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Paths and their health
    #[value(alias = "path")]
    Paths,
    /// Failover rules and the path that each uses
    #[value(aliases = ["rule", "failover"])]
    Rules,
    /// Policies with their traffic
    #[value(alias = "policy")]
    Policies,
    /// The source of the configuration
    #[value(aliases = ["site", "sites"])]
    Source,
    /// Events; the name is what they are about
    #[value(alias = "event")]
    Events,
    /// A configuration that was in force; the name is its number
    Generation,
}

/// Show what happened
#[derive(Debug, Clone, clap::Args)]
pub struct EventsArgs {
    /// Go on with what happens from now, until interrupted
    #[arg(long, short)]
    pub follow: bool,
    /// Not older than this: a duration such as `2h`, or a time such as `2026-05-01T03:00:00Z`
    #[arg(long, value_name = "WHEN")]
    pub since: Option<Since>,
    /// At most so many, the newest
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
    /// Only this kind: failover, failback, better, exhausted, initial, manual, family-left, family-back, flows, path,
    /// reconcile, confirm, source, drift, alarm, daemon
    #[arg(long, value_parser = kind_word)]
    pub kind: Option<String>,
    /// The daemon.
    #[command(flatten)]
    pub daemon: Daemon,
    /// The records.
    #[command(flatten)]
    pub records: Records,
}

/// Show past reconciles and applies
#[derive(Debug, Clone, clap::Args)]
pub struct HistoryArgs {
    /// At most so many, the newest
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// The configurations that were put in force, and what became of them
    #[arg(long, conflicts_with = "audit")]
    pub generations: bool,
    /// Who did what
    #[arg(long)]
    pub audit: bool,
    /// The daemon.
    #[command(flatten)]
    pub daemon: Daemon,
    /// The records.
    #[command(flatten)]
    pub records: Records,
}

/// A moment given as a duration before now or as a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since(pub Wall);

impl FromStr for Since {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Ok(span) = s.parse::<Span>() {
            let back = i64::try_from(span.get().as_micros()).unwrap_or(i64::MAX);
            return Ok(Self(Wall::from_micros(clock::wall().as_micros().saturating_sub(back))));
        }
        let time = s.parse::<jiff::Timestamp>().map(|t| Self(Wall::from_micros(t.as_microsecond())));
        time.map_err(|_| "write a duration such as `2h`, or a time with its zone such as `2026-05-01T03:00:00Z`".into())
    }
}

/// All kinds of events. They go into a query string as they are.
const KINDS: &[&str] = &[
    "alarm",
    "better",
    "confirm",
    "daemon",
    "drift",
    "exhausted",
    "failback",
    "failover",
    "family-back",
    "family-left",
    "flows",
    "initial",
    "manual",
    "path",
    "reconcile",
    "source",
];

fn kind_word(text: &str) -> Result<String, String> {
    if KINDS.contains(&text) { Ok(text.into()) } else { Err(format!("the kinds are: {}", KINDS.join(", "))) }
}

/// Runs `patronus status`.
pub async fn status(args: StatusArgs) -> Outcome {
    let status = fetch(&args.daemon).await?;
    Ok(match args.daemon.output {
        Format::Json => print_json(&json!(status)),
        Format::Text => print(&text::status(&status, clock::now())),
    })
}

/// Runs `patronus get`.
pub async fn get(args: GetArgs) -> Outcome {
    if args.kind == Kind::Generation {
        let number = args.name.as_ref().map(Name::as_str);
        return past::generation(number, &args.daemon, &args.records).await;
    }
    if args.kind == Kind::Events {
        return get_events(args).await;
    }
    let mut status = fetch(&args.daemon).await?;
    if let Some(name) = &args.name {
        only(&mut status, args.kind, name)?;
    }
    if args.daemon.output == Format::Json {
        let items = match args.kind {
            Kind::Paths => json!(status.paths),
            Kind::Rules => json!(status.rules),
            Kind::Policies => json!(status.policies),
            Kind::Source | Kind::Events | Kind::Generation => json!(status.source),
        };
        return Ok(print_json(&json!({"format_version": 1, "site": status.site, "items": items})));
    }
    Ok(print(&match args.kind {
        Kind::Paths => {
            text::paths(&status, usize::MAX) + &args.name.map_or_else(String::new, |n| text::quality(&status, &n))
        }
        Kind::Rules => {
            rules::rules(&status, usize::MAX) + &args.name.map_or_else(String::new, |n| rules::whole(&status, &n))
        }
        Kind::Policies => text::policies(&status, usize::MAX),
        Kind::Source | Kind::Events | Kind::Generation => revisions::whole(&status),
    }))
}

async fn get_events(args: GetArgs) -> Outcome {
    let wanted = EventsArgs {
        follow: false,
        since: None,
        limit: if args.name.is_some() { 100_000 } else { 50 },
        kind: None,
        daemon: args.daemon,
        records: args.records,
    };
    let mut found = past_events(&wanted).await?;
    if let Some(name) = args.name {
        found.retain(|event| event.subject == name.as_str());
    }
    Ok(print_events(&found, wanted.daemon.output))
}

/// Leaves the named object, or says which there are.
fn only(status: &mut Status, kind: Kind, name: &Name) -> Result<(), Failure> {
    let names: Vec<Name> = match kind {
        Kind::Paths => status.paths.keys().cloned().collect(),
        Kind::Rules => status.rules.keys().cloned().collect(),
        Kind::Policies => status.policies.iter().map(|p| p.name.clone()).collect(),
        Kind::Source | Kind::Events | Kind::Generation => vec![status.site.clone()],
    };
    if !names.contains(name) {
        let there: Vec<_> = names.iter().map(Name::as_str).collect();
        let there = if there.is_empty() { "there are none".into() } else { format!("there are: {}", there.join(", ")) };
        return Err(Failure::new(Exit::Error, format!("there is no `{name}`; {there}")));
    }
    status.paths.retain(|n, _| n == name);
    status.rules.retain(|n, _| n == name);
    status.policies.retain(|p| p.name == *name);
    Ok(())
}

/// Runs `patronus events`.
pub async fn events(args: EventsArgs) -> Outcome {
    if args.follow {
        return follow(args).await;
    }
    let found = past_events(&args).await?;
    Ok(print_events(&found, args.daemon.output))
}

async fn past_events(args: &EventsArgs) -> Result<Vec<Event>, Failure> {
    let uri = args.uri();
    let socket = args.daemon.socket();
    let asked = client::ask::<crate::api::Events>(&socket, Method::GET, &uri, PATIENCE);
    let (limit, since) = (args.limit, args.since.map(|s| s.0));
    let wanted = Wanted { since, until: None, only: args.kind.clone(), limit };
    let stored = |dir: &Path| read::events(dir, &wanted);
    or_records(async { Ok(asked.await?.events) }, stored, &args.records).await
}

impl EventsArgs {
    fn uri(&self) -> String {
        let mut uri = format!("/v1/events?limit={}&follow={}", self.limit, self.follow);
        if let Some(Since(at)) = self.since {
            let _ = write!(uri, "&since={}", at.as_micros());
        }
        if let Some(kind) = &self.kind {
            let _ = write!(uri, "&kind={kind}");
        }
        uri
    }
}

async fn follow(args: EventsArgs) -> Outcome {
    let mut broken = None;
    let each = |line: &[u8]| match serde_json::from_slice::<Event>(line) {
        Ok(event) => {
            let line = match args.daemon.output {
                Format::Json => String::from_utf8_lossy(line).into_owned() + "\n",
                Format::Text => text::event(&event),
            };
            writes(&line)
        }
        Err(error) => {
            broken = Some(ClientError::from(error));
            false
        }
    };
    let ended = client::lines(&args.daemon.socket(), &args.uri(), each).await;
    match ended.and(broken.map_or(Ok(()), Err)) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(failure(&error)),
    }
}

/// Runs `patronus history`.
pub async fn history(args: HistoryArgs) -> Outcome {
    if args.generations {
        return past::generations(args).await;
    }
    if args.audit {
        return past::audit(args).await;
    }
    let uri = format!("/v1/history?limit={}", args.limit);
    let socket = args.daemon.socket();
    let asked = client::ask::<crate::api::History>(&socket, Method::GET, &uri, PATIENCE);
    let stored = |dir: &Path| read::history(dir, args.limit);
    let runs: Vec<Run> = or_records(async { Ok(asked.await?.runs) }, stored, &args.records).await?;
    Ok(match args.daemon.output {
        Format::Json => print_json(&json!({"format_version": 1, "runs": runs})),
        Format::Text => print(&text::history(&runs)),
    })
}

/// The daemon's answer; what it left on disk if it does not run.
async fn or_records<T>(
    asked: impl Future<Output = Result<T, ClientError>>,
    stored: impl FnOnce(&Path) -> Result<T, StoreError>,
    records: &Records,
) -> Result<T, Failure> {
    match asked.await {
        Ok(answer) => Ok(answer),
        Err(down @ ClientError::Down { .. }) => {
            let dir = records.dir();
            let found = stored(&dir).map_err(|error| match error {
                StoreError::Missing { .. } => Failure::new(Exit::Error, format!("{down}, and {error}")),
                other => Failure::error(&down, &other),
            })?;
            let _ = writeln!(std::io::stderr(), "patronus: {down}; this is what it recorded in {}", dir.display());
            Ok(found)
        }
        Err(error) => Err(failure(&error)),
    }
}

pub(super) async fn fetch(daemon: &Daemon) -> Result<Status, Failure> {
    client::ask(&daemon.socket(), Method::GET, "/v1/status", PATIENCE).await.map_err(|error| failure(&error))
}

pub(super) fn failure(error: &ClientError) -> Failure {
    let mut failure = match std::error::Error::source(error) {
        Some(cause) => Failure::error(error, cause),
        None => Failure::new(Exit::Error, error.to_string()),
    };
    if matches!(error, ClientError::Forbidden { .. }) {
        failure.exit = Exit::Privilege;
    }
    if matches!(error, ClientError::Down { .. }) {
        failure.message += "\n  start it:       systemctl start patronus   (or `patronus run`)\
                            \n  why it stopped: journalctl -u patronus -n 50   and   `patronus events`\
                            \n  elsewhere:      --socket PATH (or PATRONUS_SOCKET) names another place to ask\
                            \n  what is in force stays in force without it: `patronus plan` compares it with the configuration";
    }
    failure
}

fn print_events(events: &[Event], output: Format) -> Exit {
    match output {
        Format::Json => print_json(&json!({"format_version": 1, "events": events})),
        Format::Text => print(&events.iter().map(text::event).collect::<String>()),
    }
}

pub(super) fn print_json(value: &serde_json::Value) -> Exit {
    print(&format!("{value:#}\n"))
}

/// A reader that went away (`| head`) is no error.
pub(super) fn print(text: &str) -> Exit {
    writes(text);
    Exit::Done
}

pub(super) fn writes(text: &str) -> bool {
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_daemon_there_is_a_remedy_and_the_records_still_speak() {
        #[derive(Debug, clap::Parser)]
        struct Cli {
            #[command(flatten)]
            events: EventsArgs,
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        let socket = format!("{at}/none.sock");
        let parse =
            || <Cli as clap::Parser>::parse_from(["x", "--socket", &socket, "--state-dir", at, "--since", "2h"]).events;
        let daemon = parse().daemon;
        let failed = status(StatusArgs { daemon }).await.unwrap_err();
        assert_eq!(failed.exit, Exit::Error);
        assert!(
            failed.message.contains("not running") && failed.message.contains("systemctl start"),
            "{}",
            failed.message
        );

        let failed = events(parse()).await.unwrap_err();
        assert!(failed.message.contains("no records in"), "{}", failed.message);
        let recorder = crate::store::Recorder::start(dir.path(), crate::store::Limits::default());
        let (kind, subject, message) = ("path".to_owned(), "fiber".to_owned(), "fiber went down".to_owned());
        recorder.event(Event { id: 0, at: clock::wall(), kind, subject, message, detail: serde_json::Value::Null });
        assert!(recorder.flush(PATIENCE));
        assert_eq!(past_events(&parse()).await.unwrap().len(), 1);
        assert_eq!(events(parse()).await.unwrap(), Exit::Done);
    }

    #[test]
    fn since_takes_a_duration_or_a_time() {
        let day = "2026-05-01T03:00:00Z".parse::<Since>().unwrap();
        assert_eq!(day.0.as_micros(), 1_777_604_400_000_000);
        let since = "2h".parse::<Since>().unwrap().0;
        let back = clock::wall().as_micros() - since.as_micros();
        assert!((7_200_000_000..7_260_000_000).contains(&back), "{back}");
        assert!("yesterday".parse::<Since>().is_err());
        assert!(kind_word("a&limit=1").is_err());
    }
}
