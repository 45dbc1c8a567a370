//! The other end of STAMP: a stateless session-reflector (RFC 8762, section 4.3).
//!
//! It answers each packet with one of the same length to where it came from, from the address that it was sent to. The
//! answer follows the connection mark of the question, hence leaves by the path that it came by.
//!
//! Invariant: it can be used against nobody. An answer is never longer than its question, each address gets so many
//! ([`Limit`]), and what comes from the reflector's own port is not answered: it may be another reflector's answer, and two
//! reflectors would answer each other for ever.
//!
//! Invariant: nothing that the rest of the daemon does holds up an answer, which the other end would take for a dead path.
//! It has a thread of its own.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    panic::AssertUnwindSafe,
    thread,
};

use futures_util::FutureExt as _;
use nix::{
    libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo},
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, runtime::Builder, sync::oneshot};

use super::{
    limit::{Limit, RATE},
    socket::{Packet, arrivals, receive},
    stamp::{self, Clock},
};
use crate::{clock, units::Family};

/// A reflector that runs; dropped, it ends.
#[derive(Debug)]
pub struct Reflector(#[expect(dead_code, reason = "its end is what the thread waits for")] oneshot::Sender<()>);

impl Reflector {
    /// Listens at an address of the current network namespace and answers from now on. `synchronised` is what it says of
    /// the wall clock.
    pub fn start(at: SocketAddr, synchronised: bool) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let socket = {
            let _entered = runtime.enter();
            open(at)?
        };
        let port = socket.local_addr()?.port();
        let mut end = End { socket, family: Family::of(&at.ip()), port, synchronised, limit: Limit::new(clock::now()) };
        let (running, dropped) = oneshot::channel();
        let answers = async move {
            loop {
                // Errors here are answers to earlier answers (ICMP); the socket goes on.
                let _ = surviving(end.one()).await;
            }
        };
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = dropped => {}
                    () = answers => {}
                }
            });
        };
        thread::Builder::new().name("stamp".to_owned()).spawn(run)?;
        Ok(Self(running))
    }
}

/// Does something that may have a fault of its own: one packet that nobody thought of must not take the paths of all other
/// routers, and a process that ended for it could be ended by anybody who sends it.
async fn surviving(work: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(
            "the STAMP reflector failed at one packet, which is a fault of Patronus; it goes on with the next"
        );
        Err(io::Error::other("a fault of the reflector"))
    })
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

/// What answers.
struct End {
    socket: UdpSocket,
    family: Family,
    port: u16,
    synchronised: bool,
    limit: Limit,
}

impl End {
    async fn one(&mut self) -> io::Result<()> {
        let mut bytes = [0; 2048];
        let next = || receive(self.socket.as_raw_fd(), self.family, &mut bytes).map_err(io::Error::from);
        let packet = self.socket.async_io(Interest::READABLE, next).await?;
        let now = clock::wall().as_micros();
        let stamps = Clock { received: packet.wall.unwrap_or(now), sent: now, synchronised: self.synchronised };
        let Some(question) = bytes.get_mut(..packet.length) else { return Ok(()) };
        if self.is_welcome(&packet) && stamp::reflect(question, stamps, packet.ttl.unwrap_or_default()) {
            answer(&self.socket, &packet, question)?;
        }
        Ok(())
    }

    fn is_welcome(&mut self, packet: &Packet) -> bool {
        let Some(from) = packet.from.filter(|from| from.port() != self.port) else { return false };
        let now = clock::now();
        let within = self.limit.take(from.ip(), now);
        if !within && self.limit.is_news(now) {
            tracing::warn!(from = %from.ip(), "more than {RATE} STAMP packets a second; the rest is not answered");
        }
        within
    }
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::probe::{echo::Reply, limit::BURST};

    fn end(at: &str) -> (End, SocketAddr) {
        let socket = open(at.parse().unwrap()).unwrap();
        let at = socket.local_addr().unwrap();
        let limit = Limit::new(clock::now());
        (End { socket, family: Family::of(&at.ip()), port: at.port(), synchronised: true, limit }, at)
    }

    fn question(length: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        stamp::request(Reply { sequence: 1, nonce: 2 }, true, &mut packet);
        packet.resize(length, 0);
        packet
    }

    /// The lengths of the answers that are there.
    fn answers(socket: &std::net::UdpSocket) -> Vec<usize> {
        socket.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        std::iter::from_fn(|| socket.recv(&mut bytes).ok()).collect()
    }

    #[tokio::test]
    async fn a_flood_of_questions_is_answered_so_often_and_another_reflector_never() {
        let (mut end, at) = end("127.0.0.1:0");
        let asker = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let begun = Instant::now();
        let mut seen = Vec::new();
        for _ in 0..1_000 {
            asker.send_to(&question(64), at).unwrap();
            end.one().await.unwrap();
            seen.extend(answers(&asker));
        }
        let most = BURST + begun.elapsed().as_secs_f64() * RATE + 1.0;
        let answered = f64::from(u32::try_from(seen.len()).unwrap());
        assert!((BURST..=most).contains(&answered), "{answered} answers, at most {most}");
        assert!(seen.iter().all(|length| *length == 64), "none is longer than its question");

        let twin = std::net::UdpSocket::bind(("127.0.0.2", at.port())).unwrap();
        twin.send_to(&question(64), at).unwrap();
        end.one().await.unwrap();
        assert_eq!(answers(&twin), [] as [usize; 0], "two reflectors would answer each other for ever");
    }

    #[tokio::test]
    async fn questions_are_answered_while_a_long_apply_holds_up_the_daemon() {
        let free = std::net::UdpSocket::bind("127.0.0.3:0").unwrap().local_addr().unwrap();
        let _reflector = Reflector::start(free, true).unwrap();
        let asker = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        asker.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let mut bytes = [0; 64];
        for _ in 0..20 {
            // Nothing of this runtime goes on meanwhile.
            asker.send_to(&question(64), free).unwrap();
            assert_eq!(asker.recv(&mut bytes).unwrap(), 64);
        }
    }

    #[tokio::test]
    async fn a_fault_at_one_packet_ends_no_reflector() {
        assert!(surviving(async { panic!("a packet that nobody thought of") }).await.is_err());
        assert!(surviving(async { Ok(()) }).await.is_ok());
    }

    #[tokio::test]
    async fn an_answer_is_as_long_as_its_question_and_what_is_none_has_no_answer() {
        let (mut end, at) = end("127.0.0.1:0");
        let asker = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for length in [0, 1, 43, 44, 45, 1400, 4000] {
            asker.send_to(&question(length), at).unwrap();
            end.one().await.unwrap();
        }
        assert_eq!(answers(&asker), [44, 45, 1400, 2048], "and never longer than its buffer");
    }
}
