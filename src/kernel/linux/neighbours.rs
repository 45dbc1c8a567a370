//! Who is reachable on a link: the kernel's neighbour table, of ARP and neighbour discovery.

use std::{collections::BTreeMap, net::IpAddr};

use netlink_packet_core::{Emitable as _, Parseable as _};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::{link::Names, socket::Channel};
use crate::{kernel::KernelError, units::IfName};

const NEW: u16 = 28;
const GET: u16 = 30;

/// Whether the kernel has a link-layer address for a neighbour and believes in it. Those that were never asked
/// for are not there.
pub(super) fn list(channel: &Channel, names: &Names) -> Result<BTreeMap<(IfName, IpAddr), bool>, KernelError> {
    let request = NeighbourMessage::default();
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    let seen = channel
        .dump(GET, &bytes, |kind, payload| {
            let parsed = || NeighbourMessage::parse(payload).map_err(|e| e.to_string());
            if kind == NEW { parsed().map(Some) } else { Ok(None) }
        })
        .map_err(|r| r.doing("list the neighbours"))?;
    Ok(seen.iter().filter_map(|message| entry(message, names)).collect())
}

fn entry(message: &NeighbourMessage, names: &Names) -> Option<((IfName, IpAddr), bool)> {
    let name = names.get(&message.header.ifindex)?.clone();
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(IpAddr::from(*a)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some(IpAddr::from(*a)),
        _ => None,
    })?;
    let dead = matches!(message.header.state, NeighbourState::Failed | NeighbourState::Incomplete);
    Some(((name, address), !dead))
}
