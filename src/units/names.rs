//! Names: of objects and of network interfaces. There are tens of thousands of copies on a large hub, so none of
//! them costs an allocation.

use std::{
    borrow::Cow,
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{UnitError, bad};

/// An object's name: `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, 1 to 63 bytes. Copies share the text: a path's name is in
/// dozens of places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let edge = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
        let b = s.as_bytes();
        if b.is_empty() || b.len() > 63 || !b.iter().all(|b| inner(*b)) || !edge(b.first()) || !edge(b.last()) {
            return bad(format!(
                "`{s}` is not a name: use 1 to 63 of a-z, 0-9 and `-`, beginning and ending with a letter or digit"
            ));
        }
        Ok(Self(s.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

text_unit!(Name, "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", "a name: a-z, 0-9 and `-`, at most 63 characters");

/// A Linux network interface name: 1 to 15 bytes, no `/`, no white space, not `.` or `..`
/// (`dev_valid_name` in the kernel's `net/core/dev.c`). Quotes, backslashes, `*`, `:` and `@` are refused
/// too: they could not be passed to nftables unchanged.
///
/// Held in place: a thousand uplinks have tens of thousands of them, in routes, rules and facts.
#[derive(Clone, PartialEq, Eq)]
pub struct IfName {
    /// The name, then zeros; no name contains one.
    bytes: [u8; MAX_IFNAME],
    length: u8,
}

/// `IFNAMSIZ` without the closing zero.
const MAX_IFNAME: usize = 15;

impl IfName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII gets in, and the length was taken from what did.
        self.bytes.get(..usize::from(self.length)).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
    }
}

impl FromStr for IfName {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+');
        let (mut bytes, length) = ([0; MAX_IFNAME], u8::try_from(s.len()).unwrap_or(u8::MAX));
        match bytes.get_mut(..s.len()) {
            Some(place) if !s.is_empty() && s != "." && s != ".." && s.bytes().all(ok) => {
                place.copy_from_slice(s.as_bytes());
                Ok(Self { bytes, length })
            }
            _ => bad(format!("`{s}` is not an interface name: use 1 to 15 of letters, digits, `.`, `_`, `-`, `+`")),
        }
    }
}

// As those of its text, since maps are asked with a `&str`.
impl Hash for IfName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Ord for IfName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes.cmp(&other.bytes)
    }
}

impl PartialOrd for IfName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IfName").field(&self.as_str()).finish()
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::borrow::Borrow<str> for IfName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

text_unit!(IfName, "^[A-Za-z0-9._+-]{1,15}$", "a Linux interface name, at most 15 characters");

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;

    const TEXTS: [&str; 6] = ["a", "a-", "aa", "b", "wan0", "fifteen-bytes-x"];

    #[test]
    fn interface_names_order_and_hash_as_their_text_does() {
        let names: Vec<IfName> = TEXTS.iter().map(|text| text.parse().expect("a name")).collect();
        let sorted: BTreeSet<&IfName> = names.iter().rev().collect();
        let texts: BTreeSet<&str> = TEXTS.into_iter().collect();
        assert!(sorted.iter().map(|name| name.as_str()).eq(texts), "{sorted:?}");
        let hashed: HashSet<IfName> = names.into_iter().collect();
        assert!(TEXTS.iter().all(|text| hashed.contains(*text)));
        assert!(
            ["", ".", "..", "sixteen-bytes-xx", "a b", "a/b", "\u{e4}"].iter().all(|t| t.parse::<IfName>().is_err())
        );
    }
}
