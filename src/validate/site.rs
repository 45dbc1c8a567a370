//! One site: its uplinks, its paths, and what they add up to.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::{IpNet, Ipv6Net};

use super::{
    Options, Report, error,
    fleet::{Fleet, View},
    intent::{self, Destination, GatewaySpec, TunnelSpec},
    paths, policies, rules, warning,
};
use crate::{
    config::{scalars, schema::Kind, types::EndpointSpec},
    diag::{Code, Diagnostic, Span},
    units::{Family, IfName, Name},
};

/// Checks a site and builds what can be built of it.
pub fn check(fleet: &Fleet<'_>, view: &View<'_>, options: &Options, report: &mut Report) -> intent::Site {
    let endpoints = endpoints(fleet, view, report);
    let paths = paths::check(fleet, view, &endpoints, report);
    let able = paths.iter().map(|(name, path)| (name.clone(), paths::families(path, &endpoints))).collect();
    let rules = rules::check(fleet, view, (&able, &endpoints), report);
    let policies = policies::check(fleet, view, (&endpoints, &paths, &rules), options, report);
    interfaces(fleet, view, &paths, report);
    gateways(fleet, view, report);
    if view.paths.is_empty() && !fleet.config.any_broken(Kind::Path, view.name) {
        let message = format!("site `{}` has no path", view.name);
        let found = error(Code::NoWayOut, fleet.config.name(view.object), message);
        report.add(found.help("give it one: `paths: {fiber: {from: fiber, to: internet, nat: masquerade}}`"));
    }
    count(fleet, view, &rules, policies.len(), options, report);
    let beyond = beyond(fleet, &paths);
    let spec = &view.object.spec;
    intent::Site {
        name: view.name.clone(),
        labels: view.labels.clone(),
        lan: spec.lan.iter().map(|l| lan(&l.interface, l.prefixes.iter().map(|p| p.0))).collect(),
        endpoints,
        paths,
        rules,
        policies,
        beyond,
    }
}

fn lan(interface: &IfName, prefixes: impl Iterator<Item = IpNet>) -> intent::Lan {
    intent::Lan { interface: interface.clone(), prefixes: prefixes.collect() }
}

fn endpoints(fleet: &Fleet<'_>, view: &View<'_>, report: &mut Report) -> BTreeMap<Name, intent::Endpoint> {
    let each = view.object.spec.endpoints.iter();
    each.map(|(name, spec)| (name.clone(), endpoint(fleet, view, name, spec, report))).collect()
}

fn endpoint(
    fleet: &Fleet<'_>,
    view: &View<'_>,
    name: &Name,
    spec: &EndpointSpec,
    report: &mut Report,
) -> intent::Endpoint {
    let gateway = match &spec.gateway {
        None | Some(scalars::Gateway::Auto) => GatewaySpec::Auto,
        Some(scalars::Gateway::Fixed(list)) => {
            let mut list = list.clone();
            list.sort_unstable();
            if list.windows(2).any(|two| Family::of(&two[0]) == Family::of(&two[1])) {
                let at = fleet.config.field(view.object, &format!("/endpoints/{name}/gateway"));
                let found =
                    error(Code::FamilyConflict, at, "an endpoint has at most one gateway of each address family");
                report.add(found.help("make the other one an endpoint of its own, on an interface of its own"));
            }
            GatewaySpec::Fixed(list)
        }
    };
    intent::Endpoint {
        interface: spec.interface.clone(),
        address: spec.address.map(|a| a.0),
        gateway,
        down: spec.bandwidth.as_ref().and_then(|b| b.down),
        up: spec.bandwidth.as_ref().and_then(|b| b.up),
        cost: spec.cost.unwrap_or(1),
        metered: spec.metered,
    }
}

/// Next hops: not the router itself, not in a LAN, and IPv6 ones not on one link by two interfaces.
fn gateways(fleet: &Fleet<'_>, view: &View<'_>, report: &mut Report) {
    let mut links: BTreeMap<Ipv6Net, (&Name, IpAddr, Span)> = BTreeMap::new();
    for (name, endpoint) in &view.object.spec.endpoints {
        let Some(scalars::Gateway::Fixed(list)) = &endpoint.gateway else { continue };
        let at = fleet.config.field(view.object, &format!("/endpoints/{name}/gateway"));
        for gateway in list {
            report.extend(misplaced(view, name, endpoint, *gateway, &at));
            let Some(link) = global_link(*gateway) else { continue };
            match links.get(&link) {
                Some((other, theirs, first)) => {
                    let found = one_link((name, *gateway), (other, *theirs), link, at.clone());
                    report.add(found.note(first.clone(), "the other one"));
                }
                None => drop(links.insert(link, (name, *gateway, at.clone()))),
            }
        }
    }
}

fn misplaced(view: &View<'_>, name: &Name, endpoint: &EndpointSpec, gateway: IpAddr, at: &Span) -> Option<Diagnostic> {
    if endpoint.address.is_some_and(|own| own.0 == gateway) {
        let found =
            error(Code::DuplicateAddress, at.clone(), format!("the gateway {gateway} is the endpoint's own address"));
        return Some(found.help("write the address of the provider's router"));
    }
    let lan = view.object.spec.lan.iter().flat_map(|lan| &lan.prefixes).find(|prefix| prefix.0.contains(&gateway))?;
    let message = format!("the gateway {gateway} of the endpoint `{name}` lies inside the LAN {lan} of this site");
    Some(error(Code::LanOverlap, at.clone(), message).help("renumber the LAN, or the network to the provider"))
}

/// The network that an IPv6 next hop is on, taken to be a /64; link-local ones belong to their interface.
fn global_link(gateway: IpAddr) -> Option<Ipv6Net> {
    match gateway {
        IpAddr::V6(v6) if !v6.is_unicast_link_local() => Ipv6Net::new(v6, 64).ok().map(|net| net.trunc()),
        _ => None,
    }
}

fn one_link(own: (&Name, IpAddr), other: (&Name, IpAddr), link: Ipv6Net, at: Span) -> Diagnostic {
    let message = if own.1 == other.1 {
        format!("the endpoints `{}` and `{}` have the same IPv6 gateway {}", other.0, own.0, own.1)
    } else {
        format!("the IPv6 gateways of the endpoints `{}` and `{}` are both in {link}", other.0, own.0)
    };
    let help = "the kernel refuses one of them, unless both interfaces have an address in that network: write the \
                link-local addresses of the routers (`fe80::…`), or `auto`";
    warning(Code::SharedLink, at, message).help(help)
}

/// Every interface has one part to play: LAN, endpoint or tunnel; and one path leaves by it.
fn interfaces(fleet: &Fleet<'_>, view: &View<'_>, paths: &BTreeMap<Name, Arc<intent::Path>>, report: &mut Report) {
    let mut parts: BTreeMap<&IfName, (String, Span)> = BTreeMap::new();
    let mut claim = |interface, part: String, at: Span, report: &mut Report| match parts.get(interface) {
        Some((other, first)) => {
            let other = if *other == part { "another one" } else { other };
            let message = format!("the interface `{interface}` of {part} is also that of {other}");
            let help = match part.as_str() {
                "a LAN" => "write all prefixes of an interface into one entry: `prefixes: [10.0.0.0/24, 10.0.1.0/24]`",
                _ => "give each of them an interface of its own, a VLAN for example",
            };
            report.add(error(Code::InterfaceConflict, at, message).note(first.clone(), "first used here").help(help));
        }
        None => {
            parts.insert(interface, (part, at));
        }
    };
    for (n, lan) in view.object.spec.lan.iter().enumerate() {
        let at = fleet.config.field(view.object, &format!("/lan/{n}/interface"));
        claim(&lan.interface, "a LAN".into(), at, report);
    }
    for (name, endpoint) in &view.object.spec.endpoints {
        let at = fleet.config.field(view.object, &format!("/endpoints/{name}/interface"));
        claim(&endpoint.interface, format!("the endpoint `{name}`"), at, report);
    }
    let mut leaving: BTreeMap<&IfName, &Name> = BTreeMap::new();
    for path in paths.values() {
        let Some(object) = view.paths.get(&path.name) else { continue };
        if let Destination::Site { tunnel, .. } = &path.to {
            // Tunnels of ours are named after their ids, which are checked by themselves.
            if matches!(tunnel, TunnelSpec::Interface { .. }) {
                let at = fleet.config.field(object, "/tunnel");
                claim(&path.interface, format!("the tunnel of path `{}`", path.name), at, report);
            }
        } else if let Some(other) = leaving.insert(&path.interface, &path.name) {
            let message = format!("the paths `{other}` and `{}` both leave by `{}`", path.name, path.interface);
            let found = error(Code::InterfaceConflict, fleet.config.field(object, "/from"), message);
            let first = view.paths.get(other).map(|first| fleet.config.field(first, "/from"));
            let found = found.help("use one path, and let policies and rules share it");
            report.add(match first {
                Some(first) => found.note(first, "the other path"),
                None => found,
            });
        }
    }
}

/// Numbers that marks must carry: paths, rules, and every pair of a rule and its path.
fn count(
    fleet: &Fleet<'_>,
    view: &View<'_>,
    rules: &BTreeMap<Name, intent::Rule>,
    policies: usize,
    options: &Options,
    report: &mut Report,
) {
    let members: usize = rules.values().map(|rule| rule.members.len()).sum();
    let targets = view.paths.len() + rules.len() + members;
    let mut over = |what: &str, have: usize, mask: crate::units::MarkMask, field: &str| {
        if have > mask.max_number() as usize {
            let room = mask.max_number();
            let message = format!("site `{}` has {have} {what}, and the mask {mask} has numbers for {room}", view.name);
            let found = error(Code::TooMany, fleet.config.name(view.object), message);
            report.add(found.help(format!("widen `ranges.{field}` in the router's settings")));
        }
    };
    over("paths, failover rules and members of rules", targets, options.target_mask, "targetMask");
    over("policies", policies, options.policy_mask, "policyMask");
}

/// LAN prefixes of the sites that tunnels lead to.
fn beyond(fleet: &Fleet<'_>, paths: &BTreeMap<Name, Arc<intent::Path>>) -> BTreeMap<IpNet, Name> {
    let far = paths.values().filter_map(|path| match &path.to {
        Destination::Site { site, .. } => fleet.sites.get(site),
        Destination::Internet => None,
    });
    let prefixes = |view: &View<'_>| -> Vec<(IpNet, Name)> {
        let lan = view.object.spec.lan.iter().flat_map(|lan| &lan.prefixes);
        lan.map(|prefix| (prefix.0, view.name.clone())).collect()
    };
    far.flat_map(prefixes).collect()
}
