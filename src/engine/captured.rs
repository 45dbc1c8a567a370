//! A router's live state in a file, and a kernel made of it: a plan can be made anywhere.
//!
//! Invariant: a captured kernel is looked at and never changed. Without nft nobody knows how a kernel would list a
//! ruleset; so rulesets are compared as they were written, which Patronus remembers of the one that it applied.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::router::Router;
use crate::{
    clock::Wall,
    desired,
    failover::Selection,
    kernel::{Executed, Kernel, KernelError, Scope},
    plan::Step,
    state::{Allocations, Key, Observed, Ranges, Stamp, State, Value},
    store::LastGood,
    units::Name,
};

/// Version of the format.
pub const FORMAT_VERSION: u32 = 1;

/// Everything that a plan depends on beside the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Captured {
    /// Version of this format.
    pub format_version: u32,
    /// When it was taken.
    pub taken: Wall,
    /// Which site the router is.
    pub site: Name,
    /// Which marks, tables and priorities are ours.
    pub ranges: Ranges,
    /// Our objects, what surrounds them, and what others put into our ranges.
    pub observed: Observed,
    /// Numbers in use, also where the kernel does not show them.
    pub numbers: Allocations,
    /// Values that sysctls had before us.
    pub originals: BTreeMap<String, String>,
    /// The state that was applied last.
    pub applied: Option<State>,
    /// The generation in force.
    pub generation: u64,
    /// Which path each rule uses.
    pub selection: Option<Selection>,
    /// The configuration in force.
    pub configuration: Option<Configuration>,
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// Its revision.
    pub revision: String,
    /// Since when.
    pub at: Wall,
    /// Its files.
    pub files: BTreeMap<String, String>,
}

impl Captured {
    /// Captures a router that is this site.
    pub async fn of<K: Kernel>(router: &Router<K>, site: &Name, now: Wall) -> Result<Self, KernelError> {
        let mut scope = router.scope(None);
        let interfaces: Vec<_> = router.kernel.observe(&scope).await?.facts.links.into_keys().collect();
        scope.sysctls.extend(desired::sysctls_of(&interfaces));
        let observed = router.observe_within(&scope).await?;
        let configuration = router.ledger.last_good().map(|good| Configuration {
            revision: good.revision,
            at: good.at,
            files: good.files.into_iter().filter_map(|(n, c)| Some((n, String::from_utf8(c).ok()?))).collect(),
        });
        Ok(Self {
            format_version: FORMAT_VERSION,
            taken: now,
            site: site.clone(),
            ranges: *router.ranges(),
            numbers: router.numbers(&observed).clone(),
            originals: router.originals().iter().map(|(key, value)| (key.path.clone(), value.clone())).collect(),
            applied: router.applied_as_written(),
            generation: router.generation_of(&observed),
            selection: router.remembered_selection(),
            configuration,
            observed,
        })
    }

    /// The configuration in force, as the store has it.
    #[must_use]
    pub fn last_good(&self) -> Option<LastGood> {
        let found = self.configuration.clone()?;
        let files = found.files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
        Some(LastGood { revision: found.revision, at: found.at, files })
    }

    /// The kernel that was captured, and what was applied, with rulesets as they were written.
    #[must_use]
    pub fn thaw(self) -> (Frozen, Option<State>) {
        let Self { mut observed, mut applied, .. } = self;
        let ours = applied.as_mut().and_then(|state| state.objects.get_mut(&Key::Nft));
        if let Some(Value::Nft(ours)) = ours {
            if let Some(Value::Nft(shown)) = Arc::make_mut(&mut observed.state).objects.get_mut(&Key::Nft)
                && shown.canonical == ours.canonical
            {
                shown.canonical.clone_from(&ours.source);
            }
            ours.canonical.clone_from(&ours.source);
        }
        (Frozen { observed }, applied)
    }
}

/// A kernel that was captured.
#[derive(Debug, Clone)]
pub struct Frozen {
    observed: Observed,
}

impl Kernel for Frozen {
    async fn observe(&self, _: &Scope) -> Result<Observed, KernelError> {
        Ok(self.observed.clone())
    }

    async fn execute(&self, _: &Step, _: &Ranges, _: &Stamp) -> Result<Executed, KernelError> {
        Err(KernelError::Missing { what: "a captured state can be looked at and not changed".to_owned() })
    }

    async fn canonical(&self, source: &str) -> Result<String, KernelError> {
        Ok(source.to_owned())
    }
}
