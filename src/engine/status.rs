//! What the engine publishes after each pass: plain values for the API, the metrics and the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    clock::{Instant, Wall},
    failover::{Choice, TransitionKind},
    guard::Who,
    health::PathHealth,
    state::Counter,
    units::Name,
};

/// Everything `patronus status` and `/metrics` show. Published whole, replaced whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this format.
    pub format_version: u32,
    /// The daemon's version.
    pub version: String,
    /// The site this router is.
    pub site: Name,
    /// Process id of the daemon.
    pub pid: u32,
    /// When it started.
    pub started: Wall,
    /// When this was published, on both clocks: durations in it are differences to `now`.
    pub now: Instant,
    /// The same moment on the wall clock.
    pub wall: Wall,
    /// The source.
    pub source: SourceStatus,
    /// Generation in force; 0 before the first apply.
    pub generation: u64,
    /// The last reconcile.
    pub reconcile: Option<ReconcileStatus>,
    /// The last one that found something to do.
    #[serde(default)]
    pub change: Option<ReconcileStatus>,
    /// The change that may be undone still.
    #[serde(default)]
    pub unconfirmed: Option<UnconfirmedStatus>,
    /// The revision that has to wait.
    #[serde(default)]
    pub waiting: Option<WaitingStatus>,
    /// Paths by name.
    pub paths: BTreeMap<Name, PathStatus>,
    /// Rules by name.
    pub rules: BTreeMap<Name, RuleStatus>,
    /// Policies in match order.
    pub policies: Vec<PolicyStatus>,
    /// Things a person should look at: a full disk, intruders in our ranges, invalid configuration.
    pub alarms: Vec<String>,
    /// Objects that are not as wanted right now, one line each.
    pub drift: Vec<String>,
    /// Monotonic totals since the daemon started.
    pub totals: Totals,
}

/// A change in force that is undone unless it is confirmed in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnconfirmedStatus {
    /// Its generation.
    pub generation: u64,
    /// Its revision.
    pub revision: String,
    /// The revision that comes back otherwise.
    pub previous: Option<String>,
    /// Who made it.
    pub who: Who,
    /// Until when.
    pub until: Wall,
    /// Seconds until then.
    pub seconds_left: u64,
    /// Whether a person has to confirm it; otherwise the evidence does.
    pub by_hand: bool,
    /// What is not known yet.
    pub waits: Vec<String>,
    /// What speaks against it.
    pub against: Vec<String>,
}

/// A revision that is valid and not in force yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingStatus {
    /// The revision.
    pub revision: String,
    /// Why it waits.
    pub reason: String,
}

/// Where the configuration comes from and how that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The directory.
    pub location: String,
    /// Revision of the newest content seen.
    pub desired: Option<String>,
    /// Revision in force.
    pub applied: Option<String>,
    /// When the source was last read without error.
    pub last_success: Option<Wall>,
    /// Why the newest content is not in force; one line per finding.
    pub errors: Vec<String>,
}

/// The last reconcile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileStatus {
    /// When it ended.
    pub at: Wall,
    /// How long it took, in seconds and a fraction.
    pub micros: u64,
    /// How it ended.
    pub outcome: ReconcileOutcome,
    /// Steps carried out.
    pub steps: usize,
    /// What went wrong, if anything.
    pub message: Option<String>,
}

/// How a reconcile ended; the `result` label of `patronus_reconcile_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReconcileOutcome {
    /// Nothing to do.
    Unchanged,
    /// Applied and read back.
    Applied,
    /// A step failed; everything was undone and verified.
    RolledBack,
    /// A step failed and so did the undo: look at once.
    RollbackFailed,
    /// The configuration has errors, or the kernel could not be read; nothing was done.
    Refused,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    /// The interface it leaves by.
    pub interface: String,
    /// Its next hops as text, IPv4 first; empty when unknown.
    pub gateways: Vec<String>,
    /// What is measured.
    pub health: PathHealth,
    /// Probes that were answered.
    pub probes_answered: u64,
    /// Probes that were not.
    pub probes_lost: u64,
}

/// One failover rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Its paths in order of preference.
    pub members: Vec<Name>,
    /// The choice in force.
    pub choice: Choice,
    /// Seconds until the primary is returned to, while that is under way.
    pub failback_in: Option<f64>,
    /// Why the last transition happened.
    pub reason: String,
}

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Its name.
    pub name: Name,
    /// Its priority.
    pub priority: u32,
    /// The action as text: `failover/critical`, `path/fiber`, `drop`, `reject`.
    pub action: String,
    /// The path its traffic takes now, if any.
    pub path: Option<Name>,
    /// Kernel counters, carried over reloads.
    pub counter: Counter,
    /// Conntrack entries that belong to it.
    pub flows: u64,
}

/// Monotonic totals.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Reconciles by outcome.
    pub reconciles: BTreeMap<ReconcileOutcome, u64>,
    /// Time spent in reconciles, in seconds.
    pub reconcile_seconds: f64,
    /// Objects repaired, by kind: `nft`, `route`, `rule`, `sysctl`, `link`.
    pub drift: BTreeMap<String, u64>,
    /// Transitions by rule and kind.
    pub transitions: BTreeMap<Name, BTreeMap<TransitionKind, u64>>,
    /// Rows that the store could not take.
    pub store_lost_rows: u64,
}

/// Something that happened, as stored and as `patronus events` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number in the store; 0 before it is stored.
    pub id: i64,
    /// When.
    pub at: Wall,
    /// What kind: `failover`, `failback`, `exhausted`, `initial`, `path`, `reconcile`, `source`, `drift`, `alarm`,
    /// `confirm`, `daemon`.
    pub kind: String,
    /// What it is about: a rule, a path, a kind of object; may be empty.
    pub subject: String,
    /// One line for a person.
    pub message: String,
    /// Details for a program.
    pub detail: serde_json::Value,
}
