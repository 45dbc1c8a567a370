//! From a loaded configuration to an intent: references, addressing, policies, failover, probing, limits.
//!
//! Invariant: an [`Intent`] comes out exactly when there is no error, here or in loading.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ipnet::IpNet;

pub mod intent;

mod fleet;
mod paths;
mod policies;
mod probe;
mod probing;
mod rules;
mod shadow;
mod site;
mod tunnels;

use self::intent::{Band, Health, Intent};
use crate::{
    config::{
        Config, Object,
        types::{BandSpec, HealthSpec},
    },
    diag::{self, Code, Diagnostic, Severity, Span},
    state::Ranges,
    units::{MarkMask, Name, Ratio, Span as Length},
};

/// What the router's own settings say that bears on the configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bits that number paths, rules and members of a site.
    pub target_mask: MarkMask,
    /// Bits that number policies of a site.
    pub policy_mask: MarkMask,
    /// Prefixes whose traffic no policy may drop, reject or name to steer it.
    pub protected: Vec<IpNet>,
}

impl Default for Options {
    fn default() -> Self {
        let Ranges { target_mask, policy_mask, .. } = Ranges::default();
        Self { target_mask, policy_mask, protected: Vec::new() }
    }
}

/// A path is healthy below these where the configuration says nothing else: 150 ms and 30 ms are what
/// interactive voice bears (ITU-T G.114 and common practice).
#[must_use]
pub fn default_health() -> Health {
    let loss = Ratio::from_ppm(20_000).unwrap_or(Ratio::ZERO);
    Health { latency: Duration::from_millis(150), jitter: Duration::from_millis(30), loss, recover: None }
}

/// Checks with the default settings.
#[must_use]
pub fn check(config: &Config) -> (Option<Intent>, Vec<Diagnostic>) {
    check_with(config, &Options::default())
}

/// Checks everything that a schema cannot. All findings at once, sorted by place.
#[must_use]
pub fn check_with(config: &Config, options: &Options) -> (Option<Intent>, Vec<Diagnostic>) {
    let mut report = Report::default();
    let sla = sla_classes(config);
    fleet::duplicates(config, &mut report);
    fleet::selectors(config, &mut report);
    let fleet = fleet::Fleet::new(config, sla);
    let mut sites = BTreeMap::new();
    for view in fleet.sites.values() {
        report.site = Some(view.name.clone());
        let site = site::check(&fleet, view, options, &mut report);
        sites.insert(view.name.clone(), site);
    }
    report.site = None;
    fleet::check(&fleet, &mut report);
    let found = report.finish();
    let sound = !config.failed() && !diag::has_errors(&found);
    (sound.then_some(Intent { sites }), found)
}

fn sla_classes(config: &Config) -> BTreeMap<Name, Health> {
    let health = |spec: &crate::config::types::SlaSpec| {
        overlay(
            HealthSpec { latency: spec.latency, jitter: spec.jitter, loss: spec.loss, recover: spec.recover },
            default_health(),
        )
    };
    config.sla_classes.iter().map(|class| (class.name.clone(), health(&class.spec))).collect()
}

/// The thresholds that are given, and the base for the rest.
fn overlay(spec: HealthSpec, base: Health) -> Health {
    let health = Health {
        latency: spec.latency.map_or(base.latency, Length::get),
        jitter: spec.jitter.map_or(base.jitter, Length::get),
        loss: spec.loss.unwrap_or(base.loss),
        recover: base.recover,
    };
    Health { recover: spec.recover.map(|own| band(own, &health)).or(base.recover), ..health }
}

/// The recovery bands that are given, and the thresholds for the rest.
fn band(spec: BandSpec, health: &Health) -> Band {
    Band {
        latency: spec.latency.map_or(health.latency, Length::get),
        jitter: spec.jitter.map_or(health.jitter, Length::get),
        loss: spec.loss.unwrap_or(health.loss),
    }
}

/// What makes a finding the same one at many sites.
type Finding = (Option<Span>, Code, String);

/// Collects findings; one that a shared object causes at many sites is told once, with the sites' names.
#[derive(Debug, Default)]
struct Report {
    found: Vec<Diagnostic>,
    /// The site that is being checked.
    site: Option<Name>,
    shared: BTreeMap<Finding, (Diagnostic, BTreeSet<Name>)>,
}

impl Report {
    fn add(&mut self, found: Diagnostic) {
        let found = if found.sites.is_empty() { found.concerns(&self.site) } else { found };
        self.found.push(found);
    }

    fn extend(&mut self, found: Option<Diagnostic>) {
        if let Some(found) = found {
            self.add(found);
        }
    }

    /// A finding about `object` as it applies to `site`.
    fn add_for<T>(&mut self, object: &Object<T>, site: &Name, found: Diagnostic) {
        if matches!(object.scope, crate::config::Scope::Site(_)) {
            return self.add(found);
        }
        let key = (found.span.clone(), found.code, found.message.clone());
        self.shared.entry(key).or_insert_with(|| (found, BTreeSet::new())).1.insert(site.clone());
    }

    fn finish(mut self) -> Vec<Diagnostic> {
        for (mut found, sites) in self.shared.into_values() {
            let sites: Vec<Name> = sites.into_iter().collect();
            let word = if sites.len() == 1 { "site" } else { "sites" };
            found.message = format!("{} (at {word} {})", found.message, diag::listed(&sites, 3));
            self.found.push(found.concerns(&sites));
        }
        diag::sort(&mut self.found);
        diag::cap(&mut self.found, "checking");
        self.found
    }
}

/// Shorthand of the checks: an error at a place.
fn error(code: Code, at: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic { severity: Severity::Error, ..Diagnostic::error(code, message) }.at(at)
}

/// Shorthand of the checks: a warning at a place.
fn warning(code: Code, at: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::warning(code, message).at(at)
}
