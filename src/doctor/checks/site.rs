//! The site's interfaces and gateways.

use super::{Facts, Finding, either, known, seen};
use crate::{
    doctor::facts::Kernel,
    state::LinkFacts,
    units::IfName,
    validate::intent::{Destination, Endpoint, GatewaySpec, Site, TunnelSpec},
};

/// What VXLAN adds to a packet over IPv6; 50 over IPv4.
const VXLAN_OVERHEAD: u32 = 70;

fn both(facts: &Facts) -> Result<(&Site, &Kernel), Finding> {
    Ok((known(facts)?, seen(facts)?))
}

/// A finding for each endpoint whose interface is there.
fn each(facts: &Facts, fine: &str, finding: impl Fn(&Endpoint, &LinkFacts) -> Option<Finding>) -> Finding {
    either(both(facts).map(|(site, kernel)| {
        let links = &kernel.observed.facts.links;
        let there: Vec<_> = site.endpoints.values().filter_map(|e| Some((e, links.get(&e.interface)?))).collect();
        if there.is_empty() {
            return Finding::skipped("none of the uplinks is there, see interfaces");
        }
        Finding::worst(there.into_iter().filter_map(|(endpoint, link)| finding(endpoint, link)), fine)
    }))
}

pub(super) fn interfaces(facts: &Facts) -> Finding {
    either(both(facts).map(|(site, kernel)| {
        let links = &kernel.observed.facts.links;
        let uplinks = site.endpoints.values().map(|e| (&e.interface, true));
        let tunnels = site.paths.values().filter_map(|path| match &path.to {
            Destination::Site { tunnel: TunnelSpec::Interface { .. }, .. } => Some((&path.interface, true)),
            _ => None,
        });
        let lan = site.lan.iter().map(|lan| (&lan.interface, false));
        let finding = |(name, uplink): (&IfName, bool)| match links.get(name) {
            None if uplink => Finding::fail(format!("there is no interface {name}"), "`ip link` shows which there are"),
            None => Finding::warn(format!("there is no interface {name} (lan)"), "`ip link` shows which there are"),
            Some(link) if !link.up => Finding::fail(
                format!("{name} is not up"),
                format!("`ip link set {name} up`, and in what configures it"),
            ),
            Some(_) => Finding::ok(""),
        };
        Finding::worst(uplinks.chain(tunnels).chain(lan).map(finding), "all interfaces are there and up")
    }))
}

pub(super) fn carriers(facts: &Facts) -> Finding {
    each(facts, "all uplinks have a carrier", |endpoint, link| {
        let name = &endpoint.interface;
        let says = format!("{name} has no carrier");
        (link.up && !link.carrier).then(|| Finding::fail(says, "look at the cable, the modem, the other end"))
    })
}

pub(super) fn addresses(facts: &Facts) -> Finding {
    each(facts, "all uplinks have an address", |endpoint, link| {
        let name = &endpoint.interface;
        let usable = link.addresses.iter().any(|net| match net {
            ipnet::IpNet::V4(_) => true,
            ipnet::IpNet::V6(net) => !net.addr().is_unicast_link_local(),
        });
        let missing = endpoint.address.filter(|wanted| !link.addresses.iter().any(|net| net.addr() == *wanted));
        match missing {
            Some(wanted) => Some(Finding::fail(
                format!("{name} does not have {wanted}"),
                "add the address, or leave `address` out of the endpoint",
            )),
            None if !usable => Some(Finding::fail(
                format!("{name} has no address"),
                "look at what configures it: DHCP, PPP, a static address",
            )),
            None => None,
        }
    })
}

pub(super) fn gateways(facts: &Facts) -> Finding {
    let neighbours = facts.kernel.as_ref().map(|kernel| kernel.neighbours.clone()).unwrap_or_default();
    each(facts, "all gateways are known", |endpoint, link| {
        let name = &endpoint.interface;
        match &endpoint.gateway {
            GatewaySpec::Auto if link.gateways.is_empty() => Some(Finding::fail(
                format!("{name} has no default route in the main table to take its gateway from"),
                "`gateway: auto` needs one from DHCP, PPP or router advertisements; or write the address",
            )),
            GatewaySpec::Auto => None,
            GatewaySpec::Fixed(all) => {
                let dead = all.iter().find(|gateway| neighbours.get(&(name.clone(), **gateway)) == Some(&false))?;
                let remedy =
                    format!("`ping -I {name} {dead}`: it does not answer ARP or neighbour discovery on the link");
                Some(Finding::warn(format!("gateway {dead} on {name} does not answer"), remedy))
            }
        }
    })
}

/// A path without a tunnel that promises more than its interface carries.
fn wider(path: &crate::validate::intent::Path, facts: &crate::state::Facts) -> Option<Finding> {
    let says = crate::desired::too_wide(path, facts)?;
    Some(Finding::warn(says, "lower the path's `mtu`, or raise that of its interface"))
}

pub(super) fn mtu(facts: &Facts) -> Finding {
    either(both(facts).map(|(site, kernel)| {
        let links = &kernel.observed.facts.links;
        let finding = |path: &std::sync::Arc<crate::validate::intent::Path>| {
            let Some(under) = path.under() else { return wider(path, &kernel.observed.facts) };
            let under = links.get(under)?.mtu;
            let inner = path.mtu.or_else(|| links.get(&path.interface).map(|link| link.mtu))?;
            let most = under.saturating_sub(VXLAN_OVERHEAD);
            let says = format!("{} carries packets of {inner} bytes over a link of {under}", path.name);
            (inner > most).then(|| {
                Finding::warn(says, format!("`mtu: {most}` or less at both ends; larger packets are lost in silence"))
            })
        };
        Finding::worst(site.paths.values().filter_map(finding), "tunnels fit into the links under them")
    }))
}
