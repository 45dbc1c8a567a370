//! What the kernel takes along: an interface that is set down, vanishes, or loses its last address takes its routes with
//! it (`fib_disable_ip` and `rt6_disable_ip` in the kernel's `net/ipv4/fib_frontend.c` and `net/ipv6/route.c`), and one
//! that is made anew has sysctls of its own. It may be back before anybody looks.
//!
//! The kernel announces an interface that fails. Where that may have been missed, at the start and after lost
//! notifications, the routes tell by themselves: the kernel takes all routes over an interface out of every table and
//! leaves those beside them, which nobody does by hand.
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
    state::{Key, RouteKey, RouteValue, State, Value},
    units::{Family, IfName},
};

/// For how long after an interface has failed what goes with it may be found to be gone.
const SOON: Duration = Duration::from_secs(10);

/// When more interfaces than these fail within that time, the names of the others are not kept.
const MANY: usize = 256;
/// So many routes have to be missing before their interface is said to have taken them along: one alone may as well have
/// been deleted.
const TOGETHER: usize = 2;

/// The books over interfaces that failed lately.
#[derive(Debug)]
pub struct Along {
    links: BTreeMap<IfName, Instant>,
    /// An interface may have failed that is not in these books.
    deaf: bool,
    /// Interfaces that took all routes of a family along, as the newest look tells by itself.
    took: BTreeSet<(IfName, Family)>,
    /// What has gone with its interface, and was not seen to be put right yet.
    gone: BTreeSet<Key>,
}

impl Default for Along {
    /// Before the first look nothing was announced.
    fn default() -> Self {
        Self { links: BTreeMap::new(), deaf: true, took: BTreeSet::new(), gone: BTreeSet::new() }
    }
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
            self.missed();
        }
    }

    /// Announcements were missed: any interface may have failed.
    pub const fn missed(&mut self) {
        self.deaf = true;
    }

    /// Takes in what a look at the kernel found, before anything is put right.
    pub fn looked(&mut self, applied: &State, found: &State) {
        self.took = if self.deaf { took(applied, found) } else { BTreeSet::new() };
    }

    /// All that went was put back, and was seen to be there.
    pub fn put_back(&mut self) {
        self.gone.clear();
    }

    /// Leaves what somebody did of what was found at this look.
    pub fn without(&mut self, found: Vec<Drifted>, wanted: &State, now: Instant) -> Vec<Drifted> {
        self.links.retain(|_, at| now.since(*at) < SOON);
        self.deaf = false;
        let (mut gone, mut left) = (BTreeSet::new(), Vec::new());
        for drifted in found {
            if self.gone.contains(&drifted.key) || self.went(&drifted, wanted) {
                gone.insert(drifted.key);
            } else {
                left.push(drifted);
            }
        }
        self.gone = gone;
        left
    }

    /// Whether this is what goes with an interface that failed.
    fn went(&self, drifted: &Drifted, wanted: &State) -> bool {
        let failed = |link: &str| self.links.keys().any(|failed| failed.as_str() == link);
        match (&drifted.key, drifted.how, wanted.objects.get(&drifted.key)) {
            (Key::Route(key), How::Missing, Some(Value::Route(RouteValue::Via { interface, .. }))) => {
                failed(interface.as_str()) || self.took.contains(&(interface.clone(), key.family))
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
}

/// The interfaces and families of whose routes none is left while others are in each of their tables.
fn took(applied: &State, found: &State) -> BTreeSet<(IfName, Family)> {
    let tables: BTreeSet<(u32, Family)> = found.objects.keys().filter_map(route).map(|r| (r.table, r.family)).collect();
    let there: BTreeSet<(&IfName, Family)> = by_interface(found).map(|(over, _)| over).collect();
    let mut missing: BTreeMap<(&IfName, Family), Vec<&RouteKey>> = BTreeMap::new();
    for (over, key) in by_interface(applied).filter(|(over, _)| !there.contains(over)) {
        missing.entry(over).or_default().push(key);
    }
    let together = |keys: &[&RouteKey]| {
        let absent = keys.iter().filter(|key| !found.objects.contains_key(&Key::Route((**key).clone()))).count();
        absent >= TOGETHER && keys.iter().all(|key| tables.contains(&(key.table, key.family)))
    };
    let taken = missing.into_iter().filter(|(_, keys)| together(keys));
    taken.map(|((interface, family), _)| (interface.clone(), family)).collect()
}

/// The routes that lead over an interface, each with that and its family.
fn by_interface(state: &State) -> impl Iterator<Item = ((&IfName, Family), &RouteKey)> {
    state.objects.iter().filter_map(|object| match object {
        (Key::Route(key), Value::Route(RouteValue::Via { interface, .. })) => Some(((interface, key.family), key)),
        _ => None,
    })
}

const fn route(key: &Key) -> Option<&RouteKey> {
    match key {
        Key::Route(route) => Some(route),
        _ => None,
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
        along.failed(&"wan0".parse().unwrap(), at(1));
        let found = vec![changed(route(1)), Drifted { key: route(3), how: How::Extra }];
        assert_eq!(along.without(found.clone(), &wanted(), at(1)), found);
        assert_eq!(
            along.without(vec![missing(route(2))], &wanted(), at(2)),
            [missing(route(2))],
            "by another interface"
        );
    }

    fn of(table: u32, family: Family, metric: u32) -> Key {
        let destination = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" }.parse().unwrap();
        Key::Route(RouteKey { table, family, destination, metric })
    }

    /// Tables of `fiber` by wan0, of `lte` by wan1, and of two rules that use both, in both families.
    fn site() -> State {
        let by = |interface: &str| {
            Value::Route(RouteValue::Via { gateway: None, interface: interface.parse().unwrap(), mtu: None })
        };
        let orders: [(u32, &[&str]); 4] =
            [(1, &["wan0"]), (2, &["wan1"]), (3, &["wan0", "wan1"]), (4, &["wan1", "wan0"])];
        let of_table = |(table, order): (u32, &'static [&'static str]), family| {
            let routes =
                order.iter().zip((10..).step_by(10)).map(move |(i, metric)| (of(table, family, metric), by(i)));
            routes.chain([(of(table, family, u32::MAX), Value::Route(RouteValue::Unreachable))])
        };
        let all = orders.into_iter().flat_map(|order| Family::ALL.map(|family| (order, family)));
        State { objects: all.flat_map(|(order, family)| of_table(order, family)).collect() }
    }

    /// The site's state without what `is_gone` says, and what is drift then.
    fn site_without(is_gone: impl Fn(&RouteKey, &Value) -> bool) -> (State, Vec<Drifted>) {
        let mut found = site();
        found.objects.retain(|key, value| !is_gone(super::route(key).unwrap(), value));
        let drift = crate::drift::drifted(&site(), &site(), &found);
        (found, drift)
    }

    fn by(value: &Value, name: &str) -> bool {
        matches!(value, Value::Route(RouteValue::Via { interface, .. }) if interface.as_str() == name)
    }

    /// What is put down to somebody at the first look.
    fn blamed(is_gone: impl Fn(&RouteKey, &Value) -> bool) -> Vec<Drifted> {
        let ((found, drift), mut along) = (site_without(is_gone), Along::default());
        along.looked(&site(), &found);
        along.without(drift, &site(), at(1))
    }

    #[test]
    fn an_interface_that_failed_unseen_is_known_by_all_its_routes_being_gone_and_no_other() {
        assert_eq!(blamed(|_, value| by(value, "wan0")), [], "both families");
        assert_eq!(blamed(|key, value| by(value, "wan0") && key.family == Family::V6), [], "its last address of one");
        assert_eq!(blamed(|_, value| by(value, "wan0") || by(value, "wan1")), [], "two interfaces");
        let deleted = of(2, Family::V4, 10);
        let with_one_more = blamed(|key, value| by(value, "wan0") || Key::Route(key.clone()) == deleted);
        assert_eq!(with_one_more, [missing(deleted)], "what somebody deleted by another interface stays his doing");
    }

    #[test]
    fn routes_that_a_person_deletes_are_his_doing_also_before_the_first_look() {
        let somebody = |is_gone: fn(&RouteKey, &Value) -> bool| {
            let (_, drift) = site_without(is_gone);
            assert!(!drift.is_empty());
            assert_eq!(blamed(is_gone), drift);
        };
        somebody(|key, value| key.table == 1 && by(value, "wan0") && key.family == Family::V4);
        somebody(|key, value| by(value, "wan0") && key.table != 4);
        somebody(|key, _| key.table == 1);
        // Tables that were flushed as a whole, or their last routes too.
        somebody(|_, _| true);
        somebody(|key, value| by(value, "wan0") || key.table == 1);
    }

    #[test]
    fn the_only_route_over_an_interface_is_a_persons_to_delete() {
        let one = || {
            let mut state = site();
            state.objects.retain(|key, value| !by(value, "wan0") || super::route(key).unwrap().table == 1);
            state
        };
        let (mut found, mut along) = (one(), Along::default());
        found.objects.retain(|_, value| !by(value, "wan0"));
        let drift = crate::drift::drifted(&one(), &one(), &found);
        along.looked(&one(), &found);
        assert_eq!((drift.len(), along.without(drift.clone(), &one(), at(1))), (2, drift));
    }

    #[test]
    fn routes_that_were_changed_beside_those_that_went_are_somebodys() {
        let (mut found, _) = site_without(|_, value| by(value, "wan0"));
        let other = RouteValue::Other { text: "blackhole".into(), message: "".into() };
        found.objects.insert(of(1, Family::V4, 10), Value::Route(other));
        let drift = crate::drift::drifted(&site(), &site(), &found);
        let mut along = Along::default();
        along.looked(&site(), &found);
        assert_eq!(along.without(drift, &site(), at(1)), [changed(of(1, Family::V4, 10))]);
    }

    #[test]
    fn whoever_heard_all_goes_by_what_was_announced() {
        let (found, drift) = site_without(|_, value| by(value, "wan0"));
        let mut along = Along::default();
        along.looked(&site(), &site());
        assert_eq!(along.without(vec![], &site(), at(1)), []);
        // As `systemd-networkd` does: a fight has to be seen.
        along.looked(&site(), &found);
        assert_eq!(along.without(drift.clone(), &site(), at(2)), drift);
        along.missed();
        along.looked(&site(), &found);
        assert_eq!(along.without(drift.clone(), &site(), at(3)), [], "announcements were lost");
        along.looked(&site(), &found);
        assert_eq!(along.without(drift.clone(), &site(), at(100)), [], "until it was seen to be put right");
        along.put_back();
        along.looked(&site(), &found);
        assert_eq!(along.without(drift.clone(), &site(), at(101)), drift, "somebody did it again at once");
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
        let (found, drift) = site_without(|_, value| by(value, "wan0"));
        along.looked(&site(), &site());
        along.without(vec![], &site(), at(999));
        along.looked(&site(), &found);
        assert_eq!(along.without(drift.clone(), &site(), at(1000)), drift, "another one's doing");
        // Ten thousand at once, and then the one that matters.
        came_and_went(&mut along, 0..10_000, 1);
        along.failed(&"wan0".parse().unwrap(), at(1));
        along.looked(&site(), &found);
        assert_eq!(along.without(drift, &site(), at(2)), []);
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
