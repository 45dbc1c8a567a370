//! What is to be fetched and how it is trusted: the settings' `git` source as checked values.

use std::{fmt, path::PathBuf, time::Duration};

use crate::units::Ratio;

/// A Git source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Where the repository is.
    pub url: Address,
    /// What of it is followed.
    pub reference: Reference,
    /// Directory of the repository that holds the configuration; empty = all of it.
    pub path: String,
    /// How often it is looked at.
    pub interval: Duration,
    /// By how much of the interval each wait may be longer.
    pub jitter: Ratio,
    /// How long a fetch over one way may take.
    pub timeout: Duration,
    /// Who logs in.
    pub username: Option<String>,
    /// Where the password, the token or the private key stands.
    pub secret: Option<Secret>,
    /// The host keys that are trusted; there is one for ssh.
    pub known_hosts: Option<PathBuf>,
    /// Certificate authorities beside the system's.
    pub ca: Option<PathBuf>,
    /// Which signature a commit needs.
    pub verify: Verify,
}

/// What of a repository is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The head of a branch.
    Branch(String),
    /// A tag.
    Tag(String),
    /// One commit for good.
    Commit(String),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Branch(name) => write!(f, "branch {name}"),
            Self::Tag(name) => write!(f, "tag {name}"),
            Self::Commit(id) => write!(f, "commit {id}"),
        }
    }
}

/// Where a secret stands; the settings never hold one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// In a file.
    File(PathBuf),
    /// In an environment variable.
    Environment(String),
    /// Among the credentials that systemd gives the service (`LoadCredential=`).
    Systemd(String),
}

/// Which signature a commit needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verify {
    /// None.
    Off,
    /// The head needs one by a key of this file (`ssh-keygen(1)`, "ALLOWED SIGNERS").
    Head(PathBuf),
}

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP over TLS.
    Https,
    /// The secure shell.
    Ssh,
    /// A directory of this machine.
    File,
}

/// The address of a repository. It holds no secret, so it can be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// How.
    pub scheme: Scheme,
    /// Who logs in, if the address says so.
    pub user: Option<String>,
    /// The host without brackets; empty for a file.
    pub host: String,
    /// The port; 0 for a file.
    pub port: u16,
    /// The path; without a slash before it, it begins in the home directory there (`user@host:path`).
    pub path: String,
}

impl Address {
    /// Reads `https://host/path`, `ssh://user@host/path`, `user@host:path` and `file:///path`.
    ///
    /// # Errors
    ///
    /// What is wrong, and what to write.
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(("the address has a blank in it".into(), "write `%20` for a blank".into()));
        }
        if let Some((before, path)) = text.split_once(':').filter(|(_, rest)| !rest.starts_with("//")) {
            let (user, host) = before.split_once('@').map_or((None, before), |(user, host)| (Some(user), host));
            if !host.is_empty() && !host.contains('/') {
                return Self::of(Scheme::Ssh, user, host, 22, path);
            }
        }
        let parsed = url::Url::parse(text).map_err(|error| (format!("not an address: {error}"), FORMS.to_owned()))?;
        let (scheme, port) = match parsed.scheme() {
            "https" => (Scheme::Https, 443),
            "ssh" => (Scheme::Ssh, 22),
            "file" => (Scheme::File, 0),
            "http" | "git" => {
                let why = "everybody on the way could change what it brings";
                return Err((format!("`{}:` is not protected: {why}", parsed.scheme()), FORMS.to_owned()));
            }
            other => return Err((format!("`{other}:` is not supported"), FORMS.to_owned())),
        };
        if parsed.password().is_some() {
            let help = "give `credentials` with the `file` that holds it";
            return Err(("a password has no place in the address".into(), help.into()));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(("the address has a `?` or a `#`".into(), FORMS.to_owned()));
        }
        let user = Some(parsed.username()).filter(|user| !user.is_empty());
        let host = parsed.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        Self::of(scheme, user, host, parsed.port().unwrap_or(port), parsed.path())
    }

    fn of(scheme: Scheme, user: Option<&str>, host: &str, port: u16, path: &str) -> Result<Self, (String, String)> {
        if scheme == Scheme::Https && user.is_some() {
            let help = "give `credentials` with a `username` and the `file` that holds the password";
            return Err(("a user name has no place in an https address".into(), help.into()));
        }
        if scheme == Scheme::File && !host.is_empty() {
            return Err((format!("`{host}` is not a directory of this machine"), "write `file:///path`".into()));
        }
        if (scheme != Scheme::File && host.is_empty())
            || host.starts_with('-')
            || path.trim_start_matches('/').starts_with('-')
        {
            return Err(("the address names no host".into(), FORMS.to_owned()));
        }
        let user = user.map(str::to_owned);
        Ok(Self { scheme, user, host: host.to_owned(), port, path: path.to_owned() })
    }

    /// Host and port as a URL has them: brackets about an IPv6 address, no port where it is the usual one.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.scheme, self.port) {
            (Scheme::Https, 443) | (Scheme::Ssh, 22) | (Scheme::File, _) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

const FORMS: &str = "write `https://host/path`, `ssh://git@host/path` or `file:///path`";

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Https => "https",
            Scheme::Ssh => "ssh",
            Scheme::File => "file",
        };
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        if self.scheme == Scheme::Ssh && !self.path.starts_with('/') {
            return write!(f, "{user}{}:{}", self.authority(), self.path);
        }
        write!(f, "{scheme}://{user}{}{}", self.authority(), self.path)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown) in [
            ("https://git.example.net/network.git", "https://git.example.net/network.git"),
            ("https://git.example.net:8443/a/b", "https://git.example.net:8443/a/b"),
            ("https://[2001:db8::1]:8443/a", "https://[2001:db8::1]:8443/a"),
            ("ssh://git@git.example.net/network.git", "ssh://git@git.example.net/network.git"),
            ("ssh://git@git.example.net:2222/n", "ssh://git@git.example.net:2222/n"),
            ("git@github.com:team/network.git", "git@github.com:team/network.git"),
            ("host:/srv/network.git", "ssh://host/srv/network.git"),
            ("file:///srv/network.git", "file:///srv/network.git"),
        ] {
            assert_eq!(Address::parse(text).map(|a| a.to_string()), Ok(shown.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_unsafe_or_no_address_is_refused() {
        for (text, wrong) in [
            ("http://git.example.net/n", "not protected"),
            ("git://git.example.net/n", "not protected"),
            ("ftp://git.example.net/n", "not supported"),
            ("https://me:secret@git.example.net/n", "password has no place"),
            ("https://token@git.example.net/n", "user name has no place"),
            ("ssh://-oProxyCommand=x/n", "names no host"),
            ("file://host/srv", "not a directory of this machine"),
            ("/srv/network.git", "not an address"),
            ("https://git.example.net/n?a=b", "`?`"),
            ("https://git.example.net/a b", "blank"),
        ] {
            let Err((message, help)) = Address::parse(text) else { panic!("accepted: {text}") };
            assert!(message.contains(wrong), "{text}: {message}");
            assert!(!message.contains("secret") && !help.is_empty());
        }
    }
}
