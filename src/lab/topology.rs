//! What a lab consists of: a pure function of the sites.
//!
//! Invariant: the same sites give the same topology, byte for byte, and no invented address lies in a network
//! or equals an address that the configuration names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;

use super::address::{self, Pool, Wanted};
use crate::{
    units::{Family, IfName, Name},
    validate::intent::{Destination, Endpoint, GatewaySpec, Nat, Site},
};

/// Why the sites cannot be built as namespaces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// The name is taken by the lab's own node.
    #[error("a site cannot be called `internet` in a lab: its internet node has that name")]
    Reserved,
    /// Two links would need the same interface of one router.
    #[error("site {site}: interface {interface} is used more than once; a lab has one link for each interface")]
    Shared {
        /// The site.
        site: Name,
        /// The interface.
        interface: IfName,
    },
    /// No addresses are left.
    #[error("site {site}, endpoint {endpoint}: no {family} network is free for the link to its provider")]
    NoRoom {
        /// The site.
        site: Name,
        /// The endpoint.
        endpoint: Name,
        /// The address family.
        family: Family,
    },
}

/// One network namespace of a lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// The router of a site.
    Router(Name),
    /// The host in a LAN of a site.
    Host(Name, IfName),
    /// The provider of an endpoint of a site.
    Provider(Name, Name),
    /// Everything beyond the providers; it carries the probe targets.
    Internet,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router(site) => write!(f, "{site}"),
            Self::Host(site, lan) => write!(f, "{site}.host.{lan}"),
            Self::Provider(site, endpoint) => write!(f, "{site}.provider.{endpoint}"),
            Self::Internet => f.write_str("internet"),
        }
    }
}

/// All sites and what lies between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The sites by name.
    pub sites: BTreeMap<Name, SiteNet>,
    /// Addresses that the internet answers on.
    pub targets: BTreeSet<IpAddr>,
}

/// The links of one router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteNet {
    /// Its LANs by interface.
    pub lans: BTreeMap<IfName, LanNet>,
    /// Its uplinks by endpoint.
    pub uplinks: BTreeMap<Name, Uplink>,
}

/// Addresses in a LAN, one pair for each prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LanNet {
    /// The router's addresses; the host's default gateways are the first of each family.
    pub router: Vec<IpNet>,
    /// The host's addresses.
    pub host: Vec<IpNet>,
}

/// The link between a router and a provider, and from there to the internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Number in the lab, from 0; the internet's link to this provider is `u` and this number.
    pub index: u16,
    /// The router's interface.
    pub interface: IfName,
    /// Addressing, at most one per family, IPv4 first.
    pub legs: Vec<Leg>,
    /// Networks that the provider and the internet route to the router: those behind paths without NAT, and
    /// addresses that a path translates to.
    pub routed: BTreeSet<IpNet>,
    /// Addresses of other uplinks that seem to be on this link; the provider answers for them.
    pub proxied: BTreeSet<IpAddr>,
}

/// Addressing of an uplink in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// The router's address with the link's prefix length; a host prefix means a point-to-point link.
    pub router: IpNet,
    /// The provider's address.
    pub gateway: IpAddr,
    /// The default route in the router's main table, if a router set up by hand or by DHCP had one.
    pub default: Option<DefaultRoute>,
}

/// A default route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Its next hop.
    pub via: IpAddr,
    /// Who is said to have made it, as `ip route` calls it.
    pub proto: &'static str,
    /// Its metric.
    pub metric: u32,
}

/// The link-local address that providers announce themselves with.
pub(super) const ROUTER_ADVERTISER: &str = "fe80::1";

impl Topology {
    /// All nodes: the internet, then each site's router, hosts and providers.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes = vec![Node::Internet];
        for (name, site) in &self.sites {
            nodes.push(Node::Router(name.clone()));
            nodes.extend(site.lans.keys().map(|lan| Node::Host(name.clone(), lan.clone())));
            nodes.extend(site.uplinks.keys().map(|endpoint| Node::Provider(name.clone(), endpoint.clone())));
        }
        nodes
    }

    /// The node that prints as this text.
    #[must_use]
    pub fn node(&self, text: &str) -> Option<Node> {
        self.nodes().into_iter().find(|node| node.to_string() == text)
    }

    /// The uplink of an endpoint.
    #[must_use]
    pub fn uplink(&self, site: &str, endpoint: &str) -> Option<&Uplink> {
        self.sites.get(site)?.uplinks.get(endpoint)
    }

    /// All uplinks with their site and endpoint.
    pub fn uplinks(&self) -> impl Iterator<Item = (&Name, &Name, &Uplink)> {
        self.sites.iter().flat_map(|(site, net)| net.uplinks.iter().map(move |(end, link)| (site, end, link)))
    }
}

/// Invents a lab for these sites.
pub fn topology<'a>(sites: impl IntoIterator<Item = &'a Site>) -> Result<Topology, Impossible> {
    let sites: BTreeMap<&Name, &Site> = sites.into_iter().map(|site| (&site.name, site)).collect();
    if sites.keys().any(|name| name.as_str() == "internet") {
        return Err(Impossible::Reserved);
    }
    let mut pool = Pool::new(named_networks(&sites), sites.values().flat_map(|site| fixed(site)).collect());
    let mut nets = BTreeMap::new();
    let mut index = 0;
    for site in sites.values() {
        one_link_each(site)?;
        let mut net = SiteNet { lans: lans(site), uplinks: BTreeMap::new() };
        for (name, endpoint) in &site.endpoints {
            let legs = legs(site, name, endpoint, &mut pool)?;
            let (interface, proxied) = (endpoint.interface.clone(), BTreeSet::new());
            let routed = routed(site, name, &legs);
            net.uplinks.insert(name.clone(), Uplink { index, interface, legs, routed, proxied });
            index += 1;
        }
        nets.insert(site.name.clone(), net);
    }
    let mut topology = Topology { targets: targets(&sites, &nets), sites: nets };
    proxies(&mut topology);
    Ok(topology)
}

fn one_link_each(site: &Site) -> Result<(), Impossible> {
    let mut seen: BTreeSet<&IfName> = site.lan.iter().map(|lan| &lan.interface).collect();
    match site.endpoints.values().map(|e| &e.interface).find(|interface| !seen.insert(interface)) {
        Some(interface) => Err(Impossible::Shared { site: site.name.clone(), interface: interface.clone() }),
        None => Ok(()),
    }
}

/// LANs and probe targets: what a link to a provider must not contain.
fn named_networks(sites: &BTreeMap<&Name, &Site>) -> Vec<IpNet> {
    let lans = sites.values().flat_map(|site| &site.lan).flat_map(|lan| &lan.prefixes);
    let targets = sites.values().flat_map(|site| site.paths.values()).flat_map(|path| &path.probe.targets);
    // An unspecified target stands for a gateway.
    let targets = targets.filter(|target| !target.is_unspecified());
    lans.copied().chain(targets.map(|target| IpNet::from(*target))).collect()
}

/// Addresses of a site's links that the configuration fixes.
fn fixed(site: &Site) -> Vec<IpAddr> {
    let gateways = site.endpoints.values().flat_map(|endpoint| match &endpoint.gateway {
        GatewaySpec::Fixed(gateways) => gateways.as_slice(),
        GatewaySpec::Auto => &[],
    });
    gateways.copied().chain(site.endpoints.values().filter_map(|endpoint| endpoint.address)).collect()
}

fn lans(site: &Site) -> BTreeMap<IfName, LanNet> {
    let mut lans: BTreeMap<IfName, LanNet> = BTreeMap::new();
    for lan in &site.lan {
        let net = lans.entry(lan.interface.clone()).or_default();
        for prefix in &lan.prefixes {
            let (router, host) = address::lan(*prefix);
            net.router.push(router);
            net.host.extend(host);
        }
    }
    lans
}

/// The families of an endpoint: those of its fixed gateways, or IPv4 and whatever else the site speaks.
fn families(site: &Site, name: &Name, endpoint: &Endpoint) -> Vec<Family> {
    let speaks = |family: Family| match &endpoint.gateway {
        GatewaySpec::Fixed(gateways) => gateways.iter().any(|g| Family::of(g) == family),
        GatewaySpec::Auto => {
            let paths = site.paths.values().filter(|path| path.from == *name);
            family == Family::V4
                || endpoint.address.is_some_and(|a| Family::of(&a) == family)
                || site.lan.iter().flat_map(|lan| &lan.prefixes).any(|p| Family::of_net(p) == family)
                || paths.flat_map(|path| &path.probe.targets).any(|t| Family::of(t) == family)
        }
    };
    Family::ALL.into_iter().filter(|family| speaks(*family)).collect()
}

fn legs(site: &Site, name: &Name, endpoint: &Endpoint, pool: &mut Pool) -> Result<Vec<Leg>, Impossible> {
    let elsewhere = fixed(site);
    let leg = |family| {
        let gateway = match &endpoint.gateway {
            GatewaySpec::Fixed(gateways) => gateways.iter().copied().find(|g| Family::of(g) == family),
            GatewaySpec::Auto => None,
        };
        let address = endpoint.address.filter(|a| Family::of(a) == family);
        let wanted = Wanted { family, gateway, address, elsewhere: &elsewhere };
        let no_room = || Impossible::NoRoom { site: site.name.clone(), endpoint: name.clone(), family };
        let (router, gateway) = pool.link(&wanted).ok_or_else(no_room)?;
        Ok(Leg { router, gateway, default: default_route(site, name, endpoint, gateway) })
    };
    families(site, name, endpoint).into_iter().map(leg).collect()
}

/// DHCP and router advertisements give a default route on every link; by hand, only the first link gets one.
fn default_route(site: &Site, name: &Name, endpoint: &Endpoint, gateway: IpAddr) -> Option<DefaultRoute> {
    let position = site.endpoints.keys().position(|n| n == name).unwrap_or(0);
    let metric = 100 * (u32::try_from(position).unwrap_or(u32::MAX / 200) + 1);
    match (&endpoint.gateway, gateway) {
        (GatewaySpec::Auto, IpAddr::V4(_)) => Some(DefaultRoute { via: gateway, proto: "dhcp", metric }),
        (GatewaySpec::Auto, IpAddr::V6(_)) => {
            let via = ROUTER_ADVERTISER.parse().unwrap_or(gateway);
            Some(DefaultRoute { via, proto: "ra", metric })
        }
        (GatewaySpec::Fixed(_), _) => (position == 0).then_some(DefaultRoute { via: gateway, proto: "static", metric }),
    }
}

/// Networks that the world reaches through this endpoint: LANs without NAT, and foreign addresses translated to.
fn routed(site: &Site, name: &Name, legs: &[Leg]) -> BTreeSet<IpNet> {
    let own = |address: &IpAddr| legs.iter().any(|leg| leg.router.addr() == *address);
    let speaks = |net: &IpNet| legs.iter().any(|leg| Family::of_net(&leg.router) == Family::of_net(net));
    let mut nets: BTreeSet<IpNet> = BTreeSet::new();
    for path in site.paths.values().filter(|path| path.from == *name && path.to == Destination::Internet) {
        match path.nat {
            Nat::None => nets.extend(site.lan.iter().flat_map(|lan| &lan.prefixes)),
            Nat::Snat(address) if !own(&address) => {
                nets.insert(IpNet::from(address));
            }
            Nat::Masquerade | Nat::Snat(_) => {}
        }
    }
    nets.into_iter().filter(speaks).collect()
}

/// Probe targets of the paths to the internet, without those that a link of the lab has already.
fn targets(sites: &BTreeMap<&Name, &Site>, nets: &BTreeMap<Name, SiteNet>) -> BTreeSet<IpAddr> {
    let legs = nets.values().flat_map(|net| net.uplinks.values()).flat_map(|uplink| &uplink.legs);
    let taken: BTreeSet<IpAddr> = legs.flat_map(|leg| [leg.gateway, leg.router.addr()]).collect();
    let paths = sites.values().flat_map(|site| site.paths.values()).filter(|p| p.to == Destination::Internet);
    paths
        .flat_map(|path| path.probe.targets.iter().copied())
        .filter(|target| !taken.contains(target) && !target.is_unspecified())
        .collect()
}

/// Two providers may hand out addresses of one network; each answers for the other's on its own link.
fn proxies(topology: &mut Topology) {
    let addresses: Vec<(Name, IpAddr)> = topology
        .uplinks()
        .flat_map(|(site, _, link)| link.legs.iter().map(move |leg| (site.clone(), leg.router.addr())))
        .collect();
    for (site, net) in &mut topology.sites {
        for link in net.uplinks.values_mut() {
            let foreign = addresses.iter().filter(|(other, _)| other != site).map(|(_, address)| *address);
            let on_link = |a: &IpAddr| link.legs.iter().any(|leg| leg.router.contains(a) && leg.gateway != *a);
            link.proxied = foreign.filter(on_link).collect();
        }
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "internet {}", join(&self.targets))?;
        for (name, site) in &self.sites {
            writeln!(f, "site {name}")?;
            for (interface, lan) in &site.lans {
                writeln!(f, "  lan {interface}: router {}, host {}", join(&lan.router), join(&lan.host))?;
            }
            for (endpoint, link) in &site.uplinks {
                writeln!(f, "  uplink {endpoint} on {}", link.interface)?;
                write_uplink(f, link)?;
            }
        }
        Ok(())
    }
}

fn write_uplink(f: &mut fmt::Formatter<'_>, link: &Uplink) -> fmt::Result {
    for leg in &link.legs {
        write!(f, "    router {}, provider {}", leg.router, leg.gateway)?;
        if let Some(route) = &leg.default {
            write!(f, ", main table: default via {} proto {} metric {}", route.via, route.proto, route.metric)?;
        }
        writeln!(f)?;
    }
    if !link.routed.is_empty() {
        writeln!(f, "    routed here: {}", join(&link.routed))?;
    }
    if !link.proxied.is_empty() {
        writeln!(f, "    answered for: {}", join(&link.proxied))?;
    }
    Ok(())
}

fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "-".to_owned() } else { items.join(" ") }
}
