//! A flow as a person types it: `tcp 192.168.10.5:4711 to 203.0.113.9:443 dscp ef in lan0`.
//!
//! The word is `to`, since a shell takes the `>` of an arrow for a file to write into; a quoted `->` is understood too.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Serialize, Serializer};

use crate::{
    config::scalars::Protocol,
    state::Facts,
    units::{Dscp, Family, IfName, Name, UnitError},
    validate::intent::{Path, Site},
};

/// Stands for a source port that is not given: the first of those that programs get (IANA's dynamic ports).
const EPHEMERAL: u16 = 49_152;

/// What was typed, word by word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// The source address.
    pub source: Option<IpAddr>,
    /// The source port.
    pub source_port: Option<u16>,
    /// The destination address.
    pub destination: Option<IpAddr>,
    /// The destination port.
    pub destination_port: Option<u16>,
    /// The DSCP.
    pub dscp: Option<Dscp>,
    /// The interface that it comes in by.
    pub input: Option<IfName>,
}

impl Asked {
    /// Reads words in any order: a protocol, the source, `to` and the destination, `dscp` and a value, `in` and an interface.
    pub fn words(text: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        let mut words = text.split_whitespace();
        while let Some(word) = words.next() {
            let mut value = |what: &str| words.next().ok_or_else(|| format!("after `{word}` comes {what}"));
            match word {
                "to" | "->" => {
                    (asked.destination, asked.destination_port) =
                        end(value("the destination, such as 203.0.113.9:443")?)?;
                }
                "from" => (asked.source, asked.source_port) = end(value("the source, such as 192.168.10.5")?)?,
                "dscp" => asked.dscp = Some(value("a DSCP, such as `ef`")?.parse().map_err(text_of)?),
                "in" => asked.input = Some(value("an interface, such as lan0")?.parse().map_err(text_of)?),
                word if asked.source.is_none() && end(word).is_ok() => (asked.source, asked.source_port) = end(word)?,
                word if end(word).is_ok() => {
                    return Err(format!("`{word}` is a second address: where the flow goes stands after `to`; {FORM}"));
                }
                word if asked.protocol.is_none() => asked.protocol = Some(word.parse().map_err(text_of)?),
                word => return Err(format!("`{word}` is one word too many: {FORM}")),
            }
        }
        Ok(asked)
    }

    /// The flow, if all is there that it needs.
    pub fn flow(self) -> Result<Flow, String> {
        let destination = self.destination.ok_or_else(|| format!("where does it go? {FORM}"))?;
        let protocol = self.protocol.ok_or_else(|| format!("which protocol? {FORM}"))?;
        let family = Family::of(&destination);
        if self.source.is_some_and(|source| Family::of(&source) != family) {
            return Err("source and destination are not of one family".into());
        }
        if protocol.0 == 1 && family == Family::V6 || protocol.0 == 58 && family == Family::V4 {
            return Err(format!("{protocol} is not a protocol of {family}"));
        }
        let ported = protocol.has_ports();
        if ported && self.destination_port.is_none() {
            return Err(format!("to which port? write {}", end_text(destination, Some(443))));
        }
        if !ported && (self.source_port.is_some() || self.destination_port.is_some()) {
            return Err(format!("{protocol} has no ports"));
        }
        Ok(Flow {
            protocol,
            source: self.source,
            given_port: self.source_port,
            destination,
            destination_port: self.destination_port,
            dscp: self.dscp,
            input: self.input,
        })
    }
}

const FORM: &str = "write it as `tcp 192.168.10.5:4711 to 203.0.113.9:443 dscp ef in lan0`";

fn text_of(error: UnitError) -> String {
    error.0
}

/// An address, with a port or without.
fn end(word: &str) -> Result<(Option<IpAddr>, Option<u16>), String> {
    let bare = word.strip_prefix('[').and_then(|w| w.strip_suffix(']')).unwrap_or(word);
    let both = word.parse::<SocketAddr>().map(|a| (Some(a.ip()), Some(a.port())));
    both.or_else(|_| bare.parse().map(|a| (Some(a), None))).map_err(|_| {
        format!("`{word}` is neither an address nor one with a port: write 203.0.113.9:443 or [2001:db8::9]:443")
    })
}

fn end_text(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string())
}

/// A flow: what the first packet of it looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// The protocol.
    #[serde(serialize_with = "named")]
    pub protocol: Protocol,
    /// Where it begins; absent for the router's own traffic whose address the kernel chooses.
    pub source: Option<IpAddr>,
    /// Its source port, if that was given.
    #[serde(rename = "source_port")]
    pub given_port: Option<u16>,
    /// Where it leads.
    pub destination: IpAddr,
    /// Its destination port, if it has ports.
    pub destination_port: Option<u16>,
    /// The DSCP that it comes with, if that was given; none means 0.
    pub dscp: Option<Dscp>,
    /// The interface that it comes in by, if that was given.
    pub input: Option<IfName>,
}

// The signature is what serde calls.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn named<S: Serializer>(protocol: &Protocol, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(protocol)
}

impl Flow {
    /// Its source port; a usual one where none was given.
    #[must_use]
    pub fn source_port(&self) -> Option<u16> {
        self.given_port.or_else(|| self.protocol.has_ports().then_some(EPHEMERAL))
    }

    /// The value of its DSCP field.
    #[must_use]
    pub fn class(&self) -> u8 {
        self.dscp.map_or(0, Dscp::value)
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.source.map_or_else(|| "this router".into(), |source| end_text(source, self.given_port));
        let to = end_text(self.destination, self.destination_port);
        write!(f, "{} {from} -> {to}", self.protocol)?;
        self.dscp.map_or(Ok(()), |dscp| write!(f, ", dscp {dscp}"))
    }
}

/// Where a flow comes into the router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The router sends it.
    Router,
    /// By an interface that is no path's.
    Interface(IfName),
    /// By the interface of a path.
    Path(Name, IfName),
}

impl Origin {
    /// The interface that policies see.
    #[must_use]
    pub const fn interface(&self) -> Option<&IfName> {
        match self {
            Self::Interface(interface) | Self::Path(_, interface) => Some(interface),
            Self::Router => None,
        }
    }
}

/// Where a flow comes in: by the interface that was named, or the one that its source is behind.
pub fn origin(flow: &Flow, site: &Site, facts: &Facts) -> Result<Origin, String> {
    if let Some(input) = &flow.input {
        let path = site.paths.values().find(|path| path.interface == *input);
        let of_path = |path: &std::sync::Arc<Path>| Origin::Path(path.name.clone(), input.clone());
        return Ok(path.map_or_else(|| Origin::Interface(input.clone()), of_path));
    }
    let Some(source) = flow.source else { return Ok(Origin::Router) };
    if facts.links.values().flat_map(|link| &link.addresses).any(|net| net.addr() == source) {
        return Ok(Origin::Router);
    }
    let behind = site.lan.iter().find(|lan| lan.prefixes.iter().any(|net| net.contains(&source)));
    behind.map(|lan| Origin::Interface(lan.interface.clone())).ok_or_else(|| {
        format!("by which interface does {source} come in? It is in no network of `lan`: add `in INTERFACE`")
    })
}
