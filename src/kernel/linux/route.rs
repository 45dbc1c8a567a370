//! Routes: ours as values, the main table's default routes as facts, everybody else's in our tables as intruders.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{Emitable as _, Parseable as _};
use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        RouteType, RouteVia,
    },
};
use nix::errno::Errno;

use super::{
    link::Names,
    socket::{Channel, Refusal, Request},
    wire,
};
use crate::{
    kernel::KernelError,
    state::{Gateway, Ranges, RouteKey, RouteValue},
    units::Family,
};

const NEW: u16 = 24;
const DELETE: u16 = 25;
const GET: u16 = 26;
/// `struct rtmsg`.
const HEADER: usize = 12;
const MAIN: u32 = 254;

pub(super) const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// A route as the dump shows it, reduced to what is asked of it.
struct Seen {
    message: RouteMessage,
    family: Family,
    table: u32,
    metric: u32,
    raw: Vec<u8>,
}

impl Seen {
    fn parse(family: Family, payload: &[u8]) -> Result<Self, String> {
        let message = RouteMessage::parse(payload).map_err(|e| e.to_string())?;
        let mut seen = Self { table: message.header.table.into(), metric: 0, family, message, raw: payload.to_vec() };
        for attribute in &seen.message.attributes {
            match attribute {
                RouteAttribute::Table(table) => seen.table = *table,
                RouteAttribute::Priority(metric) => seen.metric = *metric,
                _ => {}
            }
        }
        Ok(seen)
    }

    fn destination(&self) -> Option<IpNet> {
        let address = self.message.attributes.iter().find_map(|a| match a {
            RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(IpAddr::from(*a)),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(IpAddr::from(*a)),
            _ => None,
        });
        let any = || unspecified(self.family);
        IpNet::new(address.unwrap_or_else(any), self.message.header.destination_prefix_length).ok()
    }

    fn key(&self) -> Option<RouteKey> {
        let destination = self.destination()?;
        Some(RouteKey { table: self.table, family: self.family, destination, metric: self.metric })
    }

    fn is_default(&self) -> bool {
        self.message.header.destination_prefix_length == 0 && self.message.header.kind == RouteType::Unicast
    }

    /// The value, or a description if the route has properties that we never set.
    fn value(&self, names: &Names) -> RouteValue {
        self.plain(names).unwrap_or_else(|| RouteValue::Other {
            text: self.describe(names).into(),
            message: hex(&self.kept()).into(),
        })
    }

    fn plain(&self, names: &Names) -> Option<RouteValue> {
        let header = &self.message.header;
        let (mut gateway, mut interface, mut mtu) = (None, None, None);
        for attribute in &self.message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => interface = names.get(index),
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = Some(address(attribute)?),
                RouteAttribute::Metrics(metrics) if metrics.is_empty() => {}
                RouteAttribute::Metrics(metrics) => mtu = Some(only_mtu(metrics)?),
                other if says_nothing(other) => {}
                _ => return None,
            }
        }
        if header.tos != 0 || header.source_prefix_length != 0 {
            return None;
        }
        match header.kind {
            RouteType::Unreachable if gateway.is_none() && mtu.is_none() => Some(RouteValue::Unreachable),
            RouteType::Unicast if header.scope == scope(self.family, gateway.is_some()) => {
                let onlink = header.flags.contains(RouteFlags::Onlink) == gateway.is_some();
                onlink.then_some(RouteValue::Via { gateway, interface: interface?.clone(), mtu })
            }
            _ => None,
        }
    }

    fn describe(&self, names: &Names) -> String {
        let mut text = format!("{:?}", self.message.header.kind).to_lowercase();
        for hop in hops(&self.message) {
            let device = names.get(&hop.0).map_or_else(|| hop.0.to_string(), ToString::to_string);
            let _ = match hop.1 {
                Gateway::Address(address) => write!(text, " via {address} dev {device}"),
                Gateway::Link => write!(text, " dev {device}"),
            };
        }
        text.push_str(" with properties that Patronus does not set");
        text
    }

    /// The message that would make this route again: without cache and link state, which come by themselves.
    fn kept(&self) -> Vec<u8> {
        const RTA_CACHEINFO: u16 = 12;
        let mut header = self.message.header.clone();
        header.flags &= RouteFlags::Onlink | RouteFlags::Pervasive;
        let mut bytes = vec![0; header.buffer_len()];
        header.emit(&mut bytes);
        for (kind, value) in wire::attributes(&self.raw[HEADER..]).filter(|(kind, _)| *kind != RTA_CACHEINFO) {
            wire::put(&mut bytes, kind, value);
        }
        bytes
    }
}

/// What the kernel adds by itself, or what the key holds.
fn says_nothing(attribute: &RouteAttribute) -> bool {
    match attribute {
        RouteAttribute::Table(_)
        | RouteAttribute::Destination(_)
        | RouteAttribute::Priority(_)
        | RouteAttribute::CacheInfo(_) => true,
        RouteAttribute::Preference(preference) => u8::from(*preference) == 0,
        _ => false,
    }
}

/// The MTU if the metrics hold it and nothing else.
fn only_mtu(metrics: &[RouteMetric]) -> Option<u32> {
    match metrics {
        [RouteMetric::Mtu(mtu)] => Some(*mtu),
        _ => None,
    }
}

const fn scope(family: Family, gateway: bool) -> RouteScope {
    match family {
        Family::V4 if !gateway => RouteScope::Link,
        _ => RouteScope::Universe,
    }
}

pub(super) fn address(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(a)) | RouteAttribute::Via(RouteVia::Inet(a)) => Some((*a).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(a)) | RouteAttribute::Via(RouteVia::Inet6(a)) => Some((*a).into()),
        _ => None,
    }
}

/// Interface and gateway of each next hop.
fn hops(message: &RouteMessage) -> Vec<(u32, Gateway)> {
    let one = |index: Option<u32>, attributes: &[RouteAttribute]| {
        let gateway = attributes.iter().find_map(address).map_or(Gateway::Link, Gateway::Address);
        let own = attributes.iter().find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None });
        own.or(index).map(|index| (index, gateway))
    };
    let many = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    match many {
        Some(many) => many.iter().filter_map(|hop| one(Some(hop.interface_index), &hop.attributes)).collect(),
        None => one(None, &message.attributes).into_iter().collect(),
    }
}

const fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

/// A dump that the kernel filters by table and protocol; 0 means any. An absent table has no routes.
fn dump(channel: &Channel, family: Family, table: u32, protocol: u8, defaults: bool) -> Result<Vec<Seen>, Refusal> {
    let header =
        RouteHeader { address_family: address_family(family), protocol: protocol.into(), ..RouteHeader::default() };
    let mut request = vec![0; header.buffer_len()];
    header.emit(&mut request);
    if table != 0 {
        const RTA_TABLE: u16 = 15;
        wire::put(&mut request, RTA_TABLE, &table.to_ne_bytes());
    }
    let keep = |kind: u16, payload: &[u8]| {
        // Byte 1 is the destination's prefix length, byte 8 and on the flags: both are cheap to ask first.
        let cloned = wire::u32_at(payload, 8).is_some_and(|flags| flags & RouteFlags::Cloned.bits() != 0);
        // A kernel without IPv6 answers for all families that it has.
        let other = payload.first().copied() != Some(u8::from(address_family(family)));
        let skipped = kind != NEW || other || cloned || (defaults && payload.get(1) != Some(&0));
        if skipped { Ok(None) } else { Seen::parse(family, payload).map(Some) }
    };
    match channel.dump(GET, &request, keep) {
        Err(refusal) if refusal.is(Errno::ENOENT) || refusal.is(Errno::EAFNOSUPPORT) => Ok(Vec::new()),
        result => result,
    }
}

/// Our routes of both families.
pub(super) fn ours(
    channel: &Channel,
    ranges: &Ranges,
    names: &Names,
) -> Result<BTreeMap<RouteKey, RouteValue>, KernelError> {
    let mut found = BTreeMap::new();
    for family in Family::ALL {
        let seen = dump(channel, family, 0, ranges.protocol, false)
            .map_err(|r| r.doing(format!("list our {family} routes")))?;
        for route in seen.iter().filter(|r| ranges.owns_table(r.table)) {
            if let Some(key) = route.key() {
                found.insert(key, route.value(names));
            }
        }
    }
    Ok(found)
}

/// Interface, family, metric and gateway of each default route of the main table, smaller metrics first.
pub(super) fn defaults(channel: &Channel) -> Result<Vec<(u32, Family, u32, Gateway)>, KernelError> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let seen = dump(channel, family, MAIN, 0, true)
            .map_err(|r| r.doing(format!("list the {family} default routes of the main table")))?;
        for route in seen.iter().filter(|r| r.is_default()) {
            found.extend(
                hops(&route.message).into_iter().map(|(index, gateway)| (index, family, route.metric, gateway)),
            );
        }
    }
    found.sort_by_key(|(_, _, metric, _)| *metric);
    Ok(found)
}

/// Routes of others in the tables, one line each.
pub(super) fn intruders(channel: &Channel, ranges: &Ranges, tables: &[u32]) -> Result<Vec<String>, KernelError> {
    let mut lines = Vec::new();
    for table in tables {
        for family in Family::ALL {
            let seen = dump(channel, family, *table, 0, false)
                .map_err(|r| r.doing(format!("list the {family} routes of table {table}")))?;
            let foreign = seen.iter().filter(|r| u8::from(r.message.header.protocol) != ranges.protocol);
            lines.extend(foreign.map(|r| {
                let destination = r.destination().map_or_else(|| "?".to_owned(), |d| d.to_string());
                format!(
                    "{family} route {destination} in table {table} by protocol {}",
                    protocol(r.message.header.protocol)
                )
            }));
        }
    }
    Ok(lines)
}

/// A protocol number with its usual name, where it has one.
pub(super) fn protocol(protocol: RouteProtocol) -> String {
    match protocol {
        RouteProtocol::Other(number) => number.to_string(),
        named => named.to_string().to_lowercase(),
    }
}

/// The request that adds a route, or replaces the one with the same key.
pub(super) fn set(
    key: &RouteKey,
    value: &RouteValue,
    index: Option<u32>,
    ranges: &Ranges,
    replace: bool,
) -> Result<Request, KernelError> {
    let flags = wire::CREATE | if replace { wire::REPLACE } else { wire::EXCLUSIVE };
    let payload = match value {
        RouteValue::Other { message, .. } => unhex(message).ok_or_else(|| malformed("a route's message"))?,
        _ => emit(&message(key, value, index, ranges.protocol)),
    };
    Ok(Request { kind: NEW, flags, payload })
}

/// The request that deletes exactly our route with this key.
pub(super) fn unset(key: &RouteKey, ranges: &Ranges) -> Request {
    let mut message = base(key, ranges.protocol);
    message.header.scope = RouteScope::NoWhere;
    Request { kind: DELETE, flags: 0, payload: emit(&message) }
}

/// Whether the table has a route of ours with this key.
pub(super) fn holds(channel: &Channel, key: &RouteKey, ranges: &Ranges) -> Result<bool, Refusal> {
    let seen = dump(channel, key.family, key.table, ranges.protocol, false)?;
    Ok(seen.iter().any(|route| route.key().as_ref() == Some(key)))
}

pub(super) fn malformed(what: &str) -> KernelError {
    let doing = "carry out a step".to_owned();
    KernelError::Netlink { doing, errno: Errno::EINVAL as i32, text: format!("{what} is malformed") }
}

fn base(key: &RouteKey, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(key.family);
    message.header.protocol = protocol.into();
    message.header.destination_prefix_length = key.destination.prefix_len();
    if key.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(key.destination.addr().into()));
    }
    message.attributes.push(RouteAttribute::Table(key.table));
    message.attributes.push(RouteAttribute::Priority(key.metric));
    message
}

fn message(key: &RouteKey, value: &RouteValue, index: Option<u32>, protocol: u8) -> RouteMessage {
    let mut message = base(key, protocol);
    message.header.kind = RouteType::Unreachable;
    if let RouteValue::Via { gateway, mtu, .. } = value {
        message.header.kind = RouteType::Unicast;
        message.header.scope = scope(key.family, gateway.is_some());
        message.attributes.extend(index.map(RouteAttribute::Oif));
        if let Some(gateway) = gateway {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(next_hop(key.family, *gateway));
        }
        message.attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    }
    message
}

/// An IPv4 route may go through an IPv6 router (RFC 5549); the kernel takes that as another attribute.
fn next_hop(family: Family, gateway: IpAddr) -> RouteAttribute {
    match gateway {
        IpAddr::V6(gateway) if family == Family::V4 => RouteAttribute::Via(RouteVia::Inet6(gateway)),
        gateway => RouteAttribute::Gateway(gateway.into()),
    }
}

fn emit(message: &RouteMessage) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}
