//! The layout of the classifier: policies in order become verdict maps where that keeps the first match.
//!
//! Consecutive policies that look at the same fields and whose boxes do not overlap stand in one map: the
//! kernel finds the right one in one lookup. A policy that overlaps an earlier one of its map opens the next
//! block, so the order of blocks is the order of policies.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::{
    units::{Family, Name},
    validate::intent::{Match, Policy},
};

/// Most entries that one policy may put into a map; beyond that it stands alone, with sets.
const MAX_ENTRIES: usize = 256;

/// A packet field, in the order in which a map's key is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// Incoming interface.
    InInterface,
    /// IP protocol number.
    Protocol,
    /// Source address.
    Source,
    /// Destination address.
    Destination,
    /// Source port.
    SourcePort,
    /// Destination port.
    DestinationPort,
    /// DSCP.
    Dscp,
}

/// Values of one field: a closed interval of numbers, and its text in nft's language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interval {
    /// First number.
    pub first: u128,
    /// Last number.
    pub last: u128,
    /// For nft.
    pub text: String,
}

impl Interval {
    fn number(value: u128) -> Self {
        Self { first: value, last: value, text: value.to_string() }
    }

    fn ports(range: crate::units::PortRange) -> Self {
        Self { first: range.first.into(), last: range.last.into(), text: range.to_string() }
    }

    fn prefix(net: &IpNet) -> Self {
        let (first, last) = match net {
            IpNet::V4(n) => (u128::from(u32::from(n.network())), u128::from(u32::from(n.broadcast()))),
            IpNet::V6(n) => (u128::from(n.network()), u128::from(n.broadcast())),
        };
        Self { first, last, text: net.trunc().to_string() }
    }

    fn addresses(first: u128, last: u128, family: Family) -> Self {
        let text = |n: u128| match family {
            // Numbers of IPv4 addresses have 32 bits.
            Family::V4 => Ipv4Addr::from_bits(u32::try_from(n).unwrap_or(u32::MAX)).to_string(),
            Family::V6 => Ipv6Addr::from_bits(n).to_string(),
        };
        Self { first, last, text: format!("{}-{}", text(first), text(last)) }
    }

    const fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// One policy as seen by one family: fields with their values, all of which must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The policy.
    pub policy: Name,
    /// Fields in order; none is everything.
    pub fields: Vec<(Field, Vec<Interval>)>,
}

/// A piece of the classifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// Disjoint boxes over the same fields.
    Map {
        /// The fields of the key.
        fields: Vec<Field>,
        /// Key and policy.
        entries: Vec<(Vec<Interval>, Name)>,
    },
    /// One policy alone.
    Single(Rule),
}

/// The classifier of one family, in order.
#[must_use]
pub fn layout(policies: &[Policy], family: Family) -> Vec<Block> {
    let mut builder = Builder::default();
    for rule in policies.iter().filter_map(|policy| rule(policy, family)) {
        builder.push(rule);
    }
    builder.finish()
}

fn rule(policy: &Policy, family: Family) -> Option<Rule> {
    let Match { source, destination, protocols, source_ports, destination_ports, dscp, in_interface } = &policy.matches;
    let mut fields = Vec::new();
    let mut add = |field, values: Vec<Interval>| {
        if !values.is_empty() {
            fields.push((field, values));
        }
    };
    let interface = |i: &crate::units::IfName| Interval { first: 0, last: u128::MAX, text: format!("\"{i}\"") };
    add(Field::InInterface, in_interface.iter().map(interface).collect());
    add(Field::Protocol, protocols.iter().map(|p| Interval::number((*p).into())).collect());
    add(Field::Source, prefixes(source, family)?);
    add(Field::Destination, prefixes(destination, family)?);
    add(Field::SourcePort, source_ports.iter().copied().map(Interval::ports).collect());
    add(Field::DestinationPort, destination_ports.iter().copied().map(Interval::ports).collect());
    add(Field::Dscp, dscp.iter().map(|d| Interval::number(d.value().into())).collect());
    Some(Rule { policy: policy.name.clone(), fields })
}

/// Address prefixes without those that lie within another, ones that touch put together. nft refuses overlaps in a
/// map, and lists what touches in a set as one range.
fn joined(mut values: Vec<Interval>, family: Family) -> Vec<Interval> {
    values.sort_by_key(|v| (v.first, std::cmp::Reverse(v.last)));
    let mut apart: Vec<Interval> = Vec::with_capacity(values.len());
    for value in values {
        match apart.last_mut().filter(|last| value.first <= last.last.saturating_add(1)) {
            Some(last) if value.last <= last.last => {}
            Some(last) => *last = Interval::addresses(last.first, value.last, family),
            None => apart.push(value),
        }
    }
    apart
}

/// The prefixes of a family; `None` when there are some, but only of the other: the policy cannot match.
fn prefixes(nets: &[IpNet], family: Family) -> Option<Vec<Interval>> {
    let ours: Vec<Interval> = nets.iter().filter(|n| Family::of_net(n) == family).map(Interval::prefix).collect();
    (nets.is_empty() || !ours.is_empty()).then(|| joined(ours, family))
}

#[derive(Default)]
struct Builder {
    blocks: Vec<Block>,
    group: Vec<Rule>,
    boxes: Vec<(Vec<Interval>, Name)>,
}

impl Builder {
    fn push(&mut self, rule: Rule) {
        let Some(boxes) = boxes(&rule) else {
            self.close();
            self.blocks.push(Block::Single(rule));
            return;
        };
        let same_fields = self.group.first().is_some_and(|first| shape(first).eq(shape(&rule)));
        let overlaps = || self.boxes.iter().any(|(b, _)| boxes.iter().any(|(c, _)| overlap(b, c)));
        if !same_fields || overlaps() {
            self.close();
        }
        self.group.push(rule);
        self.boxes.extend(boxes);
    }

    fn close(&mut self) {
        let boxes = std::mem::take(&mut self.boxes);
        let mut group = std::mem::take(&mut self.group);
        match group.len() {
            0 => {}
            1 => self.blocks.extend(group.pop().map(Block::Single)),
            _ => {
                let fields = group.first().map(|first| shape(first).collect()).unwrap_or_default();
                self.blocks.push(Block::Map { fields, entries: boxes });
            }
        }
    }

    fn finish(mut self) -> Vec<Block> {
        self.close();
        self.blocks
    }
}

fn shape(rule: &Rule) -> impl Iterator<Item = Field> {
    rule.fields.iter().map(|(field, _)| *field)
}

fn overlap(a: &[Interval], b: &[Interval]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.overlaps(b))
}

/// The boxes of a rule as map entries; `None` if it must stand alone: no fields, too many, an interface, or a DSCP
/// beside other fields, since nft 1.0.6 lists `ip saddr . ip dscp` in a way that it does not read again.
fn boxes(rule: &Rule) -> Option<Vec<(Vec<Interval>, Name)>> {
    let size = rule.fields.iter().try_fold(1_usize, |n, (_, values)| n.checked_mul(values.len()))?;
    let unlistable = rule.fields.len() > 1 && shape(rule).any(|f| f == Field::Dscp);
    let interface = shape(rule).any(|f| f == Field::InInterface);
    let alone = rule.fields.is_empty() || size > MAX_ENTRIES || interface || unlistable;
    if alone {
        return None;
    }
    let mut keys: Vec<Vec<Interval>> = vec![Vec::new()];
    for (_, values) in &rule.fields {
        let longer = |key: &Vec<Interval>, value: &Interval| [key.as_slice(), std::slice::from_ref(value)].concat();
        keys = keys.iter().flat_map(|key| values.iter().map(move |value| longer(key, value))).collect();
    }
    Some(keys.into_iter().map(|key| (key, rule.policy.clone())).collect())
}
