//! Policies: what they match, where they send it, and which of them can never match.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Options, Report, error,
    fleet::{Fleet, View, with_suggestion},
    intent::{self, Action, Match},
    paths::families,
    rules::{ambiguous, path_named},
    shadow::{Space, merged},
};
use crate::{
    config::{
        Object,
        scalars::{Protocol, TCP, UDP},
        schema::Kind,
        types::{MatchSpec, PolicySpec},
    },
    diag::{Code, Diagnostic, Span},
    units::{Family, Name},
};

/// What is already known of a site: its endpoints, paths and rules.
type Known<'a> =
    (&'a BTreeMap<Name, intent::Endpoint>, &'a BTreeMap<Name, Arc<intent::Path>>, &'a BTreeMap<Name, intent::Rule>);

/// Checks the policies of a site and builds them in the order in which they match.
pub fn check(
    fleet: &Fleet<'_>,
    view: &View<'_>,
    known: Known<'_>,
    options: &Options,
    report: &mut Report,
) -> Vec<intent::Policy> {
    let mut named: BTreeMap<&Name, &Object<PolicySpec>> = BTreeMap::new();
    let mut lines: Vec<Line<'_>> = Vec::new();
    for object in view.policies.iter().copied().filter(|policy| policy.spec.enabled) {
        if let Some(first) = named.insert(&object.name, object) {
            ambiguous(fleet, view, (first, object), "policy", report);
            continue;
        }
        let matches = matches(&object.spec.matches);
        let space = Space::of(&matches);
        let subject = Subject { fleet, view, object };
        subject.fits(&space, report);
        let action = subject.action(known, report);
        if let Some(action) = &action {
            subject.carried(&space, action, known, report);
            subject.protected(&space, action, options, report);
        }
        lines.push(Line { object, matches, space, action });
    }
    lines.sort_by_key(|line| line.object.spec.priority);
    priorities(fleet, view, &lines, report);
    shadows(fleet, view, &lines, report);
    lines.into_iter().filter_map(Line::policy).collect()
}

struct Line<'a> {
    object: &'a Object<PolicySpec>,
    matches: Match,
    space: Space,
    action: Option<Action>,
}

impl Line<'_> {
    fn policy(self) -> Option<intent::Policy> {
        Some(intent::Policy {
            name: self.object.name.clone(),
            priority: self.object.spec.priority,
            matches: self.matches,
            action: self.action?,
            set_dscp: self.object.spec.action.dscp.map(|dscp| dscp.0),
        })
    }

    fn is_catch_all(&self) -> bool {
        self.matches == Match::default()
    }
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.collect::<BTreeSet<T>>().into_iter().collect()
}

/// A match in its one form: sorted lists, merged ports, TCP and UDP where ports stand alone.
fn matches(spec: &MatchSpec) -> Match {
    let ports = |list: &[crate::config::scalars::Ports]| merged(&list.iter().map(|p| p.0).collect::<Vec<_>>());
    let with_ports = !spec.source_ports.is_empty() || !spec.destination_ports.is_empty();
    let protocols = match spec.protocol {
        Some(protocol) => vec![protocol.0.0],
        None if with_ports => vec![TCP, UDP],
        None => Vec::new(),
    };
    Match {
        source: sorted(spec.source.iter().map(|p| p.0)),
        destination: sorted(spec.destination.iter().map(|p| p.0)),
        protocols,
        source_ports: ports(&spec.source_ports),
        destination_ports: ports(&spec.destination_ports),
        dscp: sorted(spec.dscp.iter().map(|d| d.0)),
        in_interface: spec.in_interface.clone(),
    }
}

struct Subject<'a> {
    fleet: &'a Fleet<'a>,
    view: &'a View<'a>,
    object: &'a Object<PolicySpec>,
}

impl Subject<'_> {
    fn at(&self, field: &str) -> Span {
        self.fleet.config.field(self.object, field)
    }

    fn report(&self, report: &mut Report, found: Diagnostic) {
        report.add_for(self.object, self.view.name, found);
    }

    /// Whether any packet fits.
    fn fits(&self, space: &Space, report: &mut Report) {
        let spec = &self.object.spec.matches;
        if space.is_empty() {
            let found =
                error(Code::EmptyMatch, self.at("/match"), "source and destination are of different address families");
            self.report(report, found.help("no packet has both"));
        }
        let ports = [("sourcePorts", &spec.source_ports), ("destinationPorts", &spec.destination_ports)];
        if let Some(protocol) = spec.protocol.map(|p| p.0).filter(|p| !Protocol::has_ports(*p)) {
            for (field, _) in ports.into_iter().filter(|(_, list)| !list.is_empty()) {
                let message = format!("packets of protocol {protocol} have no ports");
                let found = error(Code::EmptyMatch, self.at(&format!("/match/{field}")), message);
                self.report(report, found.help("delete the ports, or name a protocol that has them, such as `udp`"));
            }
        }
    }

    /// The one action that is given.
    fn action(&self, known: Known<'_>, report: &mut Report) -> Option<Action> {
        let spec = &self.object.spec.action;
        let flag = |given: Option<bool>, action| given.map(|_| action);
        let failover = spec.failover.clone().map(Action::Failover);
        let path = spec.path.clone().map(Action::Path);
        let given = [failover, path, flag(spec.drop, Action::Drop), flag(spec.reject, Action::Reject)];
        let mut given: Vec<Action> = given.into_iter().flatten().collect();
        let help = "exactly one of `failover: RULE`, `path: NAME`, `drop: true` and `reject: true`";
        if given.len() != 1 || spec.drop == Some(false) || spec.reject == Some(false) {
            let message =
                if given.is_empty() { "the policy has no action" } else { "the policy has more than one action" };
            let message = if given.len() == 1 { "`false` is not an action" } else { message };
            self.report(report, error(Code::Combination, self.at("/action"), message).help(help));
            return None;
        }
        let action = given.pop()?;
        if spec.dscp.is_some() && matches!(action, Action::Drop | Action::Reject) {
            let message = "`dscp` has no meaning for traffic that goes nowhere";
            self.report(report, error(Code::Combination, self.at("/action/dscp"), message).help("delete `dscp`"));
        }
        self.resolves(&action, known, report).then_some(action)
    }

    fn resolves(&self, action: &Action, (_, _, rules): Known<'_>, report: &mut Report) -> bool {
        let found = match action {
            Action::Path(name) => {
                path_named(self.fleet, self.view, self.object.is_own(), name, self.at("/action/path"))
            }
            Action::Failover(name) if !rules.contains_key(name) => self.rule_missing(name),
            _ => None,
        };
        let sound = found.is_none();
        if let Some(found) = found {
            self.report(report, found);
        }
        sound
    }

    fn rule_missing(&self, name: &Name) -> Option<Diagnostic> {
        let at = self.at("/action/failover");
        if let Some(rule) = self.view.rules.iter().find(|rule| rule.name == *name) {
            // A rule that is there and sound in itself is only missing when it is switched off.
            let off = error(Code::Dangling, at, format!("the failover rule `{name}` is not enabled"));
            return (!rule.spec.enabled).then(|| {
                off.note(self.fleet.config.field(rule, "/enabled"), "switched off here")
                    .help("switch it on, or use another one")
            });
        }
        if self.fleet.config.is_broken(Kind::FailoverRule, name.as_str()) {
            return None;
        }
        let other = self.fleet.sites.values().find_map(|view| {
            let rule = view.rules.iter().find(|rule| rule.name == *name)?;
            Some((view.name, rule))
        });
        let found = match other.filter(|_| self.object.is_own()) {
            Some((site, rule)) => {
                let message = format!("the failover rule `{name}` belongs to another site, `{site}`");
                error(Code::CrossSite, at, message).note(self.fleet.config.name(rule), "it is here")
            }
            None => error(Code::Dangling, at, format!("there is no failover rule `{name}`")),
        };
        Some(with_suggestion(found, name.as_str(), self.view.rules.iter().map(|rule| &rule.name)))
    }

    /// Whether some path of the target can carry the family that the policy is about.
    fn carried(&self, space: &Space, action: &Action, (endpoints, paths, rules): Known<'_>, report: &mut Report) {
        let (members, field) = match action {
            Action::Path(name) => (std::slice::from_ref(name), "/action/path"),
            Action::Failover(name) => match rules.get(name) {
                Some(rule) => (&rule.members[..], "/action/failover"),
                None => return,
            },
            Action::Drop | Action::Reject => return,
        };
        let Some(members) = members.iter().map(|name| paths.get(name)).collect::<Option<Vec<_>>>() else { return };
        let able: Vec<Family> = members.iter().flat_map(|path| families(path, endpoints)).collect();
        let wanted: Vec<Family> = space.families().collect();
        if !wanted.is_empty() && !wanted.iter().any(|family| able.contains(family)) {
            let names: Vec<&Name> = members.iter().map(|path| &path.name).collect();
            let message = format!("no path here carries {}: {}", wanted[0], crate::diag::listed(&names, 5));
            let found = error(Code::NoWay, self.at(field), message);
            let help = format!("match the other family only, or give an endpoint an {} gateway", wanted[0]);
            self.report(report, found.help(help));
        }
    }

    /// Whether the policy would cut traffic that the router's own settings protect.
    fn protected(&self, space: &Space, action: &Action, options: &Options, report: &mut Report) {
        let steers = matches!(action, Action::Failover(_) | Action::Path(_));
        let spec = &self.object.spec.matches;
        let names = |prefix: &ipnet::IpNet| {
            let near = |p: &crate::config::scalars::Prefix| p.0.contains(prefix) || prefix.contains(&p.0);
            spec.source.iter().chain(&spec.destination).any(near)
        };
        // Steered traffic to a protected prefix is exempt in the kernel unless a policy names it.
        let cut = |prefix: &&ipnet::IpNet| if steers { names(prefix) } else { space.touches(prefix) };
        if let Some(prefix) = options.protected.iter().find(cut) {
            let doing = if steers { "steers" } else { "cuts" };
            let message = format!("the policy `{}` {doing} traffic of the protected prefix {prefix}", self.object.name);
            let found = error(Code::Protected, self.at("/match"), message);
            self.report(report, found.help("the router's own settings protect it: narrow the match"));
        }
    }
}

fn priorities(fleet: &Fleet<'_>, view: &View<'_>, lines: &[Line<'_>], report: &mut Report) {
    for two in lines.windows(2) {
        let (first, second) = (two[0].object, two[1].object);
        if first.spec.priority == second.spec.priority {
            let (a, b) = (&first.name, &second.name);
            let message = format!("the policies `{a}` and `{b}` both have priority {}", second.spec.priority);
            let at = fleet.config.field(second, "/priority");
            let found = error(Code::DuplicatePriority, at, message);
            // The finding is the fleet's only if both policies are.
            let object = if matches!(second.scope, crate::config::Scope::Site(_)) { second } else { first };
            let found = found.note(fleet.config.field(first, "/priority"), "the other one");
            report.add_for(
                object,
                view.name,
                found.help("give one of them another number: the smaller one matches first"),
            );
        }
    }
}

/// Policies that an earlier one leaves nothing to; a catch-all is told once, for all after it.
fn shadows(fleet: &Fleet<'_>, view: &View<'_>, lines: &[Line<'_>], report: &mut Report) {
    let last = lines.iter().position(Line::is_catch_all).unwrap_or(lines.len());
    if let [line, after, rest @ ..] = &lines[last.min(lines.len())..] {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        let message = format!("the catch-all `{}` comes before `{}`{more}", line.object.name, after.object.name);
        let found = error(Code::CatchAll, fleet.config.field(line.object, "/priority"), message);
        let found = found.note(fleet.config.name(after.object), "this policy never matches");
        report.add_for(line.object, view.name, found.help("give the catch-all the largest priority number"));
    }
    for (n, line) in lines.iter().enumerate().take(last).filter(|(_, line)| !line.space.is_empty()) {
        let Some(by) = lines[..n].iter().find(|by| by.space.covers(&line.space)) else { continue };
        let (name, earlier) = (&line.object.name, &by.object.name);
        let message = format!("the policy `{name}` can never match: `{earlier}` takes all its traffic first");
        let found = error(Code::Shadowed, fleet.config.name(line.object), message);
        let found =
            found.note(fleet.config.name(by.object), format!("priority {} comes first", by.object.spec.priority));
        report.add_for(line.object, view.name, found.help("give it a smaller priority number, or delete it"));
    }
}
