//! The model beside what the kernel tells: where they differ, and whether that has an explanation.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{Flow, Hop, Model, Steered, Verdict, World, steered};
use crate::state::Target;

/// What the kernel tells of a flow without a packet being sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// Our ruleset, as far as it decides the mark.
    pub ruleset: Ruleset,
    /// The route of a new flow's first packet, with the mark that the model says.
    pub route: Lookup,
    /// The entry of the flow in connection tracking.
    pub tracked: Option<Tracked>,
    /// The route of this flow's next packet, with the mark of that entry.
    pub bound: Option<Lookup>,
    /// Rules of others that are asked before ours, one line each.
    pub ahead: Vec<String>,
}

/// How our ruleset in the kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ruleset {
    /// As it was applied.
    Intact,
    /// Somebody changed it.
    Changed,
    /// None of ours is loaded.
    Missing,
    /// There, and nobody remembers how it was applied.
    Unknown,
}

/// What a route lookup of the kernel answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Lookup {
    /// A route.
    Route {
        /// The table that has it.
        table: u32,
        /// What it matches.
        destination: IpNet,
        /// The next hop; none if it has several or an unknown one.
        hop: Option<Hop>,
    },
    /// Delivered to this machine.
    Local,
    /// Refused: `unreachable`, `prohibit`, `blackhole`, or nothing matches.
    Unreachable,
    /// The lookup failed, in the kernel's words: an input interface that is not there, or a source that cannot be there.
    Refused {
        /// Why.
        why: String,
    },
}

impl std::fmt::Display for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Route { table, destination, hop } => {
                match hop {
                    Some(hop) => write!(f, "{hop}")?,
                    None => f.write_str("by several next hops")?,
                }
                let name = if *table == MAIN { "main".to_owned() } else { table.to_string() };
                write!(f, ", route {destination} of table {name}")
            }
            Self::Local => f.write_str("to this router itself"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Refused { why } => write!(f, "refused: {why}"),
        }
    }
}

/// An entry of connection tracking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tracked {
    /// Its whole mark.
    pub mark: u32,
    /// What its source address became; absent where it stayed.
    pub source_became: Option<IpAddr>,
    /// The target that its mark names.
    #[serde(serialize_with = "super::as_text_or_null")]
    pub target: Option<Target>,
}

/// The result of the comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Differences that are as they should be, each with why.
    pub explained: Vec<String>,
    /// Differences that are not.
    pub disagreements: Vec<String>,
}

const MAIN: u32 = 254;

/// Compares the model of a flow with what the kernel tells of it.
#[must_use]
pub fn compare(flow: &Flow, model: &Model, kernel: &Kernel, world: &World<'_>) -> Compared {
    let mut found = Compared::default();
    ruleset(model, kernel, &mut found);
    match &model.verdict {
        Verdict::Steered(wanted) if wanted.mark.is_some() => route(wanted, &kernel.route, kernel, &mut found),
        Verdict::Steered(wanted) if kernel.ruleset != Ruleset::Missing => {
            let text = format!(
                "the loaded ruleset does not know {}: what is loaded is of another revision; `patronus plan`",
                wanted.target
            );
            found.disagreements.push(text);
        }
        Verdict::Main { .. } => main(&kernel.route, kernel, world, &mut found),
        _ => {}
    }
    if let Some(tracked) = &kernel.tracked {
        pinned(flow, model, tracked, kernel, world, &mut found);
    }
    found
}

/// The loaded ruleset makes the mark; whether it is the one that was applied can be seen.
fn ruleset(model: &Model, kernel: &Kernel, found: &mut Compared) {
    let asked = model.policy.is_some() || !model.passed.is_empty();
    match kernel.ruleset {
        Ruleset::Missing if asked => found.disagreements.push(
            "no ruleset of ours is loaded: every flow follows the main table; `patronus plan` shows what is missing"
                .into(),
        ),
        Ruleset::Changed if asked => found.disagreements.push(
            "somebody changed our ruleset, so that flows may get other marks than these; `patronus drift` shows how"
                .into(),
        ),
        _ => {}
    }
}

/// The lookup with the mark must end where the model ends, or in a more specific route of the main table.
fn route(wanted: &Steered, is: &Lookup, kernel: &Kernel, found: &mut Compared) {
    match (is, &wanted.hop) {
        (Lookup::Route { table, destination, hop: Some(hop) }, _) if *table == MAIN && destination.prefix_len() > 0 => {
            let text = format!(
                "the main table has a route of its own for {destination} ({hop}), and specific routes win over every policy"
            );
            found.explained.push(text);
        }
        (Lookup::Route { table, hop: Some(hop), .. }, Some(model)) if Some(*table) == wanted.table && hop == model => {}
        (Lookup::Local, _) => found.explained.push("the kernel takes it for itself: a local address".into()),
        (Lookup::Unreachable, None) => {}
        (is, _) => {
            let model = wanted.hop.as_ref().map_or_else(|| "unreachable".to_owned(), ToString::to_string);
            let table = wanted.table.map(|table| format!(" by table {table}")).unwrap_or_default();
            found
                .disagreements
                .push(format!("the model says {model}{table}; the kernel says {is}{}", because(is, wanted, kernel)));
        }
    }
}

/// The likely reason of a lookup that ends elsewhere.
fn because(is: &Lookup, wanted: &Steered, kernel: &Kernel) -> String {
    match is {
        Lookup::Route { table, .. } if Some(*table) == wanted.table => {
            ": its table has another route than the selection says; `patronus plan`, `patronus drift`".into()
        }
        _ if !kernel.ahead.is_empty() => format!(": {}", kernel.ahead.join("; ")),
        Lookup::Refused { .. } => ": is the input interface there, and does the source belong behind it?".into(),
        _ => ": a rule is missing, or another one is asked before ours; `patronus drift`, `ip rule`".into(),
    }
}

/// What no policy takes must not end in a table of ours.
fn main(is: &Lookup, kernel: &Kernel, world: &World<'_>, found: &mut Compared) {
    if let Lookup::Route { table, .. } = is
        && world.ranges.owns_table(*table)
        && kernel.ruleset != Ruleset::Missing
    {
        found.disagreements.push(format!("the model leaves it to the main table; the kernel says {is}"));
    }
}

/// A flow that exists goes where its mark says, whatever a new one would do.
fn pinned(flow: &Flow, model: &Model, tracked: &Tracked, kernel: &Kernel, world: &World<'_>, found: &mut Compared) {
    let number = world.ranges.target_mask.number(tracked.mark);
    let Some(target) = &tracked.target else {
        let text = match (number, &model.verdict) {
            (0, Verdict::Steered(_)) => {
                "this flow exists without a mark of ours: it began before its policy was in force, or goes by a specific route; \
                 it stays where it is until it ends"
            }
            (0, _) => return,
            _ => {
                let text = format!("this flow has the mark of target {number}, which nobody has; `patronus plan`");
                found.disagreements.push(text);
                return;
            }
        };
        found.explained.push(text.into());
        return;
    };
    let bound = steered(target.clone(), flow, world);
    if let Some(is) = &kernel.bound {
        route(&bound, is, kernel, found);
    }
    let new = match &model.verdict {
        Verdict::Steered(new) => new.path.as_ref(),
        _ => None,
    };
    if let Some(path) = bound.path.as_ref().filter(|path| Some(*path) != new) {
        let shares = matches!(&model.verdict, Verdict::Steered(new) if new.shares.contains(path));
        if shares {
            found.explained.push(format!("this flow exists and drew {path}, one of the paths that share"));
            return;
        }
        let why = match (target, tracked.source_became) {
            (Target::Member(rule, _), Some(address)) => format!(
                "it began when {rule} used {path} and its source address became {address}; moving would break it, so it stays until it ends"
            ),
            _ => "it is bound to where it began".to_owned(),
        };
        found.explained.push(format!("this flow exists and goes by {path}, a new one would not: {why}"));
    }
}
