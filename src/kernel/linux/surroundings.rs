//! What others have in nftables, read as the kernel holds it: hooks, policies, and which kinds of statements
//! their rules have. No `nft` of any version has to understand it.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::{
    nft::TABLE,
    socket::Channel,
    tables::{HEADER, SUBSYSTEM, TABLE_NAME},
    wire,
};
use crate::{
    foreign::{At, Chain, Does, Hook},
    kernel::KernelError,
};

const NEW_CHAIN: u16 = SUBSYSTEM | 0x03;
const GET_CHAIN: u16 = SUBSYSTEM | 0x04;
const NEW_RULE: u16 = SUBSYSTEM | 0x06;
const GET_RULE: u16 = SUBSYSTEM | 0x07;
const NEW_FLOWTABLE: u16 = SUBSYSTEM | 0x16;
const GET_FLOWTABLE: u16 = SUBSYSTEM | 0x17;
/// The name of a chain or a flowtable, and in a rule the chain that it is in.
const NAME: u16 = 3;
const CHAIN_OF_RULE: u16 = 2;
const NF_DROP: u32 = 0;

type Names = (String, String);

/// The chains of others, with what their rules do.
pub(super) fn chains(channel: &Channel) -> Result<Vec<Chain>, KernelError> {
    let keep = |kind, payload: &[u8]| Ok((kind == NEW_CHAIN).then(|| chain(payload)).flatten());
    let found = channel.dump(GET_CHAIN, &everything(), keep).map_err(|r| r.doing("list the chains of nftables"))?;
    let mut chains: BTreeMap<Names, Chain> =
        found.into_iter().map(|c| ((c.table.clone(), c.name.clone()), c)).collect();
    if chains.is_empty() {
        return Ok(Vec::new());
    }
    let keep = |kind, payload: &[u8]| Ok((kind == NEW_RULE).then(|| rule(payload)).flatten());
    let rules = channel.dump(GET_RULE, &everything(), keep).map_err(|r| r.doing("list the rules of nftables"))?;
    for (names, does, jumps) in rules {
        if let Some(chain) = chains.get_mut(&names) {
            chain.does = chain.does.or(does);
            chain.jumps.extend(jumps);
        }
    }
    Ok(chains.into_values().collect())
}

/// The flowtables of others, as `family table name`.
pub(super) fn flowtables(channel: &Channel) -> Result<Vec<String>, KernelError> {
    let keep = |kind, payload: &[u8]| {
        let named = (kind == NEW_FLOWTABLE).then(|| Some((table(payload)?, text(payload, 2)?))).flatten();
        Ok(named.map(|(table, name)| format!("{table} {name}")))
    };
    match channel.dump(GET_FLOWTABLE, &everything(), keep) {
        Ok(found) => Ok(found),
        // Kernels without flowtables have none.
        Err(refusal) if refusal.is(Errno::EOPNOTSUPP) || refusal.is(Errno::EINVAL) => Ok(Vec::new()),
        Err(refusal) => Err(refusal.doing("list the flowtables")),
    }
}

fn everything() -> Vec<u8> {
    vec![0; HEADER]
}

fn attribute(payload: &[u8], kind: u16) -> Option<&[u8]> {
    wire::find(payload.get(HEADER..)?, kind)
}

fn text(payload: &[u8], kind: u16) -> Option<String> {
    attribute(payload, kind).map(wire::text)
}

/// Family and table of an object, unless that is ours or of a family that routes nothing.
fn table(payload: &[u8]) -> Option<String> {
    let family = match payload.first()? {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let name = text(payload, TABLE_NAME)?;
    (family != "inet" || name != TABLE).then(|| format!("{family} {name}"))
}

fn chain(payload: &[u8]) -> Option<Chain> {
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    let policy = attribute(payload, POLICY).and_then(wire::be32);
    Some(Chain {
        table: table(payload)?,
        name: text(payload, NAME)?,
        hook: attribute(payload, HOOK).and_then(hook),
        drops_by_default: policy == Some(NF_DROP),
        ..Chain::default()
    })
}

fn hook(attributes: &[u8]) -> Option<Hook> {
    let number = wire::find(attributes, 1).and_then(wire::be32)?;
    let priority = wire::find(attributes, 2).and_then(wire::be32)?;
    let at = match number {
        0 => At::Prerouting,
        1 => At::Input,
        2 => At::Forward,
        3 => At::Output,
        4 => At::Postrouting,
        _ => return None,
    };
    Some(Hook { at, priority: priority.cast_signed() })
}

fn rule(payload: &[u8]) -> Option<(Names, Does, Vec<String>)> {
    const EXPRESSIONS: u16 = 4;
    let names = (table(payload)?, text(payload, CHAIN_OF_RULE)?);
    let (mut does, mut jumps) = (Does::default(), Vec::new());
    for (_, expression) in wire::attributes(attribute(payload, EXPRESSIONS).unwrap_or_default()) {
        let name = wire::find(expression, 1).map(wire::text).unwrap_or_default();
        statement(&name, wire::find(expression, 2).unwrap_or_default(), &mut does, &mut jumps);
    }
    Some((names, does, jumps))
}

/// One expression of a rule, as `linux/netfilter/nf_tables.h` has them.
fn statement(name: &str, data: &[u8], does: &mut Does, jumps: &mut Vec<String>) {
    const META_KEY: u16 = 2;
    const META_SOURCE: u16 = 3;
    const META_MARK: u32 = 3;
    const CT_KEY: u16 = 2;
    const CT_SOURCE: u16 = 4;
    const CT_MARK: u32 = 3;
    let number = |kind| wire::find(data, kind).and_then(wire::be32);
    match name {
        "immediate" => verdict(data, does, jumps),
        "reject" => does.drop = true,
        "meta" => does.mark |= number(META_SOURCE).is_some() && number(META_KEY) == Some(META_MARK),
        "ct" => does.connection_mark |= number(CT_SOURCE).is_some() && number(CT_KEY) == Some(CT_MARK),
        // NFT_NAT_SNAT is 0.
        "nat" => does.snat |= number(1) == Some(0),
        "masq" => does.snat = true,
        "flow_offload" => does.offload = true,
        "target" => target(&wire::find(data, 1).map(wire::text).unwrap_or_default(), does),
        _ => {}
    }
}

/// A verdict: drop, or a jump.
fn verdict(data: &[u8], does: &mut Does, jumps: &mut Vec<String>) {
    const DATA: u16 = 2;
    const VERDICT: u16 = 2;
    const CODE: u16 = 1;
    const CHAIN: u16 = 2;
    let Some(verdict) = wire::find(data, DATA).and_then(|data| wire::find(data, VERDICT)) else { return };
    does.drop |= wire::find(verdict, CODE).and_then(wire::be32) == Some(NF_DROP);
    jumps.extend(wire::find(verdict, CHAIN).map(wire::text));
}

/// A target of `iptables`.
fn target(name: &str, does: &mut Does) {
    match name {
        "DROP" | "REJECT" => does.drop = true,
        "MARK" | "TPROXY" => does.mark = true,
        "CONNMARK" => does.connection_mark = true,
        "SNAT" | "MASQUERADE" | "NETMAP" => does.snat = true,
        "FLOWOFFLOAD" => does.offload = true,
        _ => {}
    }
}
