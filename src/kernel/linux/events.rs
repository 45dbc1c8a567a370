//! What the kernel announces: links, addresses, routes, rules, sysctls of interfaces, our nft table.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use netlink_sys::{
    AsyncSocket, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use super::{link::Link, nft, tables, wire};
use crate::kernel::{KernelError, KernelEvent};

/// Receive buffer in bytes: a change of 10,000 routes fits.
pub(super) const BUFFER: usize = 16 * 1024 * 1024;

/// Multicast groups of rtnetlink (`linux/rtnetlink.h`).
const ROUTE_GROUPS: [u32; 9] = [1, 5, 7, 8, 9, 11, 19, 24, 25];
/// A socket that fails more often than this in a row is not drained further.
const MOST_FAILURES: u32 = 16;
/// `NFNLGRP_NFTABLES`.
const NFT_GROUPS: [u32; 1] = [7];

/// A subscription to the changes in one network namespace.
pub struct Changes {
    route: TokioSocket,
    nft: TokioSocket,
    ready: VecDeque<KernelEvent>,
}

impl Changes {
    /// Subscribes with a receive buffer of so many bytes; the kernel has a floor of about 2 KiB.
    pub fn open(buffer: usize) -> Result<Self, KernelError> {
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
        Ok(Self { route, nft, ready: VecDeque::new() })
    }

    /// The next change. Safe to drop at any time: nothing is lost. A socket that fails counts as lost
    /// notifications, since the answer to both is to look at everything.
    pub async fn next(&mut self) -> KernelEvent {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<KernelEvent> {
        while self.ready.is_empty() {
            let route = read(&self.route, cx, &mut self.ready, route_event);
            let nft = read(&self.nft, cx, &mut self.ready, nft_event);
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
    event: fn(u16, &[u8]) -> Option<KernelEvent>,
) -> Poll<()> {
    match socket.poll_recv_from_full(cx) {
        Poll::Pending => return Poll::Pending,
        Poll::Ready(Ok((bytes, _))) => {
            ready.extend(wire::messages(&bytes).filter_map(|m| event(m.kind, m.payload)));
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

fn route_event(kind: u16, payload: &[u8]) -> Option<KernelEvent> {
    match kind {
        16 => link_event(payload, true),
        17 => link_event(payload, false),
        20 | 21 => Some(KernelEvent::Changed("address")),
        24 | 25 if route_matters(payload) => Some(KernelEvent::Changed("route")),
        32 | 33 => Some(KernelEvent::Changed("rule")),
        // RTM_NEWNETCONF: forwarding, rp_filter, ignore_routes_with_linkdown.
        80 => Some(KernelEvent::Changed("sysctl")),
        _ => None,
    }
}

fn link_event(payload: &[u8], exists: bool) -> Option<KernelEvent> {
    let link = Link::parse(payload)?;
    Some(KernelEvent::Link { name: link.name, up: exists && link.up, carrier: exists && link.carrier })
}

/// Of the main and the local table only default routes are facts: a full BGP table must not wake us up.
fn route_matters(payload: &[u8]) -> bool {
    const MAIN: u8 = 254;
    let (prefix, table) = (payload.get(1).copied().unwrap_or(0), payload.get(4).copied().unwrap_or(0));
    prefix == 0 || table < MAIN
}

/// Whose table changed stands in the first attribute of each kind of nft object.
fn nft_event(_: u16, payload: &[u8]) -> Option<KernelEvent> {
    let table = wire::find(payload.get(tables::HEADER..)?, tables::TABLE_NAME)?;
    (wire::text(table) == nft::TABLE).then_some(KernelEvent::Changed("nft"))
}
