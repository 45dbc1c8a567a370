//! Each check is fired once by a machine that is broken in one place, and is content with one that is not.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::{
    facts::{Configuration, Kernel, Place, Port, Trial, Trials},
    *,
};
use crate::{
    config::{self, Snapshot},
    drift::{Mode, Modes},
    foreign::{At, Chain, Does, Hook, Rule, programs::Process},
    settings::{Settings, Source},
    state::{Gateway, Key, LinkFacts, RouteKey, RouteValue, State, Target, Value},
    units::{Family, IfName},
    validate::{self, intent::Method},
};

const SITE: &str = "apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  lan: [{interface: lan0, prefixes: [192.168.10.0/24]}]
  endpoints:
    fiber: {interface: wan0, gateway: 198.51.100.1, address: 198.51.100.2}
    lte: {interface: wwan0, gateway: auto}
  paths:
    fiber: {from: fiber, to: internet, nat: masquerade, probe: {targets: [1.1.1.1]}}
    hq: {from: fiber, to: hq/fiber, tunnel: {type: vxlan, id: 7}}
---
apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: hq}
spec:
  lan: [{interface: lan0, prefixes: [192.168.20.0/24]}]
  endpoints:
    fiber: {interface: wan0, gateway: 203.0.113.1, address: 203.0.113.2}
  paths:
    berlin: {from: fiber, to: berlin/fiber, tunnel: {type: vxlan, id: 7}}
";

const SETTINGS: &str = "site: berlin
source:
  git:
    url: ssh://git@git.example.net/network.git
    credentials: {file: /etc/patronus/key}
    knownHosts: /etc/patronus/known_hosts
    verify: {mode: head, allowedSigners: /etc/patronus/signers}
report: {forge: github, project: team/network, token: {file: /etc/patronus/report-token}}
windows: [{kind: deny, days: [fri], from: '12:00', timeZone: Europe/Berlin}]
";

const UNIT: &str = include_str!("../../examples/systemd/patronus.service");

fn site() -> validate::intent::Site {
    let files = [("site.yaml".to_owned(), SITE.as_bytes().to_vec())].into();
    let (config, mut found) = config::load(&Snapshot { revision: "r".into(), files, commit: None });
    let (intent, more) = validate::check(&config);
    found.extend(more);
    let intent = intent.unwrap_or_else(|| panic!("{found:#?}"));
    intent.sites()["berlin"].clone()
}

fn settings(text: &str) -> Settings {
    Settings::parse("p", text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn place(directory: bool, mode: u32) -> Place {
    Place {
        directory,
        mode,
        owner: 0,
        writable: true,
        read_only: false,
        bytes: (1 << 33, 1 << 34),
        inodes: (1 << 20, 1 << 21),
    }
}

fn links() -> [(IfName, LinkFacts); 4] {
    let link = |addresses: &[&str]| LinkFacts {
        index: 1,
        up: true,
        carrier: true,
        mtu: 1500,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ..LinkFacts::default()
    };
    let mut lte = link(&["10.64.0.2/24"]);
    lte.gateways.insert(Family::V4, Gateway::Address("10.64.0.1".parse().unwrap()));
    let mut tunnel = link(&[]);
    tunnel.mtu = 1430;
    [
        (name("lan0"), link(&["192.168.10.1/24"])),
        (name("wan0"), link(&["198.51.100.2/24"])),
        (name("wwan0"), lte),
        (tunnel_name(), tunnel),
    ]
}

fn tunnel_name() -> IfName {
    site().paths["hq"].interface.clone()
}

/// A router on which nothing is wrong.
fn fine() -> Facts {
    let mut texts = std::collections::BTreeMap::new();
    let mut put = |path: &str, text: &str| texts.insert(PathBuf::from(path), text.to_owned());
    put("/etc/patronus/known_hosts", "git.example.net ssh-ed25519 AAAAC3Nz\n");
    put("/etc/patronus/signers", "# people\nada@example.net ssh-ed25519 AAAAC3Nz\n");
    put("/etc/iproute2/rt_protos.d/patronus.conf", "# ours\n157\tpatronus\n");
    put("/etc/iproute2/rt_tables", "157 other\n");
    put("/etc/systemd/system/patronus.service", UNIT);
    for (path, value) in [("ipv4/ip_forward", "1\n"), ("ipv6/conf/all/forwarding", "1\n")] {
        put(&format!("/proc/sys/net/{path}"), value);
    }
    put("/proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
    put("/proc/sys/net/netfilter/nf_conntrack_count", "17\n");
    for link in ["wan0", "wwan0"] {
        for (leaf, value) in [("rp_filter", "2"), ("src_valid_mark", "1"), ("ignore_routes_with_linkdown", "1")] {
            put(&format!("/proc/sys/net/ipv4/conf/{link}/{leaf}"), value);
        }
        put(&format!("/proc/sys/net/ipv6/conf/{link}/accept_ra"), "2");
    }
    let mut kernel = Kernel {
        trials: Trials {
            ruleset: Trial::Works,
            connection_mark: Trial::Works,
            vxlan: Trial::Works,
            rules: Trial::Works,
        },
        ..Kernel::default()
    };
    kernel.observed.facts.links = links().into();
    let settings = settings(SETTINGS);
    let places = [
        (settings.state_dir.clone(), place(true, 0o750)),
        (settings.runtime_dir.clone(), place(true, 0o755)),
        ("/etc/patronus/patronus.yaml".into(), place(false, 0o600)),
        ("/etc/patronus/key".into(), place(false, 0o600)),
        ("/etc/patronus/report-token".into(), place(false, 0o600)),
    ];
    Facts {
        settings,
        settings_error: None,
        settings_file: "/etc/patronus/patronus.yaml".into(),
        configuration: Configuration::Site(Arc::new(site())),
        texts,
        places: places.into(),
        kernel: Ok(kernel),
        applied: Some(State::default()),
        nft: Some("nftables v1.0.6 (Lester Gooch #5)".into()),
        processes: vec![Process { pid: 5, name: "chronyd".into() }],
        user: 0,
        capabilities: u64::MAX,
        holder: None,
        daemon: false,
        metrics: Port::Free,
        wall: 1_800_000_000,
        uptime: 1_000,
        zones: true,
    }
}

fn of(facts: &Facts, id: &str) -> Outcome {
    examine(facts).into_iter().find(|outcome| outcome.id == id).unwrap_or_else(|| panic!("there is no check {id}"))
}

#[test]
fn a_router_on_which_nothing_is_wrong_has_nothing_to_say() {
    let bad: Vec<Outcome> = examine(&fine()).into_iter().filter(|o| o.verdict > Verdict::Ok).collect();
    let known = ["git-authorities"];
    assert!(bad.iter().all(|o| o.verdict == Verdict::Skipped && known.contains(&o.id)), "{bad:#?}");
}

type Break = fn(&mut Facts);

fn kernel(facts: &mut Facts) -> &mut Kernel {
    facts.kernel.as_mut().unwrap()
}

fn link<'a>(facts: &'a mut Facts, of: &str) -> &'a mut LinkFacts {
    kernel(facts).observed.facts.links.get_mut(&name(of)).unwrap()
}

fn text(facts: &mut Facts, path: &str, text: &str) {
    facts.texts.insert(path.into(), text.into());
}

fn run(facts: &mut Facts, process: &str) {
    facts.processes.push(Process { pid: 7, name: process.into() });
}

fn set(facts: &mut Facts, path: &str, change: impl FnOnce(&mut Place)) {
    change(facts.places.get_mut(std::path::Path::new(path)).unwrap());
}

fn lose(facts: &mut Facts, path: &str) {
    facts.places.remove(std::path::Path::new(path)).unwrap();
}

fn rule(priority: u32) -> Rule {
    let (family, fwmark, protocol) = (Family::V4, None, "unspec".to_owned());
    let (selective, inverted, suppress_prefixlength) = (false, false, None);
    Rule { family, priority, fwmark, selective, inverted, table: Some(254), suppress_prefixlength, protocol }
}

fn chain(at: At, priority: i32, does: Does) -> Chain {
    let (table, name) = ("ip filter".to_owned(), "FORWARD".to_owned());
    Chain { table, name, hook: Some(Hook { at, priority }), does, ..Chain::default() }
}

fn drops() -> Chain {
    Chain { drops_by_default: true, ..chain(At::Forward, 0, Does::default()) }
}

fn unit(facts: &mut Facts, from: &str, to: &str) {
    assert!(UNIT.contains(from), "{from}");
    text(facts, "/etc/systemd/system/patronus.service", &UNIT.replace(from, to));
}

/// A path is probed by asking its gateway.
fn asks_gateways(facts: &mut Facts) {
    let Configuration::Site(site) = &mut facts.configuration else { return };
    let path = Arc::make_mut(site).paths.values_mut().next().unwrap();
    Arc::make_mut(&mut Arc::make_mut(path).probe).method = Method::Gateway;
}

/// For every check, ways to break the machine that it has to see, and how bad that is.
const BREAKS: &[(&str, Verdict, Break)] = &[
    ("kernel-access", Verdict::Fail, |f| f.kernel = Err("no nft".into())),
    ("kernel-ruleset", Verdict::Fail, |f| kernel(f).trials.ruleset = Trial::Fails("no ct".into())),
    ("kernel-ruleset", Verdict::Skipped, |f| kernel(f).trials.ruleset = Trial::Untried),
    ("kernel-connection-mark", Verdict::Fail, |f| kernel(f).trials.connection_mark = Trial::Fails("no".into())),
    ("kernel-rules", Verdict::Fail, |f| kernel(f).trials.rules = Trial::Fails("no".into())),
    ("kernel-vxlan", Verdict::Fail, |f| kernel(f).trials.vxlan = Trial::Fails("no".into())),
    ("nft-version", Verdict::Fail, |f| f.nft = None),
    ("nft-version", Verdict::Warn, |f| f.nft = Some("nftables v0.9.8 (x)".into())),
    ("nft-version", Verdict::Warn, |f| f.nft = Some("what?".into())),
    ("capabilities", Verdict::Fail, |f| f.capabilities = 0),
    ("ping", Verdict::Fail, |f| {
        f.capabilities = 0;
        text(f, "/proc/sys/net/ipv4/ping_group_range", "1\t0\n");
    }),
    ("networkd", Verdict::Fail, |f| run(f, "systemd-network")),
    ("networkd", Verdict::Fail, |f| {
        run(f, "systemd-network");
        text(
            f,
            "/etc/systemd/networkd.conf.d/a.conf",
            "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules = yes\n",
        );
    }),
    ("networkmanager", Verdict::Warn, |f| run(f, "NetworkManager")),
    ("firewalld", Verdict::Warn, |f| run(f, "firewalld")),
    ("firewalld", Verdict::Fail, |f| {
        run(f, "firewalld");
        text(f, "/etc/firewalld/firewalld.conf", "FirewallBackend=iptables\n");
    }),
    ("ufw", Verdict::Fail, |f| text(f, "/etc/ufw/ufw.conf", "ENABLED=yes\n")),
    ("nftables-service", Verdict::Warn, |f| {
        text(f, "/etc/nftables.conf", "#!/usr/sbin/nft -f\nflush ruleset\n");
        f.places.insert("/etc/systemd/system/sysinit.target.wants/nftables.service".into(), place(false, 0o644));
    }),
    ("docker", Verdict::Fail, |f| {
        run(f, "dockerd");
        kernel(f).around.chains.push(drops());
    }),
    ("rules-ahead", Verdict::Fail, |f| kernel(f).around.rules.push(rule(100))),
    ("marks", Verdict::Warn, |f| {
        kernel(f).around.chains.push(chain(At::Prerouting, 0, Does { mark: true, ..Does::default() }));
    }),
    ("ranges", Verdict::Fail, |f| kernel(f).observed.intruders.push("IPv4 rule priority 20001".into())),
    ("objects", Verdict::Fail, |f| lose_routes(f, 20_001..=20_001)),
    ("objects", Verdict::Warn, |f| lose_routes(f, 20_002..=20_010)),
    ("objects", Verdict::Skipped, |f| f.applied = None),
    ("protocol-number", Verdict::Fail, |f| text(f, "/etc/iproute2/rt_protos.d/z.conf", "157 frr\n")),
    ("protocol-number", Verdict::Warn, |f| text(f, "/etc/iproute2/rt_protos.d/patronus.conf", "")),
    ("later-drops", Verdict::Fail, |f| kernel(f).around.chains.push(drops())),
    ("other-nat", Verdict::Warn, |f| {
        kernel(f).around.chains.push(chain(At::Postrouting, 100, Does { snat: true, ..Does::default() }));
    }),
    ("flowtables", Verdict::Warn, |f| kernel(f).around.flowtables.push("inet fw ft".into())),
    ("rp-filter", Verdict::Warn, |f| text(f, "/proc/sys/net/ipv4/conf/wan0/rp_filter", "1\n")),
    ("rp-filter", Verdict::Warn, |f| {
        text(f, "/proc/sys/net/ipv4/conf/all/rp_filter", "1\n");
        text(f, "/proc/sys/net/ipv4/conf/wan0/rp_filter", "0\n");
    }),
    ("forwarding", Verdict::Warn, |f| text(f, "/proc/sys/net/ipv4/ip_forward", "0\n")),
    ("src-valid-mark", Verdict::Warn, |f| text(f, "/proc/sys/net/ipv4/conf/wan0/src_valid_mark", "0\n")),
    ("ignore-linkdown", Verdict::Warn, |f| {
        text(f, "/proc/sys/net/ipv4/conf/wwan0/ignore_routes_with_linkdown", "0\n");
    }),
    ("accept-ra", Verdict::Warn, |f| text(f, "/proc/sys/net/ipv6/conf/wwan0/accept_ra", "1\n")),
    ("conntrack-table", Verdict::Fail, |f| text(f, "/proc/sys/net/netfilter/nf_conntrack_count", "250000\n")),
    ("conntrack-table", Verdict::Warn, |f| text(f, "/proc/sys/net/netfilter/nf_conntrack_max", "4096\n")),
    ("clock", Verdict::Warn, |f| f.processes.clear()),
    ("clock", Verdict::Warn, |f| f.processes = vec![Process { pid: 1, name: "systemd-timesyn".into() }]),
    ("clock-sane", Verdict::Fail, |f| f.wall = 4_000),
    ("clock-sane", Verdict::Fail, |f| f.uptime = 1_700_000_000),
    ("time-zones", Verdict::Fail, |f| f.zones = false),
    ("state-directory", Verdict::Fail, |f| lose(f, "/var/lib/patronus")),
    ("state-directory", Verdict::Fail, |f| set(f, "/var/lib/patronus", |p| p.mode = 0o777)),
    ("state-directory", Verdict::Warn, |f| set(f, "/var/lib/patronus", |p| p.mode = 0o755)),
    ("state-directory", Verdict::Fail, |f| set(f, "/var/lib/patronus", |p| p.bytes.0 = 0)),
    ("state-directory", Verdict::Fail, |f| set(f, "/var/lib/patronus", |p| p.inodes.0 = 0)),
    ("runtime-directory", Verdict::Fail, |f| set(f, "/run/patronus", |p| p.read_only = true)),
    ("runtime-directory", Verdict::Fail, |f| set(f, "/run/patronus", |p| p.writable = false)),
    ("disk-space", Verdict::Warn, |f| set(f, "/var/lib/patronus", |p| p.bytes.0 = 100 << 20)),
    ("disk-space", Verdict::Fail, |f| set(f, "/var/lib/patronus", |p| p.bytes.0 = 1 << 20)),
    ("disk-inodes", Verdict::Fail, |f| set(f, "/var/lib/patronus", |p| p.inodes.0 = 3)),
    ("metrics-port", Verdict::Fail, |f| f.metrics = Port::Refused("in use".into())),
    ("instance", Verdict::Warn, |f| f.holder = Some("pid 3, `apply`".into())),
    ("instance", Verdict::Fail, |f| f.daemon = true),
    ("unit", Verdict::Warn, |f| unit(f, "WatchdogSec=30", "WatchdogSec=0")),
    ("unit", Verdict::Warn, |f| unit(f, "Restart=always", "Restart=no")),
    ("unit", Verdict::Warn, |f| unit(f, "StartLimitIntervalSec=0", "")),
    ("unit", Verdict::Warn, |f| {
        unit(f, "StartLimitIntervalSec=0\n\n[Service]", "\n[Service]\nStartLimitIntervalSec=0");
    }),
    ("unit-hardening", Verdict::Fail, |f| unit(f, "PrivateTmp=yes", "PrivateTmp=yes\nProtectKernelTunables=yes")),
    ("unit-hardening", Verdict::Fail, |f| unit(f, "CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN", "CAP_NET_ADMIN")),
    ("unit-hardening", Verdict::Warn, |f| unit(f, "NoNewPrivileges=yes", "")),
    ("unit-hardening", Verdict::Warn, |f| unit(f, " AF_PACKET", "")),
    ("unit-hardening", Verdict::Fail, |f| {
        unit(f, " AF_PACKET", "");
        asks_gateways(f);
    }),
    ("unit-hardening", Verdict::Fail, |f| unit(f, "AF_NETLINK", "")),
    ("unit-hardening", Verdict::Fail, |f| unit(f, "RestrictNamespaces=net", "RestrictNamespaces=yes")),
    ("unit-hardening", Verdict::Fail, |f| unit(f, " CAP_SYS_ADMIN", "")),
    ("unit-hardening", Verdict::Fail, |f| unit(f, "PrivateTmp=yes", "ProcSubset=pid")),
    ("unit-hardening", Verdict::Fail, |f| f.settings.state_dir = "/srv/patronus".into()),
    ("unit-hardening", Verdict::Fail, |f| f.settings.source = Some(Source::Dir("/root/network".into()))),
    ("unit-hardening", Verdict::Fail, |f| {
        unit(f, "ProtectHome=yes", "ProtectHome=read-only");
        f.settings.state_dir = "/home/patronus".into();
    }),
    ("settings", Verdict::Fail, |f| f.settings_error = Some("patronus.yaml:1:1: no".into())),
    ("settings", Verdict::Warn, |f| f.settings.site = None),
    ("settings", Verdict::Warn, |f| lose(f, "/etc/patronus/patronus.yaml")),
    ("addresses", Verdict::Skipped, |f| kernel(f).observed.facts.links.clear()),
    ("src-valid-mark", Verdict::Skipped, |f| f.texts.clear()),
    ("settings-mode", Verdict::Fail, |f| set(f, "/etc/patronus/patronus.yaml", |p| p.mode = 0o666)),
    ("settings-mode", Verdict::Warn, |f| set(f, "/etc/patronus/patronus.yaml", |p| p.owner = 1_000)),
    ("source", Verdict::Fail, |f| f.configuration = Configuration::Unnamed),
    ("source", Verdict::Fail, |f| f.configuration = Configuration::Unreadable("gone".into())),
    ("configuration", Verdict::Fail, |f| f.configuration = Configuration::Invalid("site.yaml:1:1: no".into())),
    ("git-signers", Verdict::Fail, |f| drop(f.texts.remove(std::path::Path::new("/etc/patronus/signers")))),
    ("git-signers", Verdict::Fail, |f| text(f, "/etc/patronus/signers", "ssh-ed25519 AAAA without a name\n")),
    ("git-signers", Verdict::Fail, |f| text(f, "/etc/patronus/signers", "# nobody\n")),
    ("git-signers", Verdict::Warn, |f| {
        f.settings.source = settings("source: {git: {url: 'https://a.example/b'}}\n").source;
    }),
    ("git-known-hosts", Verdict::Fail, |f| text(f, "/etc/patronus/known_hosts", "other.example ssh-ed25519 AAAA\n")),
    ("git-credentials", Verdict::Fail, |f| set(f, "/etc/patronus/key", |p| p.mode = 0o644)),
    ("git-credentials", Verdict::Fail, |f| lose(f, "/etc/patronus/key")),
    ("report-token", Verdict::Fail, |f| set(f, "/etc/patronus/report-token", |p| p.mode = 0o640)),
    ("report-token", Verdict::Fail, |f| lose(f, "/etc/patronus/report-token")),
    ("git-authorities", Verdict::Fail, |f| {
        let text = "source: {git: {url: 'https://a.example/b', ca: /etc/ca.pem}}\n";
        f.settings.source = settings(text).source;
    }),
    ("interfaces", Verdict::Fail, |f| drop(kernel(f).observed.facts.links.remove(&name("wan0")))),
    ("interfaces", Verdict::Warn, |f| drop(kernel(f).observed.facts.links.remove(&name("lan0")))),
    ("interfaces", Verdict::Fail, |f| link(f, "wan0").up = false),
    ("carriers", Verdict::Fail, |f| link(f, "wan0").carrier = false),
    ("addresses", Verdict::Fail, |f| link(f, "wwan0").addresses.clear()),
    ("addresses", Verdict::Fail, |f| link(f, "wan0").addresses = vec!["198.51.100.3/24".parse().unwrap()]),
    ("gateways", Verdict::Fail, |f| link(f, "wwan0").gateways.clear()),
    ("gateways", Verdict::Warn, |f| {
        kernel(f).neighbours.insert((name("wan0"), "198.51.100.1".parse().unwrap()), false);
    }),
    ("mtu", Verdict::Warn, |f| link(f, "wan0").mtu = 1400),
    ("mtu", Verdict::Warn, |f| {
        let Configuration::Site(site) = &mut f.configuration else { return };
        let site = Arc::make_mut(site);
        for path in site.paths.values_mut().filter(|path| path.under().is_none()) {
            Arc::make_mut(path).mtu = Some(1501);
        }
    }),
];

/// Routes of these tables were applied and are not there; the first table is that of a path.
fn lose_routes(facts: &mut Facts, tables: std::ops::RangeInclusive<u32>) {
    let route = |table| {
        let destination = "0.0.0.0/0".parse().unwrap();
        let by = RouteValue::Via { gateway: Some("198.51.100.1".parse().unwrap()), interface: name("wan0"), mtu: None };
        (Key::Route(RouteKey { table, family: Family::V4, destination, metric: 10 }), Value::Route(by))
    };
    facts.applied = Some(State { objects: tables.map(route).collect() });
    kernel(facts).observed.allocations.targets = [(Target::Path("fiber".parse().unwrap()), 1)].into();
}

#[test]
fn what_keeps_a_path_from_working_is_named_first_and_with_the_command_that_ends_it() {
    let mut facts = fine();
    lose_routes(&mut facts, 20_001..=20_010);
    let outcome = of(&facts, "objects");
    assert!(
        outcome.says.starts_with("path fiber has no way of its own: route  IPv4 default table 20001"),
        "{outcome:?}"
    );
    assert!(outcome.says.ends_with("; 7 more objects"), "{outcome:?}");
    let command = "`ip -4 route replace default via 198.51.100.1 dev wan0 onlink table 20001 metric 10 proto 157`";
    assert_eq!(outcome.remedies[0], command);
    facts.settings.drift = Modes { route: Mode::Ignore, ..Modes::default() };
    assert_eq!(of(&facts, "objects").verdict, Verdict::Ok);
}

#[test]
fn each_check_sees_its_fault_and_says_what_to_do() {
    for (number, (id, verdict, wreck)) in BREAKS.iter().enumerate() {
        let mut facts = fine();
        wreck(&mut facts);
        let outcome = of(&facts, id);
        assert_eq!(outcome.verdict, *verdict, "case {number}: {outcome:?}");
        let remedied = outcome.verdict == Verdict::Skipped || outcome.remedies.iter().all(|r| !r.is_empty());
        assert!(remedied && !outcome.says.is_empty(), "case {number}: {outcome:?}");
    }
}

#[test]
fn there_are_more_than_25_checks_and_each_is_fired_by_a_case() {
    let ids: BTreeSet<&str> = CHECKS.iter().map(|check| check.id).collect();
    assert!(ids.len() == CHECKS.len() && ids.len() > 25, "{}", ids.len());
    let fired: BTreeSet<&str> =
        BREAKS.iter().filter(|(_, verdict, _)| *verdict >= Verdict::Warn).map(|(id, ..)| *id).collect();
    assert_eq!(fired, ids);
}

#[test]
fn the_checker_sees_a_check_that_is_never_fired() {
    let mut facts = fine();
    facts.wall = 4_000;
    assert_eq!(of(&facts, "clock-sane").verdict, Verdict::Fail);
    assert_eq!(of(&fine(), "clock-sane").verdict, Verdict::Ok, "a check that is always red finds nothing");
}

#[test]
fn the_shipped_unit_lets_the_daemon_ask_gateways_and_drop_ins_count() {
    let mut facts = fine();
    asks_gateways(&mut facts);
    text(&mut facts, "/etc/systemd/system/patronus.service", UNIT);
    assert_eq!(of(&facts, "unit-hardening").verdict, Verdict::Ok, "{:?}", of(&facts, "unit-hardening"));
    let without = UNIT.replace(" AF_PACKET", "");
    text(&mut facts, "/etc/systemd/system/patronus.service", &without);
    let outcome = of(&facts, "unit-hardening");
    assert!(outcome.verdict == Verdict::Fail && outcome.says.contains("AF_PACKET"), "{outcome:?}");
    let drop_in = "[Service]\nRestrictAddressFamilies=AF_PACKET\nReadWritePaths=-/srv/patronus\n";
    text(&mut facts, "/etc/systemd/system/patronus.service.d/a.conf", drop_in);
    facts.settings.state_dir = "/srv/patronus".into();
    assert_eq!(of(&facts, "unit-hardening").verdict, Verdict::Ok, "{:?}", of(&facts, "unit-hardening"));
}

#[test]
fn what_other_programs_are_told_is_honoured() {
    let mut facts = fine();
    for process in ["systemd-network", "NetworkManager", "dockerd"] {
        run(&mut facts, process);
    }
    let networkd = include_str!("../../examples/systemd/networkd-patronus.conf");
    text(&mut facts, "/etc/systemd/networkd.conf.d/patronus.conf", networkd);
    let unmanaged = "[keyfile]\nunmanaged-devices=interface-name:wan0;interface-name:wwan0\n";
    text(&mut facts, "/etc/NetworkManager/conf.d/patronus.conf", unmanaged);
    text(&mut facts, "/etc/ufw/ufw.conf", "ENABLED=yes\n");
    text(&mut facts, "/etc/default/ufw", "DEFAULT_FORWARD_POLICY=\"ACCEPT\"\n");
    for id in ["networkd", "networkmanager", "docker", "ufw"] {
        assert_eq!(of(&facts, id).verdict, Verdict::Ok, "{:?}", of(&facts, id));
    }
}

#[test]
fn without_a_kernel_or_a_site_checks_are_skipped_and_not_passed() {
    let mut facts = fine();
    facts.kernel = Err("no nft".into());
    facts.configuration = Configuration::Unfetched;
    let outcomes = examine(&facts);
    let of = |id: &str| outcomes.iter().find(|o| o.id == id).unwrap().verdict;
    for id in [
        "kernel-ruleset",
        "rules-ahead",
        "flowtables",
        "interfaces",
        "mtu",
        "src-valid-mark",
        "configuration",
        "source",
    ] {
        assert_eq!(of(id), Verdict::Skipped, "{id}");
    }
    facts.settings.source = Some(Source::Dir("/x".into()));
    assert_eq!(self::of(&facts, "git-signers").verdict, Verdict::Skipped);
}

#[test]
fn a_file_system_that_does_not_say_how_much_room_it_has_is_not_full() {
    let mut facts = fine();
    set(&mut facts, "/var/lib/patronus", |p| (p.bytes, p.inodes) = ((0, 0), (0, 0)));
    for id in ["state-directory", "disk-space", "disk-inodes"] {
        assert_eq!(of(&facts, id).verdict, Verdict::Ok, "{:?}", of(&facts, id));
    }
}

#[test]
fn a_home_that_can_only_be_read_hides_nothing() {
    let mut facts = fine();
    unit(&mut facts, "ProtectHome=yes", "ProtectHome=read-only");
    facts.settings.source = Some(Source::Dir("/root/network".into()));
    assert_eq!(of(&facts, "unit-hardening").verdict, Verdict::Ok, "{:?}", of(&facts, "unit-hardening"));
}
