//! What stops when a single path fails, and stops only since the change.
//!
//! Static: no health, no probes. A policy goes on while one of its paths is left; which one takes over is the order
//! that the configuration gives.

use std::{collections::BTreeSet, fmt};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    units::Name,
    validate::intent::{Action, NoPath, Policy, Site},
};

/// What fails.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// One path.
    Path(Name),
    /// An uplink with all paths over it.
    Uplink(Name),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "path {path}"),
            Self::Uplink(endpoint) => write!(f, "uplink {endpoint}"),
        }
    }
}

/// A policy whose traffic stops with one failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outage {
    /// What fails.
    pub fault: Fault,
    /// The policy.
    pub policy: Name,
    /// Where it leads, if not everywhere.
    pub destination: Vec<IpNet>,
    /// The path that carried its traffic through that failure before the change; none if the policy is new.
    pub before: Option<Name>,
    /// What happens to the traffic then.
    pub then: Then,
}

/// What happens to traffic without a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// It is sent into the dead path: it may be only the probes that fail.
    Lost,
    /// It is answered with an ICMP error.
    Rejected,
}

/// What a single failure stops at `new` that it did not stop at `old`.
#[must_use]
pub fn outages(old: Option<&Site>, new: &Site) -> Vec<Outage> {
    let mut found: Vec<Outage> = Vec::new();
    for fault in faults(new) {
        let dead = dead(new, &fault);
        for policy in &new.policies {
            // What stops with one path of an uplink stops with the uplink.
            let told =
                found.iter().any(|o| o.policy == policy.name && path_of(&o.fault).is_some_and(|p| dead.contains(p)));
            if !told && stops(new, policy, &dead) {
                found.extend(outage(old, new, &fault, policy));
            }
        }
    }
    found
}

fn outage(old: Option<&Site>, new: &Site, fault: &Fault, policy: &Policy) -> Option<Outage> {
    let was = old.and_then(|site| Some((site, site.policies.iter().find(|p| p.name == policy.name)?)));
    let before = match was {
        Some((site, was)) => Some(survivor(site, was, &dead(site, fault))?.clone()),
        None => None,
    };
    let (fault, policy_name) = (fault.clone(), policy.name.clone());
    let destination = policy.matches.destination.clone();
    Some(Outage { fault, policy: policy_name, destination, before, then: then(new, policy) })
}

/// Every path, then every uplink that carries more than one.
fn faults(site: &Site) -> Vec<Fault> {
    let paths = site.paths.keys().cloned().map(Fault::Path);
    let shared = site.endpoints.keys().filter(|e| site.paths.values().filter(|p| p.from == **e).count() > 1);
    paths.chain(shared.cloned().map(Fault::Uplink)).collect()
}

fn dead<'a>(site: &'a Site, fault: &'a Fault) -> BTreeSet<&'a Name> {
    match fault {
        Fault::Path(path) => BTreeSet::from([path]),
        Fault::Uplink(endpoint) => site.paths.values().filter(|p| p.from == *endpoint).map(|p| &p.name).collect(),
    }
}

const fn path_of(fault: &Fault) -> Option<&Name> {
    match fault {
        Fault::Path(path) => Some(path),
        Fault::Uplink(_) => None,
    }
}

/// The paths of a policy, in order; none where it steers onto no path.
fn paths<'a>(site: &'a Site, policy: &'a Policy) -> Vec<&'a Name> {
    match &policy.action {
        Action::Failover(rule) => site.rules.get(rule).into_iter().flat_map(|rule| &rule.members).collect(),
        Action::Path(path) => vec![path],
        Action::Drop | Action::Reject => Vec::new(),
    }
}

fn survivor<'a>(site: &'a Site, policy: &'a Policy, dead: &BTreeSet<&Name>) -> Option<&'a Name> {
    paths(site, policy).into_iter().find(|path| !dead.contains(path))
}

fn stops(site: &Site, policy: &Policy, dead: &BTreeSet<&Name>) -> bool {
    let paths = paths(site, policy);
    !paths.is_empty() && paths.iter().all(|path| dead.contains(path))
}

fn then(site: &Site, policy: &Policy) -> Then {
    match &policy.action {
        Action::Failover(rule) if site.rules.get(rule).is_some_and(|r| r.no_path == NoPath::Reject) => Then::Rejected,
        _ => Then::Lost,
    }
}
