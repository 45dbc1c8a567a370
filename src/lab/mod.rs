//! A private copy of sites in network namespaces on this machine, from the repository's own YAML.
//!
//! [`topology()`] invents what the YAML leaves open, [`Lab::build`] makes it with `ip`, [`Lab::fault`] breaks it,
//! [`Lab::flow`] measures what traffic notices. Invariant: nothing outside the lab's own namespaces is touched.

use std::{
    collections::BTreeMap,
    io,
    process::{Child, Command, Output},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

mod address;
mod emulator;
mod fault;
mod flow;
mod netns;
mod report;
mod script;
mod topology;

pub use fault::Fault;
pub use flow::{Flow, FlowSpec};
pub use netns::{enter, list};
pub use report::{Crossing, Outage, Report, Track};
pub use topology::{DefaultRoute, Impossible, LanNet, Leg, Node, SiteNet, Topology, Uplink, topology};

use crate::units::Name;

/// Why something in a lab failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A prefix that could not be told apart from others.
    #[error("`{0}` cannot begin the names of a lab's namespaces: use letters and digits")]
    Prefix(String),
    /// A lab of this prefix is up.
    #[error("namespaces of a lab called {0} exist already; remove them with `patronus lab down`")]
    Exists(String),
    /// The lab has no such node.
    #[error("the lab has no node {0}")]
    NoNode(String),
    /// The lab has no such endpoint.
    #[error("the lab has no endpoint {endpoint} at site {site}")]
    NoEndpoint {
        /// The site.
        site: String,
        /// The endpoint.
        endpoint: String,
    },
    /// A tool could not be run.
    #[error("cannot run {tool}")]
    Tool {
        /// The tool.
        tool: String,
        /// The cause.
        source: io::Error,
    },
    /// A tool ran and refused.
    #[error("{tool} refused `{line}` in {place}: {said}")]
    Refused {
        /// The tool.
        tool: String,
        /// The namespace.
        place: String,
        /// The line that it refused, if it named one.
        line: String,
        /// What it said.
        said: String,
    },
    /// A namespace could not be entered.
    #[error("cannot enter network namespace {ns}")]
    Enter {
        /// The namespace.
        ns: String,
        /// The cause.
        source: io::Error,
    },
    /// A kernel setting could not be written.
    #[error("cannot write {path} in {ns}")]
    Setting {
        /// The namespace.
        ns: String,
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The delay emulator could not be made.
    #[error("cannot make the emulator device {device} in {ns} (/dev/net/tun)")]
    Emulator {
        /// The namespace.
        ns: String,
        /// The device.
        device: String,
        /// The cause.
        source: io::Error,
    },
    /// Links did not come up.
    #[error("the links in {ns} did not come up within {} s", netns::SETTLE.as_secs())]
    Settle {
        /// The namespace.
        ns: String,
    },
    /// A socket of a measurement failed.
    #[error("flow measurement: cannot {doing}")]
    Flow {
        /// What was being done.
        doing: String,
        /// The cause.
        source: io::Error,
    },
}

/// A lab that is up; dropped, it is gone, with every process started in it.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    topology: Topology,
    emulators: Mutex<BTreeMap<(Name, Name), emulator::Emulator>>,
    keep: bool,
}

impl Lab {
    /// Makes the namespaces of a topology; their names begin with `prefix` and a dash. Needs root, or
    /// `CAP_SYS_ADMIN` and `CAP_NET_ADMIN` over a `/run` that can be written.
    pub fn build(topology: Topology, prefix: &str) -> Result<Self, Error> {
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(Error::Prefix(prefix.to_owned()));
        }
        if !list(&format!("{prefix}-")).is_empty() {
            return Err(Error::Exists(prefix.to_owned()));
        }
        let lab = Self { prefix: prefix.to_owned(), topology, emulators: Mutex::default(), keep: false };
        lab.make()?;
        Ok(lab)
    }

    /// A lab that another process has built from the same topology; dropped, it stays.
    #[must_use]
    pub fn attach(topology: Topology, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), topology, emulators: Mutex::default(), keep: true }
    }

    /// A prefix that no other lab of this machine has, of this process's number.
    #[must_use]
    pub fn unique_prefix(kind: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("{kind}{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Leaves the namespaces in place for others; the delay emulators end with this value.
    pub fn leave(mut self) {
        self.keep = true;
    }

    /// What was built.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The name of a node's namespace, for `ip netns exec`.
    #[must_use]
    pub fn namespace(&self, node: &Node) -> String {
        namespace(&self.prefix, node)
    }

    /// Runs a command in a node to its end.
    pub fn run_in(&self, node: &Node, mut command: Command) -> Result<Output, Error> {
        let tool = command.get_program().to_string_lossy().into_owned();
        netns::within(&self.namespace(node), move || command.output())?.map_err(|source| Error::Tool { tool, source })
    }

    /// Starts a command in a node. The lab's end ends it.
    pub fn spawn_in(&self, node: &Node, mut command: Command) -> Result<Child, Error> {
        let tool = command.get_program().to_string_lossy().into_owned();
        netns::within(&self.namespace(node), move || command.spawn())?.map_err(|source| Error::Tool { tool, source })
    }

    /// Runs a closure in a node, in a thread of its own.
    pub fn thread_in<T, F>(&self, node: &Node, work: F) -> JoinHandle<Result<T, Error>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let ns = self.namespace(node);
        thread::spawn(move || netns::enter(&ns).map(|()| work()))
    }

    fn make(&self) -> Result<(), Error> {
        let nodes = self.topology.nodes();
        let added: Vec<String> = nodes.iter().map(|node| format!("netns add {}", self.namespace(node))).collect();
        netns::ip_batch(None, &added)?;
        for node in &nodes {
            netns::sysctls(&self.namespace(node), &script::sysctls(node, self.proxies(node)))?;
        }
        let script = script::build(&self.topology, &|node| self.namespace(node));
        for (node, lines) in script.links.iter().chain(&script.rest) {
            netns::ip_batch(Some(&self.namespace(node)), lines)?;
        }
        for node in nodes.iter().filter(|node| self.proxies(node)) {
            netns::sysctls(&self.namespace(node), &script::CUSTOMER_SYSCTLS)?;
        }
        nodes.iter().try_for_each(|node| netns::settle(&self.namespace(node), None))
    }

    fn proxies(&self, node: &Node) -> bool {
        let Node::Provider(site, endpoint) = node else { return false };
        self.topology.uplink(site.as_str(), endpoint.as_str()).is_some_and(|link| !link.proxied.is_empty())
    }

    fn emulators(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Name, Name), emulator::Emulator>> {
        self.emulators.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.emulators().clear();
        if !self.keep {
            // Nobody is left to tell; `patronus lab down --all` removes what stays.
            let _ = netns::remove(&list(&format!("{}-", self.prefix)));
        }
    }
}

/// Removes the namespaces of a lab, ends the processes in them, and says which there were.
pub fn remove(prefix: &str) -> Result<Vec<String>, Error> {
    let names = list(&format!("{prefix}-"));
    netns::remove(&names)?;
    Ok(names)
}

/// The name of a node's namespace in a lab of this prefix.
#[must_use]
pub fn namespace(prefix: &str, node: &Node) -> String {
    format!("{prefix}-{node}")
}
