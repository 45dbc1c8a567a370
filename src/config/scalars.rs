//! Scalar types of the language that are not in `units`: addresses, prefixes, references, numbers or names.
//!
//! Each has a `format` in the schema; [`check`] is what that format means and explains what does not fit.

use std::{borrow::Cow, collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::units::{Dscp, Name, PortRange, UnitError};

/// The formats that the schema names, in no order.
pub const FORMATS: [&str; 10] = [
    "address",
    "prefix",
    "inner-address",
    "path-destination",
    "port",
    "dscp",
    "protocol",
    "gateway",
    "mark-mask",
    "host",
];

/// Whether a text is of a format; the error is a sentence for a person.
pub fn check(format: &str, text: &str) -> Result<(), UnitError> {
    match format {
        "address" => address(text).map(drop),
        "prefix" => Prefix::from_str(text).map(drop),
        "inner-address" => Inner::from_str(text).map(drop),
        "path-destination" => To::from_str(text).map(drop),
        "port" => PortRange::from_str(text).map(drop),
        "dscp" => Dscp::from_str(text).map(drop),
        "protocol" => Protocol::from_str(text).map(drop),
        "host" => Host::from_str(text).map(drop),
        "gateway" => {
            if text == "auto" {
                Ok(())
            } else {
                address(text).map(drop)
            }
        }
        _ => Ok(()),
    }
}

fn address(text: &str) -> Result<IpAddr, UnitError> {
    text.parse().map_err(|_| UnitError(format!("`{text}` is not an IP address: write `192.0.2.1` or `2001:db8::1`")))
}

/// An address with a length; leading zeros, which some programs read as octal, are refused.
fn strict(text: &str) -> Option<IpNet> {
    let (address, _) = text.split_once('/')?;
    address.parse::<IpAddr>().ok()?;
    text.parse().ok()
}

/// Serde and schema of a type that is written as text.
macro_rules! text_scalar {
    ($type:ident, $format:literal, $expects:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Cow::<'_, str>::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
        scalar_schema!($type, {"type": "string", "format": $format, "description": $expects, "x-expects": $expects});
    };
}

/// Serde and schema of a type that is written as a whole number or as text.
macro_rules! number_or_text {
    ($type:ident, $format:literal, $min:literal, $max:literal, $expects:literal, $examples:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                NumberOrText::deserialize(d)?.text().parse().map($type).map_err(de::Error::custom)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(&self.0)
            }
        }
        scalar_schema!($type, {
            "type": ["integer", "string"], "minimum": $min, "maximum": $max, "format": $format,
            "description": $expects, "x-expects": $expects, "examples": $examples,
        });
    };
}

macro_rules! scalar_schema {
    ($type:ident, {$($schema:tt)*}) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({$($schema)*})
            }
        }
    };
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl NumberOrText {
    fn text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// An IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub IpAddr);

impl FromStr for Address {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        address(s).map(Self)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_scalar!(Address, "address", "an IP address, such as `192.0.2.1` or `2001:db8::1`");

/// A network: no bit is set after its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix(pub IpNet);

impl FromStr for Prefix {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let net = strict(s).ok_or_else(|| match s.parse::<IpAddr>() {
            Ok(ip) => UnitError(format!("`{s}` has no prefix length: write `{}`", IpNet::from(ip))),
            Err(_) => UnitError(format!("`{s}` is not a prefix: write `192.0.2.0/24` or `2001:db8::/32`")),
        })?;
        if net == net.trunc() {
            return Ok(Self(net));
        }
        Err(UnitError(format!("`{s}` has host bits set: the network is `{}`", net.trunc())))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_scalar!(Prefix, "prefix", "a prefix, such as `192.0.2.0/24` or `2001:db8::/32`");

/// An address with the length of its network, such as `169.254.7.0/31`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inner(pub IpNet);

impl FromStr for Inner {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let bad =
            || UnitError(format!("`{s}` is not an address with a length: write `169.254.7.0/31` or `fe80::1/64`"));
        strict(s).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_scalar!(Inner, "inner-address", "an address with its prefix length, such as `169.254.7.0/31`");

/// Where a path leads: `internet`, or an endpoint of another site.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum To {
    /// Everywhere, through the provider.
    Internet,
    /// The endpoint of a site.
    Endpoint(Name, Name),
}

impl FromStr for To {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        if s == "internet" {
            return Ok(Self::Internet);
        }
        let parts = s.split_once('/').map(|(site, endpoint)| (site.parse(), endpoint.parse()));
        match parts {
            Some((Ok(site), Ok(endpoint))) => Ok(Self::Endpoint(site, endpoint)),
            _ => Err(UnitError(format!(
                "`{s}` is not a destination: write `internet`, or `site/endpoint` of another site"
            ))),
        }
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet => f.write_str("internet"),
            Self::Endpoint(site, endpoint) => write!(f, "{site}/{endpoint}"),
        }
    }
}

text_scalar!(To, "path-destination", "`internet`, or `site/endpoint` of another site");

/// A name in the DNS: letters, digits, `-` and `_`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(String);

impl Host {
    /// The name, without a dot at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Host {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let name = s.strip_suffix('.').unwrap_or(s);
        let byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(byte) && !l.starts_with('-');
        if name.len() <= 253 && name.split('.').all(label) {
            return Ok(Self(name.to_ascii_lowercase()));
        }
        Err(UnitError(format!("`{s}` is not a host name: write `www.example.org`")))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_scalar!(Host, "host", "a host name, such as `www.example.org`");

/// A port, or a range of ports such as `10000-20000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports(pub PortRange);

number_or_text!(
    Ports,
    "port",
    1,
    65535,
    "a port from 1 to 65535, or a range such as `10000-20000`",
    [443, "10000-20000"]
);

/// A DSCP by name or number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DscpName(pub Dscp);

number_or_text!(
    DscpName,
    "dscp",
    0,
    63,
    "a DSCP: a name such as `ef`, `af41` or `cs5`, or a number from 0 to 63",
    [
        "ef",
        "voice-admit",
        "af41",
        "af42",
        "af43",
        "af31",
        "af32",
        "af33",
        "af21",
        "af22",
        "af23",
        "af11",
        "af12",
        "af13",
        "cs1",
        "cs2",
        "cs3",
        "cs4",
        "cs5",
        "cs6",
        "cs7",
        "le",
        "be"
    ]
);

/// An IP protocol number (IANA's registry of assigned Internet protocol numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol(pub u8);

/// TCP's number.
pub const TCP: u8 = 6;
/// UDP's number.
pub const UDP: u8 = 17;

const PROTOCOLS: [(&str, u8); 11] = [
    ("tcp", TCP),
    ("udp", UDP),
    ("icmp", 1),
    ("icmpv6", 58),
    ("esp", 50),
    ("ah", 51),
    ("gre", 47),
    ("sctp", 132),
    ("udplite", 136),
    ("dccp", 33),
    ("ipip", 4),
];

impl Protocol {
    /// Whether its packets carry ports.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self.0, TCP | UDP | 33 | 132 | 136)
    }
}

impl FromStr for Protocol {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let named = PROTOCOLS.iter().find(|(name, _)| *name == s).map(|(_, number)| *number);
        named.or_else(|| s.parse().ok()).map(Self).ok_or_else(|| {
            let near = crate::diag::suggest(s, PROTOCOLS.iter().map(|(name, _)| *name));
            let hint = near.map_or("write a name such as `tcp`, `udp` or `esp`, or a number".to_owned(), |near| {
                format!("did you mean `{near}`?")
            });
            UnitError(format!("`{s}` is not a protocol: {hint}"))
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.pad(name),
            None => self.0.fmt(f),
        }
    }
}

/// A protocol by name or number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolName(pub Protocol);

number_or_text!(
    ProtocolName,
    "protocol",
    0,
    255,
    "an IP protocol: a name such as `tcp`, `udp` or `esp`, or a number",
    ["tcp", "udp", "icmp", "icmpv6", "esp", "ah", "gre", "sctp", "udplite", "dccp", "ipip"]
);

/// How to leave by an endpoint: `auto`, an address, or a list with at most one address per family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gateway {
    /// From the kernel's own routes.
    Auto,
    /// Fixed.
    Fixed(Vec<IpAddr>),
}

impl<'de> Deserialize<'de> for Gateway {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match OneOrMany::deserialize(d)? {
            OneOrMany::One(text) if text == "auto" => Ok(Self::Auto),
            OneOrMany::One(text) => Ok(Self::Fixed(vec![address(&text).map_err(de::Error::custom)?])),
            OneOrMany::Many(list) => Ok(Self::Fixed(list.into_iter().map(|a| a.0).collect())),
        }
    }
}

scalar_schema!(Gateway, {
    "type": ["string", "array"], "format": "gateway", "minItems": 1, "maxItems": 2,
    "items": {"type": "string", "format": "address", "x-expects": "an IP address, such as `192.0.2.1` or `2001:db8::1`"},
    "examples": ["auto"],
    "description": "an address, `auto`, or a list with one address per family",
    "x-expects": "a gateway: an address, `auto`, or a list with one address per family",
});

/// One address or a list of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(pub Vec<IpAddr>);

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match OneOrMany::deserialize(d)? {
            OneOrMany::One(text) => Ok(Self(vec![address(&text).map_err(de::Error::custom)?])),
            OneOrMany::Many(list) => Ok(Self(list.into_iter().map(|a| a.0).collect())),
        }
    }
}

scalar_schema!(Addresses, {
    "type": ["string", "array"], "format": "address", "minItems": 1, "maxItems": 2,
    "items": {"type": "string", "format": "address", "x-expects": "an IP address, such as `192.0.2.1` or `2001:db8::1`"},
    "description": "an address, or a list with one address per family",
    "x-expects": "an address, or a list with one address per family",
});

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<Address>),
}

/// What happens to source addresses: `masquerade`, `none`, or `{snat: ADDRESS}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nat {
    /// They stay.
    None,
    /// They become the interface's.
    Masquerade,
    /// They become this address.
    Snat(Address),
}

scalar_schema!(Nat, {
    "type": ["string", "object"], "pattern": "^(masquerade|none)$", "required": ["snat"],
    "properties": {"snat": {
        "type": "string", "format": "address", "x-expects": "an IP address, such as `192.0.2.1` or `2001:db8::1`",
    }},
    "additionalProperties": false,
    "examples": ["masquerade", "none"],
    "description": "`masquerade`, `none`, or `{snat: ADDRESS}`",
    "x-expects": "`masquerade`, `none`, or `{snat: ADDRESS}`",
});

/// How flows are shared: by path, or `bandwidth`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Weights {
    /// As these numbers say.
    Of(BTreeMap<Name, u32>),
    /// As the endpoints declare.
    By(WeightsWord),
}

/// The word that stands in place of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightsWord {
    /// The declared bandwidth.
    Bandwidth,
}

scalar_schema!(Weights, {
    "type": ["string", "object"], "pattern": "^bandwidth$",
    "additionalProperties": {
        "type": "integer", "minimum": 1, "maximum": 100, "x-expects": "a whole number from 1 to 100",
    },
    "examples": ["bandwidth"],
    "description": "`bandwidth`, or a number from 1 to 100 for each path",
    "x-expects": "`bandwidth`, or a mapping of paths to numbers from 1 to 100",
});

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong<T: FromStr<Err = UnitError> + fmt::Debug>(text: &str) -> String {
        text.parse::<T>().unwrap_err().to_string()
    }

    #[test]
    fn a_prefix_names_its_network() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "2001:db8::/32", "::/0"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!(wrong::<Prefix>("10.0.0.1/24"), "`10.0.0.1/24` has host bits set: the network is `10.0.0.0/24`");
        assert_eq!(wrong::<Prefix>("10.0.0.1"), "`10.0.0.1` has no prefix length: write `10.0.0.1/32`");
        for text in ["", "10.0.0.0/33", "10.0.0/24", "::/129", "10.0.0.0/", "x/8", "010.0.0.0/8"] {
            assert!(wrong::<Prefix>(text).contains("is not a prefix"), "{text}");
        }
    }

    #[test]
    fn a_destination_is_the_internet_or_an_endpoint() {
        assert_eq!("internet".parse::<To>().unwrap(), To::Internet);
        assert_eq!("hq/fiber".parse::<To>().unwrap().to_string(), "hq/fiber");
        for text in ["", "hq", "hq/", "/fiber", "hq/fiber/x", "Internet", "HQ/fiber"] {
            assert!(wrong::<To>(text).contains("is not a destination"), "{text}");
        }
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        for (name, number) in PROTOCOLS {
            assert_eq!(name.parse::<Protocol>().unwrap().0, number);
            assert_eq!(Protocol(number).to_string(), name);
            assert_eq!(number.to_string().parse::<Protocol>().unwrap().0, number);
        }
        assert!(wrong::<Protocol>("tpc").ends_with("did you mean `tcp`?"));
        assert!(wrong::<Protocol>("256").contains("is not a protocol"));
    }

    #[test]
    fn what_a_schema_offers_is_valid() {
        fn examples<T: JsonSchema>() -> (String, Vec<String>) {
            let schema = T::json_schema(&mut SchemaGenerator::default()).to_value();
            let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            let all = schema["examples"].as_array().unwrap().iter().map(text).collect();
            (schema["format"].as_str().unwrap().to_owned(), all)
        }
        for (format, offered) in
            [examples::<DscpName>(), examples::<ProtocolName>(), examples::<Ports>(), examples::<Gateway>()]
        {
            assert!(!offered.is_empty());
            for word in &offered {
                check(&format, word).unwrap();
            }
        }
    }

    #[test]
    fn every_format_refuses_rubbish() {
        let loose = ["mark-mask"];
        for format in FORMATS.iter().filter(|format| !loose.contains(format)) {
            assert!(check(format, "\u{0}rubbish é").is_err(), "{format}");
        }
    }

    #[test]
    fn gateways_and_addresses_are_one_or_many() {
        let gateway = |text: &str| serde_json::from_str::<Gateway>(text);
        assert_eq!(gateway("\"auto\"").unwrap(), Gateway::Auto);
        assert_eq!(gateway("\"192.0.2.1\"").unwrap(), Gateway::Fixed(vec![[192, 0, 2, 1].into()]));
        assert!(matches!(gateway("[\"192.0.2.1\", \"fe80::1\"]"), Ok(Gateway::Fixed(list)) if list.len() == 2));
        assert!(gateway("\"nowhere\"").is_err() && gateway("[\"auto\"]").is_err());
        assert_eq!(
            serde_json::from_str::<Nat>("{\"snat\": \"192.0.2.1\"}").unwrap(),
            Nat::Snat(Address([192, 0, 2, 1].into()))
        );
    }
}
