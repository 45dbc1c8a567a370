//! What the kernel itself says of our nft table: its generation, its sets with their comments, its counters.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::{
    nft::TABLE,
    socket::{Channel, Refusal},
    wire,
};
use crate::{kernel::KernelError, state::Counter, units::Name};

pub(super) const SUBSYSTEM: u16 = 10 << 8;
const NFPROTO_INET: u8 = 1;
const GET_TABLE: u16 = SUBSYSTEM | 0x01;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 0x0c;
const GET_ELEMENTS: u16 = SUBSYSTEM | 0x0d;
const GET_GENERATION: u16 = SUBSYSTEM | 0x10;
const NEW_OBJECT: u16 = SUBSYSTEM | 0x12;
const GET_OBJECT: u16 = SUBSYSTEM | 0x13;
/// `struct nfgenmsg`.
pub(super) const HEADER: usize = 4;
/// Every kind of nft object names its table in attribute 1.
pub(super) const TABLE_NAME: u16 = 1;
const COUNTER_PREFIX: &str = "policy_";

/// The generation of the whole ruleset; it changes with every transaction, ours or not.
pub(super) fn generation(channel: &Channel) -> Result<u32, KernelError> {
    const NFTA_GEN_ID: u16 = 1;
    let reply = channel.get(GET_GENERATION, vec![0; HEADER]).map_err(|r| r.doing("read the nft generation"))?;
    let id = wire::find(reply.get(HEADER..).unwrap_or_default(), NFTA_GEN_ID).and_then(wire::be32);
    id.ok_or_else(|| Refusal::text("the answer has no number").doing("read the nft generation"))
}

/// A request about our table.
fn about(attributes: &[(u16, &str)]) -> Vec<u8> {
    let mut request = vec![NFPROTO_INET, 0, 0, 0];
    wire::put_text(&mut request, TABLE_NAME, TABLE);
    for (kind, text) in attributes {
        wire::put_text(&mut request, *kind, text);
    }
    request
}

pub(super) fn exists(channel: &Channel) -> Result<bool, KernelError> {
    match channel.get(GET_TABLE, about(&[])) {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.is(Errno::ENOENT) => Ok(false),
        Err(refusal) => Err(refusal.doing("look for table inet patronus")),
    }
}

/// Marks in one of our sets, with their comments.
pub(super) fn elements(channel: &Channel, set: &str) -> Result<BTreeMap<u32, String>, KernelError> {
    const SET: u16 = 2;
    const ELEMENTS: u16 = 3;
    let keep = |kind: u16, payload: &[u8]| {
        let list = wire::find(payload.get(HEADER..).unwrap_or_default(), ELEMENTS).filter(|_| kind == NEW_ELEMENTS);
        Ok(list.map(|list| wire::attributes(list).filter_map(|(_, e)| element(e)).collect::<Vec<_>>()))
    };
    match channel.dump(GET_ELEMENTS, &about(&[(SET, set)]), keep) {
        Ok(parts) => Ok(parts.into_iter().flatten().collect()),
        // Somebody deleted the set: the listing shows it as drift.
        Err(refusal) if refusal.is(Errno::ENOENT) => Ok(BTreeMap::new()),
        Err(refusal) => Err(refusal.doing(format!("list set {set} of table inet patronus"))),
    }
}

/// A mark is held in the host's order; a comment is a type, a length and a text that ends in zero.
fn element(attributes: &[u8]) -> Option<(u32, String)> {
    const KEY: u16 = 1;
    const USER_DATA: u16 = 6;
    const DATA_VALUE: u16 = 1;
    let value = wire::find(wire::find(attributes, KEY)?, DATA_VALUE)?;
    Some((wire::u32_at(value, 0)?, comment(wire::find(attributes, USER_DATA).unwrap_or_default())))
}

fn comment(mut user_data: &[u8]) -> String {
    const COMMENT: u8 = 0;
    while let [kind, length, rest @ ..] = user_data {
        let (value, after) = rest.split_at(rest.len().min(usize::from(*length)));
        if *kind == COMMENT {
            return wire::text(value);
        }
        user_data = after;
    }
    String::new()
}

/// The counters `policy_<name>`; none without the table.
pub(super) fn counters(channel: &Channel) -> Result<BTreeMap<Name, Counter>, KernelError> {
    let keep = |kind: u16, payload: &[u8]| Ok((kind == NEW_OBJECT).then(|| counter(payload)).flatten());
    let found = channel.dump(GET_OBJECT, &about(&[]), keep).map_err(|r| r.doing("read the policies' counters"))?;
    Ok(found.into_iter().collect())
}

fn counter(payload: &[u8]) -> Option<(Name, Counter)> {
    const NAME: u16 = 2;
    const KIND: u16 = 3;
    const DATA: u16 = 4;
    const KIND_COUNTER: u32 = 1;
    const BYTES: u16 = 1;
    const PACKETS: u16 = 2;
    let attributes = payload.get(HEADER..)?;
    let ours = wire::find(attributes, TABLE_NAME).map(wire::text).as_deref() == Some(TABLE);
    let kind = wire::find(attributes, KIND).and_then(wire::be32);
    let data = wire::find(attributes, DATA).filter(|_| ours && kind == Some(KIND_COUNTER))?;
    let name = wire::text(wire::find(attributes, NAME)?);
    let value = |kind| wire::find(data, kind).and_then(wire::be64);
    let counter = Counter { packets: value(PACKETS)?, bytes: value(BYTES)? };
    Some((name.strip_prefix(COUNTER_PREFIX)?.parse().ok()?, counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_any_bytes_end() {
        assert_eq!(comment(&[1, 2, 9, 9, 0, 3, b'a', b'b', 0]), "ab");
        assert_eq!(comment(&[0, 200, b'a']), "a");
        assert_eq!(comment(&[7]), "");
    }
}
