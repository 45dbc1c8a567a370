//! Why a repository could not be followed: a reason that can be counted, a sentence, and what to do.
//!
//! Invariant: no secret is in it. Texts are made from the address (which holds none), paths and library messages.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds of failures, as metrics and status name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The host's name has no address.
    Dns,
    /// No connection could be made.
    Unreachable,
    /// It took too long.
    Timeout,
    /// The connection ended too early.
    Disconnected,
    /// The server's certificate is not acceptable.
    Tls,
    /// The host's key is not the known one, or no key is known.
    HostKey,
    /// The server does not let us in.
    Authentication,
    /// The server knows us and says no.
    Forbidden,
    /// There is no such repository.
    NotFound,
    /// The server says that it cannot at the moment.
    Server,
    /// The server wants us to go elsewhere.
    Redirect,
    /// The branch, tag or commit is not there.
    NoSuchReference,
    /// The repository is empty.
    Empty,
    /// What came is no Git, or damaged.
    Corrupt,
    /// Something in the tree is not allowed.
    Refused,
    /// Something is too large.
    Limit,
    /// The state directory cannot be written.
    Storage,
    /// A file or a secret that the settings name cannot be used.
    Settings,
}

impl Reason {
    /// All of them, in the order of the reference.
    pub const ALL: [Self; 18] = [
        Self::Dns,
        Self::Unreachable,
        Self::Timeout,
        Self::Disconnected,
        Self::Tls,
        Self::HostKey,
        Self::Authentication,
        Self::Forbidden,
        Self::NotFound,
        Self::Server,
        Self::Redirect,
        Self::NoSuchReference,
        Self::Empty,
        Self::Corrupt,
        Self::Refused,
        Self::Limit,
        Self::Storage,
        Self::Settings,
    ];

    /// The word in metrics and status.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Tls => "tls",
            Self::HostKey => "host_key",
            Self::Authentication => "authentication",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Server => "server",
            Self::Redirect => "redirect",
            Self::NoSuchReference => "no_such_reference",
            Self::Empty => "empty",
            Self::Corrupt => "corrupt",
            Self::Refused => "refused",
            Self::Limit => "limit",
            Self::Storage => "storage",
            Self::Settings => "settings",
        }
    }

    /// Whether another way to the same host may have more luck.
    #[must_use]
    pub const fn is_of_the_way(self) -> bool {
        matches!(self, Self::Dns | Self::Unreachable | Self::Timeout | Self::Disconnected)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Why a repository could not be fetched or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {remedy}")]
pub struct GitError {
    /// Which kind of failure.
    pub reason: Reason,
    /// What happened, to what.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl GitError {
    /// A failure with a sentence and a remedy.
    pub fn new(reason: Reason, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason, message: plain(&message.into()), remedy: remedy.into() }
    }
}

/// Text from outside on one line, without control characters, and not too long.
pub(super) fn plain(text: &str) -> String {
    let tame = |c: char| if c.is_control() { ' ' } else { c };
    let hidden = |c: &char| !matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.trim().chars().filter(hidden).map(tame).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_cannot_write_on_the_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\nc\u{202e}d"), "a [31mb cd");
    }

    #[test]
    fn labels_are_those_that_serde_writes() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.label());
        }
    }
}
