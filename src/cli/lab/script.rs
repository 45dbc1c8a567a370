//! What a demonstration can be given with: a failover rule, traffic that it steers, and where that goes.

use std::net::IpAddr;

use crate::{
    cli::{Exit, Failure},
    lab::{FlowSpec, Node},
    units::{Family, IfName, Name},
    validate::intent::{Action, Destination, Match, Rule, Site},
};

/// The protocol number of UDP.
const UDP: u8 = 17;

/// The parts of a site that the demonstration plays with.
#[derive(Debug, Clone)]
pub(super) struct Cast {
    pub(super) site: Name,
    pub(super) rule: Name,
    pub(super) primary: Name,
    pub(super) backup: Name,
    /// The endpoint that the primary leaves by.
    pub(super) endpoint: Name,
    /// And its interface.
    pub(super) interface: IfName,
    pub(super) policy: Name,
    pub(super) host: Node,
    pub(super) address: IpAddr,
    /// What the policy says about the traffic, for a person.
    pub(super) traffic: String,
    dscp: u8,
    port: u16,
}

impl Cast {
    /// Finds a policy that leads UDP from a LAN host to a rule with two paths to the internet.
    pub(super) fn of(site: &Site) -> Result<Self, Failure> {
        let found = site.policies.iter().find_map(|policy| {
            let Action::Failover(rule) = &policy.action else { return None };
            let rule = site.rules.get(rule).filter(|rule| suits(site, rule))?;
            plain(&policy.matches).then(|| Self::with(site, rule, &policy.name, &policy.matches)).flatten()
        });
        found.ok_or_else(|| {
            let need = "the demo needs a LAN, and a policy that sends UDP from any source to a failover rule with two \
                        paths to the internet that have probe targets";
            Failure::new(Exit::Error, format!("site {} cannot be shown: {need}", site.name))
        })
    }

    fn with(site: &Site, rule: &Rule, policy: &Name, matches: &Match) -> Option<Self> {
        let [primary, backup, ..] = rule.members.as_slice() else { return None };
        let path = site.paths.get(primary)?;
        let lan = site.lan.iter().find(|lan| !lan.prefixes.is_empty())?;
        let speaks = |a: &&IpAddr| lan.prefixes.iter().any(|p| Family::of_net(p) == Family::of(a));
        let dscp = matches.dscp.first().copied();
        let port = matches.destination_ports.first().map(|range| range.first);
        let said = [dscp.map(|d| format!("DSCP {d}")), port.map(|p| format!("port {p}"))];
        Some(Self {
            site: site.name.clone(),
            rule: rule.name.clone(),
            primary: primary.clone(),
            backup: backup.clone(),
            endpoint: path.from.clone(),
            interface: path.interface.clone(),
            policy: policy.clone(),
            host: Node::Host(site.name.clone(), lan.interface.clone()),
            address: *path.probe.targets.iter().find(speaks)?,
            traffic: ["UDP".to_owned()].into_iter().chain(said.into_iter().flatten()).collect::<Vec<_>>().join(", "),
            dscp: dscp.map_or(0, crate::units::Dscp::value),
            port: port.unwrap_or(0),
        })
    }

    /// The traffic: 1,000 packets a second.
    pub(super) fn flow(&self) -> FlowSpec {
        let spec = FlowSpec::new(self.host.clone(), self.address, super::demo::PPS);
        FlowSpec { dscp: self.dscp, port: self.port, ..spec }
    }
}

fn suits(site: &Site, rule: &Rule) -> bool {
    let internet = |name: &Name| site.paths.get(name).is_some_and(|path| path.to == Destination::Internet);
    rule.members.len() > 1 && rule.members.iter().all(internet)
}

/// Whether any host's UDP can match.
fn plain(matches: &Match) -> bool {
    matches.source.is_empty()
        && matches.destination.is_empty()
        && matches.source_ports.is_empty()
        && matches.in_interface.is_none()
        && (matches.protocols.is_empty() || matches.protocols.contains(&UDP))
}
