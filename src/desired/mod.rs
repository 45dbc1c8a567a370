//! Compiles intent, selection, allocations and facts into the desired state. Pure.
//!
//! The selection is an *input* here: failover changes it and this same pipeline does the rest.

mod allocate;
pub mod assumed;
pub mod classify;
mod nft;
mod print;
mod routes;
mod share;
mod sysctl;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    failover::Selection,
    state::{Allocations, Facts, Key, NftTable, Originals, Ranges, State, Target, Value},
    units::{Family, IfName, Name},
    validate::intent::{Path, Site},
};

pub use nft::NIL_STAMP;
pub use routes::{ACTIVE, next_hops, obstacle};

/// Why an intent cannot be compiled for this router.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The mask has too few bits.
    #[error(
        "site {site} needs {needed} {what}, the mask {mask} has room for {room}: widen `ranges.{setting}` in the router's settings"
    )]
    TooMany {
        /// The site.
        site: Name,
        /// `targets` or `policies`.
        what: &'static str,
        /// How many there are.
        needed: usize,
        /// The mask.
        mask: crate::units::MarkMask,
        /// How many fit.
        room: u32,
        /// The setting to change.
        setting: &'static str,
    },
    /// The template did not render: a value outside its alphabet, or a fault in the template.
    #[error("rendering the nftables ruleset of site {site}")]
    Template {
        /// The site.
        site: Name,
        /// The cause.
        #[source]
        source: minijinja::Error,
    },
}

/// What the desired state is compiled from, beside the site.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Which path each rule uses.
    pub selection: &'a Selection,
    /// Interfaces, addresses, gateways as they are now.
    pub facts: &'a Facts,
    /// Numbers in use: what the kernel shows, or what was last known if its table is gone.
    pub known: &'a Allocations,
    /// Our ranges.
    pub ranges: &'a Ranges,
    /// Values that sysctls had before we first set them.
    pub originals: &'a Originals,
}

/// A desired state and the numbers in it. The nft value's `canonical` is empty: the kernel port fills it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// The state.
    pub state: State,
    /// The numbers.
    pub allocations: Allocations,
}

/// Compiles everything that shall be in the kernel of `site`.
pub fn compile(site: &Site, inputs: Inputs<'_>) -> Result<Compiled, CompileError> {
    let allocations = allocate::allocate(site, inputs.known, inputs.ranges)?;
    let mut state = State::default();
    state.objects.extend(routes::tunnels(site, inputs.facts));
    state.objects.extend(routes::routes(site, &inputs, &allocations));
    state.objects.extend(routes::rules(site, &inputs, &allocations));
    state.objects.extend(sysctl::sysctls(site, &inputs));
    let source = nft::render(site, &inputs, &allocations)?;
    state.objects.insert(Key::Nft, Value::Nft(NftTable { canonical: "".into(), source: source.into() }));
    // Made at once a map fills its nodes; grown in order it leaves them half empty, and this one is kept.
    state.objects = state.objects.into_iter().collect();
    Ok(Compiled { state, allocations })
}

/// The part of the desired state that a switch of paths changes at once: the routes. The fast path after a path dies
/// is their difference alone.
#[must_use]
pub fn compile_routes(site: &Site, inputs: Inputs<'_>, allocations: &Allocations) -> State {
    State { objects: routes::routes(site, &inputs, allocations).collect() }
}

/// Everything that traffic of a site can be sent to.
#[must_use]
pub fn targets(site: &Site) -> BTreeSet<Target> {
    allocate::targets(site)
}

/// What stays when everything of ours is taken away: sysctls at the values they had.
#[must_use]
pub fn nothing(originals: &Originals, facts: &Facts) -> State {
    State { objects: sysctl::restored(originals, facts).collect() }
}

/// Sysctls of tunnels of ours that are there and no longer wanted.
#[must_use]
pub fn of_leaving_tunnels(desired: &State, observed: &State) -> Vec<Key> {
    sysctl::of_leaving_tunnels(desired, observed)
}

/// Paths of the sysctls that a site wants or has wanted, for the scope of an observation.
#[must_use]
pub fn sysctl_scope(site: &Site, originals: &Originals) -> Vec<String> {
    sysctl::scope(site, originals)
}

/// Paths of all sysctls that a site with these interfaces could want.
#[must_use]
pub fn sysctls_of(interfaces: &[IfName]) -> Vec<String> {
    sysctl::of_interfaces(interfaces)
}

/// The source address of a path per family: what probes and tunnels are sent from. Fixed by the endpoint or
/// taken from the interface.
#[must_use]
pub fn source_addresses(site: &Site, path: &Name, facts: &Facts) -> BTreeMap<Family, std::net::IpAddr> {
    let Some(path) = site.paths.get(path) else { return BTreeMap::new() };
    let fixed = site.endpoints.get(&path.from).and_then(|e| e.address).filter(|_| is_uplink(site, &path.interface));
    let mut found: BTreeMap<Family, std::net::IpAddr> =
        Family::ALL.into_iter().filter_map(|f| Some((f, address_on(facts, &path.interface, f)?))).collect();
    found.extend(fixed.map(|a| (Family::of(&a), a)));
    found
}

/// The addresses of this router.
#[must_use]
pub fn own_addresses(facts: &Facts) -> BTreeSet<std::net::IpAddr> {
    facts.links.values().flat_map(|link| &link.addresses).map(ipnet::IpNet::addr).collect()
}

/// The probe targets of a path that are addresses of this router. They would be answered here, whatever the path does.
#[must_use]
pub fn own_targets(path: &Path, own: &BTreeSet<std::net::IpAddr>) -> Vec<std::net::IpAddr> {
    path.probe.targets.iter().filter(|target| own.contains(target)).copied().collect()
}

/// What stands in the way of each path of a site that cannot be used now, or not in one family that it is given, or not
/// be probed.
#[must_use]
pub fn obstacles(site: &Site, facts: &Facts) -> Vec<String> {
    let addresses = own_addresses(facts);
    let own = |path: &Path| {
        let targets: Vec<String> = own_targets(path, &addresses).iter().map(ToString::to_string).collect();
        (!targets.is_empty()).then(|| {
            let (name, targets) = (&path.name, targets.join(", "));
            format!("path {name}: this router itself has the address of its probe target {targets}, which is not asked")
        })
    };
    let of = |path: &std::sync::Arc<Path>| {
        let whole = obstacle(site, path, facts).or_else(|| too_wide(path, facts));
        whole.into_iter().chain(routes::lame(site, path, facts)).chain(own(path))
    };
    site.paths.values().flat_map(of).collect()
}

/// A path whose `mtu` is above that of its interface, which is known: its route promises more than the link carries. A
/// tunnel's interface is made with the path's.
#[must_use]
pub fn too_wide(path: &Path, facts: &Facts) -> Option<String> {
    let link = facts.links.get(&path.interface).filter(|_| path.under().is_none())?.mtu;
    let mtu = path.mtu.filter(|mtu| *mtu > link)?;
    Some(format!(
        "path {} has `mtu: {mtu}`, and its interface {} carries packets of {link} bytes: larger ones are lost in \
         silence; set `mtu: {link}` or less",
        path.name, path.interface
    ))
}

fn is_uplink(site: &Site, interface: &IfName) -> bool {
    site.endpoints.values().any(|e| e.interface == *interface)
}

/// The first address of an interface in a family; the facts list global ones first.
fn address_on(facts: &Facts, interface: &IfName, family: Family) -> Option<std::net::IpAddr> {
    let addresses = &facts.links.get(interface)?.addresses;
    addresses.iter().map(ipnet::IpNet::addr).find(|a| Family::of(a) == family)
}

#[cfg(test)]
mod tests;
