//! Questions to a gateway on its own link: ARP (RFC 826) and neighbour solicitation (RFC 4861). Pure.
//!
//! Invariant: an answer counts only from the asked address, by the interface that the question left by. There is no
//! room for a random number in it, so whoever is on the link can forge it; the link is what is probed.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A hardware address of Ethernet.
pub type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
/// Ethernet's number of ARP.
pub const ARP: u16 = 0x0806;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Length of a frame: header, and ARP over Ethernet for IPv4.
const FRAME: usize = 14 + 28;

/// An ARP request as a whole frame; to the gateway alone if its hardware address is known (RFC 1122, section 2.3.2.1).
#[must_use]
pub fn arp_request(from: (Mac, Ipv4Addr), to: Ipv4Addr, known: Option<Mac>) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[0..6].copy_from_slice(&known.unwrap_or(BROADCAST));
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&ARP.to_be_bytes());
    // Ethernet, IPv4, and the lengths of their addresses.
    frame[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame[20..22].copy_from_slice(&REQUEST.to_be_bytes());
    frame[22..28].copy_from_slice(&from.0);
    frame[28..32].copy_from_slice(&from.1.octets());
    frame[38..42].copy_from_slice(&to.octets());
    frame
}

/// Who answers in a frame.
#[must_use]
pub fn arp_reply(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let frame: &[u8; FRAME] = frame.first_chunk()?;
    let reply = frame[12..14] == ARP.to_be_bytes()
        && frame[14..20] == [0, 1, 8, 0, 6, 4]
        && frame[20..22] == REPLY.to_be_bytes();
    let mac = *frame[22..].first_chunk()?;
    let address: [u8; 4] = *frame[28..].first_chunk()?;
    reply.then_some((address.into(), mac))
}

/// A neighbour solicitation without its sum, which the kernel fills in. It goes to [`solicited_node`].
#[must_use]
pub fn solicitation(from: Option<Mac>, to: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![135, 0, 0, 0, 0, 0, 0, 0];
    packet.extend(to.octets());
    if let Some(mac) = from {
        packet.extend([1, 1]);
        packet.extend(mac);
    }
    packet
}

/// Who answers in a neighbour advertisement that was asked for.
#[must_use]
pub fn advertisement(packet: &[u8]) -> Option<Ipv6Addr> {
    let head: &[u8; 24] = packet.first_chunk()?;
    let solicited = head[0] == 136 && head[1] == 0 && head[4] & 0x40 != 0;
    let target: [u8; 16] = *head.last_chunk()?;
    solicited.then(|| target.into())
}

/// The multicast address that the owner of an address listens to (RFC 4291, section 2.7.1).
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: (Mac, Ipv4Addr) = ([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 9));
    const GATEWAY: (Mac, Ipv4Addr) = ([2, 0, 0, 0, 0, 2], Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn an_arp_request_has_the_form_of_rfc_826() {
        let frame = arp_request(ROUTER, GATEWAY.1, None);
        let expected: Vec<u8> = [
            &[0xff; 6][..],
            &[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &[2, 0, 0, 0, 0, 1, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1],
        ]
        .concat();
        assert_eq!(frame[..], expected[..]);
        assert_eq!(arp_request(ROUTER, GATEWAY.1, Some(GATEWAY.0))[..6], GATEWAY.0);
    }

    #[test]
    fn only_an_arp_reply_is_one() {
        let mut frame = arp_request(GATEWAY, ROUTER.1, Some(ROUTER.0));
        assert_eq!(arp_reply(&frame), None, "a request");
        frame[21] = 2;
        assert_eq!(arp_reply(&frame), Some((GATEWAY.1, GATEWAY.0)));
        assert!((0..FRAME).all(|n| arp_reply(&frame[..n]).is_none()));
    }

    #[test]
    fn neighbour_discovery_has_the_form_of_rfc_4861() {
        let gateway: Ipv6Addr = "fe80::1:2".parse().unwrap();
        let packet = solicitation(Some(ROUTER.0), gateway);
        assert_eq!((packet[0], packet.len(), packet[24..26].to_vec()), (135, 32, vec![1, 1]));
        assert_eq!(solicited_node(gateway), "ff02::1:ff01:2".parse::<Ipv6Addr>().unwrap());
        let mut answer = packet;
        answer[0] = 136;
        assert_eq!(advertisement(&answer), None, "not asked for");
        answer[4] = 0x40;
        assert_eq!(advertisement(&answer), Some(gateway));
        assert_eq!(advertisement(&answer[..23]), None);
    }
}
