//! Asking gateways on their own links: one ARP socket for all interfaces, one for neighbour discovery.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::{
    cmsg_space,
    ifaddrs::getifaddrs,
    sys::{
        socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, sendmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    ProbeError, ProbeSpec,
    echo::Reply,
    neighbour::{self, Mac},
    rounds::Arrival,
    senders::called,
    socket::{Kind, Ration, Sockets},
};
use crate::{
    clock::{self, Instant},
    units::{Family, IfName},
};

/// A gateway as asked: the index of its interface, and its address.
type Asked = (u32, IpAddr);

const ARP_SOCKET: &str = "the socket that asks gateways by ARP (AF_PACKET)";
/// Longer than any answer is waited for.
const LATELY: Duration = Duration::from_secs(600);
/// So many cost nothing.
const FEW: usize = 256;

/// What is known of gateways that were asked lately. An interface that is made anew has another index, and a provider
/// may give another gateway with each lease: nobody asks again for what is known of the old ones.
#[derive(Debug)]
struct Lately<T> {
    /// Looked up by key, and never iterated but to forget.
    known: HashMap<Asked, (T, Instant)>,
    /// With so many, the old ones are forgotten.
    most: usize,
}

impl<T: Copy> Lately<T> {
    fn new() -> Self {
        Self { known: HashMap::new(), most: FEW }
    }

    /// Whether there was something.
    fn put(&mut self, asked: Asked, value: T, now: Instant) -> bool {
        if self.known.len() >= self.most {
            self.known.retain(|_, (_, at)| now.since(*at) < LATELY);
            self.most = (2 * self.known.len()).max(FEW);
        }
        self.known.insert(asked, (value, now)).is_some()
    }

    fn get(&self, asked: &Asked) -> Option<T> {
        self.known.get(asked).map(|(value, _)| *value)
    }

    fn take(&mut self, asked: &Asked) -> Option<T> {
        self.known.remove(asked).map(|(value, _)| value)
    }
}

/// The sockets and what is waited for.
#[derive(Debug)]
pub(super) struct Links {
    /// Tokio has no type for a packet socket, and this one adds nothing but readiness.
    arp: UdpSocket,
    ration: Ration,
    discovery: Option<Sockets>,
    waiting: Lately<(Reply, IpAddr)>,
    known: Lately<Mac>,
    ours: HashMap<IfName, LinkAddr>,
}

impl Links {
    /// Opens the sockets; without IPv6, IPv4 alone.
    pub fn open() -> Result<Self, ProbeError> {
        let arp = arp().map_err(|source| ProbeError::Open { what: ARP_SOCKET, source })?;
        let discovery = match Sockets::open(Family::V6, Kind::Discovery) {
            Ok(sockets) => Some(sockets),
            Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => None,
            Err(source) => return Err(ProbeError::Open { what: called(Kind::Discovery, Family::V6), source }),
        };
        let (waiting, known, ours) = (Lately::new(), Lately::new(), HashMap::new());
        Ok(Self { arp, ration: Ration::new(), discovery, waiting, known, ours })
    }

    /// Waits until there may be an answer.
    pub async fn readable(&self) {
        let discovery = async {
            match &self.discovery {
                Some(sockets) => sockets.readable().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.arp.readable() => {}
            () = discovery => {}
        }
    }

    /// Asks the gateway that `target` stands for; the index of the interface.
    pub fn ask(&mut self, spec: &ProbeSpec, reply: Reply, target: IpAddr) -> io::Result<u32> {
        let gateway = if target.is_unspecified() { spec.gateways.first().copied() } else { Some(target) };
        let unknown = || io::Error::new(io::ErrorKind::AddrNotAvailable, "the kernel has no default route by it");
        let gateway = gateway.ok_or_else(unknown)?;
        let index = rustix::net::netdevice::name_to_index(&self.arp, spec.interface.as_str())?;
        let unanswered = self.waiting.put((index, gateway), (reply, target), clock::now());
        if unanswered {
            self.known.take(&(index, gateway));
        }
        let link = self.link(&spec.interface, index, unanswered)?;
        match gateway {
            IpAddr::V4(address) => self.ask_v4(spec, &link, address),
            IpAddr::V6(address) => self.ask_v6(spec, &link, address, index),
        }?;
        Ok(index)
    }

    fn ask_v4(&self, spec: &ProbeSpec, link: &LinkAddr, gateway: Ipv4Addr) -> io::Result<()> {
        let own = spec.sources.iter().find_map(|s| if let IpAddr::V4(own) = s { Some(*own) } else { None });
        let from = (link.addr().unwrap_or_default(), own.unwrap_or(Ipv4Addr::UNSPECIFIED));
        let known = u32::try_from(link.ifindex()).ok().and_then(|i| self.known.get(&(i, gateway.into())));
        let frame = neighbour::arp_request(from, gateway, known);
        let data = [IoSlice::new(&frame)];
        sendmsg(self.arp.as_raw_fd(), &data, &[], MsgFlags::MSG_DONTWAIT, Some(link))?;
        Ok(())
    }

    fn ask_v6(&self, spec: &ProbeSpec, link: &LinkAddr, gateway: Ipv6Addr, index: u32) -> io::Result<()> {
        let unsupported = || io::Error::from_raw_os_error(nix::libc::EAFNOSUPPORT);
        let sockets = self.discovery.as_ref().ok_or_else(unsupported)?;
        sockets.aim(spec)?;
        let to = SocketAddr::new(neighbour::solicited_node(gateway).into(), 0);
        sockets.send(&neighbour::solicitation(link.addr(), gateway), to, None, index)
    }

    /// The hardware address of an interface, read anew when it was re-created or does not get answers.
    fn link(&mut self, interface: &IfName, index: u32, doubted: bool) -> io::Result<LinkAddr> {
        let same = |l: &&LinkAddr| !doubted && u32::try_from(l.ifindex()) == Ok(index);
        if let Some(link) = self.ours.get(interface).filter(same) {
            return Ok(*link);
        }
        let found = getifaddrs()?
            .filter(|a| a.interface_name == interface.as_str())
            .find_map(|a| a.address?.as_link_addr().copied())
            .filter(|l| l.halen() == 6);
        let other = || io::Error::new(io::ErrorKind::Unsupported, "it is no Ethernet: its gateway cannot be asked");
        let link = found.ok_or_else(other)?;
        self.ours.insert(interface.clone(), link);
        Ok(link)
    }

    /// Another turn begins: as much may be read again.
    pub fn renew(&self) {
        self.ration.renew();
        self.discovery.iter().for_each(Sockets::renew);
    }

    /// The next answer that was waited for.
    pub fn receive(&mut self) -> Option<Arrival> {
        while let Some(found) = self.next() {
            let asked = (found.interface, found.from);
            if let Some((reply, target)) = self.waiting.take(&asked) {
                return Some(Arrival { reply, from: target, ..found });
            }
        }
        None
    }

    fn next(&mut self) -> Option<Arrival> {
        while self.ration.take() {
            match self.next_arp() {
                Ok(Some(arrival)) => return Some(arrival),
                Ok(None) | Err(nix::Error::EINTR) => {}
                Err(_) => {
                    // Tells the runtime that the socket is empty.
                    let empty = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
                    let _ = self.arp.try_io(Interest::READABLE, empty);
                    break;
                }
            }
        }
        self.discovery.as_ref()?.receive()
    }

    fn next_arp(&mut self) -> nix::Result<Option<Arrival>> {
        let mut bytes = [0; 64];
        let mut control = cmsg_space!(TimeSpec);
        let mut data = [IoSliceMut::new(&mut bytes)];
        let fd = self.arp.as_raw_fd();
        let message = recvmsg::<LinkAddr>(fd, &mut data, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
        let index = message.address.and_then(|a| u32::try_from(a.ifindex()).ok()).unwrap_or_default();
        let wall = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::ScmTimestampns(at) => Some(at.tv_sec() * 1_000_000 + at.tv_nsec() / 1_000),
            _ => None,
        });
        let Some((from, mac)) = neighbour::arp_reply(&bytes) else { return Ok(None) };
        let from = IpAddr::V4(from);
        if self.waiting.get(&(index, from)).is_some() {
            self.known.put((index, from), mac, clock::now());
        }
        let reply = Reply { sequence: 0, nonce: 0 };
        Ok(Some(Arrival { reply, from, interface: index, wall, read: clock::now(), reflection: None }))
    }
}

/// The socket for ARP, which a tokio runtime watches.
fn arp() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(neighbour::ARP.to_be()))))?;
    socket.set_nonblocking(true)?;
    socket.attach_filter(&REPLIES)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    UdpSocket::from_std(socket.into())
}

/// A filter that takes ARP replies.
const REPLIES: [SockFilter; 4] = [
    SockFilter::new(0x28, 0, 0, 20),     // ldh [20]: operation
    SockFilter::new(0x15, 0, 1, 2),      // jeq #2
    SockFilter::new(0x06, 0, 0, 0xffff), // take
    SockFilter::new(0x06, 0, 0, 0),      // drop
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_made_anew_ten_thousand_times_leaves_nothing_behind() {
        let at = |second: u32| Instant::from_nanos(u64::from(second) * 1_000_000_000);
        let gateway = IpAddr::from([192, 0, 2, 1]);
        let (mut lately, mut most) = (Lately::new(), 0);
        for n in 0..10_000 {
            // One that stays, and one that has another index every second.
            lately.put((1, gateway), n, at(n));
            assert!(!lately.put((1000 + n, gateway), n, at(n)));
            assert_eq!([lately.get(&(1, gateway)), lately.get(&(1000 + n, gateway))], [Some(n); 2]);
            most = most.max(lately.known.len());
        }
        assert!(most <= 1300, "{most}");
        // A burst of them is forgotten as well.
        for n in 0..10_000 {
            lately.put((50_000 + n, gateway), n, at(10_000));
        }
        assert!(lately.known.len() > 10_000, "that lately was asked is not forgotten");
        lately.put((2, gateway), 0, at(11_000));
        for n in 0..25_000 {
            lately.put((100_000 + n, gateway), n, at(11_000 + n));
        }
        assert!(lately.known.len() <= 1300, "{}", lately.known.len());
        assert_eq!(lately.take(&(2, gateway)), None, "not asked for hours");
    }
}
