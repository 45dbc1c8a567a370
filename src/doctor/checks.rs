//! The checks, by what they are about. Each is a pure function over the facts.

mod kernel;
mod machine;
mod programs;
mod routing;
mod site;
mod source;
mod unit;

use super::{Check, Facts, Finding, Verdict};

macro_rules! checks {
    ($($id:literal, $about:literal, $run:path;)*) => {
        /// All checks, in the order in which they are shown. Their names stay.
        pub const CHECKS: &[Check] = &[$(Check { id: $id, about: $about, run: $run }),*];
    };
}

checks! {
    "kernel-access", "the kernel can be looked at", kernel::access;
    "kernel-ruleset", "the kernel takes our ruleset: tried in an empty network namespace", kernel::ruleset;
    "kernel-connection-mark", "connection tracking has marks", kernel::connection_mark;
    "kernel-rules", "rules by mark, for IPv4 and IPv6: tried in an empty network namespace", kernel::rules;
    "kernel-vxlan", "VXLAN, where the site has such tunnels: tried in an empty network namespace", kernel::vxlan;
    "nft-version", "the program `nft`, 1.0.6 or later", kernel::nft_version;
    "capabilities", "CAP_NET_ADMIN and CAP_NET_RAW, for whoever runs this", kernel::capabilities;
    "ping", "probes may be sent", kernel::ping;
    "networkd", "systemd-networkd leaves foreign routes and rules alone", programs::networkd;
    "networkmanager", "NetworkManager does not manage our interfaces", programs::networkmanager;
    "firewalld", "firewalld does not flush the ruleset and lets traffic through", programs::firewalld;
    "ufw", "ufw lets forwarded traffic through", programs::ufw;
    "nftables-service", "nftables.service does not flush our table", programs::nftables_service;
    "docker", "Docker does not drop forwarded traffic", programs::docker;
    "rules-ahead", "no rule of others is asked before ours for our traffic", routing::rules_ahead;
    "marks", "nobody else uses our mark bits", routing::marks;
    "ranges", "nobody else is in our tables and priorities", routing::ranges;
    "objects", "nobody changed what was applied last", routing::objects;
    "protocol-number", "nobody else has our protocol number, and it has its name", routing::protocol_number;
    "later-drops", "no chain of others drops forwarded traffic", routing::later_drops;
    "other-nat", "no chain of others translates addresses before ours", routing::other_nat;
    "flowtables", "no flow bypasses our chains", routing::flowtables;
    "rp-filter", "reverse-path filtering is not strict", routing::rp_filter;
    "forwarding", "the router forwards", routing::forwarding;
    "src-valid-mark", "reverse-path filtering looks at marks", routing::src_valid_mark;
    "ignore-linkdown", "routes of links without carrier are passed over", routing::ignore_linkdown;
    "accept-ra", "router advertisements are taken although the router forwards", routing::accept_ra;
    "conntrack-table", "the table of connections has room", routing::conntrack_table;
    "clock", "the clock is kept right", machine::clock;
    "clock-sane", "the clock is not obviously wrong", machine::clock_sane;
    "time-zones", "the time zones of change windows are known", machine::time_zones;
    "state-directory", "the state directory is there, ours and private", machine::state_directory;
    "runtime-directory", "the runtime directory can be used", machine::runtime_directory;
    "disk-space", "there is room for the records", machine::disk_space;
    "disk-inodes", "there are inodes for the records", machine::disk_inodes;
    "metrics-port", "the metrics port can be had", machine::metrics_port;
    "instance", "who works on this router", machine::instance;
    "unit", "the systemd unit restarts and watches the daemon", unit::restarts;
    "unit-hardening", "the systemd unit gives what is needed and no more", unit::hardening;
    "settings", "the settings are right", source::settings;
    "settings-mode", "nobody else can change the settings", source::settings_mode;
    "source", "the source can be read", source::readable;
    "configuration", "the configuration is valid and has this site", source::valid;
    "git-signers", "the file of allowed signers is there and parses", source::git_signers;
    "git-known-hosts", "the file of known hosts is there and knows the host", source::git_known_hosts;
    "git-credentials", "the secret of the repository is there, and private", source::git_credentials;
    "report-token", "the token for reports to the forge is there, and private", source::report_token;
    "git-authorities", "the file of further certificate authorities is there", source::git_authorities;
    "interfaces", "the site's interfaces are there and up", site::interfaces;
    "carriers", "the uplinks have a carrier", site::carriers;
    "addresses", "the uplinks have an address", site::addresses;
    "gateways", "the gateways are known and answer on the link", site::gateways;
    "mtu", "tunnels fit into the links under them", site::mtu;
}

/// Skips a check that needs to see the kernel.
fn seen(facts: &Facts) -> Result<&super::facts::Kernel, Finding> {
    facts.kernel.as_ref().map_err(|_| Finding::skipped("the kernel cannot be looked at, see kernel-access"))
}

/// Skips a check that needs the site.
fn known(facts: &Facts) -> Result<&crate::validate::intent::Site, Finding> {
    facts.site().ok_or_else(|| Finding::skipped("the site is not known, see source and configuration"))
}

/// Either way of a result.
fn either(result: Result<Finding, Finding>) -> Finding {
    result.unwrap_or_else(|skipped| skipped)
}
