//! The five kinds as they are written. The JSON Schema is generated from these types, comments included.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::probe::ProbeSpec;
use super::scalars::{Address, Addresses, DscpName, Gateway, Inner, Nat, Ports, Prefix, ProtocolName, To, Weights};
use crate::units::{IfName, Name, Rate, Ratio, Span};

/// Who an object is.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Its name, unique in its kind and scope.
    pub name: Name,
    /// What selectors match.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Free text for other programs.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A place with one Patronus router.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SiteSpec {
    /// Where it is, for people.
    pub location: Option<String>,
    /// What it is, for people.
    pub description: Option<String>,
    /// Interfaces and prefixes behind the router.
    pub lan: Vec<LanSpec>,
    /// Uplinks by name.
    pub endpoints: BTreeMap<Name, EndpointSpec>,
    /// Values that replace `${name}` in what applies to this site: text, numbers, `true` or `false`.
    #[schemars(schema_with = "vars_schema")]
    pub vars: BTreeMap<String, Value>,
    /// Paths of this site by name.
    pub paths: BTreeMap<Name, PathSpec>,
    /// Failover rules of this site by name.
    pub failover: BTreeMap<Name, FailoverSpec>,
    /// Policies of this site by name.
    pub policies: BTreeMap<Name, PolicySpec>,
}

fn vars_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "description": "Values that replace `${name}` in what applies to this site: text, numbers, `true` or `false`.",
        "additionalProperties": {
            "type": ["string", "number", "boolean"], "x-expects": "a text, a number, `true` or `false`",
        },
    })
}

/// A network behind the router.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LanSpec {
    /// The interface towards it.
    pub interface: IfName,
    /// Its prefixes.
    #[schemars(length(min = 1))]
    pub prefixes: Vec<Prefix>,
}

/// An uplink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// Its interface.
    pub interface: IfName,
    /// Its address, where it is fixed; observed when absent. The far ends of tunnels need it.
    pub address: Option<Address>,
    /// The next hop: an address, `auto` (from the kernel's own routes: DHCP, RA, PPP), or one address per family. Default `auto`.
    pub gateway: Option<Gateway>,
    /// What the provider sells.
    pub bandwidth: Option<BandwidthSpec>,
    /// Relative cost; smaller is cheaper. Default 1.
    pub cost: Option<u32>,
    /// Whether volume costs money. Default false.
    #[serde(default)]
    pub metered: bool,
}

/// Rates of an uplink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BandwidthSpec {
    /// Towards the router.
    pub down: Option<Rate>,
    /// Away from the router.
    pub up: Option<Rate>,
}

/// What traffic can be steered onto: one direction seen from one site.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PathSpec {
    /// The site it belongs to; only in a document of its own.
    pub site: Option<Name>,
    /// What it is, for people.
    pub description: Option<String>,
    /// The endpoint it leaves by.
    pub from: Name,
    /// `internet`, or `site/endpoint` of another site.
    pub to: To,
    /// How packets get to another site.
    pub tunnel: Option<TunnelSpec>,
    /// How it is probed. Without it, only the loss of the carrier is noticed; a tunnel path whose far end is known is probed anyway.
    pub probe: Option<ProbeSpec>,
    /// What counts as healthy.
    pub health: Option<HealthSpec>,
    /// An `SlaClass` whose thresholds count where `health` gives none.
    pub sla_class: Option<Name>,
    /// `masquerade`, `none` (the default), or `{snat: ADDRESS}`.
    pub nat: Option<Nat>,
    /// Largest packet in bytes.
    #[schemars(range(min = 1280, max = 65535))]
    pub mtu: Option<u32>,
}

/// A tunnel: one that Patronus makes (`type`), or one that something else keeps up (`interface`).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TunnelSpec {
    /// The kind of tunnel that Patronus makes.
    #[serde(rename = "type")]
    #[serde(default)]
    #[schemars(schema_with = "tunnel_kinds")]
    pub kind: Option<TunnelKind>,
    /// VXLAN network identifier, the same at both ends and nowhere else.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub id: Option<u32>,
    /// Outer UDP port, the same at both ends. Default 4789.
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Inner addresses of this end, one per family. Default: derived from the id.
    pub local: Option<Vec<Inner>>,
    /// Inner addresses of the other end, one per family. Default: derived from the id.
    pub remote: Option<Vec<Address>>,
    /// The interface of a tunnel that something else keeps up (`WireGuard`, `IPsec`, GRE).
    pub interface: Option<IfName>,
    /// Next hops on that interface, one per family; none on a point-to-point link.
    pub gateway: Option<Addresses>,
}

/// A kind of tunnel that Patronus makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// VXLAN (RFC 7348), point to point.
    Vxlan,
}

/// What counts as healthy.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSpec {
    /// Above it latency costs score. Default 150ms.
    pub latency: Option<Span>,
    /// Above it jitter costs score. Default 30ms.
    pub jitter: Option<Span>,
    /// Above it loss costs score. Default 2%.
    pub loss: Option<Ratio>,
    /// Down to which a figure that was above has to come before it is good again. Default: the thresholds themselves.
    pub recover: Option<BandSpec>,
}

/// Down to which a figure has to come before it is good again.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BandSpec {
    /// At most `latency`.
    pub latency: Option<Span>,
    /// At most `jitter`.
    pub jitter: Option<Span>,
    /// At most `loss`.
    pub loss: Option<Ratio>,
}

/// Which path of several a policy uses now, and when that changes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FailoverSpec {
    /// The site it belongs to; only in a document of its own.
    pub site: Option<Name>,
    /// Labels of the sites it applies to; only in a document of its own. `{}` is every site.
    pub selector: Option<BTreeMap<String, String>>,
    /// What it is for, for people.
    pub description: Option<String>,
    /// The path to use while it is healthy.
    pub primary: Name,
    /// The others, in order of preference.
    #[serde(default)]
    pub backups: Vec<Name>,
    /// How a path is chosen: `ordered` (the primary, then the first healthy backup; the default), `best-score` (the primary, then the backup with the highest score), `best-quality` (the best by `metric`), `lowest-cost` (the cheapest that meets the thresholds), `load-balance` (new flows are shared among all that are healthy), or `overflow` (new flows take the primary until its line is full, then the next path).
    #[serde(default)]
    #[schemars(schema_with = "strategies")]
    pub strategy: Option<StrategyName>,
    /// What `best-quality` compares: `latency` (the default), `jitter` or `loss`.
    #[serde(default)]
    #[schemars(schema_with = "metrics")]
    pub metric: Option<MetricName>,
    /// How much better another path has to be, for `failbackDelay` without a break, before a good path is left for it. Default: `best-quality` 10%, `best-score` never.
    pub advantage: Option<Ratio>,
    /// How `load-balance` shares new flows: `{fiber: 3, lte: 1}`, where a path that is not named counts 1, or `bandwidth`, as the endpoints declare it. Default: equally.
    pub weights: Option<Weights>,
    /// What `load-balance` keeps together on one path: all flows of a `source`, or all from a source to a destination (`pair`). Default: every flow goes for itself.
    #[serde(default)]
    #[schemars(schema_with = "stickies")]
    pub sticky: Option<StickyName>,
    /// With `overflow`: above which share of its endpoint's `bandwidth` a path gets no more new flows. It gets them again after `failbackDelay` below four fifths of that. Default 80%.
    pub overflow_at: Option<Ratio>,
    /// The active path is left when its score falls below. Default 50.
    #[schemars(range(min = 1, max = 100))]
    pub failover_threshold: Option<u8>,
    /// The primary is returned to when its score stays at or above. Default 80.
    #[schemars(range(min = 1, max = 100))]
    pub failback_threshold: Option<u8>,
    /// Wait to restore: for how long it has to stay there without a break. Default 60s.
    pub failback_delay: Option<Span>,
    /// A path that was down is not used before it has been up for so long, unless no other is up. Default 0s.
    pub hold_down: Option<Span>,
    /// An `SlaClass` that counts for this rule in place of the paths' own thresholds.
    pub sla_class: Option<Name>,
    /// What happens when no path is up: `keep` the last one (the default), `reject`, take the one that is `leastBad`, or let new flows go to the `nextPolicy` that matches.
    #[serde(default)]
    #[schemars(schema_with = "no_paths")]
    pub no_path: Option<NoPathName>,
    /// What happens to flows whose addresses are translated on the path that is left. Others just move.
    pub flow_action: Option<FlowActionSpec>,
    /// Keeps a path that flaps out of use for a while, unless no other is up. `{}` is the defaults.
    pub damping: Option<DampingSpec>,
    /// `false` takes the rule away without deleting its text. Default true.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// What happens to flows that are bound to the path that is left.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FlowActionSpec {
    /// When a path is left because it failed: `graceful` (they stay until they end), `drain` (they stay for `drain`, then as `forced`), `forced` (TCP is reset for a second, then all are forgotten; at once from a path that is down), or `reject` (answered with TCP resets and ICMP errors). Default: `forced` from a path that is down, else `graceful`.
    #[schemars(schema_with = "flow_actions")]
    pub failover: Option<FlowActionName>,
    /// When a rule returns or moves to a better path. Default `graceful`.
    #[schemars(schema_with = "flow_actions")]
    pub failback: Option<FlowActionName>,
    /// For how long `drain` lets them stay. Default 10m.
    pub drain: Option<Span>,
}

/// What happens to flows that are bound to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowActionName {
    /// They stay until they end.
    Graceful,
    /// They stay for a while.
    Drain,
    /// They are forgotten.
    Forced,
    /// They are answered with errors.
    Reject,
}

/// Keeps a path that flaps out of use (as RFC 2439 does with routes).
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DampingSpec {
    /// What one flap costs. Default 1000.
    #[schemars(range(min = 1, max = 100_000))]
    pub penalty: Option<u32>,
    /// After which half of the penalty is forgiven. Default 5m.
    pub half_life: Option<Span>,
    /// From which the path is kept out of use. Default 2500: three flaps in short succession.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub suppress: Option<u32>,
    /// Below which it may be used again. Default 1000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub reuse: Option<u32>,
}

/// A schema of words: those that work, which editors offer, and those that the language keeps for later.
pub(super) fn words(now: &[&str], later: &[&str]) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "enum": now, "x-later": later})
}

fn tunnel_kinds(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["vxlan"], &["wireguard", "ipsec", "gre", "geneve"])
}

fn strategies(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["ordered", "best-score", "best-quality", "lowest-cost", "load-balance", "overflow"], &[])
}

fn stickies(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["source", "pair"], &[])
}

fn metrics(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["latency", "jitter", "loss"], &[])
}

fn no_paths(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["keep", "reject", "leastBad", "nextPolicy"], &[])
}

fn flow_actions(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["graceful", "drain", "forced", "reject"], &[])
}

const fn yes() -> bool {
    true
}

/// How a backup is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StrategyName {
    /// The first healthy one.
    #[default]
    Ordered,
    /// The one with the highest score.
    BestScore,
    /// The best by one metric.
    BestQuality,
    /// The cheapest that meets the thresholds.
    LowestCost,
    /// All that are healthy.
    LoadBalance,
    /// The first that is healthy and not full.
    Overflow,
}

/// What stays together on one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StickyName {
    /// All flows of a source.
    Source,
    /// All flows from a source to a destination.
    Pair,
}

/// A figure of a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricName {
    /// Round-trip time.
    #[default]
    Latency,
    /// Its variation.
    Jitter,
    /// Lost probes.
    Loss,
}

/// What a rule does when no path is up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NoPathName {
    /// It stays on the last one.
    #[default]
    Keep,
    /// It answers with an error.
    Reject,
    /// It takes the one that is least bad.
    LeastBad,
    /// New flows go to the next policy that matches.
    NextPolicy,
}

/// Thresholds that a kind of traffic needs.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SlaSpec {
    /// What it is for, for people.
    pub description: Option<String>,
    /// Above it latency costs score. Default 150ms.
    pub latency: Option<Span>,
    /// Above it jitter costs score. Default 30ms.
    pub jitter: Option<Span>,
    /// Above it loss costs score. Default 2%.
    pub loss: Option<Ratio>,
    /// Down to which a figure that was above has to come before it is good again. Default: the thresholds themselves.
    pub recover: Option<BandSpec>,
}

/// Which traffic, and where it goes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// The site it belongs to; only in a document of its own.
    pub site: Option<Name>,
    /// Labels of the sites it applies to; only in a document of its own. `{}` is every site.
    pub selector: Option<BTreeMap<String, String>>,
    /// What it is for, for people.
    pub description: Option<String>,
    /// Smaller matches first; unique in a site.
    #[schemars(range(max = 1_000_000))]
    pub priority: u32,
    /// Which traffic; empty is everything.
    #[serde(default, rename = "match")]
    pub matches: MatchSpec,
    /// Where it goes.
    pub action: ActionSpec,
    /// `false` takes the policy away without deleting its text. Default true.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// Which traffic: every field that is given must match.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MatchSpec {
    /// Source prefixes.
    pub source: Vec<Prefix>,
    /// Destination prefixes.
    pub destination: Vec<Prefix>,
    /// IP protocol; with ports and no protocol, TCP and UDP are meant.
    pub protocol: Option<ProtocolName>,
    /// Source ports.
    pub source_ports: Vec<Ports>,
    /// Destination ports.
    pub destination_ports: Vec<Ports>,
    /// DSCP names or numbers.
    pub dscp: Vec<DscpName>,
    /// The interface that the packet came in by.
    pub in_interface: Option<IfName>,
}

/// Where traffic goes: exactly one of `failover`, `path`, `drop` and `reject`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ActionSpec {
    /// Onto whatever path the failover rule uses.
    pub failover: Option<Name>,
    /// Onto one path.
    pub path: Option<Name>,
    /// Silently away.
    pub drop: Option<bool>,
    /// Away, with an ICMP error or a TCP reset.
    pub reject: Option<bool>,
    /// DSCP to set, beside `failover` or `path`.
    pub dscp: Option<DscpName>,
}
