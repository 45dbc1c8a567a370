//! What a valid configuration means: names resolved, defaults filled in, spans dropped.
//!
//! Invariant: only [`super::check`] builds an [`Intent`], so whoever holds one need not doubt a reference.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

pub use super::probing::{Method, Probe, Question, Web};
use crate::units::{Dscp, IfName, Name, PortRange, Rate, Ratio, Span};

/// A whole valid configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Intent {
    pub(super) sites: BTreeMap<Name, Site>,
}

impl Intent {
    /// All sites by name.
    #[must_use]
    pub const fn sites(&self) -> &BTreeMap<Name, Site> {
        &self.sites
    }
}

/// One site with everything that applies to it: its own objects and the fleet's that select it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Site {
    /// Its name.
    pub name: Name,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Networks behind the router.
    pub lan: Vec<Lan>,
    /// Uplinks.
    pub endpoints: BTreeMap<Name, Endpoint>,
    /// What traffic can be steered onto. Shared with those who watch over it.
    pub paths: BTreeMap<Name, Arc<Path>>,
    /// Failover rules.
    pub rules: BTreeMap<Name, Rule>,
    /// Policies, enabled ones only, in the order in which they match (priority, ascending).
    pub policies: Vec<Policy>,
    /// LAN prefixes of other sites that a tunnel path of this site leads to, with that site's name; replies
    /// to them are steered back, since the main table does not know them.
    pub beyond: BTreeMap<IpNet, Name>,
}

/// A network behind the router.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Lan {
    /// The interface towards it.
    pub interface: IfName,
    /// Its prefixes.
    pub prefixes: Vec<IpNet>,
}

/// An uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its interface.
    pub interface: IfName,
    /// Its addresses where the configuration fixes them; otherwise the interface's own are taken.
    pub address: Option<IpAddr>,
    /// How to leave by it.
    pub gateway: GatewaySpec,
    /// Declared rate towards the router.
    pub down: Option<Rate>,
    /// Declared rate away from the router.
    pub up: Option<Rate>,
    /// Relative cost; smaller is cheaper.
    pub cost: u32,
    /// Whether volume costs money.
    pub metered: bool,
}

/// The next hop of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GatewaySpec {
    /// Fixed addresses, at most one per family, IPv4 first.
    Fixed(Vec<IpAddr>),
    /// From the kernel's own default routes over the interface (DHCP, RA, PPP).
    Auto,
}

/// What traffic can be steered onto: one direction seen from one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// Its name.
    pub name: Name,
    /// The endpoint it leaves by.
    pub from: Name,
    /// Where it leads.
    pub to: Destination,
    /// The interface that its packets leave by: the endpoint's, or the tunnel's.
    pub interface: IfName,
    /// What happens to source addresses.
    pub nat: Nat,
    /// Largest packet in bytes, if declared; routes carry it and TCP's MSS is clamped to it.
    pub mtu: Option<u32>,
    /// How it is probed. Shared with the prober.
    pub probe: Arc<Probe>,
    /// What counts as healthy.
    pub health: Health,
}

impl Path {
    /// The interface under a tunnel that we create.
    #[must_use]
    pub const fn under(&self) -> Option<&IfName> {
        match &self.to {
            Destination::Site { tunnel: TunnelSpec::Vxlan { over, .. }, .. } => Some(over),
            _ => None,
        }
    }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Destination {
    /// Everywhere, through the provider.
    Internet,
    /// Another site, through a tunnel.
    Site {
        /// The other site.
        site: Name,
        /// Its endpoint.
        endpoint: Name,
        /// How the packets get there.
        tunnel: TunnelSpec,
    },
}

/// A tunnel as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelSpec {
    /// We create it.
    Vxlan {
        /// Network identifier, the same at both ends.
        id: u32,
        /// The endpoint's interface on this side.
        over: IfName,
        /// Outer address of this side; the endpoint's own if absent (observed).
        local: Option<IpAddr>,
        /// Outer address of the other side.
        remote: IpAddr,
        /// Outer UDP port.
        port: u16,
        /// Inner addresses of this side, one per family.
        inner_local: Vec<IpNet>,
        /// Inner addresses of the other side, one per family: the next hops.
        inner_remote: Vec<IpAddr>,
    },
    /// Something else keeps it up (`WireGuard`, `IPsec`, GRE).
    Interface {
        /// Next hops on it, at most one per family; none on a point-to-point link.
        gateways: Vec<IpAddr>,
    },
}

/// What happens to source addresses on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Nat {
    /// They stay.
    None,
    /// They become the address of the interface at the time of the flow's first packet.
    Masquerade,
    /// They become this address.
    Snat(IpAddr),
}

/// What counts as healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Above it latency costs score.
    #[serde(serialize_with = "duration")]
    pub latency: Duration,
    /// Above it loss costs score.
    pub loss: Ratio,
    /// Above it jitter costs score.
    #[serde(serialize_with = "duration")]
    pub jitter: Duration,
    /// Down to which a figure that was above has to come before it is good again, where that is not the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recover: Option<Band>,
}

/// Down to which figures have to come before they are good again; each at most its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Band {
    /// Round-trip time.
    #[serde(serialize_with = "duration")]
    pub latency: Duration,
    /// Lost probes.
    pub loss: Ratio,
    /// Variation of the round-trip time.
    #[serde(serialize_with = "duration")]
    pub jitter: Duration,
}

/// Which path of several a policy uses now, and when that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Its name.
    pub name: Name,
    /// Paths in order of preference, the primary first; at least one.
    pub members: Vec<Name>,
    /// How a path is chosen.
    pub strategy: Strategy,
    /// What `best-quality` compares.
    pub metric: Metric,
    /// How much better another path has to be before a good one is left for it; never if absent.
    pub advantage: Option<Ratio>,
    /// How flows are shared; only with `load-balance`.
    pub balance: Option<Balance>,
    /// From which share of its bandwidth on a path gets no more new flows; only with `overflow`.
    pub overflow: Option<Ratio>,
    /// The active path is left when its score falls below.
    pub failover_threshold: u8,
    /// The primary is returned to when its score stays at or above.
    pub failback_threshold: u8,
    /// For how long it has to stay there: wait to restore.
    #[serde(serialize_with = "duration")]
    pub failback_delay: Duration,
    /// A path that was down is not used before it has been up for so long, unless no other is up.
    #[serde(serialize_with = "duration")]
    pub hold_down: Duration,
    /// Thresholds for this rule's traffic in place of the paths' own.
    pub sla: Option<Health>,
    /// What happens when no path is up.
    pub no_path: NoPath,
    /// What happens to bound flows when a path is left because it failed.
    pub on_failover: FlowAction,
    /// The same when the rule returns or moves to a better path.
    pub on_failback: FlowAction,
    /// Keeps a path that flaps out of use.
    pub damping: Option<Damping>,
}

impl Rule {
    /// A rule over these paths, the primary first, with the defaults of the language.
    #[must_use]
    pub const fn new(name: Name, members: Vec<Name>) -> Self {
        Self {
            name,
            members,
            strategy: Strategy::Ordered,
            metric: Metric::Latency,
            advantage: None,
            balance: None,
            overflow: None,
            failover_threshold: 50,
            failback_threshold: 80,
            failback_delay: Duration::from_secs(60),
            hold_down: Duration::ZERO,
            sla: None,
            no_path: NoPath::Keep,
            on_failover: FlowAction::Auto,
            on_failback: FlowAction::Graceful,
            damping: None,
        }
    }

    /// Whether several of its paths carry flows at a time, so that each flow is bound to its own, translated or not.
    #[must_use]
    pub const fn spreads(&self) -> bool {
        self.balance.is_some() || self.overflow.is_some()
    }
}

/// How a path is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The primary, else the first usable one in order.
    Ordered,
    /// The primary, else the one with the highest score; of equals the first in order.
    BestScore,
    /// The best by one metric.
    BestQuality,
    /// The cheapest that meets the thresholds.
    LowestCost,
    /// All that are healthy, each with its share.
    LoadBalance,
    /// The first that is healthy and not full.
    Overflow,
}

/// How new flows are shared among the paths of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// The share of each member, as a number of parts; each has at least one.
    pub weights: BTreeMap<Name, u32>,
    /// What stays together on one path; none = every flow goes for itself.
    pub sticky: Option<Sticky>,
}

impl Balance {
    /// All parts.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.weights.values().sum()
    }

    /// A member's share as people read it: `75%`.
    #[must_use]
    pub fn share(&self, path: &Name) -> String {
        let parts = self.weights.get(path).copied().unwrap_or_default();
        format!("{:.0}%", f64::from(parts) * 100.0 / f64::from(self.total().max(1)))
    }
}

/// What stays together on one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sticky {
    /// All flows of a source.
    Source,
    /// All flows from a source to a destination.
    Pair,
}

/// A figure of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Round-trip time.
    Latency,
    /// Its variation.
    Jitter,
    /// Lost probes.
    Loss,
}

/// What a rule does when no path is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NoPath {
    /// Stay on the last one: it may be only the probes that fail.
    Keep,
    /// Answer with an ICMP error at once.
    Reject,
    /// Take the one that loses least.
    LeastBad,
    /// Let new flows go to the next policy that matches.
    NextPolicy,
}

impl NoPath {
    /// Whether the rule has no path at all then.
    #[must_use]
    pub const fn gives_up(self) -> bool {
        matches!(self, Self::Reject | Self::NextPolicy)
    }
}

/// What happens to flows that are bound to the path that is left. Flows whose addresses are not translated move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowAction {
    /// `Forced` from a path that is down, else `Graceful`.
    Auto,
    /// They stay until they end.
    Graceful,
    /// They stay so long, then they are forgotten.
    Drain(#[serde(serialize_with = "duration")] Duration),
    /// They are forgotten as soon as the other path carries traffic.
    Forced,
    /// They are answered with TCP resets and ICMP errors.
    Reject,
}

/// Keeps a path that flaps out of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Damping {
    /// What one flap costs.
    pub penalty: u32,
    /// After which half of it is forgiven.
    #[serde(serialize_with = "duration")]
    pub half_life: Duration,
    /// From which the path is kept out of use.
    pub suppress: u32,
    /// Below which it may be used again.
    pub reuse: u32,
}

/// Which traffic, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Its name.
    pub name: Name,
    /// Smaller matches first; unique in a site.
    pub priority: u32,
    /// Which traffic.
    #[serde(rename = "match")]
    pub matches: Match,
    /// Where it goes.
    pub action: Action,
    /// DSCP to set on the flow's original direction.
    pub set_dscp: Option<Dscp>,
}

/// Which traffic: every non-empty field must match; all empty is everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Source prefixes, sorted.
    pub source: Vec<IpNet>,
    /// Destination prefixes, sorted.
    pub destination: Vec<IpNet>,
    /// IP protocol number; with ports and no protocol, TCP and UDP are both meant (two entries).
    pub protocols: Vec<u8>,
    /// Source ports, sorted, not overlapping.
    pub source_ports: Vec<PortRange>,
    /// Destination ports, sorted, not overlapping.
    pub destination_ports: Vec<PortRange>,
    /// DSCP values, sorted.
    pub dscp: Vec<Dscp>,
    /// Interface that the packet came in by.
    pub in_interface: Option<IfName>,
}

/// Where traffic goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Onto whatever path the rule uses.
    Failover(Name),
    /// Onto one path.
    Path(Name),
    /// Silently away.
    Drop,
    /// Away, with an ICMP error or a TCP reset.
    Reject,
}

/// A duration as the configuration language writes it.
pub(super) fn duration<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&Span::from(*value))
}

macro_rules! serialize_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    )*};
}
serialize_as_text!(PortRange, Dscp);
