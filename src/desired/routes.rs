//! Tunnels, routes and rules.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Inputs, address_on, allocate};
use crate::{
    failover::{family_drawn, family_ways},
    state::{
        Allocations, Facts, Fwmark, Gateway, Key, LinkFacts, RouteKey, RouteValue, RuleKey, Target, Tunnel, Value,
    },
    units::{Family, IPV6_MTU, IfName, Name},
    validate::intent::{Destination, GatewaySpec, Path, Site, TunnelSpec},
};

/// Metric of a table's active route. The next ones follow in steps of ten.
pub const ACTIVE: u32 = 10;
/// Metric of the route that keeps packets from falling through to the main table.
const LAST: u32 = u32::MAX;
/// Number of the main routing table (`RT_TABLE_MAIN`).
const MAIN: u32 = 254;
/// Bytes that VXLAN adds over IPv4 and IPv6 (RFC 7348: outer IP, UDP, VXLAN, inner Ethernet).
const VXLAN_OVERHEAD: [(Family, u32); 2] = [(Family::V4, 50), (Family::V6, 70)];

/// The tunnel interfaces that we create, where their endpoint is there to carry them.
pub(super) fn tunnels<'a>(site: &'a Site, facts: &'a Facts) -> impl Iterator<Item = (Key, Value)> + 'a {
    site.paths.values().filter_map(|path| {
        let tunnel = tunnel(path, facts)?;
        Some((Key::Link { name: path.interface.clone() }, Value::Link(Box::new(tunnel))))
    })
}

fn tunnel(path: &Path, facts: &Facts) -> Option<Tunnel> {
    let Destination::Site { tunnel: TunnelSpec::Vxlan { id, over, local, remote, port, inner_local, .. }, .. } =
        &path.to
    else {
        return None;
    };
    let under = facts.links.get(over)?;
    let family = Family::of(remote);
    let mtu = path.mtu.unwrap_or_else(|| under.mtu.saturating_sub(overhead(remote)));
    let mut addresses = inner_local.clone();
    addresses.retain(|net| mtu >= IPV6_MTU || net.addr().is_ipv4());
    addresses.sort();
    Some(Tunnel {
        id: *id,
        local: local.or_else(|| address_on(facts, over, family))?,
        remote: *remote,
        port: *port,
        over: over.clone(),
        mtu,
        addresses,
    })
}

fn overhead(remote: &IpAddr) -> u32 {
    let family = Family::of(remote);
    VXLAN_OVERHEAD.iter().find(|(f, _)| *f == family).map_or(70, |(_, bytes)| *bytes)
}

/// The next hop of a path per family, as far as the kernel would take a route through it now: the interface
/// exists, is up, and a gateway is known. A missing carrier does not matter: the kernel skips such routes.
#[must_use]
pub fn next_hops(site: &Site, path: &Path, facts: &Facts) -> BTreeMap<Family, RouteValue> {
    let hops = match &path.to {
        Destination::Internet => uplink_hops(site, path, facts),
        Destination::Site { tunnel, .. } => tunnel_hops(tunnel, path, facts),
    };
    let via = |gateway| RouteValue::Via { gateway, interface: path.interface.clone(), mtu: path.mtu };
    let taken = hops.into_iter().filter(|(family, _)| *family == Family::V4 || !no_ipv6(path, facts));
    taken.map(|(family, gateway)| (family, via(gateway))).collect()
}

/// Whether the interface of a path has no IPv6, or will have none once it is made.
fn no_ipv6(path: &Path, facts: &Facts) -> bool {
    let made = || tunnel(path, facts).is_some_and(|tunnel| tunnel.mtu < IPV6_MTU);
    facts.links.get(&path.interface).is_some_and(|link| link.no_ipv6) || made()
}

/// Why no route through a path can be set now, with the remedy; none if one can.
#[must_use]
pub fn obstacle(site: &Site, path: &Path, facts: &Facts) -> Option<String> {
    if !next_hops(site, path, facts).is_empty() {
        return None;
    }
    let interface = match &path.to {
        Destination::Site { tunnel: TunnelSpec::Vxlan { over, .. }, .. } => over,
        _ => &path.interface,
    };
    let why = match facts.links.get(interface) {
        None => format!("there is no interface {interface}: `ip link` shows those that are there"),
        Some(link) if !link.up => format!("{interface} is down: `ip link set {interface} up`"),
        Some(_) if lacks_ipv6(site, path, facts) => {
            format!("its gateways are IPv6, and {}", why_no_ipv6(path, facts))
        }
        Some(_) => format!(
            "no gateway is known: `auto` takes it from a default route over {interface} in the main table (DHCP, RA, PPP)"
        ),
    };
    Some(format!("path {} cannot be used now: {why}", path.name))
}

/// What a path that can be used lacks: the configuration gives it IPv6 and its interface has none, with the remedy.
pub(super) fn lame(site: &Site, path: &Path, facts: &Facts) -> Option<String> {
    let lame = lacks_ipv6(site, path, facts) && obstacle(site, path, facts).is_none();
    lame.then(|| {
        format!("path {} carries no IPv6, which its configuration gives it: {}", path.name, why_no_ipv6(path, facts))
    })
}

/// Whether the configuration gives a path a gateway of IPv6 and its interface has none. Each tunnel that we make has a
/// derived link-local one, which nobody has asked for.
fn lacks_ipv6(site: &Site, path: &Path, facts: &Facts) -> bool {
    let given: &[IpAddr] = match (&path.to, site.endpoints.get(&path.from).map(|endpoint| &endpoint.gateway)) {
        (Destination::Internet, Some(GatewaySpec::Fixed(gateways)))
        | (Destination::Site { tunnel: TunnelSpec::Interface { gateways }, .. }, _) => gateways,
        (Destination::Site { tunnel: TunnelSpec::Vxlan { inner_remote, .. }, .. }, _) => inner_remote,
        (Destination::Internet, _) => &[],
    };
    let derived = |address: &Ipv6Addr| path.under().is_some() && address.is_unicast_link_local();
    given.iter().any(|gateway| matches!(gateway, IpAddr::V6(a) if !derived(a))) && no_ipv6(path, facts)
}

/// Why the interface of a path has no IPv6, and what gives it one.
fn why_no_ipv6(path: &Path, facts: &Facts) -> String {
    let interface = &path.interface;
    let small = |mtu: u32| format!("IPv6 needs {IPV6_MTU} bytes, and {interface} carries packets of {mtu}");
    if let Destination::Site { tunnel: TunnelSpec::Vxlan { over, remote, .. }, .. } = &path.to
        && let Some(tunnel) = tunnel(path, facts).filter(|tunnel| tunnel.mtu < IPV6_MTU)
    {
        let needed = IPV6_MTU + overhead(remote);
        return format!("{}: `ip link set {over} mtu {needed}`, if the line under it carries that", small(tunnel.mtu));
    }
    match facts.links.get(interface).map_or(0, |link| link.mtu) {
        mtu if mtu < IPV6_MTU => format!("{}: `ip link set {interface} mtu {IPV6_MTU}` or more", small(mtu)),
        _ => format!("IPv6 is off on {interface}: `sysctl -w net/ipv6/conf/{interface}/disable_ipv6=0`"),
    }
}

type Hops = Vec<(Family, Option<IpAddr>)>;

fn up<'a>(facts: &'a Facts, interface: &IfName) -> Option<&'a LinkFacts> {
    facts.links.get(interface).filter(|link| link.up)
}

fn by_family(gateways: &[IpAddr]) -> Hops {
    gateways.iter().map(|g| (Family::of(g), Some(*g))).collect()
}

fn uplink_hops(site: &Site, path: &Path, facts: &Facts) -> Hops {
    let (Some(endpoint), Some(link)) = (site.endpoints.get(&path.from), up(facts, &path.interface)) else {
        return Hops::new();
    };
    match &endpoint.gateway {
        GatewaySpec::Fixed(gateways) => by_family(gateways),
        GatewaySpec::Auto => link
            .gateways
            .iter()
            .map(|(family, gateway)| match gateway {
                Gateway::Address(address) => (*family, Some(*address)),
                Gateway::Link => (*family, None),
            })
            .collect(),
    }
}

fn tunnel_hops(tunnel: &TunnelSpec, path: &Path, facts: &Facts) -> Hops {
    match tunnel {
        // The interface may not exist yet: the plan creates it before its routes.
        TunnelSpec::Vxlan { over, inner_remote, .. }
            if up(facts, over).is_some() && facts.links.get(&path.interface).is_none_or(|l| l.up) =>
        {
            by_family(inner_remote)
        }
        TunnelSpec::Interface { gateways } if up(facts, &path.interface).is_some() => {
            if gateways.is_empty() {
                Family::ALL.into_iter().map(|f| (f, None)).collect()
            } else {
                by_family(gateways)
            }
        }
        _ => Hops::new(),
    }
}

const fn default_route(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// The paths of a target's table for one family, in order of metric. A flow that is bound to a path stays there even if
/// this path is lame in its family.
fn order<'a>(site: &'a Site, target: &'a Target, family: Family, inputs: &Inputs<'a>) -> Vec<&'a Name> {
    let choice = |rule: &Name| inputs.selection.rules.get(rule);
    match target {
        Target::Path(path) => vec![path],
        Target::Rule(rule) => {
            let all = choice(rule).map(|c| c.in_family(family, c.active.iter().chain(&c.tail).collect()));
            all.unwrap_or_default()
        }
        Target::Member(rule, path) => {
            let known = site.rules.get(rule).zip(choice(rule));
            known.map_or_else(|| vec![path], |(r, c)| family_ways(site, r, c, path, family))
        }
        Target::Share(rule, path) => {
            let known = site.rules.get(rule).zip(choice(rule));
            known.map_or_else(|| vec![path], |(r, c)| family_drawn(r, c, path, family))
        }
    }
}

/// The routes of every target's table.
pub(super) fn routes<'a>(
    site: &'a Site,
    inputs: &Inputs<'a>,
    allocations: &'a Allocations,
) -> impl Iterator<Item = (Key, Value)> + 'a {
    let inputs = *inputs;
    let hops: BTreeMap<&Name, BTreeMap<Family, RouteValue>> =
        site.paths.iter().map(|(name, path)| (name, next_hops(site, path, inputs.facts))).collect();
    allocations.targets.iter().flat_map(move |(target, number)| {
        let table = inputs.ranges.table(*number);
        let routes = |family| table_routes(table, family, &order(site, target, family, &inputs), &hops);
        Family::ALL.into_iter().flat_map(routes).collect::<Vec<_>>()
    })
}

fn table_routes(
    table: u32,
    family: Family,
    order: &[&Name],
    hops: &BTreeMap<&Name, BTreeMap<Family, RouteValue>>,
) -> Vec<(Key, Value)> {
    let usable = order.iter().filter_map(|path| hops.get(path)?.get(&family).cloned());
    let metrics = (ACTIVE..).step_by(10);
    let key = |metric| Key::Route(RouteKey { table, family, destination: default_route(family), metric });
    metrics
        .zip(usable)
        .chain(std::iter::once((LAST, RouteValue::Unreachable)))
        .map(|(metric, value)| (key(metric), Value::Route(value)))
        .collect()
}

/// The number of the path to the internet that leaves by this interface, if there is one.
fn table_of(site: &Site, interface: &IfName, allocations: &Allocations) -> Option<u32> {
    let path = site.paths.values().find(|p| p.to == Destination::Internet && p.interface == *interface)?;
    allocations.targets.get(&Target::Path(path.name.clone())).copied()
}

/// The rules: specific routes of the main table first; then senders that are bound to an uplink's interface leave by
/// it; then one per target and family. The outer packets of a tunnel are looked up with the mark of the inner ones,
/// and would be sent into the tunnel again if the mark were asked first.
pub(super) fn rules<'a>(
    site: &'a Site,
    inputs: &Inputs<'a>,
    allocations: &'a Allocations,
) -> impl Iterator<Item = (Key, Value)> + 'a {
    let ranges = *inputs.ranges;
    let any = !allocate::targets(site).is_empty();
    let main = any.then(|| (ranges.main_priority(), None, None, MAIN, Some(0)));
    let marked = allocations.targets.values().map(move |n| {
        let fwmark = Fwmark { mark: ranges.target_mask.mark(*n), mask: ranges.target_mask.bits() };
        (ranges.priority(*n), Some(fwmark), None, ranges.table(*n), None)
    });
    let bound = site.endpoints.values().filter_map(move |endpoint| {
        let table = table_of(site, &endpoint.interface, allocations).map_or(MAIN, |number| ranges.table(number));
        let used = site.paths.values().any(|path| path.under() == Some(&endpoint.interface));
        let rule = (ranges.bound_priority(), None, Some(endpoint.interface.clone()), table, None);
        (table != MAIN || used).then_some(rule)
    });
    main.into_iter().chain(marked).chain(bound).flat_map(|(priority, fwmark, oif, table, suppress_prefixlength)| {
        Family::ALL.map(|family| {
            let oif = oif.clone();
            (Key::Rule(RuleKey { priority, family, fwmark, oif, table, suppress_prefixlength }), Value::Rule)
        })
    })
}
