//! Validated newtypes shared by every module: names, marks, tables, ratios, rates, durations.
//!
//! Each type can only be built through a checking constructor or `FromStr`, prints itself in the
//! form the configuration language accepts, and carries its JSON Schema.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A value that is not in its type's alphabet or range. The text says what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(pub String);

fn bad<T>(text: impl Into<String>) -> Result<T, UnitError> {
    Err(UnitError(text.into()))
}

/// Gives a type that parses from and prints to text its serde and JSON Schema forms.
macro_rules! text_unit {
    ($type:ident, $pattern:expr, $description:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = Cow::<'_, str>::deserialize(d)?;
                text.parse().map_err(de::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string", "pattern": $pattern, "description": $description, "x-expects": $description,
                })
            }
        }
    };
}

mod causes;
mod names;
mod part;

pub use causes::chain;
pub use names::{IfName, Name};
pub use part::{PathPart, told};

/// Brings a map that is complete and stays so into its smallest form. One that was filled in the order of its keys has
/// nodes that are half empty, and with large values that is more than all their content.
pub fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

/// The smallest MTU of a link with IPv6 (RFC 8200, section 5). The kernel takes IPv6 away below it.
pub const IPV6_MTU: u32 = 1280;

/// An address family of the routing tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: &std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a prefix.
    #[must_use]
    pub const fn of_net(net: &ipnet::IpNet) -> Self {
        match net {
            ipnet::IpNet::V4(_) => Self::V4,
            ipnet::IpNet::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A contiguous bit mask within a 32-bit packet or connection mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkMask(u32);

impl MarkMask {
    /// Checks that the bits are contiguous and at least four.
    pub fn new(bits: u32) -> Result<Self, UnitError> {
        let run = bits >> bits.trailing_zeros().min(31);
        if bits == 0 || run & run.wrapping_add(1) != 0 || run.count_ones() < 4 {
            return bad(format!(
                "{bits:#010x} is not a mark mask: it needs at least four bits in one run, such as 0xff000000"
            ));
        }
        Ok(Self(bits))
    }

    /// The bits of the mask.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The bits outside the mask.
    #[must_use]
    pub const fn inverse(self) -> u32 {
        !self.0
    }

    /// The largest number that fits.
    #[must_use]
    pub const fn max_number(self) -> u32 {
        self.0 >> self.0.trailing_zeros()
    }

    /// The mark that carries `number`; `number` is cut to the mask.
    #[must_use]
    pub const fn mark(self, number: u32) -> u32 {
        (number << self.0.trailing_zeros()) & self.0
    }

    /// The number that a mark carries; 0 = none.
    #[must_use]
    pub const fn number(self, mark: u32) -> u32 {
        (mark & self.0) >> self.0.trailing_zeros()
    }
}

impl FromStr for MarkMask {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let bits = s.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        bits.map_or_else(|| bad(format!("`{s}` is not a mask: write it as 0xff000000")), Self::new)
    }
}

impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

text_unit!(MarkMask, "^0x[0-9a-fA-F]{1,8}$", "a mask in hexadecimal, such as `0xff000000`");

/// A share between 0 and 1, held in parts per million so that it is `Ord` and exact in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ratio(u32);

impl Ratio {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All of it.
    pub const ONE: Self = Self(1_000_000);

    /// From parts per million, at most 1,000,000.
    pub fn from_ppm(ppm: u32) -> Result<Self, UnitError> {
        if ppm > 1_000_000 { bad("a ratio is at most 100%") } else { Ok(Self(ppm)) }
    }

    /// `part` of `whole`; 0 of 0 is 0, more than the whole is the whole.
    #[must_use]
    pub fn of(part: usize, whole: usize) -> Self {
        if whole == 0 {
            return Self::ZERO;
        }
        let ppm = (part.min(whole) as u128 * 1_000_000) / whole as u128;
        Self(u32::try_from(ppm).unwrap_or(1_000_000))
    }

    /// As a number between 0 and 1.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    /// In parts per million.
    #[must_use]
    pub const fn ppm(self) -> u32 {
        self.0
    }
}

impl FromStr for Ratio {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let parsed = s.strip_suffix('%').and_then(|n| decimal(n.trim_end(), 10_000));
        match parsed {
            Some(ppm) if ppm <= 1_000_000 => Ok(Self(u32::try_from(ppm).unwrap_or(1_000_000))),
            _ => bad(format!("`{s}` is not a ratio: write a percentage from 0% to 100%, such as `1%` or `0.5%`")),
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:04}", self.0 / 10_000, self.0 % 10_000);
        f.pad(&format!("{}%", text.trim_end_matches('0').trim_end_matches('.')))
    }
}

text_unit!(Ratio, r"^[0-9]+(\.[0-9]{1,4})?%$", "a percentage, such as `1%`");

/// `text` times `scale` as a whole number, from digits with an optional fraction; no sign, no exponent.
fn decimal(text: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || text.ends_with('.') {
        return None;
    }
    let mut total = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let mut unit = scale;
    for digit in fraction.bytes() {
        unit /= 10;
        let add = u64::from(digit - b'0') * unit;
        if unit == 0 && digit != b'0' {
            return None;
        }
        total = total.checked_add(add)?;
    }
    Some(total)
}

/// A bit rate in bits per second, from text such as `50Mbit` or `1Gbit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

const RATES: [(&str, u64); 4] = [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];

impl Rate {
    /// In bits per second.
    #[must_use]
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let unit = RATES.iter().find_map(|(unit, scale)| Some((s.strip_suffix(unit)?, *scale)));
        match unit.and_then(|(number, scale)| decimal(number, scale)) {
            Some(bits) if bits > 0 => Ok(Self(bits)),
            _ => bad(format!(
                "`{s}` is not a rate: write a number with its unit, such as `512kbit`, `50Mbit` or `1Gbit`"
            )),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = RATES.iter().find(|(_, scale)| self.0.is_multiple_of(*scale));
        let (unit, scale) = whole.copied().unwrap_or(("bit", 1));
        f.pad(&format!("{}{unit}", self.0 / scale))
    }
}

text_unit!(Rate, r"^[0-9]+(\.[0-9]+)?(bit|kbit|Mbit|Gbit)$", "a rate with its unit, such as `50Mbit`");

/// A length of time with its unit, such as `250ms`, `60s`, `10m`, `2h` or `30d`; whole microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

const SPANS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("ms", 1_000), ("us", 1), ("m", 60_000_000), ("s", 1_000_000)];

impl Span {
    /// From milliseconds.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// As the standard library's type.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Span {
    fn from(d: Duration) -> Self {
        Self(d)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let split = s.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(s.len());
        let (number, unit) = s.split_at(split);
        let scale = SPANS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
        match scale.and_then(|scale| decimal(number, scale)) {
            Some(us) => Ok(Self(Duration::from_micros(us))),
            None => bad(format!(
                "`{s}` is not a duration: write a number with its unit, such as `250ms`, `60s`, `10m` or `2h`"
            )),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        let unit =
            [("d", 86_400_000_000_u128), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)];
        // `60s` and `90s` read better than `1m` and `1.5m`: minutes and more only above two of them.
        let fits = |scale: u128| us.is_multiple_of(scale) && (scale <= 1_000_000 || us >= 2 * scale);
        let (unit, scale) = unit.into_iter().find(|(_, scale)| us > 0 && fits(*scale)).unwrap_or(("us", 1));
        if us == 0 { f.pad("0s") } else { f.pad(&format!("{}{unit}", us / scale)) }
    }
}

text_unit!(Span, r"^[0-9]+(\.[0-9]+)?(us|ms|s|m|h|d)$", "a duration with its unit, such as `250ms` or `60s`");

/// A port or a range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port, not below the first.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let (first, last) = s.split_once('-').unwrap_or((s, s));
        let port = |t: &str| t.parse::<u16>().ok().filter(|p| *p > 0 && t.bytes().all(|b| b.is_ascii_digit()));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => bad(format!("`{s}` is not a port: write one from 1 to 65535, or a range such as `10000-20000`")),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// A DSCP code point, 0 to 63 (RFC 2474), by its standard name where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dscp(u8);

/// Names of RFC 2474, RFC 2597, RFC 3246, RFC 5865 and RFC 8622. `voice-admit` and `le` are printed as
/// numbers to nftables, which does not know them.
const DSCP: [(&str, u8); 24] = [
    ("cs0", 0),
    ("cs1", 8),
    ("cs2", 16),
    ("cs3", 24),
    ("cs4", 32),
    ("cs5", 40),
    ("cs6", 48),
    ("cs7", 56),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("ef", 46),
    ("voice-admit", 44),
    ("le", 1),
    ("be", 0),
];

impl Dscp {
    /// The code point, 0 to 63.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0
    }
}

impl FromStr for Dscp {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let named = DSCP.iter().find(|(name, _)| name.eq_ignore_ascii_case(s)).map(|(_, value)| *value);
        match named.or_else(|| s.parse().ok().filter(|v| *v < 64)) {
            Some(value) => Ok(Self(value)),
            None => bad(format!(
                "`{s}` is not a DSCP: write a name such as `ef`, `af41` or `cs5`, or a number from 0 to 63"
            )),
        }
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DSCP.iter().find(|(_, value)| *value == self.0) {
            Some((name, _)) => f.pad(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// `1 path`, `2 paths`, `2 policies`, `2 days`.
#[must_use]
pub fn plural(n: impl TryInto<u64>, noun: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    let after_consonant = |stem: &&str| !stem.ends_with(['a', 'e', 'i', 'o', 'u']);
    match (n, noun.strip_suffix('y').filter(after_consonant)) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{n} {stem}ies"),
        _ => format!("{n} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::plural;

    #[test]
    fn only_a_y_after_a_consonant_becomes_ies() {
        let two = ["day", "gateway", "policy", "path"].map(|noun| plural(2_u64, noun));
        assert_eq!(two, ["2 days", "2 gateways", "2 policies", "2 paths"]);
        assert_eq!(plural(1_u64, "policy"), "1 policy");
    }
}
