//! The set of packets that a match describes, and whether one such set holds another.
//!
//! Invariant: `a.covers(b)` says yes only if every packet of `b` is one of `a`. Addresses are compared per
//! family, as unions of prefixes; the other fields as sets.

use ipnet::IpNet;

use super::intent::Match;
use crate::units::{Family, IfName, PortRange};

/// A set of packets: a product of sets, one per field, for each address family.
#[derive(Debug, Clone)]
pub struct Space {
    /// Source and destination prefixes of IPv4 and IPv6; absent when no packet of that family matches.
    addresses: [Option<[Vec<IpNet>; 2]>; 2],
    protocols: Vec<u8>,
    source_ports: Vec<PortRange>,
    destination_ports: Vec<PortRange>,
    /// One bit per code point.
    dscp: u64,
    interface: Option<IfName>,
}

impl Space {
    /// The packets that a match describes.
    #[must_use]
    pub fn of(matches: &Match) -> Self {
        let family = |family| {
            let source = of_family(&matches.source, family)?;
            Some([source, of_family(&matches.destination, family)?])
        };
        let dscp = matches.dscp.iter().fold(0, |bits, dscp| bits | 1 << dscp.value());
        Self {
            addresses: Family::ALL.map(family),
            protocols: matches.protocols.clone(),
            source_ports: merged(&matches.source_ports),
            destination_ports: merged(&matches.destination_ports),
            dscp: if dscp == 0 { u64::MAX } else { dscp },
            interface: matches.in_interface.clone(),
        }
    }

    /// The families that its packets can have.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().zip(&self.addresses).filter_map(|(family, has)| has.as_ref().map(|_| family))
    }

    /// Whether there are no such packets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.iter().all(Option::is_none)
    }

    /// Whether every packet of `other` is one of these.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        (self.interface.is_none() || self.interface == other.interface)
            && other.dscp & !self.dscp == 0
            && covers_set(&self.protocols, &other.protocols)
            && covers_ports(&self.source_ports, &other.source_ports)
            && covers_ports(&self.destination_ports, &other.destination_ports)
            && self.addresses.iter().zip(&other.addresses).all(|(a, b)| match (a, b) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(a), Some(b)) => a.iter().zip(b).all(|(a, b)| b.iter().all(|net| covers_net(a, net))),
            })
    }

    /// Whether some packet could be to or from a prefix.
    #[must_use]
    pub fn touches(&self, prefix: &IpNet) -> bool {
        let family = usize::from(Family::of_net(prefix) == Family::V6);
        let near = |net: &IpNet| net.contains(prefix) || prefix.contains(net);
        self.addresses[family].as_ref().is_some_and(|sides| sides.iter().any(|side| side.iter().any(near)))
    }
}

/// The prefixes of one family, merged and sorted; everything for an empty list; `None` for nothing.
fn of_family(prefixes: &[IpNet], family: Family) -> Option<Vec<IpNet>> {
    if prefixes.is_empty() {
        let all = match family {
            Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        return Some(vec![all]);
    }
    let own: Vec<IpNet> = prefixes.iter().copied().filter(|p| Family::of_net(p) == family).collect();
    let mut merged = IpNet::aggregate(&own);
    merged.sort_unstable_by_key(IpNet::network);
    if merged.is_empty() { None } else { Some(merged) }
}

/// Whether sorted, disjoint, merged prefixes hold a prefix: only the last one that begins at or before it can.
fn covers_net(nets: &[IpNet], net: &IpNet) -> bool {
    let after = nets.partition_point(|n| n.network() <= net.network());
    after.checked_sub(1).is_some_and(|at| nets[at].contains(net))
}

/// Empty is everything.
fn covers_set(a: &[u8], b: &[u8]) -> bool {
    a.is_empty() || (!b.is_empty() && b.iter().all(|protocol| a.contains(protocol)))
}

/// Empty is everything; both are sorted and merged.
fn covers_ports(a: &[PortRange], b: &[PortRange]) -> bool {
    let within = |b: &PortRange| a.iter().any(|a| a.first <= b.first && b.last <= a.last);
    a.is_empty() || (!b.is_empty() && b.iter().all(within))
}

/// Sorted port ranges that neither overlap nor touch.
#[must_use]
pub fn merged(ports: &[PortRange]) -> Vec<PortRange> {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut out: Vec<PortRange> = Vec::new();
    for range in sorted {
        match out.last_mut() {
            Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => last.last = last.last.max(range.last),
            _ => out.push(range),
        }
    }
    out
}
