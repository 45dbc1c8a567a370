//! What the kernel takes along: an interface that is set down, vanishes, or loses its last address takes its routes with
//! it (`fib_disable_ip` and `rt6_disable_ip` in the kernel's `net/ipv4/fib_frontend.c` and `net/ipv6/route.c`), and one
//! that is made anew has sysctls of its own. It may be back before anybody looks.
//!
//! Invariant: what goes with its interface is nobody's doing, so it is no drift: it is put right in every mode, and never
//! counts as lost to another program.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Drifted, How};
use crate::{
    clock::Instant,
    state::{Key, RouteValue, State, Value},
    units::IfName,
};

/// For how long after an interface has failed what goes with it may be found to be gone.
const SOON: Duration = Duration::from_secs(10);

/// When more interfaces than these fail within that time, any may have.
const MANY: usize = 256;

/// The books over interfaces that failed lately.
#[derive(Debug, Default)]
pub struct Along {
    links: BTreeMap<IfName, Instant>,
    /// When any interface may have failed: an address has gone, or notifications were lost.
    any: Option<Instant>,
    /// What has gone with its interface, and was not seen to be put right yet.
    gone: BTreeSet<Key>,
}

impl Along {
    /// An interface was set down, or is no more. A router of containers makes and removes thousands, whose names never come
    /// again.
    pub fn failed(&mut self, link: &IfName, now: Instant) {
        if self.links.len() >= MANY {
            self.links.retain(|_, at| now.since(*at) < SOON);
        }
        if self.links.len() < MANY || self.links.contains_key(link) {
            self.links.insert(link.clone(), now);
        } else {
            self.any_failed(now);
        }
    }

    /// Any interface may have failed.
    pub const fn any_failed(&mut self, now: Instant) {
        self.any = Some(now);
    }

    /// Leaves what somebody did of what was found at this look.
    pub fn without(&mut self, found: Vec<Drifted>, wanted: &State, now: Instant) -> Vec<Drifted> {
        self.links.retain(|_, at| now.since(*at) < SOON);
        let any = self.any.is_some_and(|at| now.since(at) < SOON);
        let (mut gone, mut left) = (BTreeSet::new(), Vec::new());
        for drifted in found {
            let failed = |link: &str| any || self.links.keys().any(|failed| failed.as_str() == link);
            if self.gone.contains(&drifted.key) || went(&drifted, wanted, failed) {
                gone.insert(drifted.key);
            } else {
                left.push(drifted);
            }
        }
        self.gone = gone;
        left
    }
}

/// Whether this is what goes with an interface that `failed`.
fn went(drifted: &Drifted, wanted: &State, failed: impl Fn(&str) -> bool) -> bool {
    match (&drifted.key, drifted.how, wanted.objects.get(&drifted.key)) {
        (Key::Route(_), How::Missing, Some(Value::Route(RouteValue::Via { interface, .. }))) => {
            failed(interface.as_str())
        }
        // `ipv4/conf/wan0/rp_filter`
        (Key::Sysctl(key), How::Changed, _) => key
            .path
            .split_once("/conf/")
            .and_then(|(_, rest)| rest.split_once('/'))
            .is_some_and(|(link, _)| failed(link)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        drift::fights::{Fights, News},
        state::{RouteKey, SysctlKey},
        units::Family,
    };

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn route(table: u32) -> Key {
        let destination = "0.0.0.0/0".parse().unwrap();
        Key::Route(RouteKey { table, family: Family::V4, destination, metric: 10 })
    }

    fn sysctl(link: &str) -> Key {
        Key::Sysctl(SysctlKey { path: format!("ipv4/conf/{link}/rp_filter").into() })
    }

    /// Routes by `wan0` and `wan1`.
    fn wanted() -> State {
        let by = |interface: &str| {
            Value::Route(RouteValue::Via { gateway: None, interface: interface.parse().unwrap(), mtu: None })
        };
        State { objects: [(route(1), by("wan0")), (route(2), by("wan1"))].into() }
    }

    fn missing(key: Key) -> Drifted {
        Drifted { key, how: How::Missing }
    }

    fn changed(key: Key) -> Drifted {
        Drifted { key, how: How::Changed }
    }

    #[test]
    fn what_goes_with_its_interface_is_nobody_s_doing() {
        let mut along = Along::default();
        along.failed(&"wan0".parse().unwrap(), at(1));
        let found = || vec![missing(route(1)), missing(route(2)), changed(sysctl("wan0")), changed(sysctl("wan1"))];
        let left = vec![missing(route(2)), changed(sysctl("wan1"))];
        assert_eq!(along.without(found(), &wanted(), at(2)), left);
        // As long as it is not put right.
        assert_eq!(along.without(found(), &wanted(), at(100)), left);
        assert_eq!(along.without(vec![], &wanted(), at(101)), []);
        assert_eq!(along.without(found(), &wanted(), at(102)), found(), "by somebody, since nothing has failed");
    }

    #[test]
    fn whoever_changes_a_route_or_adds_one_does_it_himself() {
        let mut along = Along::default();
        along.any_failed(at(1));
        let found = vec![changed(route(1)), Drifted { key: route(3), how: How::Extra }];
        assert_eq!(along.without(found.clone(), &wanted(), at(1)), found);
        assert_eq!(along.without(vec![missing(route(2))], &wanted(), at(2)), [], "an address has gone");
    }

    #[test]
    fn thousands_of_interfaces_that_come_and_go_are_not_kept_and_hide_none_that_matters() {
        let mut along = Along::default();
        let came_and_went = |along: &mut Along, numbers: std::ops::Range<u64>, pace: u64| {
            for n in numbers {
                along.failed(&format!("veth{n}").parse().unwrap(), Instant::from_nanos(n * pace));
                assert!(along.links.len() <= MANY);
            }
        };
        // One in 100 ms, and nobody looks.
        came_and_went(&mut along, 0..10_000, 100_000_000);
        assert_eq!(along.any, None);
        let found = || vec![missing(route(1))];
        assert_eq!(along.without(found(), &wanted(), at(1000)), found(), "another one's doing");
        // Ten thousand at once, and then the one that matters.
        came_and_went(&mut along, 0..10_000, 1);
        along.failed(&"wan0".parse().unwrap(), at(1));
        assert_eq!(along.without(found(), &wanted(), at(2)), []);
    }

    /// What a person hears of an interface that fails and comes back, again and again.
    fn told(hears: impl Fn(&mut Along, Instant)) -> Vec<News> {
        let (mut along, mut fights, mut news) = (Along::default(), Fights::default(), Vec::new());
        for second in 0..60 {
            hears(&mut along, at(second));
            let lost = along.without(vec![missing(route(1))], &wanted(), at(second));
            news.extend(fights.look(&lost.into_iter().map(|drifted| drifted.key).collect(), at(second)));
            fights.repaired(at(second));
            along.without(vec![], &wanted(), at(second));
        }
        news
    }

    #[test]
    fn an_interface_that_flaps_is_no_fight() {
        assert_eq!(told(|along, now| along.failed(&"wan0".parse().unwrap(), now)), []);
    }

    #[test]
    fn the_checker_sees_a_flap_that_nobody_notes() {
        assert_eq!(told(|_, _| {}), [News::Begun(route(1))]);
    }
}
