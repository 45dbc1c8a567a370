//! Connection tracking: forget the flows of a mark, count the flows of each policy, look one flow up.
//!
//! Invariant: never a deletion without a filter that the kernel was seen to honour.

use std::{collections::BTreeMap, net::IpAddr};

use netlink_packet_core::{DefaultNla, NetlinkSerializable as _};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage},
};
use nix::errno::Errno;

use super::{
    socket::{Channel, Refusal, Request},
    tables::HEADER,
    wire,
};
use crate::{
    kernel::KernelError,
    state::{Fwmark, Ranges},
    units::Family,
};

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
const NESTED: u16 = 0x8000;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Deletes the entries whose mark under the mask equals the value, of both families, and says how many.
pub(super) fn forget(channel: &Channel, flows: Fwmark) -> Result<u64, KernelError> {
    let doing = || format!("forget the flows with mark {flows}");
    if flows.mask == 0 || flows.mark & flows.mask == 0 {
        let text = "without a mark this would forget the flows of everybody".to_owned();
        return Err(Refusal { errno: Errno::EINVAL as i32, text }.doing(doing()));
    }
    let marks = channel.dump(GET, &filter(flows, ConntrackMessage::Get), mark).map_err(|r| r.doing(doing()))?;
    if marks.iter().any(|mark| mark & flows.mask != flows.mark & flows.mask) {
        let what = "this kernel does not filter connections by mark: CONFIG_NF_CONNTRACK_MARK is needed".to_owned();
        return Err(KernelError::Missing { what });
    }
    if marks.is_empty() {
        return Ok(0);
    }
    let request = Request { kind: DELETE, flags: 0, payload: filter(flows, ConntrackMessage::Delete) };
    match channel.ask(request) {
        Err(refusal) if !refusal.is(Errno::ENOENT) => Err(refusal.doing(doing())),
        _ => Ok(marks.len() as u64),
    }
}

/// The same for the entries of one family. They are deleted one by one: a kernel that does not know the family of a
/// deletion would delete those of the other one too.
pub(super) fn forget_family(channel: &Channel, flows: Fwmark, family: Family) -> Result<u64, KernelError> {
    let doing = || format!("forget the {family} flows with mark {flows}");
    if flows.mask == 0 || flows.mark & flows.mask == 0 {
        let text = "without a mark this would forget the flows of everybody".to_owned();
        return Err(Refusal { errno: Errno::EINVAL as i32, text }.doing(doing()));
    }
    let code = if family == Family::V4 { AF_INET } else { AF_INET6 };
    let one = |kind: u16, payload: &[u8]| {
        let ours = mark(kind, payload)?.is_some_and(|mark| mark & flows.mask == flows.mark & flows.mask);
        let tuple = wire::find(payload.get(HEADER..).unwrap_or_default(), CTA_TUPLE_ORIG);
        let tuple = tuple.filter(|_| ours && payload.first() == Some(&code));
        Ok(tuple.map(|tuple| {
            let mut bytes = vec![code, 0, 0, 0];
            wire::put(&mut bytes, NESTED | CTA_TUPLE_ORIG, tuple);
            Request { kind: DELETE, flags: 0, payload: bytes }
        }))
    };
    let requests = channel.dump(GET, &filter(flows, ConntrackMessage::Get), one).map_err(|r| r.doing(doing()))?;
    let mut forgotten = 0;
    for answer in channel.ask_all(requests) {
        match answer {
            Ok(()) => forgotten += 1,
            // It ended meanwhile.
            Err(refusal) if refusal.is(Errno::ENOENT) => {}
            Err(refusal) => return Err(refusal.doing(doing())),
        }
    }
    Ok(forgotten)
}

/// Number of entries by the policy in their mark; those without a policy are left out.
pub(super) fn by_policy(channel: &Channel, ranges: &Ranges) -> Result<BTreeMap<u32, u64>, KernelError> {
    let mut flows = BTreeMap::new();
    let header = vec![0; HEADER];
    let keep = |kind: u16, payload: &[u8]| {
        let policy = mark(kind, payload)?.map(|mark| ranges.policy_mask.number(mark));
        Ok(policy.filter(|policy| *policy != 0))
    };
    for policy in channel.dump(GET, &header, keep).map_err(|r| r.doing("count flows"))? {
        *flows.entry(policy).or_default() += 1;
    }
    Ok(flows)
}

// The signature is that of a dump's filter.
#[allow(clippy::unnecessary_wraps)]
fn mark(kind: u16, payload: &[u8]) -> Result<Option<u32>, String> {
    let attributes = payload.get(HEADER..).unwrap_or_default();
    let mark = || wire::find(attributes, CTA_MARK).and_then(wire::be32).unwrap_or(0);
    Ok((kind == NEW).then(mark))
}

/// Mark and translated source of the entry of one flow, if there is one. The kernel finds it by its first direction or
/// by its answers; only the first is meant here.
pub(super) fn find(channel: &Channel, flow: &Tuple) -> Result<Option<(u32, Option<IpAddr>)>, KernelError> {
    let reply = match channel.get(GET, flow.question()) {
        Ok(reply) => reply,
        Err(refusal) if refusal.is(Errno::ENOENT) => return Ok(None),
        Err(refusal) => return Err(refusal.doing("look up a flow in connection tracking")),
    };
    let attributes = reply.get(HEADER..).unwrap_or_default();
    let address = |tuple: u16, fields: [u16; 2]| {
        let addresses = wire::find(wire::find(attributes, tuple)?, CTA_TUPLE_IP)?;
        fields.iter().find_map(|field| wire::find(addresses, *field)).and_then(address)
    };
    if address(CTA_TUPLE_ORIG, SOURCES) != Some(flow.source) {
        return Ok(None);
    }
    let mark = wire::find(attributes, CTA_MARK).and_then(wire::be32).unwrap_or(0);
    Ok(Some((mark, address(CTA_TUPLE_REPLY, DESTINATIONS).filter(|to| *to != flow.source))))
}

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
/// `CTA_IP_V4_SRC`, `CTA_IP_V6_SRC`.
const SOURCES: [u16; 2] = [1, 3];
/// `CTA_IP_V4_DST`, `CTA_IP_V6_DST`.
const DESTINATIONS: [u16; 2] = [2, 4];

/// What connection tracking knows a flow of TCP or UDP by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuple {
    pub protocol: u8,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ports: [u16; 2],
}

impl Tuple {
    fn question(&self) -> Vec<u8> {
        const CTA_PROTO_NUM: u16 = 1;
        const CTA_PROTO_SRC_PORT: u16 = 2;
        const CTA_PROTO_DST_PORT: u16 = 3;
        let six = self.source.is_ipv6();
        let (mut ip, mut transport, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
        wire::put(&mut ip, SOURCES[usize::from(six)], &wire::octets(self.source));
        wire::put(&mut ip, DESTINATIONS[usize::from(six)], &wire::octets(self.destination));
        wire::put(&mut transport, CTA_PROTO_NUM, &[self.protocol]);
        wire::put(&mut transport, CTA_PROTO_SRC_PORT, &self.ports[0].to_be_bytes());
        wire::put(&mut transport, CTA_PROTO_DST_PORT, &self.ports[1].to_be_bytes());
        wire::put(&mut tuple, NESTED | CTA_TUPLE_IP, &ip);
        wire::put(&mut tuple, NESTED | CTA_TUPLE_PROTO, &transport);
        // `struct nfgenmsg`: the family, version 0, no resource.
        let mut bytes = vec![if six { AF_INET6 } else { AF_INET }, 0, 0, 0];
        wire::put(&mut bytes, NESTED | CTA_TUPLE_ORIG, &tuple);
        bytes
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn filter(flows: Fwmark, message: impl Fn(Vec<ConntrackAttribute>) -> ConntrackMessage) -> Vec<u8> {
    let mask = DefaultNla::new(CTA_MARK_MASK, flows.mask.to_be_bytes().to_vec());
    let attributes = vec![ConntrackAttribute::CtaMark(flows.mark & flows.mask), ConntrackAttribute::Other(mask)];
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let message = NetfilterMessage::new(header, message(attributes));
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
