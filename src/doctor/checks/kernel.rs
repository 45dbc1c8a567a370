//! What the kernel and its tools can do.

use super::{Facts, Finding, Verdict, either, seen};
use crate::{
    doctor::facts::Trial,
    validate::intent::{Destination, TunnelSpec},
};

/// The oldest `nft` that everything was tried with.
const NFT: (u32, u32, u32) = (1, 0, 6);
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

const fn has(facts: &Facts, capability: u32) -> bool {
    facts.capabilities & (1 << capability) != 0
}

pub(super) fn access(facts: &Facts) -> Finding {
    match &facts.kernel {
        Ok(_) => Finding::ok("routes, rules, links and nftables can be read"),
        Err(why) => Finding::fail(why.clone(), "run `patronus doctor` as root, on Linux 4.20 or later with nftables"),
    }
}

fn tried(trial: &Trial, fine: &str, remedy: &str) -> Finding {
    match trial {
        Trial::Works => Finding::ok(fine),
        Trial::Fails(why) => Finding::fail(why.clone(), remedy),
        Trial::Untried => Finding::skipped("it could not be tried: that needs root, or user namespaces"),
    }
}

pub(super) fn ruleset(facts: &Facts) -> Finding {
    let remedy = "the kernel needs nf_tables with inet, nat, masq, ct, numgen and sets: `modprobe nf_tables nft_ct nft_masq nft_nat`";
    either(seen(facts).map(|kernel| tried(&kernel.trials.ruleset, "the ruleset can be loaded", remedy)))
}

pub(super) fn connection_mark(facts: &Facts) -> Finding {
    let remedy = "the kernel needs CONFIG_NF_CONNTRACK_MARK";
    either(seen(facts).map(|kernel| tried(&kernel.trials.connection_mark, "connection marks can be set", remedy)))
}

pub(super) fn rules(facts: &Facts) -> Finding {
    let remedy = "the kernel needs CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES";
    either(seen(facts).map(|kernel| tried(&kernel.trials.rules, "rules by mark work for both families", remedy)))
}

pub(super) fn vxlan(facts: &Facts) -> Finding {
    let tunnels = |site: &crate::validate::intent::Site| {
        site.paths.values().any(|p| matches!(&p.to, Destination::Site { tunnel: TunnelSpec::Vxlan { .. }, .. }))
    };
    match facts.site() {
        Some(site) if !tunnels(site) => Finding::skipped("the site has no tunnel of type vxlan"),
        _ => {
            let remedy = "the kernel needs the module vxlan: `modprobe vxlan`";
            either(seen(facts).map(|kernel| tried(&kernel.trials.vxlan, "a VXLAN interface can be made", remedy)))
        }
    }
}

/// `nftables v1.0.6 (Lester Gooch #5)`.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split_whitespace().nth(1)?.strip_prefix('v')?.split('.').map(str::parse);
    let mut next = || parts.next().unwrap_or(Ok(0)).ok();
    Some((next()?, next()?, next()?))
}

pub(super) fn nft_version(facts: &Facts) -> Finding {
    let Some(text) = &facts.nft else {
        return Finding::fail("there is no program `nft`", "install it: `apt-get install nftables`");
    };
    let text = text.trim();
    match version(text) {
        Some(found) if found >= NFT => Finding::ok(text),
        Some(_) => Finding::warn(format!("{text} is older than what was tried"), "upgrade to nftables 1.0.6 or later"),
        None => Finding::warn(format!("`nft --version` says `{text}`"), "check that this is nftables 1.0.6 or later"),
    }
}

pub(super) fn capabilities(facts: &Facts) -> Finding {
    let missing: Vec<&str> = [("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_NET_RAW", CAP_NET_RAW)]
        .into_iter()
        .filter(|(_, capability)| !has(facts, *capability))
        .map(|(name, _)| name)
        .collect();
    if missing.is_empty() {
        return Finding::ok("CAP_NET_ADMIN and CAP_NET_RAW are there");
    }
    let says = format!("{} missing for this user", missing.join(" and "));
    let remedy = "the service has them; by hand use root or `capsh`: without them nothing can be changed or probed";
    Finding { verdict: if facts.user == 0 { Verdict::Fail } else { Verdict::Warn }, ..Finding::warn(says, remedy) }
}

pub(super) fn ping(facts: &Facts) -> Finding {
    if has(facts, CAP_NET_RAW) {
        return Finding::ok("by CAP_NET_RAW");
    }
    let range = facts.sysctl("ipv4/ping_group_range").unwrap_or_default();
    let mut bounds = range.split_whitespace().filter_map(|n| n.parse::<u64>().ok());
    match (bounds.next(), bounds.next()) {
        (Some(first), Some(last)) if first <= last => {
            Finding::ok(format!("by net.ipv4.ping_group_range, {first} to {last}"))
        }
        _ => Finding::fail(
            "neither CAP_NET_RAW nor an open ping_group_range",
            "give the service `AmbientCapabilities=CAP_NET_RAW`, or `sysctl net.ipv4.ping_group_range=\"0 2147483647\"`",
        ),
    }
}
