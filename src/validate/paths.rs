//! Paths: where they leave and lead, how they are probed, what counts as healthy.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    Report, error,
    fleet::{Fleet, View, with_suggestion},
    intent::{self, Destination, Endpoint, GatewaySpec, TunnelSpec},
    overlay, probe, tunnels,
};
use crate::{
    config::{Object, scalars, schema::Kind, types::PathSpec},
    diag::Code,
    units::{Family, IfName, Name, pack},
};

/// A path under examination.
pub struct Subject<'a> {
    pub fleet: &'a Fleet<'a>,
    pub view: &'a View<'a>,
    pub object: &'a Object<PathSpec>,
}

impl Subject<'_> {
    /// Reports an error at a field.
    pub fn error(&self, report: &mut Report, code: Code, field: &str, message: impl Into<String>) {
        report.add(error(code, self.fleet.config.field(self.object, field), message));
    }

    /// Reports an error at a field, with advice.
    pub fn advise(&self, report: &mut Report, code: Code, field: &str, message: impl Into<String>, help: &str) {
        report.add(error(code, self.fleet.config.field(self.object, field), message).help(help));
    }
}

/// Checks all paths of a site and builds those that are sound.
pub fn check(
    fleet: &Fleet<'_>,
    view: &View<'_>,
    endpoints: &BTreeMap<Name, Endpoint>,
    report: &mut Report,
) -> BTreeMap<Name, Arc<intent::Path>> {
    let mut paths = BTreeMap::new();
    for (name, object) in &view.paths {
        let subject = Subject { fleet, view, object };
        if let Some(path) = path(&subject, endpoints, report) {
            paths.insert((*name).clone(), Arc::new(path));
        }
    }
    tunnels::collisions(fleet, view, &paths, report);
    pack(&mut paths);
    paths
}

fn path(subject: &Subject<'_>, endpoints: &BTreeMap<Name, Endpoint>, report: &mut Report) -> Option<intent::Path> {
    let spec = &subject.object.spec;
    let endpoint = endpoints.get(&spec.from);
    if endpoint.is_none() && !subject.fleet.config.is_broken(Kind::Site, subject.view.name.as_str()) {
        let message = format!("site `{}` has no endpoint `{}`", subject.view.name, spec.from);
        let found = error(Code::Dangling, subject.fleet.config.field(subject.object, "/from"), message);
        report.add(with_suggestion(found, spec.from.as_str(), endpoints.keys()));
    }
    let health = health(subject, report);
    let destination = endpoint.and_then(|endpoint| destination(subject, endpoint, report));
    let (interface, to) = destination?;
    let probe = probe::check(subject, &to, endpoint, report);
    let nat = match spec.nat {
        None | Some(scalars::Nat::None) => intent::Nat::None,
        Some(scalars::Nat::Masquerade) => intent::Nat::Masquerade,
        Some(scalars::Nat::Snat(address)) => intent::Nat::Snat(address.0),
    };
    let (name, from) = (subject.object.name.clone(), spec.from.clone());
    Some(intent::Path { name, from, to, interface, nat, mtu: spec.mtu, probe: Arc::new(probe), health })
}

fn destination(subject: &Subject<'_>, endpoint: &Endpoint, report: &mut Report) -> Option<(IfName, Destination)> {
    let spec = &subject.object.spec;
    match (&spec.to, &spec.tunnel) {
        (scalars::To::Internet, None) => Some((endpoint.interface.clone(), Destination::Internet)),
        (scalars::To::Internet, Some(_)) => {
            let help = "lead the path to `site/endpoint`, or delete `tunnel`";
            subject.advise(report, Code::Combination, "/tunnel", "a path to the internet has no tunnel", help);
            None
        }
        (scalars::To::Endpoint(site, _), _) if site == subject.view.name => {
            subject.advise(
                report,
                Code::Combination,
                "/to",
                "the path leads to its own site",
                "name an endpoint of another site",
            );
            None
        }
        (scalars::To::Endpoint(..), None) => {
            let help = "give it one: `tunnel: {type: vxlan, id: 1001}`, or `tunnel: {interface: wg0}`";
            subject.advise(report, Code::Combination, "/to", "a path to another site needs a tunnel", help);
            None
        }
        (scalars::To::Endpoint(site, far), Some(tunnel)) => {
            tunnels::far_end(subject, site, far, report)?;
            let (interface, tunnel) = tunnels::check(subject, tunnel, endpoint, (site, far), report)?;
            Some((interface, Destination::Site { site: site.clone(), endpoint: far.clone(), tunnel }))
        }
    }
}

fn health(subject: &Subject<'_>, report: &mut Report) -> intent::Health {
    let mut base = super::default_health();
    if let Some(class) = &subject.object.spec.sla_class {
        match subject.fleet.sla.get(class) {
            Some(health) => base = *health,
            None => report.extend(sla_missing(subject.fleet, class, subject.object)),
        }
    }
    let health = subject.object.spec.health.map_or(base, |own| overlay(own, base));
    if health.recover.is_some_and(|r| r.latency > health.latency || r.jitter > health.jitter || r.loss > health.loss) {
        let message = "a recovery band lies above its threshold: the path would be good and bad at once".to_owned();
        let field = if subject.object.spec.health.is_some_and(|h| h.recover.is_some()) {
            "/health/recover"
        } else {
            "/slaClass"
        };
        subject.advise(report, Code::Thresholds, field, message, "write values at or below the thresholds");
    }
    nothing_is_within(subject, &health, report);
    health
}

/// Every answer takes time, and no two the same: a threshold of 0 means a path that is always down.
fn nothing_is_within(subject: &Subject<'_>, health: &intent::Health, report: &mut Report) {
    let own = subject.object.spec.health;
    for (figure, limit, written, usual) in [
        ("latency", health.latency, own.is_some_and(|h| h.latency.is_some()), "150ms"),
        ("jitter", health.jitter, own.is_some_and(|h| h.jitter.is_some()), "30ms"),
    ] {
        if limit.is_zero() {
            let message = format!("nothing is within a {figure} of 0: the path would always be down");
            let field = if written { format!("/health/{figure}") } else { "/slaClass".to_owned() };
            subject.advise(
                report,
                Code::Thresholds,
                &field,
                message,
                &format!("write `{figure}: {usual}`, or delete it"),
            );
        }
    }
}

/// The finding that an SLA class does not exist.
pub fn sla_missing<T>(fleet: &Fleet<'_>, class: &Name, object: &Object<T>) -> Option<crate::diag::Diagnostic> {
    if fleet.config.is_broken(Kind::SlaClass, class.as_str()) {
        return None;
    }
    let at = fleet.config.field(object, "/slaClass");
    let found = error(Code::Dangling, at, format!("there is no SLA class `{class}`"));
    Some(with_suggestion(found, class.as_str(), fleet.sla.keys()))
}

/// The families that a path can carry, as far as the configuration tells.
pub fn families(path: &intent::Path, endpoints: &BTreeMap<Name, Endpoint>) -> Vec<Family> {
    let of = |addresses: &[IpAddr]| addresses.iter().map(Family::of).collect();
    match &path.to {
        Destination::Internet => match endpoints.get(&path.from).map(|e| &e.gateway) {
            Some(GatewaySpec::Fixed(list)) => of(list),
            _ => Family::ALL.to_vec(),
        },
        Destination::Site { tunnel: TunnelSpec::Vxlan { inner_remote, .. }, .. } => of(inner_remote),
        Destination::Site { tunnel: TunnelSpec::Interface { gateways }, .. } if gateways.is_empty() => {
            Family::ALL.to_vec()
        }
        Destination::Site { tunnel: TunnelSpec::Interface { gateways }, .. } => of(gateways),
    }
}
