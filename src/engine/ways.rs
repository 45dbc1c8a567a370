//! By which ways the source can be fetched: as the router's own traffic goes, then over each uplink that is not down.

use super::Engine;
use crate::{
    desired,
    health::PathState,
    source::git::Way,
    state::Target,
    validate::intent::{Destination, Path, Site},
};

/// The paths that may lead to a remote where the usual way does not, those that are up first. There is one for each uplink.
/// A tunnel leads to one site, and a hub has a thousand of them.
fn candidates(site: &Site, state: impl Fn(&Path) -> PathState) -> Vec<&Path> {
    let leads = |path: &&Path| path.to == Destination::Internet && state(path) != PathState::Down;
    let mut all: Vec<&Path> = site.paths.values().map(AsRef::as_ref).filter(leads).collect();
    all.sort_by_key(|path| state(path) != PathState::Up);
    all
}

impl Engine {
    /// All ways, in the order in which they are tried: the usual one, then paths by their marks.
    pub(super) fn ways(&self) -> Vec<Way> {
        let usual = Way::default();
        let Some(active) = &self.active else { return vec![usual] };
        let (ranges, numbers) = (self.router.ranges(), &self.router.numbers(&self.observed).targets);
        let by = |path: &Path| {
            let number = numbers.get(&Target::Path(path.name.clone()))?;
            let sources = desired::source_addresses(&active.site, &path.name, &self.observed.facts);
            Some(Way {
                path: Some(path.name.to_string()),
                mark: Some(ranges.target_mask.mark(*number)),
                device: Some(path.interface.to_string()),
                sources: sources.into_values().collect(),
            })
        };
        let healths = self.monitor.healths();
        let state = |path: &Path| healths.get(&path.name).map_or(PathState::Unknown, |health| health.state);
        let mut paths: Vec<Way> = candidates(&active.site, state).into_iter().filter_map(by).collect();
        // There is not time for all of them where a remote takes connections and says nothing: each gets its turn.
        let failures = self.revisions.trouble().map_or(0, |trouble| trouble.failures as usize);
        let turn = failures.checked_rem(paths.len()).unwrap_or_default();
        paths.rotate_left(turn);
        std::iter::once(usual).chain(paths).collect()
    }
}

#[cfg(test)]
mod tests {
    use PathState::{Down, Unknown, Up};

    use super::*;
    use crate::{
        config::{self, Snapshot},
        validate,
    };

    const SITES: &str = "apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: hub}
spec:
  endpoints:
    cable: {interface: wan2, gateway: 192.0.2.1}
    fiber: {interface: wan0, gateway: 198.51.100.1, address: 198.51.100.2}
    lte: {interface: wan1, gateway: 203.0.113.1}
  paths:
    cable: {from: cable, to: internet}
    fiber: {from: fiber, to: internet}
    lte: {from: lte, to: internet}
    berlin: {from: fiber, to: berlin/fiber, tunnel: {type: vxlan, id: 7}}
---
apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  endpoints:
    fiber: {interface: wan0, gateway: 192.0.2.129, address: 192.0.2.130}
  paths:
    hub: {from: fiber, to: hub/fiber, tunnel: {type: vxlan, id: 7}}
";

    #[test]
    fn a_remote_is_looked_for_over_the_uplinks_that_are_up_first_and_over_no_tunnel() {
        let files = [("sites.yaml".to_owned(), SITES.as_bytes().to_vec())].into();
        let (config, mut found) = config::load(&Snapshot { revision: "r".into(), files, commit: None });
        let (intent, more) = validate::check(&config);
        found.extend(more);
        let intent = intent.unwrap_or_else(|| panic!("{found:#?}"));
        let site = &intent.sites()["hub"];
        let of = |states: &[(&str, PathState)]| {
            let known = |path: &Path| states.iter().find(|(name, _)| *name == path.name.as_str());
            let found = candidates(site, |path| known(path).map_or(Unknown, |(_, state)| *state));
            found.iter().map(|path| path.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(&[]), "cable fiber lte");
        assert_eq!(of(&[("fiber", Up), ("berlin", Up)]), "fiber cable lte");
        assert_eq!(of(&[("fiber", Down), ("cable", Down), ("lte", Up), ("berlin", Up)]), "lte");
    }
}
