//! How this machine's own packets reach a network: what the kernel's lookup answers, rules included.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::Parseable as _;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteType};
use nix::errno::Errno;

use super::{
    link::Names,
    route::{address, address_family},
    socket::{Channel, Refusal},
    wire,
};
use crate::{state::Way, units::Family};

const GET: u16 = 26;
const RTA_DST: u16 = 1;

/// The way to a network; none if there is none. Addresses that are the machine's own say nothing and are passed over.
pub(super) fn to(channel: &Channel, net: &IpNet, names: &Names) -> Result<Option<Way>, Refusal> {
    let mut hosts = net.hosts();
    let candidates = [hosts.next(), hosts.next(), hosts.next()];
    for address in candidates.into_iter().flatten() {
        let reply = match channel.get(GET, question(address)) {
            Ok(reply) => reply,
            Err(refusal) if [Errno::ENETUNREACH, Errno::EHOSTUNREACH].iter().any(|e| refusal.is(*e)) => {
                return Ok(None);
            }
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
    let (octets, length) = match address {
        IpAddr::V4(a) => (a.octets().to_vec(), 32),
        IpAddr::V6(a) => (a.octets().to_vec(), 128),
    };
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
