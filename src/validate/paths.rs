//! Paths: where they leave and lead, how they are probed, what counts as healthy.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    Report, error,
    fleet::{Fleet, View, with_suggestion},
    intent::{self, Destination, Endpoint, GatewaySpec, Method, Probe, TunnelSpec},
    overlay, tunnels, warning,
};
use crate::{
    config::{
        Object, scalars,
        schema::Kind,
        types::{PathSpec, ProbeSpec},
    },
    diag::Code,
    units::{Family, IfName, Name, Span as Length},
};

/// A silent failure that takes longer to notice is worth a warning.
const SLOW: Duration = Duration::from_secs(5);
/// Shortest interval between rounds.
const SHORTEST: Duration = Duration::from_millis(10);

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
) -> BTreeMap<Name, intent::Path> {
    let mut paths = BTreeMap::new();
    for (name, object) in &view.paths {
        let subject = Subject { fleet, view, object };
        if let Some(path) = path(&subject, endpoints, report) {
            paths.insert((*name).clone(), path);
        }
    }
    tunnels::collisions(fleet, view, &paths, report);
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
    let probe = probe(subject, &to, endpoint, report);
    let nat = match spec.nat {
        None | Some(scalars::Nat::None) => intent::Nat::None,
        Some(scalars::Nat::Masquerade) => intent::Nat::Masquerade,
        Some(scalars::Nat::Snat(address)) => intent::Nat::Snat(address.0),
    };
    let (name, from) = (subject.object.name.clone(), spec.from.clone());
    Some(intent::Path { name, from, to, interface, nat, mtu: spec.mtu, probe, health })
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
    health
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

fn probe(subject: &Subject<'_>, to: &Destination, endpoint: Option<&Endpoint>, report: &mut Report) -> Probe {
    let default = ProbeSpec::default();
    let spec = subject.object.spec.probe.as_ref().unwrap_or(&default);
    let targets = targets(subject, spec, to, endpoint, report);
    let interval = spec.interval.map_or(Duration::from_secs(1), Length::get);
    let probe = Probe {
        method: Method::Icmp,
        quorum: spec.quorum.unwrap_or(1),
        interval,
        timeout: spec.timeout.map_or(Duration::from_millis(800).min(interval * 4 / 5), Length::get),
        down_after: spec.down_after.unwrap_or(3),
        up_after: spec.up_after.or(spec.down_after).unwrap_or(3),
        window: spec.window.unwrap_or(20.max(spec.down_after.unwrap_or(3)).max(spec.up_after.unwrap_or(3))),
        size: spec.size.unwrap_or(56),
        targets,
    };
    timing(subject, &probe, report);
    let count = probe.targets.len();
    if count > 0 && probe.quorum as usize > count {
        let message = format!("{} answers are required of {count} targets", probe.quorum);
        let help = format!("write a `quorum` of at most {count}, or add targets");
        subject.advise(report, Code::Quorum, "/probe/quorum", message, &help);
    }
    probe
}

fn targets(
    subject: &Subject<'_>,
    spec: &ProbeSpec,
    to: &Destination,
    endpoint: Option<&Endpoint>,
    report: &mut Report,
) -> Vec<IpAddr> {
    let mut targets: Vec<IpAddr> = spec.targets.iter().map(|t| t.0).collect();
    if targets.is_empty() {
        targets.extend(far_address(to));
        if targets.is_empty() {
            unprobed(subject, report);
        }
        return targets;
    }
    if let ([one, rest @ ..], Destination::Internet) = (&targets[..], to)
        && rest.iter().all(|other| other == one)
    {
        let message = format!("{one} is the only target: when it is down, the path looks down");
        let at = subject.fleet.config.field(subject.object, "/probe/targets");
        report.add(warning(Code::SingleTarget, at, message).help("add one or two that do not depend on it"));
    }
    for (n, target) in targets.iter().enumerate() {
        target_place(subject, n, *target, (to, endpoint), report);
    }
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// The address of the far end inside a tunnel, IPv4 before IPv6.
fn far_address(to: &Destination) -> Option<IpAddr> {
    match to {
        Destination::Internet => None,
        Destination::Site { tunnel: TunnelSpec::Vxlan { inner_remote, .. }, .. } => inner_remote.first().copied(),
        Destination::Site { tunnel: TunnelSpec::Interface { gateways }, .. } => gateways.first().copied(),
    }
}

fn unprobed(subject: &Subject<'_>, report: &mut Report) {
    let name = &subject.object.name;
    if subject.object.spec.probe.is_some() {
        let help = "name two or three addresses: `targets: [1.1.1.1, 9.9.9.9, 8.8.8.8]`";
        subject.advise(report, Code::NoTarget, "/probe", format!("the probe of path `{name}` has no target"), help);
    } else {
        let message = format!("path `{name}` is not probed: only the loss of its carrier is noticed");
        let at = subject.fleet.config.name(subject.object);
        report.add(warning(Code::NotProbed, at, message).help("add `probe: {targets: [1.1.1.1, 9.9.9.9, 8.8.8.8]}`"));
    }
}

fn target_place(
    subject: &Subject<'_>,
    n: usize,
    target: IpAddr,
    (to, endpoint): (&Destination, Option<&Endpoint>),
    report: &mut Report,
) {
    let field = format!("/probe/targets/{n}");
    let prefixes = subject.view.object.spec.lan.iter().flat_map(|lan| &lan.prefixes);
    if let Some(prefix) = prefixes.map(|p| p.0).find(|p| p.contains(&target)) {
        let message = format!("the probe target {target} lies inside the LAN {prefix} of this site");
        subject.advise(report, Code::TargetInLan, &field, message, "probe an address that only this path leads to");
    }
    if let (Destination::Internet, Some(Endpoint { gateway: GatewaySpec::Fixed(list), .. })) = (to, endpoint)
        && !list.iter().any(|gateway| Family::of(gateway) == Family::of(&target))
    {
        let family = Family::of(&target);
        let message = format!("the target {target} is {family}, and the endpoint has no {family} gateway");
        let help = format!("delete the target, or give the endpoint an {family} gateway beside the other one");
        subject.advise(report, Code::FamilyConflict, &field, message, &help);
    }
    if target.is_unspecified() || target.is_loopback() || target.is_multicast() {
        let message = format!("the probe target {target} is not the address of another host");
        subject.advise(report, Code::WrongValue, &field, message, "name a host that answers ICMP echo");
    }
}

fn timing(subject: &Subject<'_>, probe: &Probe, report: &mut Report) {
    let shown = |d: Duration| Length::from_millis(u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    if probe.interval < SHORTEST {
        let message = format!("the interval {} is shorter than 10ms", shown(probe.interval));
        subject.advise(report, Code::ProbeTiming, "/probe/interval", message, "write `interval: 10ms` or more");
    } else if probe.timeout > probe.interval || probe.timeout.is_zero() {
        let message =
            format!("the timeout {} does not fit the interval {}", shown(probe.timeout), shown(probe.interval));
        let help = "make the timeout at most the interval, and more than the round-trip time";
        subject.advise(report, Code::ProbeTiming, "/probe/timeout", message, help);
    }
    let (most, field) =
        if probe.up_after > probe.down_after { (probe.up_after, "upAfter") } else { (probe.down_after, "downAfter") };
    if probe.window < most {
        let message = format!("a window of {} rounds cannot hold the {most} of `{field}`", probe.window);
        let help = format!("write `window: {most}` or more");
        subject.advise(report, Code::ProbeTiming, "/probe/window", message, &help);
    }
    let worst = detection(probe);
    if worst > SLOW && !probe.targets.is_empty() {
        let (name, seconds) = (&subject.object.name, worst.as_secs_f64());
        let message = format!("a silent failure of path `{name}` may go unnoticed for {seconds:.1} s");
        let field = if probe.interval > Duration::from_secs(1) { "/probe/interval" } else { "/probe/downAfter" };
        let help = format!(
            "worst case = interval {} x downAfter {} + timeout {}",
            shown(probe.interval),
            probe.down_after,
            shown(probe.timeout)
        );
        report.add(warning(Code::SlowDetection, subject.fleet.config.field(subject.object, field), message).help(help));
    }
}

/// Longest time from a silent failure to the decision: it begins right after a good round was sent.
#[must_use]
pub fn detection(probe: &Probe) -> Duration {
    probe.interval.saturating_mul(probe.down_after).saturating_add(probe.timeout)
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
