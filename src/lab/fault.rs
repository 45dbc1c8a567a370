//! Breaking an uplink in the ways that uplinks break.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::{
    Error, Lab, Node,
    emulator::{Emulator, Shape},
    netns, script,
    topology::Uplink,
};
use crate::units::{Name, Rate, Ratio};

/// What is wrong with an uplink. Faults of different kinds add up; `BlackHole`, `Loss` and `Bursts` replace each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The provider's end of the link goes down: the router loses carrier.
    Carrier,
    /// The router's interface is set down; the kernel drops its routes.
    InterfaceDown,
    /// The router's interface is gone.
    Removed,
    /// Everything beyond the provider is silent in both directions; link and gateway stay.
    BlackHole,
    /// This share of the packets towards the internet is lost, each on its own.
    Loss(Ratio),
    /// So many packets in a row of each so many towards the internet are lost.
    Bursts {
        /// Lost in a row.
        length: u32,
        /// Of so many.
        of: u32,
    },
    /// Packets towards the internet take this much longer, in order.
    Latency(Duration),
    /// As `Latency`, spread evenly over this much less and more, in order.
    Jitter {
        /// The middle.
        latency: Duration,
        /// How far from it.
        spread: Duration,
    },
    /// Traffic towards the internet is held to this rate; what waits for over 50 ms is dropped.
    Rate(Rate),
}

impl Lab {
    /// Breaks an uplink and returns the moment before; the effect follows within some milliseconds.
    pub fn fault(&self, site: &str, endpoint: &str, fault: Fault) -> Result<Instant, Error> {
        let at = self.place(site, endpoint)?;
        if matches!(fault, Fault::Latency(_) | Fault::Jitter { .. }) {
            self.emulator(&at)?;
        }
        let start = Instant::now();
        match fault {
            Fault::Carrier => self.ip(&at.provider, &[format!("link set {} down", script::CUSTOMER)]),
            Fault::InterfaceDown => self.ip(&at.router, &[format!("link set {} down", at.link.interface)]),
            Fault::Removed => self.ip(&at.router, &[format!("link del {}", at.link.interface)]),
            Fault::BlackHole => self.filter(&at, "drop"),
            Fault::Loss(ratio) => self.filter(&at, &loss(ratio)),
            Fault::Bursts { length, of } => {
                let customer = script::CUSTOMER;
                self.filter(&at, &format!("iifname \"{customer}\" numgen inc mod {of} < {length} drop"))
            }
            Fault::Latency(delay) => {
                self.shape(&at, Shape::new(delay, Duration::ZERO));
                Ok(())
            }
            Fault::Jitter { latency, spread } => {
                self.shape(&at, Shape::new(latency, spread));
                Ok(())
            }
            Fault::Rate(rate) => self.limit(&at, Some(rate)),
        }?;
        Ok(start)
    }

    /// Mends everything at an uplink, as the provider and the router's DHCP client or boot script would, and
    /// returns the moment before.
    pub fn clear(&self, site: &str, endpoint: &str) -> Result<Instant, Error> {
        let at = self.place(site, endpoint)?;
        let start = Instant::now();
        self.filter(&at, "")?;
        self.limit(&at, None)?;
        self.shape(&at, Shape::default());
        let router = self.namespace(&at.router);
        if netns::within(&router, || nix::net::if_::if_nametoindex(at.link.interface.as_str()).is_err())? {
            self.ip(&at.router, &[script::router_pair(at.link, &self.namespace(&at.provider))])?;
        }
        self.ip(&at.provider, &script::customer_lines(at.link))?;
        self.ip(&at.router, &script::router_lines(at.link))?;
        netns::settle(&self.namespace(&at.provider), Some(script::CUSTOMER))?;
        netns::settle(&router, Some(at.link.interface.as_str()))?;
        Ok(start)
    }

    fn place(&self, site: &str, endpoint: &str) -> Result<Place<'_>, Error> {
        let missing = || Error::NoEndpoint { site: site.to_owned(), endpoint: endpoint.to_owned() };
        let found = self.topology.uplinks().find(|(s, e, _)| s.as_str() == site && e.as_str() == endpoint);
        let (site, endpoint, link) = found.ok_or_else(missing)?;
        Ok(Place {
            key: (site.clone(), endpoint.clone()),
            router: Node::Router(site.clone()),
            provider: Node::Provider(site.clone(), endpoint.clone()),
            link,
        })
    }

    fn ip(&self, node: &Node, lines: &[String]) -> Result<(), Error> {
        netns::ip_batch(Some(&self.namespace(node)), lines)
    }

    /// Puts one verdict into the provider's forwarding, or none.
    fn filter(&self, at: &Place<'_>, verdict: &str) -> Result<(), Error> {
        let rule = if verdict.is_empty() { String::new() } else { format!("add rule inet lab fault {verdict}\n") };
        let text = format!(
            "add table inet lab\nadd chain inet lab fault {{ type filter hook forward priority 0; }}\n\
             flush chain inet lab fault\n{rule}"
        );
        let ns = self.namespace(&at.provider);
        netns::within(&ns, || netns::feed(Command::new("nft").args(["-f", "-"]), &text, &ns))?
    }

    fn limit(&self, at: &Place<'_>, rate: Option<Rate>) -> Result<(), Error> {
        let ns = self.namespace(&at.provider);
        let devices = [script::UPSTREAM, script::DELAYED];
        netns::within(&ns, || {
            for device in devices.into_iter().filter(|d| nix::net::if_::if_nametoindex(*d).is_ok()) {
                let mut tc = Command::new("tc");
                tc.args(["qdisc", if rate.is_some() { "replace" } else { "del" }, "dev", device, "root"]);
                if let Some(rate) = rate {
                    tc.args(["tbf", "rate", &rate.to_string().to_lowercase(), "burst", "16kb", "latency", "50ms"]);
                }
                let done = netns::feed(&mut tc, "", &ns);
                // Deleting what is not there is the wanted state.
                if rate.is_some() {
                    done?;
                }
            }
            Ok(())
        })?
    }

    fn shape(&self, at: &Place<'_>, shape: Shape) {
        if let Some(emulator) = self.emulators().get(&at.key) {
            emulator.set(shape);
        }
    }

    /// Puts an emulator with no delay between the provider and the internet, if there is none yet. Packets on the
    /// direct link arrive still: the routes are replaced, not removed.
    fn emulator(&self, at: &Place<'_>) -> Result<(), Error> {
        let mut emulators = self.emulators();
        if emulators.contains_key(&at.key) {
            return Ok(());
        }
        let near = (self.namespace(&at.provider), script::DELAYED.to_owned());
        let far = (self.namespace(&Node::Internet), script::emulator_side(at.link));
        let emulator = Emulator::start(&near, &far)?;
        self.ip(&at.provider, &script::provider_through_emulator(at.link))?;
        self.ip(&Node::Internet, &script::internet_through_emulator(at.link))?;
        emulators.insert(at.key.clone(), emulator);
        Ok(())
    }
}

struct Place<'a> {
    key: (Name, Name),
    router: Node,
    provider: Node,
    link: &'a Uplink,
}

fn loss(ratio: Ratio) -> String {
    format!("iifname \"{}\" numgen random mod 1000000 < {} drop", script::CUSTOMER, ratio.ppm())
}
