//! The daemon holds what it owns and nothing else: drift, sources that change, stores that fail, service managers.

mod bare;
mod drift;
mod fights;
mod refused;
mod revisions;
mod source;
mod store;

use patronus::engine::status::Status;

use crate::support::daemon::{Daemon, Repository};

/// One small site with quick probes.
pub const SITE: &str = include_str!("reconcile/site.yaml");

fn repository() -> Repository {
    Repository::new(&[("site.yaml", SITE)])
}

/// Everything that is ours, as `ip` and `nft` show it, without what changes with every apply.
pub fn ours(daemon: &Daemon) -> String {
    daemon.sh("nft -s list table inet patronus 2>/dev/null | grep -v 'comment \"generation' || true
         (ip -4 rule show; ip -6 rule show) | grep 'proto 157' | sort || true
         for table in $(seq 20001 20012); do
           ip -4 route show table $table proto 157 2>/dev/null || true
           ip -6 route show table $table proto 157 2>/dev/null || true
         done
         cd /proc/sys/net; grep . ipv4/ip_forward ipv6/conf/all/forwarding ipv4/conf/wan0/rp_filter \
           ipv4/conf/wan0/src_valid_mark ipv4/conf/wan0/ignore_routes_with_linkdown \
           ipv6/conf/wan0/ignore_routes_with_linkdown ipv6/conf/wwan0/accept_ra")
}

pub fn all_up(status: &Status) -> bool {
    status.paths.len() == 2 && status.paths.values().all(|p| p.health.state == patronus::health::PathState::Up)
}

fn drifted(status: &Status, kind: &str) -> u64 {
    status.totals.drift.get(kind).copied().unwrap_or_default()
}
