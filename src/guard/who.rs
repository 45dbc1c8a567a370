//! Who made a change: a person at a terminal, or the daemon on behalf of a commit.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Who {
    /// Somebody ran a command.
    Person {
        /// The user that the command ran as.
        uid: u32,
        /// That user's name, if it has one.
        user: Option<String>,
        /// Who they were before `sudo`.
        sudo_user: Option<String>,
    },
    /// The daemon followed its source.
    Daemon {
        /// The author of the commit.
        author: Option<String>,
        /// Who signed it, if that was checked.
        signer: Option<String>,
    },
}

impl Who {
    /// The daemon by itself.
    pub const DAEMON: Self = Self::Daemon { author: None, signer: None };

    /// Whether a person has to confirm what this one changed: evidence speaks for the daemon only.
    #[must_use]
    pub const fn is_person(&self) -> bool {
        matches!(self, Self::Person { .. })
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person { uid, user, sudo_user } => {
                match user {
                    Some(user) => f.write_str(user)?,
                    None => write!(f, "uid {uid}")?,
                }
                sudo_user.iter().try_for_each(|before| write!(f, " (sudo by {before})"))
            }
            Self::Daemon { author, signer } => {
                f.write_str("daemon")?;
                author.iter().try_for_each(|author| write!(f, ", commit by {author}"))?;
                signer.iter().try_for_each(|signer| write!(f, ", signed by {signer}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_commits_are_named() {
        let person = |user: Option<&str>, sudo: Option<&str>| Who::Person {
            uid: 7,
            user: user.map(str::to_owned),
            sudo_user: sudo.map(str::to_owned),
        };
        assert_eq!(person(Some("root"), Some("alice")).to_string(), "root (sudo by alice)");
        assert_eq!(person(None, None).to_string(), "uid 7");
        assert_eq!(Who::DAEMON.to_string(), "daemon");
        let signed = Who::Daemon { author: Some("Jo <jo@example.org>".into()), signer: Some("jo".into()) };
        assert_eq!(signed.to_string(), "daemon, commit by Jo <jo@example.org>, signed by jo");
    }
}
