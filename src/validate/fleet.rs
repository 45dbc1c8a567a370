//! What concerns more than one site: names, selectors, overlapping networks, addresses, tunnel ids.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Report, error, intent::Health, warning};
use crate::{
    config::{
        Config, Object, Scope,
        schema::Kind,
        types::{FailoverSpec, PathSpec, PolicySpec, SiteSpec},
    },
    diag::{Code, Span},
    units::Name,
};

/// The configuration, looked up by site.
pub struct Fleet<'a> {
    pub config: &'a Config,
    pub sites: BTreeMap<&'a Name, View<'a>>,
    pub sla: BTreeMap<Name, Health>,
}

/// Everything that applies to one site. Names that apply twice are there once; the second is reported.
pub struct View<'a> {
    pub name: &'a Name,
    pub object: &'a Object<SiteSpec>,
    pub labels: &'a BTreeMap<String, String>,
    pub paths: BTreeMap<&'a Name, &'a Object<PathSpec>>,
    pub rules: Vec<&'a Object<FailoverSpec>>,
    pub policies: Vec<&'a Object<PolicySpec>>,
}

impl<'a> Fleet<'a> {
    pub fn new(config: &'a Config, sla: BTreeMap<Name, Health>) -> Self {
        let mut sites = BTreeMap::new();
        for object in &config.sites {
            let Some(labels) = config.labels.get(&object.name) else { continue };
            let view = || View {
                name: &object.name,
                object,
                labels,
                paths: BTreeMap::new(),
                rules: Vec::new(),
                policies: Vec::new(),
            };
            sites.entry(&object.name).or_insert_with(view);
        }
        for path in &config.paths {
            if let Scope::Site(site) = &path.scope
                && let Some(view) = sites.get_mut(site)
            {
                view.paths.entry(&path.name).or_insert(path);
            }
        }
        scatter(&mut sites, &config.rules, |view, rule| view.rules.push(rule));
        scatter(&mut sites, &config.policies, |view, policy| view.policies.push(policy));
        Self { config, sites, sla }
    }
}

/// Gives every object to the sites that it applies to.
fn scatter<'a, T>(
    sites: &mut BTreeMap<&'a Name, View<'a>>,
    objects: &'a [Object<T>],
    push: impl Fn(&mut View<'a>, &'a Object<T>),
) {
    for object in objects {
        match &object.scope {
            Scope::Site(site) | Scope::Selected(site) => {
                if let Some(view) = sites.get_mut(site) {
                    push(view, object);
                }
            }
            scope => {
                for view in sites.values_mut().filter(|view| scope.covers(view.name, view.labels)) {
                    push(view, object);
                }
            }
        }
    }
}

/// Objects of one kind with one name in one scope.
pub fn duplicates(config: &Config, report: &mut Report) {
    twice(config, &config.sites, "site", report);
    twice(config, &config.paths, "path", report);
    twice(config, &config.rules, "failover rule", report);
    twice(config, &config.sla_classes, "SLA class", report);
    twice(config, &config.policies, "policy", report);
}

fn twice<T>(config: &Config, objects: &[Object<T>], noun: &str, report: &mut Report) {
    let mut seen: BTreeMap<(String, &Name), &Object<T>> = BTreeMap::new();
    for object in objects {
        let scope = match &object.scope {
            Scope::Fleet => String::new(),
            Scope::Site(site) => format!("{site}/"),
            // Two objects by selector are in each other's way only where both apply: see `Ambiguous`.
            Scope::Selected(_) => continue,
            Scope::Selector(wanted) => format!("{wanted:?}/"),
        };
        let name = object.name.clone();
        let Some(first) = seen.insert((scope, &object.name), object) else { continue };
        // The inline objects of a site that is there twice are a consequence, not a second fault.
        if config.is_inline(first) && config.is_inline(object) {
            continue;
        }
        let shown = match &object.scope {
            Scope::Site(site) if noun != "site" => format!("{site}/{name}"),
            _ => name.to_string(),
        };
        let found = error(Code::Duplicate, config.name(object), format!("{noun} `{shown}` is defined twice"));
        report.add(found.note(config.name(first), "first defined here").help("delete one of them, or rename it"));
    }
}

/// Selectors that match nothing, and documents for sites that do not exist.
pub fn selectors(config: &Config, report: &mut Report) {
    owners(config, &config.paths, report);
    owners(config, &config.rules, report);
    owners(config, &config.policies, report);
}

fn owners<T>(config: &Config, objects: &[Object<T>], report: &mut Report) {
    for object in objects {
        match &object.scope {
            Scope::Site(site) if !config.labels.contains_key(site) && !config.is_broken(Kind::Site, site.as_str()) => {
                let found = error(Code::Dangling, config.field(object, "/site"), format!("there is no site `{site}`"));
                report.add(with_suggestion(found, site.as_str(), config.labels.keys()));
            }
            // Files of policies without any site are a library, not a mistake.
            Scope::Selector(_) if config.labels.is_empty() || config.lacks_sites() => {}
            Scope::Selector(wanted)
                if !config.labels.iter().any(|(site, labels)| object.scope.covers(site, labels)) =>
            {
                let labels: Vec<String> = wanted.iter().map(|(key, value)| format!("{key}: {value}")).collect();
                let message = format!("no site carries the labels {}", crate::diag::listed(&labels, 5));
                let found = warning(Code::SelectsNothing, config.field_name(object, "/selector"), message);
                report.add(match near_labels(wanted, config) {
                    Some(help) => found.help(help),
                    None => found,
                });
            }
            _ => {}
        }
    }
}

/// What the sites carry under a label that none of them carries as it was asked for.
fn near_labels(wanted: &BTreeMap<String, String>, config: &Config) -> Option<String> {
    let keys: BTreeSet<&str> = config.labels.values().flat_map(|labels| labels.keys().map(String::as_str)).collect();
    wanted.iter().find_map(|(key, value)| {
        let values: BTreeSet<&str> = config.labels.values().filter_map(|l| l.get(key)).map(String::as_str).collect();
        if values.contains(value.as_str()) {
            return None;
        }
        if values.is_empty() {
            let near = crate::diag::suggest(key, keys.iter().copied());
            return Some(match near {
                Some(near) => format!("no site has a label `{key}`; did you mean `{near}`?"),
                None => format!("no site has a label `{key}`"),
            });
        }
        let values: Vec<&str> = values.into_iter().collect();
        Some(match crate::diag::suggest(value, values.iter().copied()) {
            Some(near) => format!("did you mean `{key}: {near}`?"),
            None => format!("the sites' values of `{key}` are {}", crate::diag::listed(&values, 8)),
        })
    })
}

/// The finding with the nearest of the names that would have been right, or all of them if they are few.
pub fn with_suggestion<'a>(
    found: crate::diag::Diagnostic,
    word: &str,
    names: impl IntoIterator<Item = &'a Name>,
) -> crate::diag::Diagnostic {
    let names: Vec<&Name> = names.into_iter().collect();
    match crate::diag::suggest(word, names.iter().map(|n| n.as_str())) {
        Some(near) => found.help(format!("did you mean `{near}`?")),
        None if !names.is_empty() && names.len() <= 8 => {
            let verb = if names.len() == 1 { "is" } else { "are" };
            found.help(format!("there {verb} {}", crate::diag::listed(&names, 8)))
        }
        None => found,
    }
}

/// All checks across sites.
pub fn check(fleet: &Fleet<'_>, report: &mut Report) {
    lans(fleet, report);
    addresses(fleet, report);
    super::tunnels::ids(fleet, report);
}

struct Claim<'a, T> {
    what: T,
    site: &'a Name,
    at: Box<dyn Fn() -> Span + 'a>,
}

/// LAN prefixes that share addresses: sorted by network, each is compared with those that still hold it.
fn lans(fleet: &Fleet<'_>, report: &mut Report) {
    let mut claims: Vec<Claim<'_, IpNet>> = Vec::new();
    for view in fleet.sites.values() {
        for (l, lan) in view.object.spec.lan.iter().enumerate() {
            for (p, prefix) in lan.prefixes.iter().enumerate() {
                let at = move || fleet.config.field(view.object, &format!("/lan/{l}/prefixes/{p}"));
                claims.push(Claim { what: prefix.0, site: view.name, at: Box::new(at) });
            }
        }
    }
    claims.sort_by_key(|c| (c.what.network(), c.what.prefix_len()));
    let mut widest: Option<&Claim<'_, IpNet>> = None;
    for claim in &claims {
        match widest.filter(|w| w.what.contains(&claim.what)) {
            Some(wide) => {
                let message = if wide.site == claim.site {
                    format!("the LAN prefix {} overlaps {} of the same site", claim.what, wide.what)
                } else {
                    format!(
                        "the LAN prefix {} of `{}` overlaps {} of `{}`",
                        claim.what, claim.site, wide.what, wide.site
                    )
                };
                let found = error(Code::LanOverlap, (claim.at)(), message).note((wide.at)(), "the other prefix");
                let help = "renumber one of them: a prefix behind a router is written once in the whole configuration";
                report.add(found.help(help).concerns([claim.site, wide.site]));
            }
            None => widest = Some(claim),
        }
    }
}

/// Endpoint addresses that occur twice: within a site always, across sites when they are global.
fn addresses(fleet: &Fleet<'_>, report: &mut Report) {
    let mut seen: BTreeMap<IpAddr, (&Name, &Name, Span)> = BTreeMap::new();
    for view in fleet.sites.values() {
        for (name, endpoint) in &view.object.spec.endpoints {
            let Some(address) = endpoint.address else { continue };
            let at = fleet.config.field(view.object, &format!("/endpoints/{name}/address"));
            match seen.get(&address.0) {
                Some((site, other, first)) if *site == view.name || is_global(address.0) => {
                    let message = clash(&address, (view.name, name), (site, other));
                    let found = error(Code::DuplicateAddress, at, message).note(first.clone(), "first used here");
                    let help = "correct one of them, or leave `address` out: it is observed then";
                    report.add(found.help(help).concerns([view.name, *site]));
                }
                _ => {
                    seen.insert(address.0, (view.name, name, at));
                }
            }
        }
    }
}

fn clash(address: &dyn Display, (site, name): (&Name, &Name), (other_site, other): (&Name, &Name)) -> String {
    format!("the address {address} of `{site}/{name}` is also that of `{other_site}/{other}`")
}

/// Whether an address means one place in the world: not private (RFC 1918, RFC 4193), shared (RFC 6598)
/// or link-local.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            !(v4.is_private() || v4.is_link_local() || v4.is_loopback() || (a == 100 && b & 0xc0 == 64))
        }
        IpAddr::V6(v6) => !(v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_loopback()),
    }
}
