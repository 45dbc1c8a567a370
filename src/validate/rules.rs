//! Failover rules: their paths, thresholds and classes, resolved for one site.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Report, error,
    fleet::{Fleet, View, with_suggestion},
    intent::{self, Balance, Damping, Endpoint, FlowAction, Metric, NoPath, Sticky, Strategy},
    paths::sla_missing,
    warning,
};
use crate::{
    config::{
        Object,
        scalars::Weights,
        schema::Kind,
        types::{
            DampingSpec, FailoverSpec, FlowActionName, FlowActionSpec, MetricName, NoPathName, StickyName, StrategyName,
        },
    },
    diag::{Code, Diagnostic, Span},
    units::{Family, Name, Ratio, Span as Length},
};

/// Checks the rules of a site and builds them.
pub fn check(
    fleet: &Fleet<'_>,
    view: &View<'_>,
    (families, endpoints): (&BTreeMap<Name, Vec<Family>>, &BTreeMap<Name, Endpoint>),
    report: &mut Report,
) -> BTreeMap<Name, intent::Rule> {
    let mut rules: BTreeMap<Name, intent::Rule> = BTreeMap::new();
    let mut places: BTreeMap<&Name, &Object<FailoverSpec>> = BTreeMap::new();
    for object in view.rules.iter().copied().filter(|rule| rule.spec.enabled) {
        if let Some(first) = places.insert(&object.name, object) {
            ambiguous(fleet, view, (first, object), "failover rule", report);
            continue;
        }
        if let Some(rule) = (Subject { fleet, view, families, endpoints, object }).rule(report) {
            rules.insert(object.name.clone(), rule);
        }
    }
    rules
}

/// How much better a path has to be for `best-quality`, in parts per million.
const BETTER: u32 = 100_000;
/// Above which share of a line new flows go on with `overflow`, in parts per million.
const FULL: u32 = 800_000;

const fn strategy(name: StrategyName) -> Strategy {
    match name {
        StrategyName::Ordered => Strategy::Ordered,
        StrategyName::BestScore => Strategy::BestScore,
        StrategyName::BestQuality => Strategy::BestQuality,
        StrategyName::LowestCost => Strategy::LowestCost,
        StrategyName::LoadBalance => Strategy::LoadBalance,
        StrategyName::Overflow => Strategy::Overflow,
    }
}

const fn metric(name: MetricName) -> Metric {
    match name {
        MetricName::Latency => Metric::Latency,
        MetricName::Jitter => Metric::Jitter,
        MetricName::Loss => Metric::Loss,
    }
}

const fn no_path(name: NoPathName) -> NoPath {
    match name {
        NoPathName::Keep => NoPath::Keep,
        NoPathName::Reject => NoPath::Reject,
        NoPathName::LeastBad => NoPath::LeastBad,
        NoPathName::NextPolicy => NoPath::NextPolicy,
    }
}

fn with_flows(rule: intent::Rule, spec: FlowActionSpec) -> intent::Rule {
    let drain = spec.drain.map_or(Duration::from_secs(600), Length::get);
    let action = |name| match name {
        FlowActionName::Graceful => FlowAction::Graceful,
        FlowActionName::Drain => FlowAction::Drain(drain),
        FlowActionName::Forced => FlowAction::Forced,
        FlowActionName::Reject => FlowAction::Reject,
    };
    intent::Rule {
        on_failover: spec.failover.map_or(FlowAction::Auto, action),
        on_failback: spec.failback.map_or(FlowAction::Graceful, action),
        ..rule
    }
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
    /// What each path can carry, as far as the configuration tells.
    families: &'a BTreeMap<Name, Vec<Family>>,
    endpoints: &'a BTreeMap<Name, Endpoint>,
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
        let members = self.members(report);
        self.alike(report);
        let (low, high) = (spec.failover_threshold.unwrap_or(50), spec.failback_threshold.unwrap_or(80));
        if high <= low {
            let field = if spec.failback_threshold.is_some() { "/failbackThreshold" } else { "/failoverThreshold" };
            let message = format!("the failback threshold {high} is not above the failover threshold {low}");
            let help = "return at a score well above the one at which the path is left, such as 80 and 50";
            self.report(report, error(Code::Thresholds, self.at(field), message).help(help));
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
        let rule = intent::Rule {
            strategy: strategy(spec.strategy.unwrap_or_default()),
            metric: metric(spec.metric.unwrap_or_default()),
            advantage: self.advantage(),
            balance: self.balance(&members, report),
            overflow: self.overflow(&members, report),
            failover_threshold: low,
            failback_threshold: high,
            failback_delay: spec.failback_delay.map_or(Duration::from_secs(60), Length::get),
            hold_down: spec.hold_down.map_or(Duration::ZERO, Length::get),
            sla,
            no_path: no_path(spec.no_path.unwrap_or_default()),
            damping: spec.damping.map(|d| self.damping(d, report)),
            ..with_flows(intent::Rule::new(self.object.name.clone(), members), spec.flow_action.unwrap_or_default())
        };
        self.sensible(&rule, report);
        (!rule.members.is_empty()).then_some(rule)
    }

    fn advantage(&self) -> Option<Ratio> {
        let spec = &self.object.spec;
        let by_quality = spec.strategy == Some(StrategyName::BestQuality);
        spec.advantage.or_else(|| by_quality.then_some(BETTER).and_then(|ppm| Ratio::from_ppm(ppm).ok()))
    }

    /// How flows are shared. Weights beside another strategy do nothing, and `sensible` says so.
    fn balance(&self, members: &[Name], report: &mut Report) -> Option<Balance> {
        let spec = &self.object.spec;
        if spec.strategy != Some(StrategyName::LoadBalance) {
            return None;
        }
        let sticky = spec.sticky.map(|name| match name {
            StickyName::Source => Sticky::Source,
            StickyName::Pair => Sticky::Pair,
        });
        let weights = match &spec.weights {
            None => members.iter().map(|m| (m.clone(), 1)).collect(),
            Some(Weights::Of(given)) => {
                self.strangers(given, report);
                members.iter().map(|m| (m.clone(), given.get(m).copied().unwrap_or(1))).collect()
            }
            Some(Weights::By(_)) => self.by_bandwidth(members, report),
        };
        Some(Balance { weights, sticky })
    }

    /// From when on new flows go to the next path. Every line but the last has to say how fast it is.
    fn overflow(&self, members: &[Name], report: &mut Report) -> Option<Ratio> {
        let spec = &self.object.spec;
        if spec.strategy != Some(StrategyName::Overflow) {
            return None;
        }
        if spec.backups.is_empty() {
            let found = error(Code::Combination, self.at("/strategy"), "`strategy: overflow` has no path to go on to");
            self.report(report, found.help("add `backups: [PATH]`, or delete the strategy"));
        }
        let (_, before) = members.split_last()?;
        for path in before {
            let Some(from) = self.view.paths.get(path).map(|path| &path.spec.from) else { continue };
            if self.endpoints.get(from).is_some_and(|e| e.down.is_none() && e.up.is_none()) {
                let message = format!("`strategy: overflow` needs to know how fast the endpoint of `{path}` is");
                let help = format!("add `bandwidth: {{down: 50Mbit, up: 10Mbit}}` to the endpoint `{from}`");
                self.report(report, error(Code::Combination, self.at("/strategy"), message).help(help));
            }
        }
        self.of_one_line(members, report);
        let mark = spec.overflow_at.or_else(|| Ratio::from_ppm(FULL).ok())?;
        if mark == Ratio::ZERO || mark == Ratio::ONE {
            let never = if mark == Ratio::ZERO { "any use would be too much" } else { "no line is used above that" };
            let found = error(Code::Thresholds, self.at("/overflowAt"), format!("`overflowAt: {mark}`: {never}"));
            self.report(report, found.help("write the share above which new flows go on, such as 80%"));
        }
        Some(mark)
    }

    /// Paths over one endpoint are full at the same moment: the later one takes nothing over.
    fn of_one_line(&self, members: &[Name], report: &mut Report) {
        let mut lines: BTreeMap<&Name, &Name> = BTreeMap::new();
        for path in members {
            let Some(from) = self.view.paths.get(path).map(|path| &path.spec.from) else { continue };
            let Some(first) = lines.get(from) else {
                lines.insert(from, path);
                continue;
            };
            let message = format!("`{path}` goes over the endpoint `{from}`, as `{first}` does: they fill together");
            let help = "name one of them in this rule; new flows go on only to another line";
            let backups = self.object.spec.backups.iter();
            let n = backups.take_while(|backup| *backup != path).count();
            self.report(report, warning(Code::OneLine, self.at(&format!("/backups/{n}")), message).help(help));
        }
    }

    /// Weights of paths that are not in the rule.
    fn strangers(&self, given: &BTreeMap<Name, u32>, report: &mut Report) {
        let spec = &self.object.spec;
        let named = || std::iter::once(&spec.primary).chain(&spec.backups);
        for name in given.keys().filter(|name| !named().any(|m| m == *name)) {
            let at = self.fleet.config.field_name(self.object, &format!("/weights/{name}"));
            let found = error(Code::Dangling, at, format!("the path `{name}` is not in this rule"));
            self.report(report, with_suggestion(found, name.as_str(), named()));
        }
    }

    /// Parts of a hundred, by the declared bandwidth towards the site; away from it where only that is declared.
    fn by_bandwidth(&self, members: &[Name], report: &mut Report) -> BTreeMap<Name, u32> {
        let mut rates: BTreeMap<Name, u64> = BTreeMap::new();
        for path in members {
            let Some(from) = self.view.paths.get(path).map(|path| &path.spec.from) else { continue };
            let Some(endpoint) = self.endpoints.get(from) else { continue };
            if let Some(rate) = endpoint.down.or(endpoint.up) {
                rates.insert(path.clone(), rate.bits_per_second());
            } else {
                let message = format!("`weights: bandwidth` needs to know how fast the endpoint of `{path}` is");
                let help = format!("add `bandwidth: {{down: 50Mbit, up: 10Mbit}}` to the endpoint `{from}`");
                self.report(report, error(Code::Combination, self.at("/weights"), message).help(help));
            }
        }
        let total: u128 = rates.values().copied().map(u128::from).sum::<u128>().max(1);
        let part = |rate: u64| u32::try_from((u128::from(rate) * 100 + total / 2) / total).unwrap_or(100).max(1);
        rates.into_iter().map(|(path, rate)| (path, part(rate))).collect()
    }

    fn damping(&self, spec: DampingSpec, report: &mut Report) -> Damping {
        let damping = Damping {
            penalty: spec.penalty.unwrap_or(1000),
            half_life: spec.half_life.map_or(Duration::from_secs(300), Length::get),
            suppress: spec.suppress.unwrap_or(2500),
            reuse: spec.reuse.unwrap_or(1000),
        };
        if damping.reuse >= damping.suppress {
            let message = format!(
                "`reuse` {} is not below `suppress` {}: nothing would be damped",
                damping.reuse, damping.suppress
            );
            let field = if spec.reuse.is_some() { "/damping/reuse" } else { "/damping/suppress" };
            let help = "a path is kept out of use from `suppress` down to `reuse`, such as 2500 and 1000";
            self.report(report, error(Code::Thresholds, self.at(field), message).help(help));
        }
        if damping.half_life.is_zero() {
            let found = error(Code::Thresholds, self.at("/damping/halfLife"), "a half-life of 0 forgives at once");
            self.report(report, found.help("write `halfLife: 5m`, or delete `damping`"));
        }
        damping
    }

    /// Fields that do nothing with the strategy that is chosen look as if they did.
    fn sensible(&self, rule: &intent::Rule, report: &mut Report) {
        let spec = &self.object.spec;
        let idle = |field: &str, wants: &str| {
            let at = self.fleet.config.field_name(self.object, &format!("/{field}"));
            error(Code::Combination, at, format!("`{field}` does nothing without {wants}"))
                .help("delete it, or say which you want")
        };
        if spec.metric.is_some() && rule.strategy != Strategy::BestQuality {
            self.report(report, idle("metric", "`strategy: best-quality`"));
        }
        if spec.advantage.is_some() && !matches!(rule.strategy, Strategy::BestQuality | Strategy::BestScore) {
            self.report(report, idle("advantage", "`strategy: best-quality` or `best-score`"));
        }
        for (field, written) in [("weights", spec.weights.is_some()), ("sticky", spec.sticky.is_some())] {
            if written && rule.balance.is_none() {
                self.report(report, idle(field, "`strategy: load-balance`"));
            }
        }
        if spec.overflow_at.is_some() && rule.strategy != Strategy::Overflow {
            self.report(report, idle("overflowAt", "`strategy: overflow`"));
        }
        if rule.spreads() && spec.flow_action.is_some_and(|f| f.failback.is_some()) {
            let at = self.fleet.config.field_name(self.object, "/flowAction/failback");
            let name = if rule.balance.is_some() { "load-balance" } else { "overflow" };
            let message = format!("`failback` does nothing with `strategy: {name}`");
            let help = "delete it: a path that comes back gets new flows and moves none";
            self.report(report, error(Code::Combination, at, message).help(help));
        }
        let drains = |a: FlowAction| matches!(a, FlowAction::Drain(_));
        if spec.flow_action.is_some_and(|f| f.drain.is_some()) && !drains(rule.on_failover) && !drains(rule.on_failback)
        {
            let at = self.fleet.config.field_name(self.object, "/flowAction/drain");
            let found =
                error(Code::Combination, at, "`drain` does nothing without `failover: drain` or `failback: drain`");
            self.report(report, found.help("delete it, or say when flows are drained"));
        }
    }

    /// A backup that can carry none of what the primary carries is none.
    fn alike(&self, report: &mut Report) {
        let spec = &self.object.spec;
        let Some(able) = self.families.get(&spec.primary) else { return };
        for (n, backup) in spec.backups.iter().enumerate() {
            let Some(other) = self.families.get(backup).filter(|o| !o.iter().any(|f| able.contains(f))) else {
                continue;
            };
            let only = |list: &[Family]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
            let (have, lack) = (only(other), only(able));
            let message =
                format!("the backup `{backup}` carries only {have}, the primary `{}` only {lack}", spec.primary);
            let found = error(Code::NoWay, self.at(&format!("/backups/{n}")), message);
            self.report(report, found.help("no flow could move from one to the other: name a path of the same family"));
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
}
