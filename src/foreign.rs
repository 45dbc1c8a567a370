//! What others have in this router's kernel, and which of it overrides us. Pure.
//!
//! Invariant: nothing here is ever changed or deleted by Patronus; it is named, with what to do about it. What is
//! certain to take our traffic away and what may do so are told apart.

pub mod programs;

use serde::{Deserialize, Serialize};

use crate::{
    state::{Fwmark, Ranges},
    units::Family,
};

/// What surrounds our objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Routing rules of others.
    pub rules: Vec<Rule>,
    /// Chains of others in nftables, those of `iptables-nft` included.
    pub chains: Vec<Chain>,
    /// Flowtables of others, as `family table name`.
    pub flowtables: Vec<String>,
}

/// A routing rule that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The family.
    pub family: Family,
    /// When it is asked; smaller is earlier.
    pub priority: u32,
    /// Mark and mask that it asks for.
    pub fwmark: Option<Fwmark>,
    /// It asks for more: addresses, interfaces, ports, a VRF.
    pub selective: bool,
    /// It matches what its selectors do not.
    pub inverted: bool,
    /// The table that it looks into; nothing if it does not look into one (`unreachable`, `goto`).
    pub table: Option<u32>,
    /// `suppress_prefixlength`, if it has one.
    pub suppress_prefixlength: Option<u32>,
    /// The protocol that set it, by name or number.
    pub protocol: String,
}

/// A chain of somebody else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Family and table, as `ip filter`.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it hangs; nothing for one that is only jumped to.
    pub hook: Option<Hook>,
    /// Its policy is to drop.
    pub drops_by_default: bool,
    /// What its rules do, jumps not followed.
    pub does: Does,
    /// Chains of the same table that it jumps to.
    pub jumps: Vec<String>,
}

/// A place in the packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Which.
    pub at: At,
    /// The order at the hook; smaller is earlier.
    pub priority: i32,
}

/// The hooks of the families `ip`, `ip6` and `inet`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// `prerouting`.
    Prerouting,
    /// `input`.
    Input,
    /// `forward`.
    Forward,
    /// `output`.
    Output,
    /// `postrouting`.
    Postrouting,
}

/// What rules do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one kind of statement that is there or not")]
pub struct Does {
    /// Some drop or reject.
    pub drop: bool,
    /// Some set the packet's mark.
    pub mark: bool,
    /// Some set the connection's mark.
    pub connection_mark: bool,
    /// Some translate source addresses.
    pub snat: bool,
    /// Some hand flows to a flowtable.
    pub offload: bool,
}

impl Does {
    /// What either does.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self {
            drop: self.drop || other.drop,
            mark: self.mark || other.mark,
            connection_mark: self.connection_mark || other.connection_mark,
            snat: self.snat || other.snat,
            offload: self.offload || other.offload,
        }
    }
}

/// What kind of object overrides us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A rule that is asked before ours.
    RuleAhead,
    /// A rule that matches our marks.
    Marks,
    /// An object in our tables or priorities.
    Ranges,
    /// A chain that drops forwarded traffic.
    Drop,
    /// A chain that sets marks after we have.
    Remark,
    /// A chain that translates addresses before ours is asked.
    Nat,
    /// A flowtable, whose flows pass no chain.
    Flowtable,
}

/// Something of somebody else that overrides what we have set up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Override {
    /// What it is.
    pub kind: Kind,
    /// It takes our traffic for certain; otherwise it may, as far as its own conditions match.
    pub certain: bool,
    /// The object and what it does, for a person.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// The protocol of rules whose program does not say who it is.
const UNNAMED: &str = "unspec";
/// The main table.
const MAIN: u32 = 254;
/// The table `default`, which is empty as a rule.
const DEFAULT: u32 = 253;
/// The table `local`.
const LOCAL: u32 = 255;
/// `mangle`, where our chains set marks.
const MANGLE: i32 = -150;
/// `srcnat`, where ours translates.
const SRCNAT: i32 = 100;

/// What overrides us, worst first. `intruders` are the lines about objects in our ranges.
#[must_use]
pub fn overrides(around: &Surroundings, intruders: &[String], ranges: &Ranges) -> Vec<Override> {
    let mut found: Vec<Override> = around.rules.iter().filter_map(|rule| rule_override(rule, ranges)).collect();
    found.extend(intruders.iter().filter(|line| !line.contains("matches mark")).map(|line| intruder(line)));
    found.extend(around.chains.iter().flat_map(|chain| chain_overrides(chain, &around.chains)));
    found.extend(around.flowtables.iter().map(|name| flowtable(name)));
    found.sort_by(|a, b| b.certain.cmp(&a.certain).then_with(|| a.cmp(b)));
    found.dedup();
    found
}

fn rule_override(rule: &Rule, ranges: &Ranges) -> Option<Override> {
    if rule.table == Some(LOCAL) || rule.table == Some(DEFAULT) || ranges.owns_priority(rule.priority) {
        return None;
    }
    let by = if rule.protocol == UNNAMED { String::new() } else { format!(" of {}", rule.protocol) };
    let name = format!("the {} rule with priority {}{by}", rule.family, rule.priority);
    if let Some(mark) = rule.fwmark.filter(|f| f.mark & f.mask & ranges.target_mask.bits() != 0) {
        let certain = rule.priority < ranges.main_priority() && !rule.selective && !rule.inverted;
        let what = format!("{name} matches mark {mark}, and our marks have bits in {}", ranges.target_mask);
        let remedy = "give that program other mark bits, or Patronus another `ranges.targetMask`".to_owned();
        return Some(Override { kind: Kind::Marks, certain, what, remedy });
    }
    if rule.priority > ranges.main_priority() || rule.fwmark.is_some() && !rule.inverted {
        return None;
    }
    let certain = rule.table == Some(MAIN) && rule.suppress_prefixlength.is_none() && !rule.selective && !rule.inverted;
    let table = rule.table.map_or_else(|| "and decides".to_owned(), |t| format!("and looks into table {t}"));
    let what = if certain {
        format!("{name} is asked before ours and sends everything to the main table: no policy has an effect")
    } else {
        let which = if rule.selective || rule.inverted { "for some traffic" } else { "for all traffic" };
        format!("{name} is asked before ours {which} {table}")
    };
    let remedy =
        format!("give it a priority above {}, or Patronus a lower `ranges.priorityBase`", ranges.priority_base);
    Some(Override { kind: Kind::RuleAhead, certain, what, remedy })
}

fn intruder(line: &str) -> Override {
    let remedy = "remove it, or give Patronus other `ranges`: it is never deleted by Patronus".to_owned();
    Override {
        kind: Kind::Ranges,
        certain: true,
        what: format!("somebody else's object in our ranges: {line}"),
        remedy,
    }
}

fn flowtable(name: &str) -> Override {
    let what = format!("flowtable {name}: flows in it pass no chain, so that they keep the path that they began on");
    let remedy = "keep traffic that Patronus steers out of it, or remove it".to_owned();
    Override { kind: Kind::Flowtable, certain: false, what, remedy }
}

fn chain_overrides(chain: &Chain, all: &[Chain]) -> Vec<Override> {
    let Some(hook) = chain.hook else { return Vec::new() };
    let does = reached(chain, all);
    let name = format!("chain {} {}", chain.table, chain.name);
    let one = |kind, certain, what: String, remedy: &str| Override { kind, certain, what, remedy: remedy.to_owned() };
    let mut found = Vec::new();
    match hook.at {
        At::Forward if chain.drops_by_default => {
            let what = format!("{name} drops forwarded traffic that its own rules do not accept (policy drop)");
            found.push(one(Kind::Drop, true, what, drop_remedy(&chain.table, &chain.name)));
        }
        At::Forward if does.drop => {
            let what = format!("{name} drops some forwarded traffic");
            found.push(one(Kind::Drop, false, what, "our `accept` does not overrule it: see `nft list ruleset`"));
        }
        At::Prerouting | At::Output if does.mark && hook.priority >= MANGLE => {
            let what = format!("{name} sets packet marks after ours (priority {})", hook.priority);
            found.push(one(Kind::Remark, false, what, "let it set bits outside `ranges.targetMask`, with a mask"));
        }
        At::Postrouting if does.snat && hook.priority <= SRCNAT => {
            let what = format!("{name} translates source addresses at priority {}", hook.priority);
            let remedy =
                "the first translation wins: leave that of uplinks to `nat:` of the paths, or except them there";
            found.push(one(Kind::Nat, false, what, remedy));
        }
        _ => {}
    }
    if does.connection_mark {
        let what = format!("{name} sets connection marks");
        found.push(one(Kind::Remark, false, what, "let it set bits outside `ranges`, with a mask: ours bind flows"));
    }
    found
}

fn drop_remedy(table: &str, chain: &str) -> &'static str {
    match (table, chain) {
        ("ip filter" | "ip6 filter", "FORWARD") => {
            "Docker sets this policy: accept your LAN's traffic in its chain DOCKER-USER (`iptables -I DOCKER-USER -i lan0 -j ACCEPT`, and the way back), or set `\"ip-forward-no-drop\": true` in /etc/docker/daemon.json"
        }
        (table, _) if table.ends_with("firewalld") => {
            "put LAN and uplinks into zones with forwarding: `firewall-cmd --permanent --zone=... --add-forward`, or a policy between them"
        }
        _ => "accept the traffic of your LAN there: our `accept` does not overrule another table's drop",
    }
}

/// What a chain and those that it leads to do.
fn reached(chain: &Chain, all: &[Chain]) -> Does {
    let (mut does, mut seen, mut next) =
        (chain.does, vec![chain.name.as_str()], chain.jumps.iter().collect::<Vec<_>>());
    while let Some(name) = next.pop() {
        if seen.contains(&name.as_str()) {
            continue;
        }
        seen.push(name);
        for target in all.iter().filter(|c| c.table == chain.table && c.name == *name) {
            does = does.or(target.does);
            next.extend(&target.jumps);
        }
    }
    does
}

#[cfg(test)]
mod tests;
