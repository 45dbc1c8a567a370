//! How this machine's own packets reach a network: what the kernel's lookup answers, rules included.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::Parseable as _;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};
use nix::errno::Errno;

use super::{
    link::Names,
    route::{address, address_family},
    socket::{Channel, Refusal},
    wire,
};
use crate::{
    explain::{Hop, Lookup},
    state::Way,
    units::Family,
};

const GET: u16 = 26;
const RTA_DST: u16 = 1;

/// What the lookup answers where there is no way, whatever else is asked: nothing leads there, or a route or a rule of
/// the type `unreachable`, `blackhole`, `prohibit` or `throw` does (`fib_props` of the kernel's IPv4; IPv6 answers with
/// that route).
const NO_WAY: [Errno; 5] = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EINVAL, Errno::EACCES, Errno::EAGAIN];

/// The way to a network; none if there is none. Addresses that are the machine's own say nothing and are passed over.
pub(super) fn to(channel: &Channel, net: &IpNet, names: &Names) -> Result<Option<Way>, Refusal> {
    let mut hosts = net.hosts();
    let candidates = [hosts.next(), hosts.next(), hosts.next()];
    for address in candidates.into_iter().flatten() {
        let reply = match channel.get(GET, question(address)) {
            Ok(reply) => reply,
            Err(refusal) if NO_WAY.iter().any(|errno| refusal.is(*errno)) => return Ok(None),
            Err(refusal) => return Err(refusal),
        };
        let message = RouteMessage::parse(&reply).map_err(|e| Refusal::text(e.to_string()))?;
        if message.header.kind == RouteType::Unicast {
            return Ok(way(&message, names));
        }
    }
    Ok(None)
}

/// `struct rtmsg` and the address; the kernel shall tell the route that matches, not the one made for this address.
fn question(address: IpAddr) -> Vec<u8> {
    let family = Family::of(&address);
    let octets = wire::octets(address);
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut bytes = vec![u8::from(address_family(family)), length, 0, 0, 0, 0, 0, 0];
    bytes.extend(RouteFlags::FibMatch.bits().to_ne_bytes());
    wire::put(&mut bytes, RTA_DST, &octets);
    bytes
}

fn way(message: &RouteMessage, names: &Names) -> Option<Way> {
    let interface = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => names.get(index).cloned(),
        _ => None,
    });
    let gateway = message.attributes.iter().find_map(address);
    let specific = message.header.destination_prefix_length > 0;
    Some(Way { interface: interface?, gateway, specific })
}

/// What a packet is looked up by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub source: Option<IpAddr>,
    pub destination: IpAddr,
    pub mark: u32,
    /// Index of the interface that it comes in by; absent for the machine's own.
    pub input: Option<u32>,
    /// Protocol, source port and destination port, which rules may ask for.
    pub transport: (u8, Option<u16>, Option<u16>),
    pub names: &'a Names,
}

/// The route that the kernel takes for a packet, rules, marks and reverse-path filter included. No packet is sent.
pub(super) fn lookup(channel: &Channel, packet: Packet<'_>) -> Lookup {
    match channel.get(GET, packet_question(packet)) {
        Ok(reply) => RouteMessage::parse(&reply)
            .map_or_else(|error| Lookup::Refused { why: error.to_string() }, |message| answer(&message, packet)),
        Err(refusal) => {
            let none = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES];
            let unreachable = none.iter().any(|e| refusal.is(*e));
            if unreachable { Lookup::Unreachable } else { Lookup::Refused { why: refusal.text } }
        }
    }
}

fn packet_question(packet: Packet<'_>) -> Vec<u8> {
    const RTA_SRC: u16 = 2;
    const RTA_IIF: u16 = 3;
    const RTA_MARK: u16 = 16;
    const RTA_IP_PROTO: u16 = 27;
    const RTA_SPORT: u16 = 28;
    const RTA_DPORT: u16 = 29;
    let mut bytes = question(packet.destination);
    if packet.destination.is_ipv4() {
        // Without it the answer for IPv4 says `main` whatever the table was; IPv6 refuses it and tells anyway.
        let flags = RouteFlags::FibMatch.bits() | RouteFlags::LookupTable.bits();
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    }
    if let Some(source) = packet.source {
        let octets = wire::octets(source);
        bytes[2] = if source.is_ipv4() { 32 } else { 128 };
        wire::put(&mut bytes, RTA_SRC, &octets);
    }
    if let Some(input) = packet.input {
        wire::put(&mut bytes, RTA_IIF, &input.to_ne_bytes());
    }
    if packet.mark != 0 {
        wire::put(&mut bytes, RTA_MARK, &packet.mark.to_ne_bytes());
    }
    // The kernel takes no other protocols here, and asks for ports only with them.
    let (protocol, source, destination) = packet.transport;
    if [6, 17].contains(&protocol) {
        wire::put(&mut bytes, RTA_IP_PROTO, &[protocol]);
        let ports = [(RTA_SPORT, source), (RTA_DPORT, destination)];
        for (kind, port) in ports.into_iter().filter_map(|(kind, port)| Some((kind, port?))) {
            wire::put(&mut bytes, kind, &port.to_be_bytes());
        }
    }
    bytes
}

fn answer(message: &RouteMessage, packet: Packet<'_>) -> Lookup {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => return Lookup::Local,
        _ => return Lookup::Unreachable,
    }
    let table = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(IpAddr::from(*a)),
        RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(IpAddr::from(*a)),
        _ => None,
    });
    let any = || if packet.destination.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
    let destination = IpNet::new(address.unwrap_or_else(any), message.header.destination_prefix_length);
    let hop = way(message, packet.names).map(|way| Hop { interface: way.interface, gateway: way.gateway });
    match destination {
        Ok(destination) => {
            Lookup::Route { table: table.unwrap_or_else(|| message.header.table.into()), destination, hop }
        }
        Err(error) => Lookup::Refused { why: error.to_string() },
    }
}
