//! Inventing addresses that collide with nothing.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::units::Family;

/// What is known about a link before it gets its addresses.
pub(super) struct Wanted<'a> {
    pub(super) family: Family,
    pub(super) gateway: Option<IpAddr>,
    pub(super) address: Option<IpAddr>,
    /// Addresses on the same router's other links.
    pub(super) elsewhere: &'a [IpAddr],
}

/// Networks and addresses still free.
pub(super) struct Pool {
    named: Vec<IpNet>,
    used: BTreeSet<IpAddr>,
    next: u32,
}

impl Pool {
    /// A pool that leaves out these networks and addresses.
    pub(super) const fn new(named: Vec<IpNet>, used: BTreeSet<IpAddr>) -> Self {
        Self { named, used, next: 0 }
    }

    /// The router's address with its prefix length, and the provider's address.
    pub(super) fn link(&mut self, wanted: &Wanted<'_>) -> Option<(IpNet, IpAddr)> {
        let found = match (wanted.gateway, wanted.address) {
            (None, None) => self.fresh(wanted.family),
            (Some(gateway), None) => self.beside(wanted, gateway, None).map(|(net, address)| (net, address, gateway)),
            (None, Some(address)) => self.beside(wanted, address, None).map(|(net, gateway)| (net, address, gateway)),
            (Some(gateway), Some(address)) => {
                let net = self.beside(wanted, gateway, Some(address)).map_or(IpNet::from(address), |(net, _)| net);
                Some((net, address, gateway))
            }
        };
        let (net, address, gateway) = found?;
        self.used.extend([address, gateway]);
        IpNet::new(address, net.prefix_len()).ok().map(|net| (net, gateway))
    }

    /// The widest plausible network around an address that holds nothing else that the router knows, and a free
    /// address in it (or the given one).
    fn beside(&self, wanted: &Wanted<'_>, known: IpAddr, other: Option<IpAddr>) -> Option<(IpNet, IpAddr)> {
        let ours = |a: IpAddr| a == known || Some(a) == other;
        let single = |n: &IpNet| n.prefix_len() == n.max_prefix_len() && ours(n.addr());
        let lengths = if known.is_ipv4() { 24..=30 } else { 64..=126 };
        lengths.filter_map(|length| IpNet::new(known, length).ok()).map(|net| net.trunc()).find_map(|net| {
            let named = self.named.iter().any(|n| overlap(n, &net) && !single(n));
            let elsewhere = wanted.elsewhere.iter().any(|a| net.contains(a) && !ours(*a));
            let address = other.map_or_else(|| self.free(net, known), |o| net.contains(&o).then_some(o));
            address.filter(|_| !named && !elsewhere).map(|address| (net, address))
        })
    }

    fn free(&self, net: IpNet, except: IpAddr) -> Option<IpAddr> {
        let last = net.broadcast();
        (1..=254)
            .map(|n| nth(net, n))
            .take_while(|a| net.contains(a))
            .find(|a| *a != except && !self.used.contains(a) && (net.addr().is_ipv6() || *a != last))
    }

    /// A network of the carrier-grade NAT range (RFC 6598) or of the documentation range (RFC 3849).
    fn fresh(&mut self, family: Family) -> Option<(IpNet, IpAddr, IpAddr)> {
        while self.next < 16_384 {
            let n = self.next;
            self.next += 1;
            let net = match family {
                Family::V4 => IpNet::new(Ipv4Addr::from_bits(0x6440_0000 + (n << 8)).into(), 24),
                Family::V6 => {
                    let bits = 0x2001_0db8_0064_0000_u128 + u128::from(n);
                    IpNet::new(Ipv6Addr::from_bits(bits << 64).into(), 64)
                }
            }
            .ok()?;
            if !self.named.iter().any(|named| overlap(named, &net)) {
                return Some((net, nth(net, 2), nth(net, 1)));
            }
        }
        None
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The address so many above the network's own; one beyond the network if there are not as many.
pub(super) fn nth(net: IpNet, n: u32) -> IpAddr {
    match net {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits().saturating_add(n)).into(),
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits().saturating_add(u128::from(n))).into(),
    }
}

/// The router's address in a LAN, the first, and a host's, if there is room for one.
pub(super) fn lan(prefix: IpNet) -> (IpNet, Option<IpNet>) {
    let at = |n: u32| {
        let address = nth(prefix, n);
        let usable = prefix.contains(&address) && (address.is_ipv6() || address != prefix.broadcast());
        usable.then(|| IpNet::new(address, prefix.prefix_len()).ok()).flatten()
    };
    let narrow = prefix.max_prefix_len() - prefix.prefix_len() < 2;
    if narrow {
        let last = IpNet::new(prefix.broadcast(), prefix.prefix_len()).ok();
        return (prefix, last.filter(|last| last.addr() != prefix.network()));
    }
    (at(1).unwrap_or(prefix), at(10).or_else(|| at(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    fn link(named: &[&str], gateway: Option<&str>, address: Option<&str>) -> Option<(String, String)> {
        let mut pool = Pool::new(named.iter().map(|n| net(n)).collect(), BTreeSet::new());
        let parse = |s: &str| s.parse::<IpAddr>().unwrap();
        let family = gateway.or(address).map_or(Family::V4, |s| Family::of(&parse(s)));
        let wanted = Wanted { family, gateway: gateway.map(parse), address: address.map(parse), elsewhere: &[] };
        pool.link(&wanted).map(|(net, gateway)| (net.to_string(), gateway.to_string()))
    }

    #[allow(clippy::unnecessary_wraps)]
    fn pair(a: &str, b: &str) -> Option<(String, String)> {
        Some((a.to_owned(), b.to_owned()))
    }

    #[test]
    fn a_lan_has_a_router_and_a_host() {
        let show = |s: &str| {
            let (router, host) = lan(net(s));
            (router.to_string(), host.map(|h| h.to_string()).unwrap_or_default())
        };
        assert_eq!(show("192.168.10.0/24"), ("192.168.10.1/24".into(), "192.168.10.10/24".into()));
        assert_eq!(show("10.0.0.0/30"), ("10.0.0.1/30".into(), "10.0.0.2/30".into()));
        assert_eq!(show("10.0.0.4/31"), ("10.0.0.4/31".into(), "10.0.0.5/31".into()));
        assert_eq!(show("10.0.0.4/32"), ("10.0.0.4/32".into(), String::new()));
        assert_eq!(show("fd00::/64"), ("fd00::1/64".into(), "fd00::a/64".into()));
    }

    #[test]
    fn a_fixed_gateway_gets_a_plausible_network_around_it() {
        assert_eq!(link(&[], Some("198.51.100.1"), None), pair("198.51.100.2/24", "198.51.100.1"));
        assert_eq!(link(&[], Some("2001:db8::1"), None), pair("2001:db8::2/64", "2001:db8::1"));
        assert_eq!(link(&[], Some("198.51.100.1"), Some("198.51.100.77")), pair("198.51.100.77/24", "198.51.100.1"));
        assert_eq!(link(&[], None, Some("198.51.100.77")), pair("198.51.100.77/24", "198.51.100.1"));
    }

    #[test]
    fn the_network_shrinks_around_what_the_configuration_names() {
        let lan_beside = link(&["198.51.100.128/25"], Some("198.51.100.1"), None);
        assert_eq!(lan_beside, pair("198.51.100.2/25", "198.51.100.1"));
        let target_beside = link(&["198.51.100.9/32"], Some("198.51.100.1"), None);
        assert_eq!(target_beside, pair("198.51.100.2/29", "198.51.100.1"));
    }

    #[test]
    fn an_address_far_from_its_gateway_makes_a_point_to_point_link() {
        assert_eq!(link(&[], Some("10.0.0.1"), Some("203.0.113.5")), pair("203.0.113.5/32", "10.0.0.1"));
    }

    #[test]
    fn invented_networks_leave_out_what_is_named() {
        assert_eq!(link(&["100.64.0.0/23"], None, None), pair("100.64.2.2/24", "100.64.2.1"));
        assert_eq!(link(&["0.0.0.0/0"], None, None), None);
    }
}
