//! What no commit may do to this router, by the router's own settings.
//!
//! Two kinds of refusal. What touches the *protected* networks, interfaces and ports is refused whatever anybody
//! says: the settings are the only place to change that. What is merely *large* (most of our objects deleted, a
//! policy without a usable path, everything gone) is refused until somebody says that it is meant: `--allow-large`,
//! or the trailer `Patronus-Allow-Large: yes` of the commit.
//!
//! What counts is what would be in force, not what the YAML is called: the way that the kernel takes to a protected
//! network, the interface under an endpoint, the paths that a policy is left with.
//!
//! Deletions are counted net of additions, and a site of few objects is never refused for their share: whoever
//! replaces one uplink of two, or renames what is there, has not deleted half of his network.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{
    desired,
    state::{Facts, Way},
    units::{IfName, Name, Ratio},
    validate::intent::{Action, Nat, Path, Policy, Site},
};

/// Fewer deletions than this are not weighed by their share.
const FEW: usize = 4;

/// Management access that no commit may cut off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Protected {
    /// Networks that manage this router.
    pub prefixes: Vec<IpNet>,
    /// Interfaces that nothing is steered by.
    pub interfaces: Vec<IfName>,
    /// TCP and UDP ports that no policy drops or rejects by name.
    pub ports: Vec<u16>,
}

/// How large a change may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Share of our objects that one change may delete.
    pub largest_deletion: Ratio,
}

impl Default for Limits {
    fn default() -> Self {
        Self { largest_deletion: Ratio::of(1, 2) }
    }
}

/// A change of the configuration, and the machine that it would meet.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// What is in force, if anything.
    pub old: Option<&'a Site>,
    /// What shall be.
    pub new: &'a Site,
    /// Interfaces, addresses, gateways.
    pub facts: &'a Facts,
    /// How the kernel reaches each protected network now.
    pub ways: &'a BTreeMap<IpNet, Way>,
}

/// Why a change is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A policy would take traffic to a protected network along, since only the default route leads there.
    #[error(
        "policy {policy} would steer traffic to the protected network {prefix}, which only the default route leads to ({way})"
    )]
    Steered {
        /// The policy.
        policy: Name,
        /// The network.
        prefix: IpNet,
        /// How it is reached.
        way: Way,
    },
    /// An uplink, a tunnel or a LAN stands on a protected interface.
    #[error("{object} would use the protected interface {interface}")]
    Interface {
        /// What would use it.
        object: String,
        /// The interface.
        interface: IfName,
    },
    /// Addresses of a protected network would be translated.
    #[error("path {path} would translate addresses of the protected network {prefix}: {how}")]
    Translated {
        /// The path.
        path: Name,
        /// The network.
        prefix: IpNet,
        /// In which way.
        how: String,
    },
    /// A policy drops or rejects a protected port by name.
    #[error("policy {policy} would cut the protected port {port}")]
    Port {
        /// The policy.
        policy: Name,
        /// The port.
        port: u16,
    },
    /// More objects would be deleted than the settings allow.
    #[error("{removed} of {of} objects would be deleted ({percent} %), and at most {limit} may be: {names}")]
    Large {
        /// Deleted, less what is added.
        removed: usize,
        /// How many there are.
        of: usize,
        /// The share.
        percent: usize,
        /// The largest share.
        limit: Ratio,
        /// Some of them.
        names: String,
    },
    /// A policy would be left without a path that can be used.
    #[error("policy {policy} would lose its last usable path: {why}")]
    LastPath {
        /// The policy.
        policy: Name,
        /// What becomes of it.
        why: String,
    },
    /// Nothing would be left of what is there.
    #[error("all {of} objects of the site would be deleted, and nothing that is there now would stay")]
    Everything {
        /// How many there are.
        of: usize,
    },
}

impl Refusal {
    /// Its stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Steered { .. } => "PAT0901",
            Self::Interface { .. } => "PAT0902",
            Self::Translated { .. } => "PAT0903",
            Self::Port { .. } => "PAT0904",
            Self::Large { .. } => "PAT0911",
            Self::LastPath { .. } => "PAT0912",
            Self::Everything { .. } => "PAT0913",
        }
    }

    /// Whether somebody may say that it is meant.
    #[must_use]
    pub const fn is_large(&self) -> bool {
        matches!(self, Self::Large { .. } | Self::LastPath { .. } | Self::Everything { .. })
    }

    /// What to do next.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Steered { prefix, .. } => {
                format!("add a route of its own for {prefix} to the main table, or narrow the policy's match")
            }
            Self::Interface { .. } => {
                "take another interface; `protected.interfaces` is in the router's settings".into()
            }
            Self::Translated { .. } => "keep management off that uplink, or set `nat: none`".into(),
            Self::Port { .. } => {
                "leave the port out of the match; `protected.ports` is in the router's settings".into()
            }
            Self::Large { .. } | Self::LastPath { .. } | Self::Everything { .. } => {
                "if it is meant: `apply --allow-large`, or the trailer `Patronus-Allow-Large: yes` in the commit".into()
            }
        }
    }

    /// All of it on one line.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{self} [{}]; {}", self.code(), self.remedy())
    }
}

/// All that speaks against a change; `allow_large` leaves only what nobody may allow.
#[must_use]
pub fn check(change: &Change<'_>, protected: &Protected, limits: Limits, allow_large: bool) -> Vec<Refusal> {
    let mut found = guarded(change, protected);
    if !allow_large {
        found.extend(large(change, limits));
    }
    found
}

fn guarded(change: &Change<'_>, protected: &Protected) -> Vec<Refusal> {
    let mut found = steered(change, protected);
    found.extend(interfaces(change.new, protected));
    found.extend(change.new.paths.values().filter_map(|path| translated(change, path, protected)));
    found.extend(change.new.policies.iter().filter_map(|policy| port(policy, protected)));
    found
}

/// Specific routes of the main table win over every policy; a network that has none goes where the policy says.
/// A policy that names it is refused when the configuration is checked.
fn steered(change: &Change<'_>, protected: &Protected) -> Vec<Refusal> {
    let catches = |policy: &&Policy, net: &IpNet| {
        let holds = |nets: &[IpNet]| nets.is_empty() || nets.iter().any(|n| n.contains(net) || net.contains(n));
        steers(policy) && holds(&policy.matches.destination) && policy.matches.in_interface.is_none()
    };
    let reached = protected.prefixes.iter().filter_map(|net| Some((net, change.ways.get(net)?)));
    let unsafe_ways = reached.filter(|(_, way)| !way.specific);
    let first = |(net, way): (&IpNet, &Way)| {
        let policy =
            change.new.policies.iter().find(|policy| catches(policy, net) && policy.matches.source.is_empty())?;
        Some(Refusal::Steered { policy: policy.name.clone(), prefix: *net, way: way.clone() })
    };
    unsafe_ways.filter_map(first).collect()
}

fn interfaces(site: &Site, protected: &Protected) -> Vec<Refusal> {
    let endpoints = site.endpoints.iter().map(|(name, e)| (format!("endpoint {name}"), &e.interface));
    let paths = site.paths.iter().map(|(name, path)| (format!("path {name}"), &path.interface));
    let policies =
        site.policies.iter().filter_map(|p| Some((format!("policy {}", p.name), p.matches.in_interface.as_ref()?)));
    let used: BTreeMap<&IfName, String> =
        policies.chain(paths).chain(endpoints).map(|(object, interface)| (interface, object)).collect();
    let protected: BTreeSet<&IfName> = protected.interfaces.iter().collect();
    let hit = |(interface, object): (&IfName, String)| Refusal::Interface { object, interface: interface.clone() };
    used.into_iter().filter(|(interface, _)| protected.contains(interface)).map(hit).collect()
}

fn translated(change: &Change<'_>, path: &Path, protected: &Protected) -> Option<Refusal> {
    let on_link = |net: &&IpNet| {
        let way = change.ways.get(*net);
        way.is_some_and(|way| way.specific && way.gateway.is_none() && way.interface == path.interface)
    };
    let (prefix, how) = match path.nat {
        Nat::None => return None,
        Nat::Masquerade => {
            let prefix = protected.prefixes.iter().find(on_link)?;
            (prefix, format!("it is on {}, where everything that leaves is masqueraded", path.interface))
        }
        Nat::Snat(to) => {
            let inside = protected.prefixes.iter().find(|net| net.contains(&to));
            (inside.or_else(|| protected.prefixes.iter().find(on_link))?, format!("sources become {to}"))
        }
    };
    Some(Refusal::Translated { path: path.name.clone(), prefix: *prefix, how })
}

fn port(policy: &Policy, protected: &Protected) -> Option<Refusal> {
    if steers(policy) {
        return None;
    }
    let ranges = policy.matches.source_ports.iter().chain(&policy.matches.destination_ports);
    let named = |port: &u16| ranges.clone().any(|range| (range.first..=range.last).contains(port));
    let port = *protected.ports.iter().find(|port| named(port))?;
    Some(Refusal::Port { policy: policy.name.clone(), port })
}

fn large(change: &Change<'_>, limits: Limits) -> Vec<Refusal> {
    let Some(old) = change.old else { return Vec::new() };
    let (before, after) = (objects(old), objects(change.new));
    if before.len() >= FEW && before.is_disjoint(&after) {
        return vec![Refusal::Everything { of: before.len() }];
    }
    let mut found: Vec<Refusal> = old.policies.iter().filter_map(|policy| last_path(change, old, policy)).collect();
    found.extend(share(&before, &after, limits));
    found
}

/// Everything of a site that has a name.
fn objects(site: &Site) -> BTreeSet<String> {
    let paths = site.paths.keys().map(|name| format!("path {name}"));
    let rules = site.rules.keys().map(|name| format!("failover {name}"));
    let policies = site.policies.iter().map(|policy| format!("policy {}", policy.name));
    paths.chain(rules).chain(policies).collect()
}

fn share(before: &BTreeSet<String>, after: &BTreeSet<String>, limits: Limits) -> Option<Refusal> {
    let gone: Vec<&str> = before.difference(after).map(String::as_str).collect();
    let removed = gone.len().saturating_sub(after.difference(before).count());
    let share = Ratio::of(removed, before.len());
    (removed >= FEW && share > limits.largest_deletion).then(|| Refusal::Large {
        removed,
        of: before.len(),
        percent: removed * 100 / before.len().max(1),
        limit: limits.largest_deletion,
        names: crate::diag::listed(&gone, 5),
    })
}

/// A policy that had a usable path and is there still, without any.
fn last_path(change: &Change<'_>, old: &Site, policy: &Policy) -> Option<Refusal> {
    if paths(old, policy).all(|path| desired::obstacle(old, path, change.facts).is_some()) {
        return None;
    }
    let now = change.new.policies.iter().find(|p| p.name == policy.name)?;
    let why = match &now.action {
        Action::Drop => "its traffic would be dropped".to_owned(),
        Action::Reject => "its traffic would be rejected".to_owned(),
        Action::Failover(_) | Action::Path(_) => {
            let obstacles = paths(change.new, now).map(|path| desired::obstacle(change.new, path, change.facts));
            obstacles.collect::<Option<Vec<String>>>()?.join("; ")
        }
    };
    Some(Refusal::LastPath { policy: policy.name.clone(), why })
}

/// The paths that a policy may take.
fn paths<'a>(site: &'a Site, policy: &'a Policy) -> impl Iterator<Item = &'a Path> {
    let names: &[Name] = match &policy.action {
        Action::Failover(rule) => site.rules.get(rule).map(|rule| &rule.members[..]).unwrap_or_default(),
        Action::Path(path) => std::slice::from_ref(path),
        Action::Drop | Action::Reject => &[],
    };
    names.iter().filter_map(|name| site.paths.get(name).map(AsRef::as_ref))
}

const fn steers(policy: &Policy) -> bool {
    matches!(policy.action, Action::Failover(_) | Action::Path(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{self, Snapshot},
        state::{Gateway, LinkFacts},
        units::Family,
        validate,
    };

    const SITE: &str = "apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  lan:
    - {interface: lan0, prefixes: [192.168.10.0/24]}
  endpoints:
    fiber: {interface: wan0, gateway: 198.51.100.1}
    lte:   {interface: wwan0, gateway: auto}
  paths:
    fiber: {from: fiber, to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9]}}
    lte:   {from: lte,   to: internet, nat: masquerade, probe: {targets: [1.1.1.1, 9.9.9.9]}}
  failover:
    critical: {primary: fiber, backups: [lte]}
  policies:
    voice:   {priority: 100, match: {protocol: udp, dscp: [ef]}, action: {failover: critical}}
    guests:  {priority: 200, match: {source: [192.168.10.128/25]}, action: {path: fiber}}
    default: {priority: 1000, action: {failover: critical}}
";

    fn site(text: &str) -> Site {
        let files = [("site.yaml".to_owned(), text.as_bytes().to_vec())].into_iter().collect();
        let (config, found) = config::load(&Snapshot { revision: "x".into(), files, commit: None });
        let (intent, more) = validate::check(&config);
        intent.unwrap_or_else(|| panic!("{found:?} {more:?}")).sites().values().next().unwrap().clone()
    }

    fn facts() -> Facts {
        let link = |address: &str, gateway: &str| LinkFacts {
            index: 1,
            up: true,
            carrier: true,
            mtu: 1500,
            addresses: vec![address.parse().unwrap()],
            gateways: [(Family::V4, Gateway::Address(gateway.parse().unwrap()))].into_iter().collect(),
            no_ipv6: false,
        };
        let links = [("wan0", "198.51.100.2/24", "198.51.100.1"), ("wwan0", "203.0.113.2/24", "203.0.113.1")];
        Facts { links: links.into_iter().map(|(n, a, g)| (n.parse().unwrap(), link(a, g))).collect() }
    }

    fn way(interface: &str, specific: bool) -> BTreeMap<IpNet, Way> {
        let way = Way { interface: interface.parse().unwrap(), gateway: None, specific };
        [("10.9.0.0/24".parse().unwrap(), way)].into_iter().collect()
    }

    fn protected() -> Protected {
        let prefixes = vec!["10.9.0.0/24".parse().unwrap()];
        Protected { prefixes, interfaces: vec!["mgmt0".parse().unwrap()], ports: vec![22] }
    }

    fn found(new: &str, ways: &BTreeMap<IpNet, Way>, allow_large: bool) -> Vec<String> {
        let (old, new, facts) = (site(SITE), site(new), facts());
        let change = Change { old: Some(&old), new: &new, facts: &facts, ways };
        let all = check(&change, &protected(), Limits::default(), allow_large);
        all.iter().map(Refusal::line).collect()
    }

    fn refused(new: &str, code: &str) {
        let all = found(new, &way("mgmt0", true), false);
        assert!(all.iter().any(|line| line.contains(code)), "{all:#?}");
    }

    #[test]
    fn what_changes_little_is_let_through() {
        assert_eq!(found(SITE, &way("mgmt0", true), false), [""; 0]);
        let renamed = SITE.replace("guests:", "visitors:").replace("voice:", "calls:");
        assert_eq!(found(&renamed, &way("mgmt0", true), false), [""; 0]);
    }

    #[test]
    fn replacing_one_uplink_of_two_and_dropping_one_are_let_through() {
        let replaced = SITE.replace("lte", "dsl");
        assert_eq!(found(&replaced, &way("mgmt0", true), false), [""; 0]);
        let lines = SITE.lines().filter(|line| !line.trim_start().starts_with("lte:")).map(|line| format!("{line}\n"));
        let dropped = lines.collect::<String>().replace(", backups: [lte]", "");
        assert_eq!(found(&dropped, &way("mgmt0", true), false), [""; 0]);
    }

    #[test]
    fn a_catch_all_takes_a_management_network_along_that_only_the_default_route_leads_to() {
        let all = found(SITE, &way("wan0", false), true);
        assert!(
            all.len() == 1 && all[0].contains("PAT0901") && all[0].contains("policy voice would steer"),
            "{all:#?}"
        );
        assert_eq!(found(SITE, &BTreeMap::new(), true), [""; 0], "what cannot be reached cannot be cut off");
    }

    #[test]
    fn nothing_stands_on_a_protected_interface() {
        refused(&SITE.replace("interface: wwan0", "interface: mgmt0"), "PAT0902");
        refused(&SITE.replace("match: {source: [192.168.10.128/25]}", "match: {inInterface: mgmt0}"), "PAT0902");
    }

    #[test]
    fn addresses_of_a_management_network_are_not_translated() {
        let all = found(SITE, &way("wan0", true), true);
        assert!(all.len() == 1 && all[0].contains("PAT0903") && all[0].contains("masqueraded"), "{all:#?}");
        let snat = SITE.replacen("nat: masquerade", "nat: {snat: 10.9.0.7}", 1);
        refused(&snat, "PAT0903");
    }

    #[test]
    fn a_protected_port_is_not_dropped_by_name() {
        let ssh = "match: {protocol: tcp, destinationPorts: [20-30]}, action: {drop: true}";
        refused(&SITE.replace("match: {source: [192.168.10.128/25]}, action: {path: fiber}", ssh), "PAT0904");
    }

    #[test]
    fn most_objects_are_not_deleted_by_accident() {
        let few = "apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  endpoints:
    fiber: {interface: wan0, gateway: 198.51.100.1}
  paths:
    fiber: {from: fiber, to: internet, probe: {targets: [1.1.1.1, 9.9.9.9]}}
  policies:
    default: {priority: 1000, action: {path: fiber}}
";
        let all = found(few, &way("mgmt0", true), false);
        assert_eq!(
            all,
            ["4 of 6 objects would be deleted (66 %), and at most 50% may be: `failover critical`, `path lte`, \
              `policy guests` and `policy voice` [PAT0911]; if it is meant: `apply --allow-large`, or the trailer \
              `Patronus-Allow-Large: yes` in the commit"]
        );
        assert_eq!(found(few, &way("mgmt0", true), true), [""; 0]);
        let other = SITE.replace("fiber", "a").replace("lte", "b").replace("critical", "c").replace("voice:", "d:");
        refused(&other.replace("guests:", "e:").replace("default:", "f:"), "PAT0913");
    }

    #[test]
    fn no_policy_loses_its_last_usable_path_by_accident() {
        let all = found(&SITE.replace("interface: wan0", "interface: wan9"), &way("mgmt0", true), false);
        assert!(all.len() == 1 && all[0].contains("PAT0912") && all[0].contains("policy guests"), "{all:#?}");
        assert!(all[0].contains("there is no interface wan9"), "voice and default have lte still: {all:#?}");
        refused(&SITE.replace("action: {path: fiber}", "action: {drop: true}"), "PAT0912");
    }

    #[test]
    fn the_checker_sees_rails_that_are_taken_away() {
        let (old, new, facts) = (site(SITE), site(&SITE.replace("interface: wwan0", "interface: mgmt0")), facts());
        let change = Change { old: Some(&old), new: &new, facts: &facts, ways: &BTreeMap::new() };
        assert_eq!(check(&change, &Protected::default(), Limits::default(), true), []);
        assert_ne!(check(&change, &protected(), Limits::default(), true), []);
    }
}
