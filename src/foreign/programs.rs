//! Programs that are known to take away what others set up, by what, and what to do about each.

use serde::{Deserialize, Serialize};

use crate::clock::Instant;

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name as the kernel keeps it: at most 15 bytes.
    pub name: String,
}

/// Somebody changed one of our objects: what the kernel's notification says of who it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// When that was read.
    pub at: Instant,
    /// The kind of object: `nft`, `route`, `rule`.
    pub kind: &'static str,
    /// The process, as its netlink port or nftables itself says.
    pub pid: u32,
    /// Its name, if it still ran or nftables said it.
    pub name: Option<String>,
    /// The process that had started it.
    pub parent: Option<Process>,
}

/// Who is likely to be it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Culprit {
    /// The program; nothing if nobody is known.
    pub program: Option<String>,
    /// Its process, while that runs.
    pub pid: Option<u32>,
    /// Why it is thought so.
    pub evidence: Vec<String>,
    /// What to do.
    pub remedy: String,
}

/// A program that is known to do so.
#[derive(Debug)]
pub struct Known {
    /// Names of its processes.
    pub processes: &'static [&'static str],
    /// What it is called.
    pub title: &'static str,
    /// The kinds of objects that it takes away or changes.
    pub kinds: &'static [&'static str],
    /// It does that whenever it runs; otherwise only its trace in a notification tells.
    pub suspect_when_running: bool,
    /// What to do about it.
    pub remedy: &'static str,
}

/// All of them, the likeliest first.
pub const KNOWN: &[Known] = &[
    Known {
        processes: &["systemd-network"],
        title: "systemd-networkd",
        kinds: &["rule", "route"],
        suspect_when_running: true,
        remedy: "put `[Network]`, `ManageForeignRoutingPolicyRules=no` and `ManageForeignRoutes=no` into /etc/systemd/networkd.conf.d/patronus.conf, then `systemctl restart systemd-networkd`",
    },
    Known {
        processes: &["NetworkManager", "nm-dispatcher"],
        title: "NetworkManager",
        kinds: &["rule", "route", "sysctl", "link"],
        suspect_when_running: true,
        remedy: "take the interfaces of paths and tunnels away from it: `[keyfile]` `unmanaged-devices=interface-name:wan0;...` in /etc/NetworkManager/conf.d/patronus.conf, then `nmcli general reload`; its dispatcher scripts are in /etc/NetworkManager/dispatcher.d",
    },
    Known {
        processes: &["firewalld"],
        title: "firewalld",
        kinds: &["nft", "sysctl"],
        suspect_when_running: true,
        remedy: "use `FirewallBackend=nftables` in /etc/firewalld/firewalld.conf: with it a reload flushes only its own table",
    },
    Known {
        processes: &["nft"],
        title: "nft (nftables.service, or a script)",
        kinds: &["nft"],
        suspect_when_running: false,
        remedy: "a `flush ruleset` in /etc/nftables.conf empties every table: write `table inet mine; delete table inet mine` for your own table there, and do not stop nftables.service",
    },
    Known {
        processes: &["ufw", "ufw-init"],
        title: "ufw",
        kinds: &["nft", "sysctl"],
        suspect_when_running: true,
        remedy: "its sysctls are in /etc/ufw/sysctl.conf: set them there to what `patronus plan` wants",
    },
    Known {
        processes: &["dockerd"],
        title: "Docker",
        kinds: &["sysctl"],
        suspect_when_running: true,
        remedy: "`\"ip-forward\": false` in /etc/docker/daemon.json leaves the sysctls alone",
    },
    Known {
        processes: &["iptables", "ip6tables", "iptables-restor", "ip6tables-resto", "xtables-nft-mul"],
        title: "iptables",
        kinds: &["nft"],
        suspect_when_running: false,
        remedy: "find the script that calls it: `grep -rl iptables /etc`",
    },
    Known {
        processes: &["tailscaled"],
        title: "Tailscale",
        kinds: &["rule", "route"],
        suspect_when_running: true,
        remedy: "`tailscale set --netfilter-mode=off`, and keep its priorities 5210 to 5270 out of `ranges`",
    },
    Known {
        processes: &["keepalived"],
        title: "keepalived",
        kinds: &["rule", "route"],
        suspect_when_running: true,
        remedy: "take our tables and priorities out of its `virtual_rules`, `virtual_routes` and `static_routes`",
    },
    Known {
        processes: &["zebra", "pbrd"],
        title: "FRR",
        kinds: &["rule", "route"],
        suspect_when_running: true,
        remedy: "leave our tables to us: no `table` of ours in its PBR maps, and no `ip import-table` for them",
    },
    Known {
        processes: &["bird", "bird6"],
        title: "BIRD",
        kinds: &["route"],
        suspect_when_running: true,
        remedy: "let no `protocol kernel` use one of our tables (`kernel table`)",
    },
    Known {
        processes: &["dhclient", "dhclient-script", "dhcpcd", "udhcpc"],
        title: "the DHCP client",
        kinds: &["route", "rule", "sysctl"],
        suspect_when_running: true,
        remedy: "look for `ip route flush`, `ip rule` or `sysctl` in its hooks: /etc/dhcp/dhclient-exit-hooks.d, /lib/dhcpcd/dhcpcd-hooks",
    },
    Known {
        processes: &["connmand", "wickedd"],
        title: "ConnMan or wicked",
        kinds: &["rule", "route", "sysctl"],
        suspect_when_running: true,
        remedy: "take the interfaces of paths and tunnels out of its configuration",
    },
    Known {
        processes: &["cilium-agent", "calico-node", "kube-proxy"],
        title: "a Kubernetes network plugin",
        kinds: &["rule", "sysctl", "nft"],
        suspect_when_running: true,
        remedy: "give it other marks, tables and rp_filter settings, or do not run it on the router",
    },
    Known {
        processes: &["tuned", "systemd-sysctl", "sysctl"],
        title: "a program that sets sysctls",
        kinds: &["sysctl"],
        suspect_when_running: true,
        remedy: "set the same values in /etc/sysctl.d as `patronus plan` wants",
    },
];

impl Known {
    fn is(&self, name: &str) -> bool {
        self.processes.contains(&name)
    }
}

/// Who is likely to take away objects of a kind: whom a notification names, else who runs and is known for it.
#[must_use]
pub fn culprit(kind: &str, touches: &[Touch], running: &[Process]) -> Culprit {
    let named = touches.iter().rev().find(|t| t.kind == kind && t.name.is_some());
    if let Some(touch) = named {
        return by_touch(touch);
    }
    let suspects = running.iter().filter_map(|p| Some((p, KNOWN.iter().position(|k| suspects(k, kind, &p.name))?)));
    if let Some((process, at)) = suspects.min_by_key(|(p, at)| (*at, p.pid)) {
        let known = &KNOWN[at];
        let evidence =
            vec![format!("{} runs (pid {}) and is known to change objects of this kind", known.title, process.pid)];
        let (program, pid) = (Some(known.title.to_owned()), Some(process.pid));
        return Culprit { program, pid, evidence, remedy: known.remedy.to_owned() };
    }
    let short_lived = touches.iter().rev().find(|t| t.kind == kind);
    let evidence =
        short_lived.map(|t| format!("a process that ended at once (netlink port {}): a script, most likely", t.pid));
    Culprit { program: None, pid: None, evidence: evidence.into_iter().collect(), remedy: search(kind) }
}

fn suspects(known: &Known, kind: &str, name: &str) -> bool {
    known.suspect_when_running && known.kinds.contains(&kind) && known.is(name)
}

fn by_touch(touch: &Touch) -> Culprit {
    let name = touch.name.as_deref().unwrap_or_default();
    let parent = touch.parent.as_ref();
    let started = parent.map(|p| format!(", started by `{}`, pid {}", p.name, p.pid)).unwrap_or_default();
    let evidence = vec![format!("the kernel names `{name}` (pid {}{started}) as who changed it last", touch.pid)];
    let of_parent = parent.and_then(|parent| KNOWN.iter().find(|k| k.is(&parent.name)));
    let known = of_parent.or_else(|| KNOWN.iter().find(|k| k.is(name)));
    let unknown = || parent.map_or_else(|| name.to_owned(), |p| p.name.clone());
    Culprit {
        program: Some(known.map_or_else(unknown, |k| k.title.to_owned())),
        pid: Some(parent.map_or(touch.pid, |p| p.pid)),
        evidence,
        remedy: known.map_or_else(|| search(touch.kind), |k| k.remedy.to_owned()),
    }
}

/// How to catch somebody who is not known.
fn search(kind: &str) -> String {
    let (words, files) = match kind {
        "nft" => ("nft", "flush ruleset"),
        "rule" => ("ip rule", "ip rule"),
        "route" => ("ip route", "ip route flush"),
        "sysctl" => ("sysctl", "/proc/sys/net"),
        _ => ("ip link", "ip link"),
    };
    format!(
        "find what runs `{words}`: `grep -rs '{files}' /etc /usr/local`, systemd timers and cron; stop it, then `patronus reconcile`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(kind: &'static str, name: Option<&str>, parent: Option<&str>) -> Touch {
        let parent = parent.map(|name| Process { pid: 6, name: name.to_owned() });
        Touch { at: Instant::default(), kind, pid: 7, name: name.map(str::to_owned), parent }
    }

    fn running(names: &[&str]) -> Vec<Process> {
        (100..).zip(names).map(|(pid, name)| Process { pid, name: (*name).to_owned() }).collect()
    }

    fn program(kind: &str, touches: &[Touch], names: &[&str]) -> Option<String> {
        culprit(kind, touches, &running(names)).program
    }

    #[test]
    fn whom_the_kernel_names_comes_before_who_merely_runs() {
        let touches = [touch("rule", Some("ip"), Some("fight.sh")), touch("nft", Some("firewalld"), None)];
        assert_eq!(program("rule", &touches, &["systemd-network"]).as_deref(), Some("fight.sh"));
        assert_eq!(program("nft", &touches, &["dockerd"]).as_deref(), Some("firewalld"));
        let found = culprit("rule", &touches, &[]);
        assert_eq!(found.pid, Some(6));
        assert!(found.evidence[0].contains("`ip` (pid 7, started by `fight.sh`, pid 6)"), "{found:?}");
    }

    #[test]
    fn who_runs_is_suspected_of_its_kinds_only_and_the_likeliest_first() {
        let names = ["keepalived", "systemd-network", "dockerd"];
        assert_eq!(program("rule", &[], &names).as_deref(), Some("systemd-networkd"));
        assert_eq!(program("sysctl", &[], &names).as_deref(), Some("Docker"));
        assert_eq!(program("nft", &[], &names), None);
        // Whoever runs `nft` at this moment may be anybody.
        assert_eq!(program("nft", &[], &["nft"]), None);
    }

    #[test]
    fn without_a_suspect_there_is_a_way_to_find_one() {
        let found = culprit("nft", &[touch("nft", None, None)], &[]);
        assert!(found.program.is_none() && found.evidence[0].contains("netlink port 7"), "{found:?}");
        assert!(found.remedy.contains("flush ruleset"), "{found:?}");
    }

    #[test]
    fn process_names_are_as_the_kernel_cuts_them() {
        for known in KNOWN {
            assert!(known.processes.iter().all(|name| name.len() <= 15), "{known:?}");
            assert!(!known.remedy.is_empty() && !known.kinds.is_empty());
        }
    }
}
