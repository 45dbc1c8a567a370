//! Routing rules: ours as keys, everybody else's in our priorities or with our mark bits as intruders.

use netlink_packet_core::{Emitable as _, Parseable as _};
use netlink_packet_route::{
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use nix::errno::Errno;

use super::{
    route::{address_family, protocol},
    socket::{Channel, Request},
    wire,
};
use crate::{
    foreign,
    kernel::KernelError,
    state::{Fwmark, Ranges, RuleKey},
    units::Family,
};

const NEW: u16 = 32;
const DELETE: u16 = 33;
const GET: u16 = 34;
/// How the kernel says "no `suppress_prefixlength`".
const UNSET: u32 = u32::MAX;

/// Our rules and the lines about intruders.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub ours: Vec<RuleKey>,
    pub intruders: Vec<String>,
}

pub(super) fn list(channel: &Channel, ranges: &Ranges) -> Result<Rules, KernelError> {
    let mut rules = Rules::default();
    for (family, message) in dump(channel)? {
        rules.sort_in(family, &message, ranges);
    }
    Ok(rules)
}

/// The rules of everybody else.
pub(super) fn foreign(channel: &Channel, ranges: &Ranges) -> Result<Vec<foreign::Rule>, KernelError> {
    let ours = |seen: &Seen| seen.protocol == RouteProtocol::from(ranges.protocol);
    let all = dump(channel)?.into_iter().map(|(family, message)| (Seen::of(family, &message), message));
    let rule = |(seen, message): (Seen, RuleMessage)| foreign::Rule {
        family: seen.key.family,
        priority: seen.key.priority,
        fwmark: seen.key.fwmark,
        selective: seen.key.oif.is_some() || selects(&message),
        inverted: message.header.flags.contains(RuleFlags::Invert),
        table: (message.header.action == RuleAction::ToTable).then_some(seen.key.table),
        suppress_prefixlength: seen.key.suppress_prefixlength,
        protocol: protocol(seen.protocol),
    };
    Ok(all.filter(|(seen, _)| !ours(seen)).map(rule).collect())
}

/// Whether a rule asks for more than a mark.
fn selects(message: &RuleMessage) -> bool {
    let header = &message.header;
    let says_nothing = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::Priority(_)
                | RuleAttribute::Table(_)
                | RuleAttribute::FwMark(_)
                | RuleAttribute::FwMask(_)
                | RuleAttribute::Protocol(_)
                | RuleAttribute::SuppressPrefixLen(_)
                | RuleAttribute::SuppressIfGroup(UNSET)
        )
    };
    let addresses = header.dst_len != 0 || header.src_len != 0 || header.tos != 0;
    addresses || !message.attributes.iter().all(says_nothing)
}

fn dump(channel: &Channel) -> Result<Vec<(Family, RuleMessage)>, KernelError> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let mut request = RuleMessage::default();
        request.header.family = address_family(family);
        let seen = channel
            .dump(GET, &emit(&request), |kind, payload| {
                let parsed = || RuleMessage::parse(payload).map_err(|e| e.to_string());
                if kind == NEW { parsed().map(Some) } else { Ok(None) }
            })
            // A kernel without IPv6 has no IPv6 rules.
            .or_else(|r| if r.is(Errno::EAFNOSUPPORT) { Ok(Vec::new()) } else { Err(r) })
            .map_err(|r| r.doing(format!("list the {family} rules")))?;
        found.extend(seen.into_iter().map(|message| (family, message)));
    }
    Ok(found)
}

impl Rules {
    fn sort_in(&mut self, family: Family, message: &RuleMessage, ranges: &Ranges) {
        let seen = Seen::of(family, message);
        let key = &seen.key;
        let in_range = ranges.owns_priority(key.priority);
        let ours = seen.protocol == RouteProtocol::from(ranges.protocol);
        let by = protocol(seen.protocol);
        if in_range && ours && seen.plain {
            self.ours.push(seen.key);
        } else if in_range && ours {
            let line = format!("{family} rule priority {} with selectors that Patronus does not set", key.priority);
            self.intruders.push(line);
        } else if in_range {
            self.intruders.push(format!("{family} rule priority {} by protocol {by}", key.priority));
        } else if let Some(fwmark) = key.fwmark.filter(|f| f.mark & f.mask & ranges.target_mask.bits() != 0) {
            let line = format!("{family} rule priority {} by protocol {by} matches mark {fwmark}", key.priority);
            self.intruders.push(line);
        }
    }
}

struct Seen {
    key: RuleKey,
    protocol: RouteProtocol,
    /// It has nothing that the key does not hold.
    plain: bool,
}

impl Seen {
    fn of(family: Family, message: &RuleMessage) -> Self {
        let header = &message.header;
        let table = header.table.into();
        let key = RuleKey { priority: 0, family, fwmark: None, oif: None, table, suppress_prefixlength: None };
        let plain = header.dst_len == 0
            && header.src_len == 0
            && header.tos == 0
            && header.action == RuleAction::ToTable
            && !header.flags.contains(RuleFlags::Invert);
        let mut seen = Self { key, protocol: RouteProtocol::Unspec, plain };
        let mut fwmark = Fwmark { mark: 0, mask: 0 };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => seen.key.priority = *priority,
                RuleAttribute::Table(table) => seen.key.table = *table,
                RuleAttribute::FwMark(value) => fwmark.mark = *value,
                RuleAttribute::FwMask(value) => fwmark.mask = *value,
                RuleAttribute::Protocol(value) => seen.protocol = *value,
                RuleAttribute::Oifname(name) => match name.parse() {
                    Ok(name) => seen.key.oif = Some(name),
                    Err(_) => seen.plain = false,
                },
                RuleAttribute::SuppressPrefixLen(UNSET) | RuleAttribute::SuppressIfGroup(UNSET) => {}
                RuleAttribute::SuppressPrefixLen(length) => seen.key.suppress_prefixlength = Some(*length),
                _ => seen.plain = false,
            }
        }
        seen.key.fwmark = (fwmark.mask != 0).then_some(fwmark);
        seen
    }
}

/// The request that adds a rule; `EEXIST` means that it is there.
pub(super) fn add(key: &RuleKey, ranges: &Ranges) -> Request {
    Request { kind: NEW, flags: wire::CREATE | wire::EXCLUSIVE, payload: emit(&message(key, ranges)) }
}

/// The request that deletes exactly this rule; `ENOENT` means that it is gone.
pub(super) fn delete(key: &RuleKey, ranges: &Ranges) -> Request {
    Request { kind: DELETE, flags: 0, payload: emit(&message(key, ranges)) }
}

fn message(key: &RuleKey, ranges: &Ranges) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(key.family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(key.priority),
        RuleAttribute::Table(key.table),
        RuleAttribute::Protocol(ranges.protocol.into()),
    ];
    if let Some(oif) = &key.oif {
        message.attributes.push(RuleAttribute::Oifname(oif.to_string()));
    }
    if let Some(fwmark) = key.fwmark {
        message.attributes.extend([RuleAttribute::FwMark(fwmark.mark), RuleAttribute::FwMask(fwmark.mask)]);
    }
    message.attributes.extend(key.suppress_prefixlength.map(RuleAttribute::SuppressPrefixLen));
    message
}

fn emit(message: &RuleMessage) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}
