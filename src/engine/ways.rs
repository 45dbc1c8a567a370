//! By which ways the source can be fetched: as the router's own traffic goes, then over each uplink that is not down, and
//! over one tunnel that is up.

use super::Engine;
use crate::{
    desired,
    health::PathState,
    source::git::Way,
    state::Target,
    validate::intent::{Destination, Path, Site},
};

/// The paths that may lead to a remote where the usual way does not, after so many failures: the uplinks, those that are
/// up first, then a tunnel. A hub has a thousand of them, so each gets its turn. There is not time for all ways where a
/// remote takes connections and says nothing, so each comes first once before it is the next tunnel's turn.
fn candidates(site: &Site, state: impl Fn(&Path) -> PathState, failures: usize) -> Vec<&Path> {
    let paths = || site.paths.values().map(AsRef::as_ref);
    let leads = |path: &&Path| path.to == Destination::Internet && state(path) != PathState::Down;
    let mut all: Vec<&Path> = paths().filter(leads).collect();
    all.sort_by_key(|path| state(path) != PathState::Up);
    let is_tunnel = |path: &&Path| path.to != Destination::Internet && state(path) == PathState::Up;
    let tunnels: Vec<&Path> = paths().filter(is_tunnel).collect();
    let turn = (failures / (all.len() + 1)).checked_rem(tunnels.len());
    all.extend(turn.and_then(|turn| tunnels.get(turn)).copied());
    let first = failures.checked_rem(all.len()).unwrap_or_default();
    all.rotate_left(first);
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
        let failures = self.revisions.trouble().map_or(0, |trouble| trouble.failures as usize);
        let paths = candidates(&active.site, state, failures).into_iter().filter_map(by);
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
    bonn: {from: fiber, to: berlin/fiber, tunnel: {type: vxlan, id: 8}}
---
apiVersion: patronus.network/v1alpha1
kind: Site
metadata: {name: berlin}
spec:
  endpoints:
    fiber: {interface: wan0, gateway: 192.0.2.129, address: 192.0.2.130}
  paths:
    hub: {from: fiber, to: hub/fiber, tunnel: {type: vxlan, id: 7}}
    hub2: {from: fiber, to: hub/fiber, tunnel: {type: vxlan, id: 8}}
";

    #[test]
    fn a_remote_is_looked_for_over_the_uplinks_that_are_up_first_and_over_each_tunnel_in_its_turn() {
        let files = [("sites.yaml".to_owned(), SITES.as_bytes().to_vec())].into();
        let (config, mut found) = config::load(&Snapshot { revision: "r".into(), files, commit: None });
        let (intent, more) = validate::check(&config);
        found.extend(more);
        let intent = intent.unwrap_or_else(|| panic!("{found:#?}"));
        let site = &intent.sites()["hub"];
        let after = |failures, states: &[(&str, PathState)]| {
            let known = |path: &Path| states.iter().find(|(name, _)| *name == path.name.as_str());
            let found = candidates(site, |path| known(path).map_or(Unknown, |(_, state)| *state), failures);
            found.iter().map(|path| path.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(after(0, &[]), "cable fiber lte", "a tunnel of which nothing is known is not asked");
        assert_eq!(after(0, &[("fiber", Up), ("berlin", Up)]), "fiber cable lte berlin");
        let two = [("fiber", Down), ("cable", Down), ("lte", Up), ("berlin", Up), ("bonn", Up)];
        let turns: Vec<String> = (0..5).map(|failures| after(failures, &two)).collect();
        assert_eq!(turns, ["lte berlin", "berlin lte", "lte bonn", "bonn lte", "lte berlin"]);
        assert_eq!(after(7, &[("fiber", Down), ("cable", Down), ("lte", Down)]), "");
    }
}
