//! Failover rules: their paths, thresholds and classes, resolved for one site.

use std::collections::BTreeMap;

use super::{
    Report, error,
    fleet::{Fleet, View, with_suggestion},
    intent::{self, NoPath, Strategy},
    paths::sla_missing,
};
use crate::{
    config::{Object, schema::Kind, types::FailoverSpec},
    diag::{Code, Diagnostic, Span, suggest},
    units::{Name, Span as Length},
};

/// Checks the rules of a site and builds them.
pub fn check(fleet: &Fleet<'_>, view: &View<'_>, report: &mut Report) -> BTreeMap<Name, intent::Rule> {
    let mut rules: BTreeMap<Name, intent::Rule> = BTreeMap::new();
    let mut places: BTreeMap<&Name, &Object<FailoverSpec>> = BTreeMap::new();
    for object in view.rules.iter().copied().filter(|rule| rule.spec.enabled) {
        if let Some(first) = places.insert(&object.name, object) {
            ambiguous(fleet, view, (first, object), "failover rule", report);
            continue;
        }
        if let Some(rule) = (Subject { fleet, view, object }).rule(report) {
            rules.insert(object.name.clone(), rule);
        }
    }
    rules
}

/// Two objects of one name that apply to one site, unless they were already reported as duplicates.
pub fn ambiguous<T>(
    fleet: &Fleet<'_>,
    view: &View<'_>,
    (first, second): (&Object<T>, &Object<T>),
    noun: &str,
    report: &mut Report,
) {
    if first.scope == second.scope && !matches!(first.scope, crate::config::Scope::Selected(_)) {
        return;
    }
    let message = format!("two {noun}s named `{}` apply", second.name);
    let found = error(Code::Ambiguous, fleet.config.name(second), message);
    let found = found.note(fleet.config.name(first), "the other one").help("rename one of them, or narrow a selector");
    report.add_for(second, view.name, found);
}

/// Resolves the name of a path inside a site; `own` says that the name was written for this site alone.
pub fn path_named(fleet: &Fleet<'_>, view: &View<'_>, own: bool, name: &Name, at: Span) -> Option<Diagnostic> {
    if view.paths.contains_key(name) || fleet.config.is_broken(Kind::Path, name.as_str()) {
        return None;
    }
    let elsewhere = fleet.sites.values().find_map(|other| other.paths.get(name).map(|path| (other.name, path)));
    let found = match elsewhere.filter(|_| own) {
        Some((site, path)) => {
            let message = format!("the path `{name}` belongs to another site, `{site}`");
            error(Code::CrossSite, at, message).note(fleet.config.name(path), "it is here")
        }
        None => error(Code::Dangling, at, format!("there is no path `{name}`")),
    };
    Some(with_suggestion(found, name.as_str(), view.paths.keys().copied()))
}

struct Subject<'a> {
    fleet: &'a Fleet<'a>,
    view: &'a View<'a>,
    object: &'a Object<FailoverSpec>,
}

impl Subject<'_> {
    fn at(&self, field: &str) -> Span {
        self.fleet.config.field(self.object, field)
    }

    fn report(&self, report: &mut Report, found: Diagnostic) {
        report.add_for(self.object, self.view.name, found);
    }

    fn rule(&self, report: &mut Report) -> Option<intent::Rule> {
        let spec = &self.object.spec;
        self.reserved(report);
        let members = self.members(report);
        let (low, high) = (spec.failover_threshold.unwrap_or(50), spec.failback_threshold.unwrap_or(80));
        if high <= low {
            let field = if spec.failback_threshold.is_some() { "/failbackThreshold" } else { "/failoverThreshold" };
            let message = format!("the failback threshold {high} is not above the failover threshold {low}");
            self.report(report, error(Code::Thresholds, self.at(field), message));
        }
        let sla = spec.sla_class.as_ref().and_then(|class| {
            let health = self.fleet.sla.get(class).copied();
            if health.is_none()
                && let Some(found) = sla_missing(self.fleet, class, self.object)
            {
                self.report(report, found);
            }
            health
        });
        let strategy = self.word(report, "strategy", spec.strategy.as_deref(), STRATEGIES, LATER_STRATEGIES);
        let no_path = self.word(report, "noPath", spec.no_path.as_deref(), NO_PATHS, LATER_NO_PATHS);
        let rule = intent::Rule {
            name: self.object.name.clone(),
            members,
            strategy,
            failover_threshold: low,
            failback_threshold: high,
            failback_delay: spec.failback_delay.map_or(std::time::Duration::from_secs(60), Length::get),
            sla,
            no_path,
        };
        (!rule.members.is_empty()).then_some(rule)
    }

    fn reserved(&self, report: &mut Report) {
        let given =
            [("flowAction", self.object.spec.flow_action.is_some()), ("damping", self.object.spec.damping.is_some())];
        for (field, _) in given.into_iter().filter(|(_, given)| *given) {
            let at = self.fleet.config.field_name(self.object, &format!("/{field}"));
            let found = error(Code::NotYet, at, format!("`{field}` is not supported yet")).help("delete it");
            self.report(report, found);
        }
    }

    /// The rule's paths, the primary first.
    fn members(&self, report: &mut Report) -> Vec<Name> {
        let spec = &self.object.spec;
        let backups = spec.backups.iter().enumerate().map(|(n, name)| (format!("/backups/{n}"), name));
        let mut members: Vec<Name> = Vec::new();
        for (field, name) in std::iter::once(("/primary".to_owned(), &spec.primary)).chain(backups) {
            if let Some(found) = path_named(self.fleet, self.view, self.object.is_own(), name, self.at(&field)) {
                self.report(report, found);
            } else if members.contains(name) {
                let twice = if *name == spec.primary { "is the primary" } else { "is named twice" };
                let found = error(Code::Backup, self.at(&field), format!("the backup `{name}` {twice}"));
                self.report(report, found.help("name a different path"));
            } else if self.view.paths.contains_key(name) {
                members.push(name.clone());
            }
        }
        members
    }

    /// The meaning of a word; the first one where none is given or it is wrong.
    fn word<T: Copy, const N: usize>(
        &self,
        report: &mut Report,
        field: &str,
        word: Option<&str>,
        known: [(&str, T); N],
        later: &[&str],
    ) -> T {
        let Some(word) = word else { return known[0].1 };
        if let Some((_, meaning)) = known.iter().find(|(name, _)| *name == word) {
            return *meaning;
        }
        let names = known.map(|(name, _)| name);
        let at = self.at(&format!("/{field}"));
        let found = if later.contains(&word) {
            error(Code::NotYet, at, format!("`{field}: {word}` is not supported yet"))
        } else {
            error(Code::WrongValue, at, format!("`{word}` is not a value of `{field}`"))
        };
        let help = suggest(word, names).map(|near| format!("did you mean `{near}`?"));
        self.report(
            report,
            found.help(help.unwrap_or_else(|| format!("the values are {}", crate::diag::listed(&names, 5)))),
        );
        known[0].1
    }
}

const STRATEGIES: [(&str, Strategy); 2] = [("ordered", Strategy::Ordered), ("best-score", Strategy::BestScore)];
const LATER_STRATEGIES: &[&str] = &["best-quality", "lowest-cost", "load-balance", "overflow"];
const NO_PATHS: [(&str, NoPath); 2] = [("keep", NoPath::Keep), ("reject", NoPath::Reject)];
const LATER_NO_PATHS: &[&str] = &["leastBad", "nextPolicy"];
