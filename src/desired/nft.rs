//! Renders the nftables table through `templates/patronus.nft.j2`.
//!
//! What may be printed is up to [`super::print`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use serde::Serialize;

use super::{
    CompileError, Inputs, address_on,
    classify::{Block, Field, Interval, layout},
    print::{ENVIRONMENT, MAX_COMMENT},
    share,
};
use crate::{
    failover::{Selection, Told},
    state::{Allocations, Ranges, Target},
    units::{Family, Name},
    validate::intent::{Action, Destination, Nat, Path, Policy, Rule, Site, TunnelSpec},
};

/// Stands in the rendered text where the kernel port puts the generation and the plan's id.
pub const NIL_STAMP: &str = "generation 0 plan 00000000-0000-0000-0000-000000000000";

const TEMPLATE: &str = include_str!("../../templates/patronus.nft.j2");

pub(super) fn hex(mark: u32) -> String {
    format!("{mark:#010x}")
}

fn quoted(interface: &crate::units::IfName) -> String {
    format!("\"{interface}\"")
}

/// Longest name of a target in a chain's name, which ends at 127 bytes (`NFT_NAME_MAXLEN`); beyond it, its number.
const MAX_CHAIN: usize = 120;

/// A target in a comment; two names of full length fit only without a word before them.
pub(super) fn label(target: &Target) -> String {
    match target {
        Target::Member(rule, path) if target.to_string().len() > MAX_COMMENT => format!("{rule} {path}"),
        Target::Share(rule, path) if target.to_string().len() > MAX_COMMENT => format!("{rule}/{path}"),
        _ => target.to_string(),
    }
}

/// What the template sees.
#[derive(Serialize)]
struct Ruleset {
    stamp: &'static str,
    t: String,
    t_inverse: String,
    p: String,
    p_inverse: String,
    targets: Vec<TargetContext>,
    refused: Vec<PinEntry>,
    steering: Vec<PolicyContext>,
    policies: Vec<PolicyContext>,
    balances: Vec<share::BalanceContext>,
    families: [FamilyContext; 2],
    arrivals: Vec<ArrivalContext>,
    uplinks: Vec<ArrivalContext>,
    outer: Vec<OuterContext>,
    pins: Vec<PinContext>,
    nat: Vec<NatContext>,
    clamps: Vec<ClampContext>,
}

#[derive(Serialize)]
struct TargetContext {
    mark: String,
    label: String,
    chain: String,
    interfaces: String,
}

#[derive(Serialize)]
struct PolicyContext {
    name: String,
    mark: String,
    dscp: Option<u8>,
    verdict: &'static str,
    chain: String,
}

#[derive(Serialize)]
struct FamilyContext {
    word: &'static str,
    beyond: Vec<BeyondContext>,
    lan: Option<String>,
    blocks: Vec<BlockContext>,
}

#[derive(Serialize)]
struct BeyondContext {
    prefix: String,
    chain: String,
}

#[derive(Serialize, Default)]
struct BlockContext {
    key: String,
    entries: Vec<EntryContext>,
    conditions: Vec<ConditionContext>,
    policy: String,
}

#[derive(Serialize)]
struct EntryContext {
    key: String,
    policy: String,
}

#[derive(Serialize)]
struct ConditionContext {
    field: &'static str,
    values: String,
}

#[derive(Serialize)]
struct ArrivalContext {
    path: String,
    interface: String,
    chain: String,
    transit: bool,
}

#[derive(Serialize)]
struct OuterContext {
    word: &'static str,
    local: String,
    remote: String,
    port: u16,
}

#[derive(Serialize)]
struct PinContext {
    path: String,
    interface: String,
    entries: Vec<PinEntry>,
}

#[derive(Serialize)]
struct PinEntry {
    mark: String,
    chain: String,
}

#[derive(Serialize)]
struct NatContext {
    interface: String,
    word: &'static str,
    snat: Option<String>,
}

#[derive(Serialize)]
struct ClampContext {
    interface: String,
    mtu: Option<u32>,
}

/// Renders the table with the nil stamp.
pub(super) fn render(site: &Site, inputs: &Inputs<'_>, numbers: &Allocations) -> Result<String, CompileError> {
    let failed = |source| CompileError::Template { site: site.name.clone(), source };
    let template = ENVIRONMENT.template_from_str(TEMPLATE).map_err(failed)?;
    let b = Build { site, numbers, ranges: inputs.ranges, selection: inputs.selection };
    let ruleset = Ruleset {
        stamp: NIL_STAMP,
        t: hex(inputs.ranges.target_mask.bits()),
        t_inverse: hex(inputs.ranges.target_mask.inverse()),
        p: hex(inputs.ranges.policy_mask.bits()),
        p_inverse: hex(inputs.ranges.policy_mask.inverse()),
        targets: b.targets(),
        refused: b.refused(),
        steering: b.policies().into_iter().filter(|p| p.verdict == "steer").collect(),
        policies: b.policies(),
        balances: site.rules.values().filter_map(|rule| share::context(site, rule, |target| b.chain(target))).collect(),
        families: Family::ALL.map(|f| b.family(f)),
        arrivals: b.arrivals(),
        uplinks: b.arrivals().into_iter().filter(|a| !a.transit).collect(),
        outer: b.outer(inputs),
        pins: b.pins(),
        nat: b.nat(),
        clamps: b.clamps(),
    };
    template.render(minijinja::value::Serde(&ruleset)).map_err(failed)
}

const fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

struct Build<'a> {
    site: &'a Site,
    numbers: &'a Allocations,
    ranges: &'a Ranges,
    selection: &'a Selection,
}

impl Build<'_> {
    fn mark(&self, target: &Target) -> String {
        let number = self.numbers.targets.get(target).copied().unwrap_or_default();
        hex(self.ranges.target_mask.mark(number))
    }

    /// What the names of a target's chains end in.
    fn chain(&self, target: &Target) -> String {
        let text = target.to_string().replace('/', "_");
        let number = || self.numbers.targets.get(target).copied().unwrap_or_default();
        if text.len() > MAX_CHAIN { format!("target_{}", number()) } else { text }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        self.site.paths.values().map(Arc::as_ref)
    }

    fn members(&self, rule: &Name) -> impl Iterator<Item = &Path> {
        let names = self.site.rules.get(rule).map(|r| r.members.iter()).unwrap_or_default();
        names.filter_map(|name| self.site.paths.get(name).map(Arc::as_ref))
    }

    fn targets(&self) -> Vec<TargetContext> {
        let interfaces = |target: &Target| match target {
            Target::Path(path) => self.site.paths.get(path).map(|p| quoted(&p.interface)).unwrap_or_default(),
            Target::Rule(rule) | Target::Member(rule, _) | Target::Share(rule, _) => {
                let mut all: Vec<String> = self.members(rule).map(|p| quoted(&p.interface)).collect();
                all.sort();
                all.join(", ")
            }
        };
        let context = |target: &Target| TargetContext {
            mark: self.mark(target),
            label: label(target),
            chain: self.chain(target),
            interfaces: interfaces(target),
        };
        self.numbers.targets.keys().map(context).collect()
    }

    /// Marks of flows that are answered with errors: those bound to a path that its rule left in this way.
    fn refused(&self) -> Vec<PinEntry> {
        let entry = |(rule, path, told): (&Name, &Name, Told)| {
            let target = Target::Member(rule.clone(), path.clone());
            let chain = if told == Told::Resets { "refuse_tcp" } else { "refuse" };
            let bound = self.site.paths.get(path).is_some_and(|p| p.nat != Nat::None);
            let known = bound && self.numbers.targets.contains_key(&target);
            known.then(|| PinEntry { mark: self.mark(&target), chain: chain.to_owned() })
        };
        self.selection.told().filter_map(entry).collect()
    }

    /// The policies that new flows meet: not those whose rule has no path and lets them go to the next one.
    fn in_force(&self) -> Vec<Policy> {
        let passes = |rule: &Name| self.site.rules.get(rule).is_some_and(|r| self.selection.passes_on(r));
        let out = |p: &&Policy| matches!(&p.action, Action::Failover(rule) if passes(rule));
        self.site.policies.iter().filter(|p| !out(p)).cloned().collect()
    }

    fn policies(&self) -> Vec<PolicyContext> {
        let mut all: Vec<&Policy> = self.site.policies.iter().collect();
        all.sort_by_key(|p| &p.name);
        all.into_iter().map(|p| self.policy(p)).collect()
    }

    fn policy(&self, policy: &Policy) -> PolicyContext {
        let number = self.numbers.policies.get(&policy.name).copied().unwrap_or_default();
        let (verdict, chain) = match &policy.action {
            Action::Failover(rule) if self.balances(rule) => ("steer", format!("balance_{rule}")),
            Action::Failover(rule) => ("steer", self.steer(&Target::Rule(rule.clone()))),
            Action::Path(path) => ("steer", self.steer(&Target::Path(path.clone()))),
            Action::Drop => ("drop", String::new()),
            Action::Reject => ("reject", String::new()),
        };
        PolicyContext {
            name: policy.name.to_string(),
            mark: hex(self.ranges.policy_mask.mark(number)),
            dscp: policy.set_dscp.map(crate::units::Dscp::value),
            verdict,
            chain,
        }
    }

    /// Whether a rule shares new flows among its members.
    fn balances(&self, rule: &Name) -> bool {
        self.site.rules.get(rule).is_some_and(|r| r.balance.is_some())
    }

    fn steer(&self, target: &Target) -> String {
        format!("steer_{}", self.chain(target))
    }

    fn family(&self, family: Family) -> FamilyContext {
        let mine = |net: &&IpNet| Family::of_net(net) == family;
        let lan: Vec<String> =
            self.site.lan.iter().flat_map(|l| &l.prefixes).filter(mine).map(ToString::to_string).collect();
        let beyond = self.site.beyond.iter().filter(|(net, _)| mine(net)).filter_map(|(net, site)| {
            Some(BeyondContext { prefix: net.to_string(), chain: self.chain(&self.towards(site)?) })
        });
        FamilyContext {
            word: word(family),
            beyond: beyond.collect(),
            lan: (!lan.is_empty()).then(|| lan.join(", ")),
            blocks: layout(&self.in_force(), family).iter().map(|b| block(b, family)).collect(),
        }
    }

    /// What leads to another site: whatever the first tunnel path towards it answers to.
    fn towards(&self, site: &Name) -> Option<Target> {
        let leads = |p: &&Path| matches!(&p.to, Destination::Site { site: s, .. } if s == site);
        self.paths().find(leads).map(|path| self.answer(path))
    }

    /// What replies to a flow that came in by a path are sent to: the path itself where addresses are
    /// translated; else the first rule in use that has it, so that they follow when the path is left.
    fn answer(&self, path: &Path) -> Target {
        let has = |rule: &&Name| self.site.rules.get(*rule).is_some_and(|r| r.members.contains(&path.name));
        let used = self.site.policies.iter().filter_map(|p| match &p.action {
            Action::Failover(rule) => Some(rule),
            _ => None,
        });
        match &path.to {
            Destination::Internet => Target::Path(path.name.clone()),
            Destination::Site { .. } => used
                .chain(self.site.rules.keys())
                .find(has)
                .map_or_else(|| Target::Path(path.name.clone()), |rule| self.shared(rule, path)),
        }
    }

    /// Whether a rule binds each flow to the path that it took.
    fn spreads(&self, rule: &Name) -> bool {
        self.site.rules.get(rule).is_some_and(Rule::spreads)
    }

    /// A rule as seen from one of its paths: where several carry flows, this path's part of it.
    fn shared(&self, rule: &Name, path: &Path) -> Target {
        if self.spreads(rule) { Target::Member(rule.clone(), path.name.clone()) } else { Target::Rule(rule.clone()) }
    }

    fn arrivals(&self) -> Vec<ArrivalContext> {
        let arrival = |path: &Path| ArrivalContext {
            path: path.name.to_string(),
            interface: quoted(&path.interface),
            chain: self.chain(&self.answer(path)),
            transit: path.to != Destination::Internet,
        };
        self.paths().map(arrival).collect()
    }

    /// Outer packets of our tunnels: over their own endpoint, whatever the policies say.
    fn outer(&self, inputs: &Inputs<'_>) -> Vec<OuterContext> {
        self.paths().filter_map(|path| Self::outer_of(path, inputs)).collect()
    }

    fn outer_of(path: &Path, inputs: &Inputs<'_>) -> Option<OuterContext> {
        let Destination::Site { tunnel: TunnelSpec::Vxlan { over, local, remote, port, .. }, .. } = &path.to else {
            return None;
        };
        let family = Family::of(remote);
        Some(OuterContext {
            word: word(family),
            local: local.or_else(|| address_on(inputs.facts, over, family))?.to_string(),
            remote: remote.to_string(),
            port: *port,
        })
    }

    fn pins(&self) -> Vec<PinContext> {
        let pin = |path: &Path| PinContext {
            path: path.name.to_string(),
            interface: quoted(&path.interface),
            entries: self.pin_entries(path),
        };
        self.paths().map(pin).collect()
    }

    fn pin_entries(&self, path: &Path) -> Vec<PinEntry> {
        let bound = |target: &Target| match target {
            Target::Path(_) => target.clone(),
            Target::Rule(rule) | Target::Member(rule, _) | Target::Share(rule, _) => match path.nat {
                Nat::None if !self.spreads(rule) => Target::Rule(rule.clone()),
                _ => Target::Member(rule.clone(), path.name.clone()),
            },
        };
        // Only what leads out by this path: a hub has a thousand paths, and most rules have two.
        let rules = self.site.rules.values().filter(|rule| rule.members.contains(&path.name));
        let of_rule = |rule: &Rule| {
            let of = |m: &Name| [Target::Member, Target::Share].map(|target| target(rule.name.clone(), m.clone()));
            rule.members.iter().flat_map(of).chain([Target::Rule(rule.name.clone())]).collect::<Vec<_>>()
        };
        let all: BTreeSet<Target> = rules.flat_map(of_rule).chain([Target::Path(path.name.clone())]).collect();
        let known = all.iter().filter(|target| self.numbers.targets.contains_key(*target));
        known.map(|target| PinEntry { mark: self.mark(target), chain: self.chain(&bound(target)) }).collect()
    }

    fn nat(&self) -> Vec<NatContext> {
        let nat = |path: &Path| {
            let (family, snat) = match path.nat {
                Nat::None => return None,
                Nat::Masquerade => (Family::V4, None),
                Nat::Snat(address) => (Family::of(&address), Some(address.to_string())),
            };
            Some(NatContext { interface: quoted(&path.interface), word: word(family), snat })
        };
        self.paths().filter_map(nat).collect()
    }

    fn clamps(&self) -> Vec<ClampContext> {
        let by_interface: BTreeMap<_, _> = self.paths().map(|p| (&p.interface, p.mtu)).collect();
        by_interface.into_iter().map(|(i, mtu)| ClampContext { interface: quoted(i), mtu }).collect()
    }
}

pub(super) const fn field_text(field: Field, family: Family) -> &'static str {
    match (field, family) {
        (Field::InInterface, _) => "iifname",
        (Field::Protocol, _) => "meta l4proto",
        (Field::Source, Family::V4) => "ip saddr",
        (Field::Source, Family::V6) => "ip6 saddr",
        (Field::Destination, Family::V4) => "ip daddr",
        (Field::Destination, Family::V6) => "ip6 daddr",
        (Field::SourcePort, _) => "th sport",
        (Field::DestinationPort, _) => "th dport",
        (Field::Dscp, Family::V4) => "ip dscp",
        (Field::Dscp, Family::V6) => "ip6 dscp",
    }
}

fn texts(values: &[Interval], between: &str) -> String {
    values.iter().map(|v| v.text.as_str()).collect::<Vec<_>>().join(between)
}

fn block(block: &Block, family: Family) -> BlockContext {
    match block {
        Block::Map { fields, entries } => BlockContext {
            key: fields.iter().map(|f| field_text(*f, family)).collect::<Vec<_>>().join(" . "),
            entries: entries
                .iter()
                .map(|(key, policy)| EntryContext { key: texts(key, " . "), policy: policy.to_string() })
                .collect(),
            ..BlockContext::default()
        },
        Block::Single(rule) => BlockContext {
            conditions: rule
                .fields
                .iter()
                .map(|(f, values)| ConditionContext { field: field_text(*f, family), values: texts(values, ", ") })
                .collect(),
            policy: rule.policy.to_string(),
            ..BlockContext::default()
        },
    }
}
