//! By which way packets to the remote leave: as all traffic of this router does, or by one path with mark, device and
//! source.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

/// A way out of this router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Way {
    /// The path's name; `None` = the way of the router's own traffic.
    pub path: Option<String>,
    /// Its mark.
    pub mark: Option<u32>,
    /// Its interface.
    pub device: Option<String>,
    /// Its own addresses; the one of the right family is used.
    pub sources: Vec<IpAddr>,
}

impl Way {
    /// How people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.as_deref().unwrap_or("the usual way")
    }

    /// Connects to the first address that answers.
    pub(super) async fn connect(&self, addresses: &[SocketAddr], patience: Duration) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
        for address in addresses {
            let Ok(socket) = self.socket(*address).map_err(|error| last = error) else { continue };
            match tokio::time::timeout(patience, socket.connect(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {patience:?}")),
            }
        }
        Err(last)
    }

    fn socket(&self, to: SocketAddr) -> io::Result<TcpSocket> {
        if to.ip().is_loopback() && self.path.is_some() {
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no path leads to this machine itself"));
        }
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        let source = self.sources.iter().find(|source| source.is_ipv4() == to.is_ipv4());
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(*source, 0).into())?;
        } else if !self.sources.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("{} has no such address", self.name()),
            ));
        }
        Ok(TcpSocket::from_std_stream(socket.into()))
    }
}
