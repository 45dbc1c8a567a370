//! `patronus init`: a first repository, from the interfaces of this machine or from an example.
//!
//! Invariant: nothing that is there is overwritten, and what is written validates.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use super::{Exit, Failure, Outcome, context};
use crate::{
    config::{self, Snapshot, schema},
    diag,
    kernel::{Scope, linux::Linux},
    state::{Facts, Gateway, LinkFacts, Ranges},
    units::{IfName, Name},
    validate,
};

/// What is written when this machine has no uplink to begin with.
const EXAMPLE: &str = include_str!("../../examples/one-site/berlin.yaml");
const EXAMPLE_NAME: &str = "berlin";
const SCHEMA: &str = "patronus.schema.json";
const IGNORED: &str = "# Saved plans and snapshots hold for a moment and one router.\n*.plan\n*.snapshot.json\n";
const MODELINE: &str = "# yaml-language-server: $schema=../patronus.schema.json\n";
/// Interfaces that programs make for themselves.
const MADE_BY_OTHERS: [&str; 9] = ["docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "tailscale", "lxc"];

/// Begin a repository: one site, from this machine's interfaces where it has an uplink
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// An empty directory, made if it is missing
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Name of the site [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    site: Option<Name>,
    /// Begin from the example, whatever interfaces there are
    #[arg(long)]
    example: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    let name = args.site.clone().unwrap_or_else(this_machine);
    must_be_empty(&args.dir)?;
    let facts = if args.example { Facts::default() } else { interfaces() };
    let (text, from) = match from_machine(&name, &facts).filter(|text| is_valid(text)) {
        Some(text) => (text, "the interfaces of this machine"),
        None => (from_example(&name), "an example: put your interfaces and addresses in place of its own"),
    };
    let text = config::format::format(&text).unwrap_or(text);
    let site = format!("sites/{name}.yaml");
    let schema = format!("{:#}\n", schema::any());
    for (file, text) in [(site.as_str(), text.as_str()), (SCHEMA, &schema), (".gitignore", IGNORED)] {
        create(&args.dir.join(file), text).map_err(|error| Failure::error(format!("cannot write {file}"), &error))?;
    }
    let dir = args.dir.display();
    let said = format!(
        "{dir}/{site} is made from {from}\n{dir}/{SCHEMA} is for editors, {dir}/.gitignore for Git\n\n\
         next:  patronus validate {dir}\n       patronus plan {dir} --site {name}   (shows what it would change, and changes nothing)\n       \
         git init {dir} && git -C {dir} add . && git -C {dir} commit -m 'the first site'\n"
    );
    // The files are there; a closed standard output takes nothing away.
    let _ = anstream::stdout().write_all(said.as_bytes());
    Ok(Exit::Done)
}

/// A directory with a repository in it and nothing else is empty too.
fn must_be_empty(dir: &Path) -> Result<(), Failure> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::error(format!("cannot look into {}", dir.display()), &error)),
    };
    let mut others = entries.flatten().map(|entry| entry.file_name()).filter(|name| name != ".git");
    match others.next() {
        None => Ok(()),
        Some(first) => {
            let text = format!(
                "{} is not empty ({} is there): `init` overwrites nothing\n  name another directory, or begin from examples/one-site",
                dir.display(),
                first.to_string_lossy()
            );
            Err(Failure::new(Exit::Error, text))
        }
    }
}

fn create(file: &Path, text: &str) -> io::Result<()> {
    file.parent().map_or(Ok(()), fs::create_dir_all)?;
    File::create_new(file)?.write_all(text.as_bytes())
}

/// This machine's name as a name of ours.
fn this_machine() -> Name {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().split('.').next().unwrap_or_default();
    named(host).unwrap_or_else(context::nameless)
}

/// A text with the letters that names have.
fn named(text: &str) -> Option<Name> {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    text.chars().map(letter).collect::<String>().trim_matches('-').parse().ok()
}

/// What the kernel shows; nothing where it cannot be asked.
fn interfaces() -> Facts {
    let scope = Scope { ranges: Ranges::default(), sysctls: Vec::new(), interfaces: Vec::new() };
    let observed = Linux::connect().and_then(|linux| linux.observe_routing(&scope));
    observed.map(|observed| observed.facts).unwrap_or_default()
}

fn from_example(name: &Name) -> String {
    MODELINE.to_owned() + &EXAMPLE.replace(&format!("name: {EXAMPLE_NAME}"), &format!("name: {name}"))
}

fn is_valid(text: &str) -> bool {
    let files = [("site.yaml".to_owned(), text.as_bytes().to_vec())].into();
    let (config, mut found) = config::load(&Snapshot { revision: String::new(), files, commit: None });
    let (intent, more) = validate::check(&config);
    found.extend(more);
    intent.is_some() && !diag::has_errors(&found)
}

/// A site from the interfaces; nothing if none has a default route.
fn from_machine(name: &Name, facts: &Facts) -> Option<String> {
    let uplinks: BTreeMap<Name, (&IfName, &LinkFacts)> = facts
        .links
        .iter()
        .filter(|(_, link)| !link.gateways.is_empty())
        .filter_map(|(interface, link)| Some((named(interface.as_str())?, (interface, link))))
        .collect();
    let (first, others) = uplinks.keys().next().map(|first| (first, uplinks.keys().skip(1).collect::<Vec<_>>()))?;
    let mut out = MODELINE.to_owned();
    let _ = write!(
        out,
        "\n# Made by `patronus init` from the interfaces of this machine. Read every line before the first `apply`.\n\
         apiVersion: patronus.network/v1alpha1\nkind: Site\nmetadata: {{name: {name}}}\nspec:\n{}",
        lan(facts)
    );
    out += "\n  # Uplinks. `gateway: auto` is what DHCP, PPP or router advertisements put into the main table.\n  endpoints:\n";
    for (name, (interface, link)) in &uplinks {
        let _ = writeln!(out, "    {name}: {{interface: {interface}, gateway: auto}}   # {}", seen(link));
    }
    out += "\n  # What traffic can be steered onto. The targets of a probe must not fail together.\n  paths:\n";
    for name in uplinks.keys() {
        let probe = "{targets: [1.1.1.1, 9.9.9.9, 8.8.8.8]}";
        let _ = writeln!(out, "    {name}: {{from: {name}, to: internet, nat: masquerade, probe: {probe}}}");
    }
    let default = if others.is_empty() {
        out += "\n  # With a second uplink: `failover: {internet: {primary: ..., backups: [...]}}`, and policies that name it.\n";
        format!("{{path: {first}}}")
    } else {
        let backups = others.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        let _ = write!(
            out,
            "\n  # The best path first; the others take over in this order.\n  failover:\n    \
             internet: {{primary: {first}, backups: [{backups}]}}\n\n"
        );
        "{failover: internet}".to_owned()
    };
    let _ = write!(
        out,
        "  # The first match wins, by priority. What matches nothing follows the main table as before.\n  policies:\n    \
         default: {{priority: 1000, action: {default}}}\n"
    );
    Some(out)
}

/// Networks behind the router: private addresses on interfaces without a default route.
fn lan(facts: &Facts) -> String {
    let private = |net: &&IpNet| match net.addr() {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    };
    let foreign = |name: &IfName| name.as_str() == "lo" || MADE_BY_OTHERS.iter().any(|p| name.as_str().starts_with(p));
    let mut lines = String::new();
    for (name, link) in facts.links.iter().filter(|(name, link)| link.gateways.is_empty() && !foreign(name)) {
        let nets: Vec<String> = link.addresses.iter().filter(private).map(|net| net.trunc().to_string()).collect();
        if !nets.is_empty() {
            let _ = writeln!(lines, "    - {{interface: {name}, prefixes: [{}]}}", nets.join(", "));
        }
    }
    if lines.is_empty() {
        return "  # No network behind this router was found: `lan: [{interface: lan0, prefixes: [192.168.10.0/24]}]`\n".into();
    }
    format!("  # Networks behind this router.\n  lan:\n{lines}")
}

/// What an uplink has now, for the reader.
fn seen(link: &LinkFacts) -> String {
    let addresses = link.addresses.iter().map(ToString::to_string);
    let gateways = link.gateways.values().map(|gateway| match gateway {
        Gateway::Address(address) => format!("via {address}"),
        Gateway::Link => "point to point".to_owned(),
    });
    addresses.chain(gateways).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Family;

    fn link(address: &str, gateway: Option<&str>) -> LinkFacts {
        let gateways = gateway.map(|g| (Family::V4, Gateway::Address(g.parse().unwrap())));
        let addresses = vec![address.parse().unwrap()];
        LinkFacts {
            up: true,
            carrier: true,
            mtu: 1500,
            addresses,
            gateways: gateways.into_iter().collect(),
            index: 1,
            no_ipv6: false,
        }
    }

    fn machine(links: &[(&str, LinkFacts)]) -> Facts {
        Facts { links: links.iter().map(|(name, link)| (name.parse().unwrap(), link.clone())).collect() }
    }

    fn name() -> Name {
        "berlin".parse().unwrap()
    }

    #[test]
    fn two_uplinks_and_a_lan_become_a_site_that_validates() {
        let facts = machine(&[
            ("lo", link("127.0.0.1/8", None)),
            ("eth0.100", link("198.51.100.2/24", Some("198.51.100.1"))),
            ("wwan0", link("10.64.0.2/24", Some("10.64.0.1"))),
            ("lan0", link("192.168.10.1/24", None)),
            ("docker0", link("172.17.0.1/16", None)),
        ]);
        let text = from_machine(&name(), &facts).unwrap();
        assert!(is_valid(&text), "{text}");
        for part in [
            "eth0-100: {interface: eth0.100, gateway: auto}   # 198.51.100.2/24, via 198.51.100.1",
            "- {interface: lan0, prefixes: [192.168.10.0/24]}",
            "internet: {primary: eth0-100, backups: [wwan0]}",
            "default: {priority: 1000, action: {failover: internet}}",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("docker0") && text.starts_with(MODELINE));
    }

    #[test]
    fn one_uplink_is_a_path_and_none_is_the_example() {
        let one = from_machine(&name(), &machine(&[("ppp0", link("100.64.3.2/32", Some("100.64.0.1")))])).unwrap();
        assert!(is_valid(&one) && one.contains("action: {path: ppp0}"), "{one}");
        assert!(from_machine(&name(), &machine(&[("lan0", link("192.168.10.1/24", None))])).is_none());
        let example = from_example(&"paris".parse().unwrap());
        assert!(is_valid(&example) && example.contains("name: paris"), "{example}");
    }

    #[test]
    fn what_is_not_valid_is_not_written() {
        assert!(!is_valid("kind: Site\n"));
        // Two uplinks whose names differ in what names may not hold are one.
        assert_eq!(named("Eth0.100").unwrap().as_str(), "eth0-100");
        assert_eq!(named("..."), None);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let args = || Args { dir: dir.path().to_owned(), site: Some(name()), example: true };
        fs::create_dir(dir.path().join(".git")).unwrap();
        assert_eq!(run(&args()).unwrap(), Exit::Done);
        let before = fs::read(dir.path().join("sites/berlin.yaml")).unwrap();
        let refused = run(&args()).unwrap_err();
        assert!(refused.message.contains("is not empty"), "{}", refused.message);
        assert_eq!(fs::read(dir.path().join("sites/berlin.yaml")).unwrap(), before);
        assert!(create(&dir.path().join(SCHEMA), "x").is_err());
    }
}
