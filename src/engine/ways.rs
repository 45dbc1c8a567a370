//! By which ways the source can be fetched: as the router's own traffic goes, then over each path that is up.

use super::Engine;
use crate::{desired, health::PathState, source::git::Way, state::Target};

impl Engine {
    /// All ways, in the order in which they are tried: the usual one, then the paths by their marks.
    pub(super) fn ways(&self) -> Vec<Way> {
        let mut ways = vec![Way::default()];
        let Some(active) = &self.active else { return ways };
        let (ranges, numbers) = (self.router.ranges(), &self.router.numbers(&self.observed).targets);
        let healths = self.monitor.healths();
        let usable = active.site.paths.values().filter(|path| {
            let health = healths.get(&path.name);
            health.is_none_or(|health| health.state != PathState::Down)
        });
        let mut paths: Vec<Way> = usable
            .filter_map(|path| {
                let number = numbers.get(&Target::Path(path.name.clone()))?;
                let sources = desired::source_addresses(&active.site, &path.name, &self.observed.facts);
                Some(Way {
                    path: Some(path.name.to_string()),
                    mark: Some(ranges.target_mask.mark(*number)),
                    device: Some(path.interface.to_string()),
                    sources: sources.into_values().collect(),
                })
            })
            .collect();
        paths.sort_by_key(|way| way.mark);
        ways.append(&mut paths);
        ways
    }
}
