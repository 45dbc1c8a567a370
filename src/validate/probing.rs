//! How a path is probed: what the intent holds, how soon a failure is found by it, and what it costs.

use std::{net::IpAddr, time::Duration};

use serde::Serialize;

use super::intent::duration;
use crate::units::{Dscp, Family, Ratio};

/// How a path is probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// The method.
    pub method: Method,
    /// Addresses probed in parallel in each round; empty switches probing off (then only the carrier counts). An
    /// unspecified address stands for the endpoint's gateway, whatever the kernel finds it to be.
    pub targets: Vec<IpAddr>,
    /// DSCP of the probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<Dscp>,
    /// From round to round.
    #[serde(serialize_with = "duration")]
    pub interval: Duration,
    /// After which an answer no longer counts.
    #[serde(serialize_with = "duration")]
    pub timeout: Duration,
    /// How many targets must answer for a round to succeed.
    pub quorum: u32,
    /// Rounds lost in a row until the path is down.
    pub down_after: u32,
    /// Rounds answered in a row until a path that was down is up again.
    pub up_after: u32,
    /// Rounds that the statistics look back over.
    pub window: u32,
    /// Payload of ICMP and UDP probes in bytes, at least 16.
    pub size: u16,
    /// From which share of the endpoint's declared bandwidth on the path is busy with its own traffic.
    pub busy_at: Ratio,
    /// Whether latency and jitter count even then.
    pub leave_when_busy: bool,
}

impl Default for Probe {
    /// The language's defaults, without a target.
    fn default() -> Self {
        Self {
            method: Method::Icmp,
            targets: Vec::new(),
            dscp: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(800),
            quorum: 1,
            down_after: 3,
            up_after: 3,
            window: 20,
            size: 56,
            busy_at: Ratio::of(9, 10),
            leave_when_busy: false,
        }
    }
}

/// The shortest interval that doubt brings about.
const DOUBT: Duration = Duration::from_millis(250);

impl Probe {
    /// The families of its targets.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        let asks = |family: &Family| self.targets.iter().any(|target| Family::of(target) == *family);
        Family::ALL.into_iter().filter(asks)
    }

    /// The same for the targets of one family alone; none unless there are targets of both.
    #[must_use]
    pub fn of_family(&self, family: Family) -> Option<Self> {
        let (own, others): (Vec<IpAddr>, Vec<IpAddr>) = self.targets.iter().partition(|t| Family::of(t) == family);
        let quorum = self.quorum.min(u32::try_from(own.len()).unwrap_or(u32::MAX));
        (!own.is_empty() && !others.is_empty()).then(|| Self { targets: own, quorum, ..self.clone() })
    }

    /// From round to round while the last round was lost: a quarter of the interval, but not below 250 ms.
    #[must_use]
    pub fn doubt_interval(&self) -> Duration {
        (self.interval / 4).max(DOUBT.min(self.interval))
    }

    /// The longest time from a total loss of the path to its being called down, by any method. The loss may begin
    /// right after a round was sent, and the next one is known to be lost after its timeout; the others follow at the
    /// interval of doubt, and the last one has to time out. A refusal or a wrong answer is known sooner.
    #[must_use]
    pub fn detection_time(&self) -> Duration {
        let plain = self.interval.saturating_mul(self.down_after).saturating_add(self.timeout);
        let doubt = self.doubt_interval();
        let Some(more) = self.down_after.checked_sub(2) else { return plain };
        let first = self.interval.saturating_add(self.timeout.max(doubt));
        plain.min(first.saturating_add(doubt.saturating_mul(more)).saturating_add(self.timeout))
    }

    /// Bytes of IP packets that probing takes in a day of good rounds, in both directions. Those of HTTP and DNS
    /// depend on what the server says and are estimates.
    #[must_use]
    pub fn bytes_per_day(&self) -> u64 {
        let round: u64 = self.targets.iter().map(|t| self.exchange(Family::of(t))).sum();
        let interval = self.interval.as_millis().max(1);
        u64::try_from(u128::from(round) * 86_400_000 / interval).unwrap_or(u64::MAX)
    }

    /// Bytes of one probe and its answer.
    fn exchange(&self, family: Family) -> u64 {
        let ip: u64 = if family == Family::V4 { 20 } else { 40 };
        // A TCP header with timestamps; SYN and SYN ACK have 8 bytes more.
        let segment = ip + 32;
        match &self.method {
            Method::Icmp | Method::Udp { .. } => 2 * (ip + 8 + u64::from(self.size.max(16))),
            Method::Stamp { .. } => 2 * (ip + 8 + 44),
            Method::Tcp { .. } => 4 * segment + 16,
            // Handshake, request, its acknowledgement, answer, its acknowledgement, end.
            Method::Http(web) if !web.tls => 9 * segment + 16 + 1_000,
            // The same with some certificates.
            Method::Http(_) => 14 * segment + 16 + 6_000,
            Method::Dns(question) => 2 * (ip + 8 + 12 + 6 + question.name.len() as u64) + 32,
            Method::Gateway if family == Family::V4 => 2 * 46,
            Method::Gateway => 2 * (ip + 32),
        }
    }

    /// Round-trip times are those of packets, not of a server that thinks first.
    #[must_use]
    pub const fn by_packets(&self) -> bool {
        matches!(self.method, Method::Icmp | Method::Udp { .. } | Method::Stamp { .. } | Method::Gateway)
    }
}

/// A probe method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// ICMP or `ICMPv6` echo (RFC 792, RFC 4443).
    Icmp,
    /// UDP echo (RFC 862).
    Udp {
        /// Destination port.
        port: u16,
    },
    /// Simple two-way active measurement (RFC 8762), unauthenticated mode.
    Stamp {
        /// Destination port.
        port: u16,
    },
    /// TCP handshake; a refusal by the target itself counts as an answer.
    Tcp {
        /// Destination port.
        port: u16,
    },
    /// An HTTP request, with TLS or without.
    Http(Web),
    /// A question to a name server.
    Dns(Question),
    /// ARP (RFC 826) or neighbour discovery (RFC 4861) of the gateway.
    Gateway,
}

impl Method {
    /// The word in the configuration.
    #[must_use]
    pub const fn text(&self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Udp { .. } => "udp",
            Self::Stamp { .. } => "stamp",
            Self::Tcp { .. } => "tcp",
            Self::Http(Web { tls: false, .. }) => "http",
            Self::Http(_) => "https",
            Self::Dns(_) => "dns",
            Self::Gateway => "gateway",
        }
    }
}

/// An HTTP request and what its answer must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Web {
    /// Whether by TLS.
    pub tls: bool,
    /// Destination port.
    pub port: u16,
    /// The server's name; its address if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is asked for.
    pub path: String,
    /// The status wanted; any from 200 to 299 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What the body has to contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// A question to a name server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Destination port.
    pub port: u16,
    /// The name, in lower case and without a dot at its end.
    pub name: String,
    /// The type of record, in capitals.
    pub record: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(interval: u64, timeout: u64, down_after: u32) -> Probe {
        let ms = Duration::from_millis;
        Probe { interval: ms(interval), timeout: ms(timeout), down_after, ..Probe::default() }
    }

    #[test]
    fn doubt_shortens_detection_and_never_lengthens_it() {
        for (interval, timeout, down_after, worst) in [
            (1000, 800, 3, 2850),
            (1000, 800, 1, 1800),
            (1000, 800, 2, 2600),
            (5000, 800, 3, 8300),
            (100, 80, 3, 380),
            (400, 400, 3, 1450),
            (60_000, 60_000, 2, 180_000),
        ] {
            let found = probe(interval, timeout, down_after).detection_time();
            assert_eq!(found.as_millis(), worst, "{interval} {timeout} {down_after}");
        }
    }

    #[test]
    fn the_budget_counts_both_directions_and_headers() {
        let mut p = Probe { targets: vec![[192, 0, 2, 1].into()], ..probe(1000, 800, 3) };
        assert_eq!(p.bytes_per_day(), 86_400 * 2 * 84);
        p.method = Method::Stamp { port: 862 };
        p.targets.push("2001:db8::1".parse().unwrap());
        assert_eq!(p.bytes_per_day(), 86_400 * (2 * 72 + 2 * 92));
        p.interval = Duration::from_secs(5);
        assert_eq!(p.bytes_per_day(), 17_280 * (2 * 72 + 2 * 92));
    }
}
