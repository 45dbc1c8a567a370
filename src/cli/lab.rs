//! `patronus lab`: a private copy of a site or a fleet in network namespaces on this machine.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

mod demo;
mod script;

pub use demo::demo;

use super::{Exit, Failure, Outcome};
use crate::{
    lab::{self, Lab, Node, Topology},
    units::Name,
    validate::intent::Site,
};

/// What the namespaces of `lab up` begin with.
const PREFIX: &str = "patronus";

/// A private copy of a site in network namespaces on this machine
#[derive(Debug, Clone, clap::Args)]
pub struct LabArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: LabVerb,
}

/// What to do with a lab.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum LabVerb {
    /// Build the namespaces of a configuration and leave them up
    Up(UpArgs),
    /// Remove the namespaces and end what runs in them
    Down(DownArgs),
    /// Show in a minute what Patronus does: a fibre is cut, a call goes on
    Demo(DemoArgs),
    /// Run a command in a node of the lab
    Exec(ExecArgs),
    /// List the nodes that are up
    Status,
}

/// Arguments of `lab up`.
#[derive(Debug, Clone, clap::Args)]
pub struct UpArgs {
    /// Directory with the configuration
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Only this site
    #[arg(long)]
    pub site: Option<Name>,
}

/// Arguments of `lab down`.
#[derive(Debug, Clone, clap::Args)]
pub struct DownArgs {
    /// Also what demos and tests have left behind, or still use
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `lab demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Directory with the configuration; without it, a built-in site with a fibre and an LTE uplink
    pub dir: Option<PathBuf>,
    /// The site, where there is more than one
    #[arg(long)]
    pub site: Option<Name>,
}

/// Arguments of `lab exec`.
#[derive(Debug, Clone, clap::Args)]
pub struct ExecArgs {
    /// The node, as `lab status` names it
    pub node: String,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// How a directory becomes sites; diagnostics are in the failure.
pub type Load<'a> = &'a dyn Fn(&Path) -> Result<BTreeMap<Name, Site>, Failure>;

/// Runs `patronus lab`.
pub fn run(args: &LabArgs, load: Load<'_>) -> Outcome {
    match &args.verb {
        LabVerb::Up(args) => up(args, load),
        LabVerb::Down(args) => down(args),
        LabVerb::Demo(args) => {
            let exe = std::env::current_exe().map_err(|e| Failure::error("finding this program", &e))?;
            demo(args, load, &exe)
        }
        LabVerb::Exec(args) => exec(args),
        LabVerb::Status => {
            status();
            Ok(Exit::Done)
        }
    }
}

fn up(args: &UpArgs, load: Load<'_>) -> Outcome {
    privilege("up")?;
    let sites = load(&args.dir)?;
    let chosen: Vec<&Site> = match &args.site {
        Some(name) => vec![site(&sites, name)?],
        None => sites.values().collect(),
    };
    let topology = lab::topology(chosen).map_err(|e| Failure::error("planning the lab", &e))?;
    let start = Instant::now();
    let lab = Lab::build(topology, PREFIX).map_err(|e| failure("building the lab", &e))?;
    anstream::println!("{} namespaces in {} ms\n", lab.topology().nodes().len(), start.elapsed().as_millis());
    anstream::print!("{}", nodes(lab.topology()));
    if let Some(router) = lab.topology().sites.keys().next() {
        anstream::println!("\nEnter one:    patronus lab exec {router} -- ip route");
    }
    anstream::println!("Remove all:   patronus lab down");
    lab.leave();
    Ok(Exit::Done)
}

fn down(args: &DownArgs) -> Outcome {
    privilege("down")?;
    let mut prefixes = vec![PREFIX.to_owned()];
    if args.all {
        let labs = lab::list(PREFIX).into_iter().filter_map(|ns| ns.split_once('-').map(|(lab, _)| lab.to_owned()));
        prefixes.extend(labs);
        prefixes.sort();
        prefixes.dedup();
    }
    for prefix in prefixes {
        let removed = lab::remove(&prefix).map_err(|e| failure("removing the lab", &e))?;
        if !removed.is_empty() {
            anstream::println!("{prefix}: {} namespaces removed", removed.len());
        }
    }
    Ok(Exit::Done)
}

fn exec(args: &ExecArgs) -> Outcome {
    privilege("exec")?;
    let ns = format!("{PREFIX}-{}", args.node);
    if !lab::list(&ns).contains(&ns) {
        let known = lab::list(&format!("{PREFIX}-"));
        let known: Vec<&str> = known.iter().filter_map(|ns| Some(ns.split_once('-')?.1)).collect();
        let known = if known.is_empty() { "no lab is up: `patronus lab up`".to_owned() } else { known.join(", ") };
        return Err(Failure::new(Exit::Error, format!("the lab has no node {}; there is: {known}", args.node)));
    }
    lab::enter(&ns).map_err(|e| failure("entering the node", &e))?;
    let (program, rest) = args.command.split_first().ok_or_else(|| Failure::new(Exit::Usage, "no command given"))?;
    let error = Command::new(program).args(rest).exec();
    Err(Failure::error(format!("running {}", program.display()), &error))
}

fn status() {
    let names = lab::list(&format!("{PREFIX}-"));
    if names.is_empty() {
        anstream::println!("No lab is up. Build one: patronus lab up DIR");
    }
    for name in names.iter().filter_map(|ns| Some(ns.split_once('-')?.1)) {
        anstream::println!("{name}");
    }
    let others = lab::list(PREFIX).into_iter().filter(|ns| !ns.starts_with("patronus-")).count();
    if others > 0 {
        anstream::println!("({others} namespaces of demos or tests; `patronus lab down --all` removes them too)");
    }
}

fn site<'a>(sites: &'a BTreeMap<Name, Site>, name: &Name) -> Result<&'a Site, Failure> {
    sites.get(name).ok_or_else(|| {
        let known: Vec<&str> = sites.keys().map(Name::as_str).collect();
        Failure::new(Exit::Error, format!("there is no site {name}; there is: {}", known.join(", ")))
    })
}

/// One line for each node: its name and its addresses.
fn nodes(topology: &Topology) -> String {
    let line = |node: &Node| format!("  {:<28} {}\n", node.to_string(), describe(topology, node));
    topology.nodes().iter().map(line).collect()
}

fn describe(topology: &Topology, node: &Node) -> String {
    let join = |parts: Vec<String>| if parts.is_empty() { "-".to_owned() } else { parts.join(", ") };
    let on =
        |dev: &str, nets: &mut dyn Iterator<Item = String>| format!("{dev} {}", nets.collect::<Vec<_>>().join(" "));
    match node {
        Node::Internet => topology.targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        Node::Router(name) => {
            let Some(site) = topology.sites.get(name) else { return String::new() };
            let lans =
                site.lans.iter().map(|(dev, lan)| on(dev.as_str(), &mut lan.router.iter().map(ToString::to_string)));
            let uplinks = site.uplinks.values();
            let links = uplinks.map(|u| on(u.interface.as_str(), &mut u.legs.iter().map(|leg| leg.router.to_string())));
            join(lans.chain(links).collect())
        }
        Node::Host(name, dev) => {
            let lan = topology.sites.get(name).and_then(|site| site.lans.get(dev));
            join(lan.into_iter().flat_map(|lan| &lan.host).map(ToString::to_string).collect())
        }
        Node::Provider(name, endpoint) => {
            let link = topology.uplink(name.as_str(), endpoint.as_str());
            join(link.into_iter().flat_map(|link| &link.legs).map(|leg| leg.gateway.to_string()).collect())
        }
    }
}

/// A lab's failure; a missing privilege has an exit status of its own.
fn failure(doing: &str, error: &lab::Error) -> Failure {
    let mut failure = Failure::error(doing, error);
    let said = &failure.message;
    if said.contains("not permitted") || said.contains("ermission denied") {
        failure.exit = Exit::Privilege;
        failure.message.push_str("\n  help: use sudo, or `unshare -Urnm patronus lab demo` as an ordinary user");
    } else if said.contains("No such file") && matches!(error, lab::Error::Tool { .. }) {
        failure.message.push_str("\n  help: apt install iproute2 nftables");
    }
    failure
}

/// Checks for root. In a user namespace of our own, `/run` is covered by a private one first.
fn privilege(verb: &str) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        let message = format!(
            "`lab {verb}` makes network namespaces, which needs root\n  help: sudo patronus lab {verb}\n  \
             help: or, as an ordinary user: unshare -Urnm patronus lab demo"
        );
        return Err(Failure::new(Exit::Privilege, message));
    }
    if mapped_root() && fs::create_dir_all("/run/netns").and_then(|()| writable("/run/netns")).is_err() {
        let cover = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).stdin(Stdio::null()).output();
        if !cover.is_ok_and(|output| output.status.success()) {
            let message = "this user namespace may not write /run/netns\n  help: unshare -Urnm patronus lab demo";
            return Err(Failure::new(Exit::Privilege, message));
        }
    }
    Ok(())
}

/// Whether root here is not root of the machine (`user_namespaces(7)`).
fn mapped_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

fn writable(dir: &str) -> io::Result<()> {
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).map_err(io::Error::from)
}
