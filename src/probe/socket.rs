//! The sockets of the methods that exchange packets: per method and address family one to send by and one to receive
//! with, whatever the number of paths.
//!
//! A raw socket sees every ICMP packet of the namespace, so one per path would be quadratic; a datagram ("ping")
//! socket needs `ping_group_range` opened, which is host-wide. One shared pair costs three system calls per round and
//! keeps what a socket per path would give: mark, device (by name, hence right after a link was re-created) and source
//! address are set for each round. The sending socket receives nothing, and a socket filter narrows the receiving one
//! to echo replies with our identifier. UDP has one socket for both, since answers come to its port: the device goes
//! with each packet (`IP_PKTINFO`), which decides the route lookup as a bound device does.

use std::{
    cell::Cell,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
};

use nix::{
    cmsg_space,
    libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo},
    sys::{
        socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike, recvmsg, sendmsg,
            setsockopt, sockopt,
        },
        time::TimeSpec,
    },
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    ProbeSpec,
    echo::{self, Reply},
    neighbour,
    rounds::Arrival,
    stamp,
};
use crate::{
    clock,
    units::{Dscp, Family, IfName},
};

/// Packets held back by neighbour resolution count against the sender's buffer, so that many dead paths would
/// starve the living ones. This is a limit, not an allocation.
const SEND_BUFFER: usize = 64 << 20;
const RECEIVE_BUFFER: usize = 4 << 20;

/// What a pair of sockets speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ICMP echo with this identifier.
    Echo(u16),
    /// UDP echo.
    Datagram,
    /// STAMP.
    Stamp,
    /// Neighbour discovery, IPv6 only.
    Discovery,
}

/// Packets that are read from a socket before anything else is done.
const BATCH: usize = 4096;

/// What may still be read from a socket in this turn. Each read counts, whatever came: a flood of packets that are no
/// answers must not stop the probes.
#[derive(Debug)]
pub(super) struct Ration(Cell<usize>);

impl Ration {
    pub(super) const fn new() -> Self {
        Self(Cell::new(BATCH))
    }

    /// Another turn begins.
    pub(super) fn renew(&self) {
        self.0.set(BATCH);
    }

    /// Whether one more packet may be read.
    pub(super) fn take(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

/// The sockets of one address family.
#[derive(Debug)]
pub struct Sockets {
    family: Family,
    kind: Kind,
    send: Socket,
    /// What the sending socket is set to.
    dscp: Cell<Option<Dscp>>,
    /// Tokio has no type for a raw socket, and this one adds nothing but readiness.
    receive: UdpSocket,
    ration: Ration,
}

impl Sockets {
    /// Opens them. Needs `CAP_NET_RAW` and `CAP_NET_ADMIN`, and a tokio runtime.
    pub fn open(family: Family, kind: Kind) -> io::Result<Self> {
        let (send, receive) = match kind {
            Kind::Echo(ident) => {
                let (send, receive) = (raw(family)?, raw(family)?);
                send.attach_filter(&NOTHING)?;
                receive.attach_filter(&echoes(family, ident))?;
                (send, receive)
            }
            Kind::Discovery => {
                let socket = raw(family)?;
                socket.attach_filter(&ADVERTISEMENTS)?;
                socket.set_unicast_hops_v6(255)?;
                setsockopt(&socket, sockopt::Ipv6MulticastHops, &255)?;
                (socket.try_clone()?, socket)
            }
            Kind::Datagram | Kind::Stamp => {
                let socket = datagram(family)?;
                (socket.try_clone()?, socket)
            }
        };
        send.set_mark(1)?;
        // Without the privilege over the host (a user namespace) the kernel cuts buffers to its limits.
        if setsockopt(&send, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            setsockopt(&send, sockopt::SndBuf, &SEND_BUFFER)?;
        }
        if setsockopt(&receive, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&receive, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        arrivals(&receive, family)?;
        let receive = UdpSocket::from_std(receive.into())?;
        Ok(Self { family, kind, send, dscp: Cell::new(None), receive, ration: Ration::new() })
    }

    /// Makes the next probes leave by a path; the index of its interface.
    pub fn aim(&self, spec: &ProbeSpec) -> io::Result<u32> {
        let index = self.index_of(&spec.interface)?;
        if matches!(self.kind, Kind::Echo(_)) {
            self.send.bind_device(Some(spec.interface.as_str().as_bytes()))?;
        }
        self.send.set_mark(spec.mark)?;
        if self.dscp.get() != spec.probe.dscp {
            set_dscp(&self.send, self.family, spec.probe.dscp)?;
            self.dscp.set(spec.probe.dscp);
        }
        Ok(index)
    }

    /// The index of an interface in the namespace of the socket. `if_nametoindex` would open a socket for each question.
    pub fn index_of(&self, interface: &IfName) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.send, interface.as_str())?)
    }

    /// Sends a packet by the path aimed at last.
    pub fn send(&self, packet: &[u8], to: SocketAddr, from: Option<IpAddr>, interface: u32) -> io::Result<()> {
        let data = [IoSlice::new(packet)];
        let fd = self.send.as_raw_fd();
        match to {
            SocketAddr::V4(to) => {
                let source = from.and_then(|from| if let IpAddr::V4(from) = from { Some(from) } else { None });
                let any = in_addr { s_addr: 0 };
                let source = source.map_or(any, |from| in_addr { s_addr: u32::from_ne_bytes(from.octets()) });
                let info = in_pktinfo { ipi_ifindex: interface.cast_signed(), ipi_spec_dst: source, ipi_addr: any };
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(fd, &data, &control, MsgFlags::MSG_DONTWAIT, Some(&SockaddrIn::from(to)))?;
            }
            SocketAddr::V6(mut to) => {
                let source = from.and_then(|from| if let IpAddr::V6(from) = from { Some(from) } else { None });
                let source = in6_addr { s6_addr: source.map_or([0; 16], |from| from.octets()) };
                let info = in6_pktinfo { ipi6_addr: source, ipi6_ifindex: interface };
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                if to.ip().is_unicast_link_local() || to.ip().is_multicast() {
                    to.set_scope_id(interface);
                }
                sendmsg(fd, &data, &control, MsgFlags::MSG_DONTWAIT, Some(&SockaddrIn6::from(to)))?;
            }
        }
        Ok(())
    }

    /// Waits until there may be an answer.
    pub async fn readable(&self) {
        // An error here means that the runtime is shutting down; it is seen there.
        let _ = self.receive.readable().await;
    }

    /// Another turn begins: as much may be read again.
    pub fn renew(&self) {
        self.ration.renew();
    }

    /// The next answer, if one is there and the turn's ration is not used up. It asks the socket and not the runtime,
    /// which may not have looked at it yet when this process was held up.
    pub fn receive(&self) -> Option<Arrival> {
        loop {
            if !self.ration.take() {
                return None;
            }
            // 60 bytes of IP header at most, the ICMP header, the nonce.
            let mut bytes = [0; 96];
            match receive(self.receive.as_raw_fd(), self.family, &mut bytes) {
                Ok(packet) => {
                    if let Some(arrival) = self.arrival(&packet, &bytes) {
                        return Some(arrival);
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(_) => break,
            }
        }
        // Tells the runtime that the socket is empty.
        let empty = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
        let _ = self.receive.try_io(Interest::READABLE, empty);
        None
    }

    fn arrival(&self, packet: &Packet, bytes: &[u8]) -> Option<Arrival> {
        let bytes = bytes.get(..packet.length).unwrap_or(bytes);
        let mut from = packet.from?.ip();
        let mut reflection = None;
        let reply = match self.kind {
            Kind::Echo(ident) => echo::reply(self.family, ident, bytes)?,
            Kind::Datagram => echo::echoed(bytes)?,
            Kind::Stamp => {
                let (reply, told) = stamp::reply(bytes)?;
                reflection = Some(told);
                reply
            }
            Kind::Discovery => {
                from = IpAddr::V6(neighbour::advertisement(bytes)?);
                Reply { sequence: 0, nonce: 0 }
            }
        };
        let (interface, wall) = (packet.interface, packet.wall);
        Some(Arrival { reply, from, interface, wall, read: clock::now(), reflection })
    }
}

fn raw(family: Family) -> io::Result<Socket> {
    let (domain, protocol) = match family {
        Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
        Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A socket of UDP at a port of the kernel's choice. The device goes with each packet instead of being bound, since
/// answers of all paths come back to this port.
fn datagram(family: Family) -> io::Result<Socket> {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let any: IpAddr = if family == Family::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(any, 0).into())?;
    Ok(socket)
}

/// Makes the kernel tell when and by which interface a packet came.
pub(super) fn arrivals(socket: &Socket, family: Family) -> io::Result<()> {
    setsockopt(socket, sockopt::ReceiveTimestampns, &true)?;
    match family {
        Family::V4 => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Sets the DSCP of what a socket sends.
pub(super) fn set_dscp(socket: &Socket, family: Family, dscp: Option<Dscp>) -> io::Result<()> {
    let field = u32::from(dscp.map_or(0, Dscp::value)) << 2;
    match family {
        Family::V4 => socket.set_tos_v4(field),
        Family::V6 => socket.set_tclass_v6(field),
    }
}

/// A packet as it came in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    pub length: usize,
    pub from: Option<SocketAddr>,
    /// The address it was sent to.
    pub to: Option<IpAddr>,
    /// Index of the interface that it came in by.
    pub interface: u32,
    /// Its TTL or hop limit, if the socket asks for it.
    pub ttl: Option<u8>,
    /// When the kernel received it, in microseconds of the wall clock.
    pub wall: Option<i64>,
}

/// Takes the next packet of a socket, without waiting.
pub(super) fn receive(fd: RawFd, family: Family, bytes: &mut [u8]) -> nix::Result<Packet> {
    match family {
        Family::V4 => receive_from(fd, bytes, |a: &SockaddrIn| SocketAddr::V4((*a).into())),
        Family::V6 => receive_from(fd, bytes, |a: &SockaddrIn6| SocketAddr::V6((*a).into())),
    }
}

fn receive_from<A: SockaddrLike>(
    fd: RawFd,
    bytes: &mut [u8],
    address: impl Fn(&A) -> SocketAddr,
) -> nix::Result<Packet> {
    let mut control = cmsg_space!(in6_pktinfo, in_pktinfo, TimeSpec, i32, i32);
    let mut data = [IoSliceMut::new(bytes)];
    let message = recvmsg::<A>(fd, &mut data, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let from = message.address.as_ref().map(address);
    let mut packet = Packet { length: message.bytes, from, to: None, interface: 0, ttl: None, wall: None };
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                packet.interface = info.ipi_ifindex.cast_unsigned();
                packet.to = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                packet.interface = info.ipi6_ifindex;
                packet.to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
            }
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                packet.ttl = u8::try_from(ttl).ok();
            }
            ControlMessageOwned::ScmTimestampns(at) => {
                packet.wall = Some(at.tv_sec() * 1_000_000 + at.tv_nsec() / 1_000);
            }
            _ => {}
        }
    }
    Ok(packet)
}

/// A filter that takes no packet (`ret 0`).
const NOTHING: [SockFilter; 1] = [SockFilter::new(0x06, 0, 0, 0)];

/// A filter that takes neighbour advertisements.
const ADVERTISEMENTS: [SockFilter; 4] = [
    SockFilter::new(0x30, 0, 0, 0),      // ldb [0]: type
    SockFilter::new(0x15, 0, 1, 136),    // jeq #136
    SockFilter::new(0x06, 0, 0, 0xffff), // take
    SockFilter::new(0x06, 0, 0, 0),      // drop
];

/// A filter (classic BPF) that takes echo replies with our identifier.
fn echoes(family: Family, ident: u16) -> Vec<SockFilter> {
    let op = SockFilter::new;
    let ident = u32::from(ident);
    let (take, drop) = (op(0x06, 0, 0, u32::from(u16::MAX)), op(0x06, 0, 0, 0));
    match family {
        Family::V4 => vec![
            op(0xb1, 0, 0, 0),     // ldxb 4*([0]&0xf): length of the IP header
            op(0x50, 0, 0, 0),     // ldb [x + 0]: type
            op(0x15, 0, 3, 0),     // jeq #0: echo reply
            op(0x48, 0, 0, 4),     // ldh [x + 4]: identifier
            op(0x15, 0, 1, ident), // jeq #ident
            take,
            drop,
        ],
        Family::V6 => vec![
            op(0x30, 0, 0, 0),     // ldb [0]: type
            op(0x15, 0, 3, 129),   // jeq #129: echo reply
            op(0x28, 0, 0, 4),     // ldh [4]: identifier
            op(0x15, 0, 1, ident), // jeq #ident
            take,
            drop,
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opening the sockets takes `CAP_NET_ADMIN`.
    #[tokio::test]
    async fn a_flood_of_packets_that_are_no_answers_ends_a_turn_and_not_the_probes() {
        let sockets = Sockets::open(Family::V4, Kind::Datagram).unwrap();
        let at = (Ipv4Addr::LOCALHOST, sockets.receive.local_addr().unwrap().port());
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..=BATCH {
            other.send_to(b"x", at).unwrap();
        }
        assert!(sockets.receive().is_none());
        let mut bytes = [0; 8];
        assert!(receive(sockets.receive.as_raw_fd(), Family::V4, &mut bytes).is_ok(), "something is left to read");
        other.send_to(b"x", at).unwrap();
        assert!(sockets.receive().is_none(), "not in this turn");
        sockets.renew();
        assert!(sockets.receive().is_none());
        let empty = receive(sockets.receive.as_raw_fd(), Family::V4, &mut bytes);
        assert_eq!(empty.err(), Some(nix::Error::EAGAIN), "the next turn reads on");
    }
}
