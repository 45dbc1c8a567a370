//! What a change of the configuration means for every site, told before it is merged. Pure: two intents come in; no
//! kernel, no clock.
//!
//! A site is compiled from both as if its router had no surprises ([`desired::assumed`]) and every path were up, and
//! the difference is the plan that its router would make. On top comes what only a comparison can tell: what stops
//! when a single path fails ([`outage`]), and what a deleted site takes with it ([`deletion`]).
//!
//! Invariant: a preview is the difference of its two sides and of nothing else: the same two give the same bytes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use serde::Serialize;

pub mod deletion;
pub mod markdown;
pub mod outage;
pub mod text;

use self::{
    deletion::Deletion,
    outage::{Outage, outages},
};
use crate::{
    clock::Instant,
    desired::{self, CompileError, Compiled, assumed},
    failover::{self, Selection},
    health::{Healths, Measures},
    plan::{
        self, Action,
        report::{self, Report, Revisions, View},
    },
    state::{Allocations, Key, Ranges, State, Value},
    units::Name,
    validate::intent::{Intent, Site},
};

/// Version of the JSON form.
pub const FORMAT_VERSION: u32 = 1;

/// One side of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// What people call it: a branch, a commit, a directory.
    pub label: &'a str,
    /// What it means.
    pub intent: &'a Intent,
}

/// A change of the configuration, as every site sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Version of this format.
    pub format_version: u32,
    /// What is compared with.
    pub base: String,
    /// What is compared.
    pub head: String,
    /// Sites that change, the worst first.
    pub sites: Vec<SiteChange>,
    /// Sites that go.
    pub deletions: Vec<Deletion>,
    /// Warnings about the head that the base did not have, one line each.
    pub warnings: Vec<String>,
    /// Counts.
    pub summary: Summary,
}

/// What changes at one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SiteChange {
    /// The site.
    pub site: Name,
    /// Whether it is new or changes.
    pub action: Action,
    /// The plan that its router would make.
    pub plan: Report,
    /// What a single failure takes down that it did not take down before.
    pub outages: Vec<Outage>,
}

/// Counts of a preview.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Sites of the head.
    pub sites: usize,
    /// Of these, how many are new.
    pub added: usize,
    /// Of these, how many change.
    pub changed: usize,
    /// Sites that go.
    pub removed: usize,
    /// Sites with a risk or a new single point of failure.
    pub worse: usize,
    /// Objects of other sites that deletions take with them.
    pub taken: usize,
}

impl SiteChange {
    /// How bad it is: traffic without a path, then what a single failure stops, then lost backups, then moves.
    #[must_use]
    pub fn weight(&self) -> usize {
        let carried = |r: &Option<report::Route>| {
            r.as_ref().is_some_and(|r| !["none", "drop", "reject"].contains(&r.path.as_str()))
        };
        let one = |c: &report::Consequence| match c.risk {
            Some(_) if !carried(&c.to) => 1000,
            Some(_) => 50,
            None => 1,
        };
        let worse = self.outages.iter().filter(|o| o.before.is_some()).count();
        self.plan.consequences.iter().map(one).sum::<usize>() + 100 * worse
    }

    /// Whether something got worse.
    #[must_use]
    pub fn is_worse(&self) -> bool {
        !self.risks().is_empty()
    }

    /// What got worse, policy by policy. That a failure stops a policy says more than that it lost its backups.
    #[must_use]
    pub fn risks(&self) -> Vec<Risk<'_>> {
        let worse = || self.outages.iter().filter(|o| o.before.is_some());
        let at_once = self.plan.consequences.iter().filter_map(|c| Some((c, c.risk.as_ref()?)));
        let at_once = at_once.filter(|(c, _)| worse().all(|o| o.policy != c.policy));
        let at_once = at_once.map(|(c, risk)| Risk { policy: &c.policy, what: risk.clone() });
        let stops = worse().map(|o| Risk { policy: &o.policy, what: format!("stops if {} fails", o.fault) });
        at_once.chain(stops).collect()
    }
}

/// A policy that is left with less than it had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Risk<'a> {
    /// The policy.
    pub policy: &'a Name,
    /// What became of it.
    pub what: String,
}

impl Preview {
    /// Whether the two sides differ in anything that a router would do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty() && self.deletions.is_empty()
    }
}

/// Compares two configurations, for every site or one.
pub fn compare(base: Side<'_>, head: Side<'_>, only: Option<&Name>, ranges: &Ranges) -> Result<Preview, CompileError> {
    let (old, new) = (base.intent.sites(), head.intent.sites());
    let asked = |name: &&Name| only.is_none_or(|only| only == *name);
    let mut sites = Vec::new();
    for name in new.keys().filter(asked) {
        let labels = Revisions { to: head.label.to_owned(), from: Some(base.label.to_owned()) };
        sites.extend(site(old.get(name), &new[name], labels, ranges)?);
    }
    sites.sort_by_cached_key(|change| (Reverse(change.weight()), change.site.clone()));
    let gone: BTreeSet<&Name> = old.keys().filter(|name| !new.contains_key(*name)).collect();
    let deletions: Vec<Deletion> =
        gone.iter().copied().filter(asked).map(|name| deletion::of(&old[name], base.intent, head.intent)).collect();
    let count = |action| sites.iter().filter(|s| s.action == action).count();
    let summary = Summary {
        sites: new.len(),
        added: count(Action::Add),
        changed: count(Action::Change),
        removed: deletions.len(),
        worse: sites.iter().filter(|s| s.is_worse()).count(),
        taken: deletions.iter().map(|d| d.elsewhere.len()).sum(),
    };
    let (base, head) = (base.label.to_owned(), head.label.to_owned());
    Ok(Preview { format_version: FORMAT_VERSION, base, head, sites, deletions, warnings: Vec::new(), summary })
}

/// What one site's router would do; none where its site is the same.
fn site(
    old: Option<&Site>,
    new: &Site,
    labels: Revisions,
    ranges: &Ranges,
) -> Result<Option<SiteChange>, CompileError> {
    if old == Some(new) {
        return Ok(None);
    }
    let before = old.map(|site| Compilation::of(site, &Allocations::default(), ranges)).transpose()?;
    let known = before.as_ref().map(|b| b.compiled.allocations.clone()).unwrap_or_default();
    let after = Compilation::of(new, &known, ranges)?;
    let empty = State::default();
    let steps = plan::diff(&after.compiled.state, before.as_ref().map_or(&empty, |b| &b.compiled.state));
    let mut numbers: BTreeMap<_, _> = known.targets;
    numbers.extend(after.compiled.allocations.targets.clone());
    let inputs = report::Inputs {
        old: old.zip(before.as_ref()).map(|(site, b)| View { site, selection: &b.selection }),
        new: Some(View { site: new, selection: &after.selection }),
        steps: &steps,
        applied: None,
        intruders: &[],
        obstacles: &[],
        numbers: &numbers,
        ranges,
    };
    let plan = report::report(&inputs, new.name.clone(), labels, 0);
    let outages = outages(old, new);
    if plan.objects.is_empty() && plan.changes.is_empty() && plan.consequences.is_empty() && outages.is_empty() {
        return Ok(None);
    }
    let action = if old.is_some() { Action::Change } else { Action::Add };
    Ok(Some(SiteChange { site: new.name.clone(), action, plan, outages }))
}

/// A site as its router would have it.
struct Compilation {
    compiled: Compiled,
    selection: Selection,
}

impl Compilation {
    fn of(site: &Site, known: &Allocations, ranges: &Ranges) -> Result<Self, CompileError> {
        let (facts, originals) = (assumed::facts(site), BTreeMap::new());
        let begin = Instant::from_nanos(0);
        let (selection, _) = failover::select(site, &Healths::new(), &Measures::new(), &Selection::default(), begin);
        let inputs = desired::Inputs { selection: &selection, facts: &facts, known, ranges, originals: &originals };
        let mut compiled = desired::compile(site, inputs)?;
        // Without a kernel nobody knows how it would list the ruleset: sources are compared.
        if let Some(Value::Nft(table)) = compiled.state.objects.get_mut(&Key::Nft) {
            table.canonical = std::mem::take(&mut table.source);
        }
        Ok(Self { compiled, selection })
    }
}

/// Sites that change alike, for people: the same objects, the same consequences, the same risks.
#[derive(Debug)]
pub struct Group<'a> {
    /// The change, as the first of them has it.
    pub first: &'a SiteChange,
    /// All of them, by name.
    pub sites: Vec<&'a Name>,
}

/// Puts sites that change alike together, keeping the order of the worst.
#[must_use]
pub fn groups(sites: &[SiteChange]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for change in sites {
        let alike = likeness(change);
        let at = *known.entry(alike).or_insert_with(|| {
            groups.push(Group { first: change, sites: Vec::new() });
            groups.len() - 1
        });
        groups[at].sites.push(&change.site);
    }
    groups
}

/// Equal for sites whose change reads the same.
fn likeness(change: &SiteChange) -> String {
    let SiteChange { action, plan, outages, .. } = change;
    let alike = (action, &plan.objects, &plan.consequences, &plan.risks, outages, plan.summary);
    serde_json::to_string(&alike).unwrap_or_default()
}

#[cfg(test)]
mod tests;
