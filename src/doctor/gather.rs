//! Looking at the machine. Everything below a root that tests can choose, but for the kernel, which is that of the
//! calling thread's network namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    net::TcpListener,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    sys::statvfs::{FsFlags, statvfs},
    unistd::{AccessFlags, access, geteuid},
};

use super::facts::{Configuration, Facts, Kernel as Seen, Place, Port, Trial, Trials};
use crate::{
    clock, desired,
    failover::Selection,
    kernel::{
        Kernel as _, KernelError, Scope,
        linux::{self, Linux, processes},
        lock,
    },
    plan::Step,
    settings::{Settings, Source},
    source::git::{Spec, Verify},
    state::{Allocations, Fwmark, Key, Ranges, RuleKey, State, Tunnel, Value},
    units::{Family, IfName},
    validate::intent::Site,
};

/// What is known before the look.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Below which directory files are looked for; `/` but in tests.
    pub root: PathBuf,
    /// The settings, or the defaults.
    pub settings: Settings,
    /// What is wrong with them.
    pub settings_error: Option<String>,
    /// The file that they are in.
    pub settings_file: PathBuf,
    /// The configuration.
    pub configuration: Configuration,
    /// What was applied last since the boot, if anything was.
    pub applied: Option<State>,
    /// Whether a daemon answers.
    pub daemon: bool,
}

/// Files that say how other programs are set up.
const FILES: [&str; 9] = [
    "/etc/systemd/networkd.conf",
    "/etc/firewalld/firewalld.conf",
    "/etc/ufw/ufw.conf",
    "/etc/default/ufw",
    "/etc/nftables.conf",
    "/etc/NetworkManager/NetworkManager.conf",
    "/etc/systemd/system/patronus.service",
    "/usr/lib/systemd/system/patronus.service",
    "/lib/systemd/system/patronus.service",
];
/// Directories whose files do, one level deep.
const DIRECTORIES: [&str; 10] = [
    "/usr/lib/systemd/networkd.conf.d",
    "/run/systemd/networkd.conf.d",
    "/etc/systemd/networkd.conf.d",
    "/etc/NetworkManager/conf.d",
    "/usr/share/iproute2",
    "/usr/lib/iproute2",
    "/etc/iproute2",
    "/usr/share/iproute2/rt_protos.d",
    "/etc/iproute2/rt_protos.d",
    "/etc/systemd/system/patronus.service.d",
];
/// Files whose being there says something.
const MARKERS: [&str; 2] =
    ["/run/systemd/timesync/synchronized", "/etc/systemd/system/sysinit.target.wants/nftables.service"];
const SYSCTLS: [&str; 6] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv4/conf/all/rp_filter",
    "ipv4/ping_group_range",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_count",
];
const LINK_SYSCTLS: [&str; 4] = [
    "ipv4/conf/{}/rp_filter",
    "ipv4/conf/{}/src_valid_mark",
    "ipv4/conf/{}/ignore_routes_with_linkdown",
    "ipv6/conf/{}/accept_ra",
];
/// Larger files hold no settings.
const LARGEST: u64 = 256 << 10;
/// A ruleset with every kind of statement that ours have, for a site that is not known.
const SAMPLE: &str = "table inet patronus {
  set targets { type mark; elements = { 0x01000000 comment \"path/sample\" }; }
  counter policy_sample { packets 0 bytes 0; }
  chain prerouting { type filter hook prerouting priority mangle; policy accept;
    ct mark & 0xff000000 == 0x01000000 meta mark set meta mark & 0x00ffffff | 0x01000000 counter name policy_sample accept
    ip dscp ef meta l4proto udp udp dport { 5060, 10000-20000 } ct mark set ct mark & 0x00ffffff | 0x01000000; }
  chain srcnat { type nat hook postrouting priority srcnat; policy accept; oifname \"none\" masquerade; }
  chain forward { type filter hook forward priority mangle; policy accept; tcp flags syn tcp option maxseg size set rt mtu; }
}
";
const CONNECTION_MARK: &str =
    "table inet patronus { chain c { type filter hook prerouting priority 0; ct mark set 0x01000000; }; }\n";

/// Looks at everything.
pub async fn gather(asked: Asked) -> Facts {
    let site = match &asked.configuration {
        Configuration::Site(site) => Some(Arc::clone(site)),
        _ => None,
    };
    let (kernel, nft) = look(&asked.settings.ranges, site.as_deref()).await;
    let places = places(&asked);
    Facts {
        texts: texts(&asked, site.as_deref()),
        places,
        kernel,
        applied: asked.applied,
        nft,
        processes: processes::running(),
        user: geteuid().as_raw(),
        capabilities: linux::capabilities(),
        holder: lock::peek(&asked.settings.runtime_dir),
        daemon: asked.daemon,
        metrics: port(&asked.settings),
        wall: clock::wall().as_micros() / 1_000_000,
        uptime: clock::now().as_nanos() / 1_000_000_000,
        zones: jiff::tz::TimeZone::get("Europe/Berlin").is_ok(),
        settings: asked.settings,
        settings_error: asked.settings_error,
        settings_file: asked.settings_file,
        configuration: asked.configuration,
    }
}

async fn look(ranges: &Ranges, site: Option<&Site>) -> (Result<Seen, String>, Option<String>) {
    let linux = match Linux::connect() {
        Ok(linux) => linux,
        Err(error) => return (Err(error.to_string()), None),
    };
    let nft = linux.nft_version();
    let seen = see(&linux, ranges, site).await.map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    });
    (seen, nft)
}

async fn see(linux: &Linux, ranges: &Ranges, site: Option<&Site>) -> Result<Seen, KernelError> {
    let scope = Scope { ranges: *ranges, sysctls: Vec::new(), interfaces: Vec::new() };
    let observed = linux.observe(&scope).await?;
    let source = site.and_then(|site| ruleset(site, &observed.facts, ranges)).unwrap_or_else(|| SAMPLE.to_owned());
    let trials = Trials {
        ruleset: loaded(linux, &source).await,
        connection_mark: loaded(linux, CONNECTION_MARK).await,
        vxlan: trial(vec![tunnel()], *ranges).await,
        rules: trial(Family::ALL.map(|family| rule(family, ranges)).to_vec(), *ranges).await,
    };
    Ok(Seen { observed, around: linux.surroundings(ranges)?, neighbours: linux.neighbours()?, trials })
}

/// The ruleset of a site, with the primary paths.
fn ruleset(site: &Site, facts: &crate::state::Facts, ranges: &Ranges) -> Option<String> {
    let (selection, known, originals) = (Selection::default(), Allocations::default(), BTreeMap::new());
    let inputs = desired::Inputs { selection: &selection, facts, known: &known, ranges, originals: &originals };
    match desired::compile(site, inputs).ok()?.state.objects.remove(&Key::Nft)? {
        Value::Nft(table) => Some(table.source.to_string()),
        _ => None,
    }
}

async fn loaded(linux: &Linux, source: &str) -> Trial {
    match linux.canonical(source).await {
        Ok(_) => Trial::Works,
        Err(KernelError::Privilege { .. } | KernelError::Missing { .. }) => Trial::Untried,
        Err(error) => Trial::Fails(error.to_string()),
    }
}

async fn trial(steps: Vec<Step>, ranges: Ranges) -> Trial {
    match linux::in_empty_namespace(steps, ranges).await {
        None => Trial::Untried,
        Some(Ok(())) => Trial::Works,
        Some(Err(error)) => Trial::Fails(error.to_string()),
    }
}

fn set(key: Key, value: Value) -> Step {
    Step::Set { key, before: None, after: Some(value), reason: "a trial".into() }
}

fn rule(family: Family, ranges: &Ranges) -> Step {
    let mark = ranges.target_mask.mark(1);
    let fwmark = Some(Fwmark { mark, mask: ranges.target_mask.bits() });
    let (priority, table) = (ranges.priority(1), ranges.table(1));
    set(Key::Rule(RuleKey { priority, family, fwmark, oif: None, table, suppress_prefixlength: None }), Value::Rule)
}

fn tunnel() -> Step {
    let name = |text: &str| -> IfName { text.parse().unwrap_or_else(|_| unreachable!("a constant name is valid")) };
    let local = std::net::Ipv4Addr::LOCALHOST.into();
    let remote = std::net::Ipv4Addr::new(127, 0, 0, 2).into();
    let tunnel = Tunnel { id: 1, local, remote, port: 4789, over: name("lo"), mtu: 1400, addresses: Vec::new() };
    set(Key::Link { name: name("trial") }, Value::Link(Box::new(tunnel)))
}

fn texts(asked: &Asked, site: Option<&Site>) -> BTreeMap<PathBuf, String> {
    let mut wanted: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    wanted.extend(SYSCTLS.iter().map(|path| PathBuf::from(format!("/proc/sys/net/{path}"))));
    let interfaces: BTreeSet<&IfName> = site.iter().flat_map(|s| s.endpoints.values()).map(|e| &e.interface).collect();
    for interface in interfaces {
        let paths = LINK_SYSCTLS.iter().map(|path| path.replace("{}", interface.as_str()));
        wanted.extend(paths.map(|path| PathBuf::from(format!("/proc/sys/net/{path}"))));
    }
    if let Some(Source::Git(spec)) = &asked.settings.source {
        wanted.extend(texts_of(spec));
    }
    for directory in DIRECTORIES {
        let entries = fs::read_dir(below(&asked.root, Path::new(directory))).into_iter().flatten().flatten();
        wanted.extend(entries.map(|entry| Path::new(directory).join(entry.file_name())));
    }
    wanted.into_iter().filter_map(|path| Some((path.clone(), text(&below(&asked.root, &path))?))).collect()
}

/// Files of a Git source that are no secret.
fn texts_of(spec: &Spec) -> impl Iterator<Item = PathBuf> {
    let signers = match &spec.verify {
        Verify::Head(file) => Some(file.clone()),
        Verify::Off => None,
    };
    signers.into_iter().chain(spec.known_hosts.clone()).chain(spec.ca.clone())
}

/// Where an absolute path is below the root; one that starts here is what it is.
fn below(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix("/").map_or_else(|_| path.to_owned(), |rest| root.join(rest))
}

fn text(path: &Path) -> Option<String> {
    let file = fs::File::open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn places(asked: &Asked) -> BTreeMap<PathBuf, Place> {
    let settings = &asked.settings;
    let mut wanted = vec![settings.state_dir.clone(), settings.runtime_dir.clone(), asked.settings_file.clone()];
    wanted.extend(MARKERS.iter().map(PathBuf::from));
    if let Some(Source::Git(spec)) = &settings.source
        && let Some(crate::source::git::Secret::File(file)) = &spec.secret
    {
        wanted.push(file.clone());
    }
    if let Some(crate::source::git::Secret::File(file)) = settings.report.as_ref().map(|report| &report.token) {
        wanted.push(file.clone());
    }
    wanted.into_iter().filter_map(|path| Some((path.clone(), place(&below(&asked.root, &path))?))).collect()
}

fn place(path: &Path) -> Option<Place> {
    let metadata = fs::metadata(path).ok()?;
    let space = statvfs(path).ok()?;
    Some(Place {
        directory: metadata.is_dir(),
        mode: metadata.mode() & 0o7777,
        owner: metadata.uid(),
        writable: access(path, AccessFlags::W_OK).is_ok(),
        read_only: space.flags().contains(FsFlags::ST_RDONLY),
        bytes: (space.blocks_available() * space.fragment_size(), space.blocks() * space.fragment_size()),
        inodes: (space.files_available(), space.files()),
    })
}

fn port(settings: &Settings) -> Port {
    let Some(address) = settings.metrics else { return Port::Off };
    match TcpListener::bind(address) {
        Ok(_) => Port::Free,
        Err(error) => Port::Refused(format!("{address} cannot be listened on: {error}")),
    }
}
