//! The systemd unit: that it restarts and watches the daemon, and that its hardening takes nothing away that the daemon
//! needs.

use std::path::{Path, PathBuf};

use super::{Facts, Finding};
use crate::{
    settings::Source,
    source::git::{Secret, Verify},
    validate::intent::Method,
};

/// The unit with its drop-ins, if there is one.
fn unit_text(facts: &Facts) -> Option<String> {
    let places = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
    let main = places.iter().find_map(|place| facts.text(&format!("{place}/patronus.service")))?;
    let more = facts.texts_below("/etc/systemd/system/patronus.service.d").map(|(_, text)| text);
    Some(std::iter::once(main).chain(more).collect::<Vec<_>>().join("\n"))
}

/// The last value of a key in a unit.
fn value<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    let mut values = unit.lines().filter_map(|line| line.split_once('=')).filter(|(k, _)| k.trim() == key);
    values.next_back().map(|(_, value)| value.trim())
}

/// The same of one section: elsewhere systemd ignores the key.
fn value_in<'a>(unit: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let mut here = false;
    let mine = unit.lines().filter(|line| {
        if let Some(name) = line.trim().strip_prefix('[') {
            here = name.strip_suffix(']') == Some(section);
        }
        here
    });
    let mut values = mine.filter_map(|line| line.split_once('=')).filter(|(k, _)| k.trim() == key);
    values.by_ref().last().map(|(_, value)| value.trim())
}

const NO_UNIT: &str = "there is no unit patronus.service";

pub(super) fn restarts(facts: &Facts) -> Finding {
    let Some(unit) = unit_text(facts) else { return Finding::skipped(NO_UNIT) };
    let wanted = [
        ("Service", "Type", "notify", "systemd then knows when the daemon is ready"),
        ("Service", "Restart", "always", "a daemon that dies is started again"),
        ("Unit", "StartLimitIntervalSec", "0", "one that dies five times in ten seconds is started again, too"),
        ("Service", "RuntimeDirectoryPreserve", "yes", "the lock outlives its holder"),
    ];
    let says = |(section, key, good, why): &(&str, &str, &str, &str)| {
        Finding::warn(format!("{key} is not {good}"), format!("`{key}={good}` below `[{section}]`: {why}"))
    };
    let differs = |(section, key, good, _): &&(&str, &str, &str, &str)| value_in(&unit, section, key) != Some(good);
    let mut found: Vec<Finding> = wanted.iter().filter(differs).map(says).collect();
    if value(&unit, "WatchdogSec").is_none_or(|text| text == "0") {
        found.push(Finding::warn("there is no watchdog", "`WatchdogSec=30`: a loop that hangs is restarted"));
    }
    Finding::worst(found, "the unit restarts and watches the daemon")
}

/// Families of sockets that nothing goes without.
const FAMILIES: [(&str, &str); 4] = [
    ("AF_NETLINK", "the kernel cannot be configured"),
    ("AF_INET", "no path can be probed by IPv4"),
    ("AF_INET6", "no path can be probed by IPv6"),
    ("AF_UNIX", "there is no control socket, and systemd cannot be told that the daemon is ready"),
];
/// What takes away more than the daemon can do without, and the one value of it that does.
const HARMFUL: [(&str, Option<&str>, &str); 3] = [
    ("ProtectKernelTunables", None, "keeps the daemon from setting sysctls"),
    ("PrivateNetwork", None, "takes the network away"),
    ("ProcSubset", Some("pid"), "hides the sysctls"),
];

pub(super) fn hardening(facts: &Facts) -> Finding {
    let Some(unit) = unit_text(facts) else { return Finding::skipped(NO_UNIT) };
    let mut found = harmful(&unit);
    found.extend(capabilities(&unit));
    found.extend(families(&unit, facts));
    found.extend(namespaces(&unit));
    found.extend(directories(&unit, facts));
    for (key, good) in [("NoNewPrivileges", "yes"), ("ProtectSystem", "strict")] {
        if value(&unit, key) != Some(good) {
            found.push(Finding::warn(
                format!("{key} is not {good}"),
                format!("`{key}={good}`, as in the unit that is shipped"),
            ));
        }
    }
    Finding::worst(found, "the unit gives what is needed and no more")
}

fn is_no(unit: &str, key: &str) -> bool {
    value(unit, key).is_none_or(|text| matches!(text, "" | "no" | "false" | "off" | "0"))
}

fn harmful(unit: &str) -> Vec<Finding> {
    let set = |key: &str, bad: Option<&str>| bad.map_or_else(|| !is_no(unit, key), |bad| value(unit, key) == Some(bad));
    let all = HARMFUL.iter().filter(|(key, bad, _)| set(key, *bad));
    all.map(|(key, _, why)| Finding::fail(format!("{key}= {why}"), format!("take {key}= out of it"))).collect()
}

/// What a key that lists things lets through: each line adds to those before, an empty one begins anew, and `~` takes
/// away (`systemd.exec`(5)).
enum Listed<'a> {
    Everything,
    Only(Vec<&'a str>),
    Except(Vec<&'a str>),
}

impl Listed<'_> {
    fn has(&self, item: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Only(list) => list.contains(&item),
            Self::Except(list) => !list.contains(&item),
        }
    }
}

fn listed<'a>(unit: &'a str, key: &str) -> Listed<'a> {
    let lines = unit.lines().filter_map(|line| line.split_once('=')).filter(|(k, _)| k.trim() == key);
    lines.fold(Listed::Everything, |known, (_, value)| {
        let value = value.trim();
        let (takes, words) = value.strip_prefix('~').map_or((false, value), |rest| (true, rest));
        let words = words.split_whitespace();
        match known {
            _ if value.is_empty() => Listed::Everything,
            Listed::Everything if takes => Listed::Except(words.collect()),
            Listed::Everything => Listed::Only(words.filter(|word| *word != "none").collect()),
            Listed::Only(list) if takes => {
                let gone: Vec<&str> = words.collect();
                Listed::Only(list.into_iter().filter(|item| !gone.contains(item)).collect())
            }
            Listed::Only(list) => Listed::Only(list.into_iter().chain(words).collect()),
            Listed::Except(list) if takes => Listed::Except(list.into_iter().chain(words).collect()),
            Listed::Except(list) => {
                let back: Vec<&str> = words.collect();
                Listed::Except(list.into_iter().filter(|item| !back.contains(item)).collect())
            }
        }
    })
}

fn capabilities(unit: &str) -> Vec<Finding> {
    let set = listed(unit, "CapabilityBoundingSet");
    if !matches!(set, Listed::Only(_)) {
        let remedy = "`CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN`";
        return vec![Finding::warn("the daemon has every capability", remedy)];
    }
    let missing = ["CAP_NET_ADMIN", "CAP_NET_RAW"].into_iter().filter(|capability| !set.has(capability));
    let told = |c: &str| {
        Finding::fail(format!("{c} is not in CapabilityBoundingSet="), format!("`CapabilityBoundingSet={c}`"))
    };
    missing.map(told).collect()
}

fn families(unit: &str, facts: &Facts) -> Vec<Finding> {
    const KEY: &str = "RestrictAddressFamilies";
    let set = listed(unit, KEY);
    let missing = FAMILIES.iter().filter(|(family, _)| !set.has(family));
    let says = |family: &str, why: &str| (format!("{family} is not in {KEY}=: {why}"), format!("`{KEY}={family}`"));
    let mut found: Vec<Finding> = missing.map(|(family, why)| says(family, why)).map(fail).collect();
    if !set.has("AF_PACKET") {
        let asks = |method: &Method| matches!(method, Method::Gateway);
        let used = facts.site().is_some_and(|site| site.paths.values().any(|path| asks(&path.probe.method)));
        let (says, remedy) = says("AF_PACKET", "each probe by the method `gateway` over IPv4 is lost at once");
        found.push(if used { Finding::fail(says, remedy) } else { Finding::warn(says, remedy) });
    }
    found
}

fn fail((says, remedy): (String, String)) -> Finding {
    Finding::fail(says, remedy)
}

/// A ruleset is tried in an empty network namespace, which without `CAP_SYS_ADMIN` takes a user namespace as well.
fn namespaces(unit: &str) -> Option<Finding> {
    const KEY: &str = "RestrictNamespaces";
    let privileged = listed(unit, "CapabilityBoundingSet").has("CAP_SYS_ADMIN");
    let needed: &[&str] = if privileged { &["net"] } else { &["net", "user"] };
    let lets = match value(unit, KEY) {
        Some("yes" | "true" | "on" | "1") => false,
        _ => is_no(unit, KEY) || needed.iter().all(|kind| listed(unit, KEY).has(kind)),
    };
    let remedy = format!("`{KEY}={}`", needed.join(" "));
    (!lets).then(|| Finding::fail(format!("{KEY}= keeps rulesets from being tried: none is ever loaded"), remedy))
}

/// Directories that the daemon writes to or reads, and that the unit hides or makes read-only.
fn directories(unit: &str, facts: &Facts) -> Vec<Finding> {
    let settings = &facts.settings;
    let socket = settings.socket.parent().map(Path::to_owned);
    let written: Vec<PathBuf> =
        [settings.state_dir.clone(), settings.runtime_dir.clone()].into_iter().chain(socket).collect();
    let home = |path: &Path| below_any(path, ["/home", "/root", "/run/user"]);
    let (hides_home, keeps_home) = match value(unit, "ProtectHome") {
        Some("yes" | "true" | "on" | "1" | "tmpfs") => (true, false),
        Some("read-only") => (false, true),
        _ => (false, false),
    };
    let hidden = |path: &Path| hides_home && home(path);
    let all = written.iter().cloned().chain(read(facts));
    let mut found: Vec<Finding> = all.filter(|path| hidden(path)).map(|path| hides(&path)).collect();
    if keeps_home {
        found.extend(written.iter().filter(|path| home(path)).map(|path| read_only("ProtectHome=read-only", path)));
    }
    if value(unit, "ProtectSystem") == Some("strict") {
        let open = writable(unit);
        let closed = written.iter().filter(|path| !hidden(path) && !below_any(path, open.iter().map(String::as_str)));
        found.extend(closed.map(|path| read_only("ProtectSystem=strict", path)));
    }
    found
}

fn below_any<'a>(path: &Path, places: impl IntoIterator<Item = &'a str>) -> bool {
    places.into_iter().any(|place| path.starts_with(place))
}

fn hides(path: &Path) -> Finding {
    let path = path.display();
    Finding::fail(
        format!("ProtectHome= hides {path} from the daemon"),
        format!("move it, to below /etc/patronus say: {path}"),
    )
}

fn read_only(what: &str, path: &Path) -> Finding {
    let path = path.display();
    Finding::fail(format!("{what} makes {path} read-only"), format!("`ReadWritePaths={path}`"))
}

/// What can be written where the file system is read-only otherwise.
fn writable(unit: &str) -> Vec<String> {
    let words = |key| match listed(unit, key) {
        Listed::Only(words) => words,
        Listed::Everything | Listed::Except(_) => Vec::new(),
    };
    let own = [("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run")];
    let own =
        own.into_iter().flat_map(|(key, place)| words(key).into_iter().map(move |word| format!("{place}/{word}")));
    let given = words("ReadWritePaths").into_iter().map(|word| word.trim_start_matches(['-', '+']).to_owned());
    let temporary = ["/tmp", "/var/tmp", "/dev", "/proc", "/sys"].map(str::to_owned);
    own.chain(given).chain(temporary).collect()
}

/// Files and directories that the settings tell the daemon to read.
fn read(facts: &Facts) -> Vec<PathBuf> {
    let file = |secret: Option<&Secret>| match secret {
        Some(Secret::File(file)) => Some(file.clone()),
        _ => None,
    };
    let mut all: Vec<PathBuf> = file(facts.settings.report.as_ref().map(|report| &report.token)).into_iter().collect();
    match &facts.settings.source {
        Some(Source::Dir(directory)) => all.push(directory.clone()),
        Some(Source::Git(spec)) => {
            all.extend(file(spec.secret.as_ref()));
            all.extend(spec.known_hosts.clone().into_iter().chain(spec.ca.clone()));
            all.extend(match &spec.verify {
                Verify::Head(signers) => Some(signers.clone()),
                Verify::Off => None,
            });
        }
        None => {}
    }
    all
}
