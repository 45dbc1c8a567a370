//! What a plan means: symbolic changes, drift, consequences and risks, beside the steps. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value as Json;

use super::{Action, Step};
use crate::{
    failover::{Choice, Selection},
    state::{Key, Ranges, State, Target},
    units::{Name, plural},
    validate::intent::{self, Site},
};

/// A site and the path choice that goes with it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The site.
    pub site: &'a Site,
    /// The choice.
    pub selection: &'a Selection,
}

/// What a report is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What is in force, if anything.
    pub old: Option<View<'a>>,
    /// What shall be.
    pub new: Option<View<'a>>,
    /// The steps.
    pub steps: &'a [Step],
    /// The state that was applied last: what differs from it in the kernel is drift.
    pub applied: Option<&'a State>,
    /// Foreign objects in our ranges.
    pub intruders: &'a [String],
    /// Why paths cannot be used now.
    pub obstacles: &'a [String],
    /// Numbers of the targets, the old ones that are given up included.
    pub numbers: &'a BTreeMap<Target, u32>,
    /// Our ranges.
    pub ranges: &'a Ranges,
}

/// A plan for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this format.
    pub format_version: u32,
    /// The site.
    pub site: Name,
    /// The revision planned, and the one in force.
    pub revision: Revisions,
    /// The generation in force, and the one that this plan leads to.
    pub generation: Generations,
    /// Changes to named objects of the configuration.
    pub objects: Vec<ObjectChange>,
    /// Changes to the kernel that come from the configuration or from the network around us.
    pub changes: Vec<Step>,
    /// Changes to the kernel that put back what someone else changed.
    pub drift: Vec<Step>,
    /// What becomes of each policy that is affected.
    pub consequences: Vec<Consequence>,
    /// What a person should think about first.
    pub risks: Vec<String>,
    /// Whose each table is.
    pub tables: BTreeMap<u32, String>,
    /// Counts.
    pub summary: Summary,
}

/// Revisions of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Revisions {
    /// Planned.
    pub to: String,
    /// In force.
    pub from: Option<String>,
}

/// Generations of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Generations {
    /// In force; 0 before the first.
    pub from: u64,
    /// Led to; the same when there is nothing to do.
    pub to: u64,
}

/// A change to a named object of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectChange {
    /// `policy`, `path`, `failover`, `endpoint` or `lan`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What happens.
    pub action: Action,
    /// One line per field: `match.dscp: [ef] -> [ef, cs5]`, or a description of what appears.
    pub details: Vec<String>,
}

/// What becomes of a policy's traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Consequence {
    /// The policy.
    pub policy: Name,
    /// Where its traffic went; `None` = not matched before.
    pub from: Option<Route>,
    /// Where it goes; `None` = no longer matched.
    pub to: Option<Route>,
    /// What is bad about it.
    pub risk: Option<String>,
}

/// Where a policy's traffic goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The path in use, or `drop`, `reject`, `none`.
    pub path: String,
    /// Paths that would take over, in order.
    pub backups: Vec<String>,
    /// All paths that share its new flows, where several do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<String>,
}

impl Route {
    /// The path, or all that share, as people read it: `fiber + lte`.
    #[must_use]
    pub fn told(&self) -> String {
        if self.shares.is_empty() { self.path.clone() } else { self.shares.join(" + ") }
    }
}

/// Counts of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Kernel objects added.
    pub add: usize,
    /// Kernel objects changed.
    pub change: usize,
    /// Kernel objects removed.
    pub remove: usize,
    /// How many of them only put back what someone else changed.
    pub drifted: usize,
    /// Risks.
    pub risks: usize,
}

/// Makes the report of a plan.
#[must_use]
pub fn report(inputs: &Inputs<'_>, site: Name, revision: Revisions, generation: u64) -> Report {
    let is_drift = |step: &&Step| inputs.applied.is_some_and(|applied| drifted(step, applied));
    let (drift, changes): (Vec<&Step>, Vec<&Step>) = inputs.steps.iter().partition(is_drift);
    let consequences = consequences(inputs);
    let mut risks: Vec<String> =
        consequences.iter().filter_map(|c| Some(format!("{}: {}", c.policy, c.risk.as_ref()?))).collect();
    risks.extend(inputs.obstacles.iter().cloned());
    risks.extend(inputs.intruders.iter().map(String::as_str).map(intruder));
    let count = |action| inputs.steps.iter().filter(|s| s.action() == action).count();
    let summary = Summary {
        add: count(Action::Add),
        change: count(Action::Change),
        remove: count(Action::Remove),
        drifted: drift.len(),
        risks: risks.len(),
    };
    Report {
        format_version: 1,
        site,
        revision,
        generation: Generations { from: generation, to: generation + u64::from(!inputs.steps.is_empty()) },
        objects: object_changes(inputs.old.map(|v| v.site), inputs.new.map(|v| v.site)),
        changes: changes.into_iter().cloned().collect(),
        drift: drift.into_iter().cloned().collect(),
        consequences,
        risks,
        tables: inputs.numbers.iter().map(|(t, n)| (inputs.ranges.table(*n), t.to_string())).collect(),
        summary,
    }
}

/// Whether a step only brings back what was applied before.
#[must_use]
pub fn drifted(step: &Step, applied: &State) -> bool {
    match step {
        Step::Set { key: Key::Sysctl(_), before, after, .. } if before.is_none() || after.is_none() => false,
        // What goes with its interface and is made again was not changed by anybody.
        Step::Set { before, after, .. } if before == after => false,
        Step::Set { key, after, .. } => applied.objects.get(key) == after.as_ref(),
        Step::Forget { .. } => false,
    }
}

type Objects = BTreeMap<(&'static str, String), Json>;

fn objects(site: Option<&Site>) -> Objects {
    let Some(site) = site else { return Objects::new() };
    let json = |v: &dyn erased::Json| v.json();
    let mut all = Objects::new();
    all.extend(site.policies.iter().map(|p| (("policy", p.name.to_string()), json(p))));
    all.extend(site.paths.iter().map(|(n, p)| (("path", n.to_string()), json(p))));
    all.extend(site.rules.iter().map(|(n, r)| (("failover", n.to_string()), json(r))));
    all.extend(site.endpoints.iter().map(|(n, e)| (("endpoint", n.to_string()), json(e))));
    all.extend(site.lan.iter().map(|l| (("lan", l.interface.to_string()), json(l))));
    all
}

/// Serialising any of the intent's types, behind one object-safe face.
mod erased {
    pub(super) trait Json {
        fn json(&self) -> serde_json::Value;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> serde_json::Value {
            serde_json::to_value(self).unwrap_or_default()
        }
    }
}

/// The difference of two sites, by named object.
#[must_use]
pub fn object_changes(old: Option<&Site>, new: Option<&Site>) -> Vec<ObjectChange> {
    let (before, after) = (objects(old), objects(new));
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let change = |key: &(&'static str, String)| {
        let (kind, name) = key;
        let (action, details) = match (before.get(key), after.get(key)) {
            (Some(a), Some(b)) if a == b => return None,
            (Some(a), Some(b)) => (Action::Change, changed(key, (a, b), new)),
            (None, Some(_)) => (Action::Add, new.map(|s| describe(s, kind, name)).unwrap_or_default()),
            (_, None) => (Action::Remove, old.map(|s| used_by(s, kind, name)).unwrap_or_default()),
        };
        Some(ObjectChange { kind, name: name.clone(), action, details })
    };
    keys.into_iter().filter_map(change).collect()
}

/// What differs, and what a change of probing comes to.
fn changed((kind, name): &(&'static str, String), (before, after): (&Json, &Json), new: Option<&Site>) -> Vec<String> {
    let mut lines = fields(before, after);
    let path = new.and_then(|s| s.paths.get(name.as_str())).filter(|_| *kind == "path");
    if let Some(path) = path.filter(|p| !p.probe.targets.is_empty() && before["probe"] != after["probe"]) {
        lines.push(cost(&path.probe));
    }
    lines
}

/// The leaves that differ, as `field.of.field: old -> new`.
fn fields(before: &Json, after: &Json) -> Vec<String> {
    let (mut a, mut b) = (BTreeMap::new(), BTreeMap::new());
    leaves("", before, &mut a);
    leaves("", after, &mut b);
    let paths: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let none = || "none".to_owned();
    paths
        .into_iter()
        .filter(|p| a.get(*p) != b.get(*p))
        .map(|p| {
            format!("{p}: {} -> {}", a.get(p).cloned().unwrap_or_else(none), b.get(p).cloned().unwrap_or_else(none))
        })
        .collect()
}

fn leaves(path: &str, value: &Json, out: &mut BTreeMap<String, String>) {
    match value {
        Json::Object(map) => {
            for (key, value) in map {
                let longer = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(&longer, value, out);
            }
        }
        Json::Null => {}
        Json::Array(items) if items.is_empty() => {}
        other => {
            out.insert(path.to_owned(), plain(other));
        }
    }
}

fn plain(value: &Json) -> String {
    match value {
        Json::String(s) => s.clone(),
        Json::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

fn describe(site: &Site, kind: &str, name: &str) -> Vec<String> {
    let text = match kind {
        "path" => site.paths.get(name).map(|path| describe_path(path)),
        "failover" => site.rules.get(name).map(describe_rule),
        "policy" => site
            .policies
            .iter()
            .find(|p| p.name.as_str() == name)
            .map(|p| format!("priority {}, to {}", p.priority, action_text(&p.action))),
        "endpoint" => site.endpoints.get(name).map(|e| e.interface.to_string()),
        _ => None,
    };
    text.into_iter().collect()
}

fn describe_rule(rule: &intent::Rule) -> String {
    if let Some(full) = rule.overflow {
        return format!("{} in turn: new flows go on above {full} of a line", join(&rule.members));
    }
    let Some(balance) = &rule.balance else { return format!("{} in order", join(&rule.members)) };
    let shares: Vec<String> = rule.members.iter().map(|m| format!("{m} {}", balance.share(m))).collect();
    let by = match balance.sticky {
        None => "every flow for itself",
        Some(intent::Sticky::Source) => "all flows of a source together",
        Some(intent::Sticky::Pair) => "all flows from a source to a destination together",
    };
    format!("shared: {}; {by}", shares.join(", "))
}

fn describe_path(path: &intent::Path) -> String {
    let probe = &path.probe;
    if probe.targets.is_empty() {
        return format!("{}, not probed", path.interface);
    }
    let how = match &probe.method {
        intent::Method::Icmp => String::new(),
        intent::Method::Gateway => return format!("{}, its gateway, {}", path.interface, cost(probe)),
        method => format!(" by {}", method.text()),
    };
    let targets = plural(probe.targets.len(), "target");
    format!("{}, {targets}{how}, {}", path.interface, cost(probe))
}

/// When a probe finds an outage, and what it takes for that.
fn cost(probe: &intent::Probe) -> String {
    let (lost, worst, volume) = (probe.down_after, seconds(probe.detection_time()), volume(probe.bytes_per_day()));
    format!("down after {lost} lost (at most {worst}), probes {volume} a day")
}

/// Bytes as a person says them: `43.5 MB`.
#[allow(clippy::cast_precision_loss)]
fn volume(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.0} kB", bytes as f64 / 1e3),
    }
}

/// A duration as a person says it: `3.8 s`.
fn seconds(d: std::time::Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

fn used_by(site: &Site, kind: &str, name: &str) -> Vec<String> {
    if kind != "path" {
        return vec![];
    }
    let role = |r: &intent::Rule| match r.members.iter().position(|m| m.as_str() == name) {
        Some(0) => Some(format!("failover {} (primary)", r.name)),
        Some(_) => Some(format!("failover {} (backup)", r.name)),
        None => None,
    };
    let users: Vec<String> = site.rules.values().filter_map(role).collect();
    if users.is_empty() { vec![] } else { vec![format!("was used by: {}", users.join(", "))] }
}

fn join(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

/// An action as text: `failover/critical`, `path/fiber`, `drop`, `reject`.
#[must_use]
pub fn action_text(action: &intent::Action) -> String {
    match action {
        intent::Action::Failover(rule) => format!("failover/{rule}"),
        intent::Action::Path(path) => format!("path/{path}"),
        intent::Action::Drop => "drop".into(),
        intent::Action::Reject => "reject".into(),
    }
}

fn consequences(inputs: &Inputs<'_>) -> Vec<Consequence> {
    let routes = |view: Option<View<'_>>| -> BTreeMap<Name, Route> {
        let policies = view.into_iter().flat_map(|v| v.site.policies.iter().map(move |p| (v, p)));
        policies.map(|(v, p)| (p.name.clone(), route(v, p))).collect()
    };
    let (old, new) = (routes(inputs.old), routes(inputs.new));
    let names: BTreeSet<&Name> = old.keys().chain(new.keys()).collect();
    let order = |name: &Name| {
        let position = |v: View<'_>| v.site.policies.iter().position(|p| p.name == *name);
        inputs.new.and_then(position).or_else(|| inputs.old.and_then(position))
    };
    let mut all: Vec<Consequence> = names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| {
            let (from, to) = (old.get(name).cloned(), new.get(name).cloned());
            Consequence { policy: name.clone(), risk: risk(from.as_ref(), to.as_ref()), from, to }
        })
        .collect();
    all.sort_by_key(|c| order(&c.policy));
    all
}

fn route(view: View<'_>, policy: &intent::Policy) -> Route {
    let mut shares = Vec::new();
    let (path, backups) = match &policy.action {
        intent::Action::Failover(rule) => {
            let choice = view.selection.rules.get(rule);
            shares.extend(choice.into_iter().flat_map(Choice::in_use).map(ToString::to_string));
            shares.truncate(if shares.len() > 1 { shares.len() } else { 0 });
            let active = choice.and_then(|c| c.active.as_ref()).map_or_else(|| "none".into(), ToString::to_string);
            (active, choice.map(|c| c.tail.iter().map(ToString::to_string).collect()).unwrap_or_default())
        }
        intent::Action::Path(path) => (path.to_string(), vec![]),
        other => (action_text(other), vec![]),
    };
    Route { path, backups, shares }
}

fn risk(from: Option<&Route>, to: Option<&Route>) -> Option<String> {
    let steered = |r: &Route| !["none", "drop", "reject"].contains(&r.path.as_str());
    match (from, to) {
        (Some(a), Some(b)) if steered(a) && b.path == "none" => Some("has no path any more".into()),
        (Some(a), Some(b)) if steered(a) && !steered(b) => Some(format!("goes from {} to {}", a.path, b.path)),
        (Some(a), Some(b)) if !a.backups.is_empty() && b.backups.is_empty() && steered(b) => {
            Some(if a.backups.len() == 1 { "loses its only backup" } else { "loses all its backups" }.into())
        }
        (Some(a), None) if steered(a) => {
            Some("is no longer matched: its traffic follows later policies or the main table".into())
        }
        _ => None,
    }
}
/// An object of others in our ranges, as plans and alarms show it.
#[must_use]
pub fn intruder(object: &str) -> String {
    format!("foreign object in our ranges, left alone: {object}; move it, or give the settings other `ranges`")
}
