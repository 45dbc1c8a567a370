//! The sockets: per address family one to send by and one to receive with, whatever the number of paths.
//!
//! A raw socket sees every ICMP packet of the namespace, so one per path would be quadratic; a datagram ("ping")
//! socket needs `ping_group_range` opened, which is host-wide. One shared pair costs two `setsockopt` per round and
//! keeps what a socket per path would give: mark, device (by name, hence right after a link was re-created) and source
//! address are set for each round. The sending socket receives nothing, and a socket filter narrows the receiving one
//! to echo replies with our identifier.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
};

use nix::{
    cmsg_space,
    libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo},
    net::if_::if_nametoindex,
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

use super::{ProbeSpec, echo, rounds::Arrival};
use crate::{clock, units::Family};

/// Packets held back by neighbour resolution count against the sender's buffer, so that many dead paths would
/// starve the living ones. This is a limit, not an allocation.
const SEND_BUFFER: usize = 64 << 20;
const RECEIVE_BUFFER: usize = 4 << 20;

/// The sockets of one address family.
#[derive(Debug)]
pub struct Sockets {
    family: Family,
    ident: u16,
    send: Socket,
    /// A raw socket: tokio has no type for one, and this one adds nothing but readiness.
    receive: UdpSocket,
}

impl Sockets {
    /// Opens them. Needs `CAP_NET_RAW` and `CAP_NET_ADMIN`, and a tokio runtime.
    pub fn open(family: Family, ident: u16) -> io::Result<Self> {
        let (domain, protocol) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
        };
        let raw = || -> io::Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let (send, receive) = (raw()?, raw()?);
        send.attach_filter(&NOTHING)?;
        send.set_mark(1)?;
        // Without the privilege over the host (a user namespace) the kernel cuts buffers to its limits.
        if setsockopt(&send, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            setsockopt(&send, sockopt::SndBuf, &SEND_BUFFER)?;
        }
        receive.attach_filter(&filter(family, ident))?;
        if setsockopt(&receive, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&receive, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        setsockopt(&receive, sockopt::ReceiveTimestampns, &true)?;
        match family {
            Family::V4 => setsockopt(&receive, sockopt::Ipv4PacketInfo, &true)?,
            Family::V6 => setsockopt(&receive, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
        Ok(Self { family, ident, send, receive: UdpSocket::from_std(receive.into())? })
    }

    /// Makes the next probes leave by a path; the index of its interface.
    pub fn aim(&self, spec: &ProbeSpec) -> io::Result<u32> {
        self.send.bind_device(Some(spec.interface.as_str().as_bytes()))?;
        self.send.set_mark(spec.mark)?;
        Ok(if_nametoindex(spec.interface.as_str())?)
    }

    /// Sends a packet by the path aimed at last.
    pub fn send(&self, packet: &[u8], to: IpAddr, from: Option<IpAddr>, interface: u32) -> io::Result<()> {
        match (to, from) {
            (IpAddr::V4(to), Some(IpAddr::V4(from))) => {
                let source = in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
                let index = interface.cast_signed();
                let info = in_pktinfo { ipi_ifindex: index, ipi_spec_dst: source, ipi_addr: in_addr { s_addr: 0 } };
                self.send_with(packet, &to_v4(to), &[ControlMessage::Ipv4PacketInfo(&info)])
            }
            (IpAddr::V6(to), Some(IpAddr::V6(from))) => {
                let info = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: from.octets() }, ipi6_ifindex: interface };
                self.send_with(packet, &to_v6(to, interface), &[ControlMessage::Ipv6PacketInfo(&info)])
            }
            (IpAddr::V4(to), _) => self.send_with(packet, &to_v4(to), &[]),
            (IpAddr::V6(to), _) => self.send_with(packet, &to_v6(to, interface), &[]),
        }
    }

    fn send_with<A: SockaddrLike>(&self, packet: &[u8], to: &A, control: &[ControlMessage]) -> io::Result<()> {
        let data = [IoSlice::new(packet)];
        sendmsg(self.send.as_raw_fd(), &data, control, MsgFlags::MSG_DONTWAIT, Some(to))?;
        Ok(())
    }

    /// Waits until there may be an answer.
    pub async fn readable(&self) {
        // An error here means that the runtime is shutting down; it is seen there.
        let _ = self.receive.readable().await;
    }

    /// The next answer that has our identifier, if one is there. It asks the socket and not the runtime, which may
    /// not have looked at it yet when this process was held up.
    pub fn receive(&self) -> Option<Arrival> {
        loop {
            let found = match self.family {
                Family::V4 => self.receive_from(|a: SockaddrIn| IpAddr::V4(a.ip())),
                Family::V6 => self.receive_from(|a: SockaddrIn6| IpAddr::V6(a.ip())),
            };
            match found {
                Ok(Some(arrival)) => return Some(arrival),
                Ok(None) | Err(nix::Error::EINTR) => {}
                Err(_) => break,
            }
        }
        // Tells the runtime that the socket is empty.
        let empty = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
        let _ = self.receive.try_io(Interest::READABLE, empty);
        None
    }

    fn receive_from<A: SockaddrLike>(&self, address: impl Fn(A) -> IpAddr) -> nix::Result<Option<Arrival>> {
        // 60 bytes of IP header at most, the ICMP header, the nonce.
        let mut bytes = [0; 96];
        let mut control = cmsg_space!(in6_pktinfo, in_pktinfo, TimeSpec);
        let mut data = [IoSliceMut::new(&mut bytes)];
        let fd = self.receive.as_raw_fd();
        let message = recvmsg::<A>(fd, &mut data, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
        let (mut interface, mut wall) = (0, None);
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::Ipv4PacketInfo(info) => interface = info.ipi_ifindex.cast_unsigned(),
                ControlMessageOwned::Ipv6PacketInfo(info) => interface = info.ipi6_ifindex,
                ControlMessageOwned::ScmTimestampns(at) => wall = Some(at.tv_sec() * 1_000_000 + at.tv_nsec() / 1_000),
                _ => {}
            }
        }
        let (from, length) = (message.address.map(address), message.bytes);
        let reply = echo::reply(self.family, self.ident, bytes.get(..length).unwrap_or(&bytes));
        Ok(from.zip(reply).map(|(from, reply)| Arrival { reply, from, interface, wall, read: clock::now() }))
    }
}

fn to_v4(to: std::net::Ipv4Addr) -> SockaddrIn {
    SocketAddrV4::new(to, 0).into()
}

fn to_v6(to: std::net::Ipv6Addr, interface: u32) -> SockaddrIn6 {
    let scope = if to.is_unicast_link_local() { interface } else { 0 };
    SocketAddrV6::new(to, 0, 0, scope).into()
}

/// A filter that takes no packet (`ret 0`).
const NOTHING: [SockFilter; 1] = [SockFilter::new(0x06, 0, 0, 0)];

/// A filter (classic BPF) that takes echo replies with our identifier.
fn filter(family: Family, ident: u16) -> Vec<SockFilter> {
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
