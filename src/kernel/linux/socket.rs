//! A netlink request socket: dumps that are complete or an error, pipelined requests, extended acknowledgements.
//!
//! Invariant: nothing is dropped in silence. A reply that cannot be decoded fails the look, and a dump that the
//! kernel marks as interrupted is taken again.
//!
//! Calls block. rtnetlink does its work inside `send` and `recv` (netlink(7)), so there is nothing to wait for
//! but the kernel itself, and a call that cannot be cancelled never leaves half a dump in the socket.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{Mutex, PoisonError},
};

use netlink_sys::{Socket, SocketAddr};
use nix::{
    errno::Errno,
    sys::{
        socket::{MsgFlags, recv, setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
};

use super::wire::{self, ACK, DONE, DUMP, DUMP_INTERRUPTED, ERROR, Message, REQUEST};
use crate::kernel::KernelError;

/// A dump that changes under our feet is taken so often before it counts as an error.
const DUMP_ATTEMPTS: usize = 16;
/// One acknowledgement takes under 1 KiB of the receive buffer, which holds at least 200 KiB.
pub(super) const PIPELINED: usize = 64;
/// The kernel never sends larger dump datagrams than 32 KiB.
const BUFFER: usize = 64 * 1024;
const TIMEOUT_S: i64 = 10;

/// One request without its netlink header.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub kind: u16,
    pub flags: u16,
    pub payload: Vec<u8>,
}

/// What the kernel, or the way to it, answered instead of success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Positive errno, 0 if there was none.
    pub errno: i32,
    pub text: String,
}

impl Refusal {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { errno: 0, text: text.into() }
    }

    fn io(error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        Self { errno, text: if errno == 0 { error.to_string() } else { Errno::from_raw(errno).desc().to_owned() } }
    }

    fn errno(errno: Errno) -> Self {
        Self { errno: errno as i32, text: errno.desc().to_owned() }
    }

    /// From the code of an acknowledgement and the attributes that follow it.
    fn acknowledged(code: i32, attributes: &[u8]) -> Option<Self> {
        let errno = code.checked_neg().filter(|errno| *errno != 0)?;
        let mut refusal = Self::errno(Errno::from_raw(errno));
        refusal.errno = errno;
        if let Some(detail) = wire::find(attributes, wire::NLMSGERR_ATTR_MSG) {
            refusal.text = format!("{} ({})", refusal.text, wire::text(detail));
        }
        Some(refusal)
    }

    pub(super) fn is(&self, errno: Errno) -> bool {
        self.errno == errno as i32
    }

    /// The error for the user, who reads first what was being done. What the kernel itself says goes before our guess.
    pub(super) fn doing(self, doing: impl Into<String>) -> KernelError {
        let doing = doing.into();
        let unsaid = self.text == Errno::from_raw(self.errno).desc();
        if unsaid && (self.is(Errno::EPERM) || self.is(Errno::EACCES)) {
            return super::privilege(&doing);
        }
        KernelError::Netlink { doing, errno: self.errno, text: self.text }
    }
}

/// A socket to one netlink family, in the network namespace of the thread that opened it.
pub(super) struct Channel {
    inner: Mutex<Inner>,
}

struct Inner {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What one message of a reply means for the exchange.
enum Turn {
    Go,
    End(Result<(), Refusal>),
}

impl Channel {
    /// Opens a socket. `strict` asks the kernel to honour filters of dumps, and to refuse what it does not know.
    pub(super) fn open(protocol: isize, strict: bool) -> Result<Self, KernelError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(TIMEOUT_S))?;
            Ok(socket)
        };
        let socket = open().map_err(|e| Refusal::io(&e).doing("open a netlink socket"))?;
        if strict && socket.set_netlink_get_strict_chk(true).is_err() {
            let what = "this kernel cannot filter netlink dumps: Linux 4.20 or later is needed".to_owned();
            return Err(KernelError::Missing { what });
        }
        Ok(Self { inner: Mutex::new(Inner { socket, sequence: 1, buffer: vec![0; BUFFER] }) })
    }

    /// The port that notifications of what this socket did carry.
    pub(super) fn port(&self) -> Option<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.inner().socket.get_address(&mut address).ok()?;
        Some(address.port_number())
    }

    /// Dumps, and keeps what `keep` makes of each message. Repeated while the kernel says that the table changed.
    pub(super) fn dump<T>(
        &self,
        kind: u16,
        payload: &[u8],
        mut keep: impl FnMut(u16, &[u8]) -> Result<Option<T>, String>,
    ) -> Result<Vec<T>, Refusal> {
        let request = Request { kind, flags: REQUEST | DUMP, payload: payload.to_vec() };
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(&request, &mut keep)? {
                return Ok(found);
            }
        }
        Err(changing())
    }

    /// One dump; nothing if it was interrupted.
    fn dump_once<T>(
        &self,
        request: &Request,
        keep: &mut impl FnMut(u16, &[u8]) -> Result<Option<T>, String>,
    ) -> Result<Option<Vec<T>>, Refusal> {
        let (mut found, mut broken) = (Vec::new(), None);
        let whole = self.walk(request, |kind, payload| match keep(kind, payload) {
            Ok(kept) => found.extend(kept),
            Err(e) => broken = Some(e),
        })?;
        match broken {
            _ if !whole => Ok(None),
            Some(text) => Err(Refusal::text(format!("a reply could not be read: {text}"))),
            None => Ok(Some(found)),
        }
    }

    /// Dumps without keeping anything, however large the table: `each` gets every message while the kernel waits for the
    /// next read. Repeated while the kernel says that the table changed, so that a message may come twice.
    pub(super) fn each(&self, kind: u16, payload: &[u8], mut each: impl FnMut(u16, &[u8])) -> Result<(), Refusal> {
        let request = Request { kind, flags: REQUEST | DUMP, payload: payload.to_vec() };
        for _ in 0..DUMP_ATTEMPTS {
            if self.walk(&request, &mut each)? {
                return Ok(());
            }
        }
        Err(changing())
    }

    /// One dump; false if it was interrupted.
    fn walk(&self, request: &Request, mut each: impl FnMut(u16, &[u8])) -> Result<bool, Refusal> {
        let mut interrupted = false;
        let end = self.inner().exchange(std::slice::from_ref(request), |_, message| {
            interrupted |= message.flags & DUMP_INTERRUPTED != 0;
            each(message.kind, message.payload);
        })?;
        end.into_iter().next().unwrap_or(Ok(()))?;
        Ok(!interrupted)
    }

    /// One request that the kernel acknowledges.
    pub(super) fn ask(&self, request: Request) -> Result<(), Refusal> {
        self.ask_all(vec![request]).into_iter().next().unwrap_or(Ok(()))
    }

    /// Many requests, sent together; one answer for each, in order. The kernel carries out all of them, also
    /// after one that failed.
    pub(super) fn ask_all(&self, mut requests: Vec<Request>) -> Vec<Result<(), Refusal>> {
        for request in &mut requests {
            request.flags |= REQUEST | ACK;
        }
        let mut inner = self.inner();
        let mut answers = Vec::with_capacity(requests.len());
        for part in requests.chunks(PIPELINED) {
            match inner.exchange(part, |_, _| {}) {
                Ok(part) => answers.extend(part),
                Err(refusal) => answers.extend(part.iter().map(|_| Err(refusal.clone()))),
            }
        }
        answers
    }

    /// At most [`PIPELINED`] requests of which the kernel tells only the failures, and that it is through: half as many
    /// messages where there are very many requests. One answer for each, in order; an error if the answers are lost.
    pub(super) fn tell(&self, requests: &mut [Request]) -> Result<Vec<Result<(), Refusal>>, Refusal> {
        for request in &mut *requests {
            request.flags = REQUEST;
        }
        let Some(last) = requests.last_mut() else { return Ok(Vec::new()) };
        last.flags |= ACK;
        self.inner().exchange(requests, |_, _| {})
    }

    /// One request with one message as its answer.
    pub(super) fn get(&self, kind: u16, payload: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        let mut reply = None;
        let request = Request { kind, flags: REQUEST | ACK, payload };
        let end = self.inner().exchange(&[request], |_, message| reply = Some(message.payload.to_vec()))?;
        end.into_iter().next().unwrap_or(Ok(()))?;
        reply.ok_or_else(|| Refusal::text("the kernel sent no answer"))
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Sends the requests in one datagram and reads until the last one has its end: an acknowledgement, an error, or the
    /// end of a dump. The kernel answers in order, so one without an end by then was not to be acknowledged, and went well.
    fn exchange(
        &mut self,
        requests: &[Request],
        mut each: impl FnMut(usize, &Message<'_>),
    ) -> Result<Vec<Result<(), Refusal>>, Refusal> {
        let first = self.sequence;
        let count = u32::try_from(requests.len()).map_err(|_| Refusal::text("too many requests"))?;
        self.sequence = self.sequence.wrapping_add(count);
        self.send(requests, first)?;
        let mut ends: Vec<Option<Result<(), Refusal>>> = vec![None; requests.len()];
        while ends.last().is_some_and(Option::is_none) {
            let length = self.receive()?;
            for message in wire::messages(&self.buffer[..length]) {
                // Leftovers of an exchange that timed out carry older numbers.
                let index = message.sequence.wrapping_sub(first) as usize;
                let Some(end @ None) = ends.get_mut(index) else { continue };
                match turn(&message) {
                    Turn::Go => each(index, &message),
                    Turn::End(result) => *end = Some(result),
                }
            }
        }
        Ok(ends.into_iter().map(|end| end.unwrap_or(Ok(()))).collect())
    }

    fn send(&self, requests: &[Request], first: u32) -> Result<(), Refusal> {
        let mut bytes = Vec::new();
        for (request, sequence) in requests.iter().zip(first..) {
            wire::put_message(&mut bytes, request.kind, request.flags, sequence, &request.payload);
        }
        let sent = self.socket.send(&bytes, 0).map_err(|e| Refusal::io(&e))?;
        if sent == bytes.len() { Ok(()) } else { Err(Refusal::text("a request was cut short")) }
    }

    fn receive(&mut self) -> Result<usize, Refusal> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) if length <= self.buffer.len() => return Ok(length),
                Ok(length) => return Err(Refusal::text(format!("a reply of {length} bytes is too long"))),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Refusal::text(format!("no answer within {TIMEOUT_S} s"))),
                Err(errno) => return Err(Refusal::errno(errno)),
            }
        }
    }
}

fn changing() -> Refusal {
    Refusal { errno: Errno::EINTR as i32, text: format!("changed during each of {DUMP_ATTEMPTS} dumps") }
}

fn turn(message: &Message<'_>) -> Turn {
    let code = || wire::i32_at(message.payload, 0).unwrap_or(0);
    match message.kind {
        ERROR => {
            let attributes = message.payload.get(4 + wire::HEADER..).unwrap_or_default();
            Turn::End(Refusal::acknowledged(code(), attributes).map_or(Ok(()), Err))
        }
        DONE => {
            let attributes = message.payload.get(4..).unwrap_or_default();
            Turn::End(Refusal::acknowledged(code(), attributes).map_or(Ok(()), Err))
        }
        _ => Turn::Go,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_own_words_go_before_the_guess_that_a_capability_is_missing() {
        let mut words = Vec::new();
        wire::put_text(&mut words, wire::NLMSGERR_ATTR_MSG, "IPv6 is disabled on nexthop device");
        let said = Refusal::acknowledged(-(Errno::EACCES as i32), &words).unwrap().doing("set a route");
        assert_eq!(said.to_string(), "set a route: Permission denied (IPv6 is disabled on nexthop device)");
        for errno in [Errno::EACCES, Errno::EPERM] {
            let unsaid = Refusal::acknowledged(-(errno as i32), &[]).unwrap().doing("set a route");
            assert!(unsaid.to_string().contains("CAP_NET_ADMIN"), "{unsaid}");
        }
    }
}
