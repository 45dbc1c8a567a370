//! A channel as the settings describe it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use lettre::message::Mailbox;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{http::Url, source::git::Secret, units::Name};

/// What kinds of events there are for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A rule left a path that failed.
    Failover,
    /// A rule returned to its primary.
    Failback,
    /// A rule has no path that is up.
    Exhausted,
    /// A rule moved to a better path.
    Better,
    /// Orders by hand.
    Manual,
    /// A path changed its state.
    Path,
    /// Others changed objects of ours.
    Drift,
    /// The source, and what became of a revision.
    Source,
    /// Passes that changed something, or failed.
    Reconcile,
    /// Changes that wait for their confirmation.
    Confirm,
    /// What a person should look at.
    Alarm,
    /// Start of the daemon.
    Daemon,
}

impl Kind {
    /// What is told of when nothing else is said: what a person on call wants to know.
    pub const USUAL: [Self; 7] =
        [Self::Failover, Self::Failback, Self::Exhausted, Self::Drift, Self::Source, Self::Confirm, Self::Alarm];

    /// What events of it say. One family of a path that fails or comes back is as good a reason as all of it.
    const fn words(self) -> &'static [&'static str] {
        match self {
            Self::Failover => &["failover", "family-left"],
            Self::Failback => &["failback", "family-back"],
            Self::Exhausted => &["exhausted"],
            Self::Better => &["better"],
            Self::Manual => &["manual"],
            Self::Path => &["path"],
            Self::Drift => &["drift"],
            Self::Source => &["source"],
            Self::Reconcile => &["reconcile"],
            Self::Confirm => &["confirm"],
            Self::Alarm => &["alarm"],
            Self::Daemon => &["daemon"],
        }
    }
}

/// How many messages there may be: so many at once, then one in each span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// At once.
    pub burst: u32,
    /// After which there may be one more.
    pub every: Duration,
}

/// One way to tell people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its name, for metrics and alarms.
    pub name: Name,
    /// How.
    pub way: Way,
    /// What is told of.
    pub kinds: Vec<Kind>,
    /// Events that come so close together become one message.
    pub group: Duration,
    /// How many messages there may be.
    pub limit: Limit,
}

impl Channel {
    /// Whether it tells of events of this kind.
    #[must_use]
    pub fn wants(&self, kind: &str) -> bool {
        self.words().contains(&kind)
    }

    /// All that it tells of, as events say it.
    pub(super) fn words(&self) -> Vec<&'static str> {
        self.kinds.iter().flat_map(|kind| kind.words()).copied().collect()
    }
}

/// How people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// An HTTP request.
    Webhook(Webhook),
    /// A mail.
    Mail(Mail),
    /// A program.
    Exec(Exec),
}

/// Where a webhook is: in the settings, or, where the address itself is the secret, elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// This one.
    Url(Url),
    /// The one that stands there.
    Secret(Secret),
}

/// A POST to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Where to.
    pub url: Address,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<Secret>,
    /// Headers beside it.
    pub headers: BTreeMap<String, String>,
    /// Template of the body; the message as JSON if absent.
    pub body: Option<String>,
    /// Authorities beside the system's.
    pub ca: Option<PathBuf>,
    /// How long an attempt may take.
    pub timeout: Duration,
}

/// A mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// The server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the conversation is protected.
    pub tls: Tls,
    /// Who logs in, if anybody has to.
    pub login: Option<Login>,
    /// Who writes.
    pub from: Mailbox,
    /// To whom.
    pub to: Vec<Mailbox>,
    /// Authorities beside the system's.
    pub ca: Option<PathBuf>,
    /// How long an attempt may take.
    pub timeout: Duration,
}

/// Who logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub username: String,
    /// The password.
    pub secret: Secret,
}

/// How a conversation with a mail server is protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// From its second word on, or not at all: never in the clear.
    #[default]
    Starttls,
    /// From its first word on.
    Implicit,
    /// Not at all: for a server on this machine. No login.
    None,
}

/// A program that reads the message as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The program and its arguments; no shell.
    pub command: Vec<String>,
    /// After which it is killed, with whatever it started.
    pub timeout: Duration,
}
