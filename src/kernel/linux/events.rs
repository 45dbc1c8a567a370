//! What the kernel announces: links, addresses, routes, rules, sysctls of interfaces, our nft table.

use std::{
    collections::VecDeque,
    future::{Future as _, poll_fn},
    io,
    pin::pin,
    task::{Context, Poll, Waker},
};

use netlink_sys::{
    AsyncSocket, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::{
    errno::Errno,
    net::if_::if_indextoname,
    sys::socket::{setsockopt, sockopt},
};
use tokio::task::unconstrained;

use super::{link::Link, nft, processes, tables, wire};
use crate::{
    clock,
    foreign::programs::Touch,
    kernel::{KernelError, KernelEvent},
    state::Ranges,
};

/// Receive buffer in bytes: a change of 10,000 routes fits.
pub(super) const BUFFER: usize = 16 * 1024 * 1024;

/// Multicast groups of rtnetlink (`linux/rtnetlink.h`).
const ROUTE_GROUPS: [u32; 10] = [1, 5, 7, 8, 9, 11, 12, 19, 24, 25];
/// A socket that fails more often than this in a row is not drained further.
const MOST_FAILURES: u32 = 16;
/// `NFNLGRP_NFTABLES`.
const NFT_GROUPS: [u32; 1] = [7];

/// A subscription to the changes in one network namespace.
pub struct Changes {
    route: TokioSocket,
    nft: TokioSocket,
    ready: VecDeque<KernelEvent>,
    ranges: Ranges,
    /// The kind of object and the port of the newest touch: a thousand routes flushed are one.
    last: (&'static str, u32),
    /// The nft transaction whose notifications are being read has changed our table.
    ours: bool,
}

impl Changes {
    /// Subscribes to what concerns objects in these ranges, with a receive buffer of so many bytes; the kernel has a floor of about 2 KiB.
    pub fn open(buffer: usize, ranges: &Ranges) -> Result<Self, KernelError> {
        let open = |protocol, groups: &[u32]| {
            subscribed(protocol, groups, buffer).map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPERM | Errno::EACCES) => super::privilege("subscribe to changes of the kernel"),
                _ => KernelError::Netlink {
                    doing: "subscribe to changes of the kernel".to_owned(),
                    errno: e.raw_os_error().unwrap_or(0),
                    text: e.to_string(),
                },
            })
        };
        let (route, nft) = (open(NETLINK_ROUTE, &ROUTE_GROUPS)?, open(NETLINK_NETFILTER, &NFT_GROUPS)?);
        Ok(Self { route, nft, ready: VecDeque::new(), ranges: *ranges, last: ("", 0), ours: false })
    }

    /// The next change. Safe to drop at any time: nothing is lost. A socket that fails counts as lost
    /// notifications, since the answer to both is to look at everything.
    pub async fn next(&mut self) -> KernelEvent {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next change that was announced already. Whoever gets none waits with [`Self::next`].
    pub fn ready(&mut self) -> Option<KernelEvent> {
        // Without this, tokio calls a socket empty after 128 reads, so that other tasks have their turn.
        let next = pin!(unconstrained(self.next()));
        match next.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<KernelEvent> {
        while self.ready.is_empty() {
            let (ranges, last) = (&self.ranges, &mut self.last);
            let route =
                read(&self.route, cx, &mut self.ready, |message, ready| route_events(message, ranges, last, ready));
            let ours = &mut self.ours;
            let nft = read(&self.nft, cx, &mut self.ready, |message, ready| nft_events(message, ours, ready));
            if route.is_pending() && nft.is_pending() {
                break;
            }
        }
        self.ready.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Reads one datagram. A socket that ran over is emptied before that is said: until then the kernel puts
/// nothing more into it, and does not say so again.
fn read(
    socket: &TokioSocket,
    cx: &mut Context<'_>,
    ready: &mut VecDeque<KernelEvent>,
    mut take: impl FnMut(&wire::Message<'_>, &mut VecDeque<KernelEvent>),
) -> Poll<()> {
    match socket.poll_recv_from_full(cx) {
        Poll::Pending => return Poll::Pending,
        Poll::Ready(Ok((bytes, _))) => {
            wire::messages(&bytes).for_each(|message| take(&message, ready));
        }
        Poll::Ready(Err(_)) => {
            empty(socket, cx);
            ready.push_back(KernelEvent::Lost);
        }
    }
    Poll::Ready(())
}

fn empty(socket: &TokioSocket, cx: &mut Context<'_>) {
    let mut failures = 0;
    while failures < MOST_FAILURES {
        match socket.poll_recv_from_full(cx) {
            Poll::Pending => return,
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(_)) => failures += 1,
        }
    }
}

fn subscribed(protocol: isize, groups: &[u32], buffer: usize) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    let socket_ref = socket.socket_mut();
    socket_ref.bind_auto()?;
    // Without the privilege the kernel cuts the buffer to net.core.rmem_max.
    if setsockopt(socket_ref, sockopt::RcvBufForce, &buffer).is_err() {
        setsockopt(socket_ref, sockopt::RcvBuf, &buffer)?;
    }
    groups.iter().try_for_each(|group| socket_ref.add_membership(*group))?;
    Ok(socket)
}

fn route_events(
    message: &wire::Message<'_>,
    ranges: &Ranges,
    last: &mut (&'static str, u32),
    ready: &mut VecDeque<KernelEvent>,
) {
    if let Some(kind) = touched(message, ranges)
        && std::mem::replace(last, (kind, message.port)) != (kind, message.port)
    {
        ready.push_back(touch(kind, message.port, None));
    }
    ready.extend(route_event(message.kind, message.payload, ranges));
}

/// The kind of object, if a route or a rule with our protocol number was changed or removed by a process.
fn touched(message: &wire::Message<'_>, ranges: &Ranges) -> Option<&'static str> {
    const ROUTE_PROTOCOL: usize = 5;
    const RULE_PROTOCOL: u16 = 21;
    let payload = message.payload;
    // The first netlink socket of a process has its id for a port: ours set our routes.
    if message.port == 0 || message.port == std::process::id() {
        return None;
    }
    match message.kind {
        // RTM_NEWROUTE too: a replace announces what is new, under the number of whoever did it.
        24 | 25 if payload.get(ROUTE_PROTOCOL) == Some(&ranges.protocol) => Some("route"),
        33 => {
            let protocol = wire::find(payload.get(12..)?, RULE_PROTOCOL)?;
            (protocol.first() == Some(&ranges.protocol)).then_some("rule")
        }
        _ => None,
    }
}

fn touch(kind: &'static str, pid: u32, name: Option<String>) -> KernelEvent {
    let name = name.or_else(|| processes::name(pid));
    KernelEvent::Touched(Touch { at: clock::now(), kind, pid, name, parent: processes::parent(pid) })
}

fn route_event(kind: u16, payload: &[u8], ranges: &Ranges) -> Option<KernelEvent> {
    match kind {
        16 => link_event(payload, true),
        17 => link_event(payload, false),
        20 => Some(KernelEvent::Changed("address")),
        21 => Some(address_gone(payload)),
        24 | 25 if route_matters(payload, ranges) => Some(KernelEvent::Changed("route")),
        32 | 33 => Some(KernelEvent::Changed("rule")),
        // RTM_NEWNETCONF: forwarding, rp_filter, ignore_routes_with_linkdown.
        80 => Some(KernelEvent::Changed("sysctl")),
        _ => None,
    }
}

/// The family is none where a message is about the interface itself. With one it says what became of its IPv6, or that it
/// joined or left a bridge: such a message may be of a kind that else means its end.
fn link_event(payload: &[u8], exists: bool) -> Option<KernelEvent> {
    if payload.first().is_some_and(|family| *family != 0) {
        return Some(KernelEvent::Changed("link"));
    }
    let link = Link::parse(payload)?;
    Some(KernelEvent::Link { name: link.name, up: exists && link.up, carrier: exists && link.carrier })
}

/// Whose address it was: `struct ifaddrmsg` has the index of its interface.
fn address_gone(payload: &[u8]) -> KernelEvent {
    const INDEX: usize = 4;
    let name = wire::u32_at(payload, INDEX).and_then(|index| if_indextoname(index).ok());
    KernelEvent::AddressGone { link: name.and_then(|name| name.to_str().ok()?.parse().ok()) }
}

/// Routes in our tables are ours, and default routes of the main table are facts. Other tables, and a full BGP
/// table in the main one, must not wake us up.
fn route_matters(payload: &[u8], ranges: &Ranges) -> bool {
    const MAIN: u32 = 254;
    const HEADER: usize = 12;
    const TABLE: u16 = 15;
    let prefix = payload.get(1).copied().unwrap_or(0);
    let long = payload.get(HEADER..).and_then(|attributes| wire::find(attributes, TABLE)?.try_into().ok());
    let table = long.map_or_else(|| payload.get(4).copied().unwrap_or(0).into(), u32::from_ne_bytes);
    ranges.owns_table(table) || (table == MAIN && prefix == 0)
}

/// Whose table changed stands in the first attribute of each kind of nft object; who changed it, in the message that
/// ends the transaction.
fn nft_events(message: &wire::Message<'_>, ours: &mut bool, ready: &mut VecDeque<KernelEvent>) {
    const NEW_GENERATION: u16 = tables::SUBSYSTEM | 0x0f;
    const PROCESS: u16 = 2;
    const PROCESS_NAME: u16 = 3;
    let attributes = message.payload.get(tables::HEADER..).unwrap_or_default();
    if message.kind == NEW_GENERATION {
        let process = wire::find(attributes, PROCESS).and_then(wire::be32).filter(|_| std::mem::take(ours));
        let name = wire::find(attributes, PROCESS_NAME).map(wire::text);
        ready.extend(process.map(|pid| touch("nft", pid, name)));
    } else if wire::find(attributes, tables::TABLE_NAME).map(wire::text).as_deref() == Some(nft::TABLE) {
        *ours = true;
        ready.push_back(KernelEvent::Changed("nft"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_one_family_of_a_link_is_not_the_end_of_it() {
        const UP_AND_LOWER_UP: u32 = 0x1_0001;
        let message = |family: u8| {
            let mut bytes = vec![0; 16];
            bytes[0] = family;
            bytes[4..8].copy_from_slice(&7_u32.to_ne_bytes());
            bytes[8..12].copy_from_slice(&UP_AND_LOWER_UP.to_ne_bytes());
            wire::put_text(&mut bytes, 3, "wan0");
            bytes
        };
        let state = |payload: &[u8], exists| match link_event(payload, exists) {
            Some(KernelEvent::Link { up, carrier, .. }) => Some((up, carrier)),
            Some(KernelEvent::Changed("link")) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(state(&message(0), true), Some((true, true)));
        assert_eq!(state(&message(0), false), Some((false, false)));
        // IPv6 and a bridge.
        for family in [10, 7] {
            assert_eq!([state(&message(family), true), state(&message(family), false)], [None, None]);
        }
        assert!(matches!(link_event(&message(10)[..16], true), Some(KernelEvent::Changed("link"))), "without a name");
    }
}
