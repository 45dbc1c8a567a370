//! The shared sockets of all methods that exchange packets; those that no path needs are never opened.

use std::{future::pending, io};

use super::{
    ProbeError, ProbeSpec,
    link::Links,
    rounds::Arrival,
    socket::{Kind, Sockets},
};
use crate::{units::Family, validate::intent::Method};

/// The sockets of one method.
#[derive(Debug, Default)]
struct Pair {
    v4: Option<Sockets>,
    v6: Option<Sockets>,
}

impl Pair {
    fn open(kind: Kind) -> Result<Self, ProbeError> {
        let failed = |family| move |source| ProbeError::Open { what: called(kind, family), source };
        let v4 = Sockets::open(Family::V4, kind).map_err(failed(Family::V4))?;
        let v6 = match Sockets::open(Family::V6, kind) {
            Ok(sockets) => Some(sockets),
            Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => None,
            Err(e) => return Err(failed(Family::V6)(e)),
        };
        Ok(Self { v4: Some(v4), v6 })
    }

    fn of(&self, family: Family) -> io::Result<&Sockets> {
        let found = if family == Family::V4 { &self.v4 } else { &self.v6 };
        found.as_ref().ok_or_else(|| io::Error::from_raw_os_error(nix::libc::EAFNOSUPPORT))
    }

    fn receive(&self) -> Option<Arrival> {
        let of = |sockets: &Option<Sockets>| sockets.as_ref().and_then(Sockets::receive);
        of(&self.v4).or_else(|| of(&self.v6))
    }

    fn renew(&self) {
        self.v4.iter().chain(&self.v6).for_each(Sockets::renew);
    }

    async fn readable(&self) {
        tokio::select! {
            () = readable(self.v4.as_ref()) => {}
            () = readable(self.v6.as_ref()) => {}
        }
    }
}

/// What a pair of sockets is called in an error.
pub(super) const fn called(kind: Kind, family: Family) -> &'static str {
    match (kind, family) {
        (Kind::Echo(_), Family::V4) => "the sockets that probe by ICMP (IPv4, raw)",
        (Kind::Echo(_), Family::V6) => "the sockets that probe by ICMPv6 (IPv6, raw)",
        (Kind::Datagram | Kind::Stamp, Family::V4) => "the sockets that probe by UDP over IPv4",
        (Kind::Datagram | Kind::Stamp, Family::V6) => "the sockets that probe by UDP over IPv6",
        (Kind::Discovery, _) => "the socket that asks gateways by neighbour discovery (IPv6, raw)",
    }
}

async fn readable(sockets: Option<&Sockets>) {
    match sockets {
        Some(sockets) => sockets.readable().await,
        None => pending().await,
    }
}

/// All shared sockets.
#[derive(Debug)]
pub(super) struct Senders {
    ident: u16,
    icmp: Pair,
    udp: Option<Pair>,
    stamp: Option<Pair>,
    pub links: Option<Links>,
}

impl Senders {
    /// Opens those of ICMP, which tells whether probing is possible at all.
    pub fn open(ident: u16) -> Result<Self, ProbeError> {
        Ok(Self { ident, icmp: Pair::open(Kind::Echo(ident))?, udp: None, stamp: None, links: None })
    }

    /// The identifier of our ICMP echoes.
    pub const fn ident(&self) -> u16 {
        self.ident
    }

    /// Opens what a path needs and is not open yet.
    pub fn prepare(&mut self, spec: &ProbeSpec) -> Result<(), ProbeError> {
        match spec.probe.method {
            Method::Udp { .. } if self.udp.is_none() => self.udp = Some(Pair::open(Kind::Datagram)?),
            Method::Stamp { .. } if self.stamp.is_none() => self.stamp = Some(Pair::open(Kind::Stamp)?),
            Method::Gateway if self.links.is_none() => {
                self.links = Some(Links::open()?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The sockets of a path's method.
    pub fn of(&self, spec: &ProbeSpec, family: Family) -> io::Result<&Sockets> {
        let closed = || io::Error::from(io::ErrorKind::NotConnected);
        match spec.probe.method {
            Method::Udp { .. } => self.udp.as_ref().ok_or_else(closed)?.of(family),
            Method::Stamp { .. } => self.stamp.as_ref().ok_or_else(closed)?.of(family),
            _ => self.icmp.of(family),
        }
    }

    /// Another turn begins: as much may be read from each of them again.
    pub fn renew(&self) {
        std::iter::once(&self.icmp).chain(&self.udp).chain(&self.stamp).for_each(Pair::renew);
        self.links.iter().for_each(Links::renew);
    }

    /// The next answer to any of them.
    pub fn receive(&mut self) -> Option<Arrival> {
        let of = |pair: &Option<Pair>| pair.as_ref().and_then(Pair::receive);
        self.icmp
            .receive()
            .or_else(|| of(&self.udp))
            .or_else(|| of(&self.stamp))
            .or_else(|| self.links.as_mut().and_then(Links::receive))
    }

    /// Waits until there may be one.
    pub async fn readable(&self) {
        let links = async {
            match &self.links {
                Some(links) => links.readable().await,
                None => pending().await,
            }
        };
        let of = |pair| async move {
            match pair {
                Some(pair) => Pair::readable(pair).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.icmp.readable() => {}
            () = of(self.udp.as_ref()) => {}
            () = of(self.stamp.as_ref()) => {}
            () = links => {}
        }
    }
}
