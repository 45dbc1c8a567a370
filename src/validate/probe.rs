//! How a path is probed: which fields its method uses, where the targets are, whether the timing adds up.

use std::{net::IpAddr, time::Duration};

use super::{
    Report,
    intent::{Destination, Endpoint, GatewaySpec, Method, Probe, Question, TunnelSpec, Web},
    paths::Subject,
    warning,
};
use crate::{
    config::probe::{MethodName, ProbeSpec, RecordType, WhenBusy},
    diag::Code,
    units::{Family, Span as Length, plural},
};

/// A silent failure that takes longer to notice is worth a warning.
const SLOW: Duration = Duration::from_secs(5);
/// Shortest interval between rounds.
const SHORTEST: Duration = Duration::from_millis(10);
/// Default interval where volume costs money.
const METERED: Duration = Duration::from_secs(5);

pub(super) fn check(
    subject: &Subject<'_>,
    to: &Destination,
    endpoint: Option<&Endpoint>,
    report: &mut Report,
) -> Probe {
    let default = ProbeSpec::default();
    let spec = subject.object.spec.probe.as_ref().unwrap_or(&default);
    let method = method(subject, spec, to, report);
    let targets = match method {
        Method::Gateway => gateways(endpoint),
        _ => targets(subject, spec, to, endpoint, report),
    };
    let usual = if endpoint.is_some_and(|e| e.metered) { METERED } else { Duration::from_secs(1) };
    let interval = spec.interval.map_or(usual, Length::get);
    let probe = Probe {
        method,
        dscp: spec.dscp.map(|d| d.0),
        quorum: spec.quorum.unwrap_or(1),
        interval,
        timeout: spec.timeout.map_or(Duration::from_millis(800).min(interval * 4 / 5), Length::get),
        down_after: spec.down_after.unwrap_or(3),
        up_after: spec.up_after.or(spec.down_after).unwrap_or(3),
        window: spec.window.unwrap_or(20.max(spec.down_after.unwrap_or(3)).max(spec.up_after.unwrap_or(3))),
        size: spec.size.unwrap_or(56),
        targets,
        busy_at: spec.busy_at.unwrap_or(Probe::default().busy_at),
        leave_when_busy: spec.when_busy == Some(WhenBusy::Leave),
    };
    for (field, written) in [("busyAt", spec.busy_at.is_some()), ("whenBusy", spec.when_busy.is_some())] {
        if written && endpoint.is_some_and(|e| e.down.is_none() && e.up.is_none()) {
            let message = format!("`{field}` needs to know how fast the endpoint is");
            let help = "add the endpoint's `bandwidth: {down: 50Mbit, up: 10Mbit}`, or delete this";
            subject.advise(report, Code::Combination, &format!("/probe/{field}"), message, help);
        }
    }
    timing(subject, &probe, report);
    let count = probe.targets.len();
    if count > 0 && probe.quorum as usize > count {
        let message = format!("{} answers are required of {}", probe.quorum, plural(count, "target"));
        let help = format!("write a `quorum` of at most {count}, or add targets");
        subject.advise(report, Code::Quorum, "/probe/quorum", message, &help);
    }
    probe
}

fn method(subject: &Subject<'_>, spec: &ProbeSpec, to: &Destination, report: &mut Report) -> Method {
    let name = spec.method.unwrap_or_default();
    unused(subject, spec, name, report);
    let port = |usual| spec.port.unwrap_or(usual);
    match name {
        MethodName::Icmp => Method::Icmp,
        MethodName::Udp => Method::Udp { port: port(7) },
        MethodName::Stamp => Method::Stamp { port: port(862) },
        MethodName::Tcp => Method::Tcp { port: port(443) },
        MethodName::Http => {
            if spec.expect.is_none() && *to == Destination::Internet {
                let at = subject.fleet.config.field(subject.object, "/probe/method");
                let message = "any answer with a status from 200 to 299 counts, also that of a login page";
                let help = "say what the right answer is: `expect: {status: 204}`, or `expect: {body: \"a text\"}`";
                report.add(warning(Code::AnyAnswer, at, message).help(help));
            }
            Method::Http(web(spec, false, port(80)))
        }
        MethodName::Https => Method::Http(web(spec, true, port(443))),
        MethodName::Dns => question(subject, spec, port(53), report),
        MethodName::Gateway => {
            if *to != Destination::Internet {
                let help = "probe the far end of the tunnel: `method: icmp`, or `method: stamp`";
                let message = "a tunnel has no gateway to probe";
                subject.advise(report, Code::Combination, "/probe/method", message, help);
            }
            Method::Gateway
        }
    }
}

/// Fields that are written and that the method has no use for.
fn unused(subject: &Subject<'_>, spec: &ProbeSpec, method: MethodName, report: &mut Report) {
    use MethodName::{Dns, Http, Https, Icmp, Stamp, Tcp, Udp};
    let fields: [(&str, bool, &[MethodName]); 9] = [
        ("targets", !spec.targets.is_empty(), &[Icmp, Udp, Stamp, Tcp, Http, Https, Dns]),
        ("port", spec.port.is_some(), &[Udp, Stamp, Tcp, Http, Https, Dns]),
        ("name", spec.name.is_some(), &[Http, Https, Dns]),
        ("recordType", spec.record_type.is_some(), &[Dns]),
        ("path", spec.path.is_some(), &[Http, Https]),
        ("expect", spec.expect.is_some(), &[Http, Https]),
        ("dscp", spec.dscp.is_some(), &[Icmp, Udp, Stamp, Tcp, Http, Https, Dns]),
        ("quorum", spec.quorum.is_some(), &[Icmp, Udp, Stamp, Tcp, Http, Https, Dns]),
        ("size", spec.size.is_some(), &[Icmp, Udp]),
    ];
    for (field, written, users) in fields {
        if written && !users.contains(&method) {
            let message = format!("the probe method `{}` does not use `{field}`", text(method));
            let words: Vec<String> = users.iter().map(|m| format!("`{}`", text(*m))).collect();
            let help = format!("delete it, or choose a method that does: {}", words.join(", "));
            subject.advise(report, Code::Combination, &format!("/probe/{field}"), message, &help);
        }
    }
}

const fn text(method: MethodName) -> &'static str {
    match method {
        MethodName::Icmp => "icmp",
        MethodName::Udp => "udp",
        MethodName::Stamp => "stamp",
        MethodName::Tcp => "tcp",
        MethodName::Http => "http",
        MethodName::Https => "https",
        MethodName::Dns => "dns",
        MethodName::Gateway => "gateway",
    }
}

fn web(spec: &ProbeSpec, tls: bool, port: u16) -> Web {
    let expect = spec.expect.clone().unwrap_or_default();
    Web {
        tls,
        port,
        name: spec.name.as_ref().map(ToString::to_string),
        path: spec.path.clone().unwrap_or_else(|| "/".into()),
        status: expect.status,
        body: expect.body,
    }
}

fn question(subject: &Subject<'_>, spec: &ProbeSpec, port: u16, report: &mut Report) -> Method {
    if spec.name.is_none() {
        let help = "add one that the server surely knows: `name: example.org`";
        subject.advise(report, Code::MissingField, "/probe", "a `dns` probe needs the `name` that it asks for", help);
    }
    let record = match spec.record_type.unwrap_or_default() {
        RecordType::A => "A",
        RecordType::Aaaa => "AAAA",
        RecordType::Cname => "CNAME",
        RecordType::Mx => "MX",
        RecordType::Ns => "NS",
        RecordType::Ptr => "PTR",
        RecordType::Soa => "SOA",
        RecordType::Srv => "SRV",
        RecordType::Txt => "TXT",
    };
    let name = spec.name.as_ref().map(ToString::to_string).unwrap_or_default();
    Method::Dns(Question { port, name, record: record.into() })
}

/// What stands for the gateway: its addresses, or one that the kernel has to tell.
fn gateways(endpoint: Option<&Endpoint>) -> Vec<IpAddr> {
    match endpoint.map(|e| &e.gateway) {
        Some(GatewaySpec::Fixed(list)) => list.clone(),
        Some(GatewaySpec::Auto) | None => vec![IpAddr::from([0, 0, 0, 0])],
    }
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
        subject.advise(report, Code::WrongValue, &field, message, "name a host that answers probes");
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
        let message = format!("a window of {} cannot hold the {most} of `{field}`", plural(probe.window, "round"));
        let help = format!("write `window: {most}` or more");
        subject.advise(report, Code::ProbeTiming, "/probe/window", message, &help);
    }
    let worst = probe.detection_time();
    if worst > SLOW && !probe.targets.is_empty() {
        let (name, seconds) = (&subject.object.name, worst.as_secs_f64());
        let message = format!("a silent failure of path `{name}` may go unnoticed for {seconds:.1} s");
        let field = if probe.interval > Duration::from_secs(1) { "/probe/interval" } else { "/probe/downAfter" };
        let help = format!(
            "worst case of interval {}, {} lost, timeout {}; while a round is lost the next ones follow after {}",
            shown(probe.interval),
            plural(probe.down_after, "round"),
            shown(probe.timeout),
            shown(probe.doubt_interval())
        );
        report.add(warning(Code::SlowDetection, subject.fleet.config.field(subject.object, field), message).help(help));
    }
}
