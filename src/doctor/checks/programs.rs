//! Other programs that manage the network of this machine.

use super::{Facts, Finding};
use crate::foreign::{At, programs::KNOWN};

fn remedy(process: &str) -> &'static str {
    KNOWN.iter().find(|known| known.processes.contains(&process)).map_or("", |known| known.remedy)
}

/// Whether the last assignment of a key in ini files means "no".
fn says_no(texts: impl Iterator<Item = String>, key: &str) -> bool {
    let lines: Vec<String> = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let mut values = lines.iter().filter_map(|line| line.split_once('=')).filter(|(k, _)| k.trim() == key);
    let last = values.next_back().map(|(_, value)| value.trim().to_lowercase()).unwrap_or_default();
    matches!(last.as_str(), "no" | "false" | "off" | "0")
}

pub(super) fn networkd(facts: &Facts) -> Finding {
    let Some(process) = facts.runs("systemd-network") else { return Finding::ok("systemd-networkd does not run") };
    let texts = || {
        let main = facts.text("/etc/systemd/networkd.conf").map(str::to_owned);
        // Drop-ins in the order of their names, whatever their directory.
        let directories =
            ["/usr/lib/systemd/networkd.conf.d", "/run/systemd/networkd.conf.d", "/etc/systemd/networkd.conf.d"];
        let mut more: Vec<_> = directories.iter().flat_map(|d| facts.texts_below(d)).collect();
        more.sort_by_key(|(path, _)| path.file_name().map(std::ffi::OsStr::to_owned));
        main.into_iter().chain(more.into_iter().map(|(_, text)| text.to_owned()))
    };
    let keys = ["ManageForeignRoutingPolicyRules", "ManageForeignRoutes"];
    let missing: Vec<&str> = keys.into_iter().filter(|key| !says_no(texts(), key)).collect();
    if missing.is_empty() {
        return Finding::ok("systemd-networkd leaves foreign routes and rules alone");
    }
    let says = format!(
        "systemd-networkd runs (pid {}) and deletes what it did not make: {} is not `no`",
        process.pid,
        missing.join(" and ")
    );
    Finding::fail(says, remedy("systemd-network"))
}

pub(super) fn networkmanager(facts: &Facts) -> Finding {
    if facts.runs("NetworkManager").is_none() {
        return Finding::ok("NetworkManager does not run");
    }
    let Some(site) = facts.site() else {
        return Finding::warn("NetworkManager runs; which interfaces are ours is not known", remedy("NetworkManager"));
    };
    let texts: String = facts
        .texts_below("/etc/NetworkManager")
        .flat_map(|(_, text)| text.lines())
        .filter(|line| line.trim_start().starts_with("unmanaged-devices"))
        .collect::<Vec<_>>()
        .join("\n");
    let interfaces = site.endpoints.values().map(|endpoint| endpoint.interface.as_str());
    let managed: Vec<&str> =
        interfaces.filter(|name| !texts.contains(&format!("interface-name:{name}")) && !texts.contains("=*")).collect();
    if managed.is_empty() {
        return Finding::ok("NetworkManager does not manage the uplinks");
    }
    let says =
        format!("NetworkManager manages {}: it takes routes and sysctls back when it reconnects", managed.join(", "));
    Finding::warn(says, remedy("NetworkManager"))
}

pub(super) fn firewalld(facts: &Facts) -> Finding {
    if facts.runs("firewalld").is_none() {
        return Finding::ok("firewalld does not run");
    }
    let text = facts.text("/etc/firewalld/firewalld.conf").unwrap_or_default();
    let backend = text.lines().filter_map(|line| line.trim().strip_prefix("FirewallBackend=")).next_back();
    if backend == Some("iptables") {
        return Finding::fail("firewalld uses iptables and flushes all of it at each reload", remedy("firewalld"));
    }
    Finding::warn(
        "firewalld runs: it drops what its zones do not forward, whatever Patronus accepts",
        "put LAN and uplinks into zones with forwarding (`firewall-cmd --permanent --zone=ZONE --add-forward`), then look at later-drops",
    )
}

pub(super) fn ufw(facts: &Facts) -> Finding {
    let enabled = facts.text("/etc/ufw/ufw.conf").is_some_and(|t| t.lines().any(|line| line.trim() == "ENABLED=yes"));
    if !enabled {
        return Finding::ok("ufw is not enabled");
    }
    let forward = facts.text("/etc/default/ufw").unwrap_or_default();
    if forward.lines().any(|line| line.trim() == "DEFAULT_FORWARD_POLICY=\"ACCEPT\"") {
        return Finding::ok("ufw lets forwarded traffic through");
    }
    Finding::fail(
        "ufw drops forwarded traffic (DEFAULT_FORWARD_POLICY)",
        "`DEFAULT_FORWARD_POLICY=\"ACCEPT\"` in /etc/default/ufw, or `ufw route allow in on lan0 out on wan0` for each uplink",
    )
}

pub(super) fn nftables_service(facts: &Facts) -> Finding {
    let Some(text) = facts.text("/etc/nftables.conf") else { return Finding::ok("there is no /etc/nftables.conf") };
    let flushes = text.lines().any(|line| line.trim().trim_end_matches(';').trim() == "flush ruleset");
    let wanted = "/etc/systemd/system/sysinit.target.wants/nftables.service";
    let enabled = facts.places.contains_key(std::path::Path::new(wanted));
    match (flushes, enabled) {
        (true, true) => Finding::warn(
            "nftables.service is enabled and /etc/nftables.conf flushes every table when it is loaded",
            remedy("nft"),
        ),
        (true, false) => Finding::ok("/etc/nftables.conf flushes the ruleset, but nftables.service is not enabled"),
        (false, _) => Finding::ok("/etc/nftables.conf leaves the tables of others alone"),
    }
}

pub(super) fn docker(facts: &Facts) -> Finding {
    if facts.runs("dockerd").is_none() {
        return Finding::ok("Docker does not run");
    }
    let Ok(kernel) = &facts.kernel else {
        return Finding::skipped("Docker runs, and its chains cannot be looked at, see kernel-access");
    };
    let chains = kernel.around.chains.iter();
    let mut drops =
        chains.filter(|c| c.name == "FORWARD" && c.drops_by_default && c.hook.is_some_and(|h| h.at == At::Forward));
    if drops.next().is_none() {
        return Finding::ok("Docker runs and does not drop forwarded traffic");
    }
    Finding::fail(
        "Docker runs, and the chain FORWARD drops what it does not know: your LAN's traffic too",
        "`iptables -I DOCKER-USER -i lan0 -j ACCEPT` and the same with `-o lan0`, made permanent; or `\"ip-forward-no-drop\": true` in /etc/docker/daemon.json",
    )
}
