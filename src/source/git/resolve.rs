//! The addresses of the remote, also while no name server can be reached.
//!
//! The addresses that worked last are remembered, in memory and in a file: when the path that leads to the name server
//! is the one that died, the fetch over another path still knows where to go. That costs no trust, since the other
//! end shows its certificate or its host key in any case.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::error::{GitError, Reason};

/// How long the system's resolver may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks up names, and remembers.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    /// Where the last addresses are kept.
    file: PathBuf,
    last: Mutex<Vec<SocketAddr>>,
}

impl Resolver {
    /// With the addresses of an earlier run.
    pub(super) fn new(file: PathBuf) -> Self {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        Self { file, last: Mutex::new(text.lines().filter_map(|line| line.parse().ok()).collect()) }
    }

    /// The addresses of a host: what the system says, else what worked last.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, GitError> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let why = match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, port))).await {
            Ok(Ok(found)) => {
                let found: Vec<SocketAddr> = found.collect();
                if !found.is_empty() {
                    return Ok(found);
                }
                "it has none".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if last.iter().any(|address| address.port() == port) {
            tracing::debug!(host, %why, "the name server does not answer; taking the addresses that worked last");
            return Ok(last);
        }
        let message = format!("the name {host} has no address: {why}");
        Err(GitError::new(Reason::Dns, message, "check the name and /etc/resolv.conf: getent hosts NAME"))
    }

    /// Remembers addresses that worked.
    pub(super) fn worked(&self, addresses: &[SocketAddr]) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == addresses {
            return;
        }
        last.clear();
        last.extend(addresses);
        let lines: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        // Without the file only the next start knows nothing.
        let _ = std::fs::write(&self.file, lines.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_name_server_the_last_addresses_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("addresses");
        let resolver = Resolver::new(file.clone());
        let error = resolver.resolve("git.invalid", 443).await.unwrap_err();
        assert_eq!(error.reason, Reason::Dns);
        let address: SocketAddr = "192.0.2.7:443".parse().unwrap();
        resolver.worked(&[address]);
        assert_eq!(Resolver::new(file).resolve("git.invalid", 443).await, Ok(vec![address]));
        assert!(resolver.resolve("git.invalid", 22).await.is_err(), "another port is another service");
    }
}
