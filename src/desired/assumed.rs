//! Facts where there is no router to ask: every interface of the site is there and up, and what only the router
//! could tell is the address [`state::UNKNOWN`](crate::state::UNKNOWN).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{
    state::{Facts, Gateway, LinkFacts, UNKNOWN},
    units::{Family, IfName},
    validate::intent::{Destination, GatewaySpec, Site, TunnelSpec},
};

/// The MTU of an interface that nobody can look at: Ethernet's.
const MTU: u32 = 1500;

/// The facts of a router on which everything is as its site says.
#[must_use]
pub fn facts(site: &Site) -> Facts {
    let families = families(site);
    let addresses: Vec<IpNet> = families.iter().map(|f| IpNet::from(UNKNOWN[*f as usize])).collect();
    let gateways: BTreeMap<Family, Gateway> =
        families.iter().map(|f| (*f, Gateway::Address(UNKNOWN[*f as usize]))).collect();
    let link = |index: usize| LinkFacts {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        up: true,
        carrier: true,
        mtu: MTU,
        addresses: addresses.clone(),
        gateways: gateways.clone(),
        no_ipv6: false,
    };
    Facts { links: interfaces(site).into_iter().zip(1..).map(|(name, index)| (name.clone(), link(index))).collect() }
}

/// Interfaces that are not ours to make.
fn interfaces(site: &Site) -> BTreeSet<&IfName> {
    let endpoints = site.endpoints.values().map(|e| &e.interface);
    let lan = site.lan.iter().map(|l| &l.interface);
    let tunnels = site
        .paths
        .values()
        .filter(|path| matches!(&path.to, Destination::Site { tunnel: TunnelSpec::Interface { .. }, .. }));
    endpoints.chain(lan).chain(tunnels.map(|path| &path.interface)).collect()
}

/// The families that the site speaks of; IPv4 where it speaks of none.
fn families(site: &Site) -> BTreeSet<Family> {
    let lan = site.lan.iter().flat_map(|l| &l.prefixes).map(Family::of_net);
    let probed = site.paths.values().flat_map(|p| &p.probe.targets).map(Family::of);
    let fixed = site.endpoints.values().flat_map(|e| match &e.gateway {
        GatewaySpec::Fixed(gateways) => gateways.iter().map(Family::of).collect(),
        GatewaySpec::Auto => Vec::new(),
    });
    let spoken: BTreeSet<Family> = lan.chain(probed).chain(fixed).collect();
    if spoken.is_empty() { BTreeSet::from([Family::V4]) } else { spoken }
}
