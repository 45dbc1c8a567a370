//! Connection tracking as something to read: count the flows of each policy, look one flow up.

use std::{collections::BTreeMap, net::IpAddr};

use nix::errno::Errno;

use super::{socket::Channel, tables::HEADER, wire};
use crate::{kernel::KernelError, state::Ranges};

const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_NEW`: an entry.
pub(super) const NEW: u16 = SUBSYSTEM;
/// `IPCTNL_MSG_CT_GET`.
pub(super) const GET: u16 = SUBSYSTEM | 1;
/// `IPCTNL_MSG_CT_DELETE`.
pub(super) const DELETE: u16 = SUBSYSTEM | 2;
pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_MARK: u16 = 8;
pub(super) const NESTED: u16 = 0x8000;
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// Number of entries by the policy in their mark; those without a policy are left out.
pub(super) fn by_policy(channel: &Channel, ranges: &Ranges) -> Result<BTreeMap<u32, u64>, KernelError> {
    let mut flows = BTreeMap::new();
    let header = vec![0; HEADER];
    let count = |kind: u16, payload: &[u8]| {
        let policy = ranges.policy_mask.number(mark(payload));
        if kind == NEW && policy != 0 {
            *flows.entry(policy).or_default() += 1;
        }
    };
    channel.each(GET, &header, count).map_err(|r| r.doing("count flows"))?;
    Ok(flows)
}

/// The mark of an entry.
pub(super) fn mark(payload: &[u8]) -> u32 {
    wire::find(payload.get(HEADER..).unwrap_or_default(), CTA_MARK).and_then(wire::be32).unwrap_or(0)
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
    Ok(Some((mark(&reply), address(CTA_TUPLE_REPLY, DESTINATIONS).filter(|to| *to != flow.source))))
}

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
    pub(super) fn question(&self) -> Vec<u8> {
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
