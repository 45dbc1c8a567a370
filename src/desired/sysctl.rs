//! Sysctls: what forwarding over several uplinks needs, and what was there before.

use std::collections::{BTreeMap, BTreeSet};

use super::Inputs;
use crate::{
    state::{Facts, Key, Originals, State, SysctlKey, Value},
    units::IfName,
    validate::intent::{GatewaySpec, Site},
};

/// For the router as a whole, in the order in which they are written: switching forwarding on resets others.
const GLOBAL: [&str; 2] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];

/// For each interface that a path leaves by. Dead carriers make the kernel take the next route; replies may
/// come in by another uplink than the main table says; the mark counts when their source is checked.
const PER_INTERFACE: [(&str, &str, &str); 4] = [
    ("ipv4", "ignore_routes_with_linkdown", "1"),
    ("ipv4", "rp_filter", "2"),
    ("ipv4", "src_valid_mark", "1"),
    ("ipv6", "ignore_routes_with_linkdown", "1"),
];

fn interfaces(site: &Site) -> BTreeSet<&IfName> {
    site.paths.values().map(|path| &path.interface).collect()
}

/// A forwarding router ignores router advertisements unless told otherwise, and `auto` may depend on them.
fn follows_advertisements(site: &Site) -> impl Iterator<Item = &IfName> {
    site.endpoints.values().filter(|e| e.gateway == GatewaySpec::Auto).map(|e| &e.interface)
}

fn wanted(site: &Site) -> impl Iterator<Item = (Option<&IfName>, String, &'static str)> {
    let global = GLOBAL.map(|path| (None, path.to_owned(), "1"));
    let each = interfaces(site).into_iter().flat_map(|interface| {
        PER_INTERFACE.map(|(family, name, value)| (Some(interface), format!("{family}/conf/{interface}/{name}"), value))
    });
    let advertised = follows_advertisements(site)
        .map(|interface| (Some(interface), format!("ipv6/conf/{interface}/accept_ra"), "2"));
    global.into_iter().chain(each).chain(advertised)
}

/// The wanted sysctls of interfaces that exist or that this plan creates, and the old values of those that
/// are no longer wanted. Those of an interface's IPv6 are left alone while that is off.
pub(super) fn sysctls(site: &Site, inputs: &Inputs<'_>) -> BTreeMap<Key, Value> {
    let mut all: BTreeMap<Key, Value> = restored(inputs.originals, inputs.facts).collect();
    for (interface, path, value) in wanted(site) {
        let there = is_there(interface, &path, inputs.facts);
        let (key, value) = entry(path, value);
        if there {
            all.insert(key, value);
        } else {
            all.remove(&key);
        }
    }
    all
}

/// Whether there is such a sysctl: an interface without IPv6 has those of IPv4 alone.
fn is_there(interface: Option<&IfName>, path: &str, facts: &Facts) -> bool {
    let Some(interface) = interface else { return true };
    facts.links.get(interface).is_some_and(|link| !link.no_ipv6 || !path.starts_with("ipv6/"))
}

fn entry(path: String, value: &'static str) -> (Key, Value) {
    (Key::Sysctl(SysctlKey { path: path.into() }), Value::Sysctl { value: value.into() })
}

/// Every sysctl that a site with these interfaces could want.
pub(super) fn of_interfaces(interfaces: &[IfName]) -> Vec<String> {
    let each = interfaces.iter().flat_map(|interface| {
        let advertised = format!("ipv6/conf/{interface}/accept_ra");
        let named = PER_INTERFACE.map(|(family, name, _)| format!("{family}/conf/{interface}/{name}"));
        named.into_iter().chain([advertised])
    });
    GLOBAL.map(str::to_owned).into_iter().chain(each).collect()
}

pub(super) fn of_leaving_tunnels(desired: &State, observed: &State) -> Vec<Key> {
    let leaving: BTreeSet<&str> = observed
        .objects
        .keys()
        .filter_map(|key| match key {
            Key::Link { name } if !desired.objects.contains_key(key) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    let theirs = |key: &&Key| match key {
        Key::Sysctl(sysctl) => interface_of(sysctl).is_some_and(|name| leaving.contains(name)),
        _ => false,
    };
    desired.objects.keys().chain(observed.objects.keys()).filter(theirs).cloned().collect()
}

/// The interface that a sysctl is about; none where it is about all.
fn interface_of(key: &SysctlKey) -> Option<&str> {
    let mut parts = key.path.split('/').skip(1);
    let interface = (parts.next() == Some("conf")).then(|| parts.next()).flatten()?;
    (interface != "all" && interface != "default").then_some(interface)
}

/// The old values, but for interfaces that have gone. Where IPv6 is only switched off its sysctls are there; whoever plans
/// knows which he has seen.
pub(super) fn restored<'a>(originals: &'a Originals, facts: &'a Facts) -> impl Iterator<Item = (Key, Value)> + 'a {
    let there = |key: &SysctlKey| match interface_of(key).map(str::parse::<IfName>) {
        Some(Ok(interface)) => facts.links.contains_key(&interface),
        Some(Err(_)) => false,
        None => true,
    };
    originals
        .iter()
        .filter(move |(key, _)| there(key))
        .map(|(key, value)| (Key::Sysctl(key.clone()), Value::Sysctl { value: value.clone() }))
}

pub(super) fn scope(site: &Site, originals: &Originals) -> Vec<String> {
    let all: BTreeSet<String> =
        wanted(site).map(|(_, path, _)| path).chain(originals.keys().map(|key| key.path.to_string())).collect();
    all.into_iter().collect()
}
