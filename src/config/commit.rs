//! What is known of a commit beside its files: who, when, which signature, and where it stands in the history.

use serde::{Deserialize, Serialize};

use crate::clock::Wall;

/// A commit, as much of it as decisions and people need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its 40 hexadecimal digits.
    pub id: String,
    /// Name and address of its author, without control characters.
    pub author: String,
    /// When it was committed, as it says itself.
    pub at: Wall,
    /// The first line of its message, without control characters.
    pub subject: String,
    /// The trailers of its message, such as `Patronus-Allow-Large: yes`, in their order.
    pub trailers: Vec<(String, String)>,
    /// What its signature is worth.
    pub signature: Signature,
    /// Where it stands relative to the highest accepted commit.
    pub lineage: Lineage,
}

impl Commit {
    /// Whether its trailer says that a large change is meant.
    #[must_use]
    pub fn allows_large(&self) -> bool {
        self.trailer("Patronus-Allow-Large").is_some_and(|value| value.trim().eq_ignore_ascii_case("yes"))
    }

    /// The value of the last trailer of this name; names do not care about case.
    #[must_use]
    pub fn trailer(&self, name: &str) -> Option<&str> {
        let mut found = self.trailers.iter().rev().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }
}

/// What a commit's signature is worth under the router's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "verdict")]
pub enum Signature {
    /// The settings ask for none; nothing was looked at.
    Off,
    /// By a key that the settings accept.
    Good {
        /// The principal of the key in the file of allowed signers.
        signer: String,
        /// The key's fingerprint.
        key: String,
    },
    /// There is none.
    Missing,
    /// There is one that must not be accepted.
    Bad {
        /// Why not.
        reason: String,
    },
}

impl Signature {
    /// Whether the policy lets the commit pass.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        matches!(self, Self::Off | Self::Good { .. })
    }
}

/// Where a commit stands relative to the highest accepted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lineage {
    /// Nothing was accepted yet.
    First,
    /// It is the accepted one.
    Same,
    /// The accepted one is among its ancestors.
    Descends,
    /// It is an ancestor of the accepted one: the branch was set back.
    Behind,
    /// Neither: the history was written anew.
    Diverged,
}

impl Lineage {
    /// Whether a commit may be followed without being asked for.
    #[must_use]
    pub const fn is_forward(self) -> bool {
        matches!(self, Self::First | Self::Same | Self::Descends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_trailer_of_a_name_counts() {
        let trailers = [("Patronus-Allow-Large", "no"), ("patronus-allow-large", "yes")];
        let commit = Commit {
            id: "0".repeat(40),
            author: String::new(),
            at: Wall::default(),
            subject: String::new(),
            trailers: trailers.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
            signature: Signature::Off,
            lineage: Lineage::First,
        };
        assert_eq!(commit.trailer("Patronus-Allow-Large"), Some("yes"));
        assert_eq!(commit.trailer("Signed-off-by"), None);
    }

    #[test]
    fn only_a_good_signature_or_none_asked_for_passes() {
        let good = Signature::Good { signer: "a@b".into(), key: "SHA256:x".into() };
        assert!(Signature::Off.is_accepted() && good.is_accepted());
        assert!(!Signature::Missing.is_accepted() && !Signature::Bad { reason: String::new() }.is_accepted());
    }
}
