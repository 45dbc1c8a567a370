//! Probes that are more than one packet each way: TCP, HTTP, TLS, and DNS. Each is one future with a socket of its own,
//! bound to the path by mark, device and source; it ends within the timeout, and its socket with it.
//!
//! The round-trip time of TCP and HTTP is that of the handshake: it is the path's and comparable with the other
//! methods'. How long the server thinks only counts against the timeout.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream},
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use hyper::{Method, StatusCode};
use nix::sys::socket::{MsgFlags, SockaddrIn, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::Interest,
    net::{TcpSocket, TcpStream, UdpSocket},
};

use super::{
    ProbeSpec, dns,
    socket::{arrivals, receive, set_dscp},
};
use crate::{
    clock,
    http::{Client, HttpError, Request, Url},
    units::{Dscp, Family, IfName},
    validate::intent::{self, Question, Web},
};

/// The largest answer that is looked at.
const MAX_ANSWER: usize = 64 * 1024;

/// The way that a probe has to take.
#[derive(Debug, Clone)]
pub(super) struct Way {
    interface: IfName,
    mark: u32,
    source: Option<IpAddr>,
    dscp: Option<Dscp>,
}

impl Way {
    /// The way of a path to a target.
    pub fn of(spec: &ProbeSpec, target: IpAddr) -> Self {
        let family = Family::of(&target);
        Self {
            interface: spec.interface.clone(),
            mark: spec.mark,
            source: spec.sources.iter().find(|s| Family::of(s) == family).copied(),
            dscp: spec.probe.dscp,
        }
    }

    fn socket(&self, family: Family, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(self.interface.as_str().as_bytes()))?;
        socket.set_mark(self.mark)?;
        set_dscp(&socket, family, self.dscp)?;
        let any: IpAddr =
            if family == Family::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        socket.bind(&SocketAddr::new(self.source.unwrap_or(any), 0).into())?;
        Ok(socket)
    }
}

/// What became of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered, after this time.
    Answered(Duration),
    /// Answered wrongly: what was said, for a person.
    Wrong(String),
    /// Not answered.
    Lost,
    /// It could not even be asked.
    Unsent(String),
}

/// Why an answer is none.
type Failed = Outcome;

fn unsent(error: &io::Error) -> Failed {
    Outcome::Unsent(error.to_string())
}

/// Carries out a probe; bounded by the caller.
pub(super) async fn hold(way: Way, target: IpAddr, method: intent::Method, web: Option<Arc<Client>>) -> Outcome {
    let found = match method {
        intent::Method::Tcp { port } => touch(&way, SocketAddr::new(target, port)).await,
        intent::Method::Http(asked) => match web {
            Some(client) => browse(&way, target, &asked, &client).await,
            None => Err(Outcome::Unsent("the system's certificates cannot be read".into())),
        },
        intent::Method::Dns(question) => ask(&way, SocketAddr::new(target, question.port), &question).await,
        // The others are packets of the shared sockets.
        intent::Method::Icmp | intent::Method::Udp { .. } | intent::Method::Stamp { .. } | intent::Method::Gateway => {
            Err(Outcome::Lost)
        }
    };
    found.map_or_else(|failed| failed, Outcome::Answered)
}

/// A handshake. A refusal by the target is an answer too; one by a router on the way, which comes as an ICMP error, is
/// none.
async fn touch(way: &Way, to: SocketAddr) -> Result<Duration, Failed> {
    let family = Family::of(&to.ip());
    let socket = tcp(way, family).map_err(|e| unsent(&e))?;
    // Kept to ask it for ICMP errors.
    let same = socket.try_clone().map_err(|e| unsent(&e))?;
    let begun = clock::now();
    let done = connect(socket, to).await;
    let took = clock::now().since(begun);
    match done {
        Ok(_) => {
            // A reset instead of a farewell leaves no connection behind that waits for a minute.
            let _ = same.set_linger(Some(Duration::ZERO));
            Ok(took)
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && !icmp_error(&same, family) => Ok(took),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            Err(Outcome::Wrong("was refused by a router on the way".into()))
        }
        Err(e) => Err(unsent_or_lost(&e)),
    }
}

/// The kernel's own refusal to send names its reason; what the network did not answer is lost.
fn unsent_or_lost(error: &io::Error) -> Failed {
    match error.kind() {
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => unsent(error),
        _ => Outcome::Lost,
    }
}

fn tcp(way: &Way, family: Family) -> io::Result<Socket> {
    let socket = way.socket(family, Type::STREAM, Protocol::TCP)?;
    match family {
        Family::V4 => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
        Family::V6 => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
    }
    Ok(socket)
}

async fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(StdStream::from(socket)).connect(to).await
}

/// Whether an ICMP error waits at a socket.
fn icmp_error(socket: &Socket, family: Family) -> bool {
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT);
    match family {
        Family::V4 => recvmsg::<SockaddrIn>(fd, &mut [], None, flags).is_ok(),
        Family::V6 => recvmsg::<SockaddrIn6>(fd, &mut [], None, flags).is_ok(),
    }
}

async fn browse(way: &Way, target: IpAddr, asked: &Web, client: &Client) -> Result<Duration, Failed> {
    let url = url(target, asked).map_err(|e| Outcome::Unsent(e.to_string()))?;
    // A page that nobody looks into may be of any size.
    let max_answer = if asked.body.is_some() { MAX_ANSWER } else { 0 };
    let request = Request { max_answer, ..Request::new(Method::GET, url) };
    let to = SocketAddr::new(target, asked.port);
    let took = std::sync::Mutex::new(None);
    let answer = client
        .send_over(request, |_| async {
            let socket = tcp(way, Family::of(&target))?;
            let begun = clock::now();
            let stream = connect(socket, to).await?;
            if let Ok(mut took) = took.lock() {
                *took = Some(clock::now().since(begun));
            }
            Ok(stream)
        })
        .await
        .map_err(|e| failed(&e))?;
    if let Some(wrong) = wrong(asked, answer.status, &answer.body) {
        return Err(Outcome::Wrong(wrong));
    }
    took.into_inner().ok().flatten().ok_or(Outcome::Lost)
}

fn url(target: IpAddr, asked: &Web) -> Result<Url, HttpError> {
    let scheme = if asked.tls { "https" } else { "http" };
    let host = asked.name.clone().unwrap_or_else(|| match target {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    });
    format!("{scheme}://{host}:{}{}", asked.port, asked.path).parse()
}

fn failed(error: &HttpError) -> Failed {
    match error {
        HttpError::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
            Outcome::Wrong("refused the connection".into())
        }
        HttpError::Connect { source, .. } => unsent_or_lost(source),
        HttpError::Timeout { .. } => Outcome::Lost,
        HttpError::Tls { source, .. } => Outcome::Wrong(format!("spoke no TLS that is trusted: {source}")),
        other => Outcome::Wrong(other.to_string()),
    }
}

/// What is wrong with an answer, if anything.
fn wrong(asked: &Web, status: StatusCode, body: &[u8]) -> Option<String> {
    let fits = asked.status.map_or_else(|| status.is_success(), |wanted| status == wanted);
    if !fits {
        let wanted = asked.status.map_or_else(|| "200 to 299".to_owned(), |s| s.to_string());
        return Some(format!("answered with status {} instead of {wanted}", status.as_u16()));
    }
    let text = asked.body.as_ref()?.as_bytes();
    let found = body.windows(text.len().max(1)).any(|part| part == text);
    (!found).then(|| "answered with another page than expected".to_owned())
}

async fn ask(way: &Way, to: SocketAddr, question: &Question) -> Result<Duration, Failed> {
    let family = Family::of(&to.ip());
    let id = u16::try_from(std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), to) & 0xffff)
        .unwrap_or_default();
    let packet = dns::question(question, id).ok_or_else(|| Outcome::Unsent("its name is not one".into()))?;
    let open = || -> io::Result<UdpSocket> {
        let socket = way.socket(family, Type::DGRAM, Protocol::UDP)?;
        arrivals(&socket, family)?;
        UdpSocket::from_std(socket.into())
    };
    let socket = open().map_err(|e| unsent(&e))?;
    socket.connect(to).await.map_err(|e| unsent(&e))?;
    let (begun, wall) = (clock::now(), clock::wall().as_micros());
    socket.send(&packet).await.map_err(|e| unsent_or_lost(&e))?;
    loop {
        let mut bytes = [0; 1500];
        let next = || receive(socket.as_raw_fd(), family, &mut bytes).map_err(io::Error::from);
        // An ICMP error is not the name server's answer.
        let packet = socket.async_io(Interest::READABLE, next).await.map_err(|_| Outcome::Lost)?;
        let took = super::rounds::round_trip(begun, wall, clock::now(), packet.wall);
        match dns::judge(question, id, bytes.get(..packet.length).unwrap_or(&bytes)) {
            dns::Verdict::Good => return Ok(took),
            dns::Verdict::Bad(why) => return Err(Outcome::Wrong(format!("answered: {why}"))),
            dns::Verdict::Other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Web {
        Web { tls: false, port: 80, name: None, path: "/".into(), status: None, body: None }
    }

    #[test]
    fn a_login_page_is_not_the_expected_answer() {
        let ok = StatusCode::OK;
        assert_eq!(wrong(&web(), ok, b"anything"), None);
        assert!(wrong(&web(), StatusCode::FOUND, b"").unwrap().contains("302 instead of 200 to 299"));
        let empty = Web { status: Some(204), ..web() };
        assert!(wrong(&empty, ok, b"<html>").is_some_and(|w| w.contains("200 instead of 204")));
        assert_eq!(wrong(&empty, StatusCode::NO_CONTENT, b""), None);
        let text = Web { body: Some("success".into()), ..web() };
        assert_eq!(wrong(&text, ok, b"<p>success</p>"), None);
        assert!(wrong(&text, ok, b"log in").unwrap().contains("another page"));
        assert!(wrong(&text, ok, b"").is_some());
    }

    #[test]
    fn the_url_names_the_server_or_its_address() {
        let shown = |target: &str, asked: &Web| url(target.parse().unwrap(), asked).unwrap().authority().to_string();
        assert_eq!(shown("192.0.2.1", &web()), "192.0.2.1:80");
        assert_eq!(shown("2001:db8::1", &Web { tls: true, port: 8443, ..web() }), "[2001:db8::1]:8443");
        assert_eq!(shown("192.0.2.1", &Web { name: Some("a.example".into()), ..web() }), "a.example:80");
    }
}
