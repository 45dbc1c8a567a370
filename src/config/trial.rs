//! The kind `FailoverTest` as it is written: what happens on a virtual clock, and what shall come of it.
//!
//! It is no part of the configuration: the loader passes it over, and a test that is wrong stops no router.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::units::{Family, Name, Span};

/// A test of failover rules on a virtual clock, for `patronus test`. Routers pass it over.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestSpec {
    /// What it shows, for people.
    pub description: Option<String>,
    /// The site that it plays at.
    pub site: Name,
    /// For how long it plays. Default: until the last moment that is named.
    pub duration: Option<Span>,
    /// How long one value of a series lasts. Default 1s.
    pub step: Option<Span>,
    /// How the paths behave, by name; one that is not named answers within 20ms.
    #[serde(default)]
    pub paths: BTreeMap<Name, SeriesSpec>,
    /// What people do by hand.
    #[serde(default)]
    pub actions: Vec<DeedSpec>,
    /// What has to come of it.
    #[schemars(length(min = 1))]
    pub expect: Vec<ExpectSpec>,
}

/// How a path behaves. A series is a list of values, each with the number of steps that it lasts, such as
/// `20ms x60 400ms x30`; the last value lasts for the rest.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SeriesSpec {
    /// Round-trip time, such as `20ms x60 400ms x30`. Default 20ms.
    pub rtt: Option<String>,
    /// By how much every other answer comes later. Default 0ms.
    pub jitter: Option<String>,
    /// Lost probes, evenly spread, such as `0% x10 40% x20`. Default 0%.
    pub loss: Option<String>,
    /// Whether the interface has a carrier, such as `up x30 down x5 up`. Default `up`.
    pub carrier: Option<String>,
    /// How much of its endpoint's bandwidth is in use, such as `10% x30 95% x30`. Not known without.
    pub load: Option<String>,
    /// What is other for its IPv4 targets, where both families are probed.
    pub ipv4: Option<FamilySpec>,
    /// What is other for its IPv6 targets, where both families are probed.
    pub ipv6: Option<FamilySpec>,
}

/// How one family of a path behaves. What is not written is as of the path.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FamilySpec {
    /// Round-trip time, such as `20ms x60 400ms x30`.
    pub rtt: Option<String>,
    /// By how much every other answer comes later.
    pub jitter: Option<String>,
    /// Lost probes, evenly spread, such as `0% x60 100% x30 0%`.
    pub loss: Option<String>,
}

/// What somebody does by hand: exactly one of `failover`, `failback`, `drain` and `undrain`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeedSpec {
    /// When.
    pub at: Span,
    /// The rule that is pinned, as `patronus failover RULE` does.
    pub failover: Option<Name>,
    /// The path that it is pinned to.
    pub to: Option<Name>,
    /// For how long.
    #[serde(rename = "for")]
    pub lasts: Option<Span>,
    /// The rule that returns, as `patronus failback RULE` does.
    pub failback: Option<Name>,
    /// The path that is drained, as `patronus drain PATH` does.
    pub drain: Option<Name>,
    /// Not even as the last path.
    #[serde(default)]
    pub force: bool,
    /// The path that is used again, as `patronus undrain PATH` does.
    pub undrain: Option<Name>,
}

/// What has to be so. `policy` or `rule` with `path`: which path it uses. `path` with `state`: how it is. `event`: what
/// happened. At `at`; with `within`, at some moment from `at` on for so long; with `until`, all the time up to then.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectSpec {
    /// From when. Default 0s.
    pub at: Option<Span>,
    /// It becomes so within this time after `at`.
    pub within: Option<Span>,
    /// It is so all the time until then.
    pub until: Option<Span>,
    /// The policy whose traffic is meant.
    pub policy: Option<Name>,
    /// The failover rule that is meant.
    pub rule: Option<Name>,
    /// The path that is used, or one of those that share; `none` for no path; beside `state` and `event`, the path that is meant.
    pub path: Option<Name>,
    /// The paths that share, all of them and no other.
    #[serde(default)]
    pub paths: Vec<Name>,
    /// The family that alone is meant, `ipv4` or `ipv6`: the path that its traffic takes, or its state of the path.
    #[serde(default)]
    #[schemars(schema_with = "families")]
    pub family: Option<String>,
    /// The state of the path: `unknown`, `up`, `degraded`, `down`; with `rule` also `held`, `damped`, `drained`, `disabled`.
    #[serde(default)]
    #[schemars(schema_with = "states")]
    pub state: Option<String>,
    /// A change of the rule's path: `initial`, `failover`, `failback`, `better`, `manual` or `exhausted`.
    #[serde(default)]
    #[schemars(schema_with = "events")]
    pub event: Option<String>,
    /// How often it happens. Default: at least once.
    pub count: Option<u32>,
    /// What happens to flows bound to the path that is left: `graceful`, `drain`, `forced` or `reject`.
    #[serde(default)]
    #[schemars(schema_with = "flows")]
    pub flows: Option<String>,
}

impl ExpectSpec {
    /// The family that alone is meant.
    #[must_use]
    pub fn family(&self) -> Option<Family> {
        match self.family.as_deref() {
            Some("ipv4") => Some(Family::V4),
            Some("ipv6") => Some(Family::V6),
            _ => None,
        }
    }
}

fn words(words: &[&str]) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "enum": words})
}

fn families(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["ipv4", "ipv6"])
}

fn states(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["unknown", "up", "degraded", "down", "held", "damped", "drained", "disabled"])
}

fn events(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["initial", "failover", "failback", "better", "manual", "exhausted"])
}

fn flows(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words(&["graceful", "drain", "forced", "reject"])
}
