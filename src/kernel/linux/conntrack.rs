//! Connection tracking: forget the flows of a mark, count the flows of each policy.
//!
//! Invariant: never a deletion without a filter that the kernel was seen to honour.

use std::collections::BTreeMap;

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
};

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;

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

fn filter(flows: Fwmark, message: impl Fn(Vec<ConntrackAttribute>) -> ConntrackMessage) -> Vec<u8> {
    let mask = DefaultNla::new(CTA_MARK_MASK, flows.mask.to_be_bytes().to_vec());
    let attributes = vec![ConntrackAttribute::CtaMark(flows.mark & flows.mask), ConntrackAttribute::Other(mask)];
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let message = NetfilterMessage::new(header, message(attributes));
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
