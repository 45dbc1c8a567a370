//! What surrounds our routes, rules and chains, and the sysctls that decide over them.

use super::{Facts, Finding, either, known, seen};
use crate::{
    drift::{self, Drifted, Mode},
    foreign::{self, Kind, Override},
    plan::text,
    units::{IfName, plural},
    validate::intent::{GatewaySpec, Site},
};

/// The part of the table of connections that may be in use.
const CONNTRACK_PERCENT: u64 = 80;
/// A small table of connections fills in seconds on a busy router.
const CONNTRACK_SMALL: u64 = 16_384;

fn overriding(facts: &Facts, kinds: &[Kind], fine: &str) -> Finding {
    either(seen(facts).map(|kernel| {
        let all = foreign::overrides(&kernel.around, &kernel.observed.intruders, &facts.settings.ranges);
        let finding =
            |o: Override| if o.certain { Finding::fail(o.what, o.remedy) } else { Finding::warn(o.what, o.remedy) };
        Finding::worst(all.into_iter().filter(|o| kinds.contains(&o.kind)).map(finding), fine)
    }))
}

pub(super) fn rules_ahead(facts: &Facts) -> Finding {
    overriding(facts, &[Kind::RuleAhead], "no rule of others stands before ours")
}

pub(super) fn marks(facts: &Facts) -> Finding {
    overriding(facts, &[Kind::Marks, Kind::Remark], "nobody else uses our mark bits")
}

pub(super) fn ranges(facts: &Facts) -> Finding {
    overriding(facts, &[Kind::Ranges], "nobody else is in our tables and priorities")
}

pub(super) fn later_drops(facts: &Facts) -> Finding {
    overriding(facts, &[Kind::Drop], "no chain of others drops forwarded traffic")
}

pub(super) fn other_nat(facts: &Facts) -> Finding {
    overriding(facts, &[Kind::Nat], "no chain of others translates addresses")
}

pub(super) fn flowtables(facts: &Facts) -> Finding {
    overriding(facts, &[Kind::Flowtable], "there are no flowtables")
}

/// Objects that are named; `patronus drift` has all.
const NAMED: usize = 3;

/// What a daemon repairs is as it was before anybody reads this: what is left is only reported or fought over, or no
/// daemon runs. What keeps a path from working comes first.
pub(super) fn objects(facts: &Facts) -> Finding {
    either(seen(facts).map(|kernel| {
        let Some(applied) = &facts.applied else { return Finding::skipped("nothing was applied since the boot") };
        let is_seen = |d: &Drifted| facts.settings.drift.of(&d.key) != Mode::Ignore;
        let found = drift::drifted(applied, applied, &kernel.observed.state).into_iter().filter(is_seen);
        let ranges = &facts.settings.ranges;
        let barred = |d: &Drifted| drift::barred(d, applied, &kernel.observed.allocations.targets, ranges);
        let (first, rest): (Vec<Drifted>, Vec<Drifted>) = found.partition(|d| barred(d).is_some());
        let count = first.len() + rest.len();
        let says = |d: &Drifted| {
            let path = barred(d).map(|path| format!("path {path} has no way of its own: ")).unwrap_or_default();
            format!("{path}{} {}", text::key_text(&d.key), d.how)
        };
        let finding = |d: &Drifted| {
            let command = text::command(&d.key, applied.objects.get(&d.key)?, ranges.protocol)?;
            barred(d).map(|_| Finding::fail(says(d), format!("`{command}`")))
        };
        let other = |d: &Drifted| Finding::warn(says(d), "`patronus drift` shows all; a new revision puts them right");
        let named = first.iter().chain(&rest).take(NAMED).map(|d| finding(d).unwrap_or_else(|| other(d)));
        let more = count.checked_sub(NAMED).filter(|more| *more > 0);
        let more = more.map(|more| Finding::warn(plural(more, "more object"), "`patronus drift` shows all"));
        Finding::worst(named.chain(more), "our objects are as they were applied")
    }))
}

/// Numbers and names in `rt_protos` and its directory, a later file over an earlier one.
pub(super) fn protocol_number(facts: &Facts) -> Finding {
    let number = facts.settings.ranges.protocol;
    let files =
        ["/usr/share/iproute2", "/usr/lib/iproute2", "/etc/iproute2"].into_iter().flat_map(|d| facts.texts_below(d));
    let files = files.filter(|(path, _)| path.to_string_lossy().contains("rt_protos"));
    let lines = files.flat_map(|(_, text)| text.lines()).filter(|line| !line.trim_start().starts_with('#'));
    let words = lines.map(str::split_whitespace).filter_map(|mut w| Some((w.next()?.parse::<u8>().ok()?, w.next()?)));
    match words.filter(|(n, _)| *n == number).last() {
        Some((_, "patronus")) => Finding::ok(format!("protocol number {number} is called patronus")),
        Some((_, other)) => Finding::fail(
            format!(
                "protocol number {number} is called {other} on this machine: both would delete each other's routes"
            ),
            "give Patronus another `ranges.protocol`",
        ),
        None => Finding::warn(
            format!("protocol number {number} has no name"),
            format!(
                "`echo '{number} patronus' > /etc/iproute2/rt_protos.d/patronus.conf`: `ip route` then says whose routes are whose"
            ),
        ),
    }
}

fn uplinks(site: &Site) -> Vec<&IfName> {
    let mut all: Vec<&IfName> = site.endpoints.values().map(|endpoint| &endpoint.interface).collect();
    all.sort();
    all.dedup();
    all
}

/// One finding for each uplink whose sysctl is there and not as it should be.
fn each_uplink(
    facts: &Facts,
    name: &str,
    good: impl Fn(&str) -> bool,
    finding: impl Fn(&IfName, &str) -> Finding,
    fine: &str,
) -> Finding {
    either(known(facts).map(|site| {
        let value = |interface: &&IfName| facts.sysctl(&format!("ipv4/conf/{interface}/{name}"));
        let there: Vec<_> = uplinks(site).into_iter().filter_map(|i| Some((i, value(&i)?))).collect();
        if there.is_empty() {
            return Finding::skipped("none of the uplinks is there, see interfaces");
        }
        let bad = there.into_iter().filter(|(_, v)| !good(v));
        Finding::worst(bad.map(|(interface, v)| finding(interface, v)), fine)
    }))
}

/// The kernel takes the higher value of `all` and of the interface: 1 on `all` makes 0 strict, and leaves 2 loose.
pub(super) fn rp_filter(facts: &Facts) -> Finding {
    let all = facts.sysctl("ipv4/conf/all/rp_filter").unwrap_or("0");
    let finding = |interface: &IfName, own: &str| {
        let says = format!(
            "rp_filter of {interface} is strict ({own}, and {all} on `all`): answers that come in by it are dropped"
        );
        Finding::warn(says, "`apply` sets it to 2; if something sets it back, look for it in /etc/sysctl.d")
    };
    let fine = "reverse-path filtering of the uplinks is loose or off";
    each_uplink(facts, "rp_filter", |own| own.max(all) != "1", finding, fine)
}

pub(super) fn forwarding(facts: &Facts) -> Finding {
    let one = |path: &str| facts.sysctl(path);
    match (one("ipv4/ip_forward"), one("ipv6/conf/all/forwarding")) {
        (Some("1"), Some("1") | None) => Finding::ok("the router forwards"),
        _ => Finding::warn(
            "forwarding is off",
            "`apply` switches it on; let no file in /etc/sysctl.d switch it off again",
        ),
    }
}

pub(super) fn src_valid_mark(facts: &Facts) -> Finding {
    let finding = |interface: &IfName, _: &str| {
        Finding::warn(
            format!("src_valid_mark of {interface} is off"),
            "`apply` sets it; let no file in /etc/sysctl.d set it back",
        )
    };
    each_uplink(facts, "src_valid_mark", |v| v == "1", finding, "reverse-path filtering looks at marks")
}

pub(super) fn ignore_linkdown(facts: &Facts) -> Finding {
    let finding = |interface: &IfName, _: &str| {
        Finding::warn(
            format!(
                "ignore_routes_with_linkdown of {interface} is off: a lost carrier is then noticed by the daemon alone"
            ),
            "`apply` sets it; let no file in /etc/sysctl.d set it back",
        )
    };
    each_uplink(
        facts,
        "ignore_routes_with_linkdown",
        |v| v == "1",
        finding,
        "the kernel passes over links without carrier",
    )
}

pub(super) fn accept_ra(facts: &Facts) -> Finding {
    either(known(facts).map(|site| {
        let auto = site.endpoints.values().filter(|e| e.gateway == GatewaySpec::Auto).map(|e| &e.interface);
        let bad = auto.filter(|i| facts.sysctl(&format!("ipv6/conf/{i}/accept_ra")) == Some("1"));
        let finding = |interface: &IfName| {
            Finding::warn(
                format!("accept_ra of {interface} is 1: a router that forwards ignores advertisements, and IPv6 has no gateway"),
                "`apply` sets it to 2; systemd-networkd (`IPv6AcceptRA=`) takes them by itself and is fine",
            )
        };
        Finding::worst(bad.map(finding), "router advertisements are taken where the gateway comes from them")
    }))
}

pub(super) fn conntrack_table(facts: &Facts) -> Finding {
    let number = |path: &str| facts.sysctl(path)?.parse::<u64>().ok();
    let (Some(most), Some(used)) = (number("netfilter/nf_conntrack_max"), number("netfilter/nf_conntrack_count"))
    else {
        return Finding::skipped("connection tracking is not loaded yet");
    };
    let remedy = format!("`sysctl net.netfilter.nf_conntrack_max={}`, also in /etc/sysctl.d", (most * 4).max(262_144));
    if used * 100 >= most * CONNTRACK_PERCENT {
        return Finding::fail(format!("{used} of {most} connections: new flows are dropped when it is full"), remedy);
    }
    if most < CONNTRACK_SMALL {
        return Finding::warn(format!("room for {most} connections only"), remedy);
    }
    Finding::ok(format!("{used} of {most} connections"))
}
