//! Tunnels: their fields, their far ends, their mirrors, their ids and inner addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Report, error,
    fleet::{Fleet, View, with_suggestion},
    intent::{self, Destination, Endpoint},
    paths::Subject,
};
use crate::{
    config::{
        Object, scalars,
        schema::Kind,
        types::{PathSpec, TunnelKind, TunnelSpec},
    },
    diag::Code,
    units::{Family, IfName, Name},
};

/// VXLAN's port (RFC 7348, section 5).
const PORT: u16 = 4789;
/// /31 pairs in 169.254.1.0 to 169.254.254.255; RFC 3927 reserves the first and the last 256 addresses.
const PAIRS: u32 = 254 * 128;

/// Whether the endpoint that a tunnel leads to exists; `None` was reported.
pub fn far_end(subject: &Subject<'_>, site: &Name, endpoint: &Name, report: &mut Report) -> Option<()> {
    let at = subject.fleet.config.field(subject.object, "/to");
    let Some(far) = subject.fleet.sites.get(site) else {
        if !subject.fleet.config.is_broken(Kind::Site, site.as_str()) {
            let found = error(Code::Dangling, at, format!("there is no site `{site}`"));
            report.add(with_suggestion(found, site.as_str(), subject.fleet.sites.keys().copied()));
        }
        return None;
    };
    if !far.object.spec.endpoints.contains_key(endpoint) {
        let found = error(Code::Dangling, at, format!("site `{site}` has no endpoint `{endpoint}`"));
        report.add(with_suggestion(found, endpoint.as_str(), far.object.spec.endpoints.keys()));
        return None;
    }
    Some(())
}

/// Checks a tunnel and builds it: the interface that packets leave by, and how they get there.
pub fn check(
    subject: &Subject<'_>,
    spec: &TunnelSpec,
    endpoint: &Endpoint,
    far: (&Name, &Name),
    report: &mut Report,
) -> Option<(IfName, intent::TunnelSpec)> {
    match (spec.kind, &spec.interface) {
        (Some(TunnelKind::Vxlan), None) => {
            let built = vxlan(subject, spec, endpoint, far, report);
            mirror(subject, spec, far, report);
            built
        }
        (None, Some(interface)) => {
            let built = foreign(subject, spec, interface, report);
            mirror(subject, spec, far, report);
            built
        }
        _ => {
            let message = "a tunnel has either a `type` or an `interface`";
            let help = "`{type: vxlan, id: 1001}`, or `{interface: wg0}` for one that something else keeps up";
            subject.advise(report, Code::Combination, "/tunnel", message, help);
            None
        }
    }
}

fn foreign(
    subject: &Subject<'_>,
    spec: &TunnelSpec,
    interface: &IfName,
    report: &mut Report,
) -> Option<(IfName, intent::TunnelSpec)> {
    let given = [("id", spec.id.is_some()), ("port", spec.port.is_some())];
    let more = [("local", spec.local.is_some()), ("remote", spec.remote.is_some())];
    for (field, _) in given.into_iter().chain(more).filter(|(_, given)| *given) {
        let message = format!("`{field}` belongs to a tunnel with a `type`");
        subject.error(report, Code::Combination, &format!("/tunnel/{field}"), message);
    }
    let mut gateways = spec.gateway.as_ref().map(|g| g.0.clone()).unwrap_or_default();
    gateways.sort_unstable();
    one_per_family(subject, "/tunnel/gateway", gateways.iter().map(Family::of), report)?;
    Some((interface.clone(), intent::TunnelSpec::Interface { gateways }))
}

fn one_per_family(
    subject: &Subject<'_>,
    field: &str,
    families: impl Iterator<Item = Family>,
    report: &mut Report,
) -> Option<()> {
    let mut families: Vec<Family> = families.collect();
    families.sort_unstable();
    if families.windows(2).any(|two| two[0] == two[1]) {
        subject.error(report, Code::FamilyConflict, field, "there is at most one address of each family");
        return None;
    }
    Some(())
}

fn vxlan(
    subject: &Subject<'_>,
    spec: &TunnelSpec,
    endpoint: &Endpoint,
    (site, far): (&Name, &Name),
    report: &mut Report,
) -> Option<(IfName, intent::TunnelSpec)> {
    if spec.gateway.is_some() {
        subject.error(
            report,
            Code::Combination,
            "/tunnel/gateway",
            "`gateway` belongs to a tunnel with an `interface`",
        );
    }
    let Some(id) = spec.id else {
        let help = "give it one that no other tunnel has: `id: 1001`";
        subject.advise(report, Code::Combination, "/tunnel", "a VXLAN tunnel needs an `id`", help);
        return None;
    };
    let remote = outer(subject, endpoint, (site, far), report)?;
    let own = (subject.view.name, &subject.object.spec.from);
    let (inner_local, inner_remote) = inner(subject, spec, id, own < (site, far), report)?;
    // Seven decimal digits at most after two letters: always a valid name.
    let interface: IfName = format!("pt{id}").parse().ok()?;
    let tunnel = intent::TunnelSpec::Vxlan {
        id,
        over: endpoint.interface.clone(),
        local: endpoint.address,
        remote,
        port: spec.port.unwrap_or(PORT),
        inner_local,
        inner_remote,
    };
    Some((interface, tunnel))
}

/// The outer address of the far end.
fn outer(
    subject: &Subject<'_>,
    endpoint: &Endpoint,
    (site, far): (&Name, &Name),
    report: &mut Report,
) -> Option<IpAddr> {
    let view = subject.fleet.sites.get(site)?;
    let Some(address) = view.object.spec.endpoints.get(far)?.address else {
        let at = subject.fleet.config.field(subject.object, "/to");
        let other = subject.fleet.config.field_name(view.object, &format!("/endpoints/{far}"));
        let found = error(Code::NoRemote, at, format!("the endpoint `{site}/{far}` has no address to send to"));
        report.add(found.note(other, "this endpoint").help("write its `address` down there"));
        return None;
    };
    if let Some(own) = endpoint.address
        && Family::of(&own) != Family::of(&address.0)
    {
        let message = format!("the ends have addresses of different families: {own} and {address}");
        subject.error(report, Code::FamilyConflict, "/to", message);
    }
    Some(address.0)
}

type Inner = (Vec<IpNet>, Vec<IpAddr>);

/// The inner addresses of both ends: as given, or derived from the id.
fn inner(subject: &Subject<'_>, spec: &TunnelSpec, id: u32, first: bool, report: &mut Report) -> Option<Inner> {
    match (&spec.local, &spec.remote) {
        (None, None) => Some(derived(id, first)),
        (Some(local), Some(remote)) => {
            let mut local: Vec<IpNet> = local.iter().map(|l| l.0).collect();
            let mut remote: Vec<IpAddr> = remote.iter().map(|r| r.0).collect();
            local.sort_unstable();
            remote.sort_unstable();
            one_per_family(subject, "/tunnel/local", local.iter().map(Family::of_net), report)?;
            one_per_family(subject, "/tunnel/remote", remote.iter().map(Family::of), report)?;
            if !local.iter().map(Family::of_net).eq(remote.iter().map(Family::of)) {
                let message = "`local` and `remote` have addresses of different families";
                subject.error(report, Code::FamilyConflict, "/tunnel/remote", message);
                return None;
            }
            Some((local, remote))
        }
        (local, _) => {
            let field = if local.is_some() { "/tunnel/local" } else { "/tunnel/remote" };
            let help = "give both, or none: they are derived from the id then";
            subject.advise(report, Code::Combination, field, "inner addresses are given for one end only", help);
            None
        }
    }
}

/// Link-local addresses from the id: a /31 (RFC 3021) of 169.254.0.0/16, and `fe80::1` and `fe80::2`.
fn derived(id: u32, first: bool) -> Inner {
    let base = u32::from(Ipv4Addr::new(169, 254, 1, 0)) + 2 * (id % PAIRS);
    let v4 = |second: bool| Ipv4Addr::from(base + u32::from(second));
    let v6 = |second: bool| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1 + u16::from(second));
    // Both lengths are within their families' ranges.
    let nets = [Ipv4Net::new(v4(!first), 31).ok().map(IpNet::V4), Ipv6Net::new(v6(!first), 64).ok().map(IpNet::V6)];
    (nets.into_iter().flatten().collect(), vec![v4(first).into(), v6(first).into()])
}

/// The paths of the other site that could be this one's mirror.
fn opposite<'a>(subject: &Subject<'a>, (site, far): (&Name, &Name)) -> Vec<&'a Object<PathSpec>> {
    between(subject.fleet, (site, far), (subject.view.name, &subject.object.spec.from))
}

/// The paths that lead back to a path of `site`.
fn opposite_of<'a>(fleet: &Fleet<'a>, site: &Name, path: &Object<PathSpec>) -> Vec<&'a Object<PathSpec>> {
    match &path.spec.to {
        scalars::To::Endpoint(far_site, far) => between(fleet, (far_site, far), (site, &path.spec.from)),
        scalars::To::Internet => Vec::new(),
    }
}

/// The tunnel paths from one endpoint of a site to one of another.
fn between<'a>(fleet: &Fleet<'a>, from: (&Name, &Name), to: (&Name, &Name)) -> Vec<&'a Object<PathSpec>> {
    let to = scalars::To::Endpoint(to.0.clone(), to.1.clone());
    let paths = fleet.sites.get(from.0).into_iter().flat_map(|view| view.paths.values().copied());
    paths.filter(|path| path.spec.from == *from.1 && path.spec.to == to && path.spec.tunnel.is_some()).collect()
}

fn same_kind(a: &TunnelSpec, b: &TunnelSpec) -> bool {
    a.kind == b.kind && a.id == b.id && a.port.unwrap_or(PORT) == b.port.unwrap_or(PORT)
}

/// What keeps two descriptions from being those of one tunnel.
fn difference(a: &TunnelSpec, b: &TunnelSpec) -> String {
    let port = |tunnel: &TunnelSpec| tunnel.port.unwrap_or(PORT);
    match (a.id, b.id) {
        _ if a.kind != b.kind => "one has a `type`, the other an `interface`".to_owned(),
        (Some(a), Some(b)) if a != b => format!("the ids are {a} and {b}"),
        _ if port(a) != port(b) => format!("the ports are {} and {}", port(a), port(b)),
        _ => "the `remote` of each must be the `local` of the other".to_owned(),
    }
}

/// Whether inner addresses that are written down are those that the other end expects.
fn same_inner(a: &TunnelSpec, b: &TunnelSpec) -> bool {
    let expects = |near: &TunnelSpec, far: &TunnelSpec| match (&near.remote, &far.local) {
        (Some(remote), Some(local)) => remote.iter().all(|r| local.iter().any(|l| l.0.addr() == r.0)),
        (None, None) => true,
        _ => false,
    };
    expects(a, b) && expects(b, a)
}

/// A tunnel has two ends, and they describe the same tunnel.
fn mirror(subject: &Subject<'_>, spec: &TunnelSpec, far: (&Name, &Name), report: &mut Report) {
    let candidates = opposite(subject, far);
    let tunnel =
        |path: &Object<PathSpec>| path.spec.tunnel.as_ref().is_some_and(|t| same_kind(spec, t) && same_inner(spec, t));
    if candidates.iter().any(|path| tunnel(path)) || subject.fleet.config.any_broken(Kind::Path, far.0) {
        return;
    }
    let (site, from) = (subject.view.name, &subject.object.spec.from);
    let (far_site, far_endpoint) = far;
    let found = if let Some(path) = candidates.first() {
        // Told once, at the end whose name sorts first.
        let told = (far_site, &path.name) < (site, &subject.object.name);
        if told && opposite_of(subject.fleet, far_site, path).first().is_some_and(|own| own.name == subject.object.name)
        {
            return;
        }
        let differs = path.spec.tunnel.as_ref().map_or_else(String::new, |other| difference(spec, other));
        let message = format!("this tunnel and `{far_site}/{}` are not two ends of one: {differs}", path.name);
        let at = subject.fleet.config.field(subject.object, "/tunnel");
        let found = error(Code::Mirror, at, message).note(subject.fleet.config.field(path, "/tunnel"), "the other end");
        found.help("type, id, port and inner addresses must agree").concerns([site, far_site])
    } else {
        let message =
            format!("nothing leads back: `{far_site}` has no tunnel path from `{far_endpoint}` to `{site}/{from}`");
        let at = subject.fleet.config.field(subject.object, "/to");
        error(Code::Mirror, at, message)
            .help(format!("add a path at `{far_site}`: `{{from: {far_endpoint}, to: {site}/{from}, tunnel: …}}`"))
    };
    report.add(found);
}

/// An id belongs to one tunnel: at most two paths have it, and they are each other's mirror.
pub fn ids(fleet: &Fleet<'_>, report: &mut Report) {
    let mut seen: BTreeMap<u32, Vec<(&Name, &Object<PathSpec>)>> = BTreeMap::new();
    for view in fleet.sites.values() {
        for path in view.paths.values() {
            if let Some(id) = path.spec.tunnel.as_ref().and_then(|tunnel| tunnel.id) {
                seen.entry(id).or_default().push((view.name, path));
            }
        }
    }
    for (id, ends) in seen {
        for (site, path) in ends.iter().skip(1) {
            let (first_site, first) = ends[0];
            if are_mirrors((first_site, first), (site, path)) {
                continue;
            }
            let message =
                format!("the tunnel id {id} of `{site}/{}` is also that of `{first_site}/{}`", path.name, first.name);
            let found = error(Code::DuplicateTunnel, fleet.config.field(path, "/tunnel/id"), message);
            let found = found.note(fleet.config.field(first, "/tunnel/id"), "first used here");
            let help = "two paths with one id must be the two ends of one tunnel: take another id";
            report.add(found.help(help).concerns([site, first_site]));
        }
    }
}

fn are_mirrors((site_a, a): (&Name, &Object<PathSpec>), (site_b, b): (&Name, &Object<PathSpec>)) -> bool {
    let leads = |path: &Object<PathSpec>, site: &Name, to: &Object<PathSpec>| {
        path.spec.to == scalars::To::Endpoint(site.clone(), to.spec.from.clone())
    };
    leads(a, site_b, b) && leads(b, site_a, a)
}

/// Two tunnels of one site with the same inner address. IPv6 link-local ones are told apart by interface;
/// tunnels with one id are reported as such.
pub fn collisions(fleet: &Fleet<'_>, view: &View<'_>, paths: &BTreeMap<Name, Arc<intent::Path>>, report: &mut Report) {
    let mut seen: BTreeMap<IpAddr, (&Name, u32)> = BTreeMap::new();
    for path in paths.values() {
        let Destination::Site { tunnel: intent::TunnelSpec::Vxlan { id, inner_local, .. }, .. } = &path.to else {
            continue;
        };
        let own = inner_local.iter().flat_map(|net| [net.addr(), net.network(), net.broadcast()]);
        let scoped = |a: &IpAddr| matches!(a, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let mut own: Vec<IpAddr> = own.filter(|a| !scoped(a)).collect();
        own.dedup();
        let clash = own.iter().find_map(|a| seen.get(a).filter(|(_, other)| other != id).map(|(name, _)| (*a, *name)));
        if let Some((address, other)) = clash
            && let (Some(object), Some(first)) = (view.paths.get(&path.name), view.paths.get(other))
        {
            let message = format!("the inner address {address} of path `{}` is also one of path `{other}`", path.name);
            let found = error(Code::InnerCollision, fleet.config.field(object, "/tunnel"), message);
            let found = found.note(fleet.config.field(first, "/tunnel"), "the other tunnel");
            report.add(found.help("take another id, or give `local` and `remote`"));
        }
        for address in own {
            seen.entry(address).or_insert((&path.name, *id));
        }
    }
}
