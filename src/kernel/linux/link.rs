//! Interfaces and their addresses as facts; VXLAN tunnels with our alias as objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netlink_packet_core::{Emitable as _, NlaBuffer, Parseable as _};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope},
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use nix::errno::Errno;

use super::{
    route::malformed,
    socket::{Channel, Refusal, Request},
    wire,
};
use crate::{
    kernel::KernelError,
    state::{LinkFacts, Tunnel},
    units::IfName,
};

/// Names of interfaces by index.
pub(super) type Names = BTreeMap<u32, IfName>;

/// The alias by which a tunnel is ours.
const ALIAS: &str = "patronus";

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;

/// `struct ifinfomsg`.
const HEADER: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_CONF: u16 = 2;
const AF_INET6: u16 = 10;
/// Place of `disable_ipv6` among the settings of an interface (`DEVCONF_DISABLE_IPV6`).
const DISABLE_IPV6: usize = 26;
/// Statistics are most of a dump's bytes.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

/// One interface as the dump shows it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub index: u32,
    pub name: IfName,
    pub up: bool,
    pub carrier: bool,
    pub mtu: u32,
    no_ipv6: bool,
    alias: Option<String>,
    /// What makes it a VXLAN tunnel; empty for other kinds.
    vxlan: Vec<InfoVxlan>,
}

impl Link {
    /// Reads a link message; nothing for names that the configuration cannot hold.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let flags = LinkFlags::from_bits_retain(wire::u32_at(payload, 8)?);
        let attributes = payload.get(HEADER..)?;
        let name = wire::text(wire::find(attributes, IFLA_IFNAME)?).parse().ok()?;
        let alias = wire::find(attributes, IFLA_IFALIAS).map(wire::text);
        let info = wire::find(attributes, IFLA_LINKINFO).unwrap_or_default();
        let kind = wire::find(info, IFLA_INFO_KIND).map(wire::text);
        let vxlan = kind.as_deref() == Some("vxlan");
        let data = wire::find(info, IFLA_INFO_DATA).filter(|_| vxlan).unwrap_or_default();
        Some(Self {
            index: wire::u32_at(payload, 4)?,
            name,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            mtu: wire::find(attributes, IFLA_MTU).and_then(|v| wire::u32_at(v, 0)).unwrap_or(0),
            no_ipv6: no_ipv6(attributes),
            alias,
            vxlan: vxlan_attributes(data),
        })
    }

    fn ours(&self) -> bool {
        !self.vxlan.is_empty() && self.alias.as_deref() == Some(ALIAS)
    }

    /// The tunnel, without its addresses. One that is down shows MTU 0, so that it differs from any wanted one.
    fn tunnel(&self, names: &Names) -> Option<Tunnel> {
        let (mut id, mut local, mut remote, mut port, mut over) = (None, None, None, 0, None);
        for attribute in &self.vxlan {
            match attribute {
                InfoVxlan::Id(value) => id = Some(*value),
                InfoVxlan::Local(a) => local = Some(IpAddr::from(*a)),
                InfoVxlan::Local6(a) => local = Some(IpAddr::from(*a)),
                InfoVxlan::Group(a) => remote = Some(IpAddr::from(*a)),
                InfoVxlan::Group6(a) => remote = Some(IpAddr::from(*a)),
                InfoVxlan::Port(value) => port = *value,
                InfoVxlan::Link(index) => over = names.get(index).cloned(),
                _ => {}
            }
        }
        let any = || IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Some(Tunnel {
            id: id?,
            local: local.unwrap_or_else(any),
            remote: remote.unwrap_or_else(any),
            port,
            // The lower device is gone or its name is not ours to know: the tunnel's own name equals no wanted one.
            over: over.unwrap_or_else(|| self.name.clone()),
            mtu: if self.up { self.mtu } else { 0 },
            addresses: Vec::new(),
        })
    }
}

/// Whether a link has no IPv6: the kernel tells nothing of it there (its MTU is too small), or that it is switched off.
fn no_ipv6(attributes: &[u8]) -> bool {
    let ipv6 = wire::find(attributes, IFLA_AF_SPEC).and_then(|families| wire::find(families, AF_INET6));
    let settings = ipv6.and_then(|ipv6| wire::find(ipv6, IFLA_INET6_CONF));
    settings.is_none_or(|settings| wire::u32_at(settings, 4 * DISABLE_IPV6).is_some_and(|off| off != 0))
}

fn vxlan_attributes(data: &[u8]) -> Vec<InfoVxlan> {
    let framed = wire::attributes(data).filter_map(|(kind, value)| {
        let mut bytes = Vec::new();
        wire::put(&mut bytes, kind, value);
        InfoVxlan::parse(&NlaBuffer::new_checked(&bytes[..]).ok()?).ok()
    });
    framed.collect()
}

/// One address as the dump shows it. In their order, the one to send from comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    index: u32,
    /// The kernel's scope number: 0 global, 253 link, 254 host.
    scope: u8,
    /// Its time is over: the provider may have given its network to somebody else.
    deprecated: bool,
    /// It lasts for a day or so (RFC 8981); of IPv4, another of its network comes first.
    temporary: bool,
    net: IpNet,
    /// The kernel's own doing.
    automatic: bool,
}

/// All interfaces with their addresses.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub all: Vec<Link>,
    pub names: Names,
    addresses: Vec<Address>,
}

pub(super) fn list(channel: &Channel) -> Result<Links, KernelError> {
    let mut request = vec![0; HEADER];
    wire::put(&mut request, IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let keep = |kind: u16, payload: &[u8]| Ok((kind == NEW_LINK).then(|| Link::parse(payload)).flatten());
    let links = channel.dump(GET_LINK, &request, keep).map_err(|r| r.doing("list interfaces"))?;
    let names = links.iter().map(|link| (link.index, link.name.clone())).collect();
    Ok(Links { all: links, names, addresses: addresses(channel)? })
}

fn addresses(channel: &Channel) -> Result<Vec<Address>, KernelError> {
    let request = AddressMessage::default();
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    let keep = |kind: u16, payload: &[u8]| {
        let parsed = || AddressMessage::parse(payload).map_err(|e| e.to_string());
        if kind == NEW_ADDRESS { Ok(usable(&parsed()?)) } else { Ok(None) }
    };
    let mut found = channel.dump(GET_ADDRESS, &bytes, keep).map_err(|r| r.doing("list addresses"))?;
    found.sort();
    Ok(found)
}

/// The address unless duplicate detection has not ended, or failed (RFC 4862).
fn usable(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut peer, mut protocol, mut flags) = (None, None, None, u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = all.bits(),
            AddressAttribute::Protocol(maker) => protocol = Some(*maker),
            _ => {}
        }
    }
    let flags = AddressFlags::from_bits_retain(flags);
    let pending = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    let net = IpNet::new(local.or(peer)?, message.header.prefix_len).ok()?;
    let automatic = automatic(protocol, net.addr());
    let address = Address {
        index: message.header.index,
        scope: message.header.scope.into(),
        deprecated: flags.contains(AddressFlags::Deprecated),
        // `IFA_F_TEMPORARY` is the same bit.
        temporary: flags.contains(AddressFlags::Secondary),
        net,
        automatic,
    };
    (!pending && !flags.contains(AddressFlags::Dadfailed)).then_some(address)
}

impl Links {
    /// Facts of one interface, without its gateways.
    pub(super) fn facts(&self, link: &Link) -> LinkFacts {
        let Link { index, up, carrier, mtu, no_ipv6, .. } = *link;
        let (addresses, gateways) = (self.addresses_of(index), BTreeMap::new());
        LinkFacts { index, up, carrier, mtu, addresses, gateways, no_ipv6 }
    }

    fn addresses_of(&self, index: u32) -> Vec<IpNet> {
        let mut nets: Vec<IpNet> = self.addresses.iter().filter(|a| a.index == index).map(|a| a.net).collect();
        nets.shrink_to_fit();
        nets
    }

    /// Our tunnels by name.
    pub(super) fn tunnels(&self) -> impl Iterator<Item = (IfName, Tunnel)> {
        self.all.iter().filter(|link| link.ours()).filter_map(|link| Some((link.name.clone(), self.tunnel(link)?)))
    }

    fn tunnel(&self, link: &Link) -> Option<Tunnel> {
        let mut tunnel = link.tunnel(&self.names)?;
        let given = |a: &&Address| a.index == link.index && !a.automatic;
        tunnel.addresses = self.addresses.iter().filter(given).map(|a| a.net).collect();
        tunnel.addresses.sort();
        Some(tunnel)
    }
}

/// The kernel gives each interface a link-local IPv6 address by itself. It says so since 5.18; before, the address
/// shows that it was made from a MAC address (RFC 4291, appendix A).
fn automatic(protocol: Option<AddressProtocol>, address: IpAddr) -> bool {
    let from_mac = |a: Ipv6Addr| a.is_unicast_link_local() && a.octets()[11..13] == [0xff, 0xfe];
    match (protocol, address) {
        (Some(protocol), _) => protocol == AddressProtocol::LinkLocal,
        (None, IpAddr::V6(address)) => from_mac(address),
        (None, IpAddr::V4(_)) => false,
    }
}

/// The interface of this name; nothing if there is none.
pub(super) fn get(channel: &Channel, name: &IfName) -> Result<Option<Link>, Refusal> {
    let mut request = vec![0; HEADER];
    wire::put(&mut request, IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    wire::put_text(&mut request, IFLA_IFNAME, name.as_str());
    match channel.get(GET_LINK, request) {
        Ok(payload) => Ok(Link::parse(&payload)),
        Err(refusal) if refusal.is(Errno::ENODEV) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Bytes that an interface has received and sent; none if it is not there.
pub(super) fn bytes(channel: &Channel, name: &IfName) -> Result<Option<(u64, u64)>, Refusal> {
    let mut request = vec![0; HEADER];
    wire::put_text(&mut request, IFLA_IFNAME, name.as_str());
    let counters = |payload: &[u8]| {
        // `struct rtnl_link_stats64`: packets received and sent, bytes received and sent.
        let stats = wire::find(payload.get(HEADER..)?, IFLA_STATS64)?;
        let at = |from: usize| Some(u64::from_ne_bytes(*stats.get(from..)?.first_chunk()?));
        at(16).zip(at(24))
    };
    match channel.get(GET_LINK, request) {
        Ok(payload) => Ok(counters(&payload)),
        Err(refusal) if refusal.is(Errno::ENODEV) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// The index of an interface that must be there.
pub(super) fn index(channel: &Channel, name: &IfName) -> Result<u32, Refusal> {
    let absent = || Refusal { errno: Errno::ENODEV as i32, text: format!("there is no interface {name}") };
    get(channel, name)?.map(|link| link.index).ok_or_else(absent)
}

/// Brings a tunnel from one value to another: adjusted where that is possible, made again where not.
pub(super) fn set(channel: &Channel, name: &IfName, after: Option<&Tunnel>) -> Result<(), KernelError> {
    let links = list(channel)?;
    let found = links.all.iter().find(|link| link.name == *name);
    let before = found.filter(|link| link.ours()).and_then(|link| links.tunnel(link));
    let doing = |what: &str| format!("{what} tunnel {name}");
    match (found, before, after) {
        // An interface of that name that is not ours: nothing to delete, and nothing to take over.
        (None, _, None) | (Some(_), None, None) => Ok(()),
        (Some(link), Some(before), Some(after)) if same_outside(&before, after) => {
            adjust(channel, link.index, &before, after).map_err(|r| r.doing(doing("change")))
        }
        (Some(link), Some(_), _) => {
            delete(channel, link.index).map_err(|r| r.doing(doing("delete")))?;
            after.map_or(Ok(()), |after| create(channel, name, after).map_err(|r| r.doing(doing("create"))))
        }
        (Some(link), None, Some(after)) if half_made(&links, link, after) => {
            finish(channel, link.index, after).map_err(|r| r.doing(doing("finish")))
        }
        (Some(_), None, Some(_)) => {
            let text = "an interface of that name exists and is not ours".to_owned();
            Err(Refusal { errno: Errno::EEXIST as i32, text }.doing(doing("create")))
        }
        (None, _, Some(after)) => create(channel, name, after).map_err(|r| r.doing(doing("create"))),
    }
}

fn same_outside(before: &Tunnel, after: &Tunnel) -> bool {
    let key = |t: &Tunnel| (t.id, t.local, t.remote, t.port, t.over.clone());
    key(before) == key(after)
}

/// A tunnel gets its alias in a second request; a kill in between leaves one exactly as wanted, but without it.
fn half_made(links: &Links, link: &Link, after: &Tunnel) -> bool {
    link.alias.is_none() && link.tunnel(&links.names).is_some_and(|tunnel| same_outside(&tunnel, after))
}

fn create(channel: &Channel, name: &IfName, tunnel: &Tunnel) -> Result<(), Refusal> {
    let over = index(channel, &tunnel.over)?;
    let mut data = vec![
        InfoVxlan::Id(tunnel.id),
        InfoVxlan::Link(over),
        InfoVxlan::Learning(false),
        InfoVxlan::Port(tunnel.port),
        // The remote end checks them: a path that damages packets must not damage them in silence.
        InfoVxlan::UDPCsum(true),
    ];
    data.push(either(tunnel.local, InfoVxlan::Local, InfoVxlan::Local6));
    data.push(either(tunnel.remote, InfoVxlan::Group, InfoVxlan::Group6));
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_string()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ];
    channel.ask(link_request(NEW_LINK, wire::CREATE | wire::EXCLUSIVE, &message))?;
    finish(channel, index(channel, name)?, tunnel)
}

fn either<T>(address: IpAddr, v4: impl Fn(Ipv4Addr) -> T, v6: impl Fn(Ipv6Addr) -> T) -> T {
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => v6(address),
    }
}

/// Alias first: from then on it is ours, and a kill leaves nothing behind that nobody owns.
fn finish(channel: &Channel, index: u32, tunnel: &Tunnel) -> Result<(), Refusal> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::IfAlias(ALIAS.to_owned())];
    channel.ask(link_request(SET_LINK, 0, &message))?;
    let empty = Tunnel { addresses: Vec::new(), mtu: 0, ..tunnel.clone() };
    adjust(channel, index, &empty, tunnel)
}

/// MTU, up or down, and addresses.
fn adjust(channel: &Channel, index: u32, before: &Tunnel, after: &Tunnel) -> Result<(), Refusal> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    if after.mtu > 0 {
        message.header.flags = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Mtu(after.mtu));
    }
    channel.ask(link_request(SET_LINK, 0, &message))?;
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (before.addresses.iter().collect(), after.addresses.iter().collect());
    for gone in old.difference(&new) {
        tolerate(channel.ask(address_request(DELETE_ADDRESS, 0, index, gone)), Errno::EADDRNOTAVAIL)?;
    }
    for added in &new {
        let request = address_request(NEW_ADDRESS, wire::CREATE | wire::EXCLUSIVE, index, added);
        tolerate(channel.ask(request), Errno::EEXIST)?;
    }
    Ok(())
}

fn delete(channel: &Channel, index: u32) -> Result<(), Refusal> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    tolerate(channel.ask(link_request(DELETE_LINK, 0, &message)), Errno::ENODEV)
}

fn tolerate(result: Result<(), Refusal>, errno: Errno) -> Result<(), Refusal> {
    match result {
        Err(refusal) if refusal.is(errno) => Ok(()),
        result => result,
    }
}

fn link_request(kind: u16, flags: u16, message: &LinkMessage) -> Request {
    let mut payload = vec![0; message.buffer_len()];
    message.emit(&mut payload);
    Request { kind, flags, payload }
}

fn address_request(kind: u16, flags: u16, index: u32, net: &IpNet) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.family = if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    if net.addr().is_ipv6() {
        // Nobody else is on a point-to-point tunnel, and waiting for detection would hold up the apply.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    let mut payload = vec![0; message.buffer_len()];
    message.emit(&mut payload);
    Request { kind, flags, payload }
}

/// The tunnel in a step's value.
pub(super) fn wanted(value: Option<&crate::state::Value>) -> Result<Option<&Tunnel>, KernelError> {
    match value {
        None => Ok(None),
        Some(crate::state::Value::Link(tunnel)) => Ok(Some(tunnel)),
        Some(_) => Err(malformed("the value of a tunnel")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, flags: AddressFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        let net: IpNet = text.parse().unwrap();
        (message.header.index, message.header.prefix_len) = (7, net.prefix_len());
        message.attributes = vec![AddressAttribute::Address(net.addr()), AddressAttribute::Flags(flags)];
        message
    }

    #[test]
    fn the_address_to_send_from_comes_first_and_a_deprecated_one_after_those_that_are_not() {
        let none = AddressFlags::empty();
        let found = [
            ("2001:db8:1::2/64", AddressFlags::Deprecated),
            ("2001:db8:1::3/64", AddressFlags::Deprecated | AddressFlags::Secondary),
            ("2001:db8:2::1/64", AddressFlags::Secondary),
            ("2001:db8:2::9/64", none),
            ("2001:db8:3::9/64", AddressFlags::Tentative),
            ("2001:db8:3::a/64", AddressFlags::Dadfailed),
            ("198.51.100.1/24", AddressFlags::Secondary),
            ("198.51.100.9/24", none),
        ];
        let mut addresses: Vec<Address> =
            found.iter().filter_map(|(text, flags)| usable(&address(text, *flags))).collect();
        let mut link = address("fe80::1/64", none);
        link.header.scope = AddressScope::Link;
        addresses.extend(usable(&link));
        addresses.sort();
        let links = Links { addresses, ..Links::default() };
        let texts: Vec<String> = links.addresses_of(7).iter().map(ToString::to_string).collect();
        let wanted = [
            "198.51.100.9/24",
            "2001:db8:2::9/64",
            "198.51.100.1/24",
            "2001:db8:2::1/64",
            "2001:db8:1::2/64",
            "2001:db8:1::3/64",
            "fe80::1/64",
        ];
        assert_eq!(texts, wanted);
    }

    #[test]
    fn a_link_has_no_ipv6_where_the_kernel_tells_nothing_of_it_or_that_it_is_switched_off() {
        let link = |settings: Option<[u32; 40]>| {
            let mut ipv6 = Vec::new();
            if let Some(settings) = settings {
                wire::put(&mut ipv6, IFLA_INET6_CONF, &settings.map(u32::to_ne_bytes).concat());
            }
            let mut families = Vec::new();
            wire::put(&mut families, 2, &[]);
            if settings.is_some() {
                wire::put(&mut families, AF_INET6, &ipv6);
            }
            let mut attributes = Vec::new();
            wire::put(&mut attributes, IFLA_AF_SPEC, &families);
            attributes
        };
        let mut off = [0; 40];
        off[DISABLE_IPV6] = 1;
        assert!(no_ipv6(&link(None)) && no_ipv6(&link(Some(off))) && !no_ipv6(&link(Some([0; 40]))));
    }
}
