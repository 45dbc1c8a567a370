//! A change that cuts the router off undoes itself, whoever made it and whatever happens meanwhile; one that does not
//! stays.

mod daemon;
mod families;
mod person;
mod proposed;

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use patronus::lab::{Lab, Node};

use crate::support::daemon::{Daemon, Repository, name};

/// Two uplinks and a management network.
const SITE: &str = include_str!("confirm/site.yaml");
/// What the router has to reach: something on the internet, and the management station.
const REMOTE: &str = "9.9.9.9:4443";
const STATION_PORT: u16 = 2222;

/// A change that parses and applies, and what it does.
struct Change {
    what: &'static str,
    edits: &'static [(&'static str, &'static str)],
    /// Whether it shows in the kernel, or only in the probing.
    kernel: bool,
}

/// Each cuts the router off from its gateway, its management station, its remote, or all.
const CHANGES: [Change; 12] = [
    Change { what: "a wrong gateway", kernel: true, edits: &[("198.51.100.1}", "198.51.100.77}")] },
    Change {
        what: "wrong gateways everywhere",
        kernel: true,
        edits: &[("198.51.100.1}", "198.51.100.77}"), ("203.0.113.1}", "203.0.113.77}")],
    },
    Change {
        what: "interfaces swapped",
        kernel: true,
        edits: &[
            ("interface: wan0", "interface: w"),
            ("interface: wwan0", "interface: wan0"),
            ("interface: w,", "interface: wwan0,"),
        ],
    },
    Change {
        what: "translation to a foreign address",
        kernel: true,
        edits: &[("nat: masquerade", "nat: {snat: 192.0.2.99}")],
    },
    Change {
        what: "a source address that is not ours",
        kernel: false,
        edits: &[("gateway: 198.51.100.1}", "gateway: 198.51.100.1, address: 198.51.100.200}")],
    },
    Change {
        what: "a policy that drops the way to the remote",
        kernel: true,
        edits: &[(
            "    voice:",
            "    oops: {priority: 50, match: {protocol: tcp, destinationPorts: [4443]}, action: {drop: true}}\n    voice:",
        )],
    },
    Change {
        what: "a policy that rejects all TCP",
        kernel: true,
        edits: &[(
            "    voice:",
            "    oops: {priority: 50, match: {protocol: tcp}, action: {reject: true}}\n    voice:",
        )],
    },
    Change {
        what: "a policy that drops the management network",
        kernel: true,
        edits: &[(
            "    voice:",
            "    oops: {priority: 50, match: {destination: [10.9.0.0/24]}, action: {drop: true}}\n    voice:",
        )],
    },
    Change {
        what: "everything onto a dead path",
        kernel: true,
        edits: &[
            ("203.0.113.1}", "203.0.113.77}"),
            (
                "default: {priority: 1000, action: {failover: critical}}",
                "default: {priority: 1000, action: {path: lte}}",
            ),
        ],
    },
    Change {
        what: "a rule that is left with a dead path",
        kernel: true,
        edits: &[("203.0.113.1}", "203.0.113.77}"), ("primary: fiber, backups: [lte]", "primary: lte")],
    },
    Change {
        what: "probe targets that nobody has, and no path is a rejection",
        kernel: false,
        edits: &[
            ("[1.1.1.1, 9.9.9.9]", "[192.0.2.7, 192.0.2.8]"),
            ("backups: [lte]", "backups: [lte], noPath: reject"),
        ],
    },
    Change {
        what: "a quorum that cannot be met",
        kernel: false,
        edits: &[("targets: [1.1.1.1, 9.9.9.9]", "targets: [1.1.1.1, 192.0.2.7], quorum: 2")],
    },
];

impl Change {
    fn site(&self) -> String {
        self.edits.iter().fold(SITE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{}: no `{from}`", self.what);
            text.replace(from, to)
        })
    }
}

/// A change that hurts nobody.
fn harmless(number: usize) -> String {
    SITE.replace("dscp: [ef]", &format!("dscp: [ef, {}]", number % 40 + 1))
}

/// The lab, with something that answers where the router has to reach.
struct World {
    lab: Arc<Lab>,
    repository: Repository,
    services: Vec<(Arc<AtomicBool>, JoinHandle<()>)>,
    station: String,
}

impl World {
    fn new() -> Self {
        Self::of(SITE)
    }

    fn of(site: &str) -> Self {
        let repository = Repository::new(&[("site.yaml", site)]);
        let lab = repository.lab();
        let berlin = &lab.topology().sites[&name("berlin")];
        let station = berlin.lans.iter().find(|(lan, _)| lan.as_str() == "mgmt0").unwrap().1.host[0].addr();
        let host = Node::Host(name("berlin"), "mgmt0".parse().unwrap());
        let station = format!("{station}:{STATION_PORT}");
        let services = vec![answer(&lab, &Node::Internet, REMOTE), answer(&lab, &host, &station)];
        Self { lab, repository, services, station }
    }

    /// The remote goes away, as when its server is restarted.
    fn stop_remote(&mut self) {
        let (stop, service) = self.services.remove(0);
        stop.store(true, Ordering::Relaxed);
        service.join().unwrap();
    }

    fn start_remote(&mut self) {
        self.services.insert(0, answer(&self.lab, &Node::Internet, REMOTE));
    }

    fn settings(&self, timeout: &str) -> serde_json::Value {
        serde_json::json!({"confirm": {"timeout": timeout, "reach": [REMOTE, self.station]}})
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (stop, service) in self.services.drain(..) {
            stop.store(true, Ordering::Relaxed);
            let _ = service.join();
        }
    }
}

/// A service in a node that takes every connection.
fn answer(lab: &Lab, node: &Node, address: &str) -> (Arc<AtomicBool>, JoinHandle<()>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (told, address) = (Arc::clone(&stop), address.to_owned());
    let serve = move || {
        let listener = TcpListener::bind(&address).unwrap_or_else(|error| panic!("{address}: {error}"));
        listener.set_nonblocking(true).unwrap();
        while !told.load(Ordering::Relaxed) {
            drop(listener.accept());
            thread::sleep(Duration::from_millis(5));
        }
    };
    let thread = lab.thread_in(node, serve);
    (stop, thread::spawn(move || drop(thread.join())))
}

/// Everything of ours in the kernel that does not count generations.
fn ours(daemon: &Daemon) -> String {
    daemon.sh("nft -s list table inet patronus 2>/dev/null | grep -v 'comment \"generation' || true
         (ip -4 rule show; ip -6 rule show) | grep 'proto 157' | sort || true
         for table in $(seq 20001 20012); do ip -4 route show table $table proto 157 2>/dev/null || true; done")
}
