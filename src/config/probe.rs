//! How a path is probed, as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    scalars::{Address, DscpName, Host},
    types::words,
};
use crate::units::{Ratio, Span};

/// How a path is probed. `plan` prints how long a silent failure may go unnoticed.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ProbeSpec {
    /// The method: `icmp` (the default), `udp` (echo, RFC 862), `stamp` (RFC 8762), `tcp`, `http`, `https`, `dns` or `gateway` (ARP, neighbour discovery).
    #[serde(default)]
    #[schemars(schema_with = "methods")]
    pub method: Option<MethodName>,
    /// Addresses, probed in parallel. Default for a tunnel: its far end. `gateway` has none: it probes the endpoint's gateway.
    pub targets: Vec<Address>,
    /// Destination port. Default: `udp` 7, `stamp` 862, `tcp` and `https` 443, `http` 80, `dns` 53.
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// `dns`: the name that is asked for. `http`, `https`: the name of the server at the targets; default its address. It is never resolved.
    pub name: Option<Host>,
    /// `dns`: the type of record that is asked for. Default `A`.
    #[serde(default)]
    #[schemars(schema_with = "record_types")]
    pub record_type: Option<RecordType>,
    /// `http`, `https`: what is asked for. Default `/`.
    #[schemars(regex(pattern = r"^/[!-~]*$"), extend("x-expects" = "a path of a URL, such as `/generate_204`"))]
    pub path: Option<String>,
    /// `http`, `https`: what an answer must be. Anything else counts as lost.
    pub expect: Option<ExpectSpec>,
    /// DSCP of the probes. Default 0.
    pub dscp: Option<DscpName>,
    /// From round to round, at least 10ms. Default 1s, or 5s on a metered endpoint.
    pub interval: Option<Span>,
    /// After which an answer no longer counts, at most `interval`. Default 800ms, or 80 % of a shorter `interval`.
    pub timeout: Option<Span>,
    /// How many targets must answer. Default 1.
    #[schemars(range(min = 1))]
    pub quorum: Option<u32>,
    /// Rounds lost in a row until the path is down. Default 3.
    #[schemars(range(min = 1, max = 100))]
    pub down_after: Option<u32>,
    /// Rounds answered in a row until a path that was down is up again. Default: as `downAfter`.
    #[schemars(range(min = 1, max = 100))]
    pub up_after: Option<u32>,
    /// Rounds that loss, latency and jitter look back over. Default 20.
    #[schemars(range(min = 1, max = 1000))]
    pub window: Option<u32>,
    /// From which share of the endpoint's `bandwidth` on the path is busy with its own traffic. Default 90%.
    pub busy_at: Option<Ratio>,
    /// What latency and jitter mean while it is: `stay` (they count as they were before, and an alarm says so; the default), or `leave` (they count as ever).
    #[serde(default)]
    #[schemars(schema_with = "when_busy")]
    pub when_busy: Option<WhenBusy>,
    /// `icmp`, `udp`: payload in bytes. Default 56.
    #[schemars(range(min = 16, max = 1452))]
    pub size: Option<u16>,
}

/// What an answer must be.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExpectSpec {
    /// The status. Default: any from 200 to 299, so that a redirect to a login page is a fault.
    #[schemars(range(min = 100, max = 599))]
    pub status: Option<u16>,
    /// A text that the body contains. An answer above 64 KiB counts as lost.
    #[schemars(length(min = 1, max = 1024))]
    pub body: Option<String>,
}

/// A probe method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MethodName {
    /// ICMP or `ICMPv6` echo.
    #[default]
    Icmp,
    /// UDP echo.
    Udp,
    /// Simple two-way active measurement.
    Stamp,
    /// TCP handshake.
    Tcp,
    /// HTTP without TLS.
    Http,
    /// HTTP with TLS.
    Https,
    /// A question to a name server.
    Dns,
    /// ARP or neighbour discovery of the gateway.
    Gateway,
}

/// What latency and jitter mean while a path is busy with its own traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenBusy {
    /// Nothing.
    #[default]
    Stay,
    /// What they always mean.
    Leave,
}

/// A type of DNS record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RecordType {
    /// IPv4 address.
    #[default]
    A,
    /// IPv6 address.
    Aaaa,
    /// Alias.
    Cname,
    /// Mail server.
    Mx,
    /// Name server.
    Ns,
    /// Name of an address.
    Ptr,
    /// Start of a zone.
    Soa,
    /// Service.
    Srv,
    /// Text.
    Txt,
}

fn methods(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["icmp", "udp", "stamp", "tcp", "http", "https", "dns", "gateway"], &[])
}

fn when_busy(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["stay", "leave"], &[])
}

fn record_types(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"], &[])
}
