//! What a deleted site takes with it, at itself and elsewhere.
//!
//! A deletion that leaves a reference to the site is an error of the head and never comes here; what does come here
//! is complete, so the cascade is told in full.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    units::{IfName, Name},
    validate::intent::{Action, Destination, Intent, Path, Policy, Rule, Site},
};

/// A site that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deletion {
    /// The site.
    pub site: Name,
    /// Networks behind it that no site of the head has.
    pub prefixes: Vec<Network>,
    /// Objects of its own that go with it.
    pub own: Own,
    /// What other sites lose.
    pub elsewhere: Vec<Taken>,
    /// Policies that still name its networks and no longer reach them there.
    pub left: Vec<Left>,
}

/// A network behind a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// The prefix.
    pub prefix: IpNet,
    /// The interface towards it.
    pub interface: IfName,
}

/// Counts of a site's own objects, those that apply to it by selector included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Own {
    /// Uplinks.
    pub endpoints: usize,
    /// Paths, tunnels included.
    pub paths: usize,
    /// Failover rules.
    pub failover: usize,
    /// Policies.
    pub policies: usize,
}

/// Something of another site that goes or changes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Whose it is.
    pub site: Name,
    /// `path`, `failover` or `policy`.
    pub kind: &'static str,
    /// Its name.
    pub name: Name,
    /// What becomes of it.
    pub what: String,
}

/// A policy that names a network that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Whose it is.
    pub site: Name,
    /// The policy.
    pub policy: Name,
    /// The network.
    pub prefix: IpNet,
}

/// What goes with a site.
#[must_use]
pub fn of(gone: &Site, base: &Intent, head: &Intent) -> Deletion {
    let kept: BTreeSet<IpNet> = head.sites().values().flat_map(|s| &s.lan).flat_map(|l| &l.prefixes).copied().collect();
    let networks = gone.lan.iter().flat_map(|lan| {
        lan.prefixes.iter().map(|prefix| Network { prefix: *prefix, interface: lan.interface.clone() })
    });
    let prefixes: Vec<Network> = networks.filter(|n| !kept.contains(&n.prefix)).collect();
    let others = base.sites().values().filter(|site| site.name != gone.name);
    let elsewhere = others.flat_map(|old| taken(&gone.name, old, head.sites().get(&old.name))).collect();
    let left = head.sites().values().flat_map(|site| left(site, &prefixes)).collect();
    let own = Own {
        endpoints: gone.endpoints.len(),
        paths: gone.paths.len(),
        failover: gone.rules.len(),
        policies: gone.policies.len(),
    };
    Deletion { site: gone.name.clone(), prefixes, own, elsewhere, left }
}

/// What a site loses with the paths that led to the one that is gone.
fn taken(gone: &Name, old: &Site, new: Option<&Site>) -> Vec<Taken> {
    let leads = |path: &&Arc<Path>| matches!(&path.to, Destination::Site { site, .. } if site == gone);
    let lost: BTreeSet<&Name> = old.paths.values().filter(leads).map(|p| &p.name).collect();
    let took = |kind, name: &Name, what| Taken { site: old.name.clone(), kind, name: name.clone(), what };
    let paths = lost.iter().map(|name| {
        let what = match new.and_then(|new| new.paths.get(*name)) {
            None => format!("tunnel to {gone}, removed"),
            Some(path) => format!("tunnel to {gone}, now leads to {}", to(path)),
        };
        took("path", name, what)
    });
    let uses = |rule: &&Rule| rule.members.iter().any(|m| lost.contains(m));
    let rules: Vec<&Rule> = old.rules.values().filter(uses).collect();
    let of_rules = rules.iter().map(|rule| {
        let what = match new.and_then(|new| new.rules.get(&rule.name)) {
            None => "removed".to_owned(),
            Some(now) => format!("members {} -> {}", join(&rule.members), join(&now.members)),
        };
        took("failover", &rule.name, what)
    });
    let steers = |policy: &&Policy| match &policy.action {
        Action::Path(path) => lost.contains(path),
        Action::Failover(rule) => rules.iter().any(|r| r.name == *rule),
        Action::Drop | Action::Reject => false,
    };
    let of_policies = old.policies.iter().filter(steers).map(|policy| {
        let now = new.and_then(|new| new.policies.iter().find(|p| p.name == policy.name));
        let what = now.map_or_else(|| format!("removed{}", led_to(policy)), |_| format!("stays{}", led_to(policy)));
        took("policy", &policy.name, what)
    });
    paths.chain(of_rules).chain(of_policies).collect()
}

fn to(path: &Path) -> String {
    match &path.to {
        Destination::Internet => "the internet".to_owned(),
        Destination::Site { site, endpoint, .. } => format!("{site}/{endpoint}"),
    }
}

fn led_to(policy: &Policy) -> String {
    let prefixes: Vec<String> = policy.matches.destination.iter().map(ToString::to_string).collect();
    if prefixes.is_empty() { String::new() } else { format!("; it led to {}", prefixes.join(", ")) }
}

fn join(names: &[Name]) -> String {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    format!("[{}]", names.join(", "))
}

fn left(site: &Site, gone: &[Network]) -> Vec<Left> {
    let named =
        |policy: &Policy, prefix: &IpNet| policy.matches.destination.iter().any(|d| prefix.contains(d) || d == prefix);
    let each = site.policies.iter().flat_map(|policy| {
        let hit = gone.iter().map(|n| n.prefix).filter(|prefix| named(policy, prefix));
        hit.map(|prefix| Left { site: site.name.clone(), policy: policy.name.clone(), prefix })
    });
    each.collect()
}
