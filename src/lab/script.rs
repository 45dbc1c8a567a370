//! What to tell `ip` and the kernel to make a topology come true; pure text.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::topology::{LanNet, Node, ROUTER_ADVERTISER, SiteNet, Topology, Uplink};
use crate::units::Name;

/// The provider's interface towards the router.
pub(super) const CUSTOMER: &str = "cpe0";
/// The provider's interface towards the internet.
pub(super) const UPSTREAM: &str = "up0";
/// The provider's interface towards the delay emulator.
pub(super) const DELAYED: &str = "emu0";
/// The host's interface.
const HOST: &str = "eth0";

/// Lines for `ip -batch` in each namespace.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Links, made first everywhere since a pair appears in two namespaces.
    pub(super) links: BTreeMap<Node, Vec<String>>,
    /// Addresses and routes.
    pub(super) rest: BTreeMap<Node, Vec<String>>,
}

/// The whole lab; `ns` names the namespace of a node.
pub(super) fn build(topology: &Topology, ns: &dyn Fn(&Node) -> String) -> Script {
    let mut script = Script::default();
    internet(&mut script, topology);
    for (name, site) in &topology.sites {
        router(&mut script, name, site, ns);
        for (interface, lan) in &site.lans {
            let host = Node::Host(name.clone(), interface.clone());
            script.rest.insert(host, host_lines(lan));
        }
        for (endpoint, link) in &site.uplinks {
            let provider = Node::Provider(name.clone(), endpoint.clone());
            let pair =
                format!("link add {} type veth peer name {UPSTREAM} netns {}", internet_side(link), ns(&provider));
            script.links.entry(Node::Internet).or_default().push(pair);
            script.rest.insert(provider, provider_lines(link));
        }
    }
    script
}

fn internet(script: &mut Script, topology: &Topology) {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(topology.targets.iter().map(|t| format!("address add {} dev lo{}", IpNet::from(*t), nodad(t))));
    for (_, _, link) in topology.uplinks() {
        let dev = internet_side(link);
        lines.push(format!("link set {dev} up"));
        lines.push(format!("address add {}/31 dev {dev}", transit(link.index).1));
        lines.push(format!("address add fe80::2/64 dev {dev} nodad"));
        lines.extend(towards(link).into_iter().map(|net| {
            let via = if net.addr().is_ipv4() { IpAddr::V4(transit(link.index).0) } else { link_local() };
            format!("route replace {net} via {via} dev {dev}")
        }));
    }
    script.rest.insert(Node::Internet, lines);
}

fn router(script: &mut Script, name: &Name, site: &SiteNet, ns: &dyn Fn(&Node) -> String) {
    let mut links = Vec::new();
    let mut rest = vec!["link set lo up".to_owned()];
    for (interface, lan) in &site.lans {
        let host = ns(&Node::Host(name.clone(), interface.clone()));
        links.push(format!("link add {interface} type veth peer name {HOST} netns {host}"));
        rest.push(format!("link set {interface} up"));
        rest.extend(lan.router.iter().map(|a| format!("address replace {a} dev {interface}{}", nodad(&a.addr()))));
    }
    for (endpoint, link) in &site.uplinks {
        links.push(router_pair(link, &ns(&Node::Provider(name.clone(), endpoint.clone()))));
        rest.extend(router_lines(link));
    }
    script.links.insert(Node::Router(name.clone()), links);
    script.rest.insert(Node::Router(name.clone()), rest);
}

/// Makes the link between router and provider; run in the router.
pub(super) fn router_pair(link: &Uplink, provider: &str) -> String {
    format!("link add {} type veth peer name {CUSTOMER} netns {provider}", link.interface)
}

/// Brings the router's side up as a DHCP client or a boot script would; may be repeated.
pub(super) fn router_lines(link: &Uplink) -> Vec<String> {
    let dev = &link.interface;
    let mut lines = vec![format!("link set {dev} up")];
    lines.extend(link.legs.iter().map(|leg| address(leg.router, leg.gateway, dev.as_str())));
    lines.extend(link.legs.iter().filter_map(|leg| leg.default.as_ref()).map(|route| {
        let all = if route.via.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        format!("route replace {all} via {} dev {dev} proto {} metric {}", route.via, route.proto, route.metric)
    }));
    lines
}

/// Brings the provider's side of the customer link up; may be repeated.
pub(super) fn customer_lines(link: &Uplink) -> Vec<String> {
    let mut lines = vec![format!("link set {CUSTOMER} up")];
    if link.legs.iter().any(|leg| leg.gateway.is_ipv6()) {
        lines.push(format!("address replace {ROUTER_ADVERTISER}/64 dev {CUSTOMER} nodad"));
    }
    for leg in &link.legs {
        let point_to_point = is_host(&leg.router);
        let own = IpNet::new(leg.gateway, leg.router.prefix_len()).unwrap_or_else(|_| leg.gateway.into());
        let peer = if point_to_point { leg.router.addr() } else { leg.gateway };
        lines.push(address(own, peer, CUSTOMER));
    }
    for net in &link.routed {
        let leg = link.legs.iter().find(|leg| leg.gateway.is_ipv4() == net.addr().is_ipv4());
        lines.extend(leg.map(|leg| format!("route replace {net} via {} dev {CUSTOMER}", leg.router.addr())));
    }
    let proxied = link.proxied.iter().filter(|address| address.is_ipv6());
    lines.extend(proxied.map(|address| format!("neighbour replace proxy {address} dev {CUSTOMER}")));
    lines
}

fn provider_lines(link: &Uplink) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(customer_lines(link));
    let (own, far) = transit(link.index);
    lines.push(format!("link set {UPSTREAM} up"));
    lines.push(format!("address add {own}/31 dev {UPSTREAM}"));
    lines.push(format!("address add {ROUTER_ADVERTISER}/64 dev {UPSTREAM} nodad"));
    lines.push(format!("route replace 0.0.0.0/0 via {far} dev {UPSTREAM}"));
    lines.push(format!("route replace ::/0 via fe80::2 dev {UPSTREAM}"));
    lines.extend(link.proxied.iter().map(|address| {
        let via = if address.is_ipv4() { far.to_string() } else { "fe80::2".to_owned() };
        format!("route replace {} via {via} dev {UPSTREAM}", IpNet::from(*address))
    }));
    lines
}

/// Sends the provider's traffic to the internet through the emulator.
pub(super) fn provider_through_emulator(link: &Uplink) -> Vec<String> {
    let nets = link.proxied.iter().map(|address| IpNet::from(*address).to_string());
    let all = ["0.0.0.0/0".to_owned(), "::/0".to_owned()];
    all.into_iter().chain(nets).map(|net| format!("route replace {net} dev {DELAYED}")).collect()
}

/// Sends the internet's traffic to the provider through the emulator.
pub(super) fn internet_through_emulator(link: &Uplink) -> Vec<String> {
    towards(link).into_iter().map(|net| format!("route replace {net} dev {}", emulator_side(link))).collect()
}

/// The internet's interface towards a provider.
pub(super) fn internet_side(link: &Uplink) -> String {
    format!("u{}", link.index)
}

/// The internet's interface towards a provider's emulator.
pub(super) fn emulator_side(link: &Uplink) -> String {
    format!("e{}", link.index)
}

/// What the internet reaches through this provider.
fn towards(link: &Uplink) -> Vec<IpNet> {
    let addresses = link.legs.iter().map(|leg| IpNet::from(leg.router.addr()));
    addresses.chain(link.routed.iter().copied()).collect()
}

/// The provider's and the internet's address on the link between them: pairs of the link-local range (RFC 3927),
/// which nobody forwards to.
fn transit(index: u16) -> (std::net::Ipv4Addr, std::net::Ipv4Addr) {
    let base = 0xa9fe_0000 + u32::from(index % 0x7fff) * 2;
    (std::net::Ipv4Addr::from_bits(base), std::net::Ipv4Addr::from_bits(base + 1))
}

fn link_local() -> IpAddr {
    std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into()
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// An address on a shared link, or one with its peer on a point-to-point link.
fn address(own: IpNet, peer: IpAddr, dev: &str) -> String {
    if is_host(&own) {
        return format!("address replace {} peer {} dev {dev}{}", own.addr(), IpNet::from(peer), nodad(&own.addr()));
    }
    format!("address replace {own} dev {dev}{}", nodad(&own.addr()))
}

const fn nodad(address: &IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

fn host_lines(lan: &LanNet) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), format!("link set {HOST} up")];
    lines.extend(lan.host.iter().map(|a| format!("address add {a} dev {HOST}{}", nodad(&a.addr()))));
    for (all, four) in [("0.0.0.0/0", true), ("::/0", false)] {
        let reachable = lan.host.iter().any(|a| a.addr().is_ipv4() == four);
        let gateway = lan.router.iter().find(|a| a.addr().is_ipv4() == four).filter(|_| reachable);
        lines.extend(gateway.map(|a| format!("route add {all} via {} dev {HOST}", a.addr())));
    }
    lines
}

/// Settings of a provider's customer link, which a namespace has no default for: without them it answers for others
/// only after up to 0.8 s.
pub(super) const CUSTOMER_SYSCTLS: [(&str, &str); 2] =
    [("ipv4/neigh/cpe0/proxy_delay", "0"), ("ipv6/neigh/cpe0/proxy_delay", "0")];

/// Settings under `/proc/sys/net` that a node has from the start.
pub(super) fn sysctls(node: &Node, proxies: bool) -> Vec<(&'static str, &'static str)> {
    // Duplicate address detection would leave addresses unusable for a second.
    let mut settings = vec![
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
    ];
    let forward = [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];
    let no_filter = [("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0")];
    match node {
        Node::Host(..) => {}
        // As systemd sets it on Debian.
        Node::Router(_) => {
            settings.extend(forward);
            settings.extend([("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "2")]);
        }
        Node::Internet => settings.extend(no_filter),
        Node::Provider(..) => {
            settings.extend(forward);
            settings.extend(no_filter);
            settings.extend([("ipv6/conf/all/keep_addr_on_down", "1"), ("ipv6/conf/default/keep_addr_on_down", "1")]);
            if proxies {
                settings.extend([("ipv4/conf/all/proxy_arp", "1"), ("ipv6/conf/all/proxy_ndp", "1")]);
            }
        }
    }
    // Site-to-site traffic crosses it.
    if matches!(node, Node::Internet) {
        settings.extend(forward);
    }
    settings
}
