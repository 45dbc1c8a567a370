//! Which way a flow takes and why, by the configuration; and whether the kernel's own answer is the same. Pure.
//!
//! The model reads policies word by word, in their order, and shares no code with the classifier's layout or the
//! ruleset: it is the second opinion that they are tested against. The kernel cannot be asked what a ruleset would do
//! with a packet without sending one, so it is asked what it can tell without: the route lookup with the mark that the
//! model says, and the entry of connection tracking of that very flow.
//!
//! Invariant: whatever differs without an explanation is a disagreement, and a disagreement is an error.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

mod compare;
mod flow;

pub use self::{
    compare::{Compared, Kernel, Lookup, Ruleset, Tracked, compare},
    flow::{Asked, Flow, Origin, origin},
};
use crate::{
    desired,
    failover::{self, Choice, Selection},
    state::{Allocations, Facts, Fwmark, Ranges, RouteValue, Target},
    units::{Dscp, Family, IfName, Name, PortRange},
    validate::intent::{Action, Destination, Match, Nat, Path, Policy, Site},
};

/// What a flow is judged by.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The configuration.
    pub site: &'a Site,
    /// Which path each rule uses.
    pub selection: &'a Selection,
    /// Interfaces and gateways.
    pub facts: &'a Facts,
    /// Numbers of targets and policies in the loaded ruleset; empty if none is loaded.
    pub numbers: &'a Allocations,
    /// Our ranges.
    pub ranges: &'a Ranges,
}

/// What the configuration makes of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// Policies that are asked before the one that matches, each with why it does not.
    pub passed: Vec<Passed>,
    /// The policy that matches, with its priority.
    pub policy: Option<(Name, u32)>,
    /// What becomes of the flow.
    pub verdict: Verdict,
    /// DSCP that is set on it.
    pub dscp: Option<Dscp>,
}

/// A policy that does not match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// Its name.
    pub policy: Name,
    /// Its priority.
    pub priority: u32,
    /// The first thing that does not fit.
    pub why: String,
}

/// What becomes of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Verdict {
    /// It follows the main table.
    Main {
        /// Why.
        why: String,
    },
    /// Silently away.
    Drop,
    /// Away, with an answer.
    Reject,
    /// Onto a path.
    Steered(Box<Steered>),
}

/// Where a steered flow goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Steered {
    /// What it is sent to.
    #[serde(serialize_with = "as_text")]
    pub target: Target,
    /// The rule that chooses the path.
    pub rule: Option<Name>,
    /// The path; none if no path of the target can carry it now.
    pub path: Option<Name>,
    /// All paths that share the rule's new flows, where several do: which of them this flow draws is seen when it exists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Name>,
    /// Preferred paths that cannot carry it now, each with why.
    pub skipped: Vec<String>,
    /// The next hop.
    pub hop: Option<Hop>,
    /// What happens to its source address.
    pub nat: Option<String>,
    /// The mark of its packets; none if the loaded ruleset does not know the target.
    #[serde(serialize_with = "as_text_or_null")]
    pub mark: Option<Fwmark>,
    /// The routing table that this mark leads to.
    pub table: Option<u32>,
}

/// A next hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The interface.
    pub interface: IfName,
    /// The router there; none on a point-to-point link.
    pub gateway: Option<IpAddr>,
}

impl std::fmt::Display for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.gateway {
            Some(gateway) => write!(f, "out by {} via {gateway}", self.interface),
            None => write!(f, "out by {}", self.interface),
        }
    }
}

fn as_text<S: serde::Serializer>(value: &impl ToString, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&value.to_string())
}

// The signature is what serde calls.
#[allow(clippy::ref_option)]
fn as_text_or_null<T: ToString, S: serde::Serializer>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(s)
}

/// Judges a flow.
#[must_use]
pub fn model(flow: &Flow, origin: &Origin, world: &World<'_>) -> Model {
    if let Some(verdict) = unasked(flow, origin, world) {
        return Model { passed: Vec::new(), policy: None, verdict, dscp: None };
    }
    let mut passed = Vec::new();
    for policy in &world.site.policies {
        let why = why_not(&policy.matches, flow, origin).or_else(|| passes_on(policy, world));
        let Some(why) = why else {
            return Model {
                passed,
                policy: Some((policy.name.clone(), policy.priority)),
                verdict: verdict(&policy.action, flow, world),
                dscp: policy.set_dscp,
            };
        };
        passed.push(Passed { policy: policy.name.clone(), priority: policy.priority, why });
    }
    let verdict = Verdict::Main { why: "no policy matches".into() };
    Model { passed, policy: None, verdict, dscp: None }
}

/// What becomes of a flow that never meets the policies.
fn unasked(flow: &Flow, origin: &Origin, world: &World<'_>) -> Option<Verdict> {
    let to = flow.destination;
    let ours = world.facts.links.values().flat_map(|link| &link.addresses).any(|net| net.addr() == to);
    if let Origin::Path(name, _) = origin {
        let path = world.site.paths.get(name)?;
        let inside = world.site.lan.iter().flat_map(|lan| &lan.prefixes).any(|net| net.contains(&to));
        if path.to == Destination::Internet || inside {
            let why = format!("it comes in by the path {name}: no policy is asked, and its answers leave by {name}");
            return Some(Verdict::Main { why });
        }
    }
    let why = match to {
        _ if ours => "its destination is an address of this router",
        _ if to.is_multicast() || is_broadcast(to, world.facts) => "its destination is not one host",
        _ if to.is_loopback() => "it stays on this router",
        _ => return None,
    };
    Some(Verdict::Main { why: format!("{why}: no policy is asked") })
}

fn is_broadcast(to: IpAddr, facts: &Facts) -> bool {
    let mut nets = facts.links.values().flat_map(|link| &link.addresses);
    let last = |net: &IpNet| matches!(net, IpNet::V4(net) if net.prefix_len() < 31 && net.broadcast() == to);
    to == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) || nets.any(last)
}

/// A rule that has no path and lets its flows go to the next policy.
fn passes_on(policy: &Policy, world: &World<'_>) -> Option<String> {
    let Action::Failover(name) = &policy.action else { return None };
    let rule = world.site.rules.get(name)?;
    let passes = world.selection.passes_on(rule);
    passes.then(|| format!("its rule {name} has no path that is up, and says `noPath: nextPolicy`"))
}

/// The first thing of a match that a flow does not fit; none if it fits.
#[must_use]
pub fn why_not(matches: &Match, flow: &Flow, origin: &Origin) -> Option<String> {
    let within = |nets: &[IpNet], address: Option<IpAddr>| {
        nets.is_empty() || address.is_some_and(|address| nets.iter().any(|net| net.contains(&address)))
    };
    if let Some(wanted) = &matches.in_interface
        && Some(wanted) != origin.interface()
    {
        let is = origin.interface().map_or_else(|| "it is the router's own".into(), |i| format!("it comes in by {i}"));
        return Some(format!("{is}, not by {wanted}"));
    }
    if !within(&matches.source, flow.source) {
        let is = flow.source.map_or_else(|| "a source that is not given".into(), |a| format!("source {a}"));
        return Some(format!("{is} is not in {}", list(&matches.source)));
    }
    if !within(&matches.destination, Some(flow.destination)) {
        return Some(format!("destination {} is not in {}", flow.destination, list(&matches.destination)));
    }
    if !matches.protocols.is_empty() && !matches.protocols.contains(&flow.protocol.0) {
        let wanted: Vec<String> =
            matches.protocols.iter().map(|p| crate::config::scalars::Protocol(*p).to_string()).collect();
        return Some(format!("protocol {} is not {}", flow.protocol, wanted.join(", ")));
    }
    let source = wrong_port("source", &matches.source_ports, flow.source_port());
    if let Some(why) = source.or_else(|| wrong_port("destination", &matches.destination_ports, flow.destination_port)) {
        return Some(why);
    }
    let fits = matches.dscp.is_empty() || matches.dscp.iter().any(|dscp| dscp.value() == flow.class());
    let is = flow.dscp.map_or_else(|| "0".into(), |dscp| dscp.to_string());
    (!fits).then(|| format!("dscp {is} is not {}", list(&matches.dscp)))
}

fn wrong_port(which: &str, wanted: &[PortRange], port: Option<u16>) -> Option<String> {
    let fits = |port: u16| wanted.iter().any(|range| (range.first..=range.last).contains(&port));
    if wanted.is_empty() || port.is_some_and(fits) {
        return None;
    }
    let is = port.map_or_else(|| format!("it has no {which} port"), |port| format!("{which} port {port}"));
    Some(format!("{is}, not {}", list(wanted)))
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn verdict(action: &Action, flow: &Flow, world: &World<'_>) -> Verdict {
    match action {
        Action::Drop => Verdict::Drop,
        Action::Reject => Verdict::Reject,
        Action::Path(path) => Verdict::Steered(Box::new(steered(Target::Path(path.clone()), flow, world))),
        Action::Failover(rule) => Verdict::Steered(Box::new(steered(Target::Rule(rule.clone()), flow, world))),
    }
}

/// Where packets with the mark of a target go.
pub(crate) fn steered(target: Target, flow: &Flow, world: &World<'_>) -> Steered {
    let number = world.numbers.targets.get(&target).copied();
    let mark = |number| Fwmark { mark: world.ranges.target_mask.mark(number), mask: world.ranges.target_mask.bits() };
    let family = Family::of(&flow.destination);
    let mut skipped = Vec::new();
    let mut found = None;
    for path in order(&target, family, world).into_iter().filter_map(|name| world.site.paths.get(name)) {
        match hop(path, family, world) {
            Ok(hop) => {
                found = Some((path, hop));
                break;
            }
            Err(why) => skipped.push(format!("{}: {why}", path.name)),
        }
    }
    skipped.extend(found.as_ref().and_then(|(path, _)| left(&target, &path.name, family, world)));
    Steered {
        rule: match &target {
            Target::Path(_) => None,
            Target::Rule(rule) | Target::Member(rule, _) | Target::Share(rule, _) => Some(rule.clone()),
        },
        path: found.as_ref().map(|(path, _)| path.name.clone()),
        shares: shares(&target, world),
        nat: found.as_ref().and_then(|(path, hop)| translation(path, hop, family)),
        hop: found.map(|(_, hop)| hop),
        skipped,
        mark: number.map(mark),
        table: number.map(|number| world.ranges.table(number)),
        target,
    }
}

/// The mark that the first packet of a flow is routed by: that of its target, or of the path that it came in by.
#[must_use]
pub fn first_mark(origin: &Origin, model: &Model, world: &World<'_>) -> u32 {
    let of = |target: &Target| world.numbers.targets.get(target).map(|number| world.ranges.target_mask.mark(*number));
    match (&model.verdict, origin) {
        (Verdict::Steered(steered), _) => steered.mark.map_or(0, |mark| mark.mark),
        (Verdict::Main { .. }, Origin::Path(path, _)) => of(&Target::Path(path.clone())).unwrap_or(0),
        _ => 0,
    }
}

/// The facts with every link up, for a moment of which nothing but the choice is known.
#[must_use]
pub fn with_carrier(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    facts.links.values_mut().for_each(|link| (link.up, link.carrier) = (true, true));
    facts
}

/// The paths of a target in the order in which the kernel tries them.
fn order<'a>(target: &'a Target, family: Family, world: &World<'a>) -> Vec<&'a Name> {
    let choice = |rule: &Name| world.selection.rules.get(rule);
    let chosen = |rule: &Name| {
        let all = choice(rule).map(|c| c.in_family(family, c.active.iter().chain(&c.tail).collect()));
        all.unwrap_or_default()
    };
    match target {
        Target::Path(path) => vec![path],
        Target::Rule(rule) => chosen(rule),
        Target::Member(rule, path) => {
            let rule = world.site.rules.get(rule).zip(choice(rule));
            rule.map_or_else(|| vec![path], |(r, c)| failover::family_ways(world.site, r, c, path, family))
        }
        Target::Share(rule, path) => {
            let rule = world.site.rules.get(rule).zip(choice(rule));
            rule.map_or_else(|| vec![path], |(r, c)| failover::family_drawn(r, c, path, family))
        }
    }
}

/// Why a flow goes by this path and not by the one that its rule uses, where that is for its family.
fn left(target: &Target, taken: &Name, family: Family, world: &World<'_>) -> Option<String> {
    let (Target::Rule(rule) | Target::Member(rule, _) | Target::Share(rule, _)) = target else { return None };
    let choice = world.selection.rules.get(rule)?;
    let wanted = match target {
        Target::Member(_, path) | Target::Share(_, path) => path,
        _ => choice.active.as_ref()?,
    };
    let lame = choice.lame(wanted, family).filter(|_| wanted != taken)?;
    Some(format!("{wanted}: {family} alone left it ({})", lame.why))
}

/// The paths that share the new flows of a rule, where several do.
fn shares(target: &Target, world: &World<'_>) -> Vec<Name> {
    let Target::Rule(rule) = target else { return Vec::new() };
    let used: Vec<Name> = world.selection.rules.get(rule).into_iter().flat_map(Choice::in_use).cloned().collect();
    if used.len() > 1 { used } else { Vec::new() }
}

/// The next hop of a path as the kernel takes it: known, and with a carrier.
fn hop(path: &Path, family: Family, world: &World<'_>) -> Result<Hop, String> {
    let interface = path.interface.clone();
    let Some(RouteValue::Via { gateway, .. }) = desired::next_hops(world.site, path, world.facts).remove(&family)
    else {
        let why = desired::obstacle(world.site, path, world.facts)
            .map(|why| why.split_once(": ").map_or(why.clone(), |w| w.1.to_owned()));
        return Err(why.unwrap_or_else(|| format!("it has no next hop for {family}")));
    };
    let link = world.facts.links.get(&interface);
    if link.is_some_and(|link| !link.carrier) {
        return Err(format!("{interface} has no carrier, and the kernel takes the next one"));
    }
    Ok(Hop { interface, gateway })
}

fn translation(path: &Path, hop: &Hop, family: Family) -> Option<String> {
    match path.nat {
        Nat::Masquerade => Some(format!("source address becomes that of {}", hop.interface)),
        Nat::Snat(to) if Family::of(&to) == family => Some(format!("source address becomes {to}")),
        Nat::None | Nat::Snat(_) => None,
    }
}

#[cfg(test)]
mod tests;
