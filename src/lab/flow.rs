//! Numbered UDP packets from one node to another on an absolute schedule, and what arrives of them.

use std::{
    collections::BTreeMap,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{ControlMessageOwned, MsgFlags, RecvMsg, SockaddrStorage, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};

use super::{
    Error, Lab, Node, netns,
    report::{Arrival, Crossing, Report, Track},
};

/// Socket buffers in bytes: a second of 20,000 packets/s fits while a thread does not run.
const BUFFER: usize = 32 << 20;
/// How long after the last arrival a packet is given up.
const QUIET: Duration = Duration::from_millis(400);
/// Bytes that a packet needs: the flow's identifier and its number.
const HEADER: usize = 16;

/// What to send.
#[derive(Debug, Clone)]
pub struct FlowSpec {
    /// The sending node.
    pub from: Node,
    /// The receiving node.
    pub to: Node,
    /// An address of the receiving node.
    pub address: IpAddr,
    /// The destination port; 0 lets the kernel choose.
    pub port: u16,
    /// Packets per second.
    pub pps: u32,
    /// From how many source ports in turn: so many flows to a router.
    pub sockets: u16,
    /// UDP payload in bytes, at least 16.
    pub size: usize,
    /// DSCP, 0 to 63.
    pub dscp: u8,
    /// Whether the sink sends each packet back.
    pub echo: bool,
}

impl FlowSpec {
    /// One flow of 64-byte packets to an address of the internet, one way.
    #[must_use]
    pub fn new(from: Node, address: IpAddr, pps: u32) -> Self {
        Self { from, to: Node::Internet, address, port: 0, pps, sockets: 1, size: 64, dscp: 0, echo: false }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
    arrived: AtomicU64,
    returned: AtomicU64,
}

/// A flow under way; dropped without [`Flow::finish`], it stops within 50 ms.
#[derive(Debug)]
pub struct Flow {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<Result<Sent, Error>>>,
    sink: Option<JoinHandle<Result<Vec<Arrival>, Error>>>,
    listener: Option<JoinHandle<Result<Vec<Arrival>, Error>>>,
    /// The port that it goes to.
    pub port: u16,
}

struct Sent {
    at: Vec<Instant>,
    refused: u64,
}

impl Lab {
    /// Starts a flow; it runs until [`Flow::finish`].
    pub fn flow(&self, spec: &FlowSpec) -> Result<Flow, Error> {
        let shared = Arc::new(Shared::default());
        let to = SocketAddr::new(spec.address, spec.port);
        let at_sink = netns::within(&self.namespace(&spec.to), || open(to))??;
        let to = at_sink.local_addr().map_err(failed("read the sink's port"))?;
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let ours = |_| netns::within(&self.namespace(&spec.from), || open(SocketAddr::new(any, 0)))?;
        let sockets = (0..spec.sockets.max(1)).map(ours).collect::<Result<Vec<_>, _>>()?;
        for socket in &sockets {
            mark_class(socket, spec.dscp)?;
        }
        let sockets = Arc::new(sockets);
        let id = identifier();
        let sink = Receiver {
            id,
            shared: Arc::clone(&shared),
            echo: spec.echo,
            crossings: if spec.to == Node::Internet { self.crossings() } else { BTreeMap::new() },
        };
        let back = Receiver { id, shared: Arc::clone(&shared), echo: false, crossings: BTreeMap::new() };
        let flow = Flow {
            port: to.port(),
            sink: Some(self.receive(&spec.to, sink, Arc::new(vec![at_sink]), |s| &s.arrived)),
            listener: spec.echo.then(|| self.receive(&spec.from, back, Arc::clone(&sockets), |s| &s.returned)),
            sender: Some(sender(Arc::clone(&shared), sockets, to, id, spec)),
            shared,
        };
        Ok(flow)
    }

    /// Runs a flow for so long.
    pub fn flow_for(&self, spec: &FlowSpec, time: Duration) -> Result<Report, Error> {
        let flow = self.flow(spec)?;
        thread::sleep(time);
        flow.finish()
    }

    /// The internet's interfaces by number in their name.
    fn crossings(&self) -> BTreeMap<u16, Crossing> {
        let named = |site: &crate::units::Name, endpoint: &crate::units::Name| Crossing {
            site: site.clone(),
            endpoint: endpoint.clone(),
        };
        self.topology.uplinks().map(|(site, endpoint, link)| (link.index, named(site, endpoint))).collect()
    }

    fn receive(
        &self,
        node: &Node,
        receiver: Receiver,
        sockets: Arc<Vec<UdpSocket>>,
        count: fn(&Shared) -> &AtomicU64,
    ) -> JoinHandle<Result<Vec<Arrival>, Error>> {
        let ns = self.namespace(node);
        thread::spawn(move || {
            netns::enter(&ns)?;
            receiver.run(&sockets, count)
        })
    }
}

impl Flow {
    /// Packets that have arrived so far, repeated ones included.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.shared.arrived.load(Ordering::Relaxed)
    }

    /// Stops sending, waits for what is under way, and reports.
    pub fn finish(mut self) -> Result<Report, Error> {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        let sent = join(self.sender.take())?.unwrap_or(Sent { at: Vec::new(), refused: 0 });
        self.drain(sent.at.len() as u64);
        self.shared.stop_receiving.store(true, Ordering::Relaxed);
        let at: Arc<[Instant]> = sent.at.into();
        let there = Track::new(Arc::clone(&at), join(self.sink.take())?.unwrap_or_default());
        let back = join(self.listener.take())?.map(|arrivals| Track::new(at, arrivals));
        Ok(Report { there, back, refused: sent.refused })
    }

    /// Waits until everything has arrived, or nothing has for a while.
    fn drain(&self, sent: u64) {
        let counts = || (self.arrived(), self.shared.returned.load(Ordering::Relaxed));
        let wanted = (sent, if self.listener.is_some() { sent } else { 0 });
        let (mut seen, mut since) = (counts(), Instant::now());
        while since.elapsed() < QUIET && (seen.0 < wanted.0 || seen.1 < wanted.1) {
            thread::sleep(Duration::from_millis(5));
            if counts() != seen {
                (seen, since) = (counts(), Instant::now());
            }
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        self.shared.stop_receiving.store(true, Ordering::Relaxed);
    }
}

fn join<T>(thread: Option<JoinHandle<Result<T, Error>>>) -> Result<Option<T>, Error> {
    thread.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).transpose()
}

fn failed(doing: &str) -> impl FnOnce(io::Error) -> Error {
    let doing = doing.to_owned();
    move |source| Error::Flow { doing, source }
}

/// Different for each flow of this process and, most likely, of others.
fn identifier() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    (u64::from(std::process::id()) << 32) | NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A socket that says when and by which interface packets came.
fn open(at: SocketAddr) -> Result<UdpSocket, Error> {
    let socket = UdpSocket::bind(at).map_err(failed(&format!("bind {at}")))?;
    let option = |result: nix::Result<()>| result.map_err(|e| failed("set a socket option")(e.into()));
    // In a user namespace the machine's limit holds.
    option(
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER)),
    )?;
    option(setsockopt(&socket, sockopt::ReceiveTimestampns, &true))?;
    if at.is_ipv4() {
        option(setsockopt(&socket, sockopt::Ipv4PacketInfo, &true))?;
    } else {
        option(setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true))?;
    }
    socket.set_nonblocking(true).map_err(failed("set a socket non-blocking"))?;
    Ok(socket)
}

fn mark_class(socket: &UdpSocket, dscp: u8) -> Result<(), Error> {
    let socket_ref = socket2::SockRef::from(socket);
    let field = u32::from(dscp) << 2;
    let four = socket.local_addr().is_ok_and(|a| a.is_ipv4());
    let set = if four { socket_ref.set_tos_v4(field) } else { socket_ref.set_tclass_v6(field) };
    set.map_err(failed("set the DSCP"))
}

fn sender(
    shared: Arc<Shared>,
    sockets: Arc<Vec<UdpSocket>>,
    to: SocketAddr,
    id: u64,
    spec: &FlowSpec,
) -> JoinHandle<Result<Sent, Error>> {
    let interval = Duration::from_secs(1) / spec.pps.max(1);
    let mut payload = vec![0; spec.size.max(HEADER)];
    payload[..8].copy_from_slice(&id.to_be_bytes());
    thread::spawn(move || {
        // The default of 50 us would add up to bursts.
        let _ = nix::sys::prctl::set_timerslack(1);
        let (mut sent, start) = (Sent { at: Vec::new(), refused: 0 }, Instant::now());
        let mut due = start;
        while !shared.stop_sending.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let number = sent.at.len();
            payload[8..HEADER].copy_from_slice(&(number as u64).to_be_bytes());
            sent.at.push(Instant::now());
            let socket = &sockets[number % sockets.len()];
            sent.refused += u64::from(socket.send_to(&payload, to).is_err());
            due += interval;
        }
        Ok(sent)
    })
}

struct Receiver {
    id: u64,
    shared: Arc<Shared>,
    echo: bool,
    crossings: BTreeMap<u16, Crossing>,
}

impl Receiver {
    fn run(self, sockets: &[UdpSocket], count: fn(&Shared) -> &AtomicU64) -> Result<Vec<Arrival>, Error> {
        let mut arrivals = Vec::new();
        let mut interfaces = BTreeMap::new();
        let mut buffer = vec![0; 65_536];
        while !self.shared.stop_receiving.load(Ordering::Relaxed) {
            let mut fds: Vec<_> = sockets.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
            // Interrupted or timed out, the loop looks again.
            let _ = poll(&mut fds, PollTimeout::from(50_u8));
            for socket in sockets {
                while let Some((arrival, length, from)) = self.take(socket, &mut buffer, &mut interfaces)? {
                    if self.echo {
                        // A full queue loses the echo, which the sender's side counts.
                        let _ = socket.send_to(&buffer[..length], from);
                    }
                    arrivals.push(arrival);
                    count(&self.shared).fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(arrivals)
    }

    /// The next packet of this flow, if one waits.
    fn take(
        &self,
        socket: &UdpSocket,
        buffer: &mut [u8],
        interfaces: &mut BTreeMap<u32, Option<Crossing>>,
    ) -> Result<Option<(Arrival, usize, SocketAddr)>, Error> {
        loop {
            let mut control = [0; 256];
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT);
            let message: RecvMsg<'_, '_, SockaddrStorage> = match message {
                Ok(message) => message,
                Err(nix::Error::EAGAIN) => return Ok(None),
                // An ICMP error that belongs to an earlier packet.
                Err(nix::Error::ECONNREFUSED | nix::Error::EHOSTUNREACH | nix::Error::ENETUNREACH) => continue,
                Err(errno) => return Err(failed("receive")(errno.into())),
            };
            let (length, from) = (message.bytes, message.address.as_ref().and_then(address));
            let (at, interface) = control_of(&message);
            let (Some(from), Some(sequence)) = (from, self.number(&buffer[..length])) else { continue };
            let via = interfaces.entry(interface).or_insert_with(|| self.crossing(interface)).clone();
            return Ok(Some((Arrival { sequence, at, source: from.ip(), via }, length, from)));
        }
    }

    fn number(&self, packet: &[u8]) -> Option<u64> {
        let word = |at: usize| packet.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        word(8).filter(|_| word(0) == Some(self.id))
    }

    fn crossing(&self, interface: u32) -> Option<Crossing> {
        let name = nix::net::if_::if_indextoname(interface).ok()?.into_string().ok()?;
        let number: u16 = name.get(1..)?.parse().ok()?;
        self.crossings.get(&number).cloned()
    }
}

/// When the kernel got the packet, and the number of the interface that it came by.
fn control_of(message: &RecvMsg<'_, '_, SockaddrStorage>) -> (Instant, u32) {
    let (mut at, mut interface) = (Instant::now(), 0);
    // The buffer has room for both messages, so decoding cannot fail.
    for control in message.cmsgs().into_iter().flatten() {
        match control {
            ControlMessageOwned::ScmTimestampns(time) => at = monotonic(time),
            ControlMessageOwned::Ipv4PacketInfo(info) => interface = u32::try_from(info.ipi_ifindex).unwrap_or(0),
            ControlMessageOwned::Ipv6PacketInfo(info) => interface = info.ipi6_ifindex,
            _ => {}
        }
    }
    (at, interface)
}

/// Kernel timestamps are on the wall clock: their age is carried over.
fn monotonic(time: TimeSpec) -> Instant {
    let stamp = SystemTime::UNIX_EPOCH + Duration::from(time);
    let age = SystemTime::now().duration_since(stamp).unwrap_or_default();
    let now = Instant::now();
    now.checked_sub(age).unwrap_or(now)
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let four = storage.as_sockaddr_in().map(|a| SocketAddr::new(a.ip().into(), a.port()));
    four.or_else(|| storage.as_sockaddr_in6().map(|a| SocketAddr::new(a.ip().into(), a.port())))
}
