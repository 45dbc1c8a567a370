//! Probing: schedule, senders, samples.
//!
//! [`Prober`] probes each path through it and only through it (mark, device and source address), by the method that
//! the configuration names, and reports each round as a [`Sample`]. Pure parts: [`schedule`] (when), [`rounds`] (what
//! is waited for), [`echo`], [`stamp`], [`neighbour`] and [`dns`] (bytes). Methods of one packet each way share sockets
//! (`socket`, `link`); the others hold a dialogue over a socket of their own (`dialogue`).
//!
//! Invariant: only an answer with the 64-bit random number of its probe, from the probed address, by the interface
//! that the probe left by, within the timeout, counts. ICMP errors prove nothing and are not even received. Where a
//! protocol has no room for the number, its own means take its place: TCP's sequence numbers, TLS, the id and port of
//! a DNS question; ARP has none.
//!
//! Invariant: nothing that the rest of the daemon does holds up a probe. Probes have a thread of their own, and what they
//! found waits for the engine.
//!
//! Why not the surge-ping crate: it has no mark, no kernel timestamps, and one raw socket per path, of which each
//! sees the packets of all.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::IpAddr,
    sync::Arc,
    thread,
};

use tokio::{runtime::Builder, sync::mpsc};

mod dialogue;
pub mod dns;
pub mod echo;
mod engine;
mod limit;
mod link;
pub mod neighbour;
mod reflector;
pub mod rounds;
pub mod schedule;
mod senders;
mod socket;
pub mod stamp;

use engine::Engine;
pub use reflector::Reflector;
use senders::Senders;

use crate::{
    health::Sample,
    units::{IfName, Name},
    validate::intent::Probe,
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
    /// Its gateways as the kernel has them, IPv4 first.
    pub gateways: Vec<IpAddr>,
    /// Method, targets and timing.
    pub probe: Arc<Probe>,
}

impl ProbeSpec {
    /// Whether what was probed by the other says something of this one: the same questions, by the same way out.
    fn leads_as(&self, other: &Self) -> bool {
        (&self.probe, &self.interface, &self.gateways) == (&other.probe, &other.interface, &other.gateways)
    }
}

/// Why probing is not possible.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel refused a socket, its mark or its buffers.
    #[error("cannot open {what}{}", hint(.source))]
    Open {
        /// Which sockets.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The system has no room for a thread.
    #[error("cannot start the thread that probes")]
    Start(#[source] io::Error),
}

/// What to do next where a socket is refused.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(nix::libc::EPERM | nix::libc::EACCES) => ": probing needs CAP_NET_RAW and CAP_NET_ADMIN",
        Some(nix::libc::EAFNOSUPPORT) => {
            ": this kernel has no such sockets, or the unit's `RestrictAddressFamilies=` keeps them from the daemon"
        }
        _ => "",
    }
}

/// A handle to the probing thread; the thread ends when it is dropped.
#[derive(Debug)]
pub struct Prober {
    specs: mpsc::UnboundedSender<Vec<ProbeSpec>>,
}

impl Prober {
    /// Opens the sockets in the current network namespace and starts a thread. Samples go to `samples`; one that finds it
    /// full is dropped, so that a slow reader never delays a probe.
    ///
    /// A host without IPv6 is no error: its targets are then lost.
    pub fn start(samples: mpsc::Sender<Sample>) -> Result<Self, ProbeError> {
        Self::with_clock(samples, false)
    }

    /// The same; `synchronised` says that the wall clock follows UTC well enough for delays of one direction.
    pub fn with_clock(samples: mpsc::Sender<Sample>, synchronised: bool) -> Result<Self, ProbeError> {
        let random = RandomState::new();
        // Truncation of a hash is meant.
        #[allow(clippy::cast_possible_truncation)]
        let ident = random.hash_one("ident") as u16;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(ProbeError::Start)?;
        let senders = {
            let _entered = runtime.enter();
            Senders::open(ident)?
        };
        let (specs, configured) = mpsc::unbounded_channel();
        let run = move || runtime.block_on(Engine::new(senders, random, samples, synchronised).run(configured));
        thread::Builder::new().name("probes".to_owned()).spawn(run).map_err(ProbeError::Start)?;
        Ok(Self { specs })
    }

    /// Replaces what is probed. Paths whose specification stays are not disturbed.
    pub fn configure(&self, specs: Vec<ProbeSpec>) {
        // The thread ends with this handle, or by a fault of its own: then the channel of its samples is closed too, and
        // whoever reads that sees it.
        let _ = self.specs.send(specs);
    }
}
