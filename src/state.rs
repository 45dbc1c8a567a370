//! The vocabulary that the desired and the observed state share: plain values in one ordered map.
//!
//! Invariant: a [`State`] holds only objects that are ours. What is absent here is never touched. Two states that mean
//! the same compare equal: whatever the kernel adds by itself (`linkdown`, handles, counter values) is normalised away.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::units::{Family, IfName, MarkMask, Name, UnitError};

mod sysctl;

pub use sysctl::{Originals, SysctlKey, sysctl_text};

/// Stand for an address that only the router knows, IPv4 and IPv6, where a plan is made without it: the dummy address
/// of RFC 7600 and the discard prefix of RFC 6666. No interface and no gateway has them.
pub const UNKNOWN: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0))];

/// The ranges of marks, tables, priorities and the protocol number that belong to Patronus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// Bits of packet and connection marks that carry a target's number.
    pub target_mask: MarkMask,
    /// Bits of the *connection* mark that carry a policy's number. Never set on packets.
    pub policy_mask: MarkMask,
    /// Target `t` has table `base + t`; base itself is not used.
    pub table_base: u32,
    /// Target `t` has rule priority `base + t`; senders that are bound to an uplink have theirs at `base`; the
    /// rule that lets the main table's specific routes win stands at `base - 10`.
    pub priority_base: u32,
    /// Protocol number of our routes and rules (`/etc/iproute2/rt_protos`).
    pub protocol: u8,
}

impl Default for Ranges {
    fn default() -> Self {
        let mask = |bits| MarkMask::new(bits).unwrap_or_else(|_| unreachable!("a constant mask is contiguous"));
        Self {
            target_mask: mask(0xff00_0000),
            policy_mask: mask(0x0000_ffff),
            table_base: 20_000,
            priority_base: 20_000,
            protocol: 157,
        }
    }
}

impl Ranges {
    /// The table of target `number`.
    #[must_use]
    pub const fn table(&self, number: u32) -> u32 {
        self.table_base + number
    }

    /// The rule priority of target `number`.
    #[must_use]
    pub const fn priority(&self, number: u32) -> u32 {
        self.priority_base + number
    }

    /// The priority of the rule that lets specific routes of the main table win.
    #[must_use]
    pub const fn main_priority(&self) -> u32 {
        self.priority_base - 10
    }

    /// The priority of rules for senders that are bound to an interface: before every target's.
    #[must_use]
    pub const fn bound_priority(&self) -> u32 {
        self.priority_base
    }

    /// Whether a table number is in our range.
    #[must_use]
    pub const fn owns_table(&self, table: u32) -> bool {
        table > self.table_base && table <= self.table_base + self.target_mask.max_number()
    }

    /// Whether a rule priority is in our range.
    #[must_use]
    pub const fn owns_priority(&self, priority: u32) -> bool {
        priority == self.main_priority()
            || (priority >= self.priority_base && priority <= self.priority_base + self.target_mask.max_number())
    }
}

/// What a kernel object is, without its value. The order of the variants is the order of creation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Key {
    /// A file under `/proc/sys/net`.
    Sysctl(SysctlKey),
    /// A tunnel interface that we create, recognised by its alias (`IFLA_IFALIAS`) `patronus`.
    Link {
        /// Its name.
        name: IfName,
    },
    /// A route in one of our tables. The kernel's own key is (table, destination, metric).
    Route(RouteKey),
    /// A routing rule in our priority range with our protocol number. Rules have no replace.
    Rule(RuleKey),
    /// The one table `inet patronus`.
    Nft,
}

impl Key {
    /// The kind of object, as settings, metrics and messages name it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sysctl(_) => "sysctl",
            Self::Link { .. } => "link",
            Self::Route(_) => "route",
            Self::Rule(_) => "rule",
            Self::Nft => "nft",
        }
    }
}

/// The kernel's key of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteKey {
    /// The table, in our range.
    pub table: u32,
    /// The family; it is implied by `destination`, and first in the order.
    pub family: Family,
    /// The destination prefix; `0.0.0.0/0` or `::/0` for a default route.
    pub destination: IpNet,
    /// The metric (priority) of the route; smaller wins.
    pub metric: u32,
}

/// The whole of a rule is its key: the kernel knows no update of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleKey {
    /// The priority; smaller is asked first.
    pub priority: u32,
    /// The family.
    pub family: Family,
    /// Mark and mask that the packet must carry, if any.
    pub fwmark: Option<Fwmark>,
    /// Interface that the sender is bound to, if the rule asks for one: sockets with `SO_BINDTODEVICE` and
    /// tunnels over it.
    pub oif: Option<IfName>,
    /// The table to look up.
    pub table: u32,
    /// `suppress_prefixlength`: routes whose prefix is this long or shorter are passed over.
    pub suppress_prefixlength: Option<u32>,
}

/// A mark and the mask under which it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fwmark {
    /// The value.
    pub mark: u32,
    /// The bits that count.
    pub mask: u32,
}

impl fmt::Display for Fwmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}/{:#010x}", self.mark, self.mask)
    }
}

/// The value of a kernel object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Value {
    /// The text of a sysctl, without the newline.
    Sysctl {
        /// The value.
        #[serde(deserialize_with = "sysctl::value")]
        value: Cow<'static, str>,
    },
    /// A tunnel interface.
    Link(Box<Tunnel>),
    /// Where a route goes.
    Route(RouteValue),
    /// A rule exists.
    Rule,
    /// The nft table.
    Nft(NftTable),
}

/// Where a route goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum RouteValue {
    /// Out of an interface, through a gateway if there is one. `onlink` is always set with a gateway.
    Via {
        /// The gateway; none on point-to-point links.
        gateway: Option<IpAddr>,
        /// The interface.
        interface: IfName,
        /// The route's MTU metric (`RTAX_MTU`), if set.
        mtu: Option<u32>,
    },
    /// Answer with an ICMP error (`RTN_UNREACHABLE`), so that nothing falls through to the main table.
    Unreachable,
    /// A route with our marks that somebody changed beyond what the other variants can say. Never desired;
    /// observed, so that it differs, and kept whole, so that undo can put it back.
    Other {
        /// What it is, for a person.
        text: Box<str>,
        /// Its rtnetlink message in hexadecimal.
        message: Box<str>,
    },
}

impl RouteValue {
    /// Its gateway, if it has one.
    #[must_use]
    pub const fn gateway(&self) -> Option<IpAddr> {
        match self {
            Self::Via { gateway, .. } => *gateway,
            _ => None,
        }
    }
}

/// A VXLAN tunnel of ours: point to point, no learning, no flooding (RFC 7348).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tunnel {
    /// VXLAN network identifier, 24 bits.
    pub id: u32,
    /// Outer source address.
    pub local: IpAddr,
    /// Outer destination address.
    pub remote: IpAddr,
    /// Outer UDP port.
    pub port: u16,
    /// The endpoint's interface.
    pub over: IfName,
    /// MTU of the tunnel interface.
    pub mtu: u32,
    /// Inner addresses with their prefix lengths, sorted.
    pub addresses: Vec<IpNet>,
}

/// The table `inet patronus`. Equality is by `canonical`. Copies share the texts, which are the largest values of all.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NftTable {
    /// What `nft -s list table inet patronus` prints for it, without the table's own comment. It is compared
    /// and shown, never parsed. The desired side gets it by loading `source` in a throw-away namespace.
    pub canonical: Arc<str>,
    /// The text that creates it: the rendered template in a step that loads it; else equal to `canonical`, which
    /// undo can load again.
    pub source: Arc<str>,
}

impl NftTable {
    /// Forgets how it was written: its canonical form creates it too, and is kept in any case.
    pub fn forget_source(&mut self) {
        if !self.canonical.is_empty() {
            self.source = Arc::clone(&self.canonical);
        }
    }
}

impl PartialEq for NftTable {
    fn eq(&self, other: &Self) -> bool {
        self.canonical == other.canonical
    }
}

impl Eq for NftTable {}

impl PartialOrd for NftTable {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NftTable {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.canonical.cmp(&other.canonical)
    }
}

/// Everything that is ours on one router, wanted or found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct State {
    /// The objects.
    #[serde(with = "pairs")]
    pub objects: BTreeMap<Key, Value>,
}

impl State {
    /// The nft table, if there is one.
    pub fn table_mut(&mut self) -> Option<&mut NftTable> {
        match self.objects.get_mut(&Key::Nft) {
            Some(Value::Nft(table)) => Some(table),
            _ => None,
        }
    }
}

/// A map with structured keys as a list of pairs, since JSON objects have only text keys.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Key, Value};

    pub fn serialize<S: Serializer>(map: &BTreeMap<Key, Value>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(map.iter())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<Key, Value>, D::Error> {
        Ok(Vec::<(Key, Value)>::deserialize(d)?.into_iter().collect())
    }
}

/// What a target is: something traffic can be sent to.
///
/// `Member` exists because a flow through NAT cannot change its path without breaking: it is pinned to the
/// path it took, yet when that path loses its carrier the kernel must find the rule's next path by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A path, alone: probes and policies with `action: {path}`.
    Path(Name),
    /// A failover rule: whatever path it uses now.
    Rule(Name),
    /// A path as chosen by a rule, for flows that NAT binds to it.
    Member(Name, Name),
    /// The part of a rule's new flows that a path takes which translates them: others take it over when the path is
    /// left, and no flow is bound to it.
    Share(Name, Name),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "path/{path}"),
            Self::Rule(rule) => write!(f, "failover/{rule}"),
            Self::Member(rule, path) => write!(f, "member/{rule}/{path}"),
            Self::Share(rule, path) => write!(f, "share/{rule}/{path}"),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let parts: Vec<&str> = s.split('/').collect();
        match parts[..] {
            ["path", path] => Ok(Self::Path(path.parse()?)),
            ["failover", rule] => Ok(Self::Rule(rule.parse()?)),
            ["member", rule, path] => Ok(Self::Member(rule.parse()?, path.parse()?)),
            // Pairs are how two names of full length fit into an nft comment.
            ["share", rule, path] | [rule, path] => Ok(Self::Share(rule.parse()?, path.parse()?)),
            [pair] if pair.contains(' ') => {
                let (rule, path) = pair.split_once(' ').unwrap_or_default();
                Ok(Self::Member(rule.parse()?, path.parse()?))
            }
            _ => Err(UnitError(format!("`{s}` is not a target"))),
        }
    }
}

/// Which numbers targets and policies have. Read back from the kernel (the sets `targets` and `policies` of
/// our nft table carry them as element comments), so that a restart keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    /// Number of each target, from 1.
    #[serde(with = "by_text")]
    pub targets: BTreeMap<Target, u32>,
    /// Number of each policy, from 1.
    pub policies: BTreeMap<Name, u32>,
}

/// A map with targets as keys, written as JSON with their text as keys.
mod by_text {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Target;

    pub fn serialize<S: Serializer>(map: &BTreeMap<Target, u32>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(map.iter().map(|(target, number)| (target.to_string(), number)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<Target, u32>, D::Error> {
        let map = BTreeMap::<String, u32>::deserialize(d)?;
        map.into_iter().map(|(text, n)| Ok((text.parse().map_err(D::Error::custom)?, n))).collect()
    }
}

/// Facts about the router that are not ours but that the desired state depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Interfaces by name.
    pub links: BTreeMap<IfName, LinkFacts>,
}

/// One interface as the kernel shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFacts {
    /// Its index; changes when it is re-created.
    pub index: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// With prefix lengths: by scope, then lasting, temporary, deprecated ones, each sorted. Tentative ones are left out.
    pub addresses: Vec<IpNet>,
    /// The gateways of default routes over it in the main table, lowest metric first, at most one per family.
    pub gateways: BTreeMap<Family, Gateway>,
    /// The kernel refuses IPv6 routes through it: `disable_ipv6`, or an MTU below [`crate::units::IPV6_MTU`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_ipv6: bool,
}

/// The next hop of a default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gateway {
    /// A router's address.
    Address(IpAddr),
    /// No address: a point-to-point link.
    Link,
}

/// How the machine's own packets reach a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The interface that they leave by.
    pub interface: IfName,
    /// The router that they go to; none on the link itself.
    pub gateway: Option<IpAddr>,
    /// Whether a route of its own leads there, not the default route.
    pub specific: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gateway {
            Some(gateway) => write!(f, "by {} via {gateway}", self.interface),
            None => write!(f, "by {}", self.interface),
        }
    }
}

/// Counter of one policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Packets in both directions.
    pub packets: u64,
    /// Bytes in both directions, IP headers included.
    pub bytes: u64,
}

/// One consistent look at the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Our objects. Shared: once an apply is verified they are those that were applied.
    pub state: Arc<State>,
    /// What surrounds them.
    pub facts: Facts,
    /// Numbers in use.
    pub allocations: Allocations,
    /// Generation and plan id that the nft table carries, if it exists.
    pub stamp: Option<Stamp>,
    /// Counters by policy name.
    pub counters: BTreeMap<Name, Counter>,
    /// Objects that others put into our ranges; shown and refused, never deleted. One line each.
    pub intruders: Vec<String>,
}

/// What the comment of the nft table says: which plan put it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The generation that the plan leads to.
    pub generation: u64,
    /// The plan's id.
    pub plan: uuid::Uuid,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {} plan {}", self.generation, self.plan)
    }
}
