//! The other end of STAMP: a stateless session-reflector (RFC 8762, section 4.3).
//!
//! It answers each packet with one of the same length to where it came from, from the address that it was sent to. The
//! answer follows the connection mark of the question, hence leaves by the path that it came by.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use nix::{
    libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo},
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, task::JoinHandle};

use super::{
    socket::{Packet, arrivals, receive},
    stamp::{self, Clock},
};
use crate::{clock, units::Family};

/// A reflector that runs; dropped, it ends.
#[derive(Debug)]
pub struct Reflector(JoinHandle<()>);

impl Reflector {
    /// Listens at an address and answers from now on, in a task on the current tokio runtime. `synchronised` is what it
    /// says of the wall clock.
    pub fn start(at: SocketAddr, synchronised: bool) -> io::Result<Self> {
        let socket = open(at)?;
        Ok(Self(tokio::spawn(async move {
            loop {
                // Errors here are answers to earlier answers (ICMP); the socket goes on.
                let _ = one(&socket, Family::of(&at.ip()), synchronised).await;
            }
        })))
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn open(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    let family = Family::of(&at.ip());
    socket.set_nonblocking(true)?;
    arrivals(&socket, family)?;
    match family {
        Family::V4 => setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?,
        Family::V6 => {
            socket.set_only_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
        }
    }
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

async fn one(socket: &UdpSocket, family: Family, synchronised: bool) -> io::Result<()> {
    let mut bytes = [0; 2048];
    let next = || receive(socket.as_raw_fd(), family, &mut bytes).map_err(io::Error::from);
    let packet = socket.async_io(Interest::READABLE, next).await?;
    let now = clock::wall().as_micros();
    let stamps = Clock { received: packet.wall.unwrap_or(now), sent: now, synchronised };
    let Some(question) = bytes.get_mut(..packet.length) else { return Ok(()) };
    if stamp::reflect(question, stamps, packet.ttl.unwrap_or_default()) {
        answer(socket, &packet, question)?;
    }
    Ok(())
}

fn answer(socket: &UdpSocket, packet: &Packet, bytes: &[u8]) -> io::Result<()> {
    let (data, fd) = ([IoSlice::new(bytes)], socket.as_raw_fd());
    match (packet.from, packet.to) {
        (Some(SocketAddr::V4(to)), Some(IpAddr::V4(from))) => {
            let source = in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
            let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: in_addr { s_addr: 0 } };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(fd, &data, &control, MsgFlags::MSG_DONTWAIT, Some(&SockaddrIn::from(to)))?;
        }
        (Some(SocketAddr::V6(to)), Some(IpAddr::V6(from))) => {
            let info = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(fd, &data, &control, MsgFlags::MSG_DONTWAIT, Some(&SockaddrIn6::from(to)))?;
        }
        _ => {}
    }
    Ok(())
}
