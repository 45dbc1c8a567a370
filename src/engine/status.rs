//! What the engine publishes after each pass: plain values for the API, the metrics and the store.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    clock::{Instant, Wall},
    config::commit::Commit,
    drift::How,
    failover::{Choice, Parted, Transition, TransitionKind, View},
    foreign::{Override, programs::Culprit},
    guard::Who,
    health::{
        PathHealth,
        quality::{Counts, Spread},
    },
    revision::{Attempt, Condition, Held, Quarantined, Suspension, Trouble},
    state::Counter,
    units::{IfName, Name, plural},
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
    /// `Ready`, `Reconciling`, `Stalled` and `SourceVerified`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
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
    /// The same objects for programs, at most 20.
    #[serde(default)]
    pub drifted: Vec<DriftedObject>,
    /// Objects that somebody takes away as often as they are put back; they are left alone for a while.
    #[serde(default)]
    pub fights: Vec<FightStatus>,
    /// Objects of others that override ours, worst first; looked at once a minute.
    #[serde(default)]
    pub overrides: Vec<Override>,
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

/// Drifted objects that a status carries at most.
pub(crate) const SHOWN: usize = 20;

/// An object that somebody else changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftedObject {
    /// `nft`, `route`, `rule`, `sysctl` or `link`.
    pub kind: String,
    /// Which.
    pub object: String,
    /// How it differs.
    pub how: How,
    /// What was wanted and what is there, where both are known.
    pub detail: Option<String>,
    /// What is done about it.
    pub treatment: Treatment,
}

/// What is done about an object that somebody else changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Treatment {
    /// It is put right now.
    Repaired,
    /// The settings say that drift of this kind is only reported.
    Reported,
    /// It is fought over.
    LeftAlone,
}

impl DriftedObject {
    /// One line for a person.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { kind, object, how, detail, treatment } = self;
        let detail = detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
        let left = match treatment {
            Treatment::Repaired => String::new(),
            Treatment::Reported => format!("; only reported (`drift: {{{kind}: report}}`)"),
            Treatment::LeftAlone => "; left alone, since somebody changes it again and again".to_owned(),
        };
        format!("{object} {how}{detail}{left}")
    }
}

/// A fight over one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FightStatus {
    /// The kind of object.
    pub kind: String,
    /// Which.
    pub object: String,
    /// How often it was taken away since the fight began.
    pub losses: u64,
    /// Since how many seconds it is left alone.
    pub seconds: u64,
    /// In how many seconds it is tried again.
    pub next_try_in: u64,
    /// Who is likely to be at it.
    pub culprit: Culprit,
}

impl FightStatus {
    /// One line for a person: what, who, what to do.
    #[must_use]
    pub fn line(&self) -> String {
        let who = self.culprit.program.as_deref().unwrap_or("somebody unknown");
        let evidence = self.culprit.evidence.join("; ");
        let evidence = if evidence.is_empty() { evidence } else { format!(" ({evidence})") };
        let minutes = self.next_try_in.div_ceil(60);
        format!(
            "{} was taken away {}: left alone, tried again in {minutes} min; likely {who}{evidence}; {}",
            self.object,
            plural(self.losses, "time"),
            self.culprit.remedy
        )
    }
}

/// Where the configuration comes from and how that goes: three revisions, never one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The directory or the repository.
    pub location: String,
    /// Revision of what the source holds.
    pub desired: Option<String>,
    /// What was tried last, and how that went.
    #[serde(default)]
    pub attempted: Option<Attempt>,
    /// Revision in force.
    pub applied: Option<String>,
    /// The commits of `desired` and `applied`, if they are commits.
    #[serde(default)]
    pub commits: BTreeMap<String, Commit>,
    /// The highest accepted commit: newer ones have to descend from it.
    #[serde(default)]
    pub highest: Option<String>,
    /// Why what the source holds must not be tried, and what ends that.
    #[serde(default)]
    pub held: Option<Held>,
    /// What failed and is not tried again by itself, oldest first.
    #[serde(default)]
    pub quarantine: Vec<Quarantined>,
    /// Why no new revision is taken.
    #[serde(default)]
    pub suspended: Option<Suspension>,
    /// Why the source cannot be read.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// The way by which it was fetched last: `the usual way`, or a path; none for a directory.
    #[serde(default)]
    pub via: Option<String>,
    /// When the source was last read without error.
    pub last_success: Option<Wall>,
    /// Why the newest content is not in force; one line per finding.
    pub errors: Vec<String>,
}

impl SourceStatus {
    /// A source of which nothing is known yet.
    #[must_use]
    pub const fn of(location: String) -> Self {
        Self {
            location,
            desired: None,
            attempted: None,
            applied: None,
            commits: BTreeMap::new(),
            highest: None,
            held: None,
            quarantine: Vec::new(),
            suspended: None,
            trouble: None,
            via: None,
            last_success: None,
            errors: Vec::new(),
        }
    }
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
    pub interface: IfName,
    /// Its next hops, IPv4 first; empty when unknown.
    pub gateways: Vec<IpAddr>,
    /// What is measured.
    pub health: PathHealth,
    /// Probes that were answered.
    pub probes_answered: u64,
    /// Probes that were not.
    pub probes_lost: u64,
    /// Whether it is out of use by hand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// Since when that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained_since: Option<Wall>,
    /// How it is probed: `icmp`, `udp` and so on.
    #[serde(default)]
    pub method: Cow<'static, str>,
    /// Round-trip times of the window; none without answers.
    #[serde(default)]
    pub spread: Option<Spread>,
    /// What a call would sound like, 1 to 4.5; none without answers.
    #[serde(default)]
    pub mos: Option<f64>,
    /// What was counted since the daemon started.
    #[serde(default)]
    pub counts: Counts,
}

/// One failover rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Its paths in order of preference.
    pub members: Vec<Name>,
    /// The choice in force.
    pub choice: Choice,
    /// The paths that new flows take now; several where the rule shares them.
    #[serde(default)]
    pub active_members: Vec<Name>,
    /// The share of each path, where the rule shares flows: `75%`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: BTreeMap<Name, String>,
    /// Families that go another way than the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parted: Vec<Parted>,
    /// Seconds until the primary is returned to, while that is under way.
    pub failback_in: Option<f64>,
    /// Why the last transition happened.
    pub reason: String,
    /// The last transition, with all that is known of it; none after a restart until the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Transition>,
    /// How the rule regards each of its paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standings: Vec<View>,
    /// It has no path, and its new flows go to the next policy that matches.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passes_on: bool,
    /// What it is pinned to by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pinned>,
}

/// A rule that is pinned to a path by hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pinned {
    /// The path.
    pub to: Name,
    /// For how many seconds.
    pub seconds: f64,
    /// Why.
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
    /// All paths that its new flows take now.
    #[serde(default)]
    pub paths: Vec<Name>,
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
    /// Readings of the source that brought nothing to apply, by reason.
    #[serde(default)]
    pub source_errors: BTreeMap<String, u64>,
    /// Requests to the webhook, by result.
    #[serde(default)]
    pub webhook: BTreeMap<String, u64>,
    /// Reports to the forge, by result.
    #[serde(default)]
    pub reports: BTreeMap<String, u64>,
    /// Notifications by channel and result: `sent`, `retried`, `failed`; `dropped` counts events.
    #[serde(default)]
    pub notifications: BTreeMap<Name, BTreeMap<String, u64>>,
    /// Rows that the store could not take.
    pub store_lost_rows: u64,
}

/// A count for each word, which others keep and the engine publishes.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<&'static str, u64>>);

impl Tally {
    /// One more.
    pub fn count(&self, word: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(word).or_default() += 1;
    }

    /// All of them.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(word, n)| ((*word).to_owned(), *n)).collect()
    }
}

/// Something that happened, as stored and as `patronus events` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number in the store; 0 before it is stored.
    pub id: i64,
    /// When.
    pub at: Wall,
    /// What kind: `failover`, `failback`, `exhausted`, `initial`, `flows`, `path`, `reconcile`, `source`, `drift`,
    /// `alarm`, `confirm`, `daemon`.
    pub kind: String,
    /// What it is about: a rule, a path, a kind of object; may be empty.
    pub subject: String,
    /// One line for a person.
    pub message: String,
    /// Details for a program.
    pub detail: serde_json::Value,
}
