//! Probing: schedule, senders, samples.
//!
//! [`Prober`] sends echo requests through each path and only through it (mark, device and source address), and
//! reports each round as a [`Sample`]. Pure parts: [`schedule`] (when), [`rounds`] (what is waited for), [`echo`] (bytes).
//!
//! Invariant: only an answer with the 64-bit random number of its probe, from the probed address, by the interface
//! that the probe left by, within the timeout, counts. ICMP errors prove nothing and are not even received.
//!
//! Why not the surge-ping crate: it has no mark, no kernel timestamps, and one raw socket per path, of which each
//! sees the packets of all.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::IpAddr,
    time::Duration,
};

use tokio::sync::mpsc;

pub mod echo;
mod engine;
pub mod rounds;
pub mod schedule;
mod socket;

use engine::Engine;
use socket::Sockets;

use crate::{
    health::Sample,
    units::{Family, IfName, Name},
};

/// How one path is probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSpec {
    /// The path.
    pub path: Name,
    /// The interface that its probes leave by (`SO_BINDTODEVICE`); it need not exist.
    pub interface: IfName,
    /// The mark that its probes carry (`SO_MARK`).
    pub mark: u32,
    /// Source addresses, at most one per family; without one the kernel chooses.
    pub sources: Vec<IpAddr>,
    /// Addresses probed in parallel in each round.
    pub targets: Vec<IpAddr>,
    /// From round to round.
    pub interval: Duration,
    /// After which an answer no longer counts.
    pub timeout: Duration,
    /// ICMP payload in bytes.
    pub size: u16,
}

/// Why probing is not possible.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel refused a raw socket, its mark or its buffers.
    #[error("cannot open the {0} probe sockets: probing needs CAP_NET_RAW and CAP_NET_ADMIN")]
    Open(Family, #[source] io::Error),
}

/// A handle to the probing task; the task ends when it is dropped.
#[derive(Debug)]
pub struct Prober {
    specs: mpsc::UnboundedSender<Vec<ProbeSpec>>,
}

impl Prober {
    /// Opens the sockets in the current network namespace and starts a task on the current tokio runtime. Samples go
    /// to `samples`; one that finds it full is dropped, so that a slow reader never delays a probe.
    ///
    /// A host without IPv6 is no error: its targets are then lost.
    pub fn start(samples: mpsc::Sender<Sample>) -> Result<Self, ProbeError> {
        let random = RandomState::new();
        // Truncation of a hash is meant.
        #[allow(clippy::cast_possible_truncation)]
        let ident = random.hash_one("ident") as u16;
        let v4 = Sockets::open(Family::V4, ident).map_err(|e| ProbeError::Open(Family::V4, e))?;
        let v6 = match Sockets::open(Family::V6, ident) {
            Ok(sockets) => Some(sockets),
            Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => None,
            Err(e) => return Err(ProbeError::Open(Family::V6, e)),
        };
        let (specs, configured) = mpsc::unbounded_channel();
        tokio::spawn(Engine::new(v4, v6, ident, random, samples).run(configured));
        Ok(Self { specs })
    }

    /// Replaces what is probed. Paths whose specification stays are not disturbed.
    pub fn configure(&self, specs: Vec<ProbeSpec>) {
        // The task ends only with the runtime; then nobody probes any more.
        let _ = self.specs.send(specs);
    }
}
